"""Brings a backup back: first makes sure that it fits and that nothing is lost by it, then Redis, then PostgreSQL in one transaction.

PostgreSQL is emptied first and written last, since its transaction is the step that happens whole or not at all: in between there is no
migrated database, and nothing starts.
"""

from __future__ import annotations

from pathlib import Path

from app.cli.backups import databases, emptying, keyspace, manifest, taking
from app.cli.backups.manifest import Manifest
from app.cli.progress import Progress
from app.core import errors, presence, queue, sealing
from app.core.database import migrate
from app.core.settings import Settings
from app.core.store import Keys, Store, copies

_SEEN_MS = 15_000


def check_place(settings: Settings, found: Manifest, *, replace: bool) -> None:
    """Make sure that a backup fits the servers, and that its place is free; raise `ConfigurationError` with what is in the way."""
    for name, url in taking.urls(settings).items():
        _database_fits(found.databases[name], name, url, replace=replace)
    store = Store(settings.redis_url, timeout_s=taking.PATIENT_S)
    try:
        server = copies.server(store)
        if server.reads < found.redis.version:
            raise errors.ConfigurationError(
                f"The backup was taken of {found.redis.server}, and {server} does not know all its kinds of values. "
                "Restore into one that does."
            )
        _nobody_runs(settings, store)
        if not replace and (name := copies.some(store, settings.redis_prefix)):
            raise errors.ConfigurationError(
                f"Redis holds keys of Repliq ({name}). Empty it, or restore with --replace, which deletes what is there."
            )
    finally:
        store.close()


def check_settings(settings: Settings, found: Manifest) -> None:
    """Make sure that a backup can be read with these settings; raise `ConfigurationError` with the one to change."""
    if sealing.Sealer(settings.secret_key).key_id != found.secret_key:
        raise errors.ConfigurationError(
            "The backup was taken with another SECRET_KEY: without it no API key is known again and no stored secret can be opened. "
            f"Set SECRET_KEY to that one (it is no part of a backup; `repliq up` keeps its own in {settings.data_dir}/secret-key)."
        )
    if set(found.databases) != set(taking.urls(settings)):
        apart = manifest.ANALYTICS in found.databases
        raise errors.ConfigurationError(
            f"The backup is of {'two databases' if apart else 'one database'}: {'set' if apart else 'leave out'} ANALYTICS_DATABASE_URL."
        )
    for name, theirs, ours in (
        ("REDIS_PREFIX", found.redis.prefix, settings.redis_prefix),
        ("REDIS_SHARDS", found.redis.shards, settings.redis_shards),
    ):
        if theirs != ours:
            raise errors.ConfigurationError(f"The backup's keys are of {name}={theirs}, and it is {ours} here. Set it.")


def _database_fits(found: databases.Facts, name: str, url: str, *, replace: bool) -> None:
    for history, head in found.heads.items():
        if head > migrate.head(history):
            raise errors.ConfigurationError(
                f"{name} is at migration {head} of {history}, which this release does not know: it ends at {migrate.head(history)}. "
                "Restore with the release that made the backup, or a newer one."
            )
    with databases.connected(url) as connection:
        server = connection.server_version // 10_000
    if server < found.server:
        raise errors.ConfigurationError(
            f"{name} is of PostgreSQL {found.server}, and the server is {server}. Take a newer server."
        )
    there = {history: at for history in migrate.VERSION_TABLES if (at := migrate.current(url, history)) is not None}
    if there and not replace:
        raise errors.ConfigurationError(
            f"The database for {name} holds Repliq's tables. "
            "Restore into an empty one, or with --replace, which deletes what is there."
        )
    for history, now in there.items():
        if now > migrate.head(history):
            raise errors.ConfigurationError(
                f"The database for {name} is at migration {now} of {history}, which this release does not know and so cannot take away. "
                "Restore with the release that made it."
            )


def _nobody_runs(settings: Settings, store: Store) -> None:
    keys = Keys(settings.redis_prefix, settings.redis_shards, queue.prefix(settings))
    workers = presence.seen(store, keys, _SEEN_MS)
    if workers:
        raise errors.ConfigurationError(
            f"Workers run: {', '.join(workers[:5])}. Stop API, workers, beat and Telegram first "
            f"(a killed worker is forgotten in {_SEEN_MS // 1000} s)."
        )
    if not store.is_cluster and (count := store.call("PUBSUB", "NUMSUB", keys.control_channel)[1]):
        raise errors.ConfigurationError(
            f"{count} processes of Repliq listen on this Redis. Stop API, workers, beat and Telegram first."
        )


def restore(settings: Settings, folder: Path, found: Manifest, *, replace: bool) -> int:
    """Write a backup into its place, and compare counts; return how many keys of Redis were left out since their time has come.

    Raises `Unavailable` or `ConfigurationError`; then it may be repeated with `replace`.
    """
    for name, url in taking.urls(settings).items():
        emptying.make_room(url, folder / name, replace=replace)
    expired = _redis(settings, folder / manifest.REDIS, found, replace=replace)
    for name, url in taking.urls(settings).items():
        databases.restore(folder / name, url)
        there, expected = databases.facts(url).rows, found.databases[name].rows
        if {table: there.get(table) for table in expected} != expected:  # others' tables may stand beside them
            raise errors.Unavailable(f"{name}: the restored tables have other counts of rows than the backup says.")
    return expired


def _redis(settings: Settings, path: Path, found: Manifest, *, replace: bool) -> int:
    store = Store(settings.redis_url, timeout_s=taking.PATIENT_S)
    progress = Progress(found.redis.keys)
    try:
        if replace:
            copies.remove(store, settings.redis_prefix)
        written, expired = copies.put(
            store, keyspace.read(path), lambda done: progress.at(done, f"Redis, {done:,} keys")
        )
    finally:
        progress.end()
        store.close()
    if written + expired != found.redis.keys:
        raise errors.Unavailable(
            f"{path.name}: {written + expired} keys were read, and the backup has {found.redis.keys}."
        )
    return expired
