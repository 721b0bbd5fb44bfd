"""What users hold numbers in, as an array that torch takes: by position, without a mask, dense, and not read-only."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_plain(values: Any, name: str) -> Any:
    """The same numbers in a form that `torch.as_tensor` takes without a warning and without looking at labels.

    Data frames and series count by position, whatever their index is. Lists may hold arrays of any of these kinds. An
    array that is read-only is copied; all others are not.

    Raises:
        TypeError: for sparse arrays and tensors.
        ValueError: for masked entries.
    """
    if isinstance(values, Tensor):
        if values.layout != torch.strided:
            kind = str(values.layout).removeprefix("torch.")
            raise TypeError(f"{name} is a sparse tensor ({kind}), which is not supported; make it dense by to_dense()")
        return values
    if isinstance(values, np.ndarray):
        return _plain_array(values, name)
    if hasattr(values, "toarray") and hasattr(values, "nnz"):  # scipy's
        raise TypeError(
            f"{name} is a sparse matrix ({type(values).__name__}), which is not supported; make it dense by toarray()"
        )
    if is_labelled(values):
        return _plain_array(_without_labels(values), name)
    if type(values) in (list, tuple):
        parts = [part if isinstance(part, int | float) else as_plain(part, name) for part in values]
        shapes = {part.shape if isinstance(part, np.ndarray) else None for part in parts}
        return np.stack(parts) if len(shapes) == 1 and None not in shapes else parts
    if hasattr(values, "__array__") and not isinstance(values, np.generic):  # which torch does not ask for
        return _plain_array(np.asarray(values), name)
    return values


def place_of(index: list[int]) -> str:
    """An entry of an array, for messages."""
    return f"row {index[0]}, column {index[1]}" if len(index) == 2 else f"index {tuple(index)}"


def is_labelled(values: Any) -> bool:
    """Whether these are a data frame, a series or an index, whose numbers have labels."""
    return hasattr(values, "to_numpy") and hasattr(values, "dtypes" if hasattr(values, "columns") else "dtype")


def _without_labels(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind != "O":
        return array
    try:  # pandas' nullable numbers, in which missing entries are objects
        return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError):
        return array


def _plain_array(values: np.ndarray, name: str) -> np.ndarray:
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        if mask.any():
            where = place_of(np.argwhere(mask)[0].tolist())
            raise ValueError(
                f"{name} has {int(mask.sum())} masked entries, the first at {where}; remove or impute them first"
            )
    return np.asarray(values) if values.flags.writeable else np.array(values)


def of_numbers(values: np.ndarray) -> np.ndarray:
    """An array of objects that are all numbers, as data frames with mixed columns become, in float64."""
    if values.dtype != object or not all(isinstance(value, Real) for value in values.flat):
        return values
    try:
        return values.astype(np.float64)
    except OverflowError:  # an integer that no float holds
        return values
