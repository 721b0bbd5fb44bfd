"""What a neural step minimises, on what, and how it may end."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.maps import TransportMap
from wprox.maps.base import apply_in_batches
from wprox.measures import Measure, Particles
from wprox.solvers.base import Ending
from wprox.solvers.neural.affine_start import EVIDENCE, mean_and_error
from wprox.solvers.neural.parts import Part, Units, split
from wprox.solvers.neural.training import Outcome
from wprox.solvers.problem import Problem

CONVERSION = "draw some, as in gaussian.to_particles(10_000, seed=0)"
FOLLOWED = (
    0.25  # of the length of a step, the residual that it may leave: a sixteenth of what it gains, where F is convex
)
AT_REST = 1e-6  # of the spread of the particles: a step that should be no longer has nothing to do


@dataclass(frozen=True)
class Task:
    r"""F(T#μ) + cost/(2γ) over maps T.

    Attributes:
        problem: F, μ, γ.
        whole: all particles.
        training: the particles to train on.
        validation: those to look at.
        units: the coordinates of training, `None` for those of the data.
        energy: the unit of the objective.
        is_followed: whether F follows each particle, so that its value at the particles is all that it is. Else it
            knows the law of the particles by them alone, as entropy and KL do, and what is gained on them may be lost
            on others.
    """

    problem: Problem
    whole: Part
    training: Part
    validation: Part
    units: Units | None
    energy: float
    is_followed: bool

    @classmethod
    def of(cls, problem: Problem, standardise: bool, fraction: float, look_at: int, generator: torch.Generator) -> Task:
        """The task of a problem.

        Arguments:
            problem: its measure are particles.
            standardise: whether the particles set units of their own.
            fraction: of the particles, to hold out where that is needed and no held-out draws are given.
            look_at: how many particles to look at, at most, where none are held out.
            generator: of the split.
        """
        source = problem.measure
        assert isinstance(source, Particles)
        units = Units.of(source) if standardise else None
        energy = 1.0 if units is None else units.scale**2 / problem.step_size
        is_followed = source.density_follows_points or not problem.functional.needs_density(source)
        whole = Part(source, problem.anchor.points.detach())
        if problem.held_out is not None:
            if problem.anchor is not problem.measure:
                raise ValueError("where the transport cost of held-out draws counts from is not known: give none")
            held_out = as_particles(problem.held_out, "held_out")
            training, validation = whole, Part(held_out, held_out.points)
        elif is_followed and standardise:
            training, validation = whole, whole.sample(look_at, generator)
        else:
            training, validation = split(whole, fraction, generator)
        return cls(problem, whole, training, validation, units, energy, is_followed)

    @property
    def source(self) -> Particles:
        """μ."""
        return self.whole.measure

    def objective(self, rho: Particles, origins: Tensor) -> Tensor:
        """F(ρ) + cost/(2γ) in its unit, where the points of ρ come from the origins."""
        cost = rho.weights @ (rho.points - origins).square().sum(1)
        return self.problem.objective(rho, cost) / self.energy

    def at_rest(self, part: Part) -> float:
        """The objective of standing still."""
        with torch.no_grad():
            return float(self.objective(part.measure, part.origins))

    def gain(self, before: Particles, after: Particles, generator: torch.Generator) -> tuple[float, float]:
        """How much less the objective is after than before, on the validation measure pushed by two maps.

        The second number is its standard error, from differences on blocks of particles.
        """
        part, gains, masses = self.validation, [], []
        for rows in part.blocks(generator):
            old, new = (self.objective(rho.subset(rows), part.origins[rows]) for rho in (before, after))
            gains.append(float(old - new))
            masses.append(float(part.measure.weights[rows].sum()))
        return mean_and_error(gains, masses)

    def is_shown(
        self, before: Particles, after: Particles, generator: torch.Generator, errors: float = EVIDENCE
    ) -> bool:
        """Whether the objective is less after than before by so many standard errors; see `gain`."""
        gain, error = self.gain(before, after, generator)
        return gain > errors * error

    def is_better(self, map: TransportMap, other: TransportMap, generator: torch.Generator) -> bool:
        """Whether the objective of a map is below that of another, and shown to be so where it varies by chance."""
        if self.is_followed:
            return self.is_lower(map, other)
        before, after = (push(each, self.validation.measure) for each in (other, map))
        return self.is_shown(before, after, generator, 1.0)

    @torch.no_grad()
    def is_lower(self, map: TransportMap, other: TransportMap) -> bool:
        """Whether the objective of a map is below that of another on the validation measure."""
        part = self.validation
        after, before = (self.objective(push(each, part.measure), part.origins) for each in (map, other))
        return bool(after < before)

    def is_step(self, map: TransportMap) -> bool:
        """Whether a map follows the gradient of F at the particles, where F does so."""
        rho = push(map, self.source)
        residual = self.problem.residual(rho)
        return residual is not None and self.is_close(self.problem.cost(rho), residual)

    def is_close(self, cost: Tensor, residual: float) -> bool:
        """Whether the first-order error of a map is small for its transport cost."""
        scale = 1.0 if self.units is None else self.units.scale
        length, left = math.sqrt(float(cost)), residual * self.problem.step_size
        return left <= max(FOLLOWED * length, AT_REST * scale)

    def ending(self, outcome: Outcome, is_shown: bool, cost: Tensor, residual: float | None) -> Ending:
        """How a step ended.

        Arguments:
            outcome: of its training.
            is_shown: whether the particles show that it gains over standing still.
            cost: its transport cost.
            residual: its first-order error, where that is known.
        """
        if outcome.interrupted:
            return Ending.INTERRUPTED
        if not outcome.converged:
            return Ending.DISCRETISED
        if residual is not None:
            if not self.is_close(cost, residual):
                return Ending.UNFOLLOWED if outcome.settled else Ending.ITERATIONS
            return Ending.CONVERGED
        if not is_shown:
            return Ending.UNSHOWN
        return Ending.CONVERGED if outcome.settled else Ending.ITERATIONS


def push(map: TransportMap, measure: Particles) -> Particles:
    """T#μ without a graph, in bounded memory."""
    return measure.push(lambda x: apply_in_batches(map, x))


def as_particles(measure: Measure, name: str = "measure") -> Particles:
    """A measure as the particles that networks are trained on.

    Raises:
        TypeError: for a measure whose points do not move, and for half precision.
    """
    if not isinstance(measure, Measure) or not measure.movable:
        raise TypeError(f"NeuralProx needs Particles as {name}, got {type(measure).__name__}; {CONVERSION}")
    if not isinstance(measure, Particles):  # of a class of somebody's own: what networks need of it
        known = measure.density_known and not measure.density_follows_points
        measure = Particles(measure.points, measure.weights, measure.log_density() if known else None)
    if measure.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"NeuralProx trains in float32 or float64, got {name} in {measure.dtype}; convert its points")
    return measure.detach().relative()
