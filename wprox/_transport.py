"""Optimal transport between measures, as values that autograd knows: on the line, between Gaussians, by plans, sliced.

All values are of ½W₂² or its like, in float64. A plan is locally constant in the points, and so its derivatives are
those of ½ Σ_ij P_ij |x_i − y_j|² with P held fixed (the envelope theorem). The derivative in the weights is a potential
φ of Kantorovich's, normalised by ∫ φ dρ = 0: it is the derivative of w ↦ F(w / Σw).
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal

from wprox._checks import make_generator
from wprox.measures import Gaussian, Measure, Quantiles

PLAIN, CYCLE = 20, 120  # Sinkhorn iterations that are not over-relaxed, of so many
GAUSSIAN_NODES = 2000  # of the quantiles that stand for a Gaussian of the line next to particles


def check_same_space(p: Measure, q: Measure) -> None:
    """Raise `ValueError` for measures of two dimensions."""
    if p.dim != q.dim:
        raise ValueError(f"the measures must be of one dimension, got {p!r} and {q!r}")


def atoms(rho: Measure) -> tuple[Tensor, Tensor]:
    """The points (n, d) of a measure and their weights (n,), divided by their sum, in float64.

    Raises:
        ValueError: for a Gaussian carried by its 2d cubature points, which are no approximation of it in W₂.
    """
    if isinstance(rho, Gaussian) and rho.order is None:
        raise ValueError(
            f"optimal transport between {rho!r} and a measure that is not Gaussian goes through its quadrature points, "
            "and the 2d cubature points are too few: use Gaussian(..., order=k), or draws rho.to_particles(n, seed)"
        )
    weights = rho.weights.double()
    return rho.points.double(), weights / weights.detach().sum()


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


def by_weights(weights: Tensor, potential: Tensor) -> Tensor:
    """0, with the derivative φ − ∫ φ dρ in the weights of ρ."""
    potential = potential - weights.detach() @ potential
    return (weights - weights.detach()) @ potential


# Between Gaussians


def bures_square(loc: Tensor, factor: Tensor, other_loc: Tensor, other_factor: Tensor) -> Tensor:
    """W₂² between N(m, LLᵀ) and N(m′, L′L′ᵀ), for any factors L, L′: (d, d), in float64."""
    loc, factor = loc.double(), factor.double()
    other_loc, other_factor = other_loc.to(loc), other_factor.to(loc)
    with torch.no_grad():  # at the minimum over R its derivative drops out; that of the SVD fails for equal values
        left, _, right = torch.linalg.svd(other_factor.mT @ factor)
        rotation = left @ right
    return (loc - other_loc).square().sum() + (factor - other_factor @ rotation).square().sum()


# On the line


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

    def at(self, piece: Tensor, level: Tensor) -> Tensor:
        """The values at levels (L, m) of the given pieces (L, m)."""
        low = self.low.gather(1, piece)
        if self.high is self.low:
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
    return _square(_on_line(p), _on_line(q))[0]


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
    return _square(_project(x, a, directions), _project(y.to(x), b.to(x), directions)).mean()


def _square(functions: QuantileFunctions, others: QuantileFunctions) -> Tensor:
    """W₂² of pairs of laws of the line, (L,); a trapezoidal sum over all levels at which a piece ends."""
    levels = functions.levels
    if levels.shape == others.levels.shape and torch.equal(levels, others.levels):
        widths = torch.diff(levels, prepend=levels.new_zeros(len(levels), 1))
        low, high = functions.low - others.low, functions.high - others.high
    else:
        ends, _ = torch.cat((levels, others.levels), 1).sort(1)
        starts = torch.nn.functional.pad(ends[:, :-1], (1, 0))
        middles, widths = (starts + ends) / 2, ends - starts
        pieces = torch.searchsorted(levels, middles), torch.searchsorted(others.levels, middles)
        low = functions.at(pieces[0], starts) - others.at(pieces[1], starts)
        atomic = functions.high is functions.low and others.high is others.low
        high = low if atomic else functions.at(pieces[0], ends) - others.at(pieces[1], ends)
    square = (widths * (low.square() + high.square())).sum(1) / 2
    order, weights = functions.order, functions.weights
    if order is None or not weights.requires_grad:
        return square
    with torch.no_grad():  # φ′ = x − y, where y is the value of the other quantile function at the level of the gap
        values, steps = functions.low, functions.low.diff(dim=1)
        slopes = (values[:, 1:] + values[:, :-1]) / 2 - others.middle(levels[:, :-1])
        potential = torch.nn.functional.pad((2 * steps * slopes).cumsum(1), (1, 0))
        potential = torch.zeros_like(potential).scatter(1, order, potential)
    return square + torch.stack([by_weights(weights, row) for row in potential])


def _on_line(rho: Measure) -> QuantileFunctions:
    if isinstance(rho, Quantiles):
        levels = torch.linspace(0, 1, len(rho), dtype=torch.float64, device=rho.device)[None, 1:]
        return QuantileFunctions(levels, rho.nodes[None, :-1], rho.nodes[None, 1:], rho.weights)
    points, weights = atoms(rho)
    return _project(points, weights, torch.ones_like(points[:1]))


def _project(points: Tensor, weights: Tensor, directions: Tensor) -> QuantileFunctions:
    """The quantile functions of projections of particles."""
    values, order = (directions @ points.mT).sort(1)
    levels = weights.detach()[order].cumsum(1)
    return QuantileFunctions(levels / levels[:, -1:], values, values, weights, order)


def _gaussian_quantiles(rho: Gaussian, other: Measure) -> Quantiles:
    n = len(other) if isinstance(other, Quantiles) else GAUSSIAN_NODES
    standard = Quantiles.from_icdf(Normal(torch.zeros((), dtype=torch.float64), 1.0).icdf, n).nodes.to(rho.device)
    return Quantiles.unchecked(rho.loc.double() + rho.scale_tril[0].double() * standard)


def draw_directions(n_projections: int, dim: int, seed: int) -> Tensor:
    """Unit vectors (n_projections, dim), each uniform, in orthonormal sets of `dim`, in float64."""
    noise = torch.randn(math.ceil(n_projections / dim), dim, dim, generator=make_generator(seed), dtype=torch.float64)
    frames, triangle = torch.linalg.qr(noise)
    signs = triangle.diagonal(dim1=1, dim2=2).sign()  # makes the frames uniform (Mezzadri 2007)
    return (frames * signs[:, None]).mT.reshape(-1, dim)[:n_projections]


# Plans


class Plan(NamedTuple):
    """The entries P_ij > 0 of a plan, and the potential ψ of its second marginal.

    Attributes:
        rows: (k,), the i.
        columns: (k,), the j.
        mass: (k,), the P_ij.
        potential: (m,), ψ, with φ_i = min_j ½|x_i − y_j|² − ψ_j for the first marginal; −∞ at points without mass.
    """

    rows: Tensor
    columns: Tensor
    mass: Tensor
    potential: Tensor


def exact_plan(x: Tensor, a: Tensor, y: Tensor, b: Tensor, num_itermax: int = 10**6) -> Plan:
    """The optimal plan between weighted points, by the network simplex of POT, in float64 on the CPU.

    Arguments:
        x: (n, d), with weights a: (n,).
        y: (m, d), with weights b: (m,).
        num_itermax: the largest number of pivots.

    Raises:
        RuntimeError: where these are not enough.
    """
    import ot

    with torch.no_grad():
        cost = half_square_distances(x, y).cpu()
        rows, columns = ((weights > 0).cpu() for weights in (a, b))
        if not (bool(rows.all()) and bool(columns.all())):
            cost = cost[rows][:, columns]
        first, second = (weights[kept.to(weights.device)].double().cpu() for weights, kept in ((a, rows), (b, columns)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # POT warns where it fails, which is an error here
            array, log = ot.emd(
                (first / first.sum()).numpy(),
                (second / second.sum()).numpy(),
                cost.numpy(),
                numItermax=num_itermax,
                log=True,
            )
        if log["warning"] is not None:
            raise RuntimeError(
                f"the network simplex did not find the optimal plan between {len(first)} and {len(second)} points "
                f"({log['warning']}); raise num_itermax, which is {num_itermax}"
            )
        plan = torch.from_numpy(array)
        i, j = plan.nonzero(as_tuple=True)
        potential = torch.full_like(b, -math.inf, dtype=torch.float64, device="cpu")
        potential[columns] = torch.from_numpy(log["v"])
        where = rows.nonzero()[i, 0], columns.nonzero()[j, 0], plan[i, j], potential
        return Plan(*(part.to(x.device) for part in where))


def half_square_distances(x: Tensor, y: Tensor) -> Tensor:
    """½|x_i − y_j|², (n, m) in float64, without cancellation far from the origin."""
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square() / 2


# Entropic


def sinkhorn(p: Measure, q: Measure, blur: float, tol: float, iterations: int) -> Tensor:
    """The Sinkhorn divergence for the cost ½|x − y|² and ε = blur²; in closed form between Gaussians."""
    check_same_space(p, q)
    epsilon = blur**2
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        return _gaussian_sinkhorn(p, q, epsilon)
    (x, a), (y, b) = atoms(p), atoms(q)
    y, b = y.to(x), b.to(x)
    origin = (a @ x + b @ y).detach() / 2  # the cost is a difference of squares, which far from 0 would cancel
    x, y = x - origin, y - origin
    terms = []
    for factor, points, weights, others, masses in ((1.0, x, a, y, b), (-0.5, x, a, x, a), (-0.5, y, b, y, b)):
        cost = (points.square().sum(1)[:, None] + others.square().sum(1)) / 2 - points @ others.mT
        f, g = _potentials(cost.detach(), weights.detach(), masses.detach(), epsilon, tol, iterations, factor < 0)
        # the dual value: stationary in f and g, so that its derivatives with f and g held fixed are those of OT
        mass = weights @ (((f[:, None] + g - cost) / epsilon).exp() @ masses)
        terms.append(factor * (weights @ f + masses @ g - epsilon * (mass - 1)))
    return torch.stack(terms).sum()


@torch.no_grad()
def _potentials(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tol: float, iterations: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    r"""The dual potentials f and g of OT_ε, with the plan a_i b_j exp((f_i + g_j − C_ij)/ε).

    Log-domain iterations while ε falls to its value, then stabilised ones on the kernel at f and g (Schmitzer 2019):
    plain for a while, then over-relaxed with the factor that is optimal for the rate observed (Lehmann, von Renesse,
    Sambale and Uschmajew 2022); averaged, where both marginals are one (Feydy 2020, section 3.3).
    """
    g = torch.zeros_like(b)
    level = max(float(cost.max()), epsilon)
    while True:
        f = -level * torch.logsumexp(b.log() + (g - cost) / level, 1)
        g = (f + g) / 2 if symmetric else -level * torch.logsumexp(a.log() + (f - cost.mT) / level, 1)
        if level == epsilon:
            break
        level = max(level / 4, epsilon)
    f = g if symmetric else f
    error, relaxation, errors, count = math.inf, 1.0, [math.inf], 0
    while not error <= tol and count < iterations:
        kernel = ((f[:, None] + g - cost) / epsilon).exp()
        log_u, log_v = torch.zeros_like(a), torch.zeros_like(b)
        while (
            not error <= tol and count < iterations and float(torch.maximum(log_u.abs().max(), log_v.abs().max())) < 100
        ):
            count += 1
            if symmetric:
                update = -(log_u + (kernel @ (a * log_u.exp())).log()) / 2
                log_u = log_v = log_u + update
                error = float(a @ (-2 * update).expm1().abs())
                continue
            log_u = log_u - relaxation * (log_u + (kernel @ (b * log_v.exp())).log())
            update = -(log_v + (kernel.mT @ (a * log_u.exp())).log())
            error = float(b @ (-update).expm1().abs())
            log_v = log_v + relaxation * update
            errors.append(error)
            if count % CYCLE == PLAIN:
                rate = min(errors[-1] / errors[-2], 0.99999)
                relaxation = 2 / (1 + math.sqrt(1 - rate))
            elif count % CYCLE == 0 or error > 2 * errors[-2]:
                relaxation = 1.0
        f, g = f + epsilon * log_u, g + epsilon * log_v
    if not error <= tol:
        warnings.warn(
            f"after {iterations} Sinkhorn iterations the marginals of the entropic plan are off by {error:.2g} in "
            f"mass, more than tol = {tol:g}; raise blur, tol or iterations",
            stacklevel=2,
        )
    return f, g


def _gaussian_sinkhorn(p: Gaussian, q: Gaussian, epsilon: float) -> Tensor:
    """Janati, Muzellec, Peyré and Cuturi, *Entropic optimal transport between Gaussian measures*, 2020, theorem 1."""
    (m, first), (other, second) = (
        (rho.loc.to(p.device, torch.float64), rho.scale_tril.to(p.device, torch.float64)) for rho in (p, q)
    )

    def bures(left: Tensor, right: Tensor) -> Tensor:  # of twice the transport cost, without what debiasing cancels
        roots = (4 * torch.linalg.svdvals(left.mT @ right).square() + epsilon**2).sqrt()
        return -(roots - epsilon * (roots + epsilon).log()).sum()

    gap = bures(first, second) - (bures(first, first) + bures(second, second)) / 2
    return ((m - other).square().sum() + gap) / 2
