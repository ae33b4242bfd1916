"""The beat entries limits-reconcile and limits-daily-reset, each asked for twice at once as by two beats: what one run of them does."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import sqlalchemy

from app.bots import bootstrap
from app.core import clock, ids, settings
from app.core.database import Sessions
from app.core.store import Keys, Store
from app.history import writer

ROOT = Path(__file__).resolve().parents[2]
_TWICE = """
import json, threading
from app.core import metrics
from tasks import broker, maintenance

for task in (maintenance.reconcile_limits, maintenance.close_days):
    both = [threading.Thread(target=task) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
runtime = broker.runtime()
print(json.dumps({"entries": sorted(s.labels["entry"] for s in metrics.beat_last_run.collect()[0].samples)}))
runtime.close()
"""


@pytest.fixture
def environ(database_url: str, redis_url: str, sessions: Sessions) -> dict[str, str]:
    given = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "SECRET_KEY": "a-test-secret-that-is-fake"}
    with sessions.begin() as session:
        bootstrap.ensure(session, settings.load(given, env_file=None))
    return {"PATH": os.environ["PATH"], **given}


def _entry(ref: str, bot: str, at_ms: int, status: str, date: str = "") -> dict[str, str]:
    row = {"bot": bot, "user": "anna", "type": "chat.send", "provider": "p", "model": "m", "request": {}, "counted": True,
           "date": date or clock.as_utc(at_ms).date().isoformat()}  # fmt: skip
    if status != "pending":
        row |= {"status": status, "attempts": 1, "cached": False}
    fields = {"ref": ref, "at": str(at_ms), "session": "s", "row": orjson.dumps(row).decode()}
    return fields | ({"end": str(at_ms)} if status != "pending" else {})


def _run(environ: dict[str, str]) -> dict[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", _TWICE], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_two_at_once_mend_the_day_and_close_the_one_before_once(
    environ: dict[str, str], sessions: Sessions, store: Store, keys: Keys
) -> None:
    with sessions.begin() as session:
        bot = str(session.scalar(sqlalchemy.text("SELECT id FROM bots")))
    shard, now = ids.shard_of(bot, keys.shards), clock.now_ms()
    yesterday = now - int(datetime.timedelta(days=1).total_seconds() * 1000)
    dead = ids.new_ref(shard)
    entries = [_entry(ids.new_ref(shard), bot, at, "success") for at in (now, now, now, yesterday, yesterday)]
    entries.append(_entry(dead, bot, now - 90_000, "pending", clock.as_utc(now).date().isoformat()))
    writer.write(sessions, [(f"{number}-0", fields) for number, fields in enumerate(entries)])
    day, reserved = keys.of_day(shard, bot, "anna", clock.as_utc(now).strftime("%Y%m%d"))
    store.call("SET", day, 1)
    store.call("ZADD", reserved, now + 600_000, dead)

    assert _run(environ) == {"entries": ["close_days", "reconcile_limits"]}
    assert store.call("GET", day) == b"3"
    assert store.call("ZCARD", reserved) == 0
    events = store.call("XRANGE", keys.of_outbox("events", shard), "-", "+")
    told = [event for _, fields in events if (event := orjson.loads(fields[b"event"]))["eventName"] == "day_closed"]
    assert [event["properties"]["requests"] for event in told] == [2]
    assert told[0]["properties"]["date"] == clock.as_utc(yesterday).date().isoformat()

    for entry in ("reconcile_limits", "close_days"):
        store.call("DEL", keys.of_shard("once", 0) + entry)  # as if their intervals had gone by
    _run(environ)
    assert store.call("GET", day) == b"3"
    again = store.call("XRANGE", keys.of_outbox("events", shard), "-", "+")
    assert len(again) == len(events)
