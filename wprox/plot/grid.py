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

WALL_COLOUR = "0.75"

Bounds = Sequence[tuple[float, float]]


def plot_density(density: Tensor, bounds: Bounds, axes: Any = None) -> Axes | list[Axes]:
    """Draw a density on cells, (n_1, …, n_d) with NaN in walls, on axes: one in 1-D and 2-D, three in 3-D."""
    if density.ndim == 1:
        ax = new_figure(6.4, 4.8).subplots() if axes is None else axes
        ax.plot(_centres(density, bounds, 0), density.numpy())
        ax.set(xlabel="x", ylabel="density", xlim=bounds[0])
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
        middle = density.shape[axis] // 2
        others = [other for other in range(3) if other != axis]
        draw_image(ax, density.select(axis, middle), [bounds[other] for other in others])
        ax.set(xlabel=names[others[0]], ylabel=names[others[1]])
        ax.set_title(f"{names[axis]} = {_centres(density, bounds, axis)[middle]:.3g}")
    return drawn


def draw_image(ax: Axes, density: Tensor, bounds: Bounds) -> None:
    """An image with the first axis to the right, the second one up, and walls in grey."""
    (left, right), (bottom, top) = bounds
    highest = float(density[torch.isfinite(density)].max())  # matplotlib leaves NaN, which marks walls, unpainted
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


def _centres(density: Tensor, bounds: Bounds, axis: int) -> np.ndarray:
    """The centres of the cells along an axis."""
    low, high = bounds[axis]
    n = density.shape[axis]
    return low + (np.arange(n) + 0.5) * (high - low) / n
