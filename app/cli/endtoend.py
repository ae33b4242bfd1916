"""`repliq doctor --e2e`: one real request through everything; shows each thing that it left, and takes it away again."""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import click

from app.cli import probes, target
from app.cli.apiclient import Answer, ApiClient, events
from app.cli.target import Site
from app.core import errors, ids
from app.core.settings import Settings

_PATIENCE_S = 10.0
_POLL_S = 0.02
_SHOWN_CHARACTERS = 160
_MESSAGE = "Say in one short sentence that you are well."


class Failed(errors.RepliqError):
    """A step did not come to its end."""


@dataclasses.dataclass(slots=True)
class _Journey:
    """One request's way: who calls, for whom, and by what it is found again."""

    client: ApiClient
    site: Site
    user: str
    ref: str = ""
    row: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def shard(self) -> int:
        return ids.shard_in(self.ref)

    @property
    def bot(self) -> str:
        return str(self.row["bot_id"])


def run(given: Settings) -> bool:
    """Send a request for a user of its own, show what it left where, erase the user; tell whether all of it went well."""
    user = f"doctor:{secrets.token_hex(6)}"
    try:
        with target.site() as site:
            client = ApiClient(
                probes.origin(given.host, given.port), target.api_key(site.settings), given.sync_wait_seconds + 10
            )
            journey = _Journey(client, site, user)
            click.echo(f"One request to {client.url} as the user {user}; then he is erased.")
            try:
                for step in _STEPS:
                    _timed(step, journey)
            finally:
                if journey.ref:
                    _timed(_erase, journey)
                    _timed(_what_stays, journey)
    except Failed as error:
        click.echo(f"{click.style('problem', fg='red')}  {error}", err=True)
        return False
    click.echo(click.style("\nEverything came through.", fg="green"))
    return True


def _timed(step: Callable[[_Journey], Mapping[str, Any]], journey: _Journey) -> None:
    """Do a step and show what it found under its docstring's title; raise `Failed` where it found nothing in time."""
    started = time.perf_counter()
    title = (step.__doc__ or "").partition(".")[0]
    try:
        found = step(journey)
    except errors.RepliqError as error:
        raise Failed(f"{title}: {error}") from error
    click.echo(f"\n{click.style(title, bold=True)}  ({(time.perf_counter() - started) * 1000:.0f} ms)")
    for name, value in found.items():
        click.echo(f"  {name:18} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.replace("\n", "⏎")
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


# Over HTTP


def _ask(journey: _Journey) -> Mapping[str, Any]:
    """The answer of POST /v1/chat/send."""
    body = {"user_id": journey.user, "message": _MESSAGE}
    answer = journey.client.call("POST", "/v1/chat/send", body)
    journey.ref = answer.headers.get("X-Task-ID", "").removeprefix("task_")
    _expect(answer, 200)
    limits = {name: value for name, value in answer.headers.items() if name.lower().startswith("ratelimit")}
    return {**answer.json, "X-Task-ID": answer.headers["X-Task-ID"], **limits}


def _task(journey: _Journey) -> Mapping[str, Any]:
    """The task, of GET /v1/tasks/{id}."""
    return _expect(journey.client.call("GET", f"/v1/tasks/task_{journey.ref}"), 200)


def _events(journey: _Journey) -> Mapping[str, Any]:
    """The task's server-sent events, of GET /v1/tasks/{id}/events."""
    with journey.client.open("GET", f"/v1/tasks/task_{journey.ref}/events") as response:
        if response.status != 200:
            raise errors.NotFound(f"the API answered {response.status}")
        found = {f"{identifier} {name}": data for identifier, name, data in events(response)}
    if not any(name.endswith(" completed") for name in found):
        raise errors.NotFound("no event `completed` among them")
    return found


def _expect(answer: Answer, status: int) -> dict[str, Any]:
    if answer.status != status:
        raise errors.NotFound(f"the API answered {answer.status} {answer.code}: {answer.detail}")
    return answer.json


# In PostgreSQL


def _request_row(journey: _Journey) -> Mapping[str, Any]:
    """PostgreSQL: the row of request_history, once it is written."""
    query = "SELECT * FROM request_history WHERE id = :id AND status <> 'pending'"
    journey.row = _waited(journey, query, id=ids.uuid_in(journey.ref))[0]
    return _filled(journey.row)


def _session_row(journey: _Journey) -> Mapping[str, Any]:
    """PostgreSQL: the row of session_history."""
    query = "SELECT * FROM session_history WHERE bot_id = :bot AND user_id = :user"
    return _filled(_waited(journey, query, bot=journey.bot, user=journey.user)[0])


def _user_row(journey: _Journey) -> Mapping[str, Any]:
    """PostgreSQL: the row of users."""
    query = "SELECT * FROM users WHERE bot_id = :bot AND user_id = :user"
    return _filled(_waited(journey, query, bot=journey.bot, user=journey.user)[0])


def _dialog_row(journey: _Journey) -> Mapping[str, Any]:
    """PostgreSQL: the row of dialogs."""
    query = "SELECT * FROM dialogs WHERE bot_id = :bot AND user_id = :user"
    return _filled(_waited(journey, query, bot=journey.bot, user=journey.user)[0])


def _message_rows(journey: _Journey) -> Mapping[str, Any]:
    """PostgreSQL: the rows of dialog_messages."""
    query = """
        SELECT m.seq, m.role, m.content, m.tokens FROM dialog_messages m JOIN dialogs d ON d.id = m.dialog_id
        WHERE d.bot_id = :bot AND d.user_id = :user ORDER BY m.seq
    """
    rows = _waited(journey, query, 2, bot=journey.bot, user=journey.user)
    return {f"{row['seq']} {row['role']} ({row['tokens']} tok)": row["content"] for row in rows}


def _event_row(journey: _Journey) -> Mapping[str, Any]:
    """The analytics database: the event of its end."""
    query = "SELECT * FROM analytics_events WHERE id = :id"
    return _filled(_waited(journey, query, of="analytics", id=ids.uuid_in(journey.ref))[0])


def _user_figures(journey: _Journey) -> Mapping[str, Any]:
    """The analytics database: the row of user_analytics."""
    query = "SELECT * FROM user_analytics WHERE bot_id = :bot AND user_id = :user AND total_requests > 0"
    return _filled(_waited(journey, query, of="analytics", bot=journey.bot, user=journey.user)[0])


def _rows(journey: _Journey, query: str, of: str = "history", **values: Any) -> list[dict[str, Any]]:
    import sqlalchemy

    sessions = journey.site.analytics if of == "analytics" else journey.site.sessions
    with sessions.begin() as session:
        return [dict(row) for row in session.execute(sqlalchemy.text(query), values).mappings()]


def _waited(journey: _Journey, query: str, least: int = 1, of: str = "history", **values: Any) -> list[dict[str, Any]]:
    """Return a query's rows as soon as there are enough of them."""
    until = time.monotonic() + _PATIENCE_S
    while len(rows := _rows(journey, query, of, **values)) < least:
        if time.monotonic() > until:
            raise errors.NotFound(
                f"did not come within {_PATIENCE_S:.0f} s. Does a worker serve the queue `{of}`? Its log tells why."
            )
        time.sleep(_POLL_S)
    return rows


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


# In Redis


def _task_record(journey: _Journey) -> Mapping[str, Any]:
    """Redis: the task's record."""
    return _hash(journey, journey.site.keys.of_task("task", journey.ref))


def _day(journey: _Journey) -> Mapping[str, Any]:
    """Redis: the user's profile and the counter of his day."""
    keys, store = journey.site.keys, journey.site.store
    profile = _hash(journey, keys.of_user("profile", journey.shard, journey.bot, journey.user))
    counter, _ = keys.of_day(journey.shard, journey.bot, journey.user, f"{journey.row['local_date']:%Y%m%d}")
    used = store.call("GET", counter)
    if used is None:
        raise errors.NotFound(f"the key {counter} is not there")
    return {**profile, "(day's key)": counter, "(used)": used}


def _dialog_header(journey: _Journey) -> Mapping[str, Any]:
    """Redis: the dialog's header."""
    return _hash(journey, _dialog_keys(journey)[0])


def _dialog_keys(journey: _Journey) -> tuple[str, str, str]:
    ref = ids.ref_of(journey.shard, journey.row["dialog_id"])
    found: tuple[str, str, str] = journey.site.keys.of_dialog(journey.shard, journey.bot, ref)
    return found


def _hash(journey: _Journey, key: str) -> dict[str, Any]:
    with journey.site.store.borrow() as client:
        found = client.hgetall(key)
        left_ms = client.pttl(key)
    if not found:
        raise errors.NotFound(f"the key {key} is not there")
    expires = f"in {left_ms / 3_600_000:.1f} h" if left_ms >= 0 else "never"
    return {"(key)": key, "(expires)": expires, **{name.decode(): value for name, value in found.items() if value}}


# And away again


def _erase(journey: _Journey) -> Mapping[str, Any]:
    """The erasure, of DELETE /v1/chat/history/{user}."""
    answer = journey.client.call("DELETE", f"/v1/chat/history/{journey.user}")
    _expect(answer, 204)
    return {"status": answer.status}


def _what_stays(journey: _Journey) -> Mapping[str, Any]:
    """What stays: figures under a pseudonym, and what keeps his limit."""
    if not journey.row:
        return {}
    mine = {"bot": journey.bot, "user": journey.user}
    row = _rows(journey, "SELECT * FROM request_history WHERE id = :id", id=ids.uuid_in(journey.ref))[0]
    counted = {
        f"rows in {table}": _rows(journey, f"SELECT count(*) AS n FROM {table} WHERE bot_id = :bot AND user_id = :user", **mine)[0]["n"]
        for table in ("session_history", "dialogs", "users")
    }  # fmt: skip
    if row["user_id"] == journey.user or row["response_data"] is not None or counted["rows in dialogs"]:
        raise errors.NotFound("something of what the user said is still there")
    record = journey.site.keys.of_task("task", journey.ref)
    with journey.site.store.borrow() as client:
        # An erased dialog leaves a mark for an hour, which says that it is deleted and nothing else.
        header, *others = _dialog_keys(journey)
        left = [key for key in others if client.exists(key)]
        left += [header] if client.hget(header, "st") not in (None, b"deleted") else []
        answer = client.hexists(record, "result")
    if left:
        raise errors.NotFound(f"the dialog is still in Redis: {', '.join(left)}")
    kept = {
        name: row[name]
        for name in ("user_id", "model", "status", "tokens_used", "cost", "request_data", "response_data")
    }
    answers = "with the answer until it expires" if answer else "without the answer"
    return {"request_history": kept, **counted, "task's record": f"{record}, {answers}"}


_STEPS: tuple[Callable[[_Journey], Mapping[str, Any]], ...] = (
    _ask, _task, _events, _request_row, _session_row, _user_row, _dialog_row, _message_rows, _event_row, _user_figures,
    _task_record, _day, _dialog_header,
)  # fmt: skip
