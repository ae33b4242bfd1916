"""The dialogs: over HTTP, bare, beside Redis's own limit, beside a document that is written whole, at 10 and at 10,000 messages, and what
memory one takes."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from app.core import errors, ids
from app.core import settings as settings_
from app.dialogs import loading
from app.dialogs.loading import Keeping
from app.dialogs.packing import Said, tokens_in
from app.runtime import Runtime
from bench import calls, generator, meter
from bench.calls import Call
from bench.documents import Documents
from bench.load import Spec
from bench.product import Product
from tests import stack as stack_

BODY = ("A user said something of middling length that the bot must keep. " * 10)[:600]
CONNECTIONS = (16, 64)
THREADS = (1, 16)
LENGTHS = (10, 100, 1000)
SHORT, LONG = 10, 10_000
WINDOW = 20
_MANY = 256
_SESSIONS = 32
_ROUNDS = 5
_ROUNDS_S = 20.0
_HOUR_MS = 3_600_000
_PATIENT_S = 60.0
_HOT = 100
_SLICES = 5
_WARM_S = 0.02
_HEADERS = {"Authorization": f"Bearer {stack_.KEY}", "Content-Type": "application/json"}

_Round = dict[str, list[list[float]]]


def measure(product: Product, seconds: float) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return the rows of what was asked over HTTP, and all else that was found; takes about a minute with 1 s.

    Raises RuntimeError or TimeoutError where it cannot be measured.
    """
    began = time.monotonic()
    try:
        with _opened(product) as given:
            rows = _http(given, seconds)
            facts = {
                "server": given.server(),
                "bare": _bare(given, seconds / 2),
                "documents": _documents(given, seconds / 3),
                "hot": _hot(given, seconds / 2),
                "lengths": _lengths(given),
                "memory": _memory(given),
            }
    except errors.RepliqError as error:
        raise RuntimeError(f"{type(error).__name__}: {error}") from error
    return rows, {**facts, "took_s": round(time.monotonic() - began)}


@dataclasses.dataclass(slots=True)
class _Given:
    """What is measured with. `bot` is the stack's own, and all is written to PostgreSQL; `other` keeps messages in Redis alone."""

    product: Product
    runtime: Runtime
    bot: str
    keeping: Keeping
    other: str
    alone: Keeping
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def said(self, count: int) -> list[Said]:
        """Make messages that were never said before."""
        tokens = tokens_in(BODY)
        return [
            Said(f"bench-{next(self.numbers)}", ("user", "assistant")[n % 2], tokens, "", BODY) for n in range(count)
        ]

    def dialogs(self, count: int, messages: int, *, keeping: Keeping | None = None) -> list[str]:
        """Make dialogs of so many messages (100 at the most) of the stack's bot, or with a `keeping` of the other."""
        bot, keeping = (self.other, keeping) if keeping else (self.bot, self.keeping)
        create = self.runtime.dialogs.create
        return [create(bot, f"user-{n}", keeping, said=self.said(messages)) for n in range(count)]

    def append(self, ref: str) -> None:
        self.runtime.dialogs.append(self.bot, ref, self.said(1), self.keeping)

    def context(self, ref: str, most: int = WINDOW) -> None:
        self.runtime.dialogs.context(self.bot, ref, self.keeping, max_messages=most)

    def count(self, ref: str) -> int:
        """Return how many messages a dialog that Redis alone has was ever given."""
        return self.runtime.dialogs.header(self.other, ref, self.alone).count

    def forget(self, refs: Sequence[str]) -> None:
        """Take dialogs away that Redis alone has."""
        for ref in refs:
            self.runtime.dialogs.forget(self.other, ref)

    def server(self) -> str:
        """Return which Redis it is."""
        found = self.runtime.store.call("INFO", "server")
        return " ".join(
            str(found[name]) for name in ("server_name", "valkey_version", "redis_version") if name in found
        )

    def settle(self) -> None:
        """Wait until PostgreSQL has all."""
        shards = {ids.shard_of(bot, self.runtime.keys.shards) for bot in (self.bot, self.other)}
        length = self.runtime.outbox.length
        meter.wait_until(
            lambda: not any(length("dialogs", shard) for shard in shards), _PATIENT_S, "the dialogs' outbox"
        )


@contextlib.contextmanager
def _opened(product: Product) -> Iterator[_Given]:
    def refuse(*_: object) -> int:
        raise RuntimeError("the broker is the store's Redis")

    runtime = Runtime(settings_.load(product.stack.env), refuse, refuse, patient=True)
    try:
        bot = runtime.directory.authenticate(stack_.KEY).bot
        if bot is None:
            raise RuntimeError("the stack's key has no bot")
        status, _, made = product.stack.call(
            "POST", "/v1/bots", {"name": "bench", "settings": {"store_content": "metadata"}}
        )
        if status != 201:
            raise RuntimeError(f"a bot cannot be made: {made}")
        keepings = [loading.keeping(runtime.directory.bot(one).settings) for one in (bot, made["id"])]
        yield _Given(product, runtime, bot, keepings[0], made["id"], keepings[1])
    finally:
        runtime.close()


def _http(given: _Given, seconds: float) -> dict[str, dict[str, Any]]:
    """Ask the API for contexts and pages, and append at last, each over many dialogs and on a single one."""
    many, hot = given.dialogs(_MANY, 30), given.dialogs(1, 50)
    given.settle()
    body = json.dumps({"role": "user", "content": BODY})
    rows = {}
    asked = {"context": ("GET", "/context"), "page": ("GET", "/messages?limit=20"), "append": ("POST", "/messages")}
    for name, (method, rest) in asked.items():
        for place, refs in (("dialogs", many), ("hot dialog", hot)):
            for connections in CONNECTIONS:
                spec = Spec(
                    given.product.stack.port, "", stack_.KEY, body if method == "POST" else "",
                    connections=connections, seconds=seconds, warm_seconds=0.3, expect=201 if method == "POST" else 200,
                    method=method, paths=[f"/v1/dialogs/dlg_{ref}{rest}" for ref in refs],
                )  # fmt: skip
                rows[f"{name} {connections} {place}"] = generator.run(spec, given.product.parts)
                given.settle()
    return rows


def _bare(given: _Given, seconds: float) -> dict[str, dict[str, Any]]:
    """Call the dialogs in this process, and what Redis itself can do by the same client beside them."""
    live, store, other, alone = given.runtime.dialogs, given.runtime.store, given.other, given.alone
    refs, lasting = given.dialogs(_MANY, 50, keeping=alone), given.dialogs(_MANY, 50)
    given.settle()
    names = [given.runtime.keys.of_dialog(ids.shard_in(ref), other, ref)[1] for ref in refs]
    script, of = store.call("SCRIPT", "LOAD", "return 1"), _MANY
    ways: dict[str, tuple[str, Call]] = {
        "append": ("evalsha", lambda n: live.append(other, refs[n % of], given.said(1), alone)),
        "append, written behind": ("evalsha", lambda n: given.append(lasting[n % of])),
        f"context of {WINDOW}": ("evalsha", lambda n: live.context(other, refs[n % of], alone, max_messages=WINDOW)),
        f"page of {WINDOW}": ("evalsha", lambda n: live.page(other, refs[n % of], alone, cursor=0, limit=WINDOW, ascending=False)),
        "SET of 600 B": ("set", lambda n: store.call("SET", f"rq:bench:{n % of}", BODY, "PX", _HOUR_MS)),
        f"LRANGE of {WINDOW}": ("lrange", lambda n: store.call("LRANGE", names[n % of], -WINDOW, -1)),
        "EVALSHA of return 1": ("evalsha", lambda n: store.call("EVALSHA", script, 0)),
    }  # fmt: skip
    rows = {str(threads): _sliced(given, ways, threads, seconds) for threads in THREADS}
    given.forget(refs)
    return {name: {threads: found[name] for threads, found in rows.items()} for name in ways}


def _sliced(
    given: _Given, ways: Mapping[str, tuple[str, Call]], threads: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Call each way for so many seconds, in turns a slice each, so that noise meets all; each comes with the command that it ends in.

    Redis tells its own time a call of that command, and all of its work, writing behind included; the medians of the slices are kept.
    """
    slices: dict[str, list[calls.Slice]] = {name: [] for name in ways}
    server: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(_SLICES + 1):
        for name, (command, call) in ways.items():
            before = _statistics(given, command)
            found = calls.repeat(call, threads, seconds / _SLICES if turn else _WARM_S, first=1009 * turn)
            count, spent, _ = _statistics(given, command)
            given.settle()  # so that no drain reaches into another's slice
            _, _, work = _statistics(given, command)
            if turn:  # the first slice warms up
                slices[name].append(found)
                own = (spent - before[1]) / max(1, count - before[0])
                server[name].append((own, (work - before[2]) / len(found.latencies)))
    return {
        name: {
            **calls.summary(slices[name]),
            "server_us": round(statistics.median(one for one, _ in server[name]), 1),
            "redis_us": round(statistics.median(one for _, one in server[name]), 1),
        }
        for name in ways
    }


def _statistics(given: _Given, command: str) -> tuple[float, float, float]:
    """Return how often Redis was given a command, what time it took and all processor time of Redis, us."""
    found = given.runtime.store.call("INFO", "commandstats").get(f"cmdstat_{command}", {})
    cpu = given.runtime.store.call("INFO", "cpu")
    work = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
    return float(found.get("calls", 0)), float(found.get("usec", 0)), float(work) * 1e6


def _documents(given: _Given, seconds: float) -> dict[str, dict[str, Any]]:
    """Append to and read from sessions of some lengths, one caller: ours, and documents with and without WATCH."""
    found = {}
    for length in LENGTHS:
        documents, keeping = _documents_of(given, length)
        refs = [_long_dialog(given, length, keeping) for _ in range(_SESSIONS)]
        for ref in refs:
            documents.create(ref, given.said(length))
        ways = _ways(given, refs, documents, keeping)
        found[str(length)] = _sliced(given, ways, 1, seconds)
        documents.remove(refs)
        given.forget(refs)
    return found


def _documents_of(given: _Given, length: int) -> tuple[Documents, Keeping]:
    """Return documents of a length, and how dialogs are kept that hold as much in Redis, whatever their bot would."""
    return Documents(given.runtime.store, "rq:bench", length), dataclasses.replace(given.alone, messages=length)


def _ways(given: _Given, refs: Sequence[str], documents: Documents, keeping: Keeping) -> dict[str, tuple[str, Call]]:
    live, other, of, window = given.runtime.dialogs, given.other, len(refs), min(WINDOW, documents.length)
    return {
        "append": ("evalsha", lambda n: live.append(other, refs[n % of], given.said(1), keeping)),
        "WATCH": ("set", lambda n: documents.append(refs[n % of], given.said(1))),
        "PUT": ("set", lambda n: documents.put(refs[n % of], given.said(1))),
        "context": ("evalsha", lambda n: live.context(other, refs[n % of], keeping, max_messages=window)),
        "GET": ("get", lambda n: documents.last(refs[n % of], window)),
    }


def _hot(given: _Given, seconds: float) -> dict[str, Any]:
    """Append to one session of 100 messages from 16 threads, and count what is lost."""
    documents, keeping = _documents_of(given, _HOT)
    ref = _long_dialog(given, _HOT, keeping)
    documents.create(ref, given.said(_HOT))
    ways = _ways(given, [ref], documents, keeping)
    found = {}
    for name in ("append", "WATCH", "PUT"):
        ours = name == "append"
        before = given.count(ref) if ours else documents.count(ref)
        row = calls.summary([calls.repeat(ways[name][1], THREADS[-1], seconds)])
        after = given.count(ref) if ours else documents.count(ref)
        found[name] = {**row, "lost": row["calls"] - (after - before)}
    documents.remove([ref])
    given.forget([ref])
    return found


def _lengths(given: _Given) -> dict[str, Any]:
    """Compare dialogs of 10 messages with one of 10,000: the same calls in turns, bare and over HTTP, in rounds.

    Others of 10 messages take part as well: how far they seem to differ from the first is the noise of this machine.
    """
    long, until = _long_lasting_dialog(given), time.monotonic() + _ROUNDS_S
    found: dict[str, list[_Round]] = {"bare": [], "http": []}
    while len(found["http"]) < _ROUNDS and (len(found["http"]) < 3 or time.monotonic() < until):
        short, same = (given.dialogs(100, SHORT) for _ in range(2))
        given.settle()
        sides = (short, same, [long])
        found["bare"].append(_bare_round(given, sides))
        given.settle()
        found["http"].append(_http_round(given, sides))
    return {"messages": [SHORT, LONG], **{place: _compared(rounds) for place, rounds in found.items()}}


def _bare_round(given: _Given, sides: Sequence[Sequence[str]]) -> _Round:
    def way(call: Callable[[str], None]) -> list[Call]:
        return [lambda n, refs=refs: call(refs[n % len(refs)]) for refs in sides]  # type: ignore[misc]

    return calls.in_turns({"append": way(given.append), "context": way(lambda ref: given.context(ref, SHORT))}, 500)


def _http_round(given: _Given, sides: Sequence[Sequence[str]]) -> _Round:
    body = json.dumps({"role": "user", "content": BODY})
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", given.product.stack.port, timeout=30)
    ) as connection:

        def ask(method: str, ref: str, rest: str, status: int) -> None:
            connection.request(method, f"/v1/dialogs/dlg_{ref}{rest}", body if method == "POST" else None, _HEADERS)
            response = connection.getresponse()
            text = response.read()
            if response.status != status:
                raise RuntimeError(f"{response.status}: {text[:200]!r}")

        def way(*request: Any) -> list[Call]:
            method, rest, status = request
            return [lambda n, refs=refs: ask(method, refs[n % len(refs)], rest, status) for refs in sides]  # type: ignore[misc]

        ways = {"append": way("POST", "/messages", 201), "context": way("GET", f"/context?max_messages={SHORT}", 200)}
        return calls.in_turns(ways, 200)


def _compared(rounds: Sequence[_Round]) -> dict[str, dict[str, Any]]:
    """Return p50 and p99 of each side, and their ratios to the first's: the medians of the rounds' own."""
    return {name: _ratios([one[name] for one in rounds]) for name in rounds[0]}


def _ratios(rounds: Sequence[list[list[float]]]) -> dict[str, Any]:
    found = {}
    for key, share in (("p50", 0.5), ("p99", 0.99)):
        figures = [[calls.at(side, share) for side in one] for one in rounds]
        short, same, long = (round(statistics.median(side), 3) for side in zip(*figures, strict=True))
        found[key] = {
            "short_ms": short, "same_ms": same, "long_ms": long,
            "noise": round(statistics.median(one[1] / one[0] for one in figures), 3),
            "ratio": round(statistics.median(one[2] / one[0] for one in figures), 3),
        }  # fmt: skip
    return found


def _long_lasting_dialog(given: _Given) -> str:
    """Make a dialog of 10,000 messages, nearly all of them in PostgreSQL alone."""
    (ref,) = given.dialogs(1, 100)
    for _ in range(LONG // 100 - 1):
        said, until = given.said(100), time.monotonic() + _PATIENT_S
        while True:
            try:
                given.runtime.dialogs.append(given.bot, ref, said, given.keeping)
                break
            except errors.Unavailable:  # too many are on their way to PostgreSQL
                if time.monotonic() > until:
                    raise TimeoutError("the dialog of 10,000 messages") from None
                time.sleep(0.05)
    given.settle()
    return ref


def _long_dialog(given: _Given, length: int, keeping: Keeping) -> str:
    """Make a dialog that Redis alone has, and has whole."""
    (ref,) = given.dialogs(1, min(length, 100), keeping=keeping)
    for _ in range(length // 100 - 1):
        given.runtime.dialogs.append(given.other, ref, given.said(100), keeping)
    return ref


def _memory(given: _Given) -> dict[str, Any]:
    """Return what a dialog of 50 messages takes of Redis, bytes: by the server's memory before and after 1,000, and by its keys."""
    store, count, other = given.runtime.store, 1000, given.other
    before = _used(given)
    refs = given.dialogs(count, 50, keeping=given.alone)
    delta = _used(given) - before
    shard = ids.shard_of(other, given.runtime.keys.shards)
    keys: dict[str, float] = {}
    for place, name in enumerate(("header", "messages", "message ids")):
        sizes = [
            int(store.call("MEMORY", "USAGE", given.runtime.keys.of_dialog(shard, other, ref)[place], "SAMPLES", 0))
            for ref in refs[:20]
        ]
        keys[name] = round(statistics.mean(sizes))
    given.forget(refs)
    return {"dialogs": count, "payload": 50 * len(BODY), "used": round(delta / count), "keys": keys}


def _used(given: _Given) -> int:
    given.settle()
    time.sleep(0.3)  # what was written leaves the buffers
    return int(given.runtime.store.call("INFO", "memory")["used_memory"])
