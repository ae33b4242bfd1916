"""What Redis is told of a user it lost: every request of the day once, wherever its latest state is."""

from __future__ import annotations

import datetime
import random

import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.bots import schemas, users
from app.core import clock, ids
from app.core.database import Sessions
from app.core.outbox import Entry
from app.dialogs import archive
from app.history import writer
from app.limits import seeds
from tests.history.entries import BOT, NOON, SHARD, final, lost, new_ref, pending

DATE = datetime.date(2026, 3, 10)


def _day(sessions: Sessions, undrained: list[Entry] | None = None) -> tuple[int, list[str]]:
    fields = [entry[1] for entry in undrained or []]
    with sessions.begin() as session:
        return seeds.count_day(session, BOT, "tg:1", DATE, fields, shard=SHARD)


def test_an_unknown_user_has_an_empty_day_and_profile(sessions: Sessions) -> None:
    assert _day(sessions) == (0, [])
    with sessions.begin() as session:
        assert seeds.profile(session, BOT, "tg:1", shard=SHARD) == seeds.Profile()


def test_a_profile_is_what_is_set_and_the_latest_chat(sessions: Sessions) -> None:
    older, newer = ids.new_ref(SHARD), ids.new_ref(SHARD)
    for ref in (newer, older):
        said = {"dialog": ref, "bot": BOT, "user": "tg:1", "seq": "1", "v": "1", "m1": f"1|1|user|{ref}|{NOON}|0|hello"}
        archive.write(sessions, [("1-0", said)])
    with sessions.begin() as session:
        given = schemas.UserChange(timezone="Europe/Kyiv", daily_limit=0, language="uk")
        users.change(session, BOT, "tg:1", given)
        profile = seeds.profile(session, BOT, "tg:1", shard=SHARD)
    assert profile == seeds.Profile("Europe/Kyiv", 0, "uk", newer)


def test_ended_requests_count_where_they_count_and_pending_ones_are_reserved(sessions: Sessions) -> None:
    open_, ended = new_ref(), new_ref()
    writer.write(
        sessions,
        [
            pending(open_), final(ended), final(new_ref(), counted=False), lost(new_ref()), pending(new_ref(), counted=False),
            final(new_ref(), date="2026-03-09"), final(new_ref(), user="tg:2", tg=2),
        ],
    )  # fmt: skip
    assert _day(sessions) == (1, [open_])


def test_the_outbox_adds_what_postgres_does_not_know(sessions: Sessions) -> None:
    known, unknown, ending = new_ref(), new_ref(), new_ref()
    writer.write(sessions, [final(known), pending(ending)])
    undrained = [pending(known), final(known), pending(unknown), final(ending), final(new_ref(), user="tg:2", tg=2)]
    assert _day(sessions, undrained) == (2, [unknown])


def test_a_day_at_the_edge_of_the_world_is_seen_whole(sessions: Sessions) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        noon = int(datetime.datetime(2026, 3, 10, 12, tzinfo=clock.zone(zone)).timestamp() * 1000)
        day = clock.local_day(zone, noon)
        writer.write(sessions, [final(new_ref(), at=at) for at in (day.starts_ms, day.ends_ms - 1)])
    assert _day(sessions)[0] == 4


def test_wherever_the_entries_are_the_day_is_the_same(sessions: Sessions) -> None:
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8), st.randoms(use_true_random=False))
    def check(told: list[tuple[int, bool]], chance: random.Random) -> None:
        with sessions.begin() as session:
            session.execute(sqlalchemy.text("DELETE FROM request_history"))
        entries, counted, open_ = [], 0, set()
        for stage, counts in told:
            ref = new_ref()
            entries.append(pending(ref, counted=True))
            if stage in (1, 3):
                entries.append(lost(ref))
            if stage in (2, 3):
                entries.append(final(ref, counted=counts))
            counted += stage in (2, 3) and counts
            open_ |= {ref} if stage == 0 else set()
        chance.shuffle(entries)
        cut = chance.randint(0, len(entries))
        seen_twice = chance.sample(entries[:cut], cut // 2)  # written, and not taken from the outbox yet
        writer.write(sessions, entries[:cut])
        found = _day(sessions, seen_twice + entries[cut:])
        assert (found[0], set(found[1])) == (counted, open_)
        assert len(found[1]) == len(open_)

    check()
