"""The columns of several tables as numbers: text as places among common levels, dates as days, gaps as NaN."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np

from wprox._arrays import is_labelled
from wprox._checks import as_real

DAY = 86_400e9  # nanoseconds


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: as the table has it; x1, …, xd where it has none.
        values: (n,), float64, NaN where an entry is missing; for text, the place of the entry among `levels`; for
            dates, days since 1970.
        kind: "number", "date" or "text".
        levels: the different texts, the most frequent first; empty for other columns.
    """

    name: str
    values: np.ndarray
    kind: str = "number"
    levels: tuple[str, ...] = ()

    @property
    def known(self) -> np.ndarray:
        """The entries that are not missing."""
        return self.values[~np.isnan(self.values)]

    def subset(self, index: Any) -> Column:
        return replace(self, values=self.values[index])


Columns = list[Column]


def as_columns(tables: Sequence[Any], names: Sequence[str]) -> list[Columns]:
    """Tables of the same columns, each as a list of columns with common levels.

    Arguments:
        tables: arrays (n, d), or data frames, whose columns are matched by name; the first says how columns are taken.
        names: what messages call the tables.

    Raises:
        TypeError: for what is no table.
        ValueError: for tables of other columns, or without rows.

    Example:
        >>> first, second = as_columns(([[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]]), ("first", "second"))
        >>> [column.name for column in first], second[1].values
        (['x1', 'x2'], array([4., 6.]))
    """
    held = [_entries(table, name) for table, name in zip(tables, names, strict=True)]
    for other, name in zip(held[1:], names[1:], strict=True):
        if set(other) != set(held[0]):
            raise ValueError(
                f"{names[0]} and {name} must be tables of the same columns: {names[0]} has {_listed(held[0])}, {name} "
                f"has {_listed(other)}"
            )
    together = {column: [table[column] for table in held] for column in held[0]}
    made = [_together(column, parts) for column, parts in together.items()]
    return [[columns[k] for columns in made] for k in range(len(tables))]


def rows_of(columns: Columns, index: Any) -> Columns:
    """Some rows of a table."""
    return [column.subset(index) for column in columns]


def count_of(columns: Columns) -> int:
    """How many rows a table has."""
    return len(columns[0].values)


def ranked(tables: Sequence[Columns], leave: str | None = None) -> list[np.ndarray]:
    """The ranks of all entries among those of all tables, column by column, (n, d) each: the same in all units.

    What splits by thresholds, as trees do, sees in ranks all that it sees in the numbers. NaN stays NaN.

    Arguments:
        leave: the name of a column to leave out.
    """
    results = []
    for parts in zip(*tables, strict=True):
        if parts[0].name != leave:
            together = np.concatenate([part.values for part in parts])
            ranks = np.unique(together, return_inverse=True)[1].astype(float)
            results.append(np.where(np.isnan(together), np.nan, ranks))
    ends = np.cumsum([count_of(table) for table in tables])[:-1]
    return np.split(np.column_stack(results), ends)


def _entries(table: Any, name: str) -> dict[str, Any]:
    """The columns of a table by name."""
    if is_labelled(table) and hasattr(table, "columns"):
        held = {str(column): table.iloc[:, k] for k, column in enumerate(table.columns)}
        if len(held) < table.shape[1]:
            raise ValueError(f"{name} has several columns of one name; rename them")
    else:
        table = as_real(table, name).detach().cpu().double().numpy()
        if table.ndim != 2:
            raise ValueError(f"{name} must be a data frame or an array of numbers (n, d), got shape {table.shape}")
        held = {f"x{k + 1}": table[:, k] for k in range(table.shape[1])}
    if 0 in table.shape:
        raise ValueError(f"{name} is empty: it has {table.shape[0]} rows and {table.shape[1]} columns; give some rows")
    return held


def _listed(names: Any) -> str:
    shown = list(names)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")


def _together(name: str, parts: Sequence[Any]) -> list[Column]:
    """One column of several tables."""
    kinds = [getattr(part.dtype, "kind", "O") for part in parts]
    if all(kind in "M" for kind in kinds):
        return [Column(name, _days(part), "date") for part in parts]
    plain = [_plain(part) for part in parts]
    if all(values.dtype.kind == "f" for values in plain):
        if any(np.isinf(values).any() for values in plain):
            raise ValueError(f"column {name!r} has infinite entries; leave these rows out, or mark the entries missing")
        return [Column(name, values) for values in plain]
    texts = [[None if _is_missing(entry) else str(entry) for entry in part] for part in parts]
    counts = Counter(text for part in texts for text in part if text is not None)
    levels = tuple(sorted(counts, key=lambda level: (-counts[level], level)))
    places: dict[str | None, float] = {level: float(k) for k, level in enumerate(levels)}
    places[None] = np.nan
    return [Column(name, np.array([places[text] for text in part]), "text", levels) for part in texts]


def _plain(part: Any) -> np.ndarray:
    """A column in float64 where it holds numbers and gaps, else its entries."""
    if getattr(part.dtype, "kind", "O") in "biuf":
        return part.to_numpy(dtype=float, na_value=np.nan) if hasattr(part, "to_numpy") else part.astype(float)
    entries = np.asarray(part, dtype=object)
    if all(isinstance(entry, Real) or _is_missing(entry) for entry in entries):
        return np.array([np.nan if _is_missing(entry) else float(entry) for entry in entries])
    return entries


def _days(part: Any) -> np.ndarray:
    days = np.asarray(part, dtype="datetime64[ns]").astype("int64") / DAY
    return np.where(np.asarray(part.isna()), np.nan, days)


def _is_missing(entry: Any) -> bool:
    """Whether an entry is None, NaN, or pandas' marks of what is missing."""
    if entry is None:
        return True
    try:
        return bool(entry != entry)
    except TypeError:  # pandas.NA says neither
        return True
