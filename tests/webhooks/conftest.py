"""Deliveries over a real Redis and a real PostgreSQL, with tasks that end and a receiver that is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from app.bots import bots, organisations, schemas
from app.bots.directory import Directory
from app.chat import ends, rows
from app.chat.ledger import End
from app.chat.records import Task
from app.core import errors, ids
from app.core.database import Sessions
from app.core.outbox import Outbox
from app.core.store import Scripts, Store
from app.limits.standing import Limits
from app.webhooks import log
from app.webhooks.client import Client
from app.webhooks.courier import Courier
from app.webhooks.deliveries import Attempt, Deliveries, Hook
from app.webhooks.receivers import Receivers
from tests.chat.conftest import BOT, SHARD, Desk, make_desk
from tests.http.conftest import client, new_runtime, runtime  # noqa: F401  fixtures
from tests.webhooks.receiver import Receiver

LEASE_MS = 8000
UNLIMITED = Limits(daily=-1)


@dataclasses.dataclass
class Post:
    """What a test works with: tasks on the desk, and where their webhooks are."""

    desk: Desk
    deliveries: Deliveries

    def claimed(self, url: str = "https://hooks.example/a", bot: str = BOT) -> Task:
        """Return a running task that has a webhook."""
        fields = {**self.desk.request().fields, "webhook": url, "model": "m"}
        ref = ids.new_ref(ids.shard_of(bot, 16))
        admitted = self.desk.admit("u1", ref=ref, bot=bot, limits=UNLIMITED, fields=fields)
        found = self.desk.ledger.claim(admitted.ref, LEASE_MS)
        assert found is not None
        return found[0]

    def ended(self, url: str = "https://hooks.example/a", bot: str = BOT) -> str:
        """Return a task that was completed, and whose delivery is due."""
        task = self.claimed(url, bot)
        assert self.desk.ledger.finish(task, completed(task)) is None
        return task.ref

    def hook(self, ref: str) -> Hook:
        found = self.deliveries.read(ref)
        assert found is not None
        return found

    def claim(self, ref: str, receiver: str = "receiver") -> Attempt | str:
        return self.deliveries.claim(self.hook(ref), receiver)

    def attempt(self, ref: str, receiver: str = "receiver") -> Attempt:
        found = self.claim(ref, receiver)
        assert isinstance(found, Attempt)
        return found

    def later(self, ms: int) -> None:
        self.desk.scripts.shift_ms += ms

    def messages(self) -> int:
        return int(self.desk.store.call("LLEN", self.desk.keys.queue("webhooks")))

    def write_log(self, sessions: Sessions, shard: int = SHARD) -> None:
        outbox = Outbox(self.desk.store, self.desk.scripts, self.desk.keys)
        assert outbox.drain("hooks", shard, lambda entries: log.write(sessions, entries), linger_s=0) == 0
        assert not self.desk.store.call("EXISTS", self.desk.keys.of_outbox("hooks", shard, ":dead"))


def completed(task: Task) -> End:
    told = rows.final(task, "success", counted=False)
    return End("in_progress", "completed", told, fields={"result": b'{"object":"chat.completion","choices":[]}'})


def failed(task: Task) -> End:
    return ends.failed(task, errors.UpstreamError())


@pytest.fixture
def post(store: Store, scripts: Scripts) -> Post:
    desk = make_desk(store, scripts)
    return Post(desk, Deliveries(scripts, desk.keys, desk.queue))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def bot(sessions: Sessions) -> str:
    """Return a bot that PostgreSQL knows, secret and all."""
    with sessions.begin() as session:
        organisation = organisations.create(session, "Ours")
        session.flush()
        return str(bots.create(session, str(organisation.id), schemas.BotCreate(name="A bot")).id)


@pytest.fixture
def directory(sessions: Sessions) -> Directory:
    return Directory(sessions, "a secret of the tests")


def make_courier(
    post: Post, directory: Directory, *, allow_private: bool = True, most_at_once: int = 8, total_s: float = 15.0
) -> Courier:
    """Return a courier that tells of a task no more than its id."""
    caller = Client(Receivers(allow_private=allow_private), total_s=total_s)

    def told(bot: str, ref: str) -> dict[str, str | None]:
        return {"id": f"task_{ref}", "finished_at": None}

    return Courier(post.deliveries, directory, told, caller, most_at_once=most_at_once)
