"""A map in other units: that of standardised coordinates, seen from those of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wprox._checks import as_floating, check_positive
from wprox.maps.base import TransportMap, describe


class RescaledMap(TransportMap):
    r"""T(x) = m + s N((x − m)/s) for a map N, with its log-determinant: N, where x is measured from m in units of s.

    Networks are made for coordinates of the size of 1, and so are their learning rates; `NeuralProx` finds m and s from
    the particles.

    Arguments:
        map: N.
        loc: m, (d,); 0 by default.
        scale: s > 0.

    Example:
        >>> import torch, wprox
        >>> from wprox.maps import RescaledMap
        >>> shift = wprox.AffineMap.from_matrix(torch.eye(1), [2.0])
        >>> RescaledMap(shift, scale=1e6)(torch.zeros(1, 1))[0].tolist()
        [[2000000.0]]
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, map: TransportMap, loc: Any = None, scale: float = 1.0) -> None:
        super().__init__()
        self.dim = map.dim
        self.layer = map
        loc = torch.zeros(map.dim) if loc is None else as_floating(loc, "loc").detach()
        if loc.shape != (map.dim,):
            raise ValueError(f"loc must have shape ({map.dim},), got {tuple(loc.shape)}")
        self.register_buffer("loc", loc.clone())
        self.register_buffer("scale", loc.new_tensor(check_positive(scale, "scale")))

    @property
    def map(self) -> TransportMap:
        """N."""
        return self.layer

    @property
    def config(self) -> dict[str, Any]:
        return {"map": describe(self.map)}

    @classmethod
    def from_config(cls, config: dict[str, Any], rebuild: Callable[[dict[str, Any]], TransportMap]) -> TransportMap:
        return cls(rebuild(config["map"]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = self.map((x - self.loc) / self.scale)
        return self.loc + self.scale * y, log_det

    def inverse(self, y: Tensor) -> Tensor:
        return self.loc + self.scale * self.map.inverse((y - self.loc) / self.scale)

    def penalty(self) -> Tensor | None:
        return self.map.penalty()

    @property
    def is_discretised(self) -> bool:
        return self.map.is_discretised

    @contextmanager
    def discretised(self) -> Iterator[None]:
        with self.map.discretised():
            yield

    def refine(self) -> str:
        return self.map.refine()
