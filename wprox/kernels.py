"""Radial kernels: of attraction and repulsion for `InteractionEnergy`, of discrepancies for `MMD` and `KSD`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wprox._checks import as_points, check_count, check_non_negative, check_positive
from wprox._random import Seed, make_generator

if TYPE_CHECKING:
    from typing_extensions import Self

BACKENDS = ("auto", "blocks", "keops")
MEDIAN_POINTS = 1000  # at most, among whose pairs the median distance is looked for


class RadialKernel(ABC):
    r"""A kernel k(z) = φ(|z|²), a function of the distance alone.

    That it is one makes sums over pairs fast: distances come from a matrix product, and value and gradient from one
    pass, ∇k(z) = 2φ′(|z|²) z. A kernel of your own is a subclass with `profile`.

    Attributes:
        singular: whether k is infinite at 0, as the logarithm is. A particle then does not act on itself: sums over
            the pairs of particles leave i = j out.
        smooth: whether k has all derivatives at 0. Where it has not, its gradient at 0 is taken to be 0, as symmetry
            demands.
        modulus: λ for `InteractionEnergy`, where it is known (0 for convex kernels, never positive).
        backend: what sums the kernel over all pairs of points: blocks of pairs in torch ("blocks"), KeOps ("keops"), or
            the one that is faster ("auto"): KeOps where it is installed and the points are on a GPU, else blocks.
            `with_backend` sets it.

    Example:
        >>> import torch, wprox
        >>> class Spring(wprox.kernels.RadialKernel):
        ...     smooth = True
        ...
        ...     def profile(self, s):
        ...         return s / 2
        >>> wprox.InteractionEnergy(Spring())(wprox.Particles(torch.tensor([[0.0], [2.0]])))
        tensor(0.5000)
    """

    singular: bool = False
    smooth: bool = False
    modulus: float | None = None
    backend: str = "auto"

    @abstractmethod
    def profile(self, s: Tensor) -> Tensor:
        """φ at squared distances s of any shape, by torch.

        For KeOps it must be written with operators and methods (`(-s).exp()`), and powers as `(p * s.log()).exp()`:
        its own are of single precision.
        """

    def with_backend(self, backend: str) -> Self:
        """The same kernel, summed by `backend`: "auto", "blocks" or "keops" (pip install pykeops).

        Example:
            >>> import wprox
            >>> wprox.kernels.Gaussian(2.0).with_backend("blocks").backend
            'blocks'
        """
        kernel = copy(self)
        object.__setattr__(kernel, "backend", check_backend(backend))  # the kernels here are frozen
        return kernel

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        """φ, φ′, …, up to `order`, at squared distances s; by automatic differentiation where not overridden."""
        with torch.enable_grad():
            points = s.detach().requires_grad_()
            values = [self.profile(points)]
            for _ in range(order):
                last = values[-1]
                slope = None
                if last.requires_grad:
                    (slope,) = torch.autograd.grad(last.sum(), points, create_graph=True, allow_unused=True)
                values.append(torch.zeros_like(s) if slope is None else slope)
        return [value.detach() for value in values]

    def __call__(self, z: Tensor) -> Tensor:
        """k at differences z: (m, d), (m,)."""
        s = z.square().sum(-1)
        if self.smooth:
            return self.profile(s)
        coincide = s == 0  # the inner `where` keeps 0 · ∞ out of the gradient
        apart = self.profile(torch.where(coincide, torch.ones_like(s), s))
        return torch.where(coincide, self.profile(torch.zeros_like(s[:1])).detach(), apart)


@dataclass(frozen=True)
class EvenKernel:
    r"""A function of differences as a kernel, k(z) = k(−z): sums over pairs of particles take each pair once.

    `InteractionEnergy` makes one of any function; take it yourself to set the memory of the sums.

    Arguments:
        function: k, maps differences (m, d) to values (m,).
        singular: whether k is infinite at 0; that of the function by default, where it has such an attribute.
        memory_budget: the bytes of the differences that are formed at once, of which the function makes a few copies;
            by default 1 MB, which stays in the cache of a CPU, and 64 MB on a GPU.

    Example:
        >>> import torch, wprox
        >>> kernel = wprox.kernels.EvenKernel(lambda z: z.square().sum(-1), memory_budget=2**16)
        >>> wprox.InteractionEnergy(kernel)(wprox.Particles(torch.tensor([[0.0], [2.0]])))
        tensor(1.)
    """

    function: Callable[[Tensor], Tensor]
    singular: bool | None = None
    memory_budget: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be a function of differences, got {type(self.function).__name__}")
        if self.singular is None:
            object.__setattr__(self, "singular", bool(getattr(self.function, "singular", False)))
        if self.memory_budget is not None:
            check_count(self.memory_budget, "memory_budget")

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, z: Tensor) -> Tensor:
        return self.function(z)


# --- attraction and repulsion ---


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
        a, b = float(self.attraction), float(self.repulsion)
        if not b < a < float("inf"):
            raise ValueError(
                f"the exponent of attraction must be finite and larger than that of repulsion, got {a:g} and {b:g}; "
                "else the kernel repels at long range and has no minimiser"
            )
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
        return _over_exponent(s, self.attraction) - _over_exponent(s, self.repulsion)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        values = [self.profile(s)]
        if order:
            values.append((_power(s, self.attraction - 2) - _power(s, self.repulsion - 2)).mul_(0.5))
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
        check_non_negative(self.repulsion, "repulsion")
        check_non_negative(self.attraction, "attraction")
        check_positive(self.repulsion_length, "repulsion_length")
        check_positive(self.attraction_length, "attraction_length")

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
        return -_over_exponent(s, 0.0)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        return [self.profile(s), s.reciprocal().mul_(-0.5)][: order + 1]


# --- discrepancies ---


@dataclass(frozen=True)
class Gaussian(RadialKernel):
    r"""k(z) = exp(−|z|²/(2h²)), positive definite and characteristic.

    Arguments:
        bandwidth: h; `median_bandwidth` finds one for a cloud of points.

    Example:
        >>> import torch, wprox
        >>> wprox.kernels.Gaussian(2.0)(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        tensor([1.0000, 0.6065])
    """

    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.bandwidth, "bandwidth")

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        return True

    def profile(self, s: Tensor) -> Tensor:
        return (s * (-0.5 / self.bandwidth**2)).exp()

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        value, rate = self.profile(s), -0.5 / self.bandwidth**2
        return [value * rate**k if k else value for k in range(order + 1)]


@dataclass(frozen=True)
class Laplace(RadialKernel):
    r"""k(z) = exp(−|z|/h), positive definite and characteristic, with a cusp at 0.

    Arguments:
        bandwidth: h.

    Example:
        >>> import torch, wprox
        >>> wprox.kernels.Laplace(2.0)(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
        tensor([1.0000, 0.3679])
    """

    bandwidth: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.bandwidth, "bandwidth")

    def profile(self, s: Tensor) -> Tensor:
        return (s.sqrt() * (-1 / self.bandwidth)).exp()

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        r = s.sqrt()
        value = (r * (-1 / self.bandwidth)).exp()
        return [value, (value / r).mul_(-0.5 / self.bandwidth)][: order + 1]


@dataclass(frozen=True)
class InverseMultiquadric(RadialKernel):
    r"""k(z) = (1 + |z|²/h²)^{−β}, positive definite and characteristic, with tails that decay slowly.

    With β in (0, 1) the kernel Stein discrepancy built on it controls weak convergence (Gorham and Mackey, *Measuring
    sample quality with kernels*, 2017, theorem 8); the Gaussian kernel does not.

    Arguments:
        bandwidth: h.
        exponent: β > 0.

    Example:
        >>> import torch, wprox
        >>> wprox.kernels.InverseMultiquadric()(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
        tensor([1.0000, 0.7071])
    """

    bandwidth: float = 1.0
    exponent: float = 0.5

    def __post_init__(self) -> None:
        check_positive(self.bandwidth, "bandwidth")
        check_positive(self.exponent, "exponent")

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        return True

    def profile(self, s: Tensor) -> Tensor:
        return _raise(s * (1 / self.bandwidth**2) + 1, -self.exponent)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        base = s * (1 / self.bandwidth**2) + 1
        values = [base.pow(-self.exponent)]
        inverse = base.reciprocal()
        for k in range(order):
            values.append((values[-1] * inverse).mul_(-(self.exponent + k) / self.bandwidth**2))
        return values


@dataclass(frozen=True)
class Riesz(RadialKernel):
    r"""k(z) = −|z|^r with 0 < r < 2, whose MMD is the energy distance: for r = 1, MMD² = 2E|X−Y| − E|X−X′| − E|Y−Y′|.

    Conditionally positive definite (Sejdinovic, Sriperumbudur, Gretton and Fukumizu, *Equivalence of distance-based and
    RKHS-based statistics in hypothesis testing*, 2013). It has no scale to choose, and no tails that vanish: far
    particles are pulled as strongly as near ones.

    Arguments:
        exponent: r.

    Example:
        >>> import torch, wprox
        >>> wprox.kernels.Riesz()(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([-5., -0.])
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not check_positive(self.exponent, "exponent") < 2:
            raise ValueError(
                f"the exponent of a Riesz kernel must lie between 0 and 2, got {self.exponent:g}: at 2 the discrepancy "
                "sees nothing but the means, and beyond it is none"
            )

    def profile(self, s: Tensor) -> Tensor:
        return -_power(s, self.exponent)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        power = _power(s, self.exponent)
        slope = [(power / s).mul_(-0.5 * self.exponent)] if order else []
        return [power.neg(), *slope]


def median_bandwidth(points: Any, seed: Seed = 0) -> float:
    r"""The median distance between two different points, the usual bandwidth where nothing better is known.

    Gretton, Borgwardt, Rasch, Schölkopf and Smola (*A kernel two-sample test*, 2012, section 8).

    Arguments:
        points: (n, d), n ≥ 2; beyond 1,000, that many of them.
        seed: of the choice.

    Example:
        >>> import wprox
        >>> wprox.kernels.median_bandwidth([[0.0], [1.0], [3.0]])
        2.0
    """
    x = as_points(points, "points").detach().double()
    if len(x) > MEDIAN_POINTS:
        x = x[torch.randperm(len(x), generator=make_generator(seed))[:MEDIAN_POINTS].to(x.device)]
    distances = torch.pdist(x)
    if not bool((distances > 0).any()):
        raise ValueError(f"the {len(x)} points coincide, so that no distance tells a bandwidth; give one as a number")
    return float(distances[distances > 0].median())


def check_backend(backend: str) -> str:
    """One of BACKENDS.

    Raises:
        ValueError: for anything else.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    return backend


def _power(s: Tensor, exponent: float) -> Tensor:
    """|z|^exponent at s = |z|²."""
    if exponent == 0:
        return torch.ones_like(s)
    return s * 1.0 if exponent == 2 else _raise(s, exponent / 2)


def _raise(s: Tensor, power: float) -> Tensor:
    """s^power; by products or by the logarithm for KeOps, which has powers in single precision alone (pykeops 2.3)."""
    if isinstance(s, Tensor):
        return s.pow(power)
    return math.prod([s] * int(power)) if power > 0 and float(power).is_integer() else (s.log() * power).exp()


def _over_exponent(s: Tensor, exponent: float) -> Tensor:
    """|z|^p/p at s = |z|², log |z| for p = 0."""
    return s.log() * 0.5 if exponent == 0 else _power(s, exponent) * (1 / exponent)
