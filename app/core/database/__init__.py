"""PostgreSQL: the engine and its sessions, the declarative base, column types, migrations."""

from app.core.database.engine import Sessions, make_engine, make_sessions, translated

__all__ = ["Sessions", "make_engine", "make_sessions", "translated"]
