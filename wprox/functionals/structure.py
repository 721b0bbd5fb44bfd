"""What a functional is made of: the pieces whose values and derivatives solvers know, declared by the functional."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wprox._autograd import uncut
from wprox.measures import Measure


class Potential(NamedTuple):
    """c ∫ V dρ.

    Attributes:
        weight: c.
        function: V, maps points (n, d) to (n,).
        law: a law (measure or torch distribution) of density exp(−V), where V is minus its log-density.
        term: the functional that it stands for, where there is one.
        name: for messages.
    """

    weight: float
    function: Callable[[Tensor], Tensor]
    law: Any = None
    term: Any = None
    name: str = "a potential energy"


class Internal(NamedTuple):
    """c ∫ U(ρ(x)) dx.

    Attributes:
        weight: c.
        energy: U, maps densities (n,) to (n,), with U(0) = 0.
        exponent: m, where U(s) = s^m/(m − 1).
        term: the functional that it stands for, where there is one.
    """

    weight: float
    energy: Callable[[Tensor], Tensor]
    exponent: float | None = None
    term: Any = None


class Interaction(NamedTuple):
    """(c/2) ∬ W(x − y) dρ(x) dρ(y).

    Attributes:
        weight: c.
        kernel: W, even, maps differences (m, d) to (m,).
        batch_size: of the random batches by which particles estimate it; all pairs where `None`.
        term: the functional that it stands for, where there is one.
    """

    weight: float
    kernel: Callable[[Tensor], Tensor]
    batch_size: int | None = None
    term: Any = None

    def is_sampled(self, rho: Measure) -> bool:
        """Whether ρ draws pairs at random in place of taking all."""
        return self.batch_size is not None and rho.is_empirical and len(rho) > self.batch_size


class Bounds(NamedTuple):
    """0 where lower ≤ ρ ≤ upper, ∞ otherwise.

    Attributes:
        weight: its sign is all that counts.
        at: maps points (n, d) to the lower and the upper bound there, (n,) each.
        term: the functional that it stands for.
    """

    weight: float
    at: Callable[[Tensor], tuple[Tensor, Tensor]]
    term: Any


class Distance(NamedTuple):
    """c ½W₂²(ρ, ν).

    Attributes:
        weight: c.
        target: ν.
        term: the functional that it stands for.
    """

    weight: float
    target: Measure
    term: Any


class Rest(NamedTuple):
    """c F(ρ), of which nothing is known but its value and its first variation.

    Attributes:
        weight: c.
        term: F.
    """

    weight: float
    term: Any


@dataclass(frozen=True)
class Structure:
    r"""F(ρ) = Σ c ∫ V dρ + β ∫ ρ log ρ + Σ c ∫ U(ρ) + Σ (c/2) ∬ W dρ dρ + bounds + Σ c ½W₂²(ρ, ν) + the rest.

    What `Functional.structure` returns. Structures add, and numbers multiply them.

    Attributes:
        potentials: the potential energies; a divergence KL(· ‖ π) is the potential −log π and an entropy.
        entropy: β.
        internal: the internal energies.
        interactions: the interaction energies.
        bounds: the bounds on the density.
        distances: the squared Wasserstein distances.
        rest: everything else.

    Example:
        >>> import torch, wprox
        >>> F = wprox.KL(wprox.Gaussian(torch.zeros(2), torch.eye(2))) + 2 * wprox.Entropy()
        >>> structure = F.structure()
        >>> structure.entropy, len(structure.potentials), structure.is_gibbs
        (3.0, 1, True)
    """

    potentials: tuple[Potential, ...] = ()
    entropy: float = 0.0
    internal: tuple[Internal, ...] = ()
    interactions: tuple[Interaction, ...] = ()
    bounds: tuple[Bounds, ...] = ()
    distances: tuple[Distance, ...] = ()
    rest: tuple[Rest, ...] = ()

    def __add__(self, other: Structure) -> Structure:
        return Structure(**{name: mine + getattr(other, name) for name, mine in self._pieces()})

    def __rmul__(self, factor: float) -> Structure:
        if factor == 0:
            return Structure()
        scaled: dict[str, Any] = {"entropy": factor * self.entropy}
        for name, pieces in self._pieces():
            if name != "entropy":
                scaled[name] = tuple(piece._replace(weight=factor * piece.weight) for piece in pieces)
        return Structure(**scaled)

    def _pieces(self) -> list[tuple[str, Any]]:
        return [(field.name, getattr(self, field.name)) for field in fields(self)]

    def potential(self, x: Tensor) -> Tensor:
        """V = Σ c_j V_j at points (n, d), (n,)."""
        value = x.new_zeros(len(x))
        for piece in self.potentials:
            value = value + piece.weight * uncut(piece.function, piece.name)(x)
        return value

    def potential_gradient(self, x: Tensor) -> Tensor:
        """∇V at points (n, d), (n, d), by automatic differentiation."""
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            value = self.potential(points).sum()
            if not value.requires_grad:  # V is constant
                return torch.zeros_like(x)
            return torch.autograd.grad(value, points)[0]

    @property
    def is_gibbs(self) -> bool:
        """Whether F is ∫ V dρ + β ∫ ρ log ρ with β > 0, so that F − min F is β KL to its minimiser."""
        return self.entropy > 0 and self._only("potentials", "entropy")

    @property
    def is_smooth(self) -> bool:
        """Whether F is a sum of potentials and interactions alone."""
        return self._only("potentials", "interactions")

    @property
    def is_quadratic_but_for_its_parts(self) -> bool:
        """Whether F is a sum of potentials, interactions and entropy alone."""
        return self._only("potentials", "interactions", "entropy")

    @property
    def law(self) -> Any:
        """The normalised law to which F is a multiple of KL, `None` where it is not one or not known."""
        if not self.is_gibbs or len(self.potentials) != 1:
            return None
        (potential,) = self.potentials
        return potential.law if potential.weight == self.entropy else None

    @property
    def others(self) -> list[Rest]:
        """Bounds, distances and the rest: what is known by functionals alone."""
        return [
            Rest(piece.weight, piece.term) for pieces in (self.bounds, self.distances, self.rest) for piece in pieces
        ]

    def _only(self, *names: str) -> bool:
        return not any(pieces for name, pieces in self._pieces() if name not in names)
