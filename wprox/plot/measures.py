"""How each kind of measure looks in one panel; a measure of one's own is added by `draw.register`."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from wprox.measures import DensityUnknownError, Gaussian, Grid, Measure
from wprox.plot.figure import BLUE, DRAWN, as_array, histogram, scatter, thin
from wprox.plot.grid import draw_image, draw_line, middle_slice

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Panel(NamedTuple):
    """What a panel shows.

    Attributes:
        points: (k, 1) or (k, 2), what the window that panels share must hold; None for a panel with its own window.
        note: what the title must add, such as which coordinates are seen.
    """

    points: np.ndarray | None
    note: str = ""


@singledispatch
def draw(measure: Measure, ax: Axes) -> Panel:
    """Draw a measure on one axes: on the line its density or a histogram, else its points, as large as their weights.

    Example:
        A measure of one's own that is to be drawn otherwise:

        >>> import torch, wprox
        >>> from wprox.plot.figure import new_figure
        >>> class Dirac(wprox.Particles):
        ...     pass
        >>> @draw.register(Dirac)
        ... def _(measure, ax):
        ...     ax.axvline(float(measure.points[0, 0]))
        ...     return Panel(measure.points.numpy())
        >>> draw(Dirac(torch.ones(1, 1)), new_figure(3, 3).subplots()).points.tolist()
        [[1.0]]
    """
    points, weights = as_array(measure.points), as_array(measure.weights)
    if measure.dim > 1:
        return _draw_points(ax, points, weights)
    try:
        density = np.exp(as_array(measure.log_density()))
    except DensityUnknownError:
        histogram(ax, points[:, 0], weights)
        return Panel(points)
    order = np.argsort(points[:, 0])
    _draw_curve(ax, points[order, 0], density[order])
    return Panel(points)


@draw.register(Gaussian)
def _(measure: Gaussian, ax: Axes) -> Panel:
    """The density on the line, else draws: its own cubature points do not look like it."""
    points = as_array(measure.sample(DRAWN, seed=0))
    if measure.dim > 1:
        return _draw_points(ax, points, np.full(len(points), 1 / len(points)))
    x = torch.linspace(float(points.min()), float(points.max()), 300).to(measure.points)
    _draw_curve(ax, as_array(x), np.exp(as_array(measure.log_prob(x[:, None]))))
    return Panel(points)


@draw.register(Grid)
def _(measure: Grid, ax: Axes) -> Panel:
    """A line over the cells, an image, or the image of the middle slice along the third axis."""
    density = measure.unflatten(measure.weights / measure.cell_volume, fill=math.nan).detach().cpu()
    if measure.dim == 1:
        line = draw_line(ax, density, measure.bounds, color=BLUE, linewidth=1.2)
        ax.fill_between(line.get_xdata(), line.get_ydata(), color=BLUE, alpha=0.3, linewidth=0)
        return Panel(None)
    note = ""
    if measure.dim == 3:
        density, height = middle_slice(density, measure.bounds, 2)
        note = f"z = {height:.3g}"
    draw_image(ax, density, measure.bounds[:2])
    ax.set_xlabel(f"density 0 to {float(density.nan_to_num(nan=0.0).max()):.3g}", fontsize="small")
    return Panel(None, note)


def _draw_points(ax: Axes, points: np.ndarray, weights: np.ndarray) -> Panel:
    d = points.shape[1]
    rows = thin(len(points))
    scatter(ax, points[rows], weights[rows])
    return Panel(points[:, :2], f"coordinates 1 and 2 of {d}" if d > 2 else "")


def _draw_curve(ax: Axes, x: np.ndarray, density: np.ndarray) -> None:
    ax.fill_between(x, density, color=BLUE, alpha=0.3, linewidth=0)
    ax.plot(x, density, color=BLUE, linewidth=1.2)
    ax.set_ylim(bottom=0)
