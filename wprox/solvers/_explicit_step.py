"""The explicit step id − γ∇_{W₂}G(ρ) on each kind of measure that moves."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wprox.functionals import Functional
from wprox.functionals.base import terms_of
from wprox.functionals.quadratic import quadratic_at
from wprox.maps import AffineMap, GradientStepMap, MonotoneMap, TransportMap
from wprox.measures import Gaussian, Measure, Particles, Quantiles
from wprox.solvers.problem import StepFailedError, gradient_of

ROWS = 4096  # points whose Hessians are formed at once
DIFFERENCES = 2**19  # numbers of differences between particles that a Hessian keeps at once

MOVES = (Particles, Quantiles, Gaussian)
CONVERSION = (
    "it moves points along gradients, and the cells of a Grid do not move: use SinkhornProx (its semi_implicit=True is "
    "the scheme that is explicit in the interactions), or grid.to_particles(); Particles(points) makes particles"
)


def gradient_at(functional: Functional, rho: Measure, at: Tensor | None = None) -> Tensor:
    """∇_{W₂}F(ρ) at the points of ρ; for a Gaussian, whose gradient must be affine, at any points (m, d).

    Raises:
        StepFailedError: where it is not finite; the message names the term.
        ValueError: for a Gaussian, where the gradient is not affine.
    """
    if not isinstance(rho, Gaussian):
        return gradient_of(functional, rho)
    slope, at_mean = _affine_gradient(functional, rho)
    points = (rho.points if at is None else at).double()
    return (at_mean + (points - rho.loc.double()) @ slope).to(rho.dtype)


def forward_step(
    functional: Functional, rho: Measure, step_size: float, gradient: Tensor | None = None, with_density: bool = False
) -> tuple[Measure, TransportMap | None, Tensor]:
    """T#ρ with T = id − γ∇_{W₂}F(ρ), the map T where it is known and invertible, and ∇_{W₂}F(ρ) at the points of ρ.

    Arguments:
        functional: F.
        rho: a measure whose points move.
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
    if with_density and step_map is not None and _carries_density(rho):
        return _push_with_density(rho, points, step_map), step_map, gradient
    return rho.at(points), step_map, gradient


def _affine_gradient(functional: Functional, rho: Gaussian) -> tuple[Tensor, Tensor]:
    """∇_{W₂}F(ρ)(x) = g + (x − m) P, as (P, g), in float64."""
    source = rho.to(torch.float64)
    quadratic = quadratic_at(functional.structure(), source.loc)
    if quadratic is None:
        raise ValueError(
            f"an explicit step along {functional!r} leaves the Gaussians: its gradient is not affine. Use "
            "GaussianProx, which finds the best Gaussian step, or particles: gaussian.to_particles(n)"
        )
    slope = quadratic.potential + quadratic.interaction
    if quadratic.entropy:
        slope = slope - quadratic.entropy * torch.linalg.inv(source.covariance_matrix)
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
            f"collapses for step_size below 1/L = {_limit(slope)}, and step_size is {step_size:g}",
            is_too_long=True,
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
            "or QuantileProx, which has no such limit",
            is_too_long=True,
        )


def _gradient_map(functional: Functional, rho: Measure, step_size: float) -> GradientStepMap | None:
    """x ↦ x − γ∇(V + W ∗ ρ)(x) off the particles as well.

    `None` where F has other terms, draws pairs at random, or follows a gradient of its own that is not that of a field.
    """
    structure = functional.structure()
    if not structure.is_smooth or any(piece.is_sampled(rho) for piece in structure.interactions):
        return None
    if any(type(term).wasserstein_gradient is not Functional.wasserstein_gradient for _, term in terms_of(functional)):
        return None
    rows = ROWS if not structure.interactions else max(1, min(ROWS, DIFFERENCES // rho.points.numel()))
    return GradientStepMap(rho.dim, functional.first_variation(rho), step_size, rows)


def _carries_density(rho: Measure) -> bool:
    """Whether the particles have a density that maps change by their determinant, known or relative."""
    return (rho.density_known or rho.is_relative) and not rho.density_follows_points


def _push_with_density(rho: Measure, points: Tensor, map: GradientStepMap) -> Measure:
    eigenvalues = torch.linalg.eigvalsh(map.jacobian(rho.points))
    stretch = float(eigenvalues.min())
    if stretch <= 0:
        limit = map.step_size / (1 - stretch)
        raise StepFailedError(
            f"the explicit step folds space, so that the density of the particles is lost: it is invertible only for "
            f"step_size below 1/L = {limit:.3g}, L the largest eigenvalue of the Hessian at the particles, and "
            f"step_size is {map.step_size:g}",
            is_too_long=True,
        )
    return rho.push(lambda _: (points, eigenvalues.log().sum(1)))
