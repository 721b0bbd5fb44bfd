"""The points that a JKO flow is trained on: some rows held out, the others dequantised, smoothed and jittered."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox._checks import check_non_negative
from wprox.maps._memory import in_batches
from wprox.measures import Particles
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.settings import TableSize

NUMBERS = 2**22  # that are preprocessed at once
NOISE_ROWS = 10_000  # random preprocessing is drawn repeatedly until a training set has about this many rows


@dataclass(frozen=True)
class FlowData:
    """Points to train on and points held out, in standardised units.

    Attributes:
        training: the points of the training rows, several a row where noise is added to them.
        held_out: those of rows that are not trained on, without jitter.
        offset: the mean of −log|det ∂z/∂x| over the held-out rows, in nats: their objective plus this is their NLL in
            the units of the data.
        size: of the training rows.
        jitter: the standard deviation of the noise on the training points, or one a column, (d,).
    """

    training: Particles
    held_out: Particles
    offset: float
    size: TableSize
    jitter: Tensor | float

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

        Raises:
            ValueError, TypeError: for a jitter that is not a number ≥ 0.
        """
        jitter = None if jitter is None else check_non_negative(jitter, "jitter")
        size = TableSize(len(X), preprocessing.dim)
        held_out, offset = _drawn(validation, preprocessing, generator)
        training, _ = _drawn(X, preprocessing, generator)
        if jitter is None:
            jitter = _best_bandwidth(training, held_out) if size.has_few_rows and size.has_few_columns else 0.0
        if jitter:
            training = _jittered(training, jitter, generator)
        return cls(training, held_out, offset, size, jitter)

    @classmethod
    def of_points(
        cls,
        z: Tensor,
        kept: Tensor,
        left_out: Tensor,
        offset: float,
        jitter: Tensor | float,
        generator: torch.Generator,
    ) -> FlowData:
        """Standardised points (n, d) of which some are kept to train on and some left out."""
        training, held_out = (Particles(z[rows].float()) for rows in (kept, left_out))
        if isinstance(jitter, Tensor):
            training = _jittered(training, jitter.float(), generator)
        return cls(training, held_out, offset, TableSize(len(kept), z.shape[1]), jitter)


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


def _drawn(X: Tensor, preprocessing: Preprocessing, generator: torch.Generator) -> tuple[Particles, float]:
    """The points of rows X, several a row where preprocessing is random, and their mean −log|det ∂z/∂x|."""
    copies = min(20, math.ceil(NOISE_ROWS / len(X))) if preprocessing.is_random else 1
    rows = X.repeat(copies, 1) if copies > 1 else X
    at_once = len(rows) if preprocessing.is_random else max(1, NUMBERS // X.shape[1])
    z, log_det = in_batches(lambda part: _single(*preprocessing.forward(part, generator)), rows, at_once)
    return Particles(z), -float(log_det.mean())


def _single(z: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    return z.float(), log_det


def _jittered(training: Particles, scale: Tensor | float, generator: torch.Generator) -> Particles:
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
