"""The history's writer: a request's row, and what is counted once, whatever comes late, twice or out of order."""

from __future__ import annotations

import concurrent.futures
import datetime
import decimal
import random
import secrets
import uuid
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core import errors, ids
from app.core.database import Sessions, make_engine
from app.core.outbox import Entry, Outbox
from app.core.store import Keys, Scripts, Store
from app.history import writer
from app.history.models import Exchange, RequestHistory, SessionHistory
from tests.history.entries import BOT, DAY, NOON, SHARD, final, lost, new_ref, pending

TABLES = ("request_history", "session_history", "ai_chat_requests", "ai_chat_daily_limits", "users")
LONG = secrets.token_hex(9000)  # too long for an index, as it cannot be compressed


def row(sessions: Sessions, ref: str) -> RequestHistory:
    with sessions.begin() as session:
        wanted = RequestHistory.id == ids.uuid_in(ref)
        return session.scalars(sqlalchemy.select(RequestHistory).where(wanted)).one()


def query(sessions: Sessions, sql: str) -> list[Any]:
    with sessions.begin() as session:
        return [tuple(found) for found in session.execute(sqlalchemy.text(sql))]


def test_a_pending_row_becomes_final(sessions: Sessions) -> None:
    ref, dialog = new_ref(), new_ref()
    writer.write(sessions, [pending(ref, dialog=dialog)])
    found = row(sessions, ref)
    assert (found.status, found.provider, found.model) == ("pending", "planned", "planned-model")
    assert (found.request_data, found.response_data, found.response_time) == ({"message": "hello"}, None, None)
    assert (found.counted, found.local_date) == (True, datetime.date(2026, 3, 10))
    writer.write(sessions, [final(ref, dialog=dialog)])
    found = row(sessions, ref)
    assert (found.status, found.provider, found.model) == ("success", "openai", "m")
    assert (found.request_data, found.response_data) == ({"message": "hello"}, {"response": "hi"})
    assert (found.tokens_used, found.prompt_tokens, found.completion_tokens) == (7, 3, 4)
    assert (found.cost, found.response_time, found.attempts) == (decimal.Decimal("0.0012"), 1500, 1)
    assert found.created_at.timestamp() * 1000 == NOON
    assert (found.user_id, found.session_id, found.request_id) == ("tg:1", "s", "r1")
    assert found.dialog_id == ids.uuid_in(dialog)


def test_both_in_one_batch_are_one_row(sessions: Sessions) -> None:
    ref = new_ref()
    writer.write(sessions, [pending(ref), final(ref)])
    found = row(sessions, ref)
    assert (found.status, found.request_data) == ("success", {"message": "hello"})
    assert query(sessions, "SELECT count(*) FROM request_history") == [(1,)]


def test_a_lost_task_is_replaced_by_its_real_end_and_by_nothing_else(sessions: Sessions) -> None:
    ref = new_ref()
    writer.write(sessions, [pending(ref), lost(ref)])
    assert (row(sessions, ref).status, row(sessions, ref).error_code) == ("error", "task_lost")
    writer.write(sessions, [pending(ref)])
    assert row(sessions, ref).error_code == "task_lost"
    assert query(sessions, "SELECT requests_count FROM session_history") == [(0,)]
    writer.write(sessions, [final(ref)])
    assert (row(sessions, ref).status, row(sessions, ref).error_code) == ("success", None)
    assert query(sessions, "SELECT requests_count FROM session_history") == [(1,)]
    writer.write(sessions, [lost(ref), final(ref, status="cancelled")])
    assert row(sessions, ref).status == "success"
    assert query(sessions, "SELECT requests_count FROM session_history") == [(1,)]


def test_a_price_that_is_unknown_is_null_and_not_zero(sessions: Sessions) -> None:
    ref = new_ref()
    writer.write(sessions, [final(ref, cost=None, tokens=None, response=None)])
    assert row(sessions, ref).cost is None
    assert query(sessions, "SELECT response_data IS NULL FROM request_history") == [(True,)]
    assert query(sessions, "SELECT total_cost, total_tokens FROM session_history") == [(0, 0)]


def test_a_session_adds_up(sessions: Sessions) -> None:
    refs = [new_ref() for _ in range(3)]
    writer.write(sessions, [pending(ref, at=NOON + number * 1000) for number, ref in enumerate(refs)])
    writer.write(sessions, [final(refs[0]), final(refs[2], at=NOON + 2000)])
    with sessions.begin() as session:
        found = session.scalars(sqlalchemy.select(SessionHistory)).one()
    assert (found.session_key, found.user_id, found.requests_count, found.total_tokens) == ("s", "tg:1", 2, 14)
    assert found.total_cost == decimal.Decimal("0.0024")
    assert (found.last_request_at - found.started_at).total_seconds() == 2


def test_a_session_that_was_closed_opens_again(sessions: Sessions) -> None:
    writer.write(sessions, [final(new_ref())])
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("UPDATE session_history SET ended_at = last_request_at, duration = 0"))
    writer.write(sessions, [final(new_ref(), at=NOON)])
    assert query(sessions, "SELECT duration FROM session_history") == [(0,)]
    writer.write(sessions, [final(new_ref(), at=NOON + 1)])
    assert query(sessions, "SELECT ended_at, duration FROM session_history") == [(None, None)]


def test_an_exchange_is_kept_for_telegram_users_alone(sessions: Sessions) -> None:
    ref = new_ref()
    writer.write(sessions, [final(ref), final(new_ref(), user="anna", tg=None), final(new_ref(), exchange=None)])
    with sessions.begin() as session:
        found = session.scalars(sqlalchemy.select(Exchange)).one()
    assert (found.task_id, found.telegram_id, found.message, found.response) == (ids.uuid_in(ref), 1, "hello", "hi")
    assert (found.tokens_used, found.request_date.isoformat()) == (7, DAY)


def test_the_daily_counter_follows_the_date(sessions: Sessions) -> None:
    def counted(day: str) -> Entry:
        return final(new_ref(), date=day)

    writer.write(sessions, [counted("2026-03-10"), counted("2026-03-10"), final(new_ref(), counted=False)])
    counter = "SELECT telegram_id, request_count, last_reset_date::text FROM ai_chat_daily_limits"
    assert query(sessions, counter) == [(1, 2, "2026-03-10")]
    writer.write(sessions, [counted("2026-03-10"), counted("2026-03-11"), counted("2026-03-09")])
    assert query(sessions, counter) == [(1, 1, "2026-03-11")]
    writer.write(sessions, [counted("2026-03-10"), counted("2026-03-11")])
    assert query(sessions, counter) == [(1, 2, "2026-03-11")]


def test_a_users_row_follows_him(sessions: Sessions) -> None:
    writer.write(sessions, [pending(new_ref(), language="uk"), pending(new_ref(), user="key:abc", tg=None)])
    writer.write(sessions, [pending(new_ref(), at=NOON + 5000, language="ru"), pending(new_ref(), at=NOON - 5000)])
    found = query(sessions, "SELECT user_id, language, extract(epoch FROM last_seen_at) * 1000 FROM users")
    assert found == [("tg:1", "uk", NOON + 5000)]


@pytest.mark.parametrize("text", ["a\0b", "x'; DROP TABLE users; --", "\\' %s %(rows)s :rows", "🙂 Привіт", "\\u0000"])
def test_any_text_is_kept(sessions: Sessions, text: str) -> None:
    ref = new_ref()
    request = {"message": text, text: [text]}
    writer.write(sessions, [pending(ref, request=request), final(ref, exchange={"message": text, "response": text})])
    plain = text.replace("\0", "\ufffd")
    assert row(sessions, ref).request_data == {"message": plain, plain: [plain]}
    assert query(sessions, "SELECT message FROM ai_chat_requests") == [(plain,)]


@pytest.mark.parametrize(
    "entry",
    [
        pending(new_ref(), bot="no uuid"), pending(new_ref(), user=LONG), final(new_ref(), tokens=2**40),
        final(new_ref(), status="unheard of"), final(new_ref(), cost="dear"), pending("99zz"),
        ("1-0", {"ref": new_ref()}), ("1-0", {"ref": new_ref(), "at": "1", "session": "s", "row": "{"}),
        final(new_ref(), user="key:x", tg=5), pending(new_ref(), session=LONG), pending(new_ref(), date="someday"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_written_is_put_aside_alone(
    sessions: Sessions, store: Store, scripts: Scripts, keys: Keys, entry: Entry
) -> None:
    outbox = Outbox(store, scripts, keys)
    good = [pending(new_ref()), final(new_ref())]
    for _, fields in [good[0], entry, good[1]]:
        flat = [part for item in fields.items() for part in item]
        store.call("XADD", keys.of_outbox("history", SHARD), "*", *flat)
    assert outbox.drain("history", SHARD, lambda entries: writer.write(sessions, entries), linger_s=0) == 0
    assert query(sessions, "SELECT count(*) FROM request_history") == [(2,)]
    assert store.call("XLEN", keys.of_outbox("history", SHARD, ":dead")) == 1


def test_without_postgres_the_entries_stay(store: Store, scripts: Scripts, keys: Keys) -> None:
    away = Sessions(make_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none"))
    outbox = Outbox(store, scripts, keys)
    flat = [part for item in pending(new_ref())[1].items() for part in item]
    store.call("XADD", keys.of_outbox("history", SHARD), "*", *flat)
    with pytest.raises(errors.Unavailable):
        outbox.drain("history", SHARD, lambda entries: writer.write(away, entries), linger_s=0)
    assert outbox.length("history", SHARD) == 1
    assert store.call("EXISTS", keys.of_outbox("history", SHARD, ":lease")) == 0


@pytest.mark.parametrize(("user", "tg"), [("tg:1", 1), ("key:abc", None)])
def test_two_drainers_at_once_count_once(sessions: Sessions, user: str, tg: int | None) -> None:
    refs = [new_ref() for _ in range(200)]
    entries = [entry for ref in refs for entry in (pending(ref, user=user, tg=tg), final(ref, user=user, tg=tg))]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(writer.write, sessions, entries) for _ in range(4)]:
            done.result()
    assert query(sessions, "SELECT requests_count FROM session_history") == [(200,)]
    if tg:
        assert query(sessions, "SELECT request_count FROM ai_chat_daily_limits") == [(200,)]
        assert query(sessions, "SELECT count(*) FROM ai_chat_requests") == [(200,)]


def test_nothing_to_write_is_nothing(sessions: Sessions) -> None:
    writer.write(sessions, [])


# Each request is told of by some of its entries, in any order, any number of times, in any batches.

USERS = [("tg:1", 1), ("tg:2", 2), ("anna", None)]
DAYS = ["2026-03-09", "2026-03-10"]


@st.composite
def stories(draw: st.DrawFn) -> list[list[Entry]]:
    entries: list[Entry] = []
    for number in range(draw(st.integers(1, 6))):
        user, tg = draw(st.sampled_from(USERS))
        common = {"user": user, "tg": tg, "date": draw(st.sampled_from(DAYS)), "at": NOON + number * 1000}
        common["session"] = draw(st.sampled_from(["s1", "s2"]))
        ref = new_ref()
        status = draw(st.sampled_from(["success", "error", "cancelled"]))
        counted = draw(st.booleans())
        exchange = {"message": ref, "response": ref} if status == "success" else None
        told = [
            pending(ref, **common, request={"message": ref}),
            lost(ref, **common),
            final(ref, **common, status=status, counted=counted, exchange=exchange, tokens=number + 1, cost="0.1"),
        ]
        entries += [told[index] for index in draw(st.sets(st.integers(0, 2), min_size=1))]
    repeated = entries + draw(st.lists(st.sampled_from(entries), max_size=6))
    shuffled = draw(st.permutations(repeated))
    cuts = sorted(draw(st.lists(st.integers(0, len(shuffled)), max_size=4)))
    return [shuffled[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(shuffled)], strict=True)]


def snapshot(sessions: Sessions) -> dict[str, Any]:
    return {
        "requests": query(
            sessions,
            "SELECT id, user_id, session_id, provider, model, request_data::text, response_data::text, tokens_used, "
            "cost, response_time, status, error_code, counted, local_date, attempts, created_at "
            "FROM request_history ORDER BY id",
        ),
        "sessions": query(
            sessions,
            "SELECT user_id, session_key, started_at, last_request_at, requests_count, total_tokens, total_cost "
            "FROM session_history ORDER BY user_id, session_key",
        ),
        "exchanges": query(sessions, "SELECT task_id, telegram_id, message FROM ai_chat_requests ORDER BY task_id"),
        "days": query(
            sessions,
            "SELECT telegram_id, request_count, last_reset_date FROM ai_chat_daily_limits ORDER BY telegram_id",
        ),
        "users": query(sessions, "SELECT user_id, last_seen_at FROM users ORDER BY user_id"),
    }


def test_order_repeats_and_batches_do_not_matter(sessions: Sessions) -> None:
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(stories(), st.randoms(use_true_random=False))
    def check(batches: list[list[Entry]], chance: random.Random) -> None:
        _empty(sessions)
        for batch in batches:
            writer.write(sessions, batch)
        told = snapshot(sessions)
        _empty(sessions)
        once = list({id(entry): entry for batch in batches for entry in batch}.values())
        chance.shuffle(once)
        writer.write(sessions, once)
        assert snapshot(sessions) == told
        _agrees_with_the_rows(told)

    check()


def _empty(sessions: Sessions) -> None:
    with sessions.begin() as session:
        for table in TABLES:
            session.execute(sqlalchemy.text(f"DELETE FROM {table}"))


def _agrees_with_the_rows(told: dict[str, Any]) -> None:
    """Counts are those of the rows themselves."""
    final_rows = [r for r in told["requests"] if r[10] != "pending" and r[11] != "task_lost"]
    for user, key, _, _, count, tokens, cost in told["sessions"]:
        mine = [r for r in final_rows if (r[1], r[2]) == (user, key)]
        assert (count, tokens, cost) == (len(mine), sum(r[7] for r in mine), sum(r[8] for r in mine))
    for telegram, count, date in told["days"]:
        mine = [r for r in final_rows if r[1] == f"tg:{telegram}" and r[12]]
        assert date == max(r[13] for r in mine)
        assert count == sum(r[13] == date for r in mine)
    succeeded = {r[0] for r in final_rows if r[10] == "success" and r[1].startswith("tg:")}
    assert {uuid.UUID(str(task)) for task, _, _ in told["exchanges"]} == succeeded
    assert {user for user, _ in told["users"]} == {r[1] for r in told["requests"]}


def test_a_bot_of_another_shard_may_be_in_the_batch(sessions: Sessions) -> None:
    other = f"{(SHARD + 1) % 16:02d}{ids.new_uuid().hex}"
    writer.write(sessions, [pending(other), pending(new_ref(), bot=BOT)])
    assert query(sessions, "SELECT count(*) FROM request_history") == [(2,)]


def test_figures_beyond_what_a_session_holds_cost_no_request_its_row(sessions: Sessions) -> None:
    most, dear = 2**31 - 1, "9000000000"
    writer.write(sessions, [final(new_ref(), tokens=most, cost=dear), final(new_ref(), tokens=most, cost=dear)])
    writer.write(sessions, [final(new_ref(), tokens=most, cost=dear)])
    with sessions.begin() as session:
        assert session.scalar(sqlalchemy.text("SELECT count(*) FROM request_history")) == 3
        found = session.execute(sqlalchemy.text("SELECT requests_count, total_tokens, total_cost FROM session_history"))
        assert [tuple(row) for row in found] == [(3, most, decimal.Decimal("9999999999.9999999999"))]
