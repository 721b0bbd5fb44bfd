"""The laws of solvers: steps that descend, agree with closed forms, keep precision and mass, and report."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from wprox._checks import described, is_several
from wprox.functionals import Entropy, Functional, PotentialEnergy
from wprox.jko import jko
from wprox.maps import AffineMap
from wprox.measures import Gaussian, Grid, Measure
from wprox.metrics import w2
from wprox.solvers import Ending, Problem, Solver, Step, StepFailedError
from wprox.testing.doubled import doubled
from wprox.testing.examples import PROBLEMS, KnownStep, half_square, in_units, moments, starts
from wprox.testing.laws import (
    Unasked,
    answer,
    ask,
    check_measures,
    check_names,
    check_sentence,
    pickled,
    refused,
    require,
    require_close,
    shown,
)

REFUSALS = (TypeError, ValueError, NotImplementedError)  # a DensityUnknownError is a ValueError
ROUNDING = 1e-9
AGREEMENT = 1e-5  # of one functional solved twice


@dataclass(frozen=True)
class Case:
    """A solver at a problem and the measure that it starts from, as the solver carries it along."""

    solver: Solver
    problem: KnownStep
    given: Measure
    rtol: float

    @property
    def functional(self) -> Functional:
        return self.problem.functional(self.given.dim)

    @cached_property
    def start(self) -> Measure:
        return self.solver.prepare(self.given)

    @cached_property
    def step(self) -> Step:
        """The first step, with the start as held-out measure, so that a solver which trains sees all of it."""
        return self.make(self.functional)

    def make(self, functional: Functional, **options: Any) -> Step:
        return self.solver.step(functional, self.start, self.problem.step_size, held_out=self.start, **options)


def check_solver(
    solver: Solver,
    *,
    problems: Collection[str] | None = None,
    measures: Sequence[Measure] | None = None,
    exempt: Collection[str] = (),
    rtol: float = 1e-3,
) -> list[str]:
    r"""Check the laws that every solver keeps: for your own ones.

    On a quadratic potential, KL to a Gaussian, an interaction, a functional that no solver has seen and a sum of all,
    those of them that the solver takes: that F(ρ) + cost/(2γ) never exceeds F(μ), and that the step is the known one,

        T(x) = x/(1 + γ) for |x|²/2,        m′ = m/(1 + γ) and (1 + γ)σ′² − σσ′ − γ = 0 for KL(· ‖ N(0, I)),

    unless the solver `is_proximal` no more, as explicit schemes are not; that an anchor of the transport cost counts,
    or is refused; that the transport cost is no less than W₂²; that the step in other units is the same one;
    that results come in the precision of the start, without a graph, with its weights where points move; that the
    start is left alone; that steps are counted, and say how long they took and how they ended. That what is no
    functional, and no step size, is refused with a sentence; and that a subclass with a value of its own is solved by
    that value, or refused, and never taken for its parent.

    Arguments:
        solver: an instance.
        problems: names of those to solve; all by default. Those that the solver refuses are left out.
        measures: where to start; by default measures of each kind, of which those are left out that the solver refuses
            by a `TypeError`. Their law has mean m and covariance σ² I.
        exempt: names of laws that the solver does not keep.
        rtol: of known answers, relative to the length of the step.

    Returns:
        The names of the laws that could be asked, and hold.

    Raises:
        AssertionError: for the first law that is broken: which, by how much, on what problem and start; and where the
            solver takes no measure, or solves no problem.

    Example:
        >>> import wprox, wprox.testing
        >>> laws = wprox.testing.check_solver(wprox.GaussianProx(), problems=["Gaussian KL"])
        >>> "descent" in laws, "known answer" in laws
        (True, True)
    """
    require(
        isinstance(solver, Solver),
        f"check_solver needs an instance of a wprox.Solver, got {described(solver)}; build one",
    )
    check_names(exempt, LAWS, GENERAL_LAWS)
    chosen: list[Any] = list(PROBLEMS if problems is None else problems if is_several(problems) else [problems])
    if not chosen:
        raise ValueError(f"problems is empty, got {described(problems)}; name some of {list(PROBLEMS)}")
    if unknown := [name for name in chosen if not isinstance(name, str) or name not in PROBLEMS]:
        raise ValueError(f"there are no problems {described(unknown)}; there are {list(PROBLEMS)}")
    name = type(solver).__name__
    asked: list[str] = []
    refusals: list[str] = []
    for rho in starts() if measures is None else check_measures(measures):
        solved: Case | None = None
        for problem in chosen:
            case = Case(solver, PROBLEMS[problem], rho, rtol)
            at = f"the problem {problem!r} from {shown(rho, 0).removesuffix(', seed 0')}"
            reason = _refusal(case, name, at)
            if reason:
                refusals.append(f"{at}: {reason}")
                continue
            asked += ask(LAWS, name, at, case, exempt=exempt)
            solved = solved or case
        if solved is not None:
            at = f"the problem {solved.problem.name!r} from {shown(rho, 0).removesuffix(', seed 0')}"
            asked += ask(GENERAL_LAWS, name, at, solved, exempt=exempt)
    require(bool(asked), f"nothing was checked: {name} refuses everything. " + "; ".join(refusals))
    return list(dict.fromkeys(asked))


def _refusal(case: Case, name: str, at: str) -> str:
    """Why the solver does not take the measure, or the functional; empty where it takes both."""
    try:
        answer(lambda: case.step, refusals=REFUSALS)
    except Unasked as error:
        return str(error)
    except Exception as error:
        raise AssertionError(f"law 'steps' of {name}: it raised {type(error).__name__}: {error}, at {at}") from error
    return ""


# --- of every step


def descent(case: Case) -> None:
    """F(ρ) + cost/(2γ) is at most F(μ)."""
    _proximal(case)
    before = float(case.solver.value(case.functional, case.start))
    after, cost = float(case.step.value), float(case.step.transport_cost)
    objective = after + cost / (2 * case.step.step_size)
    rounding = ROUNDING if case.start.dtype == torch.float64 else 1e-5
    require(
        objective <= before + rounding * (1 + abs(before)),
        f"F(ρ) + cost/(2γ) = {after:.6g} + {cost / (2 * case.step.step_size):.6g} exceeds F(μ) = {before:.6g} by "
        f"{objective - before:.2g}",
    )


def known_answer(case: Case) -> None:
    """The step is x ↦ m′ + (σ′/σ)(x − m), point by point where points move, in mean and covariance on a grid."""
    _proximal(case)
    if case.problem.after is None:
        raise Unasked("no closed form is known")
    rho, new, gamma = case.start, case.step.measure, case.step.step_size
    if rho.density_follows_points and rho.movable and case.problem.needs_density:
        raise Unasked("the density of kernels is not that of the law")
    mean, covariance = moments(rho)
    spread = math.sqrt(float(covariance.diagonal().mean()))
    mean_after, spread_after = case.problem.after(mean, spread, gamma)
    image = mean_after + spread_after / spread * (rho.points - mean)
    length = math.sqrt(float(rho.weights @ (image - rho.points).square().sum(1)))
    if isinstance(rho, Grid):
        found_mean, found = moments(new)
        expected = spread_after**2 * torch.eye(rho.dim).to(found)
        require_close(found_mean, mean_after, ("the mean after the step", "the known one"), 0.0, case.rtol * length)
        names = ("the covariance after the step", "the known one")
        require_close(found, expected, names, 0.0, case.rtol * length)
        return
    off = math.sqrt(float(rho.weights @ (new.points - image).square().sum(1)))
    require(
        off <= case.rtol * length,
        f"the points are {off:.2g} from where the known step takes them, in L²(ρ), where {case.rtol * length:.2g} is "
        f"allowed; the step is {length:.2g} long",
    )


def transport_cost(case: Case) -> None:
    """The transport cost is at least W₂²(μ, ρ), a scalar."""
    cost = case.step.transport_cost
    require(isinstance(cost, Tensor) and cost.ndim == 0, f"transport_cost must be a scalar tensor, it is {cost!r}")
    exact, found = float(w2(case.start, case.step.measure)), math.sqrt(max(float(cost), 0.0))
    slack = case.rtol * exact + (0.0 if case.start.dtype == torch.float64 else 1e-4)
    require(found >= exact - slack, f"√transport_cost is {found:.6g}, below W₂ = {exact:.6g} by more than {slack:.2g}")


def report(case: Case) -> None:
    """A step says its size, how long it took, how many iterations, whether it converged, and how it ended."""
    step = case.step
    require(isinstance(step, Step), f"step must return a wprox.Step, it returned {type(step).__name__}")
    require(step.step_size == case.problem.step_size, f"step_size is {step.step_size}")
    require(step.value.ndim == 0 and bool(torch.isfinite(step.value)), f"value must be a finite scalar: {step.value}")
    require(step.seconds >= 0, f"seconds is {step.seconds}")
    require(isinstance(step.iterations, int) and step.iterations >= 0, f"iterations is {step.iterations!r}")
    require(isinstance(step.converged, bool), f"converged is {step.converged!r}")
    require(not step.interrupted, "interrupted is true")
    require(isinstance(step.message, str), f"message is {step.message!r}")
    require(step.index == 0, f"the index of a step without a previous one is {step.index}")
    residual = step.residual
    require(residual is None or residual >= 0, f"residual is {residual!r}")
    require(isinstance(step.ending, Ending), f"ending is {step.ending!r}")
    if not step.converged:
        require(len(step.message.split()) > 3, f"the step has not converged, and its message is {step.message!r}")


def precision_and_graph(case: Case) -> None:
    """All that a step returns is in the precision of the start, and carries no graph."""
    new = case.step.measure
    require(type(new) is type(case.start), f"a step from {type(case.start).__name__} returns {type(new).__name__}")
    require(new.points.shape == case.start.points.shape, f"points have shape {tuple(new.points.shape)}")
    tensors = {"points": new.points, "weights": new.weights, "value": case.step.value}
    tensors["transport_cost"] = case.step.transport_cost
    if new.density_known:
        tensors["log_density()"] = new.log_density()
    for name, tensor in tensors.items():
        require(tensor.dtype == case.start.dtype, f"{name} is {tensor.dtype} from a start in {case.start.dtype}")
        require(not tensor.requires_grad, f"{name} carries a graph")


def mass(case: Case) -> None:
    """Weights are those of the start where points move; elsewhere they sum to 1."""
    new = case.step.measure.weights
    if isinstance(case.start, Grid):
        require(bool((new >= 0).all()), f"a weight is {float(new.min()):g}")
        require_close(new.sum(), 1.0, ("the sum of the weights", "1"), 1e-5)
        return
    require_close(new, case.start.weights, ("the weights after the step", "those before"), 0.0)


def map_of_the_step(case: Case) -> None:
    """Where the step has a map T, T#μ is the new measure, and T at the points of μ are its points."""
    map = case.step.map
    if map is None:
        raise Unasked("the step has no map")
    with torch.no_grad():
        y, _ = map(case.start.points)
    size = float(case.start.points.abs().max())
    tolerance = 1e-7 if case.start.dtype == torch.float64 else 1e-4
    require_close(y, case.step.measure.points, ("T at the points of μ", "the new points"), 0.0, tolerance * size)


# --- of a solver at a start, asked on one problem


def start_is_left_alone(case: Case) -> None:
    """A step changes nothing in the measure that it starts from."""
    points, weights = case.given.points.clone(), case.given.weights.clone()
    case.solver.step(case.functional, case.solver.prepare(case.given), case.problem.step_size)
    require_close(case.given.points, points, ("the points of the start after a step", "before"), 0.0)
    require_close(case.given.weights, weights, ("the weights of the start after a step", "before"), 0.0)


def pickling(case: Case) -> None:
    """A step comes back from another process as it is, and so does the solver that goes there."""
    pickled(case.solver, case.solver)
    again = pickled(case.step, case.solver)
    for name in ("points", "weights"):
        names = (f"the {name} of a pickled step", "those of the step")
        require_close(getattr(again.measure, name), getattr(case.step.measure, name), names, 0.0)


def previous(case: Case) -> None:
    """`previous` is accepted, and steps are counted."""
    second = case.solver.step(case.functional, case.step.measure, case.problem.step_size, previous=case.step)
    require(second.index == 1, f"the step after step 0 has the index {second.index}")
    third = case.solver.step(case.functional, second.measure, case.problem.step_size / 2, previous=second)
    require(third.index == 2, f"the step after step 1 has the index {third.index}")
    require(type(third.measure) is type(case.start), f"the third measure is a {type(third.measure).__name__}")


def held_out(case: Case) -> None:
    """A held-out measure is accepted; where it comes back, it has as many points as before."""
    found = case.step.held_out
    if found is not None:
        require(len(found) == len(case.start), f"the held-out measure has {len(found)} points, not {len(case.start)}")
        require(not found.points.requires_grad, "the held-out measure carries a graph")


def single_precision(case: Case) -> None:
    """From a start in float32 all of a step is float32."""
    other = _in_single_precision(case)
    precision_and_graph(other)
    report(other)


def precisions_agree(case: Case) -> None:
    """From a start in float32 the step is that in float64; random ones draw other numbers."""
    other = _in_single_precision(case)
    for found, expected, name in zip(
        moments(other.step.measure), moments(case.step.measure), ("mean", "covariance"), strict=True
    ):
        names = (f"the {name} after a step in float32", "in float64")
        require_close(found, expected, names, max(case.rtol, 1e-3), 1e-3)


def step_sizes(case: Case) -> None:
    """Step sizes that are not positive and finite are refused."""
    for step_size in (0.0, -1.0, math.nan, math.inf):
        refused(
            lambda gamma=step_size: case.solver.step(case.functional, case.start, gamma),
            by=(ValueError,),
            what=f"step_size = {step_size}",
        )


def what_is_no_functional(case: Case) -> None:
    """A bare function and a class in the place of a functional are refused, by `jko` as well, with a sentence."""
    for wrong in (lambda rho: rho.integrate(half_square), PotentialEnergy, Entropy):
        what = f"{wrong.__name__} in the place of a functional"
        refused(jko, wrong, case.solver, case.given, 0.1, 1, by=(TypeError,), what=f"{what}, in jko,")
        refused(case.solver.step, wrong, case.start, 0.1, by=(TypeError,), what=what)


def anchor(case: Case) -> None:
    """min |y|²/2 + |y − a|²/(2γ) is a/(1 + γ) where the cost counts from other points a; or an anchor is refused."""
    rho, gamma = case.start, case.problem.step_size
    if isinstance(rho, Grid):
        raise Unasked("the points of a grid do not move")
    stretch = AffineMap.from_matrix(1.5 * torch.eye(rho.dim).to(rho.points), torch.full((rho.dim,), 0.3))
    with torch.no_grad():
        anchor = rho.push(stretch if isinstance(rho, Gaussian) else lambda x: 1.5 * x + 0.3)
    problem = Problem(PotentialEnergy(half_square), rho, gamma, anchor)
    if not case.solver.takes_anchor:
        refused(lambda: case.solver.ask(problem), by=(ValueError,), what="an anchor")
        return
    found, expected = case.solver.ask(problem).measure.points, anchor.points / (1 + gamma)
    length = math.sqrt(float(rho.weights @ (anchor.points - expected).square().sum(1)))
    off = math.sqrt(float(rho.weights @ (found - expected).square().sum(1)))
    require(
        off <= case.rtol * length,
        f"the points are {off:.2g} from a/(1 + γ), in L²(ρ), where {case.rtol * length:.2g} is allowed",
    )


def units(case: Case) -> None:
    """The step of s² F(·/s) from ρ in other units, x ↦ s x, is s times that of F, over twenty decades."""
    known = case.step.measure
    for s in (1e-10, 1e10):
        other = in_units(case.problem, case.given, s)
        if other is None:
            raise Unasked("the problem knows no units")
        start = case.solver.prepare(other[1])
        step = case.solver.step(other[0], start, case.problem.step_size, held_out=start)
        names = (f"the step where the unit is {s:g}, over {s:g},", "the step")
        require(step.converged == case.step.converged, f"where the unit is {s:g}, it ends so: {step.message}")
        require_close(step.measure.points / s, known.points, names, AGREEMENT, AGREEMENT)
        require_close(step.measure.weights, known.weights, names, AGREEMENT, AGREEMENT)


def subclasses(case: Case) -> None:
    """A subclass with a value of its own is solved by that value, or refused; never taken for its parent.

    That is as a functional of one's own is that has the same value.
    """
    for kinds in doubled(case.start.dim):
        for subclass, own in kinds:
            try:
                expected: Step | None = case.make(own)
            except (*REFUSALS, StepFailedError):
                expected = None
            try:
                found = case.make(subclass)
            except (*REFUSALS, StepFailedError) as error:
                check_sentence(error)
                continue
            text = f"a step of {subclass!r}, of twice the value of its parent,"
            require(expected is not None, f"{text} is made, and that of a functional of one's own of this value is not")
            assert expected is not None
            for value, known, name in zip(
                moments(found.measure), moments(expected.measure), ("mean", "covariance"), strict=True
            ):
                names = (f"the {name} after {text}", "after that of a functional of one's own of this value")
                require_close(value, known, names, AGREEMENT, AGREEMENT)
            break


LAWS = (descent, known_answer, transport_cost, report, precision_and_graph, mass, map_of_the_step)
GENERAL_LAWS = (
    start_is_left_alone,
    pickling,
    previous,
    held_out,
    single_precision,
    precisions_agree,
    step_sizes,
    what_is_no_functional,
    anchor,
    units,
    subclasses,
)


def _proximal(case: Case) -> None:
    if not case.solver.is_proximal:
        raise Unasked("an explicit scheme")


def _in_single_precision(case: Case) -> Case:
    coarse = case.given.to(torch.float32)
    if coarse.dtype != torch.float32:
        raise Unasked(f"{type(coarse).__name__} stays in float64")
    return Case(case.solver, case.problem, coarse, case.rtol)
