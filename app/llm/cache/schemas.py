"""What goes over the wire about fixed answers."""

from __future__ import annotations

import datetime
import uuid
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from app.bots.schemas import Language
from app.llm.cache import matching


def _told(text: str) -> str:
    """Refuse what no column can hold."""
    if "\0" in text or any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        raise ValueError("must not contain NUL or lone surrogates")
    return text


def _asked(text: str) -> str:
    if not matching.question(_told(text)):
        raise ValueError("must have a letter or a digit: punctuation is left out when questions are compared")
    return text


Question = Annotated[str, Field(min_length=1, max_length=500), pydantic.AfterValidator(_asked)]
Questions = Annotated[
    list[Question],
    Field(
        min_length=1,
        max_length=50,
        description="How it is asked: compared without case, punctuation, ё and apostrophes.",
    ),
]
Text = Annotated[str, Field(min_length=1, max_length=20_000), pydantic.AfterValidator(_told)]


class _Wire(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", from_attributes=True)


class FixedAnswerCreate(_Wire):
    """An answer that is given without asking a model, and the questions that it is given to."""

    questions: Questions
    answer: Text
    language: Language | None = Field(None, description="For requests in this language; null: in any.")
    completions: bool = Field(
        False, description="Also given to /v1/chat/completions without tools, whose last message is such a question."
    )
    enabled: bool = True


class FixedAnswerChange(_Wire):
    """What is to change."""

    questions: Questions = Field(default_factory=list)
    answer: Text = ""
    language: Language | None = None
    completions: bool = False
    enabled: bool = True


class FixedAnswerOut(_Wire):
    id: uuid.UUID
    object: Literal["fixed_answer"] = "fixed_answer"
    questions: list[str]
    answer: str
    language: str | None
    completions: bool
    enabled: bool
    created_at: datetime.datetime
    updated_at: datetime.datetime


class FixedAnswersPage(_Wire):
    """A page of fixed answers, newest first."""

    data: list[FixedAnswerOut]
    next_cursor: str | None
