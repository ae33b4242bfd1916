"""What an end says of tokens and money, in its row, its event and the task's record, and what it keeps of what was said."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from app.bots import schemas
from app.chat import costs, ends
from app.chat.ledger import End
from app.chat.records import Task
from app.core import errors
from app.llm.answers import Answer, Spent

USAGE = {
    "prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20, "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}  # fmt: skip
KNOWN = "0.0000072000"  # 6 × 0.15 + 4 × 0.075 + 10 × 0.6 USD per million
SAID = "mail anna@example.com or call +380501234567"
OWN = {"gpt-4o-mini": {"input": "1", "output": "1"}}


@pytest.fixture
def task() -> Task:
    return Task("07" + "0" * 32, "in_progress", 1, 1_760_000_000_000, 1_760_000_060_000, "b", "u", "chat.send", "gpt-4o-mini", "s",
                provider="openai", dialog="", counts=True)  # fmt: skip


def envelope(**more: Any) -> dict[str, Any]:
    return {"store": "all", "dialog_ttl_ms": 1, "kept": 50, "message": SAID, "body": {"messages": []}, **more}


def answer(model: str = "gpt-4o-mini-2024-07-18", usage: Any = USAGE) -> Answer:
    body = {"model": model, "choices": [{"message": {"role": "assistant", "content": SAID}}], "usage": usage}
    return Answer(orjson.dumps(body), "openai", model, SAID, usage)


def told(end: End) -> tuple[Any, ...]:
    """Return the cost that the row, the event and the record have."""
    row, event = orjson.loads(end.told.row), orjson.loads(end.told.event)
    return row["cost"], event["properties"].get("costUsd"), end.fields.get("cost")


def test_an_answers_cost_is_in_its_row_its_event_and_its_record(task: Task) -> None:
    end = ends.completed(task, answer(), envelope())
    assert told(end) == (KNOWN, KNOWN, KNOWN)
    row = orjson.loads(end.told.row)
    assert [
        row[name] for name in ("prompt_tokens", "completion_tokens", "tokens", "cached_tokens", "reasoning_tokens")
    ] == [10, 10, 20, 4, 3]


def test_a_bots_own_prices_come_with_the_envelope(task: Task) -> None:
    settings = schemas.BotSettings.model_validate({"prices": OWN})
    own = envelope(prices=costs.overrides(settings))
    assert told(ends.completed(task, answer(), own)) == ("0.0000200000",) * 3


def test_what_failed_or_was_cancelled_costs_what_it_used(task: Task) -> None:
    assert told(ends.failed(task, errors.UpstreamError("x"), usage=USAGE, envelope=envelope())) == (KNOWN,) * 3
    assert (
        told(ends.cancelled(task, expected="in_progress", usage=USAGE, called=True, envelope=envelope()))
        == (KNOWN,) * 3
    )
    assert told(ends.failed(task, errors.UpstreamError("x"), envelope=envelope())) == (None,) * 3
    assert told(ends.cancelled(task, expected="queued")) == (None,) * 3


def test_an_unknown_price_is_null_and_never_nothing(task: Task) -> None:
    task.model = "sim"
    assert told(ends.completed(task, answer("sim"), envelope())) == (None,) * 3


@pytest.mark.parametrize("odd", [
    {"prompt_tokens": "ten", "completion_tokens": 2**40, "total_tokens": -1}, {"prompt_tokens": None, "total_tokens": None},
    {"prompt_tokens": 1.5, "completion_tokens_details": {"reasoning_tokens": "x"}}, {"total_tokens": {}},
])  # fmt: skip
def test_what_a_provider_says_oddly_is_not_said(task: Task, odd: dict[str, Any]) -> None:
    end = ends.completed(task, answer(usage=odd), envelope())
    row = orjson.loads(end.told.row)
    names = ("prompt_tokens", "completion_tokens", "tokens", "cached_tokens", "reasoning_tokens", "cost")
    assert [row[name] for name in names] == [None] * 6
    assert isinstance(end.tokens, int)


def test_a_total_that_is_not_told_is_the_sum(task: Task) -> None:
    end = ends.completed(task, answer(usage={"prompt_tokens": 3, "completion_tokens": 4.0}), envelope())
    assert (end.told.facts["tokens"], end.tokens) == (7, 7)


def test_masked_the_history_keeps_no_personal_data_and_the_task_and_dialog_stay_whole(task: Task) -> None:
    task.dialog = "07" + "1" * 32
    end = ends.completed(task, answer(), envelope(store="masked"))
    row = orjson.loads(end.told.row)
    assert row["exchange"] == {"message": "mail [email] or call [phone]", "response": "mail [email] or call [phone]"}
    assert row["response"]["choices"][0]["message"]["content"] == "mail [email] or call [phone]"
    assert row["response"]["usage"] == USAGE
    assert SAID.encode() in end.fields["result"]
    assert [said.body for said in end.messages] == [SAID, SAID]
    assert end.keeping.lasting
    failed = ends.failed(task, errors.UpstreamError(f"bad: {SAID}"), envelope=envelope(store="masked"))
    assert orjson.loads(failed.told.row)["message"] == "bad: mail [email] or call [phone]"


def test_with_metadata_alone_nothing_that_was_said_is_kept(task: Task) -> None:
    end = ends.completed(task, answer(), envelope(store="metadata"))
    row = orjson.loads(end.told.row)
    assert (row["exchange"], row["response"], end.keeping.lasting, row["cost"]) == (None, None, False, KNOWN)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"m*x": {"input": 1, "output": 1}}, "a * may only stand at the end"),
        ({"m": {"input": -1, "output": 1}}, "greater than or equal to 0"), ({"m": {"input": "dear", "output": 1}}, "valid decimal"),
        ({"m": {"input": 1}}, "Field required"), ({"m": {"input": "0.00000000001", "output": 1}}, "10 decimal places"),
        ({"": {"input": 1, "output": 1}}, "at least 1 character"), ({"m": {"input": 1, "output": 1, "tax": 1}}, "not permitted"),
        ({"m": {"input": "NaN", "output": 1}}, "finite"), ({"a\0": {"input": 1, "output": 1}}, "control characters"),
        ({f"m{n}": {"input": 1, "output": 1} for n in range(201)}, "at most 200"),
    ],
)  # fmt: skip
def test_wrong_prices_are_refused_with_what_is_wrong(wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("*", r"\*")):
        schemas.BotSettings.model_validate({"prices": wrong})


def test_prices_are_strings_on_the_wire_and_numbers_are_taken() -> None:
    settings = schemas.BotSettings.model_validate({"prices": {"m*": {"input": 0.15, "output": "1e-7", "reasoning": 3}}})
    told = settings.model_dump(mode="json")["prices"]
    assert told == {"m*": {"input": "0.15", "cached_input": None, "output": "0.0000001", "reasoning": "3"}}
    assert schemas.stored_settings({"prices": told}).prices == settings.prices
    shown = schemas.BotSettings.model_json_schema()["$defs"]["ModelPrice"]["properties"]["input"]
    assert shown["type"] == "string"


@pytest.mark.parametrize(
    ("store", "kept"),
    [
        ("all", f"The model's provider answered 400: {SAID}"),
        ("masked", "The model's provider answered 400: mail [email] or call [phone]"),
        ("metadata", "The model's provider answered 400."),
    ],
)
def test_what_a_provider_quotes_of_a_request_is_kept_as_the_request_is(task: Task, store: str, kept: str) -> None:
    error = errors.UpstreamRefused(f"The model's provider answered 400: {SAID}", status=400)
    end = ends.failed(task, error, envelope=envelope(store=store))
    assert orjson.loads(end.told.row)["message"] == kept
    assert store == "all" or "anna@" not in end.told.row.decode() + end.told.event.decode()


def test_what_another_that_was_asked_at_once_has_cost_is_on_every_bill(task: Task) -> None:
    also = (Spent("openai", "gpt-4o-mini", {"prompt_tokens": 100, "completion_tokens": 0, "total_tokens": 100}),)
    both = "0.0000222000"  # and 100 × 0.15
    taken = answer()
    taken.also = also
    broken = errors.UpstreamError("it broke", provider="openai")
    all_ends = [
        ends.completed(task, taken, envelope()),
        ends.failed(task, broken, usage=USAGE, model="gpt-4o-mini", envelope=envelope(), also=also),
        ends.cancelled(
            task, expected="in_progress", usage=USAGE, called=True, envelope=envelope(), provider="openai", also=also
        ),
    ]
    for end in all_ends:
        assert told(end) == (both, both, both)
        assert end.told.facts["tokens"] == end.tokens == 120
    alone = ends.cancelled(task, expected="in_progress", called=True, envelope=envelope(), also=also)
    assert told(alone)[0] == "0.0000150000"
