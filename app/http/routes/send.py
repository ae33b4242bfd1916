"""The bot's calls: send a user's message, his limits, his history, his figures."""

from __future__ import annotations

import pydantic

from app.bots.schemas import checked_user
from app.chat import schemas
from app.chat.schemas import user_in_path
from app.core import clock, errors, ids
from app.core.paging import PageQuery
from app.history import reads
from app.http import context, outcomes
from app.http import limits as limits_
from app.http.api import Answer, Api
from app.http.context import Context
from app.http.routes.chat import answer, long_call, plain_call, submit

api = Api("bot")


@api.route(
    "POST",
    "/v1/chat/send",
    scope="chat",
    body=schemas.SendRequest,
    limited=True,
    answers={200: schemas.SendResponse, 202: schemas.TaskObject},
)
def send_message(call: Context) -> Answer:
    """Answer a user's message in his dialog, within his limits."""
    body: schemas.SendRequest = call.body
    with outcomes.speaking_to(call, body.user, body.language):
        if context.prefers_async():
            return submit(call, call.runtime.requests.send(long_call(call), body), preferred=True)
        wait = context.preferred_wait_s()
        request = call.runtime.requests.send(long_call(call) if wait is not None else plain_call(call), body)
        return answer(call, request, wait, outcomes.send)


@api.route("GET", "/v1/chat/limits/<path:user>", scope="chat", limited=True, answers={200: schemas.LimitsResponse})
def get_limits(call: Context, user: str) -> Answer:
    """Tell how a user's day stands."""
    user = _user(user)
    limits = call.runtime.requests.limits(call.call(deadline_s=1), user)
    standing = call.runtime.days.standing(_shard(call), call.bot.id, user, limits)
    remaining = standing.remaining if standing.limit >= 0 else None
    found = {
        "limit": standing.limit,
        "used": standing.used,
        "remaining": remaining,
        "resets_at": clock.rfc3339(standing.day_resets_at),
    }
    return found, 200, limits_.headers(standing)


class ExchangesPage(pydantic.BaseModel):
    """A page of exchanges, newest first."""

    data: list[schemas.Exchange]
    next_cursor: str | None


@api.route("GET", "/v1/chat/history/<path:user>", scope="chat", query=PageQuery, answers={200: ExchangesPage})
def get_history(call: Context, user: str) -> Answer:
    """List a user's exchanges, newest first."""
    with call.runtime.sessions.begin() as session:
        return reads.exchanges(session, call.bot.id, _user(user), call.query.cursor, call.query.limit)


@api.route("DELETE", "/v1/chat/history/<path:user>", scope="chat", answers={204: "forgotten"})
def erase_history(call: Context, user: str) -> Answer:
    """Forget a user: his dialog, his context and his history (the right to erasure)."""
    call.runtime.erasure.erase(call.bot.id, _user(user), call.by)
    return None, 204


class StatsWindow(pydantic.BaseModel):
    """Figures of a stretch of time; `cost` in USD, null where no price is known."""

    requests: int
    tokens: int
    cost: str | None


class StatsResponse(pydantic.BaseModel):
    """A user's figures."""

    today: StatsWindow
    last_7_days: StatsWindow
    last_30_days: StatsWindow
    all_time: StatsWindow


@api.route("GET", "/v1/chat/stats/<path:user>", scope="chat", answers={200: StatsResponse})
def get_stats(call: Context, user: str) -> Answer:
    """Tell a user's requests, tokens and cost: today, 7 days, 30 days, all time."""
    with call.runtime.sessions.begin() as session:
        return reads.stats(session, call.bot.id, _user(user))


def _user(user: str) -> str:
    try:
        known = checked_user(user_in_path(user))
    except ValueError as error:
        raise errors.InvalidRequest(f"user_id: {error}", param="user_id") from None
    if not known or len(known) > 128:
        raise errors.InvalidRequest("user_id must have 1 to 128 characters.", param="user_id")
    return known


def _shard(call: Context) -> int:
    return ids.shard_of(call.bot.id, call.runtime.settings.redis_shards)
