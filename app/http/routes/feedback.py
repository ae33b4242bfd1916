"""What users thought of answers."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from app.core import ids
from app.history.schemas import moment
from app.http.api import Answer, Api
from app.http.context import Context

api = Api("feedback")


def _whole(value: object) -> object:
    """Refuse what only equals 1, such as true."""
    if type(value) is not int:
        raise ValueError("must be 1 or -1")
    return value


class FeedbackGiven(pydantic.BaseModel):
    """An opinion of an answer: 1 or -1, and why."""

    model_config = pydantic.ConfigDict(extra="forbid")

    rating: Annotated[Literal[1, -1], pydantic.BeforeValidator(_whole)]
    comment: Annotated[str, pydantic.StringConstraints(strip_whitespace=True, max_length=2000)] | None = Field(
        None, description="kept as the bot keeps content: as it is, masked, or not at all"
    )


class FeedbackTold(pydantic.BaseModel):
    """The opinion that is on record."""

    object: Literal["feedback"] = "feedback"
    task_id: str
    rating: int
    comment: str | None
    created_at: str
    updated_at: str


@api.route(
    "POST", "/v1/tasks/<task_id>/feedback", scope="chat", body=FeedbackGiven, once=True, answers={200: FeedbackTold}
)
def tell_feedback(call: Context, task_id: str) -> Answer:
    """Tell what the user thought of an answer. There is one opinion a task: the last one told."""
    ref = ids.parse(task_id, "task", call.runtime.settings.redis_shards)
    told = call.runtime.feedback.tell(call.bot, ref, call.body.rating, call.body.comment or None)
    return FeedbackTold(
        task_id=f"task_{ref}", rating=told.rating, comment=told.comment, created_at=moment(told.created_at),
        updated_at=moment(told.updated_at),
    )  # fmt: skip
