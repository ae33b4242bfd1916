"""`repliq history`: takes a bot's requests out into a file, and goes on where that was stopped."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from app.cli import guards, site
from app.cli.moments import Moment
from app.cli.progress import Progress

if TYPE_CHECKING:
    import uuid

    from app.history.exports import Export

_PART = ".part"


@click.group("history")
def command() -> None:
    """Take the history of requests out into a file."""


@command.command("export")
@click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
@click.option("--user", help="Requests of this user alone.")
@click.option("--session", help="Requests of this session alone.")
@click.option(
    "--status", type=click.Choice(["pending", "success", "error", "cancelled"]), help="Requests of this status alone."
)
@click.option("--provider", help="Requests of this provider alone.")
@click.option("--model", help="Requests of this model alone.")
@click.option("--prompt", help="Requests made with this prompt alone.")
@click.option("--variant", help="Requests of this variant alone, as EXPERIMENT/VARIANT.")
@click.option("--from", "since", type=Moment(), help="Requests admitted then or later; a date is its beginning in UTC.")
@click.option("--to", "until", type=Moment(), help="Requests admitted before.")
@click.option("--format", "format_", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True)
@click.option(
    "--out", "-o", "output", default="-", show_default="standard output", metavar="FILE", help="The file to write."
)
@click.option(
    "--resume", is_flag=True, help="Go on with FILE.part, with the same options, where an export was stopped."
)
def export(output: str, resume: bool, bot: str, format_: Any, **filters: Any) -> None:
    """Export requests with what was asked and answered, in the order of their admission, as JSON Lines or CSV."""
    from app.history import exports
    from app.history.requests import Wanted

    if resume and (output == "-" or format_ == "csv"):
        raise click.UsageError("--resume needs --out, and JSON Lines.")
    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        shards, wanted = runtime.settings.redis_shards, Wanted(**filters)
        if output == "-":
            run = exports.Export(runtime.sessions, identifier, shards, wanted, format_)
            with guards.stopping("Stopped."):
                _pour(run, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            click.echo(_exported(run, "standard output"), err=True)
            return
        part, path = Path(output + _PART), Path(output)
        last, count, size = _cut(part) if resume else (None, 0, 0)
        after = exports.position(runtime.sessions, identifier, last) if last else None
        run = exports.Export(runtime.sessions, identifier, shards, wanted, format_, after=after, requests=count)
        with guards.writing(part), part.open("r+b" if size else "wb") as file:
            file.truncate(size)
            file.seek(size)
            hint = "; --resume goes on with it" if format_ == "jsonl" else ""
            with guards.stopping(f"Stopped. What there is of it is in {part}{hint}."):
                _pour(run, file)
            file.flush()
            os.fsync(file.fileno())
        with guards.writing(path):
            part.replace(path)
    click.echo(_exported(run, output))


def _pour(run: Export, file: IO[bytes]) -> None:
    progress = Progress(0)
    try:
        for block in run:
            file.write(block)
            progress.at(run.requests, _amount(run.requests))
    finally:
        progress.end()


def _exported(run: Export, where: str) -> str:
    return f"Exported {_amount(run.requests)} to {where}."


def _amount(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"


def _cut(part: Path) -> tuple[uuid.UUID | None, int, int]:
    """Find where to go on with a part: behind its last whole line. Returns that request's id, how many are kept, and how many bytes."""
    import uuid

    import orjson

    last, count, size = "", 0, 0
    with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
        for line in file:
            try:
                found = orjson.loads(line) if line.endswith(b"\n") else {}
            except orjson.JSONDecodeError:
                break
            if found.get("object") != "request":
                break
            last, count, size = found["id"], count + 1, size + len(line)
    return uuid.UUID(last) if last else None, count, size
