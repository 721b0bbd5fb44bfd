"""Argument checks that live once, at the boundary: tensors, numbers, functions and step sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wprox._autograd import NO_BATCHES, is_batched

StepSize = float | Sequence[float] | Callable[[int], float]


def as_floating(values: Any, name: str) -> Tensor:
    """Anything `torch.as_tensor` takes, as a finite floating-point tensor.

    Integers become the default dtype, or float64 where that could not hold them exactly.
    """
    if isinstance(values, np.ndarray):
        _refuse_text(values, name)
        # torch knows no negative strides and no foreign byte order
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an array of numbers, got {type(values).__name__}: {error}") from None
    if is_batched(tensor):
        raise TypeError(NO_BATCHES)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if not tensor.is_floating_point():
        large = tensor.numel() > 0 and float(tensor.double().abs().max()) >= 2**24
        tensor = tensor.to(torch.float64 if large else torch.get_default_dtype())
    check_finite(tensor, name)
    return tensor


def _refuse_text(values: np.ndarray, name: str) -> None:
    """Raise `TypeError` that names the columns which are not numbers."""
    if values.dtype.kind in "biufc":
        return
    columns = []
    if values.ndim == 2:
        for j in range(values.shape[1]):
            try:
                values[:, j].astype(float)
            except (TypeError, ValueError):
                columns.append(str(j))
    where = (
        f": column {', '.join(columns)}" if columns else f", got dtype {values.dtype}; convert it with astype(float)"
    )
    raise TypeError(f"{name} must be an array of numbers{where}")


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise `ValueError` that says how many entries are NaN or infinite and where the first one is."""
    bad = ~torch.isfinite(tensor.detach())
    count = int(bad.sum())
    if count:
        first = tuple(bad.nonzero()[0].tolist())
        where = f"row {first[0]}, column {first[1]}" if len(first) == 2 else f"index {first}"
        raise ValueError(
            f"{name} has {count} NaN or infinite entries, the first at {where}; remove or impute them first"
        )


def as_points(values: Any, name: str, dim: int | None = None) -> Tensor:
    """A finite tensor of shape (n, d) with n ≥ 1, and d = `dim` where that is given."""
    points = as_floating(values, name)
    if points.ndim != 2:
        hint = "; reshape a single feature to (n, 1) and a single row to (1, d)" if points.ndim == 1 else ""
        raise ValueError(f"{name} must have shape (n, d), got {tuple(points.shape)}{hint}")
    if points.shape[0] == 0 or points.shape[1] == 0:
        raise ValueError(f"{name} is empty: got shape {tuple(points.shape)}, expected at least one row and one column")
    if dim is not None and points.shape[1] != dim:
        raise ValueError(f"{name} has {points.shape[1]} columns, expected {dim}")
    return points


def check_increasing(values: Tensor, name: str, advice: str) -> None:
    """Raise `ValueError` where a vector does not increase strictly, saying where it first fails to."""
    bad = values[1:] <= values[:-1]
    if bool(bad.any()):
        k = int(bad.nonzero()[0])
        here, there = float(values[k]), float(values[k + 1])
        what = "repeated" if here == there else "not sorted"
        raise ValueError(
            f"{name} must increase strictly; they are {what}, first at index {k}: {here:g}, then {there:g}; {advice}"
        )


def as_weights(values: Any, like: Tensor) -> Tensor:
    """Non-negative weights of shape (n,) that sum to 1, in the dtype and on the device of the points `like`."""
    weights = as_floating(values, "weights").to(like)
    if weights.shape != like.shape[:1]:
        raise ValueError(f"weights must have shape ({like.shape[0]},), one a point, got {tuple(weights.shape)}")
    if bool((weights < 0).any()):
        raise ValueError(f"weights must not be negative, the smallest is {float(weights.min()):g}")
    total = float(weights.detach().sum())
    if abs(total - 1) > 1e-4:
        raise ValueError(f"weights must sum to 1, they sum to {total:g}; divide them by their sum")
    return weights


def check_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`."""
    if isinstance(value, bool) or (not isinstance(value, int) and not hasattr(value, "__index__")):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if int(value) < least:
        raise ValueError(f"{name} must be at least {least}, got {int(value)}")
    return int(value)


def check_widths(hidden: Any, least: int = 1) -> list[int]:
    """The widths of a network's hidden layers, of which there are at least `least`."""
    if not isinstance(hidden, Iterable):
        raise TypeError(f"hidden must hold the width of each hidden layer, as in (64, 64), got {hidden!r}")
    widths = [check_count(width, f"hidden[{k}]") for k, width in enumerate(hidden)]
    if len(widths) < least:
        raise ValueError("hidden is empty; give the width of at least one layer")
    return widths


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number, got {value!r}") from None


def check_positive(value: Any, name: str) -> float:
    """A finite number above zero."""
    number = _number(value, name)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be positive and finite, got {number:g}")
    return number


def check_non_negative(value: Any, name: str) -> float:
    """A finite number of at least zero."""
    number = _number(value, name)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {number:g}")
    return number


def plain(value: Any) -> Any:
    """A number of numpy or torch as one of Python; anything else as it is."""
    return float(value) if getattr(value, "ndim", None) == 0 else value


def check_fraction(value: Any, name: str) -> float:
    """A number strictly between 0 and 1."""
    if not check_positive(value, name) < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {float(value):g}")
    return float(value)


def step_sizes(step_size: StepSize, n_steps: int) -> Callable[[int], float]:
    """The step size γ of step k as a function of k, from a float, a sequence with one entry a step, or a callable."""
    if callable(step_size):
        return lambda k: check_positive(step_size(k), f"step_size({k})")
    try:
        values = list(step_size)  # type: ignore[arg-type]
    except TypeError:  # a number, of Python, numpy or torch
        constant = check_positive(step_size, "step_size")
        return lambda k: constant
    sequence = [check_positive(value, f"step_size[{k}]") for k, value in enumerate(values)]
    if len(sequence) < n_steps:
        raise ValueError(f"step_size has {len(sequence)} entries for {n_steps} steps; give one a step")
    return lambda k: sequence[k]


def evaluate(f: Callable[[Tensor], Tensor], points: Tensor, name: str) -> Tensor:
    """f at the points, checked: a function of one point that forgets the batch is the most frequent mistake."""
    values = torch.as_tensor(f(points))
    if values.ndim == 0 or values.shape[0] != points.shape[0]:
        raise ValueError(
            f"{name} must map points of shape {tuple(points.shape)} to one value a row, ({points.shape[0]},); "
            f"it returned shape {tuple(values.shape)}. Reduce over the last axis only, as in x.square().sum(-1)"
        )
    return values.to(points)
