"""How well generated rows stand in for real ones: laws of the two-sample test and of train-on-synthetic."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

from wprox.metrics import classifier_two_sample, generated, train_on_synthetic
from wprox.metrics.columns import as_columns, ranked

FRAME = pd.DataFrame(
    {"height": [1.5, np.nan, 1.7], "eyes": ["blue", None, "brown"], "born": pd.Timestamp("2000-01-02")}
)


def normals(n, seed, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, 3)) + np.array([shift, 0.0, 0.0])


@pytest.fixture
def few_trees(monkeypatch):
    monkeypatch.setattr(generated, "TREES", 20)


# the two-sample test


def test_errors_are_those_of_the_binomial_and_of_mann_and_whitney(few_trees):
    test = classifier_two_sample(normals(100, 0), normals(100, 1, 1.0))
    m = test.rows
    assert m == 50
    assert test.accuracy_error == pytest.approx(math.sqrt(test.accuracy * (1 - test.accuracy) / (2 * m)))
    null = math.sqrt((2 * m + 1) / (12 * m**2))
    assert generated._auc_error(0.5, m) == pytest.approx(null)
    assert generated._auc_error(1.0, m) == 0.0
    assert test.chance == pytest.approx(0.5 + 1.6449 * null)
    assert test.p_value == pytest.approx(scipy.stats.norm.sf(test.auc, 0.5, null))


def test_equal_laws_are_told_apart_as_often_as_chance_has_it(few_trees):
    """30 tests at level 0.05: more than 6 find a difference with probability 6e-4 (binomial), the false alarm."""
    found = [classifier_two_sample(normals(80, 2 * k), normals(80, 2 * k + 1), k) for k in range(30)]
    assert sum(test.auc > test.chance for test in found) <= 6
    aucs = np.array([test.auc for test in found])
    assert abs(aucs.mean() - 0.5) < 4 * generated._auc_error(0.5, 40) / math.sqrt(30)  # false alarm 6e-5


def test_different_laws_are_told_apart(few_trees):
    test = classifier_two_sample(normals(300, 0), normals(300, 1, 3.0))
    assert test.auc > 0.95
    assert test.accuracy > 0.85
    assert test.p_value < 1e-6


def test_units_and_more_rows_of_one_kind_do_not_matter(few_trees):
    real, fake = normals(200, 0), normals(260, 1, 1.0)
    plain = classifier_two_sample(real, fake)
    assert plain.rows == 100
    assert classifier_two_sample(1e30 * real + 1e20, 1e30 * fake + 1e20) == plain
    assert classifier_two_sample(np.exp(real), np.exp(fake)) == plain
    assert classifier_two_sample(torch.as_tensor(real), pd.DataFrame(fake).to_numpy()) == plain


def test_text_and_gaps_tell_rows_apart(few_trees):
    rng = np.random.default_rng(0)
    real = pd.DataFrame({"a": rng.normal(size=200), "b": rng.choice(["x", "y"], 200)})
    texts = real.assign(b=rng.choice(["x", "y", "z"], 200))
    gaps = real.assign(a=np.where(rng.random(200) < 0.5, np.nan, rng.normal(size=200)), b=real.b.to_numpy()[::-1])
    for other in (texts, gaps):
        test = classifier_two_sample(real, other)
        assert test.auc > test.chance


# train on synthetic, test on real


def line(n, seed, noise=0.1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n)
    return pd.DataFrame({"x": x, "noise": rng.normal(size=n), "y": x + noise * rng.normal(size=n)})


def test_numbers_are_predicted_as_well_from_rows_of_the_same_law(few_trees):
    result = train_on_synthetic(line(300, 0), line(400, 1), line(200, 2), "y")
    assert result.score == "R²"
    assert result.rows == (300, 200)
    assert result.from_real > 0.9
    assert abs(result.from_generated - result.from_real) < 5 * result.error + 0.02
    assert abs(result.from_constant) < 0.1


def test_rows_without_the_dependence_predict_nothing(few_trees):
    independent = line(300, 1).assign(y=np.random.default_rng(3).normal(size=300))
    result = train_on_synthetic(line(300, 0), independent, line(200, 2), "y")
    assert result.from_generated < 0.2 < result.from_real
    assert result.from_real - result.from_generated > 4 * result.error


@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_classes_are_predicted(few_trees, kind):
    tables = [line(200, seed) for seed in range(3)]
    for table in tables:
        table["y"] = np.where(table["y"] > 0, "high", "low") if kind == "text" else (table["y"] > 0).astype(float)
    if kind == "numbers":  # a flow without atoms draws numbers near the classes
        tables[1]["y"] += 0.1 * np.random.default_rng(0).normal(size=200)
    result = train_on_synthetic(*tables, "y")
    assert result.score == "accuracy"
    assert min(result.from_real, result.from_generated) > 0.9 > 0.7 > result.from_constant


def test_rows_without_a_target_are_left_out(few_trees):
    tables = [line(100, seed) for seed in range(3)]
    tables[0].loc[:9, "y"] = np.nan
    assert train_on_synthetic(*tables, "y").rows == (90, 100)


def test_a_scale_does_not_matter(few_trees):
    tables = [line(100, seed) for seed in range(3)]
    plain, scaled = (train_on_synthetic(*(c * table for table in tables), "y") for c in (1.0, 2.0**100))
    assert plain.from_generated == pytest.approx(scaled.from_generated)
    arrays = [table.to_numpy() for table in tables]
    assert train_on_synthetic(*arrays, 2) == train_on_synthetic(*arrays, "x3") == plain


# tables


def test_columns_of_all_kinds():
    first, second = as_columns((FRAME, FRAME.iloc[[2]].assign(eyes="green")[["eyes", "born", "height"]]), ("a", "b"))
    assert [(column.name, column.kind) for column in first] == [
        ("height", "number"),
        ("eyes", "text"),
        ("born", "date"),
    ]
    assert first[1].levels == second[1].levels == ("blue", "brown", "green")
    assert np.array_equal(first[1].values, [0.0, np.nan, 1.0], equal_nan=True)
    assert first[2].values.tolist() == [10958.0] * 3  # days from 1970-01-01 to 2000-01-02
    assert second[0].values.tolist() == [1.7]
    assert len(first[0].known) == 2


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1, None, 2], dtype="Int64"),
        pd.Series([1.0, pd.NA, 2], dtype=object),
        pd.Series([1.0, np.nan, 2.0]),
    ],
)
def test_gaps_in_numbers_are_nan(column):
    ((found,),) = as_columns((pd.DataFrame({"a": column}),), ("a",))
    assert found.kind == "number"
    assert np.array_equal(found.values, [1.0, np.nan, 2.0], equal_nan=True)


@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Tokyo"])
def test_dates_have_time_zones_or_none(zone):
    days = pd.DataFrame({"a": pd.to_datetime(["1970-01-03", None]).tz_localize("UTC").tz_convert(zone)})
    ((found,),) = as_columns((days,), ("a",))
    assert found.kind == "date"
    assert np.array_equal(found.values, [2.0, np.nan], equal_nan=True)


def test_ranks_are_those_of_all_tables():
    tables = as_columns(([[5.0, 1.0]], [[7.0, np.nan], [-1.0, 0.0]]), ("a", "b"))
    first, second = ranked(tables)
    assert first.tolist() == [[1.0, 1.0]]
    assert np.array_equal(second, [[2.0, np.nan], [0.0, 0.0]], equal_nan=True)
    assert ranked(tables, leave="x2")[0].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: classifier_two_sample(normals(10, 0), normals(50, 0)), ValueError, "20 rows or more, got 10"),
        (lambda: classifier_two_sample(normals(30, 0), normals(30, 0)[:, :2]), ValueError, "generated has x1, x2$"),
        (lambda: classifier_two_sample([1.0] * 30, normals(30, 0)), ValueError, r"array of numbers \(n, d\)"),
        (
            lambda: classifier_two_sample(normals(30, 0) * np.inf, normals(30, 0)),
            ValueError,
            "'x1' has infinite entries",
        ),
        (lambda: train_on_synthetic(*[line(30, 0)] * 3, None), TypeError, "name of a column, or its number from 0"),
        (
            lambda: classifier_two_sample(normals(0, 0), normals(30, 0)),
            ValueError,
            "it has 0 rows and 3 columns",
        ),
        (lambda: classifier_two_sample(FRAME, line(30, 0)), ValueError, "real has height, eyes, born, generated has x"),
        (lambda: train_on_synthetic(*[line(30, 0)] * 3, "z"), ValueError, "one of the columns x, noise, y.*got 'z'"),
        (lambda: train_on_synthetic(*[line(30, 0)] * 3, 3), ValueError, "one of the columns.*got 3"),
        (lambda: train_on_synthetic(*[line(30, 0)[["y"]]] * 3, "y"), ValueError, "is the only column"),
        (lambda: train_on_synthetic(*[line(30, 0).assign(y=1.0)] * 3, "y"), ValueError, "does not vary in the real"),
        (lambda: train_on_synthetic(*[line(30, 0).assign(y=np.nan)] * 3, "y"), ValueError, "too few rows have a 'y'"),
        (
            lambda: train_on_synthetic(line(30, 0), line(30, 1), line(1, 0), "y"),
            ValueError,
            "does not vary in the test rows",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
