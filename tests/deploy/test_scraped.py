"""A real app that a real Prometheus scrapes, the API and workers each in their own way: every query has an answer, nothing is counted
twice, an outage is told of.

Skipped where Debian's prometheus is not; with REQUIRE_PROMETHEUS=true it fails.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping

import pytest

from app.bots import active
from app.core import clock
from app.core.database import Sessions, make_engine
from app.llm.simulator.process import SimulatorProcess
from tests.deploy import monitored
from tests.deploy.monitored import ROOT, Prometheus
from tests.stack import Process, Stack, eventually, free_port
from tests.webhooks.receiver import Receiver

TOKEN = "a-token-of-metrics-that-is-visibly-fake"
_ROUNDS = 6
_BEAT = """
from tasks import broker
for name in ("snapshot_metrics", "drain_outboxes", "clean_dialogs"):
    broker.publish("maintenance", f"maintenance.{name}", [])
broker.runtime().close()
"""


class Watched:
    """An app at work under the eyes of a Prometheus, in both ways at once: `worker-0` shares a folder of metrics with the two processes
    of the API, which tell for it; the worker `own` and beat tell their own. One provider is down, another answers, and one model has
    nobody else."""

    def __init__(self, stack: Stack, prometheus: Prometheus, receiver: Receiver, ports: Mapping[str, int]) -> None:
        self.stack = stack
        self.prometheus = prometheus
        self.receiver = receiver
        self.ports = ports
        self.asked = self.told = 0

    def work(self) -> None:
        """Do a little of everything; return when Prometheus has heard of all that was asked so far."""
        body = {"messages": [{"role": "user", "content": "tell me"}], "model": "plain", "background": True}
        status, _, _ = self.stack.call("POST", "/v1/chat/completions", {**body, "webhook_url": self.receiver.url()})
        assert status == 202
        self.asked += 1 + monitored.work(self.stack)
        self.told += 1
        eventually(lambda: len(self.receiver.messages) == self.told and self.ended() == self.asked, 60)

    def ended(self, of: str = "") -> float | None:
        return self.prometheus.value(f"sum(chat_requests_total{{{of}}})")

    def told_by(self, name: str, token: str = TOKEN) -> tuple[int, str]:
        """Return what a process tells of itself."""
        address = f"http://127.0.0.1:{self.ports[name]}/metrics"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    config, ports = folder / "providers.toml", {"own": free_port(), "beat": free_port()}
    env = {
        "LLM_CONFIG": str(config), "DEFAULT_MODEL": "fast", "LLM_MAX_ATTEMPTS": "2", "WEBHOOK_ALLOW_PRIVATE": "true",
        "METRICS_TOKEN": TOKEN,
    }  # fmt: skip
    with contextlib.ExitStack() as held:
        prometheus = held.enter_context(Prometheus(folder, TOKEN).running())
        config.write_text(monitored.PROVIDERS.format(spare=held.enter_context(SimulatorProcess()).base_url))
        receiver = held.enter_context(contextlib.closing(Receiver()))
        stack = held.enter_context(contextlib.closing(Stack(threads=8, api_processes=2, env=env)))
        stack.new_worker("own", "--metrics-port", str(ports["own"])).start()
        beat = Process("beat", ["beat", "--metrics-port", str(ports["beat"])], stack.env, stack.folder / "beat.log")
        held.callback(beat.start().stop)
        made = Watched(stack, prometheus, receiver, ports)
        users_of_before(stack)
        entries = subprocess.Popen(
            [sys.executable, "-c", _BEAT], cwd=ROOT, env=stack.env, stderr=subprocess.PIPE, text=True
        )
        prometheus.watch("repliq-api", f"127.0.0.1:{stack.port}")
        stack.wait_for_workers("worker-0", "own")
        prometheus.watch("repliq-worker", *(f"127.0.0.1:{port}" for port in ports.values()))
        # The first, since it tries once more: with the breaker open it would wait until that lets it try.
        assert stack.complete("of a provider that is down", model="lonely")[0] >= 500
        made.asked = 1
        made.work()
        _, said = entries.communicate(timeout=60)
        assert entries.returncode == 0, said
        yield made


def users_of_before(stack: Stack) -> None:
    """Let a user have been there on each of the last days, so that of those of yesterday some came back."""
    ((bot,),) = stack.rows("SELECT id::text FROM bots")
    sessions = Sessions(make_engine(stack.postgres.url))
    today = clock.as_utc(clock.now_ms()).date()
    with sessions.begin() as session:
        active.note(session, [(bot, "olha", today - datetime.timedelta(days=day)) for day in range(60)])
    sessions.engine.dispose()


@pytest.mark.slow
def test_no_query_is_an_error_and_each_has_an_answer(watched: Watched) -> None:
    """Of alerts, which have an answer only while something is wrong, each choice of series must have one.

    What has none yet is asked again after more work: a rate is of what rises between two scrapes, and of what did not no time is known.
    """
    asked = {place: query.replace("$__rate_interval", "5m") for place, query in monitored.all_queries().items()}
    for place, query in asked.items():
        try:
            watched.prometheus.query(query)
        except ValueError as error:
            raise AssertionError(place) from error
    for name, rule in monitored.alerts().items():
        del asked[f"rule {name}"]
        asked |= {f"{name}: {selector}": selector for selector in monitored.selectors(rule["expr"])}
    asked = {place: query for place, query in asked.items() if query not in monitored.NOBODY_TELLS}
    for _ in range(_ROUNDS):
        empty = {
            place: query for place, query in asked.items() if not monitored.has_values(watched.prometheus.query(query))
        }
        if not empty:
            break
        watched.work()
        asked = empty
    assert not empty
    for rule in watched.prometheus.rules():
        assert rule["health"] == "ok", (rule["name"], rule.get("lastError"))


def test_each_request_is_counted_once_by_whoever_tells_of_it(watched: Watched) -> None:
    """Two processes of the API, a worker that shares their folder and one that tells its own: the sum is what was asked."""
    for _ in range(_ROUNDS):
        if watched.ended('job="repliq-api"') and watched.ended('job="repliq-worker"'):
            break
        watched.work()
    assert watched.ended('job="repliq-api"')
    assert watched.ended('job="repliq-worker"')
    told = set()
    for _ in range(20):  # a connection each, so that both processes are asked
        status, _, text = watched.stack.call("GET", "/metrics", key=TOKEN)
        assert status == 200
        told.add((counted(text.decode(), "chat_requests_total"), counted(text.decode(), "limit_check_seconds_count")))
    ((by_the_api, checked),) = told
    assert by_the_api + counted(watched.told_by("own")[1], "chat_requests_total") == watched.asked
    assert checked == watched.asked
    eventually(lambda: watched.prometheus.value("max(workers_live)") == 2, 60)
    eventually(lambda: watched.prometheus.value("sum(task_in_flight{queue='chat'})") == 0, 60)


def counted(text: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_workers_and_beat_tell_their_own_to_who_has_the_token(watched: Watched) -> None:
    for name in watched.ports:
        assert watched.told_by(name, "wrong") == (401, "")
        status, text = watched.told_by(name)
        assert status == 200
        assert "process_resident_memory_bytes" in text
        for gauge in ("task_queue_depth", "outbox_length", "llm_circuit_state", "workers_live"):
            assert f"\n{gauge}" not in text, "what is read from Redis is the API's to tell"
    eventually(lambda: 'beat_sent_total{task="maintenance.drain_outboxes"}' in watched.told_by("beat")[1], 60)


def test_series_of_answers_begin_at_nothing(watched: Watched) -> None:
    """Of what is configured, before the first event: else that one would be no rise, and no alarm would hear of it."""
    _, text = watched.told_by("own")
    for series in (
        'chat_requests_total{model="lonely",provider="gone",status="cancelled"} 0.0',
        'chat_cost_usd_total{model="lonely",provider="gone"} 0.0',
        'llm_price_unknown_total{model="plain"} 0.0',
        'llm_price_unknown_total{model="other"} 0.0',
        'llm_requests_total{model="gpt-4o-mini",provider="spare",status="content_filtered"} 0.0',
        'llm_fallbacks_total{from="spare/gpt-4o-mini",to="gone/gpt-4o-mini"} 0.0',
    ):
        assert series in text, series


def test_a_provider_that_is_down_is_told_of(watched: Watched) -> None:
    firing = 'ALERTS{alertname=~"%s", alertstate="firing"}'
    prometheus = watched.prometheus
    eventually(lambda: prometheus.query(firing % "ProviderDown"), 60)
    (down,) = prometheus.query(firing % "ProviderDown")
    assert (down["metric"]["provider"], down["metric"]["severity"]) == ("gone", "page")
    quiet = "ApiDown|RedisAway|WorkersGone|WorkerUnseen|BeatSilent|SnapshotMissing|QueueOld|OutboxOld|ScriptsFail|RedisMemoryHigh"
    # In the end: with no wait before it tells, one late answer of a busy machine is an outage of half a second.
    eventually(lambda: not prometheus.query(firing % quiet), 60)
