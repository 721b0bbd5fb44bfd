"""Gaussians, with quadrature points that integrate quadratics exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wprox._checks import as_floating, as_points, as_rows, check_count, check_memory, check_precision, evaluate_one
from wprox._random import Seed, make_generator
from wprox._sums import mean_and_covariance, weighted_sum
from wprox.maps.affine import AffineMap
from wprox.measures.base import Measure
from wprox.measures.particles import Particles


class Gaussian(Measure):
    r"""The normal law N(m, Σ), carried by 2d cubature points m ± √d L e_i of weight 1/(2d), where Σ = L Lᵀ.

    The points integrate every polynomial of degree three exactly (Arasaratnam and Haykin, *Cubature Kalman filters*,
    2009, section III), so quadratic potentials, quadratic interactions and Gaussian log-densities are exact; other
    functions are approximated: in few dimensions to any accuracy by the Gauss–Hermite rule that `order` asks for.
    `mean_log_density` is −½ (d + log det 2πΣ), exactly.

    Arguments:
        loc: (d,), the mean m.
        covariance_matrix: (d, d), symmetric positive definite.
        order: the number k of Gauss–Hermite nodes an axis, k^d in all, in place of the 2d cubature points; exact for
            polynomials of degree 2k − 1 in each coordinate.

    Raises:
        ValueError: where the covariance is not symmetric positive definite (with its smallest eigenvalue).

    Example:
        >>> import torch, wprox
        >>> rho = wprox.Gaussian(torch.zeros(2), torch.eye(2))
        >>> rho.integrate(lambda x: x.square().sum(-1))
        tensor(2.0000)
    """

    movable = False

    def __init__(self, loc: Any, covariance_matrix: Any, order: int | None = None) -> None:
        covariance = as_floating(covariance_matrix, "covariance_matrix")
        self.loc = as_floating(loc, "loc").to(covariance).clone()  # the caller's array may change
        if self.loc.ndim != 1 or len(self.loc) == 0:
            raise ValueError(f"loc must have shape (d,), one number a coordinate, got {tuple(self.loc.shape)}")
        d = len(self.loc)
        if covariance.shape != (d, d):
            raise ValueError(f"covariance_matrix must have shape ({d}, {d}) like loc, got {tuple(covariance.shape)}")
        asymmetry = float((covariance - covariance.mT).detach().abs().max())
        if asymmetry > 1e-5 * float(covariance.detach().abs().max()):
            raise ValueError(f"covariance_matrix must be symmetric, the largest |Σ − Σᵀ| is {asymmetry:g}")
        self.covariance_matrix = (covariance + covariance.mT) / 2
        scale_tril, info = torch.linalg.cholesky_ex(self.covariance_matrix)
        if int(info):
            smallest = float(torch.linalg.eigvalsh(self.covariance_matrix.detach()).min())
            raise ValueError(
                f"covariance_matrix must be positive definite, its smallest eigenvalue is {smallest:g}; "
                "add a small multiple of the identity"
            )
        self.scale_tril = scale_tril
        self.order = order
        nodes, weights = _cubature(d) if order is None else _gauss_hermite(d, check_count(order, "order", least=2))
        self._nodes, self.weights = nodes.to(self.loc), weights.to(self.loc)
        self.points = self.loc + self._nodes @ scale_tril.mT

    @classmethod
    def from_samples(cls, points: Any, weights: Any = None) -> Gaussian:
        """The Gaussian with the mean and covariance of weighted points (n, d), summed in float64."""
        rho = Particles(points, weights)
        loc, covariance = mean_and_covariance(rho.points, rho.weights)
        return cls(loc.to(rho.dtype), covariance.to(rho.dtype))

    def __repr__(self) -> str:
        return f"Gaussian(dim={self.dim}, dtype={self.dtype})"

    @property
    def _log_det_covariance(self) -> Tensor:
        return 2 * self.scale_tril.diagonal().log().sum()

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; m, Σ) for x: (n, d), (n,)."""
        return normal_log_prob(as_points(x, "x", self.dim), self.loc, self.scale_tril)

    def log_density(self) -> Tensor:
        # (x − m)ᵀ Σ⁻¹ (x − m) at a point m + L z is |z|², whatever Σ is
        return -0.5 * (self._nodes.square().sum(1) + self.dim * math.log(2 * math.pi) + self._log_det_covariance)

    def log_density_at(self, x: Tensor) -> Tensor:
        return normal_log_prob(as_rows(x, "x", self.dim), self.loc, self.scale_tril)

    def integrate_density(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """∫ f(ρ) dρ by Gauss–Laguerre quadrature: log ρ(x) = log ρ(m) − s, where s follows the Gamma(d/2) law."""
        nodes, weights = _gauss_laguerre(self.dim)
        peak = -0.5 * (self.dim * math.log(2 * math.pi) + self._log_det_covariance)
        return weights.to(self.loc) @ evaluate_one(f, (peak - nodes.to(self.loc)).exp(), "f")

    def score(self) -> Tensor:
        return -torch.cholesky_solve((self.points - self.loc).mT, self.scale_tril).mT

    def integrate_pairs(self, k: Callable[[Tensor], Tensor]) -> Tensor:
        # x − y ~ N(0, 2Σ) for independent x and y, so one rule serves the pair
        values = evaluate_one(k, math.sqrt(2) * (self._nodes @ self.scale_tril.mT), "the kernel")
        if not bool(torch.isfinite(values.detach()).all()):
            raise ValueError(
                "the kernel is infinite or NaN at some node of N(0, 2Σ), the law of x − y; one that is infinite at 0 "
                f"needs a Gaussian of even order, which has no node there, got order={self.order}"
            )
        return weighted_sum(self.weights, values)

    def push(self, map: Callable) -> Gaussian:
        if not isinstance(map, AffineMap):
            raise TypeError(
                f"a Gaussian stays Gaussian only under an AffineMap, got {type(map).__name__}; "
                "push draws instead: Gaussian.to_particles(n, seed).push(map)"
            )
        if map.dim != self.dim:
            raise ValueError(f"the map lives in dimension {map.dim}, and the Gaussian in dimension {self.dim}")
        matrix = map.matrix.to(self.loc)
        shift = map.shift.to(self.loc)
        return Gaussian(matrix @ self.loc + shift, matrix @ self.covariance_matrix @ matrix.mT, self.order)

    def to(self, dtype: torch.dtype) -> Gaussian:
        """The same Gaussian in another precision."""
        if check_precision(dtype, "dtype") == self.dtype:
            return self
        return Gaussian(self.loc.to(dtype), self.covariance_matrix.to(dtype), self.order)

    def detach(self) -> Gaussian:
        """The same Gaussian, cut from the graph that made it."""
        return Gaussian(self.loc.detach(), self.covariance_matrix.detach(), self.order)

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        generator = make_generator(seed, self.device)
        check_memory(check_count(n, "n") * self.dim, f"n = {n} draws")
        noise = torch.randn(n, self.dim, generator=generator, dtype=self.dtype, device=self.device)
        return self.loc + noise @ self.scale_tril.mT

    def to_particles(self, n: int, seed: Seed = None) -> Particles:
        """n draws as `Particles` that carry the exact log-density: what sampling solvers start from."""
        points = self.sample(n, seed)
        return Particles(points, log_density=self.log_prob(points))


def normal_log_prob(x: Tensor, loc: Tensor, scale_tril: Tensor) -> Tensor:
    """log N(x; m, L Lᵀ), (n,), in the precision of x: (n, d), whatever that of the parameters is."""
    loc, scale_tril = loc.to(x), scale_tril.to(x)
    whitened = torch.linalg.solve_triangular(scale_tril, (x - loc).mT, upper=False)
    log_det = 2 * scale_tril.diagonal().log().sum()
    return -0.5 * (whitened.square().sum(0) + len(loc) * math.log(2 * math.pi) + log_det)


def _cubature(d: int) -> tuple[Tensor, Tensor]:
    """The 2d points ±√d e_i and their weights."""
    directions = math.sqrt(d) * torch.eye(d, dtype=torch.float64)
    return torch.cat((directions, -directions)), torch.full((2 * d,), 1 / (2 * d), dtype=torch.float64)


def _gauss_hermite(d: int, order: int) -> tuple[Tensor, Tensor]:
    """The product rule for N(0, I) with `order` nodes an axis, (order^d, d) and (order^d,)."""
    if order**d > 10**6:
        raise ValueError(f"order={order} in dimension {d} makes {order**d:g} points; lower it, or leave it out")
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(order))
    grid = torch.cartesian_prod(*[nodes] * d).reshape(-1, d)
    products = torch.cartesian_prod(*[weights / weights.sum()] * d).reshape(-1, d).prod(1)
    return grid, products


@lru_cache
def _gauss_laguerre(d: int, order: int = 64) -> tuple[Tensor, Tensor]:
    """Nodes and weights for the Gamma(d/2) law, from the Jacobi matrix (Golub and Welsch 1969)."""
    from scipy.linalg import eigh_tridiagonal

    k = np.arange(order)
    diagonal, off_diagonal = 2 * k + d / 2, np.sqrt(k[1:] * (k[1:] + d / 2 - 1))
    nodes, vectors = eigh_tridiagonal(diagonal, off_diagonal)
    return torch.from_numpy(nodes), torch.from_numpy(vectors[0] ** 2)
