"""`repliq flower`: the view of workers, queues and tasks, behind basic auth where FLOWER_BASIC_AUTH is set."""

from __future__ import annotations

import click

from app.core import errors, logs
from app.core import settings as settings_


@click.command()
def command() -> None:
    """Run Flower, the view of workers and queues."""
    from tasks.app import app

    settings = settings_.current()
    if settings.environment == "production" and not settings.flower_basic_auth:
        raise errors.ConfigurationError("FLOWER_BASIC_AUTH must be set in production, as user:password")
    logs.configure(settings)  # before Tornado, which adds a handler of its own where there is none
    arguments = ["flower", f"--address={settings.host}", f"--port={settings.flower_port}"]
    if settings.flower_basic_auth:
        arguments.append(f"--basic-auth={settings.flower_basic_auth}")
    app.start(arguments)
