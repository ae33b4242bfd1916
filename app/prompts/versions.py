"""Prompts and their versions in PostgreSQL: made, listed, made active, deleted. Every call is about one bot."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit
from app.bots.schemas import BotSettings
from app.core import errors, ids, paging
from app.core.database import plain
from app.prompts import schemas, templates
from app.prompts.models import Prompt, PromptExperiment, PromptVersion

MOST_PROMPTS = 1_000
MOST_VERSIONS = 10_000


class Made(NamedTuple):
    """A version, and whether it was there already: the latest one says the very same."""

    prompt: Prompt
    version: PromptVersion
    known: bool


def create(session: orm.Session, bot: str, given: schemas.PromptCreate) -> Made:
    """Make a prompt with its first version, which is active; raise `AlreadyExists`, or `TemplateError` (a 422) for its texts."""
    check(given)
    statement = sqlalchemy.select(sqlalchemy.func.count()).where(Prompt.bot_id == uuid.UUID(bot))
    if (session.scalar(statement) or 0) >= MOST_PROMPTS:
        raise errors.InvalidRequest(f"A bot has at most {MOST_PROMPTS} prompts.", param="name")
    made = session.execute(_CREATE, {"id": ids.new_uuid(), "bot": bot, "name": given.name}).scalar_one_or_none()
    if made is None:
        raise errors.AlreadyExists(f"There is a prompt '{given.name}' already; make a version of it.", param="name")
    prompt = get(session, bot, given.name)
    row = _add(session, prompt, given)
    _record(session, "prompt.created", prompt)
    return Made(prompt, row, known=False)


def add(session: orm.Session, bot: str, name: str, given: schemas.VersionCreate) -> Made:
    """Make a prompt's next version, active if it asks for that; one that says what the latest does is that one.

    Raises `NotFound`, or `TemplateError` for its texts.
    """
    check(given)
    prompt = get(session, bot, name, lock=True)
    latest = version(session, prompt, prompt.latest)
    if _content(given) == {name: getattr(latest, name) for name in _content(given)}:
        if given.activate:
            activate(session, bot, name, latest.version)
        return Made(prompt, latest, known=True)
    if prompt.latest >= MOST_VERSIONS:
        raise errors.InvalidRequest(f"A prompt has at most {MOST_VERSIONS} versions.", param="name")
    prompt.latest += 1
    prompt.updated_at = sqlalchemy.func.now()
    made = _add(session, prompt, given)
    _record(session, "prompt.version_created", prompt, version=made.version)
    if given.activate:
        activate(session, bot, name, made.version)
    return Made(prompt, made, known=False)


def check(given: schemas.VersionCreate) -> None:
    """Raise `TemplateError` for the first text that is no template, or uses what is not declared."""
    names = [*schemas.STANDARD, *(variable.name for variable in given.variables)]
    for language, text in given.texts.items():
        try:
            templates.check(text, names)
        except templates.TemplateError as error:
            error.param = f"texts.{language}"
            raise


def get(session: orm.Session, bot: str, name: str, *, lock: bool = False) -> Prompt:
    """Return a prompt of this bot; raise `NotFound`."""
    statement = sqlalchemy.select(Prompt).where(Prompt.bot_id == uuid.UUID(bot), Prompt.name == plain.text(name))
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise errors.NotFound(f"There is no prompt '{name[:100]}'.", param="name")
    return row


def expect(session: orm.Session, bot: str, settings: BotSettings) -> None:
    """Raise `InvalidRequest` where a bot's settings name a prompt that it does not have."""
    if settings.prompt is not None:
        try:
            get(session, bot, settings.prompt)
        except errors.NotFound as error:
            raise errors.InvalidRequest(str(error), param="settings.prompt") from None


def version(session: orm.Session, prompt: Prompt, number: int) -> PromptVersion:
    """Return a version; raise `NotFound`."""
    row = session.get(PromptVersion, (prompt.id, number)) if 0 < number < 2**31 else None
    if row is None:
        raise errors.NotFound(f"The prompt '{prompt.name}' has no version {number}.", param="version")
    return row


def list_prompts(session: orm.Session, bot: str, cursor: str | None, limit: int) -> paging.Page[Prompt]:
    """Return prompts, newest first."""
    statement = sqlalchemy.select(Prompt).where(Prompt.bot_id == uuid.UUID(bot))
    return paging.newest_first(session, statement, [Prompt.id], cursor, limit)


def list_versions(session: orm.Session, prompt: Prompt, cursor: str | None, limit: int) -> paging.Page[PromptVersion]:
    """Return a prompt's versions, the latest first."""
    statement = sqlalchemy.select(PromptVersion).where(PromptVersion.prompt_id == prompt.id)
    return paging.newest_first(session, statement, [PromptVersion.version], cursor, limit)


def activate(session: orm.Session, bot: str, name: str, number: int) -> Prompt:
    """Give a version out to everybody from now on: an experiment that runs is stopped. Raises `NotFound`."""
    prompt = get(session, bot, name, lock=True)
    version(session, prompt, number)
    before, prompt.active = prompt.active, number
    prompt.updated_at = sqlalchemy.func.now()
    running = PromptExperiment.prompt_id == prompt.id, PromptExperiment.stopped_at.is_(None)
    stopping = sqlalchemy.update(PromptExperiment).where(*running)
    stopped = session.scalars(
        stopping.values(stopped_at=sqlalchemy.func.now(), winner=number).returning(PromptExperiment.name),
        execution_options={"synchronize_session": "fetch"},
    ).all()
    session.flush()
    session.refresh(prompt)
    _record(session, "prompt.activated", prompt, version=number, before=before, stopped=list(stopped))
    return prompt


def delete(session: orm.Session, bot: str, name: str) -> None:
    """Delete a prompt with its versions and experiments; requests that had it keep its name. Raises `NotFound`."""
    prompt = get(session, bot, name, lock=True)
    _record(session, "prompt.deleted", prompt, versions=prompt.latest)
    session.delete(prompt)
    session.flush()


def shown(session: orm.Session, prompt: Prompt, *, whole: bool = True) -> dict[str, Any]:
    """Return the members of `schemas.PromptOut`."""
    running = session.scalar(
        sqlalchemy.select(PromptExperiment).where(
            PromptExperiment.prompt_id == prompt.id, PromptExperiment.stopped_at.is_(None)
        )
    )
    return {
        "name": prompt.name, "active_version": prompt.active, "latest_version": prompt.latest,
        "version": schemas.VersionOut.model_validate(version(session, prompt, prompt.active)) if whole else None,
        "experiment": schemas.ExperimentOut.model_validate(running) if running else None,
        "created_at": prompt.created_at, "updated_at": prompt.updated_at,
    }  # fmt: skip


def _add(session: orm.Session, prompt: Prompt, given: schemas.VersionCreate) -> PromptVersion:
    row = PromptVersion(prompt_id=prompt.id, version=prompt.latest, bot_id=prompt.bot_id, **_content(given))
    session.add(row)
    session.flush()
    session.refresh(row)
    session.refresh(prompt)
    return row


def _record(session: orm.Session, action: str, prompt: Prompt, **details: Any) -> None:
    audit.record(session, action, f"prompt:{prompt.name}", bot=prompt.bot_id, **details)


def _content(given: schemas.VersionCreate) -> dict[str, Any]:
    content = given.model_dump(mode="json", include={"texts", "default_language", "variables", "model"})
    return content | {"note": given.note}


# Two at once: one makes it, the other finds it made.
_CREATE = sqlalchemy.text("""
    INSERT INTO prompts (id, bot_id, name, active, latest) VALUES (:id, :bot, :name, 1, 1)
    ON CONFLICT (bot_id, name) DO NOTHING RETURNING id
""")
