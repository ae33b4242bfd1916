"""Requests as our workers hold them: they wake the loop when a thread gets free, and acknowledge only where a broker expects it."""

from __future__ import annotations

from typing import Any

from celery.worker import state
from celery.worker.request import Request
from kombu.asynchronous import get_event_loop

pool_size = 1
"""How many tasks this process runs at once; set by the worker before it starts."""


class WakingRequest(Request):  # type: ignore[misc]
    """A request whose end lets the next one in at once.

    With `worker_disable_prefetch` a worker whose threads are all busy takes its socket out of the loop's poll, and then nothing but a
    timer, up to a second later, makes it look again. Measured with 8 threads and 64 callers: 140 requests a second, and 480 when woken.
    """

    def acknowledge(self) -> None:
        """Acknowledge, and wake the loop if it may have gone to sleep over a full pool."""
        super().acknowledge()
        _wake()


class UnacknowledgedRequest(WakingRequest):
    """A request of a queue that is consumed without acknowledgements.

    The ledger holds the truth about chat tasks, so on Redis their queue is declared `no_ack`. kombu then keeps no copy of a message, but
    Celery acknowledges it all the same: two commands in a transaction for nothing, a third of a worker's time at full load.
    """

    def acknowledge(self) -> None:
        """Note that there is nothing to acknowledge, and wake the loop."""
        self.acknowledged = True
        _wake()


def _wake() -> None:
    if 2 * len(state.reserved_requests) >= pool_size:
        hub: Any = get_event_loop()
        if hub is not None:
            hub.call_soon(_nothing)


def _nothing() -> None:
    """Do nothing: being called is the point."""
