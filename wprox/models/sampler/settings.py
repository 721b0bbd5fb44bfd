"""The settings of a JKO sampler's training: its arguments, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from wprox._checks import (
    StepSize,
    check_count,
    check_flag,
    check_fraction,
    check_memory,
    check_number,
    check_positive,
    kind_of,
    step_sizes,
)
from wprox._random import check_seed
from wprox.functionals import KL
from wprox.maps.registry import MapFactory, map_factory
from wprox.measures import Gaussian
from wprox.models.step_sizes import entries, growing
from wprox.solvers import NeuralProx

BLOCKS = 6  # at most, unless step sizes or the user say another number
FIRST_STEP, GROWTH = 0.02, 4.0  # γ_k = 0.02 · 4^k, in units of the initial Gaussian; 4^k where that is fitted
FEW_DIMENSIONS = 16  # up to which learning rates are higher
FOR_MODES: dict[str, Any] = {  # of targets with several modes
    "forward_steps": 6,
    "n_blocks": 1,
    "step_sizes": 1.0,
    "iterations": 250,
    "batch_size": 512,
    "n_particles": 20_000,
    "fine_tune": False,
    "corrections": 6,
}


@dataclass(frozen=True)
class SamplerSettings:
    """What a sampler trains with; see `JKOSampler` for the arguments of the same names.

    Raises:
        ValueError, TypeError: for arguments out of range.
    """

    map: str | MapFactory
    map_options: dict[str, Any] | None
    step_sizes: StepSize
    n_blocks: int
    iterations: int
    batch_size: int
    learning_rate: float
    n_particles: int
    tol: float
    fine_tune: bool
    fine_tune_iterations: int
    fine_tune_learning_rate: float
    fine_tune_batch_size: int
    corrections: int
    rejection_rate: float
    corrected_blocks: int
    forward_steps: int
    memory_budget: int
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        for name in ("n_blocks", "corrections", "corrected_blocks", "forward_steps"):
            check_count(getattr(self, name), name, least=0)
        for name in ("iterations", "batch_size", "fine_tune_iterations", "fine_tune_batch_size", "memory_budget"):
            check_count(getattr(self, name), name)
        check_memory(check_count(self.n_particles, "n_particles", least=20), f"n_particles = {self.n_particles} draws")
        for name in ("learning_rate", "fine_tune_learning_rate"):
            check_positive(getattr(self, name), name)
        check_fraction(self.rejection_rate, "rejection_rate")
        check_seed(self.seed)
        if math.isnan(check_number(self.tol, "tol")):
            raise ValueError("tol must be a number of nats, got nan; give a finite or infinite one")
        for name in ("fine_tune", "progress"):
            check_flag(getattr(self, name), name)
        step_sizes(self.step_sizes, self.n_blocks + self.corrected_blocks)
        map_factory(self.map, self.map_options)  # which knows the names of maps

    def block_solver(self, index: int, **changes: Any) -> NeuralProx:
        """The solver of a block; each has random numbers of its own."""
        options = self.map_options
        if self.map == "spline":
            options = {"transforms": 4, "bound": 4.0} | (options or {})
        arguments: dict[str, Any] = {
            "iterations": self.iterations,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "seed": self.seed + 7919 * index,
            "progress": self.progress,
            "standardise": False,  # the chain is in units of its target
        }
        return NeuralProx(self.map, options, **(arguments | changes))

    def joint_solver(self) -> NeuralProx:
        """The solver that trains all blocks together."""
        return self.block_solver(
            0,
            iterations=self.fine_tune_iterations,
            learning_rate=self.fine_tune_learning_rate,
            batch_size=self.fine_tune_batch_size,
            patience=self.fine_tune_iterations,  # at the top of the schedule the objective often rises before it falls
        )


def for_modes(options: dict[str, Any]) -> dict[str, Any]:
    """The arguments for targets of several modes, with those that are given in their place."""
    settings = dict(FOR_MODES)
    if entries(options.get("step_sizes")) is not None:
        del settings["n_blocks"]  # which the sequence says
    return settings | options


def growing_steps(initial: Gaussian | None) -> StepSize:
    """The default step sizes, small ones first where the initial Gaussian is given, which may be far from π."""
    return growing(1.0 if initial is None else FIRST_STEP, GROWTH)


def default_rate(dim: int) -> float:
    """Adam's default learning rate for a block."""
    return 5e-3 if dim <= FEW_DIMENSIONS else 2e-3


def dimension_of(functional: KL, initial: Gaussian | None, dim: int | None) -> int:
    """The dimension that the target, the initial Gaussian and the argument `dim` say.

    Raises:
        ValueError: where none says it, or two disagree.
    """
    if initial is not None and not isinstance(initial, Gaussian):
        raise TypeError(
            f"initial must be a wprox.Gaussian, where the sampler starts, got {kind_of(initial)}; build one, as in "
            "Gaussian(torch.zeros(d), torch.eye(d))"
        )
    dims = {
        "the target": functional.dim,
        "initial": None if initial is None else initial.dim,
        "dim": None if dim is None else check_count(dim, "dim"),
    }
    known = {name: value for name, value in dims.items() if value is not None}
    if len(set(known.values())) != 1:
        said = ", ".join(f"{name} says {value}" for name, value in known.items()) or "nothing says it"
        raise ValueError(f"the dimension must be one number: {said}; give dim=d or an initial Gaussian")
    return next(iter(known.values()))
