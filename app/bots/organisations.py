"""Organisations: who owns bots."""

from __future__ import annotations

import uuid

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit, models
from app.core import errors, ids


def create(session: orm.Session, name: str, *, is_default: bool = False) -> models.Organisation:
    organisation = models.Organisation(id=ids.new_uuid(), name=name, is_default=is_default)
    session.add(organisation)
    session.flush()
    audit.record(
        session, "organisation.created", f"organisation:{organisation.id}", organisation=organisation.id, name=name
    )
    return organisation


def get(session: orm.Session, organisation: str) -> models.Organisation:
    """Return an organisation; raise `NotFound`."""
    row = session.get(models.Organisation, identifier(organisation, "organisation"))
    if row is None:
        raise errors.NotFound(f"There is no organisation '{organisation[:80]}'.", param="id")
    return row


def default(session: orm.Session) -> models.Organisation | None:
    """Return the organisation that the first start made."""
    return session.scalar(sqlalchemy.select(models.Organisation).where(models.Organisation.is_default))


def identifier(text: str, kind: str) -> uuid.UUID:
    """Return the id that a path or principal names; raise `NotFound` for what cannot be one."""
    try:
        return uuid.UUID(text)
    except ValueError:
        raise errors.NotFound(f"There is no {kind} '{text[:80]}'.", param="id") from None
