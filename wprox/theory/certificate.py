"""Certificates: the convergence theory held against a trajectory."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from wprox._checks import as_numbers, check_choice, check_finite_number, check_non_negative, described, is_several
from wprox._random import check_seed
from wprox.functionals import KL, Functional
from wprox.functionals.base import require_functional
from wprox.functionals.structure import Structure
from wprox.jko import Trajectory
from wprox.measures import Gaussian, Measure, Particles, Quantiles
from wprox.measures.laws import standard_normal
from wprox.metrics import Distance, Law, wasserstein
from wprox.solvers import QuantileProx, Step, StepFailedError
from wprox.theory import bounds
from wprox.theory.stein import StepError, stein_residual
from wprox.transport.squared import as_measure_like, exact_w2

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Certificate:
    r"""Bounds on a trajectory of proximal steps, by (4) of docs/theory.md step by step.

    Attributes:
        step_sizes: γ_1, …, γ_N.
        residuals: ε_1, …, ε_N as they enter the bounds.
        residuals_are: "as the solver computed them", "as given" or "estimates".
        modulus: λ.
        initial_w2: W₂(p_0, q), and how it is known.
        w2: N + 1 bounds of W₂(p_n, q), n = 0, …, N.
        objective: N bounds of G(p_n) − G*, n = 1, …, N.
        kl: the final bound of KL(p_N ‖ q), where G is KL to q up to a factor and a constant, else `None`.
        tv: the final bound of the total variation, by Pinsker's inequality, where `kl` is known.
        contributions: what the initial distance, the errors of earlier steps and the error of the last step add to
            the last objective bound.
        measured_w2: N + 1 values of W₂(p_n, q), where they can be computed.
        measured_objective: N values of G(p_n) − G*, where they are known.
        inverse_w2: how far inexact inverses take the generated law, where their errors were given.
    """

    step_sizes: list[float]
    residuals: list[float]
    residuals_are: str
    modulus: float
    initial_w2: Distance
    w2: list[float]
    objective: list[float]
    kl: float | None
    tv: float | None
    contributions: dict[str, float]
    measured_w2: list[float] | None = None
    measured_objective: list[float] | None = None
    inverse_w2: float | None = None

    @property
    def is_estimate(self) -> bool:
        """Whether an estimate entered, so that the bounds are estimates of bounds."""
        return self.residuals_are == "estimates" or self.initial_w2.kind == "estimate from samples"

    @property
    def dominant(self) -> str:
        """The largest contribution to the last objective bound."""
        return max(self.contributions, key=lambda name: self.contributions[name])

    @property
    def violations(self) -> list[int]:
        """The steps n = 1, …, N after which a measured value exceeds its bound: there ε_n or λ is not what was said."""
        pairs = []
        if self.measured_w2 is not None:
            pairs.append(list(zip(self.measured_w2[1:], self.w2[1:], strict=True)))
        if self.measured_objective is not None:
            pairs.append(list(zip(self.measured_objective, self.objective, strict=True)))
        return [n + 1 for n, values in enumerate(zip(*pairs, strict=True)) if any(_exceeds(*pair) for pair in values)]

    @property
    def holds(self) -> bool | None:
        """Whether no measured value exceeds its bound; `None` where nothing was measured."""
        if self.measured_w2 is None and self.measured_objective is None:
            return None
        return not self.violations

    @property
    def sentence(self) -> str:
        """The certificate in words."""
        n = len(self.step_sizes)
        parts = [f"After {n} steps W₂(p_{n}, q) ≤ {self.w2[-1]:.3g} and G(p_{n}) − G* ≤ {self.objective[-1]:.3g}"]
        if self.kl is not None and self.tv is not None:
            parts.append(f", so KL(p_{n} ‖ q) ≤ {self.kl:.3g} and the total variation is at most {self.tv:.3g}")
        share = self.contributions[self.dominant] / max(self.objective[-1], 1e-300)
        parts.append(f"; {share:.0%} of the bound is due to the {self.dominant}.")
        if self.inverse_w2 is not None:
            parts.append(f" Inexact inverses move the generated law by at most {self.inverse_w2:.3g} in W₂.")
        parts.append(f" W₂(p_0, q) is {_article(self.initial_w2.kind)}, the step errors are {self.residuals_are}")
        parts.append(": an estimate of a bound, not a proof." if self.is_estimate else ".")
        if self.violations:
            parts.append(
                f" The measured values exceed the bounds after step {self.violations[0]}: a step error is larger than "
                "reported, or the functional is less convex than its modulus says."
            )
        return "".join(parts)

    def __str__(self) -> str:
        return self.sentence

    def plot(self, axes: Sequence[Axes] | None = None) -> list[Axes]:
        """Draw the bounds of W₂² and of G − G*, with the measured values where there are any.

        Arguments:
            axes: two matplotlib axes; a new figure, `axes[0].figure`, where not given.
        """
        from wprox.plot.certificate import plot_certificate

        return plot_certificate(self, axes)


def certify(
    trajectory: Trajectory | Sequence[Step] | None = None,
    functional: Functional | None = None,
    *,
    step_sizes: float | Sequence[float] | None = None,
    residuals: str | float | Sequence[float | StepError] | None = None,
    modulus: float | None = None,
    initial_w2: float | str | Distance | None = None,
    minimiser: Law | None = None,
    minimum: float | None = None,
    values: Sequence[Any] | None = None,
    inverse_errors: float | Sequence[float] | None = None,
    lipschitz: float | Sequence[float] | None = None,
    seed: int = 0,
) -> Certificate:
    r"""Bounds of W₂(p_n, q) and G(p_n) − G* for a trajectory, from γ_n, ε_n, λ and W₂(p_0, q).

    The bounds are (4) of docs/theory.md, step by step (Cheng, Lu, Tan and Xie 2024). Where G is ∫ V dρ + β ∫ ρ log ρ
    in whatever form (KL(· ‖ q), normalised or not, is one with β = 1), G − G* = β KL(· ‖ q) exactly, and KL and total
    variation are bounded as well; q then is the Gibbs law exp(−V/β)/Z.

    Arguments:
        trajectory: what `jko` returned, or its steps; not needed where step sizes and residuals are given.
        functional: G; gives λ, and q and G* = 0 where it is KL to a normalised target.
        step_sizes: γ_n; those of the steps by default.
        residuals: ε_n: those of the steps by default; numbers; `StepError`s of `wprox.stein`, which enter as estimate
            plus two standard errors; or "critic", which trains a Stein critic a step on trajectories of particles.
        modulus: λ; that of the functional by default.
        initial_w2: W₂(p_0, q): a number that is not below it; "moments", the upper bound
            W₂² ≤ |m_p − m_q|² + tr Σ_p + tr Σ_q of independent coupling; "samples", an estimate by optimal transport
            between draws (POT). By default exact between Gaussians and on the line (up to the nodes for a given law of
            another kind), else "moments".
        minimiser: q, a measure or a torch distribution; KL's target by default. For Quantiles it is replaced, where the
            functional is given, by the minimiser among measures of as many nodes, which is what their steps approach.
        minimum: G*; G(q) where q is a measure of the same kind as those of the trajectory, 0 for KL to a normalised
            target.
        values: G(p_1), …, G(p_N) where you know them better than the steps do, to hold against the bounds.
        inverse_errors: ε_inv,n of the blocks' inverses, with `lipschitz`, for the mixed KL–W₂ guarantee.
        lipschitz: K_n ≥ Lip(T_n⁻¹).
        seed: of the critic and of draws.

    Raises:
        ValueError: where λ is unknown or not positive, a residual is missing or W₂(p_0, q) cannot be found out.

    Example:
        >>> import torch, wprox
        >>> target = wprox.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
        >>> start = wprox.Gaussian(torch.ones(2).double(), torch.eye(2).double())
        >>> trajectory = wprox.jko(wprox.KL(target), wprox.GaussianProx(), start, step_size=1.0, n_steps=10)
        >>> certificate = wprox.certify(trajectory, wprox.KL(target))
        >>> certificate.holds, round(certificate.kl, 3)
        (True, 0.026)
    """
    steps = _steps(trajectory)
    measures = list(trajectory.measures) if isinstance(trajectory, Trajectory) else []
    functional = None if functional is None else require_functional(functional)
    modulus = bounds.check_modulus(modulus if modulus is not None or functional is None else functional.modulus)
    structure = None if functional is None else functional.structure()
    check_seed(seed)
    sizes = _step_sizes(step_sizes, steps, residuals)
    values = _checked_values(values, len(sizes))
    errors, residuals_are = _residuals(residuals, steps, measures, structure, sizes, seed)
    minimiser = _minimiser(minimiser, functional, measures, modulus)
    distance = _initial_distance(initial_w2, measures, minimiser, seed)
    objective = bounds.objective_bound(distance.value, sizes, errors, modulus)
    entropy = structure.entropy if structure is not None and structure.is_gibbs else None
    kl = None if entropy is None else objective[-1] / entropy
    reference = _reference(minimiser, measures)
    return Certificate(
        step_sizes=sizes,
        residuals=errors,
        residuals_are=residuals_are,
        modulus=modulus,
        initial_w2=distance,
        w2=bounds.w2_bound(distance.value, sizes, errors, modulus),
        objective=objective,
        kl=kl,
        tv=None if kl is None else bounds.pinsker(kl),
        contributions=_contributions(distance.value, sizes, errors, modulus),
        measured_w2=None if reference is None else [exact_w2(rho, reference) for rho in measures],
        measured_objective=_measured_objective(values, steps, functional, structure, reference, minimum),
        inverse_w2=_inverse_w2(inverse_errors, lipschitz, len(sizes)),
    )


def certify_path(
    path: Sequence[Tensor],
    step_sizes: Sequence[float],
    initial_w2: float | str | Distance,
    values: Sequence[float] | None,
    seed: int,
) -> Certificate:
    """What `certify` says of N steps of KL(· ‖ N(0, I)), of which each has taken independent draws to the next.

    Arguments:
        path: N + 1 tensors (n, d), row by row the way of one draw.
        step_sizes: γ_1, …, γ_N.
        initial_w2, values, seed: see `JKOFlow.certificate`.
    """
    values = _checked_values(values, len(step_sizes))  # before critics are trained
    errors = [
        stein_residual(before, after, lambda x: x, step_size, seed + k)
        for k, (before, after, step_size) in enumerate(zip(path[:-1], path[1:], step_sizes, strict=True))
    ]
    target = standard_normal(path[0])
    if isinstance(initial_w2, str):
        initial_w2 = wasserstein(Particles(path[0]), target, initial_w2, seed)
    return certify(functional=KL(target), step_sizes=step_sizes, residuals=errors, initial_w2=initial_w2, values=values)


def _steps(trajectory: Trajectory | Sequence[Step] | None) -> list[Step]:
    if trajectory is None:
        return []
    given = trajectory.steps if isinstance(trajectory, Trajectory) else trajectory
    steps = list(given) if is_several(given) else None
    if steps is None or not all(isinstance(step, Step) for step in steps):
        raise TypeError(f"trajectory must be a wprox.Trajectory, or a list of its steps, got {described(trajectory)}")
    return steps


def _step_sizes(given: float | Sequence[float] | None, steps: list[Step], residuals: object) -> list[float]:
    if given is None:
        sizes = [step.step_size for step in steps]
    else:
        numbers = as_numbers(given, "step_sizes")
        count = len(residuals) if isinstance(residuals, Sized) and not isinstance(residuals, str | StepError) else 0
        sizes = numbers if isinstance(numbers, list) else [numbers] * (len(steps) or count)
    if not sizes:
        raise ValueError("there are no steps to certify: give a trajectory of at least one step, or step_sizes")
    if steps and len(sizes) != len(steps):
        raise ValueError(f"step_sizes has {len(sizes)} entries for {len(steps)} steps; give one a step")
    return sizes


def _residuals(
    given: str | float | Sequence[float | StepError] | None,
    steps: list[Step],
    measures: list[Measure],
    structure: Structure | None,
    sizes: list[float],
    seed: int,
) -> tuple[list[float], str]:
    if isinstance(given, str):
        if given != "critic":
            raise ValueError(f'residuals must be numbers or "critic", one number a step, got {described(given)}')
        given = _critics(measures, structure, sizes, seed)
    if given is None:
        unknown = [k for k, step in enumerate(steps) if step.residual is None]
        if unknown or not steps:
            raise ValueError(
                f"the error of step {unknown[0] if unknown else 0} is unknown: its solver does not compute "
                'Step.residual, so that nothing can be certified; give residuals=[...], or residuals="critic" for '
                "an estimate from particles"
            )
        return [float(step.residual) for step in steps if step.residual is not None], "as the solver computed them"
    several: list[Any] = list(given) if is_several(given) and not isinstance(given, StepError) else [given] * len(sizes)
    estimated = any(isinstance(value, StepError) for value in several)
    errors = [
        value.estimate + 2 * value.standard_error
        if isinstance(value, StepError)
        else check_non_negative(value, f"residuals[{k}]")
        for k, value in enumerate(several)
    ]
    if len(errors) != len(sizes):
        raise ValueError(f"residuals has {len(errors)} entries for {len(sizes)} steps; give one a step")
    return errors, "estimates" if estimated else "as given"


def _critics(measures: list[Measure], structure: Structure | None, sizes: list[float], seed: int) -> list[StepError]:
    """A Stein critic a step, for trajectories of equally weighted particles."""
    if structure is None or not (structure.is_gibbs or _is_potential(structure)):
        raise ValueError(
            'residuals="critic" needs the functional, and it must be a sum of PotentialEnergy, Entropy and KL; for '
            "others give residuals=[...]"
        )
    pairs = list(zip(measures[:-1], measures[1:], sizes, strict=True)) if measures else []
    if not pairs or any(not isinstance(rho, Particles) or float(rho.weights.std()) > 1e-9 for rho in measures):
        raise ValueError('residuals="critic" needs a Trajectory of Particles with equal weights; resample them first')
    return [
        stein_residual(before.points, after.points, structure.potential_gradient, size, seed + k, structure.entropy)
        for k, (before, after, size) in enumerate(pairs)
    ]


def _is_potential(structure: Structure) -> bool:
    """Whether F is a potential energy."""
    return structure.is_smooth and not structure.interactions


def _minimiser(given: Law | None, functional: Functional | None, measures: list[Measure], modulus: float) -> Law | None:
    """q: on the line the minimiser among the measures of as many nodes, elsewhere what is given or a KL's target.

    The bounds hold for the problem that is solved, which on the line is the one in the nodes: a law differs from it by
    its distance to the nearest nodes, which is no error of the steps.
    """
    if given is not None and not isinstance(given, Measure | Distribution):
        raise TypeError(f"minimiser must be a wprox measure or a torch Distribution, got {described(given)}")
    if given is not None and measures:
        dim = given.dim if isinstance(given, Measure) else given.event_shape.numel()
        if dim != measures[0].dim:
            raise ValueError(f"the minimiser lives in dimension {dim}, the measures in dimension {measures[0].dim}")
    if functional is None:
        return given
    if measures and isinstance(measures[-1], Quantiles):
        # the prox of an endless step; the pull of the start is 1e-9 of what a step of length 1/λ would leave
        try:
            step = QuantileProx(iterations=1000).step(functional, measures[-1], 1e9 / modulus)
        except StepFailedError:
            return given
        return step.measure if step.converged else given  # an atom is the limit of nodes, and never reached
    return functional.structure().law if given is None else given


def _reference(minimiser: Law | None, measures: list[Measure]) -> Measure | None:
    """q as a measure of the trajectory's kind; `None` where W₂(p_n, q) would be known up to the nodes only."""
    if minimiser is None or not measures:
        return None
    if isinstance(measures[0], Quantiles) and not isinstance(minimiser, Quantiles):
        return None
    return as_measure_like(minimiser, measures[0])


def _initial_distance(
    given: float | str | Distance | None, measures: list[Measure], minimiser: Law | None, seed: int
) -> Distance:
    if isinstance(given, Distance):
        return given
    if given is not None and not isinstance(given, str):
        return Distance(check_non_negative(given, "initial_w2"), "given")
    check_choice(given, "initial_w2", (None, "exact", "moments", "samples"))
    if not measures or minimiser is None:
        missing = "the minimiser q is unknown" if minimiser is None else "the initial measure p_0 is unknown"
        raise ValueError(
            f"W₂(p_0, q) cannot be found out, because {missing}: give initial_w2 as a number that is not below it"
            + (", or minimiser=q" if minimiser is None else ", or a Trajectory, which holds p_0")
        )
    return wasserstein(measures[0], minimiser, given, seed)


def _measured_objective(
    values: Sequence[Any] | None,
    steps: list[Step],
    functional: Functional | None,
    structure: Structure | None,
    reference: Measure | None,
    minimum: float | None,
) -> list[float] | None:
    """G(p_n) − G* where both are known: not from particles whose density is known up to a constant only."""
    minimum = None if minimum is None else check_finite_number(minimum, "minimum")
    if minimum is None and functional is not None and reference is not None:
        with torch.no_grad():
            minimum = float(functional(reference.to(torch.float64) if isinstance(reference, Gaussian) else reference))
    if minimum is None and structure is not None and structure.law is not None:
        minimum = 0.0
    relative = any(isinstance(step.measure, Particles) and step.measure.is_relative for step in steps)
    if values is None and steps and not relative:
        with torch.no_grad():  # the value of a float32 step is rounded more coarsely than the bounds
            values = [
                functional(step.measure.to(torch.float64))
                if functional is not None and isinstance(step.measure, Gaussian)
                else step.value
                for step in steps
            ]
    if values is None or minimum is None:
        return None
    return [float(value) - minimum for value in values]


def _checked_values(values: Any, count: int) -> list[float] | None:
    """G(p_1), …, G(p_N), one a step."""
    if values is None:
        return None
    numbers = as_numbers(values, "values")
    if not isinstance(numbers, list) or len(numbers) != count:
        entries = len(numbers) if isinstance(numbers, list) else 1
        raise ValueError(f"values has {entries} entries for {count} steps; give G(p_n) after each step")
    return numbers


def _contributions(w2: float, sizes: list[float], errors: list[float], modulus: float) -> dict[str, float]:
    """The last bound of (6) in docs/theory.md by its sources; (4) is linear in W₂²(p_0, q) and in the ε_n²."""
    silent = [0.0] * len(errors)
    return {
        "initial distance": bounds.objective_bound(w2, sizes, silent, modulus)[-1],
        "errors of earlier steps": bounds.objective_bound(0.0, sizes, [*errors[:-1], 0.0], modulus)[-1],
        "error of the last step": bounds.objective_bound(0.0, sizes, [*silent[:-1], errors[-1]], modulus)[-1],
    }


def _inverse_w2(
    errors: float | Sequence[float] | None, lipschitz: float | Sequence[float] | None, count: int
) -> float | None:
    if errors is None and lipschitz is None:
        return None
    if errors is None or lipschitz is None:
        raise ValueError("the mixed KL–W₂ guarantee needs both inverse_errors and lipschitz, got one of them")
    return bounds.inverse_bound(errors, lipschitz, count)


def _exceeds(measured: float, bound: float) -> bool:
    """Whether a measured value is above its bound by more than rounding."""
    return measured > bound * (1 + 1e-9) + 1e-12


def _article(kind: str) -> str:
    return {"given": "as given"}.get(kind, kind if kind.startswith("exact") else f"an {kind}")
