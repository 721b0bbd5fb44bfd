"""Subclasses of the library's functionals with values of their own, for laws that ask which value a solver takes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from wprox.functionals import KL, Entropy, Functional, InteractionEnergy, PorousMedium, PotentialEnergy
from wprox.measures import Measure
from wprox.testing.examples import half_square, standard_normal


class _Doubled:
    """A mixin that doubles the value and leaves all else as it was."""

    def __call__(self, rho: Measure) -> Tensor:
        return 2 * super().__call__(rho)  # type: ignore[misc]


class _Twice(Functional):
    """Twice the value of a functional, of which nothing else is known."""

    def __init__(self, functional: Functional) -> None:
        self.functional = functional

    def __call__(self, rho: Measure) -> Tensor:
        return 2 * self.functional(rho)


def doubled(dim: int) -> list[list[tuple[Functional, Functional]]]:
    """Pairs of a subclass that doubles the value of its parent and a functional of one's own that does.

    Some solvers want an entropy, others refuse one: of each kind there is a pair with and one without it.
    """
    target = standard_normal(dim)
    kinds: list[tuple[type[Functional], Callable[[type], Functional]]] = [
        (PotentialEnergy, lambda cls: cls(half_square)),
        (InteractionEnergy, lambda cls: cls(half_square)),
        (Entropy, lambda cls: cls()),
        (KL, lambda cls: cls(target)),
        (PorousMedium, lambda cls: cls(2.0)),
    ]
    found = []
    for parent, build in kinds:
        subclass = build(type(f"Doubled{parent.__name__}", (_Doubled, parent), {}))
        own = _Twice(build(parent))
        extras: list[Functional] = [0.5 * PotentialEnergy(half_square), 0.5 * KL(target)]
        found.append([(subclass + extra, own + extra) for extra in extras])
    return found
