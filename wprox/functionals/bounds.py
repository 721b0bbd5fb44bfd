"""Bounds on the density: functionals that are 0 inside a convex set and infinite outside."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wprox._checks import check_non_negative, check_number, described, evaluate
from wprox.functionals.base import Functional
from wprox.functionals.structure import Bounds, Structure
from wprox.measures import Measure

Bound = float | Callable[[Tensor], Tensor]


class DensityBounds(Functional):
    r"""F(ρ) = 0 where lower ≤ ρ ≤ upper almost everywhere, ∞ otherwise: a box constraint on the density.

    `SinkhornProx` keeps to it exactly: its KL proximal operator clips (Peyré 2015, section 3.3). Solvers that follow
    gradients cannot: the value has none.

    Arguments:
        lower: a number or a function of points (n, d) → (n,), not negative.
        upper: likewise, above `lower`.
        tolerance: the excess, relative to the bound, that the value still counts as inside.

    Example:
        >>> import wprox
        >>> rho = wprox.Grid([1.0, 3.0], bounds=[(0.0, 1.0)])
        >>> wprox.DensityBounds(0.25, 2.0)(rho), wprox.DensityBounds(1.0, 2.0)(rho)
        (tensor(0.), tensor(inf))
    """

    def __init__(self, lower: Bound = 0.0, upper: Bound = math.inf, tolerance: float = 1e-3) -> None:
        self.lower, self.upper = _bound(lower, "lower"), _bound(upper, "upper")
        self.tolerance = check_non_negative(tolerance, "tolerance")
        if isinstance(self.lower, float) and isinstance(self.upper, float) and not self.lower < self.upper:
            raise ValueError(f"lower must be below upper, got {self.lower:g} and {self.upper:g}")

    def bounds_at(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The lower and the upper bound at points (n, d), each (n,).

        Raises:
            ValueError: where a bound is negative or NaN, or the lower one exceeds the upper one.
        """
        lower, upper = _at(self.lower, points, "lower"), _at(self.upper, points, "upper")
        if not bool((lower >= 0).all()) or not bool((upper >= lower).all()):
            raise ValueError(
                "the bounds must satisfy 0 ≤ lower ≤ upper at every point; the smallest lower bound is "
                f"{float(lower.min()):g} and the smallest gap upper − lower {float((upper - lower).min()):g}"
            )
        return lower, upper

    def __call__(self, rho: Measure) -> Tensor:
        lower, upper = self.bounds_at(rho.points)
        density = rho.log_density().exp()
        inside = (density <= upper * (1 + self.tolerance)) & (density >= lower * (1 - self.tolerance))
        return density.new_tensor(0.0 if bool(inside.all()) else math.inf)

    def structure(self) -> Structure:
        return Structure(bounds=(Bounds(1.0, self.bounds_at, self),))

    def needs_density(self, rho: Measure) -> bool:
        return True

    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError(f"{self!r} is 0 or ∞, and has no first variation; SinkhornProx keeps to it exactly")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lower={_shown(self.lower)}, upper={_shown(self.upper)})"


class Congestion(DensityBounds):
    r"""F(ρ) = 0 where ρ ≤ max_density almost everywhere, ∞ otherwise: hard congestion.

    With a potential it is the crowd motion model of Maury, Roudneff-Chupin and Santambrogio (2010): people go downhill
    as fast as the bound on their density lets them. Geodesically convex (their section 3.1), so `modulus` is 0.

    Arguments:
        max_density: a number or a function of points (n, d) → (n,), positive.
        tolerance: the excess, relative to the bound, that the value still counts as inside.

    Example:
        >>> import wprox
        >>> rho = wprox.Grid([1.0, 3.0], bounds=[(0.0, 1.0)])
        >>> wprox.Congestion(2.0)(rho), wprox.Congestion(1.2)(rho)
        (tensor(0.), tensor(inf))
    """

    def __init__(self, max_density: Bound, tolerance: float = 1e-3) -> None:
        bound = _bound(max_density, "max_density")
        if bound == 0:
            raise ValueError("max_density must be positive, got 0, under which no mass fits")
        super().__init__(0.0, bound, tolerance)
        self.max_density = self.upper
        if isinstance(self.max_density, float):
            self.modulus = self._unless_overridden(DensityBounds, 0.0)

    def __repr__(self) -> str:
        return f"Congestion({_shown(self.max_density)})"


def _bound(value: object, name: str) -> Bound:
    if callable(value) and not isinstance(value, type):
        return value
    try:
        number = check_number(value, name)
    except TypeError:
        raise TypeError(f"{name} must be a number or a function of points, got {described(value)}") from None
    if not number >= 0:
        raise ValueError(f"{name} must not be negative, got {number:g}; it bounds a density")
    return number


def _at(bound: Bound, points: Tensor, name: str) -> Tensor:
    if callable(bound):
        values = evaluate(bound, points, name)
        if values.shape != points.shape[:1]:
            raise ValueError(
                f"a bound must return one number a point, ({len(points)},), got {tuple(values.shape)} from {name}"
            )
        return values
    return torch.full_like(points[:, 0], bound, dtype=torch.float64).to(points)  # infinite where float32 ends


def _shown(bound: Bound) -> str:
    return getattr(bound, "__name__", type(bound).__name__) if callable(bound) else f"{bound:g}"
