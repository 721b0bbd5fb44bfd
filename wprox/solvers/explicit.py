"""Explicit Euler steps along the Wasserstein gradient: plain, with noise, and accelerated."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_non_negative, check_positive
from wprox._random import check_seed, make_generator, step_seed
from wprox.functionals import Functional
from wprox.functionals.structure import apply
from wprox.measures import DensityUnknownError, Gaussian, Measure, Particles
from wprox.solvers._explicit_step import check_pushable, failed, forward_step, gradient_at
from wprox.solvers.base import Solver, Step, StepFailedError
from wprox.solvers.problem import checked_gradient, non_finite

NOISY_PART = 1e-6  # of the mass, that the noisy copies carry, so that F's own gradient is known there


@dataclass(frozen=True)
class ExplicitStep(Step):
    """A step of `ExplicitEuler`, with what the next one goes on from.

    Attributes:
        functional: F.
        gradient: ∇_{W₂}F(ρ) at the points of ρ, (n, d), where it was computed.
        velocity: the displacement of the points that momentum is made of, (n, d).
        since_restart: the number of steps since momentum was last zero.
    """

    functional: Functional | None = None
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
    Gretton, *Maximum mean discrepancy gradient flow*, 2019, section 4). The noisy points enter as particles of mass
    10⁻⁶ in all, so any functional will do; a step costs that of twice as many points.

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

    def __init__(self, accelerated: bool = False, noise: float | Callable[[int], float] = 0.0, seed: int = 0) -> None:
        self.accelerated = bool(accelerated)
        self.noise = noise if callable(noise) else check_non_negative(noise, "noise")
        self.seed = check_seed(seed)

    def prepare(self, measure: Measure) -> Measure:
        check_pushable(measure, "ExplicitEuler")
        if (self.accelerated or self.noise != 0) and not isinstance(measure, Particles):
            raise TypeError(
                f"noise and acceleration move each particle by itself and need Particles, got {type(measure).__name__}"
            )
        return measure.detach() if isinstance(measure, Particles) else measure

    @torch.no_grad()
    def step(
        self,
        functional: Functional,
        measure: Measure,
        step_size: float,
        *,
        previous: Step | None = None,
        held_out: Measure | None = None,
    ) -> ExplicitStep:
        start = time.perf_counter()
        step_size = check_positive(step_size, "step_size")
        index = 0 if previous is None else previous.index + 1
        source = self.prepare(measure)
        known = None
        if isinstance(previous, ExplicitStep) and previous.measure is measure and previous.functional is functional:
            known = previous
        try:
            if self.accelerated or self.noise != 0:
                assert isinstance(source, Particles)
                fields = self._step_particles(functional, source, step_size, known, index)
            else:
                fields = _step_plain(functional, source, step_size, None if known is None else known.gradient)
        except StepFailedError as error:
            raise failed(error, index) from error
        except DensityUnknownError as error:
            raise DensityUnknownError(
                f"{functional!r} depends on a density whose gradient {type(source).__name__} do not know here: "
                "Gaussian and Quantiles do, as do Particles.with_kernel_density() without noise; or take entropy "
                "and KL implicitly, by ForwardBackward or NeuralProx, or by Langevin's noise"
            ) from error
        return ExplicitStep(
            **fields,
            step_size=step_size,
            iterations=1,
            seconds=time.perf_counter() - start,
            index=index,
            functional=functional,
        )

    def _step_particles(
        self, functional: Functional, source: Particles, step_size: float, known: ExplicitStep | None, index: int
    ) -> dict[str, Any]:
        """The fields of a step with noise or momentum."""
        points = source.points
        since_restart, velocity = 0, None if known is None else known.velocity
        if self.accelerated and velocity is not None and known is not None:
            since_restart = known.since_restart
            points = points + _momentum(functional.modulus, step_size, since_restart) * velocity
        if self.noise != 0:
            beta = check_non_negative(self.noise(index), f"noise({index})") if callable(self.noise) else self.noise
            gradient = _noisy_gradient(functional, source, points, beta, step_seed(self.seed, index))
        else:
            gradient = checked_gradient(functional, source.push(lambda _: points))
        new = points - step_size * gradient
        rho = source.push(lambda _: new)
        value = _finite_value(functional, rho)
        velocity = new - source.points
        since_restart += 1
        is_convex = functional.modulus is not None and functional.modulus > 0
        if known is not None and not is_convex and bool(value > known.value):
            velocity, since_restart = torch.zeros_like(velocity), 0
        return {
            "measure": rho,
            "map": None,
            "value": value,
            "transport_cost": source.weights @ (new - source.points).square().sum(1),
            "velocity": velocity if self.accelerated else None,
            "since_restart": since_restart,
        }


def _step_plain(functional: Functional, source: Measure, step_size: float, gradient: Tensor | None) -> dict[str, Any]:
    """The fields of a plain step; the gradient at its end, which the residual takes, is kept for the next one."""
    rho, map, gradient = forward_step(functional, source, step_size, gradient)
    value = _finite_value(functional, rho)
    following = gradient_at(functional, rho, source.points - step_size * gradient)
    residual = math.sqrt(float(source.weights @ (following - gradient).square().sum(1)))
    cost = step_size**2 * (source.weights @ gradient.square().sum(1))
    message = ""
    if residual**2 * step_size**2 > 4 * float(cost):
        rate = residual / math.sqrt(float(cost))
        message = (
            f"along the step the gradient changed by {rate:.3g} times the way, so that step_size must be below "
            f"{2 / rate:.3g}, and it is {step_size:g}"
        )
    return {
        "measure": rho,
        "map": map,
        "value": value,
        "transport_cost": cost,
        "residual": residual,
        "gradient": None if isinstance(rho, Gaussian) else following,  # those of a Gaussian are at other points
        "message": message,
    }


def _finite_value(functional: Functional, rho: Measure) -> Tensor:
    value = apply(functional, rho)
    if not bool(torch.isfinite(value)):
        raise StepFailedError(non_finite(functional, rho))
    return value


def _momentum(modulus: float | None, step_size: float, since_restart: int) -> float:
    """β_k."""
    if modulus is None or modulus <= 0:
        return since_restart / (since_restart + 3)
    root = math.sqrt(step_size * modulus)
    return max(0.0, (1 - root) / (1 + root))


def _noisy_gradient(functional: Functional, rho: Particles, points: Tensor, beta: float, seed: int) -> Tensor:
    """∇_{W₂}F(ρ') at points + βξ, ρ' having the points and, to a tiny part, the noisy ones."""
    generator = make_generator(seed, rho.device)
    noise = torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)
    weights = torch.cat(((1 - NOISY_PART) * rho.weights, NOISY_PART * rho.weights))
    both = Particles(torch.cat((points, points + beta * noise)), weights)
    return checked_gradient(functional, both)[len(points) :]
