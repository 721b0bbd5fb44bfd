"""The forward steps of a JKO sampler along the potential of its target, and the curvature that bounds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wprox._warnings import warn
from wprox.maps import GradientStepMap, InverseError
from wprox.maps._inverse import tolerance_of
from wprox.models.sampler.target import ScaledTarget, where


class ForwardStep(GradientStepMap):
    r"""T(u) = u + γ∇log g(u), the forward step along the potential −log g (Salim, Korba and Luise 2020).

    It follows the basins of attraction, so that modes keep what lies in theirs, and has nothing to train. It is
    injective while γ∇²(−log g) ≺ I, which bounds the curvature in wells only, not that of the ridges between them.
    Where that does not hold it folds space, and a warning says so: points there have a density that is too low, by
    that of their other preimages. `inverse` raises `InverseError` where it finds none.

    Arguments:
        dim: d.
        log_target: log g, (n, d) → (n,), twice differentiable in torch.
        step_size: γ.
        dtype: in which log g computes, whatever u has.
    """

    def __init__(
        self, dim: int, log_target: Callable[[Tensor], Tensor], step_size: float, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(dim, partial(_negative, log_target), step_size, tolerance=tolerance_of(None, dtype))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        images, log_dets, folded = [], [], 0
        for batch in x.split(self.batch_size):
            y, jacobian = self._expand(batch)
            images.append(y)
            log_dets.append(jacobian.slogdet().logabsdet)
            folded += int((torch.linalg.cholesky_ex(jacobian.detach()).info != 0).sum())
        if folded:
            warn(
                f"a forward step with γ = {self.step_size:.3g} folds space at {folded} of {len(x)} points, where the "
                "potential is curved more than at any draw in training; densities and weights there are wrong. Try "
                "more n_particles (all of which are looked at), fewer forward_steps, or an initial Gaussian that is "
                "less wide"
            )
        return torch.cat(images), torch.cat(log_dets)

    def inverse(self, y: Tensor) -> Tensor:
        try:
            return super().inverse(y)
        except InverseError as error:
            raise InverseError(
                "the density is not known at all of these points: at some a forward step along the potential has no "
                "inverse. It has one where the potential is curved no more than at the draws in training, and rounding "
                "can hide it far from them. Leave such points out, give the initial Gaussian (in whose dtype the "
                f"target computes) in float64 or less wide, or forward_steps=0 ({error})",
                error.residual,
            ) from None

    @property
    def config(self) -> dict[str, Any]:
        return {"step_size": self.step_size}


def _negative(f: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    return -f(u)


def forward_step(target: ScaledTarget, step_size: float) -> ForwardStep:
    """The forward step along −log g in the units of the chain."""
    return ForwardStep(target.dim, target.log_prob, step_size, target.units.dtype)


def greatest_curvature(target: ScaledTarget, u: Tensor) -> float:
    """The largest eigenvalue of ∇²(−log g) at points (n, d), in the units of the chain."""
    step, greatest = forward_step(target, 1.0), -math.inf
    for part in u.split(step.batch_size):
        jacobian = step.jacobian(part)
        bad = ~torch.isfinite(jacobian).flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(
                "the second derivatives of the target's log-density, which forward steps take, are not finite "
                f"{where(bad, target.to_x(part))}; torch.logaddexp is such where its arguments are far apart, and "
                "torch.logsumexp is not; else give forward_steps=0"
            )
        greatest = max(greatest, 1 - float(torch.linalg.eigvalsh(jacobian).min()))
    return greatest
