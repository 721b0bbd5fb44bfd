"""What can be wrong with the state of a flow in files that were not written by it, and would show in its use alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.tails import HEAVY
from wprox.models.json_files import is_count, is_list, is_number, is_text
from wprox.models.state import StateError, check_numbers, with_prefix

DTYPES = ("float16", "bfloat16", "float32", "float64")
SWITCHES = ("standardize", "integer", "drop_constant")  # arguments that change what the tensors mean
INTERVALS = (("std", 0.0, math.inf, False), ("edges", 0.0, 1.0, False), ("tails", 0.0, max(HEAVY), True))  # with ends?


def check_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise `StateError` for what would fail, or mean something else, only when the flow is used."""
    parameters, blocks, sizes = (config.get(name) for name in ("parameters", "blocks", "step_sizes"))
    arguments = parameters if isinstance(parameters, dict) else {}
    ends = ["preprocessing.low", "preprocessing.high"]
    held = [name in tensors for name in ends]
    steps = set(with_prefix("preprocessing.", tensors))
    complaints = {
        "it names no known dtype": config.get("dtype") not in DTYPES,
        "it has no blocks": not isinstance(blocks, list) or not (blocks or config.get("start")),
        "its start is not one map": not isinstance(config.get("start", []), list) or len(config.get("start", [])) > 1,
        "its history is incomplete": not is_list(config.get("history"), _is_stage),
        "its bounds are missing": arguments.get("bounds") is not None and not all(held),
        "it has bounds that it does not speak of": arguments.get("bounds") is None and any(held),
        "its blocks have no step sizes": not is_list(sizes, _is_positive) or len(sizes or []) != len(blocks or []),
        "its preprocessing is not what it says": config["format"] > 1 and steps not in _preprocessing(config),
        "its jitter is no number of at least 0": not _is_jitter(config.get("jitter")),
        "its memory_budget is no whole number of at least 1": not _is_at_least(arguments.get("memory_budget", 1), 1),
        "its seed is no whole number of at least 0": not _is_at_least(arguments.get("seed", 0), 0),
        "it does not say whether it saw a tensor": not isinstance(config.get("saw_tensor", True), bool),
        "it does not say whether it was interrupted": not isinstance(config.get("interrupted"), bool),
        "its columns have no names": config.get("columns") is not None and not is_list(config["columns"], is_text),
        f"{', '.join(SWITCHES)} are true or false": any(
            not isinstance(arguments.get(name, False), bool) for name in SWITCHES
        ),
    }
    for complaint, applies in complaints.items():
        if applies:
            raise StateError(complaint)


def _preprocessing(config: Mapping[str, Any]) -> list[set[str]]:
    """The tensors that a preprocessing may have, by what the configuration says."""
    said = config.get("preprocessing")
    if said is not None:
        return [set(said)] if is_list(said, is_text) else []
    always, bounds = {"kept", "template", "mean", "std"}, {"low", "high", "edges"}  # as the first folders of format 2
    return [always, always | bounds, always | {"tails"}]


def _is_finite(value: Any) -> bool:
    return is_number(value) and abs(value) < float("inf")


def _is_jitter(value: Any) -> bool:
    return all(_is_finite(part) and part >= 0 for part in (value if isinstance(value, list) else [value]))


def _is_at_least(value: Any, least: int) -> bool:
    return is_count(value) and value >= least


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0


def _is_stage(stage: Any) -> bool:
    """Whether a dict is one that `history_` may hold."""
    if not isinstance(stage, dict) or not {"block", "held_out_nll", "iterations", "seconds"} <= set(stage):
        return False
    numbers = [stage[name] for name in ("held_out_nll", "seconds", "step_size", "transport_cost") if name in stage]
    named = is_count(stage["block"]) or is_text(stage["block"])
    return named and is_count(stage["iterations"]) and all(map(is_number, numbers))


def check_preprocessing(
    preprocessing: Preprocessing, tensors: Mapping[str, Tensor], columns: Sequence[str] | None
) -> None:
    """Raise `StateError` where the tensors of a preprocessing, which it has taken, are not as `fit` makes them."""
    if wrong := sorted(set(tensors) ^ set(preprocessing.state())):
        raise StateError(f"preprocessing.{wrong[0]} is missing or unknown")
    kept, template = tensors["kept"], tensors["template"]
    k, n = kept.numel(), template.numel()
    places = kept.dtype == torch.int64 and kept.ndim == 1 and k > 0 and int(kept.min()) >= 0 and int(kept.max()) < n
    if not places or template.shape != (n,) or bool((kept.diff() <= 0).any()):
        raise StateError("preprocessing.kept does not say which columns are kept")
    if columns is not None and len(columns) != n:
        raise StateError(f"it names {len(columns)} columns, and has {n}")
    shapes = {"template": (n,), "edges": (2, k)}
    for name, tensor in tensors.items():
        if name != "kept":
            check_numbers(tensor, f"preprocessing.{name}")
            if tensor.dtype != torch.float64 or tensor.shape != shapes.get(name, (k,)):
                raise StateError(f"preprocessing.{name} has type {tensor.dtype} and shape {tuple(tensor.shape)}")
    for name, low, high, ends in INTERVALS:
        if name in tensors and not bool(_within(tensors[name], low, high, ends).all()):
            raise StateError(f"preprocessing.{name} has numbers beyond {low:g} and {high:g}")
    if "low" in tensors and not bool((tensors["low"] < tensors["high"]).all()):
        raise StateError("preprocessing.low is not below preprocessing.high")


def _within(tensor: Tensor, low: float, high: float, ends: bool) -> Tensor:
    return (tensor >= low) & (tensor <= high) if ends else (tensor > low) & (tensor < high)
