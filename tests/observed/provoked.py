"""What may bring a secret into a log: requests that hold some, that are refused and quoted, faults of ours, and servers that go away."""

from __future__ import annotations

from typing import Any

import orjson

from app.core import ids, queue
from tests.observed.site import MARKS, SAID, USER, Site
from tests.stack import eventually

WRONG_KEY = "rq_visiblyfakewrong7Qz3mark9Xk2"
ALL = " ".join(SAID.values())


def everything(site: Site) -> list[str]:
    """Provoke it all; return what must not be found beside the marks: keys and secrets that the product has made."""
    made = _keys(site)
    _requests(site)
    _refusals(site)
    _fault_of_the_api(site)
    _fault_of_a_worker(site)
    _servers_go_away(site)
    return made


def _keys(site: Site) -> list[str]:
    """Use a bot of its own with a key of a provider that is stored, and one that is refused with it."""
    call = site.stack.call
    bot = call("POST", "/v1/bots", {"name": "Marked"})[2]["id"]
    key = call("POST", f"/v1/bots/{bot}/keys", {"name": "k", "scopes": ["chat", "admin"]})[2]["key"]
    assert call("PUT", "/v1/providers/leaky/key", {"api_key": MARKS["stored"]}, key=key)[0] == 200
    body = {"model": "refuses-the-key", "messages": [{"role": "user", "content": ALL}]}

    def is_used() -> bool:
        assert call("POST", "/v1/chat/completions", body, key=key)[0] == 502
        return site.leaky.messages[-1].headers.get("authorization") == f"Bearer {MARKS['stored']}"

    eventually(is_used, 30, every_s=1)
    status, _, told = call("POST", f"/v1/bots/{bot}/webhook-secret/rotate")
    assert status == 200, told
    secrets = [row[0] for row in site.stack.rows("SELECT webhook_secret FROM bots")]
    return [key, told["secret"], *secrets]


def _requests(site: Site) -> None:
    complete, call = site.stack.complete, site.stack.call
    assert complete(ALL, user=USER)[0] == 200
    assert complete(ALL, user=USER, model="shaky")[0] == 200
    status, _, task = complete(ALL, background=True, webhook_url=f"{site.hooks.url()}?token={MARKS['hook']}")
    assert status == 202
    eventually(lambda: any(message.json["data"]["id"] == task["id"] for message in site.hooks.messages), 60)
    assert call("POST", "/v1/chat/send", {"message": ALL, "user_id": USER}, key=MARKS["api"])[0] == 200
    body = {"model": "sim", "stream": True, "messages": [{"role": "user", "content": ALL}]}
    assert call("POST", "/v1/chat/completions", body, headers={"X-Request-ID": SAID["mail"]})[0] == 200


def _refusals(site: Site) -> None:
    complete, call = site.stack.complete, site.stack.call
    assert complete(ALL, model="refuses-the-key")[0] == 502
    assert complete(ALL, model="refuses-the-text")[0] == 502
    assert complete(ALL, model="broken")[0] in (502, 504)  # 500, which is repeated
    assert call("GET", "/v1/models", key=WRONG_KEY)[0] == 401
    assert call("GET", "/metrics", key=f"{MARKS['metrics']}-wrong")[0] == 401
    assert call("POST", "/v1/chat/completions", {"model": 5, "messages": ALL, ALL: MARKS["openai"]})[0] == 422


def _fault_of_the_api(site: Site) -> None:
    """Have an exception thrown whose message holds what was said and a key."""
    ref = ids.new_ref(0)
    with site.stack.store() as store:
        store.hset(
            site.stack.keys().of_task("task", ref), "attempt", f"{SAID['mail']} {SAID['phone']} {MARKS['openai']}"
        )
    assert site.stack.call("GET", f"/v1/tasks/task_{ref}")[0] == 500


def _fault_of_a_worker(site: Site) -> None:
    """Have a worker run a task whose record is not to be understood."""
    task = site.stack.complete(ALL)[1]["x-task-id"].removeprefix("task_")
    ref, keys = ids.new_ref(ids.shard_in(task)), site.stack.keys()
    with site.stack.store() as store:
        record: dict[Any, Any] = store.hgetall(keys.of_task("task", task))
        changed = {"state": "queued", "settled": "0", "attempt": "0", "request": orjson.dumps({"body": ALL})}
        store.hset(keys.of_task("task", ref), mapping=record | changed)
        message = queue.message("chat", "chat.complete", [queue.PLACE]).replace(queue.PLACE, ref)
        store.lpush(keys.queue("chat"), message)
    eventually(lambda: site.stack.call("GET", f"/v1/tasks/task_{ref}")[2]["status"] == "failed", 60)


def _servers_go_away(site: Site) -> None:
    """Take Redis and PostgreSQL away, and bring them back."""
    stack = site.stack
    stack.redis.stop()
    assert stack.complete(ALL)[0] == 503
    stack.redis.start()
    stack.let_in()
    stack.postgres.stop()
    stack.call("GET", "/v1/bots")
    stack.postgres.start()
    eventually(lambda: stack.complete(ALL)[0] == 200, 90)
