"""The JKO flow: a generative model whose blocks are JKO steps from the data to a Gaussian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor

from wprox._checks import StepSize, as_points, check_count, check_fraction, check_memory
from wprox._modes import doors
from wprox._random import Seed, check_seed, make_generator
from wprox.maps import TransportMap
from wprox.maps._memory import memory_limit
from wprox.maps.registry import MapFactory, check_map_classes
from wprox.metrics import Distance
from wprox.models.flow.columns import Array, as_given, as_numpy, as_table, in_order
from wprox.models.flow.data import FlowData, hold_out
from wprox.models.flow.density import FlowDensity
from wprox.models.flow.estimator import FlowEstimator
from wprox.models.flow.files import flow_of, state_of
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.selection import choose, is_wanted
from wprox.models.flow.settings import FlowSettings, TableSize
from wprox.models.flow.table.columns import TableColumns
from wprox.models.flow.training import TrainedBlocks, block_solver, refinements, train
from wprox.models.folders import loaded_folder, save_folder
from wprox.theory.certificate import Certificate, certify_path


class JKOFlow(FlowEstimator):
    r"""A density model and sampler: JKO steps of KL(· ‖ N(0, I)), trained one after the other, then together.

    Block n is an invertible network T_n that minimises KL(T#p_{n−1} ‖ N(0, I)) + E|T(x) − x|²/(2γ_n) from the law
    p_{n−1} of the data after the blocks before it (Cheng, Lu, Tan and Xie, *Convergence of flow-based generative models
    via proximal gradient descent in Wasserstein space*, 2024; Xu, Cheng and Xie 2023). Training a block stops by a
    held-out objective; adding blocks stops when one no longer improves the held-out likelihood; then all blocks are
    fine-tuned together. The likelihood is exact, by the change of variables; sampling runs the blocks backwards.

    It has scikit-learn's manners: `fit` returns the flow, arguments are stored untouched, learned attributes end in
    `_`. Results are what their input is, tensors on its device for tensors and NumPy arrays for arrays, data frames and
    lists (or data frames, where `set_output` says so for `transform`), in its dtype; `sample` returns what `fit` saw.
    Networks are trained in float32; the way to latent points and back is computed in float64, in which it is exact.
    The same seed on the same machine gives the same flow.

    Arguments:
        map: "spline", "ode", "residual", "convex", or a factory dim → `TransportMap`.
        map_options: arguments of the named map, such as `{"transforms": 4}`. Where there are fewer than 1,000 rows a
            column, the spline map's "dropout" is 0.2 and in the plane its "frequencies" are 3; where training the
            blocks would take more than half of `memory_budget` its "affine" is `False` (above 2,590 columns) and its
            "hidden" layers are narrower; unless given.
        step_sizes: γ_n: a number, a sequence with one entry a block, or a callable of the block's index; 1 by default.
            "auto" is 0.5 · 1.5ⁿ, for more blocks that begin gently; `refine` re-spaces them afterwards.
        n_blocks: the largest number of blocks; as many as `step_sizes` has entries, where that is a sequence, else 8,
            or as few as train in half of `memory_budget` (above 450 columns).
        iterations: the largest number of gradient steps a block.
        batch_size: rows in a minibatch; 1,024 up to eight columns, else 256, or fewer above 1,000 columns.
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
        memory_budget: bytes that may be taken beside the data and their images: half for training the network, half
            for activations in fine-tuning (minibatches are made small enough) and where rows are mapped; 512 MB.
        validation_fraction: the part of X held out, where `fit` gets no validation data.
        standardize, integer, bounds, smoothing, drop_constant: see `wprox.models.flow.preprocessing.Preprocessing`.
        columns: `None` for a table of numbers. "auto" takes the columns of a data frame as they are (text, truth
            values, whole numbers, decimals, dates, gaps, atoms; docs/tables.md), or a dict from names to "category",
            "boolean", "integer", "number", "date", "drop" or a list of levels in their order, where they are not what
            they seem; or `TableColumns`, learned of a larger table. Rows then go out as they came in.
        selection: whether rows left out choose what the flow consists of: the exact map of the best simple model (a
            stacked mixture of a Gaussian, a Gaussian mixture and kernel conditionals) to N(0, I), blocks after it where
            they gain, or blocks alone. By default where there are fewer than 5,000 rows a column and no argument of the
            training is given; `False` trains blocks by the rules above, which hold no rows of the table, as kernels do.
        seed: of everything random.
        progress: show progress bars.

    Attributes:
        start_: the map T_0 of the best simple model to N(0, I), which comes before the blocks; `None` without one.
        blocks_: the trained maps T_1, …, T_N; none where rows left out gain nothing by them.
        selection_: what was chosen and why; `None` where blocks are trained by rules.
        step_sizes_: γ_1, …, γ_N.
        jitter_: the standard deviation of the noise that training used, a number or one a column.
        history_: a dict a block with step_size, held_out_nll (nats a row, in the units of the data), transport_cost,
            iterations, seconds and message; one with "block": "fine-tuning" at the end. After `refine` it is that of
            the refined flow.
        preprocessing_: from rows of X to points and back.
        n_features_in_, feature_names_in_: the number of columns, and their names where X was a data frame. Rows of
            another frame are then matched by name.
        interrupted_: whether Ctrl-C ended the training early.
        columns_: how each column was taken, where `columns` asked for it; print it.

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
        n_blocks: int | None = None,
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
        columns: str | Mapping[Any, Any] | TableColumns | None = None,
        selection: bool | None = None,
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
        self.columns = columns
        self.selection = selection
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
        fraction = check_fraction(self.validation_fraction, "validation_fraction")
        saw_tensor = isinstance(X, Tensor)
        table = None if self.columns is None else TableColumns.of(X, self.columns)
        X, columns = as_table(X, "X") if table is None else (table.read(X), table.features)
        generator = make_generator(check_seed(self.seed))
        preprocessing = self._new_preprocessing(table).fit(X, columns)
        X = preprocessing.check(X).detach()
        if validation is not None:
            name = "validation"
            read = in_order(validation, name, columns) if table is None else table.read(validation, name)
            validation = preprocessing.check(read, name).detach().to(X.device)
        self._saw_tensor = saw_tensor
        arguments = self.get_params(deep=False)
        if is_wanted(arguments, self._defaults(), TableSize(len(X), preprocessing.dim)):
            settings = FlowSettings.of(arguments, TableSize(len(X), preprocessing.dim))
            with memory_limit(settings.memory_budget):
                choice = choose(X, validation, preprocessing, settings)
            self._begin(X, columns, preprocessing, choice.data)
            self.start_, self.selection_ = choice.start, choice.selection
            self._take(choice.blocks)
            return self
        rows, held_out = (X, validation) if validation is not None else hold_out(X, fraction, generator)
        settings = FlowSettings.of(arguments, TableSize(len(rows), preprocessing.dim))
        solver = block_solver(settings)  # which checks the map
        self._begin(X, columns, preprocessing, FlowData.prepare(rows, held_out, preprocessing, self.jitter, generator))
        del X, rows, held_out  # copies, which training has no use for
        self.start_ = self.selection_ = None
        trained = TrainedBlocks()
        try:
            train(trained, solver, settings, self._data)
        finally:  # the blocks before one that failed are kept
            self._take(trained)
        return self

    def _begin(self, X: Tensor, columns: Sequence[str] | None, preprocessing: Preprocessing, data: FlowData) -> None:
        """Keep what is known before blocks are."""
        self._take_preprocessing(preprocessing)
        self._data, self.n_features_in_, self._dtype = data, X.shape[1], X.dtype
        self.jitter_ = data.jitter.tolist() if isinstance(data.jitter, Tensor) else data.jitter
        self._name_features(columns)

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        return {name: given.default for name, given in signature(cls).parameters.items()}

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
                f"the flow has {'one block' if self.blocks_ else 'no blocks'}, so that there is nothing "
                "to re-space; fit it with more (n_blocks)"
            )
        settings = FlowSettings.of(self.get_params(deep=False), self._data.size)
        for better in refinements(self._trained, settings, self._data, rounds):
            self._take(better)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_data"}  # no data in files

    # use

    def log_prob(self, X: Any) -> Array:
        r"""log p(x) of each row, (n,), in nats: log N(T(z); 0, I) + log|det ∇T(z)| + log|det ∂z/∂x|.

        For integer data it is the mean over eight draws of the dequantisation noise, a lower bound of log P(x) in
        expectation; a row's noise depends on the row only. For smoothed data it is the density of the smoothed law.
        With `columns` it is a lower bound, too, of the mixed law of probabilities and densities (docs/tables.md), in
        which gaps are integrated out. Rows outside `bounds`, and with entries of no kind that was seen, have −∞.
        (`transform` and `latents` refuse them, since they have no latent point.)

        Where X is a tensor that wants a gradient, log p carries one, and so serves as the target of `KL` and `KSD`.
        """
        return as_given(self._density.log_prob(self._checked(X, within_bounds=False)), X)

    def transform(self, X: Any) -> Array:
        """The latent points T(z) of rows X, (n, d): data → noise. Integers enter from the middle of their cell."""
        return as_given(self._density.to_latent(self._checked(X)), X)

    def inverse_transform(self, Z: Any) -> Array:
        """The rows whose latent points are Z: noise → data."""
        density = self._density
        points = as_points(Z, "Z", density.preprocessing.dim).to(density.preprocessing.mean.device)
        rows = density.from_latent(points)
        return self.columns_.write(rows) if hasattr(self, "columns_") else as_given(rows, Z)

    def latents(self, X: Any, seed: Seed = None) -> list[Array]:
        """The data on their way to the Gaussian: preprocessed, then after the start, if any, and after each block.

        N + 1 times (n, d), and one more with a start. With a seed, what is random in the preprocessing is drawn, so
        that the last are normal where the flow is right; else whole numbers and categories are mid-cell.
        """
        rows = self._checked(X)
        path = self._density.path(rows) if seed is None else self._drawn_path(rows.detach(), seed)
        return [as_given(z.to(rows.dtype), X) for z in path]

    def _drawn_path(self, X: Tensor, seed: Seed) -> list[Tensor]:
        generator = make_generator(seed, X.device)
        return self._density.images(self.preprocessing_.forward(X, generator)[0].double())

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
        Fine-tuned blocks are no longer proximal steps: the bounds stay valid for what they are, with larger ε_n. The
        steps begin behind the start, where the flow has one, which is invertible as well.

        Arguments:
            X: (n, d), rows that the flow was not trained on.
            initial_w2: "samples" (an estimate), "moments" (an upper bound) or a number, as `wprox.certify` takes it.
            values: KL after each block where you know it, to hold against the bounds.
            seed: of the critic; the flow's by default.

        Returns:
            A certificate that is marked as an estimate.

        Raises:
            ValueError: for fewer than 40 rows, and for a flow without blocks.
        """
        X = self._checked(X).detach()
        if not self.blocks_:
            raise ValueError(
                "the flow is its start alone, since rows left out gained nothing by blocks: there are no steps to "
                "certify. Fit it with selection=False for a certificate"
            )
        seed = self.seed if seed is None else seed
        # one draw a row: several of one row on both sides of the critic's split would show it what it must not see
        path = self._drawn_path(X, seed)
        path = path if self.start_ is None else path[1:]
        return certify_path(path, self.step_sizes_, initial_w2, values, seed)

    def sample(self, n: int = 1, seed: Seed = None) -> Array:
        """n generated rows, (n, d): T⁻¹ of standard normal draws; a tensor where `fit` saw one, else a NumPy array."""
        mean = self._density.preprocessing.mean
        shape = check_count(n, "n"), len(mean)
        generator = make_generator(seed, mean.device)
        check_memory(2 * shape[0] * shape[1], f"n = {n} rows of {shape[1]} numbers")
        try:
            noise = torch.randn(shape, generator=generator, dtype=self._dtype, device=mean.device)
        except (RuntimeError, MemoryError):
            raise ValueError(f"n = {n} rows of {shape[1]} numbers do not fit into memory; draw fewer at once") from None
        rows = self.inverse_transform(noise)
        return rows if self._saw_tensor or hasattr(self, "columns_") else as_numpy(rows)

    @property
    def _density(self) -> FlowDensity:
        self._check_fitted()
        maps = self.blocks_ if self.start_ is None else [self.start_, *self.blocks_]
        return FlowDensity(self.preprocessing_, maps, check_count(self.memory_budget, "memory_budget"))

    # files

    def save(self, folder: Any, overwrite: bool = False) -> None:
        """Write model.safetensors and config.json into `folder`.

        Raises:
            ValueError: where the folder exists and `overwrite` is not set, or a block has no `config` to rebuild it.
        """
        self._check_fitted()
        save_folder(folder, "JKOFlow", state_of(self), overwrite)

    @classmethod
    def load(cls, folder: Any, map_classes: Sequence[type[TransportMap]] = ()) -> JKOFlow:
        """Read a flow that `save` wrote.

        Arguments:
            folder: the folder.
            map_classes: classes of your own that its blocks are made of.

        Raises:
            ValueError: for a missing, truncated, foreign or newer file.
            TypeError: for `map_classes` that are none.
        """
        classes = check_map_classes(map_classes)
        with loaded_folder(folder, "JKOFlow") as state:
            return flow_of(cls, state, classes)


doors(JKOFlow, "fit", "refine", trains=True)
doors(JKOFlow, "log_prob", "transform", "inverse_transform", "latents", "certificate", "sample", "load")
