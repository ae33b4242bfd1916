"""What models write, Markdown, as the HTML that Telegram takes: a safe part of it. What is not understood stays as it was written.

The outcome need not be well-formed where the Markdown was not; Telegram refuses it then, and the plain text is sent.
"""

from __future__ import annotations

import html
import re

_FENCE = re.compile(r"^[ ]{0,3}```([^\n`]*)\n(.*?)(?:\n[ ]{0,3}```[ ]*$|\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{1,20}")
_KEPT = re.compile("\x00(\\d+)\x00")
_RULES = (
    (re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$", re.MULTILINE), r"<b>\1</b>"),
    (re.compile(r"^([ \t]*)[-*+][ \t]+", re.MULTILINE), r"\1• "),
    (re.compile(r"\[([^\[\]\n]+)\]\((https?://[^\s()<>\"]+)\)"), r'<a href="\2">\1</a>'),
    (re.compile(r"\*\*(?=\S)(.+?)(?<=\S)\*\*"), r"<b>\1</b>"),
    (re.compile(r"(?<!\w)__(?=\S)(.+?)(?<=\S)__(?!\w)"), r"<b>\1</b>"),
    (re.compile(r"(?<![*\w])\*(?=[^\s*])(.+?)(?<=[^\s*])\*(?![*\w])"), r"<i>\1</i>"),
    (re.compile(r"(?<![\w_])_(?=[^\s_])(.+?)(?<=[^\s_])_(?![\w_])"), r"<i>\1</i>"),
    (re.compile(r"~~(?=\S)(.+?)(?<=\S)~~"), r"<s>\1</s>"),
)


def to_html(text: str) -> str:
    """Write Markdown as Telegram's HTML."""
    kept: list[str] = []

    def keep(made: str) -> str:
        kept.append(made)
        return f"\x00{len(kept) - 1}\x00"

    text = text.replace("\x00", "")
    text = _FENCE.sub(lambda found: keep(_block(found[1].strip(), found[2])), text)
    text = _CODE.sub(lambda found: keep(f"<code>{_escaped(found[1])}</code>"), text)
    text = _escaped(text)
    for pattern, made in _RULES:
        text = pattern.sub(made, text)
    return _KEPT.sub(lambda found: kept[int(found[1])], text)


def _block(language: str, code: str) -> str:
    if _LANGUAGE.fullmatch(language):
        return f'<pre><code class="language-{language}">{_escaped(code)}</code></pre>'
    return f"<pre>{_escaped(code)}</pre>"


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)
