"""Fixed answers: what a bot answers to common questions without asking a model."""

from __future__ import annotations

from app.bots import announce
from app.core.paging import PageQuery
from app.http.api import Answer, Api
from app.http.context import Context
from app.llm.cache import fixed, schemas

api = Api("answers")


@api.route("POST", "/v1/answers", scope="admin", body=schemas.FixedAnswerCreate, once=True,
           answers={201: schemas.FixedAnswerOut})  # fmt: skip
def create_answer(call: Context) -> Answer:
    """Add a fixed answer; every process gives it within a second."""
    with call.changing() as session:
        made = schemas.FixedAnswerOut.model_validate(fixed.create(session, call.bot.id, call.body))
    _tell(call)
    return made, 201, {"Location": f"/v1/answers/{made.id}"}


@api.route("GET", "/v1/answers", scope="admin", query=PageQuery, answers={200: schemas.FixedAnswersPage})
def list_answers(call: Context) -> Answer:
    """List the bot's fixed answers, newest first."""
    with call.runtime.sessions.begin() as session:
        page = fixed.list_page(session, call.bot.id, call.query.cursor, call.query.limit)
        return schemas.FixedAnswersPage.model_validate(page)


@api.route("GET", "/v1/answers/<answer_id>", scope="admin", answers={200: schemas.FixedAnswerOut})
def get_answer(call: Context, answer_id: str) -> Answer:
    """Read a fixed answer."""
    with call.runtime.sessions.begin() as session:
        return schemas.FixedAnswerOut.model_validate(fixed.get(session, call.bot.id, answer_id))


@api.route("PATCH", "/v1/answers/<answer_id>", scope="admin", body=schemas.FixedAnswerChange,
           answers={200: schemas.FixedAnswerOut})  # fmt: skip
def change_answer(call: Context, answer_id: str) -> Answer:
    """Change what is given of a fixed answer; every process follows within a second."""
    with call.changing() as session:
        changed = schemas.FixedAnswerOut.model_validate(fixed.change(session, call.bot.id, answer_id, call.body))
    _tell(call)
    return changed


@api.route("DELETE", "/v1/answers/<answer_id>", scope="admin", answers={204: "deleted"})
def delete_answer(call: Context, answer_id: str) -> Answer:
    """Delete a fixed answer."""
    with call.changing() as session:
        fixed.delete(session, call.bot.id, answer_id)
    _tell(call)
    return None, 204


def _tell(call: Context) -> None:
    """Make every process read the bot anew, and its fixed answers with it."""
    bot = call.bot.id
    call.runtime.directory.forget("bot", bot)
    announce.bot_changed(call.runtime.store, call.runtime.keys, bot)
