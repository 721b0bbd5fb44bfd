"""Forward–backward splitting: an explicit step along one part of a sum, a proximal step along the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_function
from wprox._sums import weighted_sum
from wprox.functionals import Functional
from wprox.functionals.terms import Term, as_sum, terms_of_one_kind
from wprox.maps import ComposedMap, TransportMap
from wprox.measures import Gaussian, Measure
from wprox.solvers._explicit_step import CONVERSION, MOVES, forward_step, gradient_at
from wprox.solvers.base import Solved, Solver, Step
from wprox.solvers.problem import Problem


class ForwardBackward(Solver):
    r"""The Wasserstein proximal gradient algorithm (Salim, Korba and Luise 2020): for F = G + H,

        ν = (id − γ∇_{W₂}G(μ))#μ,        ρ = prox_{γH}(ν) = argmin_ρ H(ρ) + W₂²(ν, ρ)/(2γ).

    For F = ∫ V dρ + entropy, with V convex and L-smooth, and γ ≤ 1/L, it converges like the proximal point algorithm
    (their section 4): for λ-convex V each step shrinks W₂² to the minimiser by 1 − γλ, and minimisers of F are its
    fixed points, unlike those of unadjusted Langevin dynamics, which takes the same forward step.

    By default everything that needs no density goes forward and the rest backward; KL(· ‖ π) is the potential −log π,
    forward, and the entropy, backward. `forward` chooses otherwise.

    Works with `GaussianProx` where G is quadratic, `QuantileProx`, `NeuralProx` and `ParticleProx`. Where particles
    carry a density, or count theirs relative to the start, the forward map's log-determinant takes the Hessian of
    V + W ∗ ρ; other functionals in G have no map, and the density is counted afresh, relative to ν, after each step
    (then `Step.value` is up to a constant of its own each step). Quantiles and densities need γ < 1/L, so that the
    forward map is invertible.

    `Step.residual` is a bound of the first-order error, that of the backward step plus ‖∇G(ρ) − ∇G(μ)‖; `Step.map` the
    composition; `transport_cost` that of the composition.

    Arguments:
        backward: the solver of the proximal half-step.
        forward: says of each term of F whether it goes forward, such as `lambda term: isinstance(term, MMD)`; it sees
            KL as a `PotentialEnergy` and an `Entropy`.

    Raises:
        ValueError: where nothing is left for the backward step, and where G takes a Gaussian to another law.
        TypeError: for a measure whose points do not move, or that the backward solver refuses.
        StepFailedError: where either half-step fails.

    Example:
        >>> import torch, wprox
        >>> F = wprox.KL(wprox.Gaussian(torch.zeros(1), torch.eye(1)))
        >>> start = wprox.Gaussian(torch.full((1,), 3.0), 4 * torch.eye(1))
        >>> trajectory = wprox.jko(F, wprox.ForwardBackward(wprox.GaussianProx()), start, step_size=0.5, n_steps=20)
        >>> trajectory.measures[1].loc, bool(abs(trajectory.final.covariance_matrix - 1) < 1e-5)  # m (1 − γ), unbiased
        (tensor([1.5000]), True)
    """

    accepts = MOVES
    conversion = CONVERSION
    is_proximal = False

    def __init__(self, backward: Solver, forward: Callable[[Functional], bool] | None = None) -> None:
        if not isinstance(backward, Solver):
            raise TypeError(f"backward must be a solver such as wprox.NeuralProx(), got {backward!r}")
        if forward is not None:
            check_function(forward, "forward", "of a functional, term -> bool")
        self.backward = backward
        self.forward = forward

    def takes(self, measure: Measure) -> bool:
        return measure.movable or isinstance(measure, MOVES)

    def prepare(self, measure: Measure) -> Measure:
        return self.backward.prepare(super().prepare(measure))

    def value(self, functional: Functional, measure: Measure) -> Tensor:
        return self.backward.value(functional, measure)

    def solve(self, problem: Problem, state: Any) -> Solved:
        functional, source, step_size = problem.functional, problem.measure, problem.step_size
        state = state if isinstance(state, Step) else None
        explicit, implicit = self._split(functional, source)
        middle, first, gradient, held_out = source, None, None, problem.held_out
        if explicit is not None:
            with torch.no_grad():
                middle, first, gradient = forward_step(explicit, source, step_size, with_density=True)
                if held_out is not None:
                    held_out = _push_held_out(explicit, self.backward.prepare(held_out), first, step_size)
        inner = self.backward.step(implicit, middle, step_size, previous=state, held_out=held_out)
        rho = inner.measure
        with torch.no_grad():
            value = self.value(functional, rho)
            images = _images(source, gradient, inner, step_size)
            residual = inner.residual
            if residual is not None and explicit is not None and gradient is not None:
                change = gradient_at(explicit, rho, images) - gradient
                residual += math.sqrt(float(weighted_sum(source.weights, change.square().sum(1))))
        message = inner.message
        if rho.is_relative and not middle.is_relative:
            message += "; the forward map of G is not known, so values are up to a constant of this step"
        maps: list[TransportMap | None] = [first, inner.map] if explicit is not None else [inner.map]
        known = [map for map in maps if map is not None]
        return Solved(
            measure=rho,
            transport_cost=weighted_sum(source.weights, (images - source.points).square().sum(1)),
            map=ComposedMap(known) if len(known) == len(maps) else None,
            value=value,
            residual=residual,
            ending=inner.ending,
            message=message,
            iterations=inner.iterations,
            held_out=inner.held_out,
            state=inner,
        )

    def _split(self, functional: Functional, rho: Measure) -> tuple[Functional | None, Functional]:
        """G, or `None` where it is 0, and H."""
        explicit: list[Term] = []
        implicit: list[Term] = []
        for weight, term in terms_of_one_kind(functional.structure()):
            forward = not term.needs_density(rho) if self.forward is None else bool(self.forward(term))
            (explicit if forward else implicit).append((weight, term))
        if not implicit:
            raise ValueError(
                f"every term of {functional!r} goes forward, so there is no proximal half-step: use ExplicitEuler, or "
                "choose with ForwardBackward(backward, forward=lambda term: ...) what goes forward"
            )
        return (as_sum(explicit) if explicit else None), as_sum(implicit)


def _images(source: Measure, gradient: Tensor | None, inner: Step, step_size: float) -> Tensor:
    """Where the step takes the points of μ, (n, d)."""
    if not isinstance(source, Gaussian):
        return inner.measure.points.detach()
    middle = source.points if gradient is None else source.points - step_size * gradient
    assert inner.map is not None
    return inner.map(middle)[0].detach()


def _push_held_out(explicit: Functional, held_out: Measure, map: TransportMap | None, step_size: float) -> Measure:
    """The held-out measure after the forward step: by the same map, or along its own gradient where there is none."""
    if map is not None:
        return held_out.push(map)
    return forward_step(explicit, held_out, step_size)[0]
