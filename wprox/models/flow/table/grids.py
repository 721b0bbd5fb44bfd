"""Grids on which the numbers of a column lie: whole numbers, decimals, multiples of a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MOST_DECIMALS = 9
LARGEST = 2.0**52  # of a grid's counts, which are exact
SPARE = 100.0  # steps of floating point within a step of a grid, at least: else every number is on one
ENOUGH = 20  # different numbers, from which on a common divisor is no accident
ROUNDINGS = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Grid:
    """The numbers (offset + step · k)/10^decimals, k whole, rounded to the precision of the column.

    Attributes:
        offset, step: whole numbers; step ≥ 1.
        decimals: digits after the point.
        rounding: "float16", "float32" or "float64".
    """

    offset: int = 0
    step: int = 1
    decimals: int = 0
    rounding: str = "float64"

    @property
    def width(self) -> float:
        """The distance of two neighbours."""
        return self.step / 10**self.decimals

    def place(self, x: Tensor) -> Tensor:
        """k, whole as a float64, of the number next to x."""
        return ((x * 10.0**self.decimals - self.offset) / self.step).round()

    def number(self, k: Tensor) -> Tensor:
        """The number at k. An integer divided by a power of ten is rounded once, as the reading of its digits is."""
        exact = (self.offset + self.step * k) / 10.0**self.decimals
        return exact.to(ROUNDINGS[self.rounding]).double()

    def nearest(self, x: Tensor) -> Tensor:
        """The number of the grid next to x."""
        return self.number(self.place(x))

    def holds(self, x: Tensor) -> Tensor:
        """Which x are on the grid."""
        return self.nearest(x) == x


def find_grid(distinct: np.ndarray, rounding: str = "float64") -> Grid | None:
    """The coarsest grid of few decimals that has all these numbers, `None` where they have the digits of a continuum.

    Arguments:
        distinct: (K,), finite, increasing.
        rounding: the precision that the numbers have.
    """
    largest = float(np.abs(distinct).max())
    precision = float(np.finfo(rounding).eps) * largest * SPARE
    for decimals in range(MOST_DECIMALS + 1):
        if 10.0**-decimals < precision or largest * 10.0**decimals > LARGEST:
            return None
        grid = Grid(0, 1, decimals, rounding)
        x = torch.as_tensor(distinct)
        if bool(grid.holds(x).all()):
            k = grid.place(x).numpy().astype(np.int64)
            if len(k) < ENOUGH:
                return grid
            step = int(np.gcd.reduce(np.diff(k)))
            return Grid(int(k[0]) % step, step, decimals, rounding)
    return None
