"""The abstract measure: a quadrature rule with a density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wprox._checks import evaluate
from wprox._modes import in_any_mode
from wprox._random import Seed
from wprox.pairs.sums import pair_sum, potential

if TYPE_CHECKING:
    from typing_extensions import Self


class DensityUnknownError(ValueError):
    """The measure has no density, and what was asked of it needs one."""


class Measure(ABC):
    r"""A probability measure on R^d, given by support points, weights and (where known) a density.

    Functionals see nothing but the verbs `integrate`, `integrate_pairs`, `log_density`, `mean_log_density` and
    `integrate_density`; Lagrangian solvers add `push`. A measure of your own has `points`, `weights`,
    `log_density` (which may raise `DensityUnknownError`), `push` and `sample`; all else has defaults that follow.

    Attributes:
        points: (n, d), the support (or quadrature nodes) of the measure.
        weights: (n,), non-negative, summing to 1.
        movable: whether each point can be moved by itself, as solvers of particles do.
        is_empirical: whether the points are atoms, as draws are, and not the nodes of a quadrature.
        is_relative: whether the density is known only relative to the unknown one of an earlier measure.
        density_follows_points: whether the density is a function of the points, which functionals differentiate
            through.

    Example:
        >>> import torch, wprox
        >>> class Dipole(wprox.Measure):
        ...     def __init__(self, x):
        ...         self.points, self.weights = torch.stack((x, -x)), torch.tensor([0.5, 0.5])
        ...
        ...     def log_density(self):
        ...         raise wprox.DensityUnknownError("atoms have no density")
        ...
        ...     def push(self, map):
        ...         return wprox.Particles(self.points, self.weights).push(map)
        ...
        ...     def sample(self, n, seed=None):
        ...         return wprox.Particles(self.points, self.weights).sample(n, seed)
        >>> Dipole(torch.tensor([3.0, 4.0])).integrate(lambda x: x.square().sum(-1))
        tensor(25.)
    """

    points: Tensor
    weights: Tensor
    movable: bool = True
    is_empirical: bool = False
    is_relative: bool = False
    density_follows_points: bool = False

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
    def density_known(self) -> bool:
        """Whether `log_density` answers."""
        try:
            self.log_density()
        except DensityUnknownError:
            return False
        return True

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

    @property
    def diagonal(self) -> Tensor:
        """Σ_i w_i², what the pairs i = j weigh in ρ ⊗ ρ."""
        return self.weights.square().sum()

    def unbiased_pairs(self, total: Tensor, own: Tensor) -> Tensor:
        """What `integrate_pairs` makes of Σ_ij w_i w_j k(x_i, x_j), for kernels that are no functions of x − y.

        It is that sum itself but for a minibatch, which estimates the sum over all particles it was drawn from.

        Arguments:
            total: the sum.
            own: k(x_i, x_i), (n,).
        """
        return total

    def integrate_random_batches(self, k: Callable[[Tensor], Tensor], size: int, seed: int) -> Tensor:
        """An estimate of `integrate_pairs(k)` from the pairs inside random batches, for an even kernel.

        Particles estimate it; measures that know better rules than pairs of points compute it.
        """
        return self.integrate_pairs(k)

    def convolve(self, k: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Tensor:
        """(k ∗ ρ)(x) = ∫ k(x − y) dρ(y) at any points x: (m, d), by default those of the measure, (m,).

        In bounded memory, and differentiable in x. A singular kernel leaves out points that coincide.
        """
        x = self.points if x is None else x
        return potential(k, x, self.points.to(x), self.weights.to(x))

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

    def log_density_at(self, x: Tensor) -> Tensor:
        """log ρ at any points x: (m, d), (m,), differentiable in x.

        Raises:
            DensityUnknownError: where the measure knows its density at its own points only, or nowhere.
        """
        raise DensityUnknownError(
            f"{type(self).__name__} does not know its density away from its own points; Gaussian, Quantiles, Grid and "
            "Particles.with_kernel_density() do"
        )

    def density_variation(self, x: Tensor, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The first variation f(ρ) + ρ f′(ρ) of ∫ f(ρ) dρ at any points x: (m, d), up to a constant, (m,).

        Arguments:
            x: the points.
            f: maps densities to values; the logarithm by default.

        Raises:
            DensityUnknownError: as `log_density_at`.
        """
        log_density = self.log_density_at(x)
        if f is None:
            return log_density
        value, slope = value_and_slope(f, log_density.exp())
        return value + log_density.exp() * slope

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

    def at(self, points: Tensor) -> Self:
        """The same measure at other points (n, d), row by row: without a density, unless that follows the points."""
        return self.push(lambda _: points)

    def to(self, dtype: torch.dtype) -> Self:
        """The same measure in another precision."""
        return self._with(self.points.to(dtype), self.weights.to(dtype))

    def detach(self) -> Self:
        """The same measure, cut from the graph that made it."""
        return self._with(self.points.detach(), self.weights.detach())

    def subset(self, index: Tensor | slice) -> Self:
        """The points at `index`, with weights scaled to sum to 1: a minibatch.

        Raises:
            TypeError: where the points are no particles, but the nodes of a rule.
        """
        if not self.movable:
            raise TypeError(f"the points of a {type(self).__name__} are no particles of which some could be taken")
        weights = self.weights[index]
        return self._with(self.points[index], weights / weights.sum())

    def _with(self, points: Tensor, weights: Tensor) -> Self:
        result = copy(self)
        result.points, result.weights = points, weights
        return result


@in_any_mode
def value_and_slope(f: Callable[[Tensor], Tensor], density: Tensor) -> tuple[Tensor, Tensor]:
    """f and f′ at densities (m,), with a graph in these and in tensors of f itself, as far as they want gradients."""
    value = f(density)
    with torch.enable_grad():
        s = density if density.requires_grad else density.detach().requires_grad_()
        at_s = f(s)
        if not at_s.requires_grad:
            return value, torch.zeros_like(density)
        (slope,) = torch.autograd.grad(at_s.sum(), s, create_graph=True, materialize_grads=True)
    return value, slope if value.requires_grad else slope.detach()
