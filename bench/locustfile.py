"""Load as real bots make it, for any deployment: 90 % messages sent, 5 % submitted to be read later, 5 % reads.

    uvx locust --locustfile bench/locustfile.py --host https://api.example.com --users 200 --spawn-rate 20 --run-time 5m --headless

Locust is no dependency of Repliq: this file alone needs it (`pip install locust` does as well as `uvx`). `REPLIQ_KEY` is the key of a
bot of its own, whose daily limit is put out of the way first: `repliq bots set BOT daily_limit=1000000`. Each of Locust's users is one
person: he waits for his answer, reads it for a while and writes again, so the load is `users / (answer's seconds + PAUSE_S)` a second.

`PAUSE_S` (10) is the mean pause, `PEOPLE` (100,000) how many there are to be, `MODEL` the model of what is submitted. A 429 or 503 is
told apart from a failure: the server did as it should, and the run says how often.

Not for figures of the product on one machine: `make bench` makes load a hundred times as cheaply.
"""

from __future__ import annotations

import os
import random

import locust

KEY = os.environ.get("REPLIQ_KEY", "")
PAUSE_S = float(os.environ.get("PAUSE_S", "10"))
PEOPLE = int(os.environ.get("PEOPLE", "100000"))
MODEL = os.environ.get("MODEL", "gpt-4o-mini")
# Short ones are many and long ones few, as in chats.
MESSAGES = (
    "Привіт! Чи є доставка до Львова?",
    "Здравствуйте, когда вы открыты?",
    "Hello",
    "How much is it?",
    "Спасибо!",
    "Can I return a book that I have read halfway?",
    "Напишіть, будь ласка, коротку відповідь клієнтові, який чекає на замовлення вже тиждень. " * 4,
)


@locust.events.test_start.add_listener
def refuse_to_start_without_a_key(environment: locust.env.Environment, **_: object) -> None:
    if not KEY:
        environment.runner.quit()
        raise SystemExit("REPLIQ_KEY is not set")


class Person(locust.FastHttpUser):
    """One user of a bot, as the bot's server speaks for him."""

    network_timeout = 90.0  # an answer may take SYNC_WAIT_SECONDS
    connection_timeout = 10.0

    def on_start(self) -> None:
        self.number = random.randrange(1, PEOPLE + 1)
        self.client.auth_header = None
        self.headers = {"Authorization": f"Bearer {KEY}"}

    def wait_time(self) -> float:
        return random.expovariate(1 / PAUSE_S)

    @locust.task(90)
    def send(self) -> None:
        body = {"telegram_id": self.number, "message": random.choice(MESSAGES)}
        self._call("POST", "/v1/chat/send", json=body)

    @locust.task(5)
    def submit_and_wait(self) -> None:
        messages = [{"role": "user", "content": random.choice(MESSAGES)}]
        body = {"model": MODEL, "user": f"tg:{self.number}", "messages": messages, "background": True}
        task = self._call("POST", "/v1/chat/completions", json=body)
        for _ in range(10):  # at most as long as such a task may live here
            if task is None or task["status"] in ("completed", "failed", "cancelled"):
                return
            task = self._call("GET", "/v1/tasks/{task_id}", task_id=task["id"], query="?wait=25")

    @locust.task(2)
    def look_at_the_limit(self) -> None:
        self._call("GET", "/v1/chat/limits/{user}", user=self.number)

    @locust.task(2)
    def look_at_the_history(self) -> None:
        self._call("GET", "/v1/chat/history/{user}", user=self.number, query="?limit=10")

    @locust.task(1)
    def look_at_the_figures(self) -> None:
        self._call("GET", "/v1/chat/stats/{user}", user=self.number)

    def _call(self, method: str, route: str, *, json: object = None, query: str = "", **names: object) -> dict | None:
        """Call a route, counted under its pattern; return what was answered, or None where there was nothing to go on with."""
        path = route.format(**names) + query
        with self.client.request(
            method, path, json=json, headers=self.headers, name=f"{method} {route}", catch_response=True
        ) as answer:
            if answer.status_code in (429, 503):
                answer.failure(f"refused: {answer.status_code}")
                return None
            if not 200 <= answer.status_code < 300:
                answer.failure(f"status {answer.status_code}")
                return None
            answer.success()
            return answer.json()
