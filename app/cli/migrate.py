"""`repliq migrate`: brings both databases to their newest migrations, and makes sure of the default bot and its keys."""

from __future__ import annotations

import click

from app.core import errors
from app.core import settings as settings_
from app.core.settings import Settings


@click.command()
@click.option("--revision", help="Revision to go to, up or down; then of one database only (see --database).")
@click.option("--database", type=click.Choice(["main", "analytics"]), help="Migrate this one alone; default: both.")
def command(revision: str | None, database: str | None) -> None:
    """Bring the databases to their newest migrations."""
    settings = settings_.current()
    if not settings.database_url:
        raise errors.ConfigurationError("DATABASE_URL is not set; `repliq up` brings a database of its own")
    if revision is not None and revision != "head":
        _go_to(settings, database or "main", revision)
        return
    if database != "analytics":
        _main(settings)
    if database == "analytics":
        _analytics(settings)
    elif database is None:
        _analytics_if_there(settings)


def _go_to(settings: Settings, history: str, revision: str) -> None:
    from app.core.database import migrate

    url = settings.database_url if history == "main" else settings.analytics_url
    now = migrate.current(url, history)
    if now is None or (revision != "base" and now < revision):
        migrate.upgrade(url, revision, history)
    else:
        migrate.downgrade(url, revision, history)
    click.echo(f"The {history} database is at {revision}.")


def _main(settings: Settings) -> None:
    from app.bots import bootstrap
    from app.core.database import engine, migrate
    from app.history import partitions

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


def _analytics(settings: Settings) -> None:
    from app.analytics import partitions
    from app.core.database import engine, migrate

    changed = migrate.upgrade(settings.analytics_url, history="analytics")
    database = engine.make_engine(settings.analytics_url, 1, 0)
    try:
        with engine.translated(), database.begin() as connection:
            partitions.ensure(connection)
    finally:
        database.dispose()
    click.echo("The analytics database is migrated." if changed else "The analytics database is up to date.")


def _analytics_if_there(settings: Settings) -> None:
    """Migrate the analytics database; where it is on a server of its own that is away, everything else goes on without it."""
    try:
        _analytics(settings)
    except errors.Unavailable as error:
        if settings.analytics_url == settings.database_url:
            raise
        click.echo(f"The analytics database was left out: {error}", err=True)
        click.echo("Events wait in Redis meanwhile. When it is back: repliq migrate --database analytics", err=True)
