"""The Celery application."""

from __future__ import annotations

from typing import Any

import celery
from celery import signals

from app.core import logs
from app.core import settings as settings_
from tasks import kombu_restart

kombu_restart.apply()


class Task(celery.Task):  # type: ignore[misc]
    """A task of ours."""

    abstract = True
    Request = "tasks.requests:WakingRequest"


app = celery.Celery(
    "repliq",
    task_cls=Task,
    config_source="celeryconfig",
    include=["tasks.chat", "tasks.history", "tasks.analytics", "tasks.webhooks", "tasks.maintenance"],
    set_as_current=True,
)

app.steps["worker"] |= {"tasks.events.step:EventsStep", "tasks.durations:DurationsStep"}


@signals.setup_logging.connect  # type: ignore[untyped-decorator]
def _configure_logs(**_: Any) -> None:
    logs.configure(settings_.current())
