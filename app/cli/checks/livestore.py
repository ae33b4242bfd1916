"""Checks of Redis."""

from __future__ import annotations

import time
from typing import Any

from app.cli.checks.findings import Finding, Findings, Level, clock, ms
from app.core import errors
from app.core.settings import Settings

OLDEST = (6, 2)
TIMEOUT_S = 5.0
_MANY = 0.8


def server(given: Settings) -> Findings:
    """Look at Redis: the server, whether it keeps what it is told, and whether it takes our scripts."""
    from app.core.store import Scripts, Store

    store = Store(given.redis_url, timeout_s=TIMEOUT_S)
    try:
        started = time.perf_counter()
        store.call("PING")
        took = time.perf_counter() - started
        if store.is_cluster:
            yield Finding(
                "warning", "Redis", f"a cluster, answered in {ms(took)}; its nodes' settings were not looked at"
            )
        else:
            yield from _redis_server(store, took)
            yield from _redis_keeps(store, given)
            yield from clock("Redis", lambda: _redis_time(store))
        scripts = Scripts(store)
        scripts.load()
        yield Finding("ok", "Redis", "all scripts loaded")
    except errors.Unavailable as error:
        yield Finding("problem", "Redis", str(error), "start it, or mend REDIS_URL")
    finally:
        store.close()


def _redis_server(store: Any, took: float) -> Findings:
    with store.borrow() as client:
        facts = client.info("server")
    flavour = str(facts.get("server_name", "redis")).title()
    version = str(facts["redis_version"])
    shown = str(facts.get("valkey_version", version))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        yield Finding("problem", "Redis", f"{flavour} {shown}", "6.2 is the oldest that will do")
    else:
        yield Finding("ok", "Redis", f"{flavour} {shown}, answered in {ms(took)}")


def _redis_keeps(store: Any, given: Settings) -> Findings:
    with store.borrow() as client:
        pipe = client.pipeline(transaction=False)
        pipe.info("persistence").info("memory").execute_command("CONFIG", "GET", "save")
        persistence, memory, save = pipe.execute(raise_on_error=False)  # a managed server may refuse CONFIG
    loss: Level = "warning" if given.allow_volatile_redis else "problem"
    if persistence.get("aof_enabled"):
        yield Finding("ok", "Redis", "keeps what it is told (append-only file)")
    elif isinstance(save, Exception):
        yield Finding("warning", "Redis", "no append-only file; whether it keeps snapshots, it does not say", _KEEP)
    elif any(save.values() if isinstance(save, dict) else save[1:]):
        yield Finding("warning", "Redis", "keeps snapshots alone: a crash loses the minutes since the last", _KEEP)
    else:
        yield Finding(loss, "Redis", "keeps nothing: a restart loses the queue and the dialogs", _KEEP)
    for name in ("aof_last_write_status", "rdb_last_bgsave_status"):
        if persistence.get(name, "ok") != "ok":
            yield Finding("problem", "Redis", f"{name} is {persistence[name]}", "look at its disk and its log")
    policy = memory.get("maxmemory_policy", "unknown")
    if policy != "noeviction":
        text = f"maxmemory-policy is {policy}: short of memory, it would throw limits and tasks out silently"
        yield Finding("problem", "Redis", text, "CONFIG SET maxmemory-policy noeviction, and in redis.conf")
    most, used = int(memory.get("maxmemory", 0)), int(memory["used_memory"])
    if most and used > most * _MANY:
        yield Finding("warning", "Redis", f"{used / most:.0%} of maxmemory are used", "give it more")


_KEEP = "appendonly yes"


def _redis_time(store: Any) -> float:
    seconds, micros = store.call("TIME")
    return float(seconds) + float(micros) / 1e6
