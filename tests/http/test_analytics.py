"""Analytics over HTTP: events taken in, users' figures, summaries with their tags, reports as JSON and as pages."""

from __future__ import annotations

import datetime
from typing import Any

import orjson
import pytest
from flask.testing import FlaskClient

from app.analytics import reports, schemas
from app.bots import keys
from app.bots import schemas as bot_schemas
from app.core import ids
from app.runtime import Runtime
from tests.analytics.telling import OTHER, ended
from tests.analytics.test_schemas import SENT
from tests.http.conftest import KEY, SECRET, as_key
from tests.http.test_tenants import make_bot, make_key, make_organisation

MONDAY = datetime.date(2026, 3, 9)


@pytest.fixture
def bot(runtime: Runtime) -> str:
    found = runtime.directory.authenticate(KEY).bot
    assert found is not None
    return found


@pytest.fixture
def runtime(new_runtime: Any, analytics_database_url: str) -> Runtime:
    """Give the API an analytics database of its own, so that whatever would look into the other one fails."""
    made: Runtime = new_runtime(analytics_database_url=analytics_database_url)
    return made


def tell(runtime: Runtime, *found: Any) -> None:
    runtime.events.emit(found)
    drain(runtime)


def drain(runtime: Runtime) -> None:
    for shard in range(runtime.settings.redis_shards):
        while runtime.drains.run("events", shard):
            pass


def waiting(runtime: Runtime, bot: str) -> list[dict[str, Any]]:
    """Return the events in the bot's outbox."""
    shard = ids.shard_of(bot, runtime.settings.redis_shards)
    with runtime.store.borrow() as client:
        return [orjson.loads(fields[b"event"]) for _, fields in client.xrange(runtime.keys.of_outbox("events", shard))]


# Events


def test_one_event_is_taken(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    answer = client.post("/v1/analytics/events", json=SENT)
    assert (answer.status_code, answer.get_json()) == (202, {"accepted": 1, "rejected": []})
    (event,) = waiting(runtime, bot)
    assert event == {**SENT, "botId": bot, "timestamp": "2024-01-15T10:30:00.000Z"}


def test_of_many_events_the_good_ones_go_in_and_the_bad_ones_are_named(
    runtime: Runtime, client: FlaskClient, bot: str
) -> None:
    bad = [{**SENT, "timestamp": "soon"}, "text", {**SENT, "botId": OTHER}, {**SENT, "eventName": "user_erased"}]
    good = [{**SENT, "eventId": None, "userId": f"u{number}"} for number in range(3)]
    answer = client.post("/v1/analytics/events", json={"events": [good[0], *bad, *good[1:]]})
    assert answer.status_code == 202
    assert answer.get_json()["accepted"] == 3
    assert [(item["index"], item["code"], item["param"]) for item in answer.get_json()["rejected"]] == [
        (1, "invalid_request", "timestamp"), (2, "invalid_request", None), (3, "invalid_request", "botId"),
        (4, "invalid_request", "eventName"),
    ]  # fmt: skip
    assert [event["userId"] for event in waiting(runtime, bot)] == ["u0", "u1", "u2"]


def test_a_thousand_events_cost_one_round_trip(
    runtime: Runtime, client: FlaskClient, bot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run = runtime.scripts.run
    monkeypatch.setattr(runtime.scripts, "run", lambda name, *rest: (ran.append(name), run(name, *rest))[1])
    many = [
        {**SENT, "eventId": None, "metadata": None, "userId": f"u{number}"} for number in range(schemas.MOST_EVENTS)
    ]
    assert client.post("/v1/analytics/events", json={"events": many}).get_json()["accepted"] == 1000
    assert ran == ["outbox/add_events"]
    assert len(waiting(runtime, bot)) == 1000


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"events": []}, "events"), ({"events": [{}] * 1001}, "events"), ({"events": "all"}, "events"),
        ({"events": [SENT], "more": 1}, "events"),
        ({}, "eventType"), ({**SENT, "properties": {"costUsd": "much"}}, "properties.costUsd"), ({**SENT, "botId": OTHER}, "botId"),
    ],
)  # fmt: skip
def test_what_is_no_event_is_a_422_that_names_it(
    runtime: Runtime, client: FlaskClient, bot: str, body: Any, param: str
) -> None:
    answer = client.post("/v1/analytics/events", json=body)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (422, param)
    assert waiting(runtime, bot) == []


def test_a_list_is_no_body(client: FlaskClient) -> None:
    assert client.post("/v1/analytics/events", json=[SENT]).status_code == 422


def test_events_that_are_sent_twice_count_once(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    nameless = {**SENT, "eventId": None, "timestamp": "2026-03-10T12:00:00Z"}
    for _ in range(3):
        client.post("/v1/analytics/events", json=nameless)
        client.post(
            "/v1/analytics/events", json={"events": [SENT, nameless, {**SENT, "timestamp": "2024-01-16T10:30:00Z"}]}
        )
    drain(runtime)
    assert client.get("/v1/analytics/users/user-123").get_json()["total_requests"] == 2


def test_an_idempotency_key_gives_the_first_answer_again(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/analytics/events", json=SENT, headers=headers)
    again = client.post("/v1/analytics/events", json=SENT, headers=headers)
    assert (again.status_code, again.get_json(), again.headers["Idempotency-Replayed"]) == (
        202,
        first.get_json(),
        "true",
    )
    assert len(waiting(runtime, bot)) == 1


# Users


def test_a_users_figures_are_told(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    tell(
        runtime,
        ended("2026-03-10 12:00", bot=bot, user="a/b c", tokens=7),
        ended("2026-03-11 12:00", bot=bot, user="a/b c"),
    )
    found = client.get("/v1/analytics/users/a/b%20c").get_json()
    assert (found["user_id"], found["total_requests"], found["total_tokens"], found["total_cost"]) == (
        "a/b c",
        2,
        17,
        "0.0200000000",
    )
    days = client.get("/v1/analytics/users/a/b%20c/usage").get_json()
    assert [day["date"] for day in days["data"]] == ["2026-03-11", "2026-03-10"]
    page = client.get("/v1/analytics/users/a/b%20c/usage?limit=1").get_json()
    rest = client.get(
        "/v1/analytics/users/a/b%20c/usage", query_string={"limit": 1, "cursor": page["next_cursor"]}
    ).get_json()
    assert page["data"] + rest["data"] == days["data"]
    assert client.get("/v1/analytics/users/a/b%20c/usage?from=2026-03-11").get_json()["data"] == days["data"][:1]
    assert (
        client.get("/v1/analytics/users/a/b%20c/usage?to=2026-03-10T00:00:01Z").get_json()["data"] == days["data"][1:]
    )


def test_digits_alone_are_no_telegram_id_here(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    tell(runtime, ended("2026-03-10 12:00", bot=bot, user="tg:7"), ended("2026-03-10 12:00", bot=bot, user="key:rq_x"))
    assert (
        client.get("/v1/analytics/users/tg:7").status_code
        == client.get("/v1/analytics/users/key:rq_x").status_code
        == 200
    )
    missing = client.get("/v1/analytics/users/7")
    assert (missing.status_code, missing.get_json()["error"]["code"]) == (404, "not_found")
    assert client.get("/v1/analytics/users/7/usage").get_json() == {"data": [], "next_cursor": None}
    assert client.get("/v1/analytics/users/" + "x" * 129).status_code == 422


# Summaries


def test_a_summary_tells_what_it_counted(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    tell(runtime, ended("2026-03-10 12:00", bot=bot, cost="0.0000044"), ended("2026-03-10 12:00", bot=OTHER))
    asked = {"from": "2026-03-10T12:30:00+00:30", "to": "2026-03-10T12:00:01Z", "group_by": "hour"}
    found = client.get("/v1/analytics/summary", query_string=asked).get_json()
    figures = {
        "requests": 1, "successes": 1, "errors": 0, "cancelled": 0, "tokens": 10, "prompt_tokens": 6, "completion_tokens": 4,
        "cost": "0.0000044000", "unpriced": 0, "cached": 0, "success_rate": 1.0,
        "response_time": {"mean": 100.0, "p50": 100.0, "p95": 100.0, "p99": 100.0},
    }  # fmt: skip
    hour = "2026-03-10T12:00:00.000Z"
    assert found == {
        "object": "analytics.summary", "from": hour, "to": "2026-03-10T13:00:00.000Z", "group_by": "hour", "provider": None,
        "model": None, "status": None, "totals": figures, "data": [{"group": hour, "starts_at": hour, **figures}], "next_cursor": None,
    }  # fmt: skip


def test_by_default_the_last_thirty_days_are_summed_up_by_day(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    tell(runtime, *(ended(f"{now - datetime.timedelta(days=back):%Y-%m-%d %H:%M}", bot=bot) for back in (0, 29, 30)))
    found = client.get("/v1/analytics/summary").get_json()
    assert (found["group_by"], found["totals"]["requests"]) == ("day", 2)
    assert found["from"] == f"{now - datetime.timedelta(days=29):%Y-%m-%d}T00:00:00.000Z"


def test_dashboards_that_poll_are_told_that_nothing_changed(runtime: Runtime, client: FlaskClient, bot: str) -> None:
    asked = {"from": "2026-03-10", "to": "2026-03-11"}
    first = client.get("/v1/analytics/summary", query_string=asked)
    tag = first.headers["ETag"]
    assert tag.startswith('W/"')
    assert first.headers["Cache-Control"] == "private, no-cache"
    same = client.get("/v1/analytics/summary", query_string=asked, headers={"If-None-Match": tag})
    assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", tag)
    tell(runtime, ended("2026-03-10 12:00", bot=bot))
    new = client.get("/v1/analytics/summary", query_string=asked, headers={"If-None-Match": tag})
    assert (new.status_code, new.get_json()["totals"]["requests"]) == (200, 1)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"from": "yesterday"}, "from"), ({"from": "2026-03-10T12:00:00"}, "from"), ({"to": "2026-13-01"}, "to"),
        ({"to": "2300-01-01"}, "to"),
        ({"from": "2026-03-10", "to": "2026-03-10"}, "from"), ({"from": "2026-01-01", "to": "2026-03-01", "group_by": "hour"}, "from"),
        ({"from": "2024-01-01", "to": "2026-01-01", "group_by": "day"}, "from"), ({"group_by": "colour"}, "group_by"),
        ({"group_by": "user", "model": "m"}, "model"), ({"status": "lost"}, "status"), ({"limit": "101"}, "limit"),
        ({"group_by": "model", "cursor": "?"}, "cursor"), ({"group_by": "user", "cursor": "WzFd"}, "cursor"),
    ],
)  # fmt: skip
def test_what_cannot_be_summed_up_is_refused_with_its_name(
    client: FlaskClient, asked: dict[str, str], param: str
) -> None:
    answer = client.get("/v1/analytics/summary", query_string=asked)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (422, param)


def test_a_plus_that_nobody_encoded_is_understood(client: FlaskClient) -> None:
    found = client.get("/v1/analytics/summary?from=2026-03-10T02:00:00+02:00&to=2026-03-11").get_json()
    assert found["from"] == "2026-03-10T00:00:00.000Z"


# Reports


@pytest.fixture
def report(runtime: Runtime, bot: str) -> str:
    tell(runtime, ended("2026-03-10 12:00", bot=bot, user="<b>tg:1</b>"))
    return str(reports.make(runtime.analytics_sessions, bot, MONDAY))


def test_a_report_is_listed_and_read(client: FlaskClient, report: str) -> None:
    (line,) = client.get("/v1/analytics/reports?period=week").get_json()["data"]
    found = client.get(f"/v1/analytics/reports/{report}").get_json()
    assert (line["id"], line["week"], line["totals"]) == (report, "2026-W11", found["data"]["totals"])
    assert {**line, "data": found["data"]} == {**found, "totals": line["totals"]}
    assert client.get("/v1/analytics/reports/latest").get_json() == found
    assert client.get("/v1/analytics/reports?period=year").status_code == 422


@pytest.mark.parametrize("name", ["01970000-0000-7000-8000-000000000000", "nonsense", "2026-W12"])
def test_there_is_no_other_report(client: FlaskClient, report: str, name: str) -> None:
    assert client.get(f"/v1/analytics/reports/{name}").status_code == 404


@pytest.mark.parametrize(
    ("headers", "query", "page"),
    [
        ({}, "", False),
        ({"Accept": "application/json"}, "", False),
        ({"Accept": "*/*"}, "", False),
        ({"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, "", True),
        ({"Accept": "text/html"}, "?format=json", False),
        ({}, "?format=html", True),
    ],
)
def test_a_report_is_a_page_for_who_wants_one(
    client: FlaskClient, report: str, headers: dict[str, str], query: str, page: bool
) -> None:
    answer = client.get(f"/v1/analytics/reports/{report}{query}", headers=headers)
    assert answer.status_code == 200
    assert answer.mimetype == ("text/html" if page else "application/json")


def test_a_page_may_load_nothing_and_shows_names_as_they_are(client: FlaskClient, report: str) -> None:
    answer = client.get(f"/v1/analytics/reports/{report}?format=html")
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "&lt;b&gt;tg:1&lt;/b&gt;" in answer.text
    assert "<b>tg:1" not in answer.text


@pytest.mark.parametrize(
    ("headers", "query", "language", "title"),
    [
        ({}, "", "en", "Weekly report"),
        ({"Accept-Language": "uk-UA,uk;q=0.9,en;q=0.8"}, "", "uk", "Звіт за тиждень"),
        ({"Accept-Language": "de, ru;q=0.5"}, "", "ru", "Отчёт за неделю"),
        ({"Accept-Language": "uk"}, "&language=ru", "ru", "Отчёт за неделю"),
    ],
)
def test_a_page_speaks_the_readers_language(
    client: FlaskClient, report: str, headers: dict[str, str], query: str, language: str, title: str
) -> None:
    answer = client.get(f"/v1/analytics/reports/{report}?format=html{query}", headers=headers)
    assert answer.headers["Content-Language"] == language
    assert title in answer.text


# Whose, and without which servers


def test_another_bot_is_shown_nothing(runtime: Runtime, client: FlaskClient, report: str, bot: str) -> None:
    organisation = make_organisation(runtime, "Other")
    _, other = make_key(runtime, organisation, make_bot(runtime, organisation, marked=False))
    assert other.get(f"/v1/analytics/reports/{report}").status_code == 404
    assert other.get("/v1/analytics/reports").get_json()["data"] == []
    assert other.get("/v1/analytics/users/<b>tg:1</b>").status_code == 404
    assert other.get("/v1/analytics/summary?from=2026-03-01&to=2026-04-01").get_json()["totals"]["requests"] == 0
    assert client.get("/v1/analytics/summary?from=2026-03-01&to=2026-04-01").get_json()["totals"]["requests"] == 1


@pytest.mark.parametrize("path", ["summary", "users/tg:1", "users/tg:1/usage", "reports", "reports/latest"])
def test_a_key_needs_the_scope_analytics(runtime: Runtime, bot: str, path: str) -> None:
    given = bot_schemas.KeyCreate.model_validate({"name": "k", "scopes": ["chat", "dialogs", "history", "admin"]})
    with runtime.sessions.begin() as session:
        organisation = runtime.directory.authenticate(KEY).organisation
        _, secret = keys.create(session, SECRET, organisation, bot, given)
    other = as_key(runtime, secret)
    assert other.get(f"/v1/analytics/{path}").get_json()["error"]["code"] == "missing_scope"
    assert other.post("/v1/analytics/events", json=SENT).get_json()["error"]["code"] == "missing_scope"


def test_without_its_database_analytics_is_unavailable_and_takes_events_all_the_same(new_runtime: Any) -> None:
    away = new_runtime(analytics_database_url="postgresql://nobody@127.0.0.1:1/none")
    client = as_key(away, KEY)
    for path in ("summary", "users/tg:1", "reports"):
        answer = client.get(f"/v1/analytics/{path}")
        assert (answer.status_code, answer.get_json()["error"]["code"]) == (503, "unavailable")
    assert client.post("/v1/analytics/events", json=SENT).status_code == 202


@pytest.mark.parametrize("name", ["provider", "model"])
def test_a_name_that_postgresql_cannot_hold_is_looked_for_as_it_is_kept(
    runtime: Runtime, client: FlaskClient, bot: str, name: str
) -> None:
    tell(runtime, ended("2026-03-10 12:00", bot=bot, **{name: "a\0b"}), ended("2026-03-10 12:00", bot=bot))
    answer = client.get(f"/v1/analytics/summary?from=2026-03-10&to=2026-03-11&{name}=a%00b")
    assert (answer.status_code, answer.get_json()["totals"]["requests"]) == (200, 1)


def test_without_redis_summaries_are_computed(
    new_runtime: Any, runtime: Runtime, client: FlaskClient, bot: str
) -> None:
    tell(runtime, ended("2026-03-10 12:00", bot=bot))
    alone = new_runtime(analytics_database_url=runtime.settings.analytics_url, redis_url="redis://127.0.0.1:1/0")
    asked = {"from": "2026-03-10", "to": "2026-03-11", "group_by": "week"}
    answer = as_key(alone, KEY).get("/v1/analytics/summary", query_string=asked)
    assert answer.get_json() == client.get("/v1/analytics/summary", query_string=asked).get_json()
    assert answer.get_json()["data"][0]["starts_at"] == "2026-03-09T00:00:00.000Z"
