"""The columns of a table: names, and their order in a frame that comes later; results as rows were given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wprox._arrays import as_plain
from wprox._checks import as_points

Array = Any  # a tensor where the rows are a tensor, else a NumPy array


def is_frame(X: Any) -> bool:
    """Whether this is a data frame."""
    return hasattr(X, "columns") and hasattr(X, "to_numpy")


def column_names(frame: Any, name: str) -> list[str]:
    """The names of a data frame's columns, as text.

    Raises:
        ValueError: for columns without a name and several of one name.
    """
    columns = [str(column) for column in frame.columns]
    nameless = [str(j) for j, column in enumerate(frame.columns) if column is None or column != column]
    if nameless:
        raise ValueError(f"{name} has no name for column {', '.join(nameless)} (counted from 0); name every column")
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise ValueError(f"{name} has several columns of one name: {', '.join(repeated)}; rename them")
    return columns


def as_table(X: Any, name: str) -> tuple[Tensor, list[str] | None]:
    """A finite tensor (n, d) and the names of its columns, from an array or a data frame."""
    columns = None
    if is_frame(X):
        columns = column_names(X, name)
        text = [column for column, dtype in zip(columns, X.dtypes, strict=True) if dtype.kind not in "fiub"]
        if text:
            raise TypeError(
                f'{name} has columns that are not numbers: {", ".join(text)}; take them as they are by columns="auto", '
                "or encode or drop them"
            )
        X = X.to_numpy(dtype=float, na_value=float("nan"))
    X = as_plain(X, name)
    if "complex" in str(getattr(X, "dtype", "")):
        raise ValueError(f"Complex data not supported: {name} is in {X.dtype}; give its real part, as in {name}.real")
    if getattr(X, "dtype", None) in (torch.float16, torch.bfloat16):  # a table is data as stored: all of it fits
        X = X.float()
    return as_points(X, name), columns


def in_order(X: Any, name: str, fitted: Sequence[str] | None) -> Tensor:
    """The rows of X, (n, d); the columns of a data frame in the order `fitted`, where a flow was fitted to one."""
    table, columns = as_table(X, name)
    if columns is None or fitted is None or list(columns) == list(fitted):
        return table
    missing = [column for column in fitted if column not in columns]
    if missing or len(columns) != len(fitted):
        unknown = [column for column in columns if column not in fitted]
        raise ValueError(
            f"{name} has other columns than the data that the flow was fitted to: missing {missing}, new {unknown}"
        )
    return table[:, [columns.index(column) for column in fitted]]


def as_given(result: Tensor, X: Any) -> Array:
    """A result about rows X as X is held: a tensor on the device of a tensor, and a NumPy array for all else."""
    return result.to(X.device) if isinstance(X, Tensor) else as_numpy(result)


def as_numpy(result: Tensor) -> np.ndarray:
    return result.detach().cpu().numpy()
