"""The wrappers of the scripts that move a delivery through its life; `finish` makes it, in the step that ends its task."""

from __future__ import annotations

import dataclasses
import random

from app.core import ids
from app.core.queue import Queue
from app.core.store import Keys, Scripts

TRIED_MS = 86_400_000
"""For how long a delivery is tried."""
LEASE_MS = 20_000
"""How long an attempt may take, until another worker makes the next; longer than a call takes at most."""
AT_ONCE = 8
"""Attempts at once with one receiver, so that a slow one does not take every worker's threads."""
AT_ONCE_OF_BOT = 32
DOWN_AFTER = 5
"""Failures in a row after which a receiver is left alone for a while, but for one attempt now and then."""
_SLACK_MS = 3_600_000
_PAUSE_MS = 5_000
_AGAIN_MS = 60_000
_DEEP = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class Hook:
    """A delivery as Redis has it. Times are ms since the epoch. `payload`: the data of a message that is no task's, as JSON, else ''."""

    ref: str
    bot: str
    url: str
    type: str
    state: str
    attempt: int
    created: int
    payload: str = ""

    @property
    def id(self) -> str:
        """Return the message's id, the same on every attempt, so that a receiver can tell what it has had."""
        return "msg_" + self.ref


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that is the caller's to make."""

    hook: Hook
    receiver: str
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt. `kind` is delivered, gone, failed or retry (in `delay_ms`); `blame` 1: the receiver is at fault, -1: it
    is well, 0: this says nothing of it."""

    kind: str
    delay_ms: int = 0
    blame: int = 0
    took_ms: int = 0
    status: int | None = None
    error: str = ""
    response: str = ""


class Deliveries:
    """Knows where every delivery is that has not ended."""

    def __init__(self, scripts: Scripts, keys: Keys, queue: Queue) -> None:
        self.scripts = scripts
        self.keys = keys
        self.queue = queue

    def read(self, ref: str) -> Hook | None:
        """Read a delivery; None where Redis has none."""
        with self.scripts.store.borrow() as client:
            values = client.hgetall(self.keys.of_hook(ref))
        found = {name.decode(): value.decode("utf-8", "replace") for name, value in values.items()}
        if not found:
            return None
        bot, url, type_, state = (found[name] for name in ("bot", "url", "type", "state"))
        return Hook(ref, bot, url, type_, state, int(found["attempt"]), int(found["created"]), found.get("payload", ""))

    def forget(self, ref: str) -> None:
        """Take a delivery that Redis has no more out of the ledger."""
        self.scripts.store.call("ZREM", self.keys.of_shard("hooks", ids.shard_in(ref)), ref)

    def claim(self, hook: Hook, receiver: str, *, most: int = AT_ONCE) -> Attempt | str:
        """Take a delivery that is due; return the attempt to make, or why there is none: put_off, failed (given up), or passed.

        It is put off where its receiver has as many as `most` in hand, or its bot too many, or the receiver is down.
        """
        shard = ids.shard_in(hook.ref)
        pause = random.randint(_PAUSE_MS // 5, 3 * _PAUSE_MS)
        args = [hook.ref, LEASE_MS, receiver, most, AT_ONCE_OF_BOT, DOWN_AFTER, pause]
        reply = self.scripts.run(
            "webhooks/claim_delivery", self._names(hook, receiver), [*args, self.queue.drain("hooks", shard)]
        )
        if reply[0] == 1:
            self._ask_drain(shard)  # it may have told of an attempt whose worker died
            return Attempt(hook, receiver, reply[1])
        if reply[0] == 3:
            self._ask_drain(shard)
        return {2: "put_off", 3: "failed"}.get(reply[0], "passed")

    def settle(self, attempt: Attempt, outcome: Outcome) -> str | None:
        """Write down what came of an attempt; return the delivery's state now, None where that was another's to say."""
        hook, shard = attempt.hook, ids.shard_in(attempt.hook.ref)
        args = [
            hook.ref, attempt.number, attempt.receiver, outcome.kind, outcome.delay_ms, outcome.blame, DOWN_AFTER,
            self.queue.drain("hooks", shard), outcome.took_ms, outcome.status or "", outcome.error, outcome.response,
        ]  # fmt: skip
        reply = self.scripts.run("webhooks/settle_delivery", self._names(hook, attempt.receiver), args)
        if reply[0] != 1:
            return None
        self._ask_drain(shard)
        return str(reply[1].decode())

    def sweep(self, shard: int, most: int = 200) -> int:
        """Send the deliveries of a shard that are to be looked at; return how many."""
        names = [self.keys.of_shard("hooks", shard), self._list(shard)]
        sent = self.scripts.run("webhooks/sweep_deliveries", names, [most, _AGAIN_MS, self.queue.deliver, _DEEP])
        self.queue.send_deliveries(ref.decode() for ref in sent)
        return len(sent)

    def redeliver(self, hook: Hook) -> bool:
        """Make a delivery due once more, as the log knows it; False where an attempt is under way or about to be."""
        shard = ids.shard_in(hook.ref)
        of = self.keys.of_outbox
        names = [self.keys.of_hook(hook.ref), self.keys.of_shard("hooks", shard), self.keys.of_task("task", hook.ref)]
        names += [of("hooks", shard), of("hooks", shard, ":kick"), self._list(shard)]
        args = [
            hook.ref, hook.bot, hook.url, hook.type, hook.created, hook.attempt, TRIED_MS, _SLACK_MS, self.queue.deliver,
            self.queue.drain("hooks", shard), hook.payload,
        ]  # fmt: skip
        if self.scripts.run("webhooks/redeliver", names, args)[0] != 1:
            return False
        self.queue.send_deliveries([hook.ref])
        self._ask_drain(shard)
        return True

    def _names(self, hook: Hook, receiver: str) -> list[str]:
        shard, keys = ids.shard_in(hook.ref), self.keys
        return [
            keys.of_hook(hook.ref), keys.of_shard("hooks", shard), keys.of_bot("hooks_flight", shard, hook.bot),
            keys.of_bot("hooks_breaker", shard, hook.bot, receiver), keys.of_outbox("hooks", shard),
            keys.of_outbox("hooks", shard, ":kick"), self._list(shard),
        ]  # fmt: skip

    def _ask_drain(self, shard: int) -> None:
        self.queue.ask_where_scripts_cannot(["hooks"], shard)

    def _list(self, shard: int) -> str:
        return self.keys.queue("webhooks") if self.queue.direct else self.keys.nothing(shard)
