"""Data frames: pandas where it is there, tables of other kinds as frames, and rows of a column in words."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from wprox._arrays import as_plain
from wprox.models.flow.columns import column_names, is_frame

Frame = Any  # pandas.DataFrame and pandas.Series: pandas is imported where a table needs it
Series = Any
SHOWN = 3  # rows that a message names


def pandas() -> Any:
    """The package.

    Raises:
        ImportError: where it is not installed.
    """
    try:
        return import_module("pandas")
    except ImportError as error:
        raise ImportError('tables with columns of their own kinds need pandas: pip install "wprox[parquet]"') from error


def as_frame(X: Any, name: str, labels: list[Any] | None = None) -> Frame:
    """A table as a data frame: one as it is, an array with columns named by `labels`, or x1, …, xd.

    Raises:
        ValueError: for what has other than two dimensions, several columns of one name or columns without one.
    """
    if not is_frame(X):
        array = np.asarray(as_plain(X, name))
        if array.ndim != 2:
            raise ValueError(
                f"{name} must have shape (n, d), got {array.shape}. Reshape your data: rows of one length, a single "
                "one to (1, d)"
            )
        d = array.shape[1]
        if labels is not None and len(labels) != d:
            raise ValueError(
                f"{name} has {d} columns, the flow was fitted to {len(labels)}: {name} has {d} features, but JKOFlow "
                f"is expecting {len(labels)} features as input"  # in scikit-learn's words
            )
        return pandas().DataFrame(array, columns=labels or [f"x{j + 1}" for j in range(d)])
    if X.columns.nlevels > 1:
        raise ValueError(f"{name} has names of {X.columns.nlevels} levels; give each column one name")
    column_names(X, name)
    return X


def rows_said(bad: np.ndarray, series: Series) -> str:
    """The rows of a column where something is wrong, by their labels in the index, with their entries."""
    places = np.flatnonzero(bad)
    said = ", ".join(f"{series.index[row]} ({_short(series.iloc[row])})" for row in places[:SHOWN].tolist())
    more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
    return f"not in row{'s' if len(places) > 1 else ''} {said}{more}"


def _short(entry: Any) -> str:
    text = repr(entry)
    return text if len(text) <= 24 else f"{text[:24]}…"
