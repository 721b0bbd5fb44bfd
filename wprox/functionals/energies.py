"""Potential, interaction and internal energies."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wprox._autograd import uncut
from wprox._checks import check_count, check_finite_number, check_function, check_number, evaluate, evaluate_one
from wprox._random import check_seed
from wprox.functionals.base import Functional, check_scalar, gradient_in_points
from wprox.functionals.structure import Interaction, Internal, Potential, Structure
from wprox.kernels import RadialKernel
from wprox.kernels.base import as_even
from wprox.measures import Measure

LARGEST_EXPONENT = 1e6  # of a density


class PotentialEnergy(Functional):
    r"""F(ρ) = ∫ V dρ.

    Its Wasserstein gradient is ∇V; λ-convex where V is (Ambrosio, Gigli and Savaré, *Gradient flows*, section 9.3).

    Arguments:
        potential: V, maps points (n, d) to (n,).
        modulus: λ with ∇²V ⪰ λ I, where you know it.

    Example:
        >>> import torch, wprox
        >>> F = wprox.PotentialEnergy(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
        >>> F(wprox.Particles(torch.tensor([[1.0, 1.0], [0.0, 2.0]])))
        tensor(1.5000)
    """

    law: Any = None  # of density exp(−V), where V comes from one; see `KL`

    def __init__(self, potential: Callable[[Tensor], Tensor], modulus: float | None = None) -> None:
        self.potential = check_function(potential, "potential")
        self.modulus = as_modulus(modulus)

    def __call__(self, rho: Measure) -> Tensor:
        return check_scalar(rho.integrate(uncut(self.potential, self)), self)

    def structure(self) -> Structure:
        return Structure(potentials=(Potential(1.0, self.potential, self.law, self),))

    def needs_density(self, rho: Measure) -> bool:
        return False

    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        return self._watched

    def _watched(self, x: Tensor) -> Tensor:
        return evaluate(uncut(self.potential, self), x, "potential")

    def __repr__(self) -> str:
        return f"PotentialEnergy({_name(self.potential)})"


class InteractionEnergy(Functional):
    r"""F(ρ) = ½ ∬ W(x − y) dρ(x) dρ(y), for a symmetric kernel W(z) = W(−z).

    Its Wasserstein gradient is ∇W ∗ ρ; convex where W is (McCann, *A convexity principle for interacting gases*, 1997).

    Random batches (Jin, Li and Liu, *Random batch methods for interacting particle systems*, 2020) make a step of many
    particles cheap: they are shuffled into batches of p, and only pairs of one batch interact, more strongly in turn,
    so that the mean over shuffles is F: n p pairs in place of n². The shuffle is fixed within a step, as line searches
    need it, and new in every step of `jko`; the values of a trajectory are then those of the batches.

    Arguments:
        kernel: W, one of `wprox.kernels`, whose pair sums are the fastest, or an even function of differences (m, d) →
            (m,), of which `wprox.kernels.EvenKernel` sets the memory.
        modulus: λ of the energy, where you know it: 0 for convex W; −c where ∇²W ⪰ −c I with c ≥ 0. That of the kernel
            by default.
        batch_size: p ≥ 2, for random batches; all pairs by default. It concerns `Particles`; other measures know
            better rules and use all pairs.
        seed: of the shuffles.

    Raises:
        ValueError: for particles and a function that is not even.

    Example:
        >>> import torch, wprox
        >>> F = wprox.InteractionEnergy(lambda z: z.square().sum(-1))
        >>> F(wprox.Particles(torch.tensor([[0.0], [2.0]])))
        tensor(1.)
    """

    def __init__(
        self,
        kernel: Callable[[Tensor], Tensor],
        modulus: float | None = None,
        batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        self.kernel = check_function(kernel, "kernel", "of differences")
        modulus = as_modulus(modulus)
        if modulus is None and isinstance(kernel, RadialKernel):
            modulus = self._unless_overridden(InteractionEnergy, kernel.modulus)
        if modulus is not None and modulus > 0:
            raise ValueError(
                f"an interaction energy does not change under translations, so its modulus is at most 0, got "
                f"{modulus:g}; 0 is right for every convex kernel"
            )
        self.modulus = modulus
        self.batch_size = None if batch_size is None else check_count(batch_size, "batch_size", least=2)
        self.seed = check_seed(seed)
        self._step = 0

    def __call__(self, rho: Measure) -> Tensor:
        if self.batch_size is None:
            return rho.integrate_pairs(as_even(self.kernel)) / 2
        seed = (self.seed + 0x9E3779B97F4A7C15 * self._step) % 2**63
        return rho.integrate_random_batches(as_even(self.kernel), self.batch_size, seed) / 2

    def structure(self) -> Structure:
        return Structure(interactions=(Interaction(1.0, self.kernel, self.batch_size, self),))

    def needs_density(self, rho: Measure) -> bool:
        return False

    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        """W ∗ ρ with all pairs, the mean over shuffles where there are random batches."""
        rho, kernel = rho.detach(), as_even(self.kernel)
        return partial(rho.convolve, kernel)

    def at_step(self, index: int) -> InteractionEnergy:
        if self.batch_size is None:
            return self
        result = copy(self)
        result._step = index
        return result

    def __repr__(self) -> str:
        name = getattr(self.kernel, "__name__", None) or (
            repr(self.kernel) if isinstance(self.kernel, RadialKernel) else type(self.kernel).__name__
        )
        return f"InteractionEnergy({name}{'' if self.batch_size is None else f', batch_size={self.batch_size}'})"


class Entropy(Functional):
    r"""F(ρ) = ∫ ρ log ρ dx, the negative differential entropy.

    Its Wasserstein gradient is ∇ log ρ and its gradient flow the heat equation; convex (McCann 1997). Where the initial
    density is unknown, `NeuralProx` minimises it all the same and reports it up to the constant ∫ log μ dμ.

    Example:
        >>> import torch, wprox
        >>> wprox.Entropy()(wprox.Gaussian(torch.zeros(1), torch.eye(1)))
        tensor(-1.4189)
    """

    modulus = 0.0

    def __call__(self, rho: Measure) -> Tensor:
        return rho.mean_log_density()

    def structure(self) -> Structure:
        return Structure(entropy=1.0)

    def needs_density(self, rho: Measure) -> bool:
        return True

    def __repr__(self) -> str:
        return "Entropy()"


class InternalEnergy(Functional):
    r"""F(ρ) = ∫ U(ρ(x)) dx = E_ρ[U(ρ)/ρ].

    Its Wasserstein gradient is ∇U′(ρ) = ρ U″(ρ) ∇ log ρ (Ambrosio, Gigli and Savaré, section 10.4.3). It needs the
    density.

    Arguments:
        energy: U, maps densities (n,) to (n,), with U(0) = 0.
        modulus: 0 where U satisfies McCann's condition (s ↦ s^d U(s^{−d}) convex and non-increasing), if you know it.

    Example:
        >>> import torch, wprox
        >>> F = wprox.InternalEnergy(lambda density: density**2)
        >>> F(wprox.Particles([[0.0], [1.0]], log_density=[0.0, 0.0]))
        tensor(1.)
    """

    def __init__(self, energy: Callable[[Tensor], Tensor], modulus: float | None = None) -> None:
        self.energy = check_function(energy, "energy", "of densities")
        self.modulus = as_modulus(modulus)

    def __call__(self, rho: Measure) -> Tensor:
        def per_mass(density: Tensor) -> Tensor:
            # U(0) = 0, so that empty cells of a Grid count nothing; the inner `where` keeps 0/0 out of the gradient
            positive = torch.where(density > 0, density, torch.ones_like(density))
            energy = self._watched(positive)
            return torch.where(density > 0, energy / positive, torch.zeros_like(density))

        return rho.integrate_density(per_mass)

    def structure(self) -> Structure:
        return Structure(internal=(Internal(1.0, self._watched, term=self),))

    def _watched(self, density: Tensor) -> Tensor:
        return evaluate_one(uncut(self.energy, self), density, "energy")

    def needs_density(self, rho: Measure) -> bool:
        return True

    def wasserstein_gradient(self, rho: Measure) -> Tensor:
        if rho.density_follows_points:
            return gradient_in_points(self, rho)
        with torch.enable_grad():
            density = rho.log_density().detach().exp().requires_grad_()
            energy = self._watched(density)
            if not energy.requires_grad:  # U is constant
                return torch.zeros_like(rho.points)
            (slope,) = torch.autograd.grad(energy.sum(), density, create_graph=True)
            if not slope.requires_grad:  # U is linear: a constant first variation
                return torch.zeros_like(rho.points)
            (curvature,) = torch.autograd.grad(slope.sum(), density)
        return (density.detach() * curvature)[:, None] * rho.score()

    def __repr__(self) -> str:
        return f"InternalEnergy({_name(self.energy)})"


class PorousMedium(InternalEnergy):
    r"""F(ρ) = ∫ ρ^m / (m − 1) dx, whose gradient flow is ∂_t ρ = Δ ρ^m (Otto 2001).

    Slow diffusion for m > 1, fast diffusion for m < 1; convex for m ≥ 1 − 1/d, so `modulus` is 0 for m > 1 (for m < 1
    it depends on the dimension and is left unknown). m = 1 is `Entropy`.

    Arguments:
        exponent: m, positive and not 1.

    Example:
        >>> import torch, wprox
        >>> wprox.PorousMedium(2.0)(wprox.Particles([[0.0], [1.0]], log_density=[0.0, 0.0]))
        tensor(1.)
    """

    def __init__(self, exponent: float) -> None:
        m = check_number(exponent, "the exponent m")
        if m > LARGEST_EXPONENT:
            raise ValueError(f"the exponent m must be at most {LARGEST_EXPONENT:g}, got {m:g}: powers of it overflow")
        if not 0 < m < math.inf or m == 1:
            raise ValueError(f"the exponent m must be positive and not 1, got {m:g}; m = 1 is wprox.Entropy()")
        modulus = self._unless_overridden(InternalEnergy, 0.0) if m > 1 else None
        super().__init__(partial(_power, exponent=m), modulus)
        self.exponent = m

    def structure(self) -> Structure:
        return Structure(internal=(Internal(1.0, self.energy, self.exponent, self),))

    def __repr__(self) -> str:
        return f"PorousMedium({self.exponent:g})"


def as_modulus(modulus: Any) -> float | None:
    """λ as a finite number, `None` where it is not known."""
    return None if modulus is None else check_finite_number(modulus, "modulus")


def _power(density: Tensor, exponent: float) -> Tensor:
    """ρ^m/(m − 1)."""
    return density**exponent / (exponent - 1)


def _name(f: object) -> str:
    return getattr(f, "__name__", type(f).__name__)
