"""Export and import over HTTP: what is live is in the export, and what Redis holds is never older than what was brought in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from flask.testing import FlaskClient

from app.core import errors, ids
from app.core.database import Sessions, make_engine
from app.dialogs import exports, lines
from app.http import factory, openapi
from app.http.routes import transfers
from app.runtime import Runtime
from tests.dialogs.test_transfers import dialog, file, messages, without_ids
from tests.http.conftest import KEY, as_key

NDJSON = "application/x-ndjson"


def bring_in(client: FlaskClient, data: bytes, **how: Any) -> Any:
    return client.post("/v1/dialogs/import", data=data, content_type=how.pop("content_type", NDJSON), **how)


def take_out(client: FlaskClient, **query: str) -> list[dict[str, Any]]:
    answer = client.get("/v1/dialogs/export", query_string=query)
    assert (answer.status_code, answer.content_type) == (200, NDJSON)
    return [orjson.loads(line) for line in answer.data.splitlines()]


@pytest.fixture
def another(runtime: Runtime, client: FlaskClient) -> FlaskClient:
    """Return a client of another bot."""
    bot = client.post("/v1/bots", json={"name": "Another"}).json["id"]
    made = client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["dialogs", "chat"]})
    return as_key(runtime, made.json["key"])


def bot_of(client: FlaskClient, runtime: Runtime) -> str:
    return str(runtime.directory.authenticate(client.environ_base["HTTP_AUTHORIZATION"].removeprefix("Bearer ")).bot)


def own(client: FlaskClient, runtime: Runtime, number: int = 1) -> dict[str, Any]:
    """Return a dialog's line with an id that can be this bot's."""
    return dialog(number, ids.shard_of(bot_of(client, runtime), 16))


def make(client: FlaskClient, user: str, *said: str) -> str:
    made = client.post("/v1/dialogs", json={"user_id": user, "title": f"of {user}", "metadata": {"k": user}})
    for text in said:
        client.post(
            f"/v1/dialogs/{made.json['id']}/messages", json={"role": "user", "content": text, "metadata": {"t": 1}}
        )
    return str(made.json["id"])


def test_what_is_live_is_in_the_export_and_another_bot_can_take_it_in(
    client: FlaskClient, another: FlaskClient
) -> None:
    names = [make(client, user, "one", "two") for user in ("anna", "boris")]
    told = take_out(client)
    assert [line["object"] for line in told] == ["dialog", "message", "message"] * 2 + ["export.end"]
    for name, line in zip(names, (told[0], told[3]), strict=True):
        shown = client.get(f"/v1/dialogs/{name}").json
        assert {key: value for key, value in line.items() if key in shown} == {
            key: value for key, value in shown.items() if key != "version"
        }
    assert told[1:3] == client.get(f"/v1/dialogs/{names[0]}/messages").json["data"]
    answer = bring_in(another, file(*told))
    assert (answer.status_code, answer.json) == (200, {
        "object": "import", "dialogs": {"created": 2, "known": 0}, "messages": {"created": 4, "known": 0},
        "errors": [], "error_count": 0, "complete": True,
    })  # fmt: skip
    assert without_ids(take_out(another)) == without_ids(told)
    found = another.get("/v1/dialogs?user_id=anna").json["data"][0]
    assert found["id"] != names[0]
    assert [m["content"] for m in another.get(f"/v1/dialogs/{found['id']}/messages").json["data"]] == ["one", "two"]
    assert another.post(f"/v1/dialogs/{found['id']}/messages", json={"role": "user", "content": "x"}).json["seq"] == 3
    assert client.get(f"/v1/dialogs/{found['id']}").status_code == 404


def test_a_deleted_dialog_comes_back_under_its_id(client: FlaskClient) -> None:
    name = make(client, "anna", "one")
    told = take_out(client)
    assert client.delete(f"/v1/dialogs/{name}").status_code == 204
    assert bring_in(client, file(*told)).json["messages"] == {"created": 1, "known": 0}
    assert client.get(f"/v1/dialogs/{name}").json["message_count"] == 1
    assert without_ids(take_out(client)) == without_ids(told)


def test_messages_brought_into_a_live_dialog_are_seen_and_numbers_go_on_behind_them(client: FlaskClient) -> None:
    name = make(client, "anna", "one", "two")
    told = take_out(client)
    more = [{**told[1], "id": f"msg_more{seq}", "seq": seq, "content": f"more {seq}"} for seq in (3, 4)]
    client.post(
        f"/v1/dialogs/{name}/messages", json={"role": "user", "content": "three"}
    )  # it takes the number 3 meanwhile
    assert client.get(f"/v1/dialogs/{name}/messages").json["data"][-1]["content"] == "three"
    answer = bring_in(client, file(told[0], more)).json
    assert answer["messages"] == {"created": 1, "known": 0}
    assert answer["errors"] == [{"line": 2, "message": "seq: 3 is another message's in this dialog"}]
    listed = client.get(f"/v1/dialogs/{name}/messages").json["data"]
    assert [message["content"] for message in listed] == ["one", "two", "three", "more 4"]
    assert client.get(f"/v1/dialogs/{name}").json["message_count"] == 4
    assert client.post(f"/v1/dialogs/{name}/messages", json={"role": "user", "content": "five"}).json["seq"] == 5
    assert [line.get("seq") for line in take_out(client)] == [None, 1, 2, 3, 4, 5, None]


def test_an_erased_user_is_brought_back_by_who_wants_him_back(client: FlaskClient) -> None:
    make(client, "anna", "one")
    told = take_out(client)
    assert client.delete("/v1/users/anna").status_code == 204
    assert take_out(client) == [{"object": "export.end", "dialogs": 0, "messages": 0}]
    assert bring_in(client, file(*told)).json["messages"]["created"] == 1
    assert without_ids(take_out(client)) == without_ids(told)


def test_an_export_goes_on_behind_the_dialog_that_is_named(client: FlaskClient) -> None:
    names = [make(client, user, "x") for user in ("anna", "boris", "clara")]
    assert [line["id"] for line in take_out(client, after=names[0]) if line["object"] == "dialog"] == names[1:]
    assert take_out(client, user_id="boris")[0]["id"] == names[1]
    assert len(take_out(client, status="archived")) == 1
    for bad in ("dlg_x", "msg_1", ""):
        answer = client.get("/v1/dialogs/export", query_string={"after": bad})
        assert (answer.status_code, answer.json["error"]["code"]) == (422, "bad_cursor")
    for query in ({"since": "soon"}, {"until": "2026-01-01T00:00:00"}, {"status": "deleted"}, {"user_id": ""}):
        answer = client.get("/v1/dialogs/export", query_string=query)
        assert (answer.status_code, answer.json["error"]["param"]) == (422, next(iter(query)))
    assert client.get("/v1/dialogs/export?since=0001-01-01T00:00:00%2B23:59").status_code == 422
    assert client.get("/v1/dialogs/export?until=9999-01-01T00:00:00%2B23:59&user_id=%00").status_code == 200


def test_bad_lines_are_told_by_number(client: FlaskClient, runtime: Runtime) -> None:
    of = own(client, runtime)
    answer = bring_in(client, file(of, messages(of, 1), b"nonsense", messages(of, 2, role="king"), messages(of, 3)))
    assert answer.status_code == 200
    assert [error["line"] for error in answer.json["errors"]] == [3, 4]
    assert (answer.json["error_count"], answer.json["messages"]["created"], answer.json["complete"]) == (2, 2, False)


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_another_media_type_is_refused(client: FlaskClient, kind: str) -> None:
    answer = bring_in(client, b"{}", content_type=kind)
    assert (answer.status_code, answer.json["error"]["code"]) == (415, "unsupported_media_type")
    assert bring_in(client, b"", content_type="application/jsonl; charset=utf-8").status_code == 200


def test_an_import_may_be_larger_than_other_bodies_but_not_endless(client: FlaskClient, runtime: Runtime) -> None:
    of = own(client, runtime)
    data = file(of, messages(of, *range(1, 31), content="x" * 100_000))
    assert bring_in(client, data).json["messages"]["created"] == 30
    assert client.post("/v1/dialogs", data=data, content_type="application/json").status_code == 413
    answer = bring_in(client, b"", environ_overrides={"CONTENT_LENGTH": str(transfers.MOST_BYTES + 1)})
    assert (answer.status_code, answer.json["error"]["code"]) == (413, "payload_too_large")


def test_both_need_the_scope_and_a_bot(client: FlaskClient, runtime: Runtime) -> None:
    bot = client.get("/v1/bots").json["data"][0]["id"]
    key = client.post(f"/v1/bots/{bot}/keys", json={"name": "k", "scopes": ["chat"]}).json["key"]
    chatting = as_key(runtime, key)
    assert chatting.get("/dialogs/export").json["error"]["code"] == "missing_scope"
    assert bring_in(chatting, b"").json["error"]["code"] == "missing_scope"


def test_without_postgresql_an_export_is_refused_before_its_first_byte(
    client: FlaskClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.get("/v1/dialogs/export")  # the key is known by now
    away = Sessions(make_engine("postgresql+psycopg2:///nowhere?host=/nonexistent"))
    monkeypatch.setattr(runtime.transfers, "sessions", away)
    for answer in (client.get("/v1/dialogs/export"), bring_in(client, b"{}")):
        assert (answer.status_code, answer.json["error"]["code"]) == (503, "unavailable")
        assert answer.headers["Retry-After"]


def test_an_export_that_breaks_off_has_no_last_line(
    client: FlaskClient, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "_MOST_DIALOGS", 1)
    for user in ("anna", "boris", "clara"):
        make(client, user, "x")
    read: Callable[..., Any] = exports.Export._rows
    left = [4]

    def breaking(export: Any, *given: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise errors.Unavailable("PostgreSQL is gone.")
        return read(export, *given)

    monkeypatch.setattr(exports.Export, "_rows", breaking)
    told = take_out(client)
    assert [line["object"] for line in told] == ["dialog", "message"] * 2


def test_the_document_describes_both(client: FlaskClient) -> None:
    document = openapi.document(factory.all_routes())
    for prefix in ("/v1", ""):
        export = document["paths"][f"{prefix}/dialogs/export"]["get"]
        import_ = document["paths"][f"{prefix}/dialogs/import"]["post"]
        assert list(export["responses"]["200"]["content"]) == [NDJSON]
        assert list(import_["requestBody"]["content"]) == list(lines.MEDIA_TYPES)
        assert {"413", "415"} <= set(import_["responses"])
    assert {"DialogLine", "MessageLine", "EndLine", "ImportOut"} <= set(document["components"]["schemas"])


def test_a_key_of_the_default_bot_reads_its_own_export(runtime: Runtime) -> None:
    assert as_key(runtime, KEY).get("/dialogs/export").data.endswith(b'"messages":0}\n')
