"""The affine start of a neural step: the best affine map, of as many parameters as the particles bear."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from wprox.maps import AffineMap
from wprox.maps.affine import symmetric_exponential
from wprox.measures import Particles
from wprox.solvers._lbfgs import Minimiser
from wprox.solvers.neural.parts import Part, Units

ITERATIONS, FEW, MEMORY = 60, 6, 20  # of L-BFGS; few from where a fit to almost the same particles ended
ROUNDING = 10.0  # of an objective, in units of its precision
GOAL, ROUGH_GOAL = 1e-4, 1e-2  # of what a fit gains, the part that it may leave
LARGEST_LOG = 40.0  # of a stretch; further out is outside of the domain
BEARABLE_LOG = 1.0  # of a stretch that the network before it can undo
NEAR = 0.25  # of the spread of the particles: the length of a map that leads nowhere else
BENT = 0.25  # of the length of a map, what an affine field may leave of the force
EVIDENCE = 2.0  # standard errors by which a gain must be above 0 to be shown

Objective = Callable[[Particles, Tensor], Tensor]  # of T#μ and the points from which its transport cost counts


class AffineStart(NamedTuple):
    """The affine map in standardised coordinates, `None` where it is the identity.

    Attributes:
        map: the map.
        is_shown: whether its gain is shown.
        is_interrupted: whether Ctrl-C ended the search; the map is the best so far.
        other: another start, where this may be the better one.
        is_astray: whether the map may have led into the basin of a minimum that is not the lowest.
    """

    map: AffineMap | None
    is_shown: bool
    is_interrupted: bool = False
    other: AffineMap | None = None
    is_astray: bool = False


class _Point(NamedTuple):
    position: Tensor
    value: float
    gradient: Tensor


@dataclass(frozen=True)
class _Family:
    r"""T(z) = exp(S) z + b with S = 0, a multiple of I, diagonal, or any symmetric matrix; each has those before it.

    Attributes:
        dim: d.
        kind: 1 for b alone, 2, 3, 4 for the S above.
        fixed: S in place of 0, for b alone.
    """

    dim: int
    kind: int
    fixed: Tensor | None = None

    def unpack(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """b, (d,), and S, (d, d)."""
        d = self.dim
        shift, rest = position[:d], position[d:]
        if self.kind == 1:
            return shift, position.new_zeros(d, d) if self.fixed is None else self.fixed
        if self.kind == 2:
            return shift, (rest / math.sqrt(d)) * torch.eye(d).to(position)
        matrix = torch.diag(rest[:d])
        if self.kind == 4:
            i, j = torch.triu_indices(d, d, 1)
            matrix = matrix.index_put((torch.cat((i, j)), torch.cat((j, i))), rest[d:].repeat(2) / math.sqrt(2))
        return shift, matrix

    def pack(self, shift: Tensor, matrix: Tensor) -> Tensor:
        """The position of a map of this family, or of one before it."""
        diagonal = matrix.diagonal()
        i, j = torch.triu_indices(self.dim, self.dim, 1)
        of_kind = {1: [], 2: [diagonal.sum()[None] / math.sqrt(self.dim)], 3: [diagonal]}
        return torch.cat([shift, *of_kind.get(self.kind, [diagonal, math.sqrt(2) * matrix[i, j]])])


@dataclass(frozen=True)
class _Fit:
    """F(T#μ) + cost/(2γ) in units of s²/γ, of affine maps in standardised coordinates."""

    objective: Objective
    part: Part
    units: Units

    @property
    def coordinates(self) -> Tensor:
        """The standardised ones of the particles, (n, d)."""
        return (self.part.measure.points - self.units.loc) / self.units.scale

    def value(self, shift: Tensor, matrix: Tensor) -> Tensor:
        z = self.coordinates
        y = self.units.loc + self.units.scale * torch.addmm(shift.to(z), z, symmetric_exponential(matrix).to(z))
        pushed = self.part.measure.push(lambda _: (y, matrix.trace().to(z).expand(len(z))))
        return self.objective(pushed, self.part.origins)

    def force(self) -> Tensor:
        """The gradient of F at the particles, (n, d), the density that each carries held fixed."""
        measure = self.part.measure
        x = measure.points.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = self.objective(measure.push(lambda _: (x, x.new_zeros(len(x)))), x.detach())
            if not value.requires_grad:
                return torch.zeros_like(x)
            slope = torch.autograd.grad(value, x)[0]
        return self.units.scale * slope / measure.weights[:, None].clamp_min(torch.finfo(x.dtype).tiny)

    def is_astray(self, shift: Tensor, matrix: Tensor) -> bool:
        """Whether the affine map is long, and the force at the particles far from an affine field."""
        z, weights = self.coordinates.double(), self.part.measure.weights.double()
        move = z @ (symmetric_exponential(matrix) - torch.eye(len(shift)).to(matrix)) + shift
        length = math.sqrt(float(weights @ move.square().sum(1)))
        if length <= NEAR:
            return False
        roots = weights.sqrt()[:, None]
        design, force = roots * torch.nn.functional.pad(z, (0, 1), value=1.0), roots * self.force().double()
        rest = force - design @ (torch.linalg.pinv(design) @ force)
        return not float(rest.norm()) <= BENT * length

    def minimise(self, family: _Family, start: Tensor, goal: float, iterations: int) -> Tensor:
        """The best position of a family, from another."""
        rounding = ROUNDING * torch.finfo(self.part.measure.dtype).eps

        def evaluate(position: Tensor) -> _Point:
            given = position.detach().requires_grad_()
            matrix = family.unpack(given)[1]
            if not float(matrix.detach().abs().max()) < LARGEST_LOG:  # NaN included
                return _Point(position, math.inf, torch.full_like(position, math.nan))
            with torch.enable_grad():
                value = self.value(*family.unpack(given)).double()
                slope = torch.autograd.grad(value, given)[0] if value.requires_grad else torch.zeros_like(position)
            return _Point(position, float(value.detach()), slope)

        first = evaluate(start)
        if not (math.isfinite(first.value) and bool(torch.isfinite(first.gradient).all())):
            return start
        search = Minimiser(evaluate, first, lambda v: v, MEMORY)
        origin = evaluate(torch.zeros_like(start)).value

        def is_done(point: _Point) -> bool:
            # the cost alone makes J 1-convex in standardised coordinates: |∇J|²/2 bounds what is left to gain
            left = float(point.gradient.square().sum())
            return left <= max(goal * (origin - point.value), rounding * abs(origin))

        search.run(is_done, iterations)
        return search.point.position

    def bounded(self, shift: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """The map with stretches that a network can undo, and the best shift for them."""
        if not _is_beyond(matrix):
            return shift, matrix
        logs, axes = torch.linalg.eigh(matrix)
        family = _Family(len(shift), 1, (axes * logs.clamp(-BEARABLE_LOG, BEARABLE_LOG)) @ axes.mT)
        return family.unpack(self.minimise(family, shift, GOAL, ITERATIONS))


def affine_start(
    objective: Objective,
    part: Part,
    units: Units,
    generator: torch.Generator,
    is_enough: Callable[[AffineMap], bool] | None = None,
) -> AffineStart:
    r"""The affine map T(z) = exp(S) z + b that minimises the objective, in standardised coordinates.

    Where the objective follows each particle, all affine maps compete. A map that is not the step itself leaves the
    rest to the network before it, which must be able to undo it: where the best one squashes or stretches particles by
    more than e, S is cut off there. (The best affine map of a banana in a steep well all but projects it on a line,
    which no step does.)

    Where the objective knows the law of the particles by them alone, as entropy and KL do, the log-determinant keeps
    maps from that, as far as its weight goes, and few particles tell little about many parameters: the families of
    shifts, of scalings, of scalings of the axes and of all are fitted without a block of particles, each in turn, and
    compared on it with standing still; the family of the greatest mean gain is fitted to all. Its gain is shown where
    it is above 0 by twice its standard error over the blocks. Where its S is beyond the cut, the step may be just that
    (of KL to a narrow Gaussian) or nothing like it (of a steep well and a little entropy): the map that is cut off is
    given too.

    A long affine map under forces that are no affine field may bring all particles into one mode of several, from
    where no network brings them back: there the identity is the other start.

    Arguments:
        objective: in units of s²/γ.
        part: the particles.
        units: the coordinates.
        generator: of the blocks.
        is_enough: whether a map is the step, where the objective follows each particle; `None` where it knows the law
            of the particles by them alone.
    """
    fit, d = _Fit(objective, part, units), units.loc.shape[0]
    shift, matrix = (torch.zeros(size, dtype=torch.float64, device=units.loc.device) for size in ((d,), (d, d)))
    search = _Search((shift, matrix), is_shown=is_enough is not None)
    is_interrupted, is_astray, other = False, False, None
    try:
        if is_enough is None:
            _search_families(fit, search, range(1, 5 if _has_spread(part, units) else 2), part.blocks(generator))
            if _is_beyond(search.best[1]):
                other = _map_of(*fit.bounded(*search.best), like=units.loc)
        else:
            family = _Family(d, 4)
            search.best = family.unpack(fit.minimise(family, family.pack(*search.best), GOAL, ITERATIONS))
            found = _map_of(*search.best, like=units.loc)
            if found is not None and not is_enough(found):
                search.best = fit.bounded(*search.best)
        is_astray = fit.is_astray(*search.best)
        if is_astray:
            other = AffineMap(d).to(units.loc)
    except KeyboardInterrupt:
        is_interrupted = True
    map = _map_of(*search.best, like=units.loc)
    return AffineStart(
        map, search.is_shown and (map is not None or is_enough is not None), is_interrupted, other, is_astray
    )


@dataclass
class _Search:
    """The best b and S so far, and whether their gain is shown."""

    best: tuple[Tensor, Tensor]
    is_shown: bool


def _search_families(fit: _Fit, search: _Search, kinds: range, blocks: list[Tensor]) -> None:
    """The family of the greatest mean gain on blocks that it was not fitted to."""
    (shift, matrix), d, most = search.best, fit.units.loc.shape[0], 0.0
    for kind in kinds:
        if kind in (2, 3) and d == 1:  # they are all of the line
            continue
        family = _Family(d, kind)
        shift, matrix = family.unpack(fit.minimise(family, family.pack(shift, matrix), GOAL, ITERATIONS))
        mean, error = _held_out_gain(fit, family, family.pack(shift, matrix), blocks)
        if kind == kinds[0] or mean > most:
            search.is_shown = mean > EVIDENCE * error
        if mean > most:
            most, search.best = mean, (shift, matrix)


def _is_beyond(matrix: Tensor) -> bool:
    """Whether exp(S) has a stretch that a network before it cannot undo."""
    return bool((torch.linalg.eigvalsh(matrix).abs() > BEARABLE_LOG).any())


def _map_of(shift: Tensor, matrix: Tensor, like: Tensor) -> AffineMap | None:
    """x ↦ exp(S) x + b, `None` where that is the identity."""
    if max(float(shift.abs().max()), float(matrix.abs().max())) <= 4 * torch.finfo(like.dtype).eps:
        return None
    map = AffineMap(len(shift)).to(like)
    with torch.no_grad():
        map.log_matrix.copy_(matrix)
        map.shift.copy_(shift)
    return map


def _held_out_gain(fit: _Fit, family: _Family, start: Tensor, blocks: list[Tensor]) -> tuple[float, float]:
    """The mean gain over standing still on blocks that the fit did not see, and its standard error."""
    gains = []
    zero = family.pack(*(torch.zeros_like(part) for part in family.unpack(start)))
    for k, block in enumerate(blocks):
        others = torch.cat([rows for j, rows in enumerate(blocks) if j != k])
        found = _Fit(fit.objective, fit.part.subset(others), fit.units).minimise(family, start, ROUGH_GOAL, FEW)
        unseen = _Fit(fit.objective, fit.part.subset(block), fit.units)
        with torch.no_grad():
            gains.append(float(unseen.value(*family.unpack(zero)) - unseen.value(*family.unpack(found))))
    return mean_and_error(gains, [float(fit.part.measure.weights[block].sum()) for block in blocks])


def mean_and_error(values: list[float], masses: list[float]) -> tuple[float, float]:
    """The mean of values that were found independently, weighted by masses, and its standard error."""
    found, weights = (torch.tensor(numbers, dtype=torch.float64) for numbers in (values, masses))
    found = found * (weights / weights.mean())
    if len(found) < 2:
        return float(found.mean()), math.inf
    return float(found.mean()), float(found.std()) / math.sqrt(len(found))


def _has_spread(part: Part, units: Units) -> bool:
    """Whether the particles spread in all directions: else a log-determinant has no minimum over matrices."""
    weights = part.measure.weights.double()
    z = ((part.measure.points - units.loc) / units.scale).double()
    z = z - weights @ z
    least = float(torch.linalg.eigvalsh((z * weights[:, None]).mT @ z).min())
    return least > 1e-6 and int((weights > 0).sum()) > z.shape[1] + 1
