"""Search in messages: what is written behind is found, the best first, page by page, and never another bot's."""

from __future__ import annotations

import datetime
import html
import re
from typing import Any

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.core import clock, errors, ids, paging
from app.core.database import Sessions
from app.core.outbox import Entry
from app.core.store import Scripts, Store
from app.dialogs import archive, indexing, search
from app.dialogs.loading import Keeping
from app.dialogs.packing import Message, Said, pack
from tests.dialogs.place import Place
from tests.history.entries import BOT, NOON, SHARD

OTHER = "01970000-0000-7000-8000-000000000002"
DAY = 86_400_000


def say(
    sessions: Sessions,
    *bodies: str,
    user: str = "tg:1",
    bot: str = BOT,
    role: str = "user",
    at: int = NOON,
    title: str = "",
) -> str:
    """Write a dialog behind; return its reference."""
    ref = ids.new_ref(SHARD)
    packed = {
        f"m{seq}": pack(Message(seq, 1, role, f"mid{seq}", at + seq, "", body)).decode()
        for seq, body in enumerate(bodies, start=1)
    }
    header = {"title": title, "at": str(at)} if title else {}
    entry: Entry = ("1-0", {"dialog": ref, "bot": bot, "user": user, "seq": "1", "v": "1", **header, **packed})
    archive.write(sessions, [entry])
    return ref


def page(sessions: Sessions, q: str, *, bot: str = BOT, **given: Any) -> paging.Page[dict[str, Any]]:
    with sessions.begin() as session:
        return search.search(session, bot, SHARD, q, **given)


def found(sessions: Sessions, q: str, **given: Any) -> list[str]:
    """Return the snippets as plain text."""
    return [html.unescape(re.sub("</?mark>", "", hit["snippet"])) for hit in page(sessions, q, **given).data]


@pytest.mark.parametrize(
    ("one", "other"),
    [("продажи", "продаж"), ("книги", "книга"), ("ціною", "ціна"), ("днів", "день"), ("товарів", "товар"), ("доставці", "доставка"),
     ("sales", "sale"), ("deliveries", "delivery"), ("ёлку", "елка"), ("М’ЯТУ", "м'ята")],
)  # fmt: skip
def test_forms_of_a_word_find_each_other(sessions: Sessions, one: str, other: str) -> None:
    say(sessions, f"Перше {one} второе", f"third {other}", "nothing of it")
    for asked in (one, other):
        assert sorted(found(sessions, asked)) == sorted([f"Перше {one} второе", f"third {other}"])


def test_a_dialog_may_mix_its_languages(sessions: Sessions) -> None:
    ref = say(
        sessions,
        "Скільки коштує доставка?",
        "Сколько книг в заказе?",
        "How many deliveries? Дві посилки і книжки",
        title="Mixed",
    )
    assert found(sessions, "доставки") == ["Скільки коштує доставка?"]
    assert found(sessions, "книга") == ["Сколько книг в заказе?"]
    assert found(sessions, "delivery посилка") == ["How many deliveries? Дві посилки і книжки"]
    assert len(found(sessions, "скільки or сколько or many")) == 3
    hit = page(sessions, "книга").data[0]
    assert {name: hit[name] for name in hit if name not in ("snippet", "score")} == {
        "object": "search.result", "dialog_id": f"dlg_{ref}", "message_id": "mid2", "seq": 2, "user_id": "tg:1", "role": "user",
        "created_at": clock.rfc3339(NOON + 2), "title": "Mixed", "status": "active",
    }  # fmt: skip
    assert hit["snippet"] == "Сколько <mark>книг</mark> в заказе?"
    assert 0 < hit["score"] < 1


def test_phrases_minus_and_or(sessions: Sessions) -> None:
    say(sessions, "red mug with tea", "mug of red tea", "blue mug")
    assert sorted(found(sessions, "red mug")) == ["mug of red tea", "red mug with tea"]
    assert found(sessions, '"red mug"') == ["red mug with tea"]
    assert found(sessions, '"red mugs"') == ["red mug with tea"]
    assert found(sessions, "mug -red") == ["blue mug"]
    assert found(sessions, 'mug -"red mug" -blue') == ["mug of red tea"]
    assert sorted(found(sessions, "blue or with")) == ["blue mug", "red mug with tea"]
    assert found(sessions, "-red") == found(sessions, "!?") == found(sessions, "green") == []


def test_a_snippet_is_escaped_and_shows_the_best_place(sessions: Sessions) -> None:
    far = "начало " * 100 + '<script>alert("книги & ціна")</script> ' + "конец " * 100 + "книга"
    say(sessions, far)
    snippet = page(sessions, "книга ціни").data[0]["snippet"]
    assert "&lt;script&gt;alert(&quot;<mark>книги</mark> &amp; <mark>ціна</mark>&quot;)&lt;/script&gt;" in snippet
    assert snippet.startswith("…начало")
    assert snippet.endswith("конец…")
    assert 150 < len(re.sub("<.*?>|&[a-z]+;", "", snippet)) < 230


def test_the_form_as_asked_comes_first_and_then_the_newest(sessions: Sessions) -> None:
    say(sessions, "книга тут", at=NOON - DAY)
    say(sessions, "книга здесь", at=NOON - 2 * DAY)
    say(sessions, "книги там", at=NOON)
    say(sessions, "книга " + "и много других слов о разном и прочем " * 20, at=NOON)
    assert found(sessions, "книга")[:3] == ["книга тут", "книга здесь", "книги там"]


def test_filters_narrow(sessions: Sessions) -> None:
    say(sessions, "tea one", user="tg:1", at=NOON)
    say(sessions, "tea two", user="tg:2", role="assistant", at=NOON - 400 * DAY)
    say(sessions, "tea three", user="tg:2", at=NOON - 4000 * DAY)
    assert found(sessions, "tea") == ["tea one", "tea two", "tea three"]
    assert found(sessions, "tea", user="tg:2") == ["tea two", "tea three"]
    assert found(sessions, "tea", user="tg:3") == []
    assert found(sessions, "tea", role="assistant") == ["tea two"]
    assert found(sessions, "tea", role="tool") == []
    moment = clock.as_utc(NOON - 400 * DAY + 1)
    assert found(sessions, "tea", since=moment) == ["tea one", "tea two"]
    assert found(sessions, "tea", until=moment) == ["tea three"]
    assert found(
        sessions, "tea", since=moment, until=moment + datetime.timedelta(days=1), user="tg:2", role="assistant"
    ) == ["tea two"]


def test_another_bots_messages_are_never_found(sessions: Sessions) -> None:
    say(sessions, "ours", bot=BOT)
    say(sessions, "theirs", bot=OTHER)
    assert found(sessions, "ours or theirs") == ["ours"]
    assert found(sessions, "ours or theirs", bot=OTHER) == ["theirs"]
    assert found(sessions, "ours", bot="01970000-0000-7000-8000-000000000003") == []


def test_pages_are_stable_under_inserts(sessions: Sessions) -> None:
    for number in range(7):
        say(sessions, f"tea {number} " + "cup " * number, f"again tea {number}", at=NOON - number * DAY * 40)
    whole = found(sessions, "tea", limit=100)
    assert len(whole) == 14
    told, cursor = [], None
    for _ in range(20):
        got = page(sessions, "tea", limit=3, cursor=cursor)
        told += [hit["snippet"].replace("<mark>", "").replace("</mark>", "") for hit in got.data]
        cursor = got.next_cursor
        if cursor is None:
            break
        assert len(cursor) <= 500
        say(sessions, "tea", "tea " * 9, "new and long, with much besides tea " * 9, at=NOON + DAY)
    assert told == whole


def test_of_very_many_the_newest_are_ranked_and_pages_stay_within_them(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "RANKED", 4)
    for number in range(8):
        say(sessions, f"tea {number}", at=NOON - number * DAY * 10)
    assert found(sessions, "tea") == [f"tea {number}" for number in range(4)]
    first = page(sessions, "tea", limit=2)
    say(sessions, "tea new", at=NOON + 1000)
    assert first.next_cursor
    second = page(sessions, "tea", limit=2, cursor=first.next_cursor)
    assert ([hit["seq"] for hit in second.data], second.next_cursor) == ([1, 1], None)
    assert "<mark>tea</mark> 3" in second.data[1]["snippet"]


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "🙂", paging.encode(1, 2), paging.encode(*["2026-01-01T00:00:00Z"] * 6)],
)  # fmt: skip
def test_a_bad_cursor_is_told(sessions: Sessions, cursor: str) -> None:
    say(sessions, "tea")
    if cursor:
        with pytest.raises(errors.BadCursor):
            page(sessions, "tea", cursor=cursor)


@pytest.mark.parametrize("year", [1, 1960, 9999])
def test_a_cursor_may_say_any_time(sessions: Sessions, year: int) -> None:
    say(sessions, "tea")
    moment = datetime.datetime(
        year, 12, 31, 23, 59, 59, 999999, tzinfo=datetime.timezone(datetime.timedelta(hours=-14))
    )
    cursor = paging.encode(moment, moment, 2**62, moment, ids.new_uuid(), -1)
    assert page(sessions, "tea", cursor=cursor).data == []
    assert page(sessions, "tea", since=moment).data == [] or year < 2000
    assert page(sessions, "tea", until=moment).data == [] or year > 2000


def test_whatever_is_asked_is_no_error(sessions: Sessions) -> None:
    say(sessions, "книга sale ціна")
    pieces = st.sampled_from(
        ["книга", '"', "-", " or ", "'", "\\", ":*", "<->", "!", "(", "&", "|", "%", "\u0301", "=b", ":q", "%s"]
    )

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(st.text(max_size=500), st.lists(pieces, max_size=40).map("".join)),
        st.one_of(st.none(), st.text(max_size=128)),
    )
    def check(q: str, user: str | None) -> None:
        if user is None or "\0" not in user:
            page(sessions, q, user=user and user.encode("utf-8", "replace").decode())

    check()


def test_what_is_deleted_is_found_no_more(sessions: Sessions) -> None:
    ref = say(sessions, "tea")
    archive.write(
        sessions, [("2-0", {"dialog": ref, "bot": BOT, "user": "tg:1", "seq": "2", "v": "2", "st": "deleted"})]
    )
    assert found(sessions, "tea") == []


def test_messages_from_before_there_was_a_search_are_indexed_in_batches(sessions: Sessions) -> None:
    say(sessions, "книги", "ціна", "sale", at=NOON - 100 * DAY)
    with sessions.begin() as session:
        kept = session.execute(sqlalchemy.text("SELECT search FROM dialog_messages ORDER BY seq")).all()
        session.execute(sqlalchemy.text("UPDATE dialog_messages SET search = NULL"))
    assert found(sessions, "книга") == []
    for count in (2, 1, 0):
        with sessions.begin() as session:
            assert indexing.backfill(session, 2) == count
    assert found(sessions, "книга") == ["книги"]
    with sessions.begin() as session:
        assert session.execute(sqlalchemy.text("SELECT search FROM dialog_messages ORDER BY seq")).all() == kept


def test_a_message_is_found_after_a_drain_and_still_when_its_dialog_is_archived(
    store: Store, scripts: Scripts, sessions: Sessions
) -> None:
    place, keeping = Place(store, scripts, sessions), Keeping(60_000)
    ref = place.live.create(BOT, "tg:1", keeping, said=[Said("a", "user", 1, "", "Скільки днів триває доставка?")])
    place.flush(SHARD)
    assert [hit["status"] for hit in page(sessions, "день доставки").data] == ["active"]
    place.live.archive(BOT, ref, keeping)
    place.flush(SHARD)
    assert [hit["status"] for hit in page(sessions, "день доставки").data] == ["archived"]
