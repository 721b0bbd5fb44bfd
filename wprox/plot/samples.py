"""Generated rows beside real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wprox.plot.figure import DRAWN, GREY, ORANGE, SLATE, as_array, new_figure, scatter, share_limits, thin

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 16  # marginals in one picture, at most


def plot_samples(real: Any, generated: Any, columns: Sequence[str] | None = None) -> Figure:
    """Generated rows beside real ones: two scatter plots in the plane, histograms of the columns otherwise.

    Arguments:
        real: (n, d).
        generated: (m, d).
        columns: d names.

    Returns:
        The figure; `figure.savefig(file)` writes it.

    Raises:
        ValueError: where the tables do not have the same number of columns.

    Example:
        >>> figure = plot_samples(np.zeros((5, 2)), np.ones((5, 2)), ["height", "weight"])
        >>> [ax.get_title() for ax in figure.axes]
        ['data', 'generated']
    """
    real, generated = as_array(real), as_array(generated)
    if real.ndim != 2 or real.shape[1:] != generated.shape[1:]:
        raise ValueError(f"real and generated must be tables of the same columns, got {real.shape}, {generated.shape}")
    d = real.shape[1]
    names = list(columns) if columns is not None else [f"x{j + 1}" for j in range(d)]
    if d == 2:
        return _two_scatters(real, generated, names)
    varying = [j for j in range(d) if np.ptp(real[:, j]) > 0] or list(range(d))
    picked = [varying[k] for k in np.unique(np.linspace(0, len(varying) - 1, PANELS).round().astype(int))]
    across = min(4, len(picked))
    down = math.ceil(len(picked) / across)
    figure = new_figure(max(2.4 * across, 5.0), 2.0 * down + 0.6)
    for k, j in enumerate(picked):
        ax = figure.add_subplot(down, across, k + 1)
        bins = _bins(real[:, j], generated[:, j])
        ax.hist(real[:, j], bins, density=True, color=GREY, label="data")
        ax.hist(generated[:, j], bins, density=True, histtype="step", color=ORANGE, linewidth=1.5, label="generated")
        ax.set_title(names[j], fontsize="medium")
        ax.set_yticks([])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    title = f"{len(picked)} of {d} columns" if len(picked) < d else None
    figure.legend(handles, labels, loc="outside upper center", ncols=2, title=title, frameon=False)
    return figure


def _two_scatters(real: np.ndarray, generated: np.ndarray, names: list[str]) -> Figure:
    figure = new_figure(8, 4)
    count = min(len(real), len(generated), DRAWN)
    tables = [table[thin(len(table), count)] for table in (real, generated)]
    axes = [figure.add_subplot(1, 2, k + 1) for k in range(2)]
    for ax, table, title, color in zip(axes, tables, ("data", "generated"), (SLATE, ORANGE), strict=True):
        scatter(ax, table, np.ones(len(table)), color)
        ax.set_title(title)
        ax.set_xlabel(names[0])
    axes[0].set_ylabel(names[1])
    share_limits(axes, tables)
    return figure


def _bins(real: np.ndarray, generated: np.ndarray) -> list[float]:
    """Bins over the range of the real column: one a value where these are a few integers."""
    low, high = real.min(), real.max()
    if np.all(real == np.rint(real)) and np.all(generated == np.rint(generated)) and high - low <= 60:
        return (np.arange(min(low, generated.min()), max(high, generated.max()) + 2) - 0.5).tolist()
    margin = 0.05 * (high - low) if high > low else 0.5
    return np.linspace(low - margin, high + margin, 40).tolist()
