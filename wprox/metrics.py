"""Distances between measures: Wasserstein, exact, bounded or estimated; entropic, sliced and by kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal

from wprox._checks import (
    as_floating,
    as_real,
    check_count,
    check_flag,
    check_length,
    check_positive,
    described,
    kind_of,
)
from wprox._random import check_seed
from wprox._sums import mean_and_covariance
from wprox.measures import Gaussian, Measure, Particles, Quantiles
from wprox.measures.base import require_measure
from wprox.measures.laws import log_density_of
from wprox.transport.atoms import check_same_space
from wprox.transport.entropic import sinkhorn
from wprox.transport.gaussian import bures_square
from wprox.transport.line import draw_directions, line_square, sliced_square
from wprox.transport.squared import as_measure_like, exact_w2, half_square, root

Law = Measure | Distribution
__all__ = [
    "Distance",
    "bures_wasserstein",
    "energy_distance",
    "ess",
    "mmd",
    "pareto_k",
    "sinkhorn_divergence",
    "sliced_w2",
    "w2",
    "wasserstein",
    "wasserstein_1d",
]

DRAWS = 2000  # of each law, for an estimate of W₂ by optimal transport


class Distance(NamedTuple):
    """W₂, and how it is known.

    Attributes:
        value: W₂.
        kind: "exact"; "exact up to the nodes", where one law was replaced by its quantiles; "given"; "upper bound from
            moments" or "estimate from samples".
    """

    value: float
    kind: str


def bures_wasserstein(p: Gaussian | MultivariateNormal, q: Gaussian | MultivariateNormal) -> Tensor:
    r"""W₂ between Gaussians, the Bures–Wasserstein distance.

    W₂² = |m − m′|² + tr (Σ + Σ′ − 2 (Σ^½ Σ′ Σ^½)^½) = |m − m′|² + min_R ‖L − L′R‖_F² over rotations R, with Σ = L Lᵀ
    and Σ′ = L′L′ᵀ (Bhatia, Jain and Lim, *On the Bures–Wasserstein distance between positive definite matrices*, 2019,
    theorem 1). The second form, attained at the polar factor of L′ᵀL, is the one computed: nothing cancels, so that
    small distances are accurate as well.

    Arguments:
        p: a `wprox.Gaussian` or a torch `MultivariateNormal`.
        q: likewise, of the same dimension.

    Returns:
        The distance, a scalar.

    Raises:
        TypeError: for anything else.
        ValueError: for two dimensions.

    Example:
        >>> import torch, wprox
        >>> p = wprox.Gaussian(torch.zeros(2), torch.eye(2))
        >>> wprox.metrics.bures_wasserstein(p, wprox.Gaussian(torch.tensor([3.0, 4.0]), torch.eye(2)))
        tensor(5.)
    """
    for name, law in (("p", p), ("q", q)):
        if not isinstance(law, Gaussian | MultivariateNormal):
            raise TypeError(
                f"{name} must be a Gaussian, got {kind_of(law)}; fit one with wprox.Gaussian.from_samples(x)"
            )
    if p.loc.shape != q.loc.shape:
        raise ValueError(f"p and q must be of one dimension, got means of shapes {_shape(p)} and {_shape(q)}")
    return root(bures_square(p.loc, p.scale_tril, q.loc, q.scale_tril)).to(p.loc.dtype)


def wasserstein_1d(p: Measure, q: Measure) -> Tensor:
    r"""W₂ on the line, the L² distance of quantile functions.

    W₂² = ∫₀¹ (F_p⁻¹(u) − F_q⁻¹(u))² du (Villani, *Topics in optimal transportation*, theorem 2.18), by the trapezoidal
    rule on all levels at which one of the quantile functions has a node: exact for particles, and between Quantiles of
    as many nodes the norm in which `QuantileProx` works.

    Arguments:
        p: Quantiles, or Particles of dimension 1.
        q: likewise.

    Returns:
        The distance, a scalar.

    Raises:
        TypeError: for other measures.
        ValueError: for particles of a higher dimension.

    Example:
        >>> import torch, wprox
        >>> p = wprox.Quantiles(torch.linspace(0.0, 1.0, 11))
        >>> wprox.metrics.wasserstein_1d(p, wprox.Quantiles(p.nodes + 2))
        tensor(2., dtype=torch.float64)
    """
    for name, rho in (("p", p), ("q", q)):
        if not isinstance(rho, Quantiles | Particles):
            raise TypeError(f"{name} must be Quantiles, or Particles on the line, got {kind_of(rho)}; build one")
        if rho.dim != 1:
            raise ValueError(f"{name} must live on the line, it has dimension {rho.dim}; project it")
    return root(line_square(p, q))


def w2(p: Measure, q: Measure, num_itermax: int = 10**6) -> Tensor:
    r"""W₂ between any two measures, exactly: by POT's network simplex, where there is no closed form.

    W₂² = min_P ∫ |x − y|² dP(x, y) over plans P from p to q. Gaussians and measures of the line are quick; else it
    takes len(p) · len(q) numbers of memory and close to n³ operations. A `Grid` counts as points at the centres of its
    cells, a Gaussian next to other measures as its quadrature points (on the line as 2,000 quantiles).

    Arguments:
        p: a measure.
        q: a measure of the same dimension.
        num_itermax: the largest number of pivots of the network simplex.

    Returns:
        The distance, a scalar in the dtype of p, with gradients in the points of both and in the weights of p.

    Raises:
        ValueError: for two dimensions, and for a Gaussian without `order` next to another measure.
        RuntimeError: where `num_itermax` is not enough.

    Example:
        >>> import torch, wprox
        >>> p = wprox.Particles(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> wprox.metrics.w2(p, p.push(lambda x: x + torch.tensor([3.0, 4.0])))
        tensor(5.)
    """
    check_same_space(p, q)
    square = 2 * half_square(p, q, check_count(num_itermax, "num_itermax"))
    return root(square).to(p.dtype)


def sinkhorn_divergence(p: Measure, q: Measure, blur: float, tol: float = 1e-6, iterations: int = 10_000) -> Tensor:
    r"""The Sinkhorn divergence S_ε(p, q), ε = blur², for the cost ½|x − y|²: close to ½W₂², not to W₂.

    See `wprox.SinkhornDivergence`.

    Arguments:
        p: a measure.
        q: a measure of the same dimension.
        blur: √ε, a length.
        tol: the largest error of the marginals of the plans, in mass.
        iterations: the largest number of Sinkhorn iterations.

    Returns:
        The divergence, a scalar in the dtype of p, with gradients in the points and weights of both.

    Example:
        >>> import torch, wprox
        >>> p = wprox.Particles(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> wprox.metrics.sinkhorn_divergence(p, p.push(lambda x: x + torch.tensor([3.0, 4.0])), blur=0.1)
        tensor(12.5000)
    """
    blur, tol, iterations = (
        check_length(blur, "blur"),
        check_positive(tol, "tol"),
        check_count(iterations, "iterations"),
    )
    check_same_space(p, q)
    return sinkhorn(p, q, blur, tol, iterations).to(p.dtype)


def sliced_w2(p: Measure, q: Measure, n_projections: int = 100, seed: int = 0) -> Tensor:
    r"""The sliced Wasserstein distance SW₂, the root of the mean over directions θ of W₂²(θ·p, θ·q).

    See `wprox.SlicedWasserstein`, which is ½SW₂².

    Arguments:
        p: a measure.
        q: a measure of the same dimension.
        n_projections: the number of directions.
        seed: of the directions.

    Returns:
        The distance, a scalar in the dtype of p, with gradients in the points of both and in the weights of p.

    Example:
        >>> import torch, wprox
        >>> p = wprox.Particles(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        >>> wprox.metrics.sliced_w2(p, p.push(lambda x: x + 3.0))  # |v|/√d
        tensor(3.)
    """
    check_same_space(p, q)
    directions = draw_directions(check_count(n_projections, "n_projections"), p.dim, check_seed(seed))
    return root(sliced_square(p, q, directions)).to(p.dtype)


def wasserstein(p: Measure, q: Law, method: str | None = None, seed: int = 0) -> Distance:
    r"""W₂(p, q), exactly, bounded from moments or estimated from draws.

    Arguments:
        p: a measure.
        q: a measure or a torch distribution.
        method: "exact" (Gaussians, and Quantiles), "moments" for the upper bound W₂² ≤ |m_p − m_q|² + tr Σ_p + tr Σ_q
            of independent coupling, "samples" for optimal transport between 2,000 draws of each (POT), which is an
            estimate (from above on average, as empirical laws lie further apart). By default exact where possible,
            else "moments".
        seed: of the draws.

    Raises:
        ValueError: for an unknown method, and "exact" for other measures.

    Example:
        >>> import torch, wprox
        >>> p = wprox.Particles(torch.zeros(1, 2))
        >>> wprox.metrics.wasserstein(p, wprox.Gaussian(torch.zeros(2), 2 * torch.eye(2)))
        Distance(value=2.0, kind='upper bound from moments')
    """
    require_measure(p, "p")
    if _dim(q, "q") != p.dim:
        raise ValueError(f"p and q must be of one dimension, got {p.dim} and {_dim(q, 'q')}; project one of them")
    check_seed(seed)
    if not isinstance(method, str | None):
        raise TypeError(f'method must be "exact", "moments", "samples" or None, got {described(method)}')
    reference = as_measure_like(q, p)
    if method in (None, "exact") and reference is not None:
        is_replaced = isinstance(p, Quantiles) and not isinstance(q, Quantiles)
        return Distance(exact_w2(p, reference), "exact up to the nodes" if is_replaced else "exact")
    if method == "samples":
        first, second = (Particles(_draws(law, seed + k).double()) for k, law in enumerate((p, q)))
        return Distance(float(w2(first, second, 10**7)), "estimate from samples")
    if method not in (None, "moments"):
        raise ValueError(
            f'W₂(p, q) is known exactly between Gaussians and between Quantiles only; use "moments" or "samples", got '
            f"{method!r}"
        )
    (mean, spread), (other_mean, other_spread) = _mean_and_spread(p, "p"), _mean_and_spread(q, "q")
    square = float((mean - other_mean.to(mean)).square().sum()) + spread + other_spread
    return Distance(math.sqrt(square), "upper bound from moments")


def _dim(law: Law, name: str) -> int:
    """The dimension of a measure, or of a torch distribution over vectors."""
    if isinstance(law, Distribution):
        return log_density_of(law)[0] or 0
    if not isinstance(law, Measure):
        raise TypeError(
            f"{name} must be a measure or a torch distribution, got {kind_of(law)}; wprox.Particles(points) makes one"
        )
    return law.dim


def _mean_and_spread(law: Law, name: str) -> tuple[Tensor, float]:
    """The mean and the trace of the covariance, without which there is no bound from moments."""
    if isinstance(law, Distribution):
        try:
            mean, spread = law.mean, float(law.variance.sum())
        except NotImplementedError:
            mean, spread = torch.tensor(math.nan), math.nan
        if not (bool(torch.isfinite(mean).all()) and math.isfinite(spread)):
            raise ValueError(
                f"{name} = {type(law).__name__} does not know a finite mean and variance, so that W₂ has no bound from "
                'moments; use method="samples" for an estimate, or give W₂ as a number'
            )
        return mean, spread
    mean, covariance = mean_and_covariance(law.points, law.weights)
    return mean, float(covariance.trace())


def _draws(law: Law, seed: int) -> Tensor:
    if isinstance(law, Distribution):
        return Particles.from_distribution(law, DRAWS, seed).points
    return law.sample(DRAWS, seed)


def _shape(law: Gaussian | MultivariateNormal) -> tuple[int, ...]:
    return tuple(law.loc.shape)


def mmd(p: Law, q: Law, kernel: Callable[[Tensor], Tensor] | None = None, unbiased: bool = False) -> Tensor:
    r"""MMD²(p, q) = ∬ k d(p − q) d(p − q), the squared maximum mean discrepancy, twice `wprox.MMD`.

    Gretton, Borgwardt, Rasch, Schölkopf and Smola, *A kernel two-sample test*, 2012. It is the square because the
    unbiased estimate may be negative.

    Arguments:
        p: a measure, or a torch distribution, of which 2,000 draws are taken.
        q: likewise; of a `wprox.Gaussian` draws are taken too.
        kernel: k; `wprox.kernels.Riesz(1)` by default, with which this is `energy_distance`.
        unbiased: leave out the pairs i = j, for particles.

    Example:
        >>> import torch, wprox
        >>> p, q = wprox.Particles(torch.tensor([[0.0]])), wprox.Particles(torch.tensor([[1.0]]))
        >>> wprox.metrics.mmd(p, q, wprox.kernels.Laplace())
        tensor(1.2642)
    """
    from wprox.functionals import MMD  # functionals may use metrics

    _dim(q, "q")
    return 2 * MMD(q, kernel, unbiased, n_samples=DRAWS, seed=1)(_carried(p))


def energy_distance(p: Law, q: Law) -> Tensor:
    r"""E(p, q) = 2E|X − Y| − E|X − X′| − E|Y − Y′|, for independent X, X′ ~ p and Y, Y′ ~ q.

    Székely and Rizzo, *Energy statistics*, 2013. On the line it is 2∫(F_p − F_q)² dx, the square of what
    `scipy.stats.energy_distance` returns.

    Arguments:
        p: a measure, or a torch distribution, of which 2,000 draws are taken, as of a `wprox.Gaussian`.
        q: likewise.

    Example:
        >>> import torch, wprox
        >>> p, q = wprox.Particles(torch.zeros(1, 2)), wprox.Particles(torch.tensor([[3.0, 4.0]]))
        >>> wprox.metrics.energy_distance(p, q)
        tensor(10.)
    """
    return mmd(p, q)


def _carried(law: Law) -> Measure:
    """A law as a measure whose points picture it."""
    _dim(law, "p")
    if isinstance(law, Gaussian | Distribution):
        return Particles(_draws(law, 0))
    return law


def ess(weights: Any, log: bool = False) -> Tensor:
    r"""The effective sample size (Σ w_i)²/Σ w_i², between 1 and n (Kong 1992); divided by n it is a fraction.

    Arguments:
        weights: (n,), not negative, of any positive sum.
        log: they are logarithms of weights, as importance sampling gives them, up to a constant.

    Raises:
        ValueError: for negative weights, and weights that are all zero.

    Example:
        >>> import wprox
        >>> wprox.metrics.ess([0.5, 0.5, 0.0])
        tensor(2.)
    """
    if check_flag(log, "log"):
        values = as_real(weights, "weights")
        largest = float(values.max()) if values.numel() else -math.inf
        if values.ndim != 1 or not -math.inf < largest < math.inf:
            raise ValueError(
                f"log-weights must have shape (n,) and a finite maximum, got {tuple(values.shape)}; −∞ marks weight 0"
            )
        values = (values - largest).exp()
        return values.sum().square() / values.square().sum()
    values = as_floating(weights, "weights")
    if values.ndim != 1 or bool((values < 0).any()) or not float(values.sum()) > 0:
        raise ValueError(
            f"weights must have shape (n,), be non-negative and not all zero, got shape {tuple(values.shape)} and the "
            f"smallest {float(values.min()) if values.numel() else math.nan:g}; for logarithms set log=True"
        )
    values = values / values.max()  # so that squares do not overflow
    return values.sum().square() / values.square().sum()


def pareto_k(weights: Any, log: bool = False) -> float:
    r"""The Pareto index k̂ of importance weights: their tail falls like that of a law with moments up to 1/k.

    A generalised Pareto law is fitted to what the min(n/5, 3√n) largest weights exceed the others by (Vehtari, Simpson,
    Gelman, Yao and Gabry, *Pareto smoothed importance sampling*, 2024; the fit is Zhang and Stephens' of 2009, drawn
    to ½ as by ten more weights). Above ½ the variance of the weights, and with it the usual standard error of their
    mean, is infinite; above min(1 − 1/log₁₀ n, 0.7) means of so many weights are not to be relied on.

    Arguments:
        weights: (n,), not negative, n ≥ 25.
        log: they are logarithms of weights, up to a constant.

    Returns:
        k̂; −∞ where the largest weights are all equal.

    Raises:
        ValueError: for negative weights, weights that are all zero, and fewer than 25.

    Example:
        >>> import torch, wprox
        >>> levels = (torch.arange(10_000) + 0.5) / 10_000
        >>> wprox.metrics.pareto_k(levels**-0.8)  # the quantiles of a Pareto law with k = 0.8
        0.8
    """
    ess(weights, log)  # which checks them
    values = as_floating(weights, "weights").double() if not log else as_real(weights, "weights").double()
    n = values.numel()
    if n < 25:
        raise ValueError(f"the tail of weights is that of 25 or more, got {n}; draw more")
    values = ((values - values.max()).exp() if log else values / values.max()).sort().values
    tail = min(n // 5, math.ceil(3 * math.sqrt(n)))
    excess = values[-tail:] - values[-tail - 1]
    excess = excess[excess > 0]
    return _pareto_shape(excess) if len(excess) >= 5 else -math.inf


def _pareto_shape(excess: Tensor) -> float:
    """The index k of a generalised Pareto law, (1 + k x/σ)^{−1/k} beyond x, of sorted positive draws, (m,)."""
    m = len(excess)
    count = 30 + math.isqrt(m)
    ranks = torch.arange(1, count + 1, dtype=excess.dtype, device=excess.device)
    theta = (1 - (count / (ranks - 0.5)).sqrt()) / (3 * excess[int(m / 4 + 0.5) - 1]) + 1 / excess[-1]
    shape = torch.log1p(-theta[:, None] * excess).mean(1)
    profile = m * ((-theta / shape).log() - shape - 1)
    best = float(profile.softmax(0) @ theta)
    return (m * float(torch.log1p(-best * excess).mean()) + 5) / (m + 10)
