"""How each column of a table is to be taken: its values and its law, by what it holds and by what the user says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wprox.models.flow.table.frames import Series, pandas, rows_said
from wprox.models.flow.table.grids import Grid, find_grid
from wprox.models.flow.table.half_line import wants_half_line
from wprox.models.flow.table.laws import Category, Constant, Law, Number
from wprox.models.flow.table.values import (
    DAY,
    EXACT,
    ISO,
    OBJECTS,
    PER_SECOND,
    Dates,
    Labels,
    Numbers,
    Values,
    times_of,
)

KINDS = ("auto", "category", "boolean", "integer", "number", "positive", "date", "drop")
FEW = 10  # numbers, up to which they are levels, where each comes so often on average:
OFTEN = 5
LEVELS = 200  # numbers off any grid, up to which they are levels, where each comes `FEW` times on average
IDENTIFIER = 0.1  # labels a row, beyond which they identify it
NEARLY_ALL = 0.9  # of the texts, beyond which they are numbers with mistakes among them
ATOM_ROWS, ATOM_SHARE, ATOM_PEAK = 10, 0.02, 5.0  # an atom has so many rows, share of them, and times its neighbours
ATOMS = 12  # at most, by their frequency
FINE = 1e-3  # of a standard deviation: a grid that needs no noise where few numbers come twice
LARGE = 2.0**30  # places on a grid, beyond which noise would be lost in rounding
CROWDED = 0.02  # of the different numbers, within a tenth of the way from the least to the median: a bound


@dataclass(frozen=True)
class Column:
    """A column of a table, and how it is taken.

    Attributes:
        name: its label in the data frame.
        values: what its entries are.
        law: how they are encoded.
        kind: how it is taken, in a word.
        remarks: what the user might want to know, or offer the flow.
    """

    name: Any
    values: Values
    law: Law
    kind: str
    remarks: tuple[str, ...] = field(default=())


def find_column(series: Series, name: Any, wish: Any) -> tuple[Column, np.ndarray] | None:
    """A column and its numbers, (n,); `None` where it is to be dropped.

    Arguments:
        series: its entries.
        name: its label.
        wish: one of `KINDS`, or the levels of a category in their order.

    Raises:
        ValueError: for a column that is all missing, that does not hold what it is said to, or that identifies rows.
    """
    if isinstance(wish, str) and wish == "drop":
        return None
    if bool(series.isna().all()):
        raise ValueError(f'column {name!r} is all missing; drop it, or say columns={{{name!r}: "drop"}}')
    values, kind = _values_of(series, name, wish)
    expected = {"date": Dates, "number": Numbers, "integer": Numbers, "positive": Numbers}
    if isinstance(wish, str) and not isinstance(values, expected.get(wish, Values)):
        raise ValueError(f"columns[{name!r}] says {wish}, but the column holds entries of type {series.dtype}")
    numbers = values.numbers(series, str(name))
    if isinstance(values, Labels):
        return _labelled(name, values, numbers, wish), numbers
    return _numeric(name, values, kind, numbers, str(wish)), numbers


def _values_of(series: Series, name: Any, wish: Any) -> tuple[Values, str]:
    types, dtype = pandas().api.types, series.dtype
    if not isinstance(wish, str):
        return _labels(series, name, list(wish)), "category"
    if isinstance(dtype, pandas().CategoricalDtype):
        return _labels(series, name), "category"
    if types.is_bool_dtype(dtype):
        return _labels(series, name), "category"
    if types.is_datetime64_any_dtype(dtype):
        return _dates(series, name, None, ""), "date"
    if types.is_complex_dtype(dtype) or types.is_timedelta64_dtype(dtype) or isinstance(dtype, pandas().PeriodDtype):
        what = "Complex data not supported: " if types.is_complex_dtype(dtype) else ""
        raise ValueError(
            f"{what}column {name!r} is of type {dtype}, which is not supported; turn it into numbers or dates"
        )
    if types.is_numeric_dtype(dtype):
        return Numbers(str(dtype)), "number"
    return _values_of_objects(series, name, wish)


def _values_of_objects(series: Series, name: Any, wish: str) -> tuple[Values, str]:
    """Values of a column of text, or of objects: what they are in common."""
    present = series[~series.isna()]
    inferred = pandas().api.types.infer_dtype(present, skipna=True)
    if wish in ("category", "boolean") or inferred == "boolean":
        return _labels(series, name), "category"
    if inferred in ("integer", "floating", "mixed-integer-float", "decimal") or (
        wish in ("number", "integer", "positive") and inferred in ("string", "mixed-integer", "mixed")
    ):
        return Numbers(str(series.dtype), whole=inferred == "integer"), "number"
    if inferred == "date":
        return _dates(series, name, "us", OBJECTS), "date"
    if inferred != "string":
        texts = np.array([isinstance(entry, str) for entry in series])
        mixed = texts if texts.mean() < 0.5 else ~(texts | series.isna().to_numpy())
        raise ValueError(
            f"column {name!r} mixes kinds of entries ({inferred}): the others are {rows_said(mixed, series)}; mend "
            f'them, or say columns={{{name!r}: "category"}}'
        )
    for pattern, form in ISO.items():
        if bool(present.str.fullmatch(pattern).all()):
            return _dates(series, name, "us", form), "date"
    if wish == "date":
        return _dates(series, name, "us", "%Y-%m-%d"), "date"
    numeric = pandas().to_numeric(present, errors="coerce").notna()
    if NEARLY_ALL <= float(numeric.mean()) < 1:
        bad = np.zeros(len(series), dtype=bool)
        bad[np.flatnonzero(~series.isna().to_numpy())] = ~numeric.to_numpy()
        raise ValueError(
            f"column {name!r} is nearly all numbers, {rows_said(bad, series)}; mend these entries (leave what is "
            f'missing empty), or say columns={{{name!r}: "category"}}'
        )
    return _labels(series, name), "category"


def _labels(series: Series, name: Any, wanted: list[Any] | None = None) -> Labels:
    """The labels of a column, in the order of its categories, or in that of their values."""
    dtype, gap = series.dtype, series.isna()
    present = list(dict.fromkeys((isinstance(entry, bool | np.bool_), entry) for entry in series[~gap].tolist()))
    found = [entry for _, entry in present]
    wrong = [entry for entry in found if not isinstance(entry, str | bool | int | float)]
    if wrong:
        raise ValueError(
            f"column {name!r} has categories of type {type(wrong[0]).__name__}; turn them into text or numbers"
        )
    missing = None if not gap.any() or series[gap].iloc[0] is None else math.nan
    if wanted is not None and (unknown := [entry for entry in found if entry not in wanted]):
        raise ValueError(f"columns[{name!r}] does not list {unknown[0]!r}, which the column has; list all its levels")
    if isinstance(dtype, pandas().CategoricalDtype):
        categories = dtype.categories.tolist()
        labels = [entry for entry in categories if entry in set(found)]
        labels = [entry for entry in wanted if entry in labels] if wanted else labels
        return Labels("category", tuple(labels), tuple(categories), str(dtype.categories.dtype), bool(dtype.ordered))
    labels = [entry for entry in wanted if entry in found] if wanted else sorted(found, key=_rank)
    return Labels(str(dtype), tuple(labels), missing=missing)


def _rank(label: Any) -> tuple[bool, Any]:
    return isinstance(label, str), label


def _dates(series: Series, name: Any, unit: str | None, form: str) -> Dates:
    times, gap = times_of(series, str(name), unit, form)
    own = str(unit or getattr(series.dt, "unit", "ns"))
    distinct = np.unique(times[~gap])
    step = int(np.gcd.reduce(np.diff(distinct))) if len(distinct) > 1 else 1
    day = DAY * PER_SECOND[own]
    step = day if step % day == 0 else step  # whole days are days, whatever they are multiples of
    if (int(distinct[-1]) - int(distinct[0])) // step > EXACT:
        raise ValueError(f"column {name!r} has dates too far apart for its resolution; round them to seconds")
    return Dates(str(series.dtype), own, int(distinct[0]), step, form)


def _labelled(name: Any, values: Labels, numbers: np.ndarray, wish: Any) -> Column:
    """A column of labels: levels, of which a gap is one."""
    n, counts = len(numbers), np.bincount(numbers[~np.isnan(numbers)].astype(np.int64), minlength=len(values.labels))
    gap = bool(np.isnan(numbers).any())
    if len(values.labels) == 1 and not gap:
        return Column(name, values, Constant(0.0), "constant")
    named = not isinstance(wish, str) or wish in ("category", "boolean") or values.categories is not None
    if len(counts) > max(IDENTIFIER * n, FEW) and not named:
        raise ValueError(
            f"column {name!r} has {len(counts):,} categories in {n:,} rows: an identifier says nothing of other rows. "
            f'Leave it out by columns={{{name!r}: "drop"}} (--column {name}=drop), or keep it by "category"'
        )
    remarks, once = [], np.flatnonzero(counts == 1).tolist()
    if once:
        listed = ", ".join(repr(values.labels[k]) for k in once[:3]) + (", …" if len(once) > 3 else "")
        plural = "categories come" if len(once) > 1 else "category comes"
        remarks.append(f"{len(once)} {plural} once ({listed}): merge what is rare")
    levels = (*map(float, range(len(counts))), *([math.nan] if gap else []))
    return Column(name, values, Category(levels), "category", tuple(remarks))


def _numeric(name: Any, values: Values, kind: str, x: np.ndarray, wish: str) -> Column:
    """A column of numbers or dates: constant, levels, or numbers with atoms among them."""
    finite, odd = x[np.isfinite(x)], [level for level in (math.nan, math.inf, -math.inf) if _has(x, level)]
    distinct, counts = np.unique(finite, return_counts=True)
    if kind == "number" and len(distinct) and np.abs(distinct).max() >= EXACT and _is_whole(values):
        raise ValueError(
            f"column {name!r} has whole numbers beyond 2^53, which are labels and no quantities; say "
            f'columns={{{name!r}: "drop"}}, or turn them into text'
        )
    if len(distinct) + len(odd) == 1:
        return Column(name, values, Constant(float((*distinct, *odd)[0])), "constant")
    grid = Grid() if kind == "date" else find_grid(distinct, _rounding(values)) if len(distinct) else None
    if wish == "integer" and (grid is None or grid.decimals):
        bad = finite[finite != np.rint(finite)]
        raise ValueError(f"columns[{name!r}] says integer, but {len(bad)} entries are not whole, such as {bad[0]:g}")
    repeats = len(finite) / max(1, len(distinct))
    few = len(distinct) <= 2 or (len(distinct) <= FEW and repeats >= OFTEN)
    off_grid = grid is None and len(distinct) <= LEVELS and repeats >= FEW
    levels = tuple(map(float, (*distinct, *odd)))
    if wish in ("category", "boolean") or (wish == "auto" and (few or off_grid)):
        return Column(name, values, Category(levels), "category" if kind == "number" else kind)
    found = _atoms(distinct, counts, grid, len(x)) if wish == "auto" else []
    plain = distinct[~np.isin(distinct, found)]
    if len(plain) < 3:
        return Column(name, values, Category(levels), "category" if kind == "number" else kind)
    if wish == "number" and kind == "number":
        grid = None
    rest = torch.as_tensor(finite[~np.isin(finite, found)])
    if wish == "positive" and plain[0] < 0:
        raise ValueError(f"columns[{name!r}] says positive, but {int((rest < 0).sum())} entries are below 0")
    positive = wish == "positive" or (
        wish in ("auto", "integer") and kind == "number" and wants_half_line(rest, grid.width / 2 if grid else 0.0)
    )
    noisy = grid is not None and _is_noisy(plain, repeats, grid)
    law = Number(grid, (*map(float, found), *odd), noisy, positive)
    if kind == "number" and grid is not None:
        kind = "decimal" if grid.decimals else "integer"
    return Column(name, values, law, kind, () if kind == "date" else _offers(x, plain, law))


def _has(x: np.ndarray, level: float) -> bool:
    return bool(np.isnan(x).any() if math.isnan(level) else (x == level).any())


def _is_whole(values: Values) -> bool:
    return isinstance(values, Numbers) and bool(
        values.whole or (values.dtype != "object" and pandas().api.types.is_integer_dtype(values.dtype))
    )


def _rounding(values: Values) -> str:
    """The precision of the column's numbers."""
    said = values.dtype.lower().replace("float[", "float32[")  # as Arrow calls it
    return next((kind for kind in ("float16", "float32") if kind in said), "float64")


def _is_noisy(plain: np.ndarray, repeats: float, grid: Grid) -> bool:
    """Whether the cells of a grid are so wide that a density would see them."""
    if np.abs(plain).max() / grid.width > LARGE:
        return False
    return grid.width > FINE * float(plain.std()) or repeats > 2


def _atoms(distinct: np.ndarray, counts: np.ndarray, grid: Grid | None, n: int) -> list[float]:
    """The numbers that come far more often than those around them, the most frequent first kept.

    Without a grid, than numbers typically do; on one, than the two numbers on either side.
    """
    least = max(ATOM_ROWS, ATOM_SHARE * n)
    if grid is None:
        around = np.full(len(counts), np.median(counts))
    else:
        place = grid.place(torch.as_tensor(distinct)).numpy()
        around = np.zeros(len(counts))
        for away in (-2, -1, 1, 2):
            other = np.searchsorted(place, place + away).clip(max=len(place) - 1)
            around = np.maximum(around, np.where(place[other] == place + away, counts[other], 0))
    peaks = np.flatnonzero((counts >= least) & (counts >= ATOM_PEAK * around))
    chosen = peaks[np.argsort(-counts[peaks], kind="stable")][:ATOMS]
    return sorted(map(float, distinct[chosen]))


def _offers(x: np.ndarray, plain: np.ndarray, law: Number) -> tuple[str, ...]:
    """What the user could say of a column of numbers."""
    low, high = float(plain[0]), float(plain[-1])
    offers: list[str] = []
    if len(plain) == len(x) and high - low == len(x) - 1:
        offers.append('each number once: a row number? "drop" leaves it out')
    if low >= 0 and not law.positive:
        if high <= 1 or (high <= 100 and law.grid is None):
            offers.append(f"all between 0 and {1 if high <= 1 else 100}")
        elif float((plain <= low + (float(np.median(plain)) - low) / 10).mean()) >= CROWDED and low <= high / 20:
            offers.append('all ≥ 0: "positive" keeps them there')
    return tuple(offers)


def check_wishes(wishes: Any, names: Sequence[Any]) -> dict[Any, Any]:
    """What the user says of columns, by name.

    Raises:
        ValueError, TypeError: for columns that there are not, and for kinds that there are not.
    """
    if isinstance(wishes, str) and wishes == "auto":
        return {}
    if not isinstance(wishes, Mapping):
        raise TypeError(f'columns must be "auto" or a dict from names to {", ".join(KINDS)}, got {wishes!r}')
    by_text = {str(name): name for name in names}
    unknown = [str(name) for name in wishes if str(name) not in by_text]
    if unknown:
        raise ValueError(f"columns speaks of {unknown[0]!r}, which the table has not; it has {', '.join(by_text)}")
    for name, wish in wishes.items():
        if not (wish in KINDS if isinstance(wish, str) else isinstance(wish, list | tuple) and len(wish) > 0):
            raise ValueError(
                f"columns[{name!r}] must be one of {', '.join(KINDS)}, or a list of levels in their order, got {wish!r}"
            )
    return {by_text[str(name)]: wish for name, wish in wishes.items()}
