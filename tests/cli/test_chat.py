"""`repliq chat` against the whole product: what it prints, what it remembers, how it stops."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from app.cli.apiclient import ApiClient
from app.cli.chat import Conversation, Refused
from tests.cli.conftest import Command
from tests.stack import KEY, ROOT, Stack, eventually


def test_each_line_of_standard_input_is_answered_in_one_conversation(command: Command) -> None:
    done = command("chat", stdin="Hello there\n\nAnd again?\n/reset\nOnce more\n/quit\nNever asked\n")
    assert (done.returncode, done.stderr) == (0, "")
    first, second, third = done.stdout.splitlines()
    assert first.startswith('You said: "Hello there". (1 message')
    assert second.startswith('You said: "And again?". Before that: "Hello there". (3 messages')
    assert third.startswith('You said: "Once more". (1 message')


def test_a_limit_is_told_in_the_users_language(stack: Stack, command: Command) -> None:
    _, _, bot = stack.call("POST", "/v1/bots", {"name": "Limited", "settings": {"daily_limit": 1}})
    made = stack.call("POST", f"/v1/bots/{bot['id']}/keys", {"name": "k", "scopes": ["chat"]})[2]
    told = {}
    for language in ("ru", "uk", "en"):
        arguments = ("--key", made["key"], "--user", f"anna-{language}", "--language", language, "--model", "sim")
        done = command("chat", *arguments, stdin="a\nb\n")
        assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
        told[language] = done.stderr.split(" (1)")[0].split(" 1 ")[0].strip()
    assert told == {
        "ru": "Вы использовали все запросы на сегодня",
        "uk": "Ви використали всі запити на сьогодні",
        "en": "You have used all",
    }


def test_a_key_that_is_refused_and_an_api_that_is_away_are_told_in_a_line(command: Command) -> None:
    for arguments, said in (
        (("--key", "rq_nobodys"), "--key, or API_KEYS"),
        (("--url", "http://127.0.0.1:1"), "The API does not answer at http://127.0.0.1:1"),
        (("--url", "nonsense"), "is no address of an API"),
    ):
        done = command("chat", *arguments, stdin="a\n")
        assert done.returncode == 1
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_what_the_provider_does_wrong_is_told_in_the_users_language(command: Command) -> None:
    done = command("chat", "--model", "sim:status=500", "--language", "ru", stdin="a\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Ассистент сейчас не может ответить. Пожалуйста, попробуйте чуть позже.\n"


def _conversation(stack: Stack, model: str, user: str) -> Conversation:
    client = ApiClient(f"http://127.0.0.1:{stack.port}", KEY)
    return Conversation(client, model=model, user=user, language="en")


def test_an_answer_that_is_left_early_is_cancelled_and_its_beginning_kept(stack: Stack) -> None:
    conversation = _conversation(stack, "sim:words=400,tps=20", "stops")
    pieces = conversation.say("Tell me much.")
    first = [next(pieces) for _ in range(3)]
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "".join(first)}
    eventually(
        lambda: [task["status"] for task in stack.call("GET", "/v1/tasks?user=stops")[2]["data"]] == ["cancelled"], 30
    )


def test_what_was_not_answered_is_as_if_it_had_not_been_said(stack: Stack) -> None:
    conversation = _conversation(stack, "sim:status=500", "is-refused")
    with pytest.raises(Refused):
        list(conversation.say("Nobody hears this."))
    assert conversation.messages == []


def test_at_a_terminal_ctrl_c_stops_the_answer_and_ctrl_d_leaves(stack: Stack) -> None:
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-m", "app.cli", "chat", "--model", "sim:words=400,tps=20", "--language", "en"]
    child = subprocess.Popen(
        argv, env={**stack.env, "TERM": "dumb"}, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        _read_until(ours, "you> ")
        os.write(ours, b"Tell me much.\n")
        _read_until(ours, "You said")
        child.send_signal(signal.SIGINT)
        said = _read_until(ours, "you> ")
        assert " …" in said
        os.write(ours, b"\x04")
        assert "Goodbye!" in _read_until(ours, "Goodbye!")
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def _read_until(terminal: int, *words: str, timeout_s: float = 60) -> str:
    """Read what is printed until it holds all words."""
    said, until = b"", time.monotonic() + timeout_s
    while not all(word.encode() in said for word in words):
        assert select.select([terminal], [], [], max(0.0, until - time.monotonic()))[0], said
        said += os.read(terminal, 4096)
    return said.decode(errors="replace")
