"""Celery's configuration, from the settings. Which setting stands for what was measured is in docs/celery.md."""

from __future__ import annotations

from celery.schedules import crontab
from kombu import Exchange, Queue

from app.core import queue as queue_
from app.core import settings as settings_

_settings = settings_.current()
_redis = _settings.broker_url.startswith(("redis", "unix", "sentinel"))

broker_url = _settings.broker_url or "memory://"
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
broker_connection_timeout = 2.0
broker_transport_options = (
    {
        "visibility_timeout": 3600,  # the ledger's lease decides what is lost; this is the backstop
        "unacked_mutex_expire": 10,
        "priority_steps": [0],
        "socket_timeout": 30,
        "socket_connect_timeout": 3,
        "socket_keepalive": not _settings.broker_url.startswith("redis+socket"),
        "health_check_interval": 10,
        "max_connections": 50,
        "global_keyprefix": queue_.prefix(_settings),
    }
    if _redis
    # One more try on a new connection, then the caller gets his 503: kombu's own defaults let him wait for six seconds.
    else {
        "confirm_publish": True,
        "max_retries": 1,
        "interval_start": 0.05,
        "interval_step": 0.0,
        "connect_retries_timeout": 1,
    }
)
if _redis and _settings.broker_url.startswith("redis+socket"):
    broker_transport_options.pop("socket_keepalive")  # a Unix socket has none

accept_content = ["json"]
task_serializer = "json"
result_backend = None
result_backend_thread_safe = True
task_ignore_result = True
task_track_started = False
task_acks_late = True
task_reject_on_worker_lost = True
worker_consumer = "tasks.consumer:Consumer"
worker_prefetch_multiplier = 1
worker_disable_prefetch = _redis
worker_disable_rate_limits = True
worker_send_task_events = False
task_send_sent_event = False
worker_enable_remote_control = True  # Flower
worker_hijack_root_logger = False
worker_redirect_stdouts = False
worker_cancel_long_running_tasks_on_connection_loss = False
timezone = "UTC"


def _queue(name: str, *, no_ack: bool = False) -> Queue:
    if _redis:
        return Queue(name, Exchange(name, type="direct"), routing_key=name, no_ack=no_ack)
    # One of our own for all: an exchange that is named as its queue would be `analytics`, which carries the events.
    exchange = Exchange("repliq", type="topic")
    return Queue(name, exchange, routing_key=name, no_ack=no_ack, queue_arguments={"x-queue-type": "quorum"})


# The ledger holds the truth about chat tasks, so the broker's bookkeeping of them is left out where prefetching can be, too (Redis).
chat_no_ack = _redis
task_queues = (
    _queue("chat", no_ack=chat_no_ack),
    _queue("history"),
    _queue("analytics"),
    _queue("webhooks"),
    _queue("maintenance"),
)
task_default_queue = "chat"
task_create_missing_queues = False
task_routes = {
    "chat.*": {"queue": "chat"},
    "history.*": {"queue": "history"},
    "dialogs.*": {"queue": "history"},
    "analytics.*": {"queue": "analytics"},
    "webhooks.*": {"queue": "webhooks"},
    "maintenance.*": {"queue": "maintenance"},
}

beat_schedule = {
    "outbox-backstop": {"task": "maintenance.drain_outboxes", "schedule": 5.0, "options": {"expires": 5}},
    "metrics-snapshot": {"task": "maintenance.snapshot_metrics", "schedule": 30.0, "options": {"expires": 30}},
    "history-stale": {"task": "maintenance.mark_stale", "schedule": 60.0, "options": {"expires": 60}},
    "sessions-close": {"task": "maintenance.close_sessions", "schedule": 300.0, "options": {"expires": 300}},
    "limits-reconcile": {"task": "maintenance.reconcile_limits", "schedule": 300.0, "options": {"expires": 300}},
    "limits-daily-reset": {
        "task": "maintenance.close_days",
        "schedule": crontab(minute="*/15"),
        "options": {"expires": 900},
    },
    "dialogs-cleanup": {
        "task": "maintenance.clean_dialogs",
        "schedule": crontab(minute="20"),
        "options": {"expires": 1800},
    },
    "webhooks-cleanup": {
        "task": "webhooks.clean_log",
        "schedule": crontab(minute="40"),
        "options": {"expires": 1800},
    },
    "search-backfill": {"task": "maintenance.index_messages", "schedule": 60.0, "options": {"expires": 60}},
    "history-retention": {
        "task": "maintenance.expire_history",
        "schedule": crontab(hour="3", minute="30"),
        "options": {"expires": 3600},
    },
    "analytics-retention": {
        "task": "maintenance.expire_events",
        "schedule": crontab(hour="3", minute="50"),
        "options": {"expires": 3600},
    },
    "analytics-rollup": {"task": "maintenance.roll_up", "schedule": crontab(minute="5"), "options": {"expires": 1800}},
    "analytics-rollup-daily": {
        "task": "maintenance.roll_up",
        "schedule": crontab(hour="0", minute="15"),
        "options": {"expires": 1800},
    },
    "analytics-weekly-report": {
        "task": "maintenance.make_reports",
        "schedule": crontab(day_of_week="mon", hour="1-23", minute="0"),  # after the first run: what is still missing
        "options": {"expires": 3600},
    },
    "partitions": {
        "task": "maintenance.make_partitions",
        "schedule": crontab(hour="3", minute="10"),
        "options": {"expires": 3600},
    },
}
