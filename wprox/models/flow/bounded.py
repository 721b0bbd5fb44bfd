"""Columns between bounds as columns on the line, and back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

EDGE = 1e-4  # of the mean distance from a bound, in `Probit`
MARGIN = 0.01  # of the range on each side, in `ShrunkLogit`


@dataclass(frozen=True)
class Bounded(ABC):
    """An increasing map of the interval between two bounds to the line, column by column.

    Attributes:
        low: (d,).
        high: (d,).
    """

    low: Tensor
    high: Tensor

    @property
    def width(self) -> Tensor:
        return self.high - self.low

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, (n, d), and log ∂z/∂x, (n, d), of x between the bounds."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """x, (n, d), between the bounds."""

    def state(self) -> dict[str, Tensor]:
        """What makes the map anew, as tensors."""
        return {"low": self.low, "high": self.high}


def bounded_from_state(state: dict[str, Tensor]) -> Bounded | None:
    """The map whose `state` is part of this, where one is."""
    if "low" not in state:
        return None
    if "edges" in state:
        return Probit(state["low"], state["high"], state["edges"])
    return ShrunkLogit(state["low"], state["high"])


@dataclass(frozen=True)
class Probit(Bounded):
    r"""z = Φ⁻¹(p) with p = (x − low)/(high − low), which maps the open interval onto the line.

    So a density of z is one of x: none of its mass lies outside the bounds or on them. Uniform x make normal z, and
    where P(p < s) falls like s^α, as for Beta laws, P(z < −a) falls like exp(−α a²/2): however data crowd at a bound,
    the tails of z are Gaussian.

    Numbers on a bound have no finite z, and no density could be right about many of them. So the last stretch before a
    bound, 10⁻⁴ of the mean distance from it, has no structure of its own: `spread` draws what lies there anew,
    uniformly, as integers are dequantised; without drawing, a number on the bound counts as the stretch's middle.

    Attributes:
        edges: (2, d), the lengths of the stretches before low and high, in units of p.
    """

    edges: Tensor

    @classmethod
    def fit(cls, x: Tensor, low: Tensor, high: Tensor) -> Probit:
        """The map for data x, (n, d)."""
        place = (x.mean(0) - low) / (high - low)
        return cls(low, high, EDGE * torch.stack((place, 1 - place)))

    def spread(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x, (n, d), with the entries in the last stretch before a bound drawn anew there."""
        low, high = self.edges * self.width
        before, after = x < self.low + low, x > self.high - high
        if not bool((before | after).any()):
            return x
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        x = torch.where(before, self.low + low * noise, x)
        return torch.where(after, self.high - high * noise, x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        below, above = (x - self.low) / self.width, (self.high - x) / self.width
        below = torch.where(below > 0, below, self.edges[0] / 2)
        above = torch.where(above > 0, above, self.edges[1] / 2)
        # from the nearer end, where p has all its digits, and there alone: at the other the gradient may be infinite
        size = torch.special.ndtri(torch.where(below < above, below, above))
        z = torch.where(below < above, size, -size)
        return z, 0.5 * (z.square() + math.log(2 * math.pi)) - self.width.log()

    def inverse(self, z: Tensor) -> Tensor:
        # torch's ndtr is 0 from −8.3 on
        distance = self.width * torch.special.erfc(z.abs() / math.sqrt(2)) / 2
        return torch.where(z < 0, self.low + distance, self.high - distance)

    def state(self) -> dict[str, Tensor]:
        return super().state() | {"edges": self.edges}


@dataclass(frozen=True)
class ShrunkLogit(Bounded):
    """z = logit(m + (1 − 2m) p), m = 0.01: the map of flows from 0.1.0, which files may hold, and of baselines.

    What a density of z puts beyond the margins lies on the bounds in samples, and is missing in the density of x.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = MARGIN + (1 - 2 * MARGIN) * (x - self.low) / self.width
        return p.logit(), math.log(1 - 2 * MARGIN) - self.width.log() - p.log() - (-p).log1p()

    def inverse(self, z: Tensor) -> Tensor:
        x = self.low + self.width * (z.sigmoid() - MARGIN) / (1 - 2 * MARGIN)
        return x.clamp(self.low, self.high)
