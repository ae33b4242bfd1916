"""Alembic's environment. Each database has its own folder of numbered migrations: `main/` (and `analytics/`, later)."""
