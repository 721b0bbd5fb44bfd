"""The JKO flow: a generative model whose blocks are JKO steps from the data to a Gaussian."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor
from tqdm.auto import tqdm

from wprox._checks import (
    Seed,
    StepSize,
    as_points,
    check_count,
    check_fraction,
    check_non_negative,
    check_positive,
    check_seed,
    make_generator,
    step_sizes,
)
from wprox.certificate import Certificate, certify
from wprox.functionals import KL
from wprox.jko import jko_steps
from wprox.maps import ComposedMap, TransportMap
from wprox.maps.base import apply_in_batches, invert_in_batches
from wprox.measures import Gaussian, Particles
from wprox.metrics import Distance, wasserstein
from wprox.models.files import read_flow, write_flow
from wprox.models.preprocessing import Preprocessing
from wprox.models.step_sizes import equal_moves, growing
from wprox.solvers import NeuralProx
from wprox.solvers.neural import MapFactory
from wprox.stein import stein_residual

LIKELIHOOD_DRAWS = 8  # dequantisation draws over which log_prob of integer data is averaged
NOISE_ROWS = 10_000  # random preprocessing is drawn repeatedly until a training set has about this many rows
FEW_COLUMNS = 8  # up to which batches are larger, learning rates higher and small tables jittered
FLOW_MATCHING = 1000  # iterations of flow matching that start a block of map="ode"
CHECK_EVERY = 25  # iterations between two looks at the held-out objective
LOOKS = 80  # in fine-tuning, at most: a look at 20,000 rows costs as much as three iterations


class JKOFlow(DensityMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A density model and sampler: JKO steps of KL(· ‖ N(0, I)), trained one after the other, then together.

    Block n is an invertible network T_n that minimises KL(T#p_{n−1} ‖ N(0, I)) + E|T(x) − x|²/(2γ_n) from the law
    p_{n−1} of the data after the blocks before it (Cheng, Lu, Tan and Xie, *Convergence of flow-based generative models
    via proximal gradient descent in Wasserstein space*, 2024; Xu, Cheng and Xie 2023). Training a block stops by a
    held-out objective; adding blocks stops when one no longer improves the held-out likelihood; then all blocks are
    fine-tuned together. The likelihood is exact, by the change of variables; sampling runs the blocks backwards.

    It has scikit-learn's manners: `fit` returns the flow, arguments are stored untouched, learned attributes end in
    `_`. Networks are trained in float32; what uses them computes in and returns the dtype of its input (`sample`: of
    the training data), but the way to latent points and back is computed in float64, in which it is exact. The same
    seed on the same machine gives the same flow.

    Arguments:
        map: "spline", "ode", "residual", "convex", or a factory dim → `TransportMap`.
        map_options: arguments of the named map, such as `{"transforms": 4}`. Where there are fewer than 1,000 rows a
            column, the spline map's "dropout" is 0.2 and in the plane its "frequencies" are 3, unless given.
        step_sizes: γ_n: a number, a sequence with one entry a block, or a callable of the block's index; 1 by default.
            "auto" is 0.5 · 1.5ⁿ, for more blocks that begin gently; `refine` re-spaces them afterwards.
        n_blocks: the largest number of blocks.
        iterations: the largest number of gradient steps a block.
        batch_size: rows in a minibatch; 1,024 up to eight columns, else 256.
        learning_rate: Adam's for a block; 5e-3 up to eight columns, else 2e-3; 2e-2 for "ode".
        weight_decay: AdamW's; 1 where there are fewer than 1,000 rows a column, else 0.
        jitter: the standard deviation of Gaussian noise on the training points, in standardised units, which keeps a
            flow from learning a small sample by heart (Rothfuss et al. 2019). Where there are fewer than 1,000 rows a
            column and at most eight columns, it is the bandwidth of the best kernel density estimate, else 0.
        flow_matching: iterations of flow matching that a block starts with (see `NeuralProx`), for maps that are flows;
            1,000 for "ode", else 0.
        patience: looks at the held-out objective (every 25 iterations) without improvement that end a training.
        tol: the gain in held-out log-likelihood, in nats a row, under which a block is the last; −∞ trains them all.
        transport_tol: the root mean square move of a coordinate, in standardised units, under which a block is the
            last; 0 leaves that to `tol`.
        fine_tune: whether all blocks are trained together at the end.
        fine_tune_iterations: the largest number of gradient steps of it; a hundred passes over the rows, but at least
            200 and at most 2,000.
        fine_tune_learning_rate: Adam's; 3e-3 up to eight columns, else 3e-4.
        fine_tune_batch_size: rows in its minibatches; twice `batch_size`.
        memory_budget: bytes that activations may take in it (minibatches are made small enough); 512 MB.
        validation_fraction: the part of X held out, where `fit` gets no validation data.
        standardize, integer, bounds, smoothing, drop_constant: see `wprox.models.preprocessing.Preprocessing`.
        seed: of everything random.
        progress: show progress bars.

    Attributes:
        blocks_: the trained maps T_1, …, T_N.
        step_sizes_: γ_1, …, γ_N.
        jitter_: the standard deviation of the noise that training used.
        history_: a dict a block with step_size, held_out_nll (nats a row, in the units of the data), transport_cost,
            iterations, seconds and message; one with "block": "fine-tuning" at the end. After `refine` it is that of
            the refined flow.
        preprocessing_: from rows of X to points and back.
        n_features_in_, feature_names_in_: the number of columns, and their names where X was a data frame. Rows of
            another frame are then matched by name.
        interrupted_: whether Ctrl-C ended the training early.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
        >>> flow = wprox.JKOFlow(n_blocks=1, iterations=20, fine_tune=False).fit(x)
        >>> flow.log_prob(x).shape, flow.sample(4, seed=0).shape
        (torch.Size([500]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        map: str | MapFactory = "spline",
        map_options: dict[str, Any] | None = None,
        step_sizes: StepSize | str | None = None,
        n_blocks: int = 8,
        iterations: int = 300,
        batch_size: int | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
        jitter: float | None = None,
        flow_matching: int | None = None,
        patience: int = 8,
        tol: float = 1e-3,
        transport_tol: float = 0.0,
        fine_tune: bool = True,
        fine_tune_iterations: int | None = None,
        fine_tune_learning_rate: float | None = None,
        fine_tune_batch_size: int | None = None,
        memory_budget: int = 2**29,
        validation_fraction: float = 0.1,
        standardize: bool = True,
        integer: bool = False,
        bounds: tuple[Any, Any] | None = None,
        smoothing: float = 0.0,
        drop_constant: bool = False,
        seed: int = 0,
        progress: bool = False,
    ) -> None:
        self.map = map
        self.map_options = map_options
        self.step_sizes = step_sizes
        self.n_blocks = n_blocks
        self.iterations = iterations
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.jitter = jitter
        self.flow_matching = flow_matching
        self.patience = patience
        self.tol = tol
        self.transport_tol = transport_tol
        self.fine_tune = fine_tune
        self.fine_tune_iterations = fine_tune_iterations
        self.fine_tune_learning_rate = fine_tune_learning_rate
        self.fine_tune_batch_size = fine_tune_batch_size
        self.memory_budget = memory_budget
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.integer = integer
        self.bounds = bounds
        self.smoothing = smoothing
        self.drop_constant = drop_constant
        self.seed = seed
        self.progress = progress

    # training

    def fit(self, X: Any, y: Any = None, validation: Any = None) -> JKOFlow:
        """Train the flow.

        Arguments:
            X: (n, d), rows of data; a data frame's columns name themselves in errors.
            y: ignored, as scikit-learn's pipelines pass it.
            validation: (m, d), held-out rows for early stopping; split off X where not given.

        Returns:
            The flow itself. Ctrl-C ends the training early and keeps the blocks trained so far (`interrupted_`).

        Raises:
            ValueError, TypeError: for NaN, text or constant columns, too few rows, or arguments out of range.
            StepFailedError: where the objective becomes non-finite; blocks trained before stay usable.
        """
        self._check_arguments()
        X, columns = _as_table(X, "X")
        generator = make_generator(self.seed)
        preprocessing = Preprocessing(
            self.standardize, self.integer, self.bounds, self.smoothing, self.drop_constant
        ).fit(X, columns)
        X = preprocessing.check(X)
        self.preprocessing_ = preprocessing
        self.n_features_in_ = X.shape[1]
        self._dtype = X.dtype
        if columns is not None:
            self.feature_names_in_ = np.array(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        if validation is None:
            X, validation = self._split(X, generator)
        else:
            validation = preprocessing.check(self._in_order(validation, "validation"), "validation")
        self._rows = len(X)
        held_out, offset = self._draw(validation, generator)
        training, _ = self._draw(X, generator)
        self._data = self._jittered(training, held_out, generator), held_out, offset
        self.blocks_: list[TransportMap] = []
        self.step_sizes_: list[float] = []
        self.history_: list[dict[str, Any]] = []
        self.interrupted_ = False
        self._train(self._solver(training), self._step_size(), self.n_blocks, self.tol, self.transport_tol)
        return self

    def refine(self, rounds: int = 1) -> JKOFlow:
        r"""Re-space the step sizes so that every block moves the data equally far, and train again from there.

        Greedy blocks of given step sizes share the work unevenly: the first often moves the data most of the way. The
        new step sizes keep the total time (`wprox.models.step_sizes.equal_moves`; Xu, Cheng and Xie 2023, section 4.2),
        block n is trained again from its present parameters, and all are fine-tuned again. The flow is replaced only
        where the held-out likelihood has improved.

        Arguments:
            rounds: how often to do so; ends early where a round brings no improvement.

        Returns:
            The flow itself.

        Raises:
            NotFittedError: before `fit`, and after loading or unpickling: files do not hold the training data.
            ValueError: where the flow has a single block.
        """
        check_count(rounds, "rounds")
        self._check_fitted()
        if not hasattr(self, "_data"):
            raise NotFittedError("the training data are not kept in files: call fit(X) again, then refine()")
        if len(self.blocks_) < 2:
            raise ValueError(
                "the flow has one block, so that there is nothing to re-space; fit it with more (n_blocks)"
            )
        for _ in range(rounds):
            before = self.blocks_, self.step_sizes_, self.history_
            costs = [stage["transport_cost"] for stage in self.history_ if "transport_cost" in stage]
            starts = iter(copy.deepcopy(self.blocks_))
            solver = self._solver(self._data[0], map=lambda dim: next(starts), map_options=None, flow_matching=0)  # noqa: B023
            sizes = equal_moves(self.step_sizes_, costs)
            self.blocks_, self.step_sizes_, self.history_, self.interrupted_ = [], [], [], False
            try:
                self._train(solver, sizes, len(sizes), -math.inf, 0.0)
            except BaseException:  # whatever ended it, the flow must not stay half trained
                self.blocks_, self.step_sizes_, self.history_ = before
                raise
            old, new = (history[-1]["held_out_nll"] for history in (before[2], self.history_))
            if not new < old:
                self.blocks_, self.step_sizes_, self.history_ = before
                warnings.warn(
                    f"refining did not improve the held-out likelihood (NLL {new:.4f}, before {old:.4f}); "
                    "the flow stays as it was",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if self.interrupted_ or not new < old:
                break
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_data"}  # no data in files

    def _train(self, solver: NeuralProx, sizes: StepSize, n_blocks: int, tol: float, transport_tol: float) -> None:
        """Blocks one after the other, then together; Ctrl-C keeps those trained so far."""
        reference = KL(_standard_normal(self._data[0].points))
        bar = tqdm(total=n_blocks, desc="blocks", disable=not self.progress)
        try:
            self._train_blocks(solver, sizes, n_blocks, tol, transport_tol, reference, bar)
            if self.fine_tune and not self.interrupted_:
                self._train_together(reference)
        except KeyboardInterrupt:
            if not self.blocks_:
                raise
            self.interrupted_ = True
        finally:
            bar.close()
        if self.interrupted_:
            warnings.warn(
                f"interrupted; the flow has the {len(self.blocks_)} blocks trained so far", RuntimeWarning, stacklevel=3
            )

    def _train_blocks(
        self,
        solver: NeuralProx,
        sizes: StepSize,
        n_blocks: int,
        tol: float,
        transport_tol: float,
        reference: KL,
        bar: tqdm,
    ) -> None:
        training, held_out, offset = self._data
        best = float(reference(held_out.relative()))
        for step in jko_steps(reference, solver, training, sizes, n_blocks, held_out):
            assert step.map is not None
            assert step.held_out is not None
            objective, cost = float(reference(step.held_out)), float(step.transport_cost)
            last = best - objective < tol or math.sqrt(cost / training.dim) < transport_tol
            if last and objective >= best and self.blocks_ and not step.interrupted:
                break  # the block is worse than none
            self.blocks_.append(step.map)
            self.step_sizes_.append(step.step_size)
            self.history_.append(
                {
                    "block": len(self.blocks_),
                    "step_size": step.step_size,
                    "held_out_nll": objective + offset,
                    "transport_cost": cost,
                    "iterations": step.iterations,
                    "seconds": step.seconds,
                    "message": step.message,
                }
            )
            if not (step.converged or step.interrupted):
                _warn_discretised(f"block {len(self.blocks_)}", step.message)
            bar.update()
            bar.set_postfix_str(f"held-out NLL {objective + offset:.3f}")
            if step.interrupted:
                self.interrupted_ = True
                break
            if last:
                break
            best = objective

    def _train_together(self, reference: KL) -> None:
        start = time.perf_counter()
        training, held_out, offset = self._data
        small = training.dim <= FEW_COLUMNS
        rate = self.fine_tune_learning_rate
        batch_size = self.fine_tune_batch_size or 2 * self._batch_size(training)
        iterations = self.fine_tune_iterations or min(2000, max(200, 100 * self._rows // batch_size))
        check_every = max(CHECK_EVERY, iterations // LOOKS)
        solver = self._solver(
            training,
            iterations=iterations,
            learning_rate=(3e-3 if small else 3e-4) if rate is None else rate,
            batch_size=batch_size,
            check_every=check_every,
            # at the top of the schedule the objective often rises before it falls
            patience=max(self.patience, iterations // (2 * check_every)),
        )
        outcome = solver.fine_tune(ComposedMap(self.blocks_), reference, training, held_out, self.memory_budget)
        self.interrupted_ = outcome.interrupted
        self.history_.append(
            {
                "block": "fine-tuning",
                "held_out_nll": outcome.objective + offset,
                "iterations": outcome.iterations,
                "seconds": time.perf_counter() - start,
                "message": outcome.message,
            }
        )
        if not (outcome.converged or outcome.interrupted):
            _warn_discretised("fine-tuning", outcome.message)

    def _solver(self, training: Particles, **changes: Any) -> NeuralProx:
        small = training.dim <= FEW_COLUMNS
        few = self._few(training)
        options = self.map_options
        if few and self.map == "spline":
            planar = {"frequencies": 3} if training.dim == 2 else {}
            options = {"dropout": 0.2} | planar | (options or {})
        settings: dict[str, Any] = {
            "map": self.map,
            "map_options": options,
            "iterations": self.iterations,
            "batch_size": self._batch_size(training),
            "learning_rate": (2e-2 if self.map == "ode" else 5e-3 if small else 2e-3)
            if self.learning_rate is None
            else self.learning_rate,
            "weight_decay": float(few) if self.weight_decay is None else self.weight_decay,
            "patience": self.patience,
            "flow_matching": (FLOW_MATCHING if self.map == "ode" else 0)
            if self.flow_matching is None
            else self.flow_matching,
            "check_every": CHECK_EVERY,
            "seed": self.seed,
            "progress": self.progress,
        }
        return NeuralProx(**(settings | changes))

    def _few(self, training: Particles) -> bool:
        return self._rows < 1000 * training.dim

    def _jittered(self, training: Particles, held_out: Particles, generator: torch.Generator) -> Particles:
        """Copies of the training points with noise, up to about NOISE_ROWS of them."""
        scale = self.jitter
        if scale is None:
            scale = _best_bandwidth(training, held_out) if self._few(training) and training.dim <= FEW_COLUMNS else 0.0
        self.jitter_ = float(scale)
        if not scale:
            return training
        points = training.points.repeat(max(1, math.ceil(NOISE_ROWS / len(training))), 1)
        noise = torch.randn(points.shape, generator=generator, dtype=points.dtype, device=points.device)
        return Particles(points + scale * noise)

    def _batch_size(self, training: Particles) -> int:
        return self.batch_size or (1024 if training.dim <= FEW_COLUMNS else 256)

    def _step_size(self) -> StepSize:
        if isinstance(self.step_sizes, str):
            if self.step_sizes != "auto":
                raise ValueError(f'step_sizes must be numbers, a callable or "auto", got {self.step_sizes!r}')
            return growing()
        return 1.0 if self.step_sizes is None else self.step_sizes

    def _check_arguments(self) -> None:
        check_seed(self.seed)
        for name in ("n_blocks", "iterations", "patience"):
            check_count(getattr(self, name), name)
        for name in ("learning_rate", "fine_tune_learning_rate"):
            if getattr(self, name) is not None:
                check_positive(getattr(self, name), name)
        check_non_negative(self.transport_tol, "transport_tol")
        for name in ("weight_decay", "jitter"):
            if getattr(self, name) is not None:
                check_non_negative(getattr(self, name), name)
        try:
            if math.isnan(self.tol):
                raise ValueError("tol must be a number of nats, got nan")
        except TypeError:
            raise TypeError(f"tol must be a number of nats, got {self.tol!r}") from None
        for name in ("batch_size", "fine_tune_iterations", "fine_tune_batch_size"):
            if getattr(self, name) is not None:
                check_count(getattr(self, name), name)
        if self.flow_matching is not None:
            check_count(self.flow_matching, "flow_matching", least=0)
        check_count(self.memory_budget, "memory_budget")
        check_fraction(self.validation_fraction, "validation_fraction")
        step_sizes(self._step_size(), self.n_blocks)

    def _split(self, X: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        held = round(self.validation_fraction * len(X))
        if held < 1 or len(X) - held < 2:
            needed = math.ceil(0.5 / self.validation_fraction) + 2
            raise ValueError(
                f"X has {len(X)} rows; holding out {self.validation_fraction:g} of them takes at least {needed}. "
                "Give more rows, or held-out rows as validation"
            )
        order = torch.randperm(len(X), generator=generator).to(X.device)
        return X[order[held:]], X[order[:held]]

    def _draw(self, X: Tensor, generator: torch.Generator) -> tuple[Particles, float]:
        """Training points of rows X, several a row where preprocessing is random, and their mean −log|det|."""
        copies = min(20, math.ceil(NOISE_ROWS / len(X))) if self.preprocessing_.is_random else 1
        z, log_det = self.preprocessing_.forward(X.repeat(copies, 1), generator)
        return Particles(z.float()), -float(log_det.mean())

    # use

    def log_prob(self, X: Any) -> Tensor:
        r"""log p(x) of each row, (n,), in nats: log N(T(z); 0, I) + log|det ∇T(z)| + log|det ∂z/∂x|.

        For integer data it is the mean over eight draws of the dequantisation noise, a lower bound of log P(x) in
        expectation; a row's noise depends on the row only. For smoothed data it is the density of the smoothed law.
        """
        X = self._checked(X)
        preprocessing, map = self.preprocessing_, self._map(X.dtype)
        if not preprocessing.integer:
            return self._log_prob(map, *preprocessing.forward(X))
        noise = preprocessing.row_noise(X, LIKELIHOOD_DRAWS)
        draws = [self._log_prob(map, *preprocessing.forward(X, noise=part)) for part in noise]
        return torch.stack(draws).mean(0)

    @staticmethod
    def _log_prob(map: TransportMap, z: Tensor, log_det: Tensor) -> Tensor:
        y, flow_log_det = apply_in_batches(map, z)
        return -0.5 * y.square().sum(1) - 0.5 * z.shape[1] * math.log(2 * math.pi) + flow_log_det + log_det

    def score_samples(self, X: Any) -> Tensor:
        """`log_prob` under scikit-learn's name."""
        return self.log_prob(X)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `log_prob`: what `GridSearchCV` maximises."""
        return float(self.log_prob(X).mean())

    def transform(self, X: Any) -> Tensor:
        """The latent points T(z) of rows X, (n, d): data → noise. Integers enter from the middle of their cell."""
        X = self._checked(X)
        z, _ = self.preprocessing_.forward(X.double())
        return apply_in_batches(self._map(z.dtype), z)[0].to(X.dtype)

    def inverse_transform(self, Z: Any) -> Tensor:
        """The rows whose latent points are Z: noise → data."""
        self._check_fitted()
        Z = as_points(Z, "Z", self.preprocessing_.dim)
        z = Z.double()
        return self.preprocessing_.inverse(invert_in_batches(self._map(z.dtype), z)).to(Z.dtype)

    def latents(self, X: Any) -> list[Tensor]:
        """The data on their way to the Gaussian: preprocessed, then after each block; N + 1 tensors (n, d)."""
        X = self._checked(X)
        return self._path(self.preprocessing_.forward(X)[0])

    def _path(self, z: Tensor) -> list[Tensor]:
        path = [z]
        for block in self._map(z.dtype).maps:
            path.append(apply_in_batches(block, path[-1])[0])
        return path

    def certificate(
        self,
        X: Any,
        initial_w2: float | str | Distance = "samples",
        values: Sequence[float] | None = None,
        seed: int | None = None,
    ) -> Certificate:
        r"""Bounds of KL(data ‖ generated) by the convergence theory, from estimates of each block's first-order error.

        The error ε_n of block n is estimated by a Stein critic on X and its images (`wprox.stein.stein_residual`), and
        W₂ from the preprocessed data to N(0, I) as `initial_w2` says; `wprox.certify` puts both into the bounds (4) of
        `wprox.theory` (Cheng, Lu, Tan and Xie 2024). The invertible preprocessing does not change the KL divergence.
        Fine-tuned blocks are no longer proximal steps: the bounds stay valid for what they are, with larger ε_n.

        Arguments:
            X: (n, d), rows that the flow was not trained on.
            initial_w2: "samples" (an estimate), "moments" (an upper bound) or a number, as `wprox.certify` takes it.
            values: KL after each block where you know it, to hold against the bounds.
            seed: of the critic; the flow's by default.

        Returns:
            A certificate that is marked as an estimate.

        Raises:
            ValueError: for fewer than 40 rows.
        """
        X = self._checked(X)
        seed = self.seed if seed is None else seed
        # one draw a row: several of one row on both sides of the critic's split would show it what it must not see
        path = self._path(self.preprocessing_.forward(X, make_generator(seed))[0].double())
        errors = [
            stein_residual(before, after, lambda x: x, step_size, seed + k)
            for k, (before, after, step_size) in enumerate(zip(path[:-1], path[1:], self.step_sizes_, strict=True))
        ]
        target = _standard_normal(path[0])
        if isinstance(initial_w2, str):
            initial_w2 = wasserstein(Particles(path[0]), target, initial_w2, seed)
        return certify(
            functional=KL(target),
            step_sizes=self.step_sizes_,
            residuals=errors,
            initial_w2=initial_w2,
            values=values,
        )

    def sample(self, n: int = 1, seed: Seed = None) -> Tensor:
        """n generated rows, (n, d): T⁻¹ of standard normal draws."""
        self._check_fitted()
        mean = self.preprocessing_.mean
        shape = check_count(n, "n"), self.preprocessing_.dim
        generator = make_generator(seed, mean.device)
        try:
            noise = torch.randn(shape, generator=generator, dtype=self._dtype, device=mean.device)
        except (RuntimeError, MemoryError):
            raise ValueError(f"n = {n} rows of {shape[1]} numbers do not fit into memory; draw fewer at once") from None
        return self.inverse_transform(noise)

    @property
    def _n_features_out(self) -> int:  # asked for by scikit-learn's get_feature_names_out
        return self.preprocessing_.dim

    def _map(self, dtype: torch.dtype) -> ComposedMap:
        return ComposedMap([copy.deepcopy(block).to(dtype) for block in self.blocks_])

    def _checked(self, X: Any) -> Tensor:
        self._check_fitted()
        return self.preprocessing_.check(self._in_order(X, "X"))

    def _in_order(self, X: Any, name: str) -> Tensor:
        """The rows of X; the columns of a data frame by their names, where the flow was fitted to one."""
        table, columns = _as_table(X, name)
        fitted = getattr(self, "feature_names_in_", None)
        if columns is None or fitted is None or list(columns) == list(fitted):
            return table
        missing = [column for column in fitted if column not in columns]
        if missing or len(columns) != len(fitted):
            unknown = [column for column in columns if column not in fitted]
            raise ValueError(
                f"{name} has other columns than the data that the flow was fitted to: missing {missing}, new {unknown}"
            )
        return table[:, [columns.index(column) for column in fitted]]

    def _check_fitted(self) -> None:
        if not getattr(self, "blocks_", None):
            raise NotFittedError("this JKOFlow is not fitted yet: call fit(X) first, or JKOFlow.load(folder)")

    # files

    def save(self, folder: Any, overwrite: bool = False) -> None:
        """Write model.safetensors and config.json into `folder`.

        Raises:
            ValueError: where the folder exists and `overwrite` is not set, or a block has no `config` to rebuild it.
        """
        self._check_fitted()
        write_flow(self, folder, overwrite)

    @classmethod
    def load(cls, folder: Any, map_classes: Sequence[type[TransportMap]] = ()) -> JKOFlow:
        """Read a flow that `save` wrote.

        Arguments:
            folder: the folder.
            map_classes: classes of your own that its blocks are made of.

        Raises:
            ValueError: for a missing, truncated, foreign or newer file.
        """
        return read_flow(cls, folder, map_classes)


def _as_table(X: Any, name: str) -> tuple[Tensor, list[str] | None]:
    """A finite tensor (n, d) and the names of its columns, from an array or a data frame."""
    columns = None
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        columns = [str(column) for column in X.columns]
        repeated = sorted({column for column in columns if columns.count(column) > 1})
        if repeated:
            raise ValueError(f"{name} has several columns of one name: {', '.join(repeated)}; rename them")
        text = [column for column, dtype in zip(columns, X.dtypes, strict=True) if dtype.kind not in "fiub"]
        if text:
            raise TypeError(f"{name} has columns that are not numbers: {', '.join(text)}; encode or drop them")
        X = X.to_numpy(dtype=float, copy=True)  # a frame's own array may be read-only
    return as_points(X, name).detach(), columns


def _warn_discretised(stage: str, message: str) -> None:
    warnings.warn(
        f"{stage} was trained with too coarse a discretisation ({message}): likelihoods are true, but a better flow "
        'may be in reach; give more steps, as in map_options={"steps": 6}',
        RuntimeWarning,
        stacklevel=2,
    )


def _standard_normal(like: Tensor) -> Gaussian:
    """N(0, I) in the dimension, dtype and on the device of the points."""
    d = like.shape[1]
    return Gaussian(like.new_zeros(d), torch.eye(d, dtype=like.dtype, device=like.device))


def _best_bandwidth(training: Particles, held_out: Particles, most: int = 2000) -> float:
    """The bandwidth h of the Gaussian kernel density estimate of greatest held-out likelihood, to a factor of √2."""
    squares = torch.cdist(held_out.points[:most], training.points[:most]).square()
    bandwidths = 0.01 * 2 ** (torch.arange(14, device=squares.device) / 2)
    likelihoods = [torch.logsumexp(-squares / (2 * h**2), 1).mean() - training.dim * h.log() for h in bandwidths]
    return float(bandwidths[torch.stack(likelihoods).argmax()])
