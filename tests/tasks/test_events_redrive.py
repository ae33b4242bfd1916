"""The dead messages' way back, and that of the outboxes' entries; and what `repliq events` tells of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy
from click.testing import CliRunner, Result

from app.cli import events as cli
from app.core import errors, events, rejects
from app.core.database.engine import Sessions
from app.core.outbox import Outbox
from app.core.store import Keys, Scripts, Store
from tasks.events import dead
from tasks.events.consumer import Consumer
from tasks.events.intake import Intake
from tests.stack import eventually, free_port
from tests.tasks import eventing
from tests.tasks.eventing import BOT, SHARD, document

pytestmark = pytest.mark.rabbitmq
Command = Callable[..., Result]


@pytest.fixture
def running(url: str, analytics_sessions: Sessions) -> Iterator[Consumer]:
    made = Consumer(url, Intake(analytics_sessions, lambda: BOT))
    made.start()
    yield made
    made.stop()
    assert made.join(30)


@pytest.fixture
def command(url: str, database_url: str, redis_url: str) -> Command:
    """Return a function that runs a subcommand of `repliq events` with the test's servers."""

    def run(*arguments: str, message_broker: str = url) -> Result:
        env = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "MESSAGE_BROKER_URL": message_broker}
        return CliRunner().invoke(cli.command, arguments, env=env)

    return run


def counted(sessions: Sessions) -> int:
    with sessions.begin() as session:
        return int(session.scalar(sqlalchemy.text("SELECT count(*) FROM analytics_events")) or 0)


def redrive(url: str, **options: object) -> dead.Tally:
    with eventing.connected(url) as connection:
        return dead.redrive(connection, **options)  # type: ignore[arg-type]


def test_what_can_be_written_by_now_is_counted_and_the_rest_dies_again_without_going_round_in_a_circle(
    url: str, running: Consumer, analytics_sessions: Sessions
) -> None:
    with analytics_sessions.begin() as session:
        session.execute(sqlalchemy.text("ALTER TABLE analytics_events ADD CONSTRAINT c CHECK (user_id <> 'user-1')"))
    eventing.send(url, document(1), b"never to be read", document(2))
    eventually(lambda: eventing.depth(url, events.DEAD) == 2, 30)
    since = {dead.body(message): message.headers["x-first-dead-at"] for message in eventing.held(url, events.DEAD)}
    with analytics_sessions.begin() as session:
        session.execute(sqlalchemy.text("ALTER TABLE analytics_events DROP CONSTRAINT c"))
    tally = redrive(url)
    assert (tally.moved, tally.others, tally.reasons.total()) == (2, 0, 2)
    eventually(lambda: counted(analytics_sessions) == 2, 30)
    eventually(lambda: eventing.depth(url, events.DEAD) == 1, 30)
    (left,) = eventing.held(url, events.DEAD)
    assert left.headers["x-redriven"] == 1
    assert left.headers["x-first-dead-at"] == since[dead.body(left)], "it forgot since when it is dead"
    assert left.headers["x-from-queue"] == events.EVENTS
    assert redrive(url).moved == 1
    eventually(lambda: eventing.depth(url, events.DEAD) == 1, 30)
    assert eventing.held(url, events.DEAD)[0].headers["x-redriven"] == 2


def test_messages_go_back_to_the_queues_that_they_came_from_as_many_as_are_asked_for(
    url: str, running: Consumer
) -> None:
    for name in (events.EVENTS, events.CRITICAL, events.PERFORMANCE):
        eventing.send(url, *[f"bad {name} {number}".encode() for number in range(3)], queue=name)
    eventually(lambda: eventing.depth(url, events.DEAD) == 9, 30)
    running.stop()
    assert running.join(30)
    assert redrive(url, dry_run=True).reasons.total() == 9
    assert eventing.depth(url, events.DEAD) == 9
    tally = redrive(url, queue=events.CRITICAL)
    assert (tally.moved, tally.others) == (3, 6)
    assert [dead.body(message)[:22] for message in eventing.held(url, events.CRITICAL)] == [
        b"bad analytics.critical"
    ] * 3
    assert redrive(url, limit=2).moved == 2
    assert eventing.depth(url, events.DEAD) == 4
    assert redrive(url).moved == 4
    assert [eventing.depth(url, name) for name in (events.EVENTS, events.CRITICAL, events.PERFORMANCE)] == [3, 3, 3]
    assert redrive(url).moved == 0


def test_what_the_broker_itself_put_aside_finds_its_way_back(url: str) -> None:
    eventing.send(url, document(1), queue=events.CRITICAL)
    with eventing.connected(url) as connection, connection.channel() as channel:
        message = channel.message_to_python(channel.basic_get(events.CRITICAL, no_ack=False))
        channel.basic_reject(message.delivery_tag, requeue=False)
        eventually(lambda: eventing.depth(url, events.DEAD) == 1, 30)
    assert redrive(url, dry_run=True).reasons == {(events.CRITICAL, "rejected"): 1}
    assert redrive(url).moved == 1
    (back,) = eventing.held(url, events.CRITICAL)
    assert not [name for name in back.headers if name.startswith(("x-death", "x-first-death"))]


def test_the_command_shows_reasons_and_sends_back(url: str, running: Consumer, command: Command) -> None:
    eventing.send(url, *[b"no JSON"] * 3, b"[]")
    eventually(lambda: eventing.depth(url, events.DEAD) == 4, 30)
    shown = command("redrive", "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert shown.output.splitlines()[0].startswith("       3  analytics.events  the message is not JSON")
    assert shown.output.splitlines()[-1] == "4 messages would be sent back."
    assert "analytics.dead" in command("status").output
    running.stop()
    assert running.join(30)
    assert command("redrive", "--limit", "3").output.splitlines()[-1] == "3 messages sent back."
    status = json.loads(command("status", "--json").output)
    assert status["queues"] == {
        "analytics.events": 3, "analytics.critical.events": 0, "analytics.performance.metrics": 0, "analytics.dead": 1,
    }  # fmt: skip


def test_the_command_says_in_a_line_what_is_missing(command: Command) -> None:
    away = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    for message_broker, kind, words in [
        ("", errors.ConfigurationError, "MESSAGE_BROKER_URL is not set"),
        (away, errors.Unavailable, "cannot be reached"),
    ]:
        done = command("redrive", message_broker=message_broker)
        assert isinstance(done.exception, kind)
        assert words in str(done.exception)
    assert "--outbox" in command("redrive", "--outbox", "--queue", events.EVENTS).output
    assert "no message broker" in command("status", message_broker="").output
    found = command("status", message_broker=away)
    assert (found.exit_code, "cannot be reached" in found.output) == (0, True)


def test_entries_that_were_put_aside_go_back_to_their_stream(
    store: Store, scripts: Scripts, keys: Keys, command: Command
) -> None:
    outbox, refused = Outbox(store, scripts, keys), True

    def write(entries: list[tuple[str, dict[str, str]]]) -> None:
        if refused:
            raise ValueError("not today")
        written.extend(fields["number"] for _, fields in entries)

    written: list[str] = []
    for number in range(7):
        store.call("XADD", keys.of_outbox("events", SHARD), "*", "number", number)
        store.call("XADD", keys.of_outbox("history", 3), "*", "number", 10 + number)
    outbox.drain("events", SHARD, write, linger_s=0)
    outbox.drain("history", 3, write, linger_s=0)
    shown = command("redrive", "--outbox", "--dry-run").output.splitlines()
    assert shown == [
        "       7  history  ValueError: not today", "       7  events  ValueError: not today", "14 entries would be put back.",
    ]  # fmt: skip
    status = json.loads(command("status", "--json").output)
    assert status["put_aside"] == {"history": 7, "events": 7}
    assert status["outboxes"]["events"]["entries"] == 0
    refused = False
    assert rejects.redrive(store, keys, limit=9).total() == 9
    assert command("redrive", "--outbox").output.splitlines()[-1] == "5 entries put back."
    status = json.loads(command("status", "--json").output)
    assert (status["put_aside"], status["outboxes"]["events"]["entries"]) == ({}, 7)
    assert status["outboxes"]["events"]["oldest_s"] >= 0
    outbox.drain("events", SHARD, write, linger_s=0)
    outbox.drain("history", 3, write, linger_s=0)
    assert written == [str(number) for number in (*range(7), *range(10, 17))]
