"""Runge–Kutta schemes on [0, 1]: fixed partitions for training, adaptive steps of its own for every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor], Tensor]

# nodes c, rows of the matrix a, weights b (Hairer, Nørsett, Wanner, *Solving ordinary differential equations I*, II.1),
# and combinations of the slopes that vanish with the step, as does the difference of a scheme of lower order
SCHEMES: dict[str, tuple[list[float], list[list[float]], list[float], list[list[float]]]] = {
    "midpoint": ([0, 0.5], [[], [0.5]], [0, 1], [[1, -1]]),
    "heun": ([0, 1], [[], [1]], [0.5, 0.5], [[0.5, -0.5]]),
    "rk4": (
        [0, 0.5, 0.5, 1],
        [[], [0.5], [0, 0.5], [0, 0, 1]],
        [1 / 6, 1 / 3, 1 / 3, 1 / 6],
        [[1 / 6, -1 / 6, -1 / 6, 1 / 6], [0, 1 / 6, -1 / 6, 0]],
    ),
}

# Dormand and Prince (1980), of order 5 with an error estimate of order 4; the last row of the matrix holds the weights
_NODES = [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1]
_MATRIX = [
    [],
    [1 / 5],
    [3 / 40, 9 / 40],
    [44 / 45, -56 / 15, 32 / 9],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
]
_ERROR = [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40]
SMALLEST_STEP = 1e-7


def combine(x: Tensor, step: Tensor | float, coefficients: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """x + h Σ_j c_j k_j."""
    terms = [c * slope for c, slope in zip(coefficients, slopes, strict=False) if c]
    return x + step * sum(terms[1:], terms[0]) if terms else x


def stages(times: Sequence[float], method: str) -> list[float]:
    """Where `fixed` asks for the field."""
    nodes = SCHEMES[method][0]
    return [start + node * (end - start) for start, end in pairwise(times) for node in nodes]


def fixed(
    field: Callable[[float, Tensor], tuple[Tensor, ...]],
    x: Tensor,
    times: Sequence[float],
    method: str,
    with_error: bool = False,
) -> list[Tensor]:
    r"""x at the last of the times, from x at the first, and integrals along its path, one step between neighbours.

    Arguments:
        field: (t, x) → dx/dt, (n, d), and the integrands, (n,) each; t is one of the `stages`.
        with_error: whether the sum over the steps of the squares of h Σ_j e_j k_j is given last, (n,), with the slopes
            of x and of the first integral as k_j: it vanishes with the scheme's local errors.
    """
    _, matrix, weights, errors = SCHEMES[method]
    where = iter(stages(times, method))
    rates: list[tuple[Tensor, ...]] = []
    squares: list[Tensor] = []
    for start, end in pairwise(times):
        slopes: list[Tensor] = []
        for row in matrix:
            slope, *others = field(next(where), _move(x, end - start, row, slopes))
            slopes.append(slope)
            rates.append(tuple(others))
        x = _move(x, end - start, weights, slopes)
        if with_error:
            coefficients = (end - start) * x.new_tensor(errors)
            of_x = torch.tensordot(coefficients, torch.stack(slopes), 1)
            of_integral = torch.stack([first for first, *_ in rates[-len(slopes) :]], 1) @ coefficients.mT
            squares.append(of_x.square().sum((0, 2)) + of_integral.square().sum(1))
    each = x.new_tensor([(end - start) * weight for start, end in pairwise(times) for weight in weights])
    integrals = [torch.stack(rate, 1) @ each for rate in zip(*rates, strict=True)]
    return [x, *integrals, torch.stack(squares).sum(0)] if with_error else [x, *integrals]


def _move(x: Tensor, step: float, coefficients: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    for c, slope in zip(coefficients, slopes, strict=False):
        if c:
            x = torch.add(x, slope, alpha=step * c)
    return x


def adaptive(field: Field, y: Tensor, tolerance: float, first_step: float) -> Tensor:
    r"""y(1) from y(0) by Dormand and Prince's scheme, each row with steps of its own.

    A row's steps keep its estimated local error under tolerance · (1 + |y|) in every coordinate, so that its result
    does not depend on the other rows (torchdiffeq and scipy bound the error of all rows on average, by common steps).

    Arguments:
        field: (t: (m,), y: (m, k)) → dy/dt: (m, k), row by row.
        y: (n, k).

    Raises:
        FloatingPointError: where a row needs steps under 1e-7.
    """
    result, rows = y, torch.arange(len(y), device=y.device)
    t = y.new_zeros(len(y))
    step = torch.full_like(t, min(first_step, tolerance**0.2))
    slope = field(t, y)
    while len(rows):
        last = step >= 1 - t
        step = torch.where(last, 1 - t, step)
        h = step[:, None]
        slopes, new = [slope], y
        for node, row in zip(_NODES[1:], _MATRIX[1:], strict=True):
            new = combine(y, h, row, slopes)
            slopes.append(field(t + node * step, new))
        with torch.no_grad():
            error = combine(torch.zeros_like(y), h, _ERROR, slopes).abs()
            ratio = (error / (tolerance * (1 + torch.maximum(y.abs(), new.abs())))).amax(1)
            lost = ~y.isfinite().all(1)  # NaN goes through, for the caller to see
            ratio = torch.where(new.isfinite().all(1) | lost, ratio, torch.inf)
            good = ~(ratio > 1)
            # steps grow slowly: an estimate that vanishes by chance must not let a far longer step through
            factor = (0.9 * ratio.clamp(min=1e-10) ** -0.2).clamp(0.2, 1.5)
            done = (good & last) | lost
        if bool(good.all()):
            t, y, slope = t + step, new, slopes[-1]
        else:
            t = torch.where(good, t + step, t)
            y, slope = (torch.where(good[:, None], a, b) for a, b in ((new, y), (slopes[-1], slope)))
        step = step * factor
        if bool(done.any()):
            result = result.index_copy(0, rows[done], y[done])
            rows, t, y, slope, step = (part[~done] for part in (rows, t, y, slope, step))
        if len(rows) and float(step.min()) < SMALLEST_STEP:
            raise FloatingPointError(
                f"the flow needs steps of {float(step.min()):.1e} to meet its tolerance {tolerance:g} at t = "
                f"{float(t[step.argmin()]):.3f}; use float64, a larger tolerance or a smoother velocity"
            )
    return result
