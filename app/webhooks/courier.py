"""Makes one attempt at a delivery: everything that it needs first, then the claim, the call, and what came of it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson

from app.bots.directory import Directory
from app.core import clock, errors, logs, masking, metrics, tracing
from app.core.tracing import Carried
from app.webhooks import retries, signatures, urls
from app.webhooks.client import Answer, Client
from app.webhooks.deliveries import AT_ONCE, Attempt, Deliveries, Hook, Outcome
from app.webhooks.urls import Url

Told = Callable[[str, str], dict[str, Any]]
"""Returns what is told of a task, by its bot and reference; raises `NotFound` where it is gone."""
Placed = Callable[[str], Carried]
"""Returns where a task stands in a trace, by its reference."""

_RESULTS = {"pending": "retried"}
_log = logs.get(__name__)


def body(type_: str, at: str, data: dict[str, Any]) -> bytes:
    """Return what is posted, as compact JSON."""
    return orjson.dumps({"type": type_, "timestamp": at, "data": data})


def headers(identifier: str, at_s: int, message: bytes, secrets: list[str]) -> dict[str, str]:
    """Return the headers that go with it."""
    fixed = {"Content-Type": "application/json", "User-Agent": "Repliq-Webhooks/1", "Accept-Encoding": "identity"}
    return fixed | signatures.headers(identifier, at_s, message, secrets)


def _kept(store: str, response: str) -> str:
    """Return what the log keeps of how an answer began: a receiver may repeat what it was told."""
    if store == "metadata":
        return ""
    return masking.text(response) if store == "masked" else response


class Courier:
    """Delivers. No more than `most_at_once` calls are under way in this process, so that its other work has threads, too; and one
    receiver has no more than half of them, so that a slow one holds up no other.
    """

    def __init__(
        self, deliveries: Deliveries, directory: Directory, told: Told, client: Client, *, most_at_once: int,
        placed: Placed = lambda _: {},
    ) -> None:  # fmt: skip
        self.deliveries = deliveries
        self._directory = directory
        self._told = told
        self._placed = placed
        self._client = client
        self._room = threading.BoundedSemaphore(most_at_once)
        self._share = max(1, min(AT_ONCE, most_at_once // 2))

    def deliver(self, ref: str) -> None:
        """Make an attempt, unless there is none to make now. Where a server of ours is away no attempt is used up: the sweep asks again."""
        try:
            self._deliver(ref)
        except errors.Unavailable as error:
            _log.warning("webhook_waits", task_id=f"task_{ref}", reason=str(error))

    def _deliver(self, ref: str) -> None:
        hook = self.deliveries.read(ref)
        if hook is None:
            self.deliveries.forget(ref)
            return
        if hook.state != "pending":
            return
        receiver = urls.parse(hook.url)
        message, secrets, store = self._message(hook)
        if not self._room.acquire(blocking=False):
            self._claim(hook, receiver, most=0)
            return
        try:
            attempt = self._claim(hook, receiver, most=self._share)
            if attempt is not None:
                outcome = self._attempt(attempt, receiver, message, secrets)
                self._settle(attempt, dataclasses.replace(outcome, response=_kept(store, outcome.response)))
        finally:
            self._room.release()

    def _message(self, hook: Hook) -> tuple[bytes, list[str], str]:
        """Return the body, what it is signed with, and what the bot has kept of contents; b"" where there is nothing left to tell,
        or nobody to tell it for."""
        try:
            bot = self._directory.bot(hook.bot)
            secrets = bot.webhook_secrets.valid(clock.as_utc(clock.now_ms()))
            task = None if hook.payload else self._told(hook.bot, hook.ref)
        except errors.NotFound:
            return b"", [], "metadata"
        at = (task and task["finished_at"]) or clock.rfc3339(hook.created)
        return (
            body(hook.type, at, orjson.loads(hook.payload) if task is None else task),
            secrets,
            bot.settings.store_content,
        )

    def _claim(self, hook: Hook, receiver: Url, *, most: int) -> Attempt | None:
        claimed = self.deliveries.claim(hook, receiver.receiver, most=most)
        if isinstance(claimed, Attempt):
            return claimed
        if claimed != "passed":
            metrics.webhook_deliveries.labels(claimed).inc()
        return None

    def _attempt(self, attempt: Attempt, receiver: Url, message: bytes, secrets: list[str]) -> Outcome:
        if not message:
            return Outcome("failed", error="The task or its bot has been deleted; there is nothing to deliver.")
        gauge = metrics.task_in_flight.labels("webhooks")
        gauge.inc()
        try:
            signed = headers(attempt.hook.id, int(time.time()), message, secrets)
            answer = self._post(attempt, receiver, message, signed)
        finally:
            gauge.dec()
        metrics.webhook_attempt_seconds.observe(answer.took_ms / 1000)
        return retries.outcome(answer, attempt.number)

    def _post(self, attempt: Attempt, receiver: Url, message: bytes, signed: dict[str, str]) -> Answer:
        """Post, in the trace of the task that the message tells of; its receiver may go on with that by `traceparent`."""
        place = {} if attempt.hook.payload else self._placed(attempt.hook.ref)
        facts = {
            "http.request.method": "POST", "server.address": receiver.host, "repliq.attempt": attempt.number,
            "repliq.task_id": f"task_{attempt.hook.ref}",
        }  # fmt: skip
        with tracing.span("webhook.deliver", "client", facts, parent=place) as span:
            sent = tracing.carried() or place
            header = {"traceparent": sent["traceparent"]} if sent else {}
            answer = self._client.post(receiver, message, signed | header)
            span.set("http.response.status_code", answer.status or None)
            if not 200 <= answer.status < 300:
                span.fail(str(answer.status or "not_reached"))
            return answer

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        state = self.deliveries.settle(attempt, outcome)
        if state is None:
            return
        metrics.webhook_deliveries.labels(_RESULTS.get(state, state)).inc()
        if outcome.kind != "delivered":
            _log.info(
                "webhook_not_delivered", task_id=f"task_{attempt.hook.ref}", attempt=attempt.number, state=state,
                reason=outcome.error,
            )  # fmt: skip
