"""How a JKO flow is trained: arguments checked and made complete, blocks as long as they help, then all together."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm.auto import tqdm

from wprox._checks import StepSize, check_count, check_fraction, check_non_negative, check_positive, step_sizes
from wprox._random import check_seed
from wprox.functionals import KL
from wprox.jko import jko_steps
from wprox.maps import ComposedMap, TransportMap
from wprox.measures.laws import standard_normal
from wprox.models.flow.data import FlowData
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.step_sizes import growing
from wprox.solvers import NeuralProx
from wprox.solvers.neural.training import Outcome

if TYPE_CHECKING:
    from wprox.models.flow.jko_flow import JKOFlow

FLOW_MATCHING = 1000  # iterations of flow matching that start a block of map="ode"
CHECK_EVERY = 25  # iterations between two looks at the held-out objective
LOOKS = 80  # in fine-tuning, at most: a look at 20,000 rows costs as much as three iterations

# Of a flow, the functions of this file read the arguments that it was made with, and nothing else.


def check_arguments(flow: JKOFlow) -> None:
    """Raise for arguments out of range; those of the map and of the preprocessing are checked where these are made."""
    check_seed(flow.seed)
    for name in ("n_blocks", "iterations", "patience"):
        check_count(getattr(flow, name), name)
    for name in ("learning_rate", "fine_tune_learning_rate"):
        if getattr(flow, name) is not None:
            check_positive(getattr(flow, name), name)
    check_non_negative(flow.transport_tol, "transport_tol")
    for name in ("weight_decay", "jitter"):
        if getattr(flow, name) is not None:
            check_non_negative(getattr(flow, name), name)
    try:
        if math.isnan(flow.tol):
            raise ValueError("tol must be a number of nats, got nan")
    except TypeError:
        raise TypeError(f"tol must be a number of nats, got {flow.tol!r}") from None
    for name in ("batch_size", "fine_tune_iterations", "fine_tune_batch_size"):
        if getattr(flow, name) is not None:
            check_count(getattr(flow, name), name)
    if flow.flow_matching is not None:
        check_count(flow.flow_matching, "flow_matching", least=0)
    check_count(flow.memory_budget, "memory_budget")
    check_fraction(flow.validation_fraction, "validation_fraction")
    step_sizes(step_size_of(flow), flow.n_blocks)


def step_size_of(flow: JKOFlow) -> StepSize:
    """γ as the driver takes it."""
    if isinstance(flow.step_sizes, str):
        if flow.step_sizes != "auto":
            raise ValueError(f'step_sizes must be numbers, a callable or "auto", got {flow.step_sizes!r}')
        return growing()
    return 1.0 if flow.step_sizes is None else flow.step_sizes


def preprocessing_of(flow: JKOFlow) -> Preprocessing:
    """The preprocessing that a flow's arguments say, not yet fitted."""
    return Preprocessing(flow.standardize, flow.integer, flow.bounds, flow.smoothing, flow.drop_constant)


def block_solver(flow: JKOFlow, data: FlowData, **changes: Any) -> NeuralProx:
    """The solver of a flow's blocks, with the arguments that were left open set by the size of the table."""
    is_ode = flow.map == "ode"
    options = flow.map_options
    if data.has_few_rows and flow.map == "spline":
        planar = {"frequencies": 3} if data.training.dim == 2 else {}
        options = {"dropout": 0.2} | planar | (options or {})
    default_rate = 2e-2 if is_ode else 5e-3 if data.has_few_columns else 2e-3
    settings: dict[str, Any] = {
        "map": flow.map,
        "map_options": options,
        "iterations": flow.iterations,
        "batch_size": _batch_size(flow, data),
        "learning_rate": default_rate if flow.learning_rate is None else flow.learning_rate,
        "weight_decay": float(data.has_few_rows) if flow.weight_decay is None else flow.weight_decay,
        "patience": flow.patience,
        "flow_matching": (FLOW_MATCHING if is_ode else 0) if flow.flow_matching is None else flow.flow_matching,
        "check_every": CHECK_EVERY,
        "seed": flow.seed,
        "progress": flow.progress,
    }
    return NeuralProx(**(settings | changes))


def joint_solver(flow: JKOFlow, data: FlowData) -> NeuralProx:
    """The solver that trains all blocks together."""
    batch_size = flow.fine_tune_batch_size or 2 * _batch_size(flow, data)
    iterations = flow.fine_tune_iterations or min(2000, max(200, 100 * data.rows // batch_size))
    check_every = max(CHECK_EVERY, iterations // LOOKS)
    default_rate = 3e-3 if data.has_few_columns else 3e-4 if data.has_few_rows else 2e-3
    return block_solver(
        flow,
        data,
        iterations=iterations,
        learning_rate=default_rate if flow.fine_tune_learning_rate is None else flow.fine_tune_learning_rate,
        batch_size=batch_size,
        check_every=check_every,
        # at the top of the schedule the objective often rises before it falls
        patience=max(flow.patience, iterations // (2 * check_every)),
    )


def restarting_solver(flow: JKOFlow, data: FlowData, blocks: Sequence[TransportMap]) -> NeuralProx:
    """The solver whose blocks start from copies of trained ones, one after the other."""
    starts = iter(blocks)
    return block_solver(flow, data, map=lambda dim: next(starts), map_options=None, flow_matching=0)


def _batch_size(flow: JKOFlow, data: FlowData) -> int:
    return flow.batch_size or (1024 if data.has_few_columns else 256)


class Block(NamedTuple):
    """A trained block of a flow, its step size and what the flow's `history_` says of it."""

    map: TransportMap
    step_size: float
    entry: dict[str, Any]


def trained_blocks(
    solver: NeuralProx,
    data: FlowData,
    sizes: StepSize,
    n_blocks: int,
    tol: float,
    transport_tol: float,
    progress: bool = False,
) -> Iterator[Block]:
    """Blocks one after the other, up to the one after which another would no longer help.

    Arguments:
        sizes: γ of each block.
        n_blocks, tol, transport_tol, progress: as `JKOFlow` takes them.

    Raises:
        KeyboardInterrupt: for Ctrl-C, after the block that it interrupted, in its best state, was returned, unless that
            is worse than none.
    """
    reference = KL(standard_normal(data.training.points))
    best = float(reference(data.held_out.relative()))
    with tqdm(total=n_blocks, desc="blocks", disable=not progress) as bar:
        for step in jko_steps(reference, solver, data.training, sizes, n_blocks, data.held_out):
            assert step.map is not None
            assert step.held_out is not None
            objective, cost = float(reference(step.held_out)), float(step.transport_cost)
            last = best - objective < tol or math.sqrt(cost / data.training.dim) < transport_tol
            number = step.index + 1
            if last and objective >= best and number > 1:  # the block is worse than none
                if step.interrupted:
                    raise KeyboardInterrupt
                break
            entry = {
                "block": number,
                "step_size": step.step_size,
                "held_out_nll": objective + data.offset,
                "transport_cost": cost,
                "iterations": step.iterations,
                "seconds": step.seconds,
                "message": step.message,
            }
            yield Block(step.map, step.step_size, entry)
            if not (step.converged or step.interrupted):
                warn_discretised(f"block {number}", step.message)
            bar.update()
            bar.set_postfix_str(f"held-out NLL {objective + data.offset:.3f}")
            if step.interrupted:
                raise KeyboardInterrupt
            if last:
                break
            best = objective


def train_together(
    solver: NeuralProx, blocks: Sequence[TransportMap], data: FlowData, memory_budget: int
) -> tuple[Outcome, dict[str, Any]]:
    """Train all blocks of a flow at once, in place: the outcome, and what the flow's `history_` says of it."""
    start = time.perf_counter()
    reference = KL(standard_normal(data.training.points))
    outcome = solver.fine_tune(ComposedMap(blocks), reference, data.training, data.held_out, memory_budget)
    return outcome, {
        "block": "fine-tuning",
        "held_out_nll": outcome.objective + data.offset,
        "iterations": outcome.iterations,
        "seconds": time.perf_counter() - start,
        "message": outcome.message,
    }


def warn_discretised(stage: str, message: str) -> None:
    """Warn of a training that did not converge: its discretised objective stayed away from the true one."""
    warnings.warn(
        f"{stage} was trained with too coarse a discretisation ({message}): likelihoods are true, but a better flow "
        'may be in reach; give more steps, as in map_options={"steps": 6}',
        RuntimeWarning,
        stacklevel=2,
    )
