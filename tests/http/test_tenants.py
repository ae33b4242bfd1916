"""No bot is shown or may change what is another's: every operation of the OpenAPI document is tried with another bot's ids.

The operations come from the document. One with a path variable, a query member or a body that this test does not know how to fill
fails it, with what to add.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import sqlalchemy
from flask.testing import FlaskClient

from app.analytics import periods, reports
from app.bots import bots, keys, organisations, schemas
from app.chat import ends
from app.chat.ledger import DialogMissing
from app.core import errors, ids
from app.core.database.base import AnalyticsBase, Base
from app.dialogs.loading import Keeping
from app.llm.answers import Answer
from app.runtime import Runtime
from tests.http.conftest import KEY, SECRET, as_key

MARK = "zqx-what-nobody-else-may-read"
USER = "tg:4242"
"""The user whom the others' requests name. Such names are each bot's own, so that they are no secret."""
HIDDEN = f"{MARK}-user"
SESSION = "session-4242"
MESSAGE = "message-4242"
PROMPT, EXPERIMENT = "prompt-4242", "experiment-4242"
BOT_SCOPES = tuple(scope for scope in schemas.SCOPES if scope != "org")
EVERY_OBJECT = {"bot_id", "key_id", "dialog", "task_id", "request_id", "session_id", "report_id", "delivery_id", "answer_id"} | {
    "name", "experiment",
}  # fmt: skip
"""Path variables that name one bot's object; the others are names that mean each bot's own, or everybody's."""
HARMLESS = {
    "limit",
    "status",
    "order",
    "wait",
    "max_messages",
    "max_tokens",
    "since",
    "until",
    "from",
    "to",
    "role",
    "q",
    "provider",
    "request_type",
    "error_code",
    "format",
    "language",
    "period",
    "open",
    "prompt",
    "variant",
    "action",
}


@dataclasses.dataclass
class Tenant:
    """A bot with one object of every kind, and the client that may see them."""

    client: FlaskClient
    organisation: str
    bot: str
    ids: dict[str, list[str]]
    export: bytes
    refs: list[str]


def make_bot(runtime: Runtime, organisation: str, *, marked: bool) -> str:
    settings = schemas.BotSettings(system_prompt=f"{MARK} prompt", model=f"{MARK}-model") if marked else None
    given = schemas.BotCreate(name=f"{MARK} bot" if marked else "Another", settings=settings or schemas.BotSettings())
    with runtime.sessions.begin() as session:
        return str(bots.create(session, organisation, given).id)


def make_organisation(runtime: Runtime, name: str) -> str:
    with runtime.sessions.begin() as session:
        return str(organisations.create(session, name).id)


def make_key(runtime: Runtime, organisation: str, bot: str | None, name: str = "k") -> tuple[str, FlaskClient]:
    """Make a key with every scope it may have; return its id and its client."""
    scopes = list(BOT_SCOPES if bot else ("org",))
    given = schemas.KeyCreate.model_validate({"name": name, "scopes": scopes})
    with runtime.sessions.begin() as session:
        row, secret = keys.create(session, SECRET, organisation, bot, given)
        return str(row.id), as_key(runtime, secret)


def asked(answer: Any, *statuses: int) -> Any:
    assert answer.status_code in (statuses or (200, 201, 202)), (answer.status_code, answer.text)
    return answer.json


def make_tenant(runtime: Runtime) -> Tenant:
    organisation = make_organisation(runtime, f"{MARK} organisation")
    bot = make_bot(runtime, organisation, marked=True)
    key, client = make_key(runtime, organisation, bot, f"{MARK} key")
    dialogs, tasks = [], []
    for user in (USER, HIDDEN):
        asked(client.patch(f"/v1/users/{user}", json={"preferences": {"wish": MARK}, "language": "uk"}))
        for archived in (False, True):
            first = {"role": "user", "content": f"{MARK} first", "id": MESSAGE, "metadata": {"of": MARK}}
            given = {"user_id": user, "title": f"{MARK} title", "metadata": {"of": MARK}, "initial_message": first}
            dialog = asked(client.post("/v1/dialogs", json=given))["id"]
            reply = {"content": f"{MARK} question", "background": True}
            tasks.append(asked(client.post(f"/v1/dialogs/{dialog}/reply", json=reply))["id"])
            finish(runtime, tasks[-1])
            if archived:
                asked(client.post(f"/v1/dialogs/{dialog}/archive"))
            dialogs.append(dialog)
    later = {"Prefer": "respond-async"}
    for number in range(2):
        sent = {"telegram_id": 4242, "message": f"{MARK} message {number}", "session_id": SESSION}
        tasks.append(asked(client.post("/v1/chat/send", json=sent, headers=later))["id"])
        finish(runtime, tasks[-1], fail=number == 1)
    body = {"messages": [{"role": "user", "content": MARK}], "user": USER, "session_id": SESSION, "background": True}
    hooked = asked(client.post("/v1/chat/completions", json={**body, "webhook_url": f"https://1.1.1.1/{MARK}"}))["id"]
    finish(runtime, hooked)
    tasks.insert(0, hooked)
    tasks.append(asked(client.post("/v1/chat/completions", json=body))["id"])
    export = client.get("/v1/dialogs/export").data
    assert MARK.encode() in export
    drain(runtime)
    named = {"bot_id": [bot], "key_id": [key], "dialog": dialogs, "task_id": tasks, "user_id": [USER], "user": [USER]}
    named["model"] = [f"{MARK}-model"]
    named["request_id"] = [row["id"] for row in asked(client.get("/v1/history/requests"))["data"]] + tasks[:1]
    fixed = {"questions": [f"{MARK} question"], "answer": f"{MARK} answer"}
    named["answer_id"] = [asked(client.post("/v1/answers", json=fixed))["id"]]
    version = {"texts": {"any": f"{MARK} text"}, "note": f"{MARK} note"}
    asked(client.post("/v1/prompts", json={**version, "name": PROMPT}))
    asked(client.post(f"/v1/prompts/{PROMPT}/versions", json={"texts": {"any": f"{MARK} other text"}}))
    split = {"name": EXPERIMENT, "variants": [{"version": 1}, {"version": 2}]}
    named["experiment"] = [asked(client.post(f"/v1/prompts/{PROMPT}/experiments", json=split))["id"], EXPERIMENT]
    named["name"], named["version"] = [PROMPT], ["1"]
    asked(client.post(f"/v1/tasks/{tasks[0]}/feedback", json={"rating": 1, "comment": f"{MARK} comment"}))
    drain(runtime)  # it is an event, too
    named["provider"] = ["openai"]
    asked(client.put("/v1/providers/openai/key", json={"api_key": f"sk-{MARK}-visibly-fake"}))
    named["delivery_id"] = [row["id"] for row in asked(client.get("/v1/webhooks/deliveries"))["data"]]
    monday = periods.monday(datetime.datetime.now(datetime.UTC).date())
    named["report_id"] = [str(reports.make(runtime.analytics_sessions, bot, monday))]
    named["session_id"] = [row["id"] for row in asked(client.get("/v1/history/sessions"))["data"]]
    return Tenant(client, organisation, bot, named, export, [task.removeprefix("task_") for task in tasks])


def finish(runtime: Runtime, public: str, *, fail: bool = False) -> None:
    """Do a worker's work."""
    claimed = runtime.ledger.claim(public.removeprefix("task_"), 60_000)
    assert claimed
    task = claimed[0]
    envelope = orjson.loads(task.request)
    body = {"object": "chat.completion", "choices": [{"message": {"role": "assistant", "content": f"{MARK} answer"}}]}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    answer = Answer(orjson.dumps(body), "openai", "m", f"{MARK} answer", usage)
    end = ends.failed(task, errors.UpstreamError(f"{MARK} failure")) if fail else ends.completed(task, answer, envelope)
    while True:
        try:
            runtime.ledger.finish(task, end)
            return
        except DialogMissing:
            runtime.dialogs.load(task.bot, task.dialog, Keeping(86_400_000), owner=task.user)


def drain(runtime: Runtime) -> None:
    for stream in ("history", "dialogs", "events", "hooks"):
        for shard in range(runtime.settings.redis_shards):
            while runtime.drains.run(stream, shard):
                pass


# What the operations are given.


def bodies(tenant: Tenant) -> dict[str, Any]:
    """The bodies of operations by method and path without the version; bytes are JSON Lines."""
    dialog = tenant.ids["dialog"][0]
    message = {"role": "user", "content": "mine", "id": MESSAGE}
    operations = [{"op": "append", "dialog_id": name, **message} for name in tenant.ids["dialog"]]
    operations += [{"op": op, "dialog_id": name} for name in tenant.ids["dialog"] for op in ("archive", "delete")]
    completion = {"messages": [{"role": "user", "content": "mine"}], "user": USER, "session_id": SESSION}
    imported = tenant.export.replace(MARK.encode(), b"mine")
    event = {"eventType": "t", "eventName": "chat_completion_success", "service": "s", "userId": USER}
    event["eventId"] = str(ids.uuid_in(tenant.refs[0]))
    return {
        "POST /analytics/events": {"events": [{**event, "botId": tenant.bot}, event]},
        "POST /answers": {"questions": ["mine"], "answer": "mine"},
        "PATCH /answers/{answer_id}": {"answer": "mine"},
        "POST /bots": {"name": "mine"},
        "POST /telegram/{bot_id}/updates": {"update_id": 1},
        "PATCH /bots/{bot_id}": {"name": "mine", "settings": {"system_prompt": "mine"}},
        "POST /bots/{bot_id}/keys": {"name": "mine", "scopes": ["chat"]},
        "PATCH /bots/{bot_id}/keys/{key_id}": {"daily_budget_usd": "1"},
        "POST /bots/{bot_id}/keys/{key_id}/rotate": {"grace_seconds": 60},
        "PATCH /users/{user_id}": {"daily_limit": 1, "preferences": {"wish": "mine"}},
        "POST /chat/completions": {**completion, "dialog_id": dialog, "background": True},
        "POST /chat/send": {"telegram_id": 4242, "message": "mine", "session_id": SESSION},
        "POST /dialogs": {"user_id": USER, "initial_message": message},
        "PATCH /dialogs/{dialog}": {"title": "mine", "metadata": {"of": "mine"}},
        "POST /dialogs/{dialog}/messages": message,
        "POST /dialogs/{dialog}/reply": {"content": "mine", "background": True},
        "POST /dialogs/batch": {"operations": operations},
        "POST /dialogs/import": imported,
        "POST /prompts": {"name": "mine", "texts": {"any": "mine"}},
        "POST /prompts/{name}/versions": {"texts": {"any": "mine"}, "activate": True},
        "POST /prompts/{name}/activate": {"version": 2},
        "POST /prompts/{name}/render": {},
        "POST /prompts/{name}/experiments": {"name": "mine", "variants": [{"version": 1}, {"version": 2}]},
        "POST /prompts/{name}/experiments/{experiment}/stop": {"winner": 2},
        "POST /tasks/{task_id}/feedback": {"rating": -1, "comment": "mine"},
        "PUT /providers/{provider}/key": {"api_key": "sk-mine-visibly-fake"},
    }


NAMES_AN_OBJECT_IN_ITS_BODY = {"POST /chat/completions"}


@dataclasses.dataclass
class Try:
    """One call: `foreign` if it names an object of the other bot, so that nothing but 403 or 404 will do."""

    method: str
    path: str
    name: str
    query: dict[str, str]
    body: Any
    foreign: bool

    def send(self, client: FlaskClient) -> Any:
        how: dict[str, Any] = {"headers": {"Prefer": "respond-async"}}
        if isinstance(self.body, bytes):
            how |= {"data": self.body, "content_type": "application/x-ndjson"}
        elif self.body is not None:
            how |= {"json": self.body}
        return client.open(self.path, method=self.method, query_string=self.query, **how)

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.query or ''}"


def tries(document: dict[str, Any], tenant: Tenant) -> Iterator[Try]:
    """Every operation, with every id that its variables can have, and with each member of its query."""
    known = bodies(tenant)
    for template, method in itertools.chain.from_iterable(
        ((path, method.upper()) for method in operations) for path, operations in document["paths"].items()
    ):
        operation = document["paths"][template][method.lower()]
        name = f"{method} {template.removeprefix('/v1')}"
        if operation.get("requestBody") and name not in known:
            pytest.fail(f"{name} takes a body: add one to bodies(), with the other bot's ids wherever it takes ids")
        variables = re.findall(r"{(\w+)}", template)
        for variable in variables:
            if variable not in tenant.ids:
                pytest.fail(f"{name} has the path variable {variable}: make such an object, add its id to Tenant.ids")
        foreign = bool(EVERY_OBJECT & set(variables)) or name in NAMES_AN_OBJECT_IN_ITS_BODY
        for values in itertools.product(*(tenant.ids[variable] for variable in variables)):
            path = template.format(**dict(zip(variables, values, strict=True)))
            for query in queries(operation, name, path, tenant):
                yield Try(method, path, name, query, known.get(name), foreign)


def queries(operation: dict[str, Any], name: str, path: str, tenant: Tenant) -> Iterator[dict[str, str]]:
    words = {"q": MARK} if any(parameter["name"] == "q" for parameter in operation["parameters"]) else {}
    yield words
    for parameter in operation["parameters"]:
        member = parameter["name"]
        if parameter["in"] != "query" or member in HARMLESS:
            continue
        if member in ("user_id", "user"):
            yield words | {member: USER}
        elif member == "after":
            yield words | {member: tenant.ids["dialog" if "/dialogs/" in name else "request_id"][0]}
        elif member == "task_id":
            yield words | {member: tenant.ids["task_id"][0]}
        elif member == "session_id":
            yield words | {member: SESSION}
        elif member == "group_by":
            yield words | {member: "user"}
        elif member == "model":
            yield words | {member: tenant.ids["model"][0]}
        elif member == "bot_id":
            yield words | {member: tenant.bot}
        elif member == "target":
            yield words | {member: f"bot:{tenant.bot}"}
        elif member == "cursor":
            found = tenant.client.get(path, query_string=words | {"limit": 1})
            cursor = found.json.get("next_cursor") if found.status_code == 200 else None
            if cursor:
                yield words | {member: cursor}
        else:
            pytest.fail(f"{name} has the query member {member}: fill it in queries(), or add it to HARMLESS")


# What is to stay as it is.


def rows_of(runtime: Runtime, tenant: Tenant) -> dict[str, list[str]]:
    """Return every row of a bot, of every table that has bots."""
    of_dialogs = "dialog_id IN (SELECT id FROM dialogs WHERE bot_id = :bot)"
    of_deliveries = "delivery_id IN (SELECT id FROM webhook_deliveries WHERE bot_id = :bot)"
    found = {}
    bases = (Base, runtime.sessions), (AnalyticsBase, runtime.analytics_sessions)
    for table, sessions in ((table, sessions) for base, sessions in bases for table in base.metadata.tables.values()):
        with sessions.begin() as session:
            condition = "bot_id = :bot" if "bot_id" in table.c else of_dialogs if "dialog_id" in table.c else None
            condition = of_deliveries if "delivery_id" in table.c else condition
            condition = {"bots": "id = :bot", "organisations": "id = :organisation"}.get(table.name, condition)
            if condition is None:
                assert table.name in TABLES_WITHOUT_BOTS, f"{table.name}: say here which of its rows are a bot's"
                continue
            given = {"bot": tenant.bot, "organisation": tenant.organisation}
            names = ", ".join(f'"{column.name}"::text' for column in table.c if column.name != "last_used_at")
            rows = session.execute(sqlalchemy.text(f"SELECT {names} FROM {table.name} WHERE {condition}"), given)
            found[table.name] = sorted(str(tuple(row)) for row in rows)
    return found


LEDGER = ("queued", "leased", "waiting", "due", "deadlines", "hooks")
TABLES_WITHOUT_BOTS = {"active_counts"}


def rows_with_the_mark(runtime: Runtime) -> dict[str, int]:
    """Return in which tables the mark is to be found, how often."""
    with runtime.sessions.begin() as session:
        count = {
            name: session.scalar(
                sqlalchemy.text(f"SELECT count(*) FROM {name} AS t WHERE t::text LIKE :mark"), {"mark": f"%{MARK}%"}
            )
            for name in Base.metadata.tables
        }
    with runtime.analytics_sessions.begin() as session:
        count |= {
            name: session.scalar(
                sqlalchemy.text(f"SELECT count(*) FROM {name} AS t WHERE t::text LIKE :mark"), {"mark": f"%{MARK}%"}
            )
            for name in AnalyticsBase.metadata.tables
        }
    return {name: number for name, number in count.items() if number}


def keys_of(runtime: Runtime, tenant: Tenant) -> dict[bytes, bytes]:
    """Return every Redis key of a bot and of its tasks, with its whole value."""
    named = [tenant.bot.encode(), *(ref.encode() for ref in tenant.refs)]
    with runtime.store.borrow() as client:
        return {key: client.dump(key) for key in client.scan_iter("*") if any(name in key for name in named)}


def ledger_of(runtime: Runtime, tenant: Tenant) -> set[tuple[str, str]]:
    """Return where the ledger has the bot's tasks."""
    places = [(part, shard) for part in LEDGER for shard in range(runtime.settings.redis_shards)]
    with runtime.store.borrow() as client:
        members = [(part, client.zrange(runtime.keys.of_shard(part, shard), 0, -1)) for part, shard in places]
    return {(part, m.decode()) for part, found in members for m in found if m.decode()[:34] in tenant.refs}


def everything_of(runtime: Runtime, tenant: Tenant) -> dict[str, Any]:
    ledger = {part: str(sorted(ref for found, ref in ledger_of(runtime, tenant) if found == part)) for part in LEDGER}
    redis = {key.decode(): value for key, value in keys_of(runtime, tenant).items()}
    return {**rows_of(runtime, tenant), **ledger, **redis, "rows with the mark": rows_with_the_mark(runtime)}


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return [f"{name}: {before.get(name)!r} has become {after.get(name)!r}" for name in names]


def keys_that_hold_the_mark(runtime: Runtime) -> set[bytes]:
    read = {b"hash": "hgetall", b"list": "lrange", b"stream": "xrange", b"string": "get"}
    bounds = {b"list": (0, -1), b"stream": ("-", "+")}
    found = set()
    with runtime.store.borrow() as client:
        for key in client.scan_iter("*"):
            kind = client.type(key)
            held = str(getattr(client, read[kind])(key, *bounds.get(kind, ()))) if kind in read else ""
            if MARK in held.replace(f"{MARK}-model", ""):  # which an attacker is made to name himself
                found.add(key)
    return found


@pytest.fixture(params=["live", "cold"])
def state(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def here(new_runtime: Callable[..., Runtime], analytics_database_url: str) -> Runtime:
    """One shard, so that nothing is kept from anybody because it lies somewhere else; and a provider that is away."""
    away = "http://127.0.0.1:1/v1"
    given = {"redis_shards": "1", "openai_base_url": away, "daily_limit": "100000"}
    return new_runtime(**given, analytics_database_url=analytics_database_url)


def test_no_operation_shows_or_changes_what_is_another_bots(here: Runtime, state: str) -> None:
    tenant = make_tenant(here)
    document = tenant.client.get("/openapi.json").json
    theirs = make_organisation(here, "Theirs")
    attackers = {
        "another bot of another organisation, which it manages": as_key(here, KEY),
        "another bot of the same organisation": make_key(
            here, tenant.organisation, make_bot(here, tenant.organisation, marked=False)
        )[1],
        "another organisation": make_key(here, theirs, None)[1],
    }
    if state == "cold":
        here.store.call("FLUSHALL")
    calls = list(tries(document, tenant))
    if state == "cold":  # what asking for cursors warmed up
        here.store.call("FLUSHALL")
    before, marked = everything_of(here, tenant), keys_that_hold_the_mark(here)
    wrong = []
    for who, client in attackers.items():
        for call in calls:
            answer = call.send(client)
            told = answer.data + str(answer.headers).encode()
            if MARK.encode() in told.replace(f"{MARK}-model".encode(), b""):
                wrong.append(f"{who} is shown what is not its own by {call}: {told[:300]!r}")
            if answer.status_code == 500 or (call.foreign and answer.status_code not in (403, 404)):
                wrong.append(f"{who} gets {answer.status_code} from {call}: {answer.data[:300]!r}")
            if call.name == "POST /dialogs/batch" and answer.status_code == 200:
                assert {result["status"] for result in answer.json["results"]} == {404}
    drain(here)
    assert not wrong, "\n".join(wrong)
    changed = changes(before, everything_of(here, tenant))
    assert not changed, "\n".join(changed)
    assert keys_that_hold_the_mark(here) <= marked
    shown = [tenant.client.get(f"/v1/dialogs/{name}/messages").json["data"] for name in tenant.ids["dialog"]]
    assert [len(messages) for messages in shown] == [3] * 4
    assert all(MARK in message["content"] for messages in shown for message in messages)


def test_the_tenant_itself_is_shown_all_of_it(here: Runtime) -> None:
    """The test above would see nothing wrong if there were nothing to see."""
    tenant = make_tenant(here)
    _, owner = make_key(here, tenant.organisation, None)
    shown = set()
    for call in tries(tenant.client.get("/openapi.json").json, tenant):
        if call.method == "GET" and not call.path.endswith("/events"):  # which of an open task do not end
            for client in (tenant.client, owner):
                answer = call.send(client)
                if MARK in answer.text:
                    shown.add(call.name)
    assert shown >= {
        "GET /audit", "GET /bots", "GET /bots/{bot_id}", "GET /bots/{bot_id}/keys", "GET /users", "GET /users/{user_id}", "GET /dialogs",
        "GET /dialogs/{dialog}", "GET /dialogs/{dialog}/messages", "GET /dialogs/{dialog}/context", "GET /dialogs/export",
        "GET /answers", "GET /answers/{answer_id}", "GET /prompts/{name}", "GET /prompts/{name}/versions",
        "GET /prompts/{name}/versions/{version}",
        "GET /chat/history/{user}", "GET /tasks/{task_id}", "GET /tasks", "GET /history/requests",
        "GET /webhooks/deliveries",
        "GET /webhooks/deliveries/{delivery_id}", "GET /history/requests/{request_id}", "GET /history/sessions",
        "GET /history/sessions/{session_id}", "GET /history/export",
        "GET /analytics/reports/{report_id}", "GET /analytics/summary",
    }  # fmt: skip


def test_a_name_is_each_bots_own(here: Runtime) -> None:
    """What another bot is told of a user is what it would be told of somebody nobody has ever heard of."""
    tenant = make_tenant(here)
    other = as_key(here, KEY)
    for call in tries(tenant.client.get("/openapi.json").json, tenant):
        if call.method == "GET" and re.search(r"{user(_id)?}", call.name):
            nobody = dataclasses.replace(call, path=call.path.replace(USER, "tg:4243"))
            told, expected = call.send(other), nobody.send(other)
            assert told.status_code == expected.status_code
            assert without_ids(told.text) == without_ids(expected.text.replace("4243", "4242")), str(call)


def without_ids(text: str) -> str:
    return re.sub(r"req_[0-9a-f]{32}", "req", text)


def test_an_idempotency_key_is_each_bots_own(here: Runtime) -> None:
    tenant = make_tenant(here)
    other = as_key(here, KEY)
    headers = {"Idempotency-Key": "the-same", "Prefer": "respond-async"}
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "user": USER}),
        ("/v1/chat/send", {"telegram_id": 4242, "message": "hello"}),
        ("/v1/dialogs", {"user_id": USER}),
    ):
        headers["Idempotency-Key"] = f"the-same-{path}"
        mine, theirs = (client.post(path, json=body, headers=headers) for client in (tenant.client, other))
        assert "Idempotency-Replayed" not in theirs.headers
        assert asked(mine)["id"] != asked(theirs)["id"]
        assert ids.shard_in(asked(theirs)["id"].partition("_")[2]) == 0


def test_a_new_operation_must_be_made_known_here(here: Runtime) -> None:
    tenant = make_tenant(here)
    parameters = [{"name": "report", "in": "path"}]
    for paths, message in (
        ({"/v1/reports/{report}": {"get": {"parameters": parameters}}}, "path variable report"),
        ({"/v1/reports": {"get": {"parameters": [{"name": "of", "in": "query"}]}}}, "query member of"),
        ({"/v1/reports": {"post": {"parameters": [], "requestBody": {}, "x": 1} | {"requestBody": {"a": 1}}}}, "body"),
    ):
        with pytest.raises(pytest.fail.Exception, match=message):
            list(tries({"paths": paths}, tenant))
