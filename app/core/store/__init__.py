"""The live store: the Redis client, the Lua loader and the catalogue of keys. Only this package imports `redis`."""

from app.core.store.client import Store
from app.core.store.keys import Keys
from app.core.store.scripts import Scripts

__all__ = ["Keys", "Scripts", "Store"]
