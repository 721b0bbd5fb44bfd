"""Langevin dynamics: the gradient flow of a potential plus entropy, by noise."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from wprox._checks import check_positive
from wprox._random import check_seed, make_generator, step_seed
from wprox.functionals import Entropy, Functional, PotentialEnergy
from wprox.functionals.structure import apply, split
from wprox.measures import DensityUnknownError, Measure, Particles
from wprox.solvers._explicit_step import as_sum, as_terms, failed, needs_density
from wprox.solvers.base import Solver, Step, StepFailedError
from wprox.solvers.problem import checked_gradient, non_finite


class Langevin(Solver):
    r"""Langevin dynamics, x ← x − γ∇_{W₂}G(ρ)(x) + √(2γτ) ξ with ξ ~ N(0, I), for F = G + τ ∫ρ log ρ.

    The stochastic baseline: its law follows the gradient flow of F to first order in γ (Jordan, Kinderlehrer and Otto
    1998). KL(· ‖ π) counts as G = −∫ log π dρ and τ = 1. Interactions in G make it mean-field Langevin dynamics.

    **Unadjusted** by default: stable for γ < 2/L, and biased, with stationary variance 1/(1 − γ/2) for N(0, 1) in place
    of 1 (Roberts and Tweedie 1996; as a scheme in Wasserstein space Wibisono 2018, Durmus, Majewski and Miasojedow
    2019). **Adjusted**, each move is accepted or rejected by Metropolis and Hastings' rule, which leaves exp(−V/τ)
    invariant exactly, for G = ∫ V dρ alone (MALA); `Step.message` says how many moves were accepted.

    Particles have no density, so `Step.value` is G(ρ), what F is but for its entropy; where the measure has a density
    that follows its points it is F(ρ). `transport_cost` is E|x_{k+1} − x_k|² with the noise, an upper bound of W₂².

    Arguments:
        adjusted: accept or reject moves.
        seed: of the noise; each step derives its own.

    Raises:
        StepFailedError: where the gradient is not finite (naming the functional), or the scheme has diverged.
        TypeError: for a measure other than Particles.
        ValueError: for functionals with no entropy, or with another part that needs the density.

    Example:
        >>> import torch, wprox
        >>> F = wprox.KL(wprox.Gaussian(torch.zeros(2), torch.eye(2)))
        >>> start = wprox.Particles(torch.full((500, 2), 3.0))
        >>> trajectory = wprox.jko(F, wprox.Langevin(seed=0), start, step_size=0.1, n_steps=60)
        >>> bool((trajectory.final.points.std(0) - 1).abs().max() < 0.2)
        True
    """

    def __init__(self, adjusted: bool = False, seed: int = 0) -> None:
        self.adjusted = bool(adjusted)
        self.seed = check_seed(seed)

    def prepare(self, measure: Measure) -> Particles:
        """The particles without a density that would not follow them through the noise."""
        if not isinstance(measure, Particles):
            raise TypeError(
                f"Langevin needs Particles, got {type(measure).__name__}; draw some: Particles(measure.sample(1000))"
            )
        return measure.detach().push(lambda x: x)

    def value(self, functional: Functional, measure: Measure) -> Tensor:
        try:
            return apply(functional, measure)
        except DensityUnknownError:
            return apply(self._split(functional, measure)[0], measure)

    @torch.no_grad()
    def step(
        self,
        functional: Functional,
        measure: Measure,
        step_size: float,
        *,
        previous: Step | None = None,
        held_out: Measure | None = None,
    ) -> Step:
        start = time.perf_counter()
        step_size = check_positive(step_size, "step_size")
        index = 0 if previous is None else previous.index + 1
        source = self.prepare(measure)
        smooth, temperature = self._split(functional, source)
        generator = make_generator(step_seed(self.seed, index), source.device)
        noise = torch.randn(source.points.shape, generator=generator, dtype=source.dtype, device=source.device)
        try:
            gradient = checked_gradient(smooth, source)
            points = source.points - step_size * gradient + math.sqrt(2 * step_size * temperature) * noise
            message = ""
            if self.adjusted:
                uniform = torch.rand(len(source), generator=generator, dtype=source.dtype, device=source.device)
                rise = self._log_ratio(smooth, source, points, gradient, step_size, temperature)
                accepted = uniform.log() < rise  # a proposal of no density, or NaN, is rejected
                points = torch.where(accepted[:, None], points, source.points)
                message = f"accepted {float(source.weights @ accepted.to(source.weights)):.0%} of the moves"
            rho = source.push(lambda _: points)
            value = self.value(functional, rho)
            if not bool(torch.isfinite(value)):
                raise StepFailedError(non_finite(smooth, rho))
        except StepFailedError as error:
            raise failed(error, index) from error
        return Step(
            measure=rho,
            map=None,
            value=value,
            transport_cost=source.weights @ (points - source.points).square().sum(1),
            step_size=step_size,
            iterations=1,
            seconds=time.perf_counter() - start,
            message=message,
            index=index,
        )

    def _split(self, functional: Functional, rho: Measure) -> tuple[Functional, float]:
        """G and τ."""
        terms = as_terms(functional)
        temperature = sum(weight for weight, term in terms if isinstance(term, Entropy))
        smooth = [(weight, term) for weight, term in terms if not isinstance(term, Entropy)]
        if temperature <= 0:
            raise ValueError(
                f"Langevin's noise stands for an entropy of positive weight, and {functional!r} has {temperature:g}; "
                "ExplicitEuler follows functionals without one"
            )
        for _, term in smooth:
            if needs_density(term, rho):
                raise ValueError(
                    f"{term!r} needs a density, which Langevin's particles do not have; use ForwardBackward"
                )
            if self.adjusted and not isinstance(term, PotentialEnergy):
                raise ValueError(
                    f"adjusted=True needs a target that does not change, a sum of potentials, KL and entropy, and "
                    f"{term!r} is not one; use adjusted=False"
                )
        return as_sum(smooth or [(1.0, PotentialEnergy(lambda x: torch.zeros_like(x[:, 0])))]), temperature

    @staticmethod
    def _log_ratio(
        smooth: Functional, source: Particles, points: Tensor, gradient: Tensor, step_size: float, temperature: float
    ) -> Tensor:
        """The logarithm of π(y) q(x | y) / (π(x) q(y | x)) of moves x → y, (n,)."""
        pieces = split(smooth)
        there = pieces.potential_gradient(points)
        x, y = source.points, points
        forth = (y - x + step_size * gradient).square().sum(1)
        back = (x - y + step_size * there).square().sum(1)
        energy = pieces.potential(y) - pieces.potential(x)
        return -(energy + (back - forth) / (4 * step_size)) / temperature
