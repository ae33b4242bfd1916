"""Prices given afterwards: rows, sessions and events agree to the last digit, whoever reprices, how often, and is stopped where."""

from __future__ import annotations

import concurrent.futures
import datetime
import threading
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import hypothesis
import pytest
import sqlalchemy
from hypothesis import strategies as st

from app.bots import schemas
from app.chat import costs
from app.core import announcements, ids
from app.core.database import Sessions
from app.core.events import Events, of_entry
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.history import reads, repricing, writer
from app.history.repricing import Asked, Batch
from tests.history.entries import BOT, NOON, SHARD, final, lost, new_ref, pending

OTHER = "01970000-0000-7000-8000-000000000002"
HOUR = 3_600_000


def query(sessions: Sessions, sql: str, **given: Any) -> list[Any]:
    with sessions.begin() as session:
        return [tuple(found) for found in session.execute(sqlalchemy.text(sql), given)]


def unpriced(ref: str, **row: Any) -> Any:
    return final(
        ref, **{"cost": None, "model": "gpt-4o-mini", "prompt_tokens": 10, "completion_tokens": 10, "tokens": 20, **row}
    )


def reprice(sessions: Sessions, pricing: repricing.Pricing, bot: str = BOT, **how: Any) -> list[Batch]:
    return list(repricing.reprice(sessions, bot, pricing, shards=16, **how))


def flat(usd: str) -> repricing.Pricing:
    return lambda asked: Decimal(usd)


def known(**own: dict[str, str]) -> dict[str, Any]:
    settings = schemas.BotSettings.model_validate({"prices": own})
    return {"settings": settings, "since": at(0), "until": at(NOON + 1000 * HOUR), "shards": 16}


def at(ms: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)


def events(sessions: Sessions) -> list[dict[str, Any]]:
    found = query(
        sessions, "SELECT event FROM announcements WHERE event->>'eventName' = 'chat_completion_repriced' ORDER BY id"
    )
    return [event for (event,) in found]


def test_a_row_its_session_and_analytics_learn_of_a_price(sessions: Sessions) -> None:
    ref = new_ref()
    writer.write(sessions, [unpriced(ref), final(new_ref(), cost="0.5")])
    done = list(costs.reprice(sessions, BOT, **known()))
    assert [(batch.read, batch.priced, batch.changed, batch.added) for batch in done] == [
        (2, 1, 0, Decimal("0.0000075"))
    ]
    row = "SELECT cost FROM request_history WHERE id = :id"
    assert query(sessions, row, id=ids.uuid_in(ref)) == [(Decimal("0.0000075000"),)]
    assert query(sessions, "SELECT total_cost FROM session_history") == [(Decimal("0.5000075000"),)]
    event = events(sessions)[0]
    assert (event["eventType"], event["userId"], event["sessionId"]) == ("ai_interaction", "tg:1", "s")
    assert event["timestamp"] == "2026-03-10T12:00:00.000Z"
    assert event["properties"] == {
        "provider": "openai", "model": "gpt-4o-mini", "status": "success", "requestType": "chat.send",
        "costDeltaUsd": "0.0000075000", "priced": 1, "historyId": str(ids.uuid_in(ref)),
    }  # fmt: skip
    with sessions.begin() as session:
        assert reads.stats(session, BOT, "tg:1")["all_time"]["cost"] == "0.5000075000"


def test_the_event_reaches_the_outbox_as_analytics_reads_it(
    sessions: Sessions, store: Store, scripts: Scripts, keys: Keys
) -> None:
    ref = new_ref()
    writer.write(sessions, [unpriced(ref)])
    reprice(sessions, flat("0.25"))
    queue = Queue(direct=True, publish=lambda *_: None)
    announcements.forward(sessions, Events(scripts, keys, queue, publishes=False))
    found = [of_entry(fields) for _, fields in Outbox(store, scripts, keys).pending("events", SHARD)]
    repriced = [event for event in found if event.name == "chat_completion_repriced"]
    assert [(event.at_ms, event.user, event.properties["costDeltaUsd"]) for event in repriced] == [
        (NOON, "tg:1", "0.2500000000")
    ]
    assert query(sessions, "SELECT count(*) FROM announcements") == [(0,)]


def test_repeating_it_changes_nothing(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref()) for _ in range(5)])
    assert sum(batch.priced for batch in reprice(sessions, flat("0.1"))) == 5
    assert sum(batch.priced + batch.changed for batch in reprice(sessions, flat("0.2"))) == 0
    assert query(sessions, "SELECT DISTINCT total_cost FROM session_history") == [(Decimal("0.5"),)]
    assert len(events(sessions)) == 5


def test_only_what_used_tokens_and_has_ended_is_priced(sessions: Sessions) -> None:
    writer.write(sessions, [
        pending(new_ref()), lost(new_ref()), unpriced(new_ref(), prompt_tokens=None, completion_tokens=None, tokens=None),
        unpriced(new_ref(), cached=True), unpriced(new_ref(), status="error"), unpriced(new_ref(), status="cancelled"),
    ])  # fmt: skip
    done = reprice(sessions, flat("1"))
    assert sum(batch.priced for batch in done) == 2
    priced = "SELECT status FROM request_history WHERE cost IS NOT NULL ORDER BY status"
    assert query(sessions, priced) == [("cancelled",), ("error",)]
    assert sorted(event["properties"]["status"] for event in events(sessions)) == ["cancelled", "error"]


def test_what_stays_unknown_is_told_by_its_model(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref(), model="sim"), unpriced(new_ref(), model="sim"), unpriced(new_ref())])
    (done,) = costs.reprice(sessions, BOT, **known())
    assert (done.priced, done.unknown) == (1, {("openai", "sim"): 2})
    (done,) = costs.reprice(sessions, BOT, **known(sim={"input": "1", "output": "2"}))
    assert (done.priced, done.unknown) == (2, {})
    assert query(sessions, "SELECT cost FROM request_history WHERE model = 'sim'") == [(Decimal("0.00003"),)] * 2


def test_a_cost_that_is_known_changes_only_when_that_is_asked_for(sessions: Sessions) -> None:
    refs = [new_ref(), new_ref()]
    writer.write(sessions, [unpriced(refs[0], cost="0.7"), unpriced(refs[1], cost="0.25")])
    assert sum(batch.changed for batch in reprice(sessions, flat("0.25"))) == 0
    (done,) = reprice(sessions, flat("0.25"), everything=True)
    assert (done.priced, done.changed, done.added) == (0, 1, Decimal("-0.45"))
    assert query(sessions, "SELECT total_cost FROM session_history") == [(Decimal("0.5"),)]
    assert [(e["properties"]["costDeltaUsd"], e["properties"]["priced"]) for e in events(sessions)] == [
        ("-0.4500000000", 0)
    ]


def test_a_price_that_is_known_no_more_takes_no_cost_away(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref(), cost="0.7")])
    (done,) = reprice(sessions, lambda asked: None, everything=True)
    assert (done.changed, done.unknown, events(sessions)) == (0, {}, [])
    assert query(sessions, "SELECT cost FROM request_history") == [(Decimal("0.7"),)]


def test_a_dry_run_tells_and_does_nothing(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref()), unpriced(new_ref(), cost="9")])
    (done,) = reprice(sessions, flat("2"), everything=True, dry_run=True)
    assert (done.priced, done.changed, done.added) == (1, 1, Decimal(-5))
    assert query(sessions, "SELECT cost FROM request_history ORDER BY cost") == [(Decimal(9),), (None,)]
    assert events(sessions) == []


def test_another_bots_rows_and_other_times_are_left_alone(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref(), at=NOON + hour * HOUR) for hour in range(4)])
    writer.write(sessions, [unpriced(new_ref(), bot=OTHER)])
    (done,) = reprice(sessions, flat("1"), since=at(NOON + HOUR), until=at(NOON + 3 * HOUR))
    assert (done.read, done.priced) == (2, 2)
    priced = "SELECT created_at FROM request_history WHERE cost IS NOT NULL ORDER BY created_at"
    assert query(sessions, priced) == [(at(NOON + HOUR),), (at(NOON + 2 * HOUR),)]


def test_each_row_is_priced_as_of_its_own_time_by_what_its_answer_told(sessions: Sessions) -> None:
    told: list[Asked] = []
    details = {"cached_tokens": 6, "audio_tokens": 2}
    whole = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20, "prompt_tokens_details": details}
    refs = [new_ref(), new_ref(), new_ref()]
    writer.write(sessions, [
        pending(refs[0], request={"model": "fast", "messages": []}),
        unpriced(refs[0], response={"usage": whole, "service_tier": "flex"}, cached_tokens=6),
        unpriced(refs[1], response=None, cached_tokens=4, reasoning_tokens=3, at=NOON + HOUR),
        unpriced(refs[2], response={"usage": {"prompt_tokens": 999}}, at=NOON + 2 * HOUR),
    ])  # fmt: skip

    def pricing(asked: Asked) -> Decimal | None:
        told.append(asked)
        return None

    reprice(sessions, pricing)
    columns = {
        "prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3},
    }  # fmt: skip
    assert told[0] == Asked("openai", ("gpt-4o-mini", "fast"), whole, at(NOON), "flex")
    assert told[1] == Asked("openai", ("gpt-4o-mini",), columns, at(NOON + HOUR))
    assert (told[2].usage["prompt_tokens"], told[2].at) == (10, at(NOON + 2 * HOUR))


def test_rows_of_one_instant_are_each_priced_over_many_batches(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref(), session=f"s{number % 3}") for number in range(25)])
    done = reprice(sessions, flat("0.1"), batch=4)
    assert [batch.read for batch in done] == [4, 4, 4, 4, 4, 4, 1]
    assert query(sessions, "SELECT count(*), sum(cost) FROM request_history WHERE cost IS NOT NULL") == [
        (25, Decimal("2.5"))
    ]
    assert query(sessions, "SELECT sum(total_cost) FROM session_history") == [(Decimal("2.5"),)]


def test_it_goes_on_where_it_was_stopped(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref(), at=NOON + number) for number in range(10)])
    run = repricing.reprice(sessions, BOT, flat("0.1"), shards=16, batch=4)
    assert next(run).priced == 4
    run.close()
    assert query(sessions, "SELECT count(*) FROM request_history WHERE cost IS NOT NULL") == [(4,)]
    assert sum(batch.priced for batch in reprice(sessions, flat("0.1"), batch=4)) == 6
    assert query(sessions, "SELECT total_cost FROM session_history") == [(Decimal(1),)]
    assert len(events(sessions)) == 10


def test_several_at_once_beside_the_writer_count_each_row_once(sessions: Sessions) -> None:
    refs = [new_ref(NOON + number) for number in range(300)]
    entries = [
        unpriced(ref, at=NOON + number, user=f"tg:{number % 7}", tg=number % 7) for number, ref in enumerate(refs)
    ]
    writer.write(sessions, entries)
    together = threading.Barrier(4)

    def run(usd: str) -> None:
        together.wait()
        reprice(sessions, flat(usd), batch=20, everything=True)

    def again() -> None:
        together.wait()
        for _ in range(5):
            writer.write(sessions, entries)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for done in [*(pool.submit(run, usd) for usd in ("0.1", "0.2", "0.3")), pool.submit(again)]:
            done.result()
    rows = query(sessions, "SELECT sum(cost), count(cost) FROM request_history")[0]
    assert query(sessions, "SELECT sum(total_cost) FROM session_history") == [(rows[0],)]
    assert rows[1] == 300
    told = events(sessions)
    assert sum(Decimal(event["properties"]["costDeltaUsd"]) for event in told) == rows[0]
    assert sum(event["properties"]["priced"] for event in told) == 300


def test_who_was_forgotten_meanwhile_stays_forgotten(sessions: Sessions) -> None:
    writer.write(sessions, [unpriced(new_ref())])

    def pricing(asked: Asked) -> Decimal:
        with sessions.begin() as session:
            reads.erase_user(session, BOT, "tg:1", shard=SHARD)
        return Decimal("0.1")

    assert [batch.priced for batch in reprice(sessions, pricing)] == [1]
    told = events(sessions)[0]
    assert told["userId"].startswith("erased:")
    assert query(sessions, "SELECT user_id, total_cost FROM session_history") == [(told["userId"], Decimal("0.1"))]


@pytest.fixture
def emptied(sessions: Sessions) -> Iterator[Callable[[], None]]:
    def empty() -> None:
        with sessions.begin() as session:
            for table in ("request_history", "session_history", "announcements", "ai_chat_requests", "users"):
                session.execute(sqlalchemy.text(f"DELETE FROM {table}"))

    return empty


_COSTS = st.none() | st.sampled_from(["0", "0.1", "0.0000000001"])


def test_sums_agree_whatever_was_priced_before(sessions: Sessions, emptied: Callable[[], None]) -> None:
    @hypothesis.settings(max_examples=30, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(
        st.lists(st.tuples(_COSTS, st.sampled_from(["a", "b"]), st.sampled_from(["s", "t"])), min_size=1, max_size=12),
        st.lists(st.tuples(st.sampled_from(["0", "0.1", "0.25"]), st.booleans(), st.integers(1, 5)), max_size=4),
    )
    def check(rows: list[tuple[str | None, str, str]], runs: list[tuple[str, bool, int]]) -> None:
        emptied()
        entries = [unpriced(new_ref(), cost=cost, user=user, tg=None, session=key) for cost, user, key in rows]
        writer.write(sessions, entries)
        for usd, everything, batch in runs:
            reprice(sessions, flat(usd), everything=everything, batch=batch)
        by_session = """
            SELECT h.user_id, h.session_id, coalesce(sum(h.cost), 0) FROM request_history h GROUP BY 1, 2 ORDER BY 1, 2
        """
        kept = "SELECT user_id, session_key, total_cost FROM session_history ORDER BY 1, 2"
        assert query(sessions, by_session) == query(sessions, kept)
        before = sum(Decimal(cost or 0) for cost, _, _ in rows)
        told = sum(Decimal(event["properties"]["costDeltaUsd"]) for event in events(sessions))
        assert query(sessions, "SELECT coalesce(sum(cost), 0) FROM request_history") == [(before + told,)]

    check()


def test_the_models_of_late_are_those_that_used_tokens(sessions: Sessions) -> None:
    writer.write(
        sessions, [unpriced(new_ref()), unpriced(new_ref()), unpriced(new_ref(), model="sim"), pending(new_ref())]
    )
    with sessions.begin() as session:
        assert repricing.models(session, BOT, 100) == [("openai", "gpt-4o-mini", 2), ("openai", "sim", 1)]
        assert repricing.models(session, str(uuid.uuid4()), 100) == []
