"""The driver: proximal steps one after the other, and the trajectory they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from wprox._checks import (
    MOST_STEPS,
    StepSize,
    as_points,
    check_count,
    check_flag,
    check_positive,
    evaluate_one,
    kind_of,
    step_sizes,
)
from wprox._warnings import warn
from wprox.functionals import Functional
from wprox.functionals.base import require_functional
from wprox.maps import ComposedMap, TransportMap
from wprox.maps.base import apply_in_batches, invert_in_batches
from wprox.maps.precision import in_precision
from wprox.measures import Measure
from wprox.measures.base import require_measure
from wprox.solvers.base import STEP_LIMIT, Solver, Step
from wprox.solvers.problem import StepFailedError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass
class Trajectory:
    """What `jko` returns: the measures ρ_0, …, ρ_n, the steps between them and the values of F.

    Attributes:
        measures: n + 1 measures, the initial one first.
        steps: n steps.
        values: n + 1 values of the functional.
        converged: whether `tol` was reached.
        interrupted: whether Ctrl-C ended the iteration early.
    """

    measures: list[Measure]
    values: list[Tensor]
    steps: list[Step] = field(default_factory=list)
    converged: bool = False
    interrupted: bool = False

    @property
    def final(self) -> Measure:
        """The last measure."""
        return self.measures[-1]

    @property
    def map(self) -> TransportMap | None:
        """T_n ∘ … ∘ T_1, or `None` where a step has no map."""
        maps = [step.map for step in self.steps if step.map is not None]
        return ComposedMap(maps) if maps and len(maps) == len(self.steps) else None

    @property
    def times(self) -> Tensor:
        """The times 0, γ_0, γ_0 + γ_1, … of the measures, (n + 1,)."""
        return torch.tensor([0.0, *(step.step_size for step in self.steps)], dtype=torch.float64).cumsum(0)

    def log_prob(self, x: Any, initial: Any = None) -> Tensor:
        r"""log ρ_n at any points (n, d), (n,): log ρ_0(y) − log|det ∇T(y)| with y = T⁻¹(x), T = T_n ∘ … ∘ T_1.

        Arguments:
            x: the points.
            initial: the law ρ_0, with a method `log_prob`, where the first measure has none (`Particles`).

        Raises:
            TypeError: where a step has no map, or nothing has a `log_prob`.
        """
        law = self.measures[0] if initial is None else initial
        map = self.map
        if map is None:
            raise TypeError(
                "the density at points needs the maps of all steps, and this solver moves mass without maps"
            )
        if not hasattr(law, "log_prob"):
            raise TypeError(
                f"{type(law).__name__} knows its density at its own points only; give the law that they were drawn "
                "from, as in trajectory.log_prob(x, initial=gaussian)"
            )
        dim = self.measures[0].dim
        events = tuple(getattr(law, "event_shape", (dim,)))
        if events != (dim,):
            raise ValueError(
                f"initial must be a law of vectors of dimension {dim}, got one of events of shape {events}; "
                "torch.distributions.Independent(law, 1) makes one of independent coordinates"
            )
        x = as_points(x, "x", dim)
        map = in_precision(map, x.dtype)
        y = invert_in_batches(map, x)
        return evaluate_one(law.log_prob, y, "initial.log_prob") - apply_in_batches(map, y)[1]

    def __len__(self) -> int:
        return len(self.steps)

    def plot(self, axes: Any = None, count: int = 5) -> list[Axes]:
        """Draw `count` measures along the way and the values of F; returns the matplotlib axes.

        Arguments:
            axes: `count + 1` matplotlib axes; made where not given.
            count: how many measures to draw, evenly spread.
        """
        from wprox.plot.trajectory import plot_trajectory

        return plot_trajectory(self, axes, count)


def jko_steps(
    functional: Functional,
    solver: Solver,
    initial: Measure,
    step_size: StepSize = 0.1,
    n_steps: int = 50,
    held_out: Measure | None = None,
) -> Iterator[Step]:
    """The steps of `jko` one by one, for loops that decide on the way when to stop or what to keep.

    Nothing is stored: memory is that of one step.
    """
    _check_arguments(functional, solver, initial, n_steps)
    gamma = step_sizes(step_size, n_steps)
    if held_out is not None:
        require_measure(held_out, "held_out")
    return _steps(functional, solver, initial, gamma, n_steps, held_out)


def _steps(
    functional: Functional,
    solver: Solver,
    measure: Measure,
    gamma: Callable[[int], float],
    n_steps: int,
    held_out: Measure | None,
) -> Iterator[Step]:
    previous = None
    for k in range(n_steps):
        previous = solver.step(functional.at_step(k), measure, gamma(k), previous=previous, held_out=held_out)
        if not isinstance(previous, Step):
            raise TypeError(
                f"{type(solver).__name__}.step must return a wprox.Step, it returned {kind_of(previous)}; write the "
                "method solve(problem, state) -> wprox.Solved in its place, of which the step is made"
            )
        measure, held_out = previous.measure, previous.held_out
        yield previous


def jko(
    functional: Functional,
    solver: Solver,
    initial: Measure,
    step_size: StepSize = 0.1,
    n_steps: int = 50,
    tol: float | None = None,
    progress: bool = False,
    until: float | None = None,
) -> Trajectory:
    r"""Iterate ρ_{k+1} = argmin_ρ F(ρ) + W₂²(ρ_k, ρ)/(2γ_k) (Jordan, Kinderlehrer and Otto 1998).

    Arguments:
        functional: F.
        solver: how a step is solved.
        initial: ρ_0.
        step_size: γ: a number, a sequence with one entry a step, or a callable of the step's index.
        n_steps: the largest number of steps.
        tol: stop once the mean speed √(transport cost)/γ of a step that converged is at most `tol`.
        progress: show a progress bar.
        until: a time t in place of `n_steps`: as many steps as it takes, the last shortened so that Σ γ_k = t. The
            last measure is then the law at time t of the gradient flow, to first order in γ: for KL(· ‖ π) that of
            dX = ∇ log π(X) dt + √2 dW, for ∫ V dρ + τ∫ ρ log ρ that of dX = −∇V(X) dt + √(2τ) dW.

    Returns:
        The trajectory. Ctrl-C ends it early, with what was computed so far and a warning.

    Raises:
        StepFailedError: where a step fails; its `trajectory` holds the steps before.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) + 3
        >>> F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2)
        >>> solver = wprox.NeuralProx(map=wprox.AffineMap, learning_rate=0.05)
        >>> trajectory = wprox.jko(F, solver, wprox.Particles(x), step_size=1.0, n_steps=2)
        >>> len(trajectory.measures), len(trajectory.steps), bool(trajectory.values[2] < trajectory.values[1])
        (3, 2, True)
    """
    _check_arguments(functional, solver, initial, n_steps)
    if tol is not None:
        check_positive(tol, "tol")
    if until is not None:
        step_size = _sizes_until(step_size, check_positive(until, "until"))
        n_steps = len(step_size)
    initial = solver.prepare(initial)
    with torch.no_grad():
        trajectory = Trajectory(
            [initial], [solver.value(functional, initial)]
        )  # says what is missing, where F does not apply
    steps = jko_steps(functional, solver, initial, step_size, n_steps)
    bar = tqdm(total=n_steps, desc="jko", disable=not check_flag(progress, "progress"))
    warned = grown = False
    try:
        for step in steps:
            trajectory.steps.append(step)
            trajectory.measures.append(step.measure)
            trajectory.values.append(step.value)
            bar.update()
            bar.set_postfix_str(f"F {float(step.value):.4g}")
            if step.interrupted:
                raise KeyboardInterrupt
            if not step.converged and not warned:
                residual = "" if step.residual is None else f" (residual {step.residual:.2g})"
                warn(f"step {step.index} did not converge{residual}: {step.message}")
                warned = True
            if not grown and _has_grown(trajectory):
                first, last = float(trajectory.values[0]), float(step.value)
                warn(
                    f"F has grown ten-fold, from {first:.3g} to {last:.3g} by step {step.index}: "
                    f"{step.message or STEP_LIMIT}"
                )
                grown = True
            if tol is not None and _has_arrived(step, tol):
                trajectory.converged = True
                break
    except KeyboardInterrupt:
        trajectory.interrupted = True
        warn(f"interrupted after {len(trajectory)} steps; they are returned")
    except StepFailedError as error:
        error.trajectory = trajectory
        raise
    finally:
        bar.close()
    return trajectory


def _check_arguments(functional: object, solver: object, initial: object, n_steps: object) -> None:
    """One sentence for what is often given in the place of a functional, a solver or a measure."""
    require_functional(functional)
    if isinstance(solver, type) and issubclass(solver, Solver):
        raise TypeError(f"solver must be an object, got the class {solver.__name__}; call it: {solver.__name__}()")
    if not isinstance(solver, Solver):
        raise TypeError(
            f"solver must be a wprox.Solver such as wprox.NeuralProx(), got {kind_of(solver)}; it takes the steps"
        )
    require_measure(initial, "initial")
    check_count(n_steps, "n_steps")


def _has_arrived(step: Step, tol: float) -> bool:
    """Whether a step is as slow as `tol`; one that failed may stand still anywhere."""
    return step.converged and math.sqrt(float(step.transport_cost)) <= tol * step.step_size


def _has_grown(trajectory: Trajectory) -> bool:
    """Whether F is ten times what it was at the start.

    Where that is near 0, the first step gives the scale: E|T(x) − x|²/γ is what an explicit step should gain. Rounding
    is no growth; what grows passes √eps soon enough.
    """
    first, step = trajectory.values[0], trajectory.steps[0]
    gain = float(step.transport_cost) / step.step_size
    least = math.sqrt(torch.finfo(first.dtype).eps)
    return float(trajectory.values[-1] - first) > max(9 * abs(float(first)), gain, least)


def _sizes_until(step_size: StepSize, time: float) -> list[float]:
    """Step sizes that sum to the time, the last one shortened."""
    gamma, sizes, now = step_sizes(step_size, 0), list[float](), 0.0
    while time - now > 1e-9 * time:
        if len(sizes) == MOST_STEPS:
            raise ValueError(
                f"until={time:g} takes more than {MOST_STEPS} steps of sizes like {sizes[0]:g}; give larger ones, or a "
                "nearer time"
            )
        try:
            size = gamma(len(sizes))
        except IndexError:
            raise ValueError(f"the step sizes sum to {now:g}, which is less than until={time:g}; give more") from None
        rest = time - now
        sizes.append(rest if size > rest * (1 - 1e-9) else size)
        now += sizes[-1]
    return sizes
