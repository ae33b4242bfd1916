"""What a caller's place in a trace of his becomes where nothing is sent to a collector: a word in the log, and a header that goes on."""

from __future__ import annotations

import structlog
from flask.testing import FlaskClient

from app.chat import asking
from app.chat.records import Task
from app.runtime import Runtime
from tests.http.conftest import KEY

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_his_trace_and_his_bot_are_in_every_line_that_is_logged_for_him(client: FlaskClient, runtime: Runtime) -> None:
    given = client.get("/v1/tasks", headers={"traceparent": PARENT, "X-Request-ID": "req_1"})
    bound = structlog.contextvars.get_contextvars()
    bot = str(runtime.directory.authenticate(KEY).bot)
    assert bound == {"request_id": "req_1", "trace_id": TRACE, "bot": bot}
    assert (given.status_code, "X-Trace-ID" in given.headers) == (200, False)
    client.get("/v1/tasks", headers={"traceparent": PARENT.replace("00-", "ff-", 1)})
    assert set(structlog.contextvars.get_contextvars()) == {"request_id", "bot"}


def test_it_goes_on_to_the_worker_the_provider_and_the_webhook_as_it_came(
    client: FlaskClient, runtime: Runtime
) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "background": True}
    made = client.post("/v1/chat/completions", json=body, headers={"traceparent": PARENT, "tracestate": "a=1"})
    assert made.status_code == 202
    task = runtime.ledger.read(made.json["id"].removeprefix("task_"))
    assert task is not None
    assert (task.trace, task.traceparent, task.tracestate) == (PARENT, "", "")
    assert task.place == {"traceparent": PARENT}
    assert asking._headers(task)["traceparent"] == PARENT
    assert "traceparent" not in asking._headers(_untraced(task))


def _untraced(task: Task) -> Task:
    task.trace = ""
    return task
