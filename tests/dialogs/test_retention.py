"""What a bot keeps no longer: it goes little by little, and nothing that was written meanwhile goes with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy

from app.core import clock, ids
from app.core.database import Sessions
from app.dialogs import archive, retention
from tests.dialogs.test_transfers import FAR, bring_in, dialog, file, messages, take_out
from tests.history.entries import BOT, SHARD

DAY_MS = 86_400_000


def old(number: int, days: float, count: int = 1) -> list[Any]:
    """Return the lines of a dialog that was last written so many days ago."""
    at = clock.rfc3339(clock.now_ms() - days * DAY_MS)
    of = dialog(number, created_at=at, updated_at=at)
    return [of, messages(of, *range(1, count + 1), created_at=at)]


def ref(number: int) -> str:
    return str(dialog(number)["id"]).removeprefix("dlg_")


def left(sessions: Sessions) -> list[int]:
    return sorted(line["metadata"]["n"] for line in take_out(sessions)[:-1] if line["object"] == "dialog")


def test_what_is_older_than_it_may_be_goes_oldest_first(sessions: Sessions) -> None:
    ages = {1: 3, 2: 40, 3: 29.9, 4: 31, 5: 400}
    for number, days in ages.items():
        bring_in(sessions, file(*old(number, days, 3)))
    bring_in(sessions, file(*old(6, 400)), FAR)
    assert retention.delete_expired(sessions, BOT, 30, shard=SHARD, batch=1) == [ref(5), ref(2), ref(4)]
    assert left(sessions) == [1, 3]
    assert left(sessions) == [1, 3]
    assert len(take_out(sessions, FAR)) == 3
    with sessions.begin() as session:
        assert session.scalar(sqlalchemy.text("SELECT count(*) FROM dialog_messages")) == 7
    assert retention.delete_expired(sessions, BOT, 30, shard=SHARD) == []


def test_a_dialog_without_messages_goes_by_when_it_was_made(sessions: Sessions) -> None:
    bring_in(sessions, file(old(1, 50)[0], old(2, 5)[0]))
    assert retention.delete_expired(sessions, BOT, 30, shard=SHARD) == [ref(1)]


def test_a_long_dialog_goes_in_slices_and_no_transaction_takes_more(sessions: Sessions) -> None:
    bring_in(sessions, file(*old(1, 90, 105), *old(2, 80, 4), *old(3, 70, 4), *old(4, 60, 4)))
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("CREATE TABLE taken (tx bigint)"))
        session.execute(
            sqlalchemy.text("""
            CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN INSERT INTO taken VALUES (txid_current()); RETURN NULL; END'
        """)
        )
        session.execute(
            sqlalchemy.text("CREATE TRIGGER note AFTER DELETE ON dialog_messages FOR EACH ROW EXECUTE FUNCTION note()")
        )
    gone = retention.delete_expired(sessions, BOT, 30, shard=SHARD, most_messages=10)
    assert gone == [ref(1), ref(2), ref(3), ref(4)]
    with sessions.begin() as session:
        counts = [row.n for row in session.execute(sqlalchemy.text("SELECT count(*) AS n FROM taken GROUP BY tx"))]
    assert sum(counts) == 117
    assert max(counts) == 10


def test_what_the_budget_leaves_is_consistent_and_goes_the_next_time(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in(sessions, file(*old(1, 90, 55)))
    ticks = iter([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, *[99.0] * 100])
    monkeypatch.setattr(retention.time, "monotonic", lambda: next(ticks))
    assert retention.delete_expired(sessions, BOT, 30, shard=SHARD, most_messages=10) == []
    monkeypatch.undo()
    (of, *said, _) = take_out(sessions)
    assert 0 < len(said) < 55
    assert (of["message_count"], of["token_count"]) == (len(said), sum(message["tokens"] for message in said))
    assert said[-1]["seq"] == 55
    assert retention.delete_expired(sessions, BOT, 30, shard=SHARD, most_messages=10) == [ref(1)]


def test_a_dialog_that_is_written_meanwhile_or_known_to_be_stays(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring_in(sessions, file(*old(1, 90), *old(2, 80), *old(3, 70)))

    def spare(refs: Sequence[str]) -> set[str]:
        assert list(refs) == [ref(1), ref(2), ref(3)]
        now = clock.now_ms()  # after they were looked for, and before they are deleted
        fields = {
            "dialog": ref(2),
            "bot": BOT,
            "user": "tg:2",
            "v": "2",
            "at": str(now),
            "seq": "2",
            "m1": f"2|1|user|m|{now}|0|x",
        }
        archive.write(sessions, [("1-0", fields)])
        return {ref(3)}

    assert retention.delete_expired(sessions, BOT, 30, shard=SHARD, spare=spare) == [ref(1)]
    assert left(sessions) == [2, 3]


def test_who_holds_a_dialog_is_not_waited_for(sessions: Sessions) -> None:
    bring_in(sessions, file(*old(1, 90, 30), *old(2, 80)))
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with sessions.begin() as session:
            session.execute(
                sqlalchemy.text("SELECT 1 FROM dialogs WHERE id = :id FOR UPDATE"), {"id": ids.uuid_in(ref(1))}
            )
            locked.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert locked.wait(30)
    started = time.monotonic()
    try:
        assert retention.delete_expired(sessions, BOT, 30, shard=SHARD, most_messages=10) == [ref(2)]
        assert time.monotonic() - started < 20
    finally:
        done.set()
        holder.join()
    assert retention.delete_expired(sessions, BOT, 30, shard=SHARD) == [ref(1)]
