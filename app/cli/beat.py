"""`repliq beat`: sends the regular tasks. A second beat does no harm: every run of an entry is taken once."""

from __future__ import annotations

from typing import Any

import click

from app.core import exporter, logs
from app.core import settings as settings_


@click.command()
@click.option("--metrics-port", type=click.IntRange(0, 65535), help="Port of its own /metrics; default: METRICS_PORT.")
def command(metrics_port: int | None) -> None:
    """Run beat, which sends the regular tasks."""
    settings = settings_.current()
    logs.configure(settings)
    told = exporter.begin(settings, metrics_port)

    import celery  # an application without the tasks' modules: beat knows them by name, and needs half the memory

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    app = celery.Celery("repliq", config_source="celeryconfig", set_as_current=True)
    beat = app.Beat(
        schedule=str(settings.data_dir / "beat-schedule"), max_interval=5, quiet=True, pidfile=None, loglevel="WARNING"
    )
    if told:
        _count_what_is_sent()
    beat.run()


def _count_what_is_sent() -> None:
    from celery import signals

    from app.core import metrics

    def count(sender: str, **_: Any) -> None:
        metrics.beat_sent.labels(sender).inc()

    signals.after_task_publish.connect(count, weak=False)
