"""A trajectory of measures: how they look along the way, and the values of the functional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from wprox._checks import check_count
from wprox.measures import DensityUnknownError, Gaussian, Measure
from wprox.plot.figure import BLUE, DRAWN, as_array, histogram, integer_ticks, row_of_axes, scatter, share_limits, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HasMeasures(Protocol):
    """What is drawn of a trajectory: its measures, and the values of the functional at them."""

    measures: list[Measure]
    values: list[Tensor]


def plot_trajectory(trajectory: HasMeasures, axes: Sequence[Axes] | None = None, count: int = 5) -> list[Axes]:
    """Draw `count` measures along a trajectory, evenly spread, and the values of the functional.

    A measure on the line is drawn as its density where it knows one, as a histogram where it does not; a measure in
    the plane as points, as large as their weights; in higher dimensions the first two coordinates are drawn.

    Arguments:
        trajectory: what `jko` returned.
        axes: `count + 1` matplotlib axes; a new figure, `axes[0].figure`, where not given.
        count: how many measures.

    Returns:
        The axes drawn on: one a measure, then that of the values.

    Raises:
        ValueError: for a count below 1, or another number of axes.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2)
        >>> solver = wprox.NeuralProx(map=wprox.AffineMap, iterations=10)
        >>> axes = wprox.jko(F, solver, wprox.Particles(x), step_size=1.0, n_steps=2).plot(count=2)
        >>> [ax.get_title() for ax in axes]
        ['start', 'step 2', 'F']
    """
    check_count(count, "count")
    measures = trajectory.measures
    chosen = np.unique(np.linspace(0, len(measures) - 1, min(count, len(measures))).round().astype(int))
    if axes is None:
        axes = row_of_axes(len(chosen) + 1)[1]
    axes = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(axes) < len(chosen) + 1:
        raise ValueError(f"plotting {count} measures and the values needs {count + 1} axes, got {len(axes)}")
    panels, last, spare = axes[: len(chosen)], axes[-1], axes[len(chosen) : -1]
    clouds = [_drawable(measures[k]) for k in chosen]
    for ax, k, (points, weights) in zip(panels, chosen, clouds, strict=True):
        _draw_measure(ax, measures[k], points, weights)
        ax.set_title("start" if k == 0 else f"step {k}")
    if measures[0].dim > 2:
        panels[0].set_title(f"start (coordinates 1 and 2 of {measures[0].dim})")
    share_limits(panels, [points for points, _ in clouds])
    for ax in spare:
        ax.set_visible(False)
    values = [float(value) for value in trajectory.values]
    last.plot(range(len(values)), values, color=BLUE, marker="o" if len(values) <= 40 else None, markersize=4)
    last.set_title("F")
    last.set_xlabel("step")
    integer_ticks(last)
    return [*panels, last]


def _drawable(measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights that look like the measure; a Gaussian's own cubature points do not."""
    if isinstance(measure, Gaussian):
        points = as_array(measure.sample(DRAWN, seed=0))
        return points, np.full(len(points), 1 / len(points))
    return as_array(measure.points), as_array(measure.weights)


def _draw_measure(ax: Axes, measure: Measure, points: np.ndarray, weights: np.ndarray) -> None:
    if points.shape[1] > 1:
        rows = thin(len(points))
        scatter(ax, points[rows], weights[rows])
        return
    if isinstance(measure, Gaussian):
        nodes = torch.linspace(float(points.min()), float(points.max()), 300).to(measure.points)
        x, density = as_array(nodes), np.exp(as_array(measure.log_prob(nodes[:, None])))
    else:
        try:
            density = np.exp(as_array(measure.log_density()))
        except DensityUnknownError:
            histogram(ax, points[:, 0], weights)
            return
        order = np.argsort(points[:, 0])
        x, density = points[order, 0], density[order]
    ax.fill_between(x, density, color=BLUE, alpha=0.3, linewidth=0)
    ax.plot(x, density, color=BLUE, linewidth=1.2)
    ax.set_ylim(bottom=0)
