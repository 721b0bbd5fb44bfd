"""Inverses of maps with dense Jacobians: Newton's method, its tolerances and its derivative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wprox._autograd import differentiable_once
from wprox.maps.base import InverseError

NEWTON_ITERATIONS = 200
TOLERANCE = {torch.float64: 1e-10}
ONCE = (
    "inverses by Newton's method have first derivatives only; take a map whose inverse is a formula, such as "
    "wprox.SplineMap, or write what you need with the map itself: at x = T⁻¹(y) in place of y"
)
LOW_PRECISION_TOLERANCE = 1e-4  # a sharp map is itself known no better in float32


def tolerance_of(tolerance: float | None, dtype: torch.dtype) -> float:
    """The tolerance that was asked for, or that of the dtype."""
    return TOLERANCE.get(dtype, LOW_PRECISION_TOLERANCE) if tolerance is None else tolerance


def check_residual(residual: Tensor, y: Tensor, tolerance: float, name: str) -> None:
    """Raise `InverseError` where |T(x) − y| > tolerance · (1 + |y|) for a row, residual: (n,)."""
    relative = residual / (1 + y.norm(dim=1))
    if not bool((relative <= tolerance).all()):
        worst = float(relative.nan_to_num(nan=torch.inf).max())
        failed = int((~(relative <= tolerance)).sum())
        raise InverseError(
            f"the inverse of {name} has |T(x) − y| / (1 + |y|) up to {worst:.2g}, more than its tolerance "
            f"{tolerance:.2g}, at {failed} of {len(y)} points; raise tolerance, or invert in float64",
            worst,
        )


def newton_inverse(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor, tolerance: float, name: str
) -> Tensor:
    r"""The x with T(x) = y, by Newton's method with steps halved until |T(x) − y| falls.

    Where the singular values of ∇T are bounded away from 0 and ∞, as those of both callers are, it comes from anywhere.
    A row is finished at rounding error, or within the tolerance when a step no longer helps.

    Arguments:
        evaluate: x ↦ T(x), (n, d), and ∇T(x), (n, d, d).
        y: (n, d).
        tolerance: of |T(x) − y| / (1 + |y|).
        name: of the map, for the error.

    Raises:
        InverseError: where the tolerance is not met.
    """
    result, residual = y.clone(), torch.full_like(y[:, 0], torch.inf)
    rows = torch.arange(len(y), device=y.device)
    x, goal, scale = y.clone(), y, 1 + y.norm(dim=1)
    size, direction, length = residual.clone(), torch.zeros_like(y), torch.ones_like(residual)
    rounding = 8 * torch.finfo(y.dtype).eps
    for _ in range(NEWTON_ITERATIONS):
        trial = x - length[:, None] * direction
        value, jacobian = evaluate(trial)
        new_size = (value - goal).norm(dim=1)
        better = new_size < size
        helps = better | (size > tolerance * scale)
        x = torch.where(better[:, None], trial, x)
        size = torch.where(better, new_size, size)
        step = torch.linalg.solve_ex(jacobian, (value - goal)[:, :, None])[0][:, :, 0]
        direction = torch.where(better[:, None], step, direction)
        length = torch.where(better, (4 * length).clamp(max=1), length / 4)
        result[rows], residual[rows] = x, size
        going = helps & (size > rounding * scale)
        if not bool(going.any()):
            break
        if not bool(going.all()):
            rows, x, goal, scale, size = rows[going], x[going], goal[going], scale[going], size[going]
            direction, length = direction[going], length[going]
    check_residual(residual, y, tolerance, name)
    return result


def with_derivative(x: Tensor, evaluate: Callable[[Tensor], tuple[Tensor, Tensor]], y: Tensor) -> Tensor:
    """T⁻¹(y) = x with the derivatives that the implicit function theorem gives: one Newton step with a graph.

    These are the first ones; others are refused.
    """
    if not torch.is_grad_enabled():
        return x
    value, jacobian = evaluate(x)
    step = torch.linalg.solve(jacobian.detach(), (value - y)[:, :, None])[:, :, 0]
    return differentiable_once(x - step, ONCE)
