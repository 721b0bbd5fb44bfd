"""Sums over weighted points, and draws by their weights: in float64, whatever precision the points are in.

In float32 a dot product of 10⁷ terms loses three digits, and no draw hits a weight below the rounding of the others.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Σ_i w_i v_i over points, (n,) and (n, …), summed in float64; in the dtype of the values."""
    return torch.tensordot(weights.double(), values.double(), dims=1).to(values.dtype)


def mean_and_covariance(points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (d,) and the covariance (d, d) of weighted points (n, d), in float64."""
    points, weights = points.double(), weights.double()
    weights = weights / weights.sum()
    mean = weights @ points
    centred = points - mean
    return mean, (centred * weights[:, None]).mT @ centred


def draw(weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n independent indices by weights of any positive sum: the inverse of their cumulative sum in float64."""
    levels = weights.detach().double().cumsum(0)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device).to(weights.device)
    return torch.searchsorted(levels / levels[-1], uniform, right=True)  # the first level above: never a weight of 0
