"""A functional sorted into what the KL proximal operator solves in closed form and what it models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from wprox._autograd import HOW_CUT
from wprox._checks import evaluate
from wprox._warnings import warn
from wprox.functionals import Functional, InternalEnergy
from wprox.functionals.base import refuse_cut_off
from wprox.functionals.structure import Interaction, Structure
from wprox.measures import Grid
from wprox.measures.grid import convolve, kernel_spectrum
from wprox.solvers.grid.kl_prox import LocalTerms
from wprox.solvers.problem import StepFailedError

ROUNDING = 1e-12  # of sums of masses


Expansion = tuple[float, Tensor, Tensor]  # a value, the first variation (n,) and the diagonal of the Hessian (n,)


@dataclass
class GridTerms:
    """A functional on a grid: local terms, and smooth ones that are known by their values and derivatives only.

    Attributes:
        grid: the cells.
        local: what the KL proximal operator solves exactly.
        smooth: functions of the masses (n,) that return the value, the first variation (n,) and the diagonal of the
            Hessian (n,).
    """

    grid: Grid
    local: LocalTerms
    smooth: list[Callable[[Tensor], Expansion]] = field(default_factory=list)

    def add_potential(self, values: Tensor) -> None:
        """Add ∫ V dρ, with V at the support points."""
        if values.ndim != 1:
            raise ValueError(f"a potential must have one value a point, ({len(self.grid)},), got {tuple(values.shape)}")
        if bool(torch.isnan(values).any() | (values == -torch.inf).any()):
            raise ValueError("a potential is NaN or −∞ at some cell centre; it must be finite, or +∞ to keep mass out")
        if bool((values == torch.inf).all()):
            raise ValueError("a potential is +∞ at every cell centre, so no measure on this grid has a finite value")
        self.local.potential = values if self.local.potential is None else self.local.potential + values

    def with_strength(self, strength: float) -> GridTerms:
        """The same functional with another γ/ε."""
        return replace(self, local=replace(self.local, strength=strength))

    def expansion(self, mass: Tensor) -> Expansion:
        """The smooth terms at masses (n,): value, first variation, and the diagonal of the Hessian, as far as ≥ 0."""
        positive = mass.clamp(min=torch.finfo(mass.dtype).tiny)  # they are differentiated at positive masses only
        value, gradient, diagonal = 0.0, torch.zeros_like(mass), torch.zeros_like(mass)
        for term in self.smooth:
            v, g, d = term(positive)
            value, gradient, diagonal = value + v, gradient + g, diagonal + d.clamp(min=0.0)
        return value, gradient, diagonal

    def modelled(self, linear: Tensor, diagonal: Tensor) -> LocalTerms:
        """The local terms with ⟨l, p⟩ + ½⟨D p, p⟩ in the place of the smooth ones; the quadratic is a power m = 2."""
        powers = dict(self.local.powers)
        if bool((diagonal > 0).any()):
            powers[2.0] = powers.get(2.0, 0.0) + diagonal * (self.grid.cell_volume / 2)
        potential = linear if self.local.potential is None else self.local.potential + linear
        return replace(self.local, potential=potential - potential.min(), powers=powers)


def sort_terms(
    structure: Structure, grid: Grid, strength: float, rooms: Tensor | None = None, debias: str | None = None
) -> GridTerms:
    """The terms of F on a grid, for a KL proximal operator of strength γ/ε.

    Arguments:
        structure: what F is made of.
        grid: the measure that the step starts from; its mass must have room within the bounds of F.
        strength: γ/ε.
        rooms: (n,), the number of the room of each support point, where walls shut off several; mass stays in its room.
        debias: what the step subtracts, either of which is concave like −½ε ∫ ρ log ρ.
    """
    terms = GridTerms(grid, LocalTerms(strength))
    _sort(structure, terms)
    local = terms.local
    _check_bounds(local, grid, rooms)
    if local.potential is not None:  # a constant changes nothing but the scale that the iteration starts from
        local.potential = local.potential - local.potential.min()
    convexity = 1.0 if debias is None else 0.5  # of the transport, in units of ε ∫ ρ log ρ
    if convexity + strength * local.entropy <= 0:
        raise ValueError(
            f"F has {local.entropy:g} times the entropy, a concave part that is too large for the step: it needs "
            f"γ < blur²/{-local.entropy / convexity:g}; lower step_size or raise blur"
            + ("" if debias is None else ", or set debias=None, which doubles the limit")
        )
    return terms


def _check_bounds(local: LocalTerms, grid: Grid, rooms: Tensor | None) -> None:
    """Raise `ValueError` where bounds and infinite potentials leave too little room for the mass, or ask too much."""
    lower, upper = local.lower, local.upper
    if local.potential is not None and bool((shut := local.potential == torch.inf).any()):
        if lower is not None and bool((lower[shut] > 0).any()):
            raise ValueError(
                f"a potential is +∞ at {int((lower[shut] > 0).sum())} cells where the lower bound on the density is "
                "positive, so no measure has a finite value; set the bound to 0 there or make the potential finite"
            )
        upper = torch.full_like(local.potential, torch.inf) if upper is None else upper
        upper = upper.masked_fill(shut, 0.0)  # no mass goes there
    if rooms is None:
        rooms = torch.zeros(len(grid), dtype=torch.long, device=grid.device)
    count = int(rooms.max()) + 1
    cells = torch.bincount(rooms, minlength=count)
    mass = grid.weights.new_zeros(count).index_add(0, rooms, grid.weights)
    for bound, least in ((lower, False), (upper, True)):
        if bound is None:
            continue
        held = bound.new_zeros(count).index_add(0, rooms, bound * grid.cell_volume)
        bad = held < mass * (1 - ROUNDING) if least else held > mass * (1 + ROUNDING)
        if bool(bad.any()):
            room = int(bad.nonzero()[0])
            name, verb = ("upper", "hold") if least else ("lower", "demand")
            where = "free cells" if count == 1 else f"cells of a room shut in by walls, one of {count},"
            raise ValueError(
                f"the {name} bound on the density (0 where a potential is +∞) and the {int(cells[room])} {where} "
                f"{verb} a mass of {float(held[room]):.4g} in all, and the measure has mass "
                f"{float(mass[room]):.4g} there; {'raise' if least else 'lower'} the bound or change the grid"
            )


def _sort(structure: Structure, terms: GridTerms) -> None:
    """What the proximal operator solves in closed form goes to it, the rest is modelled by its derivatives."""
    local, grid = terms.local, terms.grid
    for potential in structure.potentials:
        terms.add_potential(potential.weight * evaluate(potential.function, grid.points, "potential"))
    local.entropy += structure.entropy
    for piece in structure.internal:
        if piece.weight < 0:
            terms.smooth.append(_by_autodiff(piece.term or InternalEnergy(piece.energy), piece.weight, grid))
        elif piece.exponent is not None:
            local.powers[piece.exponent] = local.powers.get(piece.exponent, 0.0) + piece.weight
        else:
            local.energies.append((piece.weight, piece.energy))
    for bounds in structure.bounds:
        if bounds.weight < 0:
            raise ValueError(
                f"{bounds.term!r} is 0 or ∞, and cannot be multiplied by {bounds.weight:g}; use a positive factor"
            )
        lower, upper = bounds.at(grid.points)
        local.lower = lower if local.lower is None else torch.maximum(local.lower, lower)
        local.upper = upper if local.upper is None else torch.minimum(local.upper, upper)
    terms.smooth += [_convolution(piece, grid) for piece in structure.interactions]
    others = replace(structure, bounds=()).others
    terms.smooth += [_by_autodiff(piece.term, piece.weight, grid) for piece in others]


def _convolution(interaction: Interaction, grid: Grid) -> Callable[[Tensor], Expansion]:
    """An interaction energy and W ∗ ρ, with the even part of W, whose transform is the real part."""
    spectrum = kernel_spectrum(grid, interaction.kernel).real
    no_curvature = grid.weights.new_zeros(len(grid))

    def expansion(mass: Tensor) -> Expansion:
        gradient = interaction.weight * grid.flatten(convolve(grid.unflatten(mass), spectrum))
        return float(mass @ gradient) / 2, gradient, no_curvature

    return expansion


def _by_autodiff(functional: Functional, weight: float, grid: Grid) -> Callable[[Tensor], Expansion]:
    """c F, its first variation and an estimate of the diagonal of its Hessian, from nothing but the value of F.

    The estimate is z ⊙ (H z) for signs z that alternate like a chessboard (Tang and Saad, *A probing method for
    computing the diagonal of a matrix inverse*, 2012): exact for functionals that are local. Where entries of H change
    little from cell to cell, as those of a functional of integrals do, H z nearly vanishes, and what is left of them
    alternates in sign: an estimate above the mean of its neighbours is lowered to that.
    """
    index = torch.meshgrid(*(torch.arange(n, device=grid.device) for n in grid.shape), indexing="ij")
    signs = grid.flatten(1.0 - 2.0 * (torch.stack(index).sum(0) % 2)).to(grid.weights)
    count = _neighbours(grid, torch.ones_like(signs))
    flat: list[float] = []  # the value where the first variation was a constant, until it is seen to change

    def expansion(mass: Tensor) -> Expansion:
        with torch.enable_grad():
            weights = mass.detach().requires_grad_()
            value = functional(grid._with_weights(weights))
            if not value.requires_grad:
                refuse_cut_off(functional, grid, value, grid.with_weights((mass + mass.mean()) / 2))
                return weight * float(value.detach()), torch.zeros_like(mass), torch.zeros_like(mass)
            (gradient,) = torch.autograd.grad(value, weights, create_graph=True)
            diagonal = torch.zeros_like(mass)
            if gradient.requires_grad:
                try:
                    (product,) = torch.autograd.grad(gradient, weights, signs, materialize_grads=True)
                    diagonal = signs * product
                    mean = _neighbours(grid, diagonal) / count.clamp(min=1)
                    diagonal = torch.where(count > 0, torch.minimum(diagonal, mean), diagonal)
                except RuntimeError:  # a value that is differentiable only once: no curvature, relaxation does it
                    pass
        gradient = gradient.detach()
        if not bool(torch.isfinite(gradient).all() & torch.isfinite(diagonal).all()):
            bad = int((~torch.isfinite(gradient) | ~torch.isfinite(diagonal)).sum())
            raise StepFailedError(
                f"the first variation of {functional!r} is NaN or infinite at {bad} of {len(mass)} cells; its value "
                "must be differentiable at every positive density (to keep mass out, use a mask in place of ∞)"
            )
        if not bool((gradient != gradient[0]).any()):
            _warn_of_change(functional, flat, float(value.detach()))
        return weight * float(value.detach()), weight * gradient, weight * diagonal

    return expansion


def _warn_of_change(functional: Functional, flat: list[float], value: float) -> None:
    """Warn, once, where F has changed between measures at which its first variation is a constant."""
    flat.append(value)
    gap = abs(value - flat[0])
    if math.isfinite(gap) and gap > math.sqrt(torch.finfo(torch.float64).eps) * abs(flat[0]):
        flat[0] = math.nan  # it is said once
        warn(
            f"{functional!r} changes by {gap:.3g} between two densities at both of which its derivative in the masses "
            f"is 0 everywhere: is it cut off from autograd {HOW_CUT}? The step does not see it; compute it with torch "
            "alone",
            RuntimeWarning,
        )


def _neighbours(grid: Grid, field: Tensor) -> Tensor:
    """The sum of a field (n,) over the free neighbours of each cell."""
    values = grid.unflatten(field)
    result = torch.zeros_like(values)
    for axis, n in enumerate(grid.shape):
        lower, upper = values.narrow(axis, 0, n - 1), values.narrow(axis, 1, n - 1)
        result.narrow(axis, 0, n - 1).add_(upper)
        result.narrow(axis, 1, n - 1).add_(lower)
    return grid.flatten(result)
