"""What a flow of a small table consists of: its best simple model, blocks, or both, as rows left out say."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from wprox._random import make_generator
from wprox.maps import ComposedMap, TransportMap
from wprox.maps.base import apply_in_batches
from wprox.measures.laws import standard_normal_log_prob
from wprox.models.flow.data import FlowData
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.settings import FlowSettings, TableSize
from wprox.models.flow.start.mixtures import Fold
from wprox.models.flow.start.stacking import Start, best_start
from wprox.models.flow.training import TrainedBlocks, block_solver, train

ROWS = 5000  # a column, under which a table is small enough for a choice
COLUMNS = 500  # at most, since simple models of more cost as much as blocks
MANY = 1000  # rows, from which on blocks alone are tried: with fewer, the start has always been ahead by far
MARGIN = 0.5, 0.05  # nats, and nats a column, that blocks may be behind after the first of them, and go on
HELD = 0.2  # of the rows left out, by which blocks after a start are judged
FEWEST = 100  # rows left out, from which on blocks are tried after a start
LEAST_GAIN = 0.05  # nats a row, and
ERRORS = 2.0  # standard errors by which what is more must be better

FREE = {  # arguments that say nothing of how blocks are trained
    *("memory_budget", "validation_fraction", "standardize", "integer", "bounds", "smoothing", "drop_constant"),
    *("columns", "seed", "progress", "selection"),
}


def is_wanted(arguments: Mapping[str, Any], defaults: Mapping[str, Any], size: TableSize) -> bool:
    """Whether a flow with these arguments chooses: as `selection` says, or where the training is left to wprox.

    Arguments:
        arguments: by name, as `JKOFlow` takes them.
        defaults: what they are where not given.
        size: of all rows.
    """
    if arguments["selection"] is not None:
        return bool(arguments["selection"])
    is_open = all(arguments[name] is defaults[name] for name in arguments if name not in FREE)
    return is_open and size.rows < ROWS * size.dim and size.dim <= COLUMNS


@dataclass(frozen=True)
class Selection:
    """What was chosen for a flow, and why.

    Attributes:
        chosen: "start", "start and blocks" or "blocks".
        nll: of rows left out, in nats a row and in the units of the data, of what was tried, by the same names.
        rows: how many were left out.
        start: what the start is made of: a model, its weight and its NLL alone, each.
        seconds: that the choice took.
    """

    chosen: str
    nll: Mapping[str, float]
    rows: int
    start: Sequence[tuple[str, float, float]]
    seconds: float

    def __str__(self) -> str:
        tried = ", ".join(f"{name} {nll:.3f}" for name, nll in self.nll.items())
        parts = "; ".join(f"{weight:.2f} {name} ({nll:.3f})" for name, weight, nll in self.start)
        return f"{self.chosen}, by {self.rows} rows left out (nats a row: {tried}); start: {parts}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, held: Mapping[str, Any]) -> Selection:
        return cls(**(dict(held) | {"start": [tuple(part) for part in held["start"]]}))


@dataclass(frozen=True)
class Choice:
    """A flow chosen for a table.

    Attributes:
        start: the map before the blocks, where there is one.
        blocks: trained.
        data: that they are trained on.
        selection: what was chosen, and why.
    """

    start: TransportMap | None
    blocks: TrainedBlocks
    data: FlowData
    selection: Selection


def choose(rows: Tensor, validation: Tensor | None, preprocessing: Preprocessing, settings: FlowSettings) -> Choice:
    """The start of greatest likelihood, with blocks after it where rows left out gain by them, or blocks alone.

    Arguments:
        rows: (n, n_features), to train on.
        validation: (m, n_features), to choose by; where it is not given parts of the rows are left out, and the start
            that is chosen is fitted to all of them in the end.
        preprocessing: fitted.
        settings: of the blocks.
    """
    begun = time.perf_counter()
    generator = make_generator(settings.seed)
    given = rows if validation is None else torch.cat([rows, validation])
    z, log_det = preprocessing.forward(given.double(), generator)
    z, offset = z.detach(), -float(log_det.mean())
    folds = None if validation is None else [Fold(torch.arange(len(rows)), torch.arange(len(rows), len(given)))]
    start = best_start(z, settings.seed, folds)
    nll = {"start": offset - float(start.log_prob.mean())}
    chosen, begin, trained, data = "start", None, TrainedBlocks(), None
    if len(z) >= MANY:
        data = FlowData.of_points(z, *start.folds[0], offset, _jitter(z, start), generator)
        enough = nll["start"] + MARGIN[0] + MARGIN[1] * z.shape[1]
        train(trained, block_solver(settings), settings, data, enough)
        gain = _log_prob(trained.maps, data.held_out.points) - start.log_prob
        nll["blocks"] = nll["start"] - float(gain.mean())
        chosen = "blocks" if _is_better(gain) else "start"
    if data is None or chosen == "start":
        begin = start.map(z[: len(rows)])
        latents = torch.cat([apply_in_batches(start.map(z[fold.kept]), z[fold.left_out])[0] for fold in start.folds])
        chosen, trained, data, gained = _after(latents, offset, settings, trained.interrupted, generator)
        if gained is not None:
            nll["start and blocks"] = nll["start"] - gained
    parts = [(expert.name, expert.weight, offset - float(expert.log_prob.mean())) for expert in start.experts]
    seconds = time.perf_counter() - begun
    return Choice(begin, trained, data, Selection(chosen, nll, len(start.log_prob), parts, seconds))


def _after(
    latents: Tensor, offset: float, settings: FlowSettings, interrupted: bool, generator: torch.Generator
) -> tuple[str, TrainedBlocks, FlowData, float | None]:
    """Blocks from the images of rows under starts that do not know them, where rows left out gain."""
    held = max(1, round(HELD * len(latents)))
    order = torch.randperm(len(latents), generator=generator)
    data = FlowData.of_points(latents, order[held:], order[:held], offset, 0.0, generator)
    trained = TrainedBlocks()
    if interrupted or len(latents) < FEWEST:
        return "start", TrainedBlocks(interrupted=interrupted), data, None
    without = _log_prob([], data.held_out.points)
    train(trained, block_solver(settings), settings, data, offset - float(without.mean()) - LEAST_GAIN)
    gain = _log_prob(trained.maps, data.held_out.points) - without
    if _is_better(gain):
        return "start and blocks", trained, data, float(gain.mean())
    return "start", TrainedBlocks(interrupted=trained.interrupted), data, float(gain.mean())


def _is_better(gain: Tensor) -> bool:
    """Whether rows gain by more than chance, in nats each: (m,)."""
    if len(gain) < 2:
        return False
    return float(gain.mean()) > max(LEAST_GAIN, ERRORS * float(gain.std()) / math.sqrt(len(gain)))


def _log_prob(maps: Sequence[TransportMap], z: Tensor) -> Tensor:
    """log p(z), (n,), in float64, of the law that maps send to N(0, I)."""
    if not maps:
        return standard_normal_log_prob(z).double()
    with torch.no_grad():
        y, log_det = apply_in_batches(ComposedMap(maps), z)
    return (standard_normal_log_prob(y) + log_det).double()


def _jitter(z: Tensor, start: Start) -> Tensor | float:
    """The noise on training points, column by column, so that atoms survive: the bandwidths of a kernel density."""
    size = TableSize(len(z), z.shape[1])
    return start.bandwidth if size.has_few_rows and size.has_few_columns else 0.0
