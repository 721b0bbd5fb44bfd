"""Tables of numbers in files: reading what a user has, writing samples, both with errors that say what to do."""

from __future__ import annotations

import csv
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from wprox._arrays import as_plain
from wprox._warnings import warn
from wprox._writing import claimed
from wprox.app.parquet import not_parquet, pandas_for, parquet_file

ENDINGS = (".csv", ".npy", ".parquet")
BATCH_ROWS = 2**14  # of a .parquet file at once
UNSAFE = '",;\t\r\n\ufeff'  # in names: separators, and what programs take for the ends of lines and files
CELL = re.compile(r'("(?:[^"]|"")*"|[^,]*),')
Read = TypeVar("Read")  # what comes of a file
MISSING = frozenset({"", "na", "n/a", "null", "none", "<na>"})


@dataclass(frozen=True)
class Table:
    """Rows of finite numbers and the names of their columns.

    Attributes:
        values: (n, d), float64.
        columns: d different names; x1, …, xd where the file gives none.
        named: whether the file gives them.
    """

    values: np.ndarray
    columns: list[str]
    named: bool = True


def read_table(path: str | os.PathLike[str]) -> Table:
    """Read a `.csv` file with a header, an `.npy` array of two dimensions, or a `.parquet` file.

    Rows are counted from 1 in error messages, a header not counted. The columns of an `.npy` file are called x1, …, xd.

    Arguments:
        path: the file; its ending says how it is read.

    Raises:
        ValueError: for a file that is missing, unreadable, empty, truncated or of another ending; for text columns,
            names that repeat, rows of different lengths, arrays of objects or of the wrong number of dimensions, NaN
            and infinite entries.
        ImportError: where a `.parquet` file is given and pandas with pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "points.csv"
        >>> _ = file.write_text("height,weight\\n1.8,80\\n1.7,65\\n")
        >>> table = read_table(file)
        >>> table.columns, table.values.shape
        (['height', 'weight'], (2, 2))
    """
    file = Path(path)
    readers: dict[str, Callable[[Path], Table]] = {".csv": _read_csv, ".npy": read_npy, ".parquet": _read_parquet}
    table = read_checked(file, readers[check_ending(file)])
    check_shape(file, table.values.shape, table.columns)
    _check_finite(table, str(file))
    return table


def read_checked(file: Path, reader: Callable[[Path], Read]) -> Read:
    """What a reader makes of a file.

    Raises:
        ValueError: naming the file, where it is missing, empty or cannot be read.
    """
    if not file.exists():
        raise ValueError(f"{file} does not exist; check the path")
    if not file.is_file():
        raise ValueError(f"{file} is not a file; give the path of one {', '.join(ENDINGS)} file")
    try:
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty: it has 0 bytes")
        return reader(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error


def check_shape(file: Path, shape: tuple[int, ...], columns: Sequence[str]) -> None:
    """Raise `ValueError` for a table without rows or columns, or with names that repeat."""
    if 0 in shape:
        n, d = shape
        raise ValueError(f"{file} has no numbers: {n} rows and {d} columns; at least one of each is needed")
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise ValueError(f"{file} has several columns of one name: {', '.join(map(repr, repeated))}; rename them")


def write_table(
    path: str | os.PathLike[str], values: Any, columns: Sequence[str] | None = None, overwrite: bool = False
) -> None:
    """Write rows of numbers to a `.csv` (with a header), `.npy` or `.parquet` file; complete or not at all.

    Whole numbers are written to `.csv` without a decimal point, truth values as 0 and 1. Repeated names are numbered.

    Arguments:
        path: the file; its ending says how it is written.
        values: (n, d).
        columns: d names; x1, …, xd by default.
        overwrite: replace a file that exists.

    Raises:
        ValueError: for values of another shape or that are not numbers, empty names, another ending, a missing folder,
            or a file that exists.
        ImportError: where a `.parquet` file is asked for and pandas with pyarrow is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "points.csv"
        >>> write_table(file, [[1, 2], [3, 4]], columns=["a", "b"])
        >>> file.read_text()
        'a,b\\n1,2\\n3,4\\n'
    """
    file = Path(path)
    ending = check_output(file, overwrite)
    numbers = np.asarray(_off_graph(as_plain(values, "values")))
    if numbers.ndim != 2 or 0 in numbers.shape:
        raise ValueError(f"values must have shape (n, d) with n, d ≥ 1, got {numbers.shape}")
    if numbers.dtype.kind not in "biuf":
        raise ValueError(f"values must be real numbers, got entries of type {numbers.dtype}")
    names = _unique(columns if columns is not None else default_columns(numbers.shape[1]))
    if len(names) != numbers.shape[1]:
        raise ValueError(f"columns has {len(names)} names for {numbers.shape[1]} columns; give one a column")
    if nameless := [str(j + 1) for j, name in enumerate(names) if not name.strip()]:
        raise ValueError(f"columns has no name for column {', '.join(nameless)}; name every column")
    with replacing(file) as temporary:
        if ending == ".npy":
            np.save(temporary, numbers, allow_pickle=False)
        elif ending == ".csv":
            with temporary.open("w", newline="", encoding="utf-8") as stream:
                stream.write(",".join(quoted(name) for name in names) + "\n")
                csv.writer(stream, lineterminator="\n").writerows(_cells(numbers))
        else:
            frame = pandas_for(file).DataFrame({name: numbers[:, j] for j, name in enumerate(names)})
            frame.to_parquet(temporary, index=False)


def check_ending(path: str | os.PathLike[str]) -> str:
    """The ending of a file's name, in lower case, where it is one that tables have.

    Raises:
        ValueError: for any other ending.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"{path} ends in {ending or 'nothing'!r}; tables are read and written as {', '.join(ENDINGS)}")
    return ending


def check_output(path: str | os.PathLike[str], overwrite: bool) -> str:
    """Check, before long work, that a table can be written to `path`; returns the ending.

    Raises:
        ValueError: for another ending, a missing folder, or a file that exists (unless `overwrite`).
        ImportError: where a `.parquet` file is asked for and pandas with pyarrow is not installed.
    """
    file = Path(path)
    ending = check_ending(file)
    if ending == ".parquet":
        pandas_for(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder; give the path of a file")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"the folder {file.parent} does not exist; make it first")
    if file.exists() and not overwrite:
        raise ValueError(f"{file} exists already; choose another name or allow overwriting it")
    return ending


def default_columns(d: int) -> list[str]:
    """x1, …, xd: the names of columns that have none."""
    return [f"x{j + 1}" for j in range(d)]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well and vanishes when it does not."""
    with claimed(path) as claim:
        temporary = claim.work / path.name
        yield temporary
        os.replace(temporary, claim.path)


def _read_csv(file: Path) -> Table:
    table, text = parse_csv(file)
    _refuse_text(file, [f"{table.columns[j]!r} (row {row}: {cell!r})" for j, (cell, row) in sorted(text.items())])
    check_end(file)
    return table


def parse_csv(file: Path) -> tuple[Table, dict[int, tuple[str, int]]]:
    """The numbers in a .csv file, and which columns have text: the first entry and its row, of each by its place."""
    numbers = array("d")
    text: dict[int, tuple[str, int]] = {}
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            lines = _first_lines(stream)
            reader = csv.reader(chain(lines, stream), strict=True)
            columns = _header(file, next((row for row in reader if row), []), "".join(lines))
            n = 0
            for row in reader:
                if not row and len(columns) > 1:  # blank lines; in a file of one column they are missing entries
                    continue
                n += 1
                if len(row or [""]) != len(columns):
                    raise ValueError(
                        f"{file} has {len(row)} entries in row {n} (line {reader.line_num}), "
                        f"the header has {len(columns)}; every row needs one entry a column (is the file cut off?)"
                    )
                numbers.extend(_parse_row(row or [""], n, text))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8 ({error.reason}); save it as a UTF-8 .csv file") from error
    except csv.Error as error:
        raise ValueError(f"{file} is not a readable .csv file (line {reader.line_num}: {error})") from error
    # which is no copy, and can be written to
    return Table(np.frombuffer(numbers).reshape(n, len(columns)), columns), text


def _first_lines(stream: Iterable[str]) -> list[str]:
    """The lines of the header: up to the first that is not blank, and on as long as a quote is open."""
    lines, quotes, blank = [], 0, True
    for line in stream:
        lines.append(line)
        quotes += line.count('"')
        blank = blank and not line.strip()
        if not blank and quotes % 2 == 0:
            break
    return lines


def check_end(file: Path) -> None:
    """A number of which the end is missing is a number as well: only the end of the line says that it is whole."""
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        if stream.read() not in b"\r\n":
            raise ValueError(
                f"{file} is cut off: its last line has no end, so that its last number may lack digits; write the file "
                "again, or add the end of the line where the number is whole"
            )


def _header(file: Path, cells: list[str], text: str) -> list[str]:
    """The names that the header's cells are, where `text` is how the file writes them."""
    quoted = [cell.startswith('"') for cell in CELL.findall(text.strip("\r\n") + ",")]
    columns = [cell if as_is else cell.strip() for cell, as_is in zip_longest(cells, quoted[: len(cells)])]
    if not columns:
        raise ValueError(f"{file} is empty; the first line must hold the names of the columns")
    for separator, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and separator in columns[0] and not all(quoted):
            raise ValueError(f"{file} is separated by {name}; separate its columns by commas")
    unnamed = [str(j + 1) for j, name in enumerate(columns) if not name.strip()]
    if unnamed:
        raise ValueError(
            f"{file} has no name for column {', '.join(unnamed)}; name every column in the first line "
            "(pandas leaves the name of the row numbers empty: write with index=False)"
        )
    if all(_is_number(name) for name in columns):
        if not (_counts(columns) or all(quoted)):
            raise ValueError(
                f"{file} has no header: its first line is numbers; put the names of the "
                "columns there, or put the names in quotes where these are the names"
            )
        warn(
            f"the columns of {file} are named by numbers ({', '.join(columns[:3])}{', …' if columns[3:] else ''}): if "
            "this is the first row, put a line with the names of the columns above it",
            UserWarning,
        )
    return columns


def quoted(name: str) -> str:
    """A column's name as a .csv file has it: in quotes where it would not be read back otherwise."""
    plain = name == name.strip() and not _is_number(name) and not any(letter in name for letter in UNSAFE)
    return name if plain else '"' + name.replace('"', '""') + '"'


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _counts(columns: list[str]) -> bool:
    """Whether the names are 0, 1, …, d − 1 or 1, …, d, as data frames without names have them."""
    return any(columns == [str(j + start) for j in range(len(columns))] for start in (0, 1))


def _parse_row(row: list[str], number: int, text: dict[int, tuple[str, int]]) -> list[float]:
    """The row's numbers, NaN where an entry is missing; entries that are text are noted in `text`, once a column."""
    try:
        if not any("_" in cell for cell in row):  # Python reads 1_000 as a number; files mean text by it
            return [float(cell) for cell in row]
    except ValueError:
        pass
    result = []
    for j, cell in enumerate(row):
        if cell.strip().lower() in MISSING:
            result.append(np.nan)
        elif _is_number(cell) and "_" not in cell:
            result.append(float(cell))
        else:
            text.setdefault(j, (cell if len(cell) <= 20 else cell[:20] + "…", number))
            result.append(np.nan)
    return result


def read_npy(file: Path) -> Table:
    """The numbers in an .npy file."""
    try:
        objects = _check_npy(file)
        values = None if objects else np.load(file, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged header makes numpy evaluate
        said = str(error) or type(error).__name__
        raise ValueError(f"{file} is not a readable .npy file (cut off, or not one at all): {said}") from None
    if values is None:
        raise ValueError(f"{file} holds Python objects, not numbers; save a numeric array")
    if not isinstance(values, np.ndarray):
        values.close()
        raise ValueError(f"{file} is an archive of several arrays; save the one array with numpy.save")
    if values.dtype.names is not None or values.dtype.kind not in "biuf":
        raise ValueError(f"{file} holds entries of type {values.dtype}; expected real numbers")
    if values.ndim != 2:
        hint = "; reshape a single feature to (n, 1)" if values.ndim == 1 else "; flatten each row to one vector"
        raise ValueError(f"{file} must have shape (n, d), got {values.shape}{hint}")
    return Table(values.astype(np.float64, copy=False), default_columns(values.shape[1]), named=False)


def _check_npy(file: Path) -> bool:
    """Whether an .npy file says that pickled objects follow.

    Raises:
        ValueError: where it does not hold as many numbers as it says: they would be made first.
    """
    with file.open("rb") as stream:
        if stream.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            return False  # an archive, or what `numpy.load` refuses
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        expected, there = math.prod(shape) * dtype.itemsize, file.stat().st_size - stream.tell()
    if any(type(length) is not int or length < 0 for length in shape) or (expected != there and not dtype.hasobject):
        raise ValueError(f"shape {shape} of {dtype} takes {expected} bytes, there are {there}")
    return bool(dtype.hasobject)


def _read_parquet(file: Path) -> Table:
    types = pandas_for(file).api.types
    text: dict[str, str] = {}
    n = 0
    try:
        parquet = parquet_file(file)
        columns = [str(name) for name in parquet.schema_arrow.empty_table().to_pandas().columns]
        values = np.empty((parquet.metadata.num_rows, len(columns)))
        for batch in parquet.iter_batches(BATCH_ROWS, use_threads=False):
            frame = batch.to_pandas()
            for name, kind in zip(columns, frame.dtypes, strict=True):
                if not types.is_numeric_dtype(kind) or types.is_complex_dtype(kind):
                    text[name] = f"{name!r} ({kind})"
            if not text:
                values[n : n + len(frame)] = frame.to_numpy(dtype=np.float64, na_value=np.nan)
            n += len(frame)
        if n != len(values):
            raise ValueError(f"it says that it has {len(values)} rows, and has {n}")
    except Exception as error:
        raise not_parquet(file, error) from None
    _refuse_text(file, list(text.values()))
    return Table(values, columns)


def _refuse_text(file: Path, found: list[str]) -> None:
    if found:
        shown = ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        plural = "columns that are" if len(found) > 1 else "a column that is"
        raise ValueError(f"{file} has {plural} not numbers: {shown}; remove or encode such columns")


def _check_finite(table: Table, name: str) -> None:
    with np.errstate(all="ignore"):
        if np.isfinite(table.values.sum()):  # which NaN and infinity are not, and takes no memory
            return
    bad = ~np.isfinite(table.values)
    count = int(bad.sum())
    if count:
        row, column = (int(index) for index in np.argwhere(bad)[0])
        entries = "entries" if count > 1 else "entry"
        raise ValueError(
            f"{name} has {count} NaN or infinite {entries}, the first at row {row + 1}, column "
            f"{table.columns[column]!r}; remove or impute them first"
        )


def _off_graph(values: Any) -> Any:
    """A tensor without its graph, in a precision that numpy knows; all else as it is."""
    if not hasattr(values, "detach"):
        return values
    tensor = values.detach().cpu()
    return tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor


def _cells(numbers: np.ndarray) -> Any:
    """Rows as a .csv file shows them: integers as integers, other numbers in the fewest digits that give them back."""
    if numbers.dtype.kind == "b":
        return numbers.astype(np.int8).tolist()
    if numbers.dtype == np.float16:
        numbers = numbers.astype(np.float32)
    if numbers.dtype.kind == "f":
        whole = np.isfinite(numbers) & (numbers == np.rint(numbers)) & (np.abs(numbers) < 2**53)
        if whole.all():
            return numbers.astype(np.int64).tolist()
    return numbers.astype(str).tolist() if numbers.dtype == np.float32 else numbers.tolist()


def _unique(names: Sequence[str]) -> list[str]:
    """The names, each once: those that repeat with a number, as pandas' reader has them."""
    result: list[str] = []
    for name in names:
        candidate, k = str(name), 2
        while candidate in result:
            candidate, k = f"{name}_{k}", k + 1
        result.append(candidate)
    return result
