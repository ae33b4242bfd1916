"""Tracing in one process: off it does nothing and loads nothing; on it is as the SDK's variables say; and it never holds up who ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.chat import records
from app.core import errors, logs, tracing
from tests.collector import Collector, Span
from tests.stack import ROOT

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
STARTED = """
from app.core import logs, settings, tracing
logs.configure(settings.current())
tracing.start(settings.current(), "test")
"""


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def run(code: str, *, timeout_s: float = 100, **env: str) -> str:
    """Run code in a process of its own, as tracing is one process's; return what it wrote."""
    given = {"PATH": os.environ["PATH"], "LOG_FORMAT": "json", **env}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=given,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("parent", "kept"),
    [(PARENT, PARENT), (PARENT[:-2] + "00", PARENT[:-2] + "00"), (f"cc-{PARENT[3:]}-what-comes-later", f"cc-{PARENT[3:]}"),
     ("", ""), (f"ff-{PARENT[3:]}", ""), (f"{PARENT}-more", ""), (f"cc-{PARENT[3:]}x", ""), (PARENT.upper(), ""),
     (f"00-{'0' * 32}-{SPAN}-01", ""), (f"00-{TRACE}-{'0' * 16}-01", ""), (f"00-{TRACE}-{SPAN}", ""), (f" {PARENT}", "")],
)  # fmt: skip
def test_a_caller_s_traceparent_is_taken_only_as_w3c_writes_it(parent: str, kept: str) -> None:
    assert tracing.of_headers(parent, "").get("traceparent", "") == kept
    assert tracing.trace_id_in(parent) == (TRACE if parent and parent == kept else "")


def test_a_tracestate_goes_along_with_a_traceparent_alone_and_is_bounded() -> None:
    assert tracing.of_headers(PARENT, "a=1") == {"traceparent": PARENT, "tracestate": "a=1"}
    for state in ("", "a=" + "x" * 600, "a=й"):
        assert tracing.of_headers(PARENT, state) == {"traceparent": PARENT}
    assert tracing.of_headers("nonsense", "a=1") == {}


def test_without_a_collector_nothing_is_traced_and_nothing_of_the_sdk_is_loaded() -> None:
    told = run(
        STARTED + "import sys, app.http.factory, app.chat.completion, app.runtime, app.cli.worker\n"
        "assert not tracing.on() and tracing.carried() == {} and tracing.span('x') is tracing.NOTHING\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.exporter', 'opentelemetry.sdk.trace'))])"
    )  # fmt: skip
    assert told.strip() == "[]"


def test_without_its_packages_one_line_says_what_to_do() -> None:
    blocked = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
"""
    told = run(blocked + STARTED + "assert not tracing.on()", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert len(told.splitlines()) == 1
    assert "tracing_off" in told
    assert "pip install 'repliq[otel]'" in told


def test_the_sdk_s_own_variables_hold(collector: Collector) -> None:
    run(
        STARTED + "with tracing.span('x'): pass",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_SERVICE_NAME="ours", OTEL_EXPORTER_OTLP_HEADERS="x-key=a-fake-one",
        OTEL_RESOURCE_ATTRIBUTES="team=chat,deployment.environment.name=of-the-test",
    )  # fmt: skip
    (span,) = collector.spans
    assert (span.name, span.service) == ("x", "ours")
    assert "'team': 'chat'" in span.texts
    assert "of-the-test" in span.texts
    assert collector.messages[0].headers["x-key"] == "a-fake-one"


def test_variables_of_the_sdk_may_be_files_as_all_secrets_may(collector: Collector, tmp_path: Path) -> None:
    (tmp_path / "otel_exporter_otlp_headers").write_text("authorization=Basic%20a-fake-one\n")
    (tmp_path / "otel_exporter_otlp_endpoint").write_text(collector.endpoint + "\n")
    run(STARTED + "with tracing.span('x'): pass", SECRETS_DIR=str(tmp_path))
    assert [message.headers["authorization"] for message in collector.messages] == ["Basic a-fake-one"]


def test_a_variable_that_the_sdk_refuses_costs_the_traces_and_not_the_process(collector: Collector) -> None:
    told = run(
        STARTED + "print(tracing.on())\n",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_BSP_MAX_QUEUE_SIZE="100",  # less than a batch
    )
    assert "False" in told
    assert told.count("tracing_off") == 1
    assert "OTEL_" in told


def test_a_sampler_that_takes_none_sends_none_but_the_trace_has_its_id(collector: Collector) -> None:
    told = run(
        STARTED + "with tracing.span('x'): print(tracing.trace_id(), int(tracing.carried()['traceparent'][-2:], 16) & 1)",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_TRACES_SAMPLER="always_off",
    )  # fmt: skip
    trace, sampled = told.split()
    assert (len(trace), sampled) == (32, "0")
    assert collector.spans == []


LIFE = f"""
import contextlib
from app.core import errors
with contextlib.suppress(errors.RepliqError), tracing.span("a"):
    raise errors.Unavailable("told in secret")
with contextlib.suppress(ValueError), tracing.span("b", quiet=(ValueError,)):
    raise ValueError("told in secret")
with contextlib.suppress(ValueError), tracing.span("c"):
    raise ValueError("told in secret")
tracing.script_ran("chat/sweep", "ok", 0.1)
with tracing.span("around"):
    tracing.script_ran("chat/claim", "error", 0.25)
    tracing.script_ran("chat/emit", "ok", 0.1)
place = {{"traceparent": "{PARENT}"}}
with tracing.span("other", parent={{}}):
    print(tracing.onward(place)["traceparent"])
with tracing.span("own", parent=place):
    print(tracing.onward(place)["traceparent"])
print(tracing.message("send", "chat")["messaging.system"])
"""


@pytest.fixture(scope="module")
def life() -> Iterator[tuple[dict[str, Span], list[str]]]:
    """Run all that in one process; yield its spans and what it printed."""
    collector = Collector()
    told = run(STARTED + LIFE, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, CELERY_BROKER_URL="amqp://127.0.0.1:9")
    yield {span.name: span for span in collector.spans}, told.split()
    collector.close()


Life = tuple[dict[str, Span], list[str]]


def test_an_exception_is_told_by_its_code_alone_and_one_that_was_expected_is_no_failure(life: Life) -> None:
    spans, _ = life
    assert {name: (spans[name].failed, spans[name].attributes) for name in "abc"} == {
        "a": (True, {"error.type": "unavailable"}),
        "b": (False, {"repliq.outcome": "ValueError"}),
        "c": (True, {"error.type": "ValueError"}),
    }
    assert not any("secret" in span.texts for span in spans.values())


def test_spans_of_a_script_are_below_what_runs_it_and_none_are_outside(life: Life) -> None:
    spans, _ = life
    scripts = [span for name, span in spans.items() if name.startswith("EVALSHA")]
    assert [span.name for span in scripts] == ["EVALSHA chat/claim"]
    assert (scripts[0].parent_id, scripts[0].failed) == (spans["around"].span_id, True)
    assert scripts[0].ended - scripts[0].began == pytest.approx(0.25e9, rel=0.01)


def test_what_ends_a_task_from_elsewhere_stays_in_the_task_s_trace(life: Life) -> None:
    spans, told = life
    assert told[:2] == [PARENT, f"00-{TRACE}-{spans['own'].span_id}-01"]


def test_a_queue_s_span_names_the_broker_that_carries_it(life: Life) -> None:
    assert life[1][-1] == "rabbitmq"


def test_a_collector_that_hangs_does_not_hold_up_who_ends(collector: Collector) -> None:
    free = threading.Event()
    collector.receiver.reply = lambda _: (200, {}, b"") if free.wait(150) else (500, {}, b"")
    try:
        told = run(
            STARTED + "import time\nwith tracing.span('x'): pass\n"
            "began = time.monotonic()\ntracing.stop()\nprint(time.monotonic() - began)",
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_EXPORTER_OTLP_TIMEOUT="140",
        )  # fmt: skip
        assert float(told) < 20  # the SDK's own bound is 30 s, ours 2
    finally:
        free.set()


def test_a_task_of_before_has_no_place_and_one_of_a_newer_version_is_read() -> None:
    old = records.from_flat("00aa", _flat())
    assert old is not None
    assert old.place == {}
    callers = records.from_flat("00aa", [*_flat(), b"trace", PARENT.encode()])
    assert callers is not None
    assert callers.place == {"traceparent": PARENT}
    newer = records.from_flat("00aa", [*_flat(), b"traceparent", PARENT.encode(), b"of_later", b"1"])
    assert newer is not None
    assert newer.place == {"traceparent": PARENT}


def _flat() -> list[bytes]:
    fields = {
        "state": "queued",
        "attempt": 0,
        "created": 1,
        "deadline": 2,
        "bot": "b",
        "user": "u",
        "kind": "k",
        "model": "m",
        "session": "",
    }
    return [part for name, value in fields.items() for part in (name.encode(), str(value).encode())]


def test_the_sdk_is_heard_once_a_minute_and_others_always() -> None:
    seldom = logs.Seldom()

    def passes(name: str) -> bool:
        return seldom.filter(logging.LogRecord(name, logging.ERROR, "", 0, "x", None, None))

    assert [passes("opentelemetry.exporter"), passes("opentelemetry.sdk"), passes("opentelemetry")] == [
        True,
        False,
        False,
    ]
    assert [passes("app.chat"), passes("app.chat")] == [True, True]
    seldom.every_s, seldom._next = 0.0, 0.0
    assert passes("opentelemetry.sdk")


def test_a_provider_s_words_are_not_for_the_log() -> None:
    error = errors.UpstreamError(
        "The model's provider answered 500: what you said", plain="The model's provider answered 500."
    )
    assert (error.plain, errors.UpstreamError("is away").plain) == ("The model's provider answered 500.", "is away")


STREAMS = """
import flask, structlog
from app.http import api, spans
app = flask.Flask("test")
for headers in ({}, {"traceparent": "PARENT"}):
    with app.test_request_context("/v1/chat/completions", headers=headers):
        api.before()
        response = flask.Response(iter([b"piece"]))
        spans.answered(response, "/v1/chat/completions")
        spans.end()
        assert response.headers["X-Trace-ID"] == structlog.contextvars.get_contextvars()["trace_id"]
        assert not tracing.trace_id()
        logs.get("test").warning("in-the-stream")
        assert list(response.iter_encoded()) == [b"piece"]
""".replace("PARENT", PARENT)


def test_lines_of_a_stream_have_the_trace_s_id_though_its_span_is_not_around_them(collector: Collector) -> None:
    told = run(STARTED + STREAMS, OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint).splitlines()
    ours, callers = (span.trace_id for span in collector.spans)
    assert [f'"trace_id":"{found}"' in line for found, line in zip((ours, callers), told, strict=True)] == [True, True]
    assert callers == TRACE
