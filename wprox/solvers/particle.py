"""Proximal steps of particles: one free displacement each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wprox._checks import check_count, check_non_negative, check_positive
from wprox.functionals import Functional
from wprox.functionals.base import refuse_cut_off, terms_of
from wprox.functionals.structure import apply, check_precision, split
from wprox.measures import DensityUnknownError, Measure, Particles
from wprox.pairs.radial import CoincidingError
from wprox.solvers._couplings import Coupling, ExactCoupling, SinkhornCoupling
from wprox.solvers._lbfgs import Minimiser
from wprox.solvers.base import Solver, Step, StepFailedError
from wprox.solvers.problem import non_finite

COUPLINGS = ("identity", "exact", "sinkhorn")
PLANS = 100  # updates of the plan in one step
FAR = 1e12  # how far a step may look for its minimum, relative to the particles and to an explicit step
STALLED = (
    "neither the objective nor its gradient becomes smaller, as where the functional has kinks (a cusp of a kernel "
    "where particles meet its target): a larger tolerance would accept this"
)
NO_DESCENT = "the line search found no descent; is the functional smooth there, and its gradient that of its value?"


@dataclass(frozen=True)
class ParticleStep(Step):
    """A step of `ParticleProx`.

    Attributes:
        displacement: (n, d), y − x of each particle; the next step may start from it.
        evaluations: how often the functional and its gradient were computed.
    """

    displacement: Tensor = field(default_factory=lambda: torch.empty(0))
    evaluations: int = 0


class ParticleProx(Solver):
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
        absolute_tolerance: or once ε is at most this.
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

    def __init__(
        self,
        coupling: str = "identity",
        blur: float | None = None,
        iterations: int = 500,
        tolerance: float = 1e-4,
        absolute_tolerance: float = 1e-8,
        memory: int = 20,
    ) -> None:
        if coupling not in COUPLINGS:
            raise ValueError(f"coupling must be one of {list(COUPLINGS)}, got {coupling!r}")
        if (blur is None) == (coupling == "sinkhorn"):
            raise ValueError(
                'coupling="sinkhorn" needs a blur: a length well below the spread of the particles'
                if blur is None
                else f'blur goes with coupling="sinkhorn", not with {coupling!r}'
            )
        self.coupling = coupling
        self.blur = None if blur is None else check_positive(blur, "blur")
        self.iterations = check_count(iterations, "iterations")
        self.tolerance = check_non_negative(tolerance, "tolerance")
        self.absolute_tolerance = check_non_negative(absolute_tolerance, "absolute_tolerance")
        self.memory = check_count(memory, "memory")

    def prepare(self, measure: Measure) -> Particles:
        if not isinstance(measure, Particles):
            raise TypeError(
                f"ParticleProx needs Particles, got {type(measure).__name__}; "
                "draw some, as in Particles(measure.sample(1000, seed=0))"
            )
        return measure

    def step(
        self,
        functional: Functional,
        measure: Measure,
        step_size: float,
        *,
        previous: Step | None = None,
        held_out: Measure | None = None,
    ) -> ParticleStep:
        start = time.perf_counter()
        step_size = check_positive(step_size, "step_size")
        given = self.prepare(measure).detach()
        problem = _Problem(functional, given, step_size, self.blur)
        search = Minimiser(problem.evaluate, problem.first(previous), lambda v: step_size * v, self.memory)
        ending, interrupted = "", False
        try:
            if self.coupling == "exact":
                ending = self._alternate(problem, search)
            else:
                ending = "" if search.run(self._is_done(step_size), self.iterations) else NO_DESCENT
                ending = STALLED if search.stalled else ending
        except KeyboardInterrupt:
            interrupted = True
        best = search.point if problem.accepted is None else problem.accepted
        if not best.value <= problem.origin.value:  # a difference within rounding
            best = problem.origin
        if search.outside is not None and best is problem.origin and ending == NO_DESCENT:
            raise StepFailedError(non_finite(functional, problem.measure(search.outside)))
        residual, goal = float(best.gradient.norm()), self._goal(best, step_size)
        displacement = problem.displacement(best.position)
        rho = given.push(lambda x: (problem.points + displacement).to(x))
        with torch.no_grad():
            value = functional(rho)
        return ParticleStep(
            measure=rho,
            map=None,
            value=value,
            transport_cost=value.new_tensor(best.cost),
            step_size=step_size,
            residual=residual,
            converged=residual <= goal and not interrupted,
            iterations=search.iterations,
            seconds=time.perf_counter() - start,
            message=self._message(residual, goal, ending, interrupted),
            index=0 if previous is None else previous.index + 1,
            interrupted=interrupted,
            displacement=displacement.to(given.points),
            evaluations=problem.evaluations,
        )

    def _alternate(self, problem: _Problem, search: Minimiser[_Point]) -> str:
        """Minimise over particles and plans in turn; how that ended, empty where the goal was met."""
        gamma = problem.step_size
        coupling = ExactCoupling(problem.points, problem.weights)
        descending, accepted = search.run(self._is_done(gamma), self.iterations), problem.origin
        for _ in range(PLANS):
            point = problem.couple(search.point, coupling)
            if point.value > accepted.value:
                return NO_DESCENT
            problem.accepted = accepted = search.point = point
            if self._is_done(gamma)(point):
                return ""
            if search.iterations >= self.iterations:
                return ""
            if not descending:
                return STALLED if search.stalled else NO_DESCENT
            tenth = float(point.gradient.norm()) / 10  # while the plan moves, more would be wasted
            descending = search.run(self._is_done(gamma, tenth), self.iterations)
        return f"the plan was still changing after {PLANS} updates"

    def _goal(self, point: _Point, step_size: float) -> float:
        """How large ε may be: relative to the mean speed √C/γ of the step."""
        return max(self.tolerance * math.sqrt(max(point.cost, 0.0)) / step_size, self.absolute_tolerance)

    def _is_done(self, step_size: float, enough: float = 0.0) -> Callable[[_Point], bool]:
        return lambda point: float(point.gradient.norm()) <= max(self._goal(point, step_size) / 2, enough)

    def _message(self, residual: float, goal: float, ending: str, interrupted: bool) -> str:
        if interrupted:
            return f"interrupted at residual {residual:.2g}: the best so far is returned"
        if residual <= goal:
            return f"the residual {residual:.2g} is within the tolerance"
        advice = ending or f"{self.iterations} iterations were not enough: allow more, or a larger tolerance"
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


class _Problem:
    """J of one step, in float64: the functional, and the cost of moving to targets."""

    def __init__(self, functional: Functional, given: Particles, step_size: float, blur: float | None) -> None:
        self.functional, self.step_size = functional, step_size
        self.source = given.to(torch.float64)
        self.points, self.weights = self.source.points, self.source.weights
        self.smooth = None if blur is None else SinkhornCoupling(self.points, self.weights, blur)
        self.roots = self.weights.sqrt()[:, None]
        self.scales = torch.where(self.roots > 0, 1 / self.roots, 0)  # particles without mass stay
        self.target: Tensor | float = 0.0  # of the displacements
        self.offset = 0.0
        self.evaluations = 0
        self.accepted: _Point | None = None  # the best of those points whose plan is optimal
        self.limit = math.inf
        self.origin = self._origin()
        length = float((self.points * self.roots).norm()) + step_size * float(self.origin.gradient.norm())
        self.limit = FAR * length if length else math.inf

    def _origin(self) -> _Point:
        """J where the particles are, checked."""
        position = torch.zeros_like(self.points).reshape(-1)
        here = self.measure(position)
        self.evaluations += 1
        y = here.points.detach().requires_grad_()
        try:
            value = self._checked_value(y)
        except DensityUnknownError as error:
            raise DensityUnknownError(
                f"{self.functional!r} needs the density, which moved particles do not have: smooth them with "
                "Particles.with_kernel_density(), or use a solver that carries densities along, NeuralProx"
            ) from error
        check_precision(split(self.functional), here)
        point = self._differentiated(position, y, value)
        if not (math.isfinite(point.value) and bool(torch.isfinite(point.gradient).all())):
            raise StepFailedError(non_finite(self.functional, here))
        return point

    def _checked_value(self, y: Tensor) -> Tensor:
        """F at y, with a graph; raises where a term of it does not apply, or moves without a gradient."""
        rho, values = self.source.push(lambda _: y), []
        with torch.enable_grad():
            for weight, term in terms_of(self.functional):
                value = apply(term, rho)
                if not value.requires_grad:
                    refuse_cut_off(term, rho, value)
                values.append(weight * value)
            return torch.stack(values).sum()

    def displacement(self, position: Tensor) -> Tensor:
        """y − x, (n, d)."""
        return position.reshape(self.points.shape) * self.scales

    def measure(self, position: Tensor) -> Particles:
        """The particles at y."""
        return self.source.push(lambda x: x + self.displacement(position))

    def evaluate(self, position: Tensor) -> _Point:
        """F and its gradient at a position, with the cost."""
        self.evaluations += 1
        if float(position.norm()) > self.limit:
            raise StepFailedError(
                f"the step ran away: F + W₂²/(2γ) has no minimum near these particles. Is {self.functional!r} bounded "
                f"from below, and step_size = {self.step_size:g} short enough for it?"
            )
        with torch.enable_grad():
            y = (self.points + self.displacement(position)).requires_grad_()
            try:
                value = self.functional(self.source.push(lambda _: y))
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

    def first(self, previous: Step | None) -> _Point:
        """Where to start: at rest, or moving on as in the step before where that is better."""
        if not isinstance(previous, ParticleStep) or previous.displacement.shape != self.points.shape:
            return self.origin
        displacement = previous.displacement.to(self.points) * (self.step_size / previous.step_size)
        moved = self.evaluate((displacement * self.roots).reshape(-1))
        is_better = moved.value < self.origin.value and bool(torch.isfinite(moved.gradient).all())
        return moved if is_better else self.origin
