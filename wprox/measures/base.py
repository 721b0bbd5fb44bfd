"""The abstract measure: a quadrature rule with a density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wprox._checks import evaluate
from wprox._random import Seed
from wprox.pairs.sums import pair_sum

if TYPE_CHECKING:
    from typing_extensions import Self


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
        """∬ k(x − y) dρ(x) dρ(y) = Σ_ij w_i w_j k(x_i − x_j), tile by tile, so that memory is that of the points.

        The gradient is computed along with the value. The kernels of `wprox.kernels` are faster: they visit each pair
        once, as does an even function in `wprox.kernels.EvenKernel`, which also sets the size of the tiles.

        Arguments:
            k: maps differences (m, d) to values (m,). Where it has an attribute `singular` that is true, i = j is left
                out of the sum.

        Raises:
            ValueError: where two points coincide and the kernel is singular; it names them.
        """
        return pair_sum(k, self.points, self.weights)

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
