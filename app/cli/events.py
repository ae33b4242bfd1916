"""`repliq events`: what waits on its way to analytics, what was put aside and why, and its way back."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import click

from app.cli import target
from app.core import clock, errors, events

_MOST_REASONS = 50
_LONGEST = 120
_TIMEOUT_S = 10.0
_QUEUES = (events.EVENTS, events.CRITICAL, events.PERFORMANCE)


@click.group("events")
def command() -> None:
    """Look after the events that travel to analytics."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def status(as_json: bool) -> None:
    """Show what waits: in the message broker's queues, in the outboxes, in the database; and what was put aside."""
    with target.site() as site:
        found = {
            "queues": _queues(site),
            "outboxes": _outboxes(site),
            "announcements": _announcements(site),
            "put_aside": _put_aside(site),
        }
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(_lines(found)))


@command.command()
@click.option("--limit", type=click.IntRange(min=1), help="Send back at most so many.")
@click.option("--queue", type=click.Choice(_QUEUES), help="Only what came from this queue.")
@click.option(
    "--outbox", is_flag=True, help="Not the broker's dead messages, but outbox entries that a database refused."
)
@click.option("--dry-run", is_flag=True, help="Only show what is there, and why.")
def redrive(limit: int | None, queue: str | None, outbox: bool, dry_run: bool) -> None:
    """Send messages in analytics.dead back to where they came from.

    What dies again comes back to analytics.dead, and is left there until the next call.
    """
    if outbox and queue:
        raise click.UsageError("--queue is of the message broker's queues; it does not go with --outbox.")
    with target.site() as site:
        if outbox:
            _redrive_outboxes(site, limit, dry_run=dry_run)
        else:
            _redrive_queue(site, limit, queue, dry_run=dry_run)


def _redrive_queue(site: target.Site, limit: int | None, queue: str | None, *, dry_run: bool) -> None:
    from tasks.events import dead

    with _broker(site) as connection:
        tally = dead.redrive(connection, limit=limit, queue=queue, dry_run=dry_run)
    _tell_reasons(tally.reasons)
    others = f" {_amount(tally.others, 'message')} of other queues stayed." if tally.others else ""
    if dry_run:
        click.echo(f"{_amount(tally.reasons.total(), 'message')} would be sent back.{others}")
    else:
        click.echo(f"{_amount(tally.moved, 'message')} sent back.{others}")


def _redrive_outboxes(site: target.Site, limit: int | None, *, dry_run: bool) -> None:
    from app.core import rejects

    if dry_run:
        found = rejects.reasons(site.store, site.keys)
        _tell_reasons(found)
        click.echo(f"{_amount(found.total(), 'entry', 'entries')} would be put back.")
        return
    moved = rejects.redrive(site.store, site.keys, limit=limit)
    _tell_reasons(moved)
    click.echo(f"{_amount(moved.total(), 'entry', 'entries')} put back.")


@contextlib.contextmanager
def _broker(site: target.Site) -> Iterator[Any]:
    """Lend a connection to the message broker; raise `ConfigurationError` without one and `Unavailable` when it is away."""
    from tasks.events import topology

    url = site.settings.message_broker_url
    if not url:
        raise errors.ConfigurationError("MESSAGE_BROKER_URL is not set: no broker carries events here.")
    try:
        connection = topology.connect(url)
    except Exception as error:
        raise errors.Unavailable(f"The message broker cannot be reached: {error or type(error).__name__}") from error
    try:
        topology.declare(connection)
        yield connection
    except topology.errors_of(connection) as error:
        raise errors.Unavailable(f"The message broker has gone: {error or type(error).__name__}") from error
    finally:
        connection.collect()


def _queues(site: target.Site) -> dict[str, Any] | str:
    if not site.settings.message_broker_url:
        return "no message broker"
    from tasks.events import topology

    try:
        with _broker(site) as connection:
            return topology.depths(connection)
    except errors.Unavailable as error:
        return str(error)


def _outboxes(site: target.Site) -> dict[str, dict[str, float]]:
    """Return of each stream how many entries wait, and how old the oldest is, s."""
    from app.core.queue import DRAINS

    found = {}
    for stream in DRAINS:
        names = [site.keys.of_outbox(stream, shard) for shard in range(site.keys.shards)]
        length = sum(int(site.store.call("XLEN", name)) for name in names)
        firsts = [page[0][0] for name in names if (page := site.store.call("XRANGE", name, "-", "+", "COUNT", 1))]
        oldest_ms = min((int(first.partition(b"-")[0]) for first in firsts), default=clock.now_ms())
        found[stream] = {"entries": length, "oldest_s": max(0.0, round((clock.now_ms() - oldest_ms) / 1000, 1))}
    return found


def _announcements(site: target.Site) -> dict[str, float] | str:
    from app.core import announcements

    try:
        with site.sessions.begin() as session:
            since = announcements.waiting(session)
    except errors.Unavailable as error:
        return str(error)
    return {"oldest_s": 0.0 if since is None else round((clock.now_ms() - events.ms_of(since)) / 1000, 1)}


def _put_aside(site: target.Site) -> dict[str, int]:
    from app.core import rejects

    return rejects.counts(site.store, site.keys)


def _lines(found: dict[str, Any]) -> Iterator[str]:
    if isinstance(found["queues"], str):
        yield f"message broker: {found['queues']}"
    else:
        for name, depth in found["queues"].items():
            yield f"queue {name:32} {'not there' if depth is None else format(depth, ',')}"
    for stream, outbox in found["outboxes"].items():
        age = f", the oldest for {outbox['oldest_s']:.1f} s" if outbox["entries"] else ""
        yield f"outbox {stream:31} {outbox['entries']:,}{age}"
    told = found["announcements"]
    waits = told if isinstance(told, str) else f"waiting for {told['oldest_s']:.1f} s" if told["oldest_s"] else "none"
    yield f"announcements in the database{'':9} {waits}"
    for stream, count in found["put_aside"].items():
        yield f"put aside from {stream:23} {count:,}  → repliq events redrive --outbox --dry-run"
    if not isinstance(found["queues"], str) and found["queues"].get("analytics.dead"):
        yield "analytics.dead is not empty  → repliq events redrive --dry-run"


def _tell_reasons(reasons: Counter[tuple[str, str]]) -> None:
    for (where, reason), count in reasons.most_common(_MOST_REASONS):
        click.echo(f"{count:8,}  {where}  {reason if len(reason) <= _LONGEST else reason[: _LONGEST - 1] + '…'}")
    if len(reasons) > _MOST_REASONS:
        click.echo(f"{'…':>8}  {len(reasons) - _MOST_REASONS:,} more reasons")


def _amount(count: int, noun: str, plural: str = "") -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
