"""The main job: claim a task, have it answered, and end it once, whatever happens on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import time
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from app.chat import ends, estimates, summaries
from app.chat.asking import Asking, Broken, Stopped
from app.chat.cached import CachedAnswers, Follow, Hit, Lead
from app.chat.ledger import CancelledMeanwhile, DialogMissing, End, Ledger
from app.chat.pieces import Flusher
from app.chat.preparing import Preparing
from app.chat.providing import Announcements
from app.chat.pulse import LEASE_MS, Held, Pulse
from app.chat.records import Task
from app.core import errors, logs, metrics, tracing
from app.core.tracing import Span
from app.llm import retries
from app.llm.answers import Answer, Model
from app.llm.providers import Providers
from app.llm.router import NoneFree, Router

if TYPE_CHECKING:
    from app.llm.client import Client

_log = logs.get(__name__)
_STORE_FOR_S = 60.0


class Parked(Exception):
    """The task went back to the ledger with a due time."""


class Completion:
    """Runs chat tasks in a worker process. `max_calls`: how often a model's chain is gone through before a failure is final."""

    def __init__(
        self,
        ledger: Ledger,
        client: Client,
        providers: Providers,
        router: Router,
        preparing: Preparing,
        cached: CachedAnswers,
        announcements: Announcements,
        max_calls: int,
    ) -> None:
        self.ledger = ledger
        self.client = client
        self.providers = providers
        self.router = router
        self.preparing = preparing
        self.cached = cached
        self.announcements = announcements
        self.summaries = preparing.summaries
        self.dialogs = preparing.dialogs
        self.max_calls = max_calls
        self.pulse = Pulse(ledger)
        self._flusher = Flusher()

    def run(self, ref: str) -> None:
        """Run a task if it is still to be run. Its end is stored before this returns, or the ledger brings it back."""
        asked = time.perf_counter()
        claimed = self.ledger.claim(ref, LEASE_MS)
        if claimed is None:
            return
        task, waited_ms = claimed
        metrics.queue_wait_seconds.labels("chat").observe(waited_ms / 1000)
        started = time.perf_counter()
        with (
            structlog.contextvars.bound_contextvars(**_ids(task)),
            _span(task, waited_ms, started - asked) as span,
            self.pulse.holding(task) as held,
        ):
            tracing.script_ran("chat/claim", "ok", started - asked)  # only now is it known whose trace that was
            status = self._run(task, held, span)
        metrics.task_seconds.labels("chat.complete", status).observe(time.perf_counter() - started)

    def _run(self, task: Task, held: Held, span: Span) -> str:
        envelope = orjson.loads(task.request)
        try:
            found = self._answer(task, held, envelope)
            answer, source = (found.answer, found.source) if isinstance(found, Hit) else (found, "")
            if task.kind == summaries.KIND:
                self.summaries.keep(task, ends.keeping_in(envelope), envelope["fold"], answer.text)
            end = ends.completed(task, answer, envelope, cached=source)
        except Parked:
            span.set("repliq.outcome", "parked")
            return "parked"
        except Stopped as stop:
            end = ends.cancelled(
                task, expected="in_progress", usage=stop.usage, called=stop.called or bool(stop.also), envelope=envelope,
                provider=stop.provider, model=stop.model, also=stop.also,
            )  # fmt: skip
        except Broken as broken:
            end = ends.failed(
                task, broken.error, usage=broken.usage, model=broken.model, envelope=envelope, also=broken.also
            )
        except errors.RepliqError as error:
            end = ends.failed(task, error, envelope=envelope)
        except Exception:
            self._finish(
                task,
                ends.failed(task, errors.RepliqError("An unexpected error; the log has it under the request's id.")),
                envelope,
            )
            raise
        self._finish(task, end, envelope)
        span.set("repliq.outcome", end.state)
        if end.state == "failed":
            span.fail(str(end.told.facts["code"]))
        if (
            held.context is not None
            and end.state == "completed"
            and self.summaries.wanted(task, envelope, held.context)
        ):
            self.summaries.ask(task, envelope, held.context)
        return end.state

    def _answer(self, task: Task, held: Held, envelope: dict[str, Any]) -> Answer | Hit:
        """Ask until there is an answer, what failed may not be repeated, the rounds are used up or the deadline is near."""
        calls = task.calls
        while True:
            if self._left_s(task) <= 0:
                raise errors.DeadlineExceeded
            try:
                return self._answer_once(task, held, envelope)
            except errors.Unavailable as error:  # the dialog cannot be read now; not a model's failure
                self._wait_to_repeat(task, held, error, float(error.retry_s), calls)
            except NoneFree as none:
                if not envelope.get("park", True):
                    raise none.as_error() from none
                delay = self._patience_s(task, none)
                self._wait_to_repeat(task, held, none.as_error(), delay, calls, parked_for=none.reason)
            except errors.UpstreamRateLimited as error:
                waits = envelope.get("park", True) and error.retry_after_s
                calls += not waits  # it said when to come again: no failure, but a wait
                if calls >= self.max_calls:
                    raise
                self._wait_to_repeat(task, held, error, retries.delay_s(max(1, calls), error), calls)
            except errors.UpstreamError as error:
                calls += 1
                if not error.retryable or calls >= self.max_calls:
                    raise
                self._wait_to_repeat(task, held, error, retries.delay_s(calls, error), calls)

    def _answer_once(self, task: Task, held: Held, envelope: dict[str, Any]) -> Answer | Hit:
        """Answer from what is known, else ask; where the very same is being asked, wait for that."""
        body = self.preparing.body(held, envelope)
        found = self.cached.find(task, envelope, body)
        if isinstance(found, Hit):
            with contextlib.suppress(errors.Unavailable):
                self._wake(list(found.wake))  # who asked the very same while it was looked for
            return found
        if isinstance(found, Follow):
            self._follow(task, found)
        if not isinstance(found, Lead):
            return self._ask(task, held, envelope, body)
        try:
            answer = self._ask(task, held, envelope, body)
        except BaseException as error:
            with contextlib.suppress(errors.Unavailable):
                self._wake(self.cached.give_up(found, failed=not isinstance(error, NoneFree)))
            raise
        with contextlib.suppress(errors.Unavailable):
            self._wake(self.cached.fill(found, answer))
        return answer

    def _ask(self, task: Task, held: Held, envelope: dict[str, Any], body: dict[str, Any]) -> Answer:
        """Ask the model, if the task's budgets hold it."""
        model = self.providers.model(task.model, task.bot)
        hedge = bool(envelope.get("hedge")) and len(model.chain) > 1
        self._afford(task, envelope, model, body)
        asking = Asking(
            self.client, self.ledger, self._flusher, held, body, lambda: self._left_s(task), masks=bool(envelope.get("mask"))
        )  # fmt: skip
        return self.router.ask(
            model,
            asking,
            self.announcements.of(task),
            lambda: self._left_s(task),
            tokens=estimates.tokens(body),
            hedge=hedge,
            streamed=task.stream,
        )

    def _afford(self, task: Task, envelope: dict[str, Any], model: Model, body: dict[str, Any]) -> None:
        """Reserve what the whole request may cost, its context included, which admission did not know; raise `BudgetExceeded`."""
        if not task.budget:
            return
        most = estimates.most(task, estimates.targets(model), body, envelope)
        if most is not None and not self.ledger.top_up(task, most):
            raise errors.BudgetExceeded

    def _follow(self, task: Task, follow: Follow) -> None:
        """Leave the thread until the answer to the same question is there; its maker wakes this task."""
        delay = min(follow.retry_ms, int(self._left_s(task) * 500))
        if not self.ledger.park(task, delay, "same_question", task.calls):
            raise Stopped
        with contextlib.suppress(errors.Unavailable):
            if self.cached.filled(follow):  # meanwhile
                self._wake([task.ref])
        raise Parked

    def _wake(self, refs: list[str]) -> None:
        """Send parked tasks before they are due."""
        for ref in refs:
            self.ledger.requeue(ref, "woken", "")

    def _patience_s(self, task: Task, none: NoneFree) -> float:
        """Return how long to wait for room: as the gate says, longer for who waits again, and never in step with others."""
        patience: float = min(max(none.retry_s, 0.1 * 2 ** min(task.attempt, 6)), 10.0)
        return patience * random.uniform(1.0, 1.5)

    def _wait_to_repeat(
        self, task: Task, held: Held, error: errors.RepliqError, delay: float, calls: int, *, parked_for: str = ""
    ) -> None:
        """Return when the call may be repeated; raise the error when the deadline is too near, `Parked` when the wait is long.

        `parked_for` is the reason of a wait that is never to hold a thread, however short it is."""
        if delay >= self._left_s(task):
            raise error
        reason = error.plain if isinstance(error, errors.UpstreamError) else str(error)
        _log.info("call_repeated", reason=reason, calls=calls, delay_s=round(delay, 2))
        metrics.task_retries.labels("chat.complete").inc()
        if parked_for or delay > retries.IN_THREAD_S:
            with contextlib.suppress(errors.Unavailable):  # Redis is away: then the thread waits
                parked = self.ledger.park(task, int(delay * 1000), parked_for or error.code, calls)
                raise Parked if parked else Stopped(called=calls > 0)
        if held.gone.wait(delay) or self._cancelled(task):
            raise Stopped(called=calls > 0)

    def _cancelled(self, task: Task) -> bool:
        """Tell whether the task is no longer this attempt's; while Redis is away nobody has taken it."""
        try:
            now = self.ledger.read(task.ref)
        except errors.Unavailable:
            return False
        return now is None or now.state != "in_progress" or now.attempt != task.attempt

    def _left_s(self, task: Task) -> float:
        """Return how long the task still has, s; by Redis's clock, of which the claim gave us a reading."""
        return (task.deadline - task.now) / 1000 - (time.monotonic() - task.claimed_at)

    def _finish(self, task: Task, end: End, envelope: dict[str, Any]) -> None:
        """Store the end; while Redis is away, keep trying, since an answer that was paid for is in our hands."""
        give_up = time.monotonic() + _STORE_FOR_S
        while True:
            try:
                state = self._store(task, end, envelope)
                break
            except CancelledMeanwhile:
                usage = orjson.loads(end.fields["usage"]) if "usage" in end.fields else None
                told = end.told.facts
                end = ends.cancelled(
                    task, expected="in_progress", usage=usage, called=end.counted, envelope=envelope,
                    provider=told["provider"], model=told["model"], cost=told["cost"],
                )  # fmt: skip
            except errors.Unavailable:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)
        self._count(task, end, state)

    def _store(self, task: Task, end: End, envelope: dict[str, Any]) -> str | None:
        while True:
            try:
                return self.ledger.finish(task, end)
            except DialogMissing:  # needs PostgreSQL, which may be as unavailable as Redis
                try:
                    self.dialogs.load(task.bot, task.dialog, ends.keeping_in(envelope), owner=ends.own(task))
                except errors.NotFound:  # deleted while the answer was made: the answer is its caller's all the same
                    end = dataclasses.replace(end, messages=())

    def _count(self, task: Task, end: End, state: str | None) -> None:
        if state not in (None, end.state):
            _log.info("end_dropped", end=end.state, state=state)
            return
        row = end.told.facts
        model = metrics.model_label(task.model)
        metrics.chat_requests.labels(row["status"], row["provider"] or "none", model).inc()
        if row["cost"] is not None:
            metrics.chat_cost_usd.labels(row["provider"] or "none", model).inc(float(row["cost"]))
        elif row["status"] == "success" or row["tokens"]:
            metrics.price_unknown.labels(model).inc()
        for kind in ("prompt", "completion"):
            metrics.chat_tokens.labels(kind, model).inc(row[f"{kind}_tokens"] or 0)
        for message in end.messages:
            metrics.messages.labels(message[1]).inc()


def _ids(task: Task) -> dict[str, str]:
    """Return what stands in every line that is logged of a task."""
    found = {"task_id": task.public_id, "request_id": task.request_id, "bot": task.bot}
    return {**found, "trace_id": tracing.trace_id_in(task.trace)} if task.trace else found


def _span(task: Task, waited_ms: int, claimed_s: float) -> Span:
    """Begin the span of an attempt, which belongs to the trace of its request, whichever worker's it is."""
    if not tracing.on():
        return tracing.NOTHING
    facts = {
        "messaging.message.id": task.public_id, "repliq.bot_id": task.bot, "repliq.attempt": task.attempt,
        "repliq.request_type": task.kind, "repliq.queue_wait_ms": waited_ms,
    }  # fmt: skip
    return tracing.span(
        "chat.complete", "consumer", tracing.message("process", "chat") | facts, parent=task.place, since_s=claimed_s
    )
