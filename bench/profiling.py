"""Where the time goes: samples the API's processes and a worker during a load, with py-spy if it is there, else with a sampler of ours."""

from __future__ import annotations

import collections
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench import meter
from bench.product import Product

SECONDS = 6
_SAMPLER = Path(__file__).resolve().parent / "sampler"
_LINE = re.compile(r":\d+\)?$")


def environment(folder: str) -> dict[str, str]:
    """Return what makes every Python process of the stack sample itself, where py-spy is not there."""
    return {} if shutil.which("py-spy") else {"PYTHONPATH": str(_SAMPLER), "BENCH_SAMPLES": folder}


def run(product: Product, folder: Path) -> Iterator[str]:
    """Put load on the product and yield the lines that tell what its processes did; the samples are of threads that did not wait."""
    api = max(meter.tree(product.stack.api.pid), key=lambda process: process.num_threads())
    pids = {"api": api.pid, "worker": product.stack.workers[0].pid}
    spy = shutil.which("py-spy")
    children: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        for name, pid in pids.items():
            if spy:
                command = [
                    spy,
                    "record",
                    "--pid",
                    str(pid),
                    "--duration",
                    str(SECONDS),
                    "--rate",
                    "100",
                    "--gil",
                    "--format",
                    "raw",
                ]
                quiet = subprocess.DEVNULL
                children.append(
                    subprocess.Popen([*command, "--output", str(folder / f"{name}.raw")], stdout=quiet, stderr=quiet)
                )
            else:
                (folder / f"{pid}.start").touch()

    product.sync(64, SECONDS + 1, start)
    for child in children:
        child.wait(30)
    for name, pid in pids.items():
        path = folder / (f"{name}.raw" if spy else f"{pid}.raw")
        if not spy:
            (folder / f"{pid}.start").unlink(missing_ok=True)
            meter.wait_until(path.exists, 10, "the samples")
            time.sleep(0.2)
        yield from _told(name, path)


def _told(name: str, path: Path) -> Iterator[str]:
    if not path.exists():
        yield f"{name}: no samples"
        return
    alone: collections.Counter[str] = collections.Counter()
    within: collections.Counter[str] = collections.Counter()
    ours: collections.Counter[str] = collections.Counter()
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        alone[_LINE.sub(")", frames[-1])] += int(count)
        within.update(dict.fromkeys({_LINE.sub(")", frame) for frame in frames}, int(count)))
        ours.update(dict.fromkeys({frame for frame in frames if "(app/" in frame or "(tasks/" in frame}, int(count)))
    total = sum(alone.values()) or 1
    for title, counter, most in (
        ("lines of ours, with what they call", ours, 30),
        ("functions, with what they call", within, 30),
        ("functions alone", alone, 15),
    ):
        yield f"{name}: {title} ({total} samples)"
        yield from (f"  {count / total:6.1%}  {frame}" for frame, count in counter.most_common(most))
