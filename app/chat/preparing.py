"""What a provider is given for a task: the prompt, the dialog's context, what the owner's server knows of the user, the request itself."""

from __future__ import annotations

from typing import Any

from app.chat import caps, ends, summaries, windows
from app.chat.asking import Stopped
from app.chat.personal import Personal
from app.chat.pulse import Held
from app.chat.records import Task
from app.chat.summaries import Summaries
from app.dialogs.live import Context, LiveDialogs


class Preparing:
    """Builds requests for providers."""

    def __init__(self, dialogs: LiveDialogs, folding: Summaries, personal: Personal) -> None:
        self.dialogs = dialogs
        self.summaries = folding
        self.personal = personal

    def body(self, held: Held, envelope: dict[str, Any]) -> dict[str, Any]:
        """Return the request but for the model's name; `held.context` is then what was read of the dialog.

        Raise `Unavailable` where the dialog cannot be read now, `ContextLengthExceeded` where the bot's cap does not hold the request.
        """
        task = held.task
        body: dict[str, Any] = dict(envelope["body"])
        if task.kind == summaries.KIND:
            folded = self.summaries.messages(task, ends.keeping_in(envelope), envelope["fold"])
            if not folded:
                raise Stopped  # another summary was faster
            return _capped(body | {"messages": folded}, envelope)
        lead = windows.system(envelope.get("system"))
        if task.dialog:
            held.context = self._context(task, envelope)
            lead = windows.given(envelope.get("system"), held.context)
        known = self.personal.of(task, envelope)
        if known:
            lead.insert(1 if envelope.get("system") else 0, {"role": "system", "content": known})
        body["messages"] = [*lead, *body["messages"]] if lead else body["messages"]
        return _capped(caps.fit(body, envelope["caps"]) if "caps" in envelope else body, envelope)

    def _context(self, task: Task, envelope: dict[str, Any]) -> Context:
        """Read the dialog. The one that a user's messages go to begins with the first of them."""
        return self.dialogs.context(
            task.bot, task.dialog, ends.keeping_in(envelope), max_messages=2 * envelope["exchanges"],
            max_tokens=envelope["context_tokens"], owner=ends.own(task),
        )  # fmt: skip


def _capped(body: dict[str, Any], envelope: dict[str, Any]) -> dict[str, Any]:
    """Bound the answer's length, where the bot does, or where a budget has been asked for so much."""
    wanted = [cap for cap in (envelope.get("caps", {}).get("output_tokens"), envelope.get("output_cap")) if cap]
    if not wanted:
        return body
    named = {name: min(body[name], *wanted) for name in ("max_completion_tokens", "max_tokens") if body.get(name)}
    return body | (named or {"max_completion_tokens": min(wanted)})
