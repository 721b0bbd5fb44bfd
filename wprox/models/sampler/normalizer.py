"""log Z and a standard error that counts what draws of the sampler cannot see: annealed draws look at their weights."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wprox._warnings import warn
from wprox.maps import InverseError
from wprox.metrics import pareto_k
from wprox.models.sampler.annealing import annealed
from wprox.models.sampler.chain import Chain
from wprox.models.sampler.target import ScaledTarget
from wprox.models.sampler.weights import LogNormalizer, log_normalizer, relative_variance

HEAVIER = math.log(2)  # a weight so far above all others is one that the draws do not know of
UNHEARD = 1.0  # nats that annealing may find less than the draws of the sampler
POPULATIONS = 4
FEW = 25  # weights, of which there is no tail to speak of
FEW_DRAWS = 4  # of π, which may lie anywhere
AGREED, CLOSE = 3.0, 0.05  # standard errors and nats within which two estimates agree


class Reverse(NamedTuple):
    """Draws of π = g/Z that do not come from the sampler, in populations that know nothing of one another.

    Attributes:
        log_weights: log g − log ρ there, (m,); +∞ where ρ is 0.
        population: which one a draw is of, (m,).
        log_normalizers: the estimate of log Z of each, by which they count, (r,).
    """

    log_weights: Tensor
    population: Tensor
    log_normalizers: Tensor

    @property
    def log_normalizer(self) -> float:
        """log of the mean of Z over the populations."""
        return float(self.log_normalizers.logsumexp(0)) - math.log(len(self.log_normalizers))

    @property
    def log_shares(self) -> Tensor:
        """The logarithms of what each draw counts, (m,), 1 in all: populations by the Z that they found."""
        counts = torch.bincount(self.population, minlength=len(self.log_normalizers))
        return (self.log_normalizers.log_softmax(0) - counts.to(self.log_normalizers).log())[self.population]


def reverse_draws(
    target: ScaledTarget, chain: Chain, n: int, generator: torch.Generator, like: Tensor
) -> Reverse | None:
    """n draws of π in four populations, with their weights; None where annealing does not get to π."""

    def log_target(u: Tensor) -> Tensor:
        """log g far from where the sampler looked at it, where it may overflow: −∞ there."""
        x = target.to_x(u.to(target.units.dtype))
        values = target.log_target(x) + target.log_det
        return values.masked_fill(values.isnan() | (values == math.inf), -math.inf).to(u)

    found = []
    for _ in range(POPULATIONS):
        population = annealed(log_target, target.dim, n // POPULATIONS, generator, like)
        if population is None:
            return None
        found.append(population)
    log_g, points = torch.cat([part.log_density for part in found]), torch.cat([part.points for part in found])
    index = torch.arange(POPULATIONS, device=like.device).repeat_interleave(n // POPULATIONS)
    return Reverse(log_g - log_prob(chain, points), index, like.new_tensor([part.log_normalizer for part in found]))


def log_prob(chain: Chain, points: Tensor) -> Tensor:
    """log ρ at the points, (n,), −∞ where a forward step has no inverse, and so no draw is near."""
    try:
        return chain.log_prob(points)
    except InverseError:
        if len(points) == 1:
            return points.new_full((1,), -math.inf)
        return torch.cat([log_prob(chain, half) for half in points.chunk(2)])


def bridge(log_weights: Tensor, masses: Tensor | None, reverse: Reverse) -> LogNormalizer:
    r"""log Z by bridge sampling between n draws of ρ and m of π, and its standard error.

        Z = E_ρ[α g]/E_π[α ρ],      α = 1/(n ρ + m π),

    the best α (Meng and Wong 1996), π = g/Z by iteration. Both means are of bounded numbers. The error of the first is
    that of independent draws, that of the second from leaving out one population at a time.
    """
    n, m = len(log_weights), len(reverse.log_weights)
    log_n, log_m = log_weights.new_tensor(n).log(), log_weights.new_tensor(m).log()
    value = log_weights.logsumexp(0) - log_n
    log_shares, log_reverse = reverse.log_shares, reverse.log_weights
    for _ in range(1000):
        above = log_weights - torch.logaddexp(log_n, log_m + log_weights - value)
        below = log_shares - torch.logaddexp(log_n, log_m + log_reverse - value)
        before, value = value, above.logsumexp(0) - log_n - below.logsumexp(0)
        if not float((value - before).abs()) > 1e-10:
            break
    first, r = above.exp(), len(reverse.log_normalizers)
    left_out = torch.stack(
        [
            below[others].logsumexp(0) - log_shares[others].logsumexp(0)
            for others in (reverse.population != k for k in range(r))
        ]
    )
    variance = relative_variance(first) + (r - 1) ** 2 / r * float(left_out.var())
    if masses is None:
        return LogNormalizer(float(value), math.sqrt(variance))
    return LogNormalizer(float(value + masses.mean().log()), math.sqrt(variance + relative_variance(masses)))


def reviewed(log_weights: Tensor, masses: Tensor | None, reverse: Reverse | None) -> LogNormalizer:
    """log Z as the weights of the sampler's draws tell it where nothing speaks against them, else by `bridge`.

    Two things do: a heavy tail of the weights (`wprox.metrics.pareto_k`), and more than a few of the draws of π where
    g/ρ is over twice what it is at any draw of ρ, which has (nearly) nothing there. The standard error takes in that
    part of π, and what the two estimates disagree by. A warning comes with such a part, and with a heavy tail unless
    the two agree, within three standard errors and 0.05.

    Arguments:
        log_weights: log g − log ρ at draws of ρ, (n,).
        masses: independent estimates of the integral of ρ as it was computed, (m,); 1 where not given.
        reverse: draws of π; None where there are none. Where they found less than the draws of ρ by over a nat, they
            know less than these, and are not asked.
    """
    found, tail = log_normalizer(log_weights, masses), heavy_tail(log_weights)
    if reverse is None or reverse.log_normalizer < found.value - UNHEARD or found.value == -math.inf:
        if tail:
            _warn(found, [tail], "No better estimate is at hand", found)
        return found
    part, chance = unseen(log_weights, reverse)
    if not tail and part <= chance:
        least = 2 / len(reverse.log_weights)  # weights that are all equal know of no other mode
        return LogNormalizer(found.value, max(math.hypot(found.standard_error, part), least))
    bridged = bridge(log_weights, masses, reverse)
    disagreement = bridged.value - found.value
    answer = LogNormalizer(bridged.value, math.hypot(bridged.standard_error, disagreement, part))
    agreed = abs(disagreement) <= min(AGREED * found.standard_error, CLOSE)
    reasons = [] if agreed or not tail else [tail]
    if part > chance:
        reasons.append(
            f"about {part:.2g} of the target's mass, by annealing from a wide law, lies where none of the "
            f"{len(log_weights)} draws does"
        )
    if reasons:
        _warn(found, reasons, "Bridge sampling between them and annealed draws gives", answer)
    return answer


def heavy_tail(log_weights: Tensor) -> str:
    """What to say where the Pareto index is above the limit for so many weights (Vehtari et al. 2024), else nothing."""
    n = len(log_weights)
    if n < FEW or not bool((log_weights > -math.inf).any()):
        return ""
    k, limit = pareto_k(log_weights, log=True), min(1 - 1 / math.log10(n), 0.7)
    return f"the tail of their weights is heavy (Pareto k = {k:.2f}, above {limit:.2f})" if k > limit else ""


def unseen(log_weights: Tensor, reverse: Reverse) -> tuple[float, float]:
    """The part of π where the weights are over twice what they are at any draw of ρ, and what chance may bring about.

    Where ρ covers π, about the share of the largest of n weights lies beyond it.
    """
    beyond = reverse.log_weights > log_weights.max() + HEAVIER
    chance = 2 * float(log_weights.softmax(0).max()) + FEW_DRAWS / len(beyond)
    return float(reverse.log_shares[beyond].exp().sum()), chance


def _warn(found: LogNormalizer, reasons: list[str], source: str, answer: LogNormalizer) -> None:
    warn(
        f"log Z is not what the sampler's draws tell, {found.value:.5g} ± {found.standard_error:.2g}: "
        f"{' and '.join(reasons)}. {source}: {answer.value:.5g} ± {answer.standard_error:.2g}. Try more blocks or "
        "iterations, an initial Gaussian that covers the target, JKOSampler.for_modes where there are several modes, "
        "or corrections=5 or more (rejection steps)"
    )
