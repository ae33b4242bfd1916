"""Hides what is personal from a model's provider: placeholders stand for it in the request, and are replaced again in the answer.

`[EMAIL_1]` is of letters that tokenizers know and of a form that models repeat; where one changes its case, puts a blank or Markdown's
backslash into it or leaves the brackets out it is known all the same. What a request itself holds of that form is never given out as
a placeholder, and what was not hidden in this very request is never put in anywhere.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Set
from typing import Any

import orjson

from app.core import masking

_NOTE = (
    "In the messages, names in brackets such as {} stand for data that was taken out. Where you mean such data, write the name"
    " exactly as it is, brackets included."
)
# What says how a request is to be read, and files: nothing in them is told to anybody as text.
_FILES = frozenset({"image_url", "input_audio", "file"})
_LEFT = _FILES | {
    "model", "role", "type", "id", "tool_call_id", "name", "format", "service_tier", "reasoning_effort", "pattern", "$ref", "$id",
    "$schema",
}  # fmt: skip
_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_WORDS = [kind.upper() for kind in masking.KINDS]
_MAY_BEGIN = re.compile(rf"[\[\\%【{''.join({word[0] for word in _WORDS})}]")
_LONGEST = 48  # characters of a placeholder, whatever was put into it


def _beginnings(words: list[str]) -> str:
    """Return a pattern of what words may begin with, the longest ones first."""
    found = {word[:length] for word in words for length in range(len(word))}
    return "|".join(sorted((re.escape(part) for part in found if part), key=len, reverse=True)) + "|"


class _Form:
    """How placeholders are written in a text: alone, or in JSON, where a backslash is two.

    `whole` finds them; `partial` finds, at a text's end, what may yet become one.
    """

    def __init__(self, backslash: str, escape: Callable[[str], str]) -> None:
        self.escape = escape
        slash, half = f"(?:{backslash})?", "|".join(backslash[:length] for length in range(len(backslash), 0, -2))
        parts = [
            (rf"(?:{slash}\[|%5B|【)", rf"(?:{half}|%5|%)"),
            (r"[ \u00a0]{0,2}", None),
            (f"({'|'.join(sorted(_WORDS, key=len, reverse=True))})", f"(?:{_beginnings(_WORDS)})"),
            (rf"(?:{slash}_|[ \u00a0\u2011-])", rf"(?:{half}|)"),
            (r"([0-9]{1,6})", ""),
            (r"[ \u00a0]{0,2}", None),
            (rf"(?:{slash}\]|%5D|】)", rf"(?:{half}|%5|%|)"),
        ]
        kind, joint, number = parts[2][0], rf"{slash}_", parts[4][0]
        bare = rf"(?-i:(?<!\w){kind}{joint}{number}(?!\w))"
        self.whole = re.compile("".join(whole for whole, _ in parts) + "|" + bare, re.IGNORECASE)
        begun = [
            "".join(whole for whole, _ in parts[:count]) + part
            for count, (_, part) in enumerate(parts)
            if part is not None
        ]
        names = _beginnings(_WORDS).removesuffix("|")
        begun += [rf"(?-i:(?<!\w)(?:{names}|{kind}(?:{half}|)|{kind}{joint}[0-9]{{0,6}}))"]
        self.partial = re.compile(rf"(?:{'|'.join(begun)})\Z", re.IGNORECASE)


_PLAIN = _Form(r"\\", lambda value: value)
_JSON = _Form(r"\\\\", lambda value: json.dumps(value, ensure_ascii=False)[1:-1])


class Shield:
    """Hides and reveals for one call."""

    def __init__(self) -> None:
        self._placeholders: dict[tuple[str, str], str] = {}
        self._values: dict[tuple[str, int], str] = {}
        self._numbers: dict[str, int] = {}
        self._taken: set[tuple[str, int]] = set()
        self._content = _PLAIN
        self._held: dict[tuple[Any, ...], _Held] = {}
        self._last: dict[str, Any] = {}

    # The request

    def hide(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of a request in which what is personal is replaced, the same by the same; what is no text stays."""
        form = body.get("response_format")
        if isinstance(form, dict) and form.get("type") in ("json_schema", "json_object"):
            self._content = _JSON
        self._taken.update(_names_in(body))
        hidden = self._hidden({name: value for name, value in body.items() if name != "metadata"})
        if "metadata" in body:
            hidden["metadata"] = self._hidden(body["metadata"], frozenset())
        return _with_note(hidden, next(iter(self._placeholders.values()))) if self._placeholders else hidden

    def _hidden(self, whole: Any, left: Set[str] = _LEFT) -> Any:
        """Return a copy of a JSON value in which every text is hidden but for those under the names in `left`."""
        made = [whole]
        within: list[Any] = [made]  # not the interpreter's stack: how deep a document is its sender decides
        while within:
            container = within.pop()
            for place, item in list(container.items()) if isinstance(container, dict) else enumerate(container):
                if place in left and (isinstance(item, str) or place in _FILES):
                    continue
                if isinstance(item, str):
                    container[place] = self._arguments(item) if place == "arguments" else self._text(item)
                elif isinstance(item, dict | list):
                    container[place] = item.copy()
                    within.append(container[place])
        return made[0]

    def _text(self, value: str) -> str:
        return masking.marked(value, self._placeholder)

    def _arguments(self, value: str) -> str:
        """Hide in a tool call's arguments, which stay JSON; a number that is hidden becomes a string."""
        try:
            whole = [orjson.loads(value)]
            changed = self._hide_within(whole)
            return orjson.dumps(whole[0]).decode() if changed else value
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):  # none, or nested too deeply to be written
            return self._text(value)

    def _hide_within(self, document: list[Any]) -> bool:
        within: list[Any] = [document]
        changed = False
        while within:
            container = within.pop()
            for place, item in list(container.items()) if isinstance(container, dict) else enumerate(container):
                if isinstance(item, dict | list):
                    within.append(item)
                elif isinstance(item, str) or (isinstance(item, int) and not isinstance(item, bool)):
                    hidden = self._text(str(item))
                    if hidden != str(item):
                        container[place], changed = hidden, True
        return changed

    def _placeholder(self, kind: str, found: str) -> str:
        value = self._revealed(found, _PLAIN) if "[" in found else found  # where one rule's find holds another's
        known = self._placeholders.get((kind, value))
        if known is not None:
            return known
        number = self._numbers.get(kind, 0) + 1
        while (kind, number) in self._taken:
            number += 1
        self._numbers[kind] = number
        self._values[kind, number] = value
        made = self._placeholders[kind, value] = f"[{kind.upper()}_{number}]"
        return made

    # The answer

    def reveal(self, text: str) -> str:
        """Return a text of the answer with what was hidden."""
        return self._revealed(text, self._content)

    def answer(self, answer: bytes) -> bytes:
        """Return a chat.completion, as JSON, with what was hidden; what is not one stays."""
        if not self._values:
            return answer
        try:
            body = orjson.loads(answer)
        except orjson.JSONDecodeError:
            return answer
        for choice in (body.get("choices") if isinstance(body, dict) else None) or []:
            for container, name, form in self._places(choice.get("message") or {}):
                container[name] = self._revealed(container[name], form)
        return orjson.dumps(body)

    def _revealed(self, text: str, form: _Form) -> str:
        return form.whole.sub(lambda found: self._value(found, form), text) if self._values else text

    def _value(self, found: re.Match[str], form: _Form) -> str:
        value = self._values.get(_name(found))
        return found[0] if value is None else form.escape(value)

    def _places(self, message: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, _Form]]:
        """Go through the texts of a message, or of a piece of one: where each is, its name there, and how it is written."""
        for name in _TEXTS:
            if isinstance(message.get(name), str):
                yield message, name, self._content if name == "content" else _PLAIN
            elif isinstance(message.get(name), list):
                yield from (
                    (part, "text", self._content) for part in message[name] if isinstance(part.get("text"), str)
                )
        for call in [*(message.get("tool_calls") or []), {"function": message.get("function_call")}]:
            for kind, name, form in (("function", "arguments", _JSON), ("custom", "input", _PLAIN)):
                inside = call.get(kind)
                if isinstance(inside, dict) and isinstance(inside.get(name), str):
                    yield inside, name, form

    # The answer, piece by piece

    def chunks(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what may be told now of a stream's chunk: what might be the beginning of a placeholder waits for what follows."""
        if not self._values:
            return [chunk]
        choices = [{**choice, "delta": copy.deepcopy(choice.get("delta"))} for choice in chunk.get("choices") or []]
        chunk = self._last = {**chunk, "choices": choices}
        silent = bool(choices) and not chunk.get("usage")
        for choice in choices:
            delta = choice["delta"] or {}
            had_text = had_more = False
            for place, container, name, form in self._streamed(choice.get("index", 0), delta):
                held = self._held.setdefault(place, _Held(form))
                container[name] = self._told(held, container[name])
                had_text, had_more = True, had_more or bool(container[name])
            if choice.get("finish_reason"):
                self._add_rest(choice)
            others = delta.keys() - {*_TEXTS, "tool_calls"} or any(
                "id" in call for call in delta.get("tool_calls") or []
            )
            silent = silent and had_text and not had_more and not others and not choice.get("finish_reason")
        return [] if silent else [chunk]

    def rest(self) -> list[dict[str, Any]]:
        """Return what still waits, as chunks: the stream is over."""
        indices = sorted({place[0] for place, held in self._held.items() if held.waits})
        choices = [{"index": index, "delta": {}, "logprobs": None, "finish_reason": None} for index in indices]
        for choice in choices:
            self._add_rest(choice)
        kept = {name: value for name, value in self._last.items() if name not in ("choices", "usage")}
        return [{**kept, "choices": [choice]} for choice in choices]

    def _streamed(
        self, index: int, delta: dict[str, Any]
    ) -> Iterator[tuple[tuple[Any, ...], dict[str, Any], str, _Form]]:
        for name in _TEXTS:
            if isinstance(delta.get(name), str):
                yield (index, name), delta, name, self._content if name == "content" else _PLAIN
        for call in delta.get("tool_calls") or []:
            for kind, name, form in (("function", "arguments", _JSON), ("custom", "input", _PLAIN)):
                inside = call.get(kind)
                if isinstance(inside, dict) and isinstance(inside.get(name), str):
                    yield (index, "tool_calls", call.get("index", 0), kind, name), inside, name, form
        inside = delta.get("function_call")
        if isinstance(inside, dict) and isinstance(inside.get("arguments"), str):
            yield (index, "function_call"), inside, "arguments", _JSON

    def _told(self, held: _Held, piece: str) -> str:
        """Take a piece of a text; return what may be told of it, and of what was held back before."""
        if not held.waits and not _MAY_BEGIN.search(piece):
            held.before = held.text = piece[-1:] or held.before
            return piece
        text = held.text + piece
        begun = held.form.partial.search(text, max(len(held.before), len(text) - _LONGEST))
        cut = begun.start() if begun else len(text)
        told, at = [], len(held.before)
        for found in held.form.whole.finditer(text, at, cut):
            told += [text[at : found.start()], self._value(found, held.form)]
            at = found.end()
        told.append(text[at:cut])
        held.before = text[max(0, cut - 1) : cut]
        held.text = held.before + text[cut:]
        return "".join(told)

    def _add_rest(self, choice: dict[str, Any]) -> None:
        """Put what is held back of a choice into the delta of its last chunk."""
        delta = choice["delta"] = choice.get("delta") or {}
        for place, held in self._held.items():
            if place[0] != choice.get("index", 0):
                continue
            rest = self._end(held)
            if not rest:
                continue
            if place[1] == "tool_calls":
                calls = delta.setdefault("tool_calls", [])
                call = next((call for call in calls if call.get("index", 0) == place[2]), None)
                if call is None:
                    calls.append(call := {"index": place[2]})
                inside, name = call.setdefault(place[3], {}), place[4]
            elif place[1] == "function_call":
                inside, name = delta.setdefault("function_call", {}), "arguments"
            else:
                inside, name = delta, place[1]
            inside[name] = (inside.get(name) or "") + rest

    def _end(self, held: _Held) -> str:
        """Return all that is held back: nothing follows."""
        text, at, told = held.text, len(held.before), []
        for found in held.form.whole.finditer(text, at):
            told += [text[at : found.start()], self._value(found, held.form)]
            at = found.end()
        told.append(text[at:])
        held.before = held.text = text[-1:]
        return "".join(told)


class _Held:
    """What of a text is held back; `before` is the character before it, which `text` begins with."""

    def __init__(self, form: _Form) -> None:
        self.form = form
        self.before = ""
        self.text = ""

    @property
    def waits(self) -> bool:
        return len(self.text) > len(self.before)


def _name(found: re.Match[str]) -> tuple[str, int]:
    return (found[1] or found[3]).lower(), int(found[2] or found[4])


def _names_in(body: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Find what looks like a placeholder in the request itself."""
    within: list[Any] = [body]
    while within:
        item = within.pop()
        if isinstance(item, str):
            capitals = item.upper()
            if any(word in capitals for word in _WORDS):  # costs a fiftieth of the patterns
                yield from (_name(found) for form in (_PLAIN, _JSON) for found in form.whole.finditer(item))
        elif isinstance(item, dict | list):
            within.extend(item.values() if isinstance(item, dict) else item)


def _with_note(body: dict[str, Any], example: str) -> dict[str, Any]:
    """Tell the model what the placeholders are, in its first instructions where there are any."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        return body
    note, first = _NOTE.format(example), messages[0]
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        return body | {"messages": [{**first, "content": f"{first['content']}\n\n{note}"}, *messages[1:]]}
    return body | {"messages": [{"role": "system", "content": note}, *messages]}
