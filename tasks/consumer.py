"""The worker's consumer, which comes back within two seconds of its broker: Celery's own waits 2 s longer after each try, up to 30 s."""

from __future__ import annotations

import functools
from typing import Any

from celery.worker import consumer

_INTERVALS = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 2.0}


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Celery's consumer with a shorter wait between two tries to connect."""

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however often that must be tried."""
        conn.ensure_connection = functools.partial(conn.ensure_connection, **_INTERVALS)
        return super().ensure_connected(conn)
