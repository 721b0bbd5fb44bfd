"""½W₂² between any two measures: in closed form, on the line, or by plans."""

from __future__ import annotations

import torch
from torch import Tensor

from wprox.measures import Gaussian, Measure
from wprox.transport.atoms import atoms, by_weights, check_same_space
from wprox.transport.gaussian import bures_square
from wprox.transport.line import line_square
from wprox.transport.plans import exact_plan, half_square_distances


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
    if not a.requires_grad:
        return value
    with torch.no_grad():  # the c-transform, which is right where ρ has no mass as well
        first = (half_square_distances(x, y.to(x)) - potential).amin(1)
    return value + by_weights(a, first)
