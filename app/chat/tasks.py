"""Tasks as the API sees them: submit, wait for, read, cancel."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from app.chat import ends
from app.chat.admission import Admission, Admitted, NotSent, Request
from app.chat.ledger import CancelledMeanwhile, Ledger
from app.chat.records import Task
from app.chat.wakeups import REREAD_S, Wakeups
from app.core import errors


class Tasks:
    """The life of tasks from the caller's side."""

    def __init__(self, admission: Admission, ledger: Ledger, wakeups: Wakeups) -> None:
        self.admission = admission
        self.ledger = ledger
        self.wakeups = wakeups

    def submit(self, request: Request) -> Admitted:
        """Admit a request that nobody waits for."""
        return self._admit(request)

    @contextlib.contextmanager
    def submit_and_wait(self, request: Request) -> Iterator[tuple[Admitted, Waiter]]:
        """Admit a request with a place for waiting taken first, so that what is admitted can also be waited for."""
        request.waiter = self.wakeups.channel
        with contextlib.ExitStack() as stack:
            event = stack.enter_context(self.wakeups.waiter(request.ref))
            admitted = self._admit(request)
            if admitted.replayed:
                event = stack.enter_context(self.wakeups.waiter(admitted.ref))
                event.set()  # it may have ended long ago: read first
            yield admitted, Waiter(self, admitted.ref, event)

    def _admit(self, request: Request) -> Admitted:
        try:
            return self.admission.admit(request)
        except NotSent as error:
            if self._withdraw(request, error):
                raise
            return error.admitted

    def _withdraw(self, request: Request, error: NotSent) -> bool:
        """End what the broker did not take, so that nobody is charged for a 503; False when a worker has it nevertheless."""
        task = self.ledger.read(request.ref)
        if task is not None:
            task.webhook = ""  # its caller is told at once
        if task is None or self.ledger.finish(task, ends.failed(task, error, expected="queued")) is not None:
            return False
        self.admission.forget_key(request)  # the same key may be tried again
        return True

    @contextlib.contextmanager
    def waiting(self, ref: str) -> Iterator[Waiter]:
        """Take a place for waiting for a task that is there already."""
        with self.wakeups.waiter(ref) as event:
            event.set()
            yield Waiter(self, ref, event)

    def read(self, ref: str) -> Task | None:
        return self.ledger.read(ref)

    def cancel(self, ref: str) -> Task:
        """Cancel a task; raise `NotFound` or `AlreadyFinished`. What runs is settled by its worker afterwards."""
        for _ in range(3):  # it may be claimed, or sent back, between reading and cancelling
            task = self.ledger.read(ref)
            if task is None:
                raise errors.NotFound(param="id")
            if not task.open:
                raise errors.AlreadyFinished(f"The task is {task.state} already.")
            if self._cancel(task):
                return self.ledger.read(ref) or task
        raise errors.Unavailable("The task changes its state all the time. Try again.")

    def _cancel(self, task: Task) -> bool:
        if task.state == "in_progress":
            return self.ledger.cancel_running(task.ref, ends.CANCELLED) is None
        with contextlib.suppress(CancelledMeanwhile):
            return self.ledger.finish(task, ends.cancelled(task, expected="queued")) is None
        return False


class Waiter:
    """A place for waiting for one task."""

    def __init__(self, tasks: Tasks, ref: str, event: threading.Event) -> None:
        self.tasks = tasks
        self.ref = ref
        self._event = event

    def wait(self, timeout_s: float) -> Task | None:
        """Wait until the task has ended, at most so long; return it as it is then, None if it is gone."""
        until = time.monotonic() + timeout_s
        while True:
            task = self.changed(max(0.0, until - time.monotonic()))
            if task is None or not task.open or time.monotonic() >= until:
                return task

    def changed(self, timeout_s: float) -> Task | None:
        """Wait for the next sign of life, at most so long and never more than a few seconds; return the task, None if it is gone."""
        self._event.wait(min(timeout_s, REREAD_S))
        self._event.clear()
        try:
            return self.tasks.ledger.watch(self.ref, self.tasks.wakeups.channel)
        except errors.Unavailable:
            time.sleep(
                min(0.5, timeout_s)
            )  # Redis restarts: the task is in its file, so waiting goes on while there is time
            if timeout_s <= 0.5:
                raise
            return self.changed(timeout_s - 0.5)
