"""The settings of a JKO flow's training: its arguments, checked, and completed by the size of the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from wprox._checks import (
    StepSize,
    check_count,
    check_flag,
    check_non_negative,
    check_number,
    check_positive,
    step_sizes,
)
from wprox._random import check_seed
from wprox.maps.registry import MapFactory, check_options
from wprox.models.flow.network_size import blocks_within, options_within
from wprox.models.step_sizes import block_count, growing

BLOCKS = 8  # at most, unless step sizes or the user say another number, or the network were too large
FLOW_MATCHING = 1000  # iterations of flow matching that start a block of map="ode"
FEW_COLUMNS = 8  # up to which batches are larger, learning rates higher and small tables jittered
ROW_BYTES = 2000  # a column that training a spline block takes a row, roughly
FEW_ROWS = 1000  # a column, under which a flow would learn its table by heart


class TableSize(NamedTuple):
    """How many rows there are to train on, and how many columns they have that vary."""

    rows: int
    dim: int

    @property
    def has_few_columns(self) -> bool:
        return self.dim <= FEW_COLUMNS

    @property
    def has_few_rows(self) -> bool:
        return self.rows < FEW_ROWS * self.dim


@dataclass(frozen=True)
class FlowSettings:
    """What a flow trains with; see `JKOFlow` for the arguments of the same names, of which none is left open here."""

    map: str | MapFactory
    map_options: dict[str, Any] | None
    step_sizes: StepSize
    n_blocks: int
    iterations: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    flow_matching: int
    patience: int
    tol: float
    transport_tol: float
    fine_tune: bool
    fine_tune_iterations: int
    fine_tune_learning_rate: float
    fine_tune_batch_size: int
    memory_budget: int
    seed: int
    progress: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any], size: TableSize) -> FlowSettings:
        """The settings that a flow's arguments say for a table of a size.

        Arguments:
            arguments: by name, as `JKOFlow` takes them; `None` where one is left open.
            size: of the training rows.

        Raises:
            ValueError, TypeError: for arguments out of range. Those of the map are checked where it is made.
        """
        few_rows, few_columns, is_ode = size.has_few_rows, size.has_few_columns, _is(arguments["map"], "ode")
        memory_budget = _count(arguments, "memory_budget")
        wide_batch = max(1, min(256, memory_budget // (ROW_BYTES * size.dim)))
        batch_size = _count(arguments, "batch_size", 1024 if few_columns else wide_batch)
        joint_batch_size = _count(arguments, "fine_tune_batch_size", 2 * batch_size)
        passes = min(2000, max(200, 100 * size.rows // joint_batch_size))
        block_rate = 2e-2 if is_ode else 5e-3 if few_columns else 2e-3
        joint_rate = 3e-3 if few_columns else 3e-4 if few_rows else 2e-3
        weight_decay = arguments["weight_decay"]
        sizes = _step_sizes(arguments["step_sizes"])
        given_blocks = block_count(sizes, arguments["n_blocks"], 1)
        map_options, most_blocks = _map_options(arguments, size, memory_budget, given_blocks)
        n_blocks = block_count(sizes, arguments["n_blocks"], min(BLOCKS, most_blocks))
        step_sizes(sizes, n_blocks)  # which checks the numbers of a sequence
        return cls(
            map=arguments["map"],
            map_options=map_options,
            step_sizes=sizes,
            n_blocks=n_blocks,
            iterations=_count(arguments, "iterations"),
            batch_size=batch_size,
            learning_rate=_rate(arguments, "learning_rate", block_rate),
            weight_decay=float(few_rows) if weight_decay is None else check_non_negative(weight_decay, "weight_decay"),
            flow_matching=_count(arguments, "flow_matching", FLOW_MATCHING if is_ode else 0, least=0),
            patience=_count(arguments, "patience"),
            tol=_nats(arguments["tol"]),
            transport_tol=check_non_negative(arguments["transport_tol"], "transport_tol"),
            fine_tune=check_flag(arguments["fine_tune"], "fine_tune"),
            fine_tune_iterations=_count(arguments, "fine_tune_iterations", passes),
            fine_tune_learning_rate=_rate(arguments, "fine_tune_learning_rate", joint_rate),
            fine_tune_batch_size=joint_batch_size,
            memory_budget=memory_budget,
            seed=check_seed(arguments["seed"]),
            progress=check_flag(arguments["progress"], "progress"),
        )


def _count(arguments: Mapping[str, Any], name: str, default: int | None = None, least: int = 1) -> int:
    given = arguments[name]
    return default if given is None and default is not None else check_count(given, name, least=least)


def _rate(arguments: Mapping[str, Any], name: str, default: float) -> float:
    return default if arguments[name] is None else check_positive(arguments[name], name)


def _nats(tol: Any) -> float:
    number = check_number(tol, "tol")
    if math.isnan(number):
        raise ValueError("tol must be a number of nats, got nan; give a finite or infinite one")
    return number


def _step_sizes(given: StepSize | str | None) -> StepSize:
    """γ as the driver takes it."""
    if isinstance(given, str):
        if given != "auto":
            raise ValueError(f'step_sizes must be numbers, a callable or "auto", got {given!r}')
        return growing()
    return 1.0 if given is None else given


def _map_options(
    arguments: Mapping[str, Any], size: TableSize, memory_budget: int, n_blocks: int
) -> tuple[dict[str, Any] | None, int]:
    """The options of the map, with what keeps a spline from learning a small table by heart and within the memory.

    Arguments:
        n_blocks: that there will be at least.

    Returns:
        The options, and how many blocks of them the memory allows.
    """
    if not _is(arguments["map"], "spline"):
        return arguments["map_options"], BLOCKS
    defaults: dict[str, Any] = {"dropout": 0.2} if size.has_few_rows else {}
    if size.has_few_rows and size.dim == 2:
        defaults["frequencies"] = 3
    options = options_within(defaults | check_options(arguments["map_options"]), size.dim, n_blocks, memory_budget)
    return options, blocks_within(options, size.dim, memory_budget)


def _is(map: Any, name: str) -> bool:
    return isinstance(map, str) and map == name  # an array would be compared entry by entry
