"""The particles of a neural step: what is trained on, what is held out, and the units that they set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.maps import AffineMap, RescaledMap, TransportMap
from wprox.measures import Particles

BLOCKS = 8  # of particles, among which an objective varies by chance
SAME = 1e-6  # of the units: coordinates that differ by less are the same


@dataclass(frozen=True)
class Part:
    """Particles, and the points (n, d) from which the transport cost of each counts."""

    measure: Particles
    origins: Tensor

    def __len__(self) -> int:
        return len(self.measure)

    def subset(self, rows: Tensor) -> Part:
        """Some of the particles, for themselves."""
        return Part(self.measure.subset(rows), self.origins[rows])

    def sample(self, size: int, generator: torch.Generator) -> Part:
        """Some of the particles with mass, for all: at most so many."""
        rows = self.shuffled(generator)[:size]
        return self if len(rows) == len(self) else self.subset(rows.sort().values)

    def blocks(self, generator: torch.Generator) -> list[Tensor]:
        """The rows with mass, dealt into blocks; fewer blocks where there are few rows."""
        rows = self.shuffled(generator)
        return list(rows.tensor_split(min(BLOCKS, max(2, len(rows) // 2), len(rows))))

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """The rows with mass, in random order."""
        carriers = self.measure.weights.nonzero()[:, 0]  # a part without mass would have no objective
        return carriers[torch.randperm(len(carriers), generator=generator).to(carriers.device)]


def split(part: Part, fraction: float, generator: torch.Generator) -> tuple[Part, Part]:
    """What is trained on and what is held out: at least one particle each.

    Raises:
        ValueError: where there is only one with mass.
    """
    rows = part.shuffled(generator)
    if len(rows) < 2:
        raise ValueError(
            f"cannot hold out {fraction:g} of {len(rows)} particle with mass: training and looking at it need at least "
            "one each; give more particles, or held_out draws"
        )
    held = min(max(1, round(len(rows) * fraction)), len(rows) - 1)
    return part.subset(rows[held:]), part.subset(rows[:held])


@dataclass(frozen=True)
class Units:
    r"""Coordinates z = (x − m)/s in which particles have the mean 0 and variances of the mean 1.

    In them and in units of s²/γ of the objective, a step of size γ of F does not depend on the units of the data:
    F + |T − x|²/(2γ) becomes γF/s² + |T − z|²/2.

    Attributes:
        loc: m, (d,).
        scale: s.
    """

    loc: Tensor
    scale: float

    @classmethod
    def of(cls, measure: Particles) -> Units:
        """Those of particles; where all are in one point, s is its distance from 0, or 1."""
        x, weights = measure.points.double(), measure.weights.double()
        loc = weights @ x
        scale = math.sqrt(float(weights @ (x - loc).square().mean(1)))
        if not scale > torch.finfo(measure.dtype).eps * float(loc.norm()):
            scale = float(loc.norm()) or 1.0
        return cls(loc.to(measure.points), scale)

    def applied(self, map: TransportMap) -> TransportMap:
        """A map of these coordinates, in those of the data."""
        if abs(self.scale - 1) <= SAME and float(self.loc.abs().max()) <= SAME:
            return map
        return RescaledMap(map, self.loc, self.scale)

    def unfolded(self, map: TransportMap) -> TransportMap:
        """A map of the data, as it came from a step, in these coordinates where it has none of its own."""
        if not isinstance(map, AffineMap):
            return map
        return self.applied(map.rescaled(-self.loc / self.scale, 1 / self.scale))


def folded(map: TransportMap) -> TransportMap:
    """The same map without units of its own, where it can do without."""
    if isinstance(map, RescaledMap) and isinstance(map.map, AffineMap):
        return map.map.rescaled(map.loc, float(map.scale)).eval()
    return map
