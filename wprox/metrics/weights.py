"""Importance weights: how many draws they are worth, and how heavy their tail is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from wprox._checks import as_floating, as_real, check_flag


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
