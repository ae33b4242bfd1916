"""Our own events on their way to the message broker: confirmed by it before they leave the outbox, whatever it does meanwhile."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from app.core import errors, events
from app.core.events import Event, Events
from app.core.outbox import Outbox
from app.core.queue import Queue
from app.core.store import Keys, Scripts, Store
from tasks.events import topology
from tasks.events.publisher import Publisher
from tests import rabbit
from tests.stack import free_port
from tests.tasks import eventing
from tests.tasks.eventing import SHARD, event

pytestmark = pytest.mark.rabbitmq
Emit = Callable[..., list[Event]]
Make = Callable[[str], Publisher]


@pytest.fixture(scope="module")
def node() -> Iterator[rabbit.Node]:
    made = rabbit.Node().start()
    yield made
    made.remove()


@pytest.fixture
def url(broker: str) -> str:
    eventing.clear(broker)
    return broker


@pytest.fixture
def outbox(store: Store, scripts: Scripts, keys: Keys) -> Outbox:
    return Outbox(store, scripts, keys)


@pytest.fixture
def emit(scripts: Scripts, keys: Keys) -> Callable[..., list[Event]]:
    queue = Queue(direct=False, publish=lambda *_: None)
    told = Events(scripts, keys, queue, publishes=True)

    def emit(*found: Event) -> list[Event]:
        told.emit(found)
        return list(found)

    return emit


@pytest.fixture
def publisher_to() -> Iterator[Callable[[str], Publisher]]:
    """Return a function that makes publishers; their connections are closed at the end."""
    made: list[Publisher] = []

    def make(url: str) -> Publisher:
        made.append(Publisher(url))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


def drain(outbox: Outbox, publisher: Publisher) -> None:
    outbox.drain("publish", SHARD, publisher.write, linger_s=0)


def told(url: str, name: str = events.EVENTS) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in eventing.held(url, name)]


def test_an_event_arrives_in_the_queue_of_its_route_with_its_id_and_stays_there_through_a_restart(
    url: str, outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    sent = emit(
        event(1), events.new(eventing.BOT, events.PROVIDER, events.CIRCUIT_OPENED, properties={"provider": "openai"}),
        events.new(eventing.BOT, events.MEASURE, events.TASK_DURATION, properties={"task": "chat.complete", "count": 3}),
    )  # fmt: skip
    drain(outbox, publisher_to(url))
    found = {name: eventing.held(url, name) for name in topology.QUEUES}
    assert {name: [json.loads(message.body) for message in messages] for name, messages in found.items()} == {
        events.EVENTS: [sent[0].wire()], events.CRITICAL: [sent[1].wire()], events.PERFORMANCE: [sent[2].wire()],
    }  # fmt: skip
    (message,) = found[events.EVENTS]
    assert message.properties["delivery_mode"] == 2
    assert message.properties["message_id"] == str(sent[0].id)
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert outbox.length("publish", SHARD) == 0


def test_many_events_go_out_in_order_over_one_connection(
    url: str, outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    sent = emit(*[event(number) for number in range(2_300)])
    publisher = publisher_to(url)
    drain(outbox, publisher)
    assert [body["eventId"] for body in told(url)] == [str(one.id) for one in sent]
    assert len(publisher._free) == 1


def test_without_the_broker_events_wait_and_arrive_when_it_is_there(
    url: str, outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    sent = emit(event(1), event(2))
    away = publisher_to(f"amqp://guest:guest@127.0.0.1:{free_port()}//")
    assert not away.rests
    with pytest.raises(errors.Unavailable):
        drain(outbox, away)
    assert away.rests, "it would be asked for every event, and log every time"
    assert outbox.length("publish", SHARD) == 2
    drain(outbox, publisher_to(url))
    assert [body["eventId"] for body in told(url)] == [str(one.id) for one in sent]


def test_a_password_that_is_wrong_is_no_fault_of_the_events(
    url: str, outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    emit(event(1))
    for wrong in (url.replace("guest:guest", "guest:wrong"), url + "-not-there", "nonsense://guest@127.0.0.1/"):
        with pytest.raises(errors.Unavailable):
            drain(outbox, publisher_to(wrong))
    assert outbox.length("publish", SHARD) == 1
    assert not outbox.store.call("EXISTS", outbox.keys.of_outbox("publish", SHARD, ":dead"))


def test_a_connection_that_the_broker_closed_is_made_anew_at_once(
    url: str, outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    publisher = publisher_to(url)
    emit(event(1))
    drain(outbox, publisher)
    rabbit.control("close_all_connections", "--vhost", url.rpartition("/")[2], "a test")
    emit(event(2))
    drain(outbox, publisher)
    assert [body["userId"] for body in told(url)] == ["user-1", "user-2"]


def test_an_event_that_reaches_no_queue_is_kept_and_the_binding_mended(
    url: str, outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    publisher = publisher_to(url)
    emit(event(1))
    drain(outbox, publisher)
    with eventing.connected(url) as connection, connection.channel() as channel:
        channel.queue_unbind(events.EVENTS, events.EXCHANGE, events.EVENTS)
    (sent,) = emit(event(2))
    drain(outbox, publisher)
    assert told(url)[-1]["eventId"] == str(sent.id)


def test_a_queue_that_somebody_made_otherwise_is_used_and_what_it_refuses_is_kept(
    url: str, outbox: Outbox, emit: Emit, publisher_to: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = {"x-queue-type": "quorum", "x-max-length": 1, "x-overflow": "reject-publish"}
    with eventing.connected(url) as connection, connection.channel() as channel:
        channel.queue_declare(events.EVENTS, durable=True, auto_delete=False, arguments=limits)
    publisher = publisher_to(url)
    number = _until_refused(outbox, publisher, emit)
    assert outbox.length("publish", SHARD) == 1
    out = "".join(capfd.readouterr())
    assert "event_queue_differs" in out
    assert "x-max-length" in out or "x-dead-letter-exchange" in out, "the log does not name the difference"
    with eventing.connected(url) as connection, connection.channel() as channel:
        channel.queue_delete(events.EVENTS)
    drain(outbox, publisher)
    assert [body["userId"] for body in told(url)] == [f"user-{number}"]


def _until_refused(outbox: Outbox, publisher: Publisher, emit: Emit) -> int:
    """Send events until the queue is full (the limit of a quorum queue is not to the message); return the refused one's number."""
    for number in range(50):
        emit(event(number))
        try:
            drain(outbox, publisher)
        except errors.Unavailable as error:
            assert "refused" in str(error)
            return number
    raise AssertionError("the queue takes everything")


def test_a_bad_entry_is_put_aside_alone(url: str, outbox: Outbox, emit: Emit, publisher_to: Make) -> None:
    key = outbox.keys.of_outbox("publish", SHARD)
    emit(event(1))
    outbox.store.call("XADD", key, "*", "event", "no JSON")
    outbox.store.call("XADD", key, "*", "other", "field")
    emit(event(2))
    drain(outbox, publisher_to(url))
    assert [body["userId"] for body in told(url)] == ["user-1", "user-2"]
    assert outbox.store.call("XLEN", key + ":dead") == 2


def test_a_broker_that_accepts_and_says_nothing_costs_a_wait_and_no_event(
    outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    emit(event(1))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(errors.Unavailable):
        drain(outbox, publisher_to(f"amqp://guest:guest@127.0.0.1:{silent.getsockname()[1]}//"))
    assert outbox.length("publish", SHARD) == 1


@pytest.mark.soak
def test_a_broker_that_hangs_or_restarts_costs_a_wait_and_no_event(
    node: rabbit.Node, outbox: Outbox, emit: Emit, publisher_to: Make
) -> None:
    publisher = publisher_to(node.url)
    sent = emit(*[event(number) for number in range(3)])
    drain(outbox, publisher)
    sent += emit(event(3))
    node.signal(signal.SIGSTOP)
    try:
        with pytest.raises(errors.Unavailable):
            drain(outbox, publisher)
    finally:
        node.signal(signal.SIGCONT)
    node.stop()
    with pytest.raises(errors.Unavailable):
        drain(outbox, publisher)
    assert outbox.length("publish", SHARD) == 1
    node.start()
    drain(outbox, publisher)
    assert {body["eventId"] for body in told(node.url)} == {str(one.id) for one in sent}


def test_any_broker_of_kombus_will_do(outbox: Outbox, emit: Emit, publisher_to: Make) -> None:
    url = "memory://"
    eventing.clear(url)  # of a test before: there is one in a process
    sent = emit(event(1), event(2))
    drain(outbox, publisher_to(url))
    assert [body["eventId"] for body in told(url)] == [str(one.id) for one in sent]
