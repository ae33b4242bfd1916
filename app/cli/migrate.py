"""`repliq migrate`: brings the database to the newest migration, and makes sure of the default bot and its keys."""

from __future__ import annotations

import click

from app.core import errors
from app.core import settings as settings_


@click.command()
@click.option("--revision", default="head", show_default=True, help="Revision to go to; older ones go down.")
def command(revision: str) -> None:
    """Bring the database to the newest migration."""
    from app.bots import bootstrap
    from app.core.database import engine, migrate
    from app.history import partitions

    settings = settings_.current()
    if not settings.database_url:
        raise errors.ConfigurationError("DATABASE_URL is not set; `repliq up` brings a database of its own")
    if revision not in ("head", migrate.head()):
        migrate.downgrade(settings.database_url, revision)
        click.echo(f"The database is at {revision}.")
        return
    changed = migrate.upgrade(settings.database_url)
    database = engine.make_engine(settings.database_url, 1, 0)
    try:
        with database.begin() as connection:
            partitions.ensure(connection)
        with engine.Sessions(database).begin() as session:
            bootstrap.ensure(session, settings)
    finally:
        database.dispose()
    click.echo("The database is migrated." if changed else "The database is up to date.")
