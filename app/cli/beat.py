"""`repliq beat`: sends the regular tasks. A second beat does no harm: every run of an entry is taken once."""

from __future__ import annotations

import click

from app.core import logs
from app.core import settings as settings_


@click.command()
def command() -> None:
    """Run beat, which sends the regular tasks."""
    import celery  # an application without the tasks' modules: beat knows them by name, and needs half the memory

    settings = settings_.current()
    logs.configure(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    app = celery.Celery("repliq", config_source="celeryconfig", set_as_current=True)
    beat = app.Beat(
        schedule=str(settings.data_dir / "beat-schedule"), max_interval=5, quiet=True, pidfile=None, loglevel="WARNING"
    )
    beat.run()
