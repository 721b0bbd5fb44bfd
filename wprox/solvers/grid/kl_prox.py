"""KL proximal operators of local functionals: one equation a cell, in closed form where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEWTON_ITERATIONS = 300  # of the safeguarded Newton iteration; bisection alone needs about 60
LARGEST_RISE = 5.0  # of log ρ in one Newton step: U′ grows so fast that a longer one may overflow


def wright_omega(z: Tensor) -> Tensor:
    r"""The Wright omega function ω(z), the solution of ω + log ω = z, for real z: the Lambert W function of e^z.

    Fritsch, Shafer and Crowley's iteration (*Algorithm 443*, Commun. ACM 1973), whose error shrinks with the fourth
    power. Below −700 in float64 the value is e^z, which underflows to 0 without harm.

    Example:
        >>> wright_omega(torch.tensor([1.0]))
        tensor([1.])
    """
    large = torch.log(z.clamp(min=1.0))
    start_large = z - large + large / z.clamp(min=1.0)
    power = z.clamp(max=1.0).exp()
    start_small = power * (2 + power * (8 / 3)) / (2 + power * (14 / 3))  # a Padé approximant of W at 0, W(e) = 1
    omega = torch.where(z > 1, start_large, start_small)
    tiny = torch.finfo(z.dtype).tiny
    for _ in range(2):
        safe = omega.clamp(min=tiny)  # keeps the logarithm finite; tiny values are replaced below
        residual = z - safe - safe.log()
        shifted = 1 + safe
        base = 2 * shifted * (shifted + 2 * residual / 3)
        omega = safe * (1 + residual / shifted * (base - residual) / (base - 2 * residual))
    return torch.where(z < math.log(tiny) / 2, z.exp(), omega)


@dataclass
class LocalTerms:
    r"""F(ρ) = ∫ V ρ + e ∫ ρ log ρ + Σ_m c_m ∫ ρ^m/(m − 1) + Σ_j c_j ∫ U_j(ρ), with lower ≤ ρ ≤ upper.

    Its KL proximal operator ρ = argmin F(ρ) + (1/s) KL(ρ | q), with strength s = γ/ε, is one equation a cell for
    ℓ = log ρ, clipped to the bounds (each cell's problem is convex in one variable):

        A ℓ + s Σ_m c_m m/(m − 1) e^{(m−1)ℓ} + s Σ_j c_j U_j′(e^ℓ) = log q − s V − s e,      A = 1 + s e.

    With at most one power it has the closed form ℓ = R/A − ω(z)/(m − 1), z = log(s c m/A) + (m − 1) R/A, with the right
    side R and the Wright omega function ω; m = 2 is the Lambert W function of Peyré (2015, section 3.3). Otherwise it
    is solved by Newton's method, kept inside a bracket.

    Attributes:
        strength: s, γ over the entropic regularisation ε = blur².
        potential: (n,), V at the support points; infinite where no mass may be. `None` is 0.
        entropy: e; negative where 1 + s e stays positive.
        powers: c_m ≥ 0 by exponent m; numbers or (n,).
        energies: pairs (c_j, U_j), c_j ≥ 0 and U_j convex.
        lower, upper: (n,), bounds on the density.
    """

    strength: float
    potential: Tensor | None = None
    entropy: float = 0.0
    powers: dict[float, float | Tensor] = field(default_factory=dict)
    energies: list[tuple[float, Callable[[Tensor], Tensor]]] = field(default_factory=list)
    lower: Tensor | None = None
    upper: Tensor | None = None

    def prox(self, log_reference: Tensor) -> Tensor:
        """log ρ, (n,), from log q, (n,); both are densities."""
        s = self.strength
        curvature = 1 + s * self.entropy
        right = log_reference - s * self.entropy
        if self.potential is not None:
            right = right - s * self.potential
        right = right / curvature
        shut = right == -math.inf  # no mass where V = ∞ or q = 0, whatever the other terms
        right = right.masked_fill(shut, 0.0)
        if not self.powers and not self.energies:
            result = right
        elif len(self.powers) == 1 and not self.energies:
            ((m, weight),) = self.powers.items()
            slope = torch.as_tensor(s * m * weight / curvature, dtype=right.dtype, device=right.device)
            result = right - wright_omega(slope.log() + (m - 1) * right) / (m - 1)
        else:
            result = _newton(right, lambda value: self._slopes(value, curvature))
        if self.lower is not None:
            result = torch.maximum(result, self.lower.log())
        if self.upper is not None:
            result = torch.minimum(result, self.upper.log())
        return result.masked_fill(shut, -math.inf)

    def _slopes(self, log_density: Tensor, curvature: float) -> tuple[Tensor, Tensor]:
        """(s/A) Σ c U′(e^ℓ) and its derivative in ℓ."""
        scale = self.strength / curvature
        value, derivative = torch.zeros_like(log_density), torch.zeros_like(log_density)
        for m, weight in self.powers.items():
            power = scale * m * weight * ((m - 1) * log_density).exp()
            value, derivative = value + power / (m - 1), derivative + power
        if self.energies:
            with torch.enable_grad():
                ell = log_density.detach().requires_grad_()
                density = ell.exp()
                total = torch.stack([(weight * energy(density)).sum() for weight, energy in self.energies]).sum()
                (slope,) = torch.autograd.grad(total, density, create_graph=True)
                if slope.requires_grad:
                    (bend,) = torch.autograd.grad(slope.sum(), ell)
                    derivative = derivative + scale * bend
            value = value + scale * slope.detach()
        return value, derivative


def _newton(right: Tensor, slopes: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    r"""ℓ with ℓ + h(ℓ) = R and h increasing, by Newton's method inside a bracket that shrinks.

    ℓ + h(ℓ) grows at least as fast as ℓ, so that a value f there moves the bracket to between ℓ and ℓ − f.
    """
    ell = right.clamp(-LARGEST_RISE, LARGEST_RISE)  # only where to start
    low, high = torch.full_like(right, -math.inf), torch.full_like(right, math.inf)
    tolerance = 64 * torch.finfo(right.dtype).eps
    for _ in range(NEWTON_ITERATIONS):
        value, derivative = slopes(ell)
        excess = ell + value - right
        if not bool(torch.isfinite(excess).all()):
            raise ValueError(
                "U′(ρ) is not finite at some density between "
                f"{float(ell.exp().min()):.3g} and {float(ell.exp().max()):.3g}; the energy must be differentiable "
                "and convex on all positive densities"
            )
        above = excess > 0
        high, low = torch.where(above, ell, high), torch.where(above, low, ell)
        low = torch.where(above, torch.maximum(low, ell - excess), low)
        high = torch.where(above, high, torch.minimum(high, ell - excess))
        step = ell - excess / (1 + derivative.clamp(min=0.0))
        inside = (step >= low) & (step <= high)
        following = torch.minimum(torch.where(inside, step, (low + high) / 2), ell + LARGEST_RISE)
        change = (following - ell).abs()
        ell = following
        if bool((change <= tolerance * (1 + ell.abs())).all()):
            break
    return ell
