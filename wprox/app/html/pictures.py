"""The charts of a report: columns, pairs and latent points, real beside generated."""

from __future__ import annotations

import numpy as np

from wprox.app.html.charts import BARS, GENERATED, REAL, SHOWN_LEVELS, Chart, thinned, window
from wprox.app.html.comparison import LatentFit, Nearest
from wprox.app.html.markup import Markup
from wprox.metrics.columns import Column

JITTER = 0.3  # by which points at a text are spread, so that they do not hide each other


def marginal(real: Column, generated: Column) -> Markup:
    """The histogram of real entries, and the outline of that of generated ones."""
    label = f"{real.name}: real and generated entries"
    if real.kind == "text":
        shown = list(real.levels[:SHOWN_LEVELS])
        edges = np.arange(len(shown) + 1) - 0.5
        heights = [np.array([(part.known == k).mean() for k in range(len(shown))]) for part in (real, generated)]
        names: list[str] | None = shown
    else:
        edges, names = _edges(real.known, generated.known), None
        heights = [np.histogram(part.known, edges)[0] / max(1, len(part.known)) for part in (real, generated)]
    top = max(float(max(part.max() for part in heights)), 1e-9) * 1.08
    kind = "whole" if real.kind == "number" and edges[0] % 1 == 0.5 else real.kind
    chart = Chart((float(edges[0]), float(edges[-1])), (0.0, top), label, (kind, "number"))
    return chart.bars(edges, heights[0], REAL).steps(edges, heights[1], GENERATED).svg(names, up=())


def _edges(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """Bins over where most real entries are: one a value where these are few whole numbers."""
    both = np.concatenate([real, generated]) if len(real) else np.zeros(1)
    low, high = window(real if len(real) else both)
    whole = np.rint(both)
    if (both == whole).all() and np.ptp(whole) <= 2 * BARS:
        return np.arange(whole.min(), whole.max() + 2) - 0.5
    return np.linspace(low, high, BARS + 1)


def pair(first: Column, second: Column, axes: tuple[Column, Column], kind: str) -> Markup:
    """A cloud of rows in the plane of two columns, in the window of the real ones."""
    both = ~(np.isnan(first.values) | np.isnan(second.values))
    rows = np.flatnonzero(both)
    rows = rows[thinned(rows)]
    rng = np.random.default_rng(1)
    x, y = (
        column.values[rows] + (rng.uniform(-JITTER, JITTER, len(rows)) if column.kind == "text" else 0.0)
        for column in (first, second)
    )
    across, up = ((-0.5, len(axis.levels) - 0.5) if axis.kind == "text" else _window(axis) for axis in axes)
    label = f"{first.name} and {second.name}, {kind} rows"
    return Chart(across, up, label, (first.kind, second.kind)).points(x, y, kind).svg(_names(first), _names(second))


def _window(column: Column) -> tuple[float, float]:
    return window(column.known) if len(column.known) else (0.0, 1.0)


def _names(column: Column) -> list[str] | None:
    return list(column.levels) if column.kind == "text" else None


def distances(nearest: Nearest) -> Markup:
    """The distribution functions of the distances to the nearest training row."""
    top = float(np.quantile(np.concatenate([nearest.held_out, nearest.generated]), 0.99))
    chart = Chart((0.0, top if top > 0 else 1.0), (0.0, 1.02), "distances to the nearest training row")
    for values, kind in ((nearest.held_out, REAL), (nearest.generated, GENERATED)):
        ordered = np.sort(values)
        places = np.unique(np.linspace(0, len(ordered) - 1, 200).astype(int))
        chart.line(np.append(0.0, ordered[places]), np.append(0.0, (places + 1) / len(ordered)), kind)
    return chart.svg()


def squares(latent: LatentFit) -> Markup:
    """Quantiles of |z|² against those of χ²."""
    seen, expected = latent.quantiles
    top = float(max(np.quantile(seen, 0.98), expected.max())) * 1.05
    low = float(min(seen.min(), expected.min(), top)) * 0.95
    chart = Chart((low, top), (low, top), "quantiles of the squared length of latent points")
    return chart.line(np.array([low, top]), np.array([low, top]), "chance").points(expected, seen, REAL).svg()
