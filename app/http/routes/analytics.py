"""Analytics: events that others tell of, users' figures, summaries, and weekly reports."""

from __future__ import annotations

from typing import Annotated, Literal

import flask
import pydantic
from pydantic import Field

from app.analytics import pages, periods, queries, reports, schemas, schemas_out, summaries
from app.analytics.properties import BadEvent, Label
from app.analytics.summaries import Asked, GroupBy
from app.analytics.usage import Selection
from app.bots.schemas import checked_user
from app.core import errors, texts
from app.core.paging import PageQuery
from app.http.api import Answer, Api, Stream
from app.http.context import Context

api = Api("analytics")
_MOST_CHARACTERS = 128
_FRESH = {"Cache-Control": "private, no-cache"}  # kept by the caller's cache, and asked for again by its tag
_From = Annotated[
    periods.Moment | None, Field(alias="from", description="RFC 3339, or a date, which is its midnight in UTC")
]
_To = Annotated[periods.Moment | None, Field(alias="to", description="likewise; this moment left out")]


class UsageQuery(PageQuery):
    """Which days; all by default."""

    since: _From = None
    until: _To = None


class SummaryQuery(PageQuery):
    """Which requests, and in which groups. `limit` and `cursor` page through models, providers and users, the most requests first."""

    since: _From = None
    until: _To = None
    group_by: GroupBy = "day"
    provider: Label | None = None
    model: Label | None = None
    status: Literal["success", "error", "cancelled"] | None = None


class ReportsQuery(PageQuery):
    """Which reports."""

    period: Literal["week"] = "week"


class ReportQuery(pydantic.BaseModel):
    """How to show it: JSON, or a page to look at (also by `Accept: text/html`), in a language (else by Accept-Language)."""

    format: Literal["json", "html"] | None = None
    language: Literal["en", "ru", "uk"] | None = None


@api.route(
    "POST",
    "/v1/analytics/events",
    scope="analytics",
    body=schemas.EventsSent,
    once=True,
    answers={202: schemas_out.EventsTaken},
)
def take_events(call: Context) -> Answer:
    """Take events of your own, one, or up to 1,000 in `events`; each bad one is named, and the good ones go in."""
    taken, rejected = [], []
    for index, document in enumerate(call.body.documents):
        try:
            taken.append(schemas.parse(document, default_bot=call.bot.id, bot=call.bot.id))
        except BadEvent as error:
            if not call.body.is_batch:
                raise errors.InvalidRequest(str(error), param=error.param) from None
            rejected.append(
                schemas_out.Rejected(index=index, code="invalid_request", message=str(error), param=error.param)
            )
    call.runtime.events.emit(taken)
    return schemas_out.EventsTaken(accepted=len(taken), rejected=rejected), 202


@api.route(
    "GET",
    "/v1/analytics/users/<path:user_id>/usage",
    scope="analytics",
    query=UsageQuery,
    answers={200: schemas_out.UsagePage},
)
def list_usage(call: Context, user_id: str) -> Answer:
    """List a user's days, newest first; days on which he asked nothing are left out."""
    query: UsageQuery = call.query
    period = None
    if query.since or query.until:
        period = periods.asked(
            query.since or periods.FIRST, query.until or periods.LAST, grain=periods.DAY, longest=periods.EVER
        )
    with call.runtime.analytics_sessions.begin() as session:
        page = queries.usage(session, call.bot.id, _user(user_id), period, query.cursor, query.limit)
    return {"data": page.data, "next_cursor": page.next_cursor}


@api.route("GET", "/v1/analytics/users/<path:user_id>", scope="analytics", answers={200: schemas_out.UserAnalyticsOut})
def get_user_analytics(call: Context, user_id: str) -> Answer:
    """Read a user's totals since the beginning."""
    with call.runtime.analytics_sessions.begin() as session:
        return queries.user(session, call.bot.id, _user(user_id))


@api.route(
    "GET", "/v1/analytics/summary", scope="analytics", query=SummaryQuery,
    answers={200: schemas_out.SummaryOut, 304: "unchanged since `If-None-Match`"},
)  # fmt: skip
def get_summary(call: Context) -> Answer:
    """Sum up a period (by default today and the 29 days before it) by hour, day, week, model, provider, user or status."""
    query: SummaryQuery = call.query
    summaries.check(query.group_by, query.provider, query.model, query.status)
    period = periods.asked(
        query.since, query.until, grain=summaries.grain(query.group_by), longest=summaries.LONGEST[query.group_by]
    )
    selection = Selection(call.bot.id, period, query.provider, query.model, query.status)
    asked = Asked(selection, query.group_by, query.limit, query.cursor)
    answer = call.runtime.summaries.give(asked, flask.request.headers.get("If-None-Match", ""))
    return answer.body, 304 if answer.body is None else 200, {"ETag": answer.etag, **_FRESH}


@api.route(
    "GET", "/v1/analytics/reports", scope="analytics", query=ReportsQuery, answers={200: schemas_out.ReportsPage}
)
def list_reports(call: Context) -> Answer:
    """List the weekly reports, newest first."""
    with call.runtime.analytics_sessions.begin() as session:
        page = reports.list_page(session, call.bot.id, call.query.period, call.query.cursor, call.query.limit)
    return {"data": [reports.line(row) for row in page.data], "next_cursor": page.next_cursor}


@api.route(
    "GET", "/v1/analytics/reports/<report_id>", scope="analytics", query=ReportQuery,
    answers={200: (schemas_out.ReportOut, Stream(("text/html",), "the page")), 304: "unchanged since `If-None-Match`"},
)  # fmt: skip
def get_report(call: Context, report_id: str) -> Answer:
    """Read a report, as JSON, or as a page with charts (`format=html` or `Accept: text/html`)."""
    with call.runtime.analytics_sessions.begin() as session:
        row = reports.get(session, call.bot.id, report_id)
    if not _wants_page(call.query.format):
        return reports.shown(row)
    language = texts.choose(call.query.language, *flask.request.accept_languages.values(), call.bot.settings.language)
    page = pages.render(reports.shown(row), language, call.bot.name)
    headers = {
        "Content-Security-Policy": pages.POLICY,
        "Content-Language": language,
        "Vary": "Accept, Accept-Language",
        **_FRESH,
    }
    return flask.Response(page, headers=headers, content_type="text/html; charset=utf-8")


def _wants_page(format_: str | None) -> bool:
    if format_:
        return format_ == "html"
    accepted = flask.request.accept_mimetypes
    return accepted["text/html"] > accepted["application/json"]


def _user(user_id: str) -> str:
    """Take a user of a path as he is written: digits alone are no Telegram id here, `tg:123` is one."""
    if len(user_id) > _MOST_CHARACTERS:
        raise errors.InvalidRequest("user_id must have 1 to 128 characters.", param="user_id")
    try:
        return user_id if user_id.startswith("key:") else checked_user(user_id)
    except ValueError as error:
        raise errors.InvalidRequest(f"user_id: {error}", param="user_id") from None
