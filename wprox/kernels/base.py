"""Kernels by what is known of them: functions of the distance, and even functions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wprox._autograd import uncut
from wprox._checks import check_count

if TYPE_CHECKING:
    from typing_extensions import Self

BACKENDS = ("auto", "blocks", "keops")


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
            values = [uncut(self.profile, self, "the profile of ")(points) if order else self.profile(points)]
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


def as_even(kernel: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A kernel itself where it says that it is even, any other function as an `EvenKernel`."""
    return kernel if isinstance(kernel, RadialKernel | EvenKernel) else EvenKernel(kernel)


def check_backend(backend: str) -> str:
    """One of BACKENDS.

    Raises:
        ValueError: for anything else.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {list(BACKENDS)}, got {backend!r}")
    return backend


def norm_to(s: Tensor, exponent: float) -> Tensor:
    """|z|^exponent at s = |z|²."""
    if exponent == 0:
        return torch.ones_like(s)
    return s * 1.0 if exponent == 2 else raise_to(s, exponent / 2)


def raise_to(s: Tensor, power: float) -> Tensor:
    """s^power; by products or by the logarithm for KeOps, which has powers in single precision alone (pykeops 2.3)."""
    if isinstance(s, Tensor):
        return s.pow(power)
    return math.prod([s] * int(power)) if power > 0 and float(power).is_integer() else (s.log() * power).exp()


def over_exponent(s: Tensor, exponent: float) -> Tensor:
    """|z|^p/p at s = |z|², log |z| for p = 0."""
    return s.log() * 0.5 if exponent == 0 else norm_to(s, exponent) * (1 / exponent)
