"""Proximal steps on the line: a convex problem in the nodes of the quantile function."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.linalg import LinAlgError
from torch import Tensor

from wprox._autograd import SHIFT
from wprox._checks import check_count, check_positive
from wprox.functionals import Functional
from wprox.functionals.base import refuse_cut_off_terms
from wprox.functionals.terms import as_sum, terms_of_one_kind
from wprox.maps import MonotoneMap
from wprox.measures import Quantiles
from wprox.solvers._lbfgs import History
from wprox.solvers.base import Ending, Solved, Solver
from wprox.solvers.problem import Problem, StepFailedError

SMALL = "the last update was below the tolerance"
BATCH = 2**17  # nodes differentiated at once, so that a batch fits the cache
EPSILON = torch.finfo(torch.float64).eps


class QuantileProx(Solver):
    r"""The proximal step of the line, exact up to the nodes.

    In the nodes x of the new quantile function, with the nodes y of μ, their weights w and the mass h between
    neighbours, the step minimises

        J(x) = Σ_i w_i [V(x_i) + (x_i − y_i)²/(2γ)] + Σ_k h U(ρ_k)/ρ_k + the rest,      ρ_k = h/(x_{k+1} − x_k),

    over increasing x; for convex V and McCann's condition on U this is strictly convex (McCann 1997; the discretisation
    by quantile functions is that of Blanchet, Calvez and Carrillo, *SIAM J. Numer. Anal.* 46, 2008). Where F is a sum
    of PotentialEnergy, InternalEnergy (PorousMedium), Entropy and KL, it takes Newton steps with a tridiagonal Hessian,
    O(n) each. Any other term, InteractionEnergy and functionals of your own included, is differentiated by autograd in
    the nodes, and steps are L-BFGS steps that start from the tridiagonal Hessian of the terms above and of an entropy
    that pushes the gaps as hard as the other terms do. The line search keeps the nodes in order.

    `Step.residual` is ‖∇J‖ in L²(ρ), the ε of the theory, from the exact gradient. Nodes are rounded to 16 digits, so
    it does not fall below about 10⁻¹⁶ n² ρ² β for an entropy of weight β, although the nodes themselves are as
    accurate as they can be.

    Arguments:
        iterations: the largest number of Newton or L-BFGS steps.
        tolerance: the step ends once an update is shorter, in L²(ρ), than this part of the standard deviation of ρ, or
            than the rounding of the nodes.
        memory: the number of pairs that L-BFGS keeps.

    Raises:
        TypeError: for a measure other than Quantiles, and a functional that needs a method which Quantiles lack.

    Example:
        >>> import torch, wprox
        >>> F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2)
        >>> step = wprox.QuantileProx().step(F, wprox.Quantiles(torch.linspace(1.0, 2.0, 11)), 1.0)
        >>> step.measure.nodes[:3].tolist(), step.converged  # V = x²/2 alone: T(x) = x/(1 + γ)
        ([0.5, 0.55, 0.6], True)
    """

    accepts = (Quantiles,)
    takes_anchor = True
    conversion = "make some with Quantiles.from_icdf(icdf, n) or Quantiles.from_samples(x, n)"

    def __init__(self, iterations: int = 200, tolerance: float = 1e-9, memory: int = 30) -> None:
        self.iterations = check_count(iterations, "iterations")
        self.tolerance = check_positive(tolerance, "tolerance")
        self.memory = check_count(memory, "memory")

    @torch.no_grad()
    def solve(self, problem: Problem, state: Any) -> Solved:
        source = problem.measure
        assert isinstance(source, Quantiles)
        problem.value(source)  # says what is missing, where F does not apply
        nodes = source.nodes.detach()
        with torch.enable_grad():
            tracked = Quantiles.unchecked(nodes.clone().requires_grad_())
        refuse_cut_off_terms(problem.functional, tracked, Quantiles.unchecked(nodes + SHIFT * (1 + nodes)))
        problem.check_precision()
        outcome = self._minimise(_Objective(problem), source.nodes.detach())
        rho = Quantiles.unchecked(outcome.nodes)
        return Solved(
            measure=rho,
            transport_cost=problem.cost(rho),
            map=MonotoneMap(source.nodes, rho.nodes),
            residual=outcome.residual,
            ending=outcome.ending,
            message=outcome.message,
            iterations=outcome.iterations,
        )

    def _minimise(self, problem: _Objective, x: Tensor) -> _Outcome:
        value, _ = problem.value(x)
        if not math.isfinite(value):
            raise StepFailedError(
                f"the functional is {value:g} at the measure that the step starts from; check that it is defined at "
                "every node"
            )
        point = problem.expand(x)
        history = History(self.memory)
        for count in range(1, self.iterations + 1):
            direction = -history.apply(point.gradient, point.solve)
            if float(direction @ point.gradient) > 0:  # pairs from where J was not convex: start afresh
                history = History(self.memory)
                direction = -point.solve(point.gradient)
            rounding = 8 * EPSILON * float(x.abs().max())
            is_small = problem.norm(direction) <= max(self.tolerance * problem.spread(x), rounding)
            shift = problem.search(x, point, direction)
            if shift is None:
                ending = Ending.CONVERGED if is_small else Ending.NO_DESCENT
                return _Outcome(x, point.residual, ending, count, SMALL if is_small else ending.value)
            gradient, x = point.gradient, x + shift
            point = problem.expand(x)
            if is_small:
                return _Outcome(x, point.residual, Ending.CONVERGED, count, SMALL)
            if problem.rest is not None:
                history.add(shift, point.gradient - gradient)
        message = f"{self.iterations} iterations were not enough"
        return _Outcome(x, point.residual, Ending.ITERATIONS, self.iterations, message)


@dataclass(frozen=True)
class _Outcome:
    nodes: Tensor
    residual: float
    ending: Ending
    iterations: int
    message: str


class _Objective:
    """J of one step, with its derivatives."""

    def __init__(self, problem: Problem) -> None:
        structure = problem.structure
        self.structure = structure
        others = replace(structure, potentials=(), entropy=0.0, internal=())
        self.rest = as_sum(terms) if (terms := terms_of_one_kind(others)) else None
        anchor = problem.anchor
        assert isinstance(anchor, Quantiles)
        self.source = anchor.nodes.detach()
        self.weights = anchor.weights
        self.mass = 1 / (len(anchor) - 1)
        self.step_size = problem.step_size

    def norm(self, v: Tensor) -> float:
        """‖v‖ in L²(ρ)."""
        return math.sqrt(float(self.weights @ v.square()))

    def spread(self, x: Tensor) -> float:
        """The standard deviation of the measure with nodes x."""
        return self.norm(x - self.weights @ x)

    def value(self, x: Tensor) -> tuple[float, float]:
        """J(x), and the size of the terms that were added up: rounding errors are relative to it."""
        parts = [self.weights @ (x - self.source).square() / (2 * self.step_size)]
        with torch.no_grad():
            if self.structure.potentials:
                parts.append(self.weights @ self.structure.potential(x[:, None]))
            if self.structure.entropy or self.structure.internal:
                density = self.mass / x.diff()
                parts.append(self.structure.entropy * density.log().mean())
                parts += [piece.weight * (piece.energy(density) / density).mean() for piece in self.structure.internal]
            if self.rest is not None:
                parts.append(self.rest(Quantiles.unchecked(x)))
        values = [float(part) for part in parts]
        return sum(values), sum(abs(value) for value in values)

    def expand(self, x: Tensor) -> _Expansion:
        """The gradient of J at x, and the Hessian of all but the rest.

        For a gap Δ with ρ = h/Δ, the derivatives of h U(ρ)/ρ = Δ U(h/Δ) are U − ρU′ and ρ³U″/h.
        """
        pull, curvature = (x - self.source) / self.step_size, x.new_zeros(len(x))
        if self.structure.potentials:
            slope, curvature = _derivatives(lambda points: self.structure.potential(points[:, None]), x)
            pull = pull + slope
        gradient = self.weights * pull
        gap_curvature = x.new_zeros(len(x) - 1)
        if self.structure.entropy or self.structure.internal:
            density = self.mass / x.diff()
            pressure = self.structure.entropy * density
            gap_curvature = gap_curvature + self.structure.entropy * density.square() / self.mass
            for piece in self.structure.internal:
                slope, bend = _derivatives(piece.energy, density)
                pressure = pressure + piece.weight * (density * slope - piece.energy(density))
                gap_curvature = gap_curvature + piece.weight * density**3 * bend / self.mass
            gradient[:-1] += pressure
            gradient[1:] -= pressure
        if self.rest is not None:
            by_nodes, by_gaps = self._rest_gradients(self.rest, x)
            gradient = gradient + by_nodes
            gradient[:-1] -= by_gaps
            gradient[1:] += by_gaps
            # a rest that depends on the density is as stiff as an entropy: −β h log Δ has the curvature −φ′/Δ
            gap_curvature = gap_curvature + (-by_gaps / x.diff()).clamp(min=0)
        if not bool(torch.isfinite(gradient).all()):
            k = int((~torch.isfinite(gradient)).nonzero()[0])
            raise StepFailedError(
                f"the gradient of the objective is not finite at node {k}, x = {float(x[k]):g}; check that the "
                "functional is finite and differentiable there"
            )
        return _Expansion(
            gradient, self.weights, self.weights / self.step_size, self.weights * curvature, gap_curvature
        )

    def search(self, x: Tensor, point: _Expansion, direction: Tensor) -> Tensor | None:
        """An update along the direction that lowers J and keeps the order; `None` where there is none."""
        growth = (direction.diff() / x.diff()).min()
        scale = min(1.0, -0.9 / float(growth)) if float(growth) < 0 else 1.0
        value, magnitude = self.value(x)
        slope = float(direction @ point.gradient)
        for _ in range(40):
            shift = scale * direction
            if bool((x + shift).diff().min() > 0):
                trial = self.value(x + shift)[0]
                if trial <= value + 1e-4 * scale * slope + 64 * EPSILON * magnitude:
                    return shift
            scale /= 2
        return None

    @staticmethod
    def _rest_gradients(rest: Functional, x: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of the rest by the nodes and, through the density, by the gaps between them."""
        nodes, spacing = x.detach().requires_grad_(), x.diff().detach().requires_grad_()
        with torch.enable_grad():
            value = rest(Quantiles.unchecked(nodes, spacing))
        parts = torch.autograd.grad(value, (nodes, spacing), allow_unused=True) if value.requires_grad else (None, None)
        by_nodes, by_gaps = (
            torch.zeros_like(leaf) if part is None else part for part, leaf in zip(parts, (nodes, spacing), strict=True)
        )
        return by_nodes.detach(), by_gaps.detach()


@dataclass(frozen=True)
class _Expansion:
    """The gradient g of J, and the pieces of its tridiagonal Hessian H: proximal, potential and internal."""

    gradient: Tensor
    weights: Tensor
    proximal: Tensor
    potential: Tensor
    internal: Tensor

    @property
    def residual(self) -> float:
        """‖∇J‖ in L²(ρ), where a gradient in the nodes is divided by their weights."""
        return math.sqrt(float((self.gradient.square() / self.weights).sum()))

    def solve(self, vector: Tensor) -> Tensor:
        """H⁻¹ v; where V or U is not convex and H not positive definite, with their convex part in place of them.

        Where the gaps are so small that rounding makes H singular, it is damped; as the gaps open this passes.
        """
        convex = self.potential.clamp(min=0), self.internal.clamp(min=0)
        for potential, internal, damping in ((self.potential, self.internal, 0.0), (*convex, 0.0), (*convex, 1e-12)):
            try:
                return self._solve(vector, potential, internal, damping)
            except LinAlgError:
                continue
        raise StepFailedError("the Hessian is not finite; check that the second derivatives of the functional are")

    def _solve(self, vector: Tensor, potential: Tensor, internal: Tensor, damping: float) -> Tensor:
        from scipy.linalg import solveh_banded

        bands = torch.zeros(2, len(vector), dtype=torch.float64)
        bands[1] = self.proximal + potential
        bands[1, 1:] += internal
        bands[1, :-1] += internal
        bands[0, 1:] = -internal
        bands[1] *= 1 + damping
        solution = solveh_banded(bands.numpy(), vector.cpu().numpy(), overwrite_ab=True, check_finite=False)
        return torch.from_numpy(solution).to(vector)


def _derivatives(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """f′ and f″ of a function that acts on each entry of x: (n,) by itself, in batches."""
    slopes, bends = [], []
    for batch in x.split(BATCH):
        with torch.enable_grad():
            points = batch.detach().requires_grad_()
            value = f(points).sum()
            slope = _gradient(value, points)
            bends.append(_gradient(slope.sum(), points).detach())
        slopes.append(slope.detach())
    return torch.cat(slopes), torch.cat(bends)


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """∂ value/∂x, zero where the value does not depend on x."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(value, x, create_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient
