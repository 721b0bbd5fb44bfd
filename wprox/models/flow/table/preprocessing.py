"""Rows of a table of mixed columns as standardised points, and back, with the likelihood bookkeeping on the way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wprox.models.flow.preprocessing import LIKELIHOOD_DRAWS, Preprocessing
from wprox.models.flow.table.columns import TableColumns


class TablePreprocessing(Preprocessing):
    """`Preprocessing` of coordinates that `TableColumns` makes of rows: standardised, with Gaussian tails, smoothed.

    Rows are numbers, (n, c), as `TableColumns.read` has them, coordinates (n, dim).

    Arguments:
        columns: of the table.
        standardize, smoothing, plain: as for `Preprocessing`.
    """

    def __init__(
        self, columns: TableColumns, standardize: bool = True, smoothing: float = 0.0, plain: bool = False
    ) -> None:
        super().__init__(standardize, smoothing=smoothing, plain=plain)
        self.columns = columns

    def fit(self, x: Tensor, columns: list[str] | None = None) -> TablePreprocessing:
        self.columns = self.columns.fit(x)
        generator = torch.Generator(device=x.device).manual_seed(0)
        u = torch.rand(len(x), self.columns.dim, generator=generator, dtype=torch.float64, device=x.device)
        super().fit(self.columns.encode(x, u)[0], self.columns.coordinates)
        return self

    @property
    def is_random(self) -> bool:
        return self.columns.is_random or self.smoothing > 0

    def inside(self, x: Tensor) -> Tensor:
        """Which rows have a density: those of known levels, on the grids, with gaps where there may be some, (n,)."""
        return self.columns.holds(x).all(1)

    def check(self, x: Any, name: str = "X", within_bounds: bool = True) -> Tensor:
        held = self.columns.holds(x)
        if within_bounds and not bool(held.all()):
            row, place = (~held).nonzero()[0].tolist()
            column = self.columns.columns[place]
            number = float(x[row, place])
            entry = "a label" if number == -1 and not hasattr(column.values, "unit") else column.values.shown(number)
            raise ValueError(
                f"{int((~held).sum())} entries of {name} are none that the columns had in the data that the flow was "
                f"fitted to, so that their density is 0 and they have no latent point; the first is in row {row}, "
                f"column {column.name!r}: {entry}"
            )
        return x

    def row_noise(self, x: Tensor, draws: int) -> Tensor:
        return super().row_noise(self.columns.encode(x)[0], draws)

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if generator is not None:
            noise = torch.rand(len(x), self.dim, generator=generator, dtype=torch.float64, device=x.device)
        encoded, log_q = self.columns.encode(x, noise)
        z, log_det = super().forward(encoded, generator)
        return z.to(x.dtype), (log_det + log_q).to(x.dtype)

    def scored(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        if not self.columns.is_random:
            return [self.forward(x)]
        return [self.forward(x, noise=noise) for noise in self.row_noise(x, LIKELIHOOD_DRAWS)]

    def inverse(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.columns.decode(super().inverse(z.double())).to(dtype or z.dtype)
