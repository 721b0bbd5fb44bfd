"""A functional as a sum of terms of one kind each, which schemes that split it treat one by one."""

from __future__ import annotations

from collections.abc import Callable

from wprox.functionals.base import Functional, Sum
from wprox.functionals.energies import Entropy, InteractionEnergy, InternalEnergy, PotentialEnergy
from wprox.functionals.structure import Interaction, Internal, Potential, Structure

Term = tuple[float, Functional]


def terms_of_one_kind(structure: Structure) -> list[Term]:
    """The pairs (c_j, F_j) with F = Σ c_j F_j, each a potential, the entropy, an interaction or whatever else there is.

    KL(· ‖ π) is two of them, the potential −log π and the entropy.
    """
    terms = [(piece.weight, _known(piece, PotentialEnergy)) for piece in structure.potentials]
    if structure.entropy:
        terms.append((structure.entropy, Entropy()))
    terms += [(piece.weight, _known(piece, InternalEnergy)) for piece in structure.internal]
    terms += [(piece.weight, _known(piece, InteractionEnergy)) for piece in structure.interactions]
    return terms + [(piece.weight, piece.term) for piece in structure.others]


def _known(piece: Potential | Internal | Interaction, cls: Callable[..., Functional]) -> Functional:
    """The functional that a piece stands for, or one of its function, the second of its entries."""
    return cls(piece[1]) if piece.term is None else piece.term


def as_sum(terms: list[Term]) -> Functional:
    """Σ c_j F_j; the term itself where it is one of weight 1, and 0 where there is none."""
    if len(terms) == 1 and terms[0][0] == 1:
        return terms[0][1]
    return Sum(terms) if terms else PotentialEnergy(lambda x: x.new_zeros(len(x)))
