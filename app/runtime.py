"""The composition root: builds what a process needs, each thing at its first use, for API, worker and CLI alike."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app.analytics.answers import Answers
from app.bots.directory import Directory
from app.bots.provider_keys import StoredKeys
from app.chat.admission import Admission
from app.chat.cached import CachedAnswers
from app.chat.callbacks import Callbacks
from app.chat.completion import Completion
from app.chat.drains import Drains
from app.chat.erasure import Erasure
from app.chat.feedback import Feedback
from app.chat.ledger import Ledger
from app.chat.listing import TaskList
from app.chat.personal import Personal
from app.chat.preparing import Preparing
from app.chat.providing import Announcements
from app.chat.requests import Requests
from app.chat.reservations import Reservations
from app.chat.sessions import SessionEnds
from app.chat.summaries import Summaries
from app.chat.sweeping import Sweep
from app.chat.tasks import Tasks
from app.chat.transfers import Transfers
from app.chat.wakeups import Wakeups
from app.core import errors, gauges, logs, metrics, presence, tracing
from app.core import queue as queue_
from app.core import settings as settings_
from app.core.database import engine as database
from app.core.events import Events
from app.core.outbox import Outbox
from app.core.periodic import Periodic
from app.core.presence import Presence
from app.core.queue import Publish, Queue
from app.core.sealing import Sealer
from app.core.settings import Settings
from app.core.store import Keys, Scripts, Store
from app.dialogs.lists import DialogList
from app.dialogs.live import LiveDialogs
from app.limits.budgets import Budgets
from app.limits.days import Days
from app.llm import gate, prices
from app.llm.cache.fixed import FixedAnswers
from app.llm.cache.shelf import Shelf
from app.llm.gate import Gate, State
from app.llm.providers import Providers
from app.llm.router import Router
from app.prompts.prompts import FRESH_S, UNLINKED_FRESH_S, Prompts
from app.webhooks.deliveries import Deliveries
from app.webhooks.receivers import Receivers

if TYPE_CHECKING:
    from app.llm.client import Client
    from app.webhooks.courier import Courier

_log = logs.get(__name__)
_WORKER_TIMEOUT_S = 5.0
_NOTE_KEYS_S = 60.0


class Runtime:
    """All that is shared in a process. `publish` and `depth` are how the broker is reached when it is not the store's Redis."""

    def __init__(
        self, settings: Settings, publish: Publish, depth: Callable[[], int], *, patient: bool = False
    ) -> None:
        self.settings = settings
        self._publish = publish
        self._depth = depth
        self.migrated = False
        self.scripts_loaded = False
        self._patient = patient  # a worker may wait longer for Redis than a caller does for his answer

    @functools.cached_property
    def store(self) -> Store:
        return Store(self.settings.redis_url, **({"timeout_s": _WORKER_TIMEOUT_S} if self._patient else {}))

    @functools.cached_property
    def keys(self) -> Keys:
        return Keys(self.settings.redis_prefix, self.settings.redis_shards, queue_.prefix(self.settings))

    @functools.cached_property
    def scripts(self) -> Scripts:
        made = Scripts(self.store, _script_ran)
        metrics.expect_scripts(made.names)
        return made

    @functools.cached_property
    def queue(self) -> Queue:
        return Queue(direct=self.settings.broker_is_store, publish=self._publish)

    @functools.cached_property
    def engine(self) -> Any:
        return database.make_engine(
            self.settings.database_url, self.settings.database_pool_size, self.settings.database_max_overflow
        )

    @functools.cached_property
    def sessions(self) -> Any:
        return database.Sessions(self.engine)

    @functools.cached_property
    def analytics_sessions(self) -> Any:
        """Return the sessions of the analytics database; where that is the main one, its connections are shared."""
        if self.settings.analytics_url == self.settings.database_url:
            return self.sessions
        size, overflow = self.settings.database_pool_size, self.settings.database_max_overflow
        return database.Sessions(database.make_engine(self.settings.analytics_url, size, overflow))

    @functools.cached_property
    def directory(self) -> Directory:
        return Directory(self.sessions, self.settings.secret_key)

    @functools.cached_property
    def outbox(self) -> Outbox:
        return Outbox(self.store, self.scripts, self.keys)

    @functools.cached_property
    def events(self) -> Events:
        return Events(self.scripts, self.keys, self.queue, publishes=bool(self.settings.message_broker_url))

    @functools.cached_property
    def summaries(self) -> Answers:
        return Answers(self.analytics_sessions, self.store, self.keys)

    @functools.cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.scripts, self.keys, self.queue, self.events, self.budgets)

    @functools.cached_property
    def days(self) -> Days:
        return Days(self.scripts, self.keys, self.outbox, self.sessions)

    @functools.cached_property
    def budgets(self) -> Budgets:
        return Budgets(self.scripts, self.keys, self.outbox, self.sessions)

    @functools.cached_property
    def reservations(self) -> Reservations:
        return Reservations(lambda: self.providers)

    @functools.cached_property
    def wakeups(self) -> Wakeups:
        return Wakeups(
            self.store, self.keys, max_waiters=self.settings.max_waiters, heard=self._heard, link=self._linked
        )

    def _heard(self, message: bytes) -> object:
        return self.directory.heard(message) or self.prompts.heard(message)

    def _linked(self, stands: bool) -> None:
        """Trust the cache of keys only as long as revocations reach us; what was missed is forgotten."""
        self.directory.max_age_s = 5.0 if stands else 0.8
        self.directory.forget_all()
        self.prompts.fresh_s = FRESH_S if stands else UNLINKED_FRESH_S
        self.prompts.forget_all()

    @functools.cached_property
    def admission(self) -> Admission:
        return Admission(self.scripts, self.keys, self.queue, self.days, self.events, self.budgets)

    @functools.cached_property
    def tasks(self) -> Tasks:
        return Tasks(self.admission, self.ledger, self.wakeups)

    @functools.cached_property
    def requests(self) -> Requests:
        return Requests(
            self.settings, self.receivers, self.prompts, self.fixed_answers, self.reservations, lambda: self.providers
        )

    @functools.cached_property
    def prompts(self) -> Prompts:
        return Prompts(self.sessions)

    @functools.cached_property
    def receivers(self) -> Receivers:
        return Receivers(allow_private=self.settings.webhook_allow_private)

    @functools.cached_property
    def deliveries(self) -> Deliveries:
        return Deliveries(self.scripts, self.keys, self.queue)

    @functools.cached_property
    def courier(self) -> Courier:
        from app.webhooks.client import Client as WebhookClient  # its HTTP library is for workers alone
        from app.webhooks.courier import Courier

        told = Callbacks(self.ledger, self.task_list)
        room = max(1, self.settings.worker_threads // 2)
        return Courier(
            self.deliveries, self.directory, told.task, WebhookClient(self.receivers), most_at_once=room, placed=told.place
        )  # fmt: skip

    @functools.cached_property
    def llm(self) -> Client:
        from app.llm.client import Client  # the SDK takes 15 MB and most of a second to load, and the API seldom asks

        return Client()

    @functools.cached_property
    def providers(self) -> Providers:
        return Providers(self.settings, lambda: self.llm, self.provider_keys.of)

    @functools.cached_property
    def provider_keys(self) -> StoredKeys:
        return StoredKeys(self.sessions, lambda: self.sealer)

    @functools.cached_property
    def sealer(self) -> Sealer:
        return Sealer(self.settings.secret_key, self.settings.secret_key_before)

    @functools.cached_property
    def dialogs(self) -> LiveDialogs:
        return LiveDialogs(self.scripts, self.keys, self.outbox, self.sessions, self.queue)

    @functools.cached_property
    def dialog_list(self) -> DialogList:
        return DialogList(self.dialogs, self.sessions)

    @functools.cached_property
    def drains(self) -> Drains:
        return Drains(self.outbox, self.dialogs, self.sessions, self.analytics_sessions, self.events)

    @functools.cached_property
    def gate(self) -> Gate:
        metrics.expect_targets((target.provider.name, target.model) for target in self.providers.all())
        return Gate(self.scripts, self.keys, self.providers.breaker)

    def circuits(self) -> list[State]:
        """Return how it stands with every configured target; raise `Unavailable` without Redis."""
        return self.gate.states(self.providers.all())

    @functools.cached_property
    def router(self) -> Router:
        """Return what asks providers. Where there are several, none may take more than three quarters of a process's threads."""
        several = len({target.provider.name for target in self.providers.all()}) > 1
        threads = self.settings.worker_threads
        return Router(self.gate, max(1, threads * 3 // 4) if several else threads)

    @functools.cached_property
    def personal(self) -> Personal:
        from app.core.outbound import Caller  # its HTTP library is for workers alone

        return Personal(
            self.store, self.keys, self.directory, self.receivers, Caller(self.receivers.addresses), self.settings.secret_key
        )  # fmt: skip

    @functools.cached_property
    def cached_answers(self) -> CachedAnswers:
        return CachedAnswers(Shelf(self.scripts, self.keys), self.sessions, self.providers, lambda: self.llm)

    @functools.cached_property
    def fixed_answers(self) -> FixedAnswers:
        return FixedAnswers(self.sessions)

    @functools.cached_property
    def completion(self) -> Completion:
        preparing = Preparing(self.dialogs, Summaries(self.admission, self.dialogs, self.providers), self.personal)
        return Completion(
            self.ledger, self.llm, self.providers, self.router, preparing, self.cached_answers, Announcements(self.events),
            self.settings.llm_max_attempts,
        )  # fmt: skip

    @functools.cached_property
    def sweep(self) -> Sweep:
        return Sweep(self.ledger, self.settings.redis_shards, self._depth, self.deliveries.sweep)

    @functools.cached_property
    def task_list(self) -> TaskList:
        return TaskList(self.ledger, self.outbox, self.sessions, self.settings.redis_shards)

    @functools.cached_property
    def feedback(self) -> Feedback:
        return Feedback(self.tasks, self.sessions)

    @functools.cached_property
    def erasure(self) -> Erasure:
        return Erasure(
            self.tasks, self.dialogs, self.days, self.keys, self.sessions, self.settings.redis_shards, self.cached_answers
        )  # fmt: skip

    @functools.cached_property
    def session_ends(self) -> SessionEnds:
        return SessionEnds(self.scripts, self.keys, self.sessions, self.events)

    @functools.cached_property
    def transfers(self) -> Transfers:
        return Transfers(self.outbox, self.drains, self.dialogs, self.sessions, self.settings.redis_shards)

    @functools.cached_property
    def used_keys(self) -> Periodic:
        return Periodic("used-keys", _NOTE_KEYS_S, self._note_used_keys)

    def start_serving(self) -> None:
        """Make an API process ready: scripts in Redis, the subscription, the sweep."""
        _ = self.providers  # a wrong providers file is told of now
        with contextlib.suppress(
            errors.Unavailable
        ):  # readiness says so until Redis is there; every script heals itself
            self.scripts.load()
        self.scripts_loaded = True
        self._warn_of_volatile_redis()
        self.wakeups.start()
        self.sweep.start()
        self.used_keys.start()

    def _warn_of_volatile_redis(self) -> None:
        """Say so when production's Redis keeps nothing: queued tasks would be gone with it."""
        if self.settings.environment != "production" or self.settings.allow_volatile_redis:
            return
        with contextlib.suppress(errors.RepliqError):  # a managed server may refuse CONFIG; `repliq doctor` says more
            if not self.store.keeps_data():
                _log.warning("redis_keeps_nothing", advice="set appendonly yes, or ALLOW_VOLATILE_REDIS=true")

    def _note_used_keys(self) -> None:
        """Write down which keys were used; a missed minute is no loss."""
        with self.sessions.begin() as session:
            self.directory.flush_used(session)

    def start_working(self, name: str) -> None:
        """Make a worker process ready: scripts in Redis, the sweep, and a sign of life every 2 s."""
        _ = self.gate  # whose series, and the answers', begin at 0 now rather than with the first request
        metrics.expect_answers(
            {name: [(by.provider.name, by.model) for by in found] for name, found in self.providers.answering().items()}
        )
        with contextlib.suppress(errors.Unavailable):  # from now on it knows who has none, should PostgreSQL be away
            self.provider_keys.of("")
        with contextlib.suppress(errors.Unavailable):
            self.scripts.load()
        self.sweep.start()
        if self.settings.environment != "development":
            prices.load()
            _ = self.llm  # loaded now rather than at the first request; a developer's machine keeps the memory instead
        self.presence = Presence(self.store, self.keys, name)
        self.presence.start()

    def leave(self) -> None:
        """Show no more signs of life; a worker that is told to end while it starts has shown none yet."""
        if "presence" in self.__dict__:
            self.presence.stop()

    def broker_alive(self) -> None:
        """Raise `Unavailable` when the broker does not answer."""
        if self.settings.broker_is_store:
            self.store.call("PING")
        else:
            self._depth()

    def workers_seen(self, within_ms: int) -> list[str]:
        """Return the worker processes that showed themselves lately."""
        return presence.seen(self.store, self.keys, within_ms)

    def gauges(self) -> list[str]:
        """Return the gauges that are read from Redis at the moment of asking, as lines of Prometheus' format."""
        lines = gauges.lines(self.store, self.keys)
        with contextlib.suppress(errors.Unavailable):
            lines += gate.gauges(self.circuits())
        return lines

    def close(self) -> None:
        """Stop what runs and close what is open; only of what was ever built."""
        built = self.__dict__
        for name in ("sweep", "wakeups", "presence", "used_keys"):
            if name in built:
                built[name].stop()
        if "completion" in built:
            built["completion"].pulse.stop()
        if "cached_answers" in built:
            built["cached_answers"].stop()
        if "analytics_sessions" in built:
            built["analytics_sessions"].engine.dispose()
        if "engine" in built:
            built["engine"].dispose()
        if "store" in built:
            built["store"].close()


def _script_ran(name: str, status: str, took_s: float) -> None:
    metrics.observe_script(name, status, took_s)
    tracing.script_ran(name, status, took_s)


_current: tuple[int, Runtime] | None = None


def build(publish: Publish, depth: Callable[[], int], *, patient: bool = False) -> Runtime:
    """Return the process's runtime, built at the first call; one that came over a fork is left behind."""
    global _current
    if _current is None or _current[0] != os.getpid():
        _current = (os.getpid(), Runtime(settings_.current(), publish, depth, patient=patient))
    return _current[1]
