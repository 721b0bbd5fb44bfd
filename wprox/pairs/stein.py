"""Sums of a Stein kernel over pairs of points, with their gradient from the same pass over small blocks of pairs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from wprox._autograd import Needs, with_gradients
from wprox.kernels import RadialKernel
from wprox.pairs.radial import Cloud, centre_of, derivatives, squared_distances

NUMBERS_AT_ONCE = 2**20  # of differences x − y that are formed at once away from the points


def stein_sum(kernel: RadialKernel, points: Tensor, scores: Tensor, weights: Tensor) -> Tensor:
    r"""Σ_ij w_i w_j k_π(x_i, x_j) as a function of points x, scores s and weights w.

    For k(x, y) = φ(r), r = |z|², z = x − y, with G = ⟨s_x, s_y⟩ and D = ⟨s_x − s_y, z⟩:

        k_π = ⟨s_x, s_y⟩ k + ⟨s_x, ∇_y k⟩ + ⟨s_y, ∇_x k⟩ + tr ∇_x∇_y k = φ G − 2φ′ (D + d) − 4 r φ″
        ∂k_π/∂x = C z − 2φ′ (s_x − s_y),   C = 2φ′ G − 4φ″ (D + d + 2) − 8 r φ‴,   ∂k_π/∂s_x = φ s_y − 2φ′ z
    """

    def compute(needs: Needs, points: Tensor, scores: Tensor, weights: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        by_points, by_scores, by_weights = needs
        total, fields, potential = _sums(kernel, points, scores, weights, by_points or by_scores, by_weights)
        gradients = [2 * weights[:, None] * field for field in fields] if fields else [None, None]
        return total, [*gradients, None if potential is None else 2 * potential]

    return with_gradients(compute, partial(_plain, kernel), points, scores, weights)


def stein_potential(kernel: RadialKernel, x: Tensor, s: Tensor, y: Tensor, t: Tensor, weights: Tensor) -> Tensor:
    """Σ_j w_j k_π(x_i, y_j) of points x with scores s, (m, d), and y with scores t, (n, d), (m,), by autodiff."""
    rows = max(1, NUMBERS_AT_ONCE // y.numel())
    parts = zip(x.split(rows), s.split(rows), strict=True)
    return torch.cat([_stein_values(kernel, part, scores, y, t) @ weights for part, scores in parts])


def stein_diagonal(kernel: RadialKernel, scores: Tensor) -> Tensor:
    """k_π(x_i, x_i) = φ(0) |s_i|² − 2 d φ′(0), (n,), with a graph in the scores, (n, d)."""
    value, slope = derivatives(kernel, torch.zeros(1, 1, dtype=torch.float64, device=scores.device), 1, True)
    return value.to(scores).squeeze() * scores.square().sum(1) - 2 * scores.shape[1] * slope.to(scores).squeeze()


def _stein_values(kernel: RadialKernel, x: Tensor, s: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """k_π(x_i, y_j), (m, n), as a part of the graph."""
    z = x[:, None] - y
    r = z.square().sum(-1)
    with torch.enable_grad():
        argument = r if r.requires_grad else r.detach().requires_grad_()
        profile = [kernel.profile(argument)]
        for _ in range(2):
            (slope,) = torch.autograd.grad(profile[-1].sum(), argument, create_graph=True)
            profile.append(slope)
    if not r.requires_grad:
        profile = [part.detach() for part in profile]
    shifted = ((s[:, None] - t) * z).sum(-1) + x.shape[1]
    return profile[0] * (s @ t.mT) - 2 * profile[1] * shifted - 4 * r * profile[2]


def _plain(kernel: RadialKernel, x: Tensor, s: Tensor, w: Tensor) -> Tensor:
    """The same sum in plain torch, all pairs at once."""
    return w @ _stein_values(kernel, x, s, x, s) @ w


def _sums(
    kernel: RadialKernel, points: Tensor, scores: Tensor, weights: Tensor, gradient: bool, with_potential: bool
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """The sum; where `gradient`, Σ_j w_j ∂k_π/∂x_i and Σ_j w_j ∂k_π/∂s_i, (n, d); Σ_j w_j k_π(x_i, x_j), (n,)."""
    cloud, w = Cloud(points, centre_of(points)), weights.detach().double()
    s = scores.detach().double().mT.contiguous()
    x, d = cloud.centred, len(s)
    left, right = torch.cat((s, x)), torch.cat((x, s))
    own = (s * x).sum(0)
    weighted = torch.cat((cloud.weighted(w), s * w))  # w x, w, w s
    total, potential = w.new_zeros(()), torch.zeros_like(w)
    slopes, weighted_slopes, values = (torch.zeros_like(part) for part in (weighted[: d + 1], weighted, s))
    blocks = cloud.rows()
    for k, rows in enumerate(blocks):
        for columns in blocks[k:]:
            r = squared_distances(cloud, rows, cloud, columns)
            products = s[:, rows].mT @ s[:, columns]
            shifted = (own[rows, None] + own[columns]).addmm_(left[:, rows].mT, right[:, columns], alpha=-1).add_(d)
            phi, *others = derivatives(kernel, r, 3 if gradient else 2, rows == columns)
            stein = phi * products
            stein.addcmul_(others[0], shifted, value=-2).addcmul_(r, others[1], value=-4)
            row = stein @ w[columns]
            total += (w[rows] @ row) * (1 if rows == columns else 2)
            if with_potential:
                potential[rows] += row
                if rows != columns:
                    potential[columns] += w[rows] @ stein
            if gradient:
                coefficient = products.mul_(others[0]).mul_(2)
                coefficient.addcmul_(others[1], shifted.add_(2), value=-4).addcmul_(r, others[2], value=-8)
                for a, b in ((rows, columns), (columns, rows))[: 1 if rows == columns else 2]:
                    turn = (lambda block: block.mT) if a is rows else (lambda block: block)
                    slopes[:, a] += weighted[: d + 1, b] @ turn(coefficient)
                    weighted_slopes[:, a] += weighted[:, b] @ turn(others[0])
                    values[:, a] += weighted[d + 1 :, b] @ turn(phi)
    if not gradient:
        return total, [], potential if with_potential else None
    slope_sum, slope_scores = weighted_slopes[d], weighted_slopes[d + 1 :]
    by_points = cloud.field(slopes) - 2 * (s * slope_sum - slope_scores)
    by_scores = values - 2 * cloud.field(weighted_slopes[: d + 1])
    return total, [by_points.mT, by_scores.mT], potential if with_potential else None
