"""Distances to a target by optimal transport: exact, entropic and sliced."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from wprox._autograd import not_differentiable_in
from wprox._checks import as_points, check_count, check_length, check_positive
from wprox._random import check_seed
from wprox.functionals.base import Functional
from wprox.functionals.structure import Distance, Structure
from wprox.measures import Measure, Particles
from wprox.transport.entropic import sinkhorn
from wprox.transport.line import draw_directions, sliced_square
from wprox.transport.potentials import (
    are_gaussian,
    gaussian_field,
    own_gradient,
    sinkhorn_field,
    sliced_field,
    squared_field,
)
from wprox.transport.squared import half_square

FIXED_TARGET = (
    "first variations of transport costs have a gradient in the points x, and none in the tensors of the target: how "
    "Kantorovich's potentials change with it is not known; differentiate the value F(ρ), which has one, or detach the "
    "target"
)


class _Transport(Functional):
    """A functional of the distance to a target measure: 1-convex on the line, of unknown modulus elsewhere."""

    def __init__(self, target: Measure | Any) -> None:
        if not isinstance(target, Measure):
            if callable(target) or hasattr(target, "sample"):
                raise TypeError(
                    f"the target must be a measure or points (n, d), got {type(target).__name__}; draw from it, as in "
                    "Particles.from_distribution(target, n, seed), or build a Gaussian or a Grid"
                )
            target = Particles(as_points(target, "target"))
        self.target = target

    def __call__(self, rho: Measure) -> Tensor:
        if rho.dim != self.target.dim:
            raise ValueError(f"the target lives in dimension {self.target.dim}, the measure in dimension {rho.dim}")
        return self._value(rho, self.target).to(rho.dtype)

    def _value(self, rho: Measure, target: Measure) -> Tensor:
        raise NotImplementedError

    def _field(self, rho: Measure, target: Measure) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError

    def needs_density(self, rho: Measure) -> bool:
        return False

    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        """Kantorovich's potential at any points: that between the points of ρ and ν, and its c-transform elsewhere."""
        field = gaussian_field(self, rho) if are_gaussian(rho, self.target) else self._field(rho, self.target)
        return partial(_of_a_fixed_target, field, self.target)

    def wasserstein_gradient(self, rho: Measure) -> Tensor:
        """∇ δF/δρ at the support points, (n, d); between Gaussians exact, as δF/δρ is quadratic there."""
        gradient = own_gradient(self, rho, self.target)
        return super().wasserstein_gradient(rho) if gradient is None else gradient

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"


def _of_a_fixed_target(field: Callable[[Tensor], Tensor], target: Measure, x: Tensor) -> Tensor:
    return not_differentiable_in(field(x), (target.points, target.weights), FIXED_TARGET)


class SquaredWasserstein(_Transport):
    r"""F(ρ) = ½ W₂²(ρ, ν) = min_P ½ ∫ |x − y|² dP(x, y), over plans P from ρ to a target ν.

    Its first variation is Kantorovich's potential φ, here with ∫ φ dρ = 0 (Santambrogio, *Optimal transport for applied
    mathematicians*, proposition 7.17), and its Wasserstein gradient x − T(x), with the mean T(x) of what the optimal
    plan sends x to. A proximal step moves to the displacement interpolation at γ/(1 + γ); the minimiser of
    Σ_j λ_j ½ W₂²(·, ν_j) is the Wasserstein barycentre (Agueh and Carlier 2011).

    Computed by quantile functions on the line, n log n; in closed form between Gaussians (Bures); else by POT's network
    simplex in float64 on the CPU, which takes n m numbers of memory and close to n³ operations: for up to about 5,000
    points or grid cells. Gaussians meet other measures through their quadrature (`Gaussian(..., order=k)`), in one
    dimension through quantiles.

    `modulus` is 1 on the line. In higher dimensions it is `None`: ½W₂²(·, ν) is 1-convex along generalised geodesics
    with base ν (Ambrosio, Gigli and Savaré, *Gradient flows*, lemma 9.2.1), but along others it is not λ-convex for any
    λ (example 9.1.5 there).

    Arguments:
        target: ν, a measure, or points (m, d) of equal weight.
        num_itermax: the largest number of pivots of the network simplex.

    Raises:
        ValueError: for a measure of another dimension.
        RuntimeError: where `num_itermax` is not enough.

    Example:
        >>> import torch, wprox
        >>> F = wprox.SquaredWasserstein(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
        >>> rho = wprox.Particles(torch.tensor([[0.0, 1.0], [4.0, 1.0]]))
        >>> F(rho), F.wasserstein_gradient(rho)[0]
        (tensor(0.5000), tensor([0., 1.]))
    """

    def __init__(self, target: Measure | Any, num_itermax: int = 10**6) -> None:
        super().__init__(target)
        self.num_itermax = check_count(num_itermax, "num_itermax")
        self.modulus = self._unless_overridden(_Transport, 1.0) if self.target.dim == 1 else None

    def _value(self, rho: Measure, target: Measure) -> Tensor:
        return half_square(rho, target, self.num_itermax)

    def _field(self, rho: Measure, target: Measure) -> Callable[[Tensor], Tensor]:
        return squared_field(rho, target, self.num_itermax)

    def structure(self) -> Structure:
        return Structure(distances=(Distance(1.0, self.target, self),))


class SinkhornDivergence(_Transport):
    r"""F(ρ) = S_ε(ρ, ν) = OT_ε(ρ, ν) − ½ OT_ε(ρ, ρ) − ½ OT_ε(ν, ν), with ε = blur².

    OT_ε(ρ, ν) = min_P ∫ ½|x − y|² dP + ε KL(P ‖ ρ ⊗ ν). It is 0 at ν only, convex in ρ (as a function of the masses),
    tends to ½ W₂² as blur → 0 and to the ½|m_ρ − m_ν|² of the means as blur → ∞ (Feydy, Séjourné, Vialard, Amari,
    Trouvé and Peyré 2019). Unlike ½W₂² it is smooth, and samples tell it from ν's at the rate n^{−½} in any dimension.

    Computed in float64 by stabilised Sinkhorn iterations, until the marginals of the plans are within `tol`, so that
    gradients in points and weights are as accurate as that; in closed form between Gaussians (Janati, Muzellec, Peyré
    and Cuturi 2020). Other measures are taken as points: blur should not be finer than their spacing. Memory is that of
    about ten n × n matrices.

    Arguments:
        target: ν, a measure, or points (m, d) of equal weight.
        blur: √ε, in units of the points: the length below which ρ and ν are not told apart.
        tol: the largest error of the marginals, in mass.
        iterations: the largest number of iterations for each of the three plans; a warning says where it is reached.

    Raises:
        ValueError: for a measure of another dimension, and options out of range.

    Example:
        >>> import torch, wprox
        >>> F = wprox.SinkhornDivergence(torch.tensor([[0.0, 0.0], [4.0, 0.0]]), blur=0.1)
        >>> F(wprox.Particles(torch.tensor([[0.0, 1.0], [4.0, 1.0]])))
        tensor(0.5000)
    """

    def __init__(self, target: Measure | Any, blur: float, tol: float = 1e-6, iterations: int = 10_000) -> None:
        super().__init__(target)
        self.blur = check_length(blur, "blur")
        self.tol = check_positive(tol, "tol")
        self.iterations = check_count(iterations, "iterations")

    def _value(self, rho: Measure, target: Measure) -> Tensor:
        return sinkhorn(rho, target, self.blur, self.tol, self.iterations)

    def _field(self, rho: Measure, target: Measure) -> Callable[[Tensor], Tensor]:
        return sinkhorn_field(rho, target, self.blur, self.tol, self.iterations)

    def __repr__(self) -> str:
        return f"SinkhornDivergence({self.target!r}, blur={self.blur:g})"


class SlicedWasserstein(_Transport):
    r"""F(ρ) = ½ SW₂²(ρ, ν) = (1/2L) Σ_l W₂²(θ_l·ρ, θ_l·ν), over L fixed directions θ_l.

    A sum of exact distances on the line, n log n each (Rabin, Peyré, Delon and Bernot 2012). The directions are uniform
    on the sphere, drawn once from the seed in orthonormal sets, which lowers the variance (Rowland et al. 2019) and
    makes translations exact: SW₂² = |v|²/d where L is a multiple of d. SW₂ ≤ W₂/√d in expectation.

    Its Wasserstein gradient is (1/L) Σ_l θ_l (θ_l·x − T_l(θ_l·x)). Exact in closed form between Gaussians, and equal to
    ½ W₂² on the line.

    Arguments:
        target: ν, a measure, or points (m, d) of equal weight.
        n_projections: L. In high dimension take several times d: what no direction sees is not moved.
        seed: of the directions.

    Raises:
        ValueError: for a measure of another dimension.

    Example:
        >>> import torch, wprox
        >>> F = wprox.SlicedWasserstein(torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
        >>> F(wprox.Particles(torch.tensor([[0.0, 1.0], [4.0, 1.0]])))  # |v|²/2d
        tensor(0.2500)
    """

    def __init__(self, target: Measure | Any, n_projections: int = 100, seed: int = 0) -> None:
        super().__init__(target)
        self.n_projections = check_count(n_projections, "n_projections")
        self.seed = check_seed(seed)
        self.directions = draw_directions(self.n_projections, self.target.dim, self.seed)
        self.modulus = self._unless_overridden(_Transport, 1.0) if self.target.dim == 1 else None

    def _value(self, rho: Measure, target: Measure) -> Tensor:
        return sliced_square(rho, target, self.directions) / 2

    def _field(self, rho: Measure, target: Measure) -> Callable[[Tensor], Tensor]:
        return sliced_field(rho, target, self.directions)

    def __repr__(self) -> str:
        return f"SlicedWasserstein({self.target!r}, n_projections={self.n_projections})"
