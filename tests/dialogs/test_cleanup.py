"""What beat's dialogs-cleanup does: idle dialogs leave Redis, those past their retention go everywhere."""

from __future__ import annotations

import pytest
import sqlalchemy

from app.bots import bots, organisations, schemas
from app.chat import upkeep
from app.core import errors, ids
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.dialogs import archive, search
from app.dialogs.live import LiveDialogs
from app.dialogs.loading import keeping
from app.dialogs.packing import Said

SETTINGS = schemas.BotSettings(dialog_hot_hours=1, retention_days=30)
KEEPING = keeping(SETTINGS)


@pytest.fixture
def bot(sessions: Sessions) -> str:
    with sessions.begin() as session:
        organisation = organisations.create(session, "Org")
        return str(bots.create(session, str(organisation.id), schemas.BotCreate(name="b", settings=SETTINGS)).id)


@pytest.fixture
def live(store: Store, scripts: Scripts, keys: Keys, sessions: Sessions) -> LiveDialogs:
    queue = Queue(direct=True, publish=lambda *_: None)
    return LiveDialogs(scripts, keys, Outbox(store, scripts, keys), sessions, queue)


def drain(live: LiveDialogs, bot: str) -> None:
    def write(entries: list[tuple[str, dict[str, str]]]) -> None:
        archive.write(live.sessions, entries)
        for ref, (seq, version) in archive.flushed(entries).items():
            live.mark_flushed(bot, ref, seq, version)

    live.outbox.drain("dialogs", ids.shard_of(bot, 16), write, linger_s=0)


def here(live: LiveDialogs, bot: str) -> int:
    return int(live.scripts.store.call("ZCARD", live.keys.of_bot("dialogs_here", ids.shard_of(bot, 16), bot)))


def make(live: LiveDialogs, bot: str, count: int, *, hours_ago: float) -> list[str]:
    live.scripts.shift_ms = -int(hours_ago * 3_600_000)
    said = [Said("m", "user", 1, "", "hello")]
    refs = [live.create(bot, "u", KEEPING, said=said) for _ in range(count)]
    live.scripts.shift_ms = 0
    return refs


def test_idle_dialogs_leave_redis_and_no_others(live: LiveDialogs, sessions: Sessions, bot: str) -> None:
    idle = make(live, bot, 45, hours_ago=2)
    fresh = make(live, bot, 5, hours_ago=0.5)
    drain(live, bot)
    unwritten = make(live, bot, 25, hours_ago=3)  # older than the others, and not in PostgreSQL yet
    assert upkeep.clean_dialogs(sessions, live) == (45, 0)
    assert here(live, bot) == 30
    assert set(live.headers(bot, [*idle, *fresh, *unwritten])) == {*fresh, *unwritten}
    for ref in (idle[0], unwritten[0]):
        assert live.header(bot, ref, KEEPING).count == 1
    drain(live, bot)
    assert upkeep.clean_dialogs(sessions, live) == (26, 0), "the one that came back is idle still"


def test_dialogs_past_their_retention_are_gone_everywhere(live: LiveDialogs, sessions: Sessions, bot: str) -> None:
    old, kept, woken = (make(live, bot, 1, hours_ago=hours)[0] for hours in (24 * 31, 24 * 29, 24 * 31))
    drain(live, bot)
    live.append(bot, woken, [Said("again", "user", 1, "", "again")], KEEPING)  # on its way to PostgreSQL
    live.header(bot, old, KEEPING)
    _, deleted = upkeep.clean_dialogs(sessions, live)
    assert deleted == 1
    with pytest.raises(errors.NotFound):
        live.header(bot, old, KEEPING)
    assert live.header(bot, kept, KEEPING).count == 1
    assert live.header(bot, woken, KEEPING).count == 2
    with sessions.begin() as session:
        assert session.scalar(sqlalchemy.text("SELECT count(*) FROM dialog_messages")) == 2
    drain(live, bot)  # the marks of what was deleted come this way, too
    with sessions.begin() as session:
        assert session.scalars(sqlalchemy.text("SELECT user_id FROM users")).all() == ["u"], "nobody is made up"


def test_a_budget_that_is_used_up_ends_the_run(live: LiveDialogs, sessions: Sessions, bot: str) -> None:
    make(live, bot, 3, hours_ago=2)
    drain(live, bot)
    assert upkeep.clean_dialogs(sessions, live, budget_s=0) == (0, 0)
    assert here(live, bot) == 3


def test_messages_that_came_without_their_words_are_found_later(
    live: LiveDialogs, sessions: Sessions, bot: str
) -> None:
    make(live, bot, 3, hours_ago=1)
    drain(live, bot)
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("UPDATE dialog_messages SET search = NULL"))
    assert upkeep.index_messages(sessions) == 3
    assert upkeep.index_messages(sessions) == 0
    with sessions.begin() as session:
        found = search.search(
            session,
            bot,
            ids.shard_of(bot, 16),
            "hello",
            user=None,
            role=None,
            since=None,
            until=None,
            cursor=None,
            limit=5,
        )
    assert len(found.data) == 3
