"""The explicit step id − γ∇_{W₂}G(ρ) on the measures that can be pushed, and a sum taken apart for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wprox.functionals import KL, Entropy, Functional, PotentialEnergy
from wprox.functionals.base import Sum, terms_of
from wprox.functionals.structure import Pieces, split
from wprox.maps import AffineMap, GradientStepMap, MonotoneMap, TransportMap
from wprox.measures import DensityUnknownError, Gaussian, Grid, Measure, Particles, Quantiles
from wprox.solvers.base import STEP_LIMIT, StepFailedError
from wprox.solvers.gaussian import as_quadratic
from wprox.solvers.problem import checked_gradient

Term = tuple[float, Functional]


def check_pushable(measure: Measure, name: str) -> None:
    """Raise `TypeError` for measures whose points do not move."""
    if not isinstance(measure, Measure):
        raise TypeError(f"{name} needs a wprox measure, got {type(measure).__name__}; Particles(points) makes one")
    if isinstance(measure, Grid):
        raise TypeError(
            f"{name} moves points along gradients, and the cells of a Grid do not move: use SinkhornProx (its "
            "semi_implicit=True is the scheme that is explicit in the interactions), or grid.to_particles()"
        )


def gradient_at(functional: Functional, rho: Measure, at: Tensor | None = None) -> Tensor:
    """∇_{W₂}F(ρ) at the points of ρ; for a Gaussian, whose gradient must be affine, at any points (m, d).

    Raises:
        StepFailedError: where it is not finite; the message names the term.
        ValueError: for a Gaussian, where the gradient is not affine.
    """
    if not isinstance(rho, Gaussian):
        return checked_gradient(functional, rho)
    slope, at_mean = _affine_gradient(functional, rho)
    points = (rho.points if at is None else at).double()
    return (at_mean + (points - rho.loc.double()) @ slope).to(rho.dtype)


def forward_step(
    functional: Functional, rho: Measure, step_size: float, gradient: Tensor | None = None, with_density: bool = False
) -> tuple[Measure, TransportMap | None, Tensor]:
    """T#ρ with T = id − γ∇_{W₂}F(ρ), the map T where it is known and invertible, and ∇_{W₂}F(ρ) at the points of ρ.

    Arguments:
        functional: F.
        rho: a measure that `check_pushable` lets pass.
        step_size: γ.
        gradient: ∇_{W₂}F(ρ) at the points of ρ, where it is known already.
        with_density: carry the density of particles along, which takes the Hessian of δF/δρ.
    """
    gradient = gradient_at(functional, rho) if gradient is None else gradient
    if isinstance(rho, Gaussian):
        pushed, map = _push_gaussian(functional, rho, step_size)
        return pushed, map, gradient
    points = rho.points - step_size * gradient
    if isinstance(rho, Quantiles):
        _check_order(rho, gradient, step_size)
        return Quantiles.unchecked(points[:, 0]), MonotoneMap(rho.nodes, points[:, 0]), gradient
    step_map = _gradient_map(functional, rho, step_size)
    if with_density and step_map is not None and isinstance(rho, Particles) and _carries_density(rho):
        return _push_with_density(rho, points, step_map), step_map, gradient
    return rho.push(lambda _: points), step_map, gradient


def failed(error: StepFailedError, index: int) -> StepFailedError:
    """The error with the step it happened in and, after the first one, the limit that it may have hit."""
    known = index == 0 or "step_size" in str(error)
    return StepFailedError(f"step {index}: {error}{'' if known else f'. If the scheme has diverged: {STEP_LIMIT}'}")


def as_terms(functional: Functional) -> list[Term]:
    """The terms (c_j, F_j) of a sum, with KL(· ‖ π) as the potential −log π and the entropy."""
    terms: list[Term] = []
    for weight, term in terms_of(functional):
        if weight == 0:
            continue
        if isinstance(term, KL) and type(term).__call__ is KL.__call__:
            terms += [(weight, _potential_of(term)), (weight, Entropy())]
        else:
            terms.append((weight, term))
    return terms


def as_sum(terms: list[Term]) -> Functional:
    """Σ c_j F_j; the term itself where it is one of weight 1."""
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else Sum(terms)


def needs_density(term: Functional, rho: Measure) -> bool:
    """Whether F(ρ) depends on the density of ρ: asked of a few points that have none."""
    try:
        with torch.no_grad():
            term(Particles(rho.points[:8].detach()))
    except DensityUnknownError:
        return True
    return False


def _potential_of(divergence: KL) -> PotentialEnergy:
    def potential(x: Tensor) -> Tensor:
        return -divergence.log_target(x)

    potential.__name__ = f"-log {getattr(divergence.target, '__name__', type(divergence.target).__name__)}"
    return PotentialEnergy(potential, modulus=divergence.modulus)


def _affine_gradient(functional: Functional, rho: Gaussian) -> tuple[Tensor, Tensor]:
    """∇_{W₂}F(ρ)(x) = g + (x − m) P, as (P, g), in float64."""
    source = rho.to(torch.float64)
    pieces = split(functional)
    entropy, pieces.entropy = pieces.entropy, 0.0
    quadratic = as_quadratic(pieces, source)
    if quadratic is None:
        raise ValueError(
            f"an explicit step along {functional!r} leaves the Gaussians: its gradient is not affine. Use "
            "GaussianProx, which finds the best Gaussian step, or particles: gaussian.to_particles(n)"
        )
    slope = quadratic.potential + quadratic.interaction
    if entropy:
        slope = slope - entropy * torch.linalg.inv(source.covariance_matrix)
    return slope, quadratic.gradient


def _push_gaussian(functional: Functional, rho: Gaussian, step_size: float) -> tuple[Gaussian, AffineMap | None]:
    source = rho.to(torch.float64)
    slope, at_mean = _affine_gradient(functional, rho)
    matrix = torch.eye(rho.dim).to(slope) - step_size * slope
    loc = source.loc - step_size * at_mean
    try:
        covariance = matrix @ source.covariance_matrix @ matrix
        pushed = Gaussian(loc.to(rho.dtype), covariance.to(rho.dtype), rho.order)
    except ValueError as error:
        raise StepFailedError(
            f"the explicit step takes the Gaussian to one that is singular or not finite ({error}): no direction "
            f"collapses for step_size below 1/L = {_limit(slope)}, and step_size is {step_size:g}"
        ) from error
    if float(torch.linalg.eigvalsh(matrix).min()) <= 0:  # the push-forward is right, but the map is not optimal
        return pushed, None
    return pushed, AffineMap.from_matrix(matrix.to(rho.dtype), (loc - matrix @ source.loc).to(rho.dtype))


def _limit(slope: Tensor) -> str:
    largest = float(torch.linalg.eigvalsh(slope).max())
    return f"{1 / largest:.3g}" if largest > 0 else "∞"


def _check_order(rho: Quantiles, gradient: Tensor, step_size: float) -> None:
    """Raise `StepFailedError` where the nodes would cross, with the step size at which they begin to."""
    rises = gradient[:, 0].diff()
    limits = torch.where(rises > 0, rho.spacing / rises.clamp(min=1e-300), math.inf)
    k = int(limits.argmin())
    if float(limits[k]) <= step_size:
        raise StepFailedError(
            f"the explicit step takes node {k} past node {k + 1} at x = {float(rho.nodes[k]):.4g}: the nodes stay in "
            f"order only for step_size below {float(limits[k]):.3g}, and it is {step_size:g}. Take a smaller one, "
            "or QuantileProx, which has no such limit"
        )


def _gradient_map(functional: Functional, rho: Measure, step_size: float) -> GradientStepMap | None:
    """x ↦ x − γ∇(V + W ∗ ρ)(x) off the particles as well; `None` where F has other terms."""
    pieces = split(functional)
    if pieces.entropy or pieces.internal or pieces.rest:
        return None
    return GradientStepMap(rho.dim, _first_variation(pieces, rho.points.detach(), rho.weights.detach()), step_size)


def _first_variation(pieces: Pieces, others: Tensor, weights: Tensor) -> Callable[[Tensor], Tensor]:
    def first_variation(x: Tensor) -> Tensor:
        value = pieces.potential(x)
        for weight, term in pieces.interactions:
            differences = (x[:, None] - others.to(x)).reshape(-1, x.shape[1])
            value = value + weight * (term.kernel(differences).reshape(len(x), len(others)) @ weights.to(x))
        return value

    return first_variation


def _carries_density(rho: Particles) -> bool:
    """Whether the particles have a density that maps change by their determinant, known or relative."""
    return (rho.density_known or rho.is_relative) and not rho.density_follows_points


def _push_with_density(rho: Particles, points: Tensor, map: GradientStepMap) -> Particles:
    stretch = map.least_stretch(rho.points)
    if stretch <= 0:
        limit = map.step_size / (1 - stretch)
        raise StepFailedError(
            f"the explicit step folds space, so that the density of the particles is lost: it is invertible only for "
            f"step_size below 1/L = {limit:.3g}, L the largest eigenvalue of the Hessian at the particles, and "
            f"step_size is {map.step_size:g}"
        )
    with torch.no_grad():
        _, log_det = map(rho.points)
    return rho.push(lambda _: (points, log_det))
