"""`repliq providers`: how it stands with every provider, as a table that follows; their keys and a trial of them lie next door."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from app.cli import provider_keys, site
from app.core import errors

if TYPE_CHECKING:
    from app.llm.gate import State
    from app.runtime import Runtime

_EVERY_S = 1.0
_WIDEST = 60
_NARROWEST = 12
_COLOURS = {"closed": "green", "half_open": "yellow", "open": "red"}
_TITLES = ("state", "running", "calls", "failed", "slow", "p50 s", "p95 s")
_WIDTHS = (13, 9, 6, 6, 5, 6, 6)
_GAP = 1
_ENTER, _LEAVE, _HOME, _REST, _LINE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H", "\x1b[J", "\x1b[K"


@click.group("providers", invoke_without_command=True)
@click.option("--once", is_flag=True, help="Print the table once; also where the output is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Print it once as JSON, for programs.")
@click.pass_context
def command(context: click.Context, once: bool, as_json: bool) -> None:
    """Watch providers: circuits, calls under way, calls of the last 10 s, and how long they take. Ctrl-C ends it."""
    if context.invoked_subcommand is not None:
        return
    with site.opened() as runtime:
        if as_json:
            click.echo(json.dumps([dataclasses.asdict(state) for state in runtime.circuits()], indent=2))
        elif once or not _is_screen():
            click.echo("\n".join(lines(runtime.circuits(), shutil.get_terminal_size().columns)))
        else:
            _follow(runtime)


command.add_command(provider_keys.check)
command.add_command(provider_keys.key)


def _is_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _follow(runtime: Runtime) -> None:
    """Draw the table every second, on the terminal's other screen, until Ctrl-C."""
    click.echo(_ENTER, nl=False)
    try:
        while True:
            size = shutil.get_terminal_size()
            drawn = [*_cut(_now(runtime, size.columns), size.lines - 2), "", "Each second; Ctrl-C ends it."]
            click.echo(_HOME + "\n".join(_LINE + line for line in drawn) + _REST, nl=False)
            time.sleep(_EVERY_S)
    except KeyboardInterrupt:
        pass  # which is how one leaves it
    finally:
        click.echo(_LEAVE, nl=False)


def _now(runtime: Runtime, columns: int) -> list[str]:
    try:
        return lines(runtime.circuits(), columns, coloured="NO_COLOR" not in os.environ)
    except errors.Unavailable as error:
        return [str(error)[:columns]]


def _cut(drawn: list[str], height: int) -> list[str]:
    """Leave out what would be below the screen, and say so."""
    if len(drawn) <= height:
        return drawn
    return [*drawn[: height - 1], f"… {len(drawn) - height + 1} more: `repliq providers --once` shows all"]


def lines(states: list[State], columns: int, *, coloured: bool = False) -> list[str]:
    """Return the table, as wide as the screen, or as it needs to be."""
    taken = sum(_WIDTHS) + _GAP * len(_WIDTHS)
    longest = max((len(state.target) for state in states), default=0)
    first = max(_NARROWEST, min(_WIDEST, longest, columns - taken))
    found = [_row("provider/model", first, _TITLES)]
    for state in states:
        row = _row(state.target, first, _cells(state))
        if coloured:
            end = first + _GAP + _WIDTHS[0]
            colour = "yellow" if state.cooling_ms and state.state == "closed" else _COLOURS[state.state]
            row = row[: first + _GAP] + click.style(row[first + _GAP : end], fg=colour) + row[end:]
        found.append(row.rstrip())
    return found


def _row(name: str, width: int, cells: tuple[str, ...]) -> str:
    state, *figures = cells
    row = [_shortened(name, width).ljust(width), state.ljust(_WIDTHS[0])]
    row += [figure.rjust(most) for figure, most in zip(figures, _WIDTHS[1:], strict=True)]
    return (" " * _GAP).join(row)


def _cells(state: State) -> tuple[str, ...]:
    running = f"{state.running}/{state.max_concurrent}" if state.max_concurrent else str(state.running)
    counts = (str(state.calls), str(state.failures), str(state.slow))
    return (_said(state), running, *counts, _seconds(state.p50_ms), _seconds(state.p95_ms))


def _said(state: State) -> str:
    """Say in a word or two whether it is asked, and if not, for how long."""
    if state.state == "open":
        return f"open {-(-state.opens_again_ms // 1000)} s"
    if state.state == "half_open":
        return "half-open"
    return f"limited {-(-state.cooling_ms // 1000)} s" if state.cooling_ms else "closed"


def _seconds(ms: int) -> str:
    return "-" if not ms else f"{ms / 1000:.2f}" if ms < 100_000 else f"{ms / 1000:.0f}"


def _shortened(name: str, width: int) -> str:
    """Leave out of the middle what is too long: the provider stands at the beginning, a model's version at the end."""
    if len(name) <= width:
        return name
    end = (width - 1) // 2
    return f"{name[: width - 1 - end]}…{name[-end:]}"
