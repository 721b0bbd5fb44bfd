r"""The convergence theory of proximal steps in Wasserstein space, as functions of numbers.

From Cheng, Lu, Tan and Xie, *Convergence of flow-based generative models via proximal gradient descent in Wasserstein
space* (IEEE Trans. Inf. Theory 70(11), 2024; arXiv 2310.17582). G is λ-convex along generalised geodesics with λ > 0
and takes its minimum G* at q; step n has the step size γ_n and pushes p_{n−1} to p_n by T_n up to the first-order error

    ξ_n = ∇G(p_n) + (id − T_n⁻¹)/γ_n,     ‖ξ_n‖_{L²(p_n)} ≤ ε_n                                          (3)

in which ∇G is the Wasserstein gradient. Distances go in and come out as W₂, not squared. The numbers (1) to (7) that
docstrings cite are defined in docs/theory.md, which also goes from the paper to these functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from wprox._checks import as_numbers, check_count, check_memory, check_non_negative, check_number, check_positive


class StepBound(NamedTuple):
    """What is known after one step: W₂(p_n, q) ≤ `w2` and G(p_n) − G* ≤ `objective`."""

    w2: float
    objective: float


class MixedBound(NamedTuple):
    """The generated law is within W₂ ≤ `w2` of a q_0 with KL(p_0 ‖ q_0) ≤ `kl` and TV(p_0, q_0) ≤ `tv`."""

    w2: float
    kl: float
    tv: float


def contraction_factor(step_size: float, modulus: float) -> float:
    r"""(1 + γλ/2)⁻¹, by which one exact step shrinks W₂²(·, q): the factor of (4) and (5).

    Arguments:
        step_size: γ > 0.
        modulus: λ > 0.

    Raises:
        ValueError: where γ or λ is not positive.

    Example:
        >>> import wprox
        >>> wprox.theory.contraction_factor(2.0, 1.0)
        0.5
    """
    return 1 / (1 + check_positive(step_size, "step_size") * check_modulus(modulus) / 2)


def step_bound(w2: float, step_size: float, error: float, modulus: float) -> StepBound:
    r"""What one step makes of W₂(p_{n−1}, q), by

        (1 + γ_n λ/2) W₂²(p_n, q) + 2γ_n (G(p_n) − G*)  ≤  W₂²(p_{n−1}, q) + 2γ_n ε_n²/λ.                 (4)

    Both terms on the left are non-negative, so each is at most the right-hand side. (4) is convexity along the
    generalised geodesic based at p_{n−1}, then Young's inequality for the error.

    Arguments:
        w2: a bound of W₂(p_{n−1}, q).
        step_size: γ_n > 0.
        error: ε_n ≥ 0.
        modulus: λ > 0.

    Returns:
        Bounds of W₂(p_n, q) and of G(p_n) − G*.

    Example:
        >>> import wprox
        >>> wprox.theory.step_bound(1.0, 2.0, 0.0, 1.0)
        StepBound(w2=0.7071067811865476, objective=0.25)
    """
    factor = contraction_factor(step_size, modulus)
    w2, error = check_non_negative(w2, "w2"), check_non_negative(error, "error")
    right = w2 * w2 + 2 * step_size * (error * error) / modulus  # products become infinite where powers raise
    return StepBound(math.sqrt(factor * right), right / (2 * step_size))


def w2_bound(
    initial_w2: float,
    step_sizes: float | Sequence[float],
    errors: float | Sequence[float],
    modulus: float,
    n_steps: int | None = None,
) -> list[float]:
    r"""Bounds of W₂(p_0, q), …, W₂(p_n, q): (4) step by step.

    For constant γ and ε the bound is at most the closed form

        W₂²(p_n, q) ≤ (1 + γλ/2)^{−n} W₂²(p_0, q) + 4ε²/λ²,                                               (5)

    exponential down to the `plateau` 2ε/λ; the recursion gives (5) with 4ε²/λ² times 1 − (1 + γλ/2)^{−n}.

    Arguments:
        initial_w2: a bound of W₂(p_0, q).
        step_sizes: γ_1, …, γ_n, or one number for all steps.
        errors: ε_1, …, ε_n, or one number for all steps.
        modulus: λ > 0.
        n_steps: n, where step sizes and errors are both single numbers.

    Returns:
        n + 1 bounds.

    Raises:
        ValueError: where λ or a γ_n is not positive, an ε_n is negative, or the lengths do not agree.

    Example:
        >>> import wprox
        >>> [round(w2, 4) for w2 in wprox.theory.w2_bound(1.0, 2.0, 0.0, 1.0, n_steps=2)]
        [1.0, 0.7071, 0.5]
    """
    bounds = [check_non_negative(initial_w2, "initial_w2")]
    for step_size, error in _pairs(step_sizes, errors, n_steps):
        bounds.append(step_bound(bounds[-1], step_size, error, modulus).w2)
    return bounds


def objective_bound(
    initial_w2: float,
    step_sizes: float | Sequence[float],
    errors: float | Sequence[float],
    modulus: float,
    n_steps: int | None = None,
) -> list[float]:
    r"""Bounds of G(p_1) − G*, …, G(p_n) − G*, by (4) with the bounds of `w2_bound`:

        G(p_n) − G* ≤ W₂²(p_{n−1}, q)/(2γ_n) + ε_n²/λ.                                                    (6)

    For G = KL(· ‖ q), which has G* = 0, this bounds KL(p_n ‖ q); with exactly invertible blocks KL(p_n ‖ q) is
    KL(p_0 ‖ q_0), where q_0 is what sampling generates.

    Arguments:
        initial_w2: a bound of W₂(p_0, q).
        step_sizes: γ_1, …, γ_n, or one number for all steps.
        errors: ε_1, …, ε_n, or one number for all steps.
        modulus: λ > 0.
        n_steps: n, where step sizes and errors are both single numbers.

    Returns:
        n bounds, one a step.

    Example:
        >>> import wprox
        >>> wprox.theory.objective_bound(1.0, 2.0, 0.0, 1.0, n_steps=2)
        [0.25, 0.125]
    """
    w2, bounds = check_non_negative(initial_w2, "initial_w2"), []
    for step_size, error in _pairs(step_sizes, errors, n_steps):
        w2, objective = step_bound(w2, step_size, error, modulus)
        bounds.append(objective)
    return bounds


def plateau(error: float, modulus: float) -> float:
    r"""2ε/λ, where the bound (5) of W₂(p_n, q) levels off.

    It is within a factor two of the truth: an error of norm ε in one constant direction settles at W₂ = ε/λ.

    Example:
        >>> import wprox
        >>> wprox.theory.plateau(0.1, 1.0)
        0.2
    """
    return 2 * check_non_negative(error, "error") / check_modulus(modulus)


def steps_needed(error: float, initial_w2: float, step_size: float, modulus: float, target: float | None = None) -> int:
    r"""The number of steps n after which (5) and (6) guarantee G(p_n) − G* ≤ `target`.

    With constant γ and ε, (5) in (6) gives

        G(p_n) − G* ≤ (1 + γλ/2)^{−(n−1)} W₂²(p_0, q)/(2γ) + (2/(γλ) + 1) ε²/λ,

    so that n grows like log(1/ε). By default the target is the O(ε²) at which the first term equals ε²/(2γλ²), that is
    c ε² with c = (1 + 5/(2γλ))/λ.

    Arguments:
        error: ε ≥ 0.
        initial_w2: a bound of W₂(p_0, q).
        step_size: γ.
        modulus: λ > 0.
        target: the wanted bound of G − G*; c ε² by default.

    Raises:
        ValueError: where the target is not above the plateau (2/(γλ) + 1) ε²/λ, which no number of steps passes.

    Example:
        >>> import wprox
        >>> [wprox.theory.steps_needed(error, 1.0, 1.0, 1.0) for error in (1e-1, 1e-2, 1e-3)]
        [13, 24, 36]
    """
    step_size, modulus = check_positive(step_size, "step_size"), check_modulus(modulus)
    error, w2 = check_non_negative(error, "error"), check_non_negative(initial_w2, "initial_w2")
    floor = (2 / (step_size * modulus) + 1) * (error * error) / modulus
    target = (
        floor + error * error / (2 * step_size * modulus * modulus)
        if target is None
        else check_number(target, "target")
    )
    if not target > floor:
        raise ValueError(
            f"no number of steps brings the bound to {target:g}: with error {error:g} and step_size {step_size:g} it "
            f"levels off at {floor:g}; ask for more, or make the error of the steps smaller"
        )
    start = w2 * w2 / (2 * step_size)
    if not math.isfinite(start):
        raise ValueError(f"initial_w2 must have a square that is a number, got {w2:g}; change the units of length")
    if start <= target - floor:
        return 1
    rate = math.log1p(step_size * modulus / 2)  # −log of the factor, which itself rounds to 1 where γλ is tiny
    return 1 + math.ceil(math.log(start / (target - floor)) / rate)


def smoothing_bound(delta: float, second_moment: float, dim: int) -> float:
    r"""How far the smoothed law is from a law P that may have no density:

        x_δ = e^{−δ} x + √(1 − e^{−2δ}) z,     W₂²(P, P_δ) ≤ (1 − e^{−δ})² E|x|² + (1 − e^{−2δ}) d.

    The coupling of x with x_δ, z ~ N(0, I), has this cost (Cheng, Lu, Tan and Xie 2024, on data without a density).

    Arguments:
        delta: δ ≥ 0, the time of the Ornstein–Uhlenbeck process.
        second_moment: E|x|².
        dim: d.

    Returns:
        The bound of W₂(P, P_δ).

    Example:
        >>> import wprox
        >>> round(wprox.theory.smoothing_bound(0.01, second_moment=2.0, dim=2), 4)
        0.1996
    """
    delta, d = check_non_negative(delta, "delta"), check_count(dim, "dim")
    shrink = -math.expm1(-delta)
    return math.sqrt(shrink**2 * check_non_negative(second_moment, "second_moment") - math.expm1(-2 * delta) * d)


def inverse_bound(
    inverse_errors: float | Sequence[float], lipschitz: float | Sequence[float], n_steps: int | None = None
) -> float:
    r"""How far sampling with inexact inverses S_n ≈ T_n⁻¹ is from sampling with exact ones:

        W₂ ≤ Σ_n ε_inv,n Π_{j ≤ n} K_j,     ‖T_n∘S_n − id‖ ≤ ε_inv,n,  Lip(T_n⁻¹) ≤ K_n.

    S_n(x) and T_n⁻¹(x) differ by at most K_n ε_inv,n, and every block that follows, n − 1 down to 1, stretches the
    difference by its K_j (Cheng, Lu, Tan and Xie 2024, on inversion errors). With the KL bound of the exact sampler's
    law q_0 this is the mixed KL–W₂ guarantee: the generated law is within `inverse_bound` of a q_0 with
    KL(p_0 ‖ q_0) ≤ `objective_bound`.

    Arguments:
        inverse_errors: ε_inv,1, …, ε_inv,N, or one number for all blocks; in L² of the law that S_n is applied to.
        lipschitz: K_1, …, K_N, or one number for all blocks.
        n_steps: N, where both are single numbers.

    Example:
        >>> import wprox
        >>> round(wprox.theory.inverse_bound(0.001, [2.0, 1.5]), 6)  # 0.001 · (2 + 2 · 1.5)
        0.005
    """
    total, stretch = 0.0, 1.0
    for constant, error in _pairs(lipschitz, inverse_errors, n_steps, "lipschitz", "inverse_errors"):
        stretch *= constant
        total += error * stretch
    return total


def mixed_bound(
    initial_w2: float,
    step_sizes: float | Sequence[float],
    errors: float | Sequence[float],
    modulus: float,
    inverse_errors: float | Sequence[float],
    lipschitz: float | Sequence[float],
    n_steps: int | None = None,
) -> MixedBound:
    r"""The mixed KL–W₂ guarantee for G = KL(· ‖ q) and inexact inverses.

    The generated law lies within W₂ ≤ `w2` (by `inverse_bound`) of a law q_0 with KL(p_0 ‖ q_0) ≤ `kl` (by the last
    `objective_bound`) and TV(p_0, q_0) ≤ `tv` (by `pinsker`): Cheng, Lu, Tan and Xie 2024, on inversion errors.

    Arguments:
        initial_w2: a bound of W₂(p_0, q).
        step_sizes: γ_1, …, γ_N, or one number for all blocks.
        errors: ε_1, …, ε_N, or one number for all blocks.
        modulus: λ > 0.
        inverse_errors: ε_inv,1, …, ε_inv,N, or one number for all blocks.
        lipschitz: K_1, …, K_N, or one number for all blocks.
        n_steps: N ≥ 1, where all are single numbers.

    Example:
        >>> import wprox
        >>> wprox.theory.mixed_bound(1.0, 2.0, 0.0, 1.0, 0.001, [2.0, 1.5], n_steps=2)
        MixedBound(w2=0.005, kl=0.125, tv=0.25)
    """
    if n_steps is None:
        names = ("step_sizes", "errors", "inverse_errors", "lipschitz")
        given = zip((step_sizes, errors, inverse_errors, lipschitz), names, strict=True)
        step_sizes, errors, inverse_errors, lipschitz = many = [as_numbers(values, name) for values, name in given]
        n_steps = next((len(values) for values in many if isinstance(values, list)), None)
    objectives = objective_bound(initial_w2, step_sizes, errors, modulus, n_steps)
    if not objectives:
        raise ValueError("a mixed bound needs at least one block, got none")
    return MixedBound(inverse_bound(inverse_errors, lipschitz, n_steps), objectives[-1], pinsker(objectives[-1]))


def pinsker(kl: float) -> float:
    r"""TV ≤ √(KL/2) (Pinsker's inequality; TV is at most 1 in any case).

    Example:
        >>> import wprox
        >>> wprox.theory.pinsker(0.02)
        0.1
    """
    return min(1.0, math.sqrt(check_non_negative(kl, "kl") / 2))


def check_modulus(modulus: float | None) -> float:
    """λ as a number above zero, which the theory needs; a sentence where it is unknown or not positive."""
    if modulus is None:
        raise ValueError(
            "the modulus λ of the functional is unknown, and without it nothing can be certified; if you know that "
            "the functional is λ-convex along generalised geodesics, say so with modulus=λ"
        )
    value = check_number(modulus, "the modulus λ")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"the modulus λ must be positive and finite, got {value:g}: the steps of a functional that is not strongly "
            "convex need not converge exponentially, and nothing can be certified"
        )
    return value


def _pairs(
    sizes: float | Sequence[float],
    errors: float | Sequence[float],
    n_steps: int | None,
    size_name: str = "step_sizes",
    error_name: str = "errors",
) -> list[tuple[float, float]]:
    """The two quantities step by step, from sequences of one length or numbers for all steps."""
    first, second = as_numbers(sizes, size_name), as_numbers(errors, error_name)
    lengths = {len(values) for values in (first, second) if isinstance(values, list)}
    if n_steps is not None:
        lengths.add(check_count(n_steps, "n_steps", least=0))
    if len(lengths) != 1:
        what = "give n_steps" if not lengths else f"got lengths {sorted(lengths)}"
        raise ValueError(f"{size_name} and {error_name} must have one entry a step each, or be numbers: {what}")
    n = lengths.pop()
    check_memory(20 * n, f"bounds of {n} steps")
    repeated = [values if isinstance(values, list) else [values] * n for values in (first, second)]
    return [
        (check_positive(size, f"{size_name}[{k}]"), check_non_negative(error, f"{error_name}[{k}]"))
        for k, (size, error) in enumerate(zip(*repeated, strict=True))
    ]
