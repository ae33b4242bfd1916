"""The result as a person reads it: one table, the aims beside what was reached, and the difference to an earlier result."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.dialogs_report import document, longer

RESULTS = Path(__file__).resolve().parent / "results"
_PARTS = ("api", "workers", "redis", "postgres", "simulator", "load", "litellm", "client", "granian")
_SHORT = {"workers": "worker", "postgres": "pg", "simulator": "sim", "granian": "server"}


@dataclasses.dataclass(frozen=True, slots=True)
class Aim:
    """Something to reach. `value` reads it from a result, None when it was not measured."""

    text: str
    value: Callable[[dict[str, Any]], float | None]
    met: Callable[[float], bool]
    unit: str = ""


def _ratio(one: tuple[str, str], other: tuple[str, str]) -> Callable[[dict[str, Any]], float | None]:
    def read(result: dict[str, Any]) -> float | None:
        rows = result["rows"]
        if one[0] not in rows or other[0] not in rows or not rows[other[0]].get(other[1]):
            return None
        return float(rows[one[0]][one[1]] / rows[other[0]][other[1]])

    return read


def _of(row: str, name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda result: result["rows"].get(row, {}).get(name)


def _memory(name: str) -> Callable[[dict[str, Any]], float | None]:
    def read(result: dict[str, Any]) -> float | None:
        own = (result["rows"].get(name) or result.get(name) or {}).get("memory_own")
        return None if own is None else own["pss"] if own["pss"] is not None else own["rss"]

    return read


def _answered(result: dict[str, Any]) -> float | None:
    row = result["rows"].get("waiters")
    return None if row is None else float(row["good"])


def _slowest(name: str, *, hits: bool) -> Callable[[dict[str, Any]], float | None]:
    """Read the largest p95 of the rows whose name begins so, those of queries that find something or the others."""

    def read(result: dict[str, Any]) -> float | None:
        rows = [row for key, row in result["rows"].items() if key.startswith(f"{name} ") and bool(row["hits"]) == hits]
        return max((float(row["p95_ms"]) for row in rows), default=None)

    return read


def _worst(*names: str) -> Callable[[dict[str, Any]], float | None]:
    """Read the largest p95 of the rows whose name begins so."""
    return lambda result: max(
        (row["p95_ms"] for key, row in result["rows"].items() if key.startswith(names)), default=None
    )


def _fact(part: str, name: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda result: result.get(part, {}).get(name)


AIMS = (
    Aim("sync at 64: at least 5 x LiteLLM's", _ratio(("sync 64", "per_s"), ("litellm 64", "per_s")), lambda v: v >= 5, "x"),
    Aim("sync at 64: at least 0.6 of the bare client's", _ratio(("sync 64", "per_s"), ("bare client", "per_s")), lambda v: v >= 0.6, "x"),
    Aim("sync at 1: p50 at most a quarter of LiteLLM's", _ratio(("sync 1", "p50_ms"), ("litellm 1", "p50_ms")), lambda v: v <= 0.25, "x"),
    Aim("submit at half load: p99 under 50 ms", _of("submit half", "p99_ms"), lambda v: v < 50, " ms"),
    Aim("1,000 waiting at once: all answered", _answered, lambda v: v >= 1000),
    Aim("1,000 waiting at once: own processes under 700 MB", _memory("waiters"), lambda v: v * 1.048576 < 700, " MiB"),
    Aim("append at 10,000 messages, bare: p99 within 1.5 of that at 10", longer("bare", "append"), lambda v: v <= 1.5, "x"),
    Aim("append at 10,000 messages, HTTP: p99 within 1.5 of that at 10", longer("http", "append"), lambda v: v <= 1.5, "x"),
    Aim("context at 10,000 messages, bare: p99 within 1.5 of that at 10", longer("bare", "context"), lambda v: v <= 1.5, "x"),
    Aim("context at 10,000 messages, HTTP: p99 within 1.5 of that at 10", longer("http", "context"), lambda v: v <= 1.5, "x"),
    Aim("append at 100 messages: costs no more than a document with WATCH", document("100", "WATCH"), lambda v: v >= 1, "x"),
    Aim("append at 1,000 messages: costs no more than one without", document("1000", "PUT"), lambda v: v >= 1, "x"),
    Aim("search in 1 M messages with hits: p95 of each kind of query under 50 ms", _slowest("search", hits=True), lambda v: v < 50, " ms"),
    Aim("search in 1 M messages without: p95 under 50 ms", _slowest("search", hits=False), lambda v: v < 50, " ms"),
    Aim("history drained: at least 0.3 of COPY's rows", _ratio(("history drained", "per_s"), ("history by COPY", "per_s")),
        lambda v: v >= 0.3, "x"),
    Aim("figures of 10 M requests: p95 of a user's stats under 100 ms", _worst("stats of a user", "analytics of a user"),
        lambda v: v < 100, " ms"),
    Aim("figures of 10 M requests: p95 of a month's summary under 500 ms", _worst("summary by"), lambda v: v < 500, " ms"),
    Aim("a month of 10 M requests: detached and dropped within 1 s", _fact("figures", "drop_s"), lambda v: v < 1, " s"),
    Aim("chat while a month is dropped: p99 at most twice that before",
        _ratio(("chat during a drop", "p99_ms"), ("chat before a drop", "p99_ms")), lambda v: v <= 2, "x"),
    Aim("idle: own processes under 400 MB", _memory("idle"), lambda v: v * 1.048576 < 400, " MiB"),
)  # fmt: skip


def table(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table."""
    parts = [part for part in _PARTS if any(part in row.get("cpu_ms", {}) for row in rows.values())]
    head = f"{'':22}{'req/s':>8}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}{'errors':>8}   "
    yield f"{head}{'CPU ms a request':<{7 * len(parts)}}   cores"
    yield " " * len(head) + "".join(f"{_SHORT.get(part, part):>7}" for part in parts) + "   ours others"
    for name, row in rows.items():
        times = "".join(f"{_number(row.get(key)):>8}" for key in ("per_s", "p50_ms", "p95_ms", "p99_ms", "max_ms"))
        cores = "".join(f"{_number(row.get(key), 2):>7}" for key in ("cores_busy", "others_cores"))
        spent = "".join(f"{_number(row.get('cpu_ms', {}).get(part), 2):>7}" for part in parts)
        yield f"{name:22}{times}{row.get('errors', 0):>8}   {spent}{cores}"


def _number(value: float | None, digits: int = 1) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 or (value >= 100 and digits == 1) else f"{value:.{digits}f}"


def memory(title: str, found: dict[str, Any]) -> str:
    """Return one line on the memory of parts."""
    parts = ", ".join(f"{name} {_both(part)}" for name, part in found["parts"].items())
    return f"{title}: own processes {_both(found['memory_own'])} MiB (PSS / RSS; {parts})"


def _both(part: dict[str, Any]) -> str:
    return f"{'-' if part['pss'] is None else round(part['pss'])}/{round(part['rss'])}"


def aims(result: dict[str, Any]) -> Iterator[str]:
    """Yield a line an aim: met, missed, or not measured."""
    for aim in AIMS:
        value = aim.value(result)
        mark = "  –   " if value is None else " met  " if aim.met(value) else "MISSED"
        yield f"  [{mark}] {aim.text}" + ("" if value is None else f": {value:,.2f}{aim.unit}")


def comparison(result: dict[str, Any], earlier: dict[str, Any]) -> Iterator[str]:
    """Yield a line a row that both have: by how much the rate and the latency changed."""
    yield f"Against {earlier['machine']['at']} ({earlier['machine']['commit']}):"
    for name, row in result["rows"].items():
        old = earlier["rows"].get(name)
        if old:
            changes = [_change(key, row, old) for key in ("per_s", "p50_ms", "p99_ms")]
            cpu = [sum(v for part, v in r.get("cpu_ms", {}).items() if part != "load") for r in (row, old)]
            changes.append(f"CPU {cpu[0] / cpu[1]:.2f} x" if cpu[1] else "")
            yield f"  {name:22}" + "   ".join(change for change in changes if change)


def _change(key: str, row: dict[str, Any], old: dict[str, Any]) -> str:
    return f"{key.removesuffix('_ms')} {row[key] / old[key]:.2f} x" if row.get(key) and old.get(key) else ""


def save(result: dict[str, Any]) -> Path:
    """Keep a result; return its file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    path.write_text(json.dumps(result, indent=1))
    return path


def latest() -> Path | None:
    """Return the newest result, None when there is none."""
    return max(RESULTS.glob("*.json"), default=None)
