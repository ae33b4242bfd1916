"""The log of deliveries: whatever the order, the repeats and the batches, it says how things stand; and it ends with its retention."""

from __future__ import annotations

import datetime
import time
import uuid

import orjson
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.chat import upkeep
from app.core import ids
from app.core.database import Sessions
from app.core.outbox import Entry
from app.history import writer
from app.webhooks import log
from app.webhooks.deliveries import LEASE_MS, Outcome
from tests.chat.conftest import BOT, SHARD
from tests.history import entries as history
from tests.webhooks.conftest import Post

CREATED = 1_773_144_000_000


def entry(ref: str, serial: int, state: str = "pending", **fields: str) -> Entry:
    given = {
        "ref": ref, "bot": BOT, "url": "https://hooks.example/a", "type": "task.completed", "state": state, "attempts": "0",
        "created": str(CREATED), "next": "", "at": str(CREATED + serial), **fields,
    }  # fmt: skip
    return f"{CREATED + serial}-0", given


def attempt(ref: str, serial: int, number: int, state: str, **fields: str) -> Entry:
    told = {"number": str(number), "attempts": str(number), "tried": str(CREATED + serial), "ms": "5", **fields}
    return entry(ref, serial, state, **told)


def shown(sessions: Sessions, ref: str) -> tuple[str, int, list[tuple[int, int | None, str | None]]]:
    with sessions.begin() as session:
        row = log.one(session, BOT, ids.uuid_in(ref))
        tries = log.attempts_of(session, row.id)
        return row.state, row.attempts, [(one.number, one.status, one.error) for one in tries]


def life(ref: str) -> list[Entry]:
    return [
        entry(ref, 0),
        attempt(ref, 1, 1, "pending", error="away"),
        attempt(ref, 2, 2, "failed", status="500", error="no"),
        entry(ref, 3, "pending", attempts="2"),
        attempt(ref, 4, 3, "delivered", status="200"),
    ]


END = ("delivered", 3, [(1, None, "away"), (2, 500, "no"), (3, 200, None)])


def test_the_log_says_how_a_delivery_stands(sessions: Sessions) -> None:
    ref = ids.new_ref(SHARD)
    for one in life(ref):
        log.write(sessions, [one])
    assert shown(sessions, ref) == END


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_repeats_and_batches_make_no_difference(sessions: Sessions, data: st.DataObject) -> None:
    ref = ids.new_ref(SHARD)
    told = data.draw(st.permutations(life(ref) + data.draw(st.lists(st.sampled_from(life(ref)), max_size=4))))
    while told:
        size = data.draw(st.integers(1, len(told)))
        log.write(sessions, told[:size])
        told = told[size:]
    assert shown(sessions, ref) == END


def test_what_a_worker_tells_late_stands_for_what_was_taken_for_its_death(sessions: Sessions) -> None:
    ref = ids.new_ref(SHARD)
    dead = entry(
        ref, 1, "pending", number="1", attempts="2", tried=str(CREATED), error="The worker that made this attempt died."
    )
    late = attempt(ref, 2, 1, "delivered", status="200")
    for told in ([dead, late], [late, dead]):
        log.write(sessions, told)
        assert shown(sessions, ref)[2] == [(1, 200, None)]


def test_the_scripts_write_what_the_log_reads(post: Post, sessions: Sessions) -> None:
    ref = post.ended()
    answer = 'say "no" \\ \N{REPLACEMENT CHARACTER} ні'
    post.deliveries.settle(
        post.attempt(ref), Outcome("retry", 1000, 1, 7, 503, "The receiver answered HTTP 503.", answer)
    )
    post.write_log(sessions)
    assert shown(sessions, ref)[:2] == ("pending", 1)
    post.later(1001)
    post.attempt(ref)
    post.later(LEASE_MS + 1)
    post.deliveries.settle(post.attempt(ref), Outcome("delivered", status=200))
    post.write_log(sessions)
    state, count, tries = shown(sessions, ref)
    assert (state, count) == ("delivered", 3)
    assert [status for _, status, _ in tries] == [503, None, 200]
    assert "died" in (tries[1][2] or "")
    with sessions.begin() as session:
        first = log.attempts_of(session, ids.uuid_in(ref))[0]
        row = log.one(session, BOT, ids.uuid_in(ref))
        assert (first.response, first.response_ms) == (answer, 7)
        assert row.next_at is None
        assert row.finished_at is not None


def test_deliveries_past_their_bots_retention_are_deleted_in_batches_with_their_attempts(sessions: Sessions) -> None:
    refs = [ids.new_ref(SHARD) for _ in range(7)]
    now = datetime.datetime.now(datetime.UTC)
    old, new = (int((now - datetime.timedelta(days=days)).timestamp() * 1000) for days in (31, 29))
    for number, ref in enumerate(refs):
        created = str(old if number < 5 else new)
        log.write(sessions, [attempt(ref, 1, 1, "delivered", status="200", created=created)])
    other = entry(ids.new_ref(SHARD), 1, created=str(old), bot=str(uuid.uuid4()))
    log.write(sessions, [other])
    until = time.monotonic() + 60
    assert log.delete_expired(sessions, BOT, 30, until=until, batch=2) == 5
    assert log.delete_expired(sessions, BOT, 30, until=until, batch=2) == 0
    assert counts(sessions) == (3, 2)
    assert log.delete_expired(sessions, BOT, 1, until=time.monotonic() - 1) == 0


def counts(sessions: Sessions) -> tuple[int, int]:
    with sessions.begin() as session:
        tables = ("webhook_deliveries", "webhook_attempts")
        found = [session.scalar(sqlalchemy.text(f"SELECT count(*) FROM {name}")) or 0 for name in tables]
    return found[0], found[1]


def test_upkeep_deletes_by_each_bots_own_retention(sessions: Sessions, bot: str) -> None:
    old = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=366)
    log.write(sessions, [entry(ids.new_ref(SHARD), 1, bot=bot, created=str(int(old.timestamp() * 1000)))])
    log.write(sessions, [entry(ids.new_ref(SHARD), 2, bot=bot, created=str(int(time.time() * 1000)))])
    assert upkeep.clean_webhooks(sessions) == 1
    assert counts(sessions) == (1, 0)


@pytest.mark.parametrize("state", [None, "pending", "delivered", "failed"])
def test_pages_are_of_one_bot_newest_first(sessions: Sessions, state: str | None) -> None:
    states = ["pending", "delivered", "failed"] * 4
    refs = []
    for number, one in enumerate(states):
        refs.append(ids.new_ref(SHARD))
        log.write(sessions, [entry(refs[-1], 1, one, created=str(CREATED + number))])
    log.write(sessions, [entry(ids.new_ref(SHARD), 1, bot=str(uuid.uuid4()))])
    wanted = [ids.uuid_in(ref) for ref, one in zip(refs, states, strict=True) if state in (None, one)]
    found: list[uuid.UUID] = []
    cursor: str | None = None
    while True:
        with sessions.begin() as session:
            page = log.page(session, BOT, None, state, cursor, 5)
            found += [row.id for row in page.data]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == wanted[::-1]


def test_an_erased_users_answers_are_forgotten_and_nobody_elses(sessions: Sessions) -> None:
    his, hers = history.new_ref(), history.new_ref()
    writer.write(sessions, [history.final(his, user="anna"), history.final(hers, user="olha")])
    for ref in (his, hers):
        log.write(
            sessions, [attempt(ref, 1, 1, "pending", status="500", error="no", response="Dear user", bot=history.BOT)]
        )
    with sessions.begin() as session:
        log.forget_answers(session, history.BOT, "anna")
        left = [log.attempts_of(session, ids.uuid_in(ref))[0].response for ref in (his, hers)]
    assert left == [None, "Dear user"]


def test_alerts_name_an_erased_user_no_more(sessions: Sessions) -> None:
    refs = [ids.new_ref(SHARD) for _ in range(3)]
    told = {"scope": "user", "user": "anna", "percent": 50}
    for ref, payload in zip(refs, (told, {**told, "user": "olha"}, {"scope": "bot"}), strict=True):
        alert = {"type": "budget.alert", "payload": orjson.dumps(payload).decode()}
        log.write(sessions, [attempt(ref, 1, 1, "failed", status="500", error="no", response="Dear anna", **alert)])
    with sessions.begin() as session:
        log.forget_answers(session, BOT, "anna")
        rows = [log.one(session, BOT, ids.uuid_in(ref)) for ref in refs]
        left = [(orjson.loads(row.payload or ""), log.attempts_of(session, row.id)[0].response) for row in rows]
    assert left == [
        ({**told, "user": None}, None),
        ({**told, "user": "olha"}, "Dear anna"),
        ({"scope": "bot"}, "Dear anna"),
    ]
