"""What the entries of a column are: from entries to numbers, which a law can be learnt of, and back to entries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from wprox.models.flow.table.frames import Series, pandas, rows_said

UNSEEN = -1.0  # the number of a label that is none of a column's
EXACT = 2**53  # up to which float64 has all whole numbers
ISO = {  # how texts that are dates look, and how they are written
    r"\d{4}-\d\d-\d\d": "%Y-%m-%d",
    r"\d{4}-\d\d-\d\d \d\d:\d\d": "%Y-%m-%d %H:%M",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d": "%Y-%m-%dT%H:%M",
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d": "%Y-%m-%d %H:%M:%S",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d": "%Y-%m-%dT%H:%M:%S",
}
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # pandas' units
DAY = 86_400  # seconds
YEARS = -62_135_596_800, 253_402_214_400  # seconds from 1970 to the years 1 and 9999, which can be written
NANOSECOND_YEARS = -9_214_560_000, 9_214_646_400  # to 1678 and 2262, between which there are nanoseconds
OBJECTS = "date"  # the form of `datetime.date`s


@dataclass(frozen=True)
class Values(ABC):
    """What the numbers that stand for a column's entries mean.

    Attributes:
        dtype: of the column, as pandas names it.
    """

    dtype: str

    @abstractmethod
    def numbers(self, series: Series, name: str) -> np.ndarray:
        """(n,), float64: the numbers of entries, NaN where one is missing.

        Raises:
            ValueError: for entries of another kind, with the first rows where they are.
        """

    @abstractmethod
    def entries(self, numbers: np.ndarray) -> Series:
        """The column whose numbers these are."""

    @abstractmethod
    def shown(self, number: float) -> str:
        """An entry in words."""


@dataclass(frozen=True)
class Labels(Values):
    """Text, truth values and categories: each entry by its place among the labels.

    Attributes:
        labels: what there is, texts, numbers or truth values, each once.
        categories: those of a categorical dtype, used or not; else `None`.
        inner: the dtype of the categories.
        ordered: whether the categories have an order.
        missing: how a missing object is written, `None` or NaN.
    """

    labels: tuple[Any, ...]
    categories: tuple[Any, ...] | None = None
    inner: str = "object"
    ordered: bool = False
    missing: float | None = None

    def numbers(self, series: Series, name: str) -> np.ndarray:
        place = {(isinstance(label, bool), label): float(k) for k, label in enumerate(self.labels)}
        gap = series.isna().to_numpy()
        numbers = [
            np.nan if missing else place.get((isinstance(entry, bool | np.bool_), entry), UNSEEN)
            for entry, missing in zip(series.tolist(), gap, strict=True)
        ]
        return np.array(numbers, dtype=np.float64)

    def entries(self, numbers: np.ndarray) -> Series:
        gap = np.isnan(numbers)
        codes = np.where(gap, len(self.labels), numbers).astype(np.int64)
        taken = np.array([*self.labels, None], dtype=object)[codes]
        if self.categories is not None:
            kinds = pandas().Index(list(self.categories), dtype=self.inner)
            return pandas().Series(pandas().Categorical(taken, categories=kinds, ordered=self.ordered))
        if self.dtype == "object":
            taken[gap] = self.missing
        return pandas().Series(taken, dtype=self.dtype)

    def shown(self, number: float) -> str:
        return "missing" if np.isnan(number) else repr(self.labels[int(number)])


@dataclass(frozen=True)
class Numbers(Values):
    """Numbers, which stand for themselves.

    Attributes:
        whole: whether a column of objects holds Python's integers.
    """

    whole: bool = False

    def numbers(self, series: Series, name: str) -> np.ndarray:
        if series.dtype.kind in "iufb" or pandas().api.types.is_numeric_dtype(series.dtype):
            return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
        read = pandas().to_numeric(series, errors="coerce")
        bad = (read.isna() & ~series.isna()).to_numpy()
        if bad.any():
            raise ValueError(f"column {name!r} holds numbers, but {rows_said(bad, series)}; mend these entries")
        return np.asarray(read.to_numpy(dtype=np.float64, na_value=np.nan))

    def entries(self, numbers: np.ndarray) -> Series:
        gap = np.isnan(numbers)
        kind = pandas().api.types.pandas_dtype(self.dtype)
        if self.dtype == "object":
            taken = [
                None if missing else int(x) if self.whole else x
                for x, missing in zip(numbers.tolist(), gap, strict=True)
            ]
            return pandas().Series(taken, dtype=object)
        if not pandas().api.types.is_integer_dtype(kind):
            with np.errstate(over="ignore"):
                return pandas().Series(numbers, dtype="float64").astype(kind)
        ends = np.iinfo(getattr(kind, "numpy_dtype", kind))
        low, high = max(ends.min, -EXACT), min(ends.max, EXACT)
        whole = np.rint(np.where(gap, 0, numbers)).clip(low, high).astype(np.int64)
        series = pandas().Series(whole).astype(kind)
        return series.mask(gap) if gap.any() else series

    def shown(self, number: float) -> str:
        return "missing" if np.isnan(number) else f"{number:.12g}"


@dataclass(frozen=True)
class Dates(Values):
    """Dates and times, by the number of steps from the first.

    Attributes:
        unit: of pandas: "s", "ms", "us" or "ns".
        origin: the first, in units since 1970.
        step: units a step: those of a day where there are whole days only, and so on.
        form: "" for a dtype of dates, `OBJECTS`, or how texts are written.
    """

    unit: str
    origin: int
    step: int
    form: str = ""

    def numbers(self, series: Series, name: str) -> np.ndarray:
        times, gap = times_of(series, name, self.unit, self.form)
        distance = times - self.origin
        steps = (distance // self.step).astype(np.float64) + (distance % self.step) / self.step
        return np.where(gap, np.nan, steps)

    def entries(self, numbers: np.ndarray) -> Series:
        gap = np.isnan(numbers)
        ends = NANOSECOND_YEARS if self.unit == "ns" else YEARS
        lowest, highest = ((end * PER_SECOND[self.unit] - self.origin) // self.step for end in ends)
        steps = np.rint(np.where(gap, 0, numbers).clip(lowest + 1, highest)).astype(np.int64)
        times = (self.origin + steps * self.step).view(f"datetime64[{self.unit}]")
        times[gap] = np.datetime64("NaT")
        series = pandas().Series(times)
        if not self.form:
            zone = getattr(pandas().api.types.pandas_dtype(self.dtype), "tz", None)
            return series.dt.tz_localize("UTC").dt.tz_convert(zone) if zone else series.astype(self.dtype)
        taken = (series.dt.date if self.form == OBJECTS else series.dt.strftime(self.form)).astype(object)
        taken[gap] = None
        return taken.astype(self.dtype)

    def shown(self, number: float) -> str:
        if np.isnan(number):
            return "missing"
        return str(self.entries(np.array([number]))[0]).removesuffix(" 00:00:00")


def times_of(series: Series, name: str, unit: str | None, form: str) -> tuple[np.ndarray, np.ndarray]:
    """The entries of a column of dates in units since 1970, int64, and where they are missing.

    Arguments:
        unit: the entries' own where `None`.
        form: as `Dates` has it; texts and objects of another form are refused.

    Raises:
        ValueError: for what is no date, or none that pandas can hold.
    """
    gap = series.isna().to_numpy()
    if not pandas().api.types.is_datetime64_any_dtype(series.dtype):
        texts = series.astype(str) if form == OBJECTS else series
        written = "%Y-%m-%d" if form == OBJECTS else form or None
        dates = pandas().to_datetime(texts.where(~gap), format=written, errors="coerce")
        bad = dates.isna().to_numpy() & ~gap
        if bad.any():
            raise ValueError(
                f"column {name!r} holds dates, but {rows_said(bad, series)}: no date, or beyond the years that pandas "
                f'holds; mend these entries, or take them as they are by columns={{{name!r}: "category"}}'
            )
        series = dates
    if getattr(series.dt, "tz", None) is not None:
        series = series.dt.tz_convert("UTC").dt.tz_localize(None)
    own = unit or getattr(series.dt, "unit", "ns")
    return series.to_numpy(dtype=f"datetime64[{own}]").astype(np.int64), gap
