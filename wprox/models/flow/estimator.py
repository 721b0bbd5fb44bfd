"""What scikit-learn asks of a flow: the rows it is given, the names of its columns, tags, and a score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.exceptions import NotFittedError
from torch import Tensor

from wprox.models.flow.columns import Array, in_order
from wprox.models.flow.density import mean_log_prob
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.table.columns import TableColumns
from wprox.models.flow.table.preprocessing import TablePreprocessing


class FlowEstimator(DensityMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """A density estimator and transformer whose `fit` sets `preprocessing_`, `blocks_` and `n_features_in_`."""

    standardize: bool
    integer: bool
    bounds: tuple[Any, Any] | None
    smoothing: float
    drop_constant: bool
    preprocessing_: Preprocessing
    columns_: TableColumns
    n_features_in_: int

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
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
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
