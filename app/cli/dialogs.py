"""`repliq dialogs`: takes a bot's dialogs out into a file of JSON Lines, and brings such a file in. Both go on where they were stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from app.cli import guards, site
from app.cli.progress import Progress
from app.core import errors

if TYPE_CHECKING:
    import uuid

    from app.dialogs.arrivals import Tally
    from app.dialogs.exports import Export
    from app.dialogs.imports import Import

_HEAD_BYTES = 64 * 1024
_PART, _STATE = ".part", ".import-state"
_FORMAT = 1


@click.group("dialogs")
def command() -> None:
    """Take dialogs out into a file, and bring them in."""


@command.command("export")
@click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
@click.option("--user", help="Dialogs of this user alone.")
@click.option("--status", type=click.Choice(["active", "archived"]), help="Dialogs of this status alone.")
@click.option("--output", "-o", default="-", show_default="standard output", help="The file to write.")
@click.option(
    "--resume", is_flag=True, help="Go on with OUTPUT.part, with the same options, where an export was stopped."
)
def export(bot: str, user: str | None, status: str | None, output: str, resume: bool) -> None:
    """Export dialogs with their messages as JSON Lines, the live ones too."""
    from app.dialogs.exports import Wanted

    if output == "-" and resume:
        raise click.UsageError("--resume needs --output.")
    with site.opened() as runtime:
        identifier = site.bot_id(runtime, bot)
        if output == "-":
            run = runtime.transfers.export(identifier, Wanted(user, status))
            with guards.stopping("Stopped."):
                _pour(run, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            click.echo(_exported(run, "standard output"), err=True)
            return
        part, path = Path(output + _PART), Path(output)
        after, dialogs, messages, size = _cut(part) if resume else (None, 0, 0, 0)
        run = runtime.transfers.export(
            identifier, Wanted(user, status, after=after), dialogs=dialogs, messages=messages
        )
        with guards.writing(part), part.open("r+b" if size else "wb") as file:
            file.truncate(size)
            file.seek(size)
            with guards.stopping(f"Stopped. What there is of it is in {part}; --resume goes on with it."):
                _pour(run, file)
            file.flush()
            os.fsync(file.fileno())
        with guards.writing(path):
            part.replace(path)
    click.echo(_exported(run, output))


@command.command("import")
@click.option("--bot", default="default", show_default=True, help="The bot's id or name, or `default`.")
@click.option("--resume", is_flag=True, help="Go on where an import of this file was stopped.")
@click.argument("file", metavar="FILE|-")
def import_(bot: str, resume: bool, file: str) -> None:
    """Import an export. What is there already stays as it is, so that an import may be repeated.

    The exit code is 1 when there were lines that could not be taken; they are listed, and all others are in.
    """
    lasts = file != "-" and not Path(file).is_fifo()
    if resume and not lasts:
        raise click.UsageError("--resume needs a file.")
    with site.opened() as runtime, _source(file) as source:
        identifier = site.bot_id(runtime, bot)
        state = _State(Path(file + _STATE), identifier, source) if lasts else None
        run = runtime.transfers.import_(identifier, state.read() if state and resume else None)
        if state:
            source.seek(run.offset)
        hint = "--resume goes on where it was" if state else "it may be repeated"
        with guards.stopping(f"Stopped. What was taken stays; {hint}."):
            _take(run, source, state)
    if state:
        state.remove()
    _tell(run.tally)
    sys.exit(int(run.tally.error_count > 0))


def _pour(run: Export, file: IO[bytes]) -> None:
    progress = Progress(run.dialogs + run.count())
    try:
        for block in run:
            file.write(block)
            progress.at(run.dialogs, f"{_amount(run.dialogs, 'dialog')}, {_amount(run.messages, 'message')}")
    finally:
        progress.end()


def _exported(run: Export, where: str) -> str:
    return f"Exported {_amount(run.dialogs, 'dialog')} with {_amount(run.messages, 'message')} to {where}."


def _take(run: Import, source: IO[bytes], state: _State | None) -> None:
    progress = Progress(state.size if state else 0)
    try:
        for _ in run.run(source.read):
            if state:
                state.write(run.state())
            tally = run.tally
            wrong = f", {_amount(tally.error_count, 'bad line')}" if tally.error_count else ""
            progress.at(run.offset, f"{_amount(tally.dialogs, 'dialog')}, {_amount(tally.messages, 'message')}{wrong}")
    finally:
        progress.end()


def _tell(tally: Tally) -> None:
    for error in tally.errors:
        click.echo(f"line {error['line']}: {error['message']}", err=True)
    if tally.error_count > len(tally.errors):
        click.echo(f"… and {tally.error_count - len(tally.errors):,} more lines that could not be taken", err=True)
    if not tally.complete:
        click.echo("The last line is no export.end: if this is an export, it was cut.", err=True)
    click.echo(
        f"Imported {_amount(tally.dialogs_created, 'dialog')} and {_amount(tally.messages_created, 'message')}; there already: "
        f"{tally.dialogs_known:,} and {tally.messages_known:,}; bad lines: {tally.error_count:,}."
    )


def _amount(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _cut(part: Path) -> tuple[uuid.UUID | None, int, int, int]:
    """Find where to go on with a part: behind its last whole dialog, which is one that another line of a dialog follows.

    Returns that dialog's id, how many dialogs and messages are kept, and how many bytes. Nothing is kept of no part at all.
    """
    from app.core import ids

    after, last = "", ""
    kept = dialogs = messages = told = position = 0
    with contextlib.suppress(FileNotFoundError), part.open("rb") as file:
        for line in file:
            kind, name = _kind(line)
            if kind in ("dialog", "export.end"):
                after, kept, messages = last, position, told
                dialogs += kind == "dialog"
                last = name
            told += kind == "message"
            position += len(line)
    if not after:
        return None, 0, 0, 0
    return ids.uuid_in(after.removeprefix("dlg_")), dialogs - bool(last), messages, kept


def _kind(line: bytes) -> tuple[str, str]:
    """Return what a line is of, and its id; nothing for one that was cut."""
    import orjson

    try:
        found = orjson.loads(line) if line.endswith(b"\n") else {}
    except orjson.JSONDecodeError:
        found = {}
    return found.get("object", ""), found.get("id", "")


class _State:
    """The small file beside an input that says up to where it is in, and of which input and bot it speaks."""

    def __init__(self, path: Path, bot: str, source: IO[bytes]) -> None:
        self.path = path
        self.size = os.fstat(source.fileno()).st_size
        self._of = {"format": _FORMAT, "bot": bot, "head": hashlib.blake2b(source.read(_HEAD_BYTES)).hexdigest()}

    def read(self) -> dict[str, Any] | None:
        """Return where to go on, None where there is nothing to go on with; raise `ConfigurationError` for another file's."""
        try:
            kept = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise errors.ConfigurationError(f"{self.path} cannot be read: {error}. Import without --resume.") from None
        if kept.get("of") != self._of or kept["state"]["offset"] > self.size:
            raise errors.ConfigurationError(f"{self.path} is of another file or bot. Import without --resume.")
        state: dict[str, Any] = kept["state"]
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Keep a state, whole whatever happens."""
        new = self.path.with_name(self.path.name + ".new")
        with guards.writing(self.path):
            new.write_text(json.dumps({"of": self._of, "state": state}))
            new.replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def _source(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        source = Path(file).open("rb")  # noqa: SIM115  closed below
    except OSError as error:
        raise errors.ConfigurationError(f"{file} cannot be read: {error.strerror}.") from None
    with source:
        yield source
