"""The points that a JKO flow is trained on: some rows held out, the others dequantised, smoothed and jittered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.measures import Particles
from wprox.models.flow.preprocessing import Preprocessing

NOISE_ROWS = 10_000  # random preprocessing is drawn repeatedly until a training set has about this many rows
FEW_COLUMNS = 8  # up to which batches are larger, learning rates higher and small tables jittered
FEW_ROWS = 1000  # a column, under which a flow would learn its table by heart


@dataclass(frozen=True)
class FlowData:
    """Points to train on and points held out, in standardised units.

    Attributes:
        training: the points of the training rows, several a row where noise is added to them.
        held_out: those of rows that are not trained on, without jitter.
        offset: the mean of −log|det ∂z/∂x| over the held-out rows, in nats: their objective plus this is their NLL in
            the units of the data.
        rows: how many rows there are to train on.
        jitter: the standard deviation of the noise on the training points.
    """

    training: Particles
    held_out: Particles
    offset: float
    rows: int
    jitter: float

    @classmethod
    def prepare(
        cls,
        X: Tensor,
        validation: Tensor,
        preprocessing: Preprocessing,
        jitter: float | None,
        generator: torch.Generator,
    ) -> FlowData:
        """The points of training rows and of validation rows, (n, n_features) each.

        Arguments:
            jitter: as `JKOFlow` takes it; `None` decides by the size of the table.
        """
        held_out, offset = _drawn(validation, preprocessing, generator)
        training, _ = _drawn(X, preprocessing, generator)
        if jitter is None:
            small = _has_few_rows(len(X), training.dim) and training.dim <= FEW_COLUMNS
            jitter = _best_bandwidth(training, held_out) if small else 0.0
        if jitter:
            training = _jittered(training, jitter, generator)
        return cls(training, held_out, offset, len(X), float(jitter))

    @property
    def has_few_columns(self) -> bool:
        return self.training.dim <= FEW_COLUMNS

    @property
    def has_few_rows(self) -> bool:
        return _has_few_rows(self.rows, self.training.dim)


def hold_out(X: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out."""
    held = round(fraction * len(X))
    if held < 1 or len(X) - held < 2:
        needed = math.ceil(0.5 / fraction) + 2
        raise ValueError(
            f"X has {len(X)} rows; holding out {fraction:g} of them takes at least {needed}. "
            "Give more rows, or held-out rows as validation"
        )
    order = torch.randperm(len(X), generator=generator).to(X.device)
    return X[order[held:]], X[order[:held]]


def _has_few_rows(rows: int, dim: int) -> bool:
    return rows < FEW_ROWS * dim


def _drawn(X: Tensor, preprocessing: Preprocessing, generator: torch.Generator) -> tuple[Particles, float]:
    """The points of rows X, several a row where preprocessing is random, and their mean −log|det ∂z/∂x|."""
    copies = min(20, math.ceil(NOISE_ROWS / len(X))) if preprocessing.is_random else 1
    z, log_det = preprocessing.forward(X.repeat(copies, 1), generator)
    return Particles(z.float()), -float(log_det.mean())


def _jittered(training: Particles, scale: float, generator: torch.Generator) -> Particles:
    """Copies of the training points with noise, up to about NOISE_ROWS of them."""
    points = training.points.repeat(max(1, math.ceil(NOISE_ROWS / len(training))), 1)
    noise = torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)
    return Particles(points + scale * noise)


def _best_bandwidth(training: Particles, held_out: Particles, most: int = 2000) -> float:
    """The bandwidth h of the Gaussian kernel density estimate of greatest held-out likelihood, to a factor of √2."""
    squares = torch.cdist(held_out.points[:most], training.points[:most]).square()
    bandwidths = 0.01 * 2 ** (torch.arange(14, device=squares.device) / 2)
    likelihoods = [torch.logsumexp(-squares / (2 * h**2), 1).mean() - training.dim * h.log() for h in bandwidths]
    return float(bandwidths[torch.stack(likelihoods).argmax()])
