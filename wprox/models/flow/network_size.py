"""How large the network of a flow may be: training it takes at most half of the memory budget."""

from __future__ import annotations

from typing import Any

from wprox._random import seeded
from wprox.maps.registry import map_factory

TRAINED = 20  # bytes a parameter takes in training: with its gradient, two moments and the best so far, in float32
WIDTHS = (128, 64, 32, 16, 8)  # of hidden layers, of which the widest is taken that the budget allows
NARROW = 16  # columns up to which a map is made to see how large it is


def options_within(options: dict[str, Any], dim: int, n_blocks: int, memory_budget: int) -> dict[str, Any]:
    """Options of `SplineMap` with which training `n_blocks` blocks takes no more than half of the budget.

    Where they say neither, a full matrix may take half of that, and the hidden layers have the widest of `WIDTHS`, at
    least eight units.
    """
    defaults: dict[str, Any] = {}
    if n_blocks * TRAINED * dim**2 > memory_budget // 4:
        defaults["affine"] = False
    options = defaults | options
    if "hidden" in options or training_bytes(options, dim) * n_blocks <= memory_budget // 2:
        return options
    for width in WIDTHS:
        narrower = options | {"hidden": (width, width)}
        if training_bytes(narrower, dim) * n_blocks <= memory_budget // 2:
            break
    return narrower


def blocks_within(options: dict[str, Any], dim: int, memory_budget: int) -> int:
    """How many blocks of these options training may have in half of the budget, at least one."""
    return max(1, memory_budget // 2 // training_bytes(options, dim))


def training_bytes(options: dict[str, Any], dim: int) -> int:
    """What training a `SplineMap` takes beside activations, without making a large one.

    But for its full matrix, its parameters grow in proportion to the dimension.
    """
    narrow = options | {"affine": False}
    if dim <= NARROW:
        return TRAINED * (_count(narrow, dim) + dim**2)
    count = _count(narrow, NARROW)
    count += (count - _count(narrow, NARROW // 2)) * (dim - NARROW) * 2 // NARROW
    return TRAINED * (count + (dim**2 if options.get("affine", True) else 0))


def _count(options: dict[str, Any], dim: int) -> int:
    with seeded(0):  # which leaves the generators of torch as they are
        map = map_factory("spline", options)(dim)
    return sum(parameter.numel() for parameter in map.parameters())
