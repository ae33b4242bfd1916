"""One trace leads from the caller through API, Redis, worker and provider to the history, whichever process did what: real processes, and
what they sent to a real collector."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Any

import pytest

from tests.collector import Span
from tests.observed import provoked
from tests.observed.site import MARKS, SAID, USER, Site
from tests.stack import eventually

pytestmark = pytest.mark.faults
WHOLE = (
    "POST /v1/chat/completions", "chat.admit", "EVALSHA chat/admit", "chat.complete", "EVALSHA chat/claim", "chat sim",
    "EVALSHA llm/enter", "EVALSHA llm/leave", "EVALSHA chat/finish", "history.save",
)  # fmt: skip


def place() -> tuple[str, str, str]:
    """Make up a caller's place in a trace of his; return header, trace id and span id."""
    trace, span = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace}-{span}-01", trace, span


def below(child: Span, parent: Span) -> bool:
    return child.parent_id == parent.span_id and child.trace_id == parent.trace_id


def test_one_trace_leads_from_the_caller_to_the_history(site: Site) -> None:
    header, trace, caller = place()
    status, headers, _ = site.stack.complete("hello", user=USER, headers={"traceparent": header, "tracestate": "a=1"})
    assert (status, headers["x-trace-id"]) == (200, trace)
    spans = site.ended(trace, *WHOLE)
    server, admit, consumer, call = (
        spans[name] for name in ("POST /v1/chat/completions", "chat.admit", "chat.complete", "chat sim")
    )
    assert server.parent_id == caller
    assert below(admit, server)
    assert below(spans["EVALSHA chat/admit"], admit)
    assert below(consumer, admit)
    for name in ("EVALSHA chat/claim", "EVALSHA chat/finish", "EVALSHA llm/enter", "EVALSHA llm/leave", "chat sim"):
        assert below(spans[name], consumer), name
    assert {server.service, consumer.service} == {"repliq-api", "repliq-worker"}
    assert server.pid != consumer.pid
    assert [span.kind for span in (server, admit, consumer, call)] == ["server", "producer", "consumer", "client"]
    assert not [span for span in site.collector.of(trace) if span.failed]
    assert server.began <= admit.began <= consumer.began <= call.began <= call.ended <= consumer.ended


def test_the_spans_are_described_as_the_conventions_say(site: Site) -> None:
    header, trace, _ = place()
    _, headers, answer = site.stack.complete("hello", temperature=0.5, max_tokens=50, headers={"traceparent": header})
    spans = site.ended(trace, *WHOLE)
    task = headers["x-task-id"]
    assert spans["POST /v1/chat/completions"].attributes.items() >= {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "url.path": "/v1/chat/completions",
        "url.scheme": "http", "http.response.status_code": 200, "repliq.task_id": task, "repliq.request_id": headers["x-request-id"],
    }.items()  # fmt: skip
    assert spans["EVALSHA chat/finish"].attributes == {
        "db.system.name": "redis", "db.operation.name": "EVALSHA", "db.stored_procedure.name": "chat/finish",
    }  # fmt: skip
    queue = {"messaging.system": "redis", "messaging.destination.name": "chat", "messaging.message.id": task}
    assert spans["chat.admit"].attributes.items() >= {**queue, "messaging.operation.type": "send"}.items()
    worked = {**queue, "messaging.operation.type": "process", "repliq.attempt": 1, "repliq.outcome": "completed"}
    assert spans["chat.complete"].attributes.items() >= worked.items()
    asked = {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "sim",
        "gen_ai.response.model": answer["model"], "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"], "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 50, "repliq.provider": "sim", "server.address": "127.0.0.1",
    }  # fmt: skip
    assert spans["chat sim"].attributes.items() >= asked.items()


def test_the_history_s_write_is_one_span_of_the_batch_and_one_in_each_request_s_trace(site: Site) -> None:
    places = [place() for _ in range(3)]
    for header, _, _ in places:
        assert site.stack.complete("hello", headers={"traceparent": header})[0] == 200

    def final(trace: str) -> list[Span]:
        return [
            span for span in site.collector.of(trace, "history.save") if span.attributes["repliq.status"] == "success"
        ]

    eventually(lambda: all(final(trace) for _, trace, _ in places), 60, every_s=0.2)
    for _, trace, _ in places:
        saved = final(trace)[0]
        assert below(saved, site.collector.of(trace, "chat.complete")[0])
        assert saved.attributes["db.system.name"] == "postgresql"
        eventually(
            lambda saved=saved: [span for span in site.collector.spans if span.span_id in saved.links], 30, every_s=0.2
        )
        batch = next(span for span in site.collector.spans if span.span_id in saved.links)
        assert (batch.name, batch.parent_id) == ("history.write", "")
        assert batch.attributes["db.operation.batch.size"] >= 1
        assert batch.links


def test_a_dialog_s_id_is_the_conversation(site: Site) -> None:
    header, trace, _ = place()
    made = site.stack.call("POST", "/v1/dialogs", {"user_id": USER})[2]
    status, _, _ = site.stack.complete("hello", user=USER, dialog_id=made["id"], headers={"traceparent": header})
    assert status == 200
    assert site.ended(trace, "chat sim")["chat sim"].attributes["gen_ai.conversation.id"] == made["id"]


def test_a_stream_is_in_its_trace_to_its_last_piece(site: Site) -> None:
    header, trace, _ = place()
    body = {"model": "long", "stream": True, "messages": [{"role": "user", "content": "hello"}]}
    status, headers, text = site.stack.call("POST", "/v1/chat/completions", body, headers={"traceparent": header})
    assert (status, headers["x-trace-id"]) == (200, trace)
    assert b"[DONE]" in text
    spans = site.ended(trace, "POST /v1/chat/completions", "chat sim:tps=20,words=10", "EVALSHA chat/finish")
    server, call = spans["POST /v1/chat/completions"], spans["chat sim:tps=20,words=10"]
    assert call.attributes["gen_ai.request.stream"] is True
    length_s = (call.ended - call.began) / 1e9
    assert 0 < call.attributes["gen_ai.response.time_to_first_chunk"] <= length_s
    assert server.ended >= call.ended  # the head of the answer was sent with the first piece, long before


def test_the_background_s_webhook_has_the_trace_and_its_receiver_may_go_on_with_it(site: Site) -> None:
    header, trace, _ = place()
    status, _, task = site.stack.complete(
        background=True, webhook_url=site.hooks.url(), headers={"traceparent": header}
    )
    assert status == 202
    spans = site.ended(trace, "chat.complete", "webhook.deliver", "history.save")
    sent = next(message for message in site.hooks.messages if message.json["data"]["id"] == task["id"])
    told = spans["webhook.deliver"]
    assert sent.headers["traceparent"] == f"00-{trace}-{told.span_id}-01"
    assert (told.kind, told.attributes["http.response.status_code"]) == ("client", 204)


def test_a_failover_is_two_calls_side_by_side_of_which_one_failed(site: Site) -> None:
    header, trace, _ = place()
    assert site.stack.complete(model="shaky", headers={"traceparent": header})[0] == 200
    spans = site.ended(trace, "chat down", "chat sim", "chat.complete")
    down, sim = spans["chat down"], spans["chat sim"]
    assert down.parent_id == sim.parent_id == spans["chat.complete"].span_id
    assert (down.failed, sim.failed, spans["chat.complete"].failed) == (True, False, False)
    assert (down.attributes["error.type"], down.attributes["http.response.status_code"]) == ("upstream_error", 500)
    assert down.ended <= sim.began


def test_a_provider_is_told_the_trace_by_who_sent_one_and_else_by_nobody(site: Site) -> None:
    header, trace, _ = place()
    assert site.stack.complete(model="plain", headers={"traceparent": header, "tracestate": "vendor=private"})[0] == 200
    assert site.stack.complete(model="plain")[0] == 200
    first, second = [
        message.headers
        for message in site.leaky.messages
        if message.path.startswith("/v1") and message.json["model"] == "plain"
    ][-2:]
    call = site.ended(trace, "chat plain")["chat plain"]
    assert first["traceparent"] == f"00-{trace}-{call.span_id}-01"
    assert "tracestate" not in first
    assert "traceparent" not in second


@pytest.mark.parametrize(
    "header",
    ["nonsense", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
     "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"],
)  # fmt: skip
def test_a_malformed_traceparent_begins_a_trace_of_our_own(site: Site, header: str) -> None:
    status, headers, _ = site.stack.call("GET", "/v1/models", headers={"traceparent": header})
    assert status == 200
    assert headers["x-trace-id"] not in header.lower()
    assert site.ended(headers["x-trace-id"], "GET /v1/models")["GET /v1/models"].parent_id == ""


def test_who_was_not_sampled_is_not_traced_but_finds_his_lines(site: Site) -> None:
    header, trace, _ = place()
    status, headers, _ = site.stack.complete(model="shaky", headers={"traceparent": header[:-2] + "00"})
    assert (status, headers["x-trace-id"]) == (200, trace)
    eventually(lambda: [line for line in site.lines("worker") if line.get("trace_id") == trace], 30)
    other, second, _ = place()
    assert site.stack.complete(headers={"traceparent": other})[0] == 200
    site.ended(second, *WHOLE)
    assert site.collector.of(trace) == []


def test_what_a_killed_worker_had_in_hand_stays_in_its_trace(site: Site) -> None:
    header, trace, _ = place()
    one, other = site.stack.workers
    one.stop()
    status, _, task = site.stack.complete(model="slow", background=True, headers={"traceparent": header})
    assert status == 202
    eventually(lambda: task["id"] in site.stack.simulator.stats()["calls"], 60)
    other.kill()
    for worker in (one, other):
        worker.start()
    site.stack.wait_for_workers("worker-0", "worker-1")
    ended = site.stack.wait_for(task["id"])
    assert (ended["status"], ended["attempts"]) == ("completed", 2)
    spans = site.ended(trace, "chat.complete", "chat sim:delay=3000", "history.save")
    again = spans["chat.complete"]
    assert again.attributes["repliq.attempt"] == 2
    assert below(again, site.collector.of(trace, "chat.admit")[0])
    assert below(spans["chat sim:delay=3000"], again)


def test_lines_of_the_log_have_the_ids_of_trace_request_task_and_bot(site: Site) -> None:
    header, trace, _ = place()
    status, headers, _ = site.stack.complete(
        model="shaky", headers={"traceparent": header, "X-Request-ID": "req_of_the_test"}
    )
    assert status == 200

    def found() -> list[dict[str, Any]]:
        return [
            line
            for line in site.lines("worker")
            if line.get("trace_id") == trace and line["event"] == "provider_fallback"
        ]

    eventually(found, 30)
    line = found()[0]
    consumer = site.ended(trace, "chat.complete")["chat.complete"]
    assert (line["request_id"], line["task_id"], line["span_id"]) == (
        "req_of_the_test",
        headers["x-task-id"],
        consumer.span_id,
    )
    assert line["bot"] == consumer.attributes["repliq.bot_id"]


def test_neither_texts_nor_names_nor_keys_are_on_a_span(site: Site) -> None:
    said = " ".join(SAID.values())
    header, trace, _ = place()
    for model in ("sim", "refuses-the-text", "refuses-the-key"):
        site.stack.complete(said, model=model, user=USER, headers={"traceparent": header})
    site.stack.call("GET", f"/v1/users/{USER}", headers={"traceparent": header})
    site.stack.call("GET", f"/v1/users/{USER}/limits", headers={"traceparent": header})
    status, _, _ = site.stack.call("GET", f"/v1/nowhere/{USER}", headers={"traceparent": header})
    assert status == 404
    eventually(lambda: len(site.collector.of(trace, "chat.complete")) == 3, 60, every_s=0.2)
    eventually(lambda: len(site.collector.of(trace, "history.save")) >= 3, 60, every_s=0.2)
    written = "".join(span.texts for span in site.collector.spans)
    assert trace in {span.trace_id for span in site.collector.spans}
    assert not [text for text in (*SAID.values(), USER, "visiblyfake", "Authorization", "Bearer") if text in written]


def test_a_collector_that_is_away_costs_no_request_and_one_line_a_minute(site: Site) -> None:
    before = len(site.collector.messages)
    well, site.collector.receiver.reply = site.collector.receiver.reply, lambda _: (500, {}, b"")
    began = time.monotonic()
    try:
        for _ in range(4):
            assert site.stack.complete()[0] == 200
            eventually(lambda before=before: len(site.collector.messages) > before, 30)
            before = len(site.collector.messages)
    finally:
        site.collector.receiver.reply = well
    minutes = int(time.monotonic() - began) // 60 + 1
    told: list[tuple[str, str]] = [
        (line["process"], line["level"])
        for line in site.lines("api", "worker")
        if line.get("logger", "").startswith("opentelemetry")
    ]
    assert told
    for _, group in itertools.groupby(sorted(told)):
        assert len(list(group)) <= minutes


def test_every_process_is_told_from_the_others_by_the_standard_s_variables(site: Site) -> None:
    header, trace, _ = place()
    assert site.stack.complete(headers={"traceparent": header})[0] == 200
    server = site.ended(trace, "POST /v1/chat/completions")["POST /v1/chat/completions"]
    assert "of-the-test" in server.texts  # OTEL_RESOURCE_ATTRIBUTES
    assert {message.headers["x-collector-key"] for message in site.collector.messages} == {MARKS["collector"]}


def test_no_log_no_metric_and_no_trace_holds_a_secret_or_what_was_said(site: Site) -> None:
    made = provoked.everything(site)
    status, _, metrics = site.stack.call("GET", "/metrics", key=MARKS["metrics"])
    assert status == 200
    logs = site.logs()
    assert set(logs) >= {"api", "worker-0", "worker-1", "beat", "telegram", "flower"}
    written = {**logs, "metrics": metrics.decode(), "traces": "".join(span.texts for span in site.collector.spans)}
    secrets = [*made, "visiblyfake", *SAID.values(), SAID["phone"].replace(" ", ""), SAID["card"].replace(" ", "")]
    found = {(name, secret) for name, text in written.items() for secret in secrets if secret in text}
    assert not found
    faults = [line for line in site.lines("api", "worker") if line.get("exception")]
    assert any("[email] [phone] sk-[secret]" in line["exception"] for line in faults), faults
    assert any(line["process"].startswith("worker") for line in faults), faults
    ours = [line for line in faults if line["event"] == "unexpected"]
    assert ours
    assert all(line.keys() >= {"request_id", "trace_id", "span_id", "bot"} for line in ours), ours


def test_every_process_writes_one_event_a_line_and_sends_its_last_spans_when_it_is_stopped(site: Site) -> None:
    header, trace, _ = place()
    assert site.stack.complete(headers={"traceparent": header})[0] == 200
    stopped = [site.stack.api, site.stack.workers[0], site.stack.workers[1], site.stack.beat, *site.others]
    assert [process.stop() for process in stopped if process] == [0] * 6
    assert {span.name for span in site.collector.of(trace)} >= set(WHOLE) - {"history.save"}
    lines = site.lines("api", "worker", "beat", "telegram", "flower")
    assert {line["process"] for line in lines} == {"api", "worker-0", "worker-1", "beat", "telegram", "flower"}
    assert [line for line in lines if line["event"] == "worker: Warm shutdown (MainProcess)"]
