"""Couplings between the particles of a step's start and its end: what the transport cost is, and where it pulls to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wprox.measures import Particles
from wprox.transport.entropic import sinkhorn
from wprox.transport.plans import exact_plan

Coupling = Callable[[Tensor], tuple[float, Tensor]]  # y: (n, d) ↦ the cost, and t: (n, d) with ∇ cost/2 = w (y − t)

PIVOTS = 10_000_000
TOLERANCE, ITERATIONS = 1e-6, 10_000  # of the entropic plans


class ExactCoupling:
    """W₂² between Σ w_i δ_{x_i} and Σ w_i δ_{y_i} by the network simplex, and the barycentres t of its plan."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        self.points, self.weights = points, weights

    def __call__(self, y: Tensor) -> tuple[float, Tensor]:
        plan = exact_plan(y, self.weights, self.points, self.weights, PIVOTS)
        mass = plan.mass.to(y)
        moves = self.points[plan.columns] - y[plan.rows]
        pull = torch.zeros_like(y).index_add_(0, plan.rows, mass[:, None] * moves)
        moved = torch.zeros_like(self.weights).index_add_(0, plan.rows, mass)
        return float(mass @ moves.square().sum(1)), y + pull / torch.where(moved > 0, moved, 1)[:, None]


class SinkhornCoupling:
    """2 S_ε, the debiased entropic cost for ε = blur² (Feydy et al. 2019; S_0 = W₂²/2)."""

    def __init__(self, points: Tensor, weights: Tensor, blur: float) -> None:
        self.start, self.blur = Particles(points, weights), blur

    def __call__(self, y: Tensor) -> tuple[float, Tensor]:
        weights = self.start.weights
        with torch.enable_grad():
            moved = y.detach().requires_grad_()
            end = self.start.push(lambda _: moved)
            divergence = sinkhorn(end, self.start, self.blur, TOLERANCE, ITERATIONS)
            (pull,) = torch.autograd.grad(divergence, moved)
        cost = max(0.0, 2 * float(divergence.detach()))  # S_ε ≥ 0, but for the rounding of its three terms
        return cost, y - torch.where(weights > 0, pull.mT / weights, 0).mT
