"""Kernels of discrepancies, for `MMD` and `KSD`, and a bandwidth for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wprox._checks import as_points, check_positive
from wprox._random import Seed, as_seed, make_generator
from wprox.kernels.base import RadialKernel, hold_number, norm_to, raise_to

MEDIAN_POINTS = 1000  # at most, among whose pairs the median distance is looked for


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
        hold_number(self, "bandwidth", check_positive)

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
        hold_number(self, "bandwidth", check_positive)

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
        hold_number(self, "bandwidth", check_positive)
        hold_number(self, "exponent", check_positive)

    @property
    def smooth(self) -> bool:  # type: ignore[override]
        return True

    def profile(self, s: Tensor) -> Tensor:
        return raise_to(s * (1 / self.bandwidth**2) + 1, -self.exponent)

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
        hold_number(self, "exponent", check_positive)
        if not self.exponent < 2:
            raise ValueError(
                f"the exponent of a Riesz kernel must lie between 0 and 2, got {self.exponent:g}: at 2 the discrepancy "
                "sees nothing but the means, and beyond it is none"
            )

    def profile(self, s: Tensor) -> Tensor:
        return -norm_to(s, self.exponent)

    def derivatives(self, s: Tensor, order: int) -> list[Tensor]:
        if order > 1:
            return super().derivatives(s, order)
        power = norm_to(s, self.exponent)
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
    x, seed = as_points(points, "points").detach().double(), as_seed(seed)
    if len(x) > MEDIAN_POINTS:
        x = x[torch.randperm(len(x), generator=make_generator(seed))[:MEDIAN_POINTS].to(x.device)]
    distances = torch.pdist(x)
    if not bool((distances > 0).any()):
        raise ValueError(f"the {len(x)} points coincide, so that no distance tells a bandwidth; give one as a number")
    return float(distances[distances > 0].median())
