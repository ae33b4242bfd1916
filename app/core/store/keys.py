"""The catalogue of every Redis key: its name is made here and nowhere else. `lua/README.md` holds the same table."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import urllib.parse

_PLAIN = re.compile(r"[A-Za-z0-9_.-]*")
_LONGEST_NAME = 100


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One kind of key. `pattern` uses T for the shard's tag, B for T and a bot, U for B and a user, P for a provider's tag,
    C for a kept answer's."""

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
        "mended",
        "T:mended",
        "hash",
        "beat's tasks",
        "2 h; on shard 0 alone",
        "how far `limits-reconcile` has gone through users: run of the server, bot, user, done when, ms",
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
    Entry(
        "budget",
        "B:bud:<yyyymm>",
        "hash",
        "seed_budget, admit, top_up, finish",
        "70 days",
        "the bot's month in nano-USD: spent and reserved in all and by day, limits, alerts that were told of",
    ),
    Entry(
        "budget_open",
        "B:bud:<yyyymm>:r",
        "zset",
        "seed_budget, admit, top_up, finish",
        "70 days",
        "`ref|amount|day` -> when the reservation lapses, ms; `!` and `?` mark ends that came while the month was lost",
    ),
    Entry(
        "key_budget",
        "B:kbud:<prefix>:<yyyymm>",
        "hash",
        "seed_budget, admit, top_up, finish",
        "70 days",
        "a key's month, as the bot's",
    ),
    Entry(
        "key_budget_open",
        "B:kbud:<prefix>:<yyyymm>:r",
        "zset",
        "seed_budget, admit, top_up, finish",
        "70 days",
        "a key's reservations, as the bot's",
    ),
    Entry("closed_day", "B:closed", "string", "beat's tasks", "40 days", "the latest local date that has been closed"),
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
    Entry(
        "context_down",
        "B:ctx:<receiver>",
        "string",
        "the user's context",
        "10 min from the last failure",
        "how often in a row the owner's server has failed",
    ),
    Entry(
        "context_probe",
        "B:ctxp:<receiver>",
        "string",
        "the user's context",
        "5 to 60 s",
        "a server that is down has been asked again",
    ),
    Entry("profile", "U:p", "hash", "seed_user, change_user", "3 days", "zone, daily limit, language, dialog"),
    Entry(
        "user_budget",
        "U:bud:<yyyymm>",
        "hash",
        "seed_budget, admit, top_up, finish",
        "70 days",
        "the user's month, as the bot's",
    ),
    Entry(
        "user_budget_open",
        "U:bud:<yyyymm>:r",
        "zset",
        "seed_budget, admit, top_up, finish",
        "70 days",
        "the user's reservations, as the bot's",
    ),
    Entry("session", "U:s", "string", "admit, end_session", "30 min", "the user's present session"),
    Entry("day", "U:q:<yyyymmdd>", "string", "seed_user, mend_day, finish", "3 days", "requests of the day that count"),
    Entry(
        "day_open",
        "U:q:<yyyymmdd>:r",
        "zset",
        "admit, finish, beat's tasks",
        "3 days",
        "ref -> until when the request is reserved, ms",
    ),
    Entry("rate", "U:g:rpm", "string", "admit", "the limit's period", "GCRA's theoretical arrival time, us"),
    Entry("tokens", "U:g:tpm", "string", "admit, finish", "the limit's period", "GCRA's theoretical arrival time, us"),
    Entry("limit_told", "U:le", "string", "admit", "1 min", "the refusal by a limit that analytics was told of last"),
    Entry(
        "user_context",
        "U:ctx",
        "string",
        "the user's context",
        "10 times context_ttl_s, no longer than 1 h, or context_ttl_s; at most 1 day",
        "what the owner's server said of the user, and when to ask again",
    ),
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
    Entry(
        "provider_running",
        "P:run",
        "zset",
        "the llm scripts",
        "1 day",
        "token -> when the lease of a call to the provider ends, ms",
    ),
    Entry("provider_rate", "P:rpm", "string", "enter", "1 min", "GCRA's theoretical arrival time, us"),
    Entry("provider_tokens", "P:tpm", "string", "enter, leave", "2 min", "GCRA's theoretical arrival time, us"),
    Entry(
        "provider_alone",
        "P:alone",
        "string",
        "leave",
        "what the provider asked for, 10 min at most",
        "until when the provider asked to be left alone, ms",
    ),
    Entry(
        "breaker",
        "P:m:<model>",
        "hash",
        "leave",
        "1 h and the longest open time",
        "a model's breaker: g generation, u open until, n times open, o open since, z closed at, k good probes, r failures in a row, "
        "b0-b9 the window, d successes, p50 and p95 of how long they took, ms",
    ),
    Entry(
        "breaker_probes",
        "P:m:<model>:p",
        "zset",
        "the llm scripts",
        "1 day",
        "token -> when the lease of a probe ends, ms",
    ),
    Entry(
        "breaker_times",
        "P:m:<model>:t",
        "list",
        "leave",
        "as its breaker",
        "how long the latest 100 successes took, ms",
    ),
    Entry(
        "cache_epoch",
        "U:ce",
        "string",
        "forget_user",
        "31 days",
        "tells the user's kept answers from those of before he was forgotten",
    ),
    Entry(
        "cache_answers",
        "U:ca",
        "zset",
        "note_answer",
        "as the longest answer; at most 1,000",
        "hash -> when the answer that is kept because of him ends, ms",
    ),
    Entry("kept_answer", "C:a", "hash", "fill", "cache_ttl_s", "at and body of a kept answer"),
    Entry(
        "flight",
        "C:f",
        "hash",
        "look_up, renew_flight, give_up",
        "its lease + 1 min",
        "who asks the model, until when, and how often that has failed",
    ),
    Entry("flight_waiting", "C:w", "zset", "look_up", "1 h", "ref -> since when a task waits for the answer, ms"),
    Entry(
        "telegram_lease",
        "B:tg:l",
        "string",
        "hold_bot, leave_bot",
        "10 s",
        "the process that serves the bot's Telegram front",
    ),
    Entry("telegram_taken", "B:tg:t:<update>", "string", "take_update", "2 days", "an update was taken"),
    Entry(
        "telegram_waiting",
        "B:tg:w",
        "zset",
        "put_update, take_update",
        "1 day; at most 2,000 entries",
        "ids of updates that came to the webhook",
    ),
    Entry(
        "telegram_updates",
        "B:tg:u",
        "hash",
        "put_update, take_update",
        "1 day; at most 2,000 entries",
        "update's id -> what is read of it",
    ),
    Entry(
        "telegram_unsent",
        "B:tg:o",
        "hash",
        "take_update, the front",
        "1 day",
        "update's id -> the reply that is to be sent, and which messages Telegram has of it",
    ),
    Entry(
        "telegram_turns",
        "B:tg:r",
        "zset",
        "take_turn, end_turn",
        "1 min; at most 30 entries",
        "turn of sending -> until when it counts, ms",
    ),
    Entry(
        "telegram_chat",
        "B:tg:c:<chat>",
        "string",
        "take_turn, end_turn",
        "16 s, or as Telegram said",
        "until when the chat is left alone, ms",
    ),
    Entry(
        "telegram_paused", "B:tg:p", "string", "end_turn", "as Telegram said", "until when the bot sends nothing, ms"
    ),
    Entry(
        "telegram_refused", "B:tg:x", "string", "end_turn", "10 s", "the chat to which Telegram refused a message last"
    ),
    Entry(
        "telegram_processes",
        "T:tg",
        "zset",
        "`repliq telegram`",
        "1 min; on shard 0 alone",
        "process that serves Telegram bots -> when it last showed itself, ms",
    ),
    Entry(
        "guesses",
        "T:guess:<address>",
        "set",
        "count_guess",
        "1 min; at most 60 entries",
        "keyed hashes of the unknown keys that an address (itself a keyed hash) has tried",
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

    def of_budget(self, shard: int, bot: str, scope: str, name: str, yyyymm: str) -> tuple[str, str]:
        """Return the month of a budget and what is reserved of it; `scope` is bot, key (`name`: its prefix) or user."""
        if scope == "user":
            key = self.of_user("user_budget", shard, bot, name) + yyyymm
        elif scope == "key":
            key = self.of_bot("key_budget", shard, bot, f"{name}:{yyyymm}")
        else:
            key = self.of_bot("budget", shard, bot, yyyymm)
        return key, key + ":r"

    def of_dialog(self, shard: int, bot: str, ref: str) -> tuple[str, str, str]:
        """Return a dialog's header, messages and message ids."""
        key = f"{self._tags[shard]}:{bot}:d:{ref}"
        return key + ":m", key + ":l", key + ":i"

    def of_answer(self, name: str, digest: str) -> str:
        """Return a key of a kept answer, by the hash of what was asked: each has a hash tag of its own."""
        return f"{self.prefix}:rc:{{{digest}}}:{_ANSWER[name]}"

    def of_lane(self, shard: int, bot: str, dialog: str, owner: str) -> tuple[str, str]:
        """Return a dialog's lane and what it holds back; the lane of a user's own dialog is named for him, whichever dialog that is."""
        if owner:
            return self.of_user("user_lane", shard, bot, owner), self.of_user("user_lane_held", shard, bot, owner)
        key = f"{self._tags[shard]}:{bot}:d:{dialog}"
        return key + ":w", key + ":wl"

    def of_provider(self, name: str, provider: str, model: str = "") -> str:
        """Return a key of a provider, or of a model of it: all of a provider's share a hash tag of their own."""
        kept = encode(model)
        if len(kept) > _LONGEST_NAME:  # callers may name models
            kept = "#" + hashlib.blake2b(model.encode(), digest_size=16).hexdigest()
        return f"{self.prefix}:{{p:{encode(provider)}}}:{_PROVIDER[name]}".replace("<model>", kept)

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
_ANSWER = _suffixes("C")
_PROVIDER = {entry.name: entry.pattern.removeprefix("P:") for entry in CATALOGUE if entry.pattern.startswith("P:")}
