"""`repliq doctor`: says what is wrong with settings, servers and providers, and what to do about it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import click

from app.cli import target
from app.cli.checks import database, environment, livestore, product
from app.cli.checks.findings import Finding, Findings
from app.core import errors
from app.core import settings as settings_
from app.core.settings import Settings

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}
_CHECKS: tuple[Callable[[Settings], Findings], ...] = (
    database.server,
    database.analytics,
    livestore.server,
    product.broker,
    product.events,
    product.workers,
    product.api,
    product.provider,
    environment.disk,
)


@click.command()
@click.option("--e2e", is_flag=True, help="Send one real request through everything, show what it left, and erase it.")
def command(e2e: bool) -> None:
    """Say what is wrong with settings, servers and providers. Exit code 1 when there is a problem."""
    if e2e:
        from app.cli import endtoend

        sys.exit(0 if endtoend.run(settings_.load()) else 1)
    problems, warnings = _tell(_examine())
    summary = f"{_count(problems, 'problem')}, {_count(warnings, 'warning')}."
    click.echo("\n" + summary[0].upper() + summary[1:])
    sys.exit(1 if problems else 0)


def _examine() -> Findings:
    try:
        given = settings_.load()
    except errors.ConfigurationError as error:
        for line in str(error).split("; "):
            yield Finding("problem", "settings", line)
        return
    yield Finding("ok", "settings", "each can be read")
    yield from environment.production(given)
    try:
        found = target.resolve(given)
    except errors.ConfigurationError as error:
        yield Finding("problem", "servers", str(error))
        found = given
    yield from environment.secrets(found)
    for check in _CHECKS:
        if (found.database_url and found.redis_url) or check in (product.api, product.provider, environment.disk):
            yield from check(found)


def _tell(findings: Iterable[Finding]) -> tuple[int, int]:
    """Print each finding as it comes; return how many problems and warnings there were."""
    counts = {"ok": 0, "warning": 0, "problem": 0}
    for finding in findings:
        counts[finding.level] += 1
        mark = click.style(f"{finding.level:8}", fg=_COLOURS[finding.level])
        click.echo(f"{mark} {finding.about:12} {finding.text}")
        if finding.advice:
            click.echo(f"{'':21} → {finding.advice}")
    return counts["problem"], counts["warning"]


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
