"""The Wasserstein gradient of a functional, checked: a value or gradient that is not finite names its term."""

from __future__ import annotations

import torch
from torch import Tensor

from wprox.functionals import Functional
from wprox.functionals.base import terms_of
from wprox.measures import Measure
from wprox.solvers.base import StepFailedError


def checked_gradient(functional: Functional, rho: Measure) -> Tensor:
    """∇_{W₂}F(ρ) at the points of ρ, (n, d).

    Raises:
        StepFailedError: where it is not finite; the message names the term of the sum and the first such point.
    """
    gradient = functional.wasserstein_gradient(rho)
    if not bool(torch.isfinite(gradient).all()):
        raise StepFailedError(non_finite(functional, rho))
    return gradient


def non_finite(functional: Functional, rho: Measure) -> str:
    """One sentence on which term of F has a value or gradient that is not finite at ρ, and at which point."""
    terms = terms_of(functional)
    for k, (_, term) in enumerate(terms):
        name = repr(term)
        if sum(repr(other) == name for _, other in terms) > 1:  # two potentials that are lambdas
            name = f"{name}, term {k + 1} of {len(terms)},"
        with torch.no_grad():
            value = term(rho)
        gradient = term.wasserstein_gradient(rho)
        rows = (~torch.isfinite(gradient)).any(1).nonzero()[:, 0]
        if len(rows):
            i = int(rows[0])
            return (
                f"the gradient of {name} is not finite at {len(rows)} of {len(rho)} points, the first being point "
                f"{i} at {_point(rho.points[i])}: keep the points away from its singularities, or make it smooth there"
            )
        if not bool(torch.isfinite(value).all()):
            return f"the value of {name} is {float(value):g}: the measure has left the domain of that functional"
    return f"the value or gradient of {functional!r} is not finite"


def _point(x: Tensor) -> str:
    shown = ", ".join(f"{v:.4g}" for v in x[:4].tolist())
    return f"({shown}{', …' if len(x) > 4 else ''})"
