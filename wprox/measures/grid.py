"""Histograms on a box in one, two or three dimensions, with walls."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wprox._arrays import as_plain
from wprox._checks import (
    NO_ARRAY,
    as_floating,
    as_rows,
    check_count,
    check_finite,
    check_masses,
    check_memory,
    check_number,
    check_precision,
    described,
    evaluate,
    evaluate_one,
    is_several,
)
from wprox._random import Seed, make_generator
from wprox._sums import draw, weighted_sum
from wprox.measures.base import Measure, moved_by
from wprox.measures.particles import Particles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Bounds = Sequence[tuple[float, float]]


class Grid(Measure):
    r"""A histogram on a box: the density is constant on each cell, and the support points are the cell centres.

    With cells of volume |c| and masses w_i, `integrate(f)` = Σ_i w_i f(x_i) is the midpoint rule, log ρ(x_i) =
    log(w_i / |c|), and `integrate_pairs` is one convolution by FFT. Cells of `mask` are walls, without support points.

    Arguments:
        mass: (n_1, …, n_d) with d ≤ 3, non-negative, of any positive total (counts will do): it is divided by its sum.
        bounds: [(low, high)] * d, the box.
        mask: (n_1, …, n_d), true in cells that mass may not enter; none by default.

    Attributes:
        points: (n, d), the centres of the cells that are not walls, in the order of `mass.flatten()`.
        weights: (n,), their masses.

    Raises:
        ValueError: for negative or zero total mass, bounds that do not match the shape, and mass inside a wall.

    Example:
        >>> import torch, wprox
        >>> rho = wprox.Grid([[1.0, 1.0], [2.0, 0.0]], bounds=[(0.0, 1.0), (0.0, 1.0)])
        >>> rho.integrate(lambda x: x[:, 0])
        tensor(0.5000)
        >>> rho.density
        tensor([[1., 1.],
                [2., 0.]])
    """

    movable = False

    def __init__(self, mass: Any, bounds: Bounds, mask: Any = None) -> None:
        values = as_floating(mass, "mass")
        self._set_geometry(tuple(values.shape), bounds, mask, values.dtype, values.device)
        if bool((values < 0).any()):
            raise ValueError(f"mass must not be negative, the smallest entry is {float(values.min()):g}")
        total = values.sum()
        if not bool(torch.isfinite(total)):  # overflow
            values = values / values.max()
            total = values.sum()
        if not float(total) > 0:
            raise ValueError("mass must have a positive total, it is zero everywhere; give some cell some mass")
        if self.mask is not None and bool((values[self.mask] > 0).any()):
            inside = float(values[self.mask].sum() / total)
            raise ValueError(
                f"{inside:.3g} of the mass lies inside walls (cells where mask is true); set it to zero there or "
                "build the grid with Grid.from_density(density, shape, bounds, mask), which leaves walls empty"
            )
        self.weights = self.flatten(values / total)

    def _set_geometry(
        self, shape: tuple[int, ...], bounds: Bounds, mask: Any, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.bounds = _check_bounds(bounds)
        if len(shape) != len(self.bounds):
            raise ValueError(
                f"mass has {len(shape)} axes, shape {shape}, and bounds has {len(self.bounds)} pairs (low, high); "
                "give one pair an axis"
            )
        if not 1 <= len(shape) <= 3:
            raise ValueError(f"a Grid has one, two or three dimensions, got shape {shape}; use Particles beyond")
        if min(shape) < 1:
            raise ValueError(f"every axis needs at least one cell, got shape {shape}")
        self.shape = shape
        self.cell_widths = tuple((high - low) / n for n, (low, high) in zip(shape, self.bounds, strict=True))
        self.cell_volume = math.prod(self.cell_widths)
        self.axes = [
            low + (torch.arange(n, dtype=dtype, device=device) + 0.5) * width
            for n, (low, _), width in zip(shape, self.bounds, self.cell_widths, strict=True)
        ]
        self.mask: Tensor | None = None
        if mask is not None:
            given = as_plain(mask, "mask")
            try:
                walls = torch.as_tensor(given, device=device).clone()  # the caller's array may change
            except NO_ARRAY:
                raise TypeError(
                    f"mask must be boolean (true in walls) of shape {shape}, got {described(mask)}"
                ) from None
            if walls.dtype != torch.bool or tuple(walls.shape) != shape:
                raise ValueError(
                    f"mask must be boolean (true in walls) of shape {shape}, got {walls.dtype}, {tuple(walls.shape)}"
                )
            if bool(walls.all()):
                raise ValueError("every cell is a wall; mask must leave some cell free (true marks a wall)")
            self.mask = walls if bool(walls.any()) else None
        centres = torch.stack(torch.meshgrid(*self.axes, indexing="ij"), -1)
        self.points = centres.reshape(-1, len(shape)) if self.mask is None else centres[~self.mask]

    @classmethod
    def from_density(
        cls,
        density: Any,
        shape: Sequence[int] | int,
        bounds: Bounds,
        mask: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> Grid:
        """The histogram of a density, which need not be normalised, evaluated at the centres of the free cells.

        Arguments:
            density: maps points (n, d) to (n,), or has `log_prob`, as a `Gaussian` or a torch `Distribution` over R^d.
            shape: (n_1, …, n_d), the number of cells along each axis; an integer in one dimension.
            bounds: [(low, high)] * d.
            mask: (n_1, …, n_d), true in walls; they stay empty.
            dtype: of the points and weights; float64, in which `SinkhornProx` computes.

        Example:
            >>> import torch, wprox
            >>> rho = wprox.Grid.from_density(lambda x: torch.exp(-x[:, 0]), 4, [(0.0, 4.0)])
            >>> rho.weights.sum()
            tensor(1., dtype=torch.float64)
        """
        grid = object.__new__(cls)
        grid._set_geometry(_check_shape(shape), bounds, mask, check_precision(dtype, "dtype"), "cpu")
        values = _density_at(density, grid.points)
        if values.shape != grid.points.shape[:1]:
            raise ValueError(f"density must return one number a point, ({len(grid)},), got {tuple(values.shape)}")
        check_finite(values, "density at the cell centres")
        return cls(grid.unflatten(values), bounds, grid.mask)

    @classmethod
    def from_particles(cls, particles: Any, shape: Sequence[int] | int, bounds: Bounds, mask: Any = None) -> Grid:
        r"""The histogram of particles, each shared linearly between the 2^d nearest cells (cloud in cell).

        The mean is kept, but for particles within half a cell of the border or of a wall.

        Arguments:
            particles: a `Particles`, or points (n, d) of equal weight.
            shape: (n_1, …, n_d), the number of cells along each axis.
            bounds: [(low, high)] * d; every particle must lie inside.
            mask: (n_1, …, n_d), true in walls; no particle may lie inside one.

        Raises:
            ValueError: for particles outside the box or inside a wall, with their number.

        Example:
            >>> import wprox
            >>> wprox.Grid.from_particles([[0.5], [1.0]], 4, [(0.0, 4.0)]).weights
            tensor([0.7500, 0.2500, 0.0000, 0.0000])
        """
        rho = particles if isinstance(particles, Measure) else Particles(particles)
        grid = object.__new__(cls)
        grid._set_geometry(_check_shape(shape), bounds, mask, rho.points.dtype, rho.points.device)
        if rho.dim != grid.dim:
            raise ValueError(f"the particles live in dimension {rho.dim}, the bounds in dimension {grid.dim}")
        return grid._with_weights(grid._deposit(rho.points, rho.weights))

    @property
    def mass(self) -> Tensor:
        """(n_1, …, n_d), the mass of every cell; zero in walls."""
        return self.unflatten(self.weights)

    @property
    def density(self) -> Tensor:
        """(n_1, …, n_d), the density of every cell; zero in walls."""
        return self.mass / self.cell_volume

    def __repr__(self) -> str:
        walls = "" if self.mask is None else f", walls={int(self.mask.sum())}"
        return f"Grid(shape={self.shape}, bounds={list(self.bounds)}{walls}, dtype={self.dtype})"

    def flatten(self, values: Tensor) -> Tensor:
        """Values on the cells, (n_1, …, n_d), as values at the support points, (n,)."""
        return values.reshape(-1) if self.mask is None else values[~self.mask]

    def unflatten(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Values at the support points, (n,), as values on the cells, (n_1, …, n_d), with `fill` in walls."""
        if self.mask is None:
            return values.reshape(self.shape)
        return torch.full(self.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(~self.mask, values)

    def with_weights(self, weights: Tensor) -> Grid:
        """The same cells with other masses, (n,), not negative; differentiable in them, whatever their sum is."""
        check_masses(values := as_floating(weights, "weights"), len(self), "cell")
        return self._with_weights(values)

    def _with_weights(self, weights: Tensor) -> Grid:
        """`with_weights` for inner loops, unchecked."""
        result = object.__new__(Grid)
        result.__dict__ |= vars(self) | {"weights": weights}
        return result

    def to(self, dtype: torch.dtype) -> Grid:
        """The same histogram in another dtype."""
        result = self._with_weights(self.weights.to(check_precision(dtype, "dtype")))
        result.points, result.axes = self.points.to(dtype), [axis.to(dtype) for axis in self.axes]
        return result

    def detach(self) -> Grid:
        """The same histogram, cut from the graph that made it."""
        return self._with_weights(self.weights.detach())

    def same_cells(self, other: Measure) -> bool:
        """Whether `other` is a Grid with the same box, cells and walls."""
        if not isinstance(other, Grid) or self.shape != other.shape or self.bounds != other.bounds:
            return False
        if self.mask is None or other.mask is None:
            return self.mask is other.mask
        return torch.equal(self.mask, other.mask)

    def integrate(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        values = evaluate(f, self.points, "f")
        if not bool(torch.isfinite(values).all()):  # a potential may be infinite where there is no mass
            empty = (self.weights == 0).reshape(-1, *[1] * (values.ndim - 1))
            values = torch.where(empty, torch.zeros_like(values), values)
        return weighted_sum(self.weights, values)

    def convolve(self, k: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Tensor:
        """(k ∗ ρ)(x_i) = Σ_j w_j k(x_i − x_j) at the support points, (n,), by FFT; elsewhere as a sum.

        Arguments:
            k: maps differences (m, d) to values (m,); it must be finite, at 0 too.
            x: (m, d), other points than those of the grid.
        """
        if x is not None and x is not self.points:
            return super().convolve(k, x)
        return self.flatten(convolve(self.mass, kernel_spectrum(self, k)))

    def integrate_pairs(self, k: Callable[[Tensor], Tensor]) -> Tensor:
        return weighted_sum(self.weights, self.convolve(k))

    def log_density(self) -> Tensor:
        return self.weights.log() - math.log(self.cell_volume)

    def log_density_at(self, x: Tensor) -> Tensor:
        """log ρ at any points x: (m, d), (m,), linear between cell centres, constant beyond; −∞ outside of the box."""
        x = as_rows(x, "x", self.dim)
        check_finite(x.masked_fill(x.isinf(), 0.0), "x")  # infinity lies outside of the box
        values = self.unflatten(self.log_density().detach(), fill=-math.inf)
        empty, values = (
            torch.isneginf(values),
            values.masked_fill(torch.isneginf(values), 0),
        )  # no 0 · ∞, in the gradient neither
        position = (x - x.new_tensor([low for low, _ in self.bounds])) / x.new_tensor(self.cell_widths) - 0.5
        nearest = position.detach().round()
        rounding = 16 * torch.finfo(x.dtype).eps * max(self.shape)  # a centre must not take a part of −∞ beside it
        centred = (position.detach() - nearest).abs() < rounding
        position = torch.where(centred, position + (nearest - position).detach(), position)
        sizes = torch.tensor(self.shape, device=x.device)
        position = torch.minimum(position.clamp(min=0), (sizes - 1).to(x))
        lower = position.detach().floor().long()
        result, outside = torch.zeros_like(x[:, 0]), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for corner in product((0, 1), repeat=self.dim):
            shift = torch.tensor(corner, device=x.device)
            cell = torch.minimum(lower + shift, sizes - 1)
            share = torch.where(shift.bool(), position - lower, 1 - (position - lower)).prod(1)
            at = tuple(cell.unbind(1))
            result = result + share * values[at].to(x)
            outside = outside | (empty[at] & (share > 0))
        low, high = x.new_tensor(self.bounds).unbind(1)
        return result.masked_fill(outside | ((x < low) | (x > high)).any(1), -math.inf)

    def mean_log_density(self) -> Tensor:
        # 0 log 0 = 0: empty cells count nothing
        mass = self.weights.double()
        return torch.special.xlogy(mass, mass / self.cell_volume).sum().to(self.dtype)

    def push(self, map: Callable) -> Grid:
        """T#ρ on the same cells: the mass of each cell goes to the 2^d cells nearest to T(centre), linearly shared.

        Raises:
            ValueError: where T takes mass out of the box or into a wall.
        """
        moved = moved_by(map, self.points)
        full = self.weights > 0  # empty cells may go anywhere
        return self._with_weights(self._deposit(moved[full], self.weights[full]))

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        """n independent draws, (n, d): a cell by its mass, then a point of the cell uniformly."""
        generator = make_generator(seed, self.device)
        check_memory(check_count(n, "n") * (2 * self.dim + 1), f"n = {n} draws")
        cells = draw(self.weights, n, generator)
        uniform = torch.rand(n, self.dim, generator=generator, dtype=self.dtype, device=self.device) - 0.5
        return self.points[cells] + uniform * self.points.new_tensor(self.cell_widths)

    def to_particles(self) -> Particles:
        """One particle in every cell that holds mass, with its weight and log-density."""
        full = self.weights > 0
        return Particles(self.points[full], self.weights[full], self.log_density()[full])

    def plot(self, axes: Any = None) -> Axes | list[Axes]:
        """Draw the density: a line in 1-D, an image in 2-D, three slices through the middle in 3-D.

        Arguments:
            axes: a matplotlib axes (three in 3-D); those of a new figure, `ax.figure`, where not given.

        Returns:
            The axes drawn on.
        """
        from wprox.plot.grid import plot_density

        density = self.unflatten(self.weights / self.cell_volume, fill=math.nan).detach().cpu()
        return plot_density(density, self.bounds, axes)

    def _deposit(self, points: Tensor, weights: Tensor) -> Tensor:
        """Masses of the free cells, (n,), after sharing each point's weight between the 2^d nearest cell centres."""
        low = points.new_tensor([bound[0] for bound in self.bounds])
        high = points.new_tensor([bound[1] for bound in self.bounds])
        outside = ((points < low) | (points > high)).any(1)
        if bool(outside.any()):
            raise ValueError(
                f"{int(outside.sum())} of {len(points)} points lie outside the bounds {list(self.bounds)}; the first "
                f"is {[round(value, 4) for value in points[outside][0].tolist()]}. Widen the bounds or drop the points"
            )
        position = (points - low) / points.new_tensor(self.cell_widths) - 0.5  # in cells, from the first centre
        sizes = torch.tensor(self.shape, device=points.device)
        lower = position.floor().long()
        upper_share = position - lower
        free = torch.ones(self.shape, dtype=torch.bool, device=points.device) if self.mask is None else ~self.mask
        index = torch.empty(2**self.dim, len(points), dtype=torch.long, device=points.device)
        share = points.new_empty(2**self.dim, len(points))
        for row, corner in enumerate(product((0, 1), repeat=self.dim)):
            shift = torch.tensor(corner, device=points.device)
            cell = torch.minimum((lower + shift).clamp(min=0), sizes - 1)  # border cells take the outer half cell
            index[row] = sum(cell[:, axis] * math.prod(self.shape[axis + 1 :]) for axis in range(self.dim))
            share[row] = torch.where(shift.bool(), upper_share, 1 - upper_share).prod(1)
        share = share * free.flatten()[index]
        total = share.sum(0)
        if bool((total == 0).any()):
            raise ValueError(
                f"{int((total == 0).sum())} of {len(points)} points lie inside walls (cells where mask is true); "
                "drop them or change the mask"
            )
        mass = torch.zeros(math.prod(self.shape), dtype=torch.float64, device=weights.device)
        mass.index_add_(0, index.flatten(), (share / total * weights).flatten().double())
        return self.flatten(mass.reshape(self.shape)).to(weights.dtype)


def kernel_spectrum(grid: Grid, k: Callable[[Tensor], Tensor]) -> Tensor:
    """The FFT of k on the lattice of differences of cell centres, for `convolve`."""
    from scipy.fft import next_fast_len

    lags, sizes = [], []
    for n, width in zip(grid.shape, grid.cell_widths, strict=True):
        size = 2 * next_fast_len(n, real=True)  # even, so that the size can be read off the half spectrum
        lag = torch.arange(size, dtype=grid.dtype, device=grid.device)
        lags.append(torch.where(lag < n, lag, lag - size) * width)  # lags n … size − n meet no pair of cells
        sizes.append(size)
    differences = torch.stack(torch.meshgrid(*lags, indexing="ij"), -1).reshape(-1, grid.dim)
    values = evaluate_one(k, differences, "the kernel")
    if not bool(torch.isfinite(values).all()):
        first = differences[~torch.isfinite(values)][0].tolist()
        raise ValueError(
            f"the kernel is infinite or NaN at the difference {first}; on a grid it must be finite, at 0 too: "
            "smooth it over a cell, as in log(|z|² + width²)"
        )
    return torch.fft.rfftn(values.reshape(sizes))


def convolve(mass: Tensor, spectrum: Tensor) -> Tensor:
    """Σ_j m_j k(x_i − x_j) on the whole grid, (n_1, …, n_d), by zero-padded FFT."""
    sizes = (*spectrum.shape[:-1], 2 * (spectrum.shape[-1] - 1))
    result = torch.fft.irfftn(torch.fft.rfftn(mass, s=sizes) * spectrum, s=sizes)
    return result[tuple(slice(n) for n in mass.shape)]


def _density_at(density: Any, points: Tensor) -> Tensor:
    """The values of a function of points, or of a law with `log_prob`, at points (n, d)."""
    if hasattr(density, "log_prob"):
        events = tuple(getattr(density, "event_shape", points.shape[1:]))
        if events != tuple(points.shape[1:]):
            raise ValueError(
                f"density must be a law of vectors of dimension {points.shape[1]}, as the bounds, got one of events "
                f"of shape {events}"
            )
        return evaluate(density.log_prob, points, "density.log_prob").exp()
    if callable(density):
        return evaluate(density, points, "density")
    raise TypeError(
        f"density must be a function of points (n, d) or have log_prob, got {type(density).__name__}; masses "
        "of cells go to Grid(mass, bounds), particles to Grid.from_particles"
    )


def _check_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if is_several(shape) else (shape,)
    sizes = tuple(check_count(n, f"shape[{k}]") for k, n in enumerate(sizes))
    check_memory(8 * math.prod(sizes), f"a grid of shape {sizes}")
    return sizes


def _check_bounds(bounds: Any) -> tuple[tuple[float, float], ...]:
    try:
        ends = [(low, high) for low, high in bounds]
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"bounds must be one pair (low, high) an axis, as in [(0.0, 1.0)] * d, got {described(bounds)}"
        ) from None
    pairs = tuple((check_number(low, "a low bound"), check_number(high, "a high bound")) for low, high in ends)
    for low, high in pairs:
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"every pair of bounds must be finite with low < high, got ({low:g}, {high:g})")
    return pairs
