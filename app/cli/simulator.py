"""`repliq simulator`: an OpenAI-compatible server that answers without an account."""

from __future__ import annotations

import sys

import click

from app.llm.simulator import dialects, server


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8001, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Seed of jitter.")
@click.option(
    "--dialect",
    default="openai",
    show_default=True,
    type=click.Choice(sorted(dialects.DIALECTS)),
    help="Whose ways it has; Azure's paths are always there.",
)
def command(host: str, port: int, seed: int, dialect: str) -> None:
    """Run the model simulator."""
    sys.exit(server.serve(host, port, seed=seed, dialect=dialect))
