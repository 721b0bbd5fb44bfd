"""What a report says, gathered once from real and generated rows; nothing here trains a model of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from wprox.app.html.comparison import (
    LatentFit,
    MarginalDistance,
    Nearest,
    associations,
    latent_fit,
    marginal_distance,
    nearest,
)
from wprox.metrics import TwoSample, Utility, classifier_two_sample, train_on_synthetic
from wprox.metrics.columns import Columns, as_columns

WIDEST = 30  # columns whose associations are shown


@dataclass(frozen=True)
class Tables:
    """The rows that a report compares: arrays, or data frames with the same columns.

    Attributes:
        fitted: that the model was fitted to.
        held_out: that it has not seen.
        generated: that it has drawn.
        names: of the columns, where these are arrays.
    """

    fitted: Any
    held_out: Any
    generated: Any
    names: Sequence[str]

    def columns(self) -> list[Columns]:
        """Of the fitted, the held-out, all real, and the generated rows."""
        tables = (self.fitted, self.held_out, self.generated)
        fitted, held_out, generated = (
            [replace(column, name=name) for column, name in zip(table, self.names, strict=True)]
            for table in as_columns(tables, ("fitted", "held_out", "generated"))
        )
        real = [
            replace(parts[0], values=np.concatenate([part.values for part in parts]))
            for parts in zip(fitted, held_out, strict=True)
        ]
        return [fitted, held_out, real, generated]


@dataclass(frozen=True)
class Facts:
    """What a report says of a model, but for its likelihood.

    Attributes:
        real: all real rows.
        generated: as many generated rows.
        marginals: how far the columns of both are apart.
        associations: of real and of generated columns, (d, d) each; of the first 30 columns.
        nearest: distances to training rows.
        latent: how Gaussian the latent points of held-out rows are.
        two_sample: what a classifier tells of held-out and generated rows; why it was not asked, where it was not.
        target: the column that is predicted; `None` for none.
        utility: how well, from real and from generated rows; why it is not known, where it is not.
    """

    real: Columns
    generated: Columns
    marginals: list[MarginalDistance]
    associations: tuple[np.ndarray, np.ndarray]
    nearest: Nearest
    latent: LatentFit
    two_sample: TwoSample | str
    target: str | None
    utility: Utility | str | None


def gather(tables: Tables, latents: np.ndarray, target: str | None = None, seed: int = 0) -> Facts:
    """The facts about generated rows.

    Arguments:
        tables: real and generated rows.
        latents: the latent points of held-out rows, (n, dim).
        target: the name of a column to predict.
        seed: of the classifiers.
    """
    fitted, held_out, real, generated = tables.columns()
    place = None if target is None else list(tables.names).index(target)
    return Facts(
        real=real,
        generated=generated,
        marginals=[marginal_distance(*pair) for pair in zip(real, generated, strict=True)],
        associations=(associations(real[:WIDEST]), associations(generated[:WIDEST])),
        nearest=nearest(fitted, held_out, generated),
        latent=latent_fit(latents),
        two_sample=_two_sample(tables, seed),
        target=target,
        utility=None if place is None else _utility(tables, place, seed),
    )


def _two_sample(tables: Tables, seed: int) -> TwoSample | str:
    try:
        return classifier_two_sample(tables.held_out, tables.generated, seed)
    except ValueError as error:  # too few rows
        return str(error)


def _utility(tables: Tables, place: int, seed: int) -> Utility | str:
    try:
        return train_on_synthetic(tables.fitted, tables.generated, tables.held_out, place, seed)
    except ValueError as error:  # a target that does not vary, or the only column
        return str(error)
