"""RabbitMQ as the broker, Redis as the store: the same requests, the same recovery, and a 503 when the broker is away."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests import rabbit
from tests.faults import invariants, sse
from tests.stack import ROOT, Stack, eventually, free_port

pytestmark = [pytest.mark.rabbitmq, pytest.mark.faults]
HOST, PORT = rabbit.HOST, rabbit.PORT
_QUEUES = ("chat", "history", "analytics", "webhooks", "maintenance")


@pytest.fixture(scope="module")
def vhost() -> Iterator[str]:
    """Lend the name of a virtual host of our own."""
    with rabbit.virtual_host() as url:
        yield url.rpartition("/")[2]


class Relay:
    """A port that leads to RabbitMQ, and can be cut."""

    def __init__(self) -> None:
        self.port = free_port()
        self._lock = threading.Lock()
        self._links: list[socket.socket] = []
        self._server: socket.socket | None = None
        self.open()

    def open(self) -> None:
        self._server = socket.create_server((HOST, self.port))
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def cut(self) -> None:
        assert self._server is not None
        with self._lock:  # no connection that was just taken may be left out
            server, self._server = self._server, None
            server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            server.close()
            links, self._links = self._links, []
        _end(*links)

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            self._lead_on(server, client)

    def _lead_on(self, server: socket.socket, client: socket.socket) -> None:
        with self._lock:
            try:
                if self._server is not server:
                    raise OSError("it was cut meanwhile")
                broker = socket.create_connection((HOST, PORT))
            except OSError:
                client.close()
                return
            self._links += [client, broker]
        for source, target in ((client, broker), (broker, client)):
            threading.Thread(target=_pump, args=(source, target), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    _end(source, target)  # which ends the other direction, too
    source.close()


def _end(*links: socket.socket) -> None:
    for link in links:
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    made = Relay()
    yield made
    if made._server is not None:
        made.cut()


@pytest.fixture(scope="module")
def stack(vhost: str, relay: Relay) -> Iterator[Stack]:
    made = Stack(workers=2, beat=True, env={"CELERY_BROKER_URL": f"amqp://guest:guest@{HOST}:{relay.port}/{vhost}"})
    made.wait_for_workers("worker-0", "worker-1")
    yield made
    made.close()


def test_a_queue_that_nobody_has_declared_holds_nothing(vhost: str) -> None:
    environ = {"PATH": os.environ["PATH"], "CELERY_BROKER_URL": f"amqp://guest:guest@{HOST}:{PORT}/{vhost}"}
    code = "import json; from tasks import broker; print(json.dumps(broker.depths()))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ, check=True, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stdout) == {"history": 0, "analytics": 0, "webhooks": 0, "maintenance": 0}


@pytest.mark.parametrize("first", ["tasks", "events"])
def test_tasks_and_events_share_a_virtual_host_whoever_comes_first(first: str) -> None:
    """As with one RabbitMQ for both, which is what docker-compose.yml offers: neither may find the other's in its way."""
    code = f"""
from tasks.app import app
from tasks.events import topology
def tasks():
    with app.connection() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()
def events():
    topology.declare(topology.connect(app.conf.broker_url))
for declare in {"(tasks, events)" if first == "tasks" else "(events, tasks)"}:
    declare()
"""
    with rabbit.virtual_host() as url:
        env = {**os.environ, "CELERY_BROKER_URL": url, "REDIS_URL": "redis://127.0.0.1:1"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "event_queue_differs" not in done.stdout + done.stderr
        name = url.rpartition("/")[2]
        kinds = dict(
            line.split()
            for line in rabbit.control("list_exchanges", "-p", name, "name", "type").splitlines()[1:]
            if "\t" in line and line[0] != "\t"
        )
        assert kinds["analytics"] == "topic", "who listens for `analytics.#` would hear nothing"
        bound = rabbit.control("list_bindings", "-p", name, "source_name", "destination_name")
        assert {queue for queue in _QUEUES if f"repliq\t{queue}" in bound} == set(_QUEUES)


def test_requests_of_every_kind_are_answered_over_rabbitmq(stack: Stack, vhost: str) -> None:
    assert stack.complete(user="u1")[0] == 200
    assert stack.call("POST", "/v1/chat/send", {"telegram_id": 5, "message": "hello"})[0] == 200
    tasks = [stack.complete(model="sim:delay=100", user="u2", background=True)[2]["id"] for _ in range(12)]
    tasks.append(stack.complete(model="sim:tps=50,words=20", user="u3", stream=True, background=True)[2]["id"])
    told = list(sse.follow(stack, tasks[-1]))
    assert (
        "".join(event.text for event in told if event.name == "delta")
        == told[-1].data["result"]["choices"][0]["message"]["content"]
    )
    ended, _ = invariants.all_end(stack, tasks, within_s=60)
    assert {(task["status"], task["attempts"]) for task in ended.values()} == {("completed", 1)}
    invariants.drained(stack)
    invariants.ledger_is_empty(stack)
    invariants.rows_are_final(stack, ended)
    invariants.counters_equal_rows(stack)
    kinds = dict(
        line.split("\t")
        for line in rabbit.control("list_queues", "-p", vhost, "name", "type").splitlines()
        if "\t" in line
    )
    assert {name: kinds[name] for name in ("chat", "history")} == {"chat": "quorum", "history": "quorum"}
    with stack.store() as store:
        assert not store.exists(stack.keys().queue("chat"))


def test_a_killed_worker_is_taken_over_from_over_rabbitmq(stack: Stack) -> None:
    stack.workers[1].stop()
    tasks = [stack.complete(model="sim:delay=2500", user=f"k{number}", background=True)[2]["id"] for number in range(3)]
    eventually(lambda: all(task in stack.simulator.stats()["calls"] for task in tasks), 30)
    stack.workers[0].kill()
    stack.workers[1].start()
    ended, took_s = invariants.all_end(stack, tasks, within_s=60)
    assert {(task["status"], task["attempts"]) for task in ended.values()} == {("completed", 2)}
    assert {stack.simulator.stats()["calls"][task] for task in tasks} == {2}
    print(f"\nended {took_s:.1f} s after the kill")
    stack.workers[0].start()


def test_without_the_broker_a_request_is_refused_and_what_was_admitted_ends_when_it_is_back(
    stack: Stack, relay: Relay
) -> None:
    stack.wait_for_workers("worker-0", "worker-1")
    relay.cut()
    started = time.monotonic()
    status, headers, body = stack.complete(user="u7", background=True)
    took_s = time.monotonic() - started
    relay.open()
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert int(headers["retry-after"]) >= 1
    assert took_s < 20
    back = time.monotonic()
    eventually(lambda: stack.complete(user="u8")[0] == 200, 60, every_s=0.3)
    print(f"\nrefused after {took_s:.2f} s; answered {time.monotonic() - back:.1f} s after the broker was back")
    invariants.drained(stack)
    eventually(lambda: not stack.rows("SELECT 1 FROM request_history WHERE status = 'pending'"), 60, every_s=0.3)
    invariants.ledger_is_empty(stack)
    assert not stack.rows("SELECT 1 FROM request_history WHERE user_id = 'u7' AND status = 'success'"), (
        "what was refused was run"
    )
