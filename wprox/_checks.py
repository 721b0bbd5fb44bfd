"""Argument checks that live once, at the boundary: tensors, numbers, functions and step sizes."""

from __future__ import annotations

import math
import operator
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from wprox._arrays import as_plain, of_numbers, place_of
from wprox._autograd import NO_BATCHES, is_batched

StepSize = float | Sequence[float] | Callable[[int], float]
PRECISIONS = (torch.float32, torch.float64)
SMALLEST = 1e-150  # of a length: squares of smaller ones are 0
MOST_STEPS = 10**6  # of which a sequence of step sizes is read
NO_ARRAY = (TypeError, ValueError, RuntimeError, OverflowError)  # what torch raises for what it takes for none
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def described(value: Any) -> str:
    """What was given, in few words for a message: what is short as it is, arrays by their shape."""
    if isinstance(value, type):
        return kind_of(value)
    if isinstance(value, np.ndarray | Tensor) and value.ndim:
        return f"{type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    return _SHORT.repr(value)


def is_several(value: Any) -> TypeGuard[Iterable[Any]]:
    """Whether a value is several things in order: no text, no dict, no set, and no array of one number."""
    unordered = str | bytes | Mapping | set | frozenset | type
    return isinstance(value, Iterable) and not isinstance(value, unordered) and getattr(value, "ndim", None) != 0


def kind_of(value: Any) -> str:
    """What kind of thing was given, for messages about things that are not numbers."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def as_floating(values: Any, name: str) -> Tensor:
    """Anything `torch.as_tensor` takes, as a finite floating-point tensor.

    Integers become the default dtype, or float64 where that could not hold them exactly.
    """
    tensor = as_real(values, name)
    check_finite(tensor, name)
    return tensor


def as_real(values: Any, name: str) -> Tensor:
    """Anything `torch.as_tensor` takes, as a floating-point tensor of single or double precision, finite or not."""
    values = as_plain(values, name)
    if isinstance(values, np.ndarray):
        values = of_numbers(values)
        _refuse_text(values, name)
        # torch knows no negative strides and no foreign byte order
        values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    try:
        tensor = torch.as_tensor(values)
    except NO_ARRAY:
        raise TypeError(
            f"{name} must be an array of numbers, got {described(values)}; give a tensor, a NumPy array or a list of "
            "rows of one length"
        ) from None
    if is_batched(tensor):
        raise TypeError(NO_BATCHES)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}; give its real part, as in z.real")
    if not tensor.is_floating_point():
        large = tensor.numel() > 0 and float(tensor.double().abs().max()) >= 2**24
        tensor = tensor.to(torch.float64 if large else torch.get_default_dtype())
    check_precision(tensor.dtype, name)
    return tensor


def check_precision(dtype: Any, name: str) -> torch.dtype:
    """One of the two precisions that everything here computes in.

    Raises:
        TypeError: for half precision, in which neither sums nor factorisations mean anything, and any other dtype.
    """
    if not isinstance(dtype, torch.dtype) or dtype not in PRECISIONS:
        raise TypeError(
            f"{name} must be in torch.float32 or torch.float64, got {described(dtype)}; half precision is for storage: "
            "convert it, as in x.float()"
        )
    return dtype


def _refuse_text(values: np.ndarray, name: str) -> None:
    """Raise `TypeError` that names the columns which are not numbers."""
    if values.dtype.kind in "biufc" and values.dtype.itemsize <= (16 if values.dtype.kind == "c" else 8):
        return
    columns, trouble = [], ""
    if values.ndim == 2:
        for j in range(values.shape[1]):
            try:
                for value in values[:, j].tolist():
                    float(value)
            except (TypeError, ValueError, OverflowError) as error:
                columns.append(str(j))
                trouble = trouble or str(error)
    where = f", got dtype {values.dtype}; convert it with astype(float)"
    if columns:
        where = f": column {', '.join(columns)} ({trouble})"
    raise TypeError(f"{name} must be an array of numbers{where}")


def check_finite(tensor: Tensor, name: str) -> None:
    """Raise `ValueError` that says how many entries are NaN or infinite and where the first one is."""
    tensor = tensor.detach()
    if bool(tensor.sum().isfinite()):  # which NaN and infinity are not, and takes no memory
        return
    bad = ~torch.isfinite(tensor)
    count = int(bad.sum())
    if count:
        where = place_of(bad.nonzero()[0].tolist())
        raise ValueError(
            f"{name} has {count} NaN or infinite entries, the first at {where}; remove or impute them first"
        )


def as_points(values: Any, name: str, dim: int | None = None) -> Tensor:
    """A finite tensor of shape (n, d) with n ≥ 1, and d = `dim` where that is given."""
    points = as_floating(values, name)
    if points.ndim != 2:
        hint = "Reshape your data: a single feature to (n, 1), a single row to (1, d)"
        hint = hint if points.ndim == 1 else "Give one row a point"
        raise ValueError(f"{name} must have shape (n, d), got {tuple(points.shape)}. {hint}")
    check_size(points.shape, name)
    if dim is not None and points.shape[1] != dim:
        raise ValueError(f"{name} has {points.shape[1]} columns, expected {dim}, one a coordinate")
    return points


def check_size(shape: Sequence[int], name: str) -> None:
    """Raise `ValueError` for a table without rows or columns, in scikit-learn's words, which its checks ask for."""
    if 0 in shape:
        missing = "sample" if shape[0] == 0 else "feature"
        raise ValueError(
            f"{name} is empty: 0 {missing}(s) (shape={tuple(shape)}) while a minimum of 1 is required; give at least "
            "one row and one column"
        )


def check_path(value: Any, name: str) -> Path:
    """The path of a file or folder."""
    if not isinstance(value, str | os.PathLike) or "\0" in str(value):
        raise TypeError(f"{name} must be a path, as text or a pathlib.Path, got {described(value)}")
    return Path(value)


def as_rows(values: Any, name: str, dim: int) -> Tensor:
    """Points (n, d) at which something is evaluated, with d = `dim`: there may be none, and they may be infinite."""
    rows = as_real(values, name)
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise ValueError(
            f"{name} must be points of shape (n, {dim}), one a row, got {tuple(rows.shape)}; a single one is a row, "
            "as in x[None]"
        )
    return rows


def as_index(index: Any, n: int) -> Any:
    """Which of n rows to take: a slice, integers (m,), or a mask (n,)."""
    if isinstance(index, slice):
        return index
    try:
        rows = torch.as_tensor(index)
    except NO_ARRAY:
        rows = torch.empty(0)
    is_mask = rows.dtype == torch.bool and tuple(rows.shape) == (n,)
    if not is_mask and (rows.ndim != 1 or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool):
        raise TypeError(
            f"index must be a slice, whole numbers (m,) or a mask ({n},) of the points, got {described(index)}"
        )
    if not is_mask and len(rows) and not -n <= int(rows.min()) <= int(rows.max()) < n:
        raise ValueError(
            f"index must lie between 0 and {n - 1}, one of the {n} points, it goes from {int(rows.min())} to "
            f"{int(rows.max())}"
        )
    return rows


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
    check_masses(weights, len(like), "point")
    total = weights.sum(dtype=torch.float64)
    if abs(float(total.detach()) - 1) > 1e-4:
        raise ValueError(f"weights must sum to 1, they sum to {float(total.detach()):g}; divide them by their sum")
    return weights / total  # 1 up to the rounding of many numbers in single precision


def check_masses(weights: Tensor, n: int, place: str) -> None:
    """Raise `ValueError` unless these are non-negative weights (n,)."""
    if weights.shape != (n,):
        raise ValueError(f"weights must have shape ({n},), one a {place}, got {tuple(weights.shape)}")
    if bool((weights < 0).any()):
        raise ValueError(f"weights must not be negative, the smallest is {float(weights.min()):g}")


def check_count(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least` that 64 bits hold."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(
            f"{name} must be an integer, got {described(value)}; give a whole number of at least {least}"
        ) from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {described(number)}; give a larger whole number")
    if number >= 2**63:
        raise ValueError(f"{name} must be an integer of 64 bits, below 2⁶³, got {described(number)}")
    return number


def check_widths(hidden: Any, least: int = 1) -> list[int]:
    """The widths of a network's hidden layers, of which there are at least `least`."""
    if not is_several(hidden):
        raise TypeError(f"hidden must hold the width of each hidden layer, as in (64, 64), got {described(hidden)}")
    widths = [check_count(width, f"hidden[{k}]") for k, width in enumerate(hidden)]
    check_memory(sum(first * second for first, second in pairwise(widths)), "a network of these hidden layers", 16)
    if len(widths) < least:
        raise ValueError("hidden is empty; give the width of at least one layer")
    return widths


def check_flag(value: Any, name: str) -> bool:
    """True or False; text such as "no" would count as true."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {described(value)}; text and numbers are not taken for either")


def check_number(value: Any, name: str) -> float:
    """A number of Python, numpy or torch, finite or not, as a float."""
    try:
        if isinstance(value, str | bytes | bytearray):
            raise TypeError
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{name} must be a number that a float holds, below 1.8e308, got {described(value)}; give a smaller one"
        ) from None
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, got {described(value)}; give one as a float, as in 0.5") from None


def check_finite_number(value: Any, name: str) -> float:
    """A number that is neither infinite nor NaN."""
    number = check_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be a finite number, got {number:g}; give one that is not infinite")
    return number


def check_positive(value: Any, name: str) -> float:
    """A finite number above zero."""
    number = check_number(value, name)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be positive and finite, got {number:g}; give a number above 0")
    if not SMALLEST**2 <= number <= SMALLEST**-2:
        raise ValueError(
            f"{name} must lie between {SMALLEST**2:g} and {SMALLEST**-2:g}, so that its reciprocal and multiples are "
            f"numbers, got {number:g}; change the units"
        )
    return number


def check_length(value: Any, name: str) -> float:
    """A positive number whose square is a positive number as well."""
    number = check_positive(value, name)
    if not SMALLEST <= number <= 1 / SMALLEST:
        raise ValueError(
            f"{name} must lie between {SMALLEST:g} and {1 / SMALLEST:g}, so that its square is a number, got {number:g}"
        )
    return number


def check_non_negative(value: Any, name: str) -> float:
    """A finite number of at least zero."""
    number = check_number(value, name)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {number:g}; give 0 or more")
    return number


def as_numbers(values: Any, name: str) -> float | list[float]:
    """A number as a float, or several as a list: from a sequence, an array or a generator."""
    if isinstance(values, str | bytes | Mapping | set | frozenset | type):
        raise TypeError(f"{name} must be a number, or a sequence of numbers, one a step, got {described(values)}")
    if not is_several(values):
        return check_number(values, name)
    return [check_number(value, f"{name}[{k}]") for k, value in enumerate(values)]


def check_fraction(value: Any, name: str) -> float:
    """A number strictly between 0 and 1."""
    if not check_positive(value, name) < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {float(value):g}; give a part of the whole")
    return float(value)


def check_function(f: Any, name: str, of: str = "of points") -> Any:
    """A function.

    Raises:
        TypeError: for what cannot be called, and for a class, which makes objects and no values.
    """
    if isinstance(f, type) or not callable(f):
        raise TypeError(f"{name} must be a function {of}, got {kind_of(f)}; give one, as in lambda x: ...")
    return f


def check_choice(value: Any, name: str, choices: Sequence[Any]) -> Any:
    """One of a few words."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(f"{name} must be one of {list(choices)}, got {described(value)}")
    return value


def check_memory(count: int, what: str, itemsize: int = 8) -> None:
    """Raise `ValueError` where so many numbers are more than the memory of this machine, before it is asked for.

    Arguments:
        count: of numbers.
        what: what they are, for the message.
        itemsize: bytes a number.
    """
    if count * itemsize > _memory():
        raise ValueError(
            f"{what} would take {count * itemsize / 2**30:.3g} GiB of memory, and this machine has "
            f"{_memory() / 2**30:.3g} GiB; ask for fewer"
        )


@lru_cache(maxsize=1)
def _memory() -> int:
    """The bytes of memory that this machine has, and leaves to this process."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 2**40
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    except ImportError:
        return total
    return total if limit == resource.RLIM_INFINITY else min(total, limit)


def step_sizes(step_size: StepSize, n_steps: int) -> Callable[[int], float]:
    """The step size γ of step k as a function of k, from a float, a sequence with one entry a step, or a callable.

    Arguments:
        step_size: what was given; of an iterator, no more is read than there are steps.
        n_steps: how many entries are needed; 0 where that is not known.
    """
    if callable(step_size) and not isinstance(step_size, type):
        return lambda k: check_positive(step_size(k), f"step_size({k})")
    if isinstance(step_size, str | bytes | Mapping | type):
        raise TypeError(
            f"step_size must be a number, one number a step, or a function of the step's index, got "
            f"{described(step_size)}"
        )
    try:
        read = n_steps if n_steps and isinstance(step_size, Iterator) else max(n_steps, MOST_STEPS)
        values = list(islice(step_size, read))  # type: ignore[arg-type]
    except TypeError:  # a number, of Python, numpy or torch
        constant = check_positive(step_size, "step_size")
        return lambda k: constant
    sequence = [check_positive(value, f"step_size[{k}]") for k, value in enumerate(values)]
    if len(sequence) < n_steps:
        raise ValueError(f"step_size has {len(sequence)} entries for {n_steps} steps; give one a step")
    return lambda k: sequence[k]


def evaluate(f: Callable[[Tensor], Tensor], points: Tensor, name: str) -> Tensor:
    """f at the points, checked: a function of one point that forgets the batch is the most frequent mistake."""
    return as_values(check_function(f, name)(points), points, name).to(points)


def evaluate_one(f: Callable[[Tensor], Tensor], points: Tensor, name: str) -> Tensor:
    """f at points (n, d), or at numbers (n,), which must be one value each, (n,): a kernel, a potential, an energy."""
    values = evaluate(f, points, name)
    if values.ndim != 1:
        raise ValueError(
            f"{name} must map what has shape {tuple(points.shape)} to one value a row, ({len(points)},); it returned "
            f"shape {tuple(values.shape)}"
        )
    return values


def as_values(returned: Any, points: Tensor, name: str) -> Tensor:
    """What a function returned at points (n, d), as a tensor of real numbers, (n,) or (n, …).

    Raises:
        TypeError: for what is no array of real numbers, as where a function forgets to return.
        ValueError: for another number of rows.
    """
    try:
        values = torch.as_tensor(returned)
    except NO_ARRAY:
        raise TypeError(
            f"{name} must return a tensor with one value a row of its points, ({points.shape[0]},), it returned "
            f"{described(returned)}; compute it with torch and return it"
        ) from None
    if values.is_complex():
        raise TypeError(
            f"{name} must return real numbers at its points, it returned {values.dtype}; give their real part"
        )
    if values.is_floating_point() and values.dtype not in PRECISIONS:
        check_precision(values.dtype, f"what {name} returns")
    if values.ndim == 0 or values.shape[0] != points.shape[0]:
        raise ValueError(
            f"{name} must map points of shape {tuple(points.shape)} to one value a row, ({points.shape[0]},); "
            f"it returned shape {tuple(values.shape)}. Reduce over the last axis only, as in x.square().sum(-1)"
        )
    return values
