"""The engine, its errors and forks; plain text; cursors."""

from __future__ import annotations

import os
import uuid

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import exc

from app.core import errors, paging, ranks
from app.core.database import Sessions, make_engine, plain


def _ask(sessions: Sessions, sql: str) -> object:
    with sessions.begin() as session:
        return session.scalar(sqlalchemy.text(sql))


def test_sessions_speak_utc_and_bear_our_name(sessions: Sessions) -> None:
    assert _ask(sessions, "SHOW timezone") == "UTC"
    assert _ask(sessions, "SHOW application_name") == "repliq"
    assert _ask(sessions, "SHOW statement_timeout") == "15s"


def test_what_the_url_says_goes_before(database_url: str) -> None:
    sessions = Sessions(make_engine(database_url + "&application_name=mine"))
    assert _ask(sessions, "SHOW application_name") == "mine"
    sessions.engine.dispose()


def test_a_transaction_is_all_or_nothing(sessions: Sessions) -> None:
    def half() -> None:
        with sessions.begin() as session:
            session.execute(sqlalchemy.text("INSERT INTO organisations (id, name) VALUES (gen_random_uuid(), 'x')"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half()
    assert _ask(sessions, "SELECT count(*) FROM organisations") == 0


@pytest.mark.parametrize("url", ["postgresql+psycopg2://u@127.0.0.1:1/x", "postgresql+psycopg2://u@/x?host=/nowhere"])
def test_a_server_that_is_not_there_is_unavailable(url: str) -> None:
    with pytest.raises(errors.Unavailable, match="PostgreSQL"):
        _ask(Sessions(make_engine(url)), "SELECT 1")


def test_a_statement_that_takes_too_long_is_unavailable(database_url: str) -> None:
    sessions = Sessions(make_engine(database_url, statement_timeout_ms=50))
    with pytest.raises(errors.Unavailable):
        _ask(sessions, "SELECT pg_sleep(5)")
    sessions.engine.dispose()


def test_an_exhausted_pool_is_unavailable(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.core.database.engine.POOL_TIMEOUT_S", 0.05)
    sessions = Sessions(make_engine(database_url, 1, 0))
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("SELECT 1"))
        with pytest.raises(errors.Unavailable):
            _ask(sessions, "SELECT 1")
    sessions.engine.dispose()


@pytest.mark.parametrize("sql", ["SELECT nothing", "SELECT 1/0", "SELECT 'x'::int", "SELEC"])
def test_a_mistake_of_ours_is_not_an_outage(sessions: Sessions, sql: str) -> None:
    with pytest.raises(exc.DBAPIError):
        _ask(sessions, sql)


def test_a_connection_that_was_ended_is_replaced(sessions: Sessions) -> None:
    ours = _ask(sessions, "SELECT pg_backend_pid()")
    other = sqlalchemy.create_engine(sessions.engine.url, poolclass=sqlalchemy.NullPool)
    with other.begin() as connection:
        ended = connection.scalar(sqlalchemy.text("SELECT pg_terminate_backend(:pid, 30000)"), {"pid": ours})
    assert ended  # gone, and not only asked to go
    assert _ask(sessions, "SELECT 1") == 1


def test_a_forked_child_uses_connections_of_its_own(sessions: Sessions) -> None:
    mine = _ask(sessions, "SELECT pg_backend_pid()")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # no pytest here: whatever happens, the child ends in this block
        try:
            os.write(write, str(_ask(sessions, "SELECT pg_backend_pid()")).encode())
            sessions.engine.dispose()
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    theirs = os.read(read, 100).decode()
    os.close(read)
    assert theirs.isdecimal()
    assert int(theirs) != mine
    assert _ask(sessions, "SELECT pg_backend_pid()") == mine


@given(st.text(st.characters(codec=None)))
def test_plain_text_is_what_postgres_can_hold(text: str) -> None:
    kept = plain.text(text)
    assert "\0" not in kept
    kept.encode()
    assert len(kept) <= len(text)
    assert plain.text(kept) == kept


def test_plain_documents_keep_their_shape() -> None:
    assert plain.document({"a\0": [1, None, True, {"b": "\ud83d\ude42\ud83d"}]}) == {
        "a\ufffd": [1, None, True, {"b": "\U0001f642\ufffd"}]
    }


def test_cursors_come_back_as_they_went() -> None:
    values = (7, "x", uuid.uuid4())
    assert paging.decode(paging.encode(*values), [int, str, uuid.UUID]) == list(values)


@given(st.text(max_size=60))
def test_any_other_cursor_is_a_bad_one(cursor: str) -> None:
    with pytest.raises(errors.BadCursor):
        paging.decode(cursor, [int, str, uuid.UUID, int, int])


def test_states_rank_the_same_here_and_in_sql(sessions: Sessions) -> None:
    codes = [("pending", None), ("error", "task_lost"), ("error", "x"), ("error", None), ("success", None)]
    for status, code in [*codes, ("cancelled", None)]:
        given = {"status": status, "code": code}
        values = "(VALUES (CAST(:status AS text), CAST(:code AS text))) AS h(status, error_code)"
        with sessions.begin() as session:
            found = session.scalar(sqlalchemy.text(f"SELECT {ranks.sql('h')} FROM {values}"), given)
        assert found == ranks.of(status, code)
    with pytest.raises(ValueError, match="status"):
        ranks.of("unheard of", None)
