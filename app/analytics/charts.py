"""Charts as inline SVG: bars, lines, shares and a heat map. Colours are classes of the page's style; every text is escaped here."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 460, 230
_TOP, _BOTTOM, _RIGHT = 12, 26, 8
_LETTER = 8.2
"""What a letter of an axis takes at most, in the units of the drawing."""
_NEW_LINE = "\n"

Write = Callable[[float], str]


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """A row of values, one a label, None where there is nothing to show; `colour` is a class: c1, c2, …"""

    name: str
    colour: str
    values: Sequence[float | None]


def bars(
    title: str, labels: Sequence[str], series: Sequence[Series], write: Write, axis: Write, *, whole: bool = False
) -> str:
    """Draw a bar a label, the series one on top of the other; `whole`: there are no fractions of what is counted.

    `write` writes values where the reader points at them, `axis` those beside the chart.
    """
    sums = [sum(values) for values in zip(*([v or 0 for v in one.values] for one in series), strict=True)]
    frame = _Frame(labels, max(sums, default=0), axis, whole=whole)
    drawn = []
    for place, label in enumerate(labels):
        below, width = 0.0, frame.step * 0.64
        said = _NEW_LINE.join([label, *(f"{one.name}: {write(one.values[place] or 0)}" for one in series)])
        parts = []
        for one in series:
            value = one.values[place] or 0
            if value > 0:
                top, bottom = frame.y(below + value), frame.y(below)
                x = frame.middle(place) - width / 2
                parts.append(
                    f'<rect class="{one.colour}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{max(bottom - top, 1):.1f}"/>'
                )
                below += value
        if parts:
            drawn.append(f"<g><title>{_text(said)}</title>{''.join(parts)}</g>")
    return _figure(title, frame.drawn() + "".join(drawn))


def lines(title: str, labels: Sequence[str], series: Sequence[Series], write: Write, axis: Write) -> str:
    """Draw a line a series, interrupted where there is no value."""
    frame = _Frame(labels, max((v for one in series for v in one.values if v is not None), default=0), axis)
    drawn = []
    for one in series:
        path, dots, pen = [], [], "M"
        for place, value in enumerate(one.values):
            if value is None:
                pen = "M"
                continue
            x, y = frame.middle(place), frame.y(value)
            path.append(f"{pen}{x:.1f} {y:.1f}")
            pen, said = "L", _text(f"{labels[place]}{_NEW_LINE}{one.name}: {write(value)}")
            dots.append(
                f'<circle class="{one.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"><title>{said}</title></circle>'
            )
        drawn.append(f'<path class="line {one.colour}" d="{" ".join(path)}"/>{"".join(dots)}')
    return _figure(title, frame.drawn() + "".join(drawn))


def share(part: float, colour: str = "c1") -> str:
    """Draw a flat bar of a share of one, as wide as its place."""
    width = min(max(part, 0), 1) * 100
    return (
        '<svg class="share" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="6"/><rect class="{colour}" width="{width:.2f}" height="6"/></svg>'
    )


def heat(
    title: str, columns: Sequence[str], rows: Sequence[tuple[str, str, Sequence[float | None]]], write: Write
) -> str:
    """Draw shares of one as cells, the fuller the darker; a row has a name, a size, and its cells, as many as there are."""
    named = max((len(name) for name, _, _ in rows), default=0) * _LETTER + 14
    sized = max((len(size) for _, size, _ in rows), default=0) * _LETTER + 12
    cell, line = max(40.0, (WIDTH - named - sized) / max(1, len(columns))), 26
    drawn = [
        f'<text class="axis" x="{named + sized + (place + 0.5) * cell:.1f}" y="12" text-anchor="middle">{_text(name)}</text>'
        for place, name in enumerate(columns)
    ]
    for number, (name, size, cells) in enumerate(rows):
        y = 20 + number * line
        drawn.append(f'<text class="axis" x="0" y="{y + 17}">{_text(name)}</text>')
        drawn.append(
            f'<text class="axis strong" x="{named + sized - 12:.1f}" y="{y + 17}" text-anchor="end">{_text(size)}</text>'
        )
        for place, part in enumerate(cells):
            if part is not None:
                drawn.append(_cell(named + sized + place * cell, y, cell, line, part, write))
    width, height = named + sized + cell * len(columns), 22 + line * len(rows)
    return _figure(title, "".join(drawn), width, height)


def _cell(x: float, y: float, width: float, height: float, part: float, write: Write) -> str:
    strength = 0.06 + 0.94 * min(part, 1) ** 0.8 if part else 0.04
    ink = "on" if strength > 0.7 else "off"
    return (
        f'<rect class="c1" x="{x + 1:.1f}" y="{y + 1}" width="{width - 2:.1f}" height="{height - 2}" rx="3" fill-opacity="{strength:.2f}"/>'
        f'<text class="{ink}" x="{x + width / 2:.1f}" y="{y + 17}" text-anchor="middle">{_text(write(part))}</text>'
    )


class _Frame:
    """The axes of a chart, and where its values lie."""

    def __init__(self, labels: Sequence[str], most: float, write: Write, *, whole: bool = False) -> None:
        self.labels = labels
        self.ticks = ticks(most, whole=whole)
        self.write = write
        self.left = max(len(write(tick)) for tick in self.ticks) * _LETTER + 8
        self.step = (WIDTH - self.left - _RIGHT) / max(1, len(labels))

    def middle(self, place: int) -> float:
        return self.left + self.step * (place + 0.5)

    def y(self, value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _BOTTOM - _TOP) * value / self.ticks[-1]

    def drawn(self) -> str:
        grid = "".join(
            f'<line class="grid" x1="{self.left:.1f}" x2="{WIDTH - _RIGHT}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            f'<text class="axis" x="{self.left - 6:.1f}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{_text(self.write(tick))}</text>'
            for tick in self.ticks
        )
        names = "".join(
            f'<text class="axis" x="{self.middle(place):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{_text(label)}</text>'
            for place, label in enumerate(self.labels)
        )
        return grid + names


def ticks(most: float, *, whole: bool = False) -> list[float]:
    """Return round numbers from 0 to `most` or a little more, six of them at most."""
    if not most > 0:
        return [0.0, 1.0]
    rough = most / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = max(1.0, step) if whole else step
    count = math.ceil(round(most / step, 9))
    return [float(f"{step * number:.12g}") for number in range(count + 1)]


def _figure(title: str, drawn: str, width: float = WIDTH, height: float = HEIGHT) -> str:
    return f'<svg class="chart" role="img" viewBox="0 0 {width:.0f} {height:.0f}" aria-label="{_text(title)}">{drawn}</svg>'


def _text(value: str) -> str:
    return html.escape(value, quote=True)
