"""Live dialogs over a real Redis and a real PostgreSQL, with no worker behind them."""

from __future__ import annotations

import dataclasses

from app.chat.drains import Drains
from app.core.database import Sessions
from app.core.events import Events
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from app.dialogs.lists import DialogList
from app.dialogs.live import LiveDialogs


@dataclasses.dataclass
class Place:
    """What a machine works with."""

    store: Store
    scripts: Scripts
    sessions: Sessions
    direct: bool = True

    def __post_init__(self) -> None:
        self.keys = Keys("rq", 16, "rq:q:")
        self.outbox = Outbox(self.store, self.scripts, self.keys)
        queue = Queue(direct=self.direct, publish=lambda queue, name, args: None)
        self.live = LiveDialogs(self.scripts, self.keys, self.outbox, self.sessions, queue)
        self.lists = DialogList(self.live, self.sessions)
        events = Events(self.scripts, self.keys, queue, publishes=False)
        self.drains = Drains(self.outbox, self.live, self.sessions, self.sessions, events)

    def flush(self, shard: int) -> None:
        """Write behind, as a worker does, but without its wait for more."""
        assert self.outbox.drain("dialogs", shard, self.drains._write_dialogs, linger_s=0) == 0
        assert not self.store.call("EXISTS", self.keys.of_outbox("dialogs", shard, ":dead"))
