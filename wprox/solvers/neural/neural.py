"""Proximal steps by neural transport maps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wprox._checks import check_count, check_flag, check_fraction, check_non_negative, check_positive
from wprox._random import check_seed, seeded, step_seed
from wprox.functionals import Functional
from wprox.maps import AffineMap, ComposedMap, TransportMap
from wprox.maps.registry import MapFactory, map_factory
from wprox.measures import Gaussian, Measure, Particles
from wprox.solvers.base import Ending, ParticleSolver, Solved
from wprox.solvers.neural.affine_start import affine_start
from wprox.solvers.neural.batches import LEAST, Batch
from wprox.solvers.neural.bound import ending_beside_free
from wprox.solvers.neural.flow_matching import match_flow, relaxation
from wprox.solvers.neural.parts import Part, folded, split
from wprox.solvers.neural.task import CONVERSION, Task, as_particles, push
from wprox.solvers.neural.training import Outcome, Training, saved_bytes_per_row, train
from wprox.solvers.problem import Problem, StepFailedError

REFINEMENTS = 3  # of a discretisation in one training, at most
LOOK_AT = 4  # minibatches of particles, at most, for the affine start, and for looks where nothing is held out
FRESH_HELD_OUT = 8192  # draws of a Gaussian on which `fine_tune` decides which state is best


class _Start(NamedTuple):
    """The map that training starts from, in the data's units or the particles'; the rest is as in `AffineStart`."""

    map: TransportMap
    is_shown: bool = False
    is_interrupted: bool = False
    other: TransportMap | None = None
    is_astray: bool = False


def _standardised(map: TransportMap, task: Task, batch_size: int, generator: torch.Generator) -> _Start:
    """A map in units of the particles, and after it the best affine one."""
    units = task.units
    assert units is not None
    if isinstance(map, AffineMap):  # which is trained as it is
        return _Start(units.applied(map))
    part = task.whole.sample(LOOK_AT * batch_size, generator)
    is_enough = (lambda affine: task.is_step(units.applied(affine))) if task.is_followed else None
    start = affine_start(task.objective, part, units, generator, is_enough)
    other = None if start.other is None else units.applied(ComposedMap([copy.deepcopy(map), start.other]))
    whole = map if start.map is None else ComposedMap([map, start.map])
    return _Start(units.applied(whole), start.is_shown, start.is_interrupted, other, start.is_astray)


def _flow_matched(task: Task, map: TransportMap, solver: NeuralProx, generator: torch.Generator) -> Outcome | None:
    """The start by flow matching, where there is one."""
    if not solver.flow_matching:
        return None
    problem = task.problem
    return match_flow(
        map,
        relaxation(problem.functional, problem.step_size, problem.measure.points),
        task.training.measure,
        task.validation.measure,
        solver.flow_matching,
        solver.training,
        generator,
        f"step {problem.index}",
        solver.progress,
    )


def _best_trained(
    task: Task,
    start: _Start,
    trained: Callable[[Task, _Start, torch.Generator], tuple[Outcome, Particles | None]],
    generator: torch.Generator,
) -> tuple[_Start, Outcome, Particles | None]:
    """The start, or the other one where it is better when both are trained, and what training gives for it."""
    outcome, pushed = trained(task, start, generator)
    if start.other is None or outcome.interrupted:
        return start, outcome, pushed
    other = start._replace(map=start.other, is_shown=False)
    second, second_pushed = trained(task, other, generator)
    if task.is_lower(other.map, start.map):
        return other, second, second_pushed
    return start, replace(outcome, interrupted=second.interrupted), pushed


class NeuralProx(ParticleSolver):
    r"""The proximal step over a family of invertible networks.

    Minimises, over the parameters of a map T,

        J(T) = F(T#μ) + E_μ|T(x) − x|²/(2γ),      log (T#μ)(T(x)) = log μ(x) − log |det ∇T(x)|,

    on minibatches of the particles (Xu, Cheng and Xie 2023; Cheng, Lu, Tan and Xie 2024). The particles are pushed
    once, at the end of the step, so memory does not grow with the number of earlier steps. Entropy and KL need no
    density of μ: they are minimised up to the constant ∫ log μ dμ, and `Step.value` is reported up to it
    (`step.measure.is_relative`); functionals that need the density itself raise `DensityUnknownError`.

    The particles set the units: networks see standardised coordinates, and the objective counts in s²/γ with s² the
    mean variance, so that a step is the same in every unit of the data. The map starts as the best affine one, found by
    L-BFGS. For functionals that follow each particle (potentials, interactions, discrepancies, distances) all particles
    are trained on, and the step has `converged` where the residual ε = ‖∇F(ρ) + (id − T⁻¹)/γ‖ is at most a quarter of
    the step's length over γ: for convex F it then lacks at most a sixteenth of what it gains, since F + W₂²/(2γ) is
    1/γ-convex. Where a long affine map meets forces that are no affine field, training starts from the identity as
    well, and the better map is kept; what misses over a tenth of what particles without a map can gain has not
    `converged`. Entropy, KL and other functionals of the density see the law of the particles by these alone, and few
    of them tell little about many parameters: the affine family (shifts, scalings, scalings of the axes, all) is the
    one that gains most on blocks of particles it was not fitted to, and the network is kept where it gains more than a
    standard error on the held-out ones. The step has `converged` where a gain over standing still of two standard
    errors is shown and the objective no longer fell at the end of training, which less than 20 iterations do not tell.
    A step that has not says so in `converged` and `message`; `jko` warns.

    Minibatches are drawn without replacement, so that no particle meets its own copy. They estimate integrals and sums
    over pairs without bias, hence potentials, interactions, entropies, internal energies, KL, MMD and KSD. The
    distances to a target (`SquaredWasserstein`, `SinkhornDivergence`, `SlicedWasserstein`) are convex along mixtures,
    and larger in the mean on minibatches, the more so the smaller these are; kernel densities are biased as well.

    Some maps are trained with an error of discretisation (`ODEMap`). After training, the held-out objective is
    computed with and without it; where the two differ by more than `gap_tolerance`, the discretisation is refined and
    training goes on, at most three times. `Step.message` reports it, and the step has not `converged` where the
    difference stays. The pushed particles are always those of the map without that error.

    Arguments:
        map: "spline", "ode", "residual", "convex", or a factory dim → `TransportMap` (a class is one); a step trains a
            copy of what it gives.
        map_options: arguments of the named map, such as `{"transforms": 4}`.
        iterations: the largest number of gradient steps.
        batch_size: particles in a minibatch, at least two.
        learning_rate: Adam's, at the top of its schedule; flow matching has its own.
        weight_decay: AdamW's.
        clip: gradients of a larger norm are scaled down to it.
        check_every: iterations between two looks at the held-out objective.
        patience: looks without improvement after which the step stops.
        validation_fraction: the part of the particles held out, where `step` is given no held-out measure and F is one
            of the density; one at least.
        warm_start: start from the previous step's map, where it is better than the new start.
        flow_matching: iterations of a start by flow matching, for maps that are flows (`ODEMap`) and the functional
            KL(· ‖ N(m, Σ)): their velocity is first regressed on straight lines from x to its Ornstein–Uhlenbeck
            process at the time at which the mean has moved as in the step, for N(0, I) e^{−s} x + √(1 − e^{−2s}) z with
            s = log(1 + γ), which costs one pass through the network an iteration. 0 leaves it out.
        gap_tolerance: the largest difference between the discretised and the exact held-out objective; a hundredth of
            it, relative to what training lowers the objective by, where that is more.
        seed: of the initial parameters, the held-out split and the minibatches; each step derives its own.
        progress: show a progress bar a step.
        standardise: train in units of the particles and start from the best affine map (`AffineMap` itself, and maps
            that are started by flow matching, are trained as they are); `False` where the particles are in standard
            units, as those of flows are.

    Raises:
        StepFailedError: where the objective is not finite; it names the step, the iteration and what to change.
        DensityUnknownError: where F needs a density that the particles do not have.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) + 3
        >>> F = wprox.KL(wprox.Gaussian(torch.zeros(2), torch.eye(2)))
        >>> step = wprox.NeuralProx(map=wprox.AffineMap, learning_rate=0.05).step(F, wprox.Particles(x), 1.0)
        >>> bool((step.measure.points.mean(0) - 1.5).abs().max() < 0.1)  # the mean moves from 3 to 3/(1 + γ)
        True
    """

    conversion = CONVERSION
    takes_anchor = True

    def __init__(
        self,
        map: str | MapFactory = "spline",
        map_options: dict[str, Any] | None = None,
        iterations: int = 400,
        batch_size: int = 1024,
        learning_rate: float = 5e-3,
        weight_decay: float = 0.0,
        clip: float = 5.0,
        check_every: int = 25,
        patience: int = 8,
        validation_fraction: float = 0.1,
        warm_start: bool = False,
        flow_matching: int = 0,
        gap_tolerance: float = 0.01,
        seed: int = 0,
        progress: bool = False,
        standardise: bool = True,
    ) -> None:
        self.factory = map_factory(map, map_options)
        self.training = Training(
            iterations=check_count(iterations, "iterations"),
            batch_size=check_count(batch_size, "batch_size"),
            learning_rate=check_positive(learning_rate, "learning_rate"),
            weight_decay=check_non_negative(weight_decay, "weight_decay"),
            clip=check_positive(clip, "clip"),
            check_every=check_count(check_every, "check_every"),
            patience=check_count(patience, "patience"),
        )
        self.validation_fraction = check_fraction(validation_fraction, "validation_fraction")
        self.warm_start = check_flag(warm_start, "warm_start")
        self.flow_matching = check_count(flow_matching, "flow_matching", least=0)
        self.gap_tolerance = check_positive(gap_tolerance, "gap_tolerance")
        self.seed = check_seed(seed)
        self.progress = check_flag(progress, "progress")
        self.standardise = check_flag(standardise, "standardise")

    def prepare(self, measure: Measure) -> Particles:
        """The particles, with the density counted relative to their own where it is unknown."""
        return as_particles(super().prepare(measure))

    def solve(self, problem: Problem, state: Any) -> Solved:
        source = problem.measure
        assert isinstance(source, Particles)
        seed = step_seed(self.seed, problem.index)
        generator = torch.Generator().manual_seed(seed)
        is_new = not (self.warm_start and isinstance(state, TransportMap) and state.dim == source.dim)
        standardise = self.standardise and not self.flow_matching
        task = Task.of(problem, standardise, self.validation_fraction, LOOK_AT * self.training.batch_size, generator)
        with seeded(seed + 1, source.device):  # dropout draws from the default generator
            try:
                start = self._initial_map(task, None if is_new else state, seed, generator)
                start, outcome, pushed_held_out = _best_trained(task, start, self._trained, generator)
            except StepFailedError as error:
                error.index = problem.index  # the message says it
                raise
        map, is_shown = folded(start.map), start.is_shown or task.is_followed
        rho, value, cost = self._result(problem, map)
        if standardise and not float(value + cost / (2 * problem.step_size)) <= task.energy * task.at_rest(task.whole):
            map, pushed_held_out, is_shown = self._new_map(source, seed), None, False
            rho, value, cost = self._result(problem, map)
        if pushed_held_out is None and (problem.held_out is not None or not is_shown):
            pushed_held_out = push(map, task.validation.measure)
        if not is_shown:
            assert pushed_held_out is not None
            is_shown = task.is_shown(task.validation.measure, pushed_held_out, generator)
        residual = problem.residual(rho) if task.is_followed else None
        ending = task.ending(outcome, is_shown, cost, residual)
        if ending.is_success and task.units is not None and (start.is_astray or not task.is_followed):
            ending = ending_beside_free(task, map, task.whole.sample(self.training.batch_size, generator))
        told = [outcome.message, "" if ending.is_success or ending is Ending.INTERRUPTED else ending.value]
        told += ["values are up to the constant ∫ log μ dμ" if rho.is_relative and not task.is_followed else ""]
        return Solved(
            measure=rho,
            transport_cost=cost,
            map=map,
            value=value,
            residual=residual,
            ending=ending,
            message="; ".join(part for part in told if part),
            iterations=outcome.iterations,
            held_out=None if problem.held_out is None else pushed_held_out,
            state=map,
        )

    @torch.no_grad()
    def _result(self, problem: Problem, map: TransportMap) -> tuple[Particles, Tensor, Tensor]:
        """T#μ, its value, and the transport cost."""
        assert isinstance(problem.measure, Particles)
        rho = push(map, problem.measure)
        return rho, self.value(problem.functional, rho), problem.cost(rho)

    def fine_tune(
        self,
        map: TransportMap,
        functional: Functional,
        measure: Measure,
        held_out: Measure | None = None,
        memory_budget: int = 2**29,
    ) -> Outcome:
        r"""Minimise F(T#μ) over all parameters of T at once, in place, with this solver's settings.

        What JKO steps trained one after the other lose, joint training recovers; the transport term is left out, so
        where T ends is a minimiser of F among maps near the JKO flow. Autograd keeps the activations of every block:
        the minibatch is made small enough that they fit the budget, but for two rows.

        Arguments:
            map: T, usually a `ComposedMap` of trained blocks.
            functional: F.
            measure: μ, where the first block starts. Of a `Gaussian` every minibatch is a fresh draw.
            held_out: draws of μ that are not trained on; split off, or drawn, where not given.
            memory_budget: bytes that activations may take, 512 MB by default.
        """
        generator = torch.Generator().manual_seed(step_seed(self.seed, 2**20))
        if isinstance(measure, Gaussian):
            training = measure.to_particles(max(LEAST, self.training.batch_size), generator)
            validation = measure.to_particles(FRESH_HELD_OUT, generator) if held_out is None else held_out
        elif held_out is None:
            given = as_particles(measure)
            parts = split(Part(given, given.points), self.validation_fraction, generator)
            training, validation = (part.measure for part in parts)
        else:
            training, validation = as_particles(measure), held_out
        validation = as_particles(validation, "held_out")

        def batch_objective(batch: Batch) -> Tensor:
            if isinstance(measure, Gaussian):
                return functional(measure.to_particles(len(batch.rows), generator).push(map))
            return functional(batch.of(training).push(map))

        def probed(rows: Tensor) -> Tensor:
            return functional(training.subset(rows).push(map))

        probe = training.weights.nonzero()[:64, 0]
        with seeded(step_seed(self.seed, 2**20) + 1, training.device):
            try:
                row_bytes = max(1.0, saved_bytes_per_row(map.train(), probed, probe, memory_budget))
            finally:  # Ctrl-C must not leave a map that draws dropout and partitions
                map.eval()
            settings = replace(
                self.training, batch_size=max(LEAST, min(self.training.batch_size, int(memory_budget / row_bytes)))
            )
            outcome, _ = self._train(
                map,
                batch_objective,
                functional,
                training,
                validation,
                settings,
                generator,
                "fine-tuning",
            )
            return outcome

    def _initial_map(self, task: Task, state: object, seed: int, generator: torch.Generator) -> _Start:
        """The map that training starts from: that of the step before, where there is one and it is better."""
        source, units = task.source, task.units
        if not isinstance(state, TransportMap):
            return self._fresh(task, seed, generator)
        warm = copy.deepcopy(state).to(dtype=source.dtype, device=source.device)
        if units is None:
            return _Start(warm)
        warm, fresh = units.unfolded(warm), self._fresh(task, seed, generator)
        if fresh.is_interrupted or not task.is_better(warm, fresh.map, generator):
            return fresh
        return _Start(warm)

    def _fresh(self, task: Task, seed: int, generator: torch.Generator) -> _Start:
        """A new map after which, in units of the particles, the best affine one comes."""
        map = self._new_map(task.source, seed)
        return _Start(map) if task.units is None else _standardised(map, task, self.training.batch_size, generator)

    def _new_map(self, source: Particles, seed: int) -> TransportMap:
        """An identity, as the factory gives it."""
        with seeded(seed):
            map = self.factory(source.dim)
        if not isinstance(map, TransportMap):
            raise TypeError(f"the map factory must return a TransportMap, got {type(map).__name__}")
        if map.dim != source.dim:
            raise ValueError(
                f"the map factory returned a map of dimension {map.dim} for points of dimension {source.dim}"
            )
        # a copy, since a factory may give the same map for every step
        return copy.deepcopy(map).to(dtype=source.dtype, device=source.device)

    def _trained(self, task: Task, start: _Start, generator: torch.Generator) -> tuple[Outcome, Particles | None]:
        """Train the map of the start, in place; the validation measure pushed by it, where known."""
        map, training, validation, pushed = start.map, task.training, task.validation, None
        before, state = push(map, validation.measure), copy.deepcopy(map.state_dict())
        if start.is_interrupted:
            with torch.no_grad():
                value = float(task.objective(before, validation.origins))
            return Outcome(value, value, 0, 0, interrupted=True), before

        def batch_objective(batch: Batch) -> Tensor:
            return task.objective(batch.of(training.measure).push(map), training.origins[batch.rows])

        outcome = _flow_matched(task, map, self, generator)
        if outcome is None or not outcome.interrupted:  # Ctrl-C in the start ends the step as well
            outcome, pushed = self._train(
                map,
                batch_objective,
                lambda rho: task.objective(rho, validation.origins),
                training.measure,
                validation.measure,
                self.training,
                generator,
                f"step {task.problem.index}",
                task.energy,
                task.at_rest(validation) if task.units is not None else None,
            )
        if outcome.best_iteration and task.units is not None and not task.is_followed and not outcome.interrupted:
            pushed = push(map, validation.measure) if pushed is None else pushed
            if not task.is_shown(before, pushed, generator, 1.0):
                map.load_state_dict(state)
                pushed = before
        return outcome, pushed

    def _train(
        self,
        map: TransportMap,
        batch_objective: Callable[[Batch], Tensor],
        held_out_objective: Callable[[Particles], Tensor],
        training: Particles,
        validation: Particles,
        settings: Training,
        generator: torch.Generator,
        describe: str,
        energy: float = 1.0,
        origin: float | None = None,
    ) -> tuple[Outcome, Particles | None]:
        """`train`, and again with a finer discretisation where it is too coarse to be trusted.

        Objectives, and `origin`, are in units of `energy`. The second result is the validation
        measure pushed by the exact map, where that has been computed.
        """

        def penalised(batch: Batch) -> Tensor:
            objective, penalty = batch_objective(batch), map.penalty()
            return objective if penalty is None else objective + penalty

        def look() -> float:
            with map.discretised():
                return float(held_out_objective(push(map, validation)))

        def exact() -> tuple[Particles, float, float]:
            """What is true of the trained map: the pushed measure, its objective, and how far that may be missed."""
            with torch.no_grad():
                rho = push(map, validation)
                objective = float(held_out_objective(rho))
            return rho, objective, self.gap_tolerance * max(1 / energy, 0.01 * (outcome.initial - objective))

        outcome = train(map, penalised, look, training.weights, settings, generator, describe, self.progress, origin)
        if not map.is_discretised:
            return outcome, None
        note = ""
        rho, objective, tolerance = exact()
        for _ in range(REFINEMENTS):
            if (gap := abs(outcome.objective - objective)) <= tolerance or outcome.interrupted:
                break
            note += f"; the discretised objective was off by {gap * energy:.2g}: {map.refine()}"
            # an iteration costs twice as much now, and a trained state must not be lost to a large rate
            again = replace(
                settings, iterations=max(1, settings.iterations // 4), learning_rate=0.3 * settings.learning_rate
            )
            more = train(map, penalised, look, training.weights, again, generator, describe, self.progress)
            outcome = replace(
                more,
                initial=outcome.initial,
                iterations=outcome.iterations + more.iterations,
                # where it brought nothing better, the best state is still the one that it started from
                best_iteration=outcome.iterations + more.best_iteration
                if more.best_iteration
                else outcome.best_iteration,
            )
            rho, objective, tolerance = exact()
        gap = abs(outcome.objective - objective)
        note += f"; the discretised objective is off by {gap * energy:.1g}"
        # the objective that is reported is the true one
        return replace(outcome, objective=objective, converged=gap <= tolerance, note=note), rho
