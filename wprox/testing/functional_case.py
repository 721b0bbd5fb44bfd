"""A functional at a measure, and measures nearby: images, other weights and mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.functionals import Functional
from wprox.maps import AffineMap
from wprox.measures import Gaussian, Grid, KernelParticles, Measure, Particles
from wprox.testing.laws import Unasked, answer, masses, normal

SHIFT = 1e-5  # of difference quotients, in units of the points: rounding and curvature are both near 1e-10
AFFINE_SHIFT = 1e-4  # where the map itself is rounded to 1e-12
ROUNDING = 1e-8  # of difference quotients, relative to the value
OTHERS = 5  # points of the measure that ρ is mixed with


@dataclass(frozen=True)
class Case:
    """A functional at a measure where it has a value."""

    functional: Functional
    rho: Measure
    parameters: Sequence[Tensor]
    rtol: float
    seed: int

    def value(self, rho: Measure, functional: Functional | None = None) -> float:
        """F(ρ), or that of another functional, as a number."""
        with torch.no_grad():
            return float((self.functional if functional is None else functional)(rho))

    @property
    def rounding(self) -> float:
        return ROUNDING * (1 + abs(self.value(self.rho)))

    def finite(self) -> None:
        """Leave the law out where F(ρ) is infinite: there it has no derivatives."""
        if not math.isfinite(self.value(self.rho)):
            raise Unasked("F(ρ) is infinite")


def affine_image(rho: Measure, scale: Tensor, shift: Tensor) -> Measure:
    """The image of ρ under x ↦ scale x + shift, with a positive scale for each coordinate."""
    if isinstance(rho, Gaussian):
        return answer(rho.push, AffineMap.from_matrix(torch.diag(scale), shift))
    log_det = scale.log().sum()
    return rho.push(lambda x: (x * scale + shift, log_det.expand(len(x)).to(x)))


def affine_line(rho: Measure, seed: int) -> tuple[Tensor, Callable[[float], Measure], float]:
    """ξ(x) = Dx + b at the points, with D diagonal, the measure (id + tξ)#ρ by t, and how long t is.

    With D diagonal a Gaussian's nodes move along ξ themselves, whatever its covariance is.
    """
    if isinstance(rho, Grid):
        raise Unasked("the points of a Grid do not move")
    stretch, shift = normal(rho.points, 2, rho.dim, seed=seed + 1)
    direction = rho.points * stretch + shift
    return direction, lambda t: affine_image(rho, 1 + t * stretch, t * shift), AFFINE_SHIFT


def reweighted(rho: Measure, weights: Tensor) -> Measure:
    """The same points with other weights."""
    if isinstance(rho, Grid):
        return rho.with_weights(weights)
    result = copy(rho)
    result.weights = weights
    return result


def mixtures(rho: Measure, seed: int) -> tuple[Callable[[float], Measure], Tensor, Tensor]:
    """(1 − t)ρ + tσ by t, with the points and the weights of σ."""
    if isinstance(rho, Grid):
        weights = masses(len(rho), seed + 5).to(rho.weights)
        return lambda t: rho.with_weights((1 - t) * rho.weights + t * weights), rho.points, weights
    others = normal(rho.points, OTHERS, rho.dim, seed=seed + 5)
    weights = masses(OTHERS, seed + 5).to(rho.weights)
    points = torch.cat((rho.points, others))

    def mixed(t: float) -> Tensor:
        return torch.cat(((1 - t) * rho.weights, t * weights))

    if isinstance(rho, KernelParticles) and rho.bandwidth is not None:
        return lambda t: KernelParticles(points, mixed(t), bandwidth=rho.bandwidth), others, weights
    if type(rho) is Particles and not rho.density_known and not rho.is_relative:
        return lambda t: Particles(points, mixed(t)), others, weights
    raise Unasked("mixtures of this measure are of another kind")
