"""The deployment that a command works on: a runtime over its servers, and the bot that the user means."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from app.cli import target
from app.core import errors

if TYPE_CHECKING:
    from app.runtime import Runtime


@contextlib.contextmanager
def opened() -> Iterator[Runtime]:
    """Build a runtime over the deployment's servers. No task is sent from here: what asks for a drain is asked again by beat."""
    from app.core import settings
    from app.runtime import Runtime

    runtime = Runtime(target.resolve(settings.load()), lambda *_: None, lambda: 0, patient=True)
    try:
        yield runtime
    finally:
        runtime.close()


def bot_id(runtime: Runtime, word: str) -> str:
    """Return a bot's id, by its id, by `default`, or by a name that no other has; raise `NotFound` or `ConfigurationError`."""
    from app.cli import bots

    with runtime.sessions.begin() as session:
        owner = bots.organisation(session)
        with contextlib.suppress(errors.NotFound):
            return str(bots.find(session, owner, word).id)
        named = [str(bot.id) for bot in bots.all_of(session, owner) if bot.name == word]
    if len(named) > 1:
        raise errors.ConfigurationError(
            f"{len(named)} bots have the name '{word}'; name one by its id: {', '.join(named)}"
        )
    if not named:
        raise errors.NotFound(f"There is no bot '{word[:80]}'. `repliq bots list` shows them.")
    return named[0]
