"""Tables of mixed columns in files: read as data frames with what each column has, written as they were read."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wprox.app.parquet import not_parquet, pandas_for, parquet_file
from wprox.app.tables import (
    MISSING,
    Table,
    check_end,
    check_ending,
    check_output,
    check_shape,
    parse_csv,
    quoted,
    read_checked,
    read_npy,
    replacing,
    write_table,
)
from wprox.models.flow.table.columns import TableColumns
from wprox.models.flow.table.frames import Frame, as_frame, pandas
from wprox.models.flow.table.values import Dates, times_of

GAPS = MISSING | {"nan"}  # in columns of text


@dataclass(frozen=True)
class MixedTable:
    """Rows of mixed columns and how they are taken.

    Attributes:
        rows: a data frame, or an array of numbers where the file names no columns.
        columns: their names.
    """

    rows: Any
    columns: list[str]

    @property
    def named(self) -> bool:
        """Whether the file names the columns."""
        return not isinstance(self.rows, np.ndarray)


def read_mixed(path: str | os.PathLike[str]) -> MixedTable:
    """Read a `.csv`, `.npy` or `.parquet` file with columns of any kind.

    In `.csv` files a column is of numbers where all its entries are, else of text; empty entries, NaN, NA, null and
    None are gaps. Rows have numbers from 1 as their index.

    Raises:
        ValueError: as `read_table`, but for text and gaps.
        ImportError: where pandas is not installed.
    """
    file = Path(path)
    reader = {".csv": _read_csv, ".npy": _read_npy, ".parquet": _read_parquet}[check_ending(file)]
    table = read_checked(file, reader)
    check_shape(file, table.rows.shape, table.columns)
    if table.named:
        table.rows.index = range(1, len(table.rows) + 1)
    return table


def _read_npy(file: Path) -> MixedTable:
    table = read_npy(file)
    return MixedTable(table.values, table.columns)


def _read_parquet(file: Path) -> MixedTable:
    pandas_for(file)
    try:
        frame = parquet_file(file).read().to_pandas()
    except Exception as error:
        raise not_parquet(file, error) from None
    frame.columns = [str(name) for name in frame.columns]
    return MixedTable(frame, list(frame.columns))


def _read_csv(file: Path) -> MixedTable:
    """Numbers in a first pass, and the columns of text in a second."""
    table, text = parse_csv(file)
    check_end(file)
    columns: dict[str, Any] = {name: table.values[:, j] for j, name in enumerate(table.columns)}
    if len(columns) < len(table.columns):  # names repeat, which is said elsewhere
        return MixedTable(np.empty(table.values.shape), table.columns)
    for j, cells in _cells_of(file, sorted(text), table).items():
        columns[table.columns[j]] = np.array(cells, dtype=object)
    return MixedTable(pandas().DataFrame(columns), table.columns)


def _cells_of(file: Path, places: list[int], table: Table) -> dict[int, list[str | None]]:
    """The entries of some columns as texts, `None` where they are missing."""
    cells: dict[int, list[str | None]] = {j: [] for j in places}
    if not places:
        return cells
    with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream, strict=True)
        next(row for row in reader if row)  # the header
        for row in reader:
            for j in places if row or len(table.columns) == 1 else ():
                cell = (row or [""])[j]
                cells[j].append(None if cell.strip().lower() in GAPS else cell)
    return cells


def write_rows(path: str | os.PathLike[str], rows: Any, columns: list[str], overwrite: bool = False) -> None:
    """Write rows as `JKOFlow.sample` has them: numbers as `write_table` does, a data frame with what its columns are.

    Raises:
        ValueError: as `write_table`; for columns that are not numbers in an `.npy` file.
    """
    file = Path(path)
    if not hasattr(rows, "columns"):
        write_table(file, rows, columns, overwrite)
        return
    ending = check_output(file, overwrite)
    if ending == ".npy":
        text = [str(name) for name in rows.columns if rows[name].dtype.kind not in "fiub"]
        if text:
            raise ValueError(f"{file}: {', '.join(text)} are not numbers, as .npy files hold; write .csv or .parquet")
        write_table(file, rows.to_numpy(dtype=np.float64, na_value=np.nan), columns, overwrite)
        return
    with replacing(file) as temporary:
        if ending == ".parquet":
            rows.to_parquet(temporary, index=False)
            return
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            stream.write(",".join(quoted(str(name)) for name in rows.columns) + "\n")
            cells = [_cells(rows.iloc[:, place]) for place in range(rows.shape[1])]
            csv.writer(stream, lineterminator="\n").writerows(zip(*cells, strict=True))


def _cells(column: Any) -> list[Any]:
    """The entries of a column as a .csv file shows them: gaps empty, whole numbers without a point."""
    gap = column.isna().to_numpy()
    if column.dtype.kind == "f":
        numbers = column.to_numpy(dtype=np.float64, na_value=np.nan)
        plain = numbers[~gap]
        if bool(np.all((plain == np.rint(plain)) & (np.abs(plain) < 2**53))):
            numbers = np.where(gap, 0, numbers).astype(np.int64)
        elif column.dtype == np.float32:
            return np.where(gap, "", column.to_numpy().astype(str)).tolist()
        return ["" if missing else cell for cell, missing in zip(numbers.tolist(), gap, strict=True)]
    if column.dtype.kind == "M":
        times = column.dropna()
        forms = {"%Y-%m-%d": times.dt.normalize(), "%Y-%m-%dT%H:%M:%S": times.dt.floor("s")}
        form = next((form for form, rounded in forms.items() if bool((rounded == times).all())), "%Y-%m-%dT%H:%M:%S.%f")
        column = column.dt.strftime(form)
    return ["" if missing else cell for cell, missing in zip(column.tolist(), gap, strict=True)]


def rows_for(table: MixedTable, learned: TableColumns) -> Any:
    """The rows of a table as the columns that were learned take them: by name where both have names."""
    frame: Frame = table.rows
    if learned.container == "frame" and not table.named:
        return pandas().DataFrame(table.rows, columns=learned.names)
    if learned.container != "frame" and table.named:
        return frame.to_numpy()
    return frame


def drawable(rows: Any, learned: TableColumns) -> np.ndarray:
    """Rows as numbers for a picture, (n, c): labels by their place, gaps left of all numbers."""
    numbers = learned.read(rows).numpy()
    for j, law in enumerate(learned.laws):
        levels = getattr(law, "levels", None)
        x = numbers[:, j]
        if levels is not None and getattr(law, "source", None) is None:
            place = {("gap" if level != level else level): float(k) for k, level in enumerate(levels)}
            numbers[:, j] = [place["gap" if entry != entry else entry] for entry in x.tolist()]
            continue
        plain = x[np.isfinite(x)]
        low, high = (float(plain.min()), float(plain.max())) if len(plain) else (0.0, 1.0)
        numbers[:, j] = np.nan_to_num(x, nan=low - (high - low) / 10, posinf=high, neginf=low)
    return numbers


def typed(rows: Any, learned: TableColumns) -> Frame:
    """The columns of rows that are modelled; dates are dates, however they were written, infinite entries are gaps."""
    whole = as_frame(rows, "rows", learned.names if np.shape(rows)[1] == len(learned.names) else None)
    frame = whole.loc[:, learned.names].copy()
    for column in learned.columns:
        if isinstance(column.values, Dates):
            times, gap = times_of(frame[column.name], str(column.name), column.values.unit, column.values.form)
            times = np.where(gap, np.datetime64("NaT").astype(np.int64), times)
            frame[column.name] = times.view(f"datetime64[{column.values.unit}]")
    return frame.replace([np.inf, -np.inf], np.nan)
