"""Measures as weighted points: what transport plans run between."""

from __future__ import annotations

from torch import Tensor

from wprox.measures import Gaussian, Measure


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


def by_weights(weights: Tensor, potential: Tensor) -> Tensor:
    """0, with the derivative φ − ∫ φ dρ in the weights of ρ."""
    potential = potential.detach() - weights.detach() @ potential.detach()
    return (weights - weights.detach()) @ potential


NO_SECOND = (
    "where weights want a gradient, W₂ has no second derivatives: how Kantorovich's potentials change is not known; "
    "take weights that want none, or the Sinkhorn divergence, which has all of them"
)
