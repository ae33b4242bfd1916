"""The right to erasure: what a user said goes, everywhere; what was counted stays, under a pseudonym."""

from __future__ import annotations

import contextlib

import orjson

from app.bots import audit
from app.chat.cached import CachedAnswers
from app.chat.tasks import Tasks
from app.core import announcements, clock, errors, ids
from app.core.database.engine import Sessions
from app.core.store import Keys
from app.dialogs.live import LiveDialogs
from app.history import reads
from app.limits.days import Days
from app.webhooks import log

_PAGE = 100
_KEPT_MS = 2 * 86_400_000
_MOST_DIALOGS = 100_000


class Erasure:
    """Forgets users."""

    def __init__(
        self,
        tasks: Tasks,
        dialogs: LiveDialogs,
        days: Days,
        keys: Keys,
        sessions: Sessions,
        shards: int,
        cached: CachedAnswers,
    ) -> None:
        self.tasks = tasks
        self.dialogs = dialogs
        self.days = days
        self.keys = keys
        self.sessions = sessions
        self.shards = shards
        self.cached = cached

    def erase(self, bot: str, user: str, by: audit.By = audit.NOBODY) -> None:
        """Forget a user's dialogs, contexts, answers (kept ones, too) and history; his open tasks are cancelled first.

        The day's count stays, so that nobody erases himself a second day. Of a user whom nobody knows no row is made, and
        none of the audit; but analytics is told, which may know him from events."""
        shard = ids.shard_of(bot, self.shards)
        recent = self._recent_tasks(bot, user, shard)
        self._end_tasks(recent)
        self.cached.forget(bot, user)
        unwritten = self._unwritten_dialogs(bot, user)
        refs: list[str] = []
        with self.sessions.begin() as session:
            audit.acting(session, by)
            reads.begin_erasure(session)
            log.forget_answers(session, bot, user)
            # Redis was asked first: what has left it meanwhile is in PostgreSQL by now.
            if recent or unwritten or reads.knows(session, bot, user):
                refs = reads.erase_user(session, bot, user, shard=shard)
            else:
                reads.announce_stranger(session, bot, user)
        with contextlib.suppress(errors.Unavailable):  # beat forwards what stays
            announcements.forward(self.sessions, self.tasks.ledger.events)
        store = self.dialogs.scripts.store
        known = store.call("HGET", self.keys.of_user("profile", shard, bot, user), "dialog")
        for ref in {*refs, *unwritten, *([known.decode()] if known else [])}:
            self.dialogs.bury(bot, ref, user)
        store.call("DEL", *(self.keys.of_user(name, shard, bot, user) for name in ("session", "user_context")))
        self.days.change(shard, bot, user)

    def _unwritten_dialogs(self, bot: str, user: str) -> list[str]:
        """Return his dialogs that PostgreSQL may not know of yet; of those it knows it tells itself."""
        refs = self.dialogs.unwritten(bot, _MOST_DIALOGS)
        found: list[str] = []
        for start in range(0, len(refs), _PAGE):
            headers = self.dialogs.headers(bot, refs[start : start + _PAGE])
            found += [ref for ref, header in headers.items() if header is not None and header.user == user]
        return found

    def _recent_tasks(self, bot: str, user: str, shard: int) -> set[str]:
        """Return the tasks that Redis may still hold: those of the last days, on their way to the history or there."""
        found = {
            fields["ref"]
            for _, fields in self.dialogs.outbox.pending("history", shard)
            if (row := orjson.loads(fields["row"]))["user"] == user and row["bot"] == bot
        }
        oldest, cursor = clock.now_ms() - _KEPT_MS, None
        while True:
            with self.sessions.begin() as session:
                page = reads.list_tasks(session, bot, None, user, cursor, _PAGE)
                rows = [(ids.ref_of(shard, row.id), row.created_at.timestamp() * 1000) for row in page.data]
            found.update(ref for ref, _ in rows)
            cursor = page.next_cursor
            if cursor is None or rows[-1][1] < oldest:
                return found

    def _end_tasks(self, refs: set[str]) -> None:
        """Cancel what is open; of what has ended take the record away, its answer with it."""
        for ref in refs:
            with contextlib.suppress(errors.NotFound, errors.AlreadyFinished):
                self.tasks.cancel(ref)
            task = self.tasks.read(ref)
            if task is not None and not task.open and not self.tasks.ledger.unsettled(task):
                names = [self.keys.of_task(name, ref) for name in ("task", "deltas", "waiters")]
                self.dialogs.scripts.store.call("UNLINK", *names)
