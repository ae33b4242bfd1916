"""`repliq chat`: a conversation in the terminal, streamed from the API."""

from __future__ import annotations

import contextlib
import datetime
import json
import locale
import sys
from collections.abc import Generator, Iterator

import click

from app.cli import probes, target
from app.cli.apiclient import Answer, ApiClient, events, read
from app.core import errors, texts
from app.core import settings as settings_

_TIMEOUT_S = 120.0  # between two pieces; the API sends a sign of life every few seconds
_DONE = "[DONE]"
_LEAVE, _RESET = "/quit", "/reset"
_TEXTS = {
    "unavailable": "error.unavailable",
    "overloaded": "error.unavailable",
    "too_many_waiters": "error.unavailable",
    "upstream_error": "error.upstream",
    "upstream_timeout": "error.upstream_timeout",
    "deadline_exceeded": "error.upstream_timeout",
    "upstream_rate_limited": "error.upstream_rate_limited",
    "content_filtered": "error.content_filtered",
    "internal_error": "error.internal",
}


class Refused(errors.RepliqError):
    """The API refused a message, or its answer broke off; the text is the user's."""


class Conversation:
    """What was said so far, and how to go on."""

    def __init__(self, client: ApiClient, *, model: str | None, user: str | None, language: str) -> None:
        self.client = client
        self.language = language
        self.messages: list[dict[str, str]] = []
        self._fixed: dict[str, object] = {"stream": True, "cancel_on_disconnect": True}
        self._fixed |= {name: value for name, value in {"model": model, "user": user}.items() if value}

    def say(self, message: str) -> Generator[str, None, None]:
        """Say something and yield the answer's pieces; raise `Refused`. Left early, the answer ends there and is cancelled."""
        asked = [*self.messages, {"role": "user", "content": message}]
        told: list[str] = []
        try:
            for piece in self._pieces({**self._fixed, "messages": asked}):
                told.append(piece)
                yield piece
        finally:
            if told:  # what was never answered is as if it had not been said
                self.messages = [*asked, {"role": "assistant", "content": "".join(told)}]

    def _pieces(self, body: dict[str, object]) -> Iterator[str]:
        with self.client.open("POST", "/v1/chat/completions", body) as response:
            if response.status != 200:
                raise Refused(self._refusal(read(response)))
            for _, _, data in events(response):
                if data == _DONE:
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise Refused(self._broken(chunk["error"]))
                for choice in chunk.get("choices", []):
                    yield choice["delta"].get("content") or ""
        raise Refused(texts.text("error.upstream", self.language))

    def _refusal(self, answer: Answer) -> str:
        """Say a refusal in the user's language; what is the caller's own fault, in the API's words."""
        if answer.code == "daily_limit_exceeded":
            resets_at = datetime.datetime.fromisoformat(answer.json["resets_at"]).astimezone()
            return texts.text(
                "limit.day", self.language, limit=answer.json["limit"], resets_at=f"{resets_at:%Y-%m-%d %H:%M}"
            )
        if answer.status == 429:
            return texts.text("limit.rate", self.language, seconds=answer.headers.get("Retry-After", "60"))
        if answer.status == 401:
            return f"{answer.detail} (--key, or API_KEYS)"
        return self._broken({"code": answer.code, "message": answer.detail})

    def _broken(self, error: dict[str, str]) -> str:
        known = _TEXTS.get(error.get("code") or "")
        return texts.text(known, self.language) if known else str(error.get("message"))


@click.command()
@click.option("--model", help="The model; default: the bot's.")
@click.option("--user", help="Whose limits count and whose history is kept; default: the key's own.")
@click.option("--language", type=click.Choice(["ru", "uk", "en"]), help="The language of what is not the model's.")
@click.option("--url", help="Where the API is; default: HOST and PORT of the settings, http://127.0.0.1:8000.")
@click.option("--key", help="The API key; default: the first of API_KEYS, else the one that `repliq up` made.")
def command(model: str | None, user: str | None, language: str | None, url: str | None, key: str | None) -> None:
    """Chat in the terminal.

    Ctrl-C stops an answer, /reset begins anew, /quit or Ctrl-D leaves. Without a terminal each line of standard
    input is a message, and the exit code is 1 when one was not answered.
    """
    given = settings_.load()
    client = ApiClient(url or probes.origin(given.host, given.port), key or target.api_key(given), _TIMEOUT_S)
    conversation = Conversation(
        client, model=model, user=user, language=texts.choose(language, locale.getlocale(locale.LC_CTYPE)[0])
    )
    sys.exit(_talk(conversation) if sys.stdin.isatty() else _answer_lines(conversation))


def _talk(conversation: Conversation) -> int:
    """Talk with a person until he leaves."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() edits lines once it is there
    prompt = f"{texts.text('chat.you', conversation.language)}> "
    while True:
        try:
            message = input(prompt).strip()
        except KeyboardInterrupt:  # at the prompt it clears the line, as in a shell
            click.echo()
            continue
        except EOFError:
            message = _LEAVE
            click.echo()
        if message == _LEAVE:
            click.echo(texts.text("chat.bye", conversation.language))
            return 0
        _turn(conversation, message)


def _answer_lines(conversation: Conversation) -> int:
    """Answer each line; return 1 when one was not answered."""
    failed = False
    for line in sys.stdin:
        message = line.strip()
        if message == _LEAVE:
            break
        failed |= not _turn(conversation, message)
    return int(failed)


def _turn(conversation: Conversation, message: str) -> bool:
    """Do what a line wants and print the answer as it comes; tell whether it came to its end."""
    if message == _RESET:
        conversation.messages = []
        return True
    if not message:
        return True
    told = False
    try:
        with contextlib.closing(conversation.say(message)) as pieces:
            for piece in pieces:
                click.echo(piece, nl=False)
                told = True
    except KeyboardInterrupt:  # leaving the stream cancels the task
        click.echo(" …")
        return False
    except errors.RepliqError as error:
        click.echo("\n" * told + str(error), err=True)
        return False
    click.echo()
    return True
