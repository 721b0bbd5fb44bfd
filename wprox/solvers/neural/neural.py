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
from wprox.maps import TransportMap
from wprox.maps.base import apply_in_batches
from wprox.maps.registry import MapFactory, map_factory
from wprox.measures import Gaussian, Measure, Particles
from wprox.solvers.base import Ending, ParticleSolver, Solved
from wprox.solvers.neural.flow_matching import match_flow, relaxation
from wprox.solvers.neural.training import Outcome, Training, batch_of, saved_bytes_per_row, train
from wprox.solvers.problem import Problem, StepFailedError

REFINEMENTS = 3  # of a discretisation in one training, at most
FRESH_HELD_OUT = 8192  # draws of a Gaussian on which `fine_tune` decides which state is best


class NeuralProx(ParticleSolver):
    r"""The proximal step over a family of invertible networks.

    Minimises, over the parameters of a map T,

        J(T) = F(T#μ) + E_μ|T(x) − x|²/(2γ),      log (T#μ)(T(x)) = log μ(x) − log |det ∇T(x)|,

    on minibatches of the particles (Xu, Cheng and Xie 2023; Cheng, Lu, Tan and Xie 2024). The particles are pushed
    once, at the end of the step, so memory does not grow with the number of earlier steps. Entropy and KL need no
    density of μ: they are minimised up to the constant ∫ log μ dμ, and `Step.value` is reported up to it
    (`step.measure.is_relative`); functionals that need the density itself raise `DensityUnknownError`.

    Some maps are trained with an error of discretisation (`ODEMap`). After training, the held-out objective is
    computed with and without it; where the two differ by more than `gap_tolerance`, the discretisation is refined and
    training goes on, at most three times. `Step.message` reports it, and the step has not `converged` where the
    difference stays. The pushed particles are always those of the map without that error.

    Arguments:
        map: "spline", "ode", "residual", "convex", or a factory dim → `TransportMap` (a class is one); a step trains a
            copy of what it gives.
        map_options: arguments of the named map, such as `{"transforms": 4}`.
        iterations: the largest number of gradient steps.
        batch_size: particles in a minibatch.
        learning_rate: Adam's, at the top of its schedule; flow matching has its own.
        weight_decay: AdamW's.
        clip: gradients of a larger norm are scaled down to it.
        check_every: iterations between two looks at the held-out objective.
        patience: looks without improvement after which the step stops.
        validation_fraction: the part of the particles held out, where `step` is given no held-out measure.
        warm_start: start from the previous step's map in place of the identity.
        flow_matching: iterations of a start by flow matching, for maps that are flows (`ODEMap`) and the functional
            KL(· ‖ N(m, Σ)): their velocity is first regressed on straight lines from x to its Ornstein–Uhlenbeck
            process at the time at which the mean has moved as in the step, for N(0, I) e^{−s} x + √(1 − e^{−2s}) z with
            s = log(1 + γ), which costs one pass through the network an iteration. 0 leaves it out.
        gap_tolerance: the largest difference between the discretised and the exact held-out objective; a hundredth of
            it, relative to what training lowers the objective by, where that is more.
        seed: of the initial parameters, the held-out split and the minibatches; each step derives its own.
        progress: show a progress bar a step.

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

    conversion = "draw some, as in gaussian.to_particles(10_000, seed=0)"
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

    def prepare(self, measure: Measure) -> Particles:
        """The particles, with the density counted relative to their own where it is unknown."""
        return _as_particles(super().prepare(measure))

    def solve(self, problem: Problem, state: Any) -> Solved:
        source = problem.measure
        assert isinstance(source, Particles)
        seed = step_seed(self.seed, problem.index)
        generator = torch.Generator().manual_seed(seed)
        training, validation = self._training_and_validation(problem, generator)
        map = self._initial_map(source, state, seed)

        def objective(rho: Particles, origins: Tensor) -> Tensor:
            return problem.objective(rho, rho.weights @ (rho.points - origins).square().sum(1))

        def batch_objective(rows: Tensor) -> Tensor:
            return objective(batch_of(training.measure, rows).push(map), training.origins[rows])

        with seeded(seed + 1, source.device):  # dropout draws from the default generator
            try:
                outcome, pushed_held_out = self._start(problem, map, training, validation, generator), None
                if outcome is None or not outcome.interrupted:  # Ctrl-C in the start ends the step as well
                    outcome, pushed_held_out = self._train(
                        map,
                        batch_objective,
                        lambda rho: objective(rho, validation.origins),
                        training.measure,
                        validation.measure,
                        self.training,
                        generator,
                        f"step {problem.index}",
                    )
            except StepFailedError as error:
                error.index = problem.index  # the message says it
                raise
        rho = push(map, source)
        if problem.held_out is None:
            pushed_held_out = None
        elif pushed_held_out is None:
            pushed_held_out = push(map, validation.measure)
        ending = Ending.CONVERGED if outcome.converged else Ending.DISCRETISED
        return Solved(
            measure=rho,
            transport_cost=problem.cost(rho),
            map=map,
            ending=Ending.INTERRUPTED if outcome.interrupted else ending,
            message=outcome.message + ("; values are up to the constant ∫ log μ dμ" if rho.is_relative else ""),
            iterations=outcome.iterations,
            held_out=pushed_held_out,
            state=map,
        )

    def _training_and_validation(self, problem: Problem, generator: torch.Generator) -> tuple[_Part, _Part]:
        """What is trained on and what is held out: draws given for it, or a part of the measure."""
        source, anchors = problem.measure, problem.anchor.points.detach()
        assert isinstance(source, Particles)
        if problem.held_out is None:
            return tuple(  # type: ignore[return-value]
                _Part(source.subset(rows), anchors[rows])
                for rows in _split(source, self.validation_fraction, generator)
            )
        if problem.anchor is not problem.measure:
            raise ValueError("where the transport cost of held-out draws counts from is not known: give none")
        held_out = _as_particles(problem.held_out, "held_out")
        return _Part(source, anchors), _Part(held_out, held_out.points)

    def _start(
        self, problem: Problem, map: TransportMap, training: _Part, validation: _Part, generator: torch.Generator
    ) -> Outcome | None:
        """The start by flow matching, where there is one."""
        if not self.flow_matching:
            return None
        return match_flow(
            map,
            relaxation(problem.functional, problem.step_size, problem.measure.points),
            training.measure,
            validation.measure,
            self.flow_matching,
            self.training,
            generator,
            f"step {problem.index}",
            self.progress,
        )

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
        the minibatch is made small enough that they fit the budget.

        Arguments:
            map: T, usually a `ComposedMap` of trained blocks.
            functional: F.
            measure: μ, where the first block starts. Of a `Gaussian` every minibatch is a fresh draw.
            held_out: draws of μ that are not trained on; split off, or drawn, where not given.
            memory_budget: bytes that activations may take, 512 MB by default.
        """
        generator = torch.Generator().manual_seed(step_seed(self.seed, 2**20))
        if isinstance(measure, Gaussian):
            training = measure.to_particles(self.training.batch_size, generator)
            validation = measure.to_particles(FRESH_HELD_OUT, generator) if held_out is None else held_out
        elif held_out is None:
            given = _as_particles(measure)
            training, validation = (given.subset(rows) for rows in _split(given, self.validation_fraction, generator))
        else:
            training, validation = _as_particles(measure), held_out
        validation = _as_particles(validation, "held_out")

        def batch_objective(rows: Tensor) -> Tensor:
            if isinstance(measure, Gaussian):
                return functional(measure.to_particles(len(rows), generator).push(map))
            return functional(batch_of(training, rows).push(map))

        probe = torch.arange(min(len(training), 64))
        with seeded(step_seed(self.seed, 2**20) + 1, training.device):
            try:
                row_bytes = max(1.0, saved_bytes_per_row(map.train(), batch_objective, probe))
            finally:  # Ctrl-C must not leave a map that draws dropout and partitions
                map.eval()
            settings = replace(
                self.training, batch_size=max(1, min(self.training.batch_size, int(memory_budget / row_bytes)))
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

    def _train(
        self,
        map: TransportMap,
        batch_objective: Callable[[Tensor], Tensor],
        held_out_objective: Callable[[Particles], Tensor],
        training: Particles,
        validation: Particles,
        settings: Training,
        generator: torch.Generator,
        describe: str,
    ) -> tuple[Outcome, Particles | None]:
        """`train`, and again with a finer discretisation where it is too coarse to be trusted.

        The second result is the validation measure pushed by the exact map, where that has been computed.
        """

        def penalised(rows: Tensor) -> Tensor:
            objective, penalty = batch_objective(rows), map.penalty()
            return objective if penalty is None else objective + penalty

        def look() -> float:
            with map.discretised():
                return float(held_out_objective(push(map, validation)))

        def exact() -> tuple[Particles, float, float]:
            """What is true of the trained map: the pushed measure, its objective, and how far that may be missed."""
            with torch.no_grad():
                rho = push(map, validation)
                objective = float(held_out_objective(rho))
            return rho, objective, self.gap_tolerance * max(1.0, 0.01 * (outcome.initial - objective))

        outcome = train(map, penalised, look, training.weights, settings, generator, describe, self.progress)
        if not map.is_discretised:
            return outcome, None
        note = ""
        rho, objective, tolerance = exact()
        for _ in range(REFINEMENTS):
            if (gap := abs(outcome.objective - objective)) <= tolerance or outcome.interrupted:
                break
            note += f"; the discretised objective was off by {gap:.2g}: {map.refine()}"
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
        note += f"; the discretised objective is off by {gap:.1g}"
        # the objective that is reported is the true one
        return replace(outcome, objective=objective, converged=gap <= tolerance, note=note), rho

    def _initial_map(self, source: Particles, state: object, seed: int) -> TransportMap:
        if self.warm_start and isinstance(state, TransportMap) and state.dim == source.dim:
            return copy.deepcopy(state).to(dtype=source.dtype, device=source.device)
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


def push(map: TransportMap, measure: Particles) -> Particles:
    """T#μ without a graph, in bounded memory."""
    return measure.push(lambda x: apply_in_batches(map, x))


class _Part(NamedTuple):
    """Particles to train on or to look at, and the points (n, d) from which the transport cost of each counts."""

    measure: Particles
    origins: Tensor


def _as_particles(measure: Measure, name: str = "measure") -> Particles:
    if not isinstance(measure, Measure) or not measure.movable:
        raise TypeError(f"NeuralProx needs Particles as {name}, got {type(measure).__name__}; {NeuralProx.conversion}")
    if not isinstance(measure, Particles):  # of a class of somebody's own: what networks need of it
        known = measure.density_known and not measure.density_follows_points
        measure = Particles(measure.points, measure.weights, measure.log_density() if known else None)
    if measure.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"NeuralProx trains in float32 or float64, got {name} in {measure.dtype}; convert its points")
    return measure.detach().relative()


def _split(measure: Particles, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rows to train on and the rows held out."""
    carriers = measure.weights.nonzero()[:, 0]  # a part without mass would have no objective
    n = len(carriers)
    held = round(n * fraction)
    if held < 1 or held >= n:
        raise ValueError(
            f"cannot hold out {fraction:g} of {n} particles with mass: both parts need at least one; "
            "give more particles or change validation_fraction"
        )
    order = carriers[torch.randperm(n, generator=generator).to(measure.device)]
    return order[held:], order[:held]
