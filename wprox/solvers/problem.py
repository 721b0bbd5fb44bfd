"""The proximal problem that a solver is asked with, and what can be asked of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wprox._checks import as_values, check_count, check_positive
from wprox._sums import weighted_sum
from wprox.functionals.base import Functional, checked_value, require_functional, terms_of
from wprox.functionals.structure import Structure
from wprox.measures import DensityUnknownError, Measure
from wprox.measures.base import require_measure


class StepFailedError(RuntimeError):
    """A step that could not be finished.

    Arguments:
        message: why, and what to do.
        is_too_long: whether the message says already that the step size is beyond a limit.

    Attributes:
        index: the number of the step in its trajectory, where it is known.
        trajectory: what `jko` had computed before the step that failed.
    """

    def __init__(self, message: str, is_too_long: bool = False) -> None:
        super().__init__(message)
        self.is_too_long = is_too_long
        self.index: int | None = None
        self.trajectory: object = None


@dataclass(frozen=True)
class Problem:
    r"""argmin_ρ F(ρ) + W₂²(α, ρ)/(2γ), where the anchor α is the measure μ itself unless a scheme moves it.

    Attributes:
        functional: F.
        measure: μ, from where the step starts.
        step_size: γ.
        anchor: α, from where the transport cost counts; row by row the points of μ, where the solver moves points.
        held_out: draws of μ that a solver does not train on.
        index: the number of the step in its trajectory, from 0.

    Raises:
        TypeError: for what is no functional, and for a measure or an anchor that is none.
        ValueError: for a step size that is not positive, and an anchor of another size or other weights.

    Example:
        >>> import torch, wprox
        >>> F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2)
        >>> mu = wprox.Particles(torch.tensor([[3.0]]))
        >>> problem = wprox.Problem(F, mu, 0.5)
        >>> rho = mu.at(torch.tensor([[2.0]]))
        >>> problem.objective(rho, problem.cost(rho)), problem.residual(rho)  # the step: F + cost/2γ = 2 + 1
        (tensor(3.), 0.0)
    """

    functional: Functional
    measure: Measure
    step_size: float
    anchor: Measure = None  # type: ignore[assignment]
    held_out: Measure | None = None
    index: int = 0

    def __post_init__(self) -> None:
        require_functional(self.functional)
        require_measure(self.measure, "measure")
        if self.held_out is not None:
            dim = require_measure(self.held_out, "held_out").dim
            if dim != self.measure.dim:
                raise ValueError(f"held_out must be draws of the measure, in dimension {self.measure.dim}, got {dim}")
        check_count(self.index, "index", least=0)
        object.__setattr__(self, "step_size", check_positive(self.step_size, "step_size"))
        if self.anchor is None:
            object.__setattr__(self, "anchor", self.measure)
        elif self.anchor is not self.measure:
            self._check_anchor()

    def _check_anchor(self) -> None:
        require_measure(self.anchor, "anchor")
        if self.anchor.points.shape != self.measure.points.shape:
            raise ValueError(
                f"the anchor must have a point for each of the measure's, {tuple(self.measure.points.shape)}, got "
                f"{tuple(self.anchor.points.shape)}"
            )
        if self.measure.movable and not torch.allclose(self.anchor.weights, self.measure.weights):
            raise ValueError("the anchor must have the weights of the measure: its points are those of the measure")

    @cached_property
    def structure(self) -> Structure:
        """What F is made of."""
        return self.functional.structure()

    def value(self, rho: Measure) -> Tensor:
        """F(ρ), checked; see `wprox.functionals.base.checked_value`."""
        return checked_value(self.functional, rho)

    def cost(self, rho: Measure) -> Tensor:
        """Σ_i w_i |y_i − a_i|² for a measure at points y, row by row those of the anchor."""
        return weighted_sum(self.anchor.weights, (rho.points - self.anchor.points).square().sum(1))

    def objective(self, rho: Measure, cost: Tensor) -> Tensor:
        """F(ρ) + cost/(2γ)."""
        return self.functional(rho) + cost / (2 * self.step_size)

    def residual(self, rho: Measure, origins: Tensor | None = None) -> float | None:
        """‖∇F(ρ) + (id − T⁻¹)/γ‖ in L²(ρ), the first-order error; `None` where F cannot give its gradient.

        Arguments:
            rho: ρ.
            origins: T⁻¹ at the points of ρ, (n, d); the points of the anchor by default.
        """
        try:
            gradient = self.functional.wasserstein_gradient(rho)
        except (DensityUnknownError, NotImplementedError):
            return None
        origins = self.anchor.points if origins is None else origins
        error = gradient + (rho.points - origins) / self.step_size
        return math.sqrt(float(weighted_sum(rho.weights, error.square().sum(1))))

    def check_precision(self) -> None:
        """Raise `TypeError` where a potential at float64 points comes in lower precision, so that steps would stall."""
        x = self.measure.points[:1].detach().double()
        for piece in self.structure.potentials:
            with torch.no_grad():
                dtype = as_values(piece.function(x), x, piece.name).dtype
            if dtype != torch.float64:
                raise TypeError(
                    f"{piece.name} is {dtype} at float64 points: the solver computes in float64, "
                    "and its steps would stall at the coarser rounding; make the tensors, parameters and networks "
                    "inside it float64"
                )


def gradient_of(functional: Functional, rho: Measure) -> Tensor:
    """∇_{W₂}F(ρ) at the points of ρ, (n, d), checked.

    Raises:
        StepFailedError: where it is not finite; the message names the term of the sum and the first such point.
    """
    gradient = functional.wasserstein_gradient(rho)
    if not bool(torch.isfinite(gradient).all()):
        raise StepFailedError(non_finite(functional, rho))
    return gradient


def finite_value(functional: Functional, rho: Measure) -> Tensor:
    """F(ρ), checked.

    Raises:
        StepFailedError: where it is not finite; the message names the term of the sum.
    """
    value = checked_value(functional, rho)
    if not bool(torch.isfinite(value)):
        raise StepFailedError(non_finite(functional, rho))
    return value


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
