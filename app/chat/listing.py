"""Tasks that Redis may no longer have: the list and single ones, from the history, with the live ones as Redis knows them."""

from __future__ import annotations

from typing import Any

from app.chat import records
from app.chat.ledger import Ledger
from app.core import clock, errors, ids
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.history import reads

_STATUS = {"success": "completed", "error": "failed", "cancelled": "cancelled", "pending": "in_progress"}
_ROW_STATUS = {
    "completed": "success",
    "failed": "error",
    "cancelled": "cancelled",
    "queued": "pending",
    "in_progress": "pending",
}


class TaskList:
    """Lists a bot's tasks, newest first."""

    def __init__(self, ledger: Ledger, outbox: Outbox, sessions: Sessions, shards: int) -> None:
        self.ledger = ledger
        self.outbox = outbox
        self.sessions = sessions
        self.shards = shards

    def one(self, bot: str, ref: str) -> dict[str, Any]:
        """Read a task from the history; raise `NotFound` when it is not there, or another bot's."""
        if ids.shard_of(bot, self.shards) != ids.shard_in(ref):
            raise errors.NotFound(f"There is no task 'task_{ref}'.", param="id")
        with self.sessions.begin() as session:
            row = reads.task_row(session, bot, ids.uuid_in(ref))
            if row is None:
                raise errors.NotFound(f"There is no task 'task_{ref}'.", param="id")
            return _of_row(row, ref)

    def arrives(self, ref: str) -> bool:
        """Tell whether something of a task is still on its way to the history."""
        return any(fields["ref"] == ref for _, fields in self.outbox.pending("history", ids.shard_in(ref)))

    def page(self, bot: str, status: str | None, user: str | None, cursor: str | None, limit: int) -> dict[str, Any]:
        """Return a page. What was submitted in the last moment may still be on its way to the history."""
        shard = ids.shard_of(bot, self.shards)
        with self.sessions.begin() as session:
            page = reads.list_tasks(session, bot, _ROW_STATUS[status] if status else None, user, cursor, limit)
            rows = [_of_row(row, ids.ref_of(shard, row.id)) for row in page.data]
        found = [self._now(row) for row in rows]
        if status:
            found = [row for row in found if row["status"] == status]
        return {"data": found, "next_cursor": page.next_cursor}

    def _now(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return an unfinished row as Redis knows it now."""
        if row["status"] not in records.OPEN:
            return row
        task = self.ledger.read(row["id"].removeprefix("task_"))
        return records.to_object(task) if task is not None else row


def _of_row(row: Any, ref: str) -> dict[str, Any]:
    """Return a history row as the task object."""
    status = _STATUS[row.status]
    usage = (
        None
        if row.tokens_used is None
        else {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.tokens_used,
        }
    )
    error = None
    if status in ("failed", "cancelled"):
        error = {
            "message": row.error_message or "",
            "type": "server_error",
            "code": row.error_code or "internal_error",
            "param": None,
        }
    created = row.created_at.timestamp() * 1000
    dialog = f"dlg_{ids.ref_of(ids.shard_in(ref), row.dialog_id)}" if row.dialog_id else None
    ended = created + row.response_time if row.response_time is not None else None
    return {
        "id": f"task_{ref}", "object": "task", "type": row.request_type, "status": status, "created_at": clock.rfc3339(created),
        "started_at": None, "finished_at": clock.rfc3339(ended) if ended else None, "request_id": row.request_id,
        "user": None if row.user_id.startswith("key:") else row.user_id, "dialog_id": dialog,
        "model": row.model or None, "queue_position": None, "reason": None, "attempts": row.attempts or 0,
        "result": row.response_data if status == "completed" else None, "error": error, "usage": usage,
        "cost": None if row.cost is None else f"{row.cost:f}",
    }  # fmt: skip
