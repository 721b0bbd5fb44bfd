"""Smooth terms of a functional by linear models that are renewed until they settle."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.solvers.grid.terms import GridTerms

OUTER_RATIO = 10.0  # the change of mass at which linearisation stops, in units of the tolerance
FIRST_TOL = 1e-2  # the violation at which the first linearisation is replaced
RESOLVED = 0.3  # of a change of mass: the violation down to which it is solved before it is judged
NOISE = 10.0  # shorter moves, in units of the violation that they start with, are no more than its repair
INNER_RATIO = 0.1  # of the last change of mass: the violation down to which the next linearisation is solved
CURVATURE = 0.8  # of the slope that a move starts with: beyond, the slope that it ends with has overshot
SHORTEST, LONGEST = 0.1, 4.0  # factors by which the relaxation may change from one linearisation to the next
SHORTEST_OF_ALL = 1e-6  # relaxation
ROUNDING = 1e-12  # of values of G, relative
MEMORY = 8  # solutions besides the base that extrapolation draws on
SHARPER = 0.1  # of the violations down to which models are solved: secants need more digits than slopes
RIDGE = 1e-12  # of the normal equations, relative to unit diagonals


@dataclass
class Base:
    """The last accepted solution, the value of G there, and the first variation of G less that of its model."""

    mass: Tensor
    value: float
    model: Tensor
    residual: Tensor
    scalings: Tensor
    violation: float


class Linearisation:
    r"""min J₀(ρ) + G(ρ), with G smooth and J₀ all the rest, by mirror descent in the geometry of J₀.

    With G in the place of its first variation u, the scaling iteration solves ρ(u) = argmin J₀ + ⟨u, ·⟩. From there

        u⁺ = u + α r,    r = G′(ρ(u)) − u,    ρ⁺ = ρ(u⁺),

    is the Bregman proximal gradient step  ρ⁺ = argmin ⟨G′(ρ), ·⟩ + J₀ + (1/α − 1) D_{J₀}(·, ρ).  It lowers the
    objective and converges for convex G if G is smooth relative to J₀ with the constant 1/α − 1 (Bauschke, Bolte and
    Teboulle, *A descent lemma beyond Lipschitz gradient continuity*, 2017; Lu, Freund and Nesterov, *Relatively smooth
    convex optimization by first-order methods*, 2018, theorem 3.1). The transport in J₀ keeps it small: it is about
    γ times the Hessian that G has in Wasserstein space, whatever the grid.

    The constant is not known. r is the derivative of the objective, so that the slopes −⟨r, ρ⁺ − ρ⟩ and ⟨r⁺, ρ⁺ − ρ⟩
    tell whether a move overshoots: then it is undone and α shortened (the approximate Wolfe condition of Hager and
    Zhang, 2005), to where the secant of the slopes vanishes. The same secant gives the α of the next move (Barzilai and
    Borwein 1988, in the metric of J₀). Where G is not convex a move may cross a hump and end where the slope is fine:
    it is undone too where the objective rises for sure, by no less than  G(ρ⁺) − G(ρ) − ⟨u, ρ⁺ − ρ⟩,  since J₀ is
    convex and −u its derivative at ρ.

    Where α < 1, which is where G is stiff, a secant in one direction is not enough: moves are extrapolated from the
    last solutions, to where an affine combination of their residuals is least (Anderson's method of type II: Walker
    and Ni 2011), or to a fraction of that where the same slopes tell that it overshoots.

    The diagonal D of the Hessian is modelled by a quadratic, which moves ½⟨D ρ, ρ⟩ from G to J₀: α = 1 is then Newton's
    method for functionals that are local.

    Attributes:
        local: what the proximal operator solves at present.
        tol: the violation at which to look whether to linearise anew.
        scalings: (k, n), where to go on.
        moved: the change of mass by the last linearisation, in units in which α = 1.
        accepted: whether that change lowers the objective, as far as slopes and values tell, or is to be undone.
    """

    def __init__(self, terms: GridTerms, around: Tensor, repeat: bool, tol: float) -> None:
        self.terms, self.final_tol, self.around = terms, tol, around
        self.repeat = repeat and bool(terms.smooth)
        self.local, self.tol, self.relaxation, self.moved = terms.local, tol, 1.0, math.inf
        self.accepted = True
        self.base: Base | None = None
        self.solved: list[tuple[Tensor, Tensor]] = []  # (n,) each, u and r
        self.extrapolated = False  # the present model
        self.fraction = 1.0  # of the way to what is extrapolated
        self.direction = around
        if terms.smooth:
            _, gradient, self.diagonal = terms.expansion(around)
            self.linear = gradient - self.diagonal * around
            self.local = terms.modelled(self.linear, self.diagonal)
        if self.repeat:
            self.tol = max(tol, FIRST_TOL)

    def resolves(self, mass: Tensor, violation: float) -> bool:
        """Whether the change of mass is solved well enough to be judged; if not, `tol` is lowered."""
        if not self.repeat:
            return True
        before = self.around if self.base is None else self.base.mass
        length = float((mass - before).abs().sum())
        floor, sharper = self._floor(), SHARPER if self.relaxation < 1 else 1.0
        if violation <= max(floor, RESOLVED * sharper * length):
            return True
        self.tol = max(floor, INNER_RATIO * sharper * length)
        return False

    def settles(self, mass: Tensor, violation: float, scalings: Tensor) -> bool:
        """Whether the solution is one of the functional itself, not only of its present model; if not, model anew.

        Arguments:
            mass: (n,), the solution of the present model.
            violation: how far it is solved.
            scalings: (k, n), from which to go on if it is accepted.
        """
        if not self.repeat:
            return True
        model = self.linear + self.diagonal * mass
        value, gradient, diagonal = self.terms.expansion(mass)
        residual = gradient - model
        before = self.around if self.base is None else self.base.mass
        change = mass - before
        length = float(change.abs().sum())
        self.solved = [*self.solved[-MEMORY:], (model, residual)]
        factor, judged = 1.0, False
        self.accepted = True
        if self.base is not None and length > NOISE * self.base.violation:
            first, last = -float(self.base.residual @ change), float(residual @ change)
            if first > 0:
                judged = True
                factor = first / (first + last) if first + last > 0 else math.inf
                self.accepted = last <= CURVATURE * first
                rise = value - self.base.value - float(self.base.model @ change)
                if rise > first / NOISE + ROUNDING * (abs(value) + abs(self.base.value)):
                    self.accepted = False
                    factor = min(factor, 0.5)
            elif self.extrapolated:
                self.accepted = False
        if not judged and self.relaxation < 1:  # nothing says that the move could not be longer
            factor = LONGEST
        if self.extrapolated:
            self.moved, arrived, small = length, False, length <= OUTER_RATIO * self.final_tol
        else:
            self.moved = length * max(1.0, 1 / self.relaxation, min(factor, LONGEST))
            arrived, small = self.relaxation >= 1 or factor < LONGEST, False
            if arrived and violation <= self._floor() and self.moved <= OUTER_RATIO * self.final_tol:
                return True
            self.relaxation *= min(max(factor, SHORTEST), LONGEST)
            self.relaxation = min(1.0, max(SHORTEST_OF_ALL, self.relaxation))
        if self.accepted:
            base = self.base = Base(mass, value, model, residual, scalings, violation)
            self.diagonal = diagonal
            if self.extrapolated:
                self.fraction = min(1.0, LONGEST * self.fraction)
            # what moved little is followed by a plain move, which alone tells whether all has settled
            self.extrapolated = self.relaxation < 1 and len(self.solved) > 1 and not small
            if self.extrapolated:
                self.direction = self._extrapolate(base)
        elif self.extrapolated and judged and self.fraction > SHORTEST**2:
            self.fraction *= min(max(factor, SHORTEST), 0.5)
        else:
            self.extrapolated = False
        sharper = SHARPER if self.relaxation < 1 else 1.0
        self.tol = min(FIRST_TOL, max(self._floor(), INNER_RATIO * sharper * length))
        self._move()
        return False

    def retracts(self) -> bool:
        """Whether there is a shorter move to try in place of one that cannot be solved for."""
        if self.base is None or self.relaxation < SHORTEST_OF_ALL:
            return False
        if not self.extrapolated:
            self.relaxation *= SHORTEST
        self.extrapolated = False
        self._move()
        return True

    def _floor(self) -> float:
        """The violation below which no model is solved."""
        return self.final_tol * (1.0 if self.extrapolated else min(1.0, self.relaxation))

    def _move(self) -> None:
        base = self.base
        assert base is not None
        self.scalings = base.scalings
        move = self.fraction * self.direction if self.extrapolated else self.relaxation * base.residual
        self.linear = base.model - self.diagonal * base.mass + move
        self.local = self.terms.modelled(self.linear, self.diagonal)

    def _extrapolate(self, base: Base) -> Tensor:
        """The way to the affine combination of all u + α r whose residual is the least, up to constants, (n,)."""
        others = [pair for pair in self.solved if pair[0] is not base.model]
        models = torch.stack([model - base.model for model, _ in others])
        residuals = torch.stack([residual - base.residual for _, residual in others])
        rows = torch.cat((residuals, base.residual[None]))
        rows = (rows - (rows @ base.mass)[:, None]) * base.mass.sqrt()
        sizes = rows[:-1].norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
        rows[:-1] /= sizes[:, None]
        normal = rows[:-1] @ rows[:-1].mT
        normal.diagonal().add_(RIDGE)
        coefficients = torch.linalg.solve(normal, rows[:-1] @ rows[-1]) / sizes
        return self.relaxation * base.residual - coefficients @ (models + self.relaxation * residuals)
