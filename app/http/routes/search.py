"""Search in dialogs."""

from __future__ import annotations

from typing import Literal

import pydantic
from pydantic import Field

from app.core import ids
from app.core.paging import PageQuery
from app.dialogs import schemas, search
from app.http.api import Answer, Api
from app.http.context import Context

api = Api("dialogs")


class SearchQuery(PageQuery):
    """What to look for, and where."""

    q: str = Field(
        min_length=1, max_length=500,
        description='Words in any of their forms; "a phrase"; `or` between alternatives; a minus before what must not be there. '
        "Without a word to look for nothing is found.",
    )  # fmt: skip
    user_id: schemas.UserId | None = None
    role: schemas.Role | None = None
    since: pydantic.AwareDatetime | None = Field(None, alias="from", description="RFC 3339; this moment included")
    until: pydantic.AwareDatetime | None = Field(None, alias="to", description="RFC 3339; this moment left out")


class SearchResult(pydantic.BaseModel):
    """A message that was found. `snippet` is HTML: the piece around what was found, escaped, the found words in <mark>."""

    object: Literal["search.result"] = "search.result"
    dialog_id: str
    message_id: str
    seq: int
    user_id: str
    role: str
    created_at: str
    title: str | None
    status: schemas.Status
    snippet: str
    score: float = Field(description="0 to 1, to compare results of one query")


class SearchPage(pydantic.BaseModel):
    """A page of results, best first."""

    data: list[SearchResult]
    next_cursor: str | None


@api.route(
    "GET", "/v1/dialogs/search", "/dialogs/search", scope="dialogs", query=SearchQuery, answers={200: SearchPage}
)
def search_dialogs(call: Context) -> Answer:
    """Search the messages of all dialogs, live and archived, best first; of very many matches the newest 500 are ranked."""
    query: SearchQuery = call.query
    shard = ids.shard_of(call.bot.id, call.runtime.settings.redis_shards)
    with call.runtime.sessions.begin() as session:
        return search.search(
            session, call.bot.id, shard, query.q, user=query.user_id, role=query.role, since=query.since, until=query.until,
            cursor=query.cursor, limit=query.limit,
        )  # fmt: skip
