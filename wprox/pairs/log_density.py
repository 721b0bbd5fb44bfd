"""Sums of Gaussian kernels over all pairs of points, with their derivatives, in bounded memory.

`_radial` sums any radial kernel, from distances that keep their digits for near points. A Gaussian has no use for those
digits: from matrix products its values come in two thirds of the time, and both passes share them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 512  # points in a block: its square of kernel values stays in the cache
KEPT_BYTES = 2**27  # kernel values kept from the forward for the backward pass; above, they are computed again


class LogKernelSum(torch.autograd.Function):
    r"""log S_i with S_i = Σ_j w_j K_ij and K_ij = exp(−|z_i − z_j|²/2), for points z: (n, d) and weights w: (n,).

    The kernel is evaluated once for each unordered pair, block by block. Both passes are products with K:

        Σ_i g_i ∂ log S_i/∂z_k = a_k ((K wz)_k − S_k z_k) + w_k ((K az)_k − (K a)_k z_k),      a = g/S.

    It is differentiable in the points once, and in the weights not at all.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, weights: Tensor) -> Tensor:
        factors = (
            torch.cat((weights[:, None], weights[:, None] * z), 1) if ctx.needs_input_grad[0] else weights[:, None]
        )
        kept: list[Tensor] | None = [] if ctx.needs_input_grad[0] and _bytes(z) <= KEPT_BYTES else None
        products = _multiply(z, factors, keep=kept)
        sums = products[:, 0]
        log_sums = sums.log()
        far = sums == 0  # too far from all mass for exp: never at a point that has mass itself
        if bool(far.any()):
            log_sums[far] = _log_sums(z[far], z, weights)
        ctx.save_for_backward(z, weights, products)
        ctx.kept = kept
        return log_sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, None]:
        z, weights, products = ctx.saved_tensors
        sums = products[:, :1]
        a = torch.where(sums > 0, cotangent[:, None] / sums, 0)
        others = _multiply(z, torch.cat((a, a * z), 1), known=ctx.kept)
        gradient = a * (products[:, 1:] - sums * z)
        return gradient + weights[:, None] * (others[:, 1:] - others[:, :1] * z), None


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
