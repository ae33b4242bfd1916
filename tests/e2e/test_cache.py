"""Answers without a model through a real queue and worker: one call for a hundred who ask at once, and whose answer is whose."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.test_chat import lines
from tests.stack import Stack, eventually

_PATIENT = {"Prefer": "wait=60"}
_names = itertools.count(1)


class Bot:
    """A bot of its own with a cache, and what was asked of the simulator for it."""

    def __init__(self, stack: Stack, **settings: Any) -> None:
        self.stack = stack
        self.model = f"sim:delay=300,key=cache{next(_names)}"
        made = {"name": "cached", "settings": {"daily_limit": 1000, "cache": "exact", "model": self.model, **settings}}
        self.id = _done(stack.call("POST", "/v1/bots", made))["id"]
        self.key = self.new_key("chat", "admin", "dialogs", "history")

    def new_key(self, *scopes: str) -> str:
        made = self.stack.call("POST", f"/v1/bots/{self.id}/keys", {"name": "k", "scopes": list(scopes)})
        return str(_done(made)["key"])

    def ask(
        self, content: str, user: str = "u1", *, headers: dict[str, str] | None = None, **members: Any
    ) -> tuple[int, Any, Any]:
        body = {"messages": [{"role": "user", "content": content}], "user": user, **members}
        return self.stack.call(
            "POST", "/v1/chat/completions", body, key=self.key, headers={**_PATIENT, **(headers or {})}
        )

    def send(self, message: str, user: str) -> tuple[int, Any, Any]:
        return self.stack.call(
            "POST", "/v1/chat/send", {"user_id": user, "message": message}, key=self.key, headers=_PATIENT
        )

    def get(self, path: str) -> Any:
        return _done(self.stack.call("GET", path, key=self.key))

    @property
    def calls(self) -> int:
        return int(self.stack.simulator.stats()["by_model"].get(self.model, 0))


def _done(answer: tuple[int, Any, Any]) -> Any:
    assert answer[0] < 300, answer
    return answer[2]


@pytest.fixture
def bot(stack: Stack) -> Bot:
    return Bot(stack)


def test_a_hundred_equal_requests_at_once_make_one_call(stack: Stack) -> None:
    bot = Bot(stack, model="sim:delay=1500,key=hundred", user_window=10)
    bot.model = "sim:delay=1500,key=hundred"
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda number: bot.ask("all of us ask this", f"u{number}"), range(100)))
    assert {status for status, _, _ in answers} == {200}
    assert len({body["choices"][0]["message"]["content"] for _, _, body in answers}) == 1
    assert bot.calls == 1
    told = [headers["x-cache"] for _, headers, _ in answers]
    assert (told.count("miss"), told.count("hit")) == (1, 99)
    paid = [body["usage"]["total_tokens"] for _, _, body in answers]
    assert sum(used > 0 for used in paid) == 1


def test_a_kept_answer_costs_nothing_and_is_marked(bot: Bot) -> None:
    _, _, first = bot.ask("again", "u1")
    status, headers, second = bot.ask("again", "u2")
    assert (status, headers["x-cache"], second["choices"]) == (200, "hit", first["choices"])
    assert 0 <= int(headers["age"]) < 60
    task = bot.get(headers["location"])
    assert (task["status"], task["cost"], task["usage"]["total_tokens"]) == ("completed", "0.0000000000", 0)
    assert bot.calls == 1


def test_a_streamed_request_is_told_a_kept_answer_as_a_stream(stack: Stack, bot: Bot) -> None:
    def stream(content: str) -> tuple[Any, str]:
        body = {"messages": [{"role": "user", "content": content}], "stream": True, "user": "u1"}
        response, events = lines(stack, "POST", "/v1/chat/completions", body, Authorization=f"Bearer {bot.key}")
        assert events[-1]["data"] == "[DONE]"
        chunks = [json.loads(event["data"]) for event in events[:-1]]
        return response, "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"])

    response, first = stream("told in pieces")
    assert response.headers["X-Cache"] == "miss"
    response, second = stream("told in pieces")
    assert (response.headers["X-Cache"], second) == ("hit", first)
    assert bot.ask("told in pieces", "u2")[2]["choices"][0]["message"]["content"] == first
    assert bot.calls == 1


def test_a_request_may_pass_by_the_cache(bot: Bot) -> None:
    bot.ask("fresh?")
    for header, marked in (
        ("no-cache", "bypass"),
        ("no-store", "bypass"),
        ("max-age=0", "miss"),
        ("max-age=600", "hit"),
    ):
        assert bot.ask("fresh?", headers={"Cache-Control": header})[1]["x-cache"] == marked, header
    assert bot.calls == 4


def test_one_users_dialog_never_answers_another(bot: Bot) -> None:
    """The same words, each in a dialog of his own: the first message of a dialog is everybody's, what follows is his."""
    for user, secret in (("anna", "my code is 1234"), ("boris", "my code is 9876")):
        assert bot.send(secret, user)[2]["cached"] is False
    told = {user: _done(bot.send("what is my code?", user)) for user in ("anna", "boris")}
    assert not any(one["cached"] for one in told.values())
    assert bot.calls == 4
    assert _done(bot.send("what is my code?", "clara"))["cached"] is False, "nobody's private answer is hers"
    assert _done(bot.send("what is my code?", "dora"))["cached"] is True, (
        "clara had no context: it is a common question"
    )


def test_what_a_user_is_told_from_the_cache_goes_into_his_dialog(bot: Bot) -> None:
    first = _done(bot.send("common question", "anna"))
    second = _done(bot.send("common question", "boris"))
    assert (second["cached"], second["tokens_used"], second["response"]) == (True, 0, first["response"])
    (dialog,) = bot.get("/v1/dialogs?user_id=boris")["data"]
    messages = bot.get(f"/v1/dialogs/{dialog['id']}/messages")["data"]
    assert [message["content"] for message in messages] == ["common question", first["response"]]


@pytest.mark.parametrize("counts", [True, False])
def test_a_kept_answer_counts_against_the_day_or_not_as_the_bot_has_it(stack: Stack, counts: bool) -> None:
    bot = Bot(stack, cache_counts=counts, daily_limit=10)
    for _ in range(2):
        bot.ask("counted?", "anna")
    assert bot.get("/v1/chat/limits/anna")["used"] == (2 if counts else 1)


def test_a_fixed_answer_is_given_without_a_call(bot: Bot) -> None:
    fixed = {"questions": ["Where are you?", "your address"], "answer": "12 Garden Street."}
    _done(bot.stack.call("POST", "/v1/answers", fixed, key=bot.key))
    status, headers, told = bot.send("where are YOU", "anna")
    assert (status, told["response"], told["cached"], headers["x-cache"]) == (200, "12 Garden Street.", True, "hit")
    assert bot.calls == 0
    (dialog,) = bot.get("/v1/dialogs?user_id=anna")["data"]
    assert len(bot.get(f"/v1/dialogs/{dialog['id']}/messages")["data"]) == 2


def test_who_waits_for_one_that_is_cancelled_is_answered_all_the_same(stack: Stack) -> None:
    bot = Bot(stack, model="sim:delay=2500,key=cancelled")
    bot.model = "sim:delay=2500,key=cancelled"
    leads = bot.ask("cancel me", "anna", background=True)[2]["id"]
    eventually(lambda: leads in stack.simulator.stats()["calls"], 30)
    waits = bot.ask("cancel me", "boris", background=True)[2]["id"]
    eventually(lambda: bot.get(f"/v1/tasks/{waits}")["reason"], 30)
    assert stack.call("DELETE", f"/v1/tasks/{leads}", key=bot.key)[0] == 200
    done: dict[str, Any] = {}
    eventually(lambda: done.update(bot.get(f"/v1/tasks/{waits}?wait=5")) or done["status"] == "completed", 60)
    assert bot.calls <= 2, "the answer that came for the cancelled one may do for the other, too"


def test_a_question_by_meaning_is_embedded_and_its_meaning_kept(stack: Stack) -> None:
    """The simulator's vectors know no meaning, so that only the way there and back is seen here."""
    bot = Bot(stack, cache="semantic")
    assert bot.ask("what does this mean", "anna")[0] == 200
    assert bot.ask("what does this mean", "anna")[1]["x-cache"] == "hit"
    assert bot.ask("what does that mean", "anna")[1]["x-cache"] == "miss"
    kept = "SELECT count(*), min(vector_dims(vector::vector)) FROM cached_meanings WHERE bot_id = %s"
    assert stack.rows(kept, bot.id) == [(2, 1536)]
    assert stack.call("DELETE", "/v1/users/anna", key=bot.key)[0] == 204
    assert stack.rows(kept, bot.id) == [(0, None)]
    assert bot.ask("what does this mean", "boris")[1]["x-cache"] == "miss"


def test_when_the_worker_of_who_asks_is_killed_all_who_wait_are_answered(stack: Stack) -> None:
    bot = Bot(stack, model="sim:delay=6000,key=killed")
    bot.model = "sim:delay=6000,key=killed"
    leads = bot.ask("kill whoever asks", "u0", background=True)[2]["id"]
    eventually(lambda: leads in stack.simulator.stats()["calls"], 30)
    waiting = [bot.ask("kill whoever asks", f"u{number}", background=True)[2]["id"] for number in range(1, 6)]
    eventually(lambda: {bot.get(f"/v1/tasks/{task}")["reason"] for task in waiting} == {"same_question"}, 30)
    (worker,) = stack.workers
    worker.kill()
    worker.start()
    stack.wait_for_workers("worker-0", timeout_s=60)
    done: list[Any] = []

    def ended() -> bool:
        done[:] = [bot.get(f"/v1/tasks/{task}") for task in (leads, *waiting)]
        return all(task["status"] == "completed" for task in done)

    eventually(ended, 60)
    assert len({task["result"]["choices"][0]["message"]["content"] for task in done}) == 1
    assert bot.calls == 2, "the one that was lost, and the one for all"
