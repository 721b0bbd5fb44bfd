"""Increasing maps of the line."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wprox._checks import as_floating, check_increasing
from wprox.maps.base import TransportMap


class MonotoneMap(TransportMap):
    r"""The increasing, piecewise linear map of the line that sends the nodes x_k to the nodes y_k.

    On the line, optimal maps are the increasing ones (Villani, *Topics in optimal transportation*, theorem 2.18).
    Outside [x_1, x_n] the map goes on with the slope of its first and last piece.

    Arguments:
        source: (n,), the nodes x_1 < … < x_n.
        target: (n,), their images y_1 < … < y_n.

    Raises:
        ValueError: for nodes that are not finite or do not increase.

    Example:
        >>> import torch, wprox
        >>> map = wprox.MonotoneMap([0.0, 1.0, 2.0], [0.0, 2.0, 3.0])
        >>> y, log_det = map(torch.tensor([[0.5], [1.5]]))
        >>> y[:, 0].tolist(), log_det.exp().tolist()
        ([1.0, 2.5], [2.0, 1.0])
    """

    source: Tensor
    target: Tensor

    def __init__(self, source: Any, target: Any) -> None:
        super().__init__()
        self.dim = 1
        for name, values in (("source", source), ("target", target)):
            nodes = as_floating(values, name)
            if nodes.ndim != 1 or len(nodes) < 2:
                raise ValueError(f"{name} must have shape (n,) with n ≥ 2, got {tuple(nodes.shape)}")
            check_increasing(nodes, name, "sort them and remove the repeated ones")
            self.register_buffer(name, nodes.clone())  # the caller's array may change
        if self.source.shape != self.target.shape:
            raise ValueError(f"source and target must be of one length, got {len(self.source)} and {len(self.target)}")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, slope = interpolate(x[:, 0], self.source.to(x), self.target.to(x))
        return y[:, None], slope.log()

    def inverse(self, y: Tensor) -> Tensor:
        return interpolate(y[:, 0], self.target.to(y), self.source.to(y))[0][:, None]


def interpolate(x: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The piecewise linear function through (source, target) at x: (m,) and its slope; linear beyond the ends."""
    piece = (torch.searchsorted(source, x.contiguous(), right=True) - 1).clamp(0, len(source) - 2)
    left, low = source[piece], target[piece]
    slope = (target[piece + 1] - low) / (source[piece + 1] - left)
    return low + slope * (x - left), slope
