"""The column types that several tables share."""

from __future__ import annotations

import datetime
import decimal
import uuid
from typing import Annotated

import sqlalchemy
from sqlalchemy import orm

uuid_pk = Annotated[uuid.UUID, orm.mapped_column(primary_key=True)]
serial_pk = Annotated[int, orm.mapped_column(sqlalchemy.BigInteger, primary_key=True)]
long = Annotated[int, orm.mapped_column(sqlalchemy.BigInteger)]
small = Annotated[int, orm.mapped_column(sqlalchemy.SmallInteger)]
text = Annotated[str, orm.mapped_column(sqlalchemy.Text)]
usd = Annotated[decimal.Decimal, orm.mapped_column(sqlalchemy.Numeric(20, 10))]
created_at = Annotated[datetime.datetime, orm.mapped_column(server_default=sqlalchemy.func.now())]
