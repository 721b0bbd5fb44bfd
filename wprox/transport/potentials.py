"""Kantorovich potentials as fields: the first variations of ½W₂², of Sinkhorn divergences and of sliced distances.

Each function returns φ as a map of any points x: (m, d) to (m,), up to a constant, differentiable in x. The potentials
are those between the support points, and elsewhere their c-transforms, which is what optimality demands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeGuard

import torch
from torch import Tensor

from wprox.measures import Gaussian, Measure, Quantiles
from wprox.pairs.distances import half_square_distances
from wprox.transport.atoms import atoms, check_same_space
from wprox.transport.entropic import entropic_transform, potentials_of
from wprox.transport.line import QuantileFunctions, as_quantile_functions, project
from wprox.transport.plans import exact_plan

Field = Callable[[Tensor], Tensor]
NUMBERS_AT_ONCE = 2**22  # of distances that are formed at once


def are_gaussian(p: Measure, q: Measure) -> TypeGuard[Gaussian]:
    """Whether both are Gaussians, between which δF/δρ is quadratic."""
    return isinstance(p, Gaussian) and isinstance(q, Gaussian)


def own_gradient(value: Callable[[Measure], Tensor], rho: Measure, target: Measure) -> Tensor | None:
    """∇_{W₂}F at the points of ρ in the coordinates that ρ itself has, (n, d); `None` where these are its points.

    Raises:
        ValueError: for a Gaussian without quadrature points next to another law.
    """
    if are_gaussian(rho, target):
        return gaussian_gradient(value, rho)
    if isinstance(rho, Quantiles):
        return node_gradient(value, rho)
    atoms(rho)  # refuses a Gaussian without quadrature points
    return None


def gaussian_slopes(value: Callable[[Measure], Tensor], rho: Gaussian) -> tuple[Tensor, Tensor]:
    """g = ∂F/∂m, (d,), and S = ∂F/∂Σ, (d, d), of a functional of Gaussians."""
    with torch.enable_grad():
        loc, covariance = (part.detach().requires_grad_() for part in (rho.loc, rho.covariance_matrix))
        by_loc, by_covariance = torch.autograd.grad(value(Gaussian(loc, covariance)), (loc, covariance))
    return by_loc, by_covariance


def gaussian_gradient(value: Callable[[Measure], Tensor], rho: Gaussian) -> Tensor:
    """∇_{W₂}F = g + 2 S (x − m) at the points of a Gaussian, exact where δF/δρ is quadratic, (n, d)."""
    by_loc, by_covariance = gaussian_slopes(value, rho)
    return by_loc + 2 * (rho.points.detach() - rho.loc.detach()) @ by_covariance


def gaussian_field(value: Callable[[Measure], Tensor], rho: Gaussian) -> Field:
    """⟨g, x − m⟩ + ⟨x − m, S (x − m)⟩, the first variation of F where it is quadratic, as between Gaussians."""
    by_loc, by_covariance = gaussian_slopes(value, rho)

    def field(x: Tensor) -> Tensor:
        offset = x - rho.loc.detach().to(x)
        return offset @ by_loc.to(x) + ((offset @ by_covariance.to(x)) * offset).sum(1)

    return field


def node_gradient(value: Callable[[Measure], Tensor], rho: Quantiles) -> Tensor:
    """∇_{W₂}F at the nodes of a measure of the line, from the derivatives in the nodes, (n, 1)."""
    with torch.enable_grad():
        nodes = rho.nodes.detach().requires_grad_()
        (by_nodes,) = torch.autograd.grad(value(Quantiles.unchecked(nodes)), nodes)
    return (by_nodes / rho.weights)[:, None]


def squared_field(p: Measure, q: Measure, num_itermax: int) -> Field:
    """The first variation of ½W₂²(·, q) at p; on the line by quantile functions, else by the network simplex."""
    check_same_space(p, q)
    if p.dim == 1:
        return line_field(_on_line(p, q), _on_line(q, p), isinstance(p, Quantiles))
    (x, a), (y, b) = atoms(p), atoms(q)
    y = y.detach().to(x)
    plan = exact_plan(x.detach(), a.detach(), y, b.detach(), num_itermax)

    def field(z: Tensor) -> Tensor:
        rows = max(1, NUMBERS_AT_ONCE // len(y))
        parts = [(half_square_distances(part, y) - plan.potential).amin(1) for part in z.double().split(rows)]
        return torch.cat(parts).to(z)

    return field


def sliced_field(p: Measure, q: Measure, directions: Tensor) -> Field:
    """The first variation of ½SW₂²(·, q) at p, the mean over directions θ of that of ½W₂² along θ."""
    check_same_space(p, q)
    if p.dim == 1:
        return squared_field(p, q, 1)
    (x, a), (y, b) = _carriers(p), _carriers(q)
    directions = directions.to(x)
    sources, targets = project(x, a, directions), project(y.to(x), b.to(x), directions)
    fields = [line_field(sources.row(k), targets.row(k), False) for k in range(len(directions))]

    def field(z: Tensor) -> Tensor:
        along = z.double() @ directions.mT
        return torch.stack([f(along[:, k, None]) for k, f in enumerate(fields)]).mean(0).to(z)

    return field


def _carriers(rho: Measure) -> tuple[Tensor, Tensor]:
    """The points that have mass, and their weights: what has none must not set where the support ends."""
    points, weights = (part.detach() for part in atoms(rho))
    return points[weights > 0], weights[weights > 0]


def _on_line(rho: Measure, other: Measure) -> QuantileFunctions:
    """The quantile function of the points that have mass."""
    if isinstance(rho, Quantiles | Gaussian):
        return as_quantile_functions(rho.detach(), other)
    points, weights = _carriers(rho)
    return project(points, weights, torch.ones_like(points[:1]))


def line_field(source: QuantileFunctions, target: QuantileFunctions, linear: bool) -> Field:
    """φ with φ′(x) = x − T(x), T the increasing map from one law of the line to another.

    Arguments:
        source: one quantile function, whose pieces begin and end at points of the support.
        target: another one.
        linear: whether T is linear between the points of the source, and not constant, as it is between atoms.
    """
    with torch.no_grad():
        knots = torch.cat((source.low[0, :1], source.high[0])) if linear else source.low[0]
        levels = source.levels[0, :-1]
        first, last = target.low[0, :1], target.high[0, -1:]
        inner = target.middle(levels[None])[0]
        if linear:
            images = torch.cat((first, inner, last))
            slopes = images.diff() / knots.diff()
            begin, slope = torch.cat((first, images[:-1], last)), torch.nn.functional.pad(slopes, (1, 1))
        else:
            begin = torch.cat((first, inner, last))
            slope = torch.zeros_like(begin)
        origin = torch.cat((knots[:1], knots))  # where each piece of T begins
        rise = _rise(knots[1:], origin[1:-1], begin[1:-1], slope[1:-1])
        height = torch.nn.functional.pad(rise.cumsum(0), (1, 0))
        height = torch.cat((height[:1], height))

    def field(x: Tensor) -> Tensor:
        s = x[:, 0].to(knots)
        piece = torch.searchsorted(knots, s.detach().contiguous())
        return (height[piece] + _rise(s, origin[piece], begin[piece], slope[piece])).to(x)

    return field


def _rise(x: Tensor, origin: Tensor, begin: Tensor, slope: Tensor) -> Tensor:
    """∫ s − T(s) ds from the origin to x for T(s) = begin + slope (s − origin)."""
    length = x - origin
    return length * ((x + origin) / 2 - begin - slope * length / 2)


def sinkhorn_field(p: Measure, q: Measure, blur: float, tol: float, iterations: int) -> Field:
    """The first variation f_pq − f_pp of the Sinkhorn divergence at p, by smooth c-transforms (Feydy et al. 2019)."""
    check_same_space(p, q)
    (x, a), (y, b) = atoms(p.detach()), atoms(q)
    y, b = y.detach().to(x), b.detach().to(x)
    epsilon = blur**2
    _, to_target = potentials_of(x, a, y, b, epsilon, tol, iterations)
    _, to_itself = potentials_of(x, a, x, a, epsilon, tol, iterations, symmetric=True)

    def field(z: Tensor) -> Tensor:
        rows = max(1, NUMBERS_AT_ONCE // max(len(x), len(y)))
        parts = [
            entropic_transform(part, y, b, to_target, epsilon) - entropic_transform(part, x, a, to_itself, epsilon)
            for part in z.double().split(rows)
        ]
        return torch.cat(parts).to(z)

    return field
