"""What containers are told to run, parsed as the `repliq` command parses it."""

from __future__ import annotations

from collections.abc import Sequence

import click

from app import cli


def parsed(words: Sequence[str]) -> click.Context:
    """Return a subcommand's context with its parameters; fail where the command does not know one of the words."""
    assert words[0] in cli._COMMANDS, words
    found = cli.command.get_command(click.Context(cli.command), words[0])
    assert found is not None
    context = found.make_context(words[0], list(words[1:]))
    assert not context.args, words
    return context
