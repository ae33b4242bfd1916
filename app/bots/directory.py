"""Who a key is and how a bot is set up, as every request asks: read from PostgreSQL and remembered for seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hmac
import math
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import orjson
import sqlalchemy
from sqlalchemy import orm

from app.bots import keys, models, schemas, signing
from app.core import clock as wall
from app.core import errors
from app.core.database.engine import Sessions
from app.core.principal import Principal

FRESH_S = 5.0
STALE_S = 3600.0  # how old an entry may be served while PostgreSQL is away
UNKNOWN_S = 1.0
MOST_UNKNOWN = 10_000
RETRY_S = 1.0  # after a failure PostgreSQL is left alone so long: a request must not wait for each connect's time-out
NOTE_USED_S = 60.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Bot:
    """A bot as requests see it."""

    id: str
    organisation: str
    name: str
    settings: schemas.BotSettings
    webhook_secrets: signing.Secrets = dataclasses.field(repr=False)
    budgets_since: int = 0


@dataclasses.dataclass(slots=True)
class _Entry(Generic[T]):
    value: T
    at: float
    used_at: float = float("-inf")


class Memory(Generic[T]):
    """Remembers what a loader found (None: nothing). One thread loads an entry; others take the old one meanwhile."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.entries: dict[Any, _Entry[T]] = {}
        self.unknown: dict[Any, float] = {}
        self._clock = clock
        self._locks = [threading.Lock() for _ in range(64)]
        self._generation = 0
        self._away_until = float("-inf")

    def get(self, name: Any, max_age_s: float, load: Callable[[], T | None]) -> _Entry[T] | None:
        now = self._clock()
        entry = self.entries.get(name)
        if entry is not None and now - entry.at < max_age_s:
            return entry
        if entry is None and now - self.unknown.get(name, float("-inf")) < UNKNOWN_S:
            return None
        usable = entry is not None and now - entry.at < STALE_S
        lock = self._locks[hash(name) % len(self._locks)]
        if not lock.acquire(blocking=not usable):
            return entry
        try:
            if self.entries.get(name) is entry:
                return self._load(name, entry if usable else None, load)
            return self.entries.get(name)
        finally:
            lock.release()

    def _load(self, name: Any, known: _Entry[T] | None, load: Callable[[], T | None]) -> _Entry[T] | None:
        generation = self._generation
        try:
            if self._clock() < self._away_until:
                raise errors.Unavailable("PostgreSQL cannot be reached.")
            value = load()
        except errors.Unavailable:
            if self._clock() >= self._away_until:
                self._away_until = self._clock() + RETRY_S
            if known is None:
                raise
            return known
        self._away_until = float("-inf")
        if value is None:
            self._remember_unknown(name)
            return None
        entry = _Entry(value, self._clock(), known.used_at if known else float("-inf"))
        if generation == self._generation:  # else what was read may be older than what made somebody say "forget"
            self.entries[name] = entry
        return entry

    def _remember_unknown(self, name: Any) -> None:
        self.entries.pop(name, None)
        with contextlib.suppress(StopIteration, KeyError, RuntimeError):  # another thread may have been faster
            while len(self.unknown) >= MOST_UNKNOWN:
                del self.unknown[next(iter(self.unknown))]
        self.unknown.pop(name, None)  # to the end: the oldest are dropped first
        self.unknown[name] = self._clock()

    def forget(self, *names: Any) -> None:
        self._generation += 1
        for name in names:
            self.entries.pop(name, None)
            self.unknown.pop(name, None)

    def clear(self) -> None:
        self._generation += 1
        self.entries.clear()
        self.unknown.clear()


class Directory:
    """Looks keys and bots up. Thread-safe. `max_age_s` is to be lowered while the link that brings changes is down."""

    def __init__(self, sessions: Sessions, secret_key: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_age_s = FRESH_S
        self._sessions = sessions
        self._secret_key = secret_key
        self._clock = clock
        self._keys: Memory[Principal] = Memory(clock)
        self._bots: Memory[Bot] = Memory(clock)
        self._used: dict[str, int] = {}

    def authenticate(self, key: str) -> Principal:
        """Return whom a key stands for; raise `InvalidApiKey`, or `Unavailable` if that is unknown."""
        digest = keys.digest_of(self._secret_key, key)
        entry = self._keys.get(digest, self.max_age_s, lambda: self._load_principal(digest))
        now = self._clock()
        if entry is None or now >= entry.value.until:
            raise errors.InvalidApiKey()
        if now - entry.used_at >= NOTE_USED_S:
            entry.used_at = now
            self._used[entry.value.key_id] = wall.now_ms()
        return entry.value

    def knows(self, key: str) -> bool:
        """Tell whether a key was good here before and nobody has taken it back since; `authenticate` has the last word."""
        return keys.digest_of(self._secret_key, key) in self._keys.entries

    def bot(self, bot: str) -> Bot:
        """Return a bot; raise `NotFound`, or `Unavailable`."""
        entry = self._bots.get(bot, self.max_age_s, lambda: self._load_bot(bot))
        if entry is None:
            raise errors.NotFound(f"There is no bot '{bot[:80]}'.", param="bot")
        return entry.value

    def forget(self, kind: str, name: str) -> None:
        """Forget a `key` by the hex of its digest, or a `bot` by its id and with its keys."""
        if kind == "key":
            self._keys.forget(bytes.fromhex(name))
        elif kind == "bot":
            self._bots.forget(name)
            known = list(self._keys.entries.items())
            self._keys.forget(*[digest for digest, entry in known if entry.value.bot == name])

    def forget_all(self) -> None:
        """Forget everything, as after a time in which changes may have been missed."""
        self._keys.clear()
        self._bots.clear()

    def heard(self, message: bytes) -> bool:
        """Take a message of the control channel; tell whether it was for us."""
        try:
            said = orjson.loads(message)
            kind = said["forget"]
            self.forget(kind, said["digest"] if kind == "key" else said["id"])
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def flush_used(self, session: orm.Session) -> int:
        """Write down when keys were last used, and return how many were; to be called every minute or so."""
        used, self._used = self._used, {}
        for key, at_ms in sorted(used.items()):
            at = wall.as_utc(at_ms)
            column = models.ApiKey.last_used_at
            earlier = sqlalchemy.or_(column.is_(None), column < at)  # another process may know of a later use
            statement = sqlalchemy.update(models.ApiKey).where(models.ApiKey.id == key, earlier).values(last_used_at=at)
            session.execute(statement, execution_options={"synchronize_session": False})
        return len(used)

    def _load_principal(self, digest: bytes) -> Principal | None:
        """Read a key. PostgreSQL's clock, by which a rotated one's end was set, says what is left; ours only counts it down."""
        left = sqlalchemy.extract("epoch", models.ApiKey.expires_at - sqlalchemy.func.clock_timestamp())
        statement = (
            sqlalchemy.select(models.ApiKey, left)
            .outerjoin(models.Bot, models.Bot.id == models.ApiKey.bot_id)
            .where(models.ApiKey.digest == digest, models.ApiKey.revoked_at.is_(None), models.Bot.deleted_at.is_(None))
        )
        asked_at = self._clock()
        with self._sessions.begin() as session:
            row, left_s = session.execute(statement).one_or_none() or (None, None)
        if row is None or not hmac.compare_digest(row.digest, digest) or (left_s is not None and left_s <= 0):
            return None
        return Principal(
            kind="bot_key" if row.bot_id else "organisation_key",
            organisation=str(row.organisation_id),
            bot=str(row.bot_id) if row.bot_id else None,
            scopes=frozenset(row.scopes),
            key_id=str(row.id),
            key_prefix=row.prefix,
            daily_limit=row.daily_limit,
            rate_limit_per_minute=row.rate_limit_per_minute,
            daily_budget_usd=row.daily_budget_usd,
            monthly_budget_usd=row.monthly_budget_usd,
            budgets_since=_ms(row.budgets_since),
            until=math.inf if left_s is None else asked_at + float(left_s),
        )

    def _load_bot(self, bot: str) -> Bot | None:
        try:
            identifier = uuid.UUID(bot)
        except ValueError:
            return None
        with self._sessions.begin() as session:
            row = session.get(models.Bot, identifier)
        if row is None or row.deleted_at is not None:
            return None
        return Bot(
            str(row.id), str(row.organisation_id), row.name, schemas.stored_settings(row.settings), signing.of(row),
            _ms(row.budgets_since),
        )  # fmt: skip


def _ms(at: datetime.datetime | None) -> int:
    return 0 if at is None else round(at.timestamp() * 1000)
