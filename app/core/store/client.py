"""The Redis client: a stack of bare connections, lent for one call at a time, whose errors are ours."""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import redis
import redis.backoff
import redis.cluster
import redis.exceptions
import redis.retry

from app.core import errors

# Two quick repeats heal a connection that the server closed; more would break the promise of an answer within a second.
_RETRIES = 2
_TIMEOUT_S = 0.9


class Store:
    """Lends connections. A bare one (no pool check-out) saves a third of a call's time; a waiting request holds none."""

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._free: collections.deque[redis.Redis] = collections.deque()
        self._pid = os.getpid()
        self._cluster: Any = None

    @property
    def is_cluster(self) -> bool:
        return self.url.startswith("redis+cluster://")

    def connect(self, **options: Any) -> redis.Redis:
        """Make a client of one connection that no one else uses."""
        backoff = redis.backoff.ExponentialBackoff(cap=0.1, base=0.02)
        # A timeout is not repeated: a server that hangs will hang again, and the caller's second would become three.
        retry = redis.retry.Retry(backoff, _RETRIES, supported_errors=(redis.exceptions.ConnectionError,))
        options = {"socket_timeout": self.timeout_s, "retry": retry, **options}
        if not self.url.startswith("unix://"):
            options = {"socket_connect_timeout": min(1.0, self.timeout_s), "socket_keepalive": True, **options}
        url = self.url.replace("redis+cluster://", "redis://")
        return redis.Redis.from_url(url, single_connection_client=True, protocol=2, **options)

    @contextlib.contextmanager
    def borrow(self) -> Iterator[Any]:
        """Lend a client; raise `Unavailable` when Redis cannot be reached or refuses to write."""
        if self.is_cluster:
            with translated():
                yield self._the_cluster()
            return
        if self._pid != os.getpid():  # a connection must not be shared across a fork
            self._free, self._pid = collections.deque(), os.getpid()
        with translated():
            try:
                client = self._free.pop()
            except IndexError:
                client = self.connect()
            try:
                yield client
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                client.close()
                raise
            except BaseException:
                self._free.append(client)
                raise
            self._free.append(client)

    def call(self, *command: Any) -> Any:
        """Run one command."""
        with self.borrow() as client:
            return client.execute_command(*command)

    def keeps_data(self) -> bool:
        """Tell whether the server writes what it holds to disk; raise `Unavailable` when it does not say."""
        try:
            with self.borrow() as client:
                found = {**client.config_get("appendonly"), **client.config_get("save")}
        except redis.exceptions.ResponseError as error:
            raise errors.Unavailable(f"Redis does not tell its configuration: {error}") from error
        text = {_word(name): _word(value) for name, value in found.items()}
        return text.get("appendonly") == "yes" or bool(text.get("save"))

    def close(self) -> None:
        while self._free:
            self._free.pop().close()
        if self._cluster is not None:
            self._cluster.close()

    def _the_cluster(self) -> Any:
        if self._cluster is None:
            url = "redis://" + self.url.removeprefix("redis+cluster://")
            self._cluster = redis.cluster.RedisCluster.from_url(url, socket_timeout=self.timeout_s)
        return self._cluster


def _word(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours."""
    try:
        yield
    except (
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        redis.exceptions.ClusterDownError,
    ) as error:
        raise errors.Unavailable(f"Redis cannot be reached: {error}") from error
    except redis.exceptions.ResponseError as error:
        # Where redis-py has a class for an error, the word that Redis began it with is gone.
        known = isinstance(error, (redis.exceptions.OutOfMemoryError, redis.exceptions.ReadOnlyError))
        if known or any(word in str(error) for word in ("OOM", "READONLY", "LOADING", "MISCONF")):
            raise errors.Unavailable(f"Redis refuses to write: {error}") from error
        raise
