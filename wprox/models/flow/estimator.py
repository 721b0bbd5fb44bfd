"""What a fitted flow holds, and what scikit-learn asks of it: rows, names of columns, tags and a score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from wprox.maps import TransportMap
from wprox.models.flow.columns import Array, in_order
from wprox.models.flow.density import mean_log_prob
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.selection import Selection
from wprox.models.flow.table.columns import TableColumns
from wprox.models.flow.table.preprocessing import TablePreprocessing
from wprox.models.flow.training import TrainedBlocks


class FlowEstimator(DensityMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A density estimator and transformer whose `fit` sets the attributes that are annotated here."""

    columns: Any
    standardize: bool
    integer: bool
    bounds: tuple[Any, Any] | None
    smoothing: float
    drop_constant: bool
    preprocessing_: Preprocessing
    columns_: TableColumns
    start_: TransportMap | None = None  # none in what 0.1.0 pickled
    blocks_: list[TransportMap]
    step_sizes_: list[float]
    history_: list[dict[str, Any]]
    interrupted_: bool
    selection_: Selection | None = None
    jitter_: float | list[float]
    n_features_in_: int
    _dtype: torch.dtype
    _saw_tensor = True  # in `fit`; files of 0.1.0 do not say

    @abstractmethod
    def log_prob(self, X: Any) -> Array:
        """log p(x) of each row, (n,)."""

    def score_samples(self, X: Any) -> Array:
        """`log_prob` under scikit-learn's name."""
        return self.log_prob(X)

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of `log_prob`: what `GridSearchCV` maximises; −∞, with a warning, where a row's density is 0."""
        return mean_log_prob(torch.as_tensor(self.log_prob(X)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        as_they_are = self.columns is not None
        tags.transformer_tags.preserves_dtype = ["float64"] if as_they_are else ["float64", "float32"]
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = as_they_are
        return tags

    @property
    def _n_features_out(self) -> int:  # asked for by scikit-learn's get_feature_names_out
        return self.preprocessing_.dim

    def _new_preprocessing(self, table: TableColumns | None = None) -> Preprocessing:
        if table is not None:
            if self.integer or self.bounds is not None:
                raise ValueError(
                    "integer=True and bounds speak of a table of numbers, columns of each column; give one of them"
                )
            return TablePreprocessing(table, self.standardize, self.smoothing)
        return Preprocessing(self.standardize, self.integer, self.bounds, self.smoothing, self.drop_constant)

    def _take_preprocessing(self, preprocessing: Preprocessing) -> None:
        self.preprocessing_ = preprocessing
        if isinstance(preprocessing, TablePreprocessing):
            self.columns_ = preprocessing.columns
        elif hasattr(self, "columns_"):
            del self.columns_

    @property
    def _trained(self) -> TrainedBlocks:
        return TrainedBlocks(self.blocks_, self.step_sizes_, self.history_, self.interrupted_)

    def _take(self, trained: TrainedBlocks) -> None:
        self.blocks_, self.step_sizes_ = trained.maps, trained.step_sizes
        self.history_, self.interrupted_ = trained.history, trained.interrupted

    def _name_features(self, columns: Sequence[str] | None) -> None:
        if columns is not None:
            self.feature_names_in_ = np.array(columns, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _checked(self, X: Any, within_bounds: bool = True) -> Tensor:
        """Rows with the columns that were fitted, on the device of the flow."""
        self._check_fitted()
        if hasattr(self, "columns_"):  # which says itself what it takes
            return self.preprocessing_.check(self.columns_.read(X), within_bounds=within_bounds)
        table = in_order(X, "X", getattr(self, "feature_names_in_", None))
        if table.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {table.shape[1]} columns, expected {self.n_features_in_}: X has {table.shape[1]} features, but "
                f"{type(self).__name__} is expecting {self.n_features_in_} features as input"  # scikit-learn's words
            )
        return self.preprocessing_.check(table.to(self.preprocessing_.mean.device), within_bounds=within_bounds)

    def _check_fitted(self) -> None:
        if not (getattr(self, "blocks_", None) or getattr(self, "start_", None)):
            raise NotFittedError("this JKOFlow is not fitted yet: call fit(X) first, or JKOFlow.load(folder)")
