"""`python -m bench`: measures the product, what stands beside it and its rival in one run, and says which aims are met."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import (
    bare,
    dialogs,
    dialogs_report,
    draining,
    figures,
    gate,
    idle,
    machine,
    product,
    profiling,
    report,
    rival,
    search,
)
from bench.product import Product
from tests import stack as stack_

MEASURES = (
    "sync", "overhead", "submit", "bare", "dialogs", "waiters", "draining", "idle", "gate", "search", "figures", "litellm",
)  # fmt: skip
_ALONE = {"draining", "idle", "gate", "search", "figures"}  # they bring servers of their own
_HELP = {
    "sync": "synchronous chat completions at 1, 16 and 64 at once",
    "overhead": "a call of the openai SDK through the product against one straight to the model",
    "submit": "background submits, as many as go and at half of that rate",
    "bare": "the model client alone, an empty Celery task, an empty Flask route",
    "dialogs": "append, context and page over HTTP and bare, short and long dialogs, whole documents, memory",
    "waiters": "1,000 requests that wait at once on a model of 5 s",
    "draining": "history and events from Redis into PostgreSQL beside COPY, and events over RabbitMQ where there is one",
    "idle": "the memory of `repliq up` that nobody asks anything",
    "gate": "the two steps before and after a provider's call beside Redis's smallest script",
    "search": "full-text search in a million messages (made at the first run, which takes some minutes)",
    "figures": "a user's and a month's figures in ten million requests (made at the first run, which takes a quarter of an hour)",
    "litellm": "LiteLLM's proxy with two workers (installed at the first run)",
}


class Bench:
    """One run."""

    def __init__(self, seconds: float, *, profile: bool) -> None:
        self.seconds = seconds
        self.profile = profile
        self.rows: dict[str, dict[str, Any]] = {}
        self.facts: dict[str, Any] = {}
        self.profiled: list[str] = []

    def run(self, wanted: Sequence[str]) -> None:
        """Measure what is wanted."""
        if set(wanted) - _ALONE:
            with tempfile.TemporaryDirectory(prefix="rq-bench-") as folder:
                env = profiling.environment(folder) if self.profile else {}
                with contextlib.closing(Product(product.THREADS[0], env=env)) as running:
                    self._run_with(running, wanted, Path(folder))
        if "idle" in wanted:
            _say("idle: repliq up, 10 s")
            found = idle.measure(10.0)
            self.facts["idle"] = {**found, "memory_own": found["own"]}
        for name, module in (("draining", draining), ("gate", gate), ("search", search), ("figures", figures)):
            if name in wanted:
                _say(f"{name}: {_HELP[name]}")
                rows, self.facts[name] = module.measure()
                self.rows |= rows

    def _run_with(self, running: Product, wanted: Sequence[str], folder: Path) -> None:
        _say("warming up")
        running.warm_up()
        for name in wanted:
            if name not in {*_ALONE, "waiters", "litellm"}:
                self._measure(name, running)
        if self.profile:
            _say("profile")
            self.profiled = list(profiling.run(running, folder))
        for name in ("litellm", "waiters"):  # the waiters leave many threads behind, so they come last
            if name in wanted:
                self._measure(name, running)

    def _measure(self, name: str, running: Product) -> None:
        """Measure one thing; what cannot be measured is said, and leaves the others alone."""
        _say(f"{name}: {_HELP[name]}")
        try:
            getattr(self, f"_{name}")(running)
        except (RuntimeError, TimeoutError) as error:
            _say(f"{name} failed: {type(error).__name__}: {error}")

    def _sync(self, running: Product) -> None:
        found = {}
        for threads in product.THREADS:
            if threads != running.threads:
                running.use_threads(threads)
            found[threads] = running.sync(64, self.seconds)
        best = max(found, key=lambda threads: found[threads]["per_s"])
        if running.threads != best:
            running.use_threads(best)
        for threads, row in found.items():
            name = "sync 64" if threads == best else f"sync 64 ({threads} threads)"
            self.rows[name] = row
        self.facts["worker_threads"] = best
        for connections in (16, 1):
            self.rows[f"sync {connections}"] = running.sync(connections, self.seconds)

    def _overhead(self, running: Product) -> None:
        ours = (f"http://127.0.0.1:{running.stack.port}/v1", stack_.KEY)
        self.facts["sdk_p50_ms"] = bare.sdk(
            {"direct": (running.stack.simulator.base_url, "sk-test"), "repliq": ours}, self.seconds
        )

    def _submit(self, running: Product) -> None:
        self.rows["submit 64"] = most = running.submit(min(self.seconds, 4.0))
        most["backlog"] = running.backlog()
        running.drain()
        self.rows["submit half"] = running.submit(self.seconds, rate=most["per_s"] / 2)
        running.drain()

    def _bare(self, running: Product) -> None:
        seconds = min(self.seconds, 4.0)
        self.rows["bare client"] = bare.clients(running.stack.simulator.base_url, seconds)
        self.rows["empty Flask route"] = bare.flask_route(running.spec().template, seconds)
        self.rows["empty Celery task"] = bare.celery_task(running.stack, seconds)

    def _dialogs(self, running: Product) -> None:
        rows, self.facts["dialogs"] = dialogs.measure(running, min(self.seconds, 1.0))
        self.rows |= rows

    def _litellm(self, running: Product) -> None:
        simulator = running.stack.simulator
        try:
            proxy = rival.LiteLLM(running.stack.folder, simulator.base_url)
        except rival.Unavailable as reason:
            _say(f"litellm cannot be measured here: {reason}")
            return
        with contextlib.closing(proxy):
            self.facts["litellm"] = proxy.version
            template = running.spec().template
            proxy.sync(64, 2.0, template, simulator.pid)  # its first requests are slow
            for connections in (64, 16, 1):
                self.rows[f"litellm {connections}"] = proxy.sync(connections, self.seconds, template, simulator.pid)

    def _waiters(self, running: Product) -> None:
        running.use_threads(100)
        found = running.wait(1000, 5000)
        found["parts"] = found.pop("memory")
        self.rows["waiters"] = found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("--only", default=",".join(MEASURES), help=f"some of: {', '.join(MEASURES)}")
    parser.add_argument("--quick", action="store_true", help="2 s a measure instead of 5")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument(
        "--against",
        nargs="?",
        const="last",
        metavar="FILE",
        help="compare with an earlier result; default: the last one",
    )
    options = parser.parse_args(arguments)
    wanted = [name for name in MEASURES if name in options.only.split(",")]
    if unknown := set(options.only.split(",")) - set(MEASURES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    earlier = _earlier(options.against)
    described, began = machine.describe(), time.monotonic()
    run = Bench(2.0 if options.quick else 5.0, profile=options.profile)
    run.run(wanted)
    result = {"machine": described, "rows": run.rows, **run.facts, "took_s": round(time.monotonic() - began)}
    _print(result, run.profiled)
    if earlier:
        print("\n" + "\n".join(report.comparison(result, earlier)))
    print(f"\n{result['took_s']} s; kept in {report.save(result)}")
    return 0


def _earlier(named: str | None) -> dict[str, Any] | None:
    path = report.latest() if named == "last" else Path(named) if named else None
    return dict(json.loads(path.read_text())) if path else None


def _print(result: dict[str, Any], profiled: Sequence[str]) -> None:
    on = result["machine"]
    print(f"\n{on['processor']}, {on['cores']} cores for everything, {on['memory_gib']} GiB, {on['system']}")
    print(f"Python {on['python']}, commit {on['commit']}")
    print(
        f"Before the run {on['others_cores']} cores were busy with other things."
        if on["others_cores"] > 0.2
        else "The machine was quiet."
    )
    print("2 API processes, 2 workers, model at 0 ms; auth, limits, history and sessions on. Times in ms.\n")
    print("\n".join(report.table(result["rows"])))
    print()
    if "worker_threads" in result:
        print(_threads(result))
    if "sdk_p50_ms" in result:
        ours, direct = result["sdk_p50_ms"]["repliq"], result["sdk_p50_ms"]["direct"]
        print(f"Overhead over a direct SDK call, one at a time: {ours - direct:.2f} ms (p50 {ours} against {direct})")
    if "waiters" in result["rows"]:
        print(report.memory("1,000 waiting", result["rows"]["waiters"]))
    if "idle" in result:
        print(
            report.memory("Idle", result["idle"])
            + f"; {result['idle']['cpu_percent']} % of a core; ready after {result['idle']['start_s']} s"
        )
    if "dialogs" in result:
        print("\n" + "\n".join(dialogs_report.table(result["dialogs"])))
    for name, module in (("draining", draining), ("gate", gate), ("search", search), ("figures", figures)):
        if name in result:
            print(module.line(result[name]))
    print("\nAims:\n" + "\n".join(report.aims(result)))
    if profiled:
        print("\n" + "\n".join(profiled))


def _threads(result: dict[str, Any]) -> str:
    best = result["worker_threads"]
    rates = {best: result["rows"]["sync 64"]["per_s"]}
    rates |= {n: row["per_s"] for n in product.THREADS if (row := result["rows"].get(f"sync 64 ({n} threads)"))}
    told = ", ".join(f"{rates[n]:.0f}/s with {n}" for n in sorted(rates))
    close = "; that is within the noise" if min(rates.values()) > 0.9 * max(rates.values()) else ""
    return f"Threads a worker: {best}, which did best at 0 ms ({told}{close}); slow models want 100 and more."


def _say(text: str) -> None:
    print(f"… {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
