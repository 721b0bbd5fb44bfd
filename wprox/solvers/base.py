"""The abstract proximal solver and the step it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from wprox.functionals import Functional
from wprox.functionals.structure import apply
from wprox.maps import TransportMap
from wprox.measures import Measure

STEP_LIMIT = (
    "explicit steps are stable only for step_size < 2/L, L the Lipschitz constant of the gradient (the largest "
    "eigenvalue of ∇²V for a potential V); take a smaller step_size, or an implicit solver, which has no such limit"
)


@dataclass(frozen=True)
class Step:
    r"""One solved proximal problem, argmin_ρ F(ρ) + W₂²(μ, ρ)/(2γ).

    Attributes:
        measure: the new measure ρ.
        map: T with ρ = T#μ, where the solver works with maps.
        value: F(ρ); up to a constant where ρ's density is known only relative to μ's (`measure.is_relative`).
        transport_cost: E_μ|T(x) − x|², an upper bound of W₂²(μ, ρ) that is exact where T is optimal.
        step_size: γ.
        residual: the first-order error ε = ‖∇F(ρ) + (id − T⁻¹)/γ‖_{L²(ρ)}, where the solver knows it.
        converged: whether the solver met its own criterion.
        iterations: the number of inner iterations.
        seconds: the wall time.
        message: one sentence on how the solver ended.
        index: the number of the step in its trajectory, from 0.
        held_out: the held-out measure pushed by the same map, where one was given.
        interrupted: whether Ctrl-C ended the step early; the measure is then the best so far.
    """

    measure: Measure
    map: TransportMap | None
    value: Tensor
    transport_cost: Tensor
    step_size: float
    residual: float | None = None
    converged: bool = True
    iterations: int = 0
    seconds: float = 0.0
    message: str = ""
    index: int = 0
    held_out: Measure | None = None
    interrupted: bool = False


class StepFailedError(RuntimeError):
    """A step that could not be finished.

    Attributes:
        trajectory: what `jko` had computed before the step that failed.
    """

    trajectory: object = None


class Solver(ABC):
    """Solves one proximal step; every solver knows functionals and measures by their verbs only."""

    def prepare(self, measure: Measure) -> Measure:
        """The initial measure in the form in which this solver carries it along; called once, before the first step."""
        return measure

    def value(self, functional: Functional, measure: Measure) -> Tensor:
        """F(μ) of the initial measure, in the sense of `Step.value`."""
        return apply(functional, measure)

    @abstractmethod
    def step(
        self,
        functional: Functional,
        measure: Measure,
        step_size: float,
        *,
        previous: Step | None = None,
        held_out: Measure | None = None,
    ) -> Step:
        r"""argmin_ρ F(ρ) + W₂²(μ, ρ)/(2γ).

        Arguments:
            functional: F.
            measure: μ.
            step_size: γ > 0.
            previous: the step before this one in a trajectory; a solver may start from it.
            held_out: draws of μ that the solver does not train on; solvers without training ignore them.
        """
