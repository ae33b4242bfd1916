"""Dialogs of a bot whose content is kept masked: whole in Redis, masked in PostgreSQL and in all that is read from there."""

from __future__ import annotations

import io

import orjson
import pytest
import sqlalchemy

from app.bots import bots, organisations, schemas
from app.core import ids
from app.core.database import Sessions
from app.core.outbox import Entry
from app.dialogs import archive
from app.dialogs.imports import Import
from tests.history.entries import NOON

SAID, MASKED = "mail anna@example.com", "mail [email]"


@pytest.fixture
def organisation(sessions: Sessions) -> str:
    with sessions.begin() as session:
        return str(organisations.create(session, "Ours").id)


def make(sessions: Sessions, organisation: str, **given: object) -> str:
    with sessions.begin() as session:
        made = schemas.BotCreate.model_validate({"name": "One", "settings": given})
        return str(bots.create(session, organisation, made).id)


def entry(bot: str, ref: str, **header: str) -> Entry:
    said = {"seq": "1", "m1": f"1|5|user|mid1|{NOON}|0|{SAID}", "m2": f"2|5|assistant|mid2|{NOON}|0|{SAID}"}
    return "1-0", {"dialog": ref, "bot": bot, "user": "anna", "v": "3", "at": str(NOON), **said, **header}


def kept(sessions: Sessions, bot: str, ref: str) -> tuple[list[str], str, str]:
    with sessions.begin() as session:
        found = archive.load(session, bot, ref)
    assert found
    return [message.body for message in found.messages], found.header["title"], found.header["sm"]


def write(sessions: Sessions, bot: str) -> str:
    ref = ids.new_ref(ids.shard_of(bot, 16))
    archive.write(sessions, [entry(bot, ref, title=SAID, sm=SAID, sq="1")])
    return ref


def test_messages_title_and_summary_are_kept_masked(sessions: Sessions, organisation: str) -> None:
    masked, whole = (make(sessions, organisation, store_content=store) for store in ("masked", "all"))
    assert kept(sessions, masked, write(sessions, masked)) == ([MASKED, MASKED], MASKED, MASKED)
    assert kept(sessions, whole, write(sessions, whole)) == ([SAID, SAID], SAID, SAID)


def test_the_search_does_not_find_what_is_masked(sessions: Sessions, organisation: str) -> None:
    bot = make(sessions, organisation, store_content="masked")
    write(sessions, bot)
    with sessions.begin() as session:
        vectors = session.scalars(sqlalchemy.text("SELECT search::text FROM dialog_messages")).all()
    assert vectors
    assert not any("anna@" in vector or "example" in vector for vector in vectors)


def test_the_setting_is_the_one_of_now_and_holds_for_a_deleted_bot(sessions: Sessions, organisation: str) -> None:
    bot = make(sessions, organisation)
    assert kept(sessions, bot, write(sessions, bot))[1] == SAID
    with sessions.begin() as session:
        bots.change(
            session, organisation, bot, schemas.BotChange.model_validate({"settings": {"store_content": "masked"}})
        )
    assert kept(sessions, bot, write(sessions, bot))[1] == MASKED
    with sessions.begin() as session:
        bots.delete(session, organisation, bot)
    assert kept(sessions, bot, write(sessions, bot))[1] == MASKED
    with sessions.begin() as session:
        assert bots.masked(session, [bot, "01970000-0000-7000-8000-00000000000f"]) == {bot}
        assert bots.masked(session, []) == set()


def test_what_is_imported_is_kept_masked(sessions: Sessions, organisation: str) -> None:
    bot = make(sessions, organisation, store_content="masked")
    ref = ids.new_ref(ids.shard_of(bot, 16))
    at = "2026-03-10T12:00:00Z"
    told = {
        "object": "dialog",
        "id": f"dlg_{ref}",
        "user_id": "anna",
        "created_at": at,
        "title": SAID,
        "summary": SAID,
        "summary_seq": 1,
    }
    said = {
        "object": "message",
        "dialog_id": f"dlg_{ref}",
        "id": "m1",
        "seq": 1,
        "role": "user",
        "content": SAID,
        "created_at": at,
    }
    file = io.BytesIO(b"".join(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE) for line in (told, said)))
    run = Import(sessions, bot, ids.shard_of(bot, 16), lambda refs: None)
    for _ in run.run(file.read):
        pass
    assert (run.tally.dialogs_created, run.tally.messages_created, run.tally.errors) == (1, 1, [])
    assert kept(sessions, bot, ref) == ([MASKED], MASKED, MASKED)
