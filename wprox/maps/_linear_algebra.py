"""What the maps with dense Jacobians share: log-determinants, bounds of norms, Newton's method and chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wprox.maps.base import InverseError

CHUNK_VALUES = 2**22  # numbers that an intermediate tensor may hold where no graph is kept
NEWTON_ITERATIONS = 200
TOLERANCE = {torch.float64: 1e-10}
LOW_PRECISION_TOLERANCE = 1e-4  # a sharp map is itself known no better in float32


class _LogDet(torch.autograd.Function):
    """log det of matrices with positive definite symmetric part, and its derivative, the inverse transposed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        factor, pivots, info = torch.linalg.lu_factor_ex(matrix)
        log_det = factor.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
        return log_det.masked_fill(info != 0, torch.nan), factor, pivots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Tensor:
        matrix, factor, pivots = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient that is to be differentiated again
            return grad[:, None, None] * torch.linalg.inv(matrix).mT
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device).expand_as(factor)
        return grad[:, None, None] * torch.linalg.lu_solve(factor, pivots, identity, adjoint=True)


def log_det(matrix: Tensor) -> Tensor:
    """log det of (n, d, d) matrices whose determinants are positive, (n,); NaN where one is not."""
    d = matrix.shape[-1]
    if d == 1:
        return matrix[:, 0, 0].log()
    if d == 2:
        a, b, c, d_ = matrix[:, 0, 0], matrix[:, 0, 1], matrix[:, 1, 0], matrix[:, 1, 1]
        return (a * d_ - b * c).log()
    return _LogDet.apply(matrix)[0]


class _SymmetricLogDet(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, factor: Tensor) -> Tensor:
        return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        matrix, factor = ctx.saved_tensors
        again = torch.is_grad_enabled()  # whether the gradient is to be differentiated
        return grad[:, None, None] * (torch.linalg.inv(matrix).mT if again else torch.cholesky_inverse(factor)), None


def symmetric_log_det(matrix: Tensor) -> Tensor:
    """log det of symmetric positive definite (n, d, d) matrices, (n,), by Cholesky factors: half the time of `log_det`.

    Where rounding has made one indefinite, it is `log_det` for all.
    """
    if matrix.shape[-1] <= 2:
        return log_det(matrix)
    factor, info = torch.linalg.cholesky_ex(matrix.detach())
    return log_det(matrix) if bool(info.any()) else _SymmetricLogDet.apply(matrix, factor)


def _schatten(weight: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
    """The Schatten norm and its derivative."""
    tiny = torch.finfo(weight.dtype).tiny
    scale = weight.flatten(1).norm(dim=1).clamp(min=tiny)[:, None, None]
    unit = weight / scale
    wide = unit.shape[1] < unit.shape[2]
    gram = unit @ unit.mT if wide else unit.mT @ unit
    power, log_scale = gram, gram.new_zeros(len(gram))
    for _ in range(squarings):
        power = power @ power
        size = power.flatten(1).norm(dim=1).clamp(min=tiny)
        power, log_scale = power / size[:, None, None], 2 * log_scale + size.log()
    trace = (power * gram).flatten(1).sum(1).clamp(min=tiny)
    norm = ((log_scale + trace.log()) / (2 ** (squarings + 1) + 2)).exp()
    derivative = (power @ unit if wide else unit @ power) * (norm / trace)[:, None, None]
    return norm * scale[:, 0, 0], derivative


class _SchattenNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, squarings: int) -> tuple[Tensor, Tensor]:
        return _schatten(weight, squarings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        weight, ctx.squarings = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(weight, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, None]:
        weight, derivative = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient that is to be differentiated again
            derivative = _schatten(weight, ctx.squarings)[1]
        return grad[:, None, None] * derivative, None


def spectral_bound(weight: Tensor, squarings: int = 8) -> Tensor:
    r"""An upper bound of the spectral norms of (b, m, n) matrices, (b,), tight to a factor of min(m, n)^(1/p).

    It is the Schatten norm with p = 2^(k+1) + 2 for k squarings, ‖W‖_p^p = tr (WᵀW)^(2^k) WᵀW: repeated squaring of the
    Gram matrix (Delattre, Barthélemy, Araujo and Allauzen, *Efficient bound of Lipschitz constant for convolutional
    layers by Gram iteration*, 2023) bounds from above, where the power iteration bounds from below. The derivative is
    W (WᵀW)^(2^k) / ‖W‖_p^(p−1).
    """
    return _SchattenNorm.apply(weight, squarings)[0]


def in_chunks(apply: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, row_values: int) -> tuple[Tensor, Tensor]:
    """apply(x), by chunks of rows where no graph is kept, so that `row_values` numbers a row stay bounded in memory."""
    rows = max(1, CHUNK_VALUES // row_values)
    if torch.is_grad_enabled() or len(x) <= rows:
        return apply(x)
    parts = [apply(chunk) for chunk in x.split(rows)]
    return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])


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
    """T⁻¹(y) = x with the derivatives that the implicit function theorem gives: one Newton step with a graph."""
    if not torch.is_grad_enabled():
        return x
    value, jacobian = evaluate(x)
    return x - torch.linalg.solve(jacobian.detach(), (value - y)[:, :, None])[:, :, 0]
