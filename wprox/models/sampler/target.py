"""The target of a JKO sampler: its log-density, checked; a Gaussian that is near it, and the units of a Gaussian."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wprox._checks import kind_of
from wprox.functionals import KL, Functional
from wprox.measures import Gaussian, Measure, Particles
from wprox.measures.laws import as_gaussian
from wprox.solvers import GaussianProx, StepFailedError

FIRST, GROWTH = 0.1, 4.0  # γ of the Gaussian that is fitted, in the time to move by its spread
COARSE = 1e-5  # of a width: rounding of coordinates that is seen
MOST_FAILURES = 10  # steps that are too long for their solver, and are followed by shorter ones
DRAWS, MISLED = 1000, 1.0  # nats by which half the width is better where cubature points mislead
LONG, STILL = 16.0, 1e-2  # it has arrived where a step so much longer than its spread² moves it by so little of that


class ScaledTarget:
    r"""π = g/Z in the units u = L⁻¹(x − m) of a Gaussian N(m, LLᵀ), which this maps to N(0, I).

    Arguments:
        log_target: log g, (n, d) → (n,); what it returns is checked.
        units: the Gaussian, in whose dtype log g is called; in float64 where it is so far from 0 that coordinates of
            single precision would be rounded by more than 1e-5 of its width, and log g is computed in both.
    """

    def __init__(self, log_target: Callable[[Tensor], Tensor], units: Gaussian) -> None:
        self.log_target, self.units, self.dim = log_target, units, units.dim
        coarse = torch.finfo(units.dtype).eps * float((units.loc.abs() / units.scale_tril.norm(dim=1)).max()) > COARSE
        in_double = coarse and _computes_in_double(log_target, units.loc.double()[None])
        self.dtype = torch.float64 if in_double else units.dtype

    def to_x(self, u: Tensor) -> Tensor:
        """x = m + L u, row by row."""
        return self.units.loc.to(u) + u @ self.units.scale_tril.to(u).mT

    def to_u(self, x: Tensor) -> Tensor:
        """u = L⁻¹(x − m), row by row."""
        shifted = (x - self.units.loc.to(x)).mT
        return torch.linalg.solve_triangular(self.units.scale_tril.to(x), shifted, upper=False).mT

    @property
    def log_det(self) -> Tensor:
        """log |det L|, by which the log-density of u is greater than that of x."""
        return self.units.scale_tril.diagonal().log().sum()

    def log_prob(self, u: Tensor) -> Tensor:
        """log g(x) + log |det L| at x = m + L u, the log-density of u up to log Z."""
        x = self.to_x(u.to(self.dtype))
        return (checked(self.log_target(x), x) + self.log_det).to(u)

    @property
    def functional(self) -> KL:
        """KL(· ‖ π) of laws of u."""
        return KL(self.log_prob)

    @torch.no_grad()
    def log_weights(self, particles: Particles) -> Tensor:
        """log g − log ρ at draws of ρ in u, (n,)."""
        return self.log_prob(particles.points) - particles.log_density()


def fitted_gaussian(functional: KL, dim: int, seed: int) -> Gaussian:
    """The best Gaussian approximation of π, by proximal steps from N(0, I), widened where π is not Gaussian.

    Reverse KL makes it too narrow, and the tails of a map's image are those of where it starts. The factor
    1 + √(2/d) costs a KL divergence of about two nats, which the blocks win back.

    Arguments:
        functional: KL(· ‖ π).
        dim: d.
        seed: of the points at which the target is checked.
    """
    target, dtype = functional.target, torch.get_default_dtype()
    gaussian = as_gaussian(target)
    covariance = getattr(target if gaussian is None else gaussian, "covariance_matrix", None)
    if isinstance(covariance, Tensor):
        dtype = covariance.dtype
    start = Gaussian(torch.zeros(dim).double(), torch.eye(dim).double())
    check_target(functional.log_target, start.sample(1000, seed).to(dtype))
    in_double, solver = functional, GaussianProx()
    if gaussian is None and not _computes_in_double(functional.log_target, start.points):
        in_double, solver = KL(lambda x: functional.log_target(x.to(dtype)).to(x)), _CoarseProx(tolerance=1e-3)
    try:
        fitted = _fitted(in_double, solver, start, seed)
    except (StepFailedError, ValueError) as error:  # the latter for a quadratic that has no minimum
        raise StepFailedError(
            f"no Gaussian could be fitted to the target ({error}); give one that covers it, as in "
            f"initial=Gaussian(torch.zeros({dim}), 16 * torch.eye({dim}))"
        ) from None
    width = 1.0 if gaussian is not None else 1 + math.sqrt(2 / dim)
    return Gaussian(fitted.loc.to(dtype), width**2 * fitted.covariance_matrix.to(dtype))


class _ByDraws(Functional):
    """KL(ρ ‖ π) of Gaussians ρ by images m + L z of as many draws, whose moments are those of N(0, I).

    The 2d cubature points of a Gaussian lie on its axes. Where log g is a sum of functions of one coordinate each that
    grow more slowly than d log|x|, as for independent Student variables, a wide Gaussian looks better and better there.
    """

    def __init__(self, kl: KL, dim: int, seed: int) -> None:
        draws = Gaussian(torch.zeros(dim).double(), torch.eye(dim).double()).sample(max(DRAWS, 4 * dim), seed)
        draws = draws - draws.mean(0)
        factor = torch.linalg.cholesky(draws.mT @ draws / len(draws))
        self.kl, self.draws = kl, torch.linalg.solve_triangular(factor, draws.mT, upper=False).mT

    def __call__(self, rho: Measure) -> Tensor:
        assert isinstance(rho, Gaussian)
        return rho.mean_log_density() - self.kl.log_target(rho.loc + self.draws @ rho.scale_tril.mT).mean()

    def wasserstein_gradient(self, rho: Measure) -> Tensor:
        return self.kl.wasserstein_gradient(rho)

    def is_misled(self, rho: Gaussian) -> bool:
        """Whether half the width is better by far."""
        with torch.no_grad():
            gain = float(self(rho) - self(Gaussian(rho.loc, rho.covariance_matrix / 4)))
        return not gain <= MISLED


def _fitted(functional: KL, solver: GaussianProx, start: Gaussian, seed: int) -> Gaussian:
    """Where steps by cubature points arrive, or by draws where these show that the others run away."""
    by_draws = _ByDraws(functional, start.dim, seed)
    try:
        return _settled(functional, solver, start, by_draws)
    except (StepFailedError, ValueError) as error:
        if as_gaussian(functional.target) is not None:
            raise
        try:
            return _settled(by_draws, solver, start)
        except (StepFailedError, ValueError):
            raise error from None


def _settled(functional: Functional, solver: GaussianProx, rho: Gaussian, by_draws: _ByDraws | None = None) -> Gaussian:
    """Where proximal steps of growing length take a Gaussian, whatever the units of the target.

    Raises:
        StepFailedError: where a step widens what draws show to be too wide already.
    """
    speed = math.sqrt(float(rho.weights @ functional.wasserstein_gradient(rho).square().sum(1)))
    step_size = FIRST * _spread(rho) / speed if speed else FIRST
    failures = 0
    while step_size and failures < MOST_FAILURES:
        try:
            step = solver.step(functional, rho, step_size)
        except StepFailedError:
            failures, step_size = failures + 1, step_size / GROWTH**2
            if failures == MOST_FAILURES:
                raise
            continue
        assert isinstance(step.measure, Gaussian)
        before, rho, spread = _spread(rho), step.measure, _spread(step.measure)
        if by_draws is not None and spread > before and by_draws.is_misled(rho):
            raise StepFailedError("a Gaussian grows without end at its cubature points")
        if step_size >= LONG * spread**2 and math.sqrt(float(step.transport_cost)) <= STILL * spread:
            break
        failures += not step.converged
        step_size *= GROWTH if step.converged else 1 / GROWTH
    return rho


def _spread(rho: Gaussian) -> float:
    return math.sqrt(float(rho.covariance_matrix.trace()))


class _CoarseProx(GaussianProx):
    """Steps for targets that are rounded to float32."""

    noise = 1e-6


def _computes_in_double(log_target: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a target at points in float64, (n, d), is computed in float64."""
    try:
        return checked(log_target(x), x).dtype == torch.float64
    except (RuntimeError, TypeError, ValueError):
        return False


def check_target(log_target: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Raise where log g cannot be sampled from: its values or gradients at points (n, d) are not those of a density."""
    with torch.enable_grad():
        points = x.detach().requires_grad_()
        try:
            values = checked(log_target(points), points)
        except RuntimeError as error:
            if not _runs_in_another_precision(log_target, x):
                raise
            raise TypeError(
                f"the target mixes floating-point types ({error}): it is called at points in {x.dtype}; give "
                "an initial Gaussian in the dtype of its tensors, or cast x inside it"
            ) from error
        (gradient,) = torch.autograd.grad(values.sum(), points, allow_unused=True) if values.requires_grad else (None,)
        if gradient is None:
            raise TypeError(
                "the target's log-density is not differentiable: autograd finds no way from its values to the "
                "points; compute it with torch from x, without numpy, .detach(), .item() or no_grad"
            )
        if not bool(gradient.any()) and bool((values != values[0]).any()):
            raise TypeError(
                "the target's log-density is not differentiable: it varies, from "
                f"{float(values.min().detach()):.4g} to {float(values.max().detach()):.4g}, and its gradient is 0 "
                f"at all of {len(points)} points; it may count, round or compare, where it must be smooth"
            )
    if bool((values == -torch.inf).any()):
        raise ValueError(
            f"the target's log-density is −∞ {where(values == -torch.inf, points)}: KL is infinite there. Give an "
            "initial Gaussian inside the support, map the support to R^d (log of what is positive), or let "
            "the density fall off smoothly"
        )
    bad = ~torch.isfinite(gradient).all(1)
    if bool(bad.any()):
        raise ValueError(
            f"the gradient of the target's log-density is not finite {where(bad, points)}; check for square "
            "roots and norms at 0, and for logarithms of 0"
        )


def _runs_in_another_precision(log_target: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether a target that fails at points (n, d) takes them in another floating-point type."""
    for dtype in {torch.float32, torch.float64} - {x.dtype}:
        points = x.detach().to(dtype)
        try:
            checked(log_target(points), points)
        except (RuntimeError, TypeError, ValueError):
            continue
        return True
    return False


def checked(values: Any, x: Tensor) -> Tensor:
    """The values of a log-density at x: (n, d), (n,): finite or −∞."""
    if not isinstance(values, Tensor):
        raise TypeError(
            f"the target must return a tensor, it returned {kind_of(values)}; compute it with torch from the points"
        )
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"the target must map points of shape {tuple(x.shape)} to one log-density a row, ({len(x)},); it returned "
            f"shape {tuple(values.shape)}. Reduce over the last axis only, as in -x.square().sum(-1) / 2"
        )
    if not values.is_floating_point():
        raise TypeError(f"the target must return real floating-point numbers, it returned {values.dtype}; convert them")
    bad = torch.isnan(values) | (values == torch.inf)
    if bool(bad.any()):
        what = "NaN" if bool(torch.isnan(values).any()) else "+∞"
        raise ValueError(f"the target's log-density is {what} {where(bad, x)}; a log-density is finite or −∞")
    return values


def where(bad: Tensor, x: Tensor) -> str:
    """Where a density is bad, for people."""
    points = ", ".join(
        "(" + ", ".join(f"{value:.4g}" for value in row[:6].tolist()) + (", …)" if x.shape[1] > 6 else ")")
        for row in x.detach()[bad][:3]
    )
    count = int(bad.sum())
    return f"at {count} of {len(x)} points, {'the first at' if count > 3 else 'at'} {points}"
