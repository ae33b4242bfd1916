"""One call of a provider for a task: whole or streamed, with what is personal hidden on the way there, and told piece by piece."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from app.chat import caps
from app.chat.ledger import Ledger
from app.chat.pieces import Flusher, Pieces, Whole
from app.chat.pulse import Held
from app.chat.records import Task
from app.core import errors, metrics, tracing
from app.core.shield import Shield
from app.core.tracing import Span
from app.dialogs.packing import tokens_in
from app.llm import genai
from app.llm.answers import Answer, Spent, Target
from app.llm.hedging import Ended, Lane, Lost, nobody

if TYPE_CHECKING:
    from app.llm.client import Client


class Stopped(Ended):
    """The task was cancelled or given to another worker; `usage` is what came until then."""

    def __init__(
        self, *, called: bool = False, usage: dict[str, Any] | None = None, provider: str = "", model: str = ""
    ) -> None:
        super().__init__()
        self.called = called
        self.usage = usage
        self.provider = provider
        self.model = model


class Broken(Ended):
    """A stream ended with an error after its first token; `usage` is what came, estimated where the provider did not say."""

    def __init__(self, error: errors.RepliqError, usage: dict[str, Any], model: str) -> None:
        super().__init__(str(error))
        self.error = error
        self.usage = usage
        self.model = model
        self.code = error.code
        self.outcome = "failed" if isinstance(error, errors.UpstreamError) else "ignored"


class Asking:
    """The calls of one task. `body` is the whole request but for the model's name."""

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        flusher: Flusher,
        held: Held,
        body: dict[str, Any],
        left_s: Callable[[], float],
        *,
        masks: bool,
    ) -> None:
        self.client = client
        self.ledger = ledger
        self.flusher = flusher
        self.held = held
        self.body = body
        self.left_s = left_s
        self.masks = masks

    def __call__(self, target: Target, timeout_s: float, lane: Lane) -> Answer:
        """Ask a target once; raise an `UpstreamError`, `Broken`, `Stopped`, `Lost` or `DeadlineExceeded`."""
        if self.held.gone.is_set():
            raise Stopped
        shield = Shield() if self.masks else None
        body = {**(shield.hide(self.body) if shield else self.body), "model": target.model}
        task = self.held.task
        streamed = task.stream or not lane.alone
        talk = f"dlg_{task.dialog}" if task.dialog else ""
        with genai.call(
            "chat", target.provider, body, conversation=talk, stream=streamed, quiet=(Stopped, Lost)
        ) as span:
            try:
                answer = (
                    self._streamed(target, body, timeout_s, lane, shield, span)
                    if streamed
                    else self._whole(target, body, timeout_s, shield)
                )
            except errors.UpstreamError as error:
                span.set("http.response.status_code", error.status)
                raise
            genai.answered(span, answer)
            return answer

    def _whole(self, target: Target, body: dict[str, Any], timeout_s: float, shield: Shield | None) -> Answer:
        """Ask for an answer in one piece."""
        headers = _headers(self.held.task)
        answer = self.client.complete(target.provider, body, timeout_s=timeout_s, headers=headers)
        answer.usage = answer.usage or estimated(body, answer.text)
        if self.held.gone.is_set():
            raise Stopped(called=True, usage=answer.usage, provider=target.provider.name, model=target.model)
        return _revealed(answer, shield)

    def _streamed(
        self, target: Target, body: dict[str, Any], timeout_s: float, lane: Lane, shield: Shield | None, span: Span
    ) -> Answer:
        """Ask for a stream. Outside of a streamed task (one of two that race) nothing of it is told before its end."""
        coming = _Coming(self, target, body, lane, shield, span)
        way = self.client.new_call()
        way.latest = time.monotonic() + self.left_s()
        lane.abort = way.abort
        first_token_s = min(target.provider.first_token_timeout_s, timeout_s)
        try:
            with self.client.stream(
                target.provider, body, timeout_s=timeout_s, first_token_s=first_token_s,
                headers=_headers(self.held.task), call=way,
            ) as chunks:  # fmt: skip
                for chunk in chunks:
                    lane.keep()
                    coming.take(chunk)
        except (errors.UpstreamError, errors.DeadlineExceeded) as error:
            end = coming.broken(error)
            if end is error:
                raise
            raise end from error
        return coming.answer()


class _Coming:
    """A streamed answer on its way: what of it has come, and what its readers have been told."""

    def __init__(
        self, asking: Asking, target: Target, body: dict[str, Any], lane: Lane, shield: Shield | None, span: Span
    ) -> None:
        self.asking = asking
        self.span = span
        self.target = target
        self.lane = lane
        self.shield = shield
        self._body = body
        self._whole = Whole(target.model)
        self._pieces = Pieces(asking.ledger, asking.held.task, asking.flusher) if asking.held.task.stream else None
        self._quiet: list[dict[str, Any]] = []
        self._started = time.perf_counter()
        lane.spent = lambda: Spent(target.provider.name, target.model, self._used())

    def take(self, chunk: dict[str, Any]) -> None:
        """Take a piece, and tell it; before the first word nothing is told, since it would have to be taken back."""
        began = self._whole.began
        self._whole.add(chunk)
        if self.asking.held.gone.is_set() or (self._pieces and self._pieces.stopped):
            raise self._stopped()
        if self.asking.left_s() <= 0:
            raise errors.DeadlineExceeded
        if not self._whole.began:
            self._quiet.append(chunk)
            return
        if not began:
            self._note_first()
        if self._pieces:
            self.lane.win()
            self._tell(self._pieces, [*self._quiet, chunk])
            self._quiet.clear()
        elif self.lane.lost():
            raise Lost

    def broken(self, error: errors.UpstreamError | errors.DeadlineExceeded) -> Exception:
        """Return what a stream that failed ends with: the failure itself, as of a call, where nothing of it was told."""
        if self.lane.lost():
            return Lost()
        if not self._whole.began:
            self.lane.spent = nobody  # it failed like a call, which is not charged either
            return error
        if self.asking.left_s() <= 0 and isinstance(error, errors.UpstreamTimeout):
            error = errors.DeadlineExceeded()  # it was the task's time that ended
        if self._pieces is None:
            return error
        self._tell_rest(self._pieces)
        error.facts.setdefault("provider", self.target.provider.name)
        return Broken(error, self._used(), self.target.model)

    def answer(self) -> Answer:
        """Return the whole of a stream that came to its end."""
        if not self._whole.began and self._whole.filtered:
            raise errors.ContentFiltered("The model's provider filtered its answer away.")
        if not self._whole.began:
            raise errors.UpstreamError("The model's provider sent an empty stream.")
        self.lane.win()
        if self._pieces:
            self._tell_rest(self._pieces)
            if self._pieces.stopped:
                raise self._stopped()
        return _revealed(self._whole.answer(self.target.provider.name, self._used()), self.shield)

    def _used(self) -> dict[str, Any]:
        return self._whole.usage or estimated(self._body, self._whole.said)

    def _stopped(self) -> Stopped:
        return Stopped(called=True, usage=self._used(), provider=self.target.provider.name, model=self.target.model)

    def _note_first(self) -> None:
        first_s = time.perf_counter() - self._started
        metrics.llm_first_token_seconds.labels(self.target.provider.name).observe(first_s)
        self.span.set("gen_ai.response.time_to_first_chunk", first_s)
        self.lane.first_ms = max(1, int(first_s * 1000)) if self._pieces else 0

    def _tell(self, pieces: Pieces, chunks: list[dict[str, Any]]) -> None:
        for chunk in chunks:
            for told in self.shield.chunks(chunk) if self.shield else [chunk]:
                pieces.add(told)

    def _tell_rest(self, pieces: Pieces) -> None:
        for told in self.shield.rest() if self.shield else ():
            pieces.add(told)
        pieces.close()


def _headers(task: Task) -> dict[str, str]:
    """Return what goes along with a call: both ids, so that a provider's log can be matched with ours.

    The trace goes along where the client sent one: a provider is told of none that is ours alone, and of nobody's `tracestate`.
    """
    headers = {"X-Request-ID": task.request_id, "X-Task-ID": task.public_id}
    return {**headers, "traceparent": tracing.carried().get("traceparent", task.trace)} if task.trace else headers


def _revealed(answer: Answer, shield: Shield | None) -> Answer:
    """Put back what was hidden from the provider."""
    if shield is not None:
        answer.body = shield.answer(answer.body)
        answer.text = shield.reveal(answer.text)
    return answer


def estimated(body: dict[str, Any], text: str) -> dict[str, Any]:
    """Return a usage that nobody measured, marked so."""
    prompt = caps.tokens(body)
    completion = tokens_in(text) if text else 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "estimated": True,
    }
