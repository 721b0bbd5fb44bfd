"""What a step on a grid costs at most: true couplings of where its mass was and where it is."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from wprox.measures import Grid
from wprox.solvers.grid.geodesics import Geodesics
from wprox.solvers.grid.scaling import ScalingIteration
from wprox.transport.rosenblatt import Pieces, rosenblatt_plan

MISPLACED = 1e-12  # of the cost, at most, that underflow may leave out of the entropic plan


def transport_bound(source: Grid, target: Grid, iteration: ScalingIteration, log_scaling: Tensor) -> Tensor:
    r"""An upper bound of W₂² between two histograms on the same cells in float64: the least cost of a few true plans.

    These are Knothe–Rosenblatt couplings, with each axis as the first one, and on a free box the entropic plan π, which
    is tighter where mass moves by several blurs: with its second marginal s, W₂(μ, ρ) ≤ √⟨|x − y|², π⟩ + W₂(s, ρ).
    Among walls mass is coupled within each room and distances go around walls. It is W₂² on the line, and 0 where
    nothing moves.

    Arguments:
        source, target: μ and ρ.
        iteration: that the step was found by.
        log_scaling: (n,), log b, which it ended with.
    """
    axes = [tuple((first + k) % source.dim for k in range(source.dim)) for first in range(source.dim)]
    if source.mask is not None:
        geodesics, rooms = Geodesics(source), iteration.kernel.rooms
        return torch.stack([geodesics.cost(_by_room(source, target, rooms, order)) for order in axes]).amin()
    bound = torch.stack([_straight(source, target, order) for order in axes]).amin()
    if source.dim == 1 or float(bound) == 0:
        return bound
    entropic, second = _entropic(source, iteration, log_scaling)
    if not float(entropic) < float(bound):
        return bound
    rest = _straight(source._with_weights(second), target, axes[0])
    return torch.minimum(bound, (entropic.sqrt() + rest.sqrt()).square())


def _straight(source: Grid, target: Grid, order: tuple[int, ...]) -> Tensor:
    """⟨|x − y|², π⟩ for the Knothe–Rosenblatt coupling on a free box."""
    points, total = source.points, source.weights.new_zeros(())
    for i, j, mass in rosenblatt_plan(source.mass, target.mass, order):
        total = total + mass @ (points[i] - points[j]).square().sum(1)
    return total


def _by_room(source: Grid, target: Grid, rooms: Tensor | None, order: tuple[int, ...]) -> Iterator[Pieces]:
    """The Knothe–Rosenblatt couplings of the masses in each room, between support points."""
    assert source.mask is not None
    free = ~source.mask
    number = source.unflatten(torch.arange(len(source), device=free.device)).flatten()
    rooms = torch.zeros(len(source), dtype=torch.long, device=free.device) if rooms is None else rooms
    for room in range(int(rooms.max()) + 1):
        before, after = (rho.weights * (rooms == room) for rho in (source, target))
        if float(before.sum()) > 0 and float(after.sum()) > 0:
            for i, j, mass in rosenblatt_plan(source.unflatten(before), source.unflatten(after), order):
                yield Pieces(number[i], number[j], mass * before.sum())


def _entropic(source: Grid, iteration: ScalingIteration, log_b: Tensor) -> tuple[Tensor, Tensor]:
    r"""⟨|x − y|², π⟩ of the plan π = diag(a) K diag(b) with a = μ/K b, and its second marginal (n,).

    The cost is Σ μ|x|² + Σ s|y|² − 2 Σ_k ⟨x_k y_k, π⟩, whose last sums are products of K with positive fields where
    x is measured from a corner of the box. It is infinite where products underflow and that matters.
    """
    points = source.points - source.points.new_tensor([low for low, _ in source.bounds])
    sums, lost = iteration.product(log_b)
    log_a = iteration.log_mass - sums
    images, lost_second = iteration.product(log_a)
    second = (log_b + images).exp()
    cost = source.weights @ points.square().sum(1) + second @ points.square().sum(1)
    for x in points.unbind(1):
        cost = cost - 2 * (log_a + x.log() + iteration.product(log_b + x.log())[0]).exp().sum()
    cost = cost.clamp(min=0.0)
    if lost is not None and lost_second is not None:
        misplaced = float(source.weights[lost].sum() + second[lost_second].sum())
        if misplaced * sum((high - low) ** 2 for low, high in source.bounds) > MISPLACED * float(cost):
            return torch.full_like(cost, math.inf), second
    return cost, second
