"""What laws are asked of: small measures of every kind, and steps whose result is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.functionals import KL, Functional, InteractionEnergy, PotentialEnergy
from wprox.measures import Gaussian, Grid, KernelParticles, Measure, Particles, Quantiles
from wprox.testing.laws import masses, normal

POINTS = 12
ORDER = {1: 24, 2: 16, 3: 6}  # of Gauss and Hermite's rule, by dimension
CELLS = {1: 16, 2: 5, 3: 3}  # along an axis
BANDWIDTH = 0.5

Moments = tuple[Tensor, float]


def sample_measures(dim: int, seed: int = 0) -> list[Measure]:
    """One small measure in float64 of each kind that there is in dimension d, of unequal weights."""
    like = torch.empty(0, dtype=torch.float64)
    points, weights = normal(like, POINTS, dim, seed=seed), masses(POINTS, seed)
    scales = 0.5 + torch.arange(1, dim + 1).to(like) / dim
    law = Gaussian(normal(like, dim, seed=seed + 1), torch.diag(scales), ORDER.get(dim))
    found: list[Measure] = [
        Particles(points, weights),
        Particles(points, weights, log_density=law.log_prob(points)),
        KernelParticles(points, weights, bandwidth=BANDWIDTH),
        KernelParticles(points, weights),
    ]
    if dim in ORDER:
        found += [law, Grid(masses(CELLS[dim] ** dim, seed).reshape([CELLS[dim]] * dim), [(-2.0, 2.0)] * dim)]
    if dim == 1:
        found.append(Quantiles.from_icdf(lambda u: torch.special.ndtri(u) + u, 40))
    return found


# --- steps that are known


class SquaredSpread(Functional):
    """F(ρ) = (E|x|² − 1)²/4, which no solver has seen: ∇F = (E|x|² − 1) x."""

    def __call__(self, rho: Measure) -> Tensor:
        return (rho.integrate(lambda x: x.square().sum(-1)) - 1).square() / 4


def half_square(x: Tensor) -> Tensor:
    return x.square().sum(-1) / 2


@dataclass(frozen=True)
class KnownStep:
    """A functional, and what its proximal step makes of a law of mean m and covariance σ² I.

    Attributes:
        name: in words.
        functional: F, by dimension.
        step_size: γ, short enough for explicit schemes too.
        after: the mean and the σ of the new measure from m, σ and γ; the step is then x ↦ m′ + (σ′/σ)(x − m). `None`
            where no closed form is known.
        needs_density: whether F depends on the density of ρ.
    """

    name: str
    functional: Callable[[int], Functional]
    step_size: float
    after: Callable[[Tensor, float, float], Moments] | None = None
    needs_density: bool = False


def standard_normal(dim: int) -> Gaussian:
    return Gaussian(torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64))


def _of_potential(m: Tensor, s: float, gamma: float) -> Moments:
    return m / (1 + gamma), s / (1 + gamma)


def _of_kl(m: Tensor, s: float, gamma: float) -> Moments:
    """(1 + γ)σ′² − σσ′ − γ = 0."""
    return m / (1 + gamma), (s + math.sqrt(s**2 + 4 * gamma * (1 + gamma))) / (2 * (1 + gamma))


def _of_interaction(m: Tensor, s: float, gamma: float) -> Moments:
    return m, s / (1 + gamma)


def _of_spread(m: Tensor, s: float, gamma: float) -> Moments:
    """x/(1 + γc), where c = E|x|²/(1 + γc)² − 1 is found by bisection: the left side grows with c, the right falls."""
    second = float(m.square().sum()) + len(m) * s**2
    low, high = -0.5 / gamma, second
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if c < second / (1 + gamma * c) ** 2 - 1 else (low, c)
    return m / (1 + gamma * c), s / (1 + gamma * c)


def _sum(dim: int) -> Functional:
    return (
        0.5 * PotentialEnergy(half_square)
        + KL(standard_normal(dim))
        + 0.5 * InteractionEnergy(half_square)
        + 0.5 * SquaredSpread()
    )


PROBLEMS = {
    problem.name: problem
    for problem in (
        KnownStep("quadratic potential", lambda dim: PotentialEnergy(half_square, modulus=1.0), 0.5, _of_potential),
        KnownStep("Gaussian KL", lambda dim: KL(standard_normal(dim)), 0.4, _of_kl, needs_density=True),
        KnownStep("interaction", lambda dim: InteractionEnergy(half_square), 0.5, _of_interaction),
        KnownStep("a functional of one's own", lambda dim: SquaredSpread(), 0.4, _of_spread),
        KnownStep("a sum of all", _sum, 0.1, needs_density=True),
    )
}

MEAN, SPREAD = (1.0, -0.5), 0.7  # of the starts
PARTICLES, NODES, GRID_CELLS, BOX = 24, 300, 60, (-3.0, 4.0)


def starts() -> list[Measure]:
    """Measures of mean m and covariance σ² I, of every kind, in float64: where solvers start."""
    loc = torch.tensor(MEAN, dtype=torch.float64)
    weights = masses(PARTICLES, 0)
    points = normal(weights, PARTICLES, 2, seed=0)
    points = points - weights @ points
    root = torch.linalg.cholesky((points * weights[:, None]).mT @ points)
    points = loc + SPREAD * torch.linalg.solve_triangular(root, points.mT, upper=False).mT
    line = torch.distributions.Normal(loc[0], torch.tensor(SPREAD, dtype=torch.float64))
    return [
        Particles(points, weights),
        KernelParticles(points, weights, bandwidth=BANDWIDTH),
        Gaussian(loc, SPREAD**2 * torch.eye(2, dtype=torch.float64), order=8),
        Quantiles.from_icdf(line.icdf, NODES),
        Grid.from_density(lambda x: line.log_prob(x[:, 0]).exp(), GRID_CELLS, [BOX]),
    ]


def in_units(problem: KnownStep, rho: Measure, s: float) -> tuple[Functional, Measure] | None:
    """F_s = s² F(·/s), and ρ under x ↦ s x; `None` for problems and measures that know no units."""
    if problem.name == "Gaussian KL":
        law = standard_normal(rho.dim)
        functional = s**2 * KL(Gaussian(law.loc, s**2 * law.covariance_matrix))
    elif problem.name in ("quadratic potential", "interaction"):  # quadratic in the points
        functional = problem.functional(rho.dim)
    else:
        return None
    if isinstance(rho, Gaussian):
        return functional, Gaussian(s * rho.loc, s**2 * rho.covariance_matrix, rho.order)
    if isinstance(rho, Grid):
        return functional, Grid(rho.mass, [(s * low, s * high) for low, high in rho.bounds], rho.mask)
    if isinstance(rho, KernelParticles):
        bandwidth = None if rho.bandwidth is None else s * rho.bandwidth
        return functional, KernelParticles(s * rho.points, rho.weights, bandwidth)
    return functional, rho.at(s * rho.points)


def moments(rho: Measure) -> tuple[Tensor, Tensor]:
    """The mean, (d,), and the covariance, (d, d)."""
    mean = rho.integrate(lambda x: x)
    square = rho.integrate(lambda x: (x[:, :, None] * x[:, None, :]).flatten(1)).reshape(rho.dim, rho.dim)
    return mean, square - mean[:, None] * mean
