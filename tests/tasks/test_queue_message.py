"""The message that our scripts push is the one that Celery itself would have written, and a worker takes it for one of its own."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from app.core import queue
from tests import servers

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "rq:q:"
SEND = """
import sys
from tasks.app import app
name, arguments, queue = sys.argv[1], eval(sys.argv[2]), sys.argv[3]
app.send_task(name, arguments, queue=queue, ignore_result=True, retry=False)
"""
WORK = """
import os, signal, sys, threading
from celery import Celery
app = Celery(broker=sys.argv[1])
app.conf.update(broker_transport_options={"global_keyprefix": "rq:q:"}, worker_redirect_stdouts=False)

@app.task(name="chat.complete", bind=True)
def complete(self, ref):
    print("ran", ref, self.request.id, self.request.retries, self.request.delivery_info["routing_key"], flush=True)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()  # a broadcast may come before it is listened for

app.worker_main(["--quiet", "worker", "--pool", "threads", "--concurrency", "1", "--queues", "chat", "--without-gossip",
                 "--without-mingle", "--without-heartbeat"])
"""


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Redis]:
    folder = servers.folder()
    made = servers.start_redis(folder)
    yield made
    made.stop()
    servers.remove(folder)


@pytest.fixture
def client(server: servers.Redis) -> Iterator[redis.Redis]:
    made = redis.Redis.from_url(server.url)
    made.flushall()
    yield made
    made.close()


def _python(server: servers.Redis, code: str, *arguments: str) -> str:
    env = {"PATH": "/usr/bin:/bin", "REDIS_URL": server.url}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _decoded(message: str | bytes) -> dict[str, Any]:
    """Read a message; how its body is wrapped is said in it, and any worker reads both ways."""
    decoded: dict[str, Any] = json.loads(message)
    wrapped = decoded["properties"].pop("body_encoding") == "base64"
    decoded["body"] = json.loads(base64.b64decode(decoded["body"]) if wrapped else decoded["body"])
    return decoded


def _without_names(message: dict[str, Any], ident: str) -> dict[str, Any]:
    """Put one word for what differs from message to message, having looked that it is there."""
    headers, properties = message["headers"], message["properties"]
    assert headers["id"] == headers["root_id"] == properties["correlation_id"] == ident
    assert headers.pop("origin")
    for holder, name in (
        (headers, "id"),
        (headers, "root_id"),
        (properties, "correlation_id"),
        (properties, "delivery_tag"),
    ):
        assert isinstance(holder[name], str)
        holder[name] = "the id"
    # These are for reading alone: Celery's monitors show them; kombu addresses replies, which we never ask for.
    for holder, name in ((headers, "argsrepr"), (headers, "kwargsrepr"), (properties, "reply_to")):
        assert isinstance(holder.pop(name), str)
    return message


@pytest.mark.parametrize(
    ("queue_name", "task", "arguments"), [("chat", "chat.complete", ["07abc"]), ("history", "dialogs.write", [13])]
)
def test_our_message_is_what_celery_writes(
    server: servers.Redis, client: redis.Redis, queue_name: str, task: str, arguments: list[Any]
) -> None:
    _python(server, SEND, task, repr(arguments), queue_name)
    written = client.lrange(PREFIX + queue_name, 0, -1)
    assert len(written) == 1
    theirs = _decoded(written[0])
    ours = _decoded(queue.message(queue_name, task, arguments, ident="our-id"))
    ident = theirs["headers"]["id"]
    theirs, ours = _without_names(theirs, ident), _without_names(ours, "our-id")
    # A message to the default exchange of a direct queue and one through an exchange of the queue's name arrive alike.
    assert {
        theirs["properties"]["delivery_info"].pop("exchange"),
        ours["properties"]["delivery_info"].pop("exchange"),
    } <= {"", queue_name}
    assert ours == theirs


def test_a_worker_runs_our_message(server: servers.Redis, client: redis.Redis) -> None:
    client.lpush(PREFIX + "chat", queue.message("chat", "chat.complete", [queue.PLACE]).replace(queue.PLACE, "07abc"))
    broker = "redis+socket://" + server.url.removeprefix("unix://")
    ran = [line.split() for line in _python(server, WORK, broker).splitlines() if line.startswith("ran")]
    assert ran == [["ran", "07abc", "07abc", "0", "chat"]]
    assert not client.exists(PREFIX + "chat", PREFIX + "unacked")
