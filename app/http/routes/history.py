"""The history: requests and sessions on record, a user's figures, and the export of it all."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any, Literal

import flask
import pydantic
from pydantic import Field

from app.chat.schemas import SessionName
from app.core import errors, ids, logs
from app.core.paging import PageQuery
from app.dialogs.schemas import UserId
from app.history import exports, figures, requests, schemas, sessions
from app.history.exports import Export, Format
from app.http.api import Answer, Api, Stream
from app.http.context import Context
from app.http.routes.transfers import Moment

api = Api("history")
_log = logs.get(__name__)
_MOST_CHARACTERS = 256
_USER: pydantic.TypeAdapter[str] = pydantic.TypeAdapter(UserId)


class Period(pydantic.BaseModel):
    """A stretch of time."""

    since: Moment | None = Field(None, alias="from", description="RFC 3339; this moment included")
    until: Moment | None = Field(None, alias="to", description="RFC 3339; this moment left out")

    @pydantic.field_validator("until")
    @classmethod
    def _in_order(cls, value: Any, found: pydantic.ValidationInfo) -> Any:
        since = found.data.get("since")
        if value is not None and since is not None and value <= since:
            raise ValueError("must be later than from")
        return value


class Filters(Period):
    """Which requests: those for which all that is given holds; times are of admission."""

    user_id: UserId | None = None
    session_id: SessionName | None = None
    status: schemas.Status | None = None
    provider: str | None = Field(None, min_length=1, max_length=_MOST_CHARACTERS)
    model: str | None = Field(None, min_length=1, max_length=_MOST_CHARACTERS)
    request_type: str | None = Field(None, min_length=1, max_length=_MOST_CHARACTERS)
    error_code: str | None = Field(None, min_length=1, max_length=_MOST_CHARACTERS)
    prompt: str | None = Field(None, min_length=1, max_length=_MOST_CHARACTERS)
    variant: str | None = Field(None, min_length=1, max_length=_MOST_CHARACTERS, description="experiment/variant")

    def wanted(self) -> requests.Wanted:
        """Return it as the history takes it."""
        return requests.Wanted(
            self.user_id, self.session_id, self.status, self.provider, self.model, self.request_type, self.error_code,
            self.since, self.until, self.prompt, self.variant,
        )  # fmt: skip


class RequestsQuery(Filters, PageQuery):
    """Which requests, newest first."""


class ExportQuery(Filters):
    """Which requests, in the order of their admission, and how they are written."""

    format: Format = "jsonl"
    after: str | None = Field(
        None, max_length=64, description="A request's id: go on behind it, with what a broken export has not told."
    )


class SessionsQuery(Period, PageQuery):
    """Which sessions; times are of their beginning."""

    user_id: UserId | None = None
    session_id: SessionName | None = Field(None, description="the name that its requests gave, or were given")
    open: bool | None = None


class ExportEnd(pydantic.BaseModel):
    """The end of an export as JSON Lines: how many requests came before it. Without it an export was cut."""

    object: Literal["export.end"] = "export.end"
    requests: int


_LINES = (schemas.RequestOut, ExportEnd)
_EXPORTED = (
    "JSON Lines, at last export.end: without that it was cut. Or CSV (RFC 4180) with a line of names; one that was cut ends with a line "
    "of export.cut alone. What a spreadsheet would take for a formula has an apostrophe before it there."
)


@api.route("GET", "/v1/history/requests", scope="history", query=RequestsQuery, answers={200: schemas.RequestsPage})
def list_requests(call: Context) -> Answer:
    """List requests, newest first. What was admitted or has ended in the last moment may still be on its way here."""
    query: RequestsQuery = call.query
    with call.runtime.sessions.begin() as session:
        page = requests.list_page(session, call.bot.id, query.wanted(), query.cursor, query.limit)
    shard = _shard(call)
    return {"data": [schemas.request(row, shard) for row in page.data], "next_cursor": page.next_cursor}


@api.route("GET", "/v1/history/requests/<request_id>", scope="history", answers={200: schemas.RequestOut})
def get_request(call: Context, request_id: str) -> Answer:
    """Read a request, by its UUID or as task_…"""
    with call.runtime.sessions.begin() as session:
        row = requests.one(session, call.bot.id, _request(call, request_id))
    return schemas.request(row, _shard(call))


@api.route("GET", "/v1/history/sessions", scope="history", query=SessionsQuery, answers={200: schemas.SessionsPage})
def list_sessions(call: Context) -> Answer:
    """List sessions, the one that began last first."""
    query: SessionsQuery = call.query
    wanted = sessions.Wanted(query.user_id, query.session_id, query.open, query.since, query.until)
    with call.runtime.sessions.begin() as session:
        page = sessions.list_page(session, call.bot.id, wanted, query.cursor, query.limit)
    return {"data": [schemas.session(row) for row in page.data], "next_cursor": page.next_cursor}


@api.route("GET", "/v1/history/sessions/<session_id>", scope="history", answers={200: schemas.SessionOut})
def get_session(call: Context, session_id: str) -> Answer:
    """Read a session."""
    with call.runtime.sessions.begin() as session:
        return schemas.session(sessions.get(session, call.bot.id, _uuid(session_id, "session")))


@api.route("POST", "/v1/history/sessions/<session_id>/end", scope="history", answers={200: schemas.SessionOut})
def end_session(call: Context, session_id: str) -> Answer:
    """End a session now: the user's next request begins another. One that has ended stays as it is, so that this may be repeated."""
    return schemas.session(call.runtime.session_ends.end(call.bot.id, _uuid(session_id, "session")))


# A user's name may hold slashes.
@api.route(
    "GET", "/v1/history/users/<path:user_id>/stats", scope="history", query=Period, answers={200: schemas.UserStats}
)
def get_user_stats(call: Context, user_id: str) -> Answer:
    """Tell a user's figures, by model and provider too; all time without from and to."""
    with call.runtime.sessions.begin() as session:
        return figures.of_user(session, call.bot.id, _user(user_id), call.query.since, call.query.until)


@api.route(
    "GET", "/v1/history/export", scope="history", query=ExportQuery,
    answers={
        200: (Stream((exports.MEDIA_TYPES["jsonl"],), _EXPORTED, _LINES), Stream((exports.MEDIA_TYPES["csv"],), _EXPORTED))
    },
)  # fmt: skip
def export_requests(call: Context) -> Answer:
    """Export requests with what was asked and answered, as a stream of JSON Lines or CSV."""
    query: ExportQuery = call.query
    export = Export(
        call.runtime.sessions, call.bot.id, call.runtime.settings.redis_shards, query.wanted(), query.format,
        after=_after(call, query.after),
    )  # fmt: skip
    blocks = iter(export)
    first = next(blocks, b"")  # so that an outage has its own status
    headers = {"Content-Disposition": f'attachment; filename="history.{query.format}"', "X-Accel-Buffering": "no"}
    return flask.Response(
        _told(first, blocks, export),
        200,
        headers,
        content_type=exports.MEDIA_TYPES[query.format],
        direct_passthrough=True,
    )


def _told(first: bytes, blocks: Iterator[bytes], export: Export) -> Iterator[bytes]:
    yield first
    try:
        yield from blocks
    except errors.Unavailable as error:  # what has been sent cannot be taken back
        _log.warning("history_export_cut", requests=export.requests, reason=str(error))
        yield export.cut
    except Exception:
        yield export.cut
        raise


def _after(call: Context, public: str | None) -> requests.Position | None:
    if public is None:
        return None
    try:
        return exports.position(call.runtime.sessions, call.bot.id, _request(call, public))
    except errors.NotFound:
        raise errors.BadCursor("after: there is no such request.", param="after") from None


def _request(call: Context, public: str) -> uuid.UUID:
    if not public.startswith("task_"):
        return _uuid(public, "request")
    ref = ids.parse(public, "task", call.runtime.settings.redis_shards)
    if ids.shard_in(ref) != _shard(call):
        raise errors.NotFound(f"There is no task '{public}'.", param="id")
    return ids.uuid_in(ref)


def _user(user_id: str) -> str:
    """Take a user of a path as he is written: digits alone are no Telegram id here, `tg:123` is one."""
    try:
        return _USER.validate_python(user_id)
    except pydantic.ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise errors.InvalidRequest(f"user_id: {message}", param="user_id") from None


def _uuid(public: str, kind: str) -> uuid.UUID:
    try:
        return uuid.UUID(public)
    except ValueError:
        raise errors.NotFound(f"There is no {kind} '{public[:80]}'.", param="id") from None


def _shard(call: Context) -> int:
    return ids.shard_of(call.bot.id, call.runtime.settings.redis_shards)
