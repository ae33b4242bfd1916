"""Alerts of budgets: messages that are no task's, delivered as the others are."""

from __future__ import annotations

import standardwebhooks

from app.bots import models
from app.bots.directory import Directory
from app.chat import rows
from app.chat.ledger import End
from app.core import ids
from app.core.database import Sessions
from app.limits import budgets
from app.limits.budgets import Allowance, Budget
from app.webhooks import log, schemas
from tests.webhooks.conftest import LEASE_MS, UNLIMITED, Post, make_courier
from tests.webhooks.receiver import Receiver


def spend(post: Post, bot: str, url: str) -> str:
    """Spend half of a budget; return the reference of the message that tells of it."""
    shard = ids.shard_of(bot, 16)
    budget = Budget((Allowance("bot", "", 100, -1),), "UTC", 50, url)
    admitted = post.desk.admit("u1", ref=ids.new_ref(shard), bot=bot, limits=UNLIMITED, budget=budget)
    claimed = post.desk.ledger.claim(admitted.ref, LEASE_MS)
    assert claimed is not None
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    told = rows.final(claimed[0], "success", counted=False, cost=budgets.usd(50), usage=usage)
    assert post.desk.ledger.finish(claimed[0], End("in_progress", "completed", told)) is None
    (ref,) = post.desk.store.call("ZRANGE", post.desk.keys.of_shard("hooks", shard), 0, -1)
    return str(ref.decode())


def test_an_alert_is_signed_retried_logged_and_can_be_had_again(
    post: Post, directory: Directory, receiver: Receiver, sessions: Sessions, bot: str
) -> None:
    courier = make_courier(post, directory)
    receiver.answers(500, 200, 200)
    ref = spend(post, bot, receiver.url())
    courier.deliver(ref)
    post.later(60_000)
    courier.deliver(ref)
    with sessions.begin() as session:
        row = session.get(models.Bot, bot)
        assert row is not None
        secret = row.webhook_secret
    first, second = receiver.messages
    assert first.body == second.body
    told = standardwebhooks.Webhook(secret).verify(second.body, second.headers)
    assert told["type"] == "budget.alert"
    assert told["data"] == {
        "bot_id": bot, "scope": "bot", "period": "day", "percent": 50, "limit_usd": budgets.usd(100),
        "spent_usd": budgets.usd(50), "resets_at": told["data"]["resets_at"],
    }  # fmt: skip
    post.write_log(sessions, ids.shard_of(bot, 16))
    with sessions.begin() as session:
        logged = log.one(session, bot, ids.uuid_in(ref))
        shown, hook = schemas.delivery(logged, None, ids.shard_of(bot, 16)), log.hook(logged, ref)
    assert (shown.id, shown.task_id, shown.type, shown.status) == (f"msg_{ref}", None, "budget.alert", "delivered")
    post.desk.store.call("FLUSHALL")  # the message is in the log: it needs nothing of Redis
    assert post.deliveries.redeliver(hook)
    courier.deliver(ref)
    assert receiver.messages[2].body == first.body
    assert receiver.messages[2].headers["webhook-id"] == first.headers["webhook-id"]


def test_a_deleted_bots_alert_is_given_up(
    post: Post, directory: Directory, receiver: Receiver, sessions: Sessions, bot: str
) -> None:
    ref = spend(post, bot, receiver.url())
    with sessions.begin() as session:
        row = session.get(models.Bot, bot)
        assert row is not None
        row.deleted_at = row.created_at
    directory.forget_all()
    make_courier(post, directory).deliver(ref)
    assert post.hook(ref).state == "failed"
    assert receiver.messages == []
