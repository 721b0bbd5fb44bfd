"""A JKO flow block by block: rows on their way to noise, and the likelihood."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wprox._checks import check_count
from wprox.plot.figure import BLUE, ORANGE, as_array, histogram, integer_ticks, row_of_axes, scatter, share_limits, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class HasLatents(Protocol):
    """What is drawn of a fitted flow."""

    history_: list[dict[str, Any]]

    def latents(self, X: Any) -> list[Tensor]:
        """The rows after each block."""


def plot_flow(flow: HasLatents, X: Any, panels: int = 5) -> Figure:
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
    drawn = thin(len(X))
    rows = X.iloc[drawn] if hasattr(X, "iloc") else torch.as_tensor(as_array(X))[drawn]
    path = [as_array(z) for z in flow.latents(rows)]
    start = path[0]
    d = start.shape[1]
    if d > 2:
        axes_of_data = np.linalg.svd(start - start.mean(0), full_matrices=False)[2][:2]
        path = [z @ axes_of_data.T for z in path]
    chosen = np.unique(np.linspace(0, len(path) - 1, min(check_count(panels, "panels"), len(path))).round().astype(int))
    figure, axes = row_of_axes(len(chosen) + 1)
    for ax, k in zip(axes[:-1], chosen, strict=True):
        weights = np.full(len(path[k]), 1 / len(path[k]))
        if d == 1:
            histogram(ax, path[k][:, 0], weights)
            x = np.linspace(-4, 4, 200)
            ax.plot(x, np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi), color=ORANGE, linewidth=1)
        else:
            scatter(ax, path[k], weights)
            _circles(ax)
        ax.set_title("data" if k == 0 else f"block {k}")
    if d > 2:
        axes[0].set_xlabel("principal axis 1")
        axes[0].set_ylabel("principal axis 2")
    share_limits(axes[:-1], [path[k] for k in chosen], least=3.0)
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
    integer_ticks(ax)


def _circles(ax: Axes) -> None:
    angle = np.linspace(0, 2 * math.pi, 200)
    for radius in (1, 2, 3):
        ax.plot(radius * np.cos(angle), radius * np.sin(angle), color=ORANGE, linewidth=0.8, alpha=0.8)
