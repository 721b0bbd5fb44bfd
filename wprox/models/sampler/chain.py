"""The law of Gaussian noise that has passed maps and rejection steps: draws and density."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from wprox.maps import TransportMap
from wprox.maps.base import apply_in_batches, invert_in_batches
from wprox.maps.precision import in_precision
from wprox.measures import Particles
from wprox.measures.laws import standard_normal_log_prob


class RejectionStep(NamedTuple):
    r"""A rejection–resampling step (Hertrich and Gruhlke, *Importance corrected neural JKO sampling*, 2025, section 4).

    A draw x of ρ is kept with probability α(x) = min(1, g(x)/(c ρ(x))), where g is the target density, normalised or
    not; a draw that is not kept is replaced by one new draw of ρ, whatever that is. The law of the result has the
    density

        ρ̃(x) = ρ(x) (α(x) + r),      r = 1 − E_ρ[α],

    where too much mass was taken away and where too little was added; KL(ρ̃ ‖ π) ≤ KL(ρ ‖ π). Mass moves at any
    distance, which no map close to the identity can do.

    Attributes:
        log_threshold: log c.
        rejection_rate: r, an estimate.
        standard_error: of that estimate. ρ̃ as computed integrates to 1 up to this.
    """

    log_threshold: float
    rejection_rate: float
    standard_error: float

    @classmethod
    def fit(cls, log_ratio: Tensor, rate: float) -> RejectionStep:
        """The step with E[α] = 1 − `rate` on draws of ρ with log g − log ρ = `log_ratio`, (n,), by bisection."""
        log_ratio = log_ratio.double()
        finite = log_ratio[torch.isfinite(log_ratio)]
        if len(finite) == 0 or len(finite) <= len(log_ratio) * (1 - rate):
            # more than `rate` of the draws have no target density: these are rejected, all others kept
            low = high = float(finite.min()) if len(finite) else 0.0
        else:
            low, high = float(finite.min()), float(finite.max()) - math.log1p(-rate)
        for _ in range(60):
            middle = (low + high) / 2
            kept = (log_ratio - middle).clamp(max=0).exp().mean()
            low, high = (middle, high) if float(kept) > 1 - rate else (low, middle)
        acceptance = (log_ratio - high).clamp(max=0).exp()
        error = float(acceptance.std()) / math.sqrt(len(acceptance))
        return cls(high, 1 - float(acceptance.mean()), error)

    def acceptance(self, log_ratio: Tensor) -> Tensor:
        """α at points with log g − log ρ = `log_ratio`, (n,)."""
        return (log_ratio - self.log_threshold).clamp(max=0).exp()

    def log_factor(self, log_ratio: Tensor) -> Tensor:
        """log(ρ̃/ρ) = log(α + r) there, (n,)."""
        return (self.acceptance(log_ratio) + self.rejection_rate).log()


Layer = TransportMap | RejectionStep


class Chain:
    """N(0, I) in R^d after layers, each a map or a rejection step.

    Arguments:
        dim: d.
        layers: the layers, the first applied first.
        log_target: log g of the rejection steps, (n, d) → (n,).
    """

    def __init__(self, dim: int, layers: Sequence[Layer], log_target: Callable[[Tensor], Tensor]) -> None:
        self.dim, self.layers, self.log_target = dim, list(layers), log_target

    def to(self, dtype: torch.dtype) -> Chain:
        """The chain with its maps in another precision."""
        layers = [layer if isinstance(layer, RejectionStep) else in_precision(layer, dtype) for layer in self.layers]
        return Chain(self.dim, layers, self.log_target)

    @torch.no_grad()
    def draw(self, n: int, generator: torch.Generator, like: Tensor) -> Particles:
        """n independent draws with their log-density, in the dtype and on the device of `like`.

        A rejected draw starts again from noise and passes the step that rejected it untested, while the steps before
        that one test it anew (and may send it back once more): the recursion of the definition, for all draws at once.
        """
        points, log_density = like.new_empty(n, self.dim), like.new_empty(n)
        excused = torch.zeros(n, len(self.layers), dtype=torch.bool, device=like.device)
        waiting = torch.arange(n, device=like.device)
        while len(waiting):
            rows = waiting
            x = torch.randn(len(rows), self.dim, generator=generator, dtype=like.dtype, device=like.device)
            log_rho = standard_normal_log_prob(x)
            sent_back = []
            for k, layer in enumerate(self.layers):
                if not len(rows):
                    break
                if isinstance(layer, TransportMap):
                    x, log_det = apply_in_batches(layer, x)
                    log_rho = log_rho - log_det
                    continue
                log_ratio = self.log_target(x) - log_rho
                dice = torch.rand(len(rows), generator=generator, dtype=like.dtype, device=like.device)
                rejected = (dice >= layer.acceptance(log_ratio)) & ~excused[rows, k]
                excused[rows, k] = rejected
                sent_back.append(rows[rejected])
                rows, x = rows[~rejected], x[~rejected]
                log_rho = (log_rho + layer.log_factor(log_ratio))[~rejected]
            points[rows], log_density[rows] = x, log_rho
            waiting = torch.cat(sent_back) if sent_back else waiting[:0]
        return Particles(points, log_density=log_density)

    @torch.no_grad()
    def masses(self, n: int, generator: torch.Generator, like: Tensor) -> Tensor:
        """Independent estimates of the integral of `log_prob`'s density, (n,), which is 1 up to the errors of rates.

        It is the product of all α + r along the maps, in the mean over noise, whatever is rejected on the way.
        """
        x = torch.randn(n, self.dim, generator=generator, dtype=like.dtype, device=like.device)
        log_maps, log_factors = standard_normal_log_prob(x), like.new_zeros(n)
        for layer in self.layers:
            if isinstance(layer, TransportMap):
                x, log_det = apply_in_batches(layer, x)
                log_maps = log_maps - log_det
            else:
                log_factors = log_factors + layer.log_factor(self.log_target(x) - log_maps - log_factors)
        return log_factors.exp()

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density at points (n, d), (n,): back through the maps, then forward through all layers.

        It has a graph where x wants a gradient.
        """
        changes: list[Tensor] = []  # log-determinants of maps; for a rejection step the points where it applies
        for layer in reversed(self.layers):
            if isinstance(layer, TransportMap):
                x = invert_in_batches(layer, x)
                changes.append(apply_in_batches(layer, x)[1])
            else:
                changes.append(x)
        log_rho = standard_normal_log_prob(x)
        for layer, change in zip(self.layers, reversed(changes), strict=True):
            if isinstance(layer, TransportMap):
                log_rho = log_rho - change
            else:
                log_rho = log_rho + layer.log_factor(self.log_target(change) - log_rho)
        return log_rho
