"""The audit: what was done to an organisation's bots, keys, prompts and users, by whom, newest first."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import pydantic
from pydantic import Field

from app.bots import audit, schemas
from app.core.paging import PageQuery
from app.http.api import Answer, Api
from app.http.context import Context
from app.http.routes.history import Period

api = Api("administration")
Word = Annotated[str, Field(min_length=1, max_length=200)]


class AuditQuery(PageQuery, Period):
    """Which rows: those for which all that is given holds."""

    model_config = pydantic.ConfigDict(extra="forbid")

    bot_id: uuid.UUID | None = None
    action: Word | None = Field(None, description="such as key.revoked")
    target: Word | None = Field(None, description="what it was done to, as a row names it")


class AuditPage(pydantic.BaseModel):
    """A page of the audit, newest first."""

    model_config = pydantic.ConfigDict(from_attributes=True)

    data: list[schemas.AuditEntryOut]
    next_cursor: str | None


@api.route("GET", "/v1/audit", scope="org", query=AuditQuery, answers={200: AuditPage})
def list_audit(call: Context) -> Answer:
    """List what was done, newest first; of a bot, of one kind, to one thing, within a time."""
    query: Any = call.query
    wanted = audit.Filter(query.bot_id, query.action, query.target, query.since, query.until)
    with call.runtime.sessions.begin() as session:
        return AuditPage.model_validate(
            audit.page(session, call.principal.organisation, wanted, query.cursor, query.limit)
        )
