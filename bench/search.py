"""The search: how long queries take in a million messages of twenty bots, and what a message costs to be findable."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import multiprocessing
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from app.core import clock, ids
from app.core.database.engine import Sessions, make_engine
from app.dialogs import indexing, lemmas, lexemes, search
from bench import corpus, meter, million
from bench.calls import at
from bench.corpus import Corpus

_QUERIES = 120
_WARM = 15
_FRESH = 2000  # messages whose vectors are timed
_INSERTED = 3000  # so many that the index's list of what is new is sorted in now and then
_LANGUAGES = ("ru", "uk", "en")

Query = dict[str, Any]


def measure() -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Return a row for each kind of query, and what a message costs; raise RuntimeError."""
    with million.opened() as (url, given, built):
        sessions = Sessions(make_engine(url))
        try:
            rows = {
                f"search {name}": _time(sessions, queries) for name, queries in _kinds(sessions, url, given).items()
            }
            facts = _sizes(url) | _vectors(given) | _inserts(url) | _loading() | built
        finally:
            sessions.engine.dispose()
    return rows, {name: value for name, value in facts.items() if name != "fingerprint"}


def line(facts: dict[str, Any]) -> str:
    """Return what a message costs, in one line."""
    return (
        f"Search, a message of {facts['content_bytes']} B: words {facts['vector_bytes']} B, index {facts['index_bytes']} B; made in "
        f"{facts['vector_us']} us ({facts['cold_us']} us before any word is known), inserted in {facts['insert_us']} us "
        f"({facts['bare_insert_us']} without); the dictionaries: {facts['memory_mib']} MiB a process, read in {facts['load_s']} s."
    )


def _time(sessions: Sessions, queries: Sequence[Query]) -> dict[str, Any]:
    """Ask the queries one after the other, some of them before it counts."""
    took, hits = [], 0
    for number, query in enumerate(itertools.chain(queries[:_WARM], queries)):
        bot = str(query["bot"])
        started = time.perf_counter()
        with sessions.begin() as session:
            page = search.search(session, bot, ids.shard_of(bot, 16), **{k: v for k, v in query.items() if k != "bot"})
        if number >= _WARM:
            took.append(time.perf_counter() - started)
            hits += len(page.data)
    return {
        "p50_ms": at(took, 0.5), "p95_ms": at(took, 0.95), "p99_ms": at(took, 0.99), "max_ms": at(took, 1),
        "per_s": len(took) / sum(took), "hits": round(hits / len(took), 1),
    }  # fmt: skip


def _kinds(sessions: Sessions, url: str, given: Corpus) -> dict[str, list[Query]]:
    """Return queries of each kind, of bots as busy ones are asked more."""
    chance = random.Random(2)

    def many(make: Callable[[uuid.UUID], Query]) -> list[Query]:
        return [
            {"bot": bot, **make(bot)}
            for bot in chance.choices(given.bots, [1 / rank for rank in range(1, corpus.BOTS + 1)], k=_QUERIES)
        ]

    def word(least: int, most: int) -> str:
        return given.word(chance.choice(_LANGUAGES), chance.randrange(least, most))

    def heavy(bot: uuid.UUID) -> str:
        return corpus.user_of(given.bots.index(bot), 0)

    def month() -> Query:
        since = clock.as_utc(given.until_ms - chance.randrange(30, corpus.DAYS) * indexing.DAY_MS)
        return {"since": since, "until": since + datetime.timedelta(30)}

    common = many(lambda bot: {"q": word(0, 50)})
    return {
        "common word": common,
        "usual word": many(lambda bot: {"q": word(50, 2000)}),
        "rare word": many(lambda bot: {"q": word(2000, 30_000)}),
        "two words": many(lambda bot: {"q": f"{word(0, 50)} {word(0, 2000)}"}),
        "a phrase": list(_phrases(url, chance)),
        "a or b -c": many(lambda bot: {"q": f"{word(0, 500)} or {word(0, 500)} -{word(0, 50)}"}),
        "user, common": many(lambda bot: {"q": word(0, 50), "user": heavy(bot)}),
        "user, rare": many(lambda bot: {"q": word(2000, 30_000), "user": heavy(bot)}),
        "role, month": many(lambda bot: {"q": word(0, 50), "role": "user", **month()}),
        "second page": list(_second_pages(sessions, common)),
        "no hit": many(lambda bot: {"q": f"абракадабр{chance.randrange(10**6)}"}),
        "no hit of two": many(lambda bot: {"q": f"{word(0, 5)} нетакогослова{chance.randrange(10**6)}"}),
    }  # fmt: skip


def _phrases(url: str, chance: random.Random) -> Iterator[Query]:
    """Yield what somebody said: two or three words of a message."""
    with contextlib.closing(million.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("""
            SELECT d.bot_id, m.content FROM dialog_messages m TABLESAMPLE SYSTEM (0.1) REPEATABLE (5) JOIN dialogs d ON d.id = m.dialog_id
        """)
        rows = [(bot, content.rstrip(".").split()) for bot, content in cursor.fetchall()]
    for bot, words in chance.sample([row for row in rows if len(row[1]) > 3], _QUERIES):
        first = chance.randrange(len(words) - 3)
        yield {"bot": uuid.UUID(bot), "q": f'"{" ".join(words[first : first + chance.choice((2, 3))])}"'}


def _second_pages(sessions: Sessions, queries: Sequence[Query]) -> Iterator[Query]:
    for query in queries:
        with sessions.begin() as session:
            cursor = search.search(session, str(query["bot"]), 0, query["q"]).next_cursor
        if cursor:
            yield {**query, "cursor": cursor}


def _sizes(url: str) -> dict[str, Any]:
    with contextlib.closing(million.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("""
            SELECT pg_relation_size('ix_dialog_messages_search'), pg_table_size('dialog_messages'), (SELECT count(*) FROM dialog_messages),
                avg(pg_column_size(search)), avg(octet_length(content)) FROM dialog_messages TABLESAMPLE SYSTEM (1) REPEATABLE (1)
        """)
        index, table, count, vector, content = cursor.fetchone()
    return {
        "messages": count, "index_bytes": round(index / count), "table_bytes": round(table / count), "vector_bytes": round(vector),
        "content_bytes": round(content),
    }  # fmt: skip


def _vectors(given: Corpus) -> dict[str, Any]:
    """Time the making of vectors in this process, with the cache of words as it gets in a worker, and with none."""
    lexemes.forms.cache_clear()
    dialogs = list(itertools.islice(given.dialogs(), 400))
    messages = [(dialog, message) for dialog in dialogs for message in given.said(dialog)]
    for dialog, message in messages[_FRESH:]:
        indexing.vector(str(dialog.bot), dialog.user, message.role, message.at_ms, message.text)
    warm = _vector_us(messages[:_FRESH], clear=False)
    return {"vector_us": warm, "cold_us": _vector_us(messages[:200], clear=True)}


def _vector_us(messages: Sequence[tuple[corpus.Dialog, corpus.Message]], *, clear: bool) -> int:
    spent = 0.0
    for dialog, message in messages:
        if clear:
            lexemes.forms.cache_clear()
        began = time.process_time()
        indexing.vector(str(dialog.bot), dialog.user, message.role, message.at_ms, message.text)
        spent += time.process_time() - began
    return round(spent / len(messages) * 1e6)


def _inserts(url: str) -> dict[str, Any]:
    """Time inserts of twenty messages, as a drain makes them, with their words and without; they are rolled back."""
    found = {}
    with contextlib.closing(million.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = False
        for name, column in (("bare_insert_us", "NULL"), ("insert_us", "search")):
            cursor.execute(
                "SELECT dialog_id FROM dialog_messages TABLESAMPLE SYSTEM (1) REPEATABLE (3) WHERE seq = 1 LIMIT %s",
                (_INSERTED // 20,),
            )
            dialogs = [row[0] for row in cursor.fetchall()]
            cursor.execute(
                "CREATE TEMP TABLE source ON COMMIT DROP AS SELECT * FROM dialog_messages WHERE dialog_id = ANY(%s::uuid[])",
                (dialogs,),
            )
            began = time.perf_counter()
            for dialog in dialogs:
                cursor.execute(f"""
                    INSERT INTO dialog_messages (dialog_id, seq, mid, role, content, created_at, search)
                    SELECT dialog_id, seq + 1000000, 'bench' || mid, role, content, created_at, CAST(CAST({column} AS text) AS tsvector)
                    FROM source WHERE dialog_id = %s
                """, (dialog,))  # fmt: skip
            found[name] = round((time.perf_counter() - began) / (20 * len(dialogs)) * 1e6)
            connection.rollback()
        cursor.execute("SELECT gin_clean_pending_list('ix_dialog_messages_search')")
        connection.commit()
    return found


def _loading() -> dict[str, Any]:
    """Tell what the dictionaries cost a process of its own: memory, MiB, and time."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_load)


def _load() -> dict[str, Any]:
    lexemes.vector("1")
    before, began = _memory(), time.process_time()
    lemmas.warm_up()
    return {"load_s": round(time.process_time() - began, 1), "memory_mib": round(_memory() - before)}


def _memory() -> float:
    own = meter.of(meter.tree(multiprocessing.current_process().pid or 0))
    return float(own["pss"] or own["rss"])
