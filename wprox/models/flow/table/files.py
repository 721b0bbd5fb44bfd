"""The columns of a table as JSON holds them, and back, with checks of what is no such thing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from wprox.models.flow.table.columns import CONTAINERS, TableColumns
from wprox.models.flow.table.finding import Column
from wprox.models.flow.table.grids import MOST_DECIMALS, ROUNDINGS, Grid
from wprox.models.flow.table.half_line import HalfLine
from wprox.models.flow.table.laws import Category, Constant, Copy, Intervals, Law, Number
from wprox.models.flow.table.values import ISO, OBJECTS, Dates, Labels, Numbers, Values
from wprox.models.json_files import is_list, is_text
from wprox.models.state import StateError

ODD = {"missing": math.nan, "infinite": math.inf, "minus infinite": -math.inf}  # numbers that JSON does not know
UNITS = ("s", "ms", "us", "ns")


def table_to_json(table: TableColumns) -> dict[str, Any]:
    """What config.json says of the columns."""
    columns = [
        {
            "name": column.name,
            "kind": column.kind,
            "remarks": list(column.remarks),
            "values": _values_to_json(column.values),
            "law": _law_to_json(column.law),
        }
        for column in table.columns
    ]
    return {"container": table.container, "dropped": table.dropped, "columns": columns}


def table_from_json(held: Any) -> TableColumns | None:
    """The columns that `table_to_json` wrote.

    Raises:
        StateError: for anything else.
    """
    if held is None:
        return None
    try:
        columns = [_column_from_json(column, place) for place, column in enumerate(held["columns"])]
        table = TableColumns(columns, held["dropped"], held["container"])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise StateError(f"its table is not as a flow writes it: {error}") from None
    names = [*table.names, *table.dropped]
    _demand(table.container in CONTAINERS, "its rows are of no known kind")
    _demand(all(_is_name(name) for name in names) and len(set(map(str, names))) == len(names), "two names are one")
    _demand(table.dim > 0, "no column varies")
    for column in columns:
        if (source := column.law.source) is not None:
            _demand(not isinstance(columns[source].law, Copy), f"{column.name} is a copy of a copy")
    return table


def check_table(table: TableColumns, dim: int, names: list[str] | None) -> None:
    """Raise `StateError` where a table does not fit the preprocessing and the names beside it."""
    _demand(table.dim == dim, f"it takes {table.dim} coordinates, and has {dim}")
    _demand(names == table.features, "its columns have other names")


def _demand(holds: bool, complaint: str) -> None:
    if not holds:
        raise StateError(f"its table is not as a flow writes it: {complaint}")


def _is_name(name: Any) -> bool:
    return is_text(name) or (type(name) is int and abs(name) < 2**63)


def _is_label(label: Any) -> bool:
    return is_text(label) or type(label) is bool or (type(label) in (int, float) and abs(label) < 2**63)


def _number(x: float) -> float | str:
    return next((name for name, odd in ODD.items() if x == odd or (x != x and odd != odd)), x)


def _of_number(held: Any) -> float:
    number = ODD[held] if isinstance(held, str) else held
    _demand(type(number) in (int, float) and (isinstance(held, str) or math.isfinite(number)), "a number is none")
    return float(number)


def _of_numbers(held: Any) -> tuple[float, ...]:
    numbers = tuple(_of_number(x) for x in held)
    _demand(len({_number(x) for x in numbers}) == len(numbers), "a level is there twice")
    return numbers


def _values_to_json(values: Values) -> dict[str, Any]:
    if isinstance(values, Labels):
        return {
            "type": "labels",
            "dtype": values.dtype,
            "labels": list(values.labels),
            "categories": None if values.categories is None else list(values.categories),
            "inner": values.inner,
            "ordered": values.ordered,
            "missing": None if values.missing is None else "missing",
        }
    if isinstance(values, Dates):
        said = {"unit": values.unit, "origin": values.origin, "step": values.step, "form": values.form}
        return {"type": "dates", "dtype": values.dtype} | said
    assert isinstance(values, Numbers)
    return {"type": "numbers", "dtype": values.dtype, "whole": values.whole}


def _values_from_json(held: dict[str, Any]) -> Values:
    dtype = held["dtype"]
    _demand(is_text(dtype), "a dtype is none")
    if held["type"] == "labels":
        labels, categories = held["labels"], held["categories"]
        _demand(is_list(labels, _is_label) and len(labels) > 0, "labels are none")
        _demand(categories is None or is_list(categories, _is_label), "categories are none")
        _demand(categories is None or all(label in categories for label in labels), "labels are no categories")
        _demand(is_text(held["inner"]) and isinstance(held["ordered"], bool), "categories are of no type")
        _demand(held["missing"] in (None, "missing"), "a missing label is none")
        missing = None if held["missing"] is None else math.nan
        kinds = None if categories is None else tuple(categories)
        return Labels(dtype, tuple(labels), kinds, held["inner"], held["ordered"], missing)
    if held["type"] == "dates":
        unit, origin, step, form = (held[name] for name in ("unit", "origin", "step", "form"))
        whole = type(origin) is int and type(step) is int and abs(origin) < 2**62 and 0 < step < 2**62
        _demand(unit in UNITS and whole and form in ("", OBJECTS, *ISO.values()), "dates are of no kind")
        return Dates(dtype, unit, origin, step, form)
    _demand(held["type"] == "numbers" and isinstance(held["whole"], bool), "values are of no kind")
    return Numbers(dtype, held["whole"])


def _law_to_json(law: Law) -> dict[str, Any]:
    if isinstance(law, Constant):
        return {"type": "constant", "value": _number(law.value)}
    if isinstance(law, Copy):
        return {"type": "copy", "source": law.source, "pairs": [[_number(x) for x in pair] for pair in law.pairs]}
    if isinstance(law, Category):
        assert law.intervals is not None
        levels, widths = [_number(x) for x in law.levels], law.intervals.widths.tolist()
        return {"type": "category", "levels": levels, "frequencies": widths, "source": law.source}
    assert isinstance(law, Number)
    grid = law.grid
    return {
        "type": "number",
        "grid": None if grid is None else [grid.offset, grid.step, grid.decimals, grid.rounding],
        "atoms": [_number(x) for x in law.atoms],
        "frequencies": None if law.kinds is None else law.kinds.widths.tolist(),
        "noisy": law.noisy,
        "positive": law.positive,
        "half_line": None if law.half is None else [law.half.scale, law.half.shift],
        "source": law.source,
        "mean": law.mean,
        "std": law.std,
    }


def _intervals(held: Any, levels: int) -> Intervals:
    positive = is_list(held, lambda width: type(width) is float and 0 < width <= 1)
    _demand(positive and len(held) == levels and abs(sum(held) - 1) < 1e-6, "frequencies are none")
    return Intervals(torch.tensor(held, dtype=torch.float64))


def _law_from_json(held: dict[str, Any], place: int) -> Law:
    source = held.get("source")
    _demand(source is None or (type(source) is int and 0 <= source < place), "a column depends on none before it")
    makers: dict[str, Callable[[], Law]] = {
        "constant": lambda: Constant(_of_number(held["value"])),
        "copy": lambda: _copy(held, source),
        "category": lambda: _category(held, source),
        "number": lambda: _number_law(held, source),
    }
    return makers[held["type"]]()


def _copy(held: dict[str, Any], source: int | None) -> Copy:
    pairs = tuple((_of_number(x), _of_number(y)) for x, y in held["pairs"])
    _of_numbers([_number(x) for x, _ in pairs])  # each level once
    if source is None:
        raise StateError("its table is not as a flow writes it: a copy is of no column")
    return Copy(source, pairs)


def _category(held: dict[str, Any], source: int | None) -> Category:
    levels = _of_numbers(held["levels"])
    return Category(levels, _intervals(held["frequencies"], len(levels)), source)


def _number_law(held: dict[str, Any], source: int | None) -> Number:
    atoms, noisy, mean, std = _of_numbers(held["atoms"]), held["noisy"], held["mean"], held["std"]
    grid = None if held["grid"] is None else Grid(*held["grid"])
    if grid is not None:
        whole = all(type(x) is int and abs(x) < 2**53 for x in (grid.offset, grid.step, grid.decimals))
        _demand(whole and grid.step > 0 and 0 <= grid.decimals <= MOST_DECIMALS, "a grid is none")
        _demand(grid.rounding in ROUNDINGS, "a precision is none")
    numbers = type(mean) is float and type(std) is float and math.isfinite(mean) and 0 < std < math.inf
    _demand(numbers and isinstance(noisy, bool), "moments are none")
    kinds = _intervals(held["frequencies"], len(atoms) + 1) if atoms else None
    positive, half = held["positive"], held["half_line"]
    _demand(isinstance(positive, bool) and positive == (half is not None), "it does not say where numbers end")
    if half is not None:
        scale, shift = half
        _demand(all(type(x) is float and 0 <= x < math.inf for x in half) and scale > 0, "a half-line is none")
        half = HalfLine(scale, shift)
    return Number(grid, atoms, noisy, positive, source, kinds, half, mean, std)


def _column_from_json(held: dict[str, Any], place: int) -> Column:
    values, law = _values_from_json(held["values"]), _law_from_json(held["law"], place)
    _demand(is_text(held["kind"]) and is_list(held["remarks"], is_text), "a kind is none")
    if isinstance(values, Labels):
        known = [float(k) for k in range(len(values.labels))]
        said = law.levels if isinstance(law, Category) else (law.value,) if isinstance(law, Constant) else ()
        said = tuple(own for _, own in law.pairs) if isinstance(law, Copy) else said
        _demand(all(x != x or x in known for x in said) and not isinstance(law, Number), "a level has no label")
    column = Column(held["name"], values, law, held["kind"], tuple(held["remarks"]))
    values.entries(torch.zeros(1).double().numpy())  # which a dtype that is none would not bear
    return column
