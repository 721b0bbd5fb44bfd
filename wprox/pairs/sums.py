"""Sums over all pairs of points, Σ_ij w_i v_j k(x_i − y_j): the door to the engines of this folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from wprox._autograd import needed, run_again, uncut
from wprox._checks import evaluate
from wprox.kernels import EvenKernel, RadialKernel
from wprox.pairs.functions import FunctionPotential, function_sum
from wprox.pairs.radial import CrossSum, refuse_coinciding, self_sum

PAIR_BLOCK_BYTES = 2**20  # differences x − y formed at once on a CPU; they, and the kernel's copies, stay in the cache
PAIR_BLOCK_BYTES_GPU = 2**26


def pair_sum(
    k: Callable[[Tensor], Tensor],
    points: Tensor,
    weights: Tensor,
    others: Tensor | None = None,
    other_weights: Tensor | None = None,
) -> Tensor:
    """Σ_ij w_i v_j k(x_i − y_j) for points x (n, d) and others y (m, d); without others, those are the points.

    A singular kernel then leaves i = j out.
    """
    if not isinstance(k, RadialKernel):
        if others is not None or has_parameters(k, points):
            return _pair_sum(k, points, weights, others, other_weights)

        watched = uncut(k, k, "the kernel ")

        def checked(z: Tensor) -> Tensor:
            return evaluate(watched, z, "k")

        checked.singular = getattr(k, "singular", False)  # type: ignore[attr-defined]
        even, plain = isinstance(k, EvenKernel), partial(_pair_sum, k)
        total = function_sum(checked, even, _side(k, points), plain, points, weights)
        if not bool(torch.isfinite(total.detach())):
            _explain(k, points)
        return total
    if has_parameters(k, points):
        return _pair_sum(k, points, weights, others, other_weights)
    if others is None or other_weights is None:
        return self_sum(k, partial(_pair_sum, k), points, weights)
    return weights @ potential(k, points, others, other_weights)


def potential(k: Callable[[Tensor], Tensor], points: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """(k ∗ ν)(x_i) = Σ_j v_j k(x_i − y_j) of ν = Σ_j v_j δ_{y_j}, (n,), in blocks of rows.

    A singular kernel leaves out pairs that coincide.
    """
    if getattr(k, "singular", False):
        k = partial(_punctured, k)
    if isinstance(k, RadialKernel) and not has_parameters(k, points):
        return CrossSum.apply(k, partial(_pair_sum, k), needed(points)[0], points, others, weights)[0]

    def by_autodiff(points: Tensor) -> Tensor:
        blocks = _blocks(k, points, others)
        return torch.cat(
            [run_again(_rows, len(blocks) > 1, k, points, others, weights, rows, False) for rows in blocks]
        )

    if others.requires_grad or weights.requires_grad or has_parameters(k, points):
        return by_autodiff(points)
    checked = partial(_evaluate_kernel, uncut(k, k, "the kernel "))
    side, gradient = _side(k, points), needed(points)[0]
    return FunctionPotential.apply(checked, by_autodiff, side, gradient, points, others, weights)[0]


def batch_sum(k: Callable[[Tensor], Tensor], points: Tensor, weights: Tensor, size: int) -> Tensor:
    """An estimate of Σ_ij w_i w_j k(x_i − x_j) from the pairs i ≠ j of consecutive batches, for an even kernel.

    In random order, a pair meets in one of the batches of sizes p_c with probability Σ_c p_c (p_c − 1)/(n (n − 1)), by
    which its terms are divided; the pairs i = j are summed exactly, or left out where the kernel is singular.
    """
    n, d = points.shape
    count = math.ceil(n / size)
    sizes = [n // count + (c < n % count) for c in range(count)]  # as even as can be
    together = sum(p * (p - 1) for p in sizes) / (n * (n - 1))

    def block(points: Tensor, weights: Tensor, start: int, batches: int, p: int) -> Tensor:
        rows = slice(start, start + batches * p)
        x, w = points[rows].reshape(batches, p, d), weights[rows].reshape(batches, p)
        i, j = torch.triu_indices(p, p, 1, device=points.device)
        values = evaluate(k, (x[:, i] - x[:, j]).reshape(-1, d), "k").reshape(batches, len(i))
        return 2 * (w[:, i] * w[:, j] * values).sum()

    total, start = points.new_zeros(()), 0
    for p in sorted(set(sizes), reverse=True):
        at_once = max(1, _block_bytes(k, points) // (p * p * d * points.element_size()))
        left = sizes.count(p)
        while left:
            batches = min(left, at_once)
            total = total + run_again(block, batches < count, points, weights, start, batches, p)
            start, left = start + batches * p, left - batches
    total = total / together
    if getattr(k, "singular", False):
        return total
    return total + weights.square().sum() * evaluate(k, torch.zeros_like(points[:1]), "k")[0]


def _pair_sum(
    k: Callable[[Tensor], Tensor],
    points: Tensor,
    weights: Tensor,
    others: Tensor | None = None,
    other_weights: Tensor | None = None,
) -> Tensor:
    """`pair_sum` by automatic differentiation, for any kernel."""
    itself = others is None or other_weights is None
    y, v = (points, weights) if others is None or other_weights is None else (others, other_weights)

    def block(points: Tensor, weights: Tensor, y: Tensor, v: Tensor, rows: slice) -> Tensor:
        return weights[rows] @ _rows(k, points, y, v, rows, itself)

    total = points.new_zeros(())  # a sum, not a list: small pieces between large temporaries scatter the heap
    blocks = _blocks(k, points, y)
    for rows in blocks:
        total = total + run_again(block, len(blocks) > 1, points, weights, y, v, rows)
    if itself and not bool(torch.isfinite(total.detach())):
        _explain(k, points)
    return total


def _rows(
    k: Callable[[Tensor], Tensor], points: Tensor, others: Tensor, weights: Tensor, rows: slice, itself: bool
) -> Tensor:
    """Σ_j v_j k(x_i − y_j) for some rows i; a singular kernel leaves i = j out where `others` are the points."""
    part, m = points[rows], len(others)
    z = part[:, None] - others
    own = None
    if itself and getattr(k, "singular", False):  # evaluated elsewhere, so that 0 · ∞ stays out of the gradient
        index = torch.arange(m, device=points.device)
        own = index[rows, None] == index
        z = torch.where(own[..., None], torch.ones_like(z), z)
    values = evaluate(k, z.reshape(-1, points.shape[1]), "k").reshape(len(part), m)
    return (values if own is None else values.masked_fill(own, 0)) @ weights


def _blocks(k: Callable[[Tensor], Tensor], points: Tensor, others: Tensor) -> list[slice]:
    """Rows of points whose differences from the others fit into a block."""
    size = max(1, _block_bytes(k, points) // (others.numel() * points.element_size()))
    return [slice(start, min(start + size, len(points))) for start in range(0, len(points), size)]


def _block_bytes(k: Callable[[Tensor], Tensor], points: Tensor) -> int:
    given = k.memory_budget if isinstance(k, EvenKernel) else None
    return given or (PAIR_BLOCK_BYTES if points.device.type == "cpu" else PAIR_BLOCK_BYTES_GPU)


def _side(k: Callable[[Tensor], Tensor], points: Tensor) -> int:
    """Of a square tile of pairs whose differences fit into a block."""
    return max(1, math.isqrt(_block_bytes(k, points) // (points.shape[1] * points.element_size())))


def _punctured(k: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """k(z), and 0 where z is 0; evaluated elsewhere there, so that 0 · ∞ stays out of the gradient."""
    coincide = (z == 0).all(-1)
    values = evaluate(k, torch.where(coincide[:, None], torch.ones_like(z), z), "k")
    return values.masked_fill(coincide, 0)


def _evaluate_kernel(k: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    return evaluate(k, z, "k")


def has_parameters(k: Callable[[Tensor], Tensor], points: Tensor) -> bool:
    """Whether the kernel has tensors of its own that want a gradient."""
    return torch.is_grad_enabled() and evaluate(k, torch.ones_like(points[:1]), "k").requires_grad


def _explain(k: Callable[[Tensor], Tensor], points: Tensor) -> None:
    """Raise `ValueError` where a sum over pairs is not finite because of what the kernel is at 0."""
    if getattr(k, "singular", False):
        refuse_coinciding(k, points)
    elif not bool(torch.isfinite(evaluate(k, torch.zeros_like(points[:1]), "k")).all()):
        raise ValueError(
            "the kernel is infinite at 0, where a particle meets itself; give it an attribute `singular = True`, "
            "which leaves these pairs out, or take one of wprox.kernels, which have it"
        )
