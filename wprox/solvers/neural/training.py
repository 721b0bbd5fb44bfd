"""Minibatch training that keeps the best state: what every neural step runs on."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from wprox._random import seeded
from wprox.solvers.neural.batches import LEAST, Batch, Batches
from wprox.solvers.problem import StepFailedError

SETTLED, LATE, FEW_LOOKS, FEW_ITERATIONS = (
    0.05,
    0.6,
    4,
    20,
)  # a training is settled whose last 40 % gained no more than a twentieth
FUSED = ("cpu", "cuda")  # where AdamW is one operation; for CPUs from torch 2.4 on


@dataclass(frozen=True)
class Training:
    """The settings of a training loop.

    Attributes:
        iterations: the largest number of gradient steps.
        batch_size: rows in a minibatch, at least two; all rows where there are fewer.
        learning_rate: Adam's, at the top of a schedule that warms up for a twentieth and falls along a cosine.
        weight_decay: decoupled (AdamW).
        clip: gradients of a larger norm are scaled down to it.
        check_every: iterations between two looks at the held-out objective.
        patience: looks without a better objective after which training stops.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    clip: float = 5.0
    check_every: int = 25
    patience: int = 8


@dataclass(frozen=True)
class Outcome:
    """How a training ended: `objective` is the best held-out one, whose state the module is left in.

    `initial` is the one before the first iteration. `converged` is false where the discretisation of training stayed
    too coarse; `note` says what was done about it. `settled` is whether the objective no longer fell at the end.
    """

    objective: float
    initial: float
    iterations: int
    best_iteration: int
    interrupted: bool
    converged: bool = True
    note: str = ""
    settled: bool = True

    @property
    def message(self) -> str:
        if self.interrupted:
            said = f"interrupted at iteration {self.iterations}; the best state is that of {self.best_iteration}"
        else:
            said = f"best held-out objective at iteration {self.best_iteration} of {self.iterations}"
        return said + self.note


def train(
    module: nn.Module,
    batch_objective: Callable[[Batch], Tensor],
    held_out_objective: Callable[[], float],
    weights: Tensor,
    settings: Training,
    generator: torch.Generator,
    describe: str,
    progress: bool = False,
    origin: float | None = None,
) -> Outcome:
    """Minimise an objective over a module's parameters and leave the module in its best held-out state.

    Arguments:
        module: what is trained; put into evaluation mode at the end.
        batch_objective: the objective of a minibatch, a scalar.
        held_out_objective: the objective on points that are not trained on.
        weights: (n,), of the rows that minibatches are drawn from.
        describe: what is trained, for errors and the progress bar ("step 3").
        origin: the objective that gains count from; that before the first iteration by default.

    Raises:
        StepFailedError: where the objective or its gradient is not finite.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=all(parameter.device.type in FUSED for parameter in parameters),
    )
    best = initial = _held_out(module, held_out_objective)
    best_iteration, best_state = 0, copy.deepcopy(module.state_dict())
    if not math.isfinite(best):
        raise StepFailedError(
            f"{describe}: the held-out objective is {best} before the first iteration; check that the functional is "
            "finite at the points of the measure"
        )
    batches = Batches(weights, settings.batch_size, generator)
    waited, iteration, interrupted = 0, 0, False
    looks = [(0, best)]  # the best objective up to an iteration
    bar = tqdm(total=settings.iterations, desc=describe, disable=not progress, leave=False, delay=0.5)
    try:
        while iteration < settings.iterations and waited < settings.patience and not _is_idle(looks, settings):
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(iteration / settings.iterations)
            module.train()
            objective = batch_objective(batches.draw())
            optimizer.zero_grad(set_to_none=True)
            if objective.requires_grad:
                objective.backward()
            norm = nn.utils.clip_grad_norm_(parameters, settings.clip)
            _check_finite(float(objective.detach()), float(norm), f"{describe}, iteration {iteration}", settings)
            optimizer.step()
            iteration += 1
            bar.update()
            if iteration % settings.check_every == 0 or iteration == settings.iterations:
                value = _held_out(module, held_out_objective)
                waited += 1
                if value < best:
                    best, best_iteration, waited = value, iteration, 0
                    _copy_state(module, best_state)
                looks.append((iteration, best))
                bar.set_postfix_str(f"objective {best:.4f}")
    except KeyboardInterrupt:
        interrupted = True
    finally:
        bar.close()
        module.load_state_dict(best_state)
        module.eval()
    settled = _is_settled(looks, initial if origin is None else origin, settings, waited)
    return Outcome(best, initial, iteration, best_iteration, interrupted, settled=settled)


def _copy_state(module: nn.Module, state: dict[str, Tensor]) -> None:
    """A module's state into tensors that are there: a second copy of a large network would not fit beside them."""
    for name, tensor in module.state_dict().items():
        state[name].copy_(tensor)


def _check_finite(objective: float, norm: float, where: str, settings: Training) -> None:
    if not (math.isfinite(objective) and math.isfinite(norm)):
        raise StepFailedError(
            f"{where}: the objective is {objective:g} and the norm of its gradient {norm:g}; lower learning_rate (now "
            f"{settings.learning_rate:g}) or step_size, or check that the functional is finite where the map sends "
            "points"
        )


def _is_idle(looks: list[tuple[int, float]], settings: Training) -> bool:
    """Whether half of the iterations have brought nothing better than the start."""
    iteration, best = looks[-1]
    return len(looks) > FEW_LOOKS and 2 * iteration >= settings.iterations and best >= looks[0][1]


def _is_settled(looks: list[tuple[int, float]], origin: float, settings: Training, waited: int) -> bool:
    """Whether the objective no longer fell when training ended: by patience, or slowly at the end of all iterations.

    Over the last 40 % the rate falls to 0, so that they count for a fifth of all: what gained more than a twentieth in
    them would have gained on. Where there was no look before them, all that training gained counts. Fewer than
    `FEW_ITERATIONS` tell nothing.
    """
    last, best = looks[-1]
    if waited >= max(settings.patience, 2) or _is_idle(looks, settings):
        return True
    if last < FEW_ITERATIONS:
        return False
    early = min(value for iteration, value in looks if iteration <= LATE * last)
    return early - best <= SETTLED * (origin - best)


def _held_out(module: nn.Module, objective: Callable[[], float]) -> float:
    module.eval()
    with torch.no_grad():
        return float(objective())


def _schedule(fraction: float, warmup: float = 0.05) -> float:
    if fraction < warmup:
        return 0.1 + 0.9 * fraction / warmup
    return 0.5 * (1 + math.cos(math.pi * (fraction - warmup) / (1 - warmup)))


def saved_bytes_per_row(
    module: nn.Module, forward: Callable[[Tensor], Tensor], rows: Tensor, memory_budget: float = math.inf
) -> float:
    """The memory that autograd keeps for the backward pass, in bytes a row, measured on the given row indices.

    The module's own parameters are kept as well, but they are there anyway and do not grow with the rows. Where all of
    the rows might exceed the budget, as the first ones tell, fewer are measured on.
    """
    if math.isfinite(memory_budget):
        with seeded(0, rows.device):
            few = saved_bytes_per_row(module, forward, rows[:LEAST])
        rows = rows[: max(LEAST, int(memory_budget / max(1.0, few)))]
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = forward(rows)  # noqa: F841 (alive until counted, so that no storage is counted twice)
    return sum(seen.values()) / len(rows)
