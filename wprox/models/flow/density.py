"""The density that preprocessing and trained blocks make: likelihoods, latent points and generated rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox._warnings import warn
from wprox.maps import ComposedMap, TransportMap
from wprox.maps._memory import MEMORY_BUDGET, in_batches, memory_limit, rows_at_once
from wprox.maps.base import apply_in_batches, for_points
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
        memory_budget: bytes that may be taken beside rows and results.
    """

    preprocessing: Preprocessing
    blocks: Sequence[TransportMap]
    memory_budget: int = MEMORY_BUDGET

    def map(self, dtype: torch.dtype) -> ComposedMap:
        """T, computing in a precision."""
        return ComposedMap([in_precision(block, dtype) for block in self.blocks])

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) = log N(T(z); 0, I) + log|det ∇T(z)| + log|det ∂z/∂x|, (n,), the mean where z is random.

        It is −∞ outside the bounds, and where a row is so far out that its numbers overflow.
        """
        map, wanted = for_points(self.map(x.dtype), x)

        def part(x: Tensor) -> Tensor:
            draws = []
            for z, log_det in self.preprocessing.scored(x):
                y, flow_log_det = map(z)
                log_prob = standard_normal_log_prob(y) + flow_log_det + log_det
                overflown = log_prob.isnan() & (z.abs().amax(1) > FAR)
                draws.append(log_prob.masked_fill(overflown, -math.inf))
            return torch.stack(draws).mean(0)

        def possible(x: Tensor) -> Tensor:
            inside = self.preprocessing.inside(x)
            if bool(inside.all()):
                return part(x)
            log_prob = x.new_full((len(x),), -math.inf)
            log_prob[inside] = part(x[inside])
            return log_prob

        return self._in_batches(possible, x, wanted)

    def to_latent(self, x: Tensor) -> Tensor:
        """T(z) of rows x, computed in float64."""
        map, wanted = for_points(self.map(torch.float64), x)
        return self._in_batches(lambda x: map(self.preprocessing.forward(x.double())[0])[0].to(x.dtype), x, wanted)

    def from_latent(self, y: Tensor) -> Tensor:
        """The rows x with T(z) = y, computed in float64."""
        map, wanted = for_points(self.map(torch.float64), y)
        return self._in_batches(lambda y: self.preprocessing.inverse(map.inverse(y.double()), y.dtype), y, wanted)

    def _in_batches(self, function: Callable[[Tensor], Tensor], x: Tensor, wanted: bool) -> Tensor:
        with memory_limit(self.memory_budget), torch.set_grad_enabled(wanted):
            return in_batches(lambda x: (function(x),), x, rows_at_once(function, x))[0]

    def path(self, x: Tensor) -> list[Tensor]:
        """z and its images under T_1, T_2 ∘ T_1, …: N + 1 tensors (n, dim), without what is random in z."""
        return self.images(self.preprocessing.forward(x)[0])

    def images(self, z: Tensor) -> list[Tensor]:
        """z, T_1(z), T_2(T_1(z)), …: N + 1 tensors (n, dim)."""
        path = [z]
        for block in self.map(z.dtype).maps:
            with memory_limit(self.memory_budget):
                path.append(apply_in_batches(block, path[-1])[0])
        return path


def mean_log_prob(log_prob: Tensor) -> float:
    """The mean of rows' `log_prob`, (n,), with a warning that names the rows where it is −∞."""
    impossible = log_prob.isneginf()
    if bool(impossible.any()):
        warn(
            f"{int(impossible.sum())} of {len(log_prob)} rows have density 0 (outside the bounds, or too far out), the "
            f"first is row {int(impossible.int().argmax())}, so that the mean is −∞; without them it is "
            f"{float(log_prob[~impossible].mean()):g}"
        )
    return float(log_prob.mean())
