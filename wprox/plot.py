"""Pictures: a trajectory of measures, generated rows beside real ones, a flow block by block.

Nothing here touches pyplot's global state: figures are `matplotlib.figure.Figure` objects, good in servers and threads.
matplotlib is imported when a picture is drawn, not before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wprox._checks import check_count
from wprox.measures import DensityUnknownError, Gaussian, Measure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wprox.jko import Trajectory
    from wprox.models.jko_flow import JKOFlow

BLUE, GREY, SLATE, ORANGE = "#2b6cb0", "#a0aec0", "#4a5568", "#dd6b20"
DRAWN = 3_000  # points in one panel, at most
PANELS = 16  # marginals in one picture, at most


def plot_trajectory(trajectory: Trajectory, axes: Sequence[Axes] | None = None, count: int = 5) -> list[Axes]:
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
        axes = _row_of_axes(len(chosen) + 1)[1]
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
    _share_limits(panels, [points for points, _ in clouds])
    for ax in spare:
        ax.set_visible(False)
    values = [float(value) for value in trajectory.values]
    last.plot(range(len(values)), values, color=BLUE, marker="o" if len(values) <= 40 else None, markersize=4)
    last.set_title("F")
    last.set_xlabel("step")
    _integer_ticks(last)
    return [*panels, last]


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
    real, generated = _array(real), _array(generated)
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
    figure = _figure(max(2.4 * across, 5.0), 2.0 * down + 0.6)
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


def plot_flow(flow: JKOFlow, X: Any, panels: int = 5) -> Figure:
    """Rows on their way from data to noise, after each block, and the NLL of the validation rows block by block.

    In more than two dimensions the rows are drawn along the first two principal axes of the preprocessed data, the same
    in each panel; there, too, the last panel should look like a standard normal, whose circles of one, two and three
    standard deviations are drawn.

    Arguments:
        flow: fitted.
        X: (n, d), rows to draw, at most 3,000 of them.
        panels: how many stages to draw, evenly spread over the blocks.

    Returns:
        The figure.
    """
    rows = torch.as_tensor(_array(X))
    path = [_array(z) for z in flow.latents(rows[_thin(len(rows))])]
    start = path[0]
    d = start.shape[1]
    if d > 2:
        axes_of_data = np.linalg.svd(start - start.mean(0), full_matrices=False)[2][:2]
        path = [z @ axes_of_data.T for z in path]
    chosen = np.unique(np.linspace(0, len(path) - 1, min(check_count(panels, "panels"), len(path))).round().astype(int))
    figure, axes = _row_of_axes(len(chosen) + 1)
    for ax, k in zip(axes[:-1], chosen, strict=True):
        weights = np.full(len(path[k]), 1 / len(path[k]))
        if d == 1:
            _histogram(ax, path[k][:, 0], weights)
            x = np.linspace(-4, 4, 200)
            ax.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color=ORANGE, linewidth=1)
        else:
            _scatter(ax, path[k], weights)
            _circles(ax)
        ax.set_title("data" if k == 0 else f"block {k}")
    if d > 2:
        axes[0].set_xlabel("principal axis 1")
        axes[0].set_ylabel("principal axis 2")
    _share_limits(axes[:-1], [path[k] for k in chosen], least=3.0)
    _draw_history(axes[-1], flow.history_)
    return figure


def _draw_history(ax: Axes, history: list[dict[str, Any]]) -> None:
    blocks = [entry for entry in history if "step_size" in entry]
    together = [entry for entry in history if "step_size" not in entry]
    ax.plot(range(1, len(blocks) + 1), [entry["held_out_nll"] for entry in blocks], color=BLUE, marker="o")
    for entry in together:
        ax.axhline(entry["held_out_nll"], color=ORANGE, linestyle="--", label="all blocks\nfine-tuned")
        ax.legend(frameon=False)
    ax.set_title("validation NLL (nats)")
    ax.set_xlabel("blocks")
    _integer_ticks(ax)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    return figure


def _row_of_axes(count: int) -> tuple[Figure, list[Axes]]:
    figure = _figure(2.6 * count, 2.8)
    return figure, [figure.add_subplot(1, count, k + 1) for k in range(count)]


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _thin(n: int, limit: int = DRAWN) -> np.ndarray:
    """The rows that are drawn: all, or `limit` of them at random, the same ones each time."""
    return np.arange(n) if n <= limit else np.sort(np.random.default_rng(0).choice(n, limit, replace=False))


def _drawable(measure: Measure) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights that look like the measure; a Gaussian's own cubature points do not."""
    if isinstance(measure, Gaussian):
        points = _array(measure.sample(DRAWN, seed=0))
        return points, np.full(len(points), 1 / len(points))
    return _array(measure.points), _array(measure.weights)


def _draw_measure(ax: Axes, measure: Measure, points: np.ndarray, weights: np.ndarray) -> None:
    if points.shape[1] > 1:
        rows = _thin(len(points))
        _scatter(ax, points[rows], weights[rows])
        return
    if isinstance(measure, Gaussian):
        nodes = torch.linspace(float(points.min()), float(points.max()), 300).to(measure.points)
        x, density = _array(nodes), np.exp(_array(measure.log_prob(nodes[:, None])))
    else:
        try:
            density = np.exp(_array(measure.log_density()))
        except DensityUnknownError:
            _histogram(ax, points[:, 0], weights)
            return
        order = np.argsort(points[:, 0])
        x, density = points[order, 0], density[order]
    ax.fill_between(x, density, color=BLUE, alpha=0.3, linewidth=0)
    ax.plot(x, density, color=BLUE, linewidth=1.2)
    ax.set_ylim(bottom=0)


def _histogram(ax: Axes, x: np.ndarray, weights: np.ndarray) -> None:
    nodes = np.unique(x)
    steps = np.diff(nodes)
    bins: Any = 50
    if 1 < len(nodes) <= 500 and np.ptp(steps) <= 1e-3 * steps.mean():  # a regular grid: one bar a node
        half = steps.mean() / 2
        bins = np.append(nodes - half, nodes[-1] + half)
    ax.hist(x, bins, weights=weights, density=True, color=BLUE, alpha=0.6)


def _scatter(ax: Axes, points: np.ndarray, weights: np.ndarray, color: str = BLUE) -> None:
    size = 4.0 if len(points) > 500 else 10.0
    sizes = size * weights / weights.max()
    ax.scatter(points[:, 0], points[:, 1], s=sizes, color=color, alpha=0.5, linewidth=0, rasterized=True)


def _circles(ax: Axes) -> None:
    angle = np.linspace(0, 2 * math.pi, 200)
    for radius in (1, 2, 3):
        ax.plot(radius * np.cos(angle), radius * np.sin(angle), color=ORANGE, linewidth=0.8, alpha=0.8)


def _two_scatters(real: np.ndarray, generated: np.ndarray, names: list[str]) -> Figure:
    figure = _figure(8, 4)
    count = min(len(real), len(generated), DRAWN)
    tables = [table[_thin(len(table), count)] for table in (real, generated)]
    axes = [figure.add_subplot(1, 2, k + 1) for k in range(2)]
    for ax, table, title, color in zip(axes, tables, ("data", "generated"), (SLATE, ORANGE), strict=True):
        _scatter(ax, table, np.ones(len(table)), color)
        ax.set_title(title)
        ax.set_xlabel(names[0])
    axes[0].set_ylabel(names[1])
    _share_limits(axes, tables)
    return figure


def _share_limits(axes: Sequence[Axes], clouds: Sequence[np.ndarray], least: float | None = None) -> None:
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


def _bins(real: np.ndarray, generated: np.ndarray) -> list[float]:
    """Bins over the range of the real column: one a value where these are a few integers."""
    low, high = real.min(), real.max()
    if np.all(real == np.rint(real)) and np.all(generated == np.rint(generated)) and high - low <= 60:
        return (np.arange(min(low, generated.min()), max(high, generated.max()) + 2) - 0.5).tolist()
    margin = 0.05 * (high - low) if high > low else 0.5
    return np.linspace(low - margin, high + margin, 40).tolist()


def _integer_ticks(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
