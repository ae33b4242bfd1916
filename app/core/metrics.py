"""The metrics of data.md: counters, histograms and gauges, right with many processes through the client's multiprocess files."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import prometheus_client as prometheus
from prometheus_client import multiprocess

from app.core import errors

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SLOW = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 20, 30, 60, 120)

api_requests = prometheus.Counter("dialog_api_requests_total", "HTTP requests", ["method", "route", "status"])
api_seconds = prometheus.Histogram(
    "dialog_api_request_duration_seconds", "HTTP requests, seconds", ["method", "route"], buckets=_SLOW
)
_START_TIME = "dialog_service_start_time_seconds"
service_started = prometheus.Gauge(
    _START_TIME,
    "When the oldest of this machine's processes of a kind began, seconds since the epoch",
    ["process"],  # a gauge without labels would be 0 in every process that imports this
    multiprocess_mode="livemin",
)
api_waiters = prometheus.Gauge("api_waiters", "Requests that wait for a task", multiprocess_mode="livesum")

chat_requests = prometheus.Counter("chat_requests_total", "Ended chat requests", ["status", "provider", "model"])
chat_tokens = prometheus.Counter("chat_tokens_total", "Tokens of chat requests", ["kind", "model"])
chat_cost_usd = prometheus.Counter("chat_cost_usd_total", "Cost of chat requests, USD", ["provider", "model"])
limit_refusals = prometheus.Counter("chat_limit_refusals_total", "Requests refused by a limit", ["code"])
budget_refusals = prometheus.Counter(
    "budget_refusals_total", "Requests that a budget did not hold, by whose", ["scope"]
)
budget_alerts = prometheus.Counter("budget_alerts_total", "Budgets of which so many percent were spent", ["percent"])
budget_overruns = prometheus.Counter("budget_overruns_total", "Answers that cost more than was reserved for them")
budget_unknown_costs = prometheus.Counter(
    "budget_unknown_costs_total", "Answers under a budget whose cost is not known: what was reserved was charged"
)
limit_check_seconds = prometheus.Histogram("limit_check_seconds", "Admission, seconds", buckets=_FAST)
history_save_seconds = prometheus.Histogram(
    "history_save_seconds", "One batch written to PostgreSQL, seconds", ["stream"], buckets=_SLOW
)
analytics_events = prometheus.Counter(
    "analytics_events_total", "Events taken into analytics: new, known already, or too old for their bot", ["result"]
)
events_published = prometheus.Counter("events_published_total", "Events that the message broker has confirmed")
events_consumed = prometheus.Counter(
    "events_consumed_total", "Events consumed from the message broker: taken, or put aside as dead", ["result"]
)
webhook_deliveries = prometheus.Counter(
    "webhook_deliveries_total",
    "What came of webhooks: delivered, gone (the receiver wants no more), failed, or of an attempt: retried, put_off",
    ["result"],
)
webhook_attempt_seconds = prometheus.Histogram("webhook_attempt_seconds", "Webhooks' attempts, seconds", buckets=_SLOW)
history_past_retention = prometheus.Counter(
    "history_past_retention_total", "Requests that were told of after their bot's retention had taken their day away"
)
messages = prometheus.Counter("dialog_messages_total", "Messages appended to dialogs", ["role"])
context_reads = prometheus.Counter(
    "dialog_context_cache_total", "Context reads: hit in Redis, or loaded from PostgreSQL", ["result"]
)

dialogs_cleaned = prometheus.Counter(
    "dialogs_cleaned_total", "Dialogs that cleanup let leave Redis, or deleted past their retention", ["how"]
)

user_contexts = prometheus.Counter(
    "user_context_requests_total",
    "Users' contexts: fetched, unchanged, empty or failed at the owner's server; cached; skipped, since it is down",
    ["result"],
)
cache_requests = prometheus.Counter(
    "chat_cache_requests_total", "Answers looked for in the cache: hit, or miss", ["result"]
)
cache_hits = prometheus.Counter("chat_cache_hits_total", "Answers given without asking a model", ["source"])
cache_embedding_tokens = prometheus.Counter(
    "chat_cache_embedding_tokens_total", "Tokens of questions that were embedded for the semantic cache"
)
redis_operations = prometheus.Counter("dialog_redis_operations_total", "Lua scripts run", ["script", "status"])
redis_seconds = prometheus.Histogram(
    "dialog_redis_operation_duration_seconds", "Lua scripts, seconds", ["script"], buckets=_FAST
)

queue_wait_seconds = prometheus.Histogram(
    "task_queue_wait_seconds", "From sending to claiming, seconds", ["queue"], buckets=_SLOW
)
task_seconds = prometheus.Histogram("task_duration_seconds", "Tasks, seconds", ["task", "status"], buckets=_SLOW)
task_retries = prometheus.Counter("task_retries_total", "Tasks sent again", ["task"])
task_in_flight = prometheus.Gauge("task_in_flight", "Tasks that run", ["queue"], multiprocess_mode="livesum")

llm_requests = prometheus.Counter("llm_requests_total", "Calls of model providers", ["provider", "model", "status"])
llm_seconds = prometheus.Histogram(
    "llm_request_duration_seconds", "Calls of model providers, seconds", ["provider"], buckets=_SLOW
)
llm_first_token_seconds = prometheus.Histogram(
    "llm_time_to_first_token_seconds", "Until a stream's first token, seconds", ["provider"], buckets=_SLOW
)
circuits_opened = prometheus.Counter("llm_circuit_opened_total", "Breakers that opened", ["provider", "model"])
gate_refusals = prometheus.Counter(
    "llm_gate_refusals_total", "Calls that did not reach a provider: its breaker open, its places full, or limited",
    ["provider", "reason"],
)  # fmt: skip
fallbacks = prometheus.Counter(
    "llm_fallbacks_total", "Calls that went to another target, as provider/model, than the one before", ["from", "to"]
)
price_unknown = prometheus.Counter("llm_price_unknown_total", "Answers of a model without a price", ["model"])

beat_last_run = prometheus.Gauge(
    "beat_last_run_timestamp_seconds", "When a beat entry last ran", ["entry"], multiprocess_mode="mostrecent"
)
beat_sent = prometheus.Counter("beat_sent_total", "Tasks that beat has sent", ["task"])

for _code in (
    "daily_limit_exceeded",
    "rate_limit_exceeded",
    "token_limit_exceeded",
    "concurrency_limit_exceeded",
    "budget_exceeded",
    "overloaded",
):
    limit_refusals.labels(_code)
for _scope in ("bot", "key", "user"):
    budget_refusals.labels(_scope)
for _percent in (50, 80, 100):
    budget_alerts.labels(_percent)
for _role in ("user", "assistant", "system", "tool"):
    messages.labels(_role)
for _result in ("new", "known", "too_old"):
    analytics_events.labels(_result)
for _result in ("delivered", "gone", "failed", "retried", "put_off"):
    webhook_deliveries.labels(_result)
for _result in ("fetched", "unchanged", "empty", "failed", "cached", "skipped"):
    user_contexts.labels(_result)
for _result in ("taken", "dead"):
    events_consumed.labels(_result)
for _result in ("hit", "miss"):
    context_reads.labels(_result)
    cache_requests.labels(_result)
for _how in ("left", "deleted"):
    dialogs_cleaned.labels(_how)
for _source in ("fixed", "exact", "semantic"):
    cache_hits.labels(_source)


KNOWN_MODELS: set[str] = set()
"""The configured names; the label of any other model is `other`, so that callers cannot make series at will."""


def model_label(model: object) -> str:
    return model if isinstance(model, str) and model in KNOWN_MODELS else "other"


KNOWN_TARGETS: set[str] = set()
"""The configured targets, as `provider/model`; the label of any other is `other`."""


def target_label(target: str) -> str:
    return target if target in KNOWN_TARGETS else "other"


def expect_targets(targets: Iterable[tuple[str, str]]) -> None:
    """Let the series of providers and models begin at 0."""
    for provider, model in targets:
        KNOWN_TARGETS.add(f"{provider}/{model}")
        KNOWN_MODELS.add(model)
        circuits_opened.labels(provider, model_label(model))
        for reason in ("open", "full", "limited"):
            gate_refusals.labels(provider, reason)
        for status in ("success", "error", *errors.codes_of(errors.UpstreamError)):
            llm_requests.labels(provider, model_label(model), status)


def expect_answers(answering: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Let the series of answers begin at 0: for each name that requests may give, with the providers and models that may answer."""
    price_unknown.labels("other")
    for name, targets in answering.items():
        model = model_label(name)
        price_unknown.labels(model)
        for kind in ("prompt", "completion"):
            chat_tokens.labels(kind, model)
        for provider in {provider for provider, _ in targets}:
            chat_cost_usd.labels(provider, model)
            for status in ("success", "error", "cancelled"):
                chat_requests.labels(status, provider, model)
        for left, to in itertools.permutations(dict.fromkeys(targets), 2):
            fallbacks.labels(target_label("/".join(left)), target_label("/".join(to)))


def expect_routes(operations: Iterable[tuple[str, str]]) -> None:
    """Let the series of requests, by method and route, begin at 0: a route's first failure would be no rise else."""
    for method, route in operations:
        for status in (200, 500, 503):
            api_requests.labels(method, route, status)


def begin_serving() -> None:
    """Note that this process is of the API, from now on."""
    service_started.labels("api").set_to_current_time()


def expect_scripts(names: Iterable[str]) -> None:
    """Let the series of scripts begin at 0, errors' above all: an alarm sees no rise in what was not there before."""
    for name in names:
        for status in ("ok", "error"):
            redis_operations.labels(name, status)


def observe_script(name: str, status: str, seconds: float) -> None:
    """Count one run of a script."""
    operations, duration = _script_metrics(name, status)
    operations.inc()
    duration.observe(seconds)


_script_cache: dict[tuple[str, str], tuple[prometheus.Counter, prometheus.Histogram]] = {}


def _script_metrics(name: str, status: str) -> tuple[prometheus.Counter, prometheus.Histogram]:
    known = _script_cache.get((name, status))  # labels() costs more than the observation
    if known is None:
        known = _script_cache[name, status] = (redis_operations.labels(name, status), redis_seconds.labels(name))
    return known


def _forget_dead(folder: str) -> None:
    """Take away the live gauges of processes that are gone; nobody else tells the client of their end."""
    for path in Path(folder).glob("gauge_live*_*.db"):
        pid = path.stem.rsplit("_", 1)[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            path.unlink(missing_ok=True)


class _Collected(list[Any]):
    """Families that have been collected once, for who wants to do it again: that reads the files of all processes."""

    def collect(self) -> Iterable[Any]:
        return self


def expose(extra: Iterable[str] = ()) -> bytes:
    """Write all metrics of all processes in Prometheus' text format, and `extra` lines behind."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        _forget_dead(os.environ["PROMETHEUS_MULTIPROC_DIR"])
        registry = prometheus.CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        prometheus.ProcessCollector(registry=registry)
    else:
        registry = prometheus.REGISTRY
    found = _Collected(registry.collect())
    lines = [*_uptime(found), *extra]
    return bytes(prometheus.generate_latest(found)) + "".join(line + "\n" for line in lines).encode()


def _uptime(found: Iterable[Any]) -> list[str]:
    """Return how long the service has been up: the same whichever process is asked, and after one of them was begun anew."""
    began = [sample.value for family in found if family.name == _START_TIME for sample in family.samples]
    if not began:
        return []
    seconds = max(0.0, time.time() - began[0])
    return ["# TYPE dialog_service_uptime_seconds gauge", f"dialog_service_uptime_seconds {seconds:.0f}"]
