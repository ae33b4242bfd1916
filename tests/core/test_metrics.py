"""The metrics that are promised, each with its labels; what is bounded in them; and those that are read from Redis."""

from __future__ import annotations

import dataclasses
import itertools

import prometheus_client
import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from app.bots import active
from app.core import clock, gauges, metrics, snapshot
from app.core.presence import Presence
from app.core.store import Keys, Store
from app.llm import gate

# Dashboards of others read these names and labels; those in brackets are besides what was promised.
PROMISED = {
    "dialog_api_requests_total": "method,route,status",
    "dialog_api_request_duration_seconds": "method,route",
    "dialog_active_users": "window",
    "dialog_user_retention_rate": "window",
    "dialog_messages_total": "role",
    "chat_requests_total": "status,provider,model",
    "chat_tokens_total": "kind,model",
    "chat_cost_usd_total": "provider,model",
    "chat_limit_refusals_total": "code",
    "dialog_redis_operations_total": "script,status",
    "dialog_redis_operation_duration_seconds": "script",
    "chat_cache_requests_total": "result",
    "dialog_context_cache_total": "result",
    "task_queue_depth": "queue",
    "task_queue_wait_seconds": "queue",
    "task_duration_seconds": "task,status",
    "task_retries_total": "task",
    "task_in_flight": "queue",
    "llm_requests_total": "provider,model,status",
    "llm_request_duration_seconds": "(provider)",
    "llm_time_to_first_token_seconds": "(provider)",
    "llm_circuit_state": "provider",
    "llm_fallbacks_total": "from,to",
    "limit_check_seconds": "",
    "history_save_seconds": "(stream)",
    "task_oldest_age_seconds": "queue",
    "outbox_length": "stream",
    "outbox_lag_seconds": "stream",
    "llm_price_unknown_total": "model",
    "beat_last_run_timestamp_seconds": "(entry)",
    "api_waiters": "",
    "dialog_service_uptime_seconds": "",
    "dialog_memory_usage_bytes": "",
}
OF_USERS = {f"{window}_{figure}": 2 for window in active.WINDOWS for figure in ("active", "earlier", "stayed")}


def kept() -> dict[str, set[str]]:
    """Return the metrics that processes keep, with their labels."""
    found = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    ends = {"counter": "_total"}
    return {metric._name + ends.get(metric._type, ""): set(metric._labelnames) for metric in found}


def read(store: Store, keys: Keys) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the samples of what is read when it is asked for, by name and label names."""
    figures = dict.fromkeys((field.name for field in dataclasses.fields(gate.State)), 0)
    state = gate.State(**{**figures, "provider": "main", "model": "m", "target": "main/m", "state": "open"})
    lines = [*gauges.lines(store, keys), *gate.gauges([state])]
    return {
        family.name: {tuple(sorted(sample.labels)): sample.value for sample in family.samples}
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
    }


def test_what_was_promised_is_there_with_its_labels_and_no_others(store: Store, keys: Keys) -> None:
    snapshot.write(store, keys, "users", OF_USERS)
    found = kept()
    for name, samples in read(store, keys).items():
        (labels,) = samples
        assert found.setdefault(name, set(labels)) == set(labels), f"{name} is told twice"
    found["dialog_service_uptime_seconds"] = set()  # made at the moment of asking: tests/http/test_metrics.py
    for name, labels in PROMISED.items():
        assert found[name] == {label.strip("()") for label in labels.split(",")} - {""}, name


def test_live_workers_are_those_that_showed_themselves_lately(store: Store, keys: Keys) -> None:
    def live() -> float:
        return read(store, keys)["workers_live"][()]

    assert live() == 0
    one, other = (Presence(store, keys, f"{name}@host") for name in ("one", "other"))
    one.show()
    other.show()
    assert live() == 2
    store.call("ZADD", keys.of_shard("workers", 0), clock.now_ms() - 11_000, other.name)
    assert live() == 1
    one.stop()
    assert live() == 0


def value(name: str, **labels: str) -> float | None:
    return prometheus_client.REGISTRY.get_sample_value(name, {key.rstrip("_"): of for key, of in labels.items()})


def test_answers_of_what_is_configured_begin_at_nothing() -> None:
    targets = (("here", "small"), ("there", "big"), ("there", "small"))
    metrics.KNOWN_MODELS.update(("quick", "small", "big"))
    metrics.expect_targets(targets)
    metrics.expect_answers({"quick": targets})
    for provider, status in itertools.product(("here", "there"), ("success", "error", "cancelled")):
        assert value("chat_requests_total", status=status, provider=provider, model="quick") == 0
        assert value("chat_cost_usd_total", provider=provider, model="quick") == 0
    for left, to in itertools.permutations(("here/small", "there/big", "there/small"), 2):
        assert value("llm_fallbacks_total", from_=left, to=to) == 0
    for model in ("quick", "other"):
        assert value("llm_price_unknown_total", model=model) == 0
    for status in ("success", "upstream_timeout", "upstream_rate_limited", "content_filtered", "upstream_error"):
        assert value("llm_requests_total", provider="there", model="big", status=status) == 0


@pytest.mark.parametrize("name", ["gpt-of-nobody", "", "../../etc", 7, None, ["fast"]])
def test_a_model_that_nobody_configured_is_other(name: object) -> None:
    assert metrics.model_label(name) == "other"
    assert metrics.target_label(f"nobody/{name}") == "other"
