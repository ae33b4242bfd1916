"""Databases that take minutes to make: each a cluster of its own, made at the first run and kept beside the rival's environment.

As root the cluster itself lies where `repliq up` would put it, under /var/lib/repliq; `rm -r` of both makes the next run build anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2

from app.cli.embedded.postgres import Postgres
from bench import rival


@contextlib.contextmanager
def opened(name: str, fingerprint: str, build: Callable[[str], dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the URL of a database and what building it took; it is built where the fingerprint is another.

    Raises `ConfigurationError`.
    """
    folder = rival.folder().parent / name
    folder.mkdir(parents=True, exist_ok=True)
    server = Postgres(folder, durable=False)
    server.prepare()
    built = folder / "built.json"
    if server.exists and _told(built).get("fingerprint") != fingerprint:
        built.unlink(missing_ok=True)
        server.remove()
        server.prepare()
    server.start(folder / "postgres.log")
    try:
        if not built.exists():
            built.write_text(json.dumps(build(server.url) | {"fingerprint": fingerprint}))
        yield server.url, _told(built)
    finally:
        server.stop()


def connect(url: str) -> Any:
    """Return a connection that commits each statement."""
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    connection.autocommit = True
    return connection


def _told(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}
