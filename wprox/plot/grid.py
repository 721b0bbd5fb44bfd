"""Densities on grids: a line, an image or three slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wprox.plot.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

WALL_COLOUR = "0.75"

Bounds = Sequence[tuple[float, float]]


def plot_density(density: Tensor, bounds: Bounds, axes: Any = None) -> Axes | list[Axes]:
    """Draw a density on cells, (n_1, …, n_d) with NaN in walls, on axes: one in 1-D and 2-D, three in 3-D."""
    if density.ndim == 1:
        ax = new_figure(6.4, 4.8).subplots() if axes is None else axes
        draw_line(ax, density, bounds)
        ax.set(xlabel="x", ylabel="density")
        return ax
    if density.ndim == 2:
        ax = new_figure(6.4, 4.8).subplots() if axes is None else axes
        draw_image(ax, density, bounds)
        ax.set(xlabel="x", ylabel="y")
        return ax
    drawn = list(new_figure(12, 4).subplots(1, 3) if axes is None else axes)
    if len(drawn) != 3:
        raise ValueError(f"a 3-D grid is drawn on three axes, one a slice, got {len(drawn)}")
    names = "xyz"
    for axis, ax in enumerate(drawn):
        others = [other for other in range(3) if other != axis]
        image, height = middle_slice(density, bounds, axis)
        draw_image(ax, image, [bounds[other] for other in others])
        ax.set(xlabel=names[others[0]], ylabel=names[others[1]])
        ax.set_title(f"{names[axis]} = {height:.3g}")
    return drawn


def draw_line(ax: Axes, density: Tensor, bounds: Bounds, **style: Any) -> Line2D:
    """A line that is constant on each cell of the interval, with walls in grey."""
    edges = np.linspace(*bounds[0], len(density) + 1)
    (line,) = ax.plot(edges.repeat(2)[1:-1], density.numpy().repeat(2), **style)
    for cell in np.flatnonzero(np.isnan(density.numpy())):
        ax.axvspan(edges[cell], edges[cell + 1], facecolor=WALL_COLOUR, linewidth=0)
    ax.set_xlim(bounds[0])
    ax.set_ylim(bottom=0)
    return line


def middle_slice(density: Tensor, bounds: Bounds, axis: int) -> tuple[Tensor, float]:
    """The slice through the middle along an axis, and where on that axis the centres of its cells are."""
    low, high = bounds[axis]
    n = density.shape[axis]
    return density.select(axis, n // 2), low + (n // 2 + 0.5) * (high - low) / n


def draw_image(ax: Axes, density: Tensor, bounds: Bounds) -> None:
    """An image with the first axis to the right, the second one up, and walls in grey."""
    (left, right), (bottom, top) = bounds
    free = density[torch.isfinite(density)]
    highest = float(free.max()) if len(free) else 1.0  # matplotlib leaves NaN, which marks walls, unpainted
    ax.set_facecolor(WALL_COLOUR)
    ax.imshow(
        density.T.numpy(),
        origin="lower",
        extent=(left, right, bottom, top),
        vmin=0.0,
        vmax=highest,
        cmap="magma",
        interpolation="nearest",
    )
