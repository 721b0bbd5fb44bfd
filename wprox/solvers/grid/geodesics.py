"""Lengths of paths around walls, between the cells of a grid."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import numpy as np
import torch
from torch import Tensor

from wprox.measures import Grid
from wprox.transport.rosenblatt import Pieces

LANDMARKS = 16  # from which distances are counted, at least, where pairs do not see each other
ENOUGH = 0.01  # of the cost: what hidden pairs may cost together for no more landmarks to be tried
NUMBERS_AT_ONCE = 2**22
CORNER = 1e-6  # cells: how near to a corner of cells a path meets all of them


class Geodesics:
    r"""Upper bounds of the distances between free cells, along paths that meet no wall.

    Between cells that see each other it is the straight line, and exact. Others go over a landmark: d(x, y) ≤ d(x, l) +
    d(l, y), with the lengths of the shortest paths on the graph whose edges join neighbours, diagonal ones too where
    all cells between them are free (Dijkstra). Landmarks are where most of the cost comes from.

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
        self.graph = None

    def cost(self, plan: Iterable[Pieces]) -> Tensor:
        """Σ mass · (bound of d)² over the pieces of a plan between support points."""
        source, target, mass = (torch.cat(parts) for parts in zip(*plan, strict=True))
        source, target, mass = source[mass > 0], target[mass > 0], mass[mass > 0]
        squares = (self.grid.points[source] - self.grid.points[target]).square().sum(1)
        hidden = (~self.see(source, target)).nonzero()[:, 0]
        if not len(hidden):
            return mass @ squares
        squares[hidden] = math.inf
        for count in range(len(hidden)):
            costs = (mass * squares)[hidden]
            worst = hidden[costs.argmax()]
            total = float(costs.sum())
            if math.isfinite(total) and (count >= LANDMARKS or total <= ENOUGH * float(mass @ squares)):
                break
            lengths = self._from(int(source[worst])).to(squares)
            over = (lengths[source[hidden]] + lengths[target[hidden]]).square()
            squares[hidden] = torch.minimum(squares[hidden], over)
        return mass @ squares

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

    def _from(self, source: int) -> Tensor:
        """The lengths of shortest paths on the graph from a support point, (n,); ∞ in other rooms."""
        from scipy.sparse.csgraph import dijkstra

        self.graph = self._edges() if self.graph is None else self.graph
        return torch.from_numpy(dijkstra(self.graph, directed=False, indices=source))

    def _edges(self) -> object:
        """The lengths of the edges between neighbours, a sparse matrix (n, n)."""
        from scipy import sparse

        shape, n = torch.tensor(self.grid.shape, device=self.cells.device), len(self.grid)
        number = self.grid.unflatten(torch.arange(n, device=self.cells.device))
        rows, columns, lengths = [], [], []
        for shift in product((-1, 0, 1), repeat=self.grid.dim):
            if shift <= (0,) * self.grid.dim:
                continue  # each pair once
            move = torch.tensor(shift, device=self.cells.device)
            there = self.cells + move
            row = ((there >= 0) & (there < shape)).all(1).nonzero()[:, 0]
            here, there = self.cells[row], there[row]
            open_edge = self._in_box(torch.minimum(here, there), torch.maximum(here, there)) == 0
            rows.append(row[open_edge])
            columns.append(number[tuple(there[open_edge].unbind(1))])
            length = math.hypot(*(k * width for k, width in zip(shift, self.grid.cell_widths, strict=True)))
            lengths.append(np.full(len(rows[-1]), length))
        index = torch.cat(rows).cpu().numpy(), torch.cat(columns).cpu().numpy()
        return sparse.csr_matrix((np.concatenate(lengths), index), shape=(n, n))
