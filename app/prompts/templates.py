"""Texts as Liquid templates: parsed once, refused with the place of the mistake, rendered within bounds whatever they say.

Who writes them is no friend of ours: a template costs at most `MOST_STEPS` (an iteration of a loop costs as many as its body has
nodes, a filter one and more for long values), `MOST_CPU_S` of its thread's time, `MOST_BYTES` of output, and names `MOST_NAMES` of its
own. It sees the values that it is given, as data: no file, no clock, no other template, and no value is ever parsed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TextIO

import liquid
from liquid.builtin.expressions.primitive import RangeLiteral
from liquid.builtin.tags import for_tag
from liquid.exceptions import LiquidError, ResourceLimitError

from app.core import errors
from app.prompts import filters
from app.prompts.schemas import MOST_TEXT

MOST_BYTES = 200_000
MOST_STEPS = 20_000
MOST_CPU_S = 0.2
MOST_RANGE = 10_000
MOST_NAMES = 100
MOST_TAG = 1_000
"""Characters between the two ends of one tag."""
_MOST_RAW = 20
_TAGS = (
    "assign", "break", "capture", "case", "comment", "continue", "for", "if", "unless", "#", "content", "output", "illegal",
)  # fmt: skip  # the last three are not tags, but what else a template is made of

_OPENING = re.compile(r"\{\{|\{%")
_MUCH_SPACE = re.compile(r"\s{101}")
_RAW = re.compile(r"\{%-?\s{0,100}(?:raw|doc)\b")
_BROKEN = (LiquidError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError, RecursionError)


class TemplateError(errors.InvalidRequest):
    """A template that cannot be taken, or not be rendered; `line` and `column` count from 1, 0 where the place is not known."""

    def __init__(self, message: str, text: str = "", at: int = -1, *, param: str | None = None) -> None:
        self.line = text.count("\n", 0, at) + 1 if at >= 0 else 0
        self.column = at - text.rfind("\n", 0, at) if at >= 0 else 0
        self.told = message
        where = f" (line {self.line}, column {self.column})" if self.line else ""
        place = {"line": self.line, "column": self.column} if self.line else {}
        super().__init__(f"{message}{where}", param=param, members=place)


@dataclasses.dataclass(frozen=True, slots=True)
class Template:
    """A parsed text. `names`: what it wants to be given -> where it does so first."""

    text: str
    names: Mapping[str, int]
    bound: liquid.BoundTemplate = dataclasses.field(repr=False)


def parse(text: str) -> Template:
    """Parse a text; raise `TemplateError` with the place of the first mistake."""
    if len(text) > MOST_TEXT:
        raise TemplateError(f"must be at most {MOST_TEXT} characters, and is {len(text)}")
    _check_delimiters(text)
    try:
        bound = _ENVIRONMENT.from_string(text)
        _prepare(bound)
        analysis = bound.analyze()
    except LiquidError as error:
        raise _told(text, error) from None
    except RecursionError:
        raise TemplateError("is nested too deeply") from None
    for name, spans in analysis.filters.items():
        if name not in _ENVIRONMENT.filters:
            raise TemplateError(f"there is no filter '{name[:80]}'", text, spans[0].index)
    return Template(text, {name: found[0].span.index for name, found in analysis.globals.items()}, bound)


def check(text: str, names: Iterable[str]) -> Template:
    """Parse a text that may use these names and no others; raise `TemplateError`."""
    template = parse(text)
    allowed = set(names)
    for name, at in sorted(template.names.items(), key=lambda item: item[1]):
        if name not in allowed:
            raise TemplateError(f"'{name[:80]}' is not a variable of this prompt; declare it", text, at)
    return template


def render(template: Template, values: Mapping[str, Any]) -> str:
    """Return a template's text for some values, without space around it; raise `TemplateError` where it cannot be had within bounds."""
    try:
        return template.bound.render(dict(values)).strip()
    except _BROKEN as error:
        raise _told(template.text, error) from None


class Cache:
    """Remembers parsed texts, the latest used: at most so many, and so many characters in all. Thread-safe."""

    def __init__(self, most: int = 256, most_characters: int = 1_000_000) -> None:
        self._most, self._most_characters = most, most_characters
        self._known: collections.OrderedDict[str, Template] = collections.OrderedDict()
        self._characters = 0
        self._lock = threading.Lock()

    def parsed(self, text: str) -> Template:
        """Return a text's template; raise `TemplateError`."""
        with self._lock:
            found = self._known.get(text)
            if found is not None:
                self._known.move_to_end(text)
                return found
        made = parse(text)
        with self._lock:
            if text not in self._known:
                self._known[text] = made
                self._characters += len(text)
            while len(self._known) > self._most or (self._characters > self._most_characters and len(self._known) > 1):
                dropped, _ = self._known.popitem(last=False)
                self._characters -= len(dropped)
        return made


def _check_delimiters(text: str) -> None:
    """Refuse what the library's patterns would look at over and over: ends that never come, and much space within a tag."""
    at = 0
    while (found := _OPENING.search(text, at)) is not None:
        opening = found.start()
        closing = "}}" if found[0] == "{{" else "%}"
        end = text.find(closing, opening + 2, opening + 2 + MOST_TAG)
        if end < 0:
            raise TemplateError(f"'{found[0]}' has no '{closing}' within {MOST_TAG} characters", text, opening)
        if _MUCH_SPACE.search(text, opening, end):
            raise TemplateError("more than 100 spaces within a tag", text, opening)
        at = end + 2
    if len(_RAW.findall(text)) > _MOST_RAW:
        raise TemplateError(f"more than {_MOST_RAW} raw blocks")


def _told(text: str, error: BaseException) -> TemplateError:
    """Return the library's error as ours. What Python itself says is no sentence for an author, but for the kind of it."""
    if isinstance(error.__cause__, RecursionError) or isinstance(error, RecursionError):
        return TemplateError("is nested too deeply")
    if not isinstance(error, LiquidError):
        return TemplateError(f"cannot be rendered: {type(error).__name__}")
    token = error.token
    at = -1 if token is None else len(text) if token.start_index < 0 else min(token.start_index, len(text))
    return TemplateError(str(error.message)[:300], text, at)


class _Context(liquid.RenderContext):
    """What one rendering has used up."""

    __slots__ = ("_steps", "_until", "weights")

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._steps = 0
        self._until = time.thread_time() + MOST_CPU_S
        self.weights: list[int] = []

    def charge(self, steps: int) -> None:
        """Count steps; raise `ResourceLimitError` at the end of them, or of the time."""
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise ResourceLimitError(f"takes more than {MOST_STEPS} steps", token=None)
        if time.thread_time() > self._until:
            raise ResourceLimitError(f"takes longer than {MOST_CPU_S} s", token=None)

    def assign(self, key: str, val: Any) -> None:
        self.charge(1)
        self.locals[key] = val
        if len(self.locals) > MOST_NAMES:
            raise ResourceLimitError(f"more than {MOST_NAMES} names", token=None)

    @contextlib.contextmanager
    def loop(self, namespace: Mapping[str, object], forloop: Any) -> Iterator[liquid.RenderContext]:
        forloop.it = self._counted(forloop.it, self.weights[-1] if self.weights else 1)
        with super().loop(namespace, forloop) as context:
            yield context

    def _counted(self, items: Iterator[Any], weight: int) -> Iterator[Any]:
        for item in items:
            self.charge(weight)
            yield item


class _Bound(liquid.BoundTemplate):
    context_class = _Context


class _Range(RangeLiteral):
    """A range of bounded length: the library would make a list of it to go through it backwards, or look through all of it."""

    __slots__ = ()

    def _make_range(self, start: Any, stop: Any) -> range:
        for bound in (start, stop):
            if isinstance(bound, float) and not abs(bound) < 2**53:
                raise ResourceLimitError("a range's bound is too large", token=self.token)
        made = super()._make_range(start, stop)
        if made.stop - made.start > MOST_RANGE:
            raise ResourceLimitError(f"a range of more than {MOST_RANGE} numbers", token=self.token)
        return made


class _For(for_tag.ForNode):
    """A loop each of whose iterations costs what its body has nodes."""

    __slots__ = ("weight",)

    weight: int

    def render_to_output(self, context: liquid.RenderContext, buffer: TextIO) -> int:
        assert isinstance(context, _Context)
        context.weights.append(self.weight)
        try:
            return super().render_to_output(context, buffer)
        finally:
            context.weights.pop()


class _ForTag(for_tag.ForTag):
    node_class = _For


class _Environment(liquid.Environment):
    block_nesting_limit = 12
    context_depth_limit = 20
    loop_iteration_limit = MOST_STEPS
    output_stream_limit = MOST_BYTES
    template_class = _Bound

    def __init__(self) -> None:
        super().__init__(undefined=liquid.FalsyStrictUndefined)
        self.add_tag(_ForTag)
        self.tags = {name: tag for name, tag in self.tags.items() if name in _TAGS}
        filters.restrict(self)


def _prepare(bound: liquid.BoundTemplate) -> None:
    """Weigh the loops, and bound the ranges."""
    context = bound.context_class(bound)
    for node in bound.nodes:
        _weigh(node, context)


def _weigh(node: liquid.Node, context: liquid.RenderContext) -> int:
    for expression in node.expressions():
        _bound_ranges(expression)
    weight = 1 + sum(_weigh(child, context) for child in node.children(context))
    if isinstance(node, _For):
        node.weight = weight
        return 1  # its body is charged by its iterations
    return weight


def _bound_ranges(expression: liquid.Expression) -> None:
    if type(expression) is RangeLiteral:
        expression.__class__ = _Range
    for child in expression.children():
        _bound_ranges(child)


_ENVIRONMENT = _Environment()
