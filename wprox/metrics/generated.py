"""How well generated rows stand in for real ones: what a classifier tells apart, and what a model learns from them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from wprox._checks import described
from wprox._random import check_seed
from wprox.metrics.columns import Column, Columns, as_columns, count_of, ranked, rows_of

TREES = 200
LEAF = 5  # rows, where there is more noise than signal, as in two samples that are nearly alike, and in regressions
MOST_FEATURES = 20  # that a split of a regression looks at, of a third of them (Breiman 2001)
MOST_ROWS = 5_000  # of each table that a forest is grown from
FEWEST_ROWS = 20  # of each table, for a classifier that is trained on half of them
MOST_CLASSES = 20
ROWS_PER_CLASS = 5  # on average, below which the values of a target are a scale and no classes


class TwoSample(NamedTuple):
    """What a classifier tells of two samples, on rows that it was not trained on.

    Attributes:
        accuracy: the part of the rows that it calls right; ½ where the laws are equal.
        accuracy_error: its standard error, √(a(1 − a)/2m).
        auc: the probability that it holds a generated row for more likely generated than a real one; ½ where the laws
            are equal.
        auc_error: its standard error (Hanley and McNeil 1982).
        chance: the AUC under which equal laws stay in 95 of 100 cases.
        p_value: how often equal laws would have so large an AUC, or a larger one.
        rows: m, of each kind that it was tested on.
    """

    accuracy: float
    accuracy_error: float
    auc: float
    auc_error: float
    chance: float
    p_value: float
    rows: int


class Utility(NamedTuple):
    """How well a target column is predicted, on real rows that no model has seen.

    Attributes:
        score: "accuracy" for classes, "R²" for numbers.
        from_real: after training on real rows.
        from_generated: after training on as many generated rows.
        from_constant: of the best constant, the most frequent class or the mean of the real training rows.
        error: the standard error of `from_generated − from_real`, row by row.
        rows: that were trained on, and that were predicted.
    """

    score: str
    from_real: float
    from_generated: float
    from_constant: float
    error: float
    rows: tuple[int, int]


def classifier_two_sample(real: Any, generated: Any, seed: int = 0) -> TwoSample:
    r"""Whether a random forest can tell generated rows from real ones: the classifier two-sample test.

    As many generated rows as real ones are taken, at most 5,000. The forest is trained on half of both and tested on
    the other half, 2m rows. Where both laws are equal its accuracy is ½ ± 1/√(8m), and its AUC, the Mann–Whitney
    statistic P(s(x̃) > s(x)) + ½ P(s(x̃) = s(x)) of its scores, is ½ with variance (2m + 1)/(12 m²), whatever it has
    learnt (Lopez-Paz and Oquab, *Revisiting classifier two-sample tests*, 2017). Give real rows that the generator has
    not seen: copies of those that it has would count as real. Columns enter by their ranks, text by its levels, gaps as
    gaps.

    Arguments:
        real: (n, d), an array or a data frame, of 20 rows or more.
        generated: (k, d), the same columns.
        seed: of the split and the forest.

    Raises:
        ValueError: for tables of other columns, or of too few rows.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
        >>> test = wprox.metrics.classifier_two_sample(x[:300], x[300:] + 1)
        >>> test.auc > test.chance, test.p_value < 1e-6
        (True, True)
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(check_seed(seed))
    tables = as_columns((real, generated), ("real", "generated"))
    n = min(MOST_ROWS, *map(count_of, tables))
    if n < FEWEST_ROWS:
        raise ValueError(f"real and generated must have {FEWEST_ROWS} rows or more, got {n}; give more")
    drawn = [rows_of(table, rng.permutation(count_of(table))[:n]) for table in tables]
    features = ranked(drawn)
    trained = n - n // 2
    forest = RandomForestClassifier(TREES, min_samples_leaf=LEAF, random_state=seed % 2**32)
    forest.fit(np.concatenate([part[:trained] for part in features]), np.repeat([0, 1], trained))
    m = n // 2
    scores = forest.predict_proba(np.concatenate([part[trained:] for part in features]))[:, 1]
    is_generated = np.repeat([0, 1], m)
    right = np.where(scores == 0.5, 0.5, (scores > 0.5) == is_generated)  # a tie is a coin
    accuracy, auc = float(right.mean()), float(roc_auc_score(is_generated, scores))
    null = math.sqrt((2 * m + 1) / 12) / m
    return TwoSample(
        accuracy,
        math.sqrt(accuracy * (1 - accuracy) / (2 * m)),
        auc,
        _auc_error(auc, m),
        0.5 + 1.6449 * null,
        math.erfc((auc - 0.5) / (null * math.sqrt(2))) / 2,
        m,
    )


def _auc_error(auc: float, m: int) -> float:
    """Hanley and McNeil's standard error of an AUC of m rows of each kind; at ½ that of Mann and Whitney."""
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (first - auc**2 + second - auc**2)
    return math.sqrt(max(variance, 0.0)) / m


def train_on_synthetic(real: Any, generated: Any, test: Any, target: str | int, seed: int = 0) -> Utility:
    r"""Train on synthetic, test on real: how well a forest predicts a column after training on generated rows.

    Two random forests are trained on as many rows each, one on real and one on generated rows; both predict the target
    of the same real rows that neither has seen, at most 5,000 each time (Esteban, Hyland and Rätsch, *Real-valued
    (medical) time series generation with recurrent conditional GANs*, 2017). A target of text, or of at most 20
    different numbers, is classes, and the score the accuracy; generated numbers then count as the nearest class. Else
    the score is R² = 1 − Σ(y − ŷ)²/Σ(y − ȳ)². Rows whose target is missing are left out.

    Arguments:
        real: (n, d), rows that the generator was trained on; an array or a data frame.
        generated: (k, d), the same columns.
        test: (m, d), real rows that were held out.
        target: the name of the column to predict, or its number from 0; arrays name their columns x1, …, xd.
        seed: of the forests.

    Raises:
        ValueError: for a target that is no column, that does not vary, or that is the only column.

    Example:
        >>> import torch, wprox
        >>> x = torch.randn(600, 2, generator=torch.Generator().manual_seed(0))
        >>> table = torch.cat((x, x.sum(1, keepdim=True)), 1)
        >>> result = wprox.metrics.train_on_synthetic(table[:200], table[200:400], table[400:], "x3")
        >>> result.score, abs(result.from_generated - result.from_real) < 3 * result.error + 0.1
        ('R²', True)
    """
    tables = as_columns((real, generated, test), ("real", "generated", "test"))
    name = _name_of(target, tables[0])
    place = [column.name for column in tables[0]].index(name)
    tables = [rows_of(table, ~np.isnan(table[place].values)) for table in tables]
    rng = np.random.default_rng(check_seed(seed))
    n = min(MOST_ROWS, count_of(tables[0]), count_of(tables[1]))
    if n < 2 or not count_of(tables[2]):
        raise ValueError(f"too few rows have a {name!r}: {n} to train on, {count_of(tables[2])} to predict; give more")
    sizes = (n, n, MOST_ROWS)
    drawn = [rows_of(table, rng.permutation(count_of(table))[:m]) for table, m in zip(tables, sizes, strict=True)]
    features = ranked(drawn, leave=name)
    real_target, generated_target, held_out = (table[place] for table in drawn)
    truth = held_out.values
    if len(np.unique(real_target.values)) < 2:
        raise ValueError(f"{name!r} does not vary in the real rows, so that there is nothing to predict; name another")
    if _are_classes(real_target):
        return _classified(features, real_target, generated_target, truth, seed)
    return _regressed(features, real_target.values, generated_target.values, truth, seed)


def _name_of(target: str | int, columns: Columns) -> str:
    names = [column.name for column in columns]
    if not isinstance(target, str | int):
        raise TypeError(f"target must be the name of a column, or its number from 0, got {described(target)}")
    if type(target) is int and 0 <= target < len(names):
        target = names[target]
    if target not in names:
        raise ValueError(f"target must be one of the columns {', '.join(names[:20])}, or its number, got {target!r}")
    if len(names) == 1:
        raise ValueError(f"{names[0]!r} is the only column, so that there is nothing to predict it from")
    return str(target)


def _are_classes(target: Column) -> bool:
    distinct = len(np.unique(target.values))
    return target.kind == "text" or distinct <= min(MOST_CLASSES, len(target.values) / ROWS_PER_CLASS)


def _classified(features: list[np.ndarray], real: Column, generated: Column, truth: np.ndarray, seed: int) -> Utility:
    from sklearn.ensemble import RandomForestClassifier

    classes, counts = np.unique(real.values, return_counts=True)
    targets = [real.values, generated.values]
    if real.kind != "text":
        targets[1] = classes[np.abs(targets[1][:, None] - classes).argmin(1)]
    right = []
    for x, y in zip(features[:2], targets, strict=True):
        forest = RandomForestClassifier(TREES, random_state=seed % 2**32).fit(x, y)
        right.append((forest.predict(features[2]) == truth).astype(float))
    constant = float((truth == classes[counts.argmax()]).mean())
    return _utility("accuracy", right, constant, len(real.values))


def _regressed(
    features: list[np.ndarray], real: np.ndarray, generated: np.ndarray, truth: np.ndarray, seed: int
) -> Utility:
    from sklearn.ensemble import RandomForestRegressor

    mean, std = real.mean(), real.std()
    standardised = [(y - mean) / std for y in (real, generated, truth)]
    held_out = standardised[2]
    spread = float(np.square(held_out - held_out.mean()).mean())
    if not spread > 0:
        raise ValueError("the target does not vary in the test rows, so that R² is no number; give more of them")
    explained = []
    for x, y in zip(features[:2], standardised[:2], strict=True):
        at_once = max(1, min(x.shape[1] // 3, MOST_FEATURES))
        forest = RandomForestRegressor(TREES, min_samples_leaf=LEAF, max_features=at_once, random_state=seed % 2**32)
        forest.fit(x, y)
        explained.append(1 - np.square(forest.predict(features[2]) - held_out) / spread)
    constant = 1 - float(np.square(held_out).mean()) / spread
    return _utility("R²", explained, constant, len(real))


def _utility(score: str, rows: list[np.ndarray], constant: float, trained: int) -> Utility:
    """The scores of real and generated training rows, each the mean of its rows'."""
    from_real, from_generated = rows
    difference = from_generated - from_real
    error = float(difference.std()) / math.sqrt(len(difference))
    return Utility(
        score,
        float(from_real.mean()),
        float(from_generated.mean()),
        constant,
        error,
        (trained, len(difference)),
    )
