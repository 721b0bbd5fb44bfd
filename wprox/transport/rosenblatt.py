"""Knothe–Rosenblatt couplings of histograms on one box of cells: true plans, for a few sums over the cells."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 2**22  # of pieces that are formed at once


class Pieces(NamedTuple):
    """Masses of a plan (k,), and the cells in `mass.flatten()` that each goes from and to, (k,)."""

    source: Tensor
    target: Tensor
    mass: Tensor


def rosenblatt_plan(source: Tensor, target: Tensor, order: tuple[int, ...]) -> Iterator[Pieces]:
    r"""The Knothe–Rosenblatt coupling of two histograms (n_1, …, n_d) of equal total, in batches of pieces.

    It is monotone along the first axis of the order, between the marginals, and for each pair of cells there along the
    next one, between the conditional laws (Villani, *Optimal transport, old and new*, chapter 1). It is optimal where
    the optimal map moves each axis by itself, and has up to 2^d pieces a cell.

    Arguments:
        source, target: masses, not negative; the pieces are those of a plan between them divided by their sums.
        order: of the axes, a permutation of 0 … d − 1.
    """
    number = torch.arange(source.numel(), device=source.device).reshape(source.shape).permute(order)
    masses = [mass.permute(order) / mass.sum() for mass in (source, target)]
    start = number.new_zeros(1)
    for i, j, mass in _refined(masses[0], masses[1], start, start, source.new_ones(1), 0):
        yield Pieces(number.reshape(-1)[i], number.reshape(-1)[j], mass)


def _refined(
    source: Tensor, target: Tensor, i: Tensor, j: Tensor, mass: Tensor, axis: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The pieces between lines i of the source and j of the target, each of some mass, split along the further axes."""
    if axis == source.ndim:
        yield i, j, mass
        return
    n = source.shape[axis]
    first, second = (part.reshape(part.shape[: axis + 1].numel() // n, n, -1).sum(2) for part in (source, target))
    for rows in torch.arange(len(i), device=i.device).split(max(1, NUMBERS_AT_ONCE // (2 * n))):
        levels = [part[at[rows]].cumsum(1).cummax(1).values for part, at in ((first, i), (second, j))]
        widths, at, to = _merged(*(level / level[:, -1:] for level in levels))
        parts = widths * mass[rows, None]
        line, k = (parts > 0).nonzero(as_tuple=True)
        here, there = i[rows][line] * n + at[line, k], j[rows][line] * n + to[line, k]
        yield from _refined(source, target, here, there, parts[line, k], axis + 1)


def _merged(levels: Tensor, others: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pieces common to pairs of laws of n atoms in order, (L, 2n): their masses, and the atoms they belong to.

    Arguments:
        levels, others: (L, n), the masses up to each atom, increasing to 1.
    """
    lines, n = levels.shape
    number = torch.arange(2 * n, device=levels.device)
    place = number[:n] + torch.searchsorted(others, levels)
    other_place = number[:n] + torch.searchsorted(levels, others, right=True)
    ends = levels.new_empty(lines, 2 * n).scatter_(1, place, levels).scatter_(1, other_place, others)
    mine = torch.zeros_like(ends, dtype=torch.long).scatter_(1, place, 1)
    at = mine.cumsum(1) - mine
    widths = ends.diff(dim=1, prepend=ends.new_zeros(lines, 1))
    return widths, at.clamp(max=n - 1), (number - at).clamp(max=n - 1)
