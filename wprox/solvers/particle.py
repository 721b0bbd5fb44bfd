"""Proximal steps of particles: one free displacement each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_choice, check_count, check_length, check_non_negative
from wprox._random import make_generator
from wprox.functionals.base import checked_value, refuse_cut_off, terms_of
from wprox.measures import DensityUnknownError, Measure
from wprox.pairs.radial import CoincidingError
from wprox.solvers._lbfgs import Minimiser
from wprox.solvers.base import Ending, ParticleSolver, Solved
from wprox.solvers.problem import Problem, StepFailedError, non_finite
from wprox.transport.couplings import Coupling, ExactCoupling, SinkhornCoupling

COUPLINGS = ("identity", "exact", "sinkhorn")
PLANS = 100  # updates of the plan in one step
DIGITS = 8 * torch.finfo(torch.float64).eps  # of coordinates, relative to them: what rounding leaves of them
FAR = 1e12  # how far a step may look for its minimum, relative to the particles and to an explicit step


@dataclass(frozen=True)
class _State:
    """What the next step goes on from: y − x of each particle, (n, d), in a step of size γ, and what that cost.

    Attributes:
        displacement: y − x.
        step_size: γ.
        evaluations: how often the functional and its gradient were computed.
    """

    displacement: Tensor
    step_size: float
    evaluations: int


class ParticleProx(ParticleSolver):
    r"""The proximal step over free displacements of the particles.

        argmin_y F(Σ_i w_i δ_{y_i}) + C(y)/(2γ),       C(y) = Σ_i w_i |y_i − x_i|²,

    by L-BFGS with a strong Wolfe line search in float64, in the variables √w_i (y_i − x_i), in which the cost is
    |·|²/(2γ) and the norm of the gradient is `Step.residual`,

        ε = ‖∇F(ρ) + (id − T⁻¹)/γ‖_{L²(ρ)} = (Σ_i w_i |∂_{y_i}F/w_i + (y_i − x_i)/γ|²)^½.

    F + C/(2γ) is never larger than at the start, so F never increases, whatever γ is. Particles of weight 0 stay where
    they are. Functionals of the density need `Particles.with_kernel_density`, which steps keep.

    The identity coupling bounds W₂² from above and equals it where no particles overtake each other, as for short
    steps; each particle keeps its own target. For long steps the plan can be optimised as well: C = W₂²(μ, ρ) for the
    exact coupling, 2 S_ε(μ, ρ) for the entropic one, which is smooth in the particles and minimised as it is. With the
    exact one plan and particles take turns: for a fixed plan C is bounded by w_i |y_i − t_i|² plus a constant, with the
    plan's barycentres t, and the bound is minimised as above.

    Arguments:
        coupling: "identity", "exact" (by POT, for up to a few thousand particles) or "sinkhorn" (the debiased entropic
            cost, likewise).
        blur: √ε of the entropic coupling, a length well below the spread of the particles; for "sinkhorn" only.
        iterations: the largest number of L-BFGS iterations.
        tolerance: the step has converged once ε ≤ tolerance · √C/γ, relative to the mean speed of the step,
        absolute_tolerance: or once γε is at most this part of the median distance of the particles from their centre;
            a step that starts there is still made.
        memory: the number of pairs that L-BFGS keeps.

    Raises:
        TypeError: for a measure other than Particles.
        ValueError: where a term of F changes with the particles but is cut off from autograd.
        DensityUnknownError: where F needs a density and the particles have no kernel density.
        StepFailedError: where F or its gradient is not finite, naming the term, and where F + C/(2γ) has no minimum.

    Example:
        >>> import torch, wprox
        >>> F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2)
        >>> step = wprox.ParticleProx().step(F, wprox.Particles([[3.0, 0.0], [0.0, 1.5]]), 0.5)
        >>> step.measure.points, step.converged  # T(x) = x/(1 + γ)
        (tensor([[2., 0.], [0., 1.]]), True)
    """

    conversion = "draw some, as in Particles(measure.sample(1000, seed=0))"
    takes_anchor = True

    def __init__(
        self,
        coupling: str = "identity",
        blur: float | None = None,
        iterations: int = 500,
        tolerance: float = 1e-4,
        absolute_tolerance: float = 1e-8,
        memory: int = 20,
    ) -> None:
        check_choice(coupling, "coupling", COUPLINGS)
        if (blur is None) == (coupling == "sinkhorn"):
            raise ValueError(
                'coupling="sinkhorn" needs a blur: a length well below the spread of the particles'
                if blur is None
                else f'blur goes with coupling="sinkhorn", not with {coupling!r}: leave it out'
            )
        self.coupling = coupling
        self.blur = None if blur is None else check_length(blur, "blur")
        self.iterations = check_count(iterations, "iterations")
        self.tolerance = check_non_negative(tolerance, "tolerance")
        self.absolute_tolerance = check_non_negative(absolute_tolerance, "absolute_tolerance")
        self.memory = check_count(memory, "memory")

    def solve(self, problem: Problem, state: Any) -> Solved:
        step_size = problem.step_size
        objective = _Objective(problem, self.blur)
        search = Minimiser(objective.evaluate, objective.first(state), lambda v: step_size * v, self.memory)
        ending, interrupted = Ending.ITERATIONS, False
        try:
            if self.coupling == "exact":
                ending = self._alternate(objective, search)
            elif not search.run(self._is_done(objective), self.iterations):
                ending = Ending.STALLED if search.stalled else Ending.NO_DESCENT
        except KeyboardInterrupt:
            interrupted = True
        best = search.point if objective.accepted is None else objective.accepted
        if not best.value <= objective.origin.value:  # a difference within rounding
            best = objective.origin
        if search.outside is not None and best is objective.origin and ending is Ending.NO_DESCENT:
            raise StepFailedError(non_finite(problem.functional, objective.measure(search.outside)))
        residual, goal = float(best.gradient.norm()), self._goal(best, objective)
        if ending is Ending.NO_DESCENT and residual > goal:
            goal = max(goal, objective.rounding(best))
        if interrupted or residual <= goal:
            ending = Ending.INTERRUPTED if interrupted else Ending.CONVERGED
        given = problem.measure.detach()
        targets = objective.points + objective.displacement(best.position)
        rho = given.at(targets.to(given.points))
        return Solved(
            measure=rho,
            # the debiased entropic cost is no bound of W₂²; what each particle moves is
            transport_cost=problem.cost(rho) if self.coupling == "sinkhorn" else given.weights.new_tensor(best.cost),
            residual=residual,
            ending=ending,
            message=self._message(residual, goal, ending),
            iterations=search.iterations,
            state=_State((targets - objective.start).to(given.points), step_size, objective.evaluations),
        )

    def _alternate(self, problem: _Objective, search: Minimiser[_Point]) -> Ending:
        """Minimise over particles and plans in turn; how that ended."""
        coupling = ExactCoupling(problem.points, problem.weights)
        descending, accepted = search.run(self._is_done(problem), self.iterations), problem.origin
        for _ in range(PLANS):
            point = problem.couple(search.point, coupling)
            if point.value > accepted.value:
                return Ending.NO_DESCENT
            problem.accepted = accepted = search.point = point
            if self._is_done(problem)(point) or search.iterations >= self.iterations:
                return Ending.ITERATIONS
            if not descending:
                return Ending.STALLED if search.stalled else Ending.NO_DESCENT
            tenth = float(point.gradient.norm()) / 10  # while the plan moves, more would be wasted
            descending = search.run(self._is_done(problem, tenth), self.iterations)
        return Ending.PLAN

    def _goal(self, point: _Point, objective: _Objective) -> float:
        """How large ε may be: relative to the mean speed √C/γ of the step, or next to what rounding hides."""
        lengths = self.tolerance * math.sqrt(max(point.cost, 0.0)), self.absolute_tolerance * objective.spread
        return max(*lengths, objective.digits) / objective.step_size

    def _is_done(self, objective: _Objective, enough: float = 0.0) -> Callable[[_Point], bool]:
        def is_done(point: _Point) -> bool:
            # a step far shorter than the spread is none to leave out
            goal = objective.digits / objective.step_size if point is objective.origin else self._goal(point, objective)
            return float(point.gradient.norm()) <= max(goal / 2, enough)

        return is_done

    def _message(self, residual: float, goal: float, ending: Ending) -> str:
        if ending is Ending.INTERRUPTED:
            return f"interrupted at residual {residual:.2g}: the best so far is returned"
        if ending is Ending.CONVERGED:
            return f"the residual {residual:.2g} is within the tolerance"
        advice = {
            Ending.ITERATIONS: f"{self.iterations} iterations were not enough: allow more, or a larger tolerance",
            Ending.PLAN: f"{Ending.PLAN.value} after {PLANS} updates",
        }.get(ending, ending.value)
        return f"the residual is {residual:.2g}, not {goal:.2g}: {advice}"


@dataclass(frozen=True)
class _Point:
    """J at displacements √w (y − x), flattened; `slope` is the part of ∇J that F makes, and `energy` is F."""

    position: Tensor
    value: float
    gradient: Tensor
    cost: float
    energy: float
    slope: Tensor


class _Objective:
    """J of one step, in float64, over displacements from the anchor: the functional, and the cost of moving there."""

    def __init__(self, problem: Problem, blur: float | None) -> None:
        self.problem, self.step_size = problem, problem.step_size
        self.source = problem.measure.detach().to(torch.float64)
        self.start = self.source.points
        self.points, self.weights = problem.anchor.points.detach().double(), self.source.weights
        self.smooth = None if blur is None else SinkhornCoupling(self.points, self.weights, blur)
        self.roots = self.weights.sqrt()[:, None]
        self.scales = torch.where(self.roots > 0, 1 / self.roots, 0)  # particles without mass stay
        self.target: Tensor | float = 0.0  # of the displacements
        self.offset = 0.0
        self.evaluations = 0
        self.accepted: _Point | None = None  # the best of those points whose plan is optimal
        self.limit = math.inf
        self.origin = self._origin()
        length = float((self.points * self.roots).norm()) + self.step_size * float(self.origin.gradient.norm())
        self.limit = FAR * length if length else math.inf
        # neither is moved by one particle far away
        self.spread, self.digits = self._size(self.start - self.start.median(0).values), DIGITS * self._size(self.start)

    def _size(self, vectors: Tensor) -> float:
        """The median length of vectors, (n, d), but no more than their norm in L²."""
        return min(float(vectors.norm(dim=1).median()), float((vectors * self.roots).norm()))

    def rounding(self, point: _Point) -> float:
        """How much ∇F changes as all coordinates change in their last digits: what is left of it is noise."""
        y = self.points + self.displacement(point.position)
        noise = torch.randn(y.shape, generator=make_generator(0), dtype=y.dtype).to(y)
        shift = DIGITS * torch.maximum(y.abs(), self.points.abs()) * noise
        return float((self.evaluate(point.position + (shift * self.roots).reshape(-1)).slope - point.slope).norm())

    def _origin(self) -> _Point:
        """J where the particles are, checked."""
        position = ((self.start - self.points) * self.roots).reshape(-1)
        here = self.measure(position)
        self.evaluations += 1
        y = here.points.detach().requires_grad_()
        try:
            value = self._checked_value(y)
        except DensityUnknownError as error:
            raise DensityUnknownError(
                f"{self.problem.functional!r} needs the density, which moved particles do not have: smooth them with "
                "Particles.with_kernel_density(), or use a solver that carries densities along, NeuralProx"
            ) from error
        self.problem.check_precision()
        point = self._differentiated(position, y, value)
        if not (math.isfinite(point.value) and bool(torch.isfinite(point.gradient).all())):
            raise StepFailedError(non_finite(self.problem.functional, here))
        return point

    def _checked_value(self, y: Tensor) -> Tensor:
        """F at y, with a graph; raises where a term of it does not apply, or moves without a gradient."""
        rho, values = self.source.at(y), []
        with torch.enable_grad():
            for weight, term in terms_of(self.problem.functional):
                value = checked_value(term, rho)
                if not value.requires_grad:
                    refuse_cut_off(term, rho, value)
                values.append(weight * value)
            return torch.stack(values).sum()

    def displacement(self, position: Tensor) -> Tensor:
        """y − a, (n, d)."""
        return position.reshape(self.points.shape) * self.scales

    def measure(self, position: Tensor) -> Measure:
        """The particles at y."""
        return self.source.at(self.points + self.displacement(position))

    def evaluate(self, position: Tensor) -> _Point:
        """F and its gradient at a position, with the cost."""
        self.evaluations += 1
        if float(position.norm()) > self.limit:
            raise StepFailedError(
                "the step ran away: F + W₂²/(2γ) has no minimum near these particles. Is "
                f"{self.problem.functional!r} bounded from below, and step_size = {self.step_size:g} short enough?"
            )
        with torch.enable_grad():
            y = (self.points + self.displacement(position)).requires_grad_()
            try:
                value = self.problem.functional(self.source.at(y))
            except CoincidingError:  # a trial, for the particles of the start are apart
                value = y.new_tensor(math.inf)
        return self._differentiated(position, y, value)

    def _differentiated(self, position: Tensor, y: Tensor, value: Tensor) -> _Point:
        """The point of F = `value`, a function of y."""
        gradient = torch.autograd.grad(value, y, allow_unused=True)[0] if value.requires_grad else None
        slope = torch.zeros_like(position) if gradient is None else (gradient * self.scales).reshape(-1)
        point = self._point(position, float(value.detach()), slope)
        return point if self.smooth is None else self.couple(point, self.smooth)

    def _point(self, position: Tensor, energy: float, slope: Tensor) -> _Point:
        pull = position - self.target
        cost = float(pull @ pull) + self.offset
        return _Point(
            position, energy + cost / (2 * self.step_size), slope + pull / self.step_size, cost, energy, slope
        )

    def couple(self, point: _Point, coupling: Coupling) -> _Point:
        """The same point under its own optimal plan."""
        cost, targets = coupling(self.points + self.displacement(point.position))
        self.target = ((targets - self.points) * self.roots).reshape(-1)
        pull = point.position - self.target
        self.offset = cost - float(pull @ pull)
        return self._point(point.position, point.energy, point.slope)

    def first(self, state: object) -> _Point:
        """Where to start: at rest, or moving on as in the step before where that is better."""
        if not isinstance(state, _State) or state.displacement.shape != self.points.shape:
            return self.origin
        shift = state.displacement.to(self.points) * (self.step_size / state.step_size)
        moved = self.evaluate(((self.start + shift - self.points) * self.roots).reshape(-1))
        is_better = moved.value < self.origin.value and bool(torch.isfinite(moved.gradient).all())
        return moved if is_better else self.origin
