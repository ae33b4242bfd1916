"""Takes a backup: both stores as they were at one moment, while the deployment goes on.

The drains are held back while the views are opened, PostgreSQL's first. So all that is not yet in PostgreSQL's view is still in Redis'
outboxes, and no task has ended in PostgreSQL that is open in Redis. Everything that takes long comes after: the drains wait for a snapshot
to be made, not for a dump to be written.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click

from app.cli.backups import databases, drains, manifest
from app.cli.backups.keyspace import Tally
from app.cli.progress import Progress
from app.core import clock, queue, sealing
from app.core.settings import Settings
from app.core.store import Keys, Store, copies, rdb, replica

PATIENT_S = 30.0
_TRIES = 3
_SNAPSHOT = "redis.rdb"
_FUZZY = (
    "repliq: {reason} Its keys are copied one by one instead, each at a moment of its own: "
    "what goes on meanwhile may be half in the backup. "
    "Stop API and workers for it, or see docs/backup.md."
)


def take(settings: Settings, folder: Path) -> manifest.Manifest:
    """Write all files of a backup; raise `Unavailable` or `ConfigurationError` with what failed."""
    started = clock.now_ms()
    store = Store(settings.redis_url, timeout_s=PATIENT_S)
    try:
        server = str(copies.server(store))
        with contextlib.ExitStack() as views:
            taken = _take_redis(settings, store, folder, views)
            found = {name: _dump(view, folder / name) for name, view in taken.views.items()}
    finally:
        store.close()
    made = manifest.Manifest(
        started_at=clock.rfc3339(started),
        ended_at=clock.rfc3339(clock.now_ms()),
        secret_key=sealing.Sealer(settings.secret_key).key_id,
        redis=manifest.Keyspace(
            server=server, at=clock.rfc3339(taken.at_ms), prefix=settings.redis_prefix, shards=settings.redis_shards,
            keys=taken.tally.keys, bytes=taken.tally.bytes, version=taken.tally.version, one_moment=taken.one_moment,
        ),
        databases=found,
    )  # fmt: skip
    made.write(folder)
    return made


def urls(settings: Settings) -> dict[str, str]:
    """Return the databases by the name of their file in a backup."""
    found = {manifest.MAIN: settings.database_url}
    if settings.analytics_url != settings.database_url:
        found[manifest.ANALYTICS] = settings.analytics_url
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class _Taken:
    """Redis is in its file, and the databases can be dumped as they were then."""

    views: dict[str, databases.View]
    tally: Tally
    at_ms: int
    one_moment: bool


def _take_redis(settings: Settings, store: Store, folder: Path, views: contextlib.ExitStack) -> _Taken:
    try:
        for _ in range(_TRIES - 1):
            with contextlib.suppress(drains.Earlier):
                return _of_one_moment(settings, store, folder, views)
            views.close()
        return _of_one_moment(settings, store, folder, views)
    except (replica.NotAllowed, rdb.Unreadable) as reason:
        click.echo(_FUZZY.format(reason=reason), err=True)
    views.close()  # they are of before: what was written since would be in neither
    return _key_by_key(settings, store, folder, views)


def _of_one_moment(settings: Settings, store: Store, folder: Path, views: contextlib.ExitStack) -> _Taken:
    with contextlib.ExitStack() as holding:
        hold = holding.enter_context(drains.held(store, _keys(settings)))
        opened, at_ms = _open(settings, views), _now_ms(store)
        made = holding.enter_context(replica.snapshot(store))  # from here on the server's file is of one moment
        hold.give_up()
        with _progress(made.size, "Redis") as progress, (folder / _SNAPSHOT).open("wb") as raw:
            made.save(raw, progress)
    tally = Tally()
    try:
        with (folder / _SNAPSHOT).open("rb") as raw:
            found = hold.shown(copies.of_snapshot(raw, store, settings.redis_prefix))
            tally.write(folder / manifest.REDIS, _lasting(settings, found))
    finally:
        (folder / _SNAPSHOT).unlink()  # it holds others' keys, too
    return _Taken(opened, tally, at_ms, one_moment=True)


def _key_by_key(settings: Settings, store: Store, folder: Path, views: contextlib.ExitStack) -> _Taken:
    tally = Tally()
    with drains.held(store, _keys(settings)):
        opened, at_ms = _open(settings, views), _now_ms(store)
        tally.write(folder / manifest.REDIS, _lasting(settings, copies.scanned(store, settings.redis_prefix)))
    return _Taken(opened, tally, at_ms, one_moment=False)


def _lasting(settings: Settings, records: Iterable[rdb.Record]) -> Iterator[rdb.Record]:
    """Leave out what is of processes: which of them live, and the leases of drains, our own among them."""
    keys = _keys(settings)
    gone = {keys.of_shard(name, 0).encode() for name in ("workers", "telegram_processes")}
    gone |= {
        keys.of_outbox(stream, shard, ":lease").encode() for stream in queue.DRAINS for shard in range(keys.shards)
    }
    return (record for record in records if record.key not in gone)


def _open(settings: Settings, views: contextlib.ExitStack) -> dict[str, databases.View]:
    return {name: views.enter_context(databases.view(url)) for name, url in urls(settings).items()}


def _dump(view: databases.View, path: Path) -> databases.Facts:
    with _progress(0, path.name) as progress:
        view.dump(path, lambda: progress(path.stat().st_size if path.exists() else 0))
    return view.facts()


@contextlib.contextmanager
def _progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    shown = Progress(total)
    try:
        yield lambda done: shown.at(done, f"{what}, {done / 1e6:,.0f} MB")
    finally:
        shown.end()


def _keys(settings: Settings) -> Keys:
    return Keys(settings.redis_prefix, settings.redis_shards, queue.prefix(settings))


def _now_ms(store: Store) -> int:
    if store.is_cluster:
        return clock.now_ms()
    seconds, micros = store.call("TIME")
    return int(seconds) * 1000 + int(micros) // 1000
