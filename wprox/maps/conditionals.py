"""Densities by their conditionals, each a mixture of normal laws on the line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from wprox._checks import check_count
from wprox.maps._normal_mixture import LOG_TWO_PI, NormalMixture


class ConditionalDensity(nn.Module, ABC):
    r"""A density p(x) = Π_j p(x_j | x_1, …, x_{j−1}) on R^d whose factors are mixtures of normal laws on the line.

    Attributes:
        dim: the dimension d.
    """

    dim: int

    @abstractmethod
    def conditional(self, x: Tensor, j: int) -> NormalMixture:
        """The law of coordinate j given those before it, a row each of x: (n, at least j)."""

    def conditionals(self, x: Tensor) -> Iterator[NormalMixture]:
        """The laws of all coordinates in turn, for x: (n, d)."""
        return (self.conditional(x, j) for j in range(self.dim))

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments of one like it, newly built, as JSON can hold them."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), (n,), for x: (n, d)."""
        parts = [law.log_prob(here) for law, here in zip(self.conditionals(x), x.mT, strict=True)]
        return torch.stack(parts).sum(0)


class GaussianMixtureDensity(ConditionalDensity):
    r"""Σ_k w_k N(m_k, L_k L_kᵀ); the standard normal law when newly built.

    With u = L_k⁻¹(x − m_k), coordinate j of component k is N(m_kj + Σ_{l<j} L_kjl u_l, L_kjj²) given those before it,
    and its weight given them is proportional to w_k Π_{l<j} φ(u_l)/L_kll.

    Arguments:
        dim: d.
        components: their number K.
    """

    log_weights: Tensor
    loc: Tensor
    cholesky: Tensor

    def __init__(self, dim: int, components: int = 1) -> None:
        super().__init__()
        self.dim, components = check_count(dim, "dim"), check_count(components, "components")
        zeros = torch.zeros(components, dim, dtype=torch.float64)
        self.register_buffer("log_weights", zeros.new_full((components,), 1 / components).log())
        self.register_buffer("loc", zeros)
        self.register_buffer("cholesky", torch.eye(dim, dtype=torch.float64).repeat(components, 1, 1))

    @classmethod
    def of(cls, weights: Tensor, loc: Tensor, cholesky: Tensor) -> GaussianMixtureDensity:
        """The mixture with weights (K,), means (K, d) and lower triangular L, (K, d, d)."""
        density = cls(loc.shape[1], len(loc))
        density.log_weights, density.loc, density.cholesky = weights.log(), loc, cholesky
        return density

    @property
    def config(self) -> dict[str, Any]:
        return {"dim": self.dim, "components": len(self.loc)}

    def conditional(self, x: Tensor, j: int) -> NormalMixture:
        return self._law(self._whitened(x[:, :j]), j)

    def conditionals(self, x: Tensor) -> Iterator[NormalMixture]:
        u = self._whitened(x)
        return (self._law(u[:, :j], j) for j in range(self.dim))

    def _whitened(self, x: Tensor) -> Tensor:
        """The first coordinates of L_k⁻¹(x − m_k), (K, j, n), for those of x, (n, j)."""
        j = x.shape[1]
        centred = (x[:, None] - self.loc[:, :j]).movedim(0, 2)
        return torch.linalg.solve_triangular(self.cholesky[:, :j, :j], centred, upper=False)

    def _law(self, u: Tensor, j: int) -> NormalMixture:
        log_diagonal = self.cholesky.diagonal(dim1=1, dim2=2).log()
        log_joint = self.log_weights[:, None] - log_diagonal[:, :j].sum(1, keepdim=True) - 0.5 * u.square().sum(1)
        loc = self.loc[:, j, None] + (self.cholesky[:, j, None, :j] @ u)[:, 0]
        return NormalMixture(log_joint.mT.log_softmax(1), loc.mT, log_diagonal[:, j])


class KernelDensity(ConditionalDensity):
    r"""Kernel conditional density estimates with a bandwidth for each coordinate that is given, one a coordinate.

        p(x_j | x_<j) = Σ_i w_i Σ_s a_js N(x_j; x_ij + B_j·(x − x_i)_<j, h_js²),
        w_i ∝ exp(−½ Σ_{l<j} (x_l − x_il)²/c_jl²),

    over centres x_i: a coordinate l that says nothing of x_j has c_jl = ∞, one with atoms a small one. Equal bandwidths
    c_jl = h_l and B = 0 make the kernel density estimate with a product kernel; c = ∞ a linear regression. (Rosenblatt,
    *Conditional probability density and regression estimators*, 1969; Hyndman, Bashtannyk and Grunwald 1996; bandwidths
    by the likelihood of rows left out: Holmes, Gray and Isbell 2007.)

    Arguments:
        dim: d.
        components: the number of centres.
        scales: the number of scales h_js of a coordinate.
    """

    centres: Tensor
    log_context: Tensor
    slopes: Tensor
    log_scales: Tensor
    log_mixture: Tensor

    def __init__(self, dim: int, components: int, scales: int = 1) -> None:
        super().__init__()
        self.dim, components = check_count(dim, "dim"), check_count(components, "components")
        scales = check_count(scales, "scales")
        zeros = torch.zeros(components, dim, dtype=torch.float64)
        self.register_buffer("centres", zeros)
        self.register_buffer("log_context", zeros.new_zeros(dim, dim))
        self.register_buffer("slopes", zeros.new_zeros(dim, dim))
        self.register_buffer("log_scales", zeros.new_zeros(scales, dim))
        self.register_buffer("log_mixture", zeros.new_full((scales, dim), 1 / scales).log())

    @property
    def config(self) -> dict[str, Any]:
        return {"dim": self.dim, "components": len(self.centres), "scales": len(self.log_scales)}

    def conditional(self, x: Tensor, j: int) -> NormalMixture:
        log_weights = self._log_weights(x, j)
        slopes = self.slopes[j, :j]
        intercepts = self.centres[:, j] - self.centres[:, :j] @ slopes
        loc = (x[:, :j] @ slopes)[:, None] + intercepts
        scales = len(self.log_scales)
        log_weights = torch.cat([log_weights + share for share in self.log_mixture[:, j]], 1)
        return NormalMixture(
            log_weights, loc.repeat(1, scales), self.log_scales[:, j].repeat_interleave(len(self.centres))
        )

    def _log_weights(self, x: Tensor, j: int) -> Tensor:
        """log w_i, (n, number of centres)."""
        precision = (-self.log_context[j, :j]).exp()
        middle = self.centres[:, :j].mean(0)
        points, centres = (x[:, :j] - middle) * precision, (self.centres[:, :j] - middle) * precision
        distances = points.square().sum(1, keepdim=True) + centres.square().sum(1) - 2 * points @ centres.mT
        return (-0.5 * distances).log_softmax(1)


DENSITIES: dict[str, type[ConditionalDensity]] = {cls.__name__: cls for cls in (GaussianMixtureDensity, KernelDensity)}


def log_normal(u: Tensor) -> Tensor:
    """log N(u; 0, 1), entry by entry."""
    return -0.5 * (u.square() + LOG_TWO_PI)
