"""Optimal transport between Gaussians: the Bures–Wasserstein distance."""

from __future__ import annotations

import torch
from torch import Tensor


def bures_square(loc: Tensor, factor: Tensor, other_loc: Tensor, other_factor: Tensor) -> Tensor:
    """W₂² between N(m, LLᵀ) and N(m′, L′L′ᵀ), for any factors L, L′: (d, d), in float64."""
    loc, factor = loc.double(), factor.double()
    other_loc, other_factor = other_loc.to(loc), other_factor.to(loc)
    with torch.no_grad():  # at the minimum over R its derivative drops out; that of the SVD fails for equal values
        left, _, right = torch.linalg.svd(other_factor.mT @ factor)
        rotation = left @ right
    return (loc - other_loc).square().sum() + (factor - other_factor @ rotation).square().sum()
