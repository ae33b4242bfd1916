"""A Celery application whose one task does nothing, with the product's own settings."""

from __future__ import annotations

import celery

from tasks import kombu_restart
from tasks.requests import UnacknowledgedRequest

kombu_restart.apply()
app = celery.Celery("bench", config_source="celeryconfig", set_as_current=True)


class _Task(celery.Task):  # type: ignore[misc]
    Request = UnacknowledgedRequest


@app.task(name="bench.nothing", base=_Task)  # type: ignore[untyped-decorator]
def nothing() -> None:
    """Do nothing."""
