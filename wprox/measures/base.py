"""The abstract measure: a quadrature rule with a density."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wprox._checks import (
    as_index,
    as_rows,
    as_values,
    check_count,
    check_function,
    check_precision,
    evaluate,
    evaluate_one,
)
from wprox._modes import in_any_mode
from wprox._random import Seed, check_seed
from wprox._sums import weighted_sum
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
        """∫ f dρ = Σ_i w_i f(x_i), summed in float64.

        Arguments:
            f: maps points (n, d) to values (n,) or (n, k).

        Returns:
            A scalar, or (k,).
        """
        return weighted_sum(self.weights, evaluate(f, self.points, "f"))

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

        Arguments:
            k: maps differences (m, d) to values (m,).
            size: of a batch, at least 2.
            seed: of the batches.
        """
        return self._random_batches(k, check_count(size, "size", least=2), check_seed(seed))

    def _random_batches(self, k: Callable[[Tensor], Tensor], size: int, seed: int) -> Tensor:
        """`integrate_random_batches`, whose arguments are checked."""
        return self.integrate_pairs(k)

    def convolve(self, k: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Tensor:
        """(k ∗ ρ)(x) = ∫ k(x − y) dρ(y) at any points x: (m, d), by default those of the measure, (m,).

        In bounded memory, and differentiable in x. A singular kernel leaves out points that coincide.
        """
        x = self.points if x is None else as_rows(x, "x", self.dim)
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
        return weighted_sum(self.weights, self.log_density())

    def integrate_density(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """∫ f(ρ(x)) dρ(x), a function of the density averaged over the measure.

        Measures whose density is known between the support points, or in closed form, answer more exactly than
        Σ_i w_i f(ρ(x_i)).

        Arguments:
            f: maps densities (n,) to values (n,).
        """
        return weighted_sum(self.weights, evaluate_one(f, self.log_density().exp(), "f"))

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
        rows = as_rows(points, "points", self.dim)
        if len(rows) != len(self):
            raise ValueError(f"points must be {len(self)}, one for each of the measure's, got {len(rows)}")
        return self.push(lambda _: rows)

    def to(self, dtype: torch.dtype) -> Self:
        """The same measure in another precision, torch.float32 or torch.float64."""
        check_precision(dtype, "dtype")
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
        index = as_index(index, len(self))
        return self._with(self.points[index], share_of(self.weights[index]))

    def _with(self, points: Tensor, weights: Tensor) -> Self:
        result = copy(self)
        result.points, result.weights = points, weights
        return result


def require_measure(value: object, name: str) -> Measure:
    """The measure itself; a sentence for what is often given in its place.

    Raises:
        TypeError: for a class, points, a distribution, and anything else that is not a measure.
    """
    if isinstance(value, Measure):
        return value
    if isinstance(value, type):
        raise TypeError(f"{name} must be a measure, got the class {value.__name__}; build one, as in Particles(points)")
    raise TypeError(f"{name} must be a wprox measure, got {type(value).__name__}; wprox.Particles(points) makes one")


def images_of(map: Callable, points: Tensor) -> tuple[Tensor, Tensor | None]:
    """T(x), (n, k), and log|det ∇T(x)|, (n,), of any callable at points (n, d); `None` where it returns T(x) only.

    Raises:
        TypeError: for what cannot be called, and outputs that are no arrays of real numbers.
        ValueError: for outputs of other shapes.
    """
    output = check_function(map, "map")(points)
    if not isinstance(output, tuple):
        images = as_values(output, points, "map").to(points)
        if images.ndim != 2:
            raise ValueError(
                f"map must return points of shape {tuple(points.shape)}, it returned shape {tuple(images.shape)}; a "
                "map of the line returns one column, as in y[:, None]"
            )
        return images, None
    if len(output) != 2:
        raise ValueError(f"map must return points y or a pair (y, log_det), it returned {len(output)} things")
    images, log_det = (as_values(part, points, "map").to(points) for part in output)
    if images.shape != points.shape or log_det.shape != points.shape[:1]:
        raise ValueError(
            f"a map must return (y, log_det) of shapes {tuple(points.shape)} and {tuple(points.shape[:1])}, got "
            f"{tuple(images.shape)} and {tuple(log_det.shape)}"
        )
    return images, log_det


def moved_by(map: Callable, points: Tensor) -> Tensor:
    """T(x) at points (n, d), in the same space, (n, d)."""
    images, _ = images_of(map, points)
    if images.shape != points.shape:
        raise ValueError(f"a map must return points of shape {tuple(points.shape)}, got {tuple(images.shape)}")
    return images


def share_of(weights: Tensor) -> Tensor:
    """Weights of some of the points, (m,), scaled to sum to 1."""
    total = weights.sum()
    if not bool(total > 0):
        raise ValueError(f"index takes {len(weights)} points, which have no weight together; take some that have")
    return weights / total


@in_any_mode
def value_and_slope(f: Callable[[Tensor], Tensor], density: Tensor) -> tuple[Tensor, Tensor]:
    """f and f′ at densities (m,), with a graph in these and in tensors of f itself, as far as they want gradients."""
    value = evaluate_one(f, density, "f")
    with torch.enable_grad():
        s = density if density.requires_grad else density.detach().requires_grad_()
        at_s = evaluate_one(f, s, "f")
        if not at_s.requires_grad:
            return value, torch.zeros_like(density)
        (slope,) = torch.autograd.grad(at_s.sum(), s, create_graph=True, materialize_grads=True)
    return value, slope if value.requires_grad else slope.detach()
