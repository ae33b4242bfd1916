"""What `bench.dialogs` found, as a person reads it, and as the aims do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_PAIRS = (("append", "WATCH"), ("append", "PUT"), ("context", "GET"))
_RAW = {"append": "SET of 600 B", "context": "LRANGE of 20", "page": "LRANGE of 20"}

Read = Callable[[dict[str, Any]], float | None]


def longer(place: str, name: str) -> Read:
    """Read how the p99 of a dialog of 10,000 messages compares with one's of 10."""

    def read(result: dict[str, Any]) -> float | None:
        found = result.get("dialogs")
        return None if found is None else float(found["lengths"][place][name]["p99"]["ratio"])

    return read


def document(length: str, theirs: str) -> Read:
    """Read what a document that is written whole costs for one append, to what ours costs."""

    def read(result: dict[str, Any]) -> float | None:
        found = result.get("dialogs")
        row = found and found["documents"][length]
        return _work(row[theirs]) / _work(row["append"]) if row else None

    return read


def table(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that tell what was found beside the rows."""
    yield f"Dialogs of 50 messages of 600 B, called in one process of Python ({found['server']}; {found['took_s']} s for all of dialogs)."
    yield "us a call: this process's own work, Redis's in all, and its time in the command; ×: of both to SET or LRANGE"
    head = "".join(f"{name:>14}{'p50':>7}{'p99':>7}" for name in ("1 thread: /s", "16: /s"))
    yield f"{'':24}{head}{'client':>9}{'Redis':>7}{'command':>9}{'×':>6}"
    yield from _told_bare(found["bare"])
    yield ""
    yield "Sessions of 10, 100 and 1,000 messages, one caller: /s, p50, p99; ×: work of the document's way to ours"
    names = ("append", "WATCH GET SET", "GET SET", "context of 20", "GET")
    yield f"{'':5}" + "".join(f"{name:>14}{'p50':>6}{'p99':>6}" for name in names) + "   ×"
    for length, row in found["documents"].items():
        each = "".join(f"{one['per_s']:>14,.0f}{one['p50_ms']:>6.2f}{one['p99_ms']:>6.1f}" for one in row.values())
        ratios = ", ".join(f"{_work(row[theirs]) / _work(row[ours]):.1f}" for ours, theirs in _PAIRS)
        yield f"{length:>5}{each}   {ratios}"
    hot = (
        f"{name} {row['per_s']:,.0f}/s, p99 {row['p99_ms']:.0f}, lost {row['lost']:,} of {row['calls']:,}"
        for name, row in found["hot"].items()
    )
    yield "16 threads on one session of 100: " + "; ".join(hot)
    yield ""
    yield "10 messages against 10,000, called in turns: ms of each, and the ratio (of 10 to 10: the noise); medians of the rounds"
    yield from _told_lengths(found["lengths"])
    yield ""
    memory = found["memory"]
    keys = ", ".join(f"{name} {size:,}" for name, size in memory["keys"].items())
    yield f"Memory of a dialog of 50 x 600 B: {memory['used']:,} B, {memory['used'] / memory['payload']:.2f} of its text (keys: {keys})"


def _told_bare(rows: dict[str, Any]) -> Iterator[str]:
    for name, row in rows.items():
        raw = rows[next((raw for start, raw in _RAW.items() if name.startswith(start)), name)]["1"]
        one, more = row["1"], row["16"]
        times = "".join(f"{each['per_s']:>14,.0f}{each['p50_ms']:>7.2f}{each['p99_ms']:>7.2f}" for each in (one, more))
        spent = f"{one['client_us']:>9.0f}{one['redis_us']:>7.0f}{one['server_us']:>9.1f}"
        yield f"{name:24}{times}{spent}{_work(one) / _work(raw):>6.1f}"


def _told_lengths(found: dict[str, Any]) -> Iterator[str]:
    for place in ("bare", "http"):
        for name, row in found[place].items():
            each = (
                f"{key} {one['short_ms']:.2f}, {one['long_ms']:.2f}: {one['ratio']:.2f} ({one['noise']:.2f})"
                for key, one in row.items()
            )
            yield f"  {place + ', ' + name:16}" + "   ".join(each)


def _work(row: Mapping[str, Any]) -> float:
    """Return what a call costs, this process and Redis together, us of processor time: noise moves it less than a latency."""
    return float(row["client_us"] + row["redis_us"])
