"""The map of a known density to the standard normal law, coordinate by coordinate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wprox._checks import as_floating, described, is_several
from wprox.maps._normal_mixture import NormalMixture
from wprox.maps.base import TransportMap, in_chunks
from wprox.maps.conditionals import DENSITIES, ConditionalDensity, log_normal


class RosenblattMap(TransportMap):
    r"""T with T#p = N(0, I) exactly, for a mixture p = Σ_m π_m p_m of densities known by their conditionals.

        T_j(x) = Φ⁻¹(F_j(x_j | x_<j)),    log|det ∇T(x)| = log p(x) − log N(T(x); 0, I),

    with F_j the distribution function of coordinate j given those before it. Given x_<j the weights are
    π_m p_m(x_<j), so that every F_j is that of a mixture of normal laws on the line. (Rosenblatt, *Remarks on a
    multivariate transformation*, 1952; Knothe 1957.) It is computed in float64 and has nothing to train.

    Arguments:
        densities: p_m, of one dimension d.
        weights: π_m > 0 of sum 1; equal by default.
        order: (d,), the columns of x in the order in which the densities take them; 0, …, d − 1 by default.

    Example:
        >>> import torch, wprox
        >>> from wprox.maps import GaussianMixtureDensity, RosenblattMap
        >>> law = GaussianMixtureDensity.of(torch.tensor([1.0]), torch.tensor([[3.0]]), torch.tensor([[[2.0]]]))
        >>> RosenblattMap([law.double()])(torch.tensor([[5.0]]))[0]
        tensor([[1.]])
    """

    log_weights: Tensor
    order: Tensor
    keeps_precision = True

    def __init__(
        self, densities: Sequence[ConditionalDensity], weights: Any = None, order: Tensor | None = None
    ) -> None:
        super().__init__()
        densities = list(densities) if is_several(densities) else []
        if not densities or not all(isinstance(density, ConditionalDensity) for density in densities):
            raise TypeError(f"densities must be a list of objects of ConditionalDensity, got {described(densities)}")
        dims = sorted({density.dim for density in densities})
        if len(dims) > 1:
            raise ValueError(f"densities must share one dimension, got {dims}")
        self.dim = dims[0]
        self.densities = nn.ModuleList(densities).requires_grad_(False)
        count = len(densities)
        weights = torch.full((count,), 1 / count) if weights is None else as_floating(weights, "weights").detach()
        if weights.shape != (count,) or not bool((weights > 0).all()):
            raise ValueError(f"weights must be {count} numbers > 0, got {weights.tolist()}")
        self.register_buffer("log_weights", weights.double().log().log_softmax(0))
        order = torch.arange(self.dim) if order is None else order.clone()
        if not torch.equal(order.sort().values.cpu(), torch.arange(self.dim)):
            raise ValueError(f"order must hold 0, …, {self.dim - 1} once each, got {order.tolist()}")
        self.register_buffer("order", order)

    @property
    def config(self) -> dict[str, Any]:
        return {"densities": [{"class": type(part).__name__, "config": part.config} for part in self._parts]}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RosenblattMap:
        """Move to another device, and stay in float64 whatever dtype is asked for."""
        super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)
        return self

    @classmethod
    def from_config(cls, config: dict[str, Any], rebuild: Callable[[dict[str, Any]], TransportMap]) -> TransportMap:
        if unknown := sorted({part["class"] for part in config["densities"]} - set(DENSITIES)):
            raise ValueError(f"a map has a density of class {unknown[0]}, which wprox does not know")
        return cls([DENSITIES[part["class"]](**part["config"]) for part in config["densities"]])

    @property
    def _parts(self) -> list[ConditionalDensity]:
        return [part for part in self.densities if isinstance(part, ConditionalDensity)]

    @property
    def _row_values(self) -> int:
        """The numbers that a conditional law of one row takes."""
        return sum(part.conditional(self.log_weights.new_zeros(1, 0), 0).loc.shape[1] for part in self._parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return in_chunks(self._forward, x, self._row_values)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        points = x.double()[:, self.order]
        log_weights = self.log_weights.expand(len(x), -1)
        scores, log_slopes = [], []
        for here, *laws in zip(points.mT, *(part.conditionals(points) for part in self._parts), strict=True):
            z = _mixed(laws, log_weights).score(here)
            log_joint = log_weights + torch.stack([law.log_prob(here) for law in laws], 1)
            log_slopes.append(torch.logsumexp(log_joint, 1) - log_normal(z))
            log_weights = log_joint.log_softmax(1)
            scores.append(z)
        y = torch.stack(scores, 1)[:, self.order.argsort()]
        return y.to(x.dtype), torch.stack(log_slopes).sum(0).to(x.dtype)

    def inverse(self, y: Tensor) -> Tensor:
        return in_chunks(lambda part: (self._inverse(part), part), y, self._row_values)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        z = y.double()[:, self.order]
        log_weights, points = self.log_weights.expand(len(y), -1), z[:, :0]
        for j in range(self.dim):
            laws = [part.conditional(points, j) for part in self._parts]
            here = _mixed(laws, log_weights).quantile(z[:, j])
            log_weights = (log_weights + torch.stack([law.log_prob(here) for law in laws], 1)).log_softmax(1)
            points = torch.cat((points, here[:, None]), 1)
        return points[:, self.order.argsort()].to(y.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (n,), without the map."""
        points = x.double()[:, self.order]
        parts = torch.stack([density.log_prob(points) for density in self._parts], 1)
        return torch.logsumexp(self.log_weights + parts, 1).to(x.dtype)


def _mixed(laws: Sequence[NormalMixture], log_weights: Tensor) -> NormalMixture:
    """The mixture of laws with weights (n, number of laws), a row each."""
    if len(laws) == 1:
        return laws[0]
    return NormalMixture(
        torch.cat([law.log_weights + log_weights[:, m, None] for m, law in enumerate(laws)], 1),
        torch.cat([law.loc for law in laws], 1),
        torch.cat([law.log_scale.expand_as(law.loc) for law in laws], 1),
    )
