"""The catalogue of every Redis key: its name is made here and nowhere else. `lua/README.md` holds the same table."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse

_PLAIN = re.compile(r"[A-Za-z0-9_.-]*")


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One kind of key. `pattern` uses T for the shard's tag, B for T and a bot, U for B and a user."""

    name: str
    pattern: str
    type: str
    written_by: str
    expiry: str
    content: str


CATALOGUE = (
    Entry(
        "task",
        "T:task:<ref>",
        "hash",
        "admit, claim, emit, park, finish",
        "deadline + 24 h, then 24 h from its end",
        "the task's record",
    ),
    Entry(
        "deltas",
        "T:task:<ref>:ev",
        "stream",
        "emit",
        "1 h; at most 20,000 entries",
        "the answer's pieces, ids `attempt-seq`",
    ),
    Entry(
        "waiters",
        "T:task:<ref>:w",
        "set",
        "admit, watch",
        "deadline + 60 s",
        "channels of the API processes that wait for the task",
    ),
    Entry(
        "queued",
        "T:led:queued",
        "zset",
        "admit, finish, requeue",
        "none: one entry a task in the broker",
        "ref -> when its message was sent, ms",
    ),
    Entry(
        "leased",
        "T:led:leased",
        "zset",
        "claim, renew, finish",
        "none: one entry a running task",
        "ref/attempt -> when its lease ends, ms",
    ),
    Entry(
        "waiting",
        "T:led:waiting",
        "zset",
        "admit, finish",
        "none: one entry a task held back by a window",
        "ref -> when it was admitted, ms",
    ),
    Entry(
        "due", "T:led:due", "zset", "park, requeue", "none: one entry a parked task", "ref -> when it is to be sent, ms"
    ),
    Entry(
        "deadlines",
        "T:led:deadlines",
        "zset",
        "admit, finish",
        "none: one entry an open task",
        "ref -> its deadline, ms",
    ),
    Entry("claimed", "T:led:claimed", "string", "claim", "1 day", "the latest sending time among claimed tasks, ms"),
    Entry("sweeping", "T:led:sweeping", "string", "sweep", "900 ms", "held by the process that sweeps"),
    Entry(
        "swept",
        "T:led:swept",
        "hash",
        "sweep",
        "1 day",
        "when a sweep last looked, and until when lapsed leases are let be, ms",
    ),
    Entry(
        "hooks",
        "T:led:hooks",
        "zset",
        "finish, the webhooks scripts",
        "none: one entry a pending delivery",
        "ref -> when its delivery is to be looked at, ms",
    ),
    Entry(
        "hook",
        "T:hook:<ref>",
        "hash",
        "finish, the webhooks scripts",
        "25 h, then 1 h from its end",
        "the delivery to a task's webhook: bot, url, type, state, attempt, created, due, until, lease",
    ),
    Entry(
        "outbox",
        "T:ob:<stream>",
        "stream",
        "admit, finish, add_events, the dialogs and webhooks scripts, rejects",
        "none: drained and deleted; an alarm watches its length",
        "what PostgreSQL and the broker are still to be told",
    ),
    Entry(
        "outbox_dead",
        "T:ob:<stream>:dead",
        "stream",
        "the drain",
        "none: at most 10,000 entries",
        "rows that PostgreSQL refused, with the reason",
    ),
    Entry("outbox_kick", "T:ob:<stream>:kick", "string", "as its stream", "5 s", "a drain has been asked for"),
    Entry("outbox_lease", "T:ob:<stream>:lease", "string", "acquire, release", "10 s", "held by the one drainer"),
    Entry(
        "born",
        "T:born",
        "string",
        "seed_user",
        "none: one a shard",
        "when this store was first used, ms; gone means that Redis was emptied",
    ),
    Entry(
        "workers",
        "T:workers",
        "zset",
        "a worker's presence",
        "1 min; on shard 0 alone",
        "worker process -> when it last showed itself, ms",
    ),
    Entry(
        "once",
        "T:once:<name>",
        "string",
        "beat's tasks",
        "the entry's interval; on shard 0 alone",
        "this run of a beat entry is taken",
    ),
    Entry(
        "snapshot",
        "T:snap:<part>",
        "hash",
        "the beat entry metrics-snapshot",
        "5 min; on shard 0 alone",
        "figures that /metrics shows of `users` and `queues`",
    ),
    Entry(
        "idempotency",
        "B:idem:<hash>",
        "string",
        "admit, remember",
        "24 h",
        "fingerprint of the body and the task, or the stored answer",
    ),
    Entry(
        "summary",
        "B:sum:<hash>",
        "string",
        "analytics' answers",
        "1 h",
        "a summary that was asked for, and its watermark",
    ),
    Entry("bot_window", "B:w", "zset", "admit, finish", "1 day", "ref -> deadline of the bot's tasks in the broker"),
    Entry("bot_held", "B:wl", "list", "admit, finish", "1 day", "refs held back by the bot's window"),
    Entry(
        "hooks_flight",
        "B:hk",
        "zset",
        "claim_delivery, settle_delivery",
        "1 h; at most 32 entries",
        "receiver and ref -> until when the attempt may take, ms",
    ),
    Entry(
        "hooks_breaker",
        "B:hk:<receiver>",
        "hash",
        "claim_delivery, settle_delivery",
        "1 h",
        "a receiver's failures in a row, and until when it is left alone, ms",
    ),
    Entry("profile", "U:p", "hash", "seed_user, change_user", "3 days", "zone, daily limit, language, dialog"),
    Entry("session", "U:s", "string", "admit, end_session", "30 min", "the user's present session"),
    Entry("day", "U:q:<yyyymmdd>", "string", "seed_user, finish", "3 days", "requests of the day that count"),
    Entry(
        "day_open",
        "U:q:<yyyymmdd>:r",
        "zset",
        "admit, finish",
        "3 days",
        "ref -> until when the request is reserved, ms",
    ),
    Entry("rate", "U:g:rpm", "string", "admit", "the limit's period", "GCRA's theoretical arrival time, us"),
    Entry("tokens", "U:g:tpm", "string", "admit, finish", "the limit's period", "GCRA's theoretical arrival time, us"),
    Entry("limit_told", "U:le", "string", "admit", "1 min", "the refusal by a limit that analytics was told of last"),
    Entry("running", "U:c", "zset", "admit, finish", "1 day", "ref -> deadline of the user's open tasks"),
    Entry("user_window", "U:w", "zset", "admit, finish", "1 day", "ref -> deadline of the user's tasks in the broker"),
    Entry("user_held", "U:wl", "list", "admit, finish", "1 day", "refs held back by the user's window"),
    Entry(
        "user_lane",
        "U:lane",
        "zset",
        "admit, finish",
        "1 day",
        "ref -> deadline of the task that is under way in his own dialog",
    ),
    Entry("user_lane_held", "U:lanel", "list", "admit, finish", "1 day", "refs that wait for that one's end"),
    Entry(
        "dialog",
        "B:d:<ref>:m",
        "hash",
        "the dialogs scripts, finish",
        "dialog_hot_hours + 7 days",
        "v version, seq, lo first kept, n and tok kept, cnt and sum in all, fv and fs what PostgreSQL has of versions and seqs, "
        "st state, lt and ut and ct times, ex last refresh of the expiry, user, kind, title, meta, sm and sq the summary",
    ),
    Entry(
        "dialog_messages",
        "B:d:<ref>:l",
        "list",
        "the dialogs scripts, finish",
        "as its dialog",
        "`seq|tokens|role|mid|ts_ms|length of metadata|metadata and body`, oldest first",
    ),
    Entry("dialog_ids", "B:d:<ref>:i", "hash", "the dialogs scripts, finish", "as its dialog", "message id -> seq"),
    Entry(
        "dialog_lane",
        "B:d:<ref>:w",
        "zset",
        "admit, finish",
        "1 day",
        "ref -> deadline of the task that is under way in the dialog",
    ),
    Entry("dialog_lane_held", "B:d:<ref>:wl", "list", "admit, finish", "1 day", "refs that wait for that one's end"),
    Entry(
        "dialogs_here",
        "B:dx",
        "zset",
        "the dialogs scripts, finish",
        "as the latest dialog",
        "ref -> last activity of the bot's dialogs in Redis, ms",
    ),
    Entry(
        "dialogs_dirty",
        "B:dd",
        "zset",
        "the dialogs scripts, finish",
        "as the latest dialog",
        "ref -> last write of those that PostgreSQL does not have as they are, ms",
    ),
)


class Keys:
    """Builds the keys of one deployment."""

    def __init__(self, prefix: str, shards: int, queue_prefix: str) -> None:
        self.prefix = prefix
        self.shards = shards
        self._queue_prefix = queue_prefix
        self._tags = [f"{prefix}:{{{shard:02d}}}" for shard in range(shards)]

    def tag(self, shard: int) -> str:
        return self._tags[shard]

    def of_task(self, name: str, ref: str) -> str:
        """Return the key of a task: `task`, `deltas` or `waiters`."""
        return f"{self._tags[int(ref[:2])]}:task:{ref}{_TASK[name]}"

    def of_shard(self, name: str, shard: int) -> str:
        """Return a key of the ledger."""
        return f"{self._tags[shard]}:{_SHARD[name]}"

    def of_hook(self, ref: str) -> str:
        """Return the key of the delivery to a task's webhook."""
        return self.of_shard("hook", int(ref[:2])) + ref

    def of_outbox(self, stream: str, shard: int, part: str = "") -> str:
        return f"{self._tags[shard]}:ob:{stream}{part}"

    def of_bot(self, name: str, shard: int, bot: str, extra: str = "") -> str:
        return f"{self._tags[shard]}:{bot}:{_BOT[name]}{extra}"

    def of_user(self, name: str, shard: int, bot: str, user: str) -> str:
        return f"{self._tags[shard]}:{bot}:u:{encode(user)}:{_USER[name]}"

    def of_day(self, shard: int, bot: str, user: str, yyyymmdd: str) -> tuple[str, str]:
        """Return the day's counter and its reservations."""
        key = f"{self._tags[shard]}:{bot}:u:{encode(user)}:q:{yyyymmdd}"
        return key, key + ":r"

    def of_dialog(self, shard: int, bot: str, ref: str) -> tuple[str, str, str]:
        """Return a dialog's header, messages and message ids."""
        key = f"{self._tags[shard]}:{bot}:d:{ref}"
        return key + ":m", key + ":l", key + ":i"

    def of_lane(self, shard: int, bot: str, dialog: str, owner: str) -> tuple[str, str]:
        """Return a dialog's lane and what it holds back; the lane of a user's own dialog is named for him, whichever dialog that is."""
        if owner:
            return self.of_user("user_lane", shard, bot, owner), self.of_user("user_lane_held", shard, bot, owner)
        key = f"{self._tags[shard]}:{bot}:d:{dialog}"
        return key + ":w", key + ":wl"

    def queue(self, name: str) -> str:
        """Return Celery's list of a queue: the one key outside the shards (redis.md, decision 1)."""
        return self._queue_prefix + name

    def nothing(self, shard: int) -> str:
        """Return the key that stands where a script's key is not wanted; nobody writes it."""
        return self._tags[shard] + ":none"

    def wake_channel(self, process: str) -> str:
        return f"{self.prefix}:wake:{process}"

    @property
    def control_channel(self) -> str:
        return f"{self.prefix}:control"


def encode(user: str) -> str:
    """Write a user's string so that no two users can share a key."""
    return user if _PLAIN.fullmatch(user) else urllib.parse.quote(user, safe="")


def _suffixes(letter: str) -> dict[str, str]:
    marker = letter + ":"
    return {
        entry.name: entry.pattern.removeprefix(marker).split("<")[0]
        for entry in CATALOGUE
        if entry.pattern.startswith(marker)
    }


_TASK = {
    entry.name: entry.pattern.removeprefix("T:task:<ref>") for entry in CATALOGUE if entry.pattern.startswith("T:task:")
}
_SHARD = _suffixes("T")
_BOT = _suffixes("B")
_USER = _suffixes("U")
