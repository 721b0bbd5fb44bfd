"""Sums over pairs of points for kernels of which only values are known: tile by tile, with the gradient at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wprox._autograd import Function, Needs, gradients_of, with_gradients

UNEVEN = 1e-3  # of the largest value: W(z) and W(−z) of an even kernel differ by rounding only


def function_sum(
    k: Callable[[Tensor], Tensor], even: bool, side: int, plain: Callable[..., Tensor], points: Tensor, weights: Tensor
) -> Tensor:
    """Σ_ij w_i w_j k(x_i − x_j), where autograd runs through one tile of pairs at a time, along with the value.

    Derivatives of the gradient come from `plain(x, w)`, the same sum by automatic differentiation.
    """

    def compute(needs: Needs, points: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        total, by_points, by_weights = function_sums(k, even, side, points, weights, *needs)
        return total, [by_points, by_weights]

    return with_gradients(compute, plain, points, weights)


def function_sums(
    k: Callable[[Tensor], Tensor], even: bool, side: int, points: Tensor, weights: Tensor, gradient: bool, slope: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_ij w_i w_j k(x_i − x_j) in float64; where `gradient` that in x, (n, d), and where `slope` that in w, (n,).

    A singular kernel leaves i = j out, and an even one takes each pair once.

    Arguments:
        k: maps differences (m, d) to values (m,), checked.
        even: whether k(z) = k(−z) is promised.
        side: of a tile.
    """
    x, w = points.detach().mT.contiguous(), weights.detach()
    by_points, by_weights = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(w, dtype=torch.float64)
    total = by_weights.new_zeros(())
    blocks = [slice(a, min(a + side, len(w))) for a in range(0, len(w), side)]
    for index, rows in enumerate(blocks):
        for columns in blocks[index if even else 0 :]:
            same = rows == columns
            own = same and bool(getattr(k, "singular", False))
            times = 2 if even and not same else 1
            z = x[:, rows, None] - x[:, None, columns]  # (d, r, c): sums over coordinates run along whole tiles
            if own:  # evaluated elsewhere, and given no weight, so that 0 · ∞ stays out of the gradient
                z.diagonal(dim1=1, dim2=2).fill_(1)
            differences = z.flatten(1).mT.requires_grad_(gradient)
            with torch.set_grad_enabled(gradient):
                values = k(differences)
            tile = values.detach().reshape(z.shape[1:])
            pairs = times * w[rows, None] * w[columns]
            if own:
                tile = tile.clone().fill_diagonal_(0)
                pairs.fill_diagonal_(0)
            if same and even:
                _check_even(k, tile)
            row = (tile @ w[columns]).double()
            total += times * (w[rows].double() @ row)
            if slope:
                by_weights[rows] += times * row
                by_weights[columns] += times * (w[rows] @ tile)
            if gradient and values.requires_grad:
                (field,) = torch.autograd.grad(values, differences, pairs.flatten(), allow_unused=True)
                if field is not None:
                    field = field.mT.reshape(z.shape)
                    by_points[:, rows] += field.sum(2)
                    by_points[:, columns] -= field.sum(1)
    return total, by_points.mT, by_weights


class FunctionPotential(Function):
    """Σ_j v_j k(x_i − y_j), (n,), and its gradient in x, tile by tile; y and v are given.

    Derivatives of the gradient come from `plain(x)`, the same sums by automatic differentiation.
    """

    @staticmethod
    def forward(
        k: Callable, plain: Callable, side: int, gradient: bool, points: Tensor, others: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, y = points.detach().mT.contiguous(), others.detach().mT.contiguous()
        sums, field = points.new_zeros(len(points), dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
        for a in range(0, len(points), side):
            for b in range(0, len(others), side):
                z = x[:, a : a + side, None] - y[:, None, b : b + side]
                differences, v = z.flatten(1).mT.requires_grad_(gradient), weights[b : b + side]
                with torch.set_grad_enabled(gradient):
                    values = k(differences)
                sums[a : a + side] += values.detach().reshape(z.shape[1:]) @ v
                if gradient and values.requires_grad:
                    repeated = v.expand(z.shape[1:]).flatten()
                    (slopes,) = torch.autograd.grad(values, differences, repeated, allow_unused=True)
                    if slopes is not None:
                        field[:, a : a + side] += slopes.mT.reshape(z.shape).sum(2)
        return sums.to(points.dtype), field.mT.to(points)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.plain = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], inputs[4])

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        plain = ctx.plain

        def compute(slope: Tensor, field: Tensor, points: Tensor) -> list[Tensor | None]:
            return [None, None, slope[:, None] * field]

        def contracted(slope: Tensor, _: Tensor, points: Tensor) -> Tensor:
            return slope @ plain(points)

        found = gradients_of(compute, contracted, (False, False, True), slope, *ctx.saved_tensors)
        return None, None, None, None, found[2], None, None


def _check_even(k: object, tile: Tensor) -> None:
    """Raise `ValueError` where the values at x_i − x_j and x_j − x_i differ by more than rounding."""
    gap = (tile - tile.mT).abs().max()
    if bool(gap > UNEVEN * tile.abs().max()):
        raise ValueError(
            f"the kernel {k} is not even: W(z) and W(−z) differ by up to {float(gap):.3g}. An interaction has one "
            "strength for both particles; only the even part counts in the energy: give (W(z) + W(−z))/2"
        )
