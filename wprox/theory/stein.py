"""The first-order error of a step whose densities are unknown, by a Stein critic."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wprox._checks import (
    as_points,
    as_values,
    check_count,
    check_function,
    check_memory,
    check_non_negative,
    check_positive,
)
from wprox._random import make_generator

BATCH = 8192  # rows of features formed at once
RIDGES = (math.inf, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4)


class StepError(NamedTuple):
    """An estimate of a step's first-order error ε, with its standard error.

    Attributes:
        estimate: √ of the mean of ⟨v, φ⟩ − β div φ over unseen points; 0 where that mean is negative.
        standard_error: how much larger ε would be if that mean were one standard error larger.
    """

    estimate: float
    standard_error: float


def stein_residual(
    points_before: Any,
    points_after: Any,
    grad_potential: Callable[[Tensor], Tensor],
    step_size: float,
    seed: int = 0,
    entropy_weight: float = 1.0,
    features: int = 400,
) -> StepError:
    r"""Estimate ε = ‖ξ‖ of a step for G(ρ) = ∫ V dρ + β ∫ ρ log ρ from samples alone; for KL(· ‖ π), V = −log π, β = 1.

    The first-order error ξ = v + β ∇log p, with v(x) = ∇V(x) + (x − T⁻¹(x))/γ, has the unknown score ∇log p of the new
    law. By integration by parts it disappears (Cheng, Lu, Tan and Xie 2024; Hyvärinen, JMLR 6, 2005):

        ε² = sup_φ E_p[2⟨v, φ⟩ − 2β div φ − |φ|²],     attained at φ = ξ.                                   (7)

    in the numbering of docs/theory.md. The critic φ is an affine field plus random Fourier features (Rahimi and Recht,
    NeurIPS 2007) at several length scales, in whitened coordinates, so that (7) is a linear system and div φ is exact
    in every dimension. It is fitted on one half of the rows; a further split there decides whether the features help,
    and under which ridge penalty. The other half, which it has not seen, gives E_p[⟨v, φ⟩ − β div φ] = E_p⟨ξ, φ⟩: this
    is (7) at the maximum, where |φ|² = ⟨ξ, φ⟩, and unlike (7) itself it is not lowered by the noise |φ − ξ|² of the
    fit. Then the halves change places, and both results are averaged.

    The result is an estimate and not a bound: a critic that misses a part of ξ does not see that part of ε, and below
    about √(d²/n) times the size of ∇log p noise hides everything.

    Arguments:
        points_before: (n, d), draws of p_{n−1}; independent rows that the map was not trained on, if there are any.
        points_after: (n, d), their images under T_n, row by row.
        grad_potential: ∇V, maps (n, d) to (n, d).
        step_size: γ > 0.
        seed: of the split and of the features.
        entropy_weight: β ≥ 0.
        features: the number of random Fourier features.

    Returns:
        The estimate and its standard error.

    Raises:
        ValueError: for points of two shapes, fewer than 40 rows, or a `grad_potential` of the wrong shape.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0))
        >>> after = x + 0.1  # for KL(· ‖ N(0, 1)) from N(0, 1), a shift by 0.1 at γ = 1 has ε = 0.1 + 0.1/γ
        >>> round(wprox.stein.stein_residual(x, after, lambda x: x, 1.0).estimate, 1)
        0.2
    """
    given = as_points(points_after, "points_after").detach()
    after = given.double()
    before = as_points(points_before, "points_before", dim=after.shape[1]).detach().to(after)
    if before.shape != after.shape:
        raise ValueError(f"points_before and points_after must match row by row, got {len(before)} and {len(after)}")
    n = len(after)
    if n < 40:
        raise ValueError(f"the Stein critic needs at least 40 points to fit and evaluate on, got {n}")
    step_size = check_positive(step_size, "step_size")
    entropy_weight = check_non_negative(entropy_weight, "entropy_weight")
    check_function(grad_potential, "grad_potential")
    slope = as_values(grad_potential(given), given, "grad_potential").detach().to(after)
    if slope.shape != after.shape:
        raise ValueError(f"grad_potential must map {tuple(after.shape)} to its own shape, got {tuple(slope.shape)}")
    field = slope + (after - before) / step_size
    generator = make_generator(seed)
    order = torch.randperm(n, generator=generator).to(after.device)
    halves = [(after[rows], field[rows]) for rows in (order[: n // 2], order[n // 2 :])]
    check_memory(4 * n * check_count(features, "features"), f"{features} features of {n} points")
    terms = []
    for (fit_x, fit_field), (x, unseen_field) in (halves, reversed(halves)):
        basis = _Basis.make(fit_x, features, generator)
        critic = _fit(basis, fit_x, fit_field, entropy_weight)
        terms.append(_evaluate(basis, critic, x, unseen_field, entropy_weight)[0])
    values = torch.cat(terms)
    # twice, because the mean is quadratic in two independent halves, each as noisy as the other
    squared, error = float(values.mean()), 2 * float(values.std()) / math.sqrt(n)
    if not math.isfinite(squared + error):
        raise ValueError("the points, the gradients or the weight of the entropy are so large that ε² is not a number")
    estimate = math.sqrt(max(squared, 0.0))
    return StepError(estimate, math.sqrt(max(squared, 0.0) + error) - estimate)


@dataclass(frozen=True)
class _Basis:
    """Functions ψ_k: 1, the whitened coordinates u = (x − m) Wᵀ, and cos(⟨ω_k, u⟩ + c_k)."""

    mean: Tensor
    whitening: Tensor
    frequencies: Tensor
    phases: Tensor

    @classmethod
    def make(cls, points: Tensor, count: int, generator: torch.Generator) -> _Basis:
        d = points.shape[1]
        mean = points.mean(0)
        centred = points - mean
        variances, axes = torch.linalg.eigh(centred.mT @ centred / len(points))
        if not float(variances[0]) > 1e-12 * float(variances[-1]):
            raise ValueError("points_after lie in a plane: they have no density, so that ∇ log p does not exist")
        octaves = torch.randint(-1, 4, (count,), generator=generator)
        directions = torch.randn(count, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
        return cls(
            mean,
            (axes / variances.sqrt()).mT,
            (directions * 2.0 ** octaves[:, None]).to(points),
            (2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)).to(points),
        )

    @property
    def penalty(self) -> Tensor:
        """|ω_k|², which prefers smooth critics; the affine part is free."""
        return torch.cat((self.mean.new_zeros(1 + len(self.mean)), self.frequencies.square().sum(1)))

    def values(self, x: Tensor) -> Tensor:
        """ψ_k(x), (n, K)."""
        u = (x - self.mean) @ self.whitening.mT
        return torch.cat((u.new_ones(len(u), 1), u, torch.cos(u @ self.frequencies.mT + self.phases)), 1)

    def divergence(self, critic: Tensor, x: Tensor) -> Tensor:
        """div φ of φ_j = Σ_k θ_kj ψ_k, (n,): Σ_k ⟨∇ψ_k, θ_k⟩."""
        d = x.shape[1]
        u = (x - self.mean) @ self.whitening.mT
        along = ((self.frequencies @ self.whitening) * critic[1 + d :]).sum(1)
        return (self.whitening * critic[1 : 1 + d]).sum() - torch.sin(u @ self.frequencies.mT + self.phases) @ along

    def mean_gradients(self, x: Tensor) -> Tensor:
        """The sum of ∇ψ_k over the points, (K, d)."""
        u = (x - self.mean) @ self.whitening.mT
        slopes = torch.sin(u @ self.frequencies.mT + self.phases).sum(0)
        return torch.cat(
            (
                x.new_zeros(1, x.shape[1]),
                len(x) * self.whitening,
                -slopes[:, None] * (self.frequencies @ self.whitening),
            )
        )


def _normal_equations(basis: _Basis, x: Tensor, field: Tensor, entropy_weight: float) -> tuple[Tensor, Tensor]:
    """E ψψᵀ, (K, K), and E[ψ vᵀ − β ∇ψ], (K, d): the critic solves the one against the other."""
    size = len(basis.penalty)
    gram, right = x.new_zeros(size, size), x.new_zeros(size, x.shape[1])
    for points, part in zip(x.split(BATCH), field.split(BATCH), strict=True):
        values = basis.values(points)
        gram += values.mT @ values
        right += values.mT @ part - entropy_weight * basis.mean_gradients(points)
    return gram / len(x), right / len(x)


def _solve(basis: _Basis, gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """The coefficients (K, d) for a ridge penalty; an infinite one leaves the affine critic."""
    critic = torch.zeros_like(right)
    kept = 1 + right.shape[1] if math.isinf(ridge) else len(right)
    system = gram[:kept, :kept]
    if not math.isinf(ridge):
        system = system + ridge * torch.diag(basis.penalty)
    # 1e-9 keeps a system solvable in which features of low frequency are nearly affine
    critic[:kept] = torch.linalg.solve(system + 1e-9 * torch.eye(kept).to(system), right[:kept])
    return critic


def _fit(basis: _Basis, x: Tensor, field: Tensor, entropy_weight: float) -> Tensor:
    """The critic with the ridge penalty that does best on a third of the points that its fit has not seen.

    Features are used only where they beat the affine critic by more than the standard error of the difference.
    """
    cut = 2 * len(x) // 3
    system = _normal_equations(basis, x[:cut], field[:cut], entropy_weight)
    baseline: Tensor | None = None
    best, best_ridge = 0.0, math.inf
    for ridge in RIDGES:
        linear, square = _evaluate(basis, _solve(basis, *system, ridge), x[cut:], field[cut:], entropy_weight)
        score = 2 * linear - square
        baseline = score if baseline is None else baseline  # the first ridge is infinite: the affine critic
        gain = score - baseline
        sure = float(gain.mean()) - float(gain.std()) / math.sqrt(len(gain))
        if sure > best:
            best, best_ridge = sure, ridge
    return _solve(basis, *_normal_equations(basis, x, field, entropy_weight), best_ridge)


def _evaluate(basis: _Basis, critic: Tensor, x: Tensor, field: Tensor, entropy_weight: float) -> tuple[Tensor, Tensor]:
    """⟨v, φ⟩ − β div φ and |φ|² at the points, (n,) each."""
    linear, square = [], []
    for points, part in zip(x.split(BATCH), field.split(BATCH), strict=True):
        value = basis.values(points) @ critic
        linear.append((part * value).sum(1) - entropy_weight * basis.divergence(critic, points))
        square.append(value.square().sum(1))
    return torch.cat(linear), torch.cat(square)
