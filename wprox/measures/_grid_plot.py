"""Pictures of grids: a line, an image or three slices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from wprox.measures.grid import Grid

WALL_COLOUR = "0.75"


def plot_grid(grid: Grid, axes: Any = None) -> Axes | list[Axes]:
    """Draw a grid's density on matplotlib axes: one in 1-D and 2-D, three in 3-D."""
    import matplotlib.pyplot as plt

    density = grid.unflatten(grid.weights / grid.cell_volume, fill=float("nan")).detach().cpu()
    if grid.dim == 1:
        ax = plt.subplots()[1] if axes is None else axes
        ax.plot(grid.axes[0].cpu().numpy(), density.numpy())
        ax.set(xlabel="x", ylabel="density", xlim=grid.bounds[0])
        return ax
    if grid.dim == 2:
        ax = plt.subplots()[1] if axes is None else axes
        _image(ax, density, grid.bounds)
        return ax
    if axes is None:
        axes = plt.subplots(1, 3, figsize=(12, 4))[1]
    drawn = list(axes)
    if len(drawn) != 3:
        raise ValueError(f"a 3-D grid is drawn on three axes, one a slice, got {len(drawn)}")
    names = "xyz"
    for axis, ax in enumerate(drawn):
        middle = grid.shape[axis] // 2
        others = [other for other in range(3) if other != axis]
        _image(ax, density.select(axis, middle), [grid.bounds[other] for other in others])
        ax.set(xlabel=names[others[0]], ylabel=names[others[1]])
        ax.set_title(f"{names[axis]} = {float(grid.axes[axis][middle]):.3g}")
    return drawn


def _image(ax: Axes, density: Tensor, bounds: Any) -> None:
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
    ax.set(xlabel="x", ylabel="y")
