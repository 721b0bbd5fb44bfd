"""Charts as inline SVG, made of a few lines and rectangles; they take the width of the page that they are in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone

import numpy as np

from wprox.app.html.markup import Markup, escaped

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 34, 8, 8, 26
BARS = 30
DRAWN = 700  # points in one cloud, at most
SHOWN_LEVELS = 8
NAMED = 16  # rows of a heat map that have names beside them, at most
REAL, GENERATED = "real", "generated"  # classes of the style sheet


@dataclass
class Chart:
    """Axes in a rectangle of WIDTH × HEIGHT, and what is drawn in them.

    Attributes:
        x: the ends of the horizontal axis.
        y: the ends of the vertical axis.
        label: what it shows, for those who do not see it.
        kinds: what x and y count: "number", "whole" numbers, or a "date" in days since 1970.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    label: str
    kinds: tuple[str, str] = ("number", "number")
    parts: list[str] = field(default_factory=list)

    def place(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points of the axes in the rectangle; those outside come to lie on its rim."""
        u = (np.asarray(x, dtype=float) - self.x[0]) / (self.x[1] - self.x[0])
        v = (np.asarray(y, dtype=float) - self.y[0]) / (self.y[1] - self.y[0])
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + across * np.clip(u, 0, 1), TOP + down * (1 - np.clip(v, 0, 1))

    def bars(self, edges: np.ndarray, heights: np.ndarray, kind: str) -> Chart:
        """Filled rectangles from 0, one between each two edges."""
        left, top = self.place(edges[:-1], heights)
        right, bottom = self.place(edges[1:], np.zeros(len(heights)))
        path = "".join(
            f"M{a:.1f} {d:.1f}V{b:.1f}H{c:.1f}V{d:.1f}z" for a, b, c, d in zip(left, top, right, bottom, strict=True)
        )
        return self._path(path, f"{kind} fill")

    def steps(self, edges: np.ndarray, heights: np.ndarray, kind: str) -> Chart:
        """The outline of the same."""
        x, y = self.place(np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(heights, 2), [0.0]]))
        return self._path(_polyline(x, y), f"{kind} line")

    def line(self, x: np.ndarray, y: np.ndarray, kind: str) -> Chart:
        return self._path(_polyline(*self.place(x, y)), f"{kind} line")

    def points(self, x: np.ndarray, y: np.ndarray, kind: str) -> Chart:
        """A cloud: strokes of no length with round ends, which take few bytes."""
        u, v = self.place(x, y)
        return self._path("".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(u, v, strict=True)), f"{kind} dots")

    def _path(self, path: str, kind: str) -> Chart:
        self.parts.append(f'<path class="{kind}" d="{path}"/>')
        return self

    def svg(self, across: Sequence[str] | None = None, up: Sequence[str] | None = None) -> Markup:
        """The picture.

        Arguments:
            across: names of 0, 1, … on the horizontal axis, in place of numbers.
            up: the same of the vertical axis.
        """
        base = HEIGHT - BOTTOM
        axes = [f'<path class="axis" d="M{LEFT} {TOP}V{base}H{WIDTH - RIGHT}"/>']
        ticks = self._ticks() if across is None else _named(across, max(2, 44 // max(1, len(across))))
        for value, text in ticks:
            u = float(self.place(np.array([value]), np.zeros(1))[0][0])
            axes.append(f'<text x="{u:.1f}" y="{base + 15}" text-anchor="middle">{escaped(text)}</text>')
        says = (lambda value: date(value)[:4]) if self.kinds[1] == "date" else number  # there is room for the year
        for value, text in [(v, says(v)) for v in ticks_between(*self.y)] if up is None else _named(up, 5):
            v = float(self.place(np.zeros(1), np.array([value]))[1][0])
            axes.append(f'<text x="{LEFT - 4}" y="{v + 4:.1f}" text-anchor="end">{escaped(text)}</text>')
        return drawing(WIDTH, HEIGHT, self.label, [*self.parts, *axes])

    def _ticks(self) -> list[tuple[float, str]]:
        kind = self.kinds[0]
        ticks = ticks_between(*self.x, most=3 if kind == "date" else 5)
        return [(x, date(x) if kind == "date" else number(x)) for x in ticks if kind != "whole" or x == round(x)]


def _named(names: Sequence[str], room: int) -> list[tuple[float, str]]:
    """Names at 0, 1, …, cut to so many letters."""
    return [(k, name if len(name) <= room else name[: room - 1] + "…") for k, name in enumerate(names)]


def drawing(width: float, height: float, label: str, parts: Sequence[str]) -> Markup:
    """An SVG element that is as wide as there is room."""
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escaped(label)}">'
    return Markup(head + "".join(parts) + "</svg>")


def number(value: float) -> str:
    """A number in few digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = f"{value:.3g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2g}"
    return digits.replace("e+0", "e").replace("e-0", "e-").replace("e+", "e").replace("-", "−")


def fixed(value: float, sign: str = "") -> str:
    """A number with three digits after the point; with a sign in any case where `sign` is "+"."""
    if math.isnan(value):
        return "no number"
    return f"{value:{sign}.3f}".replace("-", "−")


def percent(part: float) -> str:
    return f"{100 * part:.1f}\N{NO-BREAK SPACE}%"


def date(days: float) -> str:
    """The day that is so many days after the first of 1970."""
    try:
        return (datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(days=days)).strftime("%Y-%m-%d")
    except OverflowError:
        return "beyond dates"


def ticks_between(low: float, high: float, most: int = 5) -> list[float]:
    """A few round numbers between two, 1, 2 or 5 times a power of 10 apart."""
    rough = (high - low) / most
    if not (math.isfinite(rough) and rough > 0):
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next((factor for factor in (1, 2, 5) if factor * power >= rough), 10)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)] or [low]


def _polyline(x: np.ndarray, y: np.ndarray) -> str:
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def window(values: np.ndarray, cut: float = 0.002) -> tuple[float, float]:
    """The ends of an axis for values; single far ones do not set it."""
    low, high = (float(end) for end in np.quantile(values, (cut, 1 - cut)))
    margin = 0.04 * (high - low)
    if not (math.isfinite(margin) and margin > 0):
        margin = max(abs(low), 1.0) * 0.5
    return low - margin, high + margin


def thinned(x: np.ndarray) -> np.ndarray:
    """The places of points that are drawn: all, or some of them at random, the same ones each time."""
    return np.arange(len(x)) if len(x) <= DRAWN else np.random.default_rng(0).choice(len(x), DRAWN, replace=False)


def heat_map(matrix: np.ndarray, names: Sequence[str], label: str) -> Markup:
    """Numbers between −1 and 1 as colours, one square an entry."""
    d, left = len(names), 90 if len(names) <= NAMED else 0
    side = (300 - left) / d
    parts = [
        f'<text x="{left - 4}" y="{(k + 0.5) * side + 4:.1f}" text-anchor="end">{escaped(name)}</text>'
        for k, name in (_named(names, 12) if left else ())
    ]
    for j in range(d):
        for k in range(d):
            value = matrix[j, k]
            kind = "none" if math.isnan(value) else "plus" if value >= 0 else "minus"
            opacity = 1.0 if math.isnan(value) else min(1.0, abs(value))
            said = f"{names[j]} – {names[k]}: {fixed(value)}"
            parts.append(
                f'<rect class="{kind}" x="{left + k * side:.1f}" y="{j * side:.1f}" width="{side:.1f}" '
                f'height="{side:.1f}" fill-opacity="{opacity:.2f}"><title>{escaped(said)}</title></rect>'
            )
    return drawing(300, 300 - left, label, parts)
