"""The main job: claim a task, build what the model is given, ask, and end the task once, whatever happens on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any

import orjson
import structlog

from app.chat import ends, summaries, windows
from app.chat.ledger import CancelledMeanwhile, DialogMissing, End, Ledger
from app.chat.pieces import Flusher, Pieces, Whole
from app.chat.pulse import LEASE_MS, Held, Pulse
from app.chat.records import Task
from app.chat.summaries import Summaries
from app.core import errors, logs, metrics
from app.dialogs.live import Context, LiveDialogs
from app.dialogs.packing import tokens_in
from app.llm import retries
from app.llm.answers import Answer, Provider
from app.llm.providers import Providers

if TYPE_CHECKING:
    from app.llm.client import Client

_log = logs.get(__name__)
_STORE_FOR_S = 60.0


class Stopped(Exception):
    """The task was cancelled or given to another worker; `usage` is what came until then."""

    def __init__(self, *, called: bool = False, usage: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.called = called
        self.usage = usage


class Broken(Exception):
    """A stream ended with an error after its first token; `usage` is what came, estimated where the provider did not say."""

    def __init__(self, error: errors.RepliqError, usage: dict[str, Any]) -> None:
        super().__init__(str(error))
        self.error = error
        self.usage = usage


class Parked(Exception):
    """The task went back to the ledger with a due time."""


class Completion:
    """Runs chat tasks in a worker process."""

    def __init__(
        self,
        ledger: Ledger,
        client: Client,
        providers: Providers,
        dialogs: LiveDialogs,
        folding: Summaries,
        max_calls: int,
    ) -> None:
        self.ledger = ledger
        self.client = client
        self.providers = providers
        self.dialogs = dialogs
        self.summaries = folding
        self.max_calls = max_calls
        self.pulse = Pulse(ledger)
        self._flusher = Flusher()

    def run(self, ref: str) -> None:
        """Run a task if it is still to be run. Its end is stored before this returns, or the ledger brings it back."""
        claimed = self.ledger.claim(ref, LEASE_MS)
        if claimed is None:
            return
        task, waited_ms = claimed
        metrics.queue_wait_seconds.labels("chat").observe(waited_ms / 1000)
        started = time.perf_counter()
        with (
            structlog.contextvars.bound_contextvars(task_id=task.public_id, request_id=task.request_id, bot=task.bot),
            self.pulse.holding(task) as held,
        ):
            status = self._run(task, held)
        metrics.task_seconds.labels("chat.complete", status).observe(time.perf_counter() - started)

    def _run(self, task: Task, held: Held) -> str:
        envelope = orjson.loads(task.request)
        try:
            answer = self._answer(task, held, envelope)
            if task.kind == summaries.KIND:
                self.summaries.keep(task, ends.keeping_in(envelope), envelope["fold"], answer.text)
            end = ends.completed(task, answer, envelope)
        except Parked:
            return "parked"
        except Stopped as stop:
            end = ends.cancelled(task, expected="in_progress", usage=stop.usage, called=stop.called, envelope=envelope)
        except Broken as broken:
            end = ends.failed(task, broken.error, usage=broken.usage, envelope=envelope)
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
        if (
            held.context is not None
            and end.state == "completed"
            and self.summaries.wanted(task, envelope, held.context)
        ):
            self.summaries.ask(task, envelope, held.context)
        return end.state

    def _answer(self, task: Task, held: Held, envelope: dict[str, Any]) -> Answer:
        """Ask until there is an answer, what failed may not be repeated, the calls are used up or the deadline is near."""
        calls = task.calls
        while True:
            left = self._left_s(task)
            if left <= 0:
                raise errors.DeadlineExceeded
            try:
                body = self._body(task, held, envelope)
                return self._ask(task, held, body, left)
            except errors.Unavailable as error:  # the dialog cannot be read now; not a model's failure
                self._wait_to_repeat(task, held, error, float(error.retry_s), calls)
            except errors.UpstreamError as error:
                calls += 1
                if not error.retryable or calls >= self.max_calls:
                    raise
                self._wait_to_repeat(task, held, error, retries.delay_s(calls, error), calls)

    def _wait_to_repeat(self, task: Task, held: Held, error: errors.RepliqError, delay: float, calls: int) -> None:
        """Return when the call may be repeated; raise the error when the deadline is too near, `Parked` when the wait is long."""
        if delay >= self._left_s(task):
            raise error
        _log.info("call_repeated", reason=str(error), calls=calls, delay_s=round(delay, 2))
        metrics.task_retries.labels("chat.complete").inc()
        if delay > retries.IN_THREAD_S:
            with contextlib.suppress(errors.Unavailable):  # Redis is away: then the thread waits
                raise (
                    Parked
                    if self.ledger.park(task, int(delay * 1000), error.code, calls)
                    else Stopped(called=calls > 0)
                )
        if held.gone.wait(delay) or self._cancelled(task):
            raise Stopped(called=calls > 0)

    def _cancelled(self, task: Task) -> bool:
        """Tell whether the task is no longer this attempt's; while Redis is away nobody has taken it."""
        try:
            now = self.ledger.read(task.ref)
        except errors.Unavailable:
            return False
        return now is None or now.state != "in_progress" or now.attempt != task.attempt

    def _body(self, task: Task, held: Held, envelope: dict[str, Any]) -> dict[str, Any]:
        """Return the provider's request: the system prompt, the dialog's context, then the request's own messages."""
        body: dict[str, Any] = dict(envelope["body"])
        if task.kind == summaries.KIND:
            folded = self.summaries.messages(task, ends.keeping_in(envelope), envelope["fold"])
            if not folded:
                raise Stopped  # another summary was faster
            return body | {"messages": folded}
        lead = windows.system(envelope.get("system"))
        if task.dialog:
            held.context = self._context(task, envelope)
            lead = windows.given(envelope.get("system"), held.context)
        body["messages"] = [*lead, *body["messages"]] if lead else body["messages"]
        return body

    def _context(self, task: Task, envelope: dict[str, Any]) -> Context:
        """Read the dialog. The one that a user's messages go to begins with the first of them."""
        return self.dialogs.context(
            task.bot, task.dialog, ends.keeping_in(envelope), max_messages=2 * envelope["exchanges"],
            max_tokens=envelope["context_tokens"], owner=_own(task),
        )  # fmt: skip

    def _ask(self, task: Task, held: Held, body: dict[str, Any], left: float) -> Answer:
        provider, model = self.providers.resolve(task.model)
        body["model"] = model
        if held.gone.is_set():
            raise Stopped
        # Both ids go along, so that a provider's log can be matched with ours.
        headers = {"X-Request-ID": task.request_id, "X-Task-ID": task.public_id}
        if task.trace:
            headers["traceparent"] = task.trace
        timeout = min(provider.timeout_s, left)
        try:
            if task.stream:
                return self._ask_stream(task, held, provider, body, timeout, headers)
            answer = self.client.complete(provider, body, timeout_s=timeout, headers=headers)
        except errors.UpstreamError as error:
            error.facts["provider"] = provider.name
            raise
        if answer.usage is None:
            answer.usage = estimated(body, answer.text)
        if held.gone.is_set():
            raise Stopped(called=True, usage=answer.usage)
        return answer

    def _ask_stream(
        self, task: Task, held: Held, provider: Provider, body: dict[str, Any], timeout: float, headers: dict[str, str]
    ) -> Answer:
        pieces, whole = Pieces(self.ledger, task, self._flusher), Whole(body["model"])
        started = time.perf_counter()
        try:
            with self.client.stream(provider, body, timeout_s=timeout, headers=headers) as chunks:
                for chunk in chunks:
                    if not whole.began:
                        metrics.llm_first_token_seconds.labels(provider.name).observe(time.perf_counter() - started)
                    whole.add(chunk)
                    pieces.add(chunk)
                    if pieces.stopped or held.gone.is_set():
                        raise Stopped(called=True, usage=whole.usage or estimated(body, whole.text))
                    if self._left_s(task) <= 0:
                        raise errors.DeadlineExceeded
        except (errors.UpstreamError, errors.DeadlineExceeded) as error:
            pieces.close()
            if not whole.began:
                raise
            raise Broken(error, whole.usage or estimated(body, whole.text)) from error
        pieces.close()
        if not whole.began:
            raise errors.UpstreamError("The model's provider sent an empty stream.")
        if pieces.stopped:
            raise Stopped(called=True, usage=whole.usage or estimated(body, whole.text))
        return whole.answer(provider.name, whole.usage or estimated(body, whole.text))

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
                end = ends.cancelled(task, expected="in_progress", usage=usage, called=True, envelope=envelope)
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
                    self.dialogs.load(task.bot, task.dialog, ends.keeping_in(envelope), owner=_own(task))
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


def _own(task: Task) -> str:
    """Return the user whose own dialog the task goes on with, '' for a dialog that the caller named."""
    return task.user if task.kind == "chat.send" else ""


def estimated(body: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a usage that nobody measured, marked so."""
    prompt = sum(tokens_in(str(message.get("content") or "")) + 3 for message in body["messages"])
    completion = tokens_in(text) if text else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "estimated": True,
    }
