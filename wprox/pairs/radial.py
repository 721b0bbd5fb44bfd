"""Sums over pairs of points for radial kernels: value and gradient in one pass over small blocks of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wprox._autograd import Function, Needs, gradients_of, with_gradients
from wprox.kernels import RadialKernel
from wprox.pairs.keops import keops_sums

SIDE = 256  # of a block of pairs on a CPU: its few temporaries stay in the second-level cache
SIDE_GPU = 4096
FEW_COORDINATES = 4  # up to here the differences themselves are cheaper than a matrix product
NEAR = 1e-7  # of the square of the cloud's size: below, |x|² + |y|² − 2⟨x, y⟩ loses more than half of its digits


class CoincidingError(ValueError):
    """Two particles are in one place, where their kernel is infinite; a line search steps back from there."""


class Cloud:
    """Points in float64 and coordinates first, in which their distances, and sums over them, are fast and accurate.

    Arguments:
        points: (n, d), not empty.
        centre: (d,), subtracted where products are taken, so that a cloud far from 0 loses no digits.
    """

    def __init__(self, points: Tensor, centre: Tensor) -> None:
        self.exact = points.detach().double().mT.contiguous()  # (d, n)
        self.centred = self.exact - centre[:, None]
        self.squares = self.centred.square().sum(0)

    def __len__(self) -> int:
        return self.exact.shape[1]

    @property
    def side(self) -> int:
        return SIDE if self.exact.device.type == "cpu" else SIDE_GPU

    def rows(self) -> list[slice]:
        """The blocks of points."""
        return [slice(a, min(a + self.side, len(self))) for a in range(0, len(self), self.side)]

    def weighted(self, weights: Tensor) -> Tensor:
        """w_i x_i with w_i below it, (d + 1, n): what a slope is multiplied with to sum w_i a_i x_i and w_i a_i."""
        return torch.cat((self.centred * weights, weights[None]))

    def field(self, sums: Tensor) -> Tensor:
        """Σ_j a_ij (x_i − x_j), (d, n), from the rows Σ_j a_ij x_j and Σ_j a_ij of `sums`, (d + 1, n).

        The rounding error is that of moving x_i and x_j by their own rounding.
        """
        return self.centred * sums[-1] - sums[:-1]


def centre_of(*clouds: Tensor) -> Tensor:
    """The middle of some points, (d,)."""
    return torch.stack([points.detach().double().mean(0) for points in clouds]).mean(0)


def squared_distances(x: Cloud, rows: slice, y: Cloud, columns: slice) -> Tensor:
    """|x_i − y_j|² for a block of pairs, (r, c), to full relative accuracy where points are near."""
    if x.exact.shape[0] > FEW_COORDINATES and not (x is y and rows == columns):
        squares, other_squares = x.squares[rows], y.squares[columns]
        s = torch.addmm(squares[:, None] + other_squares, x.centred[:, rows].mT, y.centred[:, columns], alpha=-2)
        if bool(s.min() > NEAR * (squares.max() + other_squares.max())):
            return s
    first, *others = zip(x.exact[:, rows], y.exact[:, columns], strict=True)
    s = (first[0][:, None] - first[1]).square_()
    for a, b in others:
        difference = a[:, None] - b
        s.addcmul_(difference, difference)
    return s


def derivatives(kernel: RadialKernel, s: Tensor, order: int, same: bool) -> list[Tensor]:
    """φ, …, φ^(order) at the squared distances of a block; `same` where its diagonal pairs points with themselves.

    A singular kernel leaves the diagonal out, and the slope of a kernel with a cusp is 0 at 0.
    """
    values = kernel.derivatives(s, order)
    if kernel.singular and same:
        for value in values:
            value.fill_diagonal_(0)
    if order and not kernel.smooth and bool((smallest := s.min()) == 0):
        for value in values[1:]:
            value.masked_fill_(s == smallest, 0)
    return values


def self_sums(
    kernel: RadialKernel, points: Tensor, weights: Tensor, gradient: bool, potential: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Σ_ij w_i w_j k(x_i − x_j), with its parts for gradients, from the pairs i ≤ j alone; all in float64.

    Returns:
        The value; where `gradient`, Σ_j w_j ∇k(x_i − x_j), (n, d); where `potential`, Σ_j w_j k(x_i − x_j), (n,).

    Raises:
        ValueError: where two particles coincide and the kernel is singular; it names them.
    """
    w = weights.detach().double()
    if (by_keops := keops_sums(kernel, points, points, weights, gradient, own=True)) is not None:
        if kernel.singular:
            refuse_coinciding(kernel, points)
        return w @ by_keops[0], by_keops[1], by_keops[0] if potential else None
    cloud = Cloud(points, centre_of(points))
    weighted = cloud.weighted(w)
    total, sums, potentials = w.new_zeros(()), torch.zeros_like(weighted), torch.zeros_like(w)
    blocks = cloud.rows()
    for k, rows in enumerate(blocks):
        for columns in blocks[k:]:
            same = rows == columns
            s = squared_distances(cloud, rows, cloud, columns)
            value, *slope = derivatives(kernel, s, int(gradient), same)
            row = value @ w[columns]
            total += (w[rows] @ row) * (1 if same else 2)
            if potential:
                potentials[rows] += row
                if not same:
                    potentials[columns] += w[rows] @ value
            if slope:
                sums[:, rows] += weighted[:, columns] @ slope[0].mT
                if not same:
                    sums[:, columns] += weighted[:, rows] @ slope[0]
        if kernel.singular and not bool(torch.isfinite(total)):
            refuse_coinciding(kernel, points)
    return total, 2 * cloud.field(sums).mT if gradient else None, potentials if potential else None


def cross_sums(
    kernel: RadialKernel, points: Tensor, others: Tensor, weights: Tensor, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """u_i = Σ_j v_j k(x_i − y_j), (n,), and where `gradient` ∂u_i/∂x_i, (n, d); in float64."""
    if (by_keops := keops_sums(kernel, points, others, weights, gradient)) is not None:
        return by_keops
    centre = centre_of(points, others)
    x, y, v = Cloud(points, centre), Cloud(others, centre), weights.detach().double()
    weighted = y.weighted(v)
    potentials = v.new_zeros(len(x))
    sums = v.new_zeros(weighted.shape[0], len(x))
    for rows in x.rows():
        for columns in y.rows():
            value, *slope = derivatives(kernel, squared_distances(x, rows, y, columns), int(gradient), False)
            potentials[rows] += value @ v[columns]
            if slope:
                sums[:, rows] += weighted[:, columns] @ slope[0].mT
    return potentials, 2 * x.field(sums).mT if gradient else None


def refuse_coinciding(kernel: object, points: Tensor) -> None:
    """Raise `CoincidingError` that names two particles in one place, if there are any."""
    _, place = points.detach().unique(dim=0, return_inverse=True)
    order = place.argsort(stable=True)
    repeated = (place[order].diff() == 0).nonzero()
    if len(repeated):
        first = int(repeated[0])
        i, j = order[first : first + 2].tolist()
        raise CoincidingError(
            f"particles {i} and {j} coincide at {[round(v, 6) for v in points[i].tolist()]}, where the kernel {kernel} "
            "is infinite; move one a little, or give one particle the weight of both"
        )


def self_sum(kernel: RadialKernel, plain: Callable[..., Tensor], points: Tensor, weights: Tensor) -> Tensor:
    """Σ_ij w_i w_j k(x_i − x_j); the gradient is computed along with the value.

    Derivatives of the gradient, rarely wanted, come from `plain`, the same sum in plain torch.
    """

    def compute(needs: Needs, points: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        total, field, potential = self_sums(kernel, points, weights, *needs)
        by_points = None if field is None else 2 * weights[:, None] * field
        return total, [by_points, None if potential is None else 2 * potential]

    return with_gradients(compute, plain, points, weights)


class CrossSum(Function):
    """Σ_j v_j k(x_i − y_j), (n,); the gradient in x is computed along with the value, those in y and v when asked for.

    Their derivatives come from `plain(x, w, y, v)`, Σ_ij w_i v_j k(x_i − y_j) in plain torch.
    """

    @staticmethod
    def forward(
        kernel: RadialKernel, plain: Callable, gradient: bool, points: Tensor, others: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        potential, field = cross_sums(kernel, points, others, weights, gradient)
        return potential.to(points.dtype), points.new_empty(0) if field is None else field.to(points)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kernel, ctx.plain, _, *tensors = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        kernel, plain, needs = ctx.kernel, ctx.plain, ctx.needs_input_grad[3:]

        def compute(slope: Tensor, field: Tensor, points: Tensor, others: Tensor, weights: Tensor) -> list:
            by_points = slope[:, None] * field if needs[0] else None
            by_others = by_weights = None
            if needs[1] or needs[2]:  # the kernel is even: the same sums with the roles exchanged
                potential, other_field = cross_sums(kernel, others, points, slope, needs[1])
                by_weights = potential.to(weights)
                by_others = None if other_field is None else (weights[:, None] * other_field).to(others)
            return [None, None, by_points, by_others, by_weights]

        def contracted(slope: Tensor, _: Tensor, points: Tensor, others: Tensor, weights: Tensor) -> Tensor:
            return plain(points, slope, others, weights)

        found = gradients_of(compute, contracted, (False, False, *needs), slope, *ctx.saved_tensors)[2:]
        return None, None, None, *(g if need else None for g, need in zip(found, needs, strict=True))
