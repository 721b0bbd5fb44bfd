"""Distances between measures that can be computed exactly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from wprox.measures import Gaussian, Measure, Particles, Quantiles


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
                f"{name} must be a Gaussian, got {type(law).__name__}; fit one with wprox.Gaussian.from_samples(x)"
            )
    if p.loc.shape != q.loc.shape:
        raise ValueError(f"p and q must be of one dimension, got means of shapes {_shape(p)} and {_shape(q)}")
    scale, other = p.scale_tril, q.scale_tril.to(p.scale_tril)
    left, _, right = torch.linalg.svd(other.mT @ scale)
    return ((p.loc - q.loc.to(p.loc)).square().sum() + (scale - other @ (left @ right)).square().sum()).sqrt()


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
    if isinstance(p, Quantiles) and isinstance(q, Quantiles) and len(p) == len(q):
        return (p.weights @ (p.nodes - q.nodes.to(p.nodes)).square()).sqrt()
    pieces, others = _pieces(p, "p"), _pieces(q, "q")
    ends = torch.cat((pieces[0], others[0])).unique()
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    low, high = (x - y for x, y in zip(_refine(pieces, starts, ends), _refine(others, starts, ends), strict=True))
    return ((ends - starts) @ (low.square() + high.square()) / 2).sqrt()


def _pieces(rho: Measure, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """The quantile function in pieces: the levels at which they end, and its value at the start and end of each."""
    if isinstance(rho, Quantiles):
        levels = torch.linspace(0, 1, len(rho), dtype=torch.float64)
        return levels[1:], rho.nodes[:-1].cpu(), rho.nodes[1:].cpu()
    if not isinstance(rho, Particles):
        raise TypeError(f"{name} must be Quantiles, or Particles on the line, got {type(rho).__name__}")
    if rho.dim != 1:
        raise ValueError(f"{name} must live on the line, it has dimension {rho.dim}")
    values, order = rho.points[:, 0].double().cpu().sort()
    levels = rho.weights.double().cpu()[order].cumsum(0)
    return levels / levels[-1], values, values


def _refine(pieces: tuple[Tensor, Tensor, Tensor], starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """The values at the starts and ends of finer pieces."""
    levels, low, high = pieces
    piece = torch.searchsorted(levels, (starts + ends) / 2).clamp(max=len(levels) - 1)
    begin = torch.cat((levels.new_zeros(1), levels[:-1]))[piece]
    slope = (high - low)[piece] / (levels[piece] - begin)
    return low[piece] + slope * (starts - begin), low[piece] + slope * (ends - begin)


def _shape(law: Gaussian | MultivariateNormal) -> tuple[int, ...]:
    return tuple(law.loc.shape)
