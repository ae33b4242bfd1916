"""Every script, led through a life: refused whole without memory, harmless when repeated, exact with numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.core.database import Sessions
from app.core.store import Scripts, Store, scripts
from tests.chat.conftest import make_desk
from tests.keyspace import Keyspace
from tests.lua import servers, variants
from tests.lua.walk import walk

FREES = {
    "chat/requeue", "chat/let_in", "chat/end_session", "dialogs/delete_dialog", "dialogs/mark_flushed", "dialogs/purge_dialogs",
    "llm/leave", "channels/leave_bot",
}  # fmt: skip
"""Scripts that begin by taking something away: those are served without memory, and once begun must end."""
TWICE_IS_ONCE = {"outbox/add_events"}
"""Scripts that add what is known by its id again where it comes twice."""
Walk = Callable[[Scripts], None]


@pytest.fixture
def lead(lua_server: servers.Running, lua_store: Store, sessions: Sessions) -> Walk:
    """Lead scripts through the walk. On a cluster's node the broker is another server."""
    return lambda walked: walk(make_desk(lua_store, walked, direct=not lua_server.kind.cluster), sessions)


def test_the_walk_comes_by_every_script(lua_store: Store, alters: tuple[variants.Alter, ...], lead: Walk) -> None:
    walked = variants.Altered(lua_store, *alters)
    lead(walked)
    assert walked.ran == set(scripts.names())


def test_without_memory_a_script_is_refused_whole(
    lua_store: Store, alters: tuple[variants.Alter, ...], lead: Walk
) -> None:
    starved = variants.Starved(lua_store, *alters)
    lead(starved)
    assert starved.served <= FREES, "it would go on writing into a full server"
    assert {"chat/admit", "chat/finish", "dialogs/append_messages", "dialogs/load"} <= starved.refused


def test_a_call_that_is_repeated_changes_nothing_more(
    lua_store: Store, alters: tuple[variants.Alter, ...], lead: Walk
) -> None:
    repeated = variants.Repeated(lua_store, *alters)
    lead(repeated)
    assert set(repeated.changed) <= TWICE_IS_ONCE


def test_no_number_loses_its_digits(lua_store: Store, alters: tuple[variants.Alter, ...], lead: Walk) -> None:
    """Lua writes large numbers as 1.7636800001235e+15 when they are put into text."""
    lead(variants.Altered(lua_store, *alters))
    values = Keyspace(lua_store).values
    assert len(values) > 10
    for name, value in values.items():
        assert not [text for text in _texts(value) if re.search(rb"\d\.?\d*e\+\d", text)], name


def _texts(value: Any) -> Iterator[bytes]:
    """Yield every text in a value, however deep."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, dict):
        yield from _texts(list(value.items()))
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _texts(part)
