"""Which workers consume events: those that serve the queue `analytics`, where a broker carries events."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.stack import ROOT

_CODE = """
import json, sys
from celery import concurrency
from tasks.app import app
made = app.Worker(pool_cls=concurrency.get_implementation("threads"), concurrency=1, queues=sys.argv[1], quiet=True)
print(json.dumps([step.alias for step in made.steps]))
"""


@pytest.mark.parametrize(
    ("url", "queues", "consumes"),
    [
        ("amqp://127.0.0.1:1//", "chat,analytics", True),
        ("amqp://127.0.0.1:1//", "chat,history", False),
        ("", "chat,analytics", False),
    ],
)
def test_events_are_consumed_beside_the_queue_analytics_where_a_broker_carries_them(
    url: str, queues: str, consumes: bool
) -> None:
    env = {"REDIS_URL": "redis://127.0.0.1:1/0", "MESSAGE_BROKER_URL": url, "PATH": "/usr/bin:/bin"}
    env["DATABASE_URL"] = "postgresql://127.0.0.1:1/none"
    command = [sys.executable, "-c", _CODE, queues]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=True)
    steps = json.loads(done.stdout.splitlines()[-1])
    assert ("Events" in steps) == consumes
    assert "Durations" in steps
    assert steps[-1] == "Consumer", "Celery's own consumer must begin last: its start does not return"
