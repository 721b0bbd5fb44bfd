"""The JKO sampler: draws from a density known up to a constant, by JKO steps that start from a Gaussian."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torch.distributions import Distribution

from wprox._checks import StepSize, as_points, check_count, check_memory
from wprox._modes import doors
from wprox._random import Seed, check_seed, make_generator
from wprox.functionals import KL
from wprox.maps import TransportMap
from wprox.maps.registry import MapFactory, check_map_classes
from wprox.measures import Gaussian, Particles
from wprox.measures.laws import log_density_of
from wprox.models.folders import loaded_folder, save_folder
from wprox.models.sampler.chain import Chain, Layer, RejectionStep
from wprox.models.sampler.layers import check_state, layer_of, layer_part
from wprox.models.sampler.normalizer import reverse_draws, reviewed
from wprox.models.sampler.settings import BLOCKS, SamplerSettings, default_rate, dimension_of, for_modes, growing_steps
from wprox.models.sampler.target import ScaledTarget, check_target, checked, fitted_gaussian
from wprox.models.sampler.training import ChainTraining
from wprox.models.sampler.weights import LogNormalizer, effective_size, warn_if_useless
from wprox.models.state import State, check_dimensions, pack, unpack
from wprox.models.step_sizes import block_count

OWN_NOISE = 0x5DEECE66  # keeps the noise of `sample` from that of `run` with the same seed, which blocks know by heart


class JKOSampler:
    r"""Draws from π = g/Z, with the density of what is drawn: JKO steps of KL(· ‖ π) from a Gaussian.

    The mirror of `JKOFlow`. Block k is an invertible network T_k that minimises, on draws of ρ_{k−1},

        J(T) = KL(T#ρ_{k−1} ‖ π) + E|T(x) − x|²/(2γ_k),      ρ_k = T_k#ρ_{k−1},

    the density of ρ_{k−1} being known through all blocks. The step sizes γ_k grow, and adding blocks stops when one
    gains less than `tol`. Then all blocks are trained together on fresh noise, to minimise KL(ρ_K ‖ π). At the end
    `corrections` rejection–resampling steps move mass between modes, at distances over which maps do not (Hertrich and
    Gruhlke, *Importance corrected neural JKO sampling*, 2025; see `wprox.models.sampler.chain.RejectionStep`), and
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
        n_blocks: the largest number of blocks; 0 leaves forward and rejection steps alone. As many as `step_sizes` has
            entries (without those of `corrected_blocks`, which come last), where that is a sequence, else 6.
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
        n_blocks: int | None = None,
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
        self.target, self.functional, self.initial = target, KL(target), initial
        self.dim = dimension_of(self.functional, initial, dim)
        self.map = map
        self.map_options = map_options
        self.step_sizes = step_sizes
        self.n_blocks = block_count(step_sizes, n_blocks, BLOCKS, corrected_blocks, least=0)
        self.iterations = iterations
        self.batch_size = batch_size
        self.learning_rate = default_rate(self.dim) if learning_rate is None else learning_rate
        self.n_particles = n_particles
        self.tol = tol
        self.fine_tune = fine_tune
        self.fine_tune_iterations = fine_tune_iterations
        self.fine_tune_learning_rate = fine_tune_learning_rate
        self.fine_tune_batch_size = fine_tune_batch_size
        self.corrections = corrections
        self.rejection_rate = rejection_rate
        self.corrected_blocks = corrected_blocks
        self.forward_steps = forward_steps
        self.memory_budget = memory_budget
        self.seed = seed
        self.progress = progress
        self._settings()  # which checks them

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
        return cls(target, initial=initial, **for_modes(options))

    # training

    def run(self) -> JKOSampler:
        """Train the blocks; returns the sampler.

        Ctrl-C ends it early and keeps what was trained so far (`interrupted_`).
        """
        generator, given = make_generator(self.seed), self.initial
        self.initial_ = fitted_gaussian(self.functional, self.dim, self.seed) if given is None else given
        self.layers_: list[Layer] = []
        self.history_: list[dict[str, Any]] = []
        self.interrupted_ = False
        check_target(self.functional.log_target, self.initial_.sample(1000, generator))
        training = self._training(generator)
        training.run()
        self.interrupted_ = training.interrupted
        return self

    def correct(self, steps: int = 1) -> JKOSampler:
        """Append up to so many rejection–resampling steps, as `corrections` does; returns the sampler."""
        self._check_run()
        check_count(steps, "steps")
        training = self._training(make_generator(self.seed + len(self.layers_)))
        training.correct(training.draw(), steps)
        return self

    def _settings(self) -> SamplerSettings:
        arguments = {field.name: getattr(self, field.name) for field in fields(SamplerSettings)}
        if self.step_sizes is None:
            arguments["step_sizes"] = growing_steps(self.initial)
        return SamplerSettings(**arguments)

    def _training(self, generator: torch.Generator) -> ChainTraining:
        """What appends to `layers_` and `history_`."""
        return ChainTraining(self._target, self.layers_, self.history_, self._settings(), generator)

    # use

    def sample(self, n: int = 1, seed: Seed = None) -> Tensor:
        """n independent draws, (n, d)."""
        self._check_run()
        if seed is not None and not isinstance(seed, torch.Generator):
            seed = check_seed(seed) ^ OWN_NOISE
        generator = make_generator(seed, self.initial_.device)
        return self._target.to_x(self._draw(n, generator, self.initial_.dtype).points)

    def log_prob(self, x: Any) -> Tensor:
        """The log-density of what `sample` draws, (n,), in nats: exact but for rejection rates, which are estimates.

        Where x is a tensor that wants a gradient, it carries one.

        Raises:
            InverseError: at points that the forward steps do not reach, as far as their inverse is found.
        """
        self._check_run()
        x = as_points(x, "x", self.dim)
        target = self._target
        return self._chain(x.dtype).log_prob(target.to_u(x)) - target.log_det.to(x)

    def importance_weights(self, x: Any) -> Tensor:
        r"""w ∝ π(x)/ρ(x) at points that the sampler drew, (n,), summing to 1: ∫ f dπ ≈ Σ_i w_i f(x_i).

        Warns where the effective sample size is under 1 % of the sample.
        """
        log_weights = self._log_ratio(x)
        warn_if_useless(log_weights)
        return log_weights.softmax(0)

    def effective_sample_size(self, x: Any) -> float:
        """(Σ w)²/Σ w² of the importance weights at points that the sampler drew (Kong 1992): n where ρ = π.

        It compares ρ with π where draws of ρ are: near n it is as well where ρ lacks a mode or an arm of π, whose mass
        it does not see. `log_normalizer` looks for such mass, and warns.
        """
        log_weights = self._log_ratio(x)
        warn_if_useless(log_weights)
        return effective_size(log_weights)

    def log_normalizer(self, n: int = 10_000, seed: Seed = None) -> LogNormalizer:
        r"""log Z, Z = ∫ g dx, and its standard error: the log of the mean of g/ρ over n draws, where it can be trusted.

        What the errors of rejection rates add to the mass of ρ is estimated on n more draws of noise, and taken out.
        The error is that of both means, by the delta method.

        Draws of ρ do not see mass of g where ρ has none. So n/5 (400 to 2,000) draws of π that do not come from ρ look
        at g/ρ: they are annealed from a Cauchy law at the scale of the initial Gaussian
        (`wprox.models.sampler.annealing`; up to fifty dimensions). Where they find what no draw of ρ knew of, or the
        weights g/ρ have a heavy tail (`wprox.metrics.pareto_k`), log Z is that of bridge sampling between both, and
        the standard error takes in what the two disagree by. A warning says so, but for tails where they agree. Nothing
        is told of modes that neither finds.

        Arguments:
            n: draws.
            seed: of everything random.
        """
        self._check_run()
        generator, target, chain = make_generator(seed, self.initial_.device), self._target, self._chain(torch.float64)
        particles = self._draw(check_count(n, "n", least=2), generator, torch.float64)
        log_weights, masses = target.log_weights(particles), None
        warn_if_useless(log_weights)
        if any(isinstance(layer, RejectionStep) for layer in self.layers_):
            masses = chain.masses(n, generator, particles.points)
        reverse = reverse_draws(target, chain, min(max(n // 5, 400), 2000), generator, particles.points)
        return reviewed(log_weights, masses, reverse)

    def _log_ratio(self, x: Any) -> Tensor:
        x = as_points(x, "x", self.dim).detach()
        log_prob = self.log_prob(x)
        with torch.no_grad():
            points = x.to(self.initial_.dtype)
            return checked(self.functional.log_target(points), points).to(x) - log_prob

    @property
    def _target(self) -> ScaledTarget:
        """π in the units of the initial Gaussian, which are those of the chain."""
        return ScaledTarget(self.functional.log_target, self.initial_)

    def _chain(self, dtype: torch.dtype) -> Chain:
        return Chain(self.dim, self.layers_, self._target.log_prob).to(dtype)

    def _draw(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Particles:
        check_memory(2 * check_count(n, "n") * self.dim, f"n = {n} draws")
        like = torch.empty(0, dtype=dtype, device=self.initial_.device)
        return self._chain(dtype).draw(check_count(n, "n"), generator, like)

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
        save_folder(folder, "JKOSampler", self._state(), overwrite)

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
            TypeError: for `map_classes` that are none, and a target that has no log-density.
        """
        classes = check_map_classes(map_classes)
        log_density_of(target)  # says what is wrong with it, before the file is blamed
        with loaded_folder(folder, "JKOSampler") as state:
            return cls._from_state(state, target, classes)

    def _state(self) -> State:
        """The sampler that has run, without its target."""
        initial = {"loc": self.initial_.loc, "scale_tril": self.initial_.scale_tril}
        layers, tensors = pack("layers", [layer_part(layer) for layer in self.layers_])
        config = {
            "parameters": self._parameters,
            "layers": layers,
            "history": self.history_,
            "interrupted": self.interrupted_,
        }
        return State(config, initial | tensors)

    @classmethod
    def _from_state(cls, state: State, target: Any, map_classes: Sequence[type[TransportMap]]) -> JKOSampler:
        """The sampler whose `_state` this is."""
        config, tensors = state
        check_state(config, tensors)
        scale_tril = tensors["scale_tril"]
        initial = Gaussian(tensors["loc"], scale_tril @ scale_tril.mT)
        initial.scale_tril = scale_tril  # not the factor of the product, which is rounded
        sampler = cls(target, initial=initial, **config["parameters"])
        sampler.initial_ = initial
        parts = unpack("layers", config["layers"], tensors)
        sampler.layers_ = [layer_of(part, sampler._target, map_classes) for part in parts]
        check_dimensions((layer for layer in sampler.layers_ if isinstance(layer, TransportMap)), sampler.dim)
        sampler.history_, sampler.interrupted_ = config["history"], config["interrupted"]
        return sampler


doors(JKOSampler, "run", "correct", trains=True)
doors(JKOSampler, "__init__", "sample", "log_prob", "importance_weights", "effective_sample_size", "log_normalizer")
doors(JKOSampler, "load")
