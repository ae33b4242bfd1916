"""The database of a million messages to search in."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import io
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.core import clock, errors
from app.core.database import migrate
from app.dialogs import indexing, lexemes
from bench import cluster, corpus
from bench.cluster import connect
from bench.corpus import Corpus, Dialog, Message

MESSAGES = 1_000_000
UNTIL_MS = int(datetime.datetime(2026, 9, 1, tzinfo=datetime.UTC).timestamp() * 1000)
_PROCESSES = 2
_BATCH_BYTES = 8_000_000
_INDEX = "ix_dialog_messages_search"
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@contextlib.contextmanager
def opened() -> Iterator[tuple[str, Corpus, dict[str, Any]]]:
    """Yield the URL of the database, the corpus that is in it, and what building it took; raise `ConfigurationError`."""
    given = Corpus(MESSAGES, UNTIL_MS)
    with cluster.opened("search", _fingerprint(), _build) as (url, told):
        migrate.upgrade(url)
        yield url, given, told


def _fingerprint() -> str:
    """Return what changes when the database would be another one."""
    sample = indexing.vector(
        "01970000-0000-7000-8000-000000000001", "u", "user", 0, "Продажі: нові книги, deliveries м'яти дні"
    )
    sources = [Path(corpus.__file__), Path(lexemes.__file__), *(migrate.FOLDER / "main").glob("*_search.py")]
    made_by = [path.read_text() for path in sources]
    return hashlib.sha256("\n".join([sample, str(MESSAGES), str(UNTIL_MS), *made_by]).encode()).hexdigest()


def _build(url: str) -> dict[str, Any]:
    print(f"  making {MESSAGES:,} messages to search in (once; some minutes) …", flush=True)
    began = time.monotonic()
    migrate.upgrade(url)
    with contextlib.closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT indexdef FROM pg_indexes WHERE indexname = %s", (_INDEX,))
        definition = cursor.fetchone()[0]
        cursor.execute(f"DROP INDEX {_INDEX}")
        processes = [
            multiprocessing.get_context("spawn").Process(target=_fill, args=(url, number))
            for number in range(_PROCESSES)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise errors.ConfigurationError("The database to search in could not be made.")
        copied = time.monotonic()
        print(f"    written after {copied - began:.0f} s; indexing …", flush=True)
        cursor.execute("SET maintenance_work_mem = '512MB'")
        cursor.execute(definition)
        cursor.execute("VACUUM ANALYZE dialogs, dialog_messages")
    return {"copy_s": round(copied - began), "index_s": round(time.monotonic() - copied)}


def _fill(url: str, number: int) -> None:
    """Write one process's share of the dialogs."""
    # The whole vocabulary at hand: this shall be made soon, it is not what is measured.
    lexemes.forms = functools.cache(lexemes.forms.__wrapped__)  # type: ignore[assignment]
    given, dialogs, messages, done = Corpus(MESSAGES, UNTIL_MS), io.StringIO(), io.StringIO(), 0
    with contextlib.closing(connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
        for place, dialog in enumerate(given.dialogs()):
            if place // 64 % _PROCESSES == number:
                dialogs.write(_dialog(dialog))
                messages.writelines(_message(dialog, message) for message in given.said(dialog))
                done += 1
            if messages.tell() > _BATCH_BYTES:
                _flush(cursor, dialogs, messages)
                if number == 0 and done % 8 == 0:
                    print(f"    {done * corpus.MESSAGES_A_DIALOG * _PROCESSES:,}", flush=True)
        _flush(cursor, dialogs, messages)


def _flush(cursor: Any, dialogs: io.StringIO, messages: io.StringIO) -> None:
    for table, rows in (
        ("dialogs (id, bot_id, user_id, kind, active_at)", dialogs),
        ("dialog_messages (dialog_id, seq, mid, role, content, created_at, search)", messages),
    ):
        rows.seek(0)
        cursor.copy_expert(f"COPY {table} FROM STDIN", rows)
        rows.seek(0)
        rows.truncate()


def _dialog(dialog: Dialog) -> str:
    at = clock.rfc3339(dialog.at_ms + corpus.MESSAGES_A_DIALOG * corpus.STEP_MS)
    return f"{dialog.id}\t{dialog.bot}\t{dialog.user}\tdialog\t{at}\n"


def _message(dialog: Dialog, message: Message) -> str:
    vector = indexing.vector(str(dialog.bot), dialog.user, message.role, message.at_ms, message.text).translate(
        _ESCAPES
    )
    at = clock.rfc3339(message.at_ms)
    return f"{dialog.id}\t{message.seq}\t{message.mid}\t{message.role}\t{message.text.translate(_ESCAPES)}\t{at}\t{vector}\n"
