"""The beat entry metrics-snapshot: asked for twice at once it runs once, with the broker's own depths."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from app.bots import active
from app.core import clock, snapshot
from app.core.database import Sessions
from app.core.store import Keys, Store
from tests.history.entries import BOT

ROOT = Path(__file__).resolve().parents[2]
_TWICE = """
import json, threading
from app.chat import upkeep
from app.core import metrics
from tasks import broker, maintenance

runs, real = [], upkeep.snapshot_metrics
upkeep.snapshot_metrics = lambda *given: (runs.append(1), real(*given))
broker.publish("history", "history.write", [0])
both = [threading.Thread(target=maintenance.snapshot_metrics) for _ in range(2)]
for one in both:
    one.start()
for one in both:
    one.join()
beat = [s.labels for s in metrics.beat_last_run.collect()[0].samples]
print(json.dumps({"runs": len(runs), "beat": beat, "chat": broker.depth()}))
broker.runtime().close()
"""


def test_two_at_once_run_once(sessions: Sessions, database_url: str, redis_url: str, store: Store, keys: Keys) -> None:
    with sessions.begin() as session:
        active.note(session, [(BOT, "anna", clock.as_utc(clock.now_ms()).date())])
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": database_url, "REDIS_URL": redis_url}
    done = subprocess.run(
        [sys.executable, "-c", _TWICE], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"runs": 1, "beat": [{"entry": "snapshot_metrics"}], "chat": 0}
    assert snapshot.read(store, keys, "queues") == {"history": 1, "analytics": 0, "webhooks": 0, "maintenance": 0}
    users = snapshot.read(store, keys, "users")
    assert users == {
        f"{window}_{field}": int(field == "active") for window in active.WINDOWS for field in active.Window._fields
    }
