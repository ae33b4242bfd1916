"""The declarative bases of the two databases; each domain's `models` hangs its tables on one of them."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


_TYPES: dict[Any, Any] = {
    datetime.datetime: sqlalchemy.DateTime(timezone=True),
    dict[str, Any]: postgresql.JSONB(none_as_null=True),
    list[str]: postgresql.ARRAY(sqlalchemy.Text),
    uuid.UUID: sqlalchemy.Uuid(),
}


class Base(orm.DeclarativeBase):
    """The base of every table of the main database."""

    metadata = sqlalchemy.MetaData(naming_convention=NAMES)
    type_annotation_map = _TYPES


class AnalyticsBase(orm.DeclarativeBase):
    """The base of every table of the analytics database, which nothing joins with the main one."""

    metadata = sqlalchemy.MetaData(naming_convention=NAMES)
    type_annotation_map = _TYPES
