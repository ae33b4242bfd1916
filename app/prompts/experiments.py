"""Experiments on a prompt: started, stopped, listed."""

from __future__ import annotations

import uuid
from typing import Any

import sqlalchemy
from sqlalchemy import orm

from app.bots import audit
from app.core import errors, ids, paging
from app.core.database import plain
from app.prompts import schemas, versions
from app.prompts.models import PromptExperiment


def start(session: orm.Session, bot: str, name: str, given: schemas.ExperimentCreate) -> PromptExperiment:
    """Start an experiment; raise `NotFound` for a version, `AlreadyExists` where one runs or had the name."""
    prompt = versions.get(session, bot, name, lock=True)
    for variant in given.variants:
        versions.version(session, prompt, variant.version)
    same = sqlalchemy.or_(PromptExperiment.stopped_at.is_(None), PromptExperiment.name == given.name)
    known = session.scalar(sqlalchemy.select(PromptExperiment).where(PromptExperiment.prompt_id == prompt.id, same))
    if known is not None:  # nobody adds another meanwhile: the prompt is locked
        what = (
            f"'{known.name}' runs on '{name}'"
            if known.stopped_at is None
            else f"'{name}' had an experiment '{known.name}'"
        )
        raise errors.AlreadyExists(f"{what} already.", param="name")
    row = PromptExperiment(
        id=ids.new_uuid(), prompt_id=prompt.id, bot_id=prompt.bot_id, name=given.name,
        variants=[variant.model_dump(mode="json") for variant in given.variants],
    )  # fmt: skip
    session.add(row)
    session.flush()
    session.refresh(row)
    _record(session, "experiment.started", name, row, variants=row.variants)
    return row


def get(session: orm.Session, bot: str, name: str, experiment: str) -> PromptExperiment:
    """Return an experiment of a prompt, by its id or its name; raise `NotFound`."""
    prompt = versions.get(session, bot, name)
    try:
        which = PromptExperiment.id == uuid.UUID(experiment)
    except ValueError:
        which = PromptExperiment.name == plain.text(experiment)
    row = session.scalar(sqlalchemy.select(PromptExperiment).where(PromptExperiment.prompt_id == prompt.id, which))
    if row is None:
        raise errors.NotFound(f"There is no experiment '{experiment[:80]}'.", param="id")
    return row


def list_page(
    session: orm.Session, bot: str, name: str, cursor: str | None, limit: int
) -> paging.Page[PromptExperiment]:
    """Return a prompt's experiments, newest first."""
    prompt = versions.get(session, bot, name)
    statement = sqlalchemy.select(PromptExperiment).where(PromptExperiment.prompt_id == prompt.id)
    return paging.newest_first(session, statement, [PromptExperiment.id], cursor, limit)


def stop(session: orm.Session, bot: str, name: str, experiment: str, winner: int | None) -> PromptExperiment:
    """Stop an experiment, and activate the winner; one that was stopped stays as it is. Raises `NotFound`."""
    prompt = versions.get(session, bot, name, lock=True)
    row = get(session, bot, name, experiment)
    if row.stopped_at is None:
        if winner is not None:
            versions.activate(session, bot, name, versions.version(session, prompt, winner).version)
        else:
            row.stopped_at = sqlalchemy.func.now()
        session.flush()
        session.refresh(row)
        _record(session, "experiment.stopped", name, row, winner=winner)
    return row


def _record(session: orm.Session, action: str, prompt: str, row: PromptExperiment, **details: Any) -> None:
    audit.record(session, action, f"experiment:{row.id}", bot=row.bot_id, prompt=prompt, experiment=row.name, **details)
