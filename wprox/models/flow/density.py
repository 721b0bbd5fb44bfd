"""The density that preprocessing and trained blocks make: likelihoods, latent points and generated rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.maps import ComposedMap, TransportMap
from wprox.maps.base import apply_in_batches, invert_in_batches
from wprox.maps.precision import in_precision
from wprox.measures.laws import standard_normal_log_prob
from wprox.models.flow.preprocessing import Preprocessing

FAR = 1e6  # standard deviations, beyond which what is no number has overflown


@dataclass(frozen=True)
class FlowDensity:
    """The law of x where z, the preprocessed x, is mapped to N(0, I) by T = T_N ∘ … ∘ T_1.

    Attributes:
        preprocessing: from x to z, fitted.
        blocks: T_1, …, T_N.
    """

    preprocessing: Preprocessing
    blocks: Sequence[TransportMap]

    def map(self, dtype: torch.dtype) -> ComposedMap:
        """T, computing in a precision."""
        return ComposedMap([in_precision(block, dtype) for block in self.blocks])

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = log N(T(z); 0, I) + log|det ∇T(z)| + log|det ∂z/∂x|, (n,), the mean where z is random.

        It is −∞ outside the bounds, and where a row is so far out that its numbers overflow.
        """
        inside = self.preprocessing.inside(x)
        if not bool(inside.all()):
            log_prob = x.new_full((len(x),), -math.inf)
            log_prob[inside] = self.log_prob(x[inside])
            return log_prob
        map = self.map(x.dtype)
        draws = []
        for z, log_det in self.preprocessing.scored(x):
            y, flow_log_det = apply_in_batches(map, z)
            log_prob = standard_normal_log_prob(y) + flow_log_det + log_det
            overflown = log_prob.isnan() & (z.abs().amax(1) > FAR)
            draws.append(log_prob.masked_fill(overflown, -math.inf))
        return torch.stack(draws).mean(0)

    def to_latent(self, x: Tensor) -> Tensor:
        """T(z) of rows x, computed in float64."""
        z, _ = self.preprocessing.forward(x.double())
        return apply_in_batches(self.map(z.dtype), z)[0].to(x.dtype)

    def from_latent(self, y: Tensor) -> Tensor:
        """The rows x with T(z) = y, computed in float64."""
        z = invert_in_batches(self.map(torch.float64), y.double())
        return self.preprocessing.inverse(z, y.dtype)

    def path(self, x: Tensor) -> list[Tensor]:
        """z and its images under T_1, T_2 ∘ T_1, …: N + 1 tensors (n, dim), without what is random in z."""
        return self.images(self.preprocessing.forward(x)[0])

    def images(self, z: Tensor) -> list[Tensor]:
        """z, T_1(z), T_2(T_1(z)), …: N + 1 tensors (n, dim)."""
        path = [z]
        for block in self.map(z.dtype).maps:
            path.append(apply_in_batches(block, path[-1])[0])
        return path
