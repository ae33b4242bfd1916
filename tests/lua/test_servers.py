"""Every script on every server: it loads, keeps to its slot, and does there what a model says."""

from __future__ import annotations

import pytest
import redis.exceptions

from app.core.database import Sessions
from app.core.store import Scripts, Store, scripts
from tests.chat.conftest import Desk, make_desk
from tests.chat.test_admission import check_day
from tests.chat.test_budget_model import check_budgets
from tests.chat.test_budgets import check_many_at_once
from tests.chat.test_ledger import check_life
from tests.llm.test_breaker_model import check_gate
from tests.lua import servers, variants, walk


def test_it_is_the_server_that_it_is_said_to_be(lua_server: servers.Running, lua_store: Store) -> None:
    with lua_store.borrow() as client:
        info = client.info("server")
    flavour = "valkey" if "valkey_version" in info else "redis"
    version = tuple(int(part) for part in info[f"{flavour}_version"].split(".")[:2])
    kind = lua_server.kind
    assert kind is servers.EMBEDDED or (flavour, version) == (kind.flavour, kind.version)
    assert ((info.get("redis_mode") or info["server_mode"]) == "cluster") == kind.cluster


def test_every_script_loads(lua_store: Store, lua_scripts: Scripts) -> None:
    lua_scripts.load()
    with lua_store.borrow() as client:
        assert all(client.script_exists(*[script.sha for script in lua_scripts._scripts.values()]))
    assert set(lua_scripts._scripts) == set(scripts.names())


@pytest.mark.elsewhere
def test_tasks_live_and_end_as_they_should(lua_desk: Desk) -> None:
    check_life(lua_desk, examples=15)


@pytest.mark.elsewhere
def test_a_day_counts_what_a_model_counts(lua_desk: Desk) -> None:
    check_day(lua_desk, examples=40)


@pytest.mark.elsewhere
def test_budgets_are_what_a_model_says(lua_desk: Desk) -> None:
    check_budgets(lua_desk, examples=8)


@pytest.mark.elsewhere
def test_fifty_threads_never_pass_a_budget(lua_desk: Desk) -> None:
    check_many_at_once(lua_desk)


@pytest.mark.elsewhere
def test_the_gate_before_a_provider_does_what_a_model_says(
    lua_store: Store, alters: tuple[variants.Alter, ...]
) -> None:
    check_gate(lua_store, *alters, examples=15)


@pytest.mark.cluster
def test_the_nodes_check_of_slots_does_check(lua_store: Store) -> None:
    """Without it, the tests above would pass with keys that a real cluster refuses."""
    text = "redis.call('SET', KEYS[1], '1'); return redis.call('GET', ARGV[1])"
    with lua_store.borrow() as client:
        assert client.eval(variants.slot_checked(text), 1, "{a}x", "{a}x") == b"1"
        assert client.eval(text, 1, "{a}x", "{b}x") is None
        with pytest.raises(redis.exceptions.ResponseError, match="same slot"):
            client.eval(variants.slot_checked(text), 1, "{a}x", "{b}x")


@pytest.mark.cluster
def test_a_clusters_client_runs_the_scripts(lua_server: servers.Running, lua_store: Store, sessions: Sessions) -> None:
    store = Store(lua_server.cluster_url)
    walked = variants.Altered(store)
    walked.load()
    walk.walk(make_desk(store, walked, direct=False), sessions)
    lua_store.call("FLUSHALL")
    store.call("SCRIPT", "FLUSH")
    walk.through_tasks(make_desk(store, walked, direct=False))
    store.close()
