"""Curves of a training log as inline SVG. A run draws them again and again, so this must take milliseconds.

Colours are variables of page.css, so that curves are readable on light and dark pages.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

LOGIT_NAMES = ("D.real", "D.fake")
PANELS: dict[str, Callable[[str], bool]] = {  # {title: whether it shows a loss of this name}
    "Losses of G": lambda name: name.startswith("G."),
    "Losses of D": lambda name: name.startswith("D.") and name not in LOGIT_NAMES,
    "D's mean logits (above 0: real)": lambda name: name in LOGIT_NAMES,
}
WIDTH, HEIGHT = 400, 210  # of a panel, in units of its SVG
LEFT, RIGHT, TOP, BOTTOM = 56, 394, 8, 170  # edges of the plot in it
MAX_INTERVALS = 300  # intervals of a long curve, one per pixel or so
MAX_NUMBER = 1e30  # of a log: nan, inf and larger numbers are left out
NUM_COLORS = 8  # --curve-0 … --curve-7 of page.css
DASHES = ("", "6 3", "2 3", "8 3 2 3")

Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """A plot. strokes: {name of the curve: its SVG attributes}, for a legend."""

    title: str
    strokes: Mapping[str, Markup]
    svg: Markup


def plot_curves(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """The logged losses over the images seen; no panels if there are fewer than two lines."""
    if len(lines) < 2:
        return []
    names = dict.fromkeys(name for line in lines for name in line)
    panels = []
    for title, is_in_panel in PANELS.items():
        curves = {name: points for name in names if is_in_panel(name) and (points := _find_points(lines, name))}
        if curves:
            strokes = {name: _stroke(number) for number, name in enumerate(curves)}
            panels.append(Panel(title, strokes, _draw(title, curves, strokes)))
    return panels


def _find_points(lines: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    points = [(line["images"], line[name]) for line in lines if isinstance(line.get(name), (int, float))]
    return thin([point for point in points if all(abs(number) < MAX_NUMBER for number in point)])


def thin(points: list[Point]) -> list[Point]:
    """Keep the lowest and the highest point of each of MAX_INTERVALS intervals: spikes stay visible.

    >>> len(thin([(x, x % 7) for x in range(10_000)]))
    600
    """
    if len(points) <= 2 * MAX_INTERVALS:
        return points
    edges = [len(points) * i // MAX_INTERVALS for i in range(MAX_INTERVALS + 1)]
    parts = [points[start:end] for start, end in itertools.pairwise(edges)]
    return [point for part in parts for point in sorted({extreme(part, key=lambda p: p[1]) for extreme in (min, max)})]


def find_ticks(low: float, high: float) -> list[float]:
    """Two to six round numbers from low to high.

    >>> find_ticks(0.03, 1.0)
    [0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 5
    exponent = math.floor(math.log10(rough))
    step = next(factor * 10.0**exponent for factor in (1, 2, 5, 10) if factor * 10.0**exponent >= rough * 0.999)
    return [
        round(i * step, max(0, -exponent))
        for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    ]


def _draw(title: str, curves: Mapping[str, list[Point]], strokes: Mapping[str, Markup]) -> Markup:
    (x0, x1), (y0, y1) = (_span([point[axis] for points in curves.values() for point in points]) for axis in (0, 1))

    def x(value: float) -> str:
        return f"{LEFT + (value - x0) / (x1 - x0) * (RIGHT - LEFT):.1f}"

    def y(value: float) -> str:
        return f"{BOTTOM - (value - y0) / (y1 - y0) * (BOTTOM - TOP):.1f}"

    parts = [Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, title)]
    for tick, label in _label(find_ticks(y0, y1)):
        parts.append(Markup(f'<path class="rule" d="M{LEFT} {y(tick)}H{RIGHT}"/>'))
        parts.append(Markup(f'<text x="{LEFT - 6}" y="{y(tick)}" dy="4" text-anchor="end">{label}</text>'))
    for tick, label in _label(find_ticks(x0, x1)):
        anchor = "end" if tick > x0 + 0.95 * (x1 - x0) else "middle"
        parts.append(Markup(f'<path class="rule" d="M{x(tick)} {BOTTOM}v5"/>'))
        parts.append(Markup(f'<text x="{x(tick)}" y="{BOTTOM + 17}" text-anchor="{anchor}">{label}</text>'))
    parts.append(Markup(f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">images seen</text>'))
    for name, points in curves.items():
        line = " ".join(f"{x(images)},{y(value)}" for images, value in points)
        parts.append(Markup("<polyline {} points='{}'><title>{}</title></polyline>").format(strokes[name], line, name))
    return Markup("").join([*parts, Markup("</svg>")])


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and the highest value, apart from each other even if all are equal."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = abs(low) / 10 or 1.0
        low, high = low - margin, high + margin
    return low, high


def _stroke(number: int) -> Markup:
    dash = DASHES[number // NUM_COLORS % len(DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return Markup(f'stroke="var(--curve-{number % NUM_COLORS})"{dashes}')


def _label(ticks: Sequence[float]) -> list[tuple[float, str]]:
    """[(tick, its text)], with as many decimals as their distance needs."""
    places = -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9)
    if places > 6 or max(map(abs, ticks)) >= 1e7:
        return [(tick, f"{tick:.3g}") for tick in ticks]
    return [(tick, f"{tick:,.{max(0, places)}f}") for tick in ticks]
