"""A workaround for kombu 5.7.0: without it one restart of Redis ends a worker that has an unacknowledged task in flight.

When the connection breaks, `Channel.close` and a later acknowledgement ask the dead transport for its connection parameters and raise
AttributeError, which the consumer does not take for a connection error. Here a channel that outlived its connection uses the
parameters it was made with, and leaves what is unacknowledged to the visibility timeout. `tests/tasks/test_kombu_restart.py` fails as
soon as kombu no longer needs this.
"""

from __future__ import annotations

from typing import Any

import kombu
import redis.exceptions
from kombu.transport import redis as kombu_redis

transport: Any = kombu_redis
FOR_RELEASE = "5.7"


def needed() -> bool:
    """Tell whether this is the release that the workaround is for."""
    return bool(kombu.__version__.startswith(FOR_RELEASE))


def apply() -> None:
    """Put the workaround in place, once."""
    if not needed() or hasattr(transport.Channel, "_repliq_parameters"):
        return
    own_parameters, own_restore = transport.Channel._connparams, transport.QoS.restore_unacked

    def parameters(self: Any, asynchronous: bool = False) -> Any:
        if getattr(self.connection, "client", None) is None:
            if self._repliq_parameters is None:
                raise redis.exceptions.ConnectionError("the channel's connection is gone")
            return dict(self._repliq_parameters)
        found = own_parameters(self, asynchronous)
        if self._repliq_parameters is None:
            self._repliq_parameters = dict(own_parameters(self, False) if asynchronous else found)
        return found

    def restore(self: Any, client: Any = None) -> Any:
        if getattr(self.channel.connection, "client", None) is None:
            return self._delivered.clear()
        return own_restore(self, client)

    transport.Channel._repliq_parameters = None
    transport.Channel._connparams = parameters
    transport.QoS.restore_unacked = restore
