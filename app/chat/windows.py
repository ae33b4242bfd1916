"""What a model is given before a request's own messages: the system prompt, the summary of a dialog, its last messages."""

from __future__ import annotations

from app.dialogs.live import Context

Messages = list[dict[str, str]]
_SUMMARY = "Summary of the conversation so far:\n"


def system(prompt: str | None) -> Messages:
    """Return the system prompt as a message, where there is one."""
    return [{"role": "system", "content": prompt}] if prompt else []


def given(prompt: str | None, context: Context) -> Messages:
    """Return what a model is given of a dialog."""
    summary = [{"role": "system", "content": _SUMMARY + context.summary}] if context.summary else []
    return [
        *system(prompt),
        *summary,
        *({"role": message.role, "content": message.body} for message in context.messages),
    ]
