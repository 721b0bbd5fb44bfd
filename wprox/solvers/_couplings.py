"""Couplings between the particles of a step's start and its end: what the transport cost is, and where it pulls to."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import ot
import torch
from geomloss import SamplesLoss
from torch import Tensor

Coupling = Callable[[Tensor], tuple[float, Tensor]]  # y: (n, d) ↦ the cost, and t: (n, d) with ∇ cost/2 = w (y − t)


class ExactCoupling:
    """W₂² between Σ w_i δ_{x_i} and Σ w_i δ_{y_i} by the network simplex, and the barycentres t of its plan."""

    def __init__(self, points: Tensor, weights: Tensor) -> None:
        self.carriers = weights > 0
        self.points, self.weights = points[self.carriers], weights[self.carriers]

    def __call__(self, y: Tensor) -> tuple[float, Tensor]:
        moved, masses = y[self.carriers], self.weights.cpu().numpy()
        masses = masses / masses.sum()
        costs = torch.cdist(moved, self.points, compute_mode="donot_use_mm_for_euclid_dist").square()
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # the limit of iterations: the plan would not be optimal
            plan = ot.emd(masses, masses, np.ascontiguousarray(costs.cpu().numpy()), numItermax=10_000_000)
        plan = torch.from_numpy(plan).to(y)
        targets = y.clone()
        targets[self.carriers] = (plan @ self.points) / plan.sum(1, keepdim=True)
        return float((plan * costs).sum()), targets


class SinkhornCoupling:
    """2 S_ε, the debiased entropic cost for ε = blur² (Feydy et al. 2019; S_0 = W₂²/2), by GeomLoss."""

    def __init__(self, points: Tensor, weights: Tensor, blur: float) -> None:
        self.points, self.weights = points, weights
        self.loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.8, backend="tensorized")

    def __call__(self, y: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            moved = y.detach().requires_grad_()
            divergence = self.loss(self.weights, moved, self.weights, self.points)
            (pull,) = torch.autograd.grad(divergence, moved)
        carriers = self.weights[:, None] > 0
        cost = max(0.0, 2 * float(divergence.detach()))  # S_ε ≥ 0, but for the rounding of its three terms
        return cost, y - torch.where(carriers, pull / self.weights[:, None], 0)
