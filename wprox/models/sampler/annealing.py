"""Draws of a target by annealing from a wide law, without the sampler's help: they see what its own draws cannot."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from wprox.models.sampler.weights import effective_size

KEPT = 0.8  # the effective part of the population after a stage
MOST_DIMENSIONS = 50  # in more the moves do not mix (at 100 they leave 9 % of a Gaussian's draws outside it)
STAGES = 100  # the largest number
MOVES, LAST_MOVES = 12, 50  # a stage, and at the target
DECADES = 1.5  # over which the lengths of moves are spread, from that which is best for a Gaussian downwards


class Annealed(NamedTuple):
    """A population that was annealed to π = g/Z.

    Attributes:
        points: (n, d), close to draws of π.
        log_density: log g there, (n,).
        log_normalizer: the estimate of log Z that came with them; Z is unbiased.
    """

    points: Tensor
    log_density: Tensor
    log_normalizer: float


@torch.no_grad()
def annealed(
    log_target: Callable[[Tensor], Tensor], dim: int, n: int, generator: torch.Generator, like: Tensor
) -> Annealed | None:
    r"""A population of n points that follows p_β ∝ c^{1−β} g^β from the Cauchy law c, β = 0, to π, β = 1.

    A sequential Monte Carlo sampler (Del Moral, Doucet and Jasra 2006): β grows as far as the weights (g/c)^{Δβ} leave
    an effective part of 0.8, whose mean is a factor of Z; the population is resampled and moved. The Cauchy law of
    R^d at the scale of the initial Gaussian reaches far beyond it.

    Arguments:
        log_target: log g in the units of the initial Gaussian, (n, d) → (n,), −∞ where it is not defined.
        dim: d.
        n: the number of points.
        generator: of everything random.
        like: of their dtype and device.

    Returns:
        None in more than 50 dimensions, where g is 0 at all points, and where β is not 1 after 100 stages.
    """
    if dim > MOST_DIMENSIONS:
        return None
    noise = torch.randn(n, dim + 1, generator=generator, dtype=like.dtype, device=like.device)
    points = noise[:, :dim] / noise[:, dim:].abs()
    log_start, log_g = log_cauchy(points), log_target(points)
    beta = log_normalizer = 0.0
    for _ in range(STAGES):
        log_ratio = log_g - log_start
        if not bool((log_ratio > -math.inf).any()):
            return None
        step = _step(log_ratio, 1 - beta)
        beta = 1.0 if step == 1 - beta else beta + step
        log_weights = step * log_ratio
        log_normalizer += float(log_weights.logsumexp(0)) - math.log(n)
        kept = _resampled(log_weights.softmax(0), generator)
        moves = LAST_MOVES if beta == 1 else MOVES
        points, log_start, log_g = _moved(points[kept], log_g[kept], beta, moves, log_target, generator)
        if beta == 1:
            return Annealed(points, log_g, log_normalizer)
    return None


def log_cauchy(u: Tensor) -> Tensor:
    """The log-density of the Cauchy law of R^d, Student's with one degree of freedom, (n,)."""
    half = (u.shape[1] + 1) / 2
    return math.lgamma(half) - half * math.log(math.pi) - half * u.square().sum(1).log1p()


def _step(log_ratio: Tensor, rest: float) -> float:
    """The largest Δβ up to `rest` that leaves the effective part KEPT, by bisection."""
    if effective_size(rest * log_ratio) >= KEPT * len(log_ratio):
        return rest
    low, high = 0.0, rest
    for _ in range(30):
        middle = (low + high) / 2
        enough = effective_size(middle * log_ratio) >= KEPT * len(log_ratio)
        low, high = (middle, high) if enough else (low, middle)
    return high


def _resampled(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Indices drawn with probabilities `weights`, (n,), at n levels that are evenly spaced (systematic resampling)."""
    n = len(weights)
    shift = torch.rand(1, generator=generator, dtype=weights.dtype, device=weights.device)
    levels = (torch.arange(n, device=weights.device) + shift) / n
    return torch.searchsorted(weights.cumsum(0), levels).clamp(max=n - 1)


def _moved(
    points: Tensor,
    log_g: Tensor,
    beta: float,
    moves: int,
    log_target: Callable[[Tensor], Tensor],
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """The points after so many Metropolis moves that leave p_β invariant, log c and log g there.

    A move goes along the difference of two points of the population as it was before, and so has its scales and its
    directions (ter Braak 2006); its length is random, since what is narrow may be narrower elsewhere.
    """
    n, dim = points.shape
    before, log_start = points, log_cauchy(points)
    for _ in range(moves):
        order = torch.randperm(n, generator=generator, device=points.device)
        dice = torch.rand(2, n, generator=generator, dtype=points.dtype, device=points.device)
        length = 2.38 / math.sqrt(2 * dim) * 10 ** (-DECADES * dice[:1].mT)
        there = points + length * (before[order] - before[order.roll(1)])
        start_there, g_there = log_cauchy(there), log_target(there)
        rise = (1 - beta) * (start_there - log_start) + beta * (g_there - log_g)
        accepted = dice[1].log() < rise  # −∞ − (−∞) is NaN, and rejected
        points = torch.where(accepted[:, None], there, points)
        log_start = torch.where(accepted, start_there, log_start)
        log_g = torch.where(accepted, g_there, log_g)
    return points, log_start, log_g
