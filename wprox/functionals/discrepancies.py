"""Discrepancies of kernels: MMD to samples, and KSD to an unnormalised density."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from wprox._autograd import is_transformed, needed, uncut
from wprox._checks import as_values, check_count, check_flag, check_function, evaluate, evaluate_one
from wprox._random import Seed, as_seed
from wprox.functionals.base import Functional
from wprox.functionals.first_variation import has_other_leaves
from wprox.kernels import InverseMultiquadric, RadialKernel, Riesz
from wprox.kernels.base import as_even
from wprox.measures import Gaussian, Measure
from wprox.measures.laws import log_density_of, sampled
from wprox.pairs.stein import stein_diagonal, stein_potential, stein_sum
from wprox.pairs.sums import has_parameters, potential


class MMD(Functional):
    r"""F(ρ) = ½ MMD²(ρ, ν) = ½ ∬ k d(ρ − ν) d(ρ − ν), half the squared maximum mean discrepancy.

    Its Wasserstein gradient is ∇∫ k(·, y) d(ρ − ν)(y), and its flow that of Arbel, Korba, Salim and Gretton (*Maximum
    mean discrepancy gradient flow*, 2019). Not convex: with smooth kernels particles may come to rest where the
    discrepancy is not least. The Riesz kernel has no scale and pulls from afar; noise in `ExplicitEuler` helps the
    others.

    Arguments:
        target: ν: a measure, samples (m, d), or a torch `Distribution` over R^d. Of distributions and of a
            `wprox.Gaussian`, `n_samples` draws are taken. The value is differentiable in tensors of measures and of
            samples; where parameters of a distribution want a gradient, give draws that know it, `law.rsample((m,))`.
        kernel: k, a kernel of `wprox.kernels` or a function of differences (m, d) → (m,), even and conditionally
            positive definite; `wprox.kernels.Riesz(1)`, the energy distance, by default. It may be trained: the value
            is differentiable in tensors of its own that want a gradient.
        unbiased: leave out the pairs i = j, of particles and of samples, as the U-statistic of Gretton et al. (2012,
            lemma 6) does: the mean over samples is then exact, and single values may be negative. Particles only.
        n_samples: how many draws to take of a distribution.
        seed: of these draws.

    Raises:
        TypeError: for a target that is neither a measure nor samples nor a distribution.
        ValueError: for a measure of another dimension, a singular kernel.

    Example:
        >>> import torch, wprox
        >>> F = wprox.MMD(torch.tensor([[0.0], [2.0]]))
        >>> F(wprox.Particles(torch.tensor([[0.0], [1.0]])))
        tensor(0.2500)
    """

    def __init__(
        self,
        target: Any,
        kernel: Callable[[Tensor], Tensor] | None = None,
        unbiased: bool = False,
        n_samples: int = 1000,
        seed: Seed = 0,
    ) -> None:
        self.kernel = Riesz() if kernel is None else kernel
        check_function(self.kernel, "kernel", "of differences")
        if getattr(self.kernel, "singular", False):
            raise ValueError(
                f"{self.kernel} is infinite at 0, and the discrepancy of particles with it; see MMD's kernels"
            )
        self.target = sampled(target, check_count(n_samples, "n_samples"), as_seed(seed))
        self.unbiased = check_flag(unbiased, "unbiased")
        with torch.enable_grad():
            trained = self.target.points.requires_grad or self.target.weights.requires_grad
            self._trained = trained or has_parameters(self.kernel, self.target.points)
        with torch.no_grad():
            self._constant = self._target_pairs()

    def __call__(self, rho: Measure) -> Tensor:
        if rho.dim != self.target.dim:
            raise ValueError(f"the target lives in dimension {self.target.dim}, the measure in dimension {rho.dim}")
        if self.unbiased and not rho.is_empirical:
            raise TypeError(f"unbiased=True counts pairs of particles; a {type(rho).__name__} needs unbiased=False")
        dtype, rho = rho.dtype, self._finer(rho)  # the three terms cancel where ρ is near ν
        cross = rho.integrate(self._embedding)
        constant = self._target_pairs() if self._trained else self._constant
        return (self._pairs(rho, self.unbiased) / 2 - cross + constant.to(rho.points) / 2).to(dtype)

    def _finer(self, rho: Measure) -> Measure:
        """ρ in float64, unless the kernel holds tensors that want another precision."""
        try:
            evaluate(self.kernel, rho.points[:1].detach().double(), "kernel")
        except RuntimeError:
            return rho
        return rho.to(torch.float64)

    def _target_pairs(self) -> Tensor:
        """∬ k dν dν, which a kernel or a target in training changes."""
        return self._pairs(self._finer(self.target), self.unbiased and self.target.is_empirical)

    def _embedding(self, x: Tensor) -> Tensor:
        """∫ k(x, y) dν(y) at points (n, d), (n,)."""
        return potential(self.kernel, x, self.target.points.to(x), self.target.weights.to(x))

    def _pairs(self, rho: Measure, unbiased: bool) -> Tensor:
        """∬ k dρ dρ, or its U-statistic Σ_{i≠j} w_i w_j k_ij / (1 − Σ w_i²)."""
        pairs = rho.integrate_pairs(as_even(self.kernel))
        if not unbiased:
            return pairs
        own = rho.diagonal
        if not float(own.detach()) < 1:
            raise ValueError("unbiased=True needs at least two particles with weight on either side, got one")
        at_zero = evaluate_one(self.kernel, torch.zeros_like(rho.points[:1]), "the kernel")[0]
        return (pairs - own * at_zero) / (1 - own)

    def needs_density(self, rho: Measure) -> bool:
        return False

    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        """The witness function ∫ k(·, y) d(ρ − ν)(y); without the pairs i = j, ρ counts 1/(1 − Σ w_i²) times."""
        rho, kernel = rho.detach(), as_even(self.kernel)
        share = 1 - float(rho.weights.square().sum()) if self.unbiased else 1.0
        return partial(self._witness, self._finer(rho), kernel, share)

    def _witness(self, rho: Measure, kernel: Callable[[Tensor], Tensor], share: float, x: Tensor) -> Tensor:
        z = x.to(rho.dtype)
        return (rho.convolve(kernel, z) / share - self._embedding(z)).to(x)

    def __repr__(self) -> str:
        unbiased = ", unbiased=True" if self.unbiased else ""
        return f"MMD({self.target!r}, {getattr(self.kernel, '__name__', self.kernel)}{unbiased})"


class KSD(Functional):
    r"""F(ρ) = ½ KSD²(ρ | π) = ½ ∬ k_π dρ dρ, half the squared kernel Stein discrepancy from the score s = ∇ log π.

    k_π(x, y) = ⟨s(x), s(y)⟩ k + ⟨s(x), ∇_y k⟩ + ⟨s(y), ∇_x k⟩ + tr ∇_x∇_y k (Liu, Lee and Jordan 2016; Chwialkowski,
    Strathmann and Gretton 2016), whose integral against π is 0: π need not be normalised, and no sample is needed.
    Its flow is the descent of Korba, Aubin-Frankowski, Majewski and Ablin (*Kernel Stein discrepancy descent*, 2021),
    who also show its failures: not convex, blind to the weights of modes far apart, and at rest along the symmetry
    axis of a mixture.

    Arguments:
        target: π, as for `KL`: a torch `Distribution` over R^d, a `wprox.Gaussian`, or a log-density (n, d) → (n,); it
            is differentiated twice. `None` where `score` is given.
        kernel: k, a smooth kernel of `wprox.kernels`: `InverseMultiquadric()` of bandwidth 1 by default (Gorham and
            Mackey 2017), which suits targets of scale 1; `wprox.kernels.median_bandwidth` finds other scales.
        score: s, maps points (n, d) to (n, d), differentiably, where the log-density is not at hand.

    Raises:
        TypeError: for a kernel that is not smooth at 0, where k_π would be infinite; without target and score.
        ValueError: for a measure of another dimension, a score of another shape, or a kernel that is being trained.

    Example:
        >>> import torch, wprox
        >>> F = wprox.KSD(lambda x: -x.square().sum(-1) / 2)
        >>> F(wprox.Particles(torch.zeros(1, 2)))  # k_π(0, 0) = d
        tensor(1.)
    """

    def __init__(
        self,
        target: Distribution | Gaussian | Callable[[Tensor], Tensor] | None = None,
        kernel: RadialKernel | None = None,
        score: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if (target is None) == (score is None):
            raise TypeError("give either a target, whose log-density is differentiated, or its score")
        self.target, self._given_score = target, None if score is None else check_function(score, "score")
        self.dim: int | None = None
        if target is not None:
            self.dim, self._log_target = log_density_of(target)
        self.kernel = InverseMultiquadric() if kernel is None else kernel
        if not isinstance(self.kernel, RadialKernel) or not self.kernel.smooth:
            raise TypeError(
                f"the Stein kernel needs second derivatives at 0, which {self.kernel!r} is not known to have; take "
                "wprox.kernels.InverseMultiquadric or Gaussian, or a RadialKernel of your own with smooth = True"
            )
        if self.kernel.backend == "keops":
            raise ValueError('the Stein kernel is summed in blocks only: give a kernel of backend "auto" or "blocks"')

    def __call__(self, rho: Measure) -> Tensor:
        if self.dim is not None and rho.dim != self.dim:
            raise ValueError(f"the target lives in dimension {self.dim}, the measure in dimension {rho.dim}")
        if has_parameters(self.kernel, rho.points):
            raise ValueError(
                f"KSD is not differentiable in the parameters of its kernel, but {self.kernel} has some that want a "
                "gradient: freeze them (requires_grad_(False)), or train the kernel with MMD"
            )
        scores = self.score(rho.points)
        total = stein_sum(self.kernel, rho.points, scores, rho.weights)
        return rho.unbiased_pairs(total, stein_diagonal(self.kernel, scores)) / 2

    def needs_density(self, rho: Measure) -> bool:
        return False

    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        """∫ k_π(·, y) dρ(y)."""
        y, weights = rho.points.detach(), rho.weights.detach()
        scores = self.score(y)
        return partial(self._potential, y, scores, weights)

    def _potential(self, y: Tensor, scores: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        return stein_potential(self.kernel, x, self.score(x), y.to(x), scores.to(x), weights.to(x))

    def score(self, x: Tensor) -> Tensor:
        """∇ log π at points (n, d), (n, d), differentiable where x is."""
        if self._given_score is not None:
            score = as_values(uncut(self._given_score, "the score")(x), x, "score")
            if score.shape != x.shape:
                raise ValueError(f"the score must map {tuple(x.shape)} to its own shape, got {tuple(score.shape)}")
            return score.to(x)
        again, wanted = torch.is_grad_enabled(), any(needed(x))
        if not wanted and is_transformed():  # where autograd takes no new leaves

            def total(x: Tensor) -> Tensor:
                return evaluate(self._log_target, x, "the log-density of the target").sum()

            return torch.func.grad(total)(x)
        with torch.enable_grad():
            points = x if wanted else x.detach().clone().requires_grad_()
            value = evaluate(self._log_target, points, "the log-density of the target")
            if value.ndim != 1 or not value.requires_grad:
                raise ValueError(
                    f"the log-density of the target must be a differentiable function (n, d) → (n,), it returned shape "
                    f"{tuple(value.shape)}{'' if value.requires_grad else ', which does not depend on x in torch'}"
                )
            keep = wanted or (again and has_other_leaves(value, {id(points)}))  # tensors of the target
            (score,) = torch.autograd.grad(value.sum(), points, create_graph=keep)
        return score

    def __repr__(self) -> str:
        target = self.target if self._given_score is None else self._given_score
        return f"KSD({getattr(target, '__name__', type(target).__name__)}, {self.kernel})"
