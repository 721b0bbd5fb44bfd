"""The JKO sampler: draws from a density known up to a constant, by JKO steps that start from a Gaussian."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torch.distributions import Distribution
from tqdm.auto import tqdm

from wprox._checks import (
    Seed,
    StepSize,
    as_points,
    check_count,
    check_fraction,
    check_positive,
    check_seed,
    make_generator,
    step_sizes,
)
from wprox.functionals import KL
from wprox.jko import jko_steps
from wprox.maps import ComposedMap, TransportMap
from wprox.measures import Gaussian, Particles
from wprox.models.chain import Chain, ForwardStep, Layer, RejectionStep
from wprox.models.files import read_sampler, write_sampler
from wprox.solvers import GaussianProx, NeuralProx, StepFailedError
from wprox.solvers.neural import MapFactory

FIRST_STEP, GROWTH = 0.02, 4.0  # γ_k = 0.02 · 4^k, in units of the initial Gaussian; 4^k where that is fitted
SCALE_STEPS = [0.1 * 16.0**k for k in range(8)]  # γ of the Gaussian that is fitted to the target: it may be far or wide
USEFUL = 0.01  # the effective part of a sample under which importance weights say nothing
FEW_DIMENSIONS = 16  # up to which learning rates are higher
FORWARD_SHRINKAGE = 0.5  # by how much a forward step shrinks where the curvature is greatest
OWN_NOISE = 0x5DEECE66  # keeps the noise of `sample` from that of `run` with the same seed, which blocks know by heart
ENOUGH = 0.999  # the effective part of a sample that needs no further correction


class LogNormalizer(NamedTuple):
    """An estimate of log Z = log ∫ g dx and its standard error."""

    value: float
    standard_error: float


class JKOSampler:
    r"""Draws from π = g/Z, with the density of what is drawn: JKO steps of KL(· ‖ π) from a Gaussian.

    The mirror of `JKOFlow`. Block k is an invertible network T_k that minimises, on draws of ρ_{k−1},

        J(T) = KL(T#ρ_{k−1} ‖ π) + E|T(x) − x|²/(2γ_k),      ρ_k = T_k#ρ_{k−1},

    the density of ρ_{k−1} being known through all blocks. The step sizes γ_k grow, and adding blocks stops when one
    gains less than `tol`. Then all blocks are trained together on fresh noise, to minimise KL(ρ_K ‖ π). At the end
    `corrections` rejection–resampling steps move mass between modes, at distances over which maps do not (Hertrich and
    Gruhlke, *Importance corrected neural JKO sampling*, 2025; see `wprox.models.chain.RejectionStep`), and
    `corrected_blocks` rounds of one more JKO step and as many corrections follow. Only modes that the initial Gaussian
    reaches can be found: give a wide `initial` where you expect several, and see `for_modes` for settings.

    The potential V = −log g can be followed first, by `forward_steps` of forward–backward splitting (Salim, Korba and
    Luise 2020), T(u) = u − γ∇V(u), which need no training and leave in every mode what lies in its basin. γ is half of
    what would make the map fold at the draw where V is curved most (a warning tells of later draws where it folds), and
    they end when one gains less than `tol`. As many `corrections` as after the blocks follow them.

    Distances are measured in units of the initial Gaussian N(m, LLᵀ): the blocks act on u = L⁻¹(x − m), and γ with them
    (for N(m, σ²I) they are σ⁻² times the γ of x). Networks compute in float32 in training, and in the dtype of the
    input where they are used.

    Arguments:
        target: π: a torch `Distribution` over R^d, a `Gaussian`, or log g, (n, d) → (n,), differentiable in torch.
        dim: d, where neither the target nor `initial` tells.
        initial: the Gaussian to start from; by default the best Gaussian approximation of π, by a few steps of
            `GaussianProx`, and somewhat wider (for targets of one mode). Its dtype is the one in which the target is
            called and sampled.
        map: "spline", or a factory dim → `TransportMap`.
        map_options: arguments of the named map; for splines 4 "transforms" and a "bound" of 4, unless given.
        step_sizes: γ_k: a number, a sequence with one entry a block, or a callable; by default
            0.02 · 4^k, and 4^k where the initial Gaussian is fitted.
        n_blocks: the largest number of blocks; 0 leaves forward and rejection steps alone.
        iterations: the largest number of gradient steps a block.
        batch_size: draws in a minibatch.
        learning_rate: Adam's for a block; 5e-3 up to sixteen dimensions, else 2e-3.
        n_particles: draws on which a block is trained, and on which rejection steps are fitted.
        tol: the gain in KL, in nats, under which a block is left out and no more are added; −∞ trains them all.
        fine_tune: whether all blocks are trained together at the end.
        fine_tune_iterations: the largest number of gradient steps of it.
        fine_tune_learning_rate: Adam's in it.
        fine_tune_batch_size: draws in its minibatches.
        corrections: the largest number of rejection steps at the end, after forward steps and after each corrected
            block; fewer where the effective part of a sample reaches 99.9 %. Sampling takes 1 + r times longer with
            each.
        rejection_rate: r, the part of the draws that a rejection step replaces.
        corrected_blocks: further rounds of a block and corrections.
        forward_steps: the largest number of steps along the potential before the first block; the target's log-density
            must be twice differentiable.
        memory_budget: bytes that activations may take in fine-tuning (minibatches are made small enough); 512 MB.
        seed: of everything random in `run`.
        progress: show progress bars.

    Attributes:
        initial_: the Gaussian that the chain starts from.
        layers_: the maps and rejection steps, in order, on u = L⁻¹(x − m).
        history_: a dict a stage with "stage" ("forward step", "block", "fine-tuning", "rejection"), kl
            (KL(ρ ‖ π) − log Z in nats, an estimate from draws that were not trained on), ess (the effective part of a
            sample) and seconds; blocks have iterations, step_size and transport_cost too, forward steps step_size.
        interrupted_: whether Ctrl-C ended the training early.

    Raises:
        ValueError: for a target that returns NaN, +∞ or another shape than (n,): it says at which points.
        TypeError: for a target that autograd cannot differentiate.
        StepFailedError: where training fails.

    Example:
        >>> import torch, wprox
        >>> def log_ring(x):
        ...     return -8 * (x.square().sum(-1).sqrt() - 1).square()
        >>> start = wprox.Gaussian(torch.zeros(2), torch.eye(2))
        >>> sampler = wprox.JKOSampler(log_ring, initial=start, n_blocks=1, iterations=25, fine_tune=False).run()
        >>> sampler.sample(5, seed=0).shape, sampler.log_prob(torch.zeros(5, 2)).shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        target: Distribution | Gaussian | Callable[[Tensor], Tensor],
        dim: int | None = None,
        initial: Gaussian | None = None,
        map: str | MapFactory = "spline",
        map_options: dict[str, Any] | None = None,
        step_sizes: StepSize | None = None,
        n_blocks: int = 6,
        iterations: int = 300,
        batch_size: int = 1024,
        learning_rate: float | None = None,
        n_particles: int = 50_000,
        tol: float = 0.01,
        fine_tune: bool = True,
        fine_tune_iterations: int = 300,
        fine_tune_learning_rate: float = 2e-3,
        fine_tune_batch_size: int = 1024,
        corrections: int = 0,
        rejection_rate: float = 0.3,
        corrected_blocks: int = 0,
        forward_steps: int = 0,
        memory_budget: int = 2**29,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.target = target
        self.functional = KL(target)
        self.initial = initial
        dims = {
            "the target": self.functional.dim,
            "initial": None if initial is None else initial.dim,
            "dim": None if dim is None else check_count(dim, "dim"),
        }
        known = {name: value for name, value in dims.items() if value is not None}
        if len(set(known.values())) != 1:
            said = ", ".join(f"{name} says {value}" for name, value in known.items()) or "nothing says it"
            raise ValueError(f"the dimension must be one number: {said}; give dim=d or an initial Gaussian")
        self.dim = next(iter(known.values()))
        self.map = map
        self.map_options = map_options
        self.step_sizes = step_sizes
        self.n_blocks = check_count(n_blocks, "n_blocks", least=0)
        self.iterations = check_count(iterations, "iterations")
        self.batch_size = check_count(batch_size, "batch_size")
        default_rate = 5e-3 if self.dim <= FEW_DIMENSIONS else 2e-3
        self.learning_rate = default_rate if learning_rate is None else check_positive(learning_rate, "learning_rate")
        self.n_particles = check_count(n_particles, "n_particles", least=20)
        self.tol = float(tol)
        if math.isnan(self.tol):
            raise ValueError("tol must be a number of nats, got nan")
        self.fine_tune = fine_tune
        self.fine_tune_iterations = check_count(fine_tune_iterations, "fine_tune_iterations")
        self.fine_tune_learning_rate = check_positive(fine_tune_learning_rate, "fine_tune_learning_rate")
        self.fine_tune_batch_size = check_count(fine_tune_batch_size, "fine_tune_batch_size")
        self.corrections = check_count(corrections, "corrections", least=0)
        self.rejection_rate = check_fraction(rejection_rate, "rejection_rate")
        self.corrected_blocks = check_count(corrected_blocks, "corrected_blocks", least=0)
        self.forward_steps = check_count(forward_steps, "forward_steps", least=0)
        self.memory_budget = check_count(memory_budget, "memory_budget")
        self.seed = check_seed(seed)
        self.progress = progress
        self._solver(0)  # which knows the names of maps

    @classmethod
    def for_modes(
        cls, target: Distribution | Gaussian | Callable[[Tensor], Tensor], initial: Gaussian, **options: Any
    ) -> JKOSampler:
        """The sampler with settings for targets of several modes, all of which `initial` must cover.

        Up to six forward steps, up to six rejection steps, one long block where it gains `tol`, and up to six
        rejection steps again; no fine-tuning. Where the block is left out, there is no network.

        Arguments:
            target: π, as for the sampler itself; its log-density must be twice differentiable.
            initial: the Gaussian to start from.
            options: arguments of the sampler, which replace these settings.

        Example:
            >>> import torch, wprox
            >>> def log_two_bumps(x):
            ...     bumps = torch.cat((-2 * (x - 3).square(), -2 * (x + 3).square() - 1), dim=1)
            ...     return bumps.logsumexp(1)
            >>> wide = wprox.Gaussian(torch.zeros(1), 16 * torch.eye(1))
            >>> sampler = wprox.JKOSampler.for_modes(log_two_bumps, wide, n_particles=5000, iterations=25).run()
            >>> bool((sampler.sample(5000, seed=0) > 0).double().mean() > 0.65)  # 1/(1 + 1/e) = 0.73
            True
        """
        settings: dict[str, Any] = {
            "forward_steps": 6,
            "n_blocks": 1,
            "step_sizes": 1.0,
            "iterations": 250,
            "batch_size": 512,
            "n_particles": 20_000,
            "fine_tune": False,
            "corrections": 6,
        }
        return cls(target, initial=initial, **(settings | options))

    # training

    def run(self) -> JKOSampler:
        """Train the blocks; returns the sampler.

        Ctrl-C ends it early and keeps what was trained so far (`interrupted_`).
        """
        first = 1.0 if self.initial is None else FIRST_STEP
        gamma = step_sizes(
            (lambda k: first * GROWTH**k) if self.step_sizes is None else self.step_sizes,
            self.n_blocks + self.corrected_blocks,
        )
        generator = make_generator(self.seed)
        self.interrupted_ = False
        self.initial_ = self._fitted_gaussian() if self.initial is None else self.initial
        self.layers_: list[Layer] = []
        self.history_: list[dict[str, Any]] = []
        self._check_target(self.initial_.sample(1000, generator))
        bar = tqdm(total=self.n_blocks + self.corrected_blocks, desc="blocks", disable=not self.progress)
        try:
            particles = self._descend(self._draw(self.n_particles, generator), generator)
            if self.layers_ and self.n_blocks:
                particles = self._correct(self.corrections, particles, generator)
            fixed = len(self.layers_)
            for k in range(self.n_blocks):
                before, particles = particles, self._train_block(k, gamma(k), particles, generator)
                bar.update()
                if particles is before:
                    break
            if self.fine_tune and len(self.layers_) > fixed:
                particles = self._train_together(fixed, generator)
            particles = self._correct(self.corrections, particles, generator)
            for k in range(self.n_blocks, self.n_blocks + self.corrected_blocks):
                particles = self._train_block(k, gamma(k), particles, generator)
                particles = self._correct(self.corrections, particles, generator)
                bar.update()
        except KeyboardInterrupt:
            if not self.layers_:
                raise
            self.interrupted_ = True
            warnings.warn(
                f"interrupted; the sampler has the {len(self.layers_)} layers trained so far",
                RuntimeWarning,
                stacklevel=2,
            )
        finally:
            bar.close()
        return self

    # Each stage takes draws of the chain and returns draws of the chain as it is then, on which no network was trained:
    # networks of this size learn draws by heart, which then no longer tell what the next stage needs to know.

    def _descend(self, particles: Particles, generator: torch.Generator) -> Particles:
        """Forward steps along the potential, as long as each makes KL smaller by `tol`."""
        for _ in range(self.forward_steps):
            start = time.perf_counter()
            curvature = self._greatest_curvature(particles.points)
            if curvature <= 0:
                break
            step_size = FORWARD_SHRINKAGE / curvature
            self.layers_.append(self._forward_step(step_size))
            after = self._draw(self.n_particles, generator)
            if not self._kl(particles) - self._kl(after) >= self.tol:
                self.layers_.pop()
                break
            self._log("forward step", after, start, step_size=step_size)
            particles = after
        return particles

    def _greatest_curvature(self, u: Tensor) -> float:
        """The largest eigenvalue of ∇²V at points (n, d)."""
        step, greatest = self._forward_step(1.0), -math.inf
        for part in u.split(step.batch_size):
            jacobian = step.jacobian(part)
            bad = ~torch.isfinite(jacobian).flatten(1).all(1)
            if bool(bad.any()):
                raise ValueError(
                    "the second derivatives of the target's log-density, which forward steps take, are not finite "
                    f"{_where(bad, self._to_x(part))}; torch.logaddexp is such where its arguments are far apart, and "
                    "torch.logsumexp is not; else give forward_steps=0"
                )
            greatest = max(greatest, 1 - float(torch.linalg.eigvalsh(jacobian).min()))
        return greatest

    def _forward_step(self, step_size: float) -> ForwardStep:
        return ForwardStep(self.dim, self._log_target, step_size, self.initial_.dtype)

    def _train_block(self, k: int, step_size: float, particles: Particles, generator: torch.Generator) -> Particles:
        """Add a block, where it makes KL smaller by `tol`; else the draws are returned as they came."""
        start = time.perf_counter()
        step = self._solver(k).step(self._scaled_functional, particles, step_size)
        if step.interrupted:
            raise KeyboardInterrupt
        assert step.map is not None
        self.layers_.append(step.map)
        after = self._draw(self.n_particles, generator)
        if self._kl(particles) - self._kl(after) < self.tol:
            self.layers_.pop()
            return particles
        self._log(
            "block",
            after,
            start,
            step_size=step.step_size,
            transport_cost=float(step.transport_cost),
            iterations=step.iterations,
        )
        return after

    def _train_together(self, fixed: int, generator: torch.Generator) -> Particles:
        """Train all blocks, which are the layers after the first `fixed` ones."""
        start = time.perf_counter()
        solver = self._solver(
            0,
            iterations=self.fine_tune_iterations,
            learning_rate=self.fine_tune_learning_rate,
            batch_size=self.fine_tune_batch_size,
            patience=self.fine_tune_iterations,  # at the top of the schedule the objective often rises before it falls
        )
        start_law: Gaussian | Particles = Gaussian(torch.zeros(self.dim), torch.eye(self.dim))
        if fixed:
            start_law = self._draw(self.n_particles, generator, layers=fixed)
        blocks = ComposedMap([layer for layer in self.layers_[fixed:] if isinstance(layer, TransportMap)])
        outcome = solver.fine_tune(blocks, self._scaled_functional, start_law, memory_budget=self.memory_budget)
        if outcome.interrupted:
            raise KeyboardInterrupt
        particles = self._draw(self.n_particles, generator)
        self._log("fine-tuning", particles, start, iterations=outcome.iterations)
        return particles

    def correct(self, steps: int = 1) -> JKOSampler:
        """Append up to so many rejection–resampling steps, as `corrections` does; returns the sampler."""
        self._check_run()
        generator = make_generator(self.seed + len(self.layers_))
        self._correct(check_count(steps, "steps"), self._draw(self.n_particles, generator), generator)
        return self

    def _correct(self, steps: int, particles: Particles, generator: torch.Generator) -> Particles:
        for _ in range(steps):
            log_weights = self._log_weights(particles)
            if _effective(log_weights) >= ENOUGH * len(log_weights):
                break
            start = time.perf_counter()
            step = RejectionStep.fit(log_weights, self.rejection_rate)
            dice = torch.rand(len(log_weights), generator=generator).to(log_weights.device)
            rejected = dice >= step.acceptance(log_weights)
            points, log_density = particles.points.clone(), particles.log_density() + step.log_factor(log_weights)
            if bool(rejected.any()):  # the rest are draws of the new law as they are, and none has been trained on
                fresh = self._draw(int(rejected.sum()), generator)
                points[rejected] = fresh.points
                log_density[rejected] = fresh.log_density() + step.log_factor(self._log_weights(fresh))
            self.layers_.append(step)
            particles = Particles(points, log_density=log_density)
            self._log("rejection", particles, start)
        return particles

    def _solver(self, index: int, **changes: Any) -> NeuralProx:
        options = self.map_options
        if self.map == "spline":
            options = {"transforms": 4, "bound": 4.0} | (options or {})
        settings: dict[str, Any] = {
            "iterations": self.iterations,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "seed": self.seed + 7919 * index,
            "progress": self.progress,
        }
        return NeuralProx(self.map, options, **(settings | changes))

    def _fitted_gaussian(self) -> Gaussian:
        """The best Gaussian approximation of π, by proximal steps from N(0, I), widened where π is not Gaussian.

        Reverse KL makes it too narrow, and the tails of a map's image are those of where it starts. The factor
        1 + √(2/d) costs a KL divergence of about two nats, which the blocks win back.
        """
        dtype = torch.get_default_dtype()
        reference = getattr(self.target, "covariance_matrix", None)
        if isinstance(reference, Tensor):
            dtype = reference.dtype
        start = Gaussian(torch.zeros(self.dim).double(), torch.eye(self.dim).double())
        self._check_target(start.sample(1000, self.seed).to(dtype))
        given = self.target
        closed = isinstance(given, Gaussian | torch.distributions.MultivariateNormal)
        functional = KL(given if closed else lambda x: self.functional.log_target(x.to(dtype)).to(x))
        try:
            *_, last = jko_steps(functional, GaussianProx(), start, SCALE_STEPS, len(SCALE_STEPS))
        except StepFailedError as error:
            raise StepFailedError(
                f"no Gaussian could be fitted to the target ({error}); give one that covers it, as in "
                f"initial=Gaussian(torch.zeros({self.dim}), 16 * torch.eye({self.dim}))"
            ) from None
        fitted = last.measure
        assert isinstance(fitted, Gaussian)
        width = 1.0 if closed else 1 + math.sqrt(2 / self.dim)
        return Gaussian(fitted.loc.to(dtype), width**2 * fitted.covariance_matrix.to(dtype))

    def _log(self, stage: str, particles: Particles, start: float, **more: Any) -> None:
        log_weights = self._log_weights(particles)
        self.history_.append(
            {
                "stage": stage,
                "kl": -float(log_weights.mean()),
                "ess": _effective(log_weights) / len(log_weights),
                "seconds": time.perf_counter() - start,
                **more,
            }
        )

    # the target in units of the initial Gaussian

    def _to_x(self, u: Tensor) -> Tensor:
        return self.initial_.loc.to(u) + u @ self.initial_.scale_tril.to(u).mT

    def _to_u(self, x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(
            self.initial_.scale_tril.to(x), (x - self.initial_.loc.to(x)).mT, upper=False
        ).mT

    @property
    def _log_det_scale(self) -> Tensor:
        return self.initial_.scale_tril.diagonal().log().sum()

    def _log_target(self, u: Tensor) -> Tensor:
        """log g(x) + log |det L| at x = m + L u, the log-density of u, checked."""
        x = self._to_x(u.to(self.initial_.dtype))
        return (_checked(self.functional.log_target(x), x) + self._log_det_scale).to(u)

    @property
    def _scaled_functional(self) -> KL:
        return KL(self._log_target)

    def _check_target(self, x: Tensor) -> None:
        with torch.enable_grad():
            points = x.detach().requires_grad_()
            try:
                values = _checked(self.functional.log_target(points), points)
            except RuntimeError as error:
                if "dtype" not in str(error):
                    raise
                raise TypeError(
                    f"the target mixes floating-point types ({error}): it is called at points in {x.dtype}; give "
                    "an initial Gaussian in the dtype of its tensors, or cast x inside it"
                ) from error
            (gradient,) = (
                torch.autograd.grad(values.sum(), points, allow_unused=True) if values.requires_grad else (None,)
            )
            if gradient is None:
                raise TypeError(
                    "the target's log-density is not differentiable: autograd finds no way from its values to the "
                    "points; compute it with torch from x, without numpy, .detach(), .item() or no_grad"
                )
            if not bool(gradient.any()) and bool((values != values[0]).any()):
                raise TypeError(
                    "the target's log-density is not differentiable: it varies, from "
                    f"{float(values.min().detach()):.4g} to {float(values.max().detach()):.4g}, and its gradient is 0 "
                    f"at all of {len(points)} points; it may count, round or compare, where it must be smooth"
                )
        if bool((values == -torch.inf).any()):
            raise ValueError(
                f"the target's log-density is −∞ {_where(values == -torch.inf, points)}: KL is infinite there. Give an "
                "initial Gaussian inside the support, map the support to R^d (log of what is positive), or let "
                "the density fall off smoothly"
            )
        bad = ~torch.isfinite(gradient).all(1)
        if bool(bad.any()):
            raise ValueError(
                f"the gradient of the target's log-density is not finite {_where(bad, points)}; check for square "
                "roots and norms at 0, and for logarithms of 0"
            )

    # use

    def sample(self, n: int = 1, seed: Seed = None) -> Tensor:
        """n independent draws, (n, d)."""
        self._check_run()
        if seed is not None and not isinstance(seed, torch.Generator):
            seed = check_seed(seed) ^ OWN_NOISE
        return self._to_x(self._draw(n, make_generator(seed, self.initial_.device), self.initial_.dtype).points)

    def log_prob(self, x: Any) -> Tensor:
        """The log-density of what `sample` draws, (n,), in nats: exact but for rejection rates, which are estimates.

        Raises:
            ValueError: at points that the forward steps do not reach, as far as their inverse is found.
        """
        self._check_run()
        x = as_points(x, "x", self.dim)
        return self._chain(x.dtype).log_prob(self._to_u(x)) - self._log_det_scale.to(x)

    def importance_weights(self, x: Any) -> Tensor:
        r"""w ∝ π(x)/ρ(x) at points that the sampler drew, (n,), summing to 1: ∫ f dπ ≈ Σ_i w_i f(x_i).

        Warns where the effective sample size is under 1 % of the sample.
        """
        log_weights = self._log_ratio(x)
        _warn_if_useless(log_weights)
        return log_weights.softmax(0)

    def effective_sample_size(self, x: Any) -> float:
        """(Σ w)²/Σ w² of the importance weights at points that the sampler drew (Kong 1992): n where ρ = π."""
        log_weights = self._log_ratio(x)
        _warn_if_useless(log_weights)
        return _effective(log_weights)

    def log_normalizer(self, n: int = 10_000, seed: Seed = None) -> LogNormalizer:
        r"""log Z, Z = ∫ g dx, as the log of the mean of g/ρ over n draws, with its standard error.

        What the errors of rejection rates add to the mass of ρ is estimated on n more draws of noise, and taken out.
        The error is that of both means, by the delta method.
        """
        self._check_run()
        generator = make_generator(seed, self.initial_.device)
        particles = self._draw(check_count(n, "n", least=2), generator, torch.float64)
        log_weights = self._log_weights(particles)
        _warn_if_useless(log_weights)
        value = float(log_weights.logsumexp(0)) - math.log(n)
        variance = float((log_weights - value).exp().var()) / n
        if any(isinstance(layer, RejectionStep) for layer in self.layers_):
            masses = self._chain(torch.float64).masses(n, generator, particles.points)
            value += math.log(float(masses.mean()))
            variance += float(masses.var() / masses.mean().square()) / n
        return LogNormalizer(value, math.sqrt(variance))

    def _log_ratio(self, x: Any) -> Tensor:
        x = as_points(x, "x", self.dim)
        log_prob = self.log_prob(x)
        with torch.no_grad():
            points = x.to(self.initial_.dtype)
            return _checked(self.functional.log_target(points), points).to(x) - log_prob

    def _chain(self, dtype: torch.dtype, layers: int | None = None) -> Chain:
        chain = Chain(self.dim, self.layers_[:layers], self._log_target)
        return chain if dtype == torch.float32 else chain.to(dtype)

    def _draw(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32, layers: int | None = None
    ) -> Particles:
        """Draws of the chain, or of its first `layers`."""
        like = torch.empty(0, dtype=dtype, device=self.initial_.device)
        return self._chain(dtype, layers).draw(check_count(n, "n"), generator, like)

    @torch.no_grad()
    def _log_weights(self, particles: Particles) -> Tensor:
        return self._log_target(particles.points) - particles.log_density()

    def _kl(self, particles: Particles) -> float:
        return -float(self._log_weights(particles).mean())

    @property
    def _parameters(self) -> dict[str, Any]:
        """The constructor's arguments that JSON can hold: maps and step sizes that are functions are left out."""
        names = set(inspect.signature(type(self)).parameters) - {"target", "initial"}
        if callable(self.map):
            names -= {"map", "map_options"}
        if callable(self.step_sizes):
            names -= {"step_sizes"}
        return {name: getattr(self, name) for name in sorted(names)}

    def _check_run(self) -> None:
        if not hasattr(self, "layers_"):
            raise NotFittedError(
                "this JKOSampler has not run yet: call run() first, or JKOSampler.load(folder, target)"
            )

    # files

    def save(self, folder: Any, overwrite: bool = False) -> None:
        """Write model.safetensors and config.json into `folder`; the target is not part of them.

        Raises:
            ValueError: where the folder exists and `overwrite` is not set, or a block has no `config` to rebuild it.
        """
        self._check_run()
        write_sampler(self, folder, overwrite)

    @classmethod
    def load(
        cls,
        folder: Any,
        target: Distribution | Gaussian | Callable[[Tensor], Tensor],
        map_classes: Sequence[type[TransportMap]] = (),
    ) -> JKOSampler:
        """Read a sampler that `save` wrote, for the same target.

        Raises:
            ValueError: for a missing, truncated, foreign or newer file.
        """
        return read_sampler(cls, folder, target, map_classes)


def _checked(values: Any, x: Tensor) -> Tensor:
    """The values of a log-density at x: (n, d), (n,): finite or −∞."""
    if not isinstance(values, Tensor):
        raise TypeError(f"the target must return a tensor, it returned {type(values).__name__}; compute it with torch")
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"the target must map points of shape {tuple(x.shape)} to one log-density a row, ({len(x)},); it returned "
            f"shape {tuple(values.shape)}. Reduce over the last axis only, as in -x.square().sum(-1) / 2"
        )
    bad = torch.isnan(values) | (values == torch.inf)
    if bool(bad.any()):
        what = "NaN" if bool(torch.isnan(values).any()) else "+∞"
        raise ValueError(f"the target's log-density is {what} {_where(bad, x)}; a log-density is finite or −∞")
    return values


def _where(bad: Tensor, x: Tensor) -> str:
    """Where a density is bad, for people."""
    points = ", ".join(
        "(" + ", ".join(f"{value:.4g}" for value in row[:6].tolist()) + (", …)" if x.shape[1] > 6 else ")")
        for row in x.detach()[bad][:3]
    )
    count = int(bad.sum())
    return f"at {count} of {len(x)} points, {'the first at' if count > 3 else 'at'} {points}"


def _effective(log_weights: Tensor) -> float:
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())


def _warn_if_useless(log_weights: Tensor) -> None:
    effective = _effective(log_weights)
    if not effective >= USEFUL * len(log_weights):
        warnings.warn(
            f"the effective sample size is {effective:.3g} of {len(log_weights)} draws: importance weights and what is "
            "computed with them mean nothing. Try more blocks or iterations, corrections=5 or more (rejection steps), "
            "JKOSampler.for_modes where there are several modes, or an initial Gaussian that covers the target",
            RuntimeWarning,
            stacklevel=3,
        )
