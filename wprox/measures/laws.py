"""Laws that come from outside: which of them are Gaussian, what their log-density is; and N(0, I)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
)

from wprox._checks import PRECISIONS, kind_of
from wprox._random import Seed
from wprox.measures.base import Measure
from wprox.measures.gaussian import Gaussian, normal_log_prob
from wprox.measures.particles import Particles, check_vector_law


def as_gaussian(law: object) -> Gaussian | None:
    """A law as a `Gaussian`, `None` for one that is not known to be Gaussian.

    Known are a `wprox.Gaussian`, which is returned as it is, one torch `MultivariateNormal`, of low rank or
    not, and one `Independent` of `Normal` laws over vectors. A covariance that has no Cholesky factor in the law's
    dtype is taken in float64; where it has none there either, the law is not a Gaussian to compute with.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Laplace, Normal
        >>> from wprox.measures.laws import as_gaussian
        >>> as_gaussian(Independent(Normal(torch.zeros(3), 1.0), 1))
        Gaussian(dim=3, dtype=torch.float32)
        >>> as_gaussian(Independent(Laplace(torch.zeros(3), 1.0), 1)) is None
        True
    """
    if isinstance(law, Gaussian):
        return law
    if not isinstance(law, Distribution) or law.batch_shape or len(law.event_shape) != 1:
        return None
    if isinstance(law, MultivariateNormal | LowRankMultivariateNormal):
        return _positive_definite(law.loc, law.scale_tril)
    if isinstance(law, Independent) and isinstance(law.base_dist, Normal):
        return _positive_definite(law.base_dist.loc, torch.diag(law.base_dist.scale))
    return None


def _positive_definite(loc: Tensor, factor: Tensor) -> Gaussian | None:
    """N(m, L Lᵀ), in float64 where its dtype cannot hold it, `None` where that cannot either."""
    for dtype in (factor.dtype, torch.float64) if factor.dtype in PRECISIONS else (torch.float64,):
        covariance = factor.to(dtype) @ factor.to(dtype).mT
        if int(torch.linalg.cholesky_ex(covariance.detach()).info) == 0:
            return Gaussian(loc.to(dtype), covariance)
    return None


def log_density_of(target: object) -> tuple[int | None, Callable[[Tensor], Tensor]]:
    """The dimension of a target, where it tells it, and its log-density, (n, d) → (n,).

    Raises:
        TypeError: for what is neither a law nor a function.
        ValueError: for a Distribution that is not one law over vectors.
    """
    if isinstance(target, Distribution):
        check_vector_law(target, "target")
        if isinstance(target, MultivariateNormal):  # torch's own computes in the precision of its parameters
            log_prob = partial(normal_log_prob, loc=target.loc, scale_tril=target.scale_tril)
            return target.event_shape[0], log_prob
        return target.event_shape[0], target.log_prob
    if isinstance(target, Gaussian):
        return target.dim, partial(normal_log_prob, loc=target.loc, scale_tril=target.scale_tril)
    if callable(target) and not isinstance(target, type):
        return None, target
    raise TypeError(f"target must be a torch Distribution, a wprox.Gaussian or a log-density, got {kind_of(target)}")


def sampled(law: Any, n_samples: int, seed: Seed) -> Measure:
    """A law, or samples (m, d), as a measure that its points and weights carry; of laws, `n_samples` draws are taken.

    Raises:
        TypeError: for what cannot be drawn from.
        ValueError: for a Distribution that is not one law over vectors.
    """
    if isinstance(law, Distribution):
        check_vector_law(law, "target")
        return Particles.from_distribution(law, n_samples, seed)
    if isinstance(law, Gaussian):  # its cubature points are no picture of it
        return Particles(law.sample(n_samples, seed))
    if isinstance(law, Measure):
        return law
    if isinstance(law, str) or callable(law):
        raise TypeError(
            f"target must be a measure, samples (m, d) or a torch Distribution, got {type(law).__name__}; MMD needs "
            "draws of ν, wprox.KSD its log-density"
        )
    return Particles(law)


def standard_normal(like: Tensor) -> Gaussian:
    """N(0, I) in the dimension, dtype and on the device of points (n, d)."""
    d = like.shape[1]
    return Gaussian(like.new_zeros(d), torch.eye(d, dtype=like.dtype, device=like.device))


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """log N(x; 0, I) for x: (n, d), (n,)."""
    return -0.5 * (x.square().sum(1) + x.shape[1] * math.log(2 * math.pi))
