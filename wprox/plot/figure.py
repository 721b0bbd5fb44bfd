"""What all pictures share: figures without pyplot's global state, colours, clouds and windows.

Figures are `matplotlib.figure.Figure` objects, good in servers and threads; matplotlib is imported when a picture is
drawn, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from wprox._arrays import as_plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, GREY, SLATE, ORANGE = "#2b6cb0", "#a0aec0", "#4a5568", "#dd6b20"
DRAWN = 3_000  # points in one panel, at most


def new_figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def row_of_axes(count: int) -> tuple[Figure, list[Axes]]:
    figure = new_figure(2.6 * count, 2.8)
    return figure, [figure.add_subplot(1, count, k + 1) for k in range(count)]


def as_array(values: Any) -> np.ndarray:
    values = as_plain(values, "what is drawn")
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def thin(n: int, limit: int = DRAWN) -> np.ndarray:
    """The rows that are drawn: all, or `limit` of them at random, the same ones each time."""
    return np.arange(n) if n <= limit else np.sort(np.random.default_rng(0).choice(n, limit, replace=False))


def histogram(ax: Axes, x: np.ndarray, weights: np.ndarray) -> None:
    nodes = np.unique(x)
    steps = np.diff(nodes)
    bins: Any = 50
    if 1 < len(nodes) <= 500 and np.ptp(steps) <= 1e-3 * steps.mean():  # a regular grid: one bar a node
        half = steps.mean() / 2
        bins = np.append(nodes - half, nodes[-1] + half)
    ax.hist(x, bins, weights=weights, density=True, color=BLUE, alpha=0.6)


def scatter(ax: Axes, points: np.ndarray, weights: np.ndarray, color: str = BLUE) -> None:
    size = 4.0 if len(points) > 500 else 10.0
    sizes = size * weights / weights.max()
    ax.scatter(points[:, 0], points[:, 1], s=sizes, color=color, alpha=0.5, linewidth=0, rasterized=True)


def share_limits(axes: Sequence[Axes], clouds: Sequence[np.ndarray], least: float | None = None) -> None:
    """The same window in every panel, [−least, least] inside it; single far points do not set it."""
    points = np.concatenate([cloud[:, :2] for cloud in clouds])
    low, high = np.quantile(points, 0.001, axis=0), np.quantile(points, 0.999, axis=0)
    if least is not None:
        low, high = np.minimum(low, -least), np.maximum(high, least)
    margin = 0.1 * np.where(high > low, high - low, 1.0)
    for ax in axes:
        ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
        if points.shape[1] > 1:
            ax.set_ylim(low[1] - margin[1], high[1] + margin[1])


def integer_ticks(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
