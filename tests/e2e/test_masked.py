"""A bot whose content is kept masked, with prices of its own: whole in Redis and in answers, masked in PostgreSQL, and priced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.stack import Stack, eventually

MAIL, PHONE, CARD = "anna@example.com", "+380501234567", "4111 1111 1111 1111"
SAID = f"I am {MAIL}, {PHONE}, {CARD}."
MASKED = "I am [email], [phone], [card]."

Call = Callable[..., Any]


@pytest.fixture(scope="module")
def bot(stack: Stack) -> tuple[str, str]:
    """Make a bot that masks; return its id and a key."""
    settings = {"store_content": "masked", "prices": {"sim*": {"input": "1", "output": "2"}}}
    status, _, made = stack.call("POST", "/v1/bots", {"name": "Masked", "settings": settings})
    assert status == 201, made
    assert made["settings"]["prices"] == {
        "sim*": {"input": "1", "cached_input": None, "output": "2", "reasoning": None}
    }
    given = {"name": "k", "scopes": ["chat", "dialogs", "history"]}
    status, _, key = stack.call("POST", f"/v1/bots/{made['id']}/keys", given)
    assert status == 201, key
    return made["id"], key["key"]


@pytest.fixture
def call(stack: Stack, bot: tuple[str, str]) -> Call:
    def make(method: str, path: str, body: Any = None) -> Any:
        status, _, answer = stack.call(method, path, body, key=bot[1])
        assert status < 300, answer
        return answer

    return make


def kept(stack: Stack, bot: str) -> str:
    """Return everything of a bot that PostgreSQL has."""
    tables = ("request_history", "ai_chat_requests", "dialogs", "dialog_messages")
    found = []
    for table in tables:
        mine = (
            "dialog_id IN (SELECT id FROM dialogs WHERE bot_id = %s)" if table == "dialog_messages" else "bot_id = %s"
        )
        found += [row[0] for row in stack.rows(f"SELECT t::text FROM {table} t WHERE {mine}", bot)]
    return "\n".join(found)


def ended(stack: Stack, bot: str, count: int) -> None:
    final = "SELECT count(*) FROM request_history WHERE bot_id = %s AND status <> 'pending'"
    eventually(lambda: stack.rows(final, bot)[0][0] == count, 30)


def test_what_was_said_is_whole_for_the_user_and_masked_in_postgres(
    stack: Stack, bot: tuple[str, str], call: Call
) -> None:
    answer = call("POST", "/v1/chat/send", {"telegram_id": 4711, "message": SAID})
    assert MAIL in answer["response"], "the model was told it"
    dialog = call(
        "POST",
        "/v1/dialogs",
        {"user_id": "anna", "title": f"of {MAIL}", "initial_message": {"role": "user", "content": SAID}},
    )
    reply = call("POST", f"/v1/dialogs/{dialog['id']}/reply", {"content": f"again {PHONE}"})
    assert PHONE in str(reply)
    task = call(
        "POST",
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": SAID}], "model": "sim", "background": True},
    )
    task = call("GET", f"/v1/tasks/{task['id']}?wait=20")
    assert MAIL in str(task["result"]), "the task's own result is whole"
    usage = task["usage"]
    assert task["cost"] == f"{(usage['prompt_tokens'] + 2 * usage['completion_tokens']) / 1_000_000:.10f}"
    ended(stack, bot[0], 3)
    wanted = "SELECT count(*) FROM dialog_messages m JOIN dialogs d ON d.id = m.dialog_id WHERE d.bot_id = %s"
    eventually(lambda: stack.rows(wanted, bot[0])[0][0] == 5, 30)
    found = kept(stack, bot[0])
    for secret in (MAIL, PHONE, CARD):
        assert secret not in found
    assert found.count(MASKED) >= 4
    assert "of [email]" in found
    page = call("GET", f"/v1/dialogs/{dialog['id']}/messages?order=asc")
    assert page["data"][0]["content"] == SAID, "the live dialog is whole"
    assert call("GET", "/v1/chat/history/4711")["data"][0]["message"] == MASKED
    costs = [cost for (cost,) in stack.rows("SELECT cost FROM request_history WHERE bot_id = %s", bot[0])]
    assert all(cost > 0 for cost in costs)
    assert call("GET", "/v1/chat/stats/4711")["today"]["cost"] is not None


def test_what_stopped_half_way_costs_what_came(stack: Stack, bot: tuple[str, str], call: Call) -> None:
    task = call("POST", "/v1/chat/completions", {
        "messages": [{"role": "user", "content": "x"}], "model": "sim:hangup=3,words=20", "stream": True, "background": True,
    })  # fmt: skip
    task = call("GET", f"/v1/tasks/{task['id']}?wait=20")
    assert task["status"] == "failed"
    usage = task["usage"]
    assert task["cost"] == f"{(usage['prompt_tokens'] + 2 * usage['completion_tokens']) / 1_000_000:.10f}"
    _, _, metrics = stack.call("GET", "/metrics")
    told = [
        line
        for line in metrics.decode().splitlines()
        if line.startswith("chat_cost_usd_total{") and 'provider="openai"' in line
    ]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in told) > 0
