"""Where the consumer of events lives: a step of each Celery worker that serves the queue `analytics`."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

from app.core import logs
from app.core import settings as settings_
from tasks import broker
from tasks.default_bot import DefaultBot
from tasks.events.consumer import Consumer
from tasks.events.intake import Intake

_log = logs.get(__name__)
_STOP_S = 10.0  # within the worker's grace


class EventsStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Runs the consumer beside the worker's tasks, where a broker carries events."""

    label = "Events"

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        served = worker.app.amqp.queues.consume_from
        self.enabled = bool(settings_.current().message_broker_url) and "analytics" in served

    def create(self, _worker: Any) -> Consumer:
        """Make the consumer, which begins when the worker does."""
        runtime = broker.runtime(patient=True)
        intake = Intake(runtime.analytics_sessions, DefaultBot(runtime.sessions))
        return Consumer(runtime.settings.message_broker_url, intake)

    def close(self, _worker: Any) -> None:
        """Ask for the end as soon as the worker's is asked for, while its tasks still run."""
        self.obj.stop()

    def stop(self, _worker: Any) -> None:
        if not self.obj.join(_STOP_S):
            _log.warning("events_given_back", advice="the message broker delivers them again")

    terminate = stop
