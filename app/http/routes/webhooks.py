"""Webhooks: the log of what was delivered to the URLs that requests named, and once more."""

from __future__ import annotations

from app.core import clock, errors, ids
from app.http.api import Answer, Api
from app.http.context import Context
from app.webhooks import log, schemas

api = Api("webhooks")


@api.route(
    "GET", "/v1/webhooks/deliveries", scope="chat", query=schemas.DeliveriesQuery, answers={200: schemas.DeliveriesPage}
)
def list_deliveries(call: Context) -> Answer:
    """List the bot's deliveries, newest first; of a task, or in a state."""
    query: schemas.DeliveriesQuery = call.query
    shard = _shard(call)
    task = None
    if query.task_id is not None:
        ref = ids.parse(query.task_id, "task", call.runtime.settings.redis_shards)
        if ids.shard_in(ref) != shard:
            return schemas.DeliveriesPage(data=[], next_cursor=None)
        task = ids.uuid_in(ref)
    with call.runtime.sessions.begin() as session:
        page = log.page(session, call.bot.id, task, query.status, query.cursor, query.limit)
        last = log.last_attempts(session, [row.id for row in page.data])
        shown = [schemas.delivery(row, last.get(row.id), shard) for row in page.data]
    return schemas.DeliveriesPage(data=shown, next_cursor=page.next_cursor)


@api.route("GET", "/v1/webhooks/deliveries/<delivery_id>", scope="chat", answers={200: schemas.DeliveryWithAttempts})
def get_delivery(call: Context, delivery_id: str) -> Answer:
    """Read a delivery with each of its attempts."""
    ref = _ref(call, delivery_id)
    with call.runtime.sessions.begin() as session:
        row = log.one(session, call.bot.id, ids.uuid_in(ref))
        return schemas.with_attempts(row, log.attempts_of(session, row.id), ids.shard_in(ref))


@api.route("POST", "/v1/webhooks/deliveries/<delivery_id>/redeliver", scope="chat", answers={202: schemas.DeliveryOut})
def redeliver(call: Context, delivery_id: str) -> Answer:
    """Deliver once more, whatever came of it: tried for 24 h again, with the task as it is now. The message keeps its id."""
    ref = _ref(call, delivery_id)
    with call.runtime.sessions.begin() as session:
        row = log.one(session, call.bot.id, ids.uuid_in(ref))
        found = schemas.delivery(row, log.last_attempts(session, [row.id]).get(row.id), ids.shard_in(ref))
    call.runtime.deliveries.redeliver(log.hook(row, ref))
    now = clock.rfc3339(clock.now_ms())
    return found.model_copy(update={"status": "pending", "finished_at": None, "next_attempt_at": now}), 202


def _ref(call: Context, public: str) -> str:
    ref = ids.parse(public, "msg", call.runtime.settings.redis_shards)
    if ids.shard_in(ref) != _shard(call):
        raise errors.NotFound(f"There is no delivery '{public}'.", param="id")
    return ref


def _shard(call: Context) -> int:
    return ids.shard_of(call.bot.id, call.runtime.settings.redis_shards)
