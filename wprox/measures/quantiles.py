"""Measures of the line, as quantile functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wprox._checks import (
    as_floating,
    as_real,
    as_rows,
    check_count,
    check_finite,
    check_function,
    check_increasing,
    check_memory,
    check_precision,
    evaluate_one,
)
from wprox._random import Seed, make_generator
from wprox.maps.monotone import interpolate
from wprox.measures.base import Measure, moved_by
from wprox.measures.particles import Particles
from wprox.pairs.sums import pair_sum, potential

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Quantiles(Measure):
    r"""A measure of the line by n nodes x_1 < … < x_n of its quantile function, with equal mass between neighbours.

    The nodes are the quantiles at the levels 0, h, 2h, …, 1 with h = 1/(n − 1), so the mass between two neighbours is h
    and the density there h/(x_{k+1} − x_k): a piecewise constant density of mass 1. Integrals are trapezoidal sums in
    the level, with weights h/2, h, …, h, h/2; W₂ is the L² distance of quantile functions (Villani, *Topics in optimal
    transportation*, theorem 2.18).

    The density is a quotient of small differences, so the nodes are kept in float64 whatever comes in.

    Arguments:
        nodes: (n,) or (n, 1), finite and strictly increasing, n ≥ 2.

    Attributes:
        nodes: (n,).

    Raises:
        ValueError: for nodes that are not finite, not sorted or repeated.

    Example:
        >>> import torch, wprox
        >>> rho = wprox.Quantiles(torch.linspace(0, 2, 101))  # uniform on [0, 2]
        >>> rho.integrate(lambda x: x[:, 0]), rho.log_density().exp()[50]
        (tensor(1., dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """

    movable = False
    density_follows_points = True

    def __init__(self, nodes: Any) -> None:
        nodes = as_floating(nodes, "nodes").to(torch.float64)
        if nodes.ndim == 2 and nodes.shape[1] == 1:
            nodes = nodes[:, 0]
        if nodes.ndim != 1 or len(nodes) < 2:
            raise ValueError(f"nodes must have shape (n,) with n ≥ 2, got {tuple(nodes.shape)}")
        check_increasing(nodes.detach(), "nodes", "sort them, or use Quantiles.from_samples(x, n) for draws")
        self._set(nodes.clone())  # the caller's array may change

    def _set(self, nodes: Tensor, spacing: Tensor | None = None) -> None:
        self.nodes = nodes
        self._spacing = spacing
        self.points = nodes[:, None]
        self.weights = trapezoid_weights(len(nodes)).to(nodes.device)

    @classmethod
    def unchecked(cls, nodes: Tensor, spacing: Tensor | None = None) -> Quantiles:
        """The measure of nodes that are known to increase: what the inner loops of solvers build.

        With a spacing of its own, (n − 1,), derivatives by the nodes and by the density can be told apart.
        """
        result = object.__new__(cls)
        result._set(nodes, spacing)
        return result

    @classmethod
    def from_icdf(cls, icdf: Callable[[Tensor], Any], n: int) -> Quantiles:
        """The measure with quantile function `icdf`, which maps levels (n,) in [0, 1] to points.

        Where the support is unbounded (`icdf` infinite at 0 or 1), the end node sits at the level h/2π from the end:
        by Stirling's formula the trapezoidal sum of log u with that node is exact to O(h²), and the quantile functions
        of exponential and Gaussian tails grow like log u and its root.

        Raises:
            ValueError: where `icdf` is not finite inside (0, 1) or does not increase.
        """
        check_function(icdf, "icdf", "of levels")
        check_memory(8 * check_count(n, "n", least=2), f"n = {n} nodes")
        levels = _levels(n)
        nodes = as_real(icdf(levels), "what icdf returns")
        if nodes.shape != levels.shape:
            raise ValueError(f"icdf must map levels of shape ({n},) to points of that shape, got {tuple(nodes.shape)}")
        unbounded = ~torch.isfinite(nodes[[0, -1]])
        if bool(unbounded.any()):
            inset = float(levels[1]) / (2 * math.pi)
            levels[0] = inset if unbounded[0] else 0.0
            levels[-1] = 1 - inset if unbounded[1] else 1.0
            nodes = as_real(icdf(levels), "what icdf returns")
        return cls(nodes)

    @classmethod
    def from_samples(cls, x: Any, n: int, weights: Any = None) -> Quantiles:
        """n quantiles of draws x (m,) or (m, 1), interpolated linearly between the sorted draws.

        Arguments:
            x: the draws.
            n: the number of nodes.
            weights: (m,), of the draws; equal by default.

        Raises:
            ValueError: where draws are repeated so often that two nodes coincide: such a law has an atom.
        """
        draws = as_floating(x, "x").to(torch.float64)
        rho = Particles(draws[:, None] if draws.ndim == 1 else draws, weights)
        if rho.dim != 1 or len(rho) < 2:
            raise ValueError(f"x must hold at least two draws on the line, (m,) or (m, 1), got {tuple(draws.shape)}")
        order = torch.argsort(rho.points[:, 0])
        values, mass = rho.points[order, 0], rho.weights[order]
        values, mass = values[mass > 0], mass[mass > 0]
        if len(values) < 2:
            raise ValueError(
                "the law has an atom: one draw of x has all the weight; give some to another, or more draws"
            )
        check_memory(8 * check_count(n, "n", least=2), f"n = {n} nodes")
        middle = mass.cumsum(0) - mass / 2
        position = (middle - middle[0]) / (middle[-1] - middle[0])
        nodes, _ = interpolate(_levels(n).to(position), position, values)
        check_increasing(nodes, "the quantiles of x", "the law has an atom: lower n, or add a little noise to x")
        return cls.unchecked(nodes)

    @property
    def spacing(self) -> Tensor:
        """x_{k+1} − x_k, (n − 1,)."""
        return self.nodes.diff() if self._spacing is None else self._spacing

    @property
    def density(self) -> Tensor:
        """ρ between neighbouring nodes, h/(x_{k+1} − x_k), (n − 1,)."""
        return 1 / ((len(self) - 1) * self.spacing)

    def integrate_pairs(self, k: Callable[[Tensor], Tensor]) -> Tensor:
        """∬ k(x − y) dρ(x) dρ(y); a kernel that is infinite at 0 is summed over nodes against midpoints.

        The midpoints, with equal weights, are a second quadrature of ρ that never meets the first one.
        """
        if self._is_finite_at_zero(k):
            return super().integrate_pairs(k)
        return pair_sum(k, self.points, self.weights, *self._midpoints())

    def convolve(self, k: Callable[[Tensor], Tensor], x: Tensor | None = None) -> Tensor:
        if self._is_finite_at_zero(k):
            return super().convolve(k, x)
        x = self.points if x is None else as_rows(x, "x", 1)
        return potential(k, x, *(part.to(x) for part in self._midpoints()))

    def _is_finite_at_zero(self, k: Callable[[Tensor], Tensor]) -> bool:
        return bool(torch.isfinite(evaluate_one(k, self.points.new_zeros(1, 1), "the kernel")).all())

    def _midpoints(self) -> tuple[Tensor, Tensor]:
        """The midpoints between the nodes, (n − 1, 1), and their equal weights."""
        midpoints = (self.nodes[1:] + self.nodes[:-1])[:, None] / 2
        return midpoints, self.weights.new_full((len(midpoints),), 1 / len(midpoints))

    def log_density(self) -> Tensor:
        """log ρ at the nodes, (n,): the mean of both sides, so that its average is `mean_log_density`."""
        sides = self.density.log()
        return torch.cat((sides[:1], (sides[1:] + sides[:-1]) / 2, sides[-1:]))

    def log_density_at(self, x: Tensor) -> Tensor:
        """log ρ at any points x: (m, 1), (m,), linear between its values at the nodes; −∞ outside of them."""
        x = as_rows(x, "x", 1)
        values, _ = interpolate(x[:, 0].to(self.nodes), self.nodes.detach(), self.log_density().detach())
        outside = (x[:, 0] < self.nodes[0]) | (x[:, 0] > self.nodes[-1])
        return values.masked_fill(outside, -math.inf).to(x)

    def integrate_density(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        return evaluate_one(f, self.density, "f").mean()

    def score(self) -> Tensor:
        """∇ log ρ at the nodes, (n, 1): (ρ_k − ρ_{k−1})/w_k, the gradient of `mean_log_density` in the nodes.

        The density falls to zero beyond the end nodes, and their score says so.
        """
        outside = self.nodes.new_zeros(1)
        return (torch.cat((outside, self.density, outside)).diff() / self.weights)[:, None]

    def icdf(self, u: Any) -> Tensor:
        """The quantile function at levels u: (m,) in [0, 1], linear between the nodes."""
        levels = as_floating(u, "u").to(self.nodes)
        if bool(((levels < 0) | (levels > 1)).any()):
            raise ValueError(
                f"levels must lie in [0, 1], they lie in [{float(levels.min()):g}, {float(levels.max()):g}]"
            )
        return interpolate(levels, _levels(len(self)).to(self.nodes), self.nodes)[0]

    def log_prob(self, x: Any) -> Tensor:
        """The logarithm of the piecewise constant density at x: (m,) or (m, 1); −∞ outside the nodes."""
        x = as_floating(x, "x").to(self.nodes)
        if x.ndim != 1 and tuple(x.shape[1:]) != (1,):
            raise ValueError(f"x must be points of the line, of shape (m,) or (m, 1), got {tuple(x.shape)}")
        x = x[:, 0] if x.ndim == 2 else x
        piece = (torch.searchsorted(self.nodes, x.contiguous(), right=True) - 1).clamp(0, len(self) - 2)
        outside = (x < self.nodes[0]) | (x > self.nodes[-1])
        return self.density.log()[piece].masked_fill(outside, -math.inf)

    def push(self, map: Callable) -> Quantiles:
        """The push-forward under an increasing map.

        Raises:
            ValueError: where the map does not increase along the nodes.
        """
        points = moved_by(map, self.points)
        nodes = points[:, 0]
        advice = "Quantiles can be pushed by increasing maps only; for others push draws, as in rho.to_particles(n)"
        check_finite(nodes, "the pushed nodes")
        check_increasing(nodes.detach(), "the pushed nodes", advice)
        return Quantiles.unchecked(nodes)

    def to(self, dtype: torch.dtype) -> Quantiles:
        """The same measure, since the nodes are kept in float64 whatever is asked for."""
        check_precision(dtype, "dtype")
        return self

    def detach(self) -> Quantiles:
        """The same measure, cut from the graph that made it."""
        return Quantiles.unchecked(self.nodes.detach())

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        generator = make_generator(seed, self.device)
        check_memory(check_count(n, "n"), f"n = {n} draws")
        levels = torch.rand(n, generator=generator, dtype=self.dtype, device=self.device)
        return self.icdf(levels)[:, None]

    def to_particles(self, n: int, seed: Seed = None) -> Particles:
        """n draws as `Particles` that carry the log-density."""
        points = self.sample(n, seed)
        return Particles(points, log_density=self.log_prob(points))

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw the density over the line; returns the matplotlib axes.

        Arguments:
            ax: where to draw; a new figure, `ax.figure`, where not given.
            style: passed on to `Axes.plot`, such as `color` and `label`.
        """
        from wprox.plot.quantiles import plot_quantiles

        return plot_quantiles(self.nodes.detach().cpu(), self.density.detach().cpu(), ax, **style)


def _levels(n: int) -> Tensor:
    """0, h, 2h, …, 1."""
    return torch.linspace(0, 1, n, dtype=torch.float64)


def trapezoid_weights(n: int) -> Tensor:
    """h/2, h, …, h, h/2 with h = 1/(n − 1), (n,)."""
    weights = torch.full((n,), 1 / (n - 1), dtype=torch.float64)
    weights[[0, -1]] /= 2
    return weights
