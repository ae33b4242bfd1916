"""Chat completions, as the OpenAI SDKs speak them: whole, streamed, or in the background."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import flask
import orjson

from app.chat import ends, events, schemas
from app.chat.admission import Admitted, Request
from app.chat.records import Task
from app.chat.requests import Call
from app.chat.tasks import Waiter
from app.core import errors, ids
from app.http import context, outcomes, sse
from app.http.api import Answer, Api
from app.http.context import Context

api = Api("chat")
_SLACK_S = 2.0  # a plain synchronous task's deadline is this much before its caller's patience ends, so that he learns the true end
_LONGEST_WAIT_S = 3600.0
_FIRST_PIECE_S = 10.0


@api.route(
    "POST",
    "/v1/chat/completions",
    "/chat/completions",
    scope="chat",
    body=schemas.ChatCompletionRequest,
    limited=True,
    answers={
        200: "OpenAI's chat.completion, or with `stream` its chunks as server-sent events",
        202: schemas.TaskObject,
    },
)
def create_chat_completion(call: Context) -> Answer:
    """Answer a chat completion request: at once, as a stream, or in the background."""
    body: schemas.ChatCompletionRequest = call.body
    user = body.user or f"key:{call.principal.key_prefix}"
    with outcomes.speaking_to(call, user, None):
        place = outcomes.place_of(call, body.dialog_id)
        return complete(call, lambda made: call.runtime.requests.completion(made, body, call.raw, place))


def complete(call: Context, request: Callable[[Call], Request]) -> Answer:
    """Answer in the way that the body asks for; `request` builds the request for a call."""
    body: schemas.ChatCompletionRequest | schemas.ReplyRequest = call.body
    if body.background or context.prefers_async():
        return submit(call, request(long_call(call)), preferred=not body.background)
    if body.stream:
        return _stream(call, request(long_call(call)), body)
    wait = context.preferred_wait_s()
    return answer(call, request(long_call(call) if wait is not None else plain_call(call)), wait, outcomes.completion)


def plain_call(call: Context) -> Call:
    return call.call(deadline_s=call.runtime.settings.sync_wait_seconds - _SLACK_S)


def long_call(call: Context) -> Call:
    return call.call(deadline_s=call.runtime.settings.task_deadline_seconds)


def submit(call: Context, request: Request, *, preferred: bool) -> Answer:
    """Admit a request and answer 202 with its task."""
    admitted = outcomes.standing_again(call, request, call.runtime.tasks.submit(request))
    headers = outcomes.headers(admitted, {"Preference-Applied": "respond-async"} if preferred else {})
    return outcomes.accepted(call, request, admitted), 202, headers


def answer(call: Context, request: Request, wait_s: int | None, shape: Any) -> Answer:
    """Admit a request, wait for its end and answer with it; past a preferred wait 202, past ours 504."""
    patience = call.runtime.settings.sync_wait_seconds if wait_s is None else min(float(wait_s), _LONGEST_WAIT_S)
    with call.runtime.tasks.submit_and_wait(request) as (admitted, waiter):
        task = waiter.wait(patience)
    admitted = outcomes.standing_again(call, request, admitted)
    headers = outcomes.headers(admitted)
    if task is None:
        raise errors.NotFound("The task is gone.", headers=headers)
    if task.open:
        if wait_s is not None:
            return outcomes.task_object(task), 202, {**headers, "Preference-Applied": f"wait={wait_s}"}
        raise errors.WaitTimeout("The answer did not come in time; the task goes on, see Location.", headers=headers)
    return shape(call, task, admitted, headers)


def _stream(
    call: Context, request: Request, body: schemas.ChatCompletionRequest | schemas.ReplyRequest
) -> flask.Response:
    """Answer as OpenAI's stream. The response begins with the first piece, so that an earlier error still has its status."""
    stack = contextlib.ExitStack()
    request.fields["meta"] = "stream"
    try:
        admitted, waiter = stack.enter_context(call.runtime.tasks.submit_and_wait(request))
        stream = _Stream(call, admitted, waiter, body)
        first = stream.first()
    except BaseException:
        stack.close()
        raise
    if isinstance(first, Task):
        stack.close()
        outcomes.raise_failure(first, outcomes.headers(admitted))
    return sse.response(sse.Closing(stream.lines(), stack), outcomes.headers(admitted, stream.cache_headers()))


class _Stream:
    """One client's stream of a task: deltas as they come, then the end."""

    def __init__(
        self,
        call: Context,
        admitted: Admitted,
        waiter: Waiter,
        body: schemas.ChatCompletionRequest | schemas.ReplyRequest,
    ) -> None:
        self._tasks = call.runtime.tasks
        self._waiter = waiter
        self._ref = admitted.ref
        self._reader = events.Position()
        self._usage = bool(body.stream_options and body.stream_options.include_usage)
        wish = body.cancel_on_disconnect
        self._cancel = call.bot.settings.cancel_on_disconnect if wish is None else wish
        self._ready: list[events.Event] = []
        self._task: Task | None = None

    def first(self) -> Task | None:
        """Wait for the first piece, so that a failure before it has its own status; return the task if it failed so.

        A first piece that is long in coming is waited for with the response begun, lest a proxy should take us for dead.
        A replayed task is told as a stream again."""
        until = time.monotonic() + _FIRST_PIECE_S
        while (left_s := until - time.monotonic()) > 0:
            try:
                self._ready += self._next(min(left_s, sse.KEEP_ALIVE_S))
            except errors.Unavailable:
                if left_s >= sse.KEEP_ALIVE_S:
                    raise
                return None  # Redis had no time to come back: an error now would have the task asked for, and paid, once more
            names = [event.name for event in self._ready]
            if "failed" in names or "cancelled" in names:
                return None if "delta" in names else self._task
            if "delta" in names or "completed" in names:
                return None
        return None

    def cache_headers(self) -> dict[str, str]:
        """Return what is known of the cache when the response begins: an answer from there comes whole."""
        return outcomes.cache_headers(self._task) if self._task is not None and self._ready else {}

    def _next(self, timeout_s: float) -> list[events.Event]:
        task = self._waiter.changed(timeout_s)
        if task is None:
            raise errors.NotFound("The task is gone.")
        self._task = task
        return events.since(self._tasks.ledger, task, self._reader)

    def lines(self) -> Iterator[bytes]:
        """Yield the stream's lines until its end; the client's going away cancels the task if that was wished."""
        told = False
        try:
            if not _ANSWERED & {event.name for event in self._ready}:  # the head is not to wait for the first piece
                yield sse.KEEP_ALIVE
            while True:
                for event in self._ready:
                    if event.name == "delta":
                        told = True
                        yield from self._chunks(event.data["chunks"])
                    elif event.name == "restart" and told:
                        yield sse.data(orjson.dumps({"error": _BROKEN}))
                        return
                    elif event.name in ("completed", "failed", "cancelled"):
                        yield from self._end(event, told)
                        return
                self._ready = self._next(sse.KEEP_ALIVE_S)
                if not self._ready:
                    yield sse.KEEP_ALIVE
        except GeneratorExit:
            if self._cancel:
                with contextlib.suppress(errors.RepliqError):
                    self._tasks.cancel(self._ref)
            raise
        except errors.RepliqError as error:  # Redis is away, or the task is gone with its user, who is forgotten
            yield sse.data(orjson.dumps({"error": ends.error_member(error)}))

    def _end(self, event: events.Event, told: bool) -> Iterator[bytes]:
        assert self._task is not None
        if event.name != "completed":
            yield sse.data(orjson.dumps({"error": self._task.error_member()}))
            return
        if not told:  # its pieces are gone, or it was not streamed when it ran: the stored answer is told as one chunk
            yield from self._chunks(outcomes.as_chunks(orjson.loads(self._task.result)))
        yield sse.data(b"[DONE]")

    def _chunks(self, chunks: list[dict[str, Any]]) -> Iterator[bytes]:
        for chunk in chunks:
            if not self._usage:
                if not chunk.get("choices"):
                    continue
                chunk.pop("usage", None)
            yield sse.data(orjson.dumps(chunk))


_ANSWERED = {"delta", "completed", "failed", "cancelled"}
_BROKEN = {
    "message": "The answer broke off and is being made anew; read it by its task's id.",
    "type": "server_error",
    "code": "upstream_error",
    "param": None,
}


@api.route("GET", "/v1/models", "/models", scope="chat", answers={200: "OpenAI's list of models"})
def list_models(call: Context) -> Answer:
    """List the models that can be asked for."""
    return {"object": "list", "data": call.runtime.providers.listed()}


@api.route("GET", "/v1/models/<path:model>", scope="chat", answers={200: "OpenAI's model"})
def get_model(call: Context, model: str) -> Answer:
    """Read one model."""
    for known in call.runtime.providers.listed():
        if known.get("id") == model:
            return known
    raise errors.ModelNotFound(f"There is no model '{model[:100]}'.", param="model")


def shard_count(call: Context) -> int:
    return call.runtime.settings.redis_shards


def task_ref(call: Context, public: str) -> str:
    return ids.parse(public, "task", shard_count(call))
