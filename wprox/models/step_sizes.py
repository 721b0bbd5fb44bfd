"""Step sizes of blocks: how many they say, growing ones to begin with, and re-spaced ones that move equally far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from wprox._checks import StepSize, check_count

FIRST, GROWTH = 0.5, 1.5  # γ of the first block of standardised data, and the ratio from block to block


def growing(first: float = FIRST, growth: float = GROWTH) -> Callable[[int], float]:
    """γ_k = first · growthᵏ: small steps where the data are far from Gaussian, large ones near the end."""
    return partial(_power_of, first, growth)


def _power_of(first: float, growth: float, index: int) -> float:
    return first * growth**index


def entries(step_sizes: StepSize | str | None) -> list[Any] | None:
    """The step sizes as they are given one by one; `None` for a number, a callable, a name and nothing."""
    if isinstance(step_sizes, str) or callable(step_sizes):
        return None
    try:
        return list(step_sizes)  # type: ignore[arg-type]
    except TypeError:  # a number, of Python, numpy or torch, or nothing
        return None


def block_count(
    step_sizes: StepSize | str | None, n_blocks: int | None, default: int, further: int = 0, least: int = 1
) -> int:
    """The number of blocks: as it is given, else one for each entry of a sequence of step sizes, else the default.

    Arguments:
        further: blocks that come after these, whose step sizes are the last ones of the sequence.
        least: the smallest number of blocks.

    Raises:
        ValueError: where there are fewer step sizes than blocks.

    Example:
        >>> from wprox.models.step_sizes import block_count
        >>> block_count([0.5, 2.0], None, 8), block_count([0.5, 2.0], 1, 8), block_count(1.0, None, 8)
        (2, 1, 8)
    """
    given = entries(step_sizes)
    if n_blocks is not None:
        count = check_count(n_blocks, "n_blocks", least=least)
    else:
        count = default if given is None else max(least, len(given) - further)
    if given is not None and len(given) < count + further:
        advice = "" if n_blocks is None else ", or leave n_blocks out"
        raise ValueError(f"step_sizes has {len(given)} entries for {count + further} steps; give one a block{advice}")
    return count


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
