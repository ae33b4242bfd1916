"""A stack with Telegram in front of it: one `repliq telegram` for all tests, and bots of each test's own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from app.bots import bots, schemas
from app.channels.telegram import registered
from app.cli import bots as cli_bots
from app.core.database.engine import Sessions, make_engine
from app.core.sealing import Sealer
from tests.channels.botapi import Bot, BotApi
from tests.stack import Process, Stack

LEASE_S = 2
DEFAULT = 700_000


class Desk:
    """What the tests have of Telegram and of us: bots with their fronts, and the processes that serve them."""

    def __init__(self, stack: Stack, api: BotApi) -> None:
        self.stack = stack
        self.api = api
        self.default = api.bot(DEFAULT)
        self.started: list[Process] = []
        self.front = self.start()
        self._numbers = iter(range(DEFAULT + 1, DEFAULT + 1000))
        self._engine = make_engine(stack.postgres.url)
        self.sessions = Sessions(self._engine)

    def new_bot(self, *, markdown: bool = False, **settings: object) -> tuple[str, Bot]:
        """Make a bot of ours with a front; return its id and what Telegram has of it."""
        made, theirs = self.bare_bot(**settings), self.new_theirs()
        with self.sessions.begin() as session:
            sealer = Sealer(self.stack.env["SECRET_KEY"])
            registered.add(session, sealer, made, theirs.token, theirs.username, markdown=markdown)
        return made, theirs

    def bare_bot(self, **settings: object) -> str:
        given = schemas.BotCreate.model_validate({"name": f"bot {uuid.uuid4().hex[:6]}", "settings": settings})
        with self.sessions.begin() as session:
            return str(bots.create(session, cli_bots.organisation(session), given).id)

    def new_theirs(self) -> Bot:
        return self.api.bot(next(self._numbers))

    def start(self, *arguments: str) -> Process:
        """Start one more `repliq telegram`."""
        name = f"telegram-{len(self.started)}"
        given = ["telegram", "--api-url", self.api.url, "--lease", str(LEASE_S), "--poll", "3", *arguments]
        env = {**self.stack.env, "TELEGRAM_BOT_TOKEN": self.default.token}
        process = Process(name, given, env, self.stack.folder / f"{name}.log").start()
        self.started.append(process)
        return process

    def log(self) -> str:
        return "\n".join(process.log.read_text(errors="replace") for process in self.started)

    def close(self) -> None:
        for process in self.started:
            process.terminate()
        for process in self.started:
            process.stop(10)
        self._engine.dispose()


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    made = Stack(workers=1, threads=64)
    yield made
    made.close()


@pytest.fixture(scope="package")
def _desk(stack: Stack) -> Iterator[Desk]:
    api = BotApi()
    made = Desk(stack, api)
    yield made
    made.close()
    api.close()


@pytest.fixture
def desk(_desk: Desk) -> Iterator[Desk]:
    """Return the desk; whatever a test does, Telegram's rates are kept and no token is in a log."""
    _desk.api.violations.clear()
    yield _desk
    assert _desk.api.violations == []
    log = _desk.log()
    assert not [token for token in _desk.api.bots if token in log or token.partition(":")[2] in log]


@pytest.fixture
def api(desk: Desk) -> BotApi:
    return desk.api
