"""The certificate of a path of points: their law after each block of a flow on its way to N(0, I)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from wprox.functionals import KL
from wprox.measures import Particles
from wprox.measures.laws import standard_normal
from wprox.metrics import Distance, wasserstein
from wprox.theory.certificate import Certificate, certify
from wprox.theory.stein import stein_residual


def certify_path(
    path: Sequence[Tensor],
    step_sizes: Sequence[float],
    initial_w2: float | str | Distance,
    values: Sequence[float] | None,
    seed: int,
) -> Certificate:
    """What `wprox.certify` says of N steps of KL(· ‖ N(0, I)), of which each has taken independent draws to the next.

    Arguments:
        path: N + 1 tensors (n, d), row by row the way of one draw.
        step_sizes: γ_1, …, γ_N.
        initial_w2, values, seed: see `JKOFlow.certificate`.
    """
    errors = [
        stein_residual(before, after, lambda x: x, step_size, seed + k)
        for k, (before, after, step_size) in enumerate(zip(path[:-1], path[1:], step_sizes, strict=True))
    ]
    target = standard_normal(path[0])
    if isinstance(initial_w2, str):
        initial_w2 = wasserstein(Particles(path[0]), target, initial_w2, seed)
    return certify(functional=KL(target), step_sizes=step_sizes, residuals=errors, initial_w2=initial_w2, values=values)
