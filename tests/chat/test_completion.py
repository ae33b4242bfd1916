"""The main job's own decisions, over a real ledger; what asks models is elsewhere."""

from __future__ import annotations

import types
from typing import Any

import pytest

from app.chat import ends
from app.chat.completion import Completion
from app.chat.ledger import End
from app.chat.pulse import LEASE_MS
from app.chat.records import Task
from app.core import errors
from app.limits.standing import Limits
from app.llm.answers import Answer, Spent
from app.llm.cache import answers
from tests.chat.conftest import Desk

ENVELOPE: dict[str, Any] = {
    "body": {"messages": []},
    "store": "all",
    "dialog_ttl_ms": 1,
    "kept": 1,
    "cache_counts": False,
}
USAGE = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}


@pytest.fixture
def completion(desk: Desk) -> Completion:
    nothing: Any = types.SimpleNamespace(summaries=None, dialogs=None)
    return Completion(desk.ledger, nothing, nothing, nothing, nothing, nothing, nothing, 3)


def cancelled_at_its_end(desk: Desk, completion: Completion, end_of: Any, **changes: Any) -> Task:
    """Cancel a task as it is about to be ended; return what is read of it then."""
    ref = desk.admit(limits=Limits(daily=1), **changes).ref
    claimed = desk.ledger.claim(ref, LEASE_MS)
    assert claimed is not None
    assert desk.ledger.cancel_running(ref, ends.CANCELLED) is None
    end: End = end_of(claimed[0])
    completion._finish(claimed[0], end, ENVELOPE)
    read = desk.ledger.read(ref)
    assert read is not None
    assert (read.state, read.settled) == ("cancelled", True)
    return read


@pytest.mark.parametrize("case", ["a kept answer that does not count", "a provider that failed"])
def test_what_would_not_have_counted_does_not_count_because_it_was_cancelled(
    desk: Desk, completion: Completion, case: str
) -> None:
    def end_of(task: Task) -> End:
        if case == "a provider that failed":
            return ends.failed(task, errors.UpstreamError("down"), envelope=ENVELOPE)
        return ends.completed(task, answers.fixed("hi", task.ref, "m", 0), ENVELOPE, cached="fixed")

    cancelled_at_its_end(desk, completion, end_of)
    desk.admit(limits=Limits(daily=1))


def test_an_answer_that_was_cancelled_at_its_end_costs_what_it_cost(desk: Desk, completion: Completion) -> None:
    def end_of(task: Task) -> End:
        answer = Answer(b"{}", "openai", "gpt-4o-mini", "hi", USAGE, "stop", "flex")
        answer.also = (Spent("openai", "gpt-4o-mini", USAGE),)
        made = ends.completed(task, answer, ENVELOPE)
        costs.append(made.told.facts["cost"])
        return made

    costs: list[str | None] = []
    read = cancelled_at_its_end(desk, completion, end_of)
    assert read.cost == costs[0] is not None
    with pytest.raises(errors.LimitExceeded):
        desk.admit(limits=Limits(daily=1))
