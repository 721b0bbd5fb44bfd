"""The abstract measure: a quadrature rule with a density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wprox._checks import Seed

if TYPE_CHECKING:
    from typing_extensions import Self

PAIR_BLOCK_BYTES = 2**25  # differences x − y formed at once by `integrate_pairs`; a kernel makes a few copies of them


class DensityUnknownError(ValueError):
    """The measure has no density, and what was asked of it needs one."""


class Measure(ABC):
    r"""A probability measure on R^d, given by support points, weights and (where known) a density.

    Functionals see nothing but the verbs `integrate`, `integrate_pairs`, `log_density`, `mean_log_density` and
    `integrate_density`; Lagrangian solvers add `push`.

    Attributes:
        points: (n, d), the support (or quadrature nodes) of the measure.
        weights: (n,), non-negative, summing to 1.
    """

    points: Tensor
    weights: Tensor

    @property
    def dim(self) -> int:
        """The dimension d of the space."""
        return self.points.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.points.dtype

    @property
    def device(self) -> torch.device:
        return self.points.device

    @property
    def density_follows_points(self) -> bool:
        """Whether the density is a function of the points, which functionals then differentiate through."""
        return False

    def __len__(self) -> int:
        return self.points.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(n={len(self)}, dim={self.dim}, dtype={self.dtype})"

    def integrate(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """∫ f dρ = Σ_i w_i f(x_i).

        Arguments:
            f: maps points (n, d) to values (n,) or (n, k).

        Returns:
            A scalar, or (k,).
        """
        return torch.tensordot(self.weights, evaluate(f, self.points, "f"), dims=1)

    def integrate_pairs(self, k: Callable[[Tensor], Tensor]) -> Tensor:
        """∬ k(x − y) dρ(x) dρ(y) = Σ_ij w_i w_j k(x_i − x_j), in blocks of rows, so that memory stays bounded.

        Where a gradient is wanted, the blocks are recomputed in the backward pass instead of kept.

        Arguments:
            k: maps differences (m, d) to values (m,).
        """
        return pair_sum(k, self.points, self.weights, self.points, self.weights)

    @abstractmethod
    def log_density(self) -> Tensor:
        """log ρ at the support points, (n,).

        Raises:
            DensityUnknownError: where the measure has no density.
        """

    def mean_log_density(self) -> Tensor:
        """∫ log ρ dρ, the negative differential entropy.

        Solvers that push a measure of unknown density through maps know log ρ up to the unknown log-density of the
        start; that changes this integral by a constant only. So `mean_log_density` still answers there (up to the
        constant, see `Particles.relative`), while `log_density` refuses.
        """
        return self.weights @ self.log_density()

    def integrate_density(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """∫ f(ρ(x)) dρ(x), a function of the density averaged over the measure.

        Measures whose density is known between the support points, or in closed form, answer more exactly than
        Σ_i w_i f(ρ(x_i)).

        Arguments:
            f: maps densities (n,) to values (n,).
        """
        return self.weights @ f(self.log_density().exp())

    def score(self) -> Tensor:
        """∇ log ρ at the support points, (n, d).

        Raises:
            DensityUnknownError: where the measure does not know it.
        """
        raise DensityUnknownError(
            f"{type(self).__name__} does not know the score ∇ log ρ at its points; use a measure that does (Gaussian)"
        )

    @abstractmethod
    def push(self, map: Callable) -> Self:
        """The push-forward T#ρ, with its density where ρ's is known.

        Arguments:
            map: a `TransportMap`, or any callable that maps (n, d) to (n, d) or to `(y, log_det)`.
        """

    @abstractmethod
    def sample(self, n: int, seed: Seed = None) -> Tensor:
        """n independent draws, (n, d)."""


def pair_sum(
    k: Callable[[Tensor], Tensor], points: Tensor, weights: Tensor, others: Tensor, other_weights: Tensor
) -> Tensor:
    """Σ_ij w_i v_j k(x_i − y_j) for points x (n, d) and others y (m, d), in blocks of rows."""
    (n, d), m = points.shape, len(others)
    rows = max(1, PAIR_BLOCK_BYTES // (m * d * points.element_size()))

    def block(points: Tensor, weights: Tensor, others: Tensor, start: int) -> Tensor:
        part = points[start : start + rows]
        values = evaluate(k, (part[:, None] - others).reshape(-1, d), "k").reshape(len(part), m)
        return weights[start : start + rows] @ (values @ other_weights)

    if n <= rows:
        return block(points, weights, others, 0)
    keep_graph = torch.is_grad_enabled() and (points.requires_grad or others.requires_grad)
    total = points.new_zeros(())
    for start in range(0, n, rows):
        if keep_graph:
            total = total + checkpoint(block, points, weights, others, start, use_reentrant=False)
        else:
            total = total + block(points, weights, others, start)
    return total


def evaluate(f: Callable[[Tensor], Tensor], points: Tensor, name: str) -> Tensor:
    """f at the points, checked: a function of one point that forgets the batch is the most frequent mistake."""
    values = torch.as_tensor(f(points))
    if values.ndim == 0 or values.shape[0] != points.shape[0]:
        raise ValueError(
            f"{name} must map points of shape {tuple(points.shape)} to one value a row, ({points.shape[0]},); "
            f"it returned shape {tuple(values.shape)}. Reduce over the last axis only, as in x.square().sum(-1)"
        )
    return values.to(points)
