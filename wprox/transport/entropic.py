"""Entropic transport: the Sinkhorn divergence."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wprox._autograd import Needs, with_gradients
from wprox._checks import check_memory
from wprox._warnings import warn
from wprox.measures import Gaussian, Measure
from wprox.pairs.distances import half_square_distances
from wprox.transport.atoms import atoms, check_same_space
from wprox.transport.gaussian import entropic_trace

LOST = 1e-200  # a sum below this may soon underflow in Sinkhorn iterations on a kernel
ROUNDING = 1e-2  # of costs, in units of ε, that is told
LEVEL_TOL, LEVEL_ITERATIONS = 1e-2, 20  # of the marginals at each level of ε on the way down, and the most iterations
PLAIN, CYCLE = 20, 120  # Sinkhorn iterations that are not over-relaxed, of so many


def sinkhorn(p: Measure, q: Measure, blur: float, tol: float, iterations: int) -> Tensor:
    """The Sinkhorn divergence for the cost ½|x − y|² and ε = blur²; in closed form between Gaussians."""
    check_same_space(p, q)
    epsilon = blur**2
    if isinstance(p, Gaussian) and isinstance(q, Gaussian):
        return _gaussian_sinkhorn(p, q, epsilon)
    (x, a), (y, b) = atoms(p), atoms(q)
    largest = max(len(x), len(y))
    check_memory(5 * largest**2, f"plans between {len(x)} and {len(y)} points")
    y, b = y.to(x), b.to(x)
    a, b = a / a.sum(), b / b.sum()  # which are 1: the derivatives are those of F(w / Σw)
    origin = (a @ x + b @ y).detach() / 2  # the slopes are differences of products, which far from 0 would cancel
    x, y = x - origin, y - origin
    own = list[Tensor]()  # the potentials of both to themselves, which are those between them where they are one
    of_p = entropic_cost(x, a, x, a, epsilon, tol, iterations, True, own)
    of_q = entropic_cost(y, b, y, b, epsilon, tol, iterations, True, own)
    return entropic_cost(x, a, y, b, epsilon, tol, iterations, False, own) - of_p / 2 - of_q / 2


def entropic_cost(
    x: Tensor,
    a: Tensor,
    y: Tensor,
    b: Tensor,
    epsilon: float,
    tol: float,
    iterations: int,
    symmetric: bool = False,
    own: list[Tensor] | None = None,
) -> Tensor:
    """OT_ε between weighted points, the dual value.

    It is stationary in the potentials f and g, so that its derivatives with f and g held fixed are those of OT_ε; in
    second derivatives f and g count as functions of points and weights.

    Arguments:
        symmetric: whether the two measures are one.
        own: the potentials of the two measures to themselves: kept there, and tried between them.
    """
    own = [] if own is None else own
    potentials: list[Tensor] = []

    def compute(needs: Needs, x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        cost = half_square_distances(x, y)
        if symmetric or len(own) != 2 or not _solve(cost, a, b, epsilon, tol, *own):
            f, g = _all_potentials(cost, a, b, epsilon, tol, iterations, symmetric)
        else:
            f, g = own
        if symmetric:
            own.append(f)
        potentials[:] = f, g
        excess = _exponent(f, g, cost, a, b, epsilon).expm1_()  # of the mass of the plan: 0 in sum over either side
        rows = excess @ b
        value = a @ f + b @ g - epsilon * (a @ rows)
        by_x, by_a, by_y, by_b = None, f - epsilon * rows, None, None
        if needs[0]:  # Σ_j P_ij (x_i − y_j)
            by_x = a[:, None] * ((rows + b.sum())[:, None] * x - excess @ (b[:, None] * y) - b @ y)
        if symmetric:
            by_y, by_b = by_x, by_a
        elif needs[2] or needs[3]:
            columns = a @ excess
            by_b = g - epsilon * columns
            by_y = b[:, None] * ((columns + a.sum())[:, None] * y - excess.mT @ (a[:, None] * x) - a @ x)
        return value, [by_x, by_a, by_y, by_b]

    def plain(x: Tensor, a: Tensor, y: Tensor, b: Tensor) -> Tensor:
        cost = half_square_distances(x, y)
        f, g = _differentiable(potentials[0], potentials[1], cost, a, b, epsilon)
        return a @ f + b @ g - epsilon * (a @ (_exponent(f, g, cost, a, b, epsilon).expm1() @ b))

    return with_gradients(compute, plain, x, a, y, b)


def _exponent(f: Tensor, g: Tensor, cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> Tensor:
    """(f_i + g_j − C_ij)/ε; −∞ where neither has mass: there it has no meaning, and may overflow."""
    exponent = (f[:, None] + g - cost) / epsilon
    if bool((a == 0).any() & (b == 0).any()):
        exponent = exponent.masked_fill((a == 0)[:, None] & (b == 0), -math.inf)
    return exponent


def _differentiable(f: Tensor, g: Tensor, cost: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """f and g as functions of cost and weights: a step of Newton's method, whose residuals have a graph.

    They solve f = −ε log Σ_j b_j exp((g_j − C_·j)/ε) and its mirror image, whose linear part is I on its diagonal and
    the conditional laws of the plan beside it; constants move between f and g freely.
    """
    f, g = f.detach(), g.detach()
    ratio = _exponent(f, g, cost, a, b, epsilon).exp()
    of_f, of_g = -epsilon * (ratio @ b).log(), -epsilon * (a @ ratio).log()
    given_x, given_y = ratio.detach() * b.detach(), ratio.detach().mT * a.detach()
    system = torch.eye(len(a)).to(a) - given_x @ given_y + a.detach()
    by_f = torch.linalg.solve(system, of_f - given_x @ of_g)
    return f + by_f, g + of_g - given_y @ by_f


def potentials_of(
    x: Tensor,
    a: Tensor,
    y: Tensor,
    b: Tensor,
    epsilon: float,
    tol: float,
    iterations: int,
    symmetric: bool = False,
) -> tuple[Tensor, Tensor]:
    """The dual potentials f and g of OT_ε between weighted points."""
    return _all_potentials(half_square_distances(x, y), a, b, epsilon, tol, iterations, symmetric)


def entropic_transform(z: Tensor, y: Tensor, b: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """−ε log Σ_j b_j exp((g_j − ½|z − y_j|²)/ε) at points z: (m, d), (m,), the smooth c-transform of g."""
    carriers = b > 0
    exponents = (g[carriers] - half_square_distances(z, y[carriers])) / epsilon
    return -epsilon * torch.logsumexp(b[carriers].log() + exponents, 1)


@torch.no_grad()
def _all_potentials(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tol: float, iterations: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """`_potentials`, also at points without mass, where they are the smooth c-transforms of the others."""
    rows, columns = a > 0, b > 0
    rounding = torch.finfo(cost.dtype).eps * float(cost.max())
    if rounding > ROUNDING * epsilon:
        warn(
            f"points are so far apart, {math.sqrt(2 * float(cost.max())):.2g}, that costs are rounded by "
            f"{rounding:.2g}, and blur² is {epsilon:.2g}: entropic transport of them is inaccurate; raise blur, or "
            "leave the far points out",
            UserWarning,
        )
    if bool(rows.all()) and bool(columns.all()):
        return _potentials(cost, a, b, epsilon, tol, iterations, symmetric)
    first, second = _potentials(cost[rows][:, columns], a[rows], b[columns], epsilon, tol, iterations, symmetric)
    f = -epsilon * torch.logsumexp(b[columns].log() + (second - cost[:, columns]) / epsilon, 1)
    g = -epsilon * torch.logsumexp(a[rows].log() + (first - cost[rows].mT) / epsilon, 1)
    f[rows], g[columns] = first, second
    return f, g


@torch.no_grad()
def _potentials(
    cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tol: float, iterations: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """The dual potentials f and g of OT_ε, with the plan a_i b_j exp((f_i + g_j − C_ij)/ε).

    ε falls to its value, and each level is solved roughly before the next one starts: where points are far apart in
    blurs, their potentials hardly hear of each other at the last level alone.
    """
    f, g = torch.zeros_like(a), torch.zeros_like(b)
    level = max(float(cost.max()), epsilon)
    while level > epsilon:
        f, g, _ = _iterated(cost, a, b, level, LEVEL_TOL, LEVEL_ITERATIONS, symmetric, f, g)
        level = max(level / 4, epsilon)
    f, g, error = _iterated(cost, a, b, epsilon, tol, iterations, symmetric, f, g)
    if not error <= tol:
        warn(
            f"after {iterations} Sinkhorn iterations the marginals of the entropic plan are off by {error:.2g} in "
            f"mass, more than tol = {tol:g}; raise blur, tol or iterations",
            UserWarning,
        )
    return f, g


def _iterated(
    cost: Tensor,
    a: Tensor,
    b: Tensor,
    epsilon: float,
    tol: float,
    iterations: int,
    symmetric: bool,
    f: Tensor,
    g: Tensor,
) -> tuple[Tensor, Tensor, float]:
    """Potentials from f and g on by Sinkhorn iterations, and by how much the marginals of their plan are off, in mass.

    They run on the kernel at f and g, which absorbs them when they have moved far (Schmitzer 2019): plain for a while,
    then over-relaxed with the factor that is optimal for the rate observed (Lehmann, von Renesse, Sambale and
    Uschmajew 2022); averaged, where both marginals are one (Feydy 2020, section 3.3).
    """
    error, relaxation, errors, count = math.inf, 1.0, [math.inf], 0
    while not error <= tol and count < iterations:
        kernel = ((f[:, None] + g - cost) / epsilon).exp()
        sums = kernel @ b
        if not bool(((sums > LOST) & (sums < 1 / LOST)).all()):  # far from a solution, as after a fall of ε
            count += 1
            f = -epsilon * torch.logsumexp(b.log() + (g - cost) / epsilon, 1)
            g = (f + g) / 2 if symmetric else -epsilon * torch.logsumexp(a.log() + (f - cost.mT) / epsilon, 1)
            f = g if symmetric else f
            continue
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
    return f, g, error


def _solve(cost: Tensor, a: Tensor, b: Tensor, epsilon: float, tol: float, f: Tensor, g: Tensor) -> bool:
    """Whether potentials are those of OT_ε: the marginals of their plan are within the tolerance."""
    plan = ((f[:, None] + g - cost) / epsilon).exp()
    return float(a @ (plan @ b - 1).abs() + b @ (a @ plan - 1).abs()) <= tol


def _gaussian_sinkhorn(p: Gaussian, q: Gaussian, epsilon: float) -> Tensor:
    """Janati, Muzellec, Peyré and Cuturi, *Entropic optimal transport between Gaussian measures*, 2020, theorem 1."""
    (m, first), (other, second) = (
        (rho.loc.to(p.device, torch.float64), rho.scale_tril.to(p.device, torch.float64)) for rho in (p, q)
    )

    gap = entropic_trace(first, second, epsilon)  # without what debiasing cancels
    gap = gap - (entropic_trace(first, first, epsilon) + entropic_trace(second, second, epsilon)) / 2
    return ((m - other).square().sum() + gap) / 2
