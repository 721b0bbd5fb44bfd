"""Sums of Gaussian kernels over all pairs of points, with their derivatives, in bounded memory.

`_radial` sums any radial kernel, from distances that keep their digits for near points. A Gaussian has no use for those
digits: from matrix products its values come in two thirds of the time, and both passes share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from wprox._autograd import Function, Needs, gradients_of, needed, run_again

BLOCK = 512  # points in a block: its square of kernel values stays in the cache
KEPT_BYTES = 2**27  # kernel values kept from the forward for the backward pass; above, they are computed again
PLAIN_NUMBERS = 2**22  # of differences that are formed at once for derivatives of the gradient


def log_kernel_sum(z: Tensor, weights: Tensor) -> Tensor:
    r"""log S_i with S_i = Σ_j w_j K_ij and K_ij = exp(−|z_i − z_j|²/2), for points z: (n, d) and weights w: (n,).

    The kernel is evaluated once for each unordered pair, block by block. Both passes are products with K:

        Σ_i g_i ∂ log S_i/∂z_k = a_k ((K wz)_k − S_k z_k) + w_k ((K az)_k − (K a)_k z_k),      a = g/S,
        Σ_i g_i ∂ log S_i/∂w_k = (K a)_k.
    """
    needs = needed(z, weights)
    kept = _Kept() if any(needs) and _bytes(z) <= KEPT_BYTES else None
    return _LogKernelSum.apply(kept, needs, z, weights)[0]


class _Kept(list[Tensor]):
    """Kernel values from the forward pass; as a class of its own torch hands it on as it is, where it copies lists."""


class _LogKernelSum(Function):
    @staticmethod
    def forward(kept: _Kept | None, needs: Needs, z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        factors = torch.cat((weights[:, None], weights[:, None] * z), 1) if needs[0] else weights[:, None]
        products = _multiply(z, factors, keep=kept)
        sums = products[:, 0]
        log_sums = sums.log()
        far = sums == 0  # too far from all mass for exp: never at a point that has mass itself
        if bool(far.any()):
            log_sums[far] = _log_sums(z[far], z, weights)
        return log_sums, products

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kept, ctx.needs, z, weights = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1], z, weights)

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        needs, kept = ctx.needs, ctx.kept
        if slope is None:
            return None, None, None, None

        def compute(slope: Tensor, products: Tensor, z: Tensor, weights: Tensor) -> list[Tensor | None]:
            sums = products[:, :1]
            a = torch.where(sums > 0, slope[:, None] / sums, 0)
            others = _multiply(z, torch.cat((a, a * z), 1) if needs[0] else a, known=kept)
            by_points = None
            if needs[0]:
                by_points = a * (products[:, 1:] - sums * z) + weights[:, None] * (others[:, 1:] - others[:, :1] * z)
            return [None, None, by_points, others[:, 0]]

        def plain(slope: Tensor, _: Tensor, z: Tensor, weights: Tensor) -> Tensor:
            rows = max(1, PLAIN_NUMBERS // z.numel())
            parts = zip(z.split(rows), slope.split(rows), strict=True)
            several = len(z) > rows
            return torch.stack([run_again(_plain, several, z, weights, *part) for part in parts]).sum()

        found = gradients_of(compute, plain, (False, False, *needs), slope, *ctx.saved_tensors)
        return None, None, found[2], found[3]


def _plain(z: Tensor, weights: Tensor, at: Tensor, slope: Tensor) -> Tensor:
    """Σ_i g_i log S_i at some of the points, in plain torch."""
    exponents = (at[:, None] - z).square().sum(-1) / -2
    largest = exponents.detach().masked_fill(weights == 0, -torch.inf).amax(1)
    return slope @ (((exponents - largest[:, None]).exp() @ weights).log() + largest)


def kernel_score(z: Tensor, weights: Tensor) -> Tensor:
    """∇ log Σ_j w_j exp(−|· − z_j|²/2) at the points z_i, (n, d)."""
    products = _multiply(z, torch.cat((weights[:, None], weights[:, None] * z), 1))
    score = products[:, 1:] / products[:, :1] - z
    for i in (products[:, 0] == 0).nonzero()[:, 0]:
        nearness = torch.softmax(weights.log() - (z[i] - z).square().sum(1) / 2, 0)
        score[i] = nearness @ z - z[i]
    return score


def _bytes(z: Tensor) -> int:
    return len(z) ** 2 * z.element_size() // 2


def _multiply(z: Tensor, v: Tensor, keep: list[Tensor] | None = None, known: list[Tensor] | None = None) -> Tensor:
    """K v for v: (n, k), in blocks; kernel values are appended to `keep`, or taken from `known`."""
    columns = v.mT.contiguous()  # the fast order of a thin product
    result = torch.zeros_like(columns)
    for rows, others, block in _blocks(z, keep is not None, known):
        if keep is not None:
            keep.append(block)
        result[:, others] += columns[:, rows] @ block
        if rows != others:
            result[:, rows] += columns[:, others] @ block.mT
    return result.mT


def _blocks(z: Tensor, fresh: bool, known: list[Tensor] | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """The blocks of K on and above the diagonal; one buffer holds them in turn unless they must be fresh."""
    n = len(z)
    half = z.square().sum(1, keepdim=True) / 2
    one = torch.ones_like(half)
    left, right = torch.cat((z, -half, -one), 1), torch.cat((z, one, half), 1).mT.contiguous()
    buffer = z.new_empty(0 if fresh or known is not None else min(BLOCK, n) ** 2)
    count = 0
    for start in range(0, n, BLOCK):
        rows = slice(start, min(n, start + BLOCK))
        for other in range(start, n, BLOCK):
            others = slice(other, min(n, other + BLOCK))
            if known is not None:
                yield rows, others, known[count]
                count += 1
                continue
            shape = rows.stop - rows.start, others.stop - others.start
            block = z.new_empty(shape) if fresh else buffer[: shape[0] * shape[1]].view(shape)
            torch.mm(left[rows], right[:, others], out=block)
            yield rows, others, block.exp_()


def _log_sums(z: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """log Σ_j w_j K_ij, row by row in logarithms."""
    log_weights = weights.log()
    return torch.stack([torch.logsumexp(log_weights - (x - others).square().sum(1) / 2, 0) for x in z])
