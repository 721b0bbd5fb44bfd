"""The columns of a table: their names in a data frame, and their order in a frame that comes later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from wprox._checks import as_points


def as_table(X: Any, name: str) -> tuple[Tensor, list[str] | None]:
    """A finite tensor (n, d) and the names of its columns, from an array or a data frame."""
    columns = None
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        columns = [str(column) for column in X.columns]
        repeated = sorted({column for column in columns if columns.count(column) > 1})
        if repeated:
            raise ValueError(f"{name} has several columns of one name: {', '.join(repeated)}; rename them")
        text = [column for column, dtype in zip(columns, X.dtypes, strict=True) if dtype.kind not in "fiub"]
        if text:
            raise TypeError(f"{name} has columns that are not numbers: {', '.join(text)}; encode or drop them")
        X = X.to_numpy(dtype=float, copy=True)  # a frame's own array may be read-only
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
