"""`repliq restore`: brings a backup back into empty servers, or in place of what they hold."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli import guards
from app.core import settings as settings_


@click.command("restore")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--replace", is_flag=True, help="Delete what databases and Redis hold of Repliq.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(folder: Path, replace: bool, yes: bool) -> None:
    """Write a backup (a dated folder that `repliq backup` made) into PostgreSQL and Redis, while nothing else of Repliq runs."""
    from app.cli.backups import bringing, manifest, servers

    found = manifest.read(folder)
    given = settings_.load()
    bringing.check_settings(servers.known(given), found)  # before anything is made or started
    with (
        guards.stopping("Stopped in the midst of it. Begin again with --replace."),
        guards.terminated(),
        servers.quiet(given) as settings,
    ):
        bringing.check_place(settings, found, replace=replace)
        if not yes:
            what = "in place of all that is there" if replace else "into empty servers"
            click.confirm(f"Restore what was at {found.redis.at}, {what}?", abort=True, err=True)
        expired = bringing.restore(settings, folder, found, replace=replace)
    rows = sum(sum(each.rows.values()) for each in found.databases.values())
    gone = f" ({expired:,} more had ended meanwhile)" if expired else ""
    click.echo(
        f"Restored {rows:,} rows and {found.redis.keys - expired:,} keys of Redis{gone}: all as it was at {found.redis.at}."
    )
    click.echo(
        "Next: `repliq migrate`, then start API, workers and beat; `make run` does both. `repliq doctor` tells how it stands."
    )
