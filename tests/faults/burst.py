"""A process that submits many background requests at one moment: `python -m tests.faults.burst PORT KEY USER MODEL COUNT THREADS START_AT`.

Prints a JSON list of [status, code, task]. It imports nothing of the product, so that eight of it start quickly.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def submit(
    connection: http.client.HTTPConnection, key: str, user: str, model: str, content: str
) -> tuple[int, str, str]:
    body = {"model": model, "user": user, "background": True, "messages": [{"role": "user", "content": content}]}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    return (
        response.status,
        answer.get("error", {}).get("code", "") if response.status >= 400 else "",
        answer.get("id", ""),
    )


def main(port: int, key: str, user: str, model: str, count: int, threads: int, start_at: float) -> None:
    def run(number: int) -> list[tuple[int, str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.connect()
        time.sleep(max(0.0, start_at - time.time()))
        mine = range(number, count, threads)
        try:
            return [submit(connection, key, user, model, f"{time.time()}-{one}") for one in mine]
        finally:
            connection.close()

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        print(json.dumps([answer for part in pool.map(run, range(threads)) for answer in part]))


def start(
    port: int, key: str, user: str, model: str, count: int, threads: int, start_at: float
) -> subprocess.Popen[bytes]:
    """Start such a process."""
    arguments = [str(value) for value in (port, key, user, model, count, threads, start_at)]
    return subprocess.Popen([sys.executable, "-m", "tests.faults.burst", *arguments], cwd=ROOT, stdout=subprocess.PIPE)


def answers(process: subprocess.Popen[bytes], timeout_s: float = 90) -> list[Any]:
    """Wait for its end and return what it got."""
    out, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0
    return list(json.loads(out))


if __name__ == "__main__":
    port, key, user, model, count, threads, start_at = sys.argv[1:]
    main(int(port), key, user, model, int(count), int(threads), float(start_at))
