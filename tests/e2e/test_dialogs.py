"""Dialogs over HTTP, with answers given in them by a real worker."""

from __future__ import annotations

import concurrent.futures
import json
import threading
import time
import urllib.parse
from typing import Any

import openai
import pytest

from tests.e2e.test_chat import lines
from tests.stack import KEY, Stack, eventually


def make(stack: Stack, user: str = "u", *, key: str = KEY, **members: Any) -> dict[str, Any]:
    status, headers, dialog = stack.call("POST", "/v1/dialogs", {"user_id": user, **members}, key=key)
    assert status == 201, dialog
    assert headers["location"] == f"/v1/dialogs/{dialog['id']}"
    return dict(dialog)


def append(stack: Stack, dialog: str, content: str, role: str = "user", **members: Any) -> dict[str, Any]:
    status, _, message = stack.call(
        "POST", f"/v1/dialogs/{dialog}/messages", {"role": role, "content": content, **members}
    )
    assert status == 201, message
    return dict(message)


def said(stack: Stack, dialog: str, *, key: str = KEY, query: str = "limit=100") -> list[tuple[int, str, str]]:
    status, _, page = stack.call("GET", f"/v1/dialogs/{dialog}/messages?{query}", key=key)
    assert status == 200, page
    return [(message["seq"], message["role"], message["content"]) for message in page["data"]]


def bot_with(stack: Stack, **settings: Any) -> str:
    """Make a bot; return its key."""
    status, _, bot = stack.call("POST", "/v1/bots", {"name": "another", "settings": settings})
    assert status == 201, bot
    scopes = ["chat", "dialogs", "history"]
    status, _, made = stack.call("POST", f"/v1/bots/{bot['id']}/keys", {"name": "k", "scopes": scopes})
    assert status == 201, made
    return str(made["key"])


def test_a_dialog_is_made_read_changed_and_deleted(stack: Stack) -> None:
    dialog = make(
        stack, "reader", title="Plans", metadata={"shop": 7}, initial_message={"role": "user", "content": "hello"}
    )
    assert {name: dialog[name] for name in ("object", "user_id", "title", "status", "metadata", "message_count", "version")} == {
        "object": "dialog", "user_id": "reader", "title": "Plans", "status": "active", "metadata": {"shop": 7}, "message_count": 1,
        "version": 2,
    }  # fmt: skip
    assert [message["content"] for message in dialog["messages"]] == ["hello"]
    path = f"/v1/dialogs/{dialog['id']}"
    _, headers, read = stack.call("GET", path)
    assert read == {name: value for name, value in dialog.items() if name != "messages"}
    assert stack.call("PATCH", path, {"title": "New"}, headers={"If-Match": '"99"'})[0] == 412
    status, headers, changed = stack.call("PATCH", path, {"title": "New"}, headers={"If-Match": headers["etag"]})
    assert (status, changed["title"], changed["metadata"], headers["etag"]) == (
        200,
        "New",
        {"shop": 7},
        f'"{changed["version"]}"',
    )
    assert stack.call("PATCH", path, {"title": "Late"}, headers={"If-Match": f'"{read["version"]}"'})[0] == 412
    assert stack.call("PATCH", path, {"title": None, "metadata": {}})[2]["metadata"] == {}
    assert stack.call("DELETE", path)[0] == 204
    for method, part, body in (
        ("GET", "", None), ("DELETE", "", None), ("GET", "/messages", None), ("GET", "/context", None), ("POST", "/archive", None),
        ("POST", "/messages", {"role": "user", "content": "x"}), ("POST", "/reply", {"content": "x"}), ("PATCH", "", {"title": "x"}),
    ):  # fmt: skip
        status, _, problem = stack.call(method, path + part, body)
        assert (status, problem["error"]["code"]) == (404, "not_found"), part


def test_a_repeated_append_is_the_same_message(stack: Stack) -> None:
    dialog = make(stack)["id"]
    first = append(stack, dialog, "once", id="mine-1", metadata={"a": "|7|{"})
    assert append(stack, dialog, "once", id="mine-1") == first
    assert (first["id"], first["seq"], first["metadata"]) == ("mine-1", 1, {"a": "|7|{"})
    body = {"role": "user", "content": "keyed"}
    answers = [
        stack.call("POST", f"/v1/dialogs/{dialog}/messages", body, headers={"Idempotency-Key": "k1"}) for _ in range(2)
    ]
    assert answers[0][2] == answers[1][2]
    assert answers[1][1]["idempotency-replayed"] == "true"
    assert said(stack, dialog) == [(1, "user", "once"), (2, "user", "keyed")]


def test_messages_come_in_pages_both_ways(stack: Stack) -> None:
    dialog = make(stack)["id"]
    operations = [{"op": "append", "dialog_id": dialog, "role": "user", "content": f"m{n}"} for n in range(1, 121)]
    status, _, batch = stack.call("POST", "/v1/dialogs/batch", {"operations": operations})
    assert status == 200
    assert [result["message"]["seq"] for result in batch["results"]] == list(range(1, 121))
    for order, expected in (("asc", list(range(1, 121))), ("desc", list(range(120, 0, -1)))):
        found, cursor = [], ""
        while cursor is not None:
            _, _, page = stack.call("GET", f"/v1/dialogs/{dialog}/messages?order={order}&limit=33{cursor}")
            found += [message["seq"] for message in page["data"]]
            cursor = page["next_cursor"] and f"&cursor={page['next_cursor']}"
        assert found == expected
    assert stack.call("GET", f"/v1/dialogs/{dialog}/messages?cursor=nonsense")[2]["error"]["code"] == "bad_cursor"


def test_one_failing_operation_does_not_stop_the_others(stack: Stack) -> None:
    dialog = make(stack)["id"]
    operations = [
        {"op": "create", "user_id": "batcher", "initial_message": {"role": "user", "content": "hi"}},
        {"op": "append", "dialog_id": "dlg_00" + "0" * 32, "role": "user", "content": "x"},
        {"op": "append", "dialog_id": dialog, "role": "nobody", "content": "x"},
        {"op": "archive", "dialog_id": dialog},
        {"op": "append", "dialog_id": dialog, "role": "user", "content": "too late"},
        {"op": "fly"},
        {"op": "delete", "dialog_id": dialog},
    ]
    status, _, body = stack.call("POST", "/v1/dialogs/batch", {"operations": operations})
    assert status == 200
    assert [result["status"] for result in body["results"]] == [201, 404, 422, 200, 409, 422, 204]
    assert body["results"][0]["dialog"]["messages"][0]["content"] == "hi"
    assert body["results"][4]["error"]["code"] == "dialog_archived"
    assert stack.call("POST", "/v1/dialogs/batch", {"operations": [{"op": "fly"}] * 501})[0] == 422


def test_an_archived_dialog_is_closed_until_it_is_restored(stack: Stack) -> None:
    dialog = make(stack, "archivist", initial_message={"role": "user", "content": "kept"})["id"]
    path = f"/v1/dialogs/{dialog}"
    assert stack.call("POST", path + "/archive")[2]["status"] == "archived"
    for part, body in (("/messages", {"role": "user", "content": "x"}), ("/reply", {"content": "x"})):
        status, headers, problem = stack.call("POST", path + part, body)
        assert (status, problem["error"]["code"], headers["x-should-retry"]) == (409, "dialog_archived", "false")
    assert stack.complete("x", dialog_id=dialog)[0] == 409
    assert [found["id"] for found in stack.call("GET", "/v1/dialogs?user_id=archivist&status=archived")[2]["data"]] == [
        dialog
    ]
    assert stack.call("GET", "/v1/dialogs?user_id=archivist&status=active")[2]["data"] == []
    assert stack.call("POST", path + "/restore")[2]["status"] == "active"
    append(stack, dialog, "again")
    assert said(stack, dialog) == [(1, "user", "kept"), (2, "user", "again")]


def test_a_reply_sees_the_dialog_and_both_sides_are_kept(stack: Stack) -> None:
    dialog = make(stack, "talker")["id"]
    for question in ("first", "second"):
        status, headers, body = stack.call("POST", f"/v1/dialogs/{dialog}/reply", {"content": question})
        assert status == 200, body
        assert headers["x-task-id"].startswith("task_")
    answer = body["choices"][0]["message"]["content"]
    assert 'You said: "second". Before that: "first".' in answer
    assert "system prompt of" in answer, "the bot's own prompt comes first"
    assert [(seq, role) for seq, role, _ in said(stack, dialog)] == [
        (1, "user"),
        (2, "assistant"),
        (3, "user"),
        (4, "assistant"),
    ]
    assert said(stack, dialog)[3][2] == answer
    status, _, context = stack.call("GET", f"/v1/dialogs/{dialog}/context")
    assert [message["role"] for message in context["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    window = context["window"]
    assert (window["messages"], window["max_messages"], window["fullness"], window["left_out"]) == (4, 10, 0.4, 0)
    _, _, small = stack.call("GET", f"/v1/dialogs/{dialog}/context?max_messages=2")
    assert [message["content"] for message in small["messages"][1:]] == ["second", answer]
    assert (small["window"]["fullness"], small["window"]["left_out"]) == (1.0, 2)


def test_a_reply_may_be_streamed_or_in_the_background(stack: Stack) -> None:
    dialog = make(stack, "streamer")["id"]
    _, events = lines(stack, "POST", f"/v1/dialogs/{dialog}/reply", {"content": "stream it", "stream": True})
    assert events[-1]["data"] == "[DONE]"
    chunks = [json.loads(event["data"]) for event in events[:-1]]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    status, _, task = stack.call("POST", f"/v1/dialogs/{dialog}/reply", {"content": "later", "background": True})
    assert (status, task["dialog_id"], task["user"]) == (202, dialog, "streamer")
    done = stack.wait_for(task["id"])
    assert done["status"] == "completed"
    found = said(stack, dialog)
    assert [content for _, _, content in found[:3]] == ["stream it", text, "later"]
    for member in ("messages", "user", "dialog_id"):
        assert stack.call("POST", f"/v1/dialogs/{dialog}/reply", {"content": "x", member: "y"})[0] == 422


def test_the_sdk_answers_in_a_dialog(stack: Stack) -> None:
    dialog = make(stack, "sdk", initial_message={"role": "user", "content": "My name is Ada."})["id"]
    with openai.OpenAI(base_url=f"http://127.0.0.1:{stack.port}/v1", api_key=KEY) as client:
        messages: Any = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Who am I?"}]},
        ]
        answer = client.chat.completions.create(model="sim", messages=messages, extra_body={"dialog_id": dialog})
    assert '"My name is Ada."' in (answer.choices[0].message.content or "")
    assert [(role, content) for _, role, content in said(stack, dialog)] == [
        ("user", "My name is Ada."), ("user", "Who am I?"), ("assistant", answer.choices[0].message.content),
    ]  # fmt: skip


def test_a_failed_answer_leaves_the_dialog_as_it_was(stack: Stack) -> None:
    dialog = make(stack, "unlucky", initial_message={"role": "user", "content": "before"})["id"]
    status, _, _ = stack.call("POST", f"/v1/dialogs/{dialog}/reply", {"content": "x", "model": "sim:error=400"})
    assert status >= 400
    assert said(stack, dialog) == [(1, "user", "before")]


def test_answers_at_once_stay_pairs_in_the_order_of_their_questions(stack: Stack) -> None:
    dialog = make(stack, "hasty")["id"]
    tasks = []
    for n, delay in enumerate((400, 0, 200, 0, 100, 0)):
        body = {"content": f"question {n}", "background": True, "model": f"sim:delay={delay}"}
        tasks.append(stack.call("POST", f"/v1/dialogs/{dialog}/reply", body)[2]["id"])
    answers = [stack.wait_for(task)["result"]["choices"][0]["message"]["content"] for task in tasks]
    expected = [part for n, answer in enumerate(answers) for part in (f"question {n}", answer)]
    found = said(stack, dialog)
    assert [content for _, _, content in found] == expected
    assert [seq for seq, _, _ in found] == list(range(1, 13))
    assert "Before that:" in answers[1], "the second was asked with the first's answer in sight"


def test_messages_to_the_bot_at_once_are_answered_in_order(stack: Stack) -> None:
    tasks = []
    for n in range(5):
        _, _, task = stack.call(
            "POST", "/v1/chat/send", {"user_id": "rapid", "message": f"q{n}"}, headers={"Prefer": "respond-async"}
        )
        tasks.append(task["id"])
    dialogs = {stack.wait_for(task)["dialog_id"] for task in tasks}
    assert len(dialogs) == 1
    found = said(stack, dialogs.pop())
    assert [content for _, role, content in found if role == "user"] == [f"q{n}" for n in range(5)]
    assert [role for _, role, _ in found] == ["user", "assistant"] * 5


def test_a_cancelled_task_makes_way_for_the_next_of_its_dialog(stack: Stack) -> None:
    dialog = make(stack, "canceller")["id"]
    bodies = [{"content": f"c{n}", "background": True, "model": "sim:delay=700" if n == 0 else "sim"} for n in range(4)]
    tasks = [stack.call("POST", f"/v1/dialogs/{dialog}/reply", body)[2]["id"] for body in bodies]
    assert stack.call("DELETE", f"/v1/tasks/{tasks[1]}")[2]["status"] == "cancelled"
    assert stack.call("DELETE", f"/v1/tasks/{tasks[0]}")[2]["status"] == "cancelled"
    assert [stack.wait_for(task)["status"] for task in tasks] == ["cancelled", "cancelled", "completed", "completed"]
    assert [content for _, role, content in said(stack, dialog) if role == "user"] == ["c2", "c3"]


def test_a_bot_may_have_the_second_refused(stack: Stack) -> None:
    key = bot_with(stack, when_busy="refuse")
    dialog = make(stack, key=key)["id"]
    path, body = f"/v1/dialogs/{dialog}/reply", {"content": "slow", "background": True, "model": "sim:delay=1500"}
    first = stack.call("POST", path, body, key=key)[2]["id"]
    status, headers, problem = stack.call("POST", path, {"content": "second"}, key=key)
    assert (status, problem["error"]["code"], headers["retry-after"]) == (409, "dialog_busy", "1")
    eventually(lambda: stack.call("GET", f"/v1/tasks/{first}", key=key)[2]["status"] == "completed", 10)
    assert stack.call("POST", path, {"content": "third"}, key=key)[0] == 200
    assert [content for _, role, content in said(stack, dialog, key=key) if role == "user"] == ["slow", "third"]


def test_what_leaves_the_context_is_folded_into_a_summary(stack: Stack) -> None:
    key = bot_with(stack, summaries=True, context_exchanges=2)
    dialog = make(stack, "chatty", key=key)["id"]
    path = f"/v1/dialogs/{dialog}"
    for n in range(7):
        assert stack.call("POST", path + "/reply", {"content": f"fact {n}"}, key=key)[0] == 200

    def summary_seq() -> int:
        return int(stack.call("GET", path + "/context", key=key)[2]["window"]["summary_seq"])

    eventually(lambda: summary_seq() >= 4, 20)
    context = stack.call("GET", path + "/context", key=key)[2]
    assert context["messages"][1]["role"] == "system"
    assert "fact 0" in context["messages"][1]["content"]
    assert len(said(stack, dialog, key=key)) == 14, "the messages stay whole"
    assert stack.call("POST", path + "/reply", {"content": "what do you know?"}, key=key)[0] == 200

    def on_record() -> int:
        tasks = stack.call("GET", "/v1/tasks?limit=100", key=key)[2]["data"]
        return [task["type"] for task in tasks].count("dialog.summary")

    eventually(lambda: on_record() >= 1, 10)
    assert on_record() <= 4, "it is done seldom"
    limits = stack.call("GET", "/v1/chat/limits/chatty", key=key)[2]
    assert limits["used"] == 8, "summaries are not the user's requests"


def test_fifty_writers_at_once_leave_a_dense_row_in_which_each_has_his_order(stack: Stack) -> None:
    dialog = make(stack, "crowd")["id"]
    start = threading.Barrier(50)

    def write(writer: int) -> list[int]:
        start.wait(30)
        return [append(stack, dialog, f"{writer}:{n}")["seq"] for n in range(4)]

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        seqs = list(pool.map(write, range(50)))
    assert all(mine == sorted(mine) for mine in seqs)
    assert sorted(seq for mine in seqs for seq in mine) == list(range(1, 201))
    found = said(stack, dialog) + said(stack, dialog, query="limit=100&order=desc")[::-1]
    assert [seq for seq, _, _ in found] == list(range(1, 201))
    for writer in range(50):
        assert [content for _, _, content in found if content.startswith(f"{writer}:")] == [
            f"{writer}:{n}" for n in range(4)
        ]


def test_lists_go_by_activity(stack: Stack) -> None:
    made = [make(stack, "lister", title=str(n))["id"] for n in range(3)]
    append(stack, made[0], "wake up")
    for _ in range(2):
        _, _, first = stack.call("GET", "/v1/dialogs?user_id=lister&limit=2")
        _, _, second = stack.call("GET", f"/v1/dialogs?user_id=lister&limit=2&cursor={first['next_cursor']}")
        assert [dialog["id"] for dialog in first["data"] + second["data"]] == [made[0], made[2], made[1]]
        assert second["next_cursor"] is None
        eventually(lambda: stack.rows("SELECT count(*) FROM dialogs WHERE user_id = 'lister'")[0][0] == 3, 10)


def test_a_forgotten_user_has_no_dialogs(stack: Stack) -> None:
    written = make(stack, "forgotten", initial_message={"role": "user", "content": "a secret"})["id"]
    eventually(lambda: stack.rows("SELECT count(*) FROM dialogs WHERE user_id = 'forgotten'")[0][0] == 1, 10)
    fresh = make(stack, "forgotten", initial_message={"role": "user", "content": "another secret"})["id"]
    assert stack.call("DELETE", "/v1/users/forgotten")[0] == 204
    for dialog in (written, fresh):
        assert stack.call("GET", f"/v1/dialogs/{dialog}")[0] == 404
    assert stack.call("GET", "/v1/dialogs?user_id=forgotten")[2]["data"] == []
    time.sleep(1)
    assert stack.rows("SELECT count(*) FROM dialogs WHERE user_id = 'forgotten'")[0][0] == 0


@pytest.mark.parametrize("lost", [":m", ":l", ":i", None])
def test_a_dialog_that_redis_lost_is_whole_again(stack: Stack, lost: str | None) -> None:
    dialog = make(stack, "loser", initial_message={"role": "user", "content": "one"})["id"]
    append(stack, dialog, "two", "assistant")
    eventually(lambda: stack.rows("SELECT count(*) FROM dialog_messages m JOIN dialogs d ON d.id = m.dialog_id WHERE d.id = %s",
                                  dialog.removeprefix("dlg_")[2:])[0][0] == 2, 10)  # fmt: skip
    with stack.store() as store:
        names = [
            name
            for name in store.scan_iter(f"*{dialog.removeprefix('dlg_')}*")
            if lost is None or name.endswith(lost.encode())
        ]
        assert store.delete(*names)
    status, _, body = stack.call("POST", f"/v1/dialogs/{dialog}/reply", {"content": "three"})
    assert status == 200, body
    assert [content for _, _, content in said(stack, dialog)][:3] == ["one", "two", "three"]


def test_a_message_is_found_within_two_seconds_in_any_form_of_its_words(stack: Stack) -> None:
    dialog = make(stack, "seeker", title="Shop")["id"]
    append(stack, dialog, "Warm up the dictionaries.")
    stack.call("GET", "/v1/dialogs/search?q=dictionary")  # the first search of a process loads them
    took = []
    for text, query in (
        ("Як піднялися продажі товарів перед доставкою", "товар доставці"),
        ("Книги о продажах <script>alert(1)</script>", "книга"),
        ("The deliveries were late", "delivery"),
    ):
        append(stack, dialog, text)

        def found(query: str = query) -> list[dict[str, Any]]:
            path = "/v1/dialogs/search?" + urllib.parse.urlencode({"q": query, "user_id": "seeker"})
            return list(stack.call("GET", path)[2]["data"])

        took.append(eventually(found, 10))
        hit = found()[0]
        assert (hit["dialog_id"], hit["title"], hit["user_id"]) == (dialog, "Shop", "seeker")
        assert "<mark>" in hit["snippet"]
        assert "<script>" not in hit["snippet"]
    assert min(took) < 2
    stack.call("POST", f"/v1/dialogs/{dialog}/archive")
    assert found()[0]["dialog_id"] == dialog, "archived ones are found, too"
    stack.call("DELETE", f"/v1/dialogs/{dialog}")
    eventually(lambda: not found(), 10)
