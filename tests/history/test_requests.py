"""Requests on record as they are listed and read: every filter, pages that lose nothing, and plans that never look through a month."""

from __future__ import annotations

import datetime
import itertools
import re
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core import clock, errors, ids
from app.core.database import Sessions, make_engine
from app.history import requests, schemas, writer
from app.history.requests import Position, Wanted
from tests.conftest import _database
from tests.history.entries import BOT, NOON, SHARD, final, lost, new_ref, pending

OTHER = "01970000-0000-7000-8000-000000000002"


def all_rows(
    sessions: Sessions, wanted: Wanted = Wanted(), *, limit: int = 3, ascending: bool = False, **bounds: int
) -> list[uuid.UUID]:
    """Walk through the pages; return the ids."""
    found: list[uuid.UUID] = []
    after: Position | None = None
    for _ in range(500):
        with sessions.begin() as session:
            rows, after = requests.page(session, BOT, wanted, after, limit, ascending=ascending, **bounds)
        assert len(rows) <= limit
        found += [row.id for row in rows]
        if after is None:
            return found
    raise AssertionError("the pages do not end")


def at(ms: int) -> datetime.datetime:
    return clock.as_utc(ms)


def test_each_filter_finds_its_own(sessions: Sessions) -> None:
    made: dict[str, str] = {}

    def add(name: str, entry: Any = final, **row: Any) -> None:
        made[name] = new_ref()
        writer.write(sessions, [entry(made[name], **row)])

    add("plain", user="anna", tg=None)
    add("user", user="boris", tg=None)
    add("session", user="anna", tg=None, session="other")
    add("error", user="anna", tg=None, status="error", code="upstream_error", cost=None, exchange=None)
    add("cancelled", user="anna", tg=None, status="cancelled", code="cancelled", exchange=None)
    add("pending", pending, user="anna", tg=None)
    add("lost", lost, user="anna", tg=None)
    add("provider", user="anna", tg=None, provider="azure")
    add("model", user="anna", tg=None, model="another")
    add("type", user="anna", tg=None, type="dialog.summary")
    add("early", user="anna", tg=None, at=NOON - 1)
    add("late", user="anna", tg=None, at=NOON + 1)
    writer.write(sessions, [final(new_ref(), bot=OTHER, user="anna", tg=None)])
    named = {ids.uuid_in(ref): name for name, ref in made.items()}
    for wanted, expected in (
        (Wanted(), set(made)),
        (Wanted(user="boris"), {"user"}),
        (Wanted(session="other"), {"session"}),
        (Wanted(status="error"), {"error", "lost"}),
        (Wanted(status="cancelled"), {"cancelled"}),
        (Wanted(status="pending"), {"pending"}),
        (Wanted(error_code="task_lost"), {"lost"}),
        (Wanted(error_code="upstream_error", status="success"), set()),
        (Wanted(provider="azure"), {"provider"}),
        (Wanted(model="another"), {"model"}),
        (Wanted(request_type="dialog.summary"), {"type"}),
        (Wanted(since=at(NOON), until=at(NOON + 1)), set(made) - {"early", "late"}),
        (Wanted(since=at(NOON + 1)), {"late"}),
        (Wanted(until=at(NOON)), {"early"}),
        (Wanted(user="anna", session="s", status="success", provider="openai", model="m", request_type="chat.send"),
         {"plain", "early", "late"}),
        (Wanted(user="nobody"), set()),
        (Wanted(user="a\0b"), set()),
    ):  # fmt: skip
        for ascending in (False, True):
            found = all_rows(sessions, wanted, ascending=ascending)
            assert sorted(named[name] for name in found) == sorted(expected), wanted


def test_rows_come_in_the_order_of_their_admission_and_pages_lose_none_of_one_moment(sessions: Sessions) -> None:
    refs = [new_ref() for _ in range(20)]
    writer.write(sessions, [final(ref, at=NOON + number // 7) for number, ref in enumerate(refs)])
    expected = [ids.uuid_in(ref) for ref in refs]
    assert all_rows(sessions, ascending=True) == expected
    assert all_rows(sessions) == expected[::-1]


FILTERS = {
    "user": ["anna", "boris"], "session": ["s1", "s2"], "status": ["success", "error", "cancelled", "pending"],
    "provider": ["openai", "azure"], "model": ["m1", "m2"], "request_type": ["chat.send", "other"],
    "error_code": ["upstream_error", "poison"],
}  # fmt: skip


def test_whatever_is_asked_for_the_pages_are_all_that_there_is(sessions: Sessions) -> None:
    story = []
    for number, (user, name, status, model) in enumerate(
        itertools.product(FILTERS["user"], FILTERS["session"], FILTERS["status"], FILTERS["model"])
    ):
        row: dict[str, Any] = {"user": user, "tg": None, "session": name, "model": model, "at": NOON + number // 5}
        row |= {"provider": FILTERS["provider"][number % 2], "type": FILTERS["request_type"][number // 2 % 2]}
        failed = {"status": status, "code": FILTERS["error_code"][number // 3 % 2], "exchange": None}
        row |= failed if status in ("error", "cancelled") else {}
        story.append((pending if status == "pending" else final)(new_ref(), **row))
    writer.write(sessions, story)
    with sessions.begin() as session:
        rows = session.execute(sqlalchemy.text("SELECT * FROM request_history ORDER BY created_at, id")).all()
    columns = {"user": "user_id", "session": "session_id"}

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in FILTERS.items()}),
        st.integers(1, 8),
        st.integers(1, 40),
        st.booleans(),
    )
    def check(filters: dict[str, str], limit: int, most_looked: int, ascending: bool) -> None:
        expected = [
            row.id for row in rows if all(getattr(row, columns.get(n, n)) == value for n, value in filters.items())
        ]
        found = all_rows(sessions, Wanted(**filters), limit=limit, ascending=ascending, most_looked=most_looked)
        assert found == (expected if ascending else expected[::-1])

    check()


def test_a_page_looks_at_no_more_rows_than_it_may_and_the_next_one_goes_on(sessions: Sessions) -> None:
    refs = [new_ref() for _ in range(30)]
    writer.write(
        sessions,
        [final(ref, at=NOON + number, model="rare" if number == 2 else "m") for number, ref in enumerate(refs)],
    )
    sizes, after = [], None
    for _ in range(10):
        with sessions.begin() as session:
            rows, after = requests.page(session, BOT, Wanted(model="rare"), after, 5, most_looked=10)
        sizes.append(len(rows))
        if after is None:
            break
    assert sizes == [0, 0, 1, 0] or sizes == [0, 0, 1]


def test_a_page_holds_no_more_text_than_it_may_but_always_a_row(sessions: Sessions) -> None:
    refs = [new_ref() for _ in range(6)]
    told = {"message": "x" * 1000}
    writer.write(sessions, [final(ref, at=NOON + number, response=told) for number, ref in enumerate(refs)])
    with sessions.begin() as session:
        rows, after = requests.page(session, BOT, Wanted(), None, 5, most_bytes=2500)
        assert len(rows) == 3
        assert after == Position(rows[-1].created_at, rows[-1].id)
        assert len(requests.page(session, BOT, Wanted(), None, 5, most_bytes=1).rows) == 1
    assert all_rows(sessions, limit=5, most_bytes=1) == [ids.uuid_in(ref) for ref in refs[::-1]]


def test_a_row_is_shown_with_all_that_is_known_of_it(sessions: Sessions) -> None:
    ref, dialog = new_ref(), new_ref()
    usage = {"cached_tokens": 2, "reasoning_tokens": 1}
    writer.write(sessions, [pending(ref, dialog=dialog), final(ref, dialog=dialog, **usage)])
    with sessions.begin() as session:
        row = requests.one(session, BOT, ids.uuid_in(ref))
        with pytest.raises(errors.NotFound):
            requests.one(session, OTHER, ids.uuid_in(ref))
        with pytest.raises(errors.NotFound):
            requests.one(session, BOT, uuid.uuid4())
    told = schemas.columns(row, SHARD)
    assert orjson.loads(orjson.dumps(schemas.request(row, SHARD))) == {
        "object": "request", **told, "request_data": {"message": "hello"}, "response_data": {"response": "hi"},
    }  # fmt: skip
    updated = told.pop("updated_at")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", updated)
    assert told == {
        "id": str(ids.uuid_in(ref)), "task_id": f"task_{ref}", "user_id": "tg:1", "key": None, "session_id": "s",
        "request_type": "chat.send", "provider": "openai", "model": "m", "status": "success", "error_code": None,
        "error_message": None, "tokens_used": 7, "prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 2,
        "reasoning_tokens": 1, "cost": "0.0012000000", "response_time": 1500, "cached": False, "attempts": 1, "counted": True,
        "local_date": "2026-03-10", "dialog_id": f"dlg_{dialog}", "request_id": "r1", "created_at": "2026-03-10T12:00:00.000Z",
        "request_data": '{"message": "hello"}', "response_data": '{"response": "hi"}',
        "prompt": None, "prompt_version": None, "variant": None, "feedback": None,
    }  # fmt: skip
    shown = {"request_data": {"message": "hello"}, "response_data": None, "updated_at": updated}
    assert set(schemas.RequestOut.model_validate(told | shown).model_dump()) == {"object", *schemas.COLUMNS}


def test_a_request_without_a_user_is_shown_as_its_keys(sessions: Sessions) -> None:
    ref = new_ref()
    writer.write(sessions, [final(ref, user="key:rq_abc", tg=None, exchange=None)])
    with sessions.begin() as session:
        shown = schemas.columns(requests.one(session, BOT, ids.uuid_in(ref)), SHARD)
    assert (shown["user_id"], shown["key"]) == (None, "rq_abc")


def test_a_cursor_of_another_list_is_refused(sessions: Sessions) -> None:
    with sessions.begin() as session, pytest.raises(errors.BadCursor):
        requests.list_page(session, BOT, Wanted(), "WzFd", 5)


MANY = 100_000
LOOKED = 2000  # what 20,000 are of a million; of so few rows here PostgreSQL rather reads all
READ_AHEAD = 64  # rows of one moment are sorted by their ids in groups of 32 or more
_FILL = """
    INSERT INTO request_history (id, bot_id, user_id, session_id, request_type, provider, model, request_data, status, error_code,
        created_at, updated_at)
    SELECT gen_random_uuid(), CAST(CASE WHEN n % 4 = 0 THEN :other ELSE :bot END AS uuid), 'u' || n % 500, 's' || n % 2000, 'chat.send',
        'openai', CASE WHEN n % 5000 = 1 THEN 'rare' ELSE 'm' END, '{}', CASE WHEN n % 200 = 1 THEN 'error' ELSE 'success' END,
        CASE WHEN n % 200 = 1 THEN 'upstream_error' END, to_timestamp(:noon / 1000.0) + n * interval '10 s', now()
    FROM generate_series(1, :many) AS n
"""


@pytest.fixture(scope="module")
def filled(postgres_server: Any, template: str) -> Iterator[Sessions]:
    """Return a database with 100,000 requests of two bots over twelve days of one month."""
    for url in _database(postgres_server.url, template):
        made = Sessions(make_engine(url))
        with made.engine.connect() as connection:
            auto = connection.execution_options(isolation_level="AUTOCOMMIT")
            day = datetime.date(2026, 3, 1)
            auto.execute(sqlalchemy.text("CREATE TABLE march PARTITION OF request_history FOR VALUES FROM (:a) TO (:b)"),
                         {"a": day, "b": datetime.date(2026, 4, 1)})  # fmt: skip
            auto.execute(sqlalchemy.text(_FILL), {"bot": BOT, "other": OTHER, "noon": NOON, "many": MANY})
            auto.execute(sqlalchemy.text("ANALYZE request_history"))
        yield made
        made.engine.dispose()


CURSOR = Position(at(NOON + 5 * 86_400_000), uuid.UUID(int=2**127))


@pytest.mark.parametrize("after", [None, CURSOR], ids=["the first page", "a later page"])
@pytest.mark.parametrize("ascending", [False, True], ids=["newest first", "oldest first"])
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (Wanted(), "bot_id_created_at_id"),
        (Wanted(user="u7"), "bot_id_user_id_created_at"),
        (Wanted(session="s7"), "bot_id_session_id_created_at"),
        (Wanted(status="error"), "bot_id_created_at_id_idx1"),
        (Wanted(error_code="upstream_error"), "bot_id_created_at_id_idx1"),
        (Wanted(status="success", model="rare"), "bot_id_created_at_id"),
        (Wanted(user="u7", provider="azure"), "bot_id_user_id_created_at"),
        (Wanted(since=at(NOON), until=at(NOON + 6 * 86_400_000)), "bot_id_created_at_id"),
    ],
    ids=str,
)
def test_a_page_is_read_by_an_index_and_no_more_of_it_than_a_page_may_look_at(
    filled: Sessions, wanted: Wanted, index: str, ascending: bool, after: Position | None
) -> None:
    seen: list[str] = []
    with filled.begin() as session:
        listener = _explaining(session, seen)
        requests.page(session, BOT, wanted, after, 20, ascending=ascending, most_looked=LOOKED)
        sqlalchemy.event.remove(session.connection(), "before_cursor_execute", listener)
    assert seen
    for plan in seen:
        assert f"march_{index}" in plan, plan
        assert " Seq Scan on march" not in plan, plan
        read = [int(rows) for rows in re.findall(r"Scan[^\n]* on march[^\n]*actual[^\n]* rows=(\d+)", plan)]
        assert read
        assert max(read) <= LOOKED + READ_AHEAD, plan


def _explaining(session: Any, seen: list[str]) -> Any:
    """Have every statement of a connection explained before it runs."""
    connection = session.connection()

    @sqlalchemy.event.listens_for(connection, "before_cursor_execute")
    def explain(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
        cursor.execute("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF) " + statement, parameters)
        seen.append("\n".join(row[0] for row in cursor.fetchall()))

    return explain


def test_other_months_than_the_wanted_ones_are_not_looked_at(filled: Sessions) -> None:
    seen: list[str] = []
    with filled.begin() as session:
        listener = _explaining(session, seen)
        requests.page(session, BOT, Wanted(since=at(NOON), until=at(NOON + 1)), None, 20)
        sqlalchemy.event.remove(session.connection(), "before_cursor_execute", listener)
    touched = set(re.findall(r" on (march|request_history_\w+)", seen[0]))
    assert touched <= {"march"}


def test_all_hundred_thousand_are_found_once(filled: Sessions) -> None:
    found = all_rows(filled, limit=5000)
    assert len(found) == len(set(found)) == MANY * 3 // 4
    assert len(all_rows(filled, Wanted(model="rare"), limit=5)) == MANY // 5000
