"""Particles with a smooth density: that of Gaussian kernels at the particles themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_positive
from wprox.measures._kernel_sum import LogKernelSum, kernel_score
from wprox.measures.base import evaluate
from wprox.measures.particles import Particles


class KernelParticles(Particles):
    r"""Weighted particles whose density is φ_H ∗ ρ = Σ_j w_j N(· ; x_j, H); made by `Particles.with_kernel_density`.

    The density is a function of the particles: it moves with them (`push`), `log_density` is differentiable in the
    points, and ∫ log(φ_H ∗ ρ) dρ is the blob energy of Carrillo, Craig and Patacchini (*A blob method for diffusion*,
    Calc. Var. 2019), in place of the entropy, which particles do not have. Its Wasserstein gradient is that of the blob
    energy itself,

        ∇ log(φ_H ∗ ρ) + ∇ φ_H ∗ (ρ/(φ_H ∗ ρ)),

    and not the score of the density (`score`), which is its first half. Computed in float64, in bounded memory.

    Arguments:
        points: (n, d).
        weights: (n,), non-negative and summing to 1; equal by default.
        bandwidth: h, for H = h² I whatever the particles do.
        factor: f, for H = f² Σ with the covariance Σ of the particles, wherever they are; by default Silverman's
            (4/((d + 2) n))^{1/(d + 4)} with n = 1/Σ w_i² (Silverman 1986, section 4.3.2).

    Raises:
        ValueError: for a bandwidth and a factor, and without a bandwidth where the particles lie in a hyperplane.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0))
        >>> rho = wprox.Particles(x).with_kernel_density()
        >>> wprox.Entropy()(rho), wprox.Entropy()(rho.push(lambda x: 2 * x))  # −log 2 apart, exactly
        (tensor(-1.4...), tensor(-2.1...))
    """

    def __init__(self, points: Any, weights: Any = None, bandwidth: Any = None, factor: Any = None) -> None:
        super().__init__(points, weights)
        if bandwidth is not None and factor is not None:
            raise ValueError("give a bandwidth, which stays, or a factor of the particles' own spread, not both")
        self.bandwidth = None if bandwidth is None else check_positive(bandwidth, "bandwidth")
        self._factor = None if factor is None else check_positive(factor, "factor")
        if self.bandwidth is None and self._scale_tril(self.points.double()) is None:
            raise ValueError(
                f"the covariance of the {len(self)} particles is singular, so that it sets no bandwidth: they lie in a "
                "hyperplane (or are too few, or all alike); give the bandwidth yourself, or move them apart"
            )

    @property
    def factor(self) -> float | None:
        """f of H = f² Σ, where the bandwidth follows the particles."""
        if self.bandwidth is not None or self._factor is not None:
            return self._factor
        n = 1 / float(self.weights.double().square().sum())
        return (4 / ((self.dim + 2) * n)) ** (1 / (self.dim + 4))

    @property
    def density_known(self) -> bool:
        return True

    @property
    def density_follows_points(self) -> bool:
        return True

    def log_density(self) -> Tensor:
        """log (φ_H ∗ ρ)(x_i), (n,), differentiable in the points, H included; +∞ where H has become singular."""
        points = self.points.double()
        scale_tril = self._scale_tril(points)
        if scale_tril is None:
            return torch.full_like(self.weights, math.inf)
        whitened, log_det = _whiten(points, self.weights.double(), scale_tril)
        log_sums = LogKernelSum.apply(whitened, self.weights.double().detach())
        return (log_sums - log_det - self.dim / 2 * math.log(2 * math.pi)).to(self.points)

    def score(self) -> Tensor:
        """∇ log (φ_H ∗ ρ)(x_i), the score of the smooth density at the particles."""
        points = self.points.detach().double()
        scale_tril = self._scale_tril(points)
        if scale_tril is None:
            return torch.full_like(self.points, math.nan)
        whitened, _ = _whiten(points, self.weights.double(), scale_tril)
        score = kernel_score(whitened, self.weights.double())
        return torch.linalg.solve_triangular(scale_tril, score, upper=False, left=False).to(self.points)

    def relative(self) -> KernelParticles:
        return self

    def push(self, map: Callable) -> KernelParticles:
        """The particles T(x_i), whose density is that of kernels there: log|det ∇T| plays no part."""
        output = map(self.points)
        points = output[0] if isinstance(output, tuple) else output
        points = evaluate(lambda _: points, self.points, "map")
        if points.shape != self.points.shape:
            raise ValueError(f"a map must return points of shape {tuple(self.points.shape)}, got {tuple(points.shape)}")
        return self._replace(points, None)

    def _scale_tril(self, points: Tensor) -> Tensor | None:
        """The Cholesky factor of H, (d, d); `None` where the particles have no spread in some direction."""
        if self.bandwidth is not None:
            return self.bandwidth * torch.eye(self.dim, dtype=points.dtype, device=points.device)
        weights = self.weights.to(points)
        centred = points - weights @ points
        covariance = (centred * weights[:, None]).mT @ centred
        scale_tril, info = torch.linalg.cholesky_ex(covariance)
        tiny = 1e-7 * covariance.detach().diagonal().sqrt()
        if int(info) or bool((scale_tril.detach().diagonal() <= tiny).any()):
            return None
        return self.factor * scale_tril

    def _replace(self, points: Tensor, log_density: Tensor | None) -> KernelParticles:
        result = object.__new__(KernelParticles)
        result.points, result.weights = points, self.weights
        result._log_density, result._is_relative = None, False
        result.bandwidth, result._factor = self.bandwidth, self._factor
        return result


def _whiten(points: Tensor, weights: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    """The points in coordinates in which H = I, and log det of its Cholesky factor."""
    centred = points - (weights @ points).detach()  # differences are what counts: this only keeps their digits
    whitened = torch.linalg.solve_triangular(scale_tril, centred.mT, upper=False).mT
    return whitened.contiguous(), scale_tril.diagonal().log().sum()
