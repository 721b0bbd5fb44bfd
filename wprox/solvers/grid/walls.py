"""Kernels whose distances go around walls: heat flow split into its axes, and implicit steps of it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from wprox.measures import Grid
from wprox.solvers.grid.gibbs import MISLED, GaussianKernel, Kernel

FINEST = 0.6  # cells: the standard deviation of a factor down to which a sampled Gaussian is one
# factors of the first axis: paths of two turns at least. More than the most hardly change moves of up to 2 blurs; of
# those by 5 blurs around a pillar 11 lower the error by a seventh, for 1.6 times the products
FEWEST, MOST = 3, 7
TURN = 0.2  # cells: the standard deviation of factors that are there only for rooms of many turns
BLOCK = 2**22  # entries of one block of the log domain


class Runs:
    """The runs of free cells between walls along one axis, sorted by length, so that each length is one matrix product.

    Attributes:
        order: (n,), the support points, run after run.
        place: (n,), where each support point is in that order.
        run: (n,), the number of the run of each point in that order.
        lengths: the lengths of the runs, and how many there are of each.
    """

    def __init__(self, grid: Grid, axis: int) -> None:
        shape, device = grid.shape, grid.device
        free = torch.ones(shape, dtype=torch.bool, device=device) if grid.mask is None else ~grid.mask
        number = (free.flatten().cumsum(0) - 1).reshape(shape)
        lines = torch.movedim(free, axis, -1)
        starts = lines.clone()
        starts[..., 1:] &= ~lines[..., :-1]
        run = starts.flatten().cumsum(0)[lines.flatten()] - 1
        lengths = torch.bincount(run)
        sort = torch.argsort(lengths[run], stable=True)
        self.order = torch.movedim(number, axis, -1)[lines][sort]
        self.place = torch.argsort(self.order)
        sizes = lengths.sort().values
        self.run = torch.repeat_interleave(torch.arange(len(sizes), device=device), sizes)
        values, counts = torch.unique(lengths, return_counts=True)
        self.lengths: list[tuple[int, int]] = list(zip(values.tolist(), counts.tolist(), strict=True))

    def blocks(self, field: Tensor) -> list[Tensor]:
        """The runs of each length, (count, length), of a field (n,) in `order`."""
        parts = field.split([length * count for length, count in self.lengths])
        return [part.reshape(count, length) for part, (length, count) in zip(parts, self.lengths, strict=True)]

    def extreme(self, field: Tensor, reduce: str) -> Tensor:
        """The minimum ("amin") or maximum ("amax") over its run for every entry of a field (n,) in `order`."""
        start = field.new_empty(int(self.run[-1]) + 1)
        return start.scatter_reduce(0, self.run, field, reduce, include_self=False)[self.run]

    def spread(self, labels: Tensor) -> Tensor:
        """The minimum of a field (n,) over the run of every support point."""
        return self.extreme(labels[self.order], "amin")[self.place]

    def times(self, field: Tensor, matrices: list[Tensor]) -> Tensor:
        """Each run of a field (n,) in `order`, times the symmetric matrix of its length."""
        result = torch.empty_like(field)
        for out, rows, matrix in zip(self.blocks(result), self.blocks(field), matrices, strict=True):
            torch.mm(rows, matrix, out=out)
        return result


class SplitKernel(Kernel):
    r"""Heat flow among walls of variance blur², one axis after the other: K = H_{i_1} H_{i_2} … H_{i_r}, a palindrome.

    H_i is heat flow along the lines of axis i, with no flux through walls, of variance blur² over the number of times
    that i is in the sequence 0 1 0 1 … 0, or 0 1 2 1 0 … 0 in three dimensions: the splitting of Strang and Trotter,
    which converges to heat flow on the free cells, so that −2 blur² log K tends to the square of the distance that goes
    around walls (Varadhan; Solomon et al. 2015, section 4). Each run of cells between two walls has the images of
    a sampled Gaussian as its kernel,

        H(x, y) = Σ_m g(x − y + 2 m L) + g(x + y + 2 m L),

    with the length L of the run and x, y measured from its end: symmetric, with sums of exactly 1. K has the tails of
    a Gaussian, whatever the number of factors, and is the one of a free box where no wall is near.

    A room with more turns than the sequence has is closed by factors of so small a variance that they only keep K
    positive in all of it.

    Arguments:
        grid: the cells.
        blur: the standard deviation of the free kernel, in units of length.
    """

    reaches_everywhere = True

    def __init__(self, grid: Grid, blur: float) -> None:
        self.runs = [Runs(grid, axis) for axis in range(grid.dim)]
        self.like = grid.weights.new_empty(0)
        labels = self._rooms(len(grid))
        self.rooms = labels if int(labels.max()) > 0 else None
        first = min(max(int((blur / (FINEST * max(grid.cell_widths))) ** 2), FEWEST), MOST)
        around = [*range(grid.dim), *range(grid.dim - 2, 0, -1)]  # 0, 0 1 or 0 1 2 1
        axes = around * (first - 1) + [0] if grid.dim > 1 else [0]
        turns = self._turns(axes, around, labels)
        widths = [self._width(blur / width, axes.count(axis)) for axis, width in enumerate(grid.cell_widths)]
        self.factors = [(axis, TURN) for axis in turns[::-1]]
        self.factors += [(axis, widths[axis]) for axis in axes] + [(axis, TURN) for axis in turns]
        self.matrices = {
            factor: [self._log_matrix(length, factor[1]).exp() for length, _ in self.runs[factor[0]].lengths]
            for factor in set(self.factors)
        }
        self.log_matrices: dict[tuple[int, float], Tensor] = {}
        first_runs = self.runs[self.factors[0][0]]
        self.moves = [first_runs.order]  # from the order of one factor to that of the next
        for (before, _), (after, _) in zip(self.factors, self.factors[1:], strict=False):
            self.moves.append(self.runs[before].place[self.runs[after].order])
        self.last = first_runs.place

    def _rooms(self, n: int) -> Tensor:
        """The number of the room of each support point, (n,): the least point that is reached along the axes."""
        labels = torch.arange(n, device=self.like.device)
        while True:
            spread = labels
            for runs in self.runs:
                spread = runs.spread(spread)
            if torch.equal(spread, labels):
                return torch.unique(labels, return_inverse=True)[1]
            labels = spread

    def _turns(self, axes: list[int], around: list[int], rooms: Tensor) -> list[int]:
        """The axes to append at either end so that K is positive in every room.

        In each room there is a point that all others reach through half the sequence: then they reach each other.
        """
        if len(self.runs) == 1:
            return []
        product = torch.ones_like(rooms, dtype=self.like.dtype)
        for runs in self.runs:
            product = product * torch.bincount(runs.run)[runs.run][runs.place]
        longest = product.new_zeros(int(rooms.max()) + 1).scatter_reduce(0, rooms, product, "amax")
        number = torch.arange(len(rooms), device=rooms.device)
        hubs = torch.where(product == longest[rooms], number, len(rooms))
        hub = torch.full_like(longest, len(rooms), dtype=torch.long).scatter_reduce(0, rooms, hubs, "amin")
        missing = torch.ones_like(rooms)
        missing[hub] = 0
        for axis in axes[len(axes) // 2 :]:
            missing = self.runs[axis].spread(missing)
        turns: list[int] = []
        while bool(missing.any()):
            turns.append(around[(len(turns) + 1) % len(around)])
            missing = self.runs[turns[-1]].spread(missing)
        return turns

    @staticmethod
    def _width(blur: float, count: int) -> float:
        """The standard deviation, in cells, of a sampled Gaussian with 1/count of the variance of that of `blur`."""
        from scipy.optimize import brentq

        if count == 1:
            return blur

        def variance(width: float) -> float:
            squares = np.arange(-math.ceil(40 * width) - 1, math.ceil(40 * width) + 2.0) ** 2
            weights = np.exp(-squares / (2 * width**2))
            return float((weights * squares).sum() / weights.sum())

        wanted = variance(blur) / count
        return float(brentq(lambda width: variance(width) - wanted, min(blur, 0.02), blur)) if wanted > 0 else blur

    def _log_matrix(self, length: int, width: float) -> Tensor:
        """log H of a run, (length, length)."""
        cells = torch.arange(length, dtype=self.like.dtype, device=self.like.device)
        images = 1 + math.ceil(9 * width / (2 * length))
        shifts = 2 * length * torch.arange(-images, images + 1, device=cells.device)[:, None, None]
        straight, mirrored = cells[:, None] - cells + shifts, cells[:, None] + cells + 1 + shifts
        logs = -torch.cat((straight, mirrored)).square() / (2 * width**2)
        far = torch.arange(-math.ceil(40 * width) - 1, math.ceil(40 * width) + 2, device=cells.device).to(cells)
        return torch.logsumexp(logs, 0) - torch.logsumexp(-far.square() / (2 * width**2), 0)

    def apply(self, field: Tensor) -> Tensor:
        for factor, move in zip(self.factors, self.moves, strict=True):
            field = self.runs[factor[0]].times(field[move], self.matrices[factor])
        return field[self.last]

    def product(self, log_field: Tensor) -> tuple[Tensor, Tensor]:
        """log K e^u and where it is only an upper bound; where the maximum of u is not enough, that of every run."""
        result, lost = super().product(log_field)
        return self._by_run(log_field, False) if bool(lost.any()) else (result, lost)

    def log_apply(self, log_field: Tensor) -> Tensor:
        return self._by_run(log_field, True)[0]

    def _by_run(self, log_field: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
        """log K e^u with the maximum of each run absorbed before each factor.

        Sums that underflow all the same are added up in logarithms where `exact`, and else marked as lost.
        """
        lowest, floor = torch.finfo(log_field.dtype).min, 1e6 * torch.finfo(log_field.dtype).tiny
        field, lost = log_field, torch.zeros_like(log_field, dtype=torch.bool)
        for factor, move in zip(self.factors, self.moves, strict=True):
            runs, field = self.runs[factor[0]], field[move]
            largest = runs.extreme(field, "amax").clamp(min=lowest)  # −∞ in an empty run
            values = (field - largest).exp_()
            sums = runs.times(values, self.matrices[factor])
            under = sums < floor
            if exact:
                logs = sums.log().add_(largest)
                self._repair(logs, field, under & (largest > lowest), factor)
            else:
                logs = sums.clamp(min=floor).log_().add_(largest)
                if bool(lost.any()):
                    under |= runs.times(values * lost[move], self.matrices[factor]) > MISLED * sums
                lost = under
            field = logs
        return field[self.last], lost[self.last]

    def _repair(self, logs: Tensor, field: Tensor, marked: Tensor, factor: tuple[int, float]) -> None:
        """Replace the marked entries of log(H e^field), all (n,) in the order of the factor, by sums of logarithms."""
        if not bool(marked.any()):
            return
        runs = self.runs[factor[0]]
        for out, rows, bad in zip(runs.blocks(logs), runs.blocks(field), runs.blocks(marked), strict=True):
            length = rows.shape[1]
            for entries in bad.nonzero().split(max(1, BLOCK // length)):
                if (length, factor[1]) not in self.log_matrices:
                    self.log_matrices[length, factor[1]] = self._log_matrix(length, factor[1])
                run, cell = entries.unbind(1)
                out[run, cell] = torch.logsumexp(rows[run] + self.log_matrices[length, factor[1]][cell], 1)


class HeatKernel(Kernel):
    r"""K = (I − t/k Δ)^{−k} with t = blur²/2: k implicit steps of heat flow among walls, with no flux through them.

    By Varadhan's formula −blur² log K(x, y) → d(x, y)²/2 as blur → 0, with the distance d that goes around the walls
    (Solomon et al. 2015, section 4). With k steps the kernel is Gaussian within about √(2k) blur, and exponential
    beyond. The matrix is factorised once; it is an M-matrix, so that all its solutions are positive, and accurate entry
    by entry.

    Arguments:
        grid: the cells, with walls.
        blur: the standard deviation of the free kernel, in units of length.
        steps: k.
    """

    reaches_everywhere = False

    def __init__(self, grid: Grid, blur: float, steps: int) -> None:
        from scipy import sparse
        from scipy.sparse.csgraph import connected_components
        from scipy.sparse.linalg import splu

        self.steps = steps
        n = len(grid)
        walls = np.zeros(grid.shape, dtype=bool) if grid.mask is None else grid.mask.cpu().numpy()
        number = np.full(grid.shape, -1)
        number[~walls] = np.arange(n)
        matrix = sparse.identity(n, format="coo")
        for axis, width in enumerate(grid.cell_widths):
            first = np.take(number, range(grid.shape[axis] - 1), axis).ravel()
            second = np.take(number, range(1, grid.shape[axis]), axis).ravel()
            open_face = (first >= 0) & (second >= 0)
            first, second = first[open_face], second[open_face]
            rate = np.full(len(first), blur**2 / (2 * steps * width**2))
            rows = np.concatenate((first, second, first, second))
            columns = np.concatenate((first, second, second, first))
            values = np.concatenate((rate, rate, -rate, -rate))
            matrix = matrix + sparse.coo_matrix((values, (rows, columns)), shape=(n, n))
        count, labels = connected_components(matrix, directed=False)
        if count > 1:
            self.rooms = torch.as_tensor(labels, dtype=torch.long, device=grid.device)
        # no pivoting: the matrix is symmetric and diagonally dominant, and without it positivity is kept
        self.factor = splu(
            sparse.csc_matrix(matrix),
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )

    def apply(self, field: Tensor) -> Tensor:
        values = field.detach().cpu().numpy().astype(np.float64)
        for _ in range(self.steps):
            values = self.factor.solve(values)
        return torch.as_tensor(values).to(field)

    def log_apply(self, log_field: Tensor) -> Tensor:
        raise NotImplementedError("heat flow is solved in the kernel domain only")


def make_kernel(grid: Grid, blur: float, heat_steps: int | None) -> Kernel:
    """The Gaussian kernel on a free box; among walls split heat flow, or `heat_steps` implicit steps of it."""
    if grid.mask is None:
        return GaussianKernel(grid, blur)
    return SplitKernel(grid, blur) if heat_steps is None else HeatKernel(grid, blur, heat_steps)
