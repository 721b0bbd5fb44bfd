"""Kernels of attraction and repulsion, for `InteractionEnergy`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wprox._checks import check_length, check_non_negative, check_number, check_positive
from wprox.kernels.base import RadialKernel, hold_number, norm_to, over_exponent

LARGEST = 1e3  # of an exponent: distances of 2 and more overflow


@dataclass(frozen=True)
class PowerLaw(RadialKernel):
    r"""W(z) = |z|^a/a − |z|^b/b: attraction of exponent a, repulsion of exponent b < a; |z|⁰/0 stands for log |z|.

    The patterns of its minimisers, discs, rings, spots and annuli, are those of Kolokolnikov, Sun, Uminsky and
    Bertozzi (*Stability of ring patterns arising from two-dimensional particle interactions*, 2011) and Balagué,
    Carrillo, Laurent and Raoul (*Dimensionality of local minimizers of the interaction energy*, 2013). It is singular
    for b ≤ 0; for b ≥ 2 the energy is −c-convex with the c that `modulus` knows.

    Arguments:
        attraction: a.
        repulsion: b < a.

    Example:
        >>> import torch, wprox
        >>> wprox.kernels.PowerLaw(4, 2)(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([-0.2500,  2.0000])
    """

    attraction: float
    repulsion: float

    def __post_init__(self) -> None:
        a, b = check_number(self.attraction, "attraction"), check_number(self.repulsion, "repulsion")
        if not -LARGEST <= b < a <= LARGEST:
            raise ValueError(
                f"the exponent of attraction must be finite and larger than that of repulsion, got {a:g} and {b:g}, "
                f"neither of them beyond ±{LARGEST:g}; "
                "else the kernel repels at long range and has no minimiser"
            )
        for name, exponent in (("attraction", a), ("repulsion", b)):
            check_length(abs(exponent) or 1.0, name)
        object.__setattr__(self, "attraction", a)
        object.__setattr__(self, "repulsion", b)

    @property
    def singular(self) -> bool:  # type: ignore[override]
        return self.repulsion <= 0

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        return self.repulsion >= 2 and self.attraction % 2 == 0 and self.repulsion % 2 == 0

    @property
    def modulus(self) -> float | None:  # type: ignore[override]
        a, b = self.attraction, self.repulsion
        if b < 2:
            return None
        # the eigenvalues of ∇²W at distance r are r^{a−2} − r^{b−2} and (a − 1) r^{a−2} − (b − 1) r^{b−2}
        least = 0.0
        for along, against in ((1.0, 1.0), (a - 1, b - 1)):
            ratio = against * (b - 2) / (along * (a - 2))  # r^{a−b} at the minimum
            r = ratio ** (1 / (a - b))
            least = min(least, along * r ** (a - 2) - against * r ** (b - 2))
        return least

    def profile(self, s: Tensor) -> Tensor:
        return over_exponent(s, self.attraction) - over_exponent(s, self.repulsion)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        values = [self.profile(s)]
        if order:
            values.append((norm_to(s, self.attraction - 2) - norm_to(s, self.repulsion - 2)).mul_(0.5))
        return values


@dataclass(frozen=True)
class Morse(RadialKernel):
    r"""W(z) = C_r exp(−|z|/ℓ_r) − C_a exp(−|z|/ℓ_a), repulsion against attraction that both fade.

    D'Orsogna, Chuang, Bertozzi and Chayes (*Self-propelled particles with soft-core interactions*, 2006). Particles
    keep apart at short range where C_r/ℓ_r > C_a/ℓ_a, and their distances stay bounded below as their number grows
    (H-stability) where C_r ℓ_r^d > C_a ℓ_a^d; else the swarm becomes denser the more particles there are.

    Arguments:
        repulsion: C_r.
        repulsion_length: ℓ_r.
        attraction: C_a.
        attraction_length: ℓ_a.

    Example:
        >>> import torch, wprox
        >>> wprox.kernels.Morse(2.0, 0.5, 1.0, 1.0)(torch.zeros(1, 2))
        tensor([1.])
    """

    repulsion: float
    repulsion_length: float
    attraction: float = 1.0
    attraction_length: float = 1.0

    def __post_init__(self) -> None:
        hold_number(self, "repulsion", check_non_negative)
        hold_number(self, "attraction", check_non_negative)
        hold_number(self, "repulsion_length", check_positive)
        hold_number(self, "attraction_length", check_positive)

    def profile(self, s: Tensor) -> Tensor:
        r = s.sqrt()
        repulsion = (r * (-1 / self.repulsion_length)).exp() * self.repulsion
        return repulsion - (r * (-1 / self.attraction_length)).exp() * self.attraction

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        r = s.sqrt()
        attraction = (r * (-1 / self.attraction_length)).exp_()
        ratio = self.attraction_length / self.repulsion_length
        if ratio == 2:  # an exponential less is an eighth of the time of a pair sum
            repulsion = attraction.square().mul_(self.repulsion)
        else:
            repulsion = (r * (-1 / self.repulsion_length)).exp_().mul_(self.repulsion)
        value = torch.sub(repulsion, attraction, alpha=self.attraction)
        slope = attraction.mul_(0.5 * self.attraction / self.attraction_length)
        return [value, slope.sub_(repulsion, alpha=0.5 / self.repulsion_length).div_(r)][: order + 1]


@dataclass(frozen=True)
class Logarithmic(RadialKernel):
    r"""W(z) = −log |z|, repulsion; in the plane the one of electric charges.

    Its energy is the logarithmic energy of potential theory (Saff and Totik, *Logarithmic potentials with external
    fields*, 1997): with the potential ½|x|², its minimisers fill a disc in the plane and follow Wigner's semicircle law
    on the line. Singular.

    Example:
        >>> import torch, wprox
        >>> wprox.kernels.Logarithmic()(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        tensor([-0., inf])
    """

    @property
    def singular(self) -> bool:  # type: ignore[override]
        return True

    def profile(self, s: Tensor) -> Tensor:
        return -over_exponent(s, 0.0)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        return [self.profile(s), s.reciprocal().mul_(-0.5)][: order + 1]
