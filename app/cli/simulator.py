"""`repliq simulator`: an OpenAI-compatible server that answers without an account."""

from __future__ import annotations

import sys

import click

from app.llm.simulator import server


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8001, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Seed of jitter.")
def command(host: str, port: int, seed: int) -> None:
    """Run the model simulator."""
    sys.exit(server.serve(host, port, seed=seed))
