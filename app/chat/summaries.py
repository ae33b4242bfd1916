"""Rolling summaries: when messages have left the context, a task of its own has the model fold them into the dialog's summary."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import Any

import orjson

from app.chat import prompts, reservations, rows
from app.chat.admission import Admission, Request
from app.chat.records import Task
from app.core import errors, ids, logs
from app.dialogs.live import Context, LiveDialogs
from app.dialogs.loading import Keeping
from app.dialogs.packing import Message
from app.limits.standing import Limits
from app.llm.providers import Providers

KIND = "dialog.summary"
USER = "key:summaries"
"""Summaries are the bot's own requests: on record with what they cost, and under no user's limits."""

_MOST_MESSAGES = 200
_DEADLINE_MS = 300_000
_AGAIN_S = 120
_MOST_CHARACTERS = 8000
_MOST_TOKENS = 6000
_KEPT = ("store", "dialog_ttl_ms", "kept", "exchanges", "context_tokens", "prices", "mask")
_log = logs.get(__name__)


class Summaries:
    """Asks for summaries, and builds what the model is given for one."""

    def __init__(self, admission: Admission, dialogs: LiveDialogs, providers: Providers) -> None:
        self.admission = admission
        self.providers = providers
        self.dialogs = dialogs

    def wanted(self, task: Task, envelope: dict[str, Any], context: Context) -> bool:
        """Tell whether enough has left a dialog's context: as much as the context itself holds, so that it is done seldom."""
        if not envelope.get("summaries") or task.kind == KIND:
            return False
        return bool(context.first - 1 - context.folded >= max(2, 2 * envelope["exchanges"]))

    def ask(self, task: Task, envelope: dict[str, Any], context: Context) -> None:
        """Submit the task, once for what is to be folded; when that cannot be done now, the next answer asks again."""
        shard = ids.shard_in(task.ref)
        folding = {"from": context.folded, "to": context.first - 1}
        row = rows.pending(
            kind=KIND, provider=task.provider, model=task.model, request=folding, request_id=task.request_id, dialog=task.dialog,
            telegram_id=None, language=None,
        )  # fmt: skip
        kept = {name: envelope[name] for name in _KEPT if name in envelope}
        fields = {
            "kind": KIND, "model": task.model, "stream": False, "request_id": task.request_id, "trace": task.trace,
            "dialog": task.dialog, "key": "", "telegram_id": None, "provider": task.provider,
        }  # fmt: skip
        made = {"body": {"messages": []}, "spoken": False, "fold": folding, **kept}
        budget = reservations.of_bots_own(task.budget, task.model, self.providers, task.bot, made)
        request = Request(
            ids.new_ref(shard), task.bot, USER, Limits(bot_window=task.bot_window), _DEADLINE_MS, orjson.dumps(made), row, fields,
            budget=budget,
        )  # fmt: skip
        request.fingerprint = "summary"
        # The same fold is asked for by every answer until it is done, and by the next ones again if it failed.
        request.idempotency = _digest(f"summary {task.dialog} {context.folded} {int(time.time()) // _AGAIN_S}")
        with contextlib.suppress(errors.Unavailable, errors.LimitExceeded):
            self.admission.admit(request)

    def messages(self, task: Task, keeping: Keeping, folding: dict[str, int]) -> list[dict[str, str]]:
        """Return what the model is given: the instructions, the summary so far, and the messages to be folded in.

        They are as many as a model can well take; `folding` then says how far they go, and a later summary takes the next. None are
        left where another summary was faster."""
        context = self.dialogs.context(task.bot, task.dialog, keeping, max_messages=0)
        start = max(folding["from"], context.folded)
        page = self.dialogs.page(task.bot, task.dialog, keeping, cursor=start, limit=_MOST_MESSAGES, ascending=True)
        said = _within([message for message in page if message.seq <= folding["to"]])
        if len(said) < len(page):
            folding["to"] = said[-1].seq if said else folding["to"]
        if not said:
            return []
        lines = [f"{message.role}: {message.body[:_MOST_CHARACTERS]}" for message in said]
        before = f"Summary so far:\n{context.summary}\n\n" if context.summary else ""
        return [
            {"role": "system", "content": prompts.summary()},
            {"role": "user", "content": f"{before}Messages:\n" + "\n".join(lines)},
        ]

    def keep(self, task: Task, keeping: Keeping, folding: dict[str, int], text: str) -> None:
        """Put a summary in its place; one that says nothing, and one that is behind another, changes nothing."""
        if text.strip():
            self.dialogs.fold(task.bot, task.dialog, keeping, text.strip()[:_MOST_CHARACTERS], folding["to"])


def _within(messages: list[Message]) -> list[Message]:
    """Return the first messages within a budget of tokens, one at least."""
    spent = 0
    found: list[Message] = []
    for message in messages:
        spent += min(message.tokens, _MOST_CHARACTERS // 4)
        if found and spent > _MOST_TOKENS:
            break
        found.append(message)
    return found


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
