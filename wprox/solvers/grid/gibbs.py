"""Gibbs kernels on grids: what the scaling iteration asks of them, and the separable Gaussian."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from wprox.measures import Grid

TILT = 300.0  # the largest exponent of the tilts in the log domain: exp(±TILT) is far from the ends of float64
MISLED = 1e-12  # the share of a sum that entries which are only upper bounds may have


class Kernel(ABC):
    """A symmetric non-negative kernel K on the support points of a grid; fields are flat, (n,).

    Attributes:
        reaches_everywhere: whether `log_apply` is there as an exact log domain to fall back on.
        rooms: (n,), the number from 0 of the room that each point lies in, where walls shut rooms off from each other:
            K is exactly 0 between two of them, and positive within each. `None` where there is one room.
    """

    reaches_everywhere: bool
    rooms: Tensor | None = None

    @abstractmethod
    def apply(self, field: Tensor) -> Tensor:
        """K v for v ≥ 0."""

    @abstractmethod
    def log_apply(self, log_field: Tensor) -> Tensor:
        """log K e^u, exactly, however large or small the entries are."""

    def product(self, log_field: Tensor) -> tuple[Tensor, Tensor]:
        r"""log K e^u in the kernel domain, and the entries where it underflows.

        The maximum of u in each room is absorbed first, so nothing overflows. A sum below the smallest normal number
        has lost its digits: it is replaced by that number, an upper bound, and marked.

        Returns:
            log K e^u (n,), and a boolean (n,) that is true where it is no more than an upper bound.
        """
        largest = self.largest(log_field)
        sums = self.apply((log_field - largest).exp())
        floor = 1e6 * torch.finfo(sums.dtype).tiny  # below, terms may have been subnormal
        lost = sums < floor
        return sums.clamp(min=floor).log() + largest, lost

    def largest(self, log_field: Tensor) -> Tensor:
        """The maximum of u, or where there are several rooms that of each, at every point (n,)."""
        if self.rooms is None:
            return log_field.max()
        lowest = log_field.new_full((int(self.rooms.max()) + 1,), torch.finfo(log_field.dtype).min)  # of an empty room
        return lowest.scatter_reduce(0, self.rooms, log_field, "amax")[self.rooms]


class GaussianKernel(Kernel):
    r"""K(x, y) = exp(−|x − y|²/(2 blur²)) on a box without walls, one axis after the other.

    The kernel is the product of one matrix per axis, so that K v costs n (n_1 + … + n_d) multiplications (Solomon et
    al., *Convolutional Wasserstein distances*, 2015, section 5). Every term is positive: each entry of K v has full
    relative accuracy, which a convolution by FFT would not have.

    Arguments:
        grid: the cells; without walls.
        blur: the standard deviation, in units of length.
    """

    reaches_everywhere = True

    def __init__(self, grid: Grid, blur: float) -> None:
        self.shape, self.blur, self.axes = grid.shape, blur, grid.axes
        self.factors = [(-(axis[:, None] - axis).square() / (2 * blur**2)).exp() for axis in grid.axes]

    def apply(self, field: Tensor) -> Tensor:
        result = field.reshape(self.shape)
        if len(self.factors) == 2:
            return (self.factors[0] @ result @ self.factors[1]).reshape(-1)
        for axis, factor in enumerate(self.factors):
            result = torch.movedim(torch.tensordot(factor, result, dims=([1], [axis])), 0, axis)
        return result.reshape(-1)

    def product(self, log_field: Tensor) -> tuple[Tensor, Tensor]:
        """log K e^u and where it is only an upper bound.

        Where one maximum for all of u is not enough, each axis absorbs that of every line: then no more is lost than
        what is e^(−700) of the largest entry on its line.
        """
        result, lost = super().product(log_field)
        if not bool(lost.any()):
            return result, lost
        tiny = torch.finfo(log_field.dtype).tiny
        result, lost = log_field.reshape(self.shape), torch.zeros(self.shape, dtype=torch.bool, device=lost.device)
        for axis, factor in enumerate(self.factors):
            lines = torch.movedim(result, axis, 0)
            largest = lines.amax(0, keepdim=True).clamp(min=torch.finfo(lines.dtype).min)  # −∞ on an empty line
            values = (lines - largest).exp()
            sums = torch.tensordot(factor, values, dims=1)
            under = sums < 1e6 * tiny
            if bool(lost.any()):
                bounds = values * torch.movedim(lost, axis, 0)
                under |= torch.tensordot(factor, bounds, dims=1) > MISLED * sums
            result = torch.movedim(sums.clamp(min=1e6 * tiny).log() + largest, 0, axis)
            lost = torch.movedim(under, 0, axis)
        return result.reshape(-1), lost.reshape(-1)

    def log_apply(self, log_field: Tensor) -> Tensor:
        r"""log K e^u, one axis after the other and block after block of the cells along it.

        With the centre c of a block, −(x − y)² = −(x − c)² + 2 (x − c)(y − c) − (y − c)²: the maximum over y of
        u(y) − (y − c)²/(2 blur²) is absorbed, and e^{(x − c)(y − c)/blur²} is a matrix for all lines. Blocks are so
        short that its exponents stay within ±TILT: the sum is at least e^(−TILT), and what underflows is below
        e^(TILT − 700).
        """
        result = log_field.reshape(self.shape)
        for axis, points in enumerate(self.axes):
            lines = torch.movedim(result, axis, 0)
            flat = lines.reshape(len(points), -1)
            scaled = points / self.blur
            length = float(scaled[-1] - scaled[0])
            cells = len(points) if length == 0 else int(2 * TILT / length**2 * (len(points) - 1)) + 1
            parts = []
            for block in scaled.split(cells):
                centre = (block[0] + block[-1]) / 2
                exponents = flat - ((scaled - centre).square() / 2)[:, None]
                largest = exponents.amax(0).clamp(min=torch.finfo(flat.dtype).min)
                tilts = ((block - centre)[:, None] * (scaled - centre)).exp()
                sums = (tilts @ exponents.sub_(largest).exp_()).log()
                parts.append(sums + largest - ((block - centre).square() / 2)[:, None])
            result = torch.movedim(torch.cat(parts).reshape(lines.shape), 0, axis)
        return result.reshape(-1)
