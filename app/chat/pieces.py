"""A streamed answer on its way: pieces coalesced to about 30 ms into the task's stream, and the whole put together for its end."""

from __future__ import annotations

import threading
import time
from typing import Any

import orjson

from app.chat.ledger import Ledger
from app.chat.records import Task
from app.core import errors
from app.llm.answers import Answer
from app.llm.chunks import FILTERED, begins

COALESCE_S = 0.03
_AGAIN_S = 0.25  # after Redis could not be reached
_PATIENCE_S = 60.0
_TEXTS = ("content", "refusal", "reasoning_content")


class Pieces:
    """Collects chunks and emits them together; a timer thread of the process sees to it that none waits long."""

    def __init__(self, ledger: Ledger, task: Task, flusher: Flusher) -> None:
        self.ledger = ledger
        self.task = task
        self.stopped = False
        self._flusher = flusher
        self._lock = threading.Lock()
        self._chunks: list[bytes] = []
        self._piece = b""  # on its way; it keeps its seq when it is sent again, so that it is told once
        self._seq = 0
        self._sent = 0.0
        self._away_since = 0.0

    def add(self, chunk: dict[str, Any]) -> None:
        """Add a chunk; it leaves now if the last piece is 30 ms old, else with the next ones."""
        with self._lock:
            self._chunks.append(orjson.dumps(chunk))
            due = time.monotonic() - self._sent >= COALESCE_S
        if due:
            self.flush()
        else:
            self._flusher.later(self)

    @property
    def waits(self) -> bool:
        """Tell whether there are pieces which Redis, being away, has not got; for a minute, then they are given up."""
        return bool(self._away_since) and not self.stopped and time.monotonic() - self._away_since < _PATIENCE_S

    def flush(self) -> None:
        """Emit what was collected; sets `stopped` when the task is no longer this attempt's. While Redis is away it is kept."""
        with self._lock:
            if self.stopped or time.monotonic() < self._sent:
                return
            while self._piece or self._chunks:
                if not self._piece:
                    self._piece = b"[" + b",".join(self._chunks) + b"]"
                    self._chunks.clear()
                    self._seq += 1
                if not self._emit():
                    return

    def _emit(self) -> bool:
        self._sent = time.monotonic()
        try:
            self.stopped = not self.ledger.emit(self.task, self._seq, self._piece)
        except errors.Unavailable:
            self._away_since = self._away_since or time.monotonic()
            self._sent = time.monotonic() + _AGAIN_S
            return False
        self._piece, self._away_since = b"", 0.0
        return not self.stopped

    def close(self) -> None:
        """Emit the rest before the task's end is told, waiting for Redis if need be."""
        self.flush()
        while self.waits:
            time.sleep(_AGAIN_S)
            self.flush()


class Flusher:
    """One thread a process that flushes pieces which wait for a next chunk."""

    def __init__(self) -> None:
        self._waiting: set[Pieces] = set()
        self._some = threading.Condition()
        self._thread: threading.Thread | None = None

    def later(self, pieces: Pieces) -> None:
        with self._some:
            self._waiting.add(pieces)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="flusher", daemon=True)
                self._thread.start()
            self._some.notify()

    def _run(self) -> None:
        while True:
            with self._some:
                while not self._waiting:
                    self._some.wait()
            time.sleep(COALESCE_S)
            with self._some:
                batch, self._waiting = self._waiting, set()
            for pieces in batch:
                pieces.flush()
                if pieces.waits:
                    self.later(pieces)


class Whole:
    """Puts the chunks of a stream together into the `chat.completion` that the same call without `stream` would have given."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.usage: dict[str, Any] | None = None
        self._first: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self.began = False
        """Whether something of the answer has come."""

    @property
    def text(self) -> str:
        return str(self._choices[0]["message"]["content"] or "") if 0 in self._choices else ""

    @property
    def filtered(self) -> bool:
        return any(choice["finish_reason"] == FILTERED for choice in self._choices.values())

    @property
    def said(self) -> str:
        """Return all that has come, of every choice: thoughts, refusals and calls of tools are paid for, too."""
        messages = [choice["message"] for choice in self._choices.values()]
        calls = [call["function"] for message in messages for call in message.get("tool_calls") or ()]
        found = [message.get(name) for message in messages for name in _TEXTS]
        return "\n".join(filter(None, [*found, *(call[name] for call in calls for name in ("name", "arguments"))]))

    def add(self, chunk: dict[str, Any]) -> None:
        self._first = self._first or chunk
        self.began = self.began or begins(chunk)
        if chunk.get("usage"):
            self.usage = chunk["usage"]
        for choice in chunk.get("choices") or []:
            self._add_choice(choice)

    def _add_choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        whole = self._choices.setdefault(
            index,
            {
                "index": index,
                "message": {"role": "assistant", "content": None},
                "logprobs": None,
                "finish_reason": None,
            },
        )
        message = whole["message"]
        delta = choice.get("delta") or {}
        for name in _TEXTS:
            if delta.get(name):
                message[name] = (message.get(name) or "") + delta[name]
        for call in delta.get("tool_calls") or []:
            _add_tool_call(message.setdefault("tool_calls", []), call)
        if choice.get("finish_reason"):
            whole["finish_reason"] = choice["finish_reason"]

    def answer(self, provider: str, usage: dict[str, Any]) -> Answer:
        """Return the whole as an answer."""
        first = self._first
        body: dict[str, Any] = {
            "id": first.get("id"),
            "object": "chat.completion",
            "created": first.get("created"),
            "model": first.get("model") or self.model,
            "system_fingerprint": first.get("system_fingerprint"),
            "choices": [self._choices[i] for i in sorted(self._choices)],
            "usage": usage,
        }
        reason = body["choices"][0]["finish_reason"] if body["choices"] else None
        tier = first.get("service_tier") or ""
        return Answer(orjson.dumps(body), provider, body["model"], self.text, usage, reason, tier)


def _add_tool_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    index = piece.get("index", 0)
    while len(calls) <= index:
        calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
    call = calls[index]
    if piece.get("id"):
        call["id"] = piece["id"]
    function = piece.get("function") or {}
    call["function"]["name"] += function.get("name") or ""
    call["function"]["arguments"] += function.get("arguments") or ""
