r"""How a column becomes coordinates of a flow, and what that adds to the log-likelihood.

An entry v is encoded at random, z ~ q(z | v), so that v is a function of z. Then P(v) = ∫ p(z) 1{v(z) = v} dz, and by
Jensen's inequality

    log P(v) ≥ E_{q(z|v)}[log p(z) − log q(z | v)],

with equality where q is the law of z given v under p. For whole numbers and q uniform this is the bound of Theis, van
den Oord and Bethge (2016); for categories it is that of Hoogeboom et al. (*Argmax flows*, 2021). A law's `encode`
returns z and −log q(z | v), or 0 where z is not random; `decode` is v(z).

Categories have probabilities, numbers densities: where numbers lie on a grid, the probability of a number divided by
the width of its cell, which is the probability itself for whole numbers. So every term of a row's log-likelihood is in
the units of the data, and that of numbers on a fine grid is what it would be without the grid.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from wprox.models.flow.table.grids import Grid
from wprox.models.flow.table.half_line import HALF_LOG, HalfLine
from wprox.models.flow.tails import robust_moments

MARGIN = 1e-6  # of an interval, on each side, that is not drawn: rounding could lead to its neighbour
PRIOR = 0.5  # of a row, that is added to the count of each level (Jeffreys' prior)


def inner(u: Tensor) -> tuple[Tensor, float]:
    """Uniform numbers of (0, 1) as such of its inner part, and the logarithm of the slope."""
    return MARGIN + (1 - 2 * MARGIN) * u, math.log1p(-2 * MARGIN)


def to_normal(u: Tensor) -> tuple[Tensor, Tensor]:
    """z = Φ⁻¹(u), and −log φ(z), the logarithm of dz/du."""
    z = torch.special.ndtri(u.clamp(1e-15, 1 - 1e-15))
    return z, z.square() / 2 + HALF_LOG


@dataclass(frozen=True)
class Intervals:
    r"""Level k as the interval [c_k, c_{k+1}) of (0, 1), as wide as its frequency w_k, and that as a part of the line.

    z = Φ⁻¹(c_k + w_k u) with u uniform has the density φ(z)/w_k on Φ⁻¹ of the interval. Where levels have the
    frequencies w, z is standard normal.

    Attributes:
        widths: (K,), positive, of sum 1.
    """

    widths: Tensor

    @classmethod
    def fit(cls, codes: Tensor, levels: int) -> Intervals:
        """The frequencies of codes 0, …, K − 1, none of them 0."""
        counts = torch.bincount(codes, minlength=levels).double() + PRIOR
        return cls(counts / counts.sum())

    @property
    def edges(self) -> Tensor:
        """c_0, …, c_K."""
        return torch.cat((self.widths.new_zeros(1), self.widths.cumsum(0)))

    def encode(self, codes: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """z and −log q(z | k) = log w_k − log φ(z), (n,) both."""
        u, log_inner = inner(u)
        z, log_slope = to_normal(self.edges[codes] + self.widths[codes] * u)
        return z, log_slope + self.widths[codes].log() + log_inner

    def decode(self, z: Tensor) -> Tensor:
        """The codes, (n,)."""
        return torch.bucketize(torch.special.ndtr(z), self.edges[1:-1].contiguous(), right=True)


class Law(ABC):
    """How a column is encoded.

    Attributes:
        dims: how many coordinates it takes.
        source: the column of which this one is a function, or with which it shares its gaps; it comes earlier.
    """

    dims: int = 0
    source: int | None = None

    @property
    def is_random(self) -> bool:
        """Whether the coordinates are drawn."""
        return False

    def fit(self, x: Tensor) -> Law:
        """The law with what is learned of numbers x, (n,), which it holds: frequencies and moments."""
        return self

    @abstractmethod
    def holds(self, x: Tensor, source: Tensor | None) -> Tensor:
        """Which of the numbers x have a density, (n,).

        Arguments:
            source: the numbers of the column `source`.
        """

    def encode(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """z, (n, dims), and −log q(z | x), (n,).

        Arguments:
            x: (n,), numbers that the law holds.
            u: (n, dims), between 0 and 1: uniform, or 1/2 for the middle.
        """
        return x.new_zeros(len(x), 0), torch.zeros_like(x)

    @abstractmethod
    def decode(self, z: Tensor, source: Tensor | None) -> Tensor:
        """x, (n,), of z, (n, dims)."""


@dataclass(frozen=True)
class Constant(Law):
    """One number only, which is put back.

    Attributes:
        value: the number.
    """

    value: float

    def holds(self, x: Tensor, source: Tensor | None) -> Tensor:
        return x == self.value

    def decode(self, z: Tensor, source: Tensor | None) -> Tensor:
        return z.new_full((len(z),), self.value)


@dataclass(frozen=True)
class Copy(Law):
    """What another column is, or says: a function of its levels.

    Attributes:
        source: the column.
        pairs: (level of the source, level here), one for one; none where the numbers are the same.
    """

    source: int
    pairs: tuple[tuple[float, float], ...] = ()

    def _of(self, source: Tensor) -> Tensor:
        if not self.pairs:
            return source
        table = source.new_tensor(self.pairs)
        return table[:, 1][find(source, table[:, 0]).clamp(min=0)]

    def holds(self, x: Tensor, source: Tensor | None) -> Tensor:
        assert source is not None
        return same(x, self._of(source))

    def decode(self, z: Tensor, source: Tensor | None) -> Tensor:
        assert source is not None
        return self._of(source)


@dataclass(frozen=True)
class Category(Law):
    """Levels, of which each has a probability: `Intervals`, in the order of the levels.

    Attributes:
        levels: numbers, NaN where a gap is a level of its own.
        intervals: learned.
        source: the column whose gaps this one shares; the coordinate there is a standard normal number.
    """

    levels: tuple[float, ...]
    intervals: Intervals | None = None
    source: int | None = None
    dims = 1

    @property
    def is_random(self) -> bool:
        return True

    def fit(self, x: Tensor) -> Category:
        codes = find(x, x.new_tensor(self.levels))
        return replace(self, intervals=Intervals.fit(codes[codes >= 0], len(self.levels)))

    def holds(self, x: Tensor, source: Tensor | None) -> Tensor:
        known = find(x, x.new_tensor(self.levels)) >= 0
        return known if source is None else torch.where(source.isnan(), x.isnan(), known)

    def encode(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        assert self.intervals is not None
        codes = find(x, x.new_tensor(self.levels))
        z, log_q = self.intervals.encode(codes.clamp(min=0), u[:, 0])
        if self.source is not None:
            anything, log_normal = to_normal(u[:, 0])
            z, log_q = torch.where(codes < 0, anything, z), torch.where(codes < 0, log_normal, log_q)
        return z[:, None], log_q

    def decode(self, z: Tensor, source: Tensor | None) -> Tensor:
        assert self.intervals is not None
        x = z.new_tensor(self.levels)[self.intervals.decode(z[:, 0])]
        return x if source is None else x.masked_fill(source.isnan(), math.nan)


@dataclass(frozen=True)
class Number(Law):
    r"""Numbers, with atoms among them where some have a probability of their own, such as gaps and zeros.

    A first coordinate says which atom it is, or that it is none (`Intervals`); the other is the number y, with uniform
    noise as wide as a cell where it lies on a grid. At an atom it is a number drawn from N(m, s²), with the mean and
    the standard deviation of those elsewhere, so that −log q = log s − log φ((y − m)/s): the pattern of gaps is part of
    the law, and what is missing is integrated out.

    Attributes:
        grid: on which the numbers lie, if any.
        atoms: the numbers with probabilities; NaN for gaps, infinite ones as well.
        noisy: whether the grid is coarse enough for noise.
        positive: whether the numbers are never below 0, and their coordinate is `HalfLine`'s.
        source: the column whose gaps this one shares.
        kinds: learned; of the atoms, and of all other numbers.
        half: learned, where they are positive.
        mean, std: learned; of the coordinate of the numbers that are no atoms.
    """

    grid: Grid | None = None
    atoms: tuple[float, ...] = ()
    noisy: bool = True
    positive: bool = False
    source: int | None = None
    kinds: Intervals | None = None
    half: HalfLine | None = None
    mean: float = 0.0
    std: float = 1.0

    @property
    def dims(self) -> int:  # type: ignore[override]
        return 1 + bool(self.atoms)

    @property
    def is_random(self) -> bool:
        return bool(self.atoms) or self.source is not None or (self.grid is not None and self.noisy)

    def _code(self, x: Tensor) -> Tensor:
        """Which atom each number is, K for none and K + 1 for gaps that are the source's."""
        code = find(x, x.new_tensor(self.atoms))
        return torch.where(code >= 0, code, len(self.atoms) + (x.isnan() if self.source is not None else 0))

    def fit(self, x: Tensor) -> Number:
        code = self._code(x)
        plain = x[code == len(self.atoms)]
        half = HalfLine.fit(plain, self._shift) if self.positive else None
        plain = plain if half is None else half.forward(plain)[0]
        mean, std = (float(moment[0]) for moment in robust_moments(plain[:, None])) if len(plain) > 1 else (0.0, 1.0)
        std = std if std > 0 else 1.0  # of what may be drawn, so that any will do
        kinds = Intervals.fit(code[code <= len(self.atoms)], len(self.atoms) + 1) if self.atoms else None
        return replace(self, kinds=kinds, half=half, mean=mean, std=std)

    @property
    def _shift(self) -> float:
        """From 0 to the end of its cell."""
        return 0.0 if self.grid is None else self.grid.width / 2

    def holds(self, x: Tensor, source: Tensor | None) -> Tensor:
        code = self._code(x)
        on = x.isfinite() if self.grid is None else self.grid.holds(x)
        known = (code < len(self.atoms)) | (on & (x >= 0) if self.positive else on)
        return known if source is None else torch.where(source.isnan(), x.isnan(), known)

    def encode(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        code, noise = self._code(x), u[:, -1]
        plain = code == len(self.atoms)
        y, log_q = x, torch.zeros_like(x)
        if self.grid is not None and self.noisy:
            within, log_inner = inner(noise)
            y, log_q = x + self.grid.width * (within - 0.5), log_q + log_inner
        if self.half is not None:
            y, log_slope = self.half.forward(torch.where(plain, y, 0.0))
            log_q = log_q + log_slope
        if not bool(plain.all()):
            drawn, log_slope = to_normal(noise)
            y = torch.where(plain, y, self.mean + self.std * drawn)
            log_q = torch.where(plain, log_q, log_slope + math.log(self.std))
        if self.kinds is None:
            return y[:, None], log_q
        z, log_kind = self.kinds.encode(code.clamp(max=len(self.atoms)), u[:, 0])
        if self.source is not None:  # the source says so; the kind is a standard normal number
            shared = code > len(self.atoms)
            anything, log_normal = to_normal(u[:, 0])
            z, log_kind = torch.where(shared, anything, z), torch.where(shared, log_normal, log_kind)
        return torch.stack((z, y), 1), log_q + log_kind

    def decode(self, z: Tensor, source: Tensor | None) -> Tensor:
        x = z[:, -1] if self.half is None else self.half.inverse(z[:, -1])
        x = x if self.grid is None else self.grid.nearest(x)
        x = x.clamp(min=0.0) if self.positive else x
        if self.kinds is not None:
            code = self.kinds.decode(z[:, 0])
            atoms = z.new_tensor((*self.atoms, 0.0))
            x = torch.where(code < len(self.atoms), atoms[code], x)
        return x if source is None else x.masked_fill(source.isnan(), math.nan)


def same(x: Tensor, y: Tensor) -> Tensor:
    """Where two columns are the same, gaps included."""
    return (x == y) | (x.isnan() & y.isnan())


def find(x: Tensor, levels: Tensor) -> Tensor:
    """The place of each number among the levels, −1 where it is none of them; NaN is found where it is a level."""
    code = torch.full(x.shape, -1, dtype=torch.int64, device=x.device)
    if not len(levels):
        return code
    numbers = (~levels.isnan()).nonzero()[:, 0]
    if len(numbers):
        order = numbers[levels[numbers].argsort()]
        ranked = levels[order].contiguous()
        place = torch.searchsorted(ranked, x.masked_fill(x.isnan(), 0.0).contiguous()).clamp(max=len(ranked) - 1)
        code = torch.where(ranked[place] == x, order[place], code)
    gaps = levels.isnan().nonzero()
    return torch.where(x.isnan(), gaps[0, 0], code) if len(gaps) else code


def source_of(law: Law, columns: Sequence[Tensor]) -> Tensor | None:
    """The numbers of the column that a law looks at."""
    return None if law.source is None else columns[law.source]
