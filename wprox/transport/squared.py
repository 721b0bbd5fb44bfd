"""W₂ between any two measures: in closed form, on the line, or by plans."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal

from wprox._autograd import differentiable_once, needed
from wprox.measures import Gaussian, Measure, Quantiles
from wprox.measures.laws import as_gaussian
from wprox.pairs.distances import half_square_distances
from wprox.transport.atoms import NO_SECOND, atoms, by_weights, check_same_space
from wprox.transport.gaussian import bures_square
from wprox.transport.line import line_square
from wprox.transport.plans import exact_plan


def half_square(p: Measure, q: Measure, num_itermax: int = 10**6) -> Tensor:
    """½W₂²(p, q): in closed form between Gaussians, by quantile functions on the line, else by the network simplex."""
    check_same_space(p, q)
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        return bures_square(p.loc, p.scale_tril, q.loc, q.scale_tril) / 2
    if p.dim == 1:
        return line_square(p, q) / 2
    (x, a), (y, b) = atoms(p), atoms(q)
    rows, columns, mass, potential = exact_plan(x, a, y, b, num_itermax)
    value = mass @ (x[rows] - y[columns]).square().sum(1) / 2
    if not any(needed(a, b)):
        return value
    with torch.no_grad():  # c-transforms, which are right where there is no mass as well
        distances = half_square_distances(x, y.to(x))
        first = (distances - potential).amin(1)
        second = (distances - first[:, None]).amin(0)
    return differentiable_once(value + by_weights(a, first) + by_weights(b.to(a), second), NO_SECOND)


def as_measure_like(q: Measure | Distribution, p: Measure) -> Measure | None:
    """q as a measure of p's kind, between which W₂ is exact; `None` where there is none."""
    gaussian = as_gaussian(q)
    if isinstance(p, Gaussian):
        return gaussian
    if not isinstance(p, Quantiles):
        return None
    if isinstance(q, Quantiles):
        return q
    if gaussian is None or gaussian.dim != 1:
        return None
    normal = Normal(gaussian.loc[0].double(), gaussian.scale_tril[0, 0].double())
    return Quantiles.from_icdf(normal.icdf, len(p))


def exact_w2(p: Measure, q: Measure) -> float:
    """W₂ between two Gaussians, or between measures of the line, in float64."""
    p, q = p.to(torch.float64), q.to(torch.float64)
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        return float(root(bures_square(p.loc, p.scale_tril, q.loc, q.scale_tril)))
    return float(root(line_square(p, q)))


def root(square: Tensor) -> Tensor:
    """√, with the derivative 0 at 0, where W₂ has none: that of W₂² there is 0 as well."""
    positive = torch.where(square > 0, square, torch.ones_like(square))
    return torch.where(square > 0, positive.sqrt(), torch.zeros_like(square))
