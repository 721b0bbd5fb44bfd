"""Proximal steps by neural transport maps."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_count, check_fraction, check_non_negative, check_positive, check_seed, seeded
from wprox.functionals import Functional
from wprox.maps import ConvexMap, ResidualMap, SplineMap, TransportMap
from wprox.maps.base import apply_in_batches
from wprox.measures import Measure, Particles
from wprox.solvers.base import Solver, Step
from wprox.solvers.training import Outcome, Training, saved_bytes_per_row, train

MapFactory = Callable[[int], TransportMap]
MAPS: dict[str, type[TransportMap]] = {"spline": SplineMap, "residual": ResidualMap, "convex": ConvexMap}


class NeuralProx(Solver):
    r"""The proximal step over a family of invertible networks.

    Minimises, over the parameters of a map T,

        J(T) = F(T#μ) + E_μ|T(x) − x|²/(2γ),      log (T#μ)(T(x)) = log μ(x) − log |det ∇T(x)|,

    on minibatches of the particles (Xu, Cheng and Xie 2023; Cheng, Lu, Tan and Xie 2024). The particles are pushed
    once, at the end of the step, so memory does not grow with the number of earlier steps. Entropy and KL need no
    density of μ: they are minimised up to the constant ∫ log μ dμ, and `Step.value` is reported up to it
    (`step.measure.is_relative`); functionals that need the density itself raise `DensityUnknownError`.

    Arguments:
        map: "spline", "residual", "convex", or a factory dim → `TransportMap` (a class such as `AffineMap` is one).
        map_options: arguments of the named map, such as `{"transforms": 4}`.
        iterations: the largest number of gradient steps.
        batch_size: particles in a minibatch.
        learning_rate: Adam's, at the top of its schedule.
        weight_decay: AdamW's.
        clip: gradients of a larger norm are scaled down to it.
        check_every: iterations between two looks at the held-out objective.
        patience: looks without improvement after which the step stops.
        validation_fraction: the part of the particles held out, where `step` is given no held-out measure.
        warm_start: start from the previous step's map in place of the identity.
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
        self.warm_start = warm_start
        self.seed = check_seed(seed)
        self.progress = progress

    def prepare(self, measure: Measure) -> Particles:
        """The particles, with the density counted relative to their own where it is unknown."""
        return _as_particles(measure, "measure")

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
        source = _as_particles(measure, "measure")
        index = 0 if previous is None else previous.index + 1
        generator = torch.Generator().manual_seed(_mix(self.seed, index))
        if held_out is None:
            training, validation = _split(source, self.validation_fraction, generator)
            pushed_held_out = None
        else:
            training, validation = source, _as_particles(held_out, "held_out")
        map = self._initial_map(source, previous, _mix(self.seed, index))

        def objective(rho: Particles, origin: Particles) -> Tensor:
            cost = origin.weights @ (rho.points - origin.points).square().sum(1)
            return functional(rho) + cost / (2 * step_size)

        def batch_objective(rows: Tensor) -> Tensor:
            batch = _batch(training, rows)
            return objective(batch.push(map), batch)

        with seeded(_mix(self.seed, index) + 1, source.device):  # dropout draws from the default generator
            outcome = train(
                map,
                batch_objective,
                lambda: float(objective(push(map, validation), validation)),
                training.weights,
                self.training,
                generator,
                f"step {index}",
                self.progress,
            )
        rho = push(map, source)
        if held_out is not None:
            pushed_held_out = push(map, validation)
        with torch.no_grad():
            value = functional(rho)
        return Step(
            measure=rho,
            map=map,
            value=value,
            transport_cost=source.weights @ (rho.points - source.points).square().sum(1),
            step_size=step_size,
            converged=not outcome.interrupted,
            iterations=outcome.iterations,
            seconds=time.perf_counter() - start,
            message=outcome.message + ("; values are up to the constant ∫ log μ dμ" if rho.is_relative else ""),
            index=index,
            held_out=pushed_held_out,
            interrupted=outcome.interrupted,
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
            measure: μ, where the first block starts.
            held_out: draws of μ that are not trained on; split off where not given.
            memory_budget: bytes that activations may take, 512 MB by default.
        """
        source = _as_particles(measure, "measure")
        generator = torch.Generator().manual_seed(_mix(self.seed, 2**20))
        if held_out is None:
            training, validation = _split(source, self.validation_fraction, generator)
        else:
            training, validation = source, _as_particles(held_out, "held_out")

        def batch_objective(rows: Tensor) -> Tensor:
            return functional(_batch(training, rows).push(map))

        probe = torch.arange(min(len(training), 64))
        row_bytes = max(1.0, saved_bytes_per_row(map, batch_objective, probe))
        settings = replace(
            self.training, batch_size=max(1, min(self.training.batch_size, int(memory_budget / row_bytes)))
        )
        with seeded(_mix(self.seed, 2**20) + 1, source.device):
            return train(
                map,
                batch_objective,
                lambda: float(functional(push(map, validation))),
                training.weights,
                settings,
                generator,
                "fine-tuning",
                self.progress,
            )

    def _initial_map(self, source: Particles, previous: Step | None, seed: int) -> TransportMap:
        if self.warm_start and previous is not None and previous.map is not None:
            return copy.deepcopy(previous.map)
        with seeded(seed):
            map = self.factory(source.dim)
        if not isinstance(map, TransportMap):
            raise TypeError(f"the map factory must return a TransportMap, got {type(map).__name__}")
        if map.dim != source.dim:
            raise ValueError(
                f"the map factory returned a map of dimension {map.dim} for points of dimension {source.dim}"
            )
        return map.to(dtype=source.dtype, device=source.device)


def map_factory(map: str | MapFactory, options: dict[str, Any] | None = None) -> MapFactory:
    """The factory dim → map for a map's name and options, or the factory itself."""
    if isinstance(map, str):
        if map not in MAPS:
            raise ValueError(f"map must be one of {sorted(MAPS)} or a factory dim -> TransportMap, got {map!r}")
        cls = MAPS[map]
        return lambda dim: cls(dim, **(options or {}))
    if not callable(map):
        raise TypeError(f"map must be a name or a factory dim -> TransportMap, got {type(map).__name__}")
    if options:
        raise ValueError(
            "map_options go with a map's name; give a factory its options yourself, as in functools.partial"
        )
    return map


def push(map: TransportMap, measure: Particles) -> Particles:
    """T#μ without a graph, in bounded memory."""
    return measure.push(lambda x: apply_in_batches(map, x))


def _as_particles(measure: Measure, name: str) -> Particles:
    if not isinstance(measure, Particles):
        raise TypeError(
            f"NeuralProx needs Particles as {name}, got {type(measure).__name__}; "
            "draw some, as in gaussian.to_particles(10_000, seed=0)"
        )
    if measure.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"NeuralProx trains in float32 or float64, got {name} in {measure.dtype}; convert its points")
    return measure.detach().relative()


def _split(measure: Particles, fraction: float, generator: torch.Generator) -> tuple[Particles, Particles]:
    carriers = measure.weights.nonzero()[:, 0]  # a part without mass would have no objective
    n = len(carriers)
    held = round(n * fraction)
    if held < 1 or held >= n:
        raise ValueError(
            f"cannot hold out {fraction:g} of {n} particles with mass: both parts need at least one; "
            "give more particles or change validation_fraction"
        )
    order = carriers[torch.randperm(n, generator=generator).to(measure.device)]
    return measure.subset(order[held:]), measure.subset(order[:held])


def _batch(measure: Particles, rows: Tensor) -> Particles:
    """The minibatch at the rows that `train` drew: fewer than all are drawn by weight, and then count equally."""
    batch = measure.subset(rows)
    if len(rows) < len(measure):
        batch.weights = torch.full_like(batch.weights, 1 / len(rows))
    return batch


def _mix(seed: int, index: int) -> int:
    """A seed of its own for every step."""
    return (seed * 1_000_003 + index * 7_919) % 2**62
