"""Step sizes of a flow's blocks: growing ones to begin with, and re-spaced ones that move the data equally far."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

FIRST, GROWTH = 0.5, 1.5  # γ of the first block of standardised data, and the ratio from block to block


def growing(first: float = FIRST, growth: float = GROWTH) -> Callable[[int], float]:
    """γ_k = first · growthᵏ: small steps where the data are far from Gaussian, large ones near the end."""
    return lambda k: first * growth**k


def equal_moves(step_sizes: Sequence[float], transport_costs: Sequence[float]) -> list[float]:
    r"""Step sizes under which every block moves the data equally far, if the flow keeps its path.

    Block n takes the flow from time t_{n−1} to t_n = γ_1 + … + γ_n and moves the data by the length
    S_n = √(E|T_n(x) − x|²). With time as a piecewise linear function of length, the new times are those at n/N of the
    whole length (the time reparameterisation of Xu, Cheng and Xie, *Normalizing flow neural networks by JKO scheme*,
    2023, section 4.2). The sum of the step sizes stays.

    Arguments:
        step_sizes: γ_1, …, γ_N.
        transport_costs: E|T_n(x) − x|² of each block.

    Raises:
        ValueError: for two numbers of blocks, or where no block moves anything.

    Example:
        >>> from wprox.models.step_sizes import equal_moves
        >>> equal_moves([1.0, 1.0], [9.0, 1.0])  # the first block moves three times as far as the second
        [0.666..., 1.333...]
    """
    if len(step_sizes) != len(transport_costs):
        raise ValueError(f"one transport cost a step: got {len(transport_costs)} for {len(step_sizes)} steps")
    lengths = np.concatenate(([0.0], np.cumsum(np.sqrt(transport_costs))))
    if not lengths[-1] > 0:
        raise ValueError("no block moves the data, so that there is nothing to re-space")
    times = np.concatenate(([0.0], np.cumsum(step_sizes)))
    even = np.linspace(0, lengths[-1], len(lengths))
    return [float(gamma) for gamma in np.diff(np.interp(even, lengths, times))]
