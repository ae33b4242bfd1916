"""How a message is packed in Redis: `seq|tokens|role|mid|ts_ms|length of metadata|metadata and body`, byte for byte."""

from __future__ import annotations

from typing import NamedTuple

import orjson

MAX_IN_A_CALL = 100
ROLES = ("system", "user", "assistant", "tool")


class Said(NamedTuple):
    """A message to be appended; `meta` is JSON or ''."""

    mid: str
    role: str
    tokens: int
    meta: str
    body: str


class Message(NamedTuple):
    """A message of a dialog; `at_ms` since the epoch, `meta` JSON or ''."""

    seq: int
    tokens: int
    role: str
    mid: str
    at_ms: int
    meta: str
    body: str

    @property
    def details(self) -> dict[str, object]:
        """Return the metadata as an object."""
        return orjson.loads(self.meta) if self.meta else {}


def pack(message: Message) -> bytes:
    """Write a message as the scripts do."""
    meta = message.meta.encode()
    head = f"{message.seq}|{message.tokens}|{message.role}|{message.mid}|{message.at_ms}|{len(meta)}|"
    return head.encode() + meta + message.body.encode()


def unpack(packed: bytes) -> Message:
    """Read a packed message; the body may hold anything, `|` included."""
    seq, tokens, role, mid, at_ms, length, rest = packed.split(b"|", 6)
    cut = int(length)
    return Message(
        int(seq), int(tokens), role.decode(), mid.decode(), int(float(at_ms)), rest[:cut].decode(), rest[cut:].decode()
    )


def tokens_in(text: str) -> int:
    """Estimate a text's tokens: OpenAI's rule of thumb of four characters, two for Cyrillic, by its UTF-8 length."""
    return len(text.encode()) // 4 + 1
