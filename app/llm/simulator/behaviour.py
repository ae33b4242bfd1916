"""How a request is to be treated: the pairs that a model name, a header or the default carry, read and checked.

| pair            | effect                                                                                 |
|-----------------|----------------------------------------------------------------------------------------|
| `delay=200`     | ms before any answer, errors too                                                       |
| `jitter=100`    | up to so many ms more, from the seeded generator                                       |
| `ttft=500`      | ms from the head of the answer to its first word                                       |
| `tps=50`        | tokens a second                                                                        |
| `words=40`      | length of the answer                                                                   |
| `status=503`    | this error in place of an answer; `code=…` replaces the error's code                    |
| `retry_after=2` | s, sent as Retry-After with an error                                                    |
| `hangup=3`      | closes after 3 chunks of a stream; 0, or no stream: before any answer                  |
| `stall=2`       | falls silent after 2 chunks and stays open; 0, or no stream: before any answer         |
| `malformed=1`   | 200 with broken JSON                                                                   |
| `empty=1`       | 200 with empty content                                                                 |
| `fail=2`        | only the first 2 requests of `key=…` fail: as the pairs above say, else with a 500     |
| `rpm=60`        | 429 with Retry-After beyond 60 requests of `key=…` in a minute                         |
| `filter=1`      | 400 with code `content_filter`                                                         |
| `context=10`    | 400 with code `context_length_exceeded` when the prompt has more than 10 tokens        |
| `all=1`         | of the default: it holds for requests that bring pairs of their own, too               |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

from app.llm.simulator import refusals
from app.llm.simulator.exchange import Fate


@dataclass(frozen=True, slots=True)
class Behaviour:
    """One request's treatment; the defaults answer at once and without a fault."""

    delay: float = 0.0
    jitter: float = 0.0
    ttft: float = 0.0
    tps: float = 0.0
    words: int = 0
    status: int = 0
    code: str = ""
    retry_after: float | None = None
    hangup: int | None = None
    stall: int | None = None
    malformed: bool = False
    empty: bool = False
    fail: int = 0
    key: str = ""
    rpm: int = 0
    filter: bool = False
    context: int | None = None
    all: bool = False

    @property
    def interruption(self) -> tuple[Fate, int] | None:
        """The fate that cuts the answer short and after how many chunks, if one does."""
        if self.hangup is not None:
            return Fate.HANGUP, self.hangup
        return None if self.stall is None else (Fate.STALL, self.stall)

    def healed(self) -> Behaviour:
        """Gives the same treatment without its faults: what follows the last of `fail` failures."""
        return replace(self, fail=0, status=0, hangup=None, stall=None, malformed=False, empty=False)


PLAIN = Behaviour()


def _number(lowest: float, highest: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text)
        if not lowest <= value <= highest:  # false for nan too
            raise ValueError
        return value

    return read


def _integer(lowest: int, highest: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text)
        if not lowest <= value <= highest:
            raise ValueError
        return value

    return read


def _flag(text: str) -> bool:
    return {"1": True, "true": True, "0": False, "false": False}[text.lower()]


def _word(text: str) -> str:
    if not text or len(text) > 200:
        raise ValueError
    return text


_HOUR_MS = 3_600_000
_READERS: dict[str, Callable[[str], object]] = {
    "delay": _number(0, _HOUR_MS),
    "jitter": _number(0, _HOUR_MS),
    "ttft": _number(0, _HOUR_MS),
    "tps": _number(0.01, 1_000_000),
    "words": _integer(1, 10_000),
    "status": _integer(400, 599),
    "code": _word,
    "retry_after": _number(0, 86_400),
    "hangup": _integer(0, 1_000_000),
    "stall": _integer(0, 1_000_000),
    "malformed": _flag,
    "empty": _flag,
    "fail": _integer(1, 1_000_000),
    "key": _word,
    "rpm": _integer(1, 100_000),
    "filter": _flag,
    "context": _integer(0, 10_000_000),
    "all": _flag,
}


@functools.lru_cache(maxsize=4096)
def parse(text: str) -> Behaviour:
    """Reads `key=value,key=value`; raises Refusal (400) that names the first pair it cannot read."""
    return _read([pair.partition("=")[::2] for pair in text.split(",") if pair.strip()])


def from_mapping(pairs: dict[str, object]) -> Behaviour:
    """Reads the same pairs from a JSON object; raises Refusal (400) as `parse` does."""
    return _read([(key, str(value)) for key, value in pairs.items() if value is not None])


def _read(pairs: list[tuple[str, str]]) -> Behaviour:
    values: dict[str, object] = {}
    for key, value in ((key.strip(), value.strip()) for key, value in pairs):
        try:
            values[key] = _READERS[key](value)
        except (KeyError, ValueError):
            raise _unreadable(key, value) from None
    return replace(PLAIN, **values)  # type: ignore[arg-type]  # each reader gives its field's type


def _unreadable(key: str, value: str) -> refusals.Refusal:
    wrong = "bad value" if key in _READERS else "unknown key"
    message = f"Invalid simulator pair '{key[:50]}={value[:50]}': {wrong}. Known keys: {', '.join(_READERS)}."
    return refusals.invalid(message, param=key[:50], code="invalid_simulator_pair")
