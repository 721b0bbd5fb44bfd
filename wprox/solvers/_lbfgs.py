"""L-BFGS with a strong Wolfe line search, for objectives that may be infinite."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from torch import Tensor

DECREASE, CURVATURE = 1e-4, 0.9  # c₁ and c₂ of the Wolfe conditions, as Nocedal and Wright advise for quasi-Newton
NOISE = 1e-12  # of a value, relative to it: closer than that, two values are equal and the slopes decide
STILL = 1e-14  # of a position, relative to it: a shift that moves nothing
SEARCH_LIMIT = 40  # evaluations of one line search
REACH = 1e3  # of a first trial, in steps of steepest descent: pairs that contradict each other may point astray
PATIENCE = 100  # iterations at kinks in which the gradient must halve, or J fall by more than STALL of its descent
STALL = 1e-4
FEW = 10  # iterations that show how strongly J curves where it is smooth, its stiffest directions coming first
KINK = 100.0  # times that: the gradient jumped. Measured on smooth J: at most 5, however ill-conditioned


class Point(Protocol):
    """Where the objective has been evaluated."""

    @property
    def position(self) -> Tensor: ...
    @property
    def value(self) -> float: ...
    @property
    def gradient(self) -> Tensor: ...


P = TypeVar("P", bound=Point)


class History:
    """The pairs of L-BFGS (Nocedal and Wright, *Numerical optimization*, algorithm 7.4)."""

    def __init__(self, memory: int) -> None:
        self.pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=memory)

    def add(self, shift: Tensor, change: Tensor) -> None:
        product = float(shift @ change)
        if product > 0:  # else J is not convex between the two points, and the pair would spoil the metric
            self.pairs.append((shift, change, product))

    def apply(self, gradient: Tensor, solve: Callable[[Tensor], Tensor]) -> Tensor:
        """H⁻¹ g for the metric made of the pairs and the initial H⁻¹ given by `solve`."""
        factors = []
        for shift, change, product in reversed(self.pairs):
            factors.append(float(shift @ gradient) / product)
            gradient = gradient - factors[-1] * change
        result = solve(gradient)
        if self.pairs:  # the scale of the initial metric, from the newest pair (Nocedal and Wright, equation 7.20)
            _, change, product = self.pairs[-1]
            result = result * (product / float(change @ solve(change)))
        for (shift, change, product), factor in zip(self.pairs, reversed(factors), strict=True):
            result = result + (factor - float(change @ result) / product) * shift
        return result


class Minimiser(Generic[P]):
    r"""Minimises J from a point, by L-BFGS; `point` is the best so far at any time.

    Arguments:
        evaluate: J and ∇J at a position, (m,); a value or gradient that is not finite means outside of the domain.
        start: where to begin, evaluated and finite.
        solve: the initial metric's inverse.
        memory: the number of pairs kept.
        noise: of values of J, relative to them.

    Attributes:
        point: the best point.
        outside: the last position tried that was outside of the domain.
        iterations: steps taken.
        stalled: whether the last run ended at kinks, because neither J nor its gradient became smaller.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor], P],
        start: P,
        solve: Callable[[Tensor], Tensor],
        memory: int,
        noise: float = NOISE,
    ) -> None:
        self.evaluate, self.point, self.solve, self.noise = evaluate, start, solve, noise
        self.history = History(memory)
        self.outside: Tensor | None = None
        self.iterations = 0
        self.stalled = False

    def run(self, is_done: Callable[[P], bool], iterations: int) -> bool:
        """Iterate until done; whether descent went on until then, or until `iterations` in all were made."""
        self.stalled = False
        values, gradients = [self.point.value], [float(self.point.gradient.norm())]
        curvatures: list[float] = []
        while not is_done(self.point) and self.iterations < iterations:
            found = self._search(self._direction())
            if found is None and self.history.pairs:  # pairs from elsewhere may mislead: once more without them
                self.history.pairs.clear()
                found = self._search(-self.solve(self.point.gradient))
            if found is None:
                return False
            self.iterations += 1
            shift, change = found.position - self.point.position, found.gradient - self.point.gradient
            if float(shift.norm()) <= STILL * float(found.position.norm()):  # rounding, which may go on for ever
                self.point = found
                return False
            self.history.add(shift, change)
            self.point = found
            length = float(shift.norm())
            curvatures.append(float(change.norm()) / length if length > 0 else math.inf)
            values.append(found.value)
            gradients.append(min(gradients[-1], float(found.gradient.norm())))
            if len(values) > PATIENCE and gradients[-1] > 0.5 * gradients[-1 - PATIENCE] and _has_kinks(curvatures):
                self.stalled = values[-1 - PATIENCE] - values[-1] < STALL * (values[0] - values[-1])
                if self.stalled:
                    return False
        return True

    def _direction(self) -> Tensor:
        """−H⁻¹∇J, no longer than REACH times the step of the initial metric."""
        direction = -self.history.apply(self.point.gradient, self.solve)
        longest = REACH * float(self.solve(self.point.gradient).norm())
        length = float(direction.norm())
        return direction if length <= longest else direction * (longest / length)

    def _search(self, direction: Tensor) -> P | None:
        """A point along the direction that satisfies the strong Wolfe conditions, or at least lowers J."""
        origin, start_slope = self.point, float(self.point.gradient @ direction)
        if not start_slope < 0:
            return None
        noise = self.noise * abs(origin.value)
        low: tuple[float, float, float] = (0.0, origin.value, start_slope)
        high: tuple[float, float, float] | None = None  # J′ is NaN where J is not finite
        best: P | None = None
        length = 1.0
        for _ in range(SEARCH_LIMIT):
            trial = self.evaluate(origin.position + length * direction)
            slope = float(trial.gradient @ direction)
            if not (math.isfinite(trial.value) and math.isfinite(slope)):
                self.outside = trial.position
                high = (length, math.inf, math.nan)
            else:
                is_lower = trial.value <= origin.value + DECREASE * length * start_slope
                is_equal = abs(trial.value - origin.value) <= noise
                if (is_lower or is_equal) and abs(slope) <= CURVATURE * -start_slope:
                    return trial
                if not (is_lower or is_equal) or trial.value > low[1] + noise:
                    high = (length, trial.value, slope)
                else:
                    if slope * ((math.inf if high is None else high[0]) - low[0]) >= 0:
                        high = low
                    low = (length, trial.value, slope)
                    best = trial if is_lower else best
            if high is None:
                length = 4 * length
            else:
                length = _between(low, high)
                if abs(high[0] - low[0]) <= 1e-15 * max(low[0], high[0]):
                    break
        return best


def _has_kinks(curvatures: list[float]) -> bool:
    """Whether a tenth of the last pairs |∇J(y) − ∇J(x)|/|y − x| are out of proportion to the first.

    A smooth J may be as slow for its condition number, but then it is worth to go on: it curves as it did.
    """
    limit = KINK * max(curvatures[:FEW])
    return sum(not curvature < limit for curvature in curvatures[-PATIENCE:]) >= PATIENCE / 10


def _between(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """The minimum of the cubic through two values and slopes, kept away from the ends (Nocedal and Wright, 3.59)."""
    (a, value_a, slope_a), (b, value_b, slope_b) = low, high
    width = b - a
    if not math.isfinite(value_b):
        return a + 0.25 * width
    d1 = slope_a + slope_b - 3 * (value_a - value_b) / (a - b)
    root = d1 * d1 - slope_a * slope_b
    part = 0.5
    if root >= 0:
        d2 = math.copysign(math.sqrt(root), width)
        bottom = slope_b - slope_a + 2 * d2
        if bottom != 0:
            part = 1 - (slope_b + d2 - d1) / bottom
    return a + min(max(part, 0.05), 0.95) * width
