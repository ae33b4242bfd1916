"""One attempt after another: what is sent, what an answer means, and what happens where something of ours is away."""

from __future__ import annotations

import email.utils
import threading

import pytest
import sqlalchemy
import standardwebhooks

from app.bots import bots, models
from app.bots.directory import Directory
from app.chat.callbacks import Callbacks
from app.chat.listing import TaskList
from app.core import errors, ids
from app.core.database import Sessions
from app.core.outbox import Outbox
from app.history import writer
from app.webhooks import log, retries
from app.webhooks.client import Answer, Client
from app.webhooks.courier import Courier
from app.webhooks.receivers import Receivers
from tests.webhooks.conftest import Post, completed, make_courier
from tests.webhooks.receiver import Receiver


@pytest.fixture
def courier(post: Post, directory: Directory) -> Courier:
    return make_courier(post, directory)


def secret_of(sessions: Sessions, bot: str) -> str:
    with sessions.begin() as session:
        row = session.get(models.Bot, bot)
        assert row is not None
        return row.webhook_secret


def test_what_is_sent_is_signed_with_the_bots_secret(
    post: Post, courier: Courier, receiver: Receiver, sessions: Sessions, bot: str
) -> None:
    ref = post.ended(receiver.url("/a?b=1"), bot)
    courier.deliver(ref)
    message = receiver.messages[0]
    told = standardwebhooks.Webhook(secret_of(sessions, bot)).verify(message.body, message.headers)
    assert set(told) == {"type", "timestamp", "data"}
    assert (told["type"], told["data"]["id"]) == ("task.completed", f"task_{ref}")
    assert message.headers["webhook-id"] == f"msg_{ref}"
    assert message.headers["content-type"] == "application/json"
    assert post.hook(ref).state == "delivered"
    courier.deliver(ref)
    assert len(receiver.messages) == 1


def test_a_task_of_a_trace_takes_it_along(post: Post, directory: Directory, receiver: Receiver, bot: str) -> None:
    place = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "a=1"}
    places = [place, {}]
    client = Client(Receivers(allow_private=True))
    told = {"id": "task_x", "finished_at": None}
    courier = Courier(
        post.deliveries, directory, lambda *_: told, client, most_at_once=8, placed=lambda _: places.pop(0)
    )
    for _ in range(2):
        courier.deliver(post.ended(receiver.url(), bot))
    first, second = (message.headers for message in receiver.messages)
    assert first["traceparent"] == place["traceparent"]
    assert "tracestate" not in first
    assert "traceparent" not in second


def test_every_attempt_has_the_same_id(post: Post, courier: Courier, receiver: Receiver, bot: str) -> None:
    receiver.answers(500, 302, 404, 200)
    ref = post.ended(receiver.url(), bot)
    for _ in range(4):
        courier.deliver(ref)
        post.later(4 * 3600_000)
    assert (post.hook(ref).state, post.hook(ref).attempt) == ("delivered", 4)
    assert {message.headers["webhook-id"] for message in receiver.messages} == {f"msg_{ref}"}
    assert len({message.body for message in receiver.messages}) == 1


def test_a_receiver_that_is_gone_is_asked_once(post: Post, courier: Courier, receiver: Receiver, bot: str) -> None:
    receiver.answers(410)
    ref = post.ended(receiver.url(), bot)
    courier.deliver(ref)
    post.later(3600_000)
    courier.deliver(ref)
    assert (post.hook(ref).state, len(receiver.messages)) == ("gone", 1)


def test_after_a_rotation_both_secrets_sign(
    post: Post, directory: Directory, courier: Courier, receiver: Receiver, sessions: Sessions, bot: str
) -> None:
    before = secret_of(sessions, bot)
    with sessions.begin() as session:
        row = session.get(models.Bot, bot)
        assert row is not None
        bots.rotate_webhook_secret(session, str(row.organisation_id), bot)
    courier.deliver(post.ended(receiver.url(), bot))
    message = receiver.messages[0]
    for secret in (before, secret_of(sessions, bot)):
        standardwebhooks.Webhook(secret).verify(message.body, message.headers)
    assert before != secret_of(sessions, bot)


def test_a_private_address_is_refused_at_delivery_and_tried_again(
    post: Post, directory: Directory, receiver: Receiver, bot: str
) -> None:
    ref = post.ended(receiver.url(), bot)
    make_courier(post, directory, allow_private=False).deliver(ref)
    assert (post.hook(ref).state, post.hook(ref).attempt, receiver.messages) == ("pending", 1, [])


def test_what_a_deleted_bot_had_is_not_delivered(
    post: Post, courier: Courier, receiver: Receiver, sessions: Sessions, bot: str
) -> None:
    ref = post.ended(receiver.url(), bot)
    with sessions.begin() as session:
        row = session.get(models.Bot, bot)
        assert row is not None
        bots.delete(session, str(row.organisation_id), bot)
    courier.deliver(ref)
    assert (post.hook(ref).state, receiver.messages) == ("failed", [])


def test_while_the_database_is_away_no_attempt_is_used_up(
    post: Post, directory: Directory, receiver: Receiver, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Directory(directory._sessions, "a secret of the tests")
    ref = post.ended(receiver.url(), bot)
    with monkeypatch.context() as patched:
        patched.setattr(away, "_load_bot", _unavailable)
        make_courier(post, away).deliver(ref)
    assert (post.hook(ref).state, post.hook(ref).attempt, receiver.messages) == ("pending", 0, [])
    make_courier(post, directory).deliver(ref)
    assert post.hook(ref).state == "delivered"


def _unavailable(bot: str) -> None:
    raise errors.Unavailable("PostgreSQL is away.")


def test_a_message_of_what_redis_has_forgotten_does_nothing(post: Post, courier: Courier) -> None:
    ref = post.ended()
    post.desk.store.call("DEL", post.desk.keys.of_hook(ref))
    courier.deliver(ref)
    assert post.desk.store.call("ZCARD", post.desk.keys.of_shard("hooks", int(ref[:2]))) == 0


def test_two_workers_with_one_delivery_make_one_call(
    post: Post, directory: Directory, receiver: Receiver, bot: str
) -> None:
    gate, here = threading.Event(), threading.Event()

    def reply(message: object) -> tuple[int, dict[str, str], bytes]:
        here.set()
        gate.wait(60)
        return 200, {}, b""

    receiver.reply = reply
    ref = post.ended(receiver.url(), bot)
    workers = [make_courier(post, directory) for _ in range(4)]
    first = threading.Thread(target=workers[0].deliver, args=(ref,))
    first.start()
    assert here.wait(60)
    for worker in workers[1:]:
        worker.deliver(ref)
    gate.set()
    first.join(60)
    assert (receiver.most, len(receiver.messages)) == (1, 1)
    assert post.hook(ref).attempt == 1


def test_a_process_keeps_threads_for_its_other_work(
    post: Post, directory: Directory, receiver: Receiver, bot: str
) -> None:
    gate, here = threading.Event(), threading.Event()

    def reply(message: object) -> tuple[int, dict[str, str], bytes]:
        here.set()
        gate.wait(60)
        return 200, {}, b""

    receiver.reply = reply
    courier = make_courier(post, directory, most_at_once=1)
    held, over = post.ended(receiver.url(), bot), post.ended(receiver.url(), bot)
    first = threading.Thread(target=courier.deliver, args=(held,))
    first.start()
    assert here.wait(60)
    courier.deliver(over)
    assert (post.hook(over).attempt, post.hook(over).state) == (0, "pending")
    gate.set()
    first.join(60)
    post.later(20_000)
    courier.deliver(over)
    assert post.hook(over).state == "delivered"


@pytest.mark.parametrize(
    ("status", "kind", "blame"),
    [(200, "delivered", -1), (204, "delivered", -1), (299, "delivered", -1), (301, "retry", -1), (400, "retry", -1),
     (410, "gone", -1), (429, "retry", 0), (500, "retry", 1), (0, "retry", 1), (199, "retry", -1)],
)  # fmt: skip
def test_what_an_answer_means(status: int, kind: str, blame: int) -> None:
    found = retries.outcome(Answer(status, 12), 1)
    assert (found.kind, found.blame, found.status) == (kind, blame, status or None)


def test_the_wait_grows_from_attempt_to_attempt_and_is_never_twice_the_same() -> None:
    for attempt, base in enumerate((*retries.DELAYS_S, retries.DELAYS_S[-1]), start=1):
        waits = {retries.delay_ms(attempt) for _ in range(200)}
        assert len(waits) > 100
        assert base * 500 <= min(waits) <= max(waits) <= base * 1500


def test_a_receiver_may_ask_for_more_time_but_not_for_any_time() -> None:
    assert retries.delay_ms(1, "60") == 60_000
    assert retries.delay_ms(1, email.utils.formatdate(1_000_090, usegmt=True), now_s=1_000_000) == 90_000
    assert retries.delay_ms(1, "999999999999999999999") == 6 * 3600_000
    assert retries.delay_ms(6, "1") >= 1_800_000
    for nonsense in ("", "soon", "-5", "1.5", "٣", "Thu, 99 Foo 2026 00:00:00 GMT"):
        assert retries.delay_ms(1, nonsense) <= 7_500


@pytest.mark.parametrize(
    ("keeps", "kept"), [("all", "no anna@example.com"), ("masked", "no [email]"), ("metadata", None)]
)
def test_what_a_receiver_repeats_is_kept_as_the_task_is(
    post: Post, courier: Courier, receiver: Receiver, sessions: Sessions, bot: str, keeps: str, kept: str | None
) -> None:
    with sessions.begin() as session:
        row = session.get(models.Bot, bot)
        assert row is not None
        row.settings = {"store_content": keeps}
    receiver.reply = lambda message: (500, {}, b"no anna@example.com")
    ref = post.ended(receiver.url(), bot)
    courier.deliver(ref)
    post.write_log(sessions, ids.shard_in(ref))
    with sessions.begin() as session:
        assert [attempt.response for attempt in log.attempts_of(session, ids.uuid_in(ref))] == [kept]


def test_a_task_whose_record_an_erasure_took_away_is_told_once_the_history_has_its_end(
    post: Post, directory: Directory, receiver: Receiver, sessions: Sessions, bot: str
) -> None:
    outbox = Outbox(post.desk.store, post.desk.scripts, post.desk.keys)
    callbacks = Callbacks(post.desk.ledger, TaskList(post.desk.ledger, outbox, sessions, 16))
    courier = Courier(
        post.deliveries, directory, callbacks.task, Client(Receivers(allow_private=True)), most_at_once=8
    )  # fmt: skip

    def drain() -> None:
        outbox.drain("history", ids.shard_of(bot, 16), lambda entries: writer.write(sessions, entries), linger_s=0)

    unwritten, begun = post.claimed(receiver.url(), bot), post.claimed(receiver.url(), bot)
    drain()
    late = post.claimed(receiver.url(), bot)
    for task in (unwritten, begun, late):
        post.desk.ledger.finish(task, completed(task))
        post.desk.store.call("UNLINK", post.desk.keys.of_task("task", task.ref))
        courier.deliver(task.ref)
        assert (post.hook(task.ref).state, post.hook(task.ref).attempt, receiver.messages) == ("pending", 0, [])
    drain()
    for task in (begun, late):
        courier.deliver(task.ref)
        assert (post.hook(task.ref).state, receiver.messages[-1].json["data"]["status"]) == ("delivered", "completed")
    with sessions.begin() as session:
        session.execute(sqlalchemy.text("DELETE FROM request_history"))
    courier.deliver(unwritten.ref)
    assert (post.hook(unwritten.ref).state, len(receiver.messages)) == ("failed", 2)
