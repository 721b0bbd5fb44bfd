"""The quadratic part of a functional, exactly: what steps among Gaussians are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.functionals._degree import is_quadratic
from wprox.functionals.structure import Structure
from wprox.measures.laws import as_gaussian


@dataclass(frozen=True)
class Quadratic:
    """F(N(m, Σ)) = V(m) + ½ tr (Q + R)Σ − ½ β log det Σ + a constant, with ∇V at one mean.

    Attributes:
        gradient: ∇V(m), (d,), in float64.
        potential: Q = ∇²V, (d, d).
        interaction: R = ∇²W, (d, d).
        entropy: β.
    """

    gradient: Tensor
    potential: Tensor
    interaction: Tensor
    entropy: float


def quadratic_at(structure: Structure, loc: Tensor) -> Quadratic | None:
    """The quadratic that F is, expanded at a mean (d,) in float64; `None` where F is not one, or not known to be one.

    A target of KL says that it is Gaussian; a function of points, by the operations that it is made of.
    """
    if not structure.is_quadratic_but_for_its_parts:
        return None
    gradient, potential = torch.zeros_like(loc), torch.eye(len(loc)).to(loc) * 0
    interaction = torch.zeros_like(potential)
    for piece in structure.potentials:
        gaussian = as_gaussian(piece.law)
        if gaussian is not None:
            if gaussian.dim != len(loc):
                raise ValueError(f"the target lives in dimension {gaussian.dim}, the measure in dimension {len(loc)}")
            precision = torch.linalg.inv(gaussian.covariance_matrix.detach().to(loc))
            slope = precision @ (loc - gaussian.loc.detach().to(loc))
        elif is_quadratic(piece.function, loc[None]):
            slope, precision = _derivatives(piece.function, loc)
        else:
            return None
        gradient, potential = gradient + piece.weight * slope, potential + piece.weight * precision
    for pair in structure.interactions:
        if not is_quadratic(pair.kernel, loc[None]):
            return None
        interaction = interaction + pair.weight * _derivatives(pair.kernel, torch.zeros_like(loc))[1]
    return Quadratic(gradient, potential, interaction, structure.entropy)


def _derivatives(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient (d,) and the Hessian (d, d) of a function of points at one of them."""
    d = len(at)
    with torch.enable_grad():
        points = at.detach().expand(d, d).clone().requires_grad_()  # one row for each row of the Hessian
        value = function(points)
        if not value.requires_grad:
            return torch.zeros_like(at), torch.zeros(d, d).to(at)
        (slope,) = torch.autograd.grad(value.sum(), points, create_graph=True, materialize_grads=True)
        if not slope.requires_grad:
            return slope[0], torch.zeros(d, d).to(at)
        (hessian,) = torch.autograd.grad(slope.diagonal().sum(), points, materialize_grads=True)
    return slope[0].detach(), ((hessian + hessian.mT) / 2).detach()
