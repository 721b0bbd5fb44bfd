"""Monotone rational-quadratic splines in few passes over their parameters."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

LEAST = 1e-3  # of slopes at knots, and of a bin over the mean of the others, roughly


def spline(x: Tensor, parameters: Tensor, bins: int, bound: float) -> tuple[Tensor, Tensor]:
    r"""The spline and the logarithm of its slope, (m, n) both (Durkan et al. 2019, equations 4 and 5).

    In the bin [X_0, X_1] × [Y_0, Y_1] that holds x, with z = (x − X_0)/(X_1 − X_0), the slope s of its chord and the
    slopes δ_0, δ_1 at its ends,

        y = Y_0 + (Y_1 − Y_0) (s z² + δ_0 z(1 − z)) / (s + (δ_0 + δ_1 − 2s) z(1 − z)),

    and outside [−bound, bound] it is the identity. Relative widths and heights of the bins, and the slopes at inner
    knots, are exponentials of the parameters, which u ↦ u/(1 + c|u|) bounds first.

    Gradients are by hand. Where they are to be differentiated again, the same formulas run on differentiable tensors.

    Arguments:
        x: (m, n), m coordinates of n points.
        parameters: (m, 3 bins − 1, n): the widths, the heights and the inner slopes of each. Points come last, so that
            sums over bins are sums of rows.
    """
    y, log_slope, *_ = _Spline.apply(x, parameters, bins, bound)
    return y, log_slope


def inverse_spline(y: Tensor, parameters: Tensor, bins: int, bound: float) -> Tensor:
    """x where the spline has the value y, (m, n): the root in its bin of a quadratic (ibid., equations 6 to 8)."""
    bin = _find(y, parameters, bins, bound, by_height=True)
    left, low, width, height, first, last = bin.geometry(bound)
    s = height / width
    bend = first + last - 2 * s
    rest = y.clamp(-bound, bound) - low
    a, b, c = height * (s - first) + rest * bend, height * first - rest * bend, -s * rest
    # the discriminant is positive in exact arithmetic
    z = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    return torch.where(y.abs() < bound, left + z * width, y)


class _Bin(NamedTuple):
    """The bin that holds each point, and what gradients need of all bins.

    Attributes:
        number: of the bin, (m, 1, n).
        ends: the sums of relative widths, and of relative heights, below the bin and up to it, (m, 2, 2, n).
        totals: the sums of all of them, (m, 2, 1, n).
        slopes: at its two ends, (m, 2, n).
        sizes: the relative widths and heights of all bins, (m, 2 bins, n).
        squash: 1/(1 + c|u|) of their parameters u, (m, 2 bins, n).
    """

    number: Tensor
    ends: Tensor
    totals: Tensor
    slopes: Tensor
    sizes: Tensor
    squash: Tensor

    def geometry(self, bound: float) -> tuple[Tensor, ...]:
        """X_0, Y_0, the width, the height and the slopes at the ends, (m, n) each."""
        corners = self.ends * (2 * bound / self.totals) - bound
        corner = corners[:, :, 0]
        size = corners[:, :, 1] - corner
        return *corner.unbind(1), *size.unbind(1), *self.slopes.unbind(1)


def _find(value: Tensor, parameters: Tensor, bins: int, bound: float, by_height: bool = False) -> _Bin:
    u = parameters[:, : 2 * bins]
    squash = u.abs().mul_(-2 / math.log(LEAST)).add_(1).reciprocal_()
    sizes = (u * squash).exp_()
    # a matrix product is the fastest cumulative sum over rows
    sums = _lower(bins, u) @ sizes.reshape(len(u), 2, bins, -1)
    totals = sums[:, :, -1:]
    place = (value + bound)[:, None] * (totals[:, int(by_height)] / (2 * bound))
    index = (sums[:, int(by_height), 1:-1] < place).sum(1, keepdim=True)
    ends = sums.gather(2, torch.cat((index, index + 1), 1)[:, None].expand(-1, 2, -1, -1))
    knots, inner = _inner_knots(index, bins)
    logits = parameters[:, 2 * bins :].gather(1, knots) * inner  # the slopes at the ends of the box are 1
    slopes = (logits / (logits.abs() * (-1 / math.log(LEAST)) + 1)).exp_()
    return _Bin(index, ends, totals, slopes, sizes, squash)


def _inner_knots(index: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The numbers of the two ends of a bin among the inner knots, (m, 2, n), and whether they are inner knots."""
    knots = torch.cat((index - 1, index), 1)
    among = knots.clamp(0, bins - 2)
    return among, among == knots


def _lower(bins: int, like: Tensor) -> Tensor:
    """The matrix that sums the first 0, 1, …, `bins` rows, (bins + 1, bins)."""
    return torch.ones(bins + 1, bins, dtype=like.dtype, device=like.device).tril(-1)


class _Place(NamedTuple):
    """Where a point is in its bin, and the parts of the formula of y, (m, n) each."""

    inside: Tensor
    z: Tensor
    rest: Tensor  # 1 − z
    both: Tensor  # z(1 − z)
    low: Tensor
    width: Tensor
    height: Tensor
    s: Tensor
    first: Tensor
    last: Tensor
    bend: Tensor  # δ_0 + δ_1 − 2s
    bottom: Tensor  # s + bend z(1 − z)
    fraction: Tensor  # (y − Y_0)/(Y_1 − Y_0)
    top: Tensor  # the slope is s² top/bottom²


def _place(x: Tensor, bin: _Bin, bound: float) -> _Place:
    left, low, width, height, first, last = bin.geometry(bound)
    s = height / width
    z = (x.clamp(-bound, bound) - left) / width
    rest = 1 - z
    both = z * rest
    bend = torch.sub(first + last, s, alpha=2)
    bottom = torch.addcmul(s, bend, both)
    start, end = first * rest, last * z
    fraction = z * torch.addcmul(start, s, z) / bottom
    top = torch.addcmul(torch.addcmul(start * rest, end, z), s, both, value=2)
    inside = x.abs() < bound
    return _Place(inside, z, rest, both, low, width, height, s, first, last, bend, bottom, fraction, top)


class _Spline(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, parameters: Tensor, bins: int, bound: float) -> tuple[Tensor, ...]:
        bin = _find(x, parameters, bins, bound)
        at = _place(x, bin, bound)
        y = torch.where(at.inside, torch.addcmul(at.low, at.height, at.fraction), x)
        log_slope = ((at.s / at.bottom).square() * at.top).log() * at.inside
        return y, log_slope, *bin, *at

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, parameters, ctx.bins, ctx.bound = inputs
        ctx.mark_non_differentiable(*output[2:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, parameters, *output[2:])

    @staticmethod
    def backward(ctx: Any, by_y: Tensor | None, by_log_slope: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, parameters, *saved = ctx.saved_tensors
        by_y = torch.zeros_like(x) if by_y is None else by_y
        by_log_slope = torch.zeros_like(x) if by_log_slope is None else by_log_slope
        split = len(_Bin._fields)
        bin, at = _Bin(*saved[:split]), _Place(*saved[split:])
        if torch.is_grad_enabled():  # what was saved are numbers; now functions of x and the parameters are wanted
            bin = _find(x, parameters, ctx.bins, ctx.bound)
            at = _place(x, bin, ctx.bound)
        return *_gradient(by_y, by_log_slope, bin, at, ctx.bins, ctx.bound), None, None


def _gradient(
    by_y: Tensor, by_log_slope: Tensor, bin: _Bin, at: _Place, bins: int, bound: float
) -> tuple[Tensor, Tensor]:
    """The gradients of ⟨by_y, y⟩ + ⟨by_log_slope, log y′⟩ in x and in the parameters."""
    inside, z, rest, both, _, width, height, s, first, last, bend, bottom, fraction, top = at
    of_y, of_log = by_y * inside, by_log_slope * inside

    # in z, s, δ_0 and δ_1 where the bin stays as it is
    scale, over_top, over_bottom = of_y * height / bottom, of_log / top, 2 * of_log / bottom
    square, odd, even = z * z, rest - z, 1 - 2 * both
    by_z = (
        scale * s * top / bottom
        + 2 * over_top * torch.addcmul(last * z - first * rest, s, odd)
        - over_bottom * bend * odd
    )
    by_s = scale * (square - fraction * even) + 2 * torch.addcmul(of_log / s, over_top, both) - over_bottom * even
    by_first = torch.addcmul(both * (scale - scale * fraction - over_bottom), over_top, rest * rest)
    by_last = over_top * square - both * torch.addcmul(over_bottom, scale, fraction)

    # z = (x − X_0)/width, s = height/width
    by_x, by_height = by_z / width, torch.addcmul(by_s / width, of_y, fraction)
    by_width = -(by_x * z + by_s * s / width)
    by_left, by_low = -by_x - by_width, of_y - by_height
    by_corners = torch.stack((by_left, by_width, by_low, by_height), 1).reshape(bin.ends.shape)

    # from the corners to the sums of sizes; every corner depends on the total, which is the last of the sums
    by_ends = by_corners * (2 * bound / bin.totals)
    by_totals = -(by_ends * bin.ends).sum(2, keepdim=True) / bin.totals
    rows = torch.cat((bin.number, bin.number + 1, torch.full_like(bin.number, bins)), 1)[:, None].expand(-1, 2, -1, -1)
    by_sums = by_ends.new_zeros(*by_ends.shape[:2], bins + 1, by_ends.shape[-1])
    by_sums = by_sums.scatter_add_(2, rows, torch.cat((by_ends, by_totals), 2))
    by_sizes = (_lower(bins, by_ends).mT @ by_sums).reshape(bin.sizes.shape)
    # sizes are exp(u/(1 + c|u|)), and u/(1 + c|u|) has the derivative 1/(1 + c|u|)²
    if torch.is_grad_enabled():
        by_sizes = by_sizes * bin.sizes * bin.squash.square()
    else:
        by_sizes.mul_(bin.sizes).mul_(bin.squash).mul_(bin.squash)

    # the slopes are exponentials too; here 1/(1 + c|u|) = 1 − c|log slope|
    knots, inner = _inner_knots(bin.number, bins)
    rates = bin.slopes * (bin.slopes.log().abs() * (1 / math.log(LEAST)) + 1).square() * inner
    by_slopes = by_ends.new_zeros(*knots.shape[:1], bins - 1, knots.shape[-1])
    by_slopes = by_slopes.scatter_add_(1, knots, torch.stack((by_first, by_last), 1) * rates)
    return torch.where(inside, by_x, by_y), torch.cat((by_sizes, by_slopes), 1)
