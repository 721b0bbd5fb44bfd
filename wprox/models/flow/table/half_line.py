"""Numbers that are never below 0 as numbers on the line, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.maps._normal_mixture import normal_quantile
from wprox.models.flow.tails import GAIN

HALF_LOG = 0.5 * math.log(2 * math.pi)
FAR = 7.0  # scales, beyond which 1 − e^{−t} has lost digits
LEAST = 1e-9  # of the scale: where 0 itself is


@dataclass(frozen=True)
class HalfLine:
    r"""z = Φ⁻¹(1 − e^{−t}) with t = (x + shift)/scale, an increasing map of [−shift, ∞) onto the line.

    Exponential t make normal z, and all Gamma laws nearly: where P(t < s) falls like s^α, P(z < −a) falls like
    exp(−α a²/2), and for large t, z grows like √(2t).

    Attributes:
        scale: > 0; the mean of x + shift.
        shift: ≥ 0; half a cell, where x lie on a grid.
    """

    scale: float
    shift: float = 0.0

    @classmethod
    def fit(cls, x: Tensor, shift: float) -> HalfLine:
        """The map for numbers x, (n,)."""
        return cls(float(x.mean() + shift) or 1.0 if len(x) else 1.0, shift)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and log ∂z/∂x, (n,) both."""
        t = ((x + self.shift) / self.scale).clamp(min=LEAST)
        far = t > FAR
        z = torch.where(far, normal_quantile(-t.where(far, FAR)), torch.special.ndtri(-(-t.clamp(max=FAR)).expm1()))
        return z, z.square() / 2 + HALF_LOG - t - math.log(self.scale)

    def inverse(self, z: Tensor) -> Tensor:
        """x, (n,); t = −log Φ(−z)."""
        return (-torch.special.log_ndtr(-z) * self.scale - self.shift).clamp(min=-self.shift)


def wants_half_line(x: Tensor, shift: float) -> bool:
    """Whether numbers x, (n,), not below 0, are likelier, by `GAIN` nats a number, as normal numbers behind the map.

    Both halves are held out in turn, and their moments are those of the other, as tails are chosen.
    """
    if len(x) < 20 or float(x.min()) < 0:
        return False
    gain = 0.0
    for rows, others in ((x[::2], x[1::2]), (x[1::2], x[::2])):
        map = HalfLine.fit(rows, shift)
        (z, _), (y, log_slope) = map.forward(rows), map.forward(others)
        gain += float(_log_normal(others, rows).neg().sum() + (_log_normal(y, z) + log_slope).sum()) / len(x)
    return gain > GAIN


def _log_normal(x: Tensor, rows: Tensor) -> Tensor:
    """The log-density of x under the normal law with the moments of rows."""
    mean, std = rows.mean(), rows.std().clamp(min=1e-300)
    return -((x - mean) / std).square() / 2 - HALF_LOG - std.log()
