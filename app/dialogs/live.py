"""Live dialogs in Redis: each call is one script; what Redis lacks is put in place from PostgreSQL first, unnoticed."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from app.core import errors, ids, metrics
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts
from app.dialogs import archive, packing
from app.dialogs.loading import RESERVED, Keeping, Loading
from app.dialogs.packing import Message, Said

_DAY_MS = 86_400_000
_PURGED_AT_ONCE = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """What a model is given of a dialog: the summary of what came before, and the last messages, oldest first.

    `first` is the seq of the first of them (of the next one, where there are none), `folded` the seq up to which the summary goes,
    `count` and `total` the messages and tokens of the whole dialog.
    """

    version: int
    messages: list[Message]
    tokens: int
    first: int
    last: int
    folded: int
    summary: str
    count: int
    total: int


@dataclasses.dataclass(frozen=True, slots=True)
class Header:
    """A dialog without its messages. Times are ms since the epoch, `meta` is JSON or ''; `said_ms` is 0 without a message, `first` the seq
    of the first message that Redis has."""

    ref: str
    user: str
    kind: str
    title: str
    state: str
    meta: str
    count: int
    tokens: int
    version: int
    created_ms: int
    updated_ms: int
    said_ms: int
    seq: int
    first: int = 1

    @property
    def active_ms(self) -> int:
        """Return what lists are sorted by."""
        return self.said_ms or self.created_ms


@dataclasses.dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: the version after it, the seq of each message in the order given, and when the new ones were written, ms
    (0 when all were known)."""

    version: int
    at_ms: int
    seqs: list[int]


def _unseen(result: str) -> None:
    """Leave a look-up uncounted."""


def _count(result: str) -> None:
    metrics.context_reads.labels(result).inc()


class LiveDialogs:
    """The dialogs that Redis holds."""

    def __init__(self, scripts: Scripts, keys: Keys, outbox: Outbox, sessions: Sessions, queue: Queue) -> None:
        self.scripts = scripts
        self.keys = keys
        self.outbox = outbox
        self.sessions = sessions
        self.queue = queue
        self.loading = Loading(scripts, keys, outbox, sessions, queue)

    def create(
        self,
        bot: str,
        user: str,
        keeping: Keeping,
        *,
        title: str = "",
        meta: str = "",
        said: Sequence[Said] = (),
        ref: str = "",
    ) -> str:
        """Make a dialog with its first messages (100 at the most); return its reference, which may be given."""
        shard = ids.shard_of(bot, self.keys.shards)
        ref = ref or ids.new_ref(shard)
        names = [*self.keys.of_dialog(shard, bot, ref), *self._indexes(shard, bot), self.keys.of_shard("born", shard)]
        args = [
            ref,
            bot,
            user,
            title,
            meta,
            int(keeping.lasting),
            keeping.messages,
            keeping.ttl_ms,
            self.queue.drain("dialogs", shard),
        ]
        self.scripts.run("dialogs/create_dialog", [*names, *self._outbox(shard)], [*args, *_flat(said)])
        self._told(shard)
        return ref

    def append(
        self,
        bot: str,
        ref: str,
        said: Sequence[Said],
        keeping: Keeping,
        *,
        version: int | None = None,
        own_ids: bool = False,
    ) -> Appended:
        """Append up to 100 messages, all or none; those whose id is known keep their place.

        With `own_ids` the ids are a caller's, who may come again with one that Redis has let go long ago: PostgreSQL is then asked, too.
        Raises `NotFound`, `DialogArchived`, `VersionMismatch` where it is not at the version given, and `Unavailable` while too many
        of its messages are on their way to PostgreSQL.
        """
        shard = self._shard(bot, ref)
        if own_ids and (known := self._long_known(bot, ref, keeping, said)):
            return known
        names = [*self.keys.of_dialog(shard, bot, ref), *self._indexes(shard, bot), *self._outbox(shard)]
        args = [
            ref,
            bot,
            "" if version is None else version,
            keeping.messages,
            keeping.ttl_ms,
            RESERVED // 2,
            int(keeping.lasting),
        ]
        reply = self._run(
            "dialogs/append_messages",
            bot,
            ref,
            keeping,
            names,
            [*args, self.queue.drain("dialogs", shard), *_flat(said)],
        )
        if reply[0] == -6:
            raise errors.Unavailable("Too many messages of this dialog wait for PostgreSQL. Try again.", retry_s=2)
        if reply[0] == 1:
            self._told(shard)
        return Appended(reply[1], reply[2], reply[3:])

    def context(
        self,
        bot: str,
        ref: str,
        keeping: Keeping,
        *,
        max_messages: int,
        max_tokens: int = 0,
        first_role: str = "user",
        owner: str = "",
    ) -> Context:
        """Read a dialog's last messages (100 at the most) within a budget of tokens (0: none), from a role on, and its summary.

        With an `owner` a dialog that is nowhere begins empty, as his own; else `NotFound` is raised.
        """
        shard = self._shard(bot, ref)
        names = list(self.keys.of_dialog(shard, bot, ref)[:2])
        reply = self._run(
            "dialogs/read_context",
            bot,
            ref,
            keeping,
            names,
            [max_messages, max_tokens, first_role],
            owner=owner,
            seen=_count,
        )
        _, version, state, first, last, here, kept, count, total, tokens, folded, summary, *packed = reply
        if state == b"deleted" and not owner:
            raise _missing(ref)
        messages = [packing.unpack(one) for one in packed]
        if here > 1 and kept < min(max_messages, 100) and (not max_tokens or tokens < max_tokens):
            messages, tokens = self._long_window(bot, ref, keeping, max_messages, max_tokens, first_role)
            first = messages[0].seq if messages else last + 1
        return Context(version, messages, tokens, first, last, folded, summary.decode(), count, total)

    def page(self, bot: str, ref: str, keeping: Keeping, *, cursor: int, limit: int, ascending: bool) -> list[Message]:
        """Return up to `limit` (200) messages above or below a seq (0: from the beginning or the end) in the order asked for.

        What has left Redis comes from PostgreSQL.
        """
        shard = self._shard(bot, ref)
        args = [cursor, "asc" if ascending else "desc", limit]
        reply = self._run("dialogs/read_page", bot, ref, keeping, list(self.keys.of_dialog(shard, bot, ref)[:2]), args)
        _, state, here, _, *packed = reply
        if state == b"deleted":
            raise _missing(ref)
        found = [packing.unpack(one) for one in packed]
        if here == 1:
            return found
        if ascending and cursor + 1 < here:
            with self.sessions.begin() as session:
                older = archive.page(session, ref, cursor, here, limit, ascending=True)
            return (older + found)[:limit]
        if not ascending and len(found) < limit:
            with self.sessions.begin() as session:
                found += archive.page(session, ref, None, min(here, cursor or here), limit - len(found))
        return found

    def header(self, bot: str, ref: str, keeping: Keeping) -> Header:
        """Return a dialog without its messages; raise `NotFound`."""
        names = list(self.keys.of_dialog(self._shard(bot, ref), bot, ref))
        flat = self._run("dialogs/read_dialog", bot, ref, keeping, names, [])[1:]
        header = _header(ref, dict(zip(flat[::2], flat[1::2], strict=True)))
        if header is None:
            raise _missing(ref)
        return header

    def headers(self, bot: str, refs: Sequence[str]) -> dict[str, Header | None]:
        """Return those of these dialogs that Redis has, in one trip; None for a deleted one."""
        if not refs:
            return {}
        shard = ids.shard_of(bot, self.keys.shards)
        with self.scripts.store.borrow() as client:
            pipe = client.pipeline(transaction=False)
            for ref in refs:
                pipe.hgetall(self.keys.of_dialog(shard, bot, ref)[0])
            return {ref: _header(ref, raw) for ref, raw in zip(refs, pipe.execute(), strict=True) if raw}

    def unwritten(self, bot: str, most: int) -> list[str]:
        """Return the dialogs that PostgreSQL does not have as they are now, latest first."""
        shard = ids.shard_of(bot, self.keys.shards)
        reply = self.scripts.run("dialogs/list_dialogs", [self.keys.of_bot("dialogs_dirty", shard, bot)], [most])
        return [ref.decode() for ref in reply]

    def unwritten_among(self, bot: str, refs: Sequence[str]) -> set[str]:
        """Return which of these dialogs PostgreSQL does not have as they are now."""
        dirty = self.keys.of_bot("dialogs_dirty", ids.shard_of(bot, self.keys.shards), bot)
        scores = self.scripts.store.call("ZMSCORE", dirty, *refs) if refs else []
        return {ref for ref, score in zip(refs, scores, strict=True) if score is not None}

    def change(
        self, bot: str, ref: str, keeping: Keeping, values: dict[str, str], *, version: int | None = None
    ) -> int:
        """Change the title or the metadata (`title`, `meta`); return the new version. What is so already is no change.

        Raises `NotFound` or `VersionMismatch`."""
        return self._change(bot, ref, keeping, values, 0, version)[1]

    def fold(self, bot: str, ref: str, keeping: Keeping, summary: str, up_to: int) -> bool:
        """Let a summary stand for the messages up to a seq; False where a later one is there."""
        return self._change(bot, ref, keeping, {"sm": summary}, up_to, None)[0]

    def archive(self, bot: str, ref: str, keeping: Keeping) -> None:
        """Close a dialog to appends; raise `NotFound`."""
        self._move(bot, ref, keeping, "archived")

    def restore(self, bot: str, ref: str, keeping: Keeping) -> None:
        """Open an archived dialog again; raise `NotFound`."""
        self._move(bot, ref, keeping, "active")

    def delete(self, bot: str, ref: str, keeping: Keeping) -> None:
        """Delete a dialog; raise `NotFound`, also when it was deleted before."""
        header = self.header(bot, ref, keeping)
        shard = self._shard(bot, ref)
        args = [ref, bot, ids.new_ref(shard), "", self.queue.drain("dialogs", shard)]
        reply = self._run(
            "dialogs/delete_dialog", bot, ref, keeping, self._with_profile(shard, bot, ref, header.user), args
        )
        if reply[0] == 0:
            raise _missing(ref)
        self._told(shard)

    def purge(self, bot: str, idle_ms: int, now_ms: int, *, skip: int = 0) -> tuple[int, int]:
        """Let dialogs leave Redis that have been idle for so long and that PostgreSQL has: of 20, behind `skip` that must stay.

        Returns how many left, and how many must stay for now.
        """
        shard = ids.shard_of(bot, self.keys.shards)
        index, cutoff = self.keys.of_bot("dialogs_here", shard, bot), now_ms - idle_ms
        raw = self.scripts.store.call("ZRANGEBYSCORE", index, "-inf", f"({cutoff}", "LIMIT", skip, _PURGED_AT_ONCE)
        refs = [ref.decode() for ref in raw]
        if not refs:
            return 0, 0
        with self.sessions.begin() as session:
            archive.lay_to_rest(session, refs)
        names = [index, *(name for ref in refs for name in self.keys.of_dialog(shard, bot, ref))]
        gone = {ref.decode() for ref in self.scripts.run("dialogs/purge_dialogs", names, [cutoff, *refs])}
        if stayed := set(refs) - gone:
            with self.sessions.begin() as session:
                archive.awaken(session, stayed)
        return len(gone), len(stayed)

    def load(self, bot: str, ref: str, keeping: Keeping, *, owner: str = "") -> None:
        """Put a dialog in place; raise `NotFound` where it is nowhere and has no owner, `Unavailable` without PostgreSQL."""
        self.loading.load(bot, ref, keeping, owner=owner)

    def forget(self, bot: str, ref: str) -> None:
        """Take a dialog out of Redis, so that it is read anew."""
        shard = ids.shard_in(ref)
        self.scripts.store.call("UNLINK", *self.keys.of_dialog(shard, bot, ref))
        self.scripts.store.call("ZREM", self.keys.of_bot("dialogs_dirty", shard, bot), ref)

    def bury(self, bot: str, ref: str, user: str) -> None:
        """Leave the mark of a deleted dialog, whatever Redis has of it: nobody who loads it at this moment brings it back."""
        shard = self._shard(bot, ref)
        args = [ref, bot, ids.new_ref(shard), user, self.queue.drain("dialogs", shard)]
        self.scripts.run("dialogs/delete_dialog", self._with_profile(shard, bot, ref, user), args)
        self._told(shard)

    def mark_flushed(self, bot: str, ref: str, seq: int, version: int) -> None:
        """Remember that PostgreSQL has a dialog up to a seq and a version."""
        shard = ids.shard_in(ref)
        names = [*self.keys.of_dialog(shard, bot, ref), self.keys.of_bot("dialogs_dirty", shard, bot)]
        code = self.scripts.run("dialogs/mark_flushed", names, [ref, seq, version])[0]
        if code == 2:
            with self.sessions.begin() as session:
                archive.lay_to_rest(session, [ref])
        elif code == 3:  # it was deleted: what a late drainer wrote again goes again
            with self.sessions.begin() as session:
                archive.remove(session, bot, [ref])

    def _long_known(self, bot: str, ref: str, keeping: Keeping, said: Sequence[Said]) -> Appended | None:
        """Return the places of messages that PostgreSQL has, if it has them all."""
        header = self.header(bot, ref, keeping)
        if header.first <= 1:
            return None
        with self.sessions.begin() as session:
            known = archive.known_ids(session, ref, [message.mid for message in said])
        if any(message.mid not in known for message in said):
            return None
        return Appended(header.version, 0, [known[message.mid] for message in said])

    def _change(
        self, bot: str, ref: str, keeping: Keeping, values: dict[str, str], folded: int, version: int | None
    ) -> tuple[bool, int]:
        shard = self._shard(bot, ref)
        names = [*self.keys.of_dialog(shard, bot, ref), *self._indexes(shard, bot), *self._outbox(shard)]
        changes = [part for pair in values.items() for part in pair]
        args = [
            ref,
            bot,
            "" if version is None else version,
            keeping.ttl_ms,
            self.queue.drain("dialogs", shard),
            folded,
            int(keeping.lasting),
            *changes,
        ]
        reply = self._run("dialogs/change_dialog", bot, ref, keeping, names, args)
        if reply[0] == 1:
            self._told(shard)
        return reply[0] == 1, int(reply[1])

    def _move(self, bot: str, ref: str, keeping: Keeping, state: str) -> None:
        shard = self._shard(bot, ref)
        names = self._with_profile(shard, bot, ref, self.header(bot, ref, keeping).user)
        args = [ref, bot, state, ids.new_ref(shard), keeping.ttl_ms, self.queue.drain("dialogs", shard)]
        if self._run("dialogs/move_dialog", bot, ref, keeping, names, args)[0] == 1:
            self._told(shard)

    def _run(
        self,
        name: str,
        bot: str,
        ref: str,
        keeping: Keeping,
        names: Sequence[str],
        args: Sequence[Any],
        *,
        owner: str = "",
        seen: Callable[[str], None] = _unseen,
    ) -> list[Any]:
        """Run a script, with the dialog put in place where it is missing or torn; map its refusals to errors."""
        for result in ("hit", "miss", "miss"):
            reply: list[Any] = self.scripts.run(name, names, args)
            if reply[0] not in (-1, -5):
                seen(result)
                return self._refused(ref, reply)
            self.load(bot, ref, keeping, owner=owner)
        raise errors.Unavailable("The dialog could not be loaded; Redis may be short of memory.")

    def _refused(self, ref: str, reply: list[Any]) -> list[Any]:
        if reply[0] == -2:
            raise errors.VersionMismatch(f"The dialog is at version {reply[1]} by now.", param="If-Match")
        if reply[0] == -3:
            if reply[1] == b"deleted":
                raise _missing(ref)
            raise errors.DialogArchived("The dialog is archived; restore it before anything is appended.")
        return reply

    def _long_window(
        self, bot: str, ref: str, keeping: Keeping, max_messages: int, max_tokens: int, first_role: str
    ) -> tuple[list[Message], int]:
        """Return a window that is longer than what Redis keeps, with its tokens."""
        found = self.page(bot, ref, keeping, cursor=0, limit=min(max_messages, 100), ascending=False)[::-1]
        return _within(found, max_tokens, first_role)

    def _shard(self, bot: str, ref: str) -> int:
        """Return the shard of a bot's dialog; raise `NotFound` for a reference that cannot be this bot's."""
        shard = ids.shard_in(ref)
        if shard != ids.shard_of(bot, self.keys.shards):
            raise _missing(ref)
        return shard

    def _indexes(self, shard: int, bot: str) -> list[str]:
        return [self.keys.of_bot(name, shard, bot) for name in ("dialogs_here", "dialogs_dirty")]

    def _outbox(self, shard: int) -> list[str]:
        history = self.keys.queue("history") if self.queue.direct else self.keys.nothing(shard)
        return [self.keys.of_outbox("dialogs", shard), self.keys.of_outbox("dialogs", shard, ":kick"), history]

    def _with_profile(self, shard: int, bot: str, ref: str, user: str) -> list[str]:
        profile = self.keys.of_user("profile", shard, bot, user)
        return [*self.keys.of_dialog(shard, bot, ref), *self._indexes(shard, bot), profile, *self._outbox(shard)]

    def _told(self, shard: int) -> None:
        """Ask for a drain, where the script could not."""
        if not self.queue.direct:
            with contextlib.suppress(errors.Unavailable):  # the next write asks again, and beat does
                self.queue.ask_drain("dialogs", shard)


def _missing(ref: str) -> errors.NotFound:
    return errors.NotFound(f"There is no dialog 'dlg_{ref}'.", param="id")


def _flat(said: Sequence[Said]) -> list[Any]:
    return [part for message in said for part in message]


def _header(ref: str, raw: dict[bytes, bytes]) -> Header | None:
    """Read a header; None for a deleted dialog."""
    if raw[b"st"] == b"deleted":
        return None
    text = {name.decode(): value.decode() for name, value in raw.items()}
    count = int(text["cnt"])
    return Header(
        ref, text["user"], text["kind"], text.get("title", ""), text["st"], text.get("meta", ""), count, int(text["sum"]),
        int(text["v"]), _ms(text["ct"]), _ms(text["ut"]), _ms(text["lt"]) if count else 0, int(text["seq"]), int(text["lo"]),
    )  # fmt: skip


def _ms(text: str) -> int:
    return int(float(text))


def _within(messages: list[Message], max_tokens: int, first_role: str) -> tuple[list[Message], int]:
    """Return the last messages within a budget of tokens, from a role on, and their tokens: what the script does with what Redis has."""
    first, spent = len(messages), 0
    while first > 0 and not (max_tokens and spent + messages[first - 1].tokens > max_tokens):
        first, spent = first - 1, spent + messages[first - 1].tokens
    while first_role and first < len(messages) and messages[first].role != first_role:
        first, spent = first + 1, spent - messages[first].tokens
    return messages[first:], spent
