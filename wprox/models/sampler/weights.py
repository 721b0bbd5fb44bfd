"""Importance weights of draws: how many they are worth, and the normalising constant that they estimate."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from wprox._warnings import warn
from wprox.metrics import ess

USEFUL = 0.01  # the effective part of a sample under which importance weights say nothing


class LogNormalizer(NamedTuple):
    """An estimate of log Z = log ∫ g dx and its standard error."""

    value: float
    standard_error: float


def log_normalizer(log_weights: Tensor, masses: Tensor | None = None) -> LogNormalizer:
    """log Z, as the log of the mean of g/ρ over draws of ρ, and its standard error, by the delta method.

    Arguments:
        log_weights: log g − log ρ, (n,).
        masses: independent estimates of the integral of ρ as it was computed, (m,); 1 where not given.
    """
    n = len(log_weights)
    value = float(log_weights.logsumexp(0)) - math.log(n)
    variance = float((log_weights - value).exp().var()) / n
    if masses is not None:
        value += math.log(float(masses.mean()))
        variance += relative_variance(masses)
    return LogNormalizer(value, math.sqrt(variance))


def relative_variance(values: Tensor) -> float:
    """The variance of the logarithm of the mean of independent values, (n,), by the delta method."""
    return float(values.var() / values.mean().square()) / len(values)


def effective_size(log_weights: Tensor) -> float:
    """The number of independent draws that weighted ones are worth (`wprox.metrics.ess`): none, where all weigh 0."""
    return float(ess(log_weights, log=True)) if bool((log_weights > -math.inf).any()) else 0.0


def warn_if_useless(log_weights: Tensor) -> None:
    """Warn where the effective sample size is under 1 % of the sample."""
    effective = effective_size(log_weights)
    if not effective >= USEFUL * len(log_weights):
        warn(
            f"the effective sample size is {effective:.3g} of {len(log_weights)} draws: importance weights and what is "
            "computed with them mean nothing. Try more blocks or iterations, corrections=5 or more (rejection steps), "
            "JKOSampler.for_modes where there are several modes, or an initial Gaussian that covers the target"
        )
