"""All distances between two clouds of points, with derivatives of every order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wprox._autograd import Function


def half_square_distances(x: Tensor, y: Tensor) -> Tensor:
    """½|x_i − y_j|², (n, m) in float64, without cancellation far from the origin."""
    return _HalfSquares.apply(x.double(), y.double())


class _HalfSquares(Function):
    """Written out, because the derivative of `torch.cdist` has none itself."""

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_().div_(2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, y = ctx.saved_tensors
        origin = (x.detach().mean(0) + y.detach().mean(0)) / 2  # differences are what counts: this keeps their digits
        x, y = x - origin, y - origin
        by_x = slope.sum(1)[:, None] * x - slope @ y if ctx.needs_input_grad[0] else None
        by_y = slope.sum(0)[:, None] * y - slope.mT @ x if ctx.needs_input_grad[1] else None
        return by_x, by_y
