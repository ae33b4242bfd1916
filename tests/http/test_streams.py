"""A stream whose head has gone out: whatever happens then is told in it, since there is no status left to tell it by."""

from __future__ import annotations

import itertools

import orjson
import pytest
from flask.testing import FlaskClient

from app.chat.records import Task
from app.core import errors
from app.http import sse
from app.http.routes import chat
from app.runtime import Runtime

ASKED = {"model": "gpt-4o-mini", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}


def test_a_task_that_is_gone_after_the_head_is_told_as_an_error(
    runtime: Runtime, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its user is forgotten: the record goes a moment after the task was cancelled, and this reader may be that late."""
    monkeypatch.setattr(chat, "_FIRST_PIECE_S", 0.05)
    response = client.post("/v1/chat/completions", json=ASKED, buffered=False)
    lines = iter(response.response)
    assert (response.status_code, next(lines)) == (200, sse.KEEP_ALIVE)
    ref = response.headers["X-Task-ID"].removeprefix("task_")
    runtime.store.call("UNLINK", runtime.keys.of_task("task", ref))
    told = [line for line in lines if line != sse.KEEP_ALIVE]
    assert [orjson.loads(line.removeprefix(b"data: "))["error"]["code"] for line in told] == ["not_found"]


@pytest.mark.parametrize("wished", [True, False])
def test_who_leaves_between_the_head_and_the_first_piece_cancels_his_task_if_he_wished(
    runtime: Runtime, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, wished: bool
) -> None:
    monkeypatch.setattr(chat, "_FIRST_PIECE_S", 0.05)
    given = {**ASKED, "cancel_on_disconnect": wished}
    response = client.post("/v1/chat/completions", json=given, buffered=False)
    assert list(itertools.islice(response.response, 1)) == [sse.KEEP_ALIVE]
    response.close()
    task = runtime.tasks.read(response.headers["X-Task-ID"].removeprefix("task_"))
    assert task is not None
    assert task.open is not wished


def test_a_redis_that_is_away_for_a_moment_as_the_head_is_due_is_waited_for(
    runtime: Runtime, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat, "_FIRST_PIECE_S", 0.05)
    watch, left = runtime.ledger.watch, [2]

    def flickering(*given: str) -> Task | None:
        left[0] -= 1
        if left[0] >= 0:
            raise errors.Unavailable("Redis restarts.")
        return watch(*given)

    monkeypatch.setattr(runtime.ledger, "watch", flickering)
    response = client.post("/v1/chat/completions", json=ASKED, buffered=False)
    lines = iter(response.response)
    assert (response.status_code, next(lines)) == (200, sse.KEEP_ALIVE)
    runtime.tasks.cancel(response.headers["X-Task-ID"].removeprefix("task_"))
    told = [line for line in lines if line != sse.KEEP_ALIVE]
    assert [orjson.loads(line.removeprefix(b"data: "))["error"]["code"] for line in told] == ["cancelled"]
