"""Work that a thread of this process repeats for as long as it runs. An error is logged and the next round comes: a thread that ended
would be missed only when it is too late."""

from __future__ import annotations

import threading
from collections.abc import Callable

from app.core import errors, logs

_log = logs.get(__name__)


class Periodic:
    """Calls `run` every `every_s` seconds, the first time after one of them."""

    def __init__(self, name: str, every_s: float, run: Callable[[], object]) -> None:
        self.name = name
        self.every_s = every_s
        self._run = run
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; safe to call again."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._repeat, name=self.name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _repeat(self) -> None:
        while not self._stop.wait(self.every_s):
            self.once()

    def once(self) -> None:
        """Run one round, whatever comes of it."""
        try:
            self._run()
        except errors.Unavailable as error:
            _log.info("round_left_out", work=self.name, reason=str(error))
        except Exception:  # noqa: BLE001  logged, and the thread lives on
            _log.exception("round_failed", work=self.name)
