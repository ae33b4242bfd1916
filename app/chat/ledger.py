"""The wrappers of the scripts that move a task through its life: each takes a task from one state to the next, or says why not."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

from app.chat import records, spending
from app.chat.records import Task
from app.chat.rows import Final
from app.chat.spending import BudgetSeeds, Part
from app.core import errors, ids, metrics
from app.core.events import Events
from app.core.queue import Queue
from app.core.store import Keys, Scripts
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said
from app.limits import budgets
from app.webhooks.deliveries import TRIED_MS

MAX_DEATHS = 5
"""How many workers may die over a task before it is taken for poison: so many that one which merely shared a worker with poison, or met
a bad minute, is not; and so few that it is told before the task's deadline."""
_ROUNDS = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What a sweep found on one shard."""

    lapsed: list[tuple[str, str]]
    lost: list[tuple[str, str]]
    due: list[str]
    late: list[str]
    held: list[str]

    @property
    def empty(self) -> bool:
        return not (self.lapsed or self.lost or self.due or self.late or self.held)


class DialogMissing(Exception):
    """The dialog that `finish` appends to is not in Redis: load it and call again."""


class CancelledMeanwhile(Exception):
    """The task was cancelled while it ran: end it as cancelled, with what was used."""


class Ledger:
    """Knows where every open task is."""

    def __init__(
        self, scripts: Scripts, keys: Keys, queue: Queue, events: Events, budgets: BudgetSeeds | None = None
    ) -> None:
        self.scripts = scripts
        self.keys = keys
        self.queue = queue
        self.events = events
        self.budgets = budgets

    def claim(self, ref: str, lease_ms: int) -> tuple[Task, int] | None:
        """Take a queued task under a lease; return it and how long its message waited, ms, or None if it is not to be run."""
        shard = ids.shard_in(ref)
        of = self.keys.of_shard
        names = [
            self.keys.of_task("task", ref),
            self.keys.of_task("deltas", ref),
            of("queued", shard),
            of("leased", shard),
        ]
        names += [of("due", shard), of("claimed", shard), self.keys.of_task("waiters", ref), of("waiting", shard)]
        reply = self.scripts.run("chat/claim", names, [ref, lease_ms])
        if reply[0] != 1:
            return None
        task = records.from_flat(ref, reply[4:])
        assert task is not None
        task.now, task.claimed_at = reply[2], time.monotonic()
        return task, reply[3]

    def renew(self, shard: int, leases: Sequence[str], lease_ms: int) -> list[str]:
        """Renew leases (`ref/attempt`) of one shard; return those that are no longer held."""
        gone = self.scripts.run("chat/renew", [self.keys.of_shard("leased", shard)], [lease_ms, *leases])
        return [lease.decode() for lease in gone]

    def emit(self, task: Task, seq: int, piece: bytes) -> bool:
        """Add a piece of the answer; False tells that the task is no longer this attempt's."""
        names = [self.keys.of_task(name, task.ref) for name in ("task", "deltas", "waiters")]
        return bool(self.scripts.run("chat/emit", names, [task.ref, task.attempt, seq, piece])[0] == 1)

    def watch(self, ref: str, channel: str) -> Task | None:
        """Read a task and be woken at its end."""
        names = [self.keys.of_task(name, ref) for name in ("task", "waiters")]
        return records.from_flat(ref, self.scripts.run("chat/watch", names, [channel]))

    def read(self, ref: str) -> Task | None:
        """Read a task."""
        with self.scripts.store.borrow() as client:
            values = client.hgetall(self.keys.of_task("task", ref))
        return records.from_flat(ref, [part for pair in values.items() for part in pair])

    def known(self, refs: Sequence[str]) -> set[str]:
        """Return which of the tasks Redis has."""
        with self.scripts.store.borrow() as client:
            pipe = client.pipeline(transaction=False)
            for ref in refs:
                pipe.exists(self.keys.of_task("task", ref))
            return {ref for ref, there in zip(refs, pipe.execute(), strict=True) if there}

    def position(self, task: Task) -> int | None:
        """Estimate a queued task's place: how many messages of its shard were sent before its own, and one; None while it is held back."""
        with self.scripts.store.borrow() as client:
            rank = client.zrank(self.keys.of_shard("queued", ids.shard_in(task.ref)), task.ref)
        return None if rank is None else int(rank) + 1

    def deltas(self, ref: str, after: str) -> list[tuple[str, bytes]]:
        """Return the pieces behind an id `attempt-seq`."""
        with self.scripts.store.borrow() as client:
            entries = client.xrange(self.keys.of_task("deltas", ref), min=f"({after}", count=500)
        return [(identifier.decode(), fields[b"d"]) for identifier, fields in entries]

    def park(self, task: Task, delay_ms: int, reason: str, calls: int) -> bool:
        """Put a running task back until a due time; False when it is no longer this attempt's."""
        shard = ids.shard_in(task.ref)
        names = [
            self.keys.of_task("task", task.ref),
            self.keys.of_shard("leased", shard),
            self.keys.of_shard("due", shard),
        ]
        return bool(self.scripts.run("chat/park", names, [task.ref, task.attempt, delay_ms, reason, calls])[0] == 1)

    def requeue(self, ref: str, why: str, seen: str) -> int:
        """Send a task again if it still is as it was seen; return the script's code (1 sent, -2 poison, -3 never settled)."""
        shard = ids.shard_in(ref)
        names = [
            self.keys.of_task("task", ref),
            *(self.keys.of_shard(name, shard) for name in ("queued", "leased", "due")),
        ]
        names.append(self._list("chat", shard))
        code = int(self.scripts.run("chat/requeue", names, [ref, why, seen, MAX_DEATHS, self.queue.chat])[0])
        if code == 1:
            self._send([ref.encode()])
        return code

    def sweep(self, shard: int, hold_ms: int, depth: int, most: int = 100) -> Found | None:
        """Look for what is to be mended; None when another process sweeps. `depth`: messages in the broker, -2 unknown."""
        of = self.keys.of_shard
        names = [of(name, shard) for name in ("sweeping", "leased", "queued", "due", "deadlines", "waiting", "claimed")]
        reply = self.scripts.run(
            "chat/sweep",
            [*names, self._list("chat", shard), of("swept", shard)],
            [hold_ms, most, -1 if self.queue.direct else depth],
        )
        if not reply:
            return None
        lapsed, lost, due, late, held = reply
        leases = [tuple(lease.decode().rsplit("/", 1)) for lease in lapsed]
        pairs = [(lost[i].decode(), lost[i + 1].decode()) for i in range(0, len(lost), 2)]
        return Found(leases, pairs, *([ref.decode() for ref in part] for part in (due, late, held)))

    def forget(self, ref: str) -> None:
        """Take a task whose record is gone (expired, or lost with Redis) out of the ledger."""
        shard = ids.shard_in(ref)
        with self.scripts.store.borrow() as client:
            for name in ("queued", "waiting", "due", "deadlines"):
                client.zrem(self.keys.of_shard(name, shard), ref)

    def let_in(self, task: Task) -> None:
        """Let a task in that its dialog's lane held back; mend the windows that hold it back."""
        shard = ids.shard_in(task.ref)
        names = [
            self.keys.of_task("task", task.ref),
            *(self.keys.of_shard(name, shard) for name in ("waiting", "queued", "deadlines")),
        ]
        names += [*self._windows(task), self._list("chat", shard), *self._lane(task)]
        args = [task.ref, task.user_window, task.bot_window, int(task.lane > 0), self.queue.chat]
        sent = self.scripts.run("chat/let_in", names, args)
        self._send(sent)

    def unsettled(self, task: Task) -> bool:
        """Tell whether a cancelled task still has a worker that will settle it."""
        return task.state == "cancelled" and not task.settled

    def cancel_running(self, ref: str, error: bytes) -> str | None:
        """Cancel a running task; return None when done, else the state it was found in ('' for none)."""
        reply = self.scripts.run(
            "chat/cancel_running", [self.keys.of_task(name, ref) for name in ("task", "waiters")], [ref, error]
        )
        return None if reply[0] == 1 else reply[1].decode() if len(reply) > 1 else ""

    def top_up(self, task: Task, nano_usd: int) -> bool:
        """Raise what a running task has reserved of its budgets to so much; False where one does not hold it, and nothing is changed.

        True without budgets, where enough is reserved, and where the task is another attempt's by now.
        """
        if not task.budget or nano_usd <= task.reserved:
            return True
        shard = ids.shard_in(task.ref)
        budget, date = budgets.of_record(task.budget)
        month = budgets.month_of(budget.zone, date)
        names = [self.keys.of_task("task", task.ref), *spending.names(self.keys, shard, task.bot, budget, month)]
        for _ in range(_ROUNDS):
            reply = self.scripts.run("chat/top_up", names, [task.ref, task.attempt, nano_usd, month.dd])
            if reply[0] == -2 and self.budgets is not None:
                missing = [budget.allowances[number - 1] for number in reply[1:]]
                self.budgets.seed(shard, task.bot, month, missing)
                continue
            if reply[0] == 0:
                metrics.budget_refusals.labels(budget.allowances[reply[1] - 1].scope).inc()
                return False
            if reply[0] == 1:
                task.reserved = reply[1]
            return True
        raise errors.Unavailable("The budgets could not be read. Try again.")

    def finish(self, task: Task, end: End) -> str | None:
        """End a task; return None when done (also when this very end was stored before), else the state that another gave it.

        Raise `DialogMissing` when its dialog is to be loaded first, `CancelledMeanwhile` when it is to be settled as cancelled."""
        part = self._budgets(task, end)
        reply = self.scripts.run(
            "chat/finish", [*self._finish_keys(task), *part.names], self._finish_args(task, end, part)
        )
        if reply[0] == 1:
            told = 4 + reply[3]
            self._send(reply[told:])
            if task.budget:
                self._tell_budgets(task, end, reply[4:told])
            self._ask_drains(task.ref)
            self._next_in_lane(reply[2].decode())
            if task.webhook:
                self._send_delivery(task.ref)
            return None
        if reply[0] == -5:
            raise DialogMissing
        if reply[0] == 2:
            raise CancelledMeanwhile
        return reply[1].decode() if len(reply) > 1 else ""

    def _budgets(self, task: Task, end: End) -> Part:
        if not task.budget:
            return spending.NONE
        return spending.settle(self.keys, self.queue, task.ref, task.bot, task.budget, task.reserved, end.told.facts)

    def _tell_budgets(self, task: Task, end: End, alerts: list[Any]) -> None:
        spending.tell_overrun(task.reserved, end.told.facts)
        if alerts:
            spending.tell_alerts(self.queue, ids.shard_in(task.ref), budgets.of_record(task.budget)[0], alerts)

    def _next_in_lane(self, ref: str) -> None:
        """Let the next of a dialog in; the windows it must pass are its own user's. If we die before, the sweep does it."""
        if ref:
            with contextlib.suppress(errors.Unavailable):
                task = self.read(ref)
                if task is not None:
                    self.let_in(task)

    def _send(self, refs: Iterable[bytes]) -> None:
        """Publish what a script let in. The script has done its work: without a broker the sweep finds what was not sent."""
        with contextlib.suppress(errors.Unavailable):
            self.queue.send(ref.decode() for ref in refs)

    def _send_delivery(self, ref: str) -> None:
        """Publish the delivery that `finish` made, where the script could not; if that fails, the sweep sends it."""
        with contextlib.suppress(errors.Unavailable):
            self.queue.send_deliveries([ref])
        self.queue.ask_where_scripts_cannot(["hooks"], ids.shard_in(ref))

    def _ask_drains(self, ref: str) -> None:
        self.queue.ask_where_scripts_cannot(("history", "dialogs"), ids.shard_in(ref))
        self.events.ask_drains(ids.shard_in(ref))

    def _finish_keys(self, task: Task) -> list[str]:
        shard, keys = ids.shard_in(task.ref), self.keys
        nothing = keys.nothing(shard)
        day, day_open = (
            keys.of_day(shard, task.bot, task.user, task.date.replace("-", "")) if task.counts else (nothing, nothing)
        )
        tokens = keys.of_user("tokens", shard, task.bot, task.user) if task.token_limit else nothing
        running = keys.of_user("running", shard, task.bot, task.user) if task.open_limit else nothing
        names = [
            keys.of_task("task", task.ref),
            keys.of_task("waiters", task.ref),
            day,
            day_open,
            tokens,
            running,
            *self._windows(task),
        ]
        names += [keys.of_shard(name, shard) for name in ("queued", "leased", "waiting", "due", "deadlines")]
        names += [keys.of_outbox("history", shard), keys.of_outbox("history", shard, ":kick")]
        names += [self._list("chat", shard), self._list("history", shard)]
        names += keys.of_dialog(shard, task.bot, task.dialog) if task.dialog else [nothing] * 3
        names += [keys.of_outbox("dialogs", shard), keys.of_outbox("dialogs", shard, ":kick")]
        names += [keys.of_bot(name, shard, task.bot) for name in ("dialogs_here", "dialogs_dirty")]
        return [*names, *self._lane(task), *self.events.names(shard), *self._hook(task)]

    def _finish_args(self, task: Task, end: End, part: Part) -> list[Any]:
        shard = ids.shard_in(task.ref)
        said = [part for message in end.messages for part in message]
        delta = (end.tokens - task.estimate) if task.token_limit else 0
        return [
            task.ref,
            end.expected,
            task.attempt,
            end.state,
            int(end.counted),
            task.token_limit,
            delta,
            task.user_window,
            task.bot_window,
            self.queue.chat,
            self.queue.drain("history", shard),
            self.queue.drain("dialogs", shard),
            end.told.row,
            task.dialog,
            end.keeping.messages,
            end.keeping.ttl_ms,
            int(end.keeping.lasting),
            end.told.event,
            *self.events.arguments(shard),
            task.webhook,
            TRIED_MS,
            self.queue.deliver,
            self.queue.drain("hooks", shard),
            part.argument,
            len(said),
            *said,
            *records.pairs(end.fields),
        ]

    def _windows(self, task: Task) -> list[str]:
        shard, keys = ids.shard_in(task.ref), self.keys
        user = [keys.of_user(name, shard, task.bot, task.user) for name in ("user_window", "user_held")]
        return [*user, keys.of_bot("bot_window", shard, task.bot), keys.of_bot("bot_held", shard, task.bot)]

    def _lane(self, task: Task) -> tuple[str, str]:
        """Return the lane of the task's dialog and what it holds back."""
        shard = ids.shard_in(task.ref)
        if not task.lane:
            return self.keys.nothing(shard), self.keys.nothing(shard)
        return self.keys.of_lane(shard, task.bot, task.dialog, task.lane_owner)

    def _hook(self, task: Task) -> list[str]:
        """Return the keys that the delivery to the task's webhook needs."""
        shard, of_outbox = ids.shard_in(task.ref), self.keys.of_outbox
        if not task.webhook:
            return [self.keys.nothing(shard)] * 5
        names = [self.keys.of_hook(task.ref), self.keys.of_shard("hooks", shard), of_outbox("hooks", shard)]
        return [*names, of_outbox("hooks", shard, ":kick"), self._list("webhooks", shard)]

    def _list(self, queue: str, shard: int) -> str:
        """Return Celery's list, or a key that nobody writes where the queue is not this Redis (and may be a cluster)."""
        return self.keys.queue(queue) if self.queue.direct else self.keys.nothing(shard)


@dataclasses.dataclass(frozen=True, slots=True)
class End:
    """How a task ends. `messages`: what to append to its dialog; `fields`: more of its record.
    `lasting`: PostgreSQL gets the messages, too."""

    expected: str
    state: str
    told: Final
    counted: bool = False
    tokens: int = 0
    messages: tuple[Said, ...] = ()
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    keeping: Keeping = dataclasses.field(default_factory=lambda: Keeping(8 * 86_400_000))
