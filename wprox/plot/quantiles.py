"""A measure of the line: its piecewise constant density."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wprox.plot.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_quantiles(nodes: Tensor, density: Tensor, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw the density (n − 1,) between nodes (n,); see `Quantiles.plot`."""
    ax = new_figure(6.4, 4.8).subplots() if ax is None else ax
    x = torch.cat((nodes[:1], (nodes[1:] + nodes[:-1]) / 2, nodes[-1:]))
    ax.plot(x.numpy(), torch.cat((density[:1], density, density[-1:])).numpy(), **style)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("x")
    ax.set_ylabel("density")
    return ax
