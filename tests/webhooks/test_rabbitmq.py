"""Webhooks with RabbitMQ as the broker: what no script can push is published, and the sweep sends what is due."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import rabbit
from tests.stack import Stack, eventually
from tests.webhooks.receiver import Receiver

pytestmark = [pytest.mark.rabbitmq, pytest.mark.faults]


@pytest.fixture
def stack() -> Iterator[Stack]:
    with rabbit.virtual_host() as url:
        made = Stack(workers=1, threads=16, env={"CELERY_BROKER_URL": url, "WEBHOOK_ALLOW_PRIVATE": "true"})
        made.wait_for_workers("worker-0")
        yield made
        made.close()


def test_a_webhook_is_delivered_tried_again_and_delivered_once_more_over_rabbitmq(
    stack: Stack, receiver: Receiver
) -> None:
    receiver.answers(500, 200)
    status, _, task = stack.complete(background=True, webhook_url=receiver.url())
    assert status == 202
    eventually(lambda: len(receiver.messages) == 2, 60)
    path = f"/v1/webhooks/deliveries/msg_{task['id'].removeprefix('task_')}"
    eventually(lambda: stack.call("GET", path)[2].get("status") == "delivered", 30)
    assert stack.call("POST", f"{path}/redeliver")[0] == 202
    eventually(lambda: len(receiver.messages) == 3, 30)
    with stack.store() as store:
        assert not store.exists(stack.keys().queue("webhooks"))
    eventually(lambda: [one["status_code"] for one in stack.call("GET", path)[2]["attempts"]] == [500, 200, 200], 30)
