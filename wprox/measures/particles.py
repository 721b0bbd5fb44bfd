"""Weighted particles: without a density, with that of their law, or with a smooth one that follows them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from wprox import kernels
from wprox._checks import (
    as_floating,
    as_index,
    as_points,
    as_rows,
    as_weights,
    check_count,
    check_memory,
    check_positive,
    check_precision,
    evaluate_one,
)
from wprox._random import Seed, make_generator, seeded
from wprox._sums import draw, weighted_sum
from wprox.measures.base import DensityUnknownError, Measure, images_of, moved_by, share_of, value_and_slope
from wprox.measures.thinning import Thinning
from wprox.pairs.distances import half_square_distances
from wprox.pairs.log_density import kernel_score, log_kernel_sum
from wprox.pairs.sums import batch_sum, potential

ROWS_AT_ONCE = 2**22  # numbers of kernel values that are formed at once away from the particles


class Particles(Measure):
    r"""Weighted particles ρ = Σ_i w_i δ_{x_i}, optionally with the log-density of the law they were drawn from.

    Under a map T the density follows the change of variables, log (T#ρ)(T(x)) = log ρ(x) − log |det ∇T(x)|.

    Arguments:
        points: (n, d).
        weights: (n,), non-negative and summing to 1; equal by default.
        log_density: (n,), log ρ at the points; unknown by default.

    Raises:
        ValueError: for empty or non-finite points, and weights that are negative or do not sum to 1.

    Example:
        >>> import torch, wprox
        >>> rho = wprox.Particles(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), weights=[0.25, 0.75])
        >>> rho.integrate(lambda x: x.square().sum(-1))
        tensor(3.)
    """

    is_empirical = True
    thinning: Thinning | None = None  # of a minibatch, whose pairs count otherwise than its weights say

    def __init__(self, points: Any, weights: Any = None, log_density: Any = None) -> None:
        self.points = as_points(points, "points").clone()  # the caller's arrays may change
        n = len(self.points)
        self.weights = (
            self.points.new_full((n,), 1 / n) if weights is None else as_weights(weights, self.points).clone()
        )
        self._log_density: Tensor | None = None
        if log_density is not None:
            self._log_density = as_floating(log_density, "log_density").to(self.points).clone()
            if self._log_density.shape != (n,):
                shape = tuple(self._log_density.shape)
                raise ValueError(f"log_density must have shape ({n},), one number a point, got {shape}")

    @classmethod
    def from_distribution(cls, distribution: torch.distributions.Distribution, n: int, seed: Seed = None) -> Particles:
        """n draws from a torch distribution over R^d, with its log-density.

        torch's distributions draw from the default generator, which is seeded for the draw and then restored. Where
        their parameters want a gradient the points have one too, by `rsample`.

        Raises:
            TypeError: for what is no torch distribution, and where parameters want a gradient and draws can have none.
        """
        if not isinstance(distribution, torch.distributions.Distribution):
            raise TypeError(
                f"distribution must be a torch Distribution over R^d, got {type(distribution).__name__}; "
                "Gaussian(...).to_particles(n) draws from a wprox.Gaussian"
            )
        check_vector_law(distribution, "distribution")
        check_memory(check_count(n, "n") * distribution.event_shape.numel(), f"n = {n} draws")
        start = _draw(seed) if isinstance(seed, torch.Generator) else make_generator(seed).initial_seed()
        with seeded(start):
            points = distribution.sample(torch.Size((n,)))
        log_density = distribution.log_prob(points)
        if not log_density.requires_grad:
            return cls(points, log_density=log_density)
        if not distribution.has_rsample:
            raise TypeError(
                f"the parameters of {type(distribution).__name__} want a gradient, and its draws have none in them "
                "(has_rsample is False); detach the parameters, or take the draws under torch.no_grad()"
            )
        with seeded(start):
            points = distribution.rsample(torch.Size((n,)))
        return cls(points, log_density=distribution.log_prob(points))

    def with_kernel_density(self, bandwidth: float | None = None, factor: float | None = None) -> KernelParticles:
        r"""These particles with the smooth density Σ_j w_j N(· ; x_j, H), which follows them wherever they go.

        It lets functionals of the density act on particles: see `KernelParticles`.

        Arguments:
            bandwidth: h, for H = h² I, fixed.
            factor: f, for H = f² Σ with the covariance Σ of the particles; Silverman's rule by default.
        """
        return KernelParticles(self.points, self.weights, bandwidth, factor)

    @property
    def density_known(self) -> bool:
        return self._log_density is not None and not self.is_relative

    def log_density(self) -> Tensor:
        if self._log_density is None or self.is_relative:
            raise DensityUnknownError(
                "these particles have no density: log ρ at the points is unknown. Smooth them with "
                "Particles.with_kernel_density(), give it as Particles(points, log_density=...), draw them "
                "with Particles.from_distribution, or use a functional that needs no density. (Entropy and KL need "
                "only mean_log_density(), which NeuralProx knows up to a constant.)"
            )
        return self._log_density

    def mean_log_density(self) -> Tensor:
        if self.is_relative:
            assert self._log_density is not None
            return weighted_sum(self.weights, self._log_density)
        return super().mean_log_density()

    def relative(self) -> Particles:
        r"""The same particles, with the density counted relative to their own unknown one.

        `mean_log_density` of T#ρ then is −E_ρ log |det ∇T|, which differs from the true value by the constant
        ∫ log ρ dρ; minimising over T is not affected. Particles with a density, or already relative, are returned
        as they are.
        """
        if self._log_density is not None:
            return self
        return self._replace(self.points, torch.zeros_like(self.weights), relative=True)

    def push(self, map: Callable) -> Particles:
        points, log_det = images_of(map, self.points)
        if log_det is None:
            return self._replace(points)
        log_density = None if self._log_density is None else self._log_density - log_det
        return self._replace(points, log_density, self.is_relative)

    def to(self, dtype: torch.dtype) -> Particles:
        """The same particles in another precision; they keep their weights as they are."""
        check_precision(dtype, "dtype")
        return self._map(lambda values: values.to(dtype), self.weights.to(dtype))

    def detach(self) -> Particles:
        """The same particles, cut from the graph that made them."""
        return self._map(Tensor.detach, self.weights.detach())

    def subset(self, index: Tensor | slice) -> Particles:
        """The particles at `index`, with weights scaled to sum to 1: a minibatch."""
        index = as_index(index, len(self))
        result = self._map(lambda values: values[index], share_of(self.weights[index]))
        result.thinning = None
        return result

    def minibatch(self, rows: Tensor, weights: Tensor, together: float) -> Particles:
        """Some particles in place of all, drawn without replacement: see `wprox.measures.thinning.Thinning`.

        Arguments:
            rows: the particles drawn.
            weights: v, (m,), theirs in the minibatch.
            together: q with E v_i v_j = q w_i w_j.
        """
        result = self.subset(rows)
        result.weights = weights.to(self.weights)
        result.thinning = Thinning(self.weights[rows], float(self.weights.square().sum()), together)
        return result

    @property
    def diagonal(self) -> Tensor:
        if self.thinning is not None:
            return self.weights.new_tensor(self.thinning.diagonal)
        return super().diagonal

    def integrate_pairs(self, k: Callable[[Tensor], Tensor]) -> Tensor:
        return self._of_the_whole(k, super().integrate_pairs(k))

    def _random_batches(self, k: Callable[[Tensor], Tensor], size: int, seed: int) -> Tensor:
        if len(self) <= size:
            return self.integrate_pairs(k)
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).to(self.device)
        return self._of_the_whole(k, batch_sum(k, self.points[order], self.weights[order], size))

    def unbiased_pairs(self, total: Tensor, own: Tensor) -> Tensor:
        return total if self.thinning is None else self.thinning.pairs(total, self.weights, own)

    def _of_the_whole(self, k: Callable[[Tensor], Tensor], total: Tensor) -> Tensor:
        """A sum over pairs, of a minibatch that of the particles it was drawn from."""
        if self.thinning is None:
            return total
        if getattr(k, "singular", False):
            return self.thinning.pairs(total, self.weights, None)
        return self.thinning.pairs(
            total, self.weights, evaluate_one(k, torch.zeros_like(self.points[:1]), "the kernel")[0]
        )

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        generator = make_generator(seed, self.device)
        check_memory(check_count(n, "n") * (self.dim + 1), f"n = {n} draws")
        return self.points[draw(self.weights, n, generator)]

    def _map(self, f: Callable[[Tensor], Tensor], weights: Tensor) -> Particles:
        """f of points and log-density, with other weights."""
        result = self._replace(
            f(self.points), None if self._log_density is None else f(self._log_density), self.is_relative
        )
        result.weights = weights
        return result

    def _replace(self, points: Tensor, log_density: Tensor | None = None, relative: bool = False) -> Particles:
        """The same weights at other points; skips the checks of the constructor, which inner loops need not repeat."""
        result = object.__new__(Particles)
        result.points, result.weights, result.thinning = points, self.weights, self.thinning
        result._log_density, result.is_relative = log_density, relative
        return result


def check_vector_law(distribution: torch.distributions.Distribution, name: str) -> None:
    """Raise `ValueError` for a torch distribution that is not one law over vectors."""
    if len(distribution.event_shape) != 1 or distribution.batch_shape:
        raise ValueError(
            f"{name} must be one distribution over vectors, got batch shape {tuple(distribution.batch_shape)} and "
            f"event shape {tuple(distribution.event_shape)}; wrap it in torch.distributions.Independent({name}, 1)"
        )


class KernelParticles(Particles):
    r"""Weighted particles whose density is φ_H ∗ ρ = Σ_j w_j N(· ; x_j, H); made by `Particles.with_kernel_density`.

    The density is a function of the particles: it moves with them (`push`), `log_density` is differentiable in
    points and weights, and ∫ log(φ_H ∗ ρ) dρ is the blob energy of Carrillo, Craig and Patacchini (*A blob method for
    diffusion*, Calc. Var. 2019), in place of the entropy, which particles do not have. Its Wasserstein gradient is that
    of the blob energy itself,

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

    density_follows_points = True

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

    @classmethod
    def from_distribution(
        cls,
        distribution: torch.distributions.Distribution,
        n: int,
        seed: Seed = None,
        bandwidth: float | None = None,
        factor: float | None = None,
    ) -> KernelParticles:
        """n draws from a torch distribution over R^d, with the density of kernels around them."""
        return Particles.from_distribution(distribution, n, seed).with_kernel_density(bandwidth, factor)

    @property
    def factor(self) -> float | None:
        """f of H = f² Σ, where the bandwidth follows the particles."""
        if self.bandwidth is not None or self._factor is not None:
            return self._factor
        return float(self._silverman(self.weights.detach().double()))

    def _silverman(self, weights: Tensor) -> Tensor:
        """Silverman's factor for n = 1/Σ w_i² particles, differentiable in the weights."""
        return (4 / (self.dim + 2) * weights.square().sum()) ** (1 / (self.dim + 4))

    @property
    def density_known(self) -> bool:
        return True

    def log_density(self) -> Tensor:
        """log (φ_H ∗ ρ)(x_i), (n,), differentiable in points and weights, H included; +∞ where H is singular."""
        points = self.points.double()
        scale_tril = self._scale_tril(points)
        if scale_tril is None:
            return torch.full_like(self.weights, math.inf)
        whitened, log_det = _whiten(points, self.weights.double(), scale_tril)
        log_sums = log_kernel_sum(whitened, self.weights.double())
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
        points = moved_by(map, self.points)
        return self._replace(points)

    def subset(self, index: Tensor | slice) -> KernelParticles:
        """The particles at `index`, a minibatch, with the bandwidth factor of all of them.

        Silverman's rule for fewer particles would smooth them more: another functional than that of the whole.
        """
        result = cast(KernelParticles, super().subset(index))
        result._factor = self.factor
        return result

    def log_density_at(self, x: Tensor) -> Tensor:
        """log (φ_H ∗ ρ)(x) at any points x: (m, d), (m,), differentiable in x; H is that of the particles."""
        x = as_rows(x, "x", self.dim)
        points, weights, x64 = self.points.detach().double(), self.weights.detach().double(), x.double()
        scale_tril = self._scale_tril(points)
        if scale_tril is None:
            return torch.full_like(x[:, 0], math.inf)
        centre = weights @ points
        z, z_at = (torch.linalg.solve_triangular(scale_tril, (p - centre).mT, upper=False).mT for p in (points, x64))
        constant = scale_tril.diagonal().log().sum() + self.dim / 2 * math.log(2 * math.pi)
        log_weights = weights.log()
        rows = max(1, ROWS_AT_ONCE // len(z))
        parts = [torch.logsumexp(log_weights - half_square_distances(part, z), 1) for part in z_at.split(rows)]
        return (torch.cat(parts) - constant).to(x)

    def density_variation(self, x: Tensor, f: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        r"""f(φ ∗ ρ) + φ ∗ (ρ f′(φ ∗ ρ)) at any points x, (m,): the first variation of ∫ f(φ_H ∗ ρ) dρ.

        Raises:
            DensityUnknownError: where H follows the covariance of the particles, and so varies with ρ itself.
        """
        if self.bandwidth is None:
            raise DensityUnknownError(
                "a bandwidth that follows the particles varies with them, and the first variation away from them is "
                "not known; give a fixed one: Particles.with_kernel_density(bandwidth=h)"
            )
        at, own = self.log_density_at(x), self.log_density().detach()
        value, slope = (
            (at, (-own).exp()) if f is None else (evaluate_one(f, at.exp(), "f"), value_and_slope(f, own.exp())[1])
        )
        scale = (2 * math.pi * self.bandwidth**2) ** (-self.dim / 2)
        others = self.weights.detach() * slope
        return value + scale * potential(kernels.Gaussian(self.bandwidth), x, self.points.detach().to(x), others.to(x))

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
        return scale_tril * (self._silverman(weights) if self._factor is None else self._factor)

    def _replace(self, points: Tensor, log_density: Tensor | None = None, relative: bool = False) -> KernelParticles:
        result = object.__new__(KernelParticles)
        result.points, result.weights, result.thinning = points, self.weights, self.thinning
        result._log_density, result.is_relative = None, False
        result.bandwidth, result._factor = self.bandwidth, self._factor
        return result


def _whiten(points: Tensor, weights: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    """The points in coordinates in which H = I, and log det of its Cholesky factor."""
    centred = points - (weights @ points).detach()  # differences are what counts: this only keeps their digits
    whitened = torch.linalg.solve_triangular(scale_tril, centred.mT, upper=False).mT
    return whitened.contiguous(), scale_tril.diagonal().log().sum()


def _draw(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device=generator.device))
