"""The abstract proximal solver, the step it returns, and how a step may end."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_count, check_number, described, kind_of
from wprox._modes import doors
from wprox.functionals import Functional
from wprox.functionals.base import checked_value
from wprox.maps import TransportMap
from wprox.measures import Measure, Particles
from wprox.measures.base import require_measure
from wprox.solvers.problem import Problem, StepFailedError

STEP_LIMIT = (
    "explicit steps are stable only for step_size < 2/L, L the Lipschitz constant of the gradient (the largest "
    "eigenvalue of ∇²V for a potential V); take a smaller step_size, or an implicit solver, which has no such limit"
)


class Ending(Enum):
    """How a step ended; the values are sentences."""

    CONVERGED = "the solver met its own criterion"
    CLOSED_FORM = "in closed form"
    EXPLICIT = "an explicit step, with nothing to solve"
    NOT_CONVERGED = "the solver did not meet its own criterion"
    ITERATIONS = "the iterations were used up: allow more of them, or a larger tolerance"
    NO_DESCENT = "the line search found no descent; is the functional smooth there, and its gradient that of its value?"
    STALLED = (
        "neither the objective nor its gradient becomes smaller, as where the functional has kinks (a cusp of a kernel "
        "where particles meet its target): a larger tolerance would accept this"
    )
    PLAN = "the plan between start and end was still changing"
    DISCRETISED = "the discretisation of training stayed too coarse: give the map more steps"
    UNFOLLOWED = (
        "the map follows the gradient of the functional at the particles only roughly: allow more iterations or a "
        "larger map, or move particles one by one, with ParticleProx"
    )
    UNSHOWN = (
        "no gain is shown by these particles: the functional is at its minimum as far as they tell; to tell more, give "
        "more of them, or a larger step_size"
    )
    ASTRAY = (
        "particles without a map reach less: the map has led into a minimum that is not the lowest, or has not the "
        "shape of the step; take a smaller step_size, more iterations or a larger map"
    )
    UNSETTLED = "linearisation does not settle; raise iterations, or ease the problem with a smaller step_size"
    OUT_OF_REACH = "implicit heat flow does not reach where the mass should go; set heat_steps=None, or raise blur"
    OVERFLOW = "F times γ/blur² overflows, and μ is returned as it was; lower step_size or raise blur"
    SMEARED = "F, or F + W₂²/(2γ), has risen: entropic transport smears mass by more than so short a step moves it"
    INTERRUPTED = "interrupted: the best so far is returned"

    @property
    def is_success(self) -> bool:
        """Whether the solver did what it promises."""
        return self in (Ending.CONVERGED, Ending.CLOSED_FORM, Ending.EXPLICIT)


@dataclass(frozen=True)
class Solved:
    """What `Solver.solve` returns: a `Step` without what all solvers have in common.

    Attributes:
        measure: the new measure ρ.
        transport_cost: E|T(x) − x|², an upper bound of W₂²(μ, ρ), or W₂² itself.
        map: T with ρ = T#μ, where the solver works with maps.
        value: F(ρ); computed from ρ where not given.
        residual, ending, message, iterations, held_out, state: as in `Step`.
    """

    measure: Measure
    transport_cost: Tensor
    map: TransportMap | None = None
    value: Tensor | None = None
    residual: float | None = None
    ending: Ending = Ending.CONVERGED
    message: str = ""
    iterations: int = 0
    held_out: Measure | None = None
    state: Any = None

    def __post_init__(self) -> None:
        require_measure(self.measure, "measure")
        if self.held_out is not None:
            require_measure(self.held_out, "held_out")
        object.__setattr__(self, "transport_cost", self._scalar(self.transport_cost, "transport_cost"))
        if self.value is not None:
            object.__setattr__(self, "value", self._scalar(self.value, "value"))
        if self.residual is not None:
            object.__setattr__(self, "residual", check_number(self.residual, "residual"))
        for name, kind, wanted in (
            ("map", TransportMap | None, "a wprox TransportMap, or None"),
            ("ending", Ending, "a wprox.Ending, as in Ending.CONVERGED"),
            ("message", str, "text, one sentence"),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be {wanted}, got {described(getattr(self, name))}")
        object.__setattr__(self, "iterations", check_count(self.iterations, "iterations", least=0))

    def _scalar(self, value: object, name: str) -> Tensor:
        """A scalar tensor, of a number too."""
        if isinstance(value, int | float):
            return self.measure.points.new_tensor(value)
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            raise TypeError(
                f"{name} must be a scalar tensor of a real number, got {described(value)}; sums over the points make "
                "one, as problem.cost(rho) does"
            )
        return value


@dataclass(frozen=True)
class Step:
    r"""One solved proximal problem, argmin_ρ F(ρ) + W₂²(μ, ρ)/(2γ).

    Attributes:
        measure: the new measure ρ.
        map: T with ρ = T#μ, where the solver works with maps.
        value: F(ρ); up to a constant where ρ's density is known only relative to μ's (`measure.is_relative`).
        transport_cost: E_μ|T(x) − x|², an upper bound of W₂²(μ, ρ) that is exact where T is optimal.
        step_size: γ.
        residual: the first-order error ε = ‖∇F(ρ) + (id − T⁻¹)/γ‖_{L²(ρ)}, where the solver knows it.
        converged: whether the solver met its own criterion.
        iterations: the number of inner iterations.
        seconds: the wall time.
        message: one sentence on how the solver ended, with its numbers.
        index: the number of the step in its trajectory, from 0.
        held_out: the held-out measure pushed by the same map, where one was given.
        interrupted: whether Ctrl-C ended the step early; the measure is then the best so far.
        ending: how the step ended, one of a few; `converged` and `interrupted` follow from it where it is given.
        state: what the solver hands to its next step; only the solver that made it knows what it is.
    """

    measure: Measure
    map: TransportMap | None
    value: Tensor
    transport_cost: Tensor
    step_size: float
    residual: float | None = None
    converged: bool = True
    iterations: int = 0
    seconds: float = 0.0
    message: str = ""
    index: int = 0
    held_out: Measure | None = None
    interrupted: bool = False
    ending: Ending = None  # type: ignore[assignment]
    state: Any = None

    def __post_init__(self) -> None:
        ending = self.ending
        if ending is None:
            ending = Ending.CONVERGED if self.converged else Ending.NOT_CONVERGED
            ending = Ending.INTERRUPTED if self.interrupted else ending
            object.__setattr__(self, "ending", ending)
        object.__setattr__(self, "converged", ending.is_success)
        object.__setattr__(self, "interrupted", ending is Ending.INTERRUPTED)


class Solver:
    r"""Solves one proximal step. A solver of your own has one method, `solve`, and says which measures it takes.

    `step` is what users and `jko` call: it checks, asks `solve` with a `Problem`, and makes the `Step`. A solver may
    also be written by overriding `step` itself.

    Attributes:
        accepts: the kinds of measures that it takes.
        conversion: what to do with measures of other kinds, for the message that refuses them.
        is_proximal: whether F + W₂²/(2γ) never rises in a step, as it may in an explicit one.
        takes_anchor: whether the transport cost may count from elsewhere than the measure (`Problem.anchor`).

    Example:
        >>> import torch, wprox
        >>> class GradientStep(wprox.Solver):
        ...     is_proximal = False
        ...
        ...     def solve(self, problem, state):
        ...         gradient = problem.functional.wasserstein_gradient(problem.measure)
        ...         rho = problem.measure.at(problem.measure.points - problem.step_size * gradient)
        ...         return wprox.Solved(rho, problem.cost(rho), residual=problem.residual(rho))
        >>> F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2)
        >>> step = GradientStep().step(F, wprox.Particles([[1.0]]), 0.5)
        >>> step.measure.points, step.residual
        (tensor([[0.5000]]), 0.5)
    """

    accepts: tuple[type[Measure], ...] = (Measure,)
    conversion: str = "Particles(points) makes one"
    is_proximal: bool = True
    takes_anchor: bool = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        doors(cls, "step", "ask", trains=True)

    def takes(self, measure: Measure) -> bool:
        """Whether the solver takes a measure as it is."""
        return isinstance(measure, self.accepts)

    def prepare(self, measure: Measure) -> Measure:
        """The initial measure in the form in which this solver carries it along.

        Raises:
            TypeError: for a measure that the solver does not take; it says what to convert it to.
        """
        if isinstance(measure, Measure) and self.takes(measure):
            return measure
        name = type(self).__name__
        if isinstance(measure, type):
            raise TypeError(f"{name} needs a measure, got the class {measure.__name__}; build one")
        kinds = " or ".join(kind.__name__ for kind in self.accepts) if self.accepts != (Measure,) else "wprox measure"
        article = "" if kinds.endswith("s") else "a "
        raise TypeError(f"{name} needs {article}{kinds}, got {type(measure).__name__}; {self.conversion}")

    def value(self, functional: Functional, measure: Measure) -> Tensor:
        """F(μ) of the initial measure, in the sense of `Step.value`."""
        return checked_value(functional, measure)

    def step(
        self,
        functional: Functional,
        measure: Measure,
        step_size: float,
        *,
        previous: Step | None = None,
        held_out: Measure | None = None,
    ) -> Step:
        r"""argmin_ρ F(ρ) + W₂²(μ, ρ)/(2γ).

        Arguments:
            functional: F.
            measure: μ.
            step_size: γ > 0.
            previous: the step before this one in a trajectory; a solver may start from it.
            held_out: draws of μ that the solver does not train on; solvers without training ignore them.

        Raises:
            TypeError: for what is no functional, and for a measure that the solver does not take.
            StepFailedError: where the step cannot be finished.
        """
        start = time.perf_counter()
        if not isinstance(previous, Step | None):
            raise TypeError(
                f"previous must be the wprox.Step before this one, which solver.step returned, got {kind_of(previous)}"
            )
        index = 0 if previous is None else previous.index + 1
        return self.ask(Problem(functional, measure, step_size, held_out=held_out, index=index), previous, start)

    def ask(self, problem: Problem, previous: Step | None = None, start: float | None = None) -> Step:
        """The step that solves a problem: `step`, for schemes that move the anchor of the transport cost.

        Arguments:
            problem: the problem.
            previous: the step before this one in a trajectory.
            start: when the clock started.

        Raises:
            TypeError, ValueError, StepFailedError: as `step`, and for an anchor where the solver takes none.
        """
        start = time.perf_counter() if start is None else start
        problem = self._prepared(problem)
        try:
            solved = self.solve(problem, None if previous is None else previous.state)
            if not isinstance(solved, Solved):
                raise TypeError(
                    f"{type(self).__name__}.solve must return a wprox.Solved, as in Solved(rho, problem.cost(rho)), it "
                    f"returned {type(solved).__name__}"
                )
            value = solved.value
            if value is None:
                with torch.no_grad():
                    value = self.value(problem.functional, solved.measure)
        except StepFailedError as error:
            raise self._located(error, problem.index) from error
        message = solved.message or ("" if solved.ending is Ending.EXPLICIT else solved.ending.value)
        return Step(
            measure=solved.measure,
            map=solved.map,
            value=value,
            transport_cost=solved.transport_cost,
            step_size=problem.step_size,
            residual=solved.residual,
            iterations=solved.iterations,
            seconds=time.perf_counter() - start,
            message=message,
            index=problem.index,
            held_out=solved.held_out,
            ending=solved.ending,
            state=solved.state,
        )

    def _prepared(self, problem: Problem) -> Problem:
        """The same problem with measure and anchor in the form that this solver carries along."""
        measure = self.prepare(problem.measure)
        if problem.anchor is problem.measure:
            return replace(problem, measure=measure, anchor=measure)
        if not self.takes_anchor:
            raise ValueError(
                f"{type(self).__name__} counts the transport cost from the measure itself and takes no anchor; "
                "ParticleProx, QuantileProx, GaussianProx, SinkhornProx and NeuralProx take one"
            )
        return replace(problem, measure=measure, anchor=self.prepare(problem.anchor))

    def solve(self, problem: Problem, state: Any) -> Solved:
        """Solve a problem; what a solver of your own has to say.

        Arguments:
            problem: F, μ, γ and where the transport cost counts from; it knows the structure of F and the objective.
            state: what the solver returned as `Solved.state` in the step before, `None` in the first one. It may come
                from another solver.
        """
        raise NotImplementedError(f"{type(self).__name__} needs a method solve(problem, state) -> wprox.Solved")

    def _located(self, error: StepFailedError, index: int) -> StepFailedError:
        """The error with the number of its step and, after the first explicit one, the limit it may have hit."""
        if error.index is not None:
            return error
        told = self.is_proximal or index == 0 or error.is_too_long
        advice = "" if told else f". If the scheme has diverged: {STEP_LIMIT}"
        located = StepFailedError(f"step {index}: {error}{advice}")
        located.index = index
        return located


doors(Solver, "step", "ask", trains=True)


class ParticleSolver(Solver):
    """A solver that moves points one by one: it takes particles, and every measure of your own that is `movable`."""

    accepts = (Particles,)

    def takes(self, measure: Measure) -> bool:
        return measure.movable
