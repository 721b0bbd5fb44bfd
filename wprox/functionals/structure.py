"""A functional taken apart into the pieces whose derivatives the exact solvers know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wprox.functionals.base import Functional, check_scalar, terms_of
from wprox.functionals.divergences import KL
from wprox.functionals.energies import Entropy, InteractionEnergy, InternalEnergy, PotentialEnergy
from wprox.measures import Measure


@dataclass
class Pieces:
    r"""F(ρ) = ∫ V dρ + β ∫ ρ log ρ dx + Σ_j c_j ∫ U_j(ρ) dx + Σ_j (c_j/2) ∬ W_j(x − y) dρ dρ + the rest.

    Attributes:
        potentials: pairs (c_j, V_j) with V = Σ c_j V_j, for the potential energies.
        divergences: pairs (c_j, KL_j); each contributes −c_j log π_j to V and c_j to β.
        entropy: β, with the part that comes from the divergences.
        internal: pairs (c_j, InternalEnergy).
        interactions: pairs (c_j, InteractionEnergy).
        rest: pairs (c_j, F_j) of which nothing is known but that they can be called.
    """

    potentials: list[tuple[float, Callable[[Tensor], Tensor]]] = field(default_factory=list)
    divergences: list[tuple[float, KL]] = field(default_factory=list)
    entropy: float = 0.0
    internal: list[tuple[float, InternalEnergy]] = field(default_factory=list)
    interactions: list[tuple[float, InteractionEnergy]] = field(default_factory=list)
    rest: list[tuple[float, Functional]] = field(default_factory=list)

    @property
    def has_potential(self) -> bool:
        return bool(self.potentials or self.divergences)

    def potential(self, x: Tensor) -> Tensor:
        """V at points (n, d), (n,); the part that comes from KL(· ‖ π) is −log π."""
        value = x.new_zeros(len(x))
        for weight, potential in self.potentials:
            value = value + weight * potential(x)
        for weight, divergence in self.divergences:
            value = value - weight * divergence.log_target(x)
        return value

    def potential_gradient(self, x: Tensor) -> Tensor:
        """∇V at points (n, d), (n, d), by automatic differentiation."""
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            value = self.potential(points).sum()
            if not value.requires_grad:  # V is constant
                return torch.zeros_like(x)
            return torch.autograd.grad(value, points)[0]


def split(functional: Functional) -> Pieces:
    """The pieces of a functional; a subclass that overrides `__call__` is not taken for what it derives from."""
    pieces = Pieces()
    for weight, term in terms_of(functional):
        if weight == 0:
            continue
        if isinstance(term, PotentialEnergy) and _is(term, PotentialEnergy):
            pieces.potentials.append((weight, term.potential))
        elif isinstance(term, KL) and _is(term, KL):
            pieces.divergences.append((weight, term))
            pieces.entropy += weight
        elif _is(term, Entropy):
            pieces.entropy += weight
        elif isinstance(term, InternalEnergy) and _is(term, InternalEnergy):
            pieces.internal.append((weight, term))
        elif isinstance(term, InteractionEnergy) and _is(term, InteractionEnergy):
            pieces.interactions.append((weight, term))
        else:
            pieces.rest.append((weight, term))
    return pieces


def apply(functional: Functional, rho: Measure) -> Tensor:
    """F(ρ), checked: a verb that the measure does not have, and a value that is not one number, are reported.

    Raises:
        TypeError: where F asks the measure for a method that it does not have (it names the method), returns something
            other than a tensor, or mixes the precision of the measure with another.
        ValueError: where F(ρ) is not a scalar.
    """
    try:
        value = functional(rho)
    except AttributeError as error:
        if error.obj is not rho:
            raise
        raise TypeError(
            f"{functional!r} does not apply to {type(rho).__name__}: it needs the method {error.name!r}, which "
            f"{type(rho).__name__} does not have. Every measure offers integrate, integrate_pairs, log_density, "
            "mean_log_density and integrate_density"
        ) from None
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        raise TypeError(
            f"{functional!r} mixes floating-point types ({error}): the solver computes in {rho.points.dtype}; make the "
            "tensors and networks inside it float64 (A.double(), net.double()), or cast x inside it to their type"
        ) from error
    check_scalar(value, functional)
    return value


def check_precision(pieces: Pieces, rho: Measure) -> None:
    """Raise `TypeError` where a potential or a log-density at float64 points comes in lower precision."""
    x = rho.points[:1].detach().double()
    with torch.no_grad():
        found = [("a potential energy", potential(x)) for _, potential in pieces.potentials]
        found += [(f"the log-density of {term!r}", term.log_target(x)) for _, term in pieces.divergences]
    for name, value in found:
        if value.dtype != torch.float64:
            raise TypeError(
                f"{name} is {value.dtype} at float64 points: the solver computes in float64, and its steps would stall "
                "at the coarser rounding; make the tensors, parameters and networks inside it float64"
            )


def _is(term: Functional, cls: type[Functional]) -> bool:
    return isinstance(term, cls) and type(term).__call__ is cls.__call__
