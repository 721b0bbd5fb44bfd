"""Divergences to a target density."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

from wprox._autograd import uncut
from wprox.functionals.base import Functional
from wprox.functionals.energies import PotentialEnergy
from wprox.functionals.structure import Potential, Structure
from wprox.measures import Gaussian, Measure
from wprox.measures.laws import as_gaussian, log_density_of


class KL(Functional):
    r"""F(ρ) = KL(ρ ‖ π) = ∫ ρ log(ρ/π) dx.

    Its Wasserstein gradient is ∇ log ρ − ∇ log π and its gradient flow the Fokker–Planck equation of Langevin dynamics
    (Jordan, Kinderlehrer and Otto 1998); λ-convex where −log π is. Where π is not normalised, the value is off by the
    constant log Z; where the initial density is unknown, `NeuralProx` reports it up to the constant ∫ log μ dμ.

    Arguments:
        target: a torch `Distribution` over R^d, a `wprox.Gaussian`, or a log-density (n, d) → (n,), which need not be
            normalised.
        modulus: λ with −∇² log π ⪰ λ I. Known for Gaussian targets, 1/λ_max(Σ); else give it where you know it.

    Raises:
        TypeError: for a target that has no log-density.
        ValueError: for a Distribution whose event is not a vector (wrap it in `Independent`).

    Example:
        >>> import torch, wprox
        >>> target = wprox.Gaussian(torch.zeros(2), torch.eye(2))
        >>> wprox.KL(target)(wprox.Gaussian(torch.tensor([1.0, 1.0]), torch.eye(2)))
        tensor(1.0000)
    """

    def __init__(
        self, target: Distribution | Gaussian | Callable[[Tensor], Tensor], modulus: float | None = None
    ) -> None:
        self.target = target
        self.dim, self.log_target = log_density_of(target)
        self._of_target = self.log_target
        self.modulus = self._unless_overridden(KL, _gaussian_modulus(target)) if modulus is None else modulus

    def __call__(self, rho: Measure) -> Tensor:
        self._check_dim(rho.dim)
        return rho.mean_log_density() - rho.integrate(self._watched_target)

    def _watched_target(self, x: Tensor) -> Tensor:
        """log π, which refuses to go without a gradient where one is wanted: that of the entropy alone is another."""
        return uncut(self.log_target, self, "the log-density of ")(x)

    def _check_dim(self, dim: int) -> None:
        if self.dim is not None and dim != self.dim:
            raise ValueError(f"the target lives in dimension {self.dim}, the measure in dimension {dim}")

    def structure(self) -> Structure:
        """The potential −log π and the entropy."""

        def potential(x: Tensor) -> Tensor:
            self._check_dim(x.shape[1])
            return -self._watched_target(x)

        potential.__name__ = f"-log {getattr(self.target, '__name__', type(self.target).__name__)}"
        term = PotentialEnergy(potential, self.modulus)
        if isinstance(self.target, Distribution | Measure) and self.log_target is self._of_target:
            term.law = self.target
        piece = Potential(1.0, potential, term.law, term, f"the log-density of {self!r}")
        return Structure(potentials=(piece,), entropy=1.0)

    def needs_density(self, rho: Measure) -> bool:
        return True

    def __repr__(self) -> str:
        return f"KL({getattr(self.target, '__name__', type(self.target).__name__)})"


def _gaussian_modulus(target: object) -> float | None:
    """1/λ_max(Σ) of a Gaussian target, `None` for any other."""
    gaussian = as_gaussian(target)
    if gaussian is None:
        return None
    return 1 / float(torch.linalg.eigvalsh(gaussian.covariance_matrix.detach()).max())
