"""The JKO flow: a generative model whose blocks are JKO steps from the data to a Gaussian."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from wprox._checks import StepSize, as_points, check_count
from wprox._random import Seed, make_generator
from wprox.maps import ComposedMap, TransportMap
from wprox.maps.base import apply_in_batches, invert_in_batches
from wprox.measures.laws import standard_normal_log_prob
from wprox.metrics import Distance
from wprox.models.files import read_flow, write_flow
from wprox.models.flow.columns import as_table, in_order
from wprox.models.flow.data import FlowData, hold_out
from wprox.models.flow.training import (
    block_solver,
    check_arguments,
    joint_solver,
    preprocessing_of,
    restarting_solver,
    step_size_of,
    train_together,
    trained_blocks,
    warn_discretised,
)
from wprox.models.step_sizes import equal_moves
from wprox.solvers import NeuralProx
from wprox.solvers.neural.neural import MapFactory
from wprox.theory.certificate import Certificate
from wprox.theory.path_certificate import certify_path


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
        fine_tune_learning_rate: Adam's; 3e-3 up to eight columns; else 2e-3, or 3e-4 where there are fewer than 1,000
            rows a column.
        fine_tune_batch_size: rows in its minibatches; twice `batch_size`.
        memory_budget: bytes that activations may take in it (minibatches are made small enough); 512 MB.
        validation_fraction: the part of X held out, where `fit` gets no validation data.
        standardize, integer, bounds, smoothing, drop_constant: see `wprox.models.flow.preprocessing.Preprocessing`.
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
        check_arguments(self)
        X, columns = as_table(X, "X")
        generator = make_generator(self.seed)
        preprocessing = preprocessing_of(self).fit(X, columns)
        X = preprocessing.check(X)
        self.preprocessing_ = preprocessing
        self.n_features_in_ = X.shape[1]
        self._dtype = X.dtype
        if columns is not None:
            self.feature_names_in_ = np.array(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_
        if validation is None:
            X, validation = hold_out(X, self.validation_fraction, generator)
        else:
            validation = preprocessing.check(self._in_order(validation, "validation"), "validation")
        self._data = FlowData.prepare(X, validation, preprocessing, self.jitter, generator)
        self.jitter_ = self._data.jitter
        self.blocks_: list[TransportMap] = []
        self.step_sizes_: list[float] = []
        self.history_: list[dict[str, Any]] = []
        self.interrupted_ = False
        solver = block_solver(self, self._data)
        self._train(solver, step_size_of(self), self.n_blocks, self.tol, self.transport_tol)
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
            before = self.blocks_, self.step_sizes_, self.history_, self.interrupted_
            costs = [stage["transport_cost"] for stage in self.history_ if "transport_cost" in stage]
            solver = restarting_solver(self, self._data, self.blocks_)
            sizes = equal_moves(self.step_sizes_, costs)
            self.blocks_, self.step_sizes_, self.history_, self.interrupted_ = [], [], [], False
            try:
                self._train(solver, sizes, len(sizes), -math.inf, 0.0)
            except BaseException:  # whatever ended it, the flow must not stay half trained
                self.blocks_, self.step_sizes_, self.history_, self.interrupted_ = before
                raise
            old, new = (history[-1]["held_out_nll"] for history in (before[2], self.history_))
            ended = self.interrupted_ or not new < old
            if not new < old:
                self.blocks_, self.step_sizes_, self.history_, self.interrupted_ = before
                warnings.warn(
                    f"refining did not improve the held-out likelihood (NLL {new:.4f}, before {old:.4f}); "
                    "the flow stays as it was",
                    RuntimeWarning,
                    stacklevel=2,
                )
            if ended:
                break
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_data"}  # no data in files

    def _train(self, solver: NeuralProx, sizes: StepSize, n_blocks: int, tol: float, transport_tol: float) -> None:
        """Blocks one after the other, then together; Ctrl-C keeps those trained so far."""
        try:
            for block in trained_blocks(solver, self._data, sizes, n_blocks, tol, transport_tol, self.progress):
                self.blocks_.append(block.map)
                self.step_sizes_.append(block.step_size)
                self.history_.append(block.entry)
            if self.fine_tune:
                self._train_together()
        except KeyboardInterrupt:
            if not self.blocks_:
                raise
            self.interrupted_ = True
            warnings.warn(
                f"interrupted; the flow has the {len(self.blocks_)} blocks trained so far", RuntimeWarning, stacklevel=3
            )

    def _train_together(self) -> None:
        solver = joint_solver(self, self._data)
        outcome, entry = train_together(solver, self.blocks_, self._data, self.memory_budget)
        self.history_.append(entry)
        if outcome.interrupted:
            raise KeyboardInterrupt
        if not outcome.converged:
            warn_discretised("fine-tuning", outcome.message)

    # use

    def log_prob(self, X: Any) -> Tensor:
        r"""log p(x) of each row, (n,), in nats: log N(T(z); 0, I) + log|det ∇T(z)| + log|det ∂z/∂x|.

        For integer data it is the mean over eight draws of the dequantisation noise, a lower bound of log P(x) in
        expectation; a row's noise depends on the row only. For smoothed data it is the density of the smoothed law.
        """
        X = self._checked(X)
        map = self._map(X.dtype)
        draws = []
        for z, log_det in self.preprocessing_.scored(X):
            y, flow_log_det = apply_in_batches(map, z)
            draws.append(standard_normal_log_prob(y) + flow_log_det + log_det)
        return torch.stack(draws).mean(0)

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
        docs/theory.md (Cheng, Lu, Tan and Xie 2024). The invertible preprocessing does not change the KL divergence.
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
        return certify_path(path, self.step_sizes_, initial_w2, values, seed)

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
        return in_order(X, name, getattr(self, "feature_names_in_", None))

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
