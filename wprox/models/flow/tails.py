"""Scales that no single row decides, and tails heavier than Gaussian where held-out rows want them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.maps._normal_mixture import normal_quantile

CLIP = 20.0  # robust standard deviations from the median beyond which an entry does not count for more
FEW = 0.02  # of the rows, beyond which entries so far out are a mode where their distances differ by less than this:
ALIKE = 0.3  # the standard deviation of their logarithm, which is 1 for the tails of a Cauchy law
START = 3.0  # standard deviations at which heavy tails begin
HEAVY = (0.25, 0.5, 1.0)  # the tails to choose from: 1/λ moments are finite, for λ = 1 as few as Cauchy's
GAIN = 0.05  # nats a row and column of held-out likelihood, from which on a tail is heavy
FEWEST = 10  # rows to choose tails by
BLOCK = 2**20  # numbers at once


def robust_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of each column of x: (n, d), of its entries clipped to where most lie.

    That is, within 20 robust standard deviations of the median, 1.4826 times the median distance from it of the
    entries that are not at it. One of n entries then moves the mean by at most 20/n of them, wherever it is; columns
    with no entry so far out, as nearly all have none, keep their mean and standard deviation. So do those where many
    lie equally far out, which are a mode of their own and neither outliers nor a tail.
    """
    mean, std = x.mean(0), x.std(0)
    for columns in _column_blocks(x):
        block = x[:, columns]
        middle, reach, has_mode = _middle(block)
        far = ((block - middle).abs() > reach).any(0) & ~has_mode
        if bool(far.any()):
            clipped = torch.minimum(torch.maximum(block, middle - reach), middle + reach)[:, far]
            mean[columns][far], std[columns][far] = clipped.mean(0), clipped.std(0)
    return mean, std


def _middle(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The median of each column, how far most entries reach from it, and whether many are a mode beyond, (d,) each."""
    middle = x.median(0).values
    distance = (x - middle).abs()
    reach = CLIP * 1.4826 * torch.where(distance > 0, distance, math.nan).nanmedian(0).values
    far = distance > reach
    logs = torch.where(far, distance, math.nan).log_()
    variance = (logs - logs.nanmean(0)).square_().nanmean(0)
    return middle, reach, (far.sum(0) > max(1, FEW * len(x))) & (variance < ALIKE**2)


@dataclass(frozen=True)
class Tails:
    r"""z ↦ y, column by column: the identity for |z| ≤ a = 3, and beyond from a power law to Gaussian tails.

    With Φ̄(y) = P(N(0, 1) > y), exceedances follow a generalised Pareto law that fits smoothly to the identity,

        Φ̄(y) = Φ̄(a) (1 + λ (|z| − a)/σ)^{−1/λ},    σ = Φ̄(a)/φ(a),    y of the sign of z,

    so that a normal y makes a z with 1/λ moments. (Hickling and Prangle, *Flexible tails for normalizing flows*, 2025,
    have the same tails without the identity in the middle.)

    Attributes:
        strength: λ ≥ 0 of each column, (d,); 0 where z is left as it is.
    """

    strength: Tensor

    @classmethod
    def fit(cls, z: Tensor) -> Tails:
        """The tails of greatest held-out likelihood of standardised columns z: (n, d), where it is clearly greater.

        Columns with a mode far out have none. Both halves of the rows are held out in turn, and standardised by the
        other. With a normal law behind the map, the gain of a tail is the mean of (z² − y²)/2 + log ∂y/∂z, to which
        only rows beyond a contribute.
        """
        strength = z.new_zeros(z.shape[1])
        if len(z) < FEWEST:
            return cls(strength)
        moments = [robust_moments(half) for half in (z[::2], z[1::2])]
        for columns in _column_blocks(z):
            gains = z.new_zeros(len(HEAVY) + 1, len(strength[columns]))
            for half, (mean, std) in zip((z[1::2], z[::2]), moments, strict=True):
                held_out = (half[:, columns] - mean[columns]) / std[columns]
                for k, heavy in enumerate(HEAVY):
                    y, log_slope = cls(torch.full_like(std[columns], heavy)).forward(held_out)
                    gain = (held_out.square() - y.square()) / 2 + log_slope
                    gains[k + 1] += gain.sum(0) / len(z)
            best, choice = gains.max(0)
            heavier = (best > GAIN) & ~_middle(z[:, columns])[2]
            strength[columns] = torch.where(heavier, z.new_tensor((0.0, *HEAVY))[choice], 0.0)
        return cls(strength)

    @property
    def any(self) -> bool:
        """Whether any column has heavy tails."""
        return bool((self.strength > 0).any())

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """y and log ∂y/∂z, (n, d) both."""
        y, log_slope = z.clone(), torch.zeros_like(z)
        beyond, far, strength = self._beyond(z)
        growth = (strength * (far.abs() - START) / SIGMA).log1p()
        log_survival = -growth / strength
        size = normal_quantile(LOG_TAIL + log_survival)
        y[beyond] = size.copysign(far)
        log_slope[beyond] = (size.square() - START**2) / 2 + log_survival - growth
        return y, log_slope

    def inverse(self, y: Tensor) -> Tensor:
        """z, (n, d)."""
        z = y.clone()
        beyond, far, strength = self._beyond(y)
        log_survival = torch.special.log_ndtr(-far.abs()) - LOG_TAIL
        z[beyond] = (START + SIGMA * (-strength * log_survival).expm1() / strength).copysign(far)
        return z

    def _beyond(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where z is in a heavy tail, (n, d), the entries there, and the strengths of their columns."""
        beyond = (z.abs() > START) & (self.strength > 0)
        return beyond, z[beyond], self.strength.expand_as(z)[beyond]


LOG_TAIL = float(torch.special.log_ndtr(torch.tensor(-START, dtype=torch.float64)))  # log Φ̄(a)
SIGMA = math.exp(LOG_TAIL + START**2 / 2) * math.sqrt(2 * math.pi)


def _column_blocks(x: Tensor) -> list[slice]:
    width = max(1, BLOCK // len(x))
    return [slice(start, start + width) for start in range(0, x.shape[1], width)]
