"""One call of a provider for a task: what it is charged with, whatever its end. The provider is a function, the race is real."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.chat import asking
from app.chat.asking import Asking, Broken
from app.chat.pieces import Flusher
from app.chat.pulse import Held
from app.chat.records import Task
from app.core import clock, errors, ids
from app.llm.answers import Provider, Target
from app.llm.client import Call, Client
from app.llm.hedging import Lane, Race
from app.llm.simulator.process import SimulatorProcess

TARGET = Target(Provider("p", "http://127.0.0.1:1/v1", "fake"), "m")
PICTURE = "data:image/png;base64," + "QUJD" * 250_000
Chunks = Callable[[], Iterator[dict[str, Any]]]


def piece(text: str = "", **more: Any) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text} | more}]}


class Provided:
    """Stands for the client: a stream is what `chunks` yields, and it is held to its call's end as a real one is."""

    def __init__(self, chunks: Chunks) -> None:
        self.chunks = chunks
        self.calls: list[Call] = []

    def new_call(self) -> Call:
        return Call()

    @contextlib.contextmanager
    def stream(self, *_: Any, call: Call, **__: Any) -> Iterator[Iterator[dict[str, Any]]]:
        self.calls.append(call)
        yield self.chunks()


class Told:
    """Stands for the ledger: takes every piece."""

    def emit(self, *_: Any) -> bool:
        return True


def made(chunks: Chunks, *, stream: bool = True, left_s: float = 60, content: Any = "hello") -> Asking:
    now = clock.now_ms()
    task = Task(
        ids.new_ref(0), "in_progress", 1, now, now + 60_000, "b", "u", "chat.completion", "m", "s", stream=stream
    )
    body = {"messages": [{"role": "user", "content": content}]}
    return Asking(Provided(chunks), Told(), Flusher(), Held(task), body, lambda: left_s, masks=False)  # type: ignore[arg-type]


def test_what_is_estimated_of_a_picture_is_not_its_bytes() -> None:
    content = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]
    used = asking.estimated({"messages": [{"role": "user", "content": content}]}, "a cat")
    assert used["estimated"] is True
    assert 100 < used["prompt_tokens"] < 2_000


def test_a_stream_that_breaks_is_charged_for_all_that_came_of_it() -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield piece("well")
        yield {"id": "c", "choices": [{"index": 1, "delta": {"content": "another answer of many words " * 20}}]}
        yield piece(reasoning_content="it thinks of this and that " * 20)
        yield piece(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": '{"city": "Kyiv"}' * 20}}])
        raise errors.UpstreamError("it broke")

    with pytest.raises(Broken) as caught:
        made(broken)(TARGET, 10, Lane())
    assert caught.value.usage["completion_tokens"] > 250


def test_a_call_that_failed_before_it_said_anything_cost_nothing_and_one_that_was_cut_off_did() -> None:
    def limited() -> Iterator[dict[str, Any]]:
        raise errors.UpstreamRateLimited("busy")
        yield

    lane = Lane()
    with pytest.raises(errors.UpstreamRateLimited):
        made(limited)(TARGET, 10, lane)
    assert lane.spent() is None


def test_a_stream_that_falls_silent_ends_with_its_tasks_deadline() -> None:
    started = time.monotonic()
    slow = made(lambda: iter(()))
    slow.left_s = lambda: 1.0 - (time.monotonic() - started)
    slow.client = Client()
    with SimulatorProcess() as simulator:
        started = time.monotonic()
        with pytest.raises(Broken) as caught:
            slow(Target(Provider("p", simulator.base_url, "sk-fake"), "sim:stall=2"), 20, Lane())
    assert time.monotonic() - started < 15
    assert isinstance(caught.value.error, errors.DeadlineExceeded)
    assert caught.value.outcome == "ignored"


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "hedged"])
def test_a_stream_that_was_filtered_away_fails_as_a_whole_answer_does(stream: bool) -> None:
    def filtered() -> Iterator[dict[str, Any]]:
        yield {"choices": [], "prompt_filter_results": []}
        yield piece(role="assistant")
        yield {"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}

    lane = Lane(Race())
    with pytest.raises(errors.ContentFiltered):
        made(filtered, stream=stream)(TARGET, 10, lane)
