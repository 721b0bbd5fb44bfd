"""Explicit Euler steps along the Wasserstein gradient: plain, with noise, and accelerated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_flag, check_function, check_non_negative
from wprox._random import check_seed, make_generator, step_seed
from wprox._sums import weighted_sum
from wprox.functionals import Functional
from wprox.functionals.base import terms_of
from wprox.functionals.first_variation import gradient_of_field
from wprox.measures import DensityUnknownError, Gaussian, Measure
from wprox.solvers._explicit_step import CONVERSION, MOVES, forward_step, gradient_at
from wprox.solvers.base import Ending, Solved, Solver
from wprox.solvers.problem import Problem, StepFailedError, finite_value, gradient_of


@dataclass(frozen=True)
class _State:
    """What the next step goes on from.

    Attributes:
        functional, measure: F and ρ, to which the rest belongs.
        value: F(ρ).
        gradient: ∇_{W₂}F(ρ) at the points of ρ, (n, d), where it was computed.
        velocity: the displacement of the points that momentum is made of, (n, d).
        since_restart: the number of steps since momentum was last zero.
    """

    functional: Functional
    measure: Measure
    value: Tensor
    gradient: Tensor | None = None
    velocity: Tensor | None = None
    since_restart: int = 0


class ExplicitEuler(Solver):
    r"""Wasserstein gradient descent, ρ_{k+1} = (id − γ∇_{W₂}F(ρ_k))#ρ_k.

    On `Particles` for functionals without a density, on `Quantiles` for all whose gradient they know, on a `Gaussian`
    exactly where the gradient is affine (quadratic potentials and interactions, entropy, KL to a Gaussian).

    It is stable only for γ < 2/L, where L is the Lipschitz constant of x ↦ ∇_{W₂}F(ρ)(x), the largest eigenvalue of ∇²V
    for a potential V; for λ-convex F and γ ≤ 1/L each step shrinks the distance to the minimiser by 1 − γλ. `Quantiles`
    moreover need γ < 1/L, so that the nodes stay in order. `Step.residual` is the first-order error of the step taken
    as a proximal one, ‖∇F(ρ_{k+1}) ∘ T − ∇F(ρ_k)‖ in L²(ρ_k), which is O(γ); its gradient serves the next step too.

    With **noise** the gradient is taken at noisy points, x − γ∇_{W₂}F(ρ)(x + βξ) with ξ ~ N(0, I): F is smoothed on the
    scale β, which lets flows of MMD leave the points where they get stuck; let β fall to 0 (Arbel, Korba, Salim and
    Gretton, *Maximum mean discrepancy gradient flow*, 2019, section 4). It is the gradient of `F.first_variation(ρ)`
    there.

    **Accelerated**, x_{k+1} = y_k − γ∇_{W₂}F(y_k) with y_k = x_k + β_k(x_k − x_{k−1}), for the positions of the
    particles (Nesterov 1983; for flows of measures Taghvaei and Mehta 2019, Wang and Li 2022). Where `F.modulus` is a
    λ > 0, β = (1 − √(γλ))/(1 + √(γλ)), and with γ ≤ 1/L the error falls as (1 − √(γλ))^k (Nesterov, *Introductory
    lectures*, 2004, theorem 2.2.3); else β_k = k/(k + 3), from 0 again after each step that F rose in (O'Donoghue and
    Candès 2015).

    Noise and acceleration need `Particles`; such steps are not proximal steps with a small error, and have no residual.

    Arguments:
        accelerated: take accelerated steps, which are stable for γ ≤ 1/L.
        noise: β: a length, or a function of the step's index. 0 is none.
        seed: of the noise; each step derives its own.

    Raises:
        StepFailedError: where the gradient is not finite (naming the functional), or the scheme has diverged.
        TypeError: for measures that are not made of points that move.
        DensityUnknownError: for functionals of a density that the measure does not know.

    Example:
        >>> import torch, wprox
        >>> F = wprox.PotentialEnergy(lambda x: 2 * x.square().sum(-1))  # λ = 4
        >>> wprox.ExplicitEuler().step(F, wprox.Particles(torch.ones(1, 2)), 0.1).measure.points  # x (1 − γλ)
        tensor([[0.6000, 0.6000]])
    """

    accepts = MOVES
    conversion = CONVERSION
    is_proximal = False

    def __init__(self, accelerated: bool = False, noise: float | Callable[[int], float] = 0.0, seed: int = 0) -> None:
        self.accelerated = check_flag(accelerated, "accelerated")
        if callable(noise):
            check_function(noise, "noise", "of the step's index")
        self.noise = noise if callable(noise) else check_non_negative(noise, "noise")
        self.seed = check_seed(seed)

    def takes(self, measure: Measure) -> bool:
        return measure.movable or isinstance(measure, MOVES)

    def prepare(self, measure: Measure) -> Measure:
        measure = super().prepare(measure)
        if (self.accelerated or self.noise != 0) and not measure.movable:
            raise TypeError(
                f"noise and acceleration move each particle by itself and need Particles, got {type(measure).__name__}"
            )
        return measure.detach()

    @torch.no_grad()
    def solve(self, problem: Problem, state: Any) -> Solved:
        functional, source = problem.functional, problem.measure
        known = state if isinstance(state, _State) and state.functional is functional else None
        if known is not None and not _is_same(known.measure, source):
            known = None
        try:
            if self.accelerated or self.noise != 0:
                return self._step_particles(functional, source, problem.step_size, known, problem.index)
            return _step_plain(functional, source, problem.step_size, None if known is None else known.gradient)
        except DensityUnknownError as error:
            raise DensityUnknownError(
                f"{functional!r} depends on a density whose gradient {type(source).__name__} do not know here: "
                "Gaussian and Quantiles do, as do Particles.with_kernel_density() without noise; or take entropy "
                "and KL implicitly, by ForwardBackward or NeuralProx, or by Langevin's noise"
            ) from error

    def _step_particles(
        self, functional: Functional, source: Measure, step_size: float, known: _State | None, index: int
    ) -> Solved:
        """A step with noise or momentum."""
        points = source.points
        since_restart, velocity = 0, None if known is None else known.velocity
        if self.accelerated and velocity is not None and known is not None:
            since_restart = known.since_restart
            points = points + _momentum(functional.modulus, step_size, since_restart) * velocity
        if self.noise != 0:
            beta = check_non_negative(self.noise(index), f"noise({index})") if callable(self.noise) else self.noise
            gradient = _noisy_gradient(functional, source, points, beta, step_seed(self.seed, index))
        else:
            gradient = gradient_of(functional, source.at(points))
        new = points - step_size * gradient
        rho = source.at(new)
        value = finite_value(functional, rho)
        velocity = new - source.points
        since_restart += 1
        is_convex = functional.modulus is not None and functional.modulus > 0
        if known is not None and not is_convex and bool(value > known.value):
            velocity, since_restart = torch.zeros_like(velocity), 0
        cost = weighted_sum(source.weights, (new - source.points).square().sum(1))
        state = _State(functional, rho, value, velocity=velocity, since_restart=since_restart)
        return Solved(rho, cost, value=value, ending=Ending.EXPLICIT, iterations=1, state=state)


def _step_plain(functional: Functional, source: Measure, step_size: float, gradient: Tensor | None) -> Solved:
    """A plain step; the gradient at its end, which the residual takes, is kept for the next one."""
    rho, map, gradient = forward_step(functional, source, step_size, gradient)
    value = finite_value(functional, rho)
    following = gradient_at(functional, rho, source.points - step_size * gradient)
    residual = math.sqrt(float(weighted_sum(source.weights, (following - gradient).square().sum(1))))
    cost = step_size**2 * weighted_sum(source.weights, gradient.square().sum(1))
    message = ""
    if residual**2 * step_size**2 > 4 * float(cost):
        rate = residual / math.sqrt(float(cost))
        message = (
            f"along the step the gradient changed by {rate:.3g} times the way, so that step_size must be below "
            f"{2 / rate:.3g}, and it is {step_size:g}"
        )
    kept = None if isinstance(rho, Gaussian) else following  # those of a Gaussian are at other points
    return Solved(
        rho,
        cost,
        map,
        value,
        residual,
        Ending.EXPLICIT,
        message,
        iterations=1,
        state=_State(functional, rho, value, gradient=kept),
    )


def _is_same(rho: Measure, other: Measure) -> bool:
    """Whether two measures have the same points and weights, in one precision."""
    if rho.dtype != other.dtype or rho.points.shape != other.points.shape:
        return False
    return torch.equal(rho.points, other.points) and torch.equal(rho.weights, other.weights)


def _momentum(modulus: float | None, step_size: float, since_restart: int) -> float:
    """β_k."""
    if modulus is None or modulus <= 0:
        return since_restart / (since_restart + 3)
    root = math.sqrt(step_size * modulus)
    return max(0.0, (1 - root) / (1 + root))


def _noisy_gradient(functional: Functional, rho: Measure, points: Tensor, beta: float, seed: int) -> Tensor:
    """∇ δF/δρ' at points + βξ, where ρ' has the points: F's own gradient between the particles."""
    generator = make_generator(seed, rho.device)
    noise = torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)
    moved, noisy = rho.at(points), points + beta * noise
    total = torch.zeros_like(points)
    for weight, term in terms_of(functional):
        gradient = gradient_of_field(term.first_variation(moved), noisy)
        bad = (~torch.isfinite(gradient)).any(1)
        if bool(bad.any()):
            raise StepFailedError(
                f"the gradient of {term!r} is not finite at {int(bad.sum())} of {len(points)} noisy points: lower the "
                "noise, or make it smooth there"
            )
        total = total + weight * gradient
    return total
