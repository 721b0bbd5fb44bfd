"""Langevin dynamics: the gradient flow of a potential plus entropy, by noise."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_flag
from wprox._random import check_seed, make_generator, step_seed
from wprox._sums import weighted_sum
from wprox.functionals import Functional
from wprox.functionals.base import checked_value
from wprox.functionals.structure import Structure
from wprox.functionals.terms import as_sum, terms_of_one_kind
from wprox.measures import Measure
from wprox.solvers.base import Ending, ParticleSolver, Solved
from wprox.solvers.problem import Problem, StepFailedError, gradient_of, non_finite


class Langevin(ParticleSolver):
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

    conversion = "draw some from it, as in Particles(measure.sample(1000))"
    is_proximal = False

    def __init__(self, adjusted: bool = False, seed: int = 0) -> None:
        self.adjusted = check_flag(adjusted, "adjusted")
        self.seed = check_seed(seed)

    def prepare(self, measure: Measure) -> Measure:
        """The particles without a density that would not follow them through the noise."""
        measure = super().prepare(measure).detach()
        return measure.at(measure.points)

    def value(self, functional: Functional, measure: Measure) -> Tensor:
        if measure.density_known or measure.density_follows_points:
            return checked_value(functional, measure)
        return checked_value(self._split(functional, measure)[0], measure)

    @torch.no_grad()
    def solve(self, problem: Problem, state: Any) -> Solved:
        source, step_size = problem.measure, problem.step_size
        smooth, temperature = self._split(problem.functional, source)
        generator = make_generator(step_seed(self.seed, problem.index), source.device)
        noise = torch.randn(source.points.shape, generator=generator, dtype=source.dtype, device=source.device)
        gradient = gradient_of(smooth, source)
        points = source.points - step_size * gradient + math.sqrt(2 * step_size * temperature) * noise
        message = ""
        if self.adjusted:
            uniform = torch.rand(len(source), generator=generator, dtype=source.dtype, device=source.device)
            there = gradient_of(smooth, source.at(points)) if bool(torch.isfinite(points).all()) else gradient
            rise = self._log_ratio(smooth.structure(), source.points, points, gradient, there, step_size, temperature)
            accepted = uniform.log() < rise  # a proposal of no density, or NaN, is rejected
            points = torch.where(accepted[:, None], points, source.points)
            message = f"accepted {float(weighted_sum(source.weights, accepted.to(source.weights))):.0%} of the moves"
        rho = source.at(points)
        value = self.value(problem.functional, rho)
        if not bool(torch.isfinite(value)):
            raise StepFailedError(non_finite(smooth, rho))
        cost = problem.cost(rho)
        return Solved(rho, cost, value=value, ending=Ending.EXPLICIT, message=message, iterations=1)

    def _split(self, functional: Functional, rho: Measure) -> tuple[Functional, float]:
        """G and τ."""
        structure = functional.structure()
        temperature = structure.entropy
        if temperature <= 0:
            raise ValueError(
                f"Langevin's noise stands for an entropy of positive weight, and {functional!r} has {temperature:g}; "
                "ExplicitEuler follows functionals without one"
            )
        smooth = terms_of_one_kind(replace(structure, entropy=0.0))
        for _, term in smooth:
            if term.needs_density(rho):
                raise ValueError(
                    f"{term!r} needs a density, which Langevin's particles do not have; use ForwardBackward"
                )
        if self.adjusted and not structure.is_gibbs:
            other = next(term for _, term in smooth if not term.structure().potentials)
            raise ValueError(
                f"adjusted=True needs a target that does not change, a sum of potentials, KL and entropy, and "
                f"{other!r} is not one; use adjusted=False"
            )
        return as_sum(smooth), temperature

    @staticmethod
    def _log_ratio(
        smooth: Structure,
        x: Tensor,
        y: Tensor,
        gradient: Tensor,
        there: Tensor,
        step_size: float,
        temperature: float,
    ) -> Tensor:
        """The logarithm of π(y) q(x | y) / (π(x) q(y | x)) of moves x → y, (n,), with the gradients at x and at y."""
        forth = (y - x + step_size * gradient).square().sum(1)
        back = (x - y + step_size * there).square().sum(1)
        energy = smooth.potential(y) - smooth.potential(x)
        return -(energy + (back - forth) / (4 * step_size)) / temperature
