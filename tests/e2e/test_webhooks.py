"""Webhooks of the whole product: signed, delivered at least once whatever dies, told of in the log."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import standardwebhooks

from tests.stack import KEY, Stack, eventually, free_port
from tests.webhooks.receiver import Message, Receiver

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    made = Stack(workers=1, threads=16, beat=True, env={"WEBHOOK_ALLOW_PRIVATE": "true"})
    made.wait_for_workers("worker-0")
    yield made
    made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture(scope="module")
def secret(stack: Stack) -> str:
    return str(stack.rows("SELECT webhook_secret FROM bots WHERE is_default")[0][0])


def submit(stack: Stack, url: str, **members: Any) -> str:
    status, _, task = stack.complete(background=True, webhook_url=url, **members)
    assert status == 202, task
    return str(task["id"])


def of_task(receiver: Receiver, task_id: str) -> list[Message]:
    return [message for message in list(receiver.messages) if message.json["data"]["id"] == task_id]


def delivery(stack: Stack, task_id: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the log tells of a task's delivery what is wanted; return it with its attempts."""
    path = f"/v1/webhooks/deliveries/msg_{task_id.removeprefix('task_')}"
    found: list[dict[str, Any]] = []

    def looks() -> bool:
        status, _, body = stack.call("GET", path)
        found[:] = [body]
        return status == 200 and holds(body)

    eventually(looks, 60)
    return found[0]


def test_a_finished_task_is_posted_and_both_libraries_find_its_signature_right(
    stack: Stack, receiver: Receiver, secret: str
) -> None:
    task_id = submit(stack, receiver.url("/done"), user="anna")
    eventually(lambda: receiver.messages, 30)
    message = receiver.messages[0]
    told = standardwebhooks.Webhook(secret).verify(message.body, message.headers)
    with openai.OpenAI(api_key=KEY, webhook_secret=secret) as client:
        client.webhooks.verify_signature(message.body, message.headers)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(message.body + b" ", message.headers)
    assert told["type"] == "task.completed"
    assert told["data"] == stack.call("GET", f"/v1/tasks/{task_id}")[2]
    logged = delivery(stack, task_id, lambda found: found["status"] == "delivered")
    assert [(one["number"], one["status_code"]) for one in logged["attempts"]] == [(1, 204)]


def test_a_caller_who_waits_and_one_who_reads_a_stream_may_have_a_webhook_too(stack: Stack, receiver: Receiver) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{stack.port}/v1", api_key=KEY, timeout=60) as sdk:
        hello: Any = [{"role": "user", "content": "hello"}]
        body = {"webhook_url": receiver.url()}
        waited = sdk.chat.completions.create(model="sim", messages=hello, extra_body=body)
        list(sdk.chat.completions.create(model="sim", messages=hello, stream=True, extra_body=body))
    eventually(lambda: len(receiver.messages) == 2, 30)
    texts = {message.json["data"]["result"]["choices"][0]["message"]["content"] for message in receiver.messages}
    assert texts == {waited.choices[0].message.content}


def test_failures_and_cancellations_are_told_of(stack: Stack, receiver: Receiver) -> None:
    failed = submit(stack, receiver.url(), model="sim:status=400")
    cancelled = submit(stack, receiver.url(), model="sim:tps=5,words=200", stream=True)
    eventually(lambda: cancelled in stack.simulator.stats()["calls"], 30)
    assert stack.call("DELETE", f"/v1/tasks/{cancelled}")[0] == 200
    eventually(lambda: len(receiver.messages) == 2, 60)
    told = {message.json["data"]["id"]: message.json for message in receiver.messages}
    assert {task_id: one["type"] for task_id, one in told.items()} == {
        failed: "task.failed",
        cancelled: "task.cancelled",
    }
    assert told[failed]["data"]["error"]["code"]
    assert told[cancelled]["data"]["error"]["code"] == "cancelled"


def test_a_receiver_that_was_away_gets_what_it_missed(stack: Stack, secret: str) -> None:
    port = free_port()
    task_id = submit(stack, f"http://127.0.0.1:{port}/late")
    # The log is written behind: by the time an attempt is read there, the next may have been counted.
    missed = delivery(stack, task_id, lambda found: found["attempt_count"] >= 1 and found["attempts"])
    assert "cannot be reached" in missed["last_error"]
    receiver = Receiver(port=port)
    try:
        eventually(lambda: receiver.messages, 90)
        standardwebhooks.Webhook(secret).verify(receiver.messages[0].body, receiver.messages[0].headers)
        logged = delivery(stack, task_id, lambda found: found["status"] == "delivered")
        *before, last = [one["status_code"] for one in logged["attempts"]]
        assert set(before) == {None}
        assert last == 204
    finally:
        receiver.close()


def test_what_was_delivered_is_delivered_once_more_when_asked_for(stack: Stack, receiver: Receiver) -> None:
    task_id = submit(stack, receiver.url())
    logged = delivery(stack, task_id, lambda found: found["status"] == "delivered")
    assert stack.call("POST", f"/v1/webhooks/deliveries/{logged['id']}/redeliver")[0] == 202
    eventually(lambda: len(receiver.messages) == 2, 30)
    first, second = receiver.messages
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    delivery(stack, task_id, lambda found: found["status"] == "delivered" and len(found["attempts"]) == 2)


def test_neither_a_worker_killed_in_mid_delivery_nor_a_lost_message_loses_one(stack: Stack, receiver: Receiver) -> None:
    here, over = threading.Event(), threading.Event()

    def reply(message: Message) -> tuple[int, dict[str, str], bytes]:
        if message.path == "/held" and not here.is_set():
            here.set()
            over.wait(60)
        return 200, {}, b""

    receiver.reply = reply
    held = submit(stack, receiver.url("/held"))
    assert here.wait(60)
    stack.workers[0].kill()
    over.set()
    talker = stack.new_worker("talker", "--queues", "chat,history,analytics").start()
    stack.wait_for_workers("talker")
    lost = submit(stack, receiver.url("/lost"))
    stack.wait_for(lost)
    with stack.store() as store:  # kombu pops a message before it writes down that it has it
        queue = stack.keys().queue("webhooks")
        taken = [json.loads(text)["headers"] for text in store.lrange(queue, 0, -1)]
        store.delete(queue)
    assert lost.replace("task_", "deliver-") in {headers["id"] for headers in taken}
    assert not of_task(receiver, lost)
    stack.workers[0].start()
    took_s = eventually(lambda: of_task(receiver, lost) and len(of_task(receiver, held)) == 2, 60)
    print(f"\nboth were delivered {took_s:.0f} s after the next worker was started")
    talker.stop()
    logged = delivery(stack, held, lambda found: found["status"] == "delivered" and len(found["attempts"]) == 2)
    assert "died" in logged["attempts"][0]["error"]
    assert delivery(stack, lost, lambda found: found["status"] == "delivered")["attempt_count"] == 1


def test_a_slow_receiver_holds_up_neither_others_nor_chat(stack: Stack, receiver: Receiver) -> None:
    over = threading.Event()
    slow, quick = receiver, Receiver()

    def reply(message: Message) -> tuple[int, dict[str, str], bytes]:
        over.wait(60)
        return 200, {}, b""

    slow.reply = reply
    try:
        tasks = [submit(stack, slow.url(), user=f"s{number}") for number in range(8)]
        eventually(lambda: slow.messages, 30)
        told = submit(stack, quick.url())
        eventually(lambda: of_task(quick, told), 30)
        assert stack.complete()[0] == 200
        assert slow.most <= 4  # half of what a worker of 16 threads has for webhooks
        over.set()
        eventually(lambda: {message.json["data"]["id"] for message in list(slow.messages)} == set(tasks), 90)
    finally:
        over.set()
        quick.close()
