"""Readiness asks for the migrations that this code needs: a database that is ahead of it, after a roll-back of the code, has them."""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy

from app.core.database import migrate
from app.http import health
from app.runtime import Runtime
from tests.http.conftest import KEY, as_key


def _at(runtime: Runtime, revision: str) -> None:
    with runtime.sessions.begin() as session:
        session.execute(sqlalchemy.text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '{revision}'"))


def test_a_database_that_is_ahead_is_ready_and_one_that_is_behind_is_not(new_runtime: Callable[..., Runtime]) -> None:
    for revision, suits, said in (("0007", False, "error"), ("9999", True, "ok")):
        runtime = new_runtime()
        _at(runtime, revision)
        assert as_key(runtime, KEY).get("/health/ready").json["checks"]["migrations"]["status"] == said
        assert health.migrated(runtime) is suits  # what the startup probe asks for
