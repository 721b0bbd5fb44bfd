"""A trajectory of measures: how they look along the way, and the values of the functional."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from wprox._checks import check_count
from wprox.measures import Measure
from wprox.plot.figure import BLUE, integer_ticks, row_of_axes, share_limits
from wprox.plot.measures import draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HasMeasures(Protocol):
    """What is drawn of a trajectory: its measures, and the values of the functional at them."""

    measures: list[Measure]
    values: list[Tensor]


def plot_trajectory(trajectory: HasMeasures, axes: Sequence[Axes] | None = None, count: int = 5) -> list[Axes]:
    """Draw `count` measures along a trajectory, evenly spread, and the values of the functional.

    A measure on the line is drawn as its density where it knows one, as a histogram where it does not; a measure in
    the plane as points, as large as their weights; in higher dimensions the first two coordinates are drawn. A `Grid`
    is drawn as an image, in 3-D that of the middle slice along the third axis, walls in grey. Each image has colours of
    its own, from density 0 to the greatest, which is written below it: in one scale for all, a density that spreads or
    gathers would be black in most of them. `wprox.plot.draw.register` says how a measure of one's own is drawn.

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
    drawn = [draw(measures[k], ax) for ax, k in zip(panels, chosen, strict=True)]
    for ax, k in zip(panels, chosen, strict=True):
        ax.set_title("start" if k == 0 else f"step {k}")
    if drawn[0].note:
        panels[0].set_title(f"start ({drawn[0].note})")
    together = [(ax, points) for ax, (points, _) in zip(panels, drawn, strict=True) if points is not None]
    if together:
        share_limits(*zip(*together, strict=True))
    for ax in spare:
        ax.set_visible(False)
    values = [float(value) for value in trajectory.values]
    last.plot(range(len(values)), values, color=BLUE, marker="o" if len(values) <= 40 else None, markersize=4)
    last.set_title("F")
    last.set_xlabel("step")
    integer_ticks(last)
    return [*panels, last]
