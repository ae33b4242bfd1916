"""What the database must have beside its own: pgvector, and only where a bot compares meanings."""

from __future__ import annotations

import sqlalchemy
from sqlalchemy import exc, orm

from app.core import errors
from app.core.database.engine import is_outage

NO_VECTOR = (
    "cache: semantic needs the extension pgvector, which this PostgreSQL {what}. Install it (the package is often called "
    "postgresql-NN-pgvector) and let a superuser run CREATE EXTENSION vector in Repliq's database; or take cache: exact."
)
_LOCK = 0x7271_0010


def require_vector(session: orm.Session) -> None:
    """See to it that there is pgvector, creating it where the server has it; raise `InvalidRequest` where that cannot be.

    From then on meanings are kept in its own type, not as arrays: they are compared some ten times as fast.
    """
    if not has_vector(session):
        _create_vector(session)
    if session.scalar(_IS_ARRAY):
        session.execute(_AS_VECTORS)


# In the row itself where it fits there: to fetch each from elsewhere takes most of the time.
_AS_VECTORS = sqlalchemy.text("""
    ALTER TABLE cached_meanings
        ALTER COLUMN vector TYPE vector USING vector::vector, ALTER COLUMN vector SET STORAGE MAIN
""")
_IS_ARRAY = sqlalchemy.text("""
    SELECT atttypid = 'real[]'::regtype FROM pg_attribute
    WHERE attrelid = to_regclass('cached_meanings') AND attname = 'vector'
""")


def _create_vector(session: orm.Session) -> None:
    if not vector_offered(session):
        raise errors.InvalidRequest(NO_VECTOR.format(what="server does not have"), param="settings.cache")
    try:
        with session.begin_nested():
            session.execute(sqlalchemy.select(sqlalchemy.func.pg_advisory_xact_lock(_LOCK)))
            session.execute(sqlalchemy.text("CREATE EXTENSION IF NOT EXISTS vector"))
    except exc.DBAPIError as error:
        if is_outage(error):
            raise
        what = f"does not let this role create ({str(error.orig).strip().splitlines()[0]})"
        raise errors.InvalidRequest(NO_VECTOR.format(what=what), param="settings.cache") from error


def has_vector(session: orm.Session) -> bool:
    return bool(session.scalar(sqlalchemy.text("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'vector')")))


def vector_offered(session: orm.Session) -> bool:
    """Tell whether the server has pgvector's files."""
    return bool(
        session.scalar(sqlalchemy.text("SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector')"))
    )
