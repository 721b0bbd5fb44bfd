"""How a JKO flow is trained: blocks as long as they help, then all together; and again, with step sizes re-spaced."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from wprox._warnings import warn
from wprox.functionals import KL
from wprox.jko import jko_steps
from wprox.maps import ComposedMap, TransportMap
from wprox.maps._memory import memory_limit
from wprox.measures.laws import standard_normal, standard_normal_log_prob
from wprox.models.flow.data import FlowData
from wprox.models.flow.settings import FlowSettings
from wprox.models.state import State, map_of, map_part, pack, unpack
from wprox.models.step_sizes import equal_moves
from wprox.solvers import Ending, NeuralProx

CHECK_EVERY = 25  # iterations between two looks at the held-out objective
LOOKS = 80  # in fine-tuning, at most: a look at 20,000 rows costs as much as three iterations


@dataclass
class TrainedBlocks:
    """The blocks of a flow as far as they are trained, whatever ends the training."""

    maps: list[TransportMap] = field(default_factory=list)
    step_sizes: list[float] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    interrupted: bool = False

    def state(self) -> State:
        """All of it, as files hold it."""
        blocks, tensors = pack("blocks", [map_part(map) for map in self.maps])
        config = {"step_sizes": self.step_sizes, "history": self.history, "interrupted": self.interrupted}
        return State({"blocks": blocks} | config, tensors)

    @classmethod
    def from_state(cls, state: State, map_classes: Sequence[type[TransportMap]]) -> TrainedBlocks:
        """What `state` returned, or a state of which it is a part, made anew."""
        config, tensors = state
        maps = [map_of(part, map_classes) for part in unpack("blocks", config["blocks"], tensors)]
        return cls(maps, config["step_sizes"], config["history"], config["interrupted"])


class Block(NamedTuple):
    """A trained block of a flow, its step size and what the flow's `history_` says of it."""

    map: TransportMap
    step_size: float
    entry: dict[str, Any]


def block_solver(settings: FlowSettings, **changes: Any) -> NeuralProx:
    """The solver of a flow's blocks."""
    arguments: dict[str, Any] = {
        "map": settings.map,
        "map_options": settings.map_options,
        "iterations": settings.iterations,
        "batch_size": settings.batch_size,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "patience": settings.patience,
        "flow_matching": settings.flow_matching,
        "check_every": CHECK_EVERY,
        "seed": settings.seed,
        "progress": settings.progress,
        "standardise": False,  # the table is, and so is what the blocks make of it
    }
    return NeuralProx(**(arguments | changes))


def joint_solver(settings: FlowSettings) -> NeuralProx:
    """The solver that trains all blocks together."""
    iterations = settings.fine_tune_iterations
    check_every = max(CHECK_EVERY, iterations // LOOKS)
    return block_solver(
        settings,
        iterations=iterations,
        learning_rate=settings.fine_tune_learning_rate,
        batch_size=settings.fine_tune_batch_size,
        check_every=check_every,
        # at the top of the schedule the objective often rises before it falls
        patience=max(settings.patience, iterations // (2 * check_every)),
    )


def train(
    trained: TrainedBlocks,
    solver: NeuralProx,
    settings: FlowSettings,
    data: FlowData,
    enough: float = math.inf,
) -> None:
    """Blocks one after the other, then together; Ctrl-C keeps those trained so far.

    Arguments:
        trained: no blocks; those that are trained are appended, so that they stay where a later one fails.
        solver: of the blocks, as `block_solver` makes it.
        settings: of the flow.
        data: to train on.
        enough: the held-out NLL that the first block must reach for more to be trained.
    """
    try:
        with memory_limit(settings.memory_budget):
            for block in trained_blocks(solver, settings, data):
                trained.maps.append(block.map)
                trained.step_sizes.append(block.step_size)
                trained.history.append(block.entry)
                if block.entry["held_out_nll"] > enough:
                    return
            if settings.fine_tune:
                train_together(trained, settings, data)
    except KeyboardInterrupt:
        if not trained.maps:
            raise
        trained.interrupted = True
        warn(f"interrupted; the flow has the {len(trained.maps)} blocks trained so far")


def refinements(trained: TrainedBlocks, settings: FlowSettings, data: FlowData, rounds: int) -> Iterator[TrainedBlocks]:
    """Blocks of better and better held-out likelihood, until a round does not improve it, which a warning tells."""
    for _ in range(rounds):
        again = _respaced(trained, settings, data)
        old, new = (blocks.history[-1]["held_out_nll"] for blocks in (trained, again))
        if not new < old:
            warn(
                f"refining did not improve the held-out likelihood (NLL {new:.4f}, before {old:.4f}); "
                "the flow stays as it was"
            )
            return
        trained = again
        yield trained
        if trained.interrupted:
            return


def _respaced(trained: TrainedBlocks, settings: FlowSettings, data: FlowData) -> TrainedBlocks:
    """Blocks that start from copies of trained ones and move the data equally far, in the same total time."""
    costs = [stage["transport_cost"] for stage in trained.history if "transport_cost" in stage]
    sizes = equal_moves(trained.step_sizes, costs)
    starts = iter(trained.maps)
    solver = block_solver(settings, map=lambda dim: next(starts), map_options=None, flow_matching=0)
    settings = replace(settings, step_sizes=sizes, n_blocks=len(sizes), tol=-math.inf, transport_tol=0.0)
    again = TrainedBlocks()
    train(again, solver, settings, data)
    return again


def reference_of(settings: FlowSettings, data: FlowData) -> KL:
    """KL(· ‖ N(0, I)): of the law where flow matching draws from it, else of its log-density, which takes no matrix."""
    if settings.flow_matching:
        return KL(standard_normal(data.training.points))
    return KL(standard_normal_log_prob, modulus=1.0)


def trained_blocks(solver: NeuralProx, settings: FlowSettings, data: FlowData) -> Iterator[Block]:
    """Blocks one after the other, up to the one after which another would no longer help.

    Raises:
        KeyboardInterrupt: for Ctrl-C, after the block that it interrupted, in its best state, was returned, unless that
            is worse than none.
    """
    reference = reference_of(settings, data)
    best = float(reference(data.held_out.relative()))
    sizes, n_blocks = settings.step_sizes, settings.n_blocks
    with tqdm(total=n_blocks, desc="blocks", disable=not settings.progress) as bar:
        for step in jko_steps(reference, solver, data.training, sizes, n_blocks, data.held_out):
            assert step.map is not None
            assert step.held_out is not None
            objective, cost = float(reference(step.held_out)), float(step.transport_cost)
            move = math.sqrt(cost / data.training.dim)
            last = best - objective < settings.tol or move < settings.transport_tol
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
            if step.ending is Ending.DISCRETISED:
                _warn_discretised(f"block {number}", step.message)
            bar.update()
            bar.set_postfix_str(f"held-out NLL {objective + data.offset:.3f}")
            if step.interrupted:
                raise KeyboardInterrupt
            if last:
                break
            best = objective


def train_together(trained: TrainedBlocks, settings: FlowSettings, data: FlowData) -> None:
    """Train all blocks at once, in place."""
    start = time.perf_counter()
    reference = reference_of(settings, data)
    solver, map = joint_solver(settings), ComposedMap(trained.maps)
    outcome = solver.fine_tune(map, reference, data.training, data.held_out, settings.memory_budget // 2)
    entry = {
        "block": "fine-tuning",
        "held_out_nll": outcome.objective + data.offset,
        "iterations": outcome.iterations,
        "seconds": time.perf_counter() - start,
        "message": outcome.message,
    }
    trained.history.append(entry)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if not outcome.converged:
        _warn_discretised("fine-tuning", outcome.message)


def _warn_discretised(stage: str, message: str) -> None:
    """Warn of a training that did not converge: its discretised objective stayed away from the true one."""
    warn(
        f"{stage} was trained with too coarse a discretisation ({message}): likelihoods are true, but a better flow "
        'may be in reach; give more steps, as in map_options={"steps": 6}'
    )
