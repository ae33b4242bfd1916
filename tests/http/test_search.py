"""Search over HTTP: filters and refusals as the contract says, at both paths."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient

from app.runtime import Runtime
from tests.dialogs.test_search import say
from tests.history.entries import NOON
from tests.http.conftest import KEY


@pytest.mark.parametrize("path", ["/v1/dialogs/search", "/dialogs/search"])
def test_messages_are_searched_at_both_paths(runtime: Runtime, client: FlaskClient, path: str) -> None:
    bot = runtime.directory.authenticate(KEY).bot
    assert bot is not None
    say(runtime.sessions, "<b>книги</b>", bot=bot, at=NOON)
    asked = {"q": "книга", "from": "2026-03-10T00:00:00Z", "to": "2026-03-11T00:00:00+02:00"}
    assert [hit["snippet"] for hit in client.get(path, query_string=asked).get_json()["data"]] == [
        "&lt;b&gt;<mark>книги</mark>&lt;/b&gt;"
    ]
    assert client.get(path, query_string=asked | {"to": "2026-03-10T01:00:00Z"}).get_json() == {
        "data": [],
        "next_cursor": None,
    }
    assert client.get(path, query_string="q=%ff%ed%a0%80%00-").status_code == 200


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({}, "q"),
        ({"q": ""}, "q"),
        ({"q": "x" * 501}, "q"),
        ({"q": "x", "role": "boss"}, "role"),
        ({"q": "x", "from": "yesterday"}, "from"),
        ({"q": "x", "to": "2026-01-01T00:00:00"}, "to"),
        ({"q": "x", "user_id": "key:1"}, "user_id"),
        ({"q": "x", "cursor": "?"}, "cursor"),
    ],
)
def test_what_is_asked_wrongly_is_named(client: FlaskClient, asked: dict[str, Any], param: str) -> None:
    answer = client.get("/v1/dialogs/search", query_string=asked)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (422, param)
