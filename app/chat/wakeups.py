"""How a waiting request learns that its task ended: one subscription a process, an event a waiter, no polling."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator

from app.core import errors, logs, metrics
from app.core.store import Keys, Store
from app.core.store.subscription import subscribed

_log = logs.get(__name__)
REREAD_S = 4.0
"""A waiter reads its task again this often, in case that a wake-up was lost."""


class Wakeups:
    """Listens for this process. `heard` gets control messages; `link` is called with whether the subscription stands."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        *,
        max_waiters: int,
        heard: Callable[[bytes], object],
        link: Callable[[bool], None],
    ) -> None:
        self.channel = keys.wake_channel(uuid.uuid4().hex[:16])
        self._store = store
        self._control = keys.control_channel
        self._heard = heard
        self._link = link
        self._slots = threading.BoundedSemaphore(max_waiters)
        self._waiting: dict[str, set[threading.Event]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._listening = threading.Event()

    def start(self) -> None:
        """Begin to listen; safe to call again."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="wakeups", daemon=True)
                self._thread.start()
        self._listening.wait(1.0)

    def stop(self) -> None:
        self._stopping.set()

    @contextlib.contextmanager
    def waiter(self, ref: str) -> Iterator[threading.Event]:
        """Take one of the process's places for waiting; raise `TooManyWaiters` at once when all are taken."""
        if not self._slots.acquire(blocking=False):
            raise errors.TooManyWaiters(
                "All places for waiting requests are taken here. Try again, or submit with background and poll.",
                retry_s=1,
            )
        event = threading.Event()
        with self._lock:
            self._waiting.setdefault(ref, set()).add(event)
        metrics.api_waiters.inc()
        try:
            yield event
        finally:
            metrics.api_waiters.dec()
            self._forget(ref, event)
            self._slots.release()

    def _forget(self, ref: str, event: threading.Event) -> None:
        with self._lock:
            events = self._waiting.get(ref)
            if events is not None:
                events.discard(event)
                if not events:
                    del self._waiting[ref]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except errors.Unavailable:
                self._link(False)
                self._wake_all()
                self._stopping.wait(0.25)
        self._link(False)

    def _listen(self) -> None:
        with subscribed(self._store, self.channel, self._control) as messages:
            self._link(True)
            self._listening.set()
            self._wake_all()  # whatever ended while nobody listened is found by reading again
            for message in messages:
                if self._stopping.is_set():
                    return
                if message is not None:
                    self._deliver(*message)

    def _deliver(self, channel: str, data: bytes) -> None:
        if channel == self._control:
            self._heard(data)
            return
        with self._lock:
            events = list(self._waiting.get(data.decode(), ()))
        for event in events:
            event.set()

    def _wake_all(self) -> None:
        with self._lock:
            events = [event for events in self._waiting.values() for event in events]
        for event in events:
            event.set()
