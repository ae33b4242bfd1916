"""How long tasks take is summed up in each worker process and told as events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import orjson
import prometheus_client
import pytest
from celery import signals

from app.core import errors, events
from app.core.settings import Settings
from app.runtime import Runtime
from tasks.default_bot import DefaultBot
from tasks.durations import Durations
from tests.tasks.eventing import BOT, SHARD


@pytest.fixture
def runtime(redis_url: str) -> Iterator[Runtime]:
    made = Runtime(Settings(redis_url=redis_url), lambda *_: None, lambda: 0, patient=True)
    yield made
    made.close()


@pytest.fixture
def durations(runtime: Runtime) -> Iterator[Durations]:
    made = Durations(runtime, lambda: BOT)  # type: ignore[arg-type]
    made.start()
    yield made
    made.stop()
    made.finish()


class Task:
    """What the signals tell of a task."""

    def __init__(self, name: str) -> None:
        self.name = name


def run(name: str, state: str = "SUCCESS", ident: str = "1") -> None:
    """Let a task begin and end, as a worker tells of it."""
    task = Task(name)
    signals.task_prerun.send(sender=task, task_id=ident, task=task)
    signals.task_postrun.send(sender=task, task_id=ident, task=task, state=state)


def told(runtime: Runtime) -> list[dict[str, Any]]:
    return [orjson.loads(fields["event"]) for _, fields in runtime.outbox.pending("events", SHARD)]


def test_tasks_are_told_of_by_name_and_status_once(runtime: Runtime, durations: Durations) -> None:
    for number in range(5):
        run("chat.complete", ident=str(number))
    run("chat.complete", "FAILURE")
    run("history.write", "RETRY")
    durations.tell()
    found = told(runtime)
    sums = {(event["properties"]["task"], event["properties"]["status"]): event["properties"] for event in found}
    assert {key: one["count"] for key, one in sums.items()} == {
        ("chat.complete", "success"): 5, ("chat.complete", "error"): 1, ("history.write", "retry"): 1,
    }  # fmt: skip
    for one in sums.values():
        assert 0 <= one["maxMs"] <= one["sumMs"] + 1
    assert {(event["botId"], event["eventName"], event["eventType"]) for event in found} == {
        (BOT, "task_duration", "performance")
    }
    assert {events.of_wire(event).route for event in found} == {events.PERFORMANCE}
    durations.tell()
    assert len(told(runtime)) == 3


def test_a_worker_that_stops_tells_what_is_left(runtime: Runtime, durations: Durations) -> None:
    run("chat.complete")
    durations.stop()
    run("webhooks.deliver")  # it ends while the worker waits for its tasks
    signals.worker_shutdown.send(sender=None)
    assert sorted(event["properties"]["task"] for event in told(runtime)) == ["chat.complete", "webhooks.deliver"]


def test_without_redis_or_a_bot_the_sums_are_kept(runtime: Runtime, durations: Durations) -> None:
    run("chat.complete")
    emit: Callable[..., None] = runtime.events.emit

    def away(*_: Any) -> None:
        raise errors.Unavailable("away")

    runtime.events.emit = away  # type: ignore[method-assign]
    with pytest.raises(errors.Unavailable):
        durations.tell()
    runtime.events.emit = emit  # type: ignore[method-assign]
    run("chat.complete", ident="2")
    durations.tell()
    assert [event["properties"]["count"] for event in told(runtime)] == [2]


def test_an_end_without_a_beginning_counts_nothing(runtime: Runtime, durations: Durations) -> None:
    task = Task("chat.complete")
    signals.task_postrun.send(sender=task, task_id="never begun", task=task, state="SUCCESS")
    durations.tell()
    assert told(runtime) == []


class Away:
    """A database that can be away."""

    def __init__(self, sessions: Any) -> None:
        self.sessions = sessions
        self.away = False

    def begin(self) -> Any:
        if self.away:
            raise errors.Unavailable("away")
        return self.sessions.begin()


def test_the_default_bot_stays_known_while_the_database_is_away(sessions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.bots import bootstrap
    from tasks import default_bot

    monkeypatch.setattr(default_bot, "_FRESH_S", 0.0)
    database = Away(sessions)
    known = DefaultBot(database)
    with pytest.raises(errors.Unavailable, match="migrate"):
        known()
    with sessions.begin() as session:
        bootstrap.ensure(session, Settings())
    found = known()
    database.away = True
    assert known() == found
    with pytest.raises(errors.Unavailable):
        DefaultBot(database)()


def test_every_task_but_those_that_count_themselves_is_in_the_metrics(durations: Durations) -> None:
    def figures() -> tuple[float, float, float]:
        registry = prometheus_client.REGISTRY
        names = {"task": "dialogs.archive", "status": "success"}
        return tuple(
            registry.get_sample_value(name, labels) or 0.0
            for name, labels in (
                ("task_duration_seconds_count", names),
                ("task_duration_seconds_count", {**names, "task": "chat.complete"}),
                ("task_in_flight", {"queue": "history"}),
            )
        )

    before, task = figures(), Task("dialogs.archive")
    signals.task_prerun.send(sender=task, task_id="1", task=task)
    assert figures() == (before[0], before[1], before[2] + 1)
    signals.task_postrun.send(sender=task, task_id="1", task=task, state="SUCCESS")
    run("chat.complete", ident="2")
    assert figures() == (before[0] + 1, before[1], before[2])
