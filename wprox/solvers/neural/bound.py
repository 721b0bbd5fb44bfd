"""What particles without a map reach, a bound from above for the step: by it a map that has led astray is told."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wprox.maps import TransportMap
from wprox.solvers._lbfgs import Minimiser
from wprox.solvers.base import Ending
from wprox.solvers.neural.parts import Part
from wprox.solvers.neural.task import Task, push

ITERATIONS, MEMORY, GOAL = 100, 20, 1e-3  # of L-BFGS, and the part of its gain that it may leave
SHARES = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3, 1e-4)  # t below
MISSED = 0.1  # of what can be gained


class _Point(NamedTuple):
    position: Tensor
    value: float
    gradient: Tensor


def ending_beside_free(task: Task, map: TransportMap, part: Part) -> Ending:
    r"""How a step ended that has converged by itself: astray where over a tenth of what can be gained is missed.

    Where particles move freely, from where they are and with the density that each carries, to y_i, the map x_i ↦ y_i
    is the gradient of a convex function, since |y − x|²/(2γ) is all that ties y to x. For such a map S and 0 < t < 1,
    the symmetric matrix (1 − t) ∇S + t I is at least t I, so that (1 − t) S + t id has a log-determinant of at least
    d log t: F there is at most F with that log-determinant, for entropies and all functionals that fall where mass
    spreads. The least of J over a few t is a bound from above for the step.
    """
    with torch.no_grad():
        rest, reached = task.at_rest(part), float(task.objective(push(map, part.measure), part.origins))
    try:
        bound = _bound(task, part, rest)
    except KeyboardInterrupt:
        return Ending.INTERRUPTED
    except ValueError:  # free particles left the domain of F, as those that attract each other coincide
        return Ending.CONVERGED
    return Ending.ASTRAY if reached - bound > MISSED * (rest - bound) else Ending.CONVERGED


def _bound(task: Task, part: Part, rest: float) -> float:
    assert task.units is not None
    x, dim, scale = part.measure.points, part.measure.dim, task.units.scale
    lengths = scale / part.measure.weights.sqrt()[:, None]  # in these units of y_i the cost is |·|²/2

    def value(y: Tensor, log_det: float) -> Tensor:
        return task.objective(part.measure.push(lambda _: (y, y.new_full((len(y),), log_det))), part.origins)

    def evaluate(position: Tensor) -> _Point:
        given = position.detach().requires_grad_()
        with torch.enable_grad():
            found = value(x + lengths * given.view_as(x), 0.0)
            slope = torch.autograd.grad(found, given)[0]
        return _Point(position, float(found.detach()), slope)

    search = Minimiser(evaluate, evaluate(torch.zeros_like(x).flatten()), lambda v: v, MEMORY)
    search.run(lambda point: float(point.gradient.square().sum()) <= GOAL * (rest - point.value), ITERATIONS)
    with torch.no_grad():
        free = x + lengths * search.point.position.view_as(x)
        values = [float(value((1 - t) * free + t * x, dim * math.log(t))) for t in SHARES]
    return min(value for value in [rest, *values] if math.isfinite(value))
