"""Scripts as tests run them: slot-checked, with a clock that stands still, counting what they read, starved or repeated."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from app.core import clock, errors
from app.core.store import Scripts, Store
from app.core.store.scripts import Script
from tests.keyspace import Keyspace

Alter = Callable[[str], str]

_STARTED_MS = clock.now_ms()
_COUNTING = """
local real = redis
local redis = setmetatable({call = function(...)
  local reply = real.call(...)
  real.call('HINCRBY', 'counted', ({...})[1], type(reply) == 'table' and #reply or 1)
  return reply
end}, {__index = real})
"""


def slot_checked(text: str) -> str:
    """Have Redis 7 and later refuse keys of another slot than the declared ones (6.2 would not read the script)."""
    return "#!lua\n" + text


def still(text: str) -> str:
    """Stop the clock, so that what is written twice is the same twice."""
    return text.replace("redis.call('TIME')", f"{{'{_STARTED_MS // 1000}', '{_STARTED_MS % 1000:03d}000'}}")


def counting(text: str) -> str:
    """Count the elements that each command brings into Lua, in the hash `counted` (undeclared: not for a cluster)."""
    return _COUNTING + text


class Altered(Scripts):
    """Runs scripts in another wording than they ship with."""

    def __init__(self, store: Store, *alters: Alter) -> None:
        super().__init__(store)
        self._scripts = {name: _altered(script, alters) for name, script in self._scripts.items()}
        self.ran: set[str] = set()

    def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.ran.add(name)
        return super().run(name, keys, args)


class Starved(Altered):
    """Runs each call first on a server that is out of memory, then for good.

    What is refused there must be `Unavailable` and leave every key as it was. `refused` and `served` hold the names of scripts
    of which a call was refused, and of which one was served though it changed something.
    """

    def __init__(self, store: Store, *alters: Alter) -> None:
        super().__init__(store, *alters)
        self.refused: set[str] = set()
        self.served: set[str] = set()

    def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        self.load()  # a script that must be sent whole is another matter
        before = Keyspace(self.store)
        self.store.call("CONFIG", "SET", "maxmemory", 1)
        try:
            reply = super().run(name, keys, args)
        except errors.Unavailable as error:
            assert "refuses to write" in str(error)
            assert before.changed() == [], f"{name} was refused half-way"
            self.refused.add(name)
        else:
            if before.changed():
                self.served.add(name)
            return reply
        finally:
            self.store.call("CONFIG", "SET", "maxmemory", 0)
        return super().run(name, keys, args)


class Repeated(Altered):
    """Makes each call twice, as after a lost reply, with a clock that stands still: the second must change nothing.

    `changed` holds, of the scripts whose second call changed something, the keys.
    """

    def __init__(self, store: Store, *alters: Alter) -> None:
        super().__init__(store, still, *alters)
        self.changed: dict[str, list[bytes]] = {}

    def run(self, name: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
        reply = super().run(name, keys, args)
        once = Keyspace(self.store)
        super().run(name, keys, args)
        if changed := once.changed():
            self.changed[name] = changed
        return reply


def _altered(script: Script, alters: Sequence[Alter]) -> Script:
    text = script.text
    for alter in alters:
        text = alter(text)
    sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return dataclasses.replace(script, text=text, sha=sha)
