"""The columns of a table: how each is taken, rows as numbers and back, and as coordinates of a flow and back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wprox._checks import check_size
from wprox._warnings import warn
from wprox.models.flow.columns import is_frame
from wprox.models.flow.table.finding import Column, check_wishes, find_column
from wprox.models.flow.table.frames import Frame, as_frame, pandas
from wprox.models.flow.table.laws import Category, Constant, Copy, Law, Number, source_of
from wprox.models.flow.table.order import canonical_orders
from wprox.models.flow.table.values import DAY, PER_SECOND, Dates, Labels

COPIED = 10  # rows that are not as most, from which on two columns of levels do not agree by accident
CONTAINERS = ("frame", "array", "tensor")


@dataclass(repr=False)
class TableColumns:
    """How a table's columns are taken: `JKOFlow.columns_`. Printed, it is a table.

    Attributes:
        columns: those that are modelled, in the order of the table.
        dropped: the names of those that are left out.
        container: what rows come in and go out: "frame", "array" or "tensor".

    Example:
        >>> import pandas as pd
        >>> rows = pd.DataFrame({"age": [31, None, 45, 52] * 10, "town": ["Bonn", "Ulm", "Ulm", "Bonn"] * 10})
        >>> print(TableColumns.learn(rows))
        column  kind      taken as                           remarks
        age     category  4 levels: 31, 45, 52, missing
        town    category  2 levels: 'Bonn', 'Ulm'
    """

    columns: list[Column]
    dropped: list[Any]
    container: str = "frame"

    @classmethod
    def learn(cls, X: Any, wishes: Any = "auto") -> TableColumns:
        """What the columns of a table are.

        Arguments:
            X: a data frame, or an array of numbers or objects.
            wishes: "auto", or what the user says of columns, by name: "category", "boolean", "integer", "number",
                "date", "drop" or "auto", or a list of levels in their order.

        Raises:
            ValueError, TypeError: for a table or columns that cannot be taken.
        """
        container = "frame" if is_frame(X) else "tensor" if isinstance(X, Tensor) else "array"
        frame = as_frame(X, "X")
        wishes = check_wishes(wishes, list(frame.columns))
        check_size(frame.shape, "X")
        if len(frame) == 1:
            raise ValueError("X has 1 sample, in which nothing varies; give hundreds of rows to learn from")
        columns: list[Column] = []
        numbers: list[np.ndarray] = []
        dropped = []
        for place, name in enumerate(frame.columns):
            series = _inferred(frame.iloc[:, place], container)
            label = name if isinstance(name, int | str) else str(name)
            found = find_column(series, label, wishes.get(name, "auto"))
            if found is None:
                dropped.append(label)
                continue
            columns.append(_related(found[0], found[1], columns, numbers))
            numbers.append(found[1])
        if all(isinstance(column.law, Constant) for column in columns):
            raise ValueError("all columns are constant; there is nothing to learn")
        rare = [str(column.name) for column in columns if any("merge what is rare" in said for said in column.remarks)]
        if rare:
            warn(
                f"categories that come once, of which little can be learnt, in {', '.join(rare)}: merge rare ones",
                UserWarning,
            )
        return cls(columns, dropped, container)

    @classmethod
    def of(cls, X: Any, wishes: Any) -> TableColumns:
        """The columns of a table by what `JKOFlow(columns=...)` says: learned of it, or those that it gives."""
        return wishes if isinstance(wishes, TableColumns) else cls.learn(X, wishes)

    # rows as numbers

    @property
    def features(self) -> list[str] | None:
        """The names of the columns, where the table gave them."""
        return [str(name) for name in self.names] if self.container == "frame" else None

    @property
    def names(self) -> list[Any]:
        """The names of the columns that are modelled."""
        return [column.name for column in self.columns]

    def read(self, X: Any, name: str = "X") -> Tensor:
        """Rows as numbers, (n, c), float64, NaN where an entry is missing; columns by name where X is a frame.

        Raises:
            ValueError: for other columns, or entries of another kind than those that were learned of.
        """
        kept = self.names
        if not is_frame(X):
            X = as_frame(X, name, kept)
        elif list(X.columns) != kept:
            given = {str(column): place for place, column in enumerate(as_frame(X, name).columns)}
            missing = [str(column) for column in kept if str(column) not in given]
            unknown = sorted(set(given) - {str(column) for column in (*kept, *self.dropped)})
            if missing or unknown:
                raise ValueError(
                    f"{name} has other columns than the data that the flow was fitted to: missing {missing}, new "
                    f"{unknown}"
                )
            X = X.iloc[:, [given[str(column)] for column in kept]]
        taken = [
            column.values.numbers(_inferred(X.iloc[:, place], self.container), str(column.name))
            for place, column in enumerate(self.columns)
        ]
        return torch.as_tensor(np.stack(taken, 1))

    def write(self, rows: Tensor) -> Any:
        """The rows whose numbers these are, as they were given to `learn`."""
        numbers = rows.detach().cpu().double().numpy()
        series = [column.values.entries(numbers[:, place]) for place, column in enumerate(self.columns)]
        frame: Frame = pandas().concat(series, axis=1, keys=range(len(series)))
        if self.container == "frame":
            frame.columns = pandas().Index(self.names)
            return frame
        array = frame.to_numpy(dtype=None if all(column.dtype.kind in "iufb" for column in series) else object)
        return torch.as_tensor(array) if self.container == "tensor" else array

    # rows as coordinates

    @property
    def laws(self) -> list[Law]:
        """How the columns are encoded."""
        return [column.law for column in self.columns]

    @property
    def is_plain(self) -> bool:
        """Whether all columns are numbers with a density and nothing else."""
        return all(law == Number(noisy=False) for law in self.laws)

    @property
    def dim(self) -> int:
        """The number of coordinates."""
        return sum(law.dims for law in self.laws)

    @property
    def coordinates(self) -> list[str]:
        """Of each coordinate the name of its column."""
        return [str(column.name) for column in self.columns for _ in range(column.law.dims)]

    @property
    def is_random(self) -> bool:
        """Whether the coordinates are drawn."""
        return any(law.is_random for law in self.laws)

    def fit(self, rows: Tensor) -> TableColumns:
        """The columns with the frequencies, moments and order of levels that rows of numbers, (n, c), have."""
        columns = list(self.columns)
        parts = list(rows.double().unbind(1))
        levels = [law.levels if isinstance(law, Category) else None for law in self.laws]
        free = [j for j, column in enumerate(columns) if levels[j] is not None and _is_unordered(column)]
        modelled = [j for j, law in enumerate(self.laws) if law.dims]
        wanted = [modelled.index(j) for j in free]
        orders = canonical_orders([parts[j] for j in modelled], [levels[j] for j in modelled], wanted) if free else []
        for j, order in zip(free, orders, strict=True):
            law = columns[j].law
            assert isinstance(law, Category)
            ordered = tuple(law.levels[k] for k in order.tolist())
            columns[j] = replace(columns[j], law=replace(law, levels=ordered))
        fitted = [replace(column, law=column.law.fit(x)) for column, x in zip(columns, parts, strict=True)]
        return replace(self, columns=fitted)

    def holds(self, rows: Tensor) -> Tensor:
        """Which entries have a density, (n, c): those that are of a kind that was seen."""
        parts = list(rows.unbind(1))
        known = [law.holds(x, source_of(law, parts)) for law, x in zip(self.laws, parts, strict=True)]
        return torch.stack(known, 1)

    def encode(self, rows: Tensor, u: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Coordinates, (n, dim), and −log q of them given the rows, (n,).

        Arguments:
            rows: (n, c), which the columns hold.
            u: (n, dim), uniform between 0 and 1; 1/2 by default.
        """
        rows = rows.double()
        u = rows.new_full((len(rows), self.dim), 0.5) if u is None else u.double()
        noise = u.split([law.dims for law in self.laws], 1)
        encoded = [law.encode(x, part) for law, x, part in zip(self.laws, rows.unbind(1), noise, strict=True)]
        return torch.cat([z for z, _ in encoded], 1), torch.stack([log_q for _, log_q in encoded]).sum(0)

    def decode(self, z: Tensor) -> Tensor:
        """Rows as numbers, (n, c), of coordinates, (n, dim)."""
        parts: list[Tensor] = []
        for law, part in zip(self.laws, z.double().split([law.dims for law in self.laws], 1), strict=True):
            parts.append(law.decode(part, source_of(law, parts)))
        return torch.stack(parts, 1)

    # in words

    def __repr__(self) -> str:
        return f"TableColumns({', '.join(f'{column.name}: {column.kind}' for column in self.columns[:4])}, …)"

    def described(self) -> list[tuple[str, str, str, str]]:
        """Of each column its name, its kind, what it is taken as, and remarks."""
        said = [(str(c.name), c.kind, taken_as(c, self.columns), "; ".join(c.remarks)) for c in self.columns]
        return said + [(str(name), "dropped", "", "") for name in self.dropped]

    def __str__(self) -> str:
        lines = [("column", "kind", "taken as", "remarks"), *self.described()]
        widths = [max(len(line[k]) for line in lines) for k in range(4)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _inferred(series: Any, container: str) -> Any:
    """A column of an array of objects as the kind of its own that pandas sees in it."""
    return series.infer_objects() if container != "frame" and series.dtype == object else series


def _is_unordered(column: Column) -> bool:
    law, values = column.law, column.values
    return isinstance(law, Category) and len(law.levels) > 2 and isinstance(values, Labels) and not values.ordered


def _related(column: Column, x: np.ndarray, columns: list[Column], numbers: list[np.ndarray]) -> Column:
    """A column as a copy of an earlier one that says the same, or with gaps that it shares with one."""
    law, gap = column.law, np.isnan(x)
    if isinstance(law, Constant):
        return column
    for j, other in enumerate(numbers):
        if isinstance(columns[j].law, Copy | Constant):
            continue
        if np.array_equal(x, other, equal_nan=True) and (isinstance(law, Number) or _varies(x)):
            return replace(column, law=Copy(j))
        if isinstance(law, Category) and isinstance(columns[j].law, Category) and (pairs := _pairs(other, x)):
            return replace(column, law=Copy(j, pairs))
    if gap.any() and isinstance(law, Category | Number):
        for j, other in enumerate(numbers):
            if np.array_equal(gap, np.isnan(other)) and not isinstance(columns[j].law, Copy):
                if isinstance(law, Number):
                    return replace(column, law=replace(law, source=j, atoms=_without_gap(law.atoms)))
                if len(law.levels) > 2:
                    return replace(column, law=replace(law, source=j, levels=_without_gap(law.levels)))
    return column


def _without_gap(levels: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(level for level in levels if level == level)


def _varies(x: np.ndarray) -> bool:
    """Whether so many rows are not as most that two columns of levels hardly agree by accident."""
    return len(x) - int(np.unique(x, return_counts=True)[1].max()) >= COPIED


def _pairs(x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Which level of x goes with which of y, where they go one for one; else nothing."""
    codes, own = pandas().factorize(x, use_na_sentinel=False)
    others, theirs = pandas().factorize(y, use_na_sentinel=False)
    if not np.array_equal(codes, others) or not _varies(x):
        return ()
    return tuple(zip(map(float, own), map(float, theirs), strict=True))


def taken_as(column: Column, columns: list[Column]) -> str:
    """What a column is for the flow, in words."""
    law, shown = column.law, column.values.shown
    if isinstance(law, Constant):
        return f"always {shown(law.value)}"
    if isinstance(law, Copy):
        return f"{'says the same as' if law.pairs else 'a copy of'} {columns[law.source].name}"
    if isinstance(law, Category):
        listed = ", ".join(shown(level) for level in law.levels[:6])
        more = f" and {len(law.levels) - 6} more" if len(law.levels) > 6 else ""
        said = f"{len(law.levels)} levels: {listed}{more}"
    else:
        assert isinstance(law, Number)
        said = _number_said(column, law)
    return said + (f", missing where {columns[law.source].name} is" if law.source is not None else "")


def _number_said(column: Column, law: Number) -> str:
    said = "numbers"
    if isinstance(column.values, Dates):
        seconds = column.values.step / PER_SECOND[column.values.unit]
        said = "dates by the day" if seconds == DAY else f"times by {seconds:g} s"
    elif law.grid is not None:
        said = f"multiples of {law.grid.width:g}" if law.grid.width != 1 else "whole numbers"
    said += " ≥ 0" if law.positive else ""
    atoms = ", ".join(column.values.shown(atom) for atom in law.atoms)
    return said + (f"; with a probability of their own: {atoms}" if atoms else "")
