"""`repliq backup`: both stores as they were at one moment, in a dated folder."""

from __future__ import annotations

import datetime
from pathlib import Path

import click

from app.cli import guards
from app.core import settings as settings_


@click.command("backup")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=Path("backups"), required=False)
@click.option("--keep", type=click.IntRange(min=1), help="Then delete all but so many of the newest backups in FOLDER.")
def command(folder: Path, keep: int | None) -> None:
    """Write PostgreSQL and Redis, as they are now, into a new folder in FOLDER (backups). Everything may go on meanwhile.

    SECRET_KEY is no part of it: keep that apart, since without it a backup is of no use.
    """
    from app.cli.backups import places, servers, taking

    now = datetime.datetime.now(datetime.UTC)
    with (
        guards.stopping("Stopped. Nothing is left of it."),
        guards.terminated(),  # a scheduler stops a job so
        servers.running(settings_.load()) as settings,
        places.begun(folder, now) as part,
    ):
        made = taking.take(settings, part)
    final = folder / f"repliq-{now:%Y%m%dT%H%M%SZ}"
    size = sum(path.stat().st_size for path in final.iterdir())
    rows = sum(sum(each.rows.values()) for each in made.databases.values())
    click.echo(f"{final}  ({rows:,} rows, {made.redis.keys:,} keys of Redis, {size / 1e6:,.1f} MB)")
    if settings.secret_key != settings_.load().secret_key:  # one that `up` has made
        click.echo(
            f"It needs the SECRET_KEY that is in {settings.data_dir}/secret-key: keep a copy, and not beside the backup.",
            err=True,
        )
    if keep:
        for path in places.prune(folder, keep):
            click.echo(f"Deleted {path}.", err=True)
