"""Optimal transport on the line, by quantile functions, and along directions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from wprox._autograd import differentiable_once, needed
from wprox._checks import check_memory
from wprox._random import make_generator
from wprox.measures import Gaussian, Measure, Quantiles
from wprox.transport.atoms import NO_SECOND, atoms, by_weights, check_same_space

NUMBERS_AT_ONCE = 2**24  # of projections
GAUSSIAN_NODES = 2000  # of the quantiles that stand for a Gaussian of the line next to particles


class QuantileFunctions(NamedTuple):
    """L quantile functions in k pieces each: the levels at which they end, and the value at the start and end of each.

    Atoms are pieces of one value, for which `high` is `low`.

    Attributes:
        levels: (L, k), increasing to 1.
        low: (L, k).
        high: (L, k).
        weights: (k,), the masses of atoms.
        order: (L, k), the atoms that the pieces belong to; `None` for other laws.
    """

    levels: Tensor
    low: Tensor
    high: Tensor
    weights: Tensor
    order: Tensor | None = None

    def row(self, k: int) -> QuantileFunctions:
        """One of the laws alone."""
        low = self.low[k : k + 1]
        high = low if self.high is self.low else self.high[k : k + 1]
        return QuantileFunctions(self.levels[k : k + 1], low, high, self.weights)

    @property
    def is_atomic(self) -> bool:
        """Whether all pieces are of one value."""
        return self.high is self.low

    def at(self, piece: Tensor, level: Tensor) -> Tensor:
        """The values at levels (L, m) of the given pieces (L, m)."""
        low = self.low.gather(1, piece)
        if self.is_atomic:
            return low
        begins = torch.nn.functional.pad(self.levels[:, :-1], (1, 0)).gather(1, piece)
        fraction = (level - begins) / (self.levels.gather(1, piece) - begins)
        return low + fraction * (self.high.gather(1, piece) - low)

    def middle(self, level: Tensor) -> Tensor:
        """The mean of the limits from both sides at levels (L, m)."""
        level = level.contiguous()
        before = torch.searchsorted(self.levels, level)
        after = torch.searchsorted(self.levels, level, right=True)
        left, right = torch.where(level > 0, before, after), torch.where(level < 1, after, before)
        return (self.at(left, level) + self.at(right, level)) / 2


def line_square(p: Measure, q: Measure) -> Tensor:
    """W₂² on the line, the square of the L² distance of quantile functions."""
    if isinstance(p, Gaussian):
        p = _gaussian_quantiles(p, q)
    if isinstance(q, Gaussian):
        q = _gaussian_quantiles(q, p)
    if isinstance(p, Quantiles) and isinstance(q, Quantiles) and len(p) == len(q):
        return p.weights @ (p.nodes - q.nodes.to(p.nodes)).square()
    return _square(as_quantile_functions(p), as_quantile_functions(q))[0]


def sliced_square(p: Measure, q: Measure, directions: Tensor) -> Tensor:
    """The mean over directions θ (L, d) of W₂²(θ·p, θ·q); in closed form between Gaussians."""
    check_same_space(p, q)
    if p.dim == 1:
        return line_square(p, q)
    directions = directions.to(p.device)
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        mean = directions @ (p.loc.double() - q.loc.to(p.device, torch.float64))
        deviation, other = ((directions @ rho.scale_tril.to(p.device, torch.float64)).norm(dim=1) for rho in (p, q))
        return (mean.square() + (deviation - other).square()).mean()
    (x, a), (y, b) = atoms(p), atoms(q)
    y, b = y.to(x), b.to(x)
    batches = directions.split(max(1, NUMBERS_AT_ONCE // (len(x) + len(y))))
    squares = [_square(project(x, a, batch), project(y, b, batch)).sum() for batch in batches]
    return torch.stack(squares).sum() / len(directions)


def _square(functions: QuantileFunctions, others: QuantileFunctions) -> Tensor:
    """W₂² of pairs of laws of the line, (L,); a trapezoidal sum over all levels at which a piece ends."""
    is_atomic = functions.is_atomic and others.is_atomic
    if is_atomic:  # their levels count through potentials, which know what to do where levels meet
        functions, others = (law._replace(levels=law.levels.detach()) for law in (functions, others))
    levels, moves = functions.levels, any(needed(functions.levels, others.levels))
    if not moves and levels.shape == others.levels.shape and torch.equal(levels, others.levels):
        widths = torch.diff(levels, prepend=levels.new_zeros(len(levels), 1))
        low, high = functions.low - others.low, functions.high - others.high
    else:
        ends, _ = torch.cat((levels, others.levels), 1).sort(1)
        starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
        middles, widths = (starts + ends) / 2, ends - starts
        pieces = torch.searchsorted(levels, middles), torch.searchsorted(others.levels, middles)
        low = functions.at(pieces[0], starts) - others.at(pieces[1], starts)
        high = low if is_atomic else functions.at(pieces[0], ends) - others.at(pieces[1], ends)
    square = (widths * (low.square() + high.square())).sum(1) / 2
    if not is_atomic or not any(needed(functions.weights, others.weights)):
        return square
    return differentiable_once(square + _by_weights(functions, others) + _by_weights(others, functions), NO_SECOND)


def _by_weights(functions: QuantileFunctions, others: QuantileFunctions) -> Tensor:
    """0, (L,), with the derivatives of W₂² of pairs of laws of the line in the weights of the first."""
    levels, order, weights = functions.levels, functions.order, functions.weights
    if order is None or not any(needed(weights)):
        return levels.new_zeros(len(levels))
    with torch.no_grad():  # φ′ = x − y, where y is the value of the other quantile function at the level of the gap
        values, steps = functions.low, functions.low.diff(dim=1)
        slopes = (values[:, 1:] + values[:, :-1]) / 2 - others.middle(levels[:, :-1])
        potential = torch.nn.functional.pad((2 * steps * slopes).cumsum(1), (1, 0))
        potential = torch.zeros_like(potential).scatter(1, order, potential)
    return torch.stack([by_weights(weights, row) for row in potential])


def as_quantile_functions(rho: Measure, other: Measure | None = None) -> QuantileFunctions:
    """The quantile function of a measure of the line; a Gaussian's by as many nodes as `other` has."""
    if isinstance(rho, Gaussian):
        rho = _gaussian_quantiles(rho, rho if other is None else other)
    if isinstance(rho, Quantiles):
        levels = torch.linspace(0, 1, len(rho), dtype=torch.float64, device=rho.device)[None, 1:]
        return QuantileFunctions(levels, rho.nodes[None, :-1], rho.nodes[None, 1:], rho.weights)
    points, weights = atoms(rho)
    return project(points, weights, torch.ones_like(points[:1]))


def project(points: Tensor, weights: Tensor, directions: Tensor) -> QuantileFunctions:
    """The quantile functions of projections of particles."""
    values, order = (directions @ points.mT).sort(1)
    levels = weights[order].cumsum(1)
    return QuantileFunctions(levels / levels[:, -1:], values, values, weights, order)


def _gaussian_quantiles(rho: Gaussian, other: Measure) -> Quantiles:
    n = len(other) if isinstance(other, Quantiles) else GAUSSIAN_NODES
    standard = Quantiles.from_icdf(Normal(torch.zeros((), dtype=torch.float64), 1.0).icdf, n).nodes.to(rho.device)
    return Quantiles.unchecked(rho.loc.double() + rho.scale_tril[0].double() * standard)


def draw_directions(n_projections: int, dim: int, seed: int) -> Tensor:
    """Unit vectors (n_projections, dim), each uniform, in orthonormal sets of `dim`, in float64."""
    check_memory(3 * n_projections * dim, f"{n_projections} directions in dimension {dim}")
    noise = torch.randn(math.ceil(n_projections / dim), dim, dim, generator=make_generator(seed), dtype=torch.float64)
    frames, triangle = torch.linalg.qr(noise)
    signs = triangle.diagonal(dim1=1, dim2=2).sign()  # makes the frames uniform (Mezzadri 2007)
    return (frames * signs[:, None]).mT.reshape(-1, dim)[:n_projections]
