"""Lengths of paths around walls, between the cells of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

from wprox.measures import Grid
from wprox.transport.rosenblatt import Pieces

LANDMARKS = 12  # from which distances are counted, at least, where pairs do not see each other
ENOUGH = 0.01  # of the cost: what hidden pairs may cost together for no more landmarks to be tried
NUMBERS_AT_ONCE = 2**22
CORNER = 1e-6  # cells: how near to a corner of cells a path meets all of them


class Geodesics:
    r"""Upper bounds of the distances between free cells, along paths that meet no wall.

    Between cells that see each other it is the straight line, and exact. Others go over a landmark: d(x, y) ≤ d(x, l) +
    d(l, y), with the lengths of the shortest paths on the graph whose edges join neighbours, diagonal ones too where
    all cells between them are free. Landmarks are where most of the cost comes from.

    Arguments:
        grid: the cells, with walls.
    """

    def __init__(self, grid: Grid) -> None:
        assert grid.mask is not None
        self.grid, self.walls = grid, grid.mask
        self.cells = (~self.walls).nonzero()  # (n, d), in the order of the support points
        counts = torch.nn.functional.pad(self.walls.long(), (1, 0) * grid.dim)
        for axis in range(grid.dim):
            counts = counts.cumsum(axis)
        self.counts = counts  # of walls in the box from the first corner
        self.landmarks: list[Tensor] = []  # the lengths (n,) of paths from each

    def cost(self, plan: Iterable[Pieces]) -> Tensor:
        """Σ mass · (bound of d)² over the pieces of a plan between support points."""
        source, target, mass = (torch.cat(parts) for parts in zip(*plan, strict=True))
        source, target, mass = source[mass > 0], target[mass > 0], mass[mass > 0]
        squares = (self.grid.points[source] - self.grid.points[target]).square().sum(1)
        hidden = (~self.see(source, target)).nonzero()[:, 0]
        if not len(hidden):
            return mass @ squares
        squares[hidden] = math.inf
        count = 0
        while True:
            for lengths in self.landmarks[count:]:
                over = (lengths[source[hidden]] + lengths[target[hidden]]).square()
                squares[hidden] = torch.minimum(squares[hidden], over)
            count = len(self.landmarks)
            costs = (mass * squares)[hidden]
            total = float(costs.sum())
            if math.isfinite(total) and (count >= LANDMARKS or total <= ENOUGH * float(mass @ squares)):
                return mass @ squares
            self.landmarks.append(self.lengths_from(int(source[hidden[costs.argmax()]])))

    def see(self, source: Tensor, target: Tensor) -> Tensor:
        """Whether the straight line between the centres of two cells meets no wall, (k,)."""
        first, second = self.cells[source], self.cells[target]
        seen = self._in_box(torch.minimum(first, second), torch.maximum(first, second)) == 0
        longest = int((first - second).abs().sum(1).max()) + 1
        for rows in (~seen).nonzero()[:, 0].split(max(1, NUMBERS_AT_ONCE // (longest * 2**self.grid.dim))):
            if len(rows):
                seen[rows] = self._on_line(first[rows], second[rows])
        return seen

    def _in_box(self, low: Tensor, high: Tensor) -> Tensor:
        """The number of walls in boxes of cells with corners (k, d), by sums from the first corner."""
        total = torch.zeros(len(low), dtype=torch.long, device=low.device)
        for corner in product((0, 1), repeat=low.shape[1]):
            upper = torch.tensor(corner, device=low.device)
            at = torch.where(upper.bool(), high + 1, low)
            total += (-1) ** int(len(corner) - sum(corner)) * self.counts[tuple(at.unbind(1))]
        return total

    def _on_line(self, first: Tensor, second: Tensor) -> Tensor:
        """Whether all cells that lines (k, d) pass are free; at a corner of cells, all that meet there."""
        moves = (second - first).double()
        times = [moves.new_zeros(len(moves), 1), moves.new_ones(len(moves), 1)]
        for length in moves.abs().unbind(1):
            crossing = (torch.arange(int(length.max()), device=length.device) + 0.5) / length.clamp(min=1)[:, None]
            times.append(crossing.clamp(max=1.0))
        ends, _ = torch.cat(times, 1).sort(1)
        middles = first[:, None] + ((ends[:, 1:] + ends[:, :-1]) / 2)[:, :, None] * moves[:, None]
        free = torch.ones(len(first), dtype=torch.bool, device=first.device)
        for corner in product((-CORNER, CORNER), repeat=first.shape[1]):
            cells = (middles + middles.new_tensor(corner)).round().long()
            free &= ~self.walls[tuple(cells.unbind(2))].any(1)
        return free

    def lengths_from(self, source: int) -> Tensor:
        """The lengths of shortest paths on the graph from a support point, (n,); ∞ in other rooms."""
        neighbours, edges = self.graph
        lengths = self.grid.points.new_full((len(self.grid) + 1,), math.inf)  # the last one stands for walls
        lengths[source] = 0.0
        improved = torch.tensor([source], device=lengths.device)
        while len(improved):
            over = (lengths[improved, None] + edges).flatten()
            shorter = lengths.scatter_reduce(0, neighbours[improved].flatten(), over, "amin")
            improved = (shorter < lengths)[:-1].nonzero()[:, 0]
            lengths = shorter
        return lengths[:-1]

    @cached_property
    def graph(self) -> tuple[Tensor, Tensor]:
        """The neighbours of each support point, (n, 3^d − 1), n where there is none, and how far they are."""
        n, shape = len(self.grid), torch.tensor(self.grid.shape, device=self.cells.device)
        number = self.grid.unflatten(torch.arange(n, device=self.cells.device))
        neighbours, edges = [], []
        for shift in product((-1, 0, 1), repeat=self.grid.dim):
            if not any(shift):
                continue
            there = self.cells + torch.tensor(shift, device=self.cells.device)
            inside = ((there >= 0) & (there < shape)).all(1)
            there = torch.where(inside[:, None], there, self.cells)
            is_open = self._in_box(torch.minimum(self.cells, there), torch.maximum(self.cells, there)) == 0
            neighbours.append(torch.where(inside & is_open, number[tuple(there.unbind(1))], n))
            edges.append(math.hypot(*(k * width for k, width in zip(shift, self.grid.cell_widths, strict=True))))
        return torch.stack(neighbours, 1), self.grid.points.new_tensor(edges)
