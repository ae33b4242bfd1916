"""The `repliq` command. Each subcommand lives in a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import sys

import click

from app.core import errors

_COMMANDS = {
    "up": "Run everything on this machine: servers, API, workers, beat.",
    "api": "Run the API.",
    "worker": "Run a worker process.",
    "beat": "Run beat, which sends the regular tasks.",
    "flower": "Run Flower, the view of workers and queues.",
    "alive": "Say whether a process of this machine lives, for health checks.",
    "migrate": "Bring the database to the newest migration.",
    "backup": "Back up PostgreSQL and Redis, as they are at one moment.",
    "restore": "Bring a backup back.",
    "doctor": "Say what is wrong with settings, servers and providers.",
    "keys": "Make, list, rotate and revoke API keys.",
    "bots": "Make, list and change bots.",
    "audit": "List what was done to bots, keys, prompts and users, and by whom.",
    "providers": "Watch providers; check their file; store bots' own keys.",
    "budgets": "Show how the budgets stand.",
    "cache": "Look after the cache of answers: pgvector, wrong and missed hits.",
    "costs": "Show what models cost, and price requests afterwards.",
    "prompts": "Make, try and compare prompts: named templates with versions.",
    "dialogs": "Take dialogs out into a file, and bring them in.",
    "history": "Take the history of requests out into a file.",
    "events": "Look after the events that travel over the message broker.",
    "analytics": "Count the figures of analytics again from its events.",
    "reports": "List, show and make weekly reports.",
    "webhooks": "Look after webhooks: secrets, deliveries, receivers.",
    "telegram": "Serve Telegram bots.",
    "chat": "Chat in the terminal.",
    "simulator": "Run the model simulator.",
}


class _Lazy(click.Group):
    """Imports a subcommand when it is called, so that each process loads only what it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"app.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="repliq", prog_name="repliq")
def command() -> None:
    """Repliq: the backend that chat bots talk to."""


def main() -> None:
    """Run the command; what a user can mend is told in one line."""
    try:
        command(prog_name="repliq", standalone_mode=True)
    except errors.RepliqError as error:
        click.echo(f"repliq: {error}", err=True)
        sys.exit(1)
