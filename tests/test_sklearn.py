"""scikit-learn's own checks of `JKOFlow`, and what comes out for what goes in."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from wprox import JKOFlow

QUICK = {"n_blocks": 1, "iterations": 1, "fine_tune": False, "jitter": 0.0}
QUICK["map_options"] = {"transforms": 1, "bins": 2, "hidden": [2]}
X = np.random.default_rng(0).normal(size=(60, 2))
METHODS = ["log_prob", "score_samples", "transform", "inverse_transform", "fit_transform", "latents"]


class OnlyAnArray:
    """What knows how to become an array, and nothing else."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


ROWS = {
    "an array": X,
    "an array in single precision": X.astype(np.float32),
    "a transposed array": np.asfortranarray(X),
    "an array of objects": X.astype(object),
    "what becomes an array": OnlyAnArray(X),
    "a list": X.tolist(),
    "a frame": pd.DataFrame(X, columns=["a", "b"]),
    "nullable numbers": pd.DataFrame(X, columns=["a", "b"]).astype("Float64"),
}


def outcome(flow, method, rows):
    result = getattr(flow, method)(rows)
    return result[-1] if method == "latents" else result


@pytest.fixture
def flow():
    return JKOFlow(**QUICK).fit(X)


@parametrize_with_checks([JKOFlow(**QUICK), JKOFlow(**QUICK, columns="auto")])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_arrays_and_frames_give_arrays(method, rows):
    result = outcome(JKOFlow(**QUICK).fit(rows), method, rows)
    assert type(result) is np.ndarray
    is_single = isinstance(rows, list) or getattr(rows, "dtype", None) == np.float32  # lists in torch's default dtype
    assert result.dtype == (np.float32 if is_single else np.float64)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_give_tensors(flow, method, dtype):
    x = torch.as_tensor(X, dtype=dtype)
    result = outcome(flow, method, x)
    assert isinstance(result, torch.Tensor)
    assert result.dtype == dtype
    assert torch.equal(result, torch.as_tensor(outcome(JKOFlow(**QUICK).fit(X), method, x.numpy())))


def test_a_tensor_that_wants_a_gradient_has_one(flow):
    x = torch.as_tensor(X, dtype=torch.float64).requires_grad_()
    assert flow.log_prob(x).requires_grad
    assert flow.transform(x).requires_grad
    assert not flow.score_samples(x.detach()).requires_grad


def test_samples_are_what_fit_saw(tmp_path):
    for rows, kind in ((X, np.ndarray), (X.tolist(), np.ndarray), (torch.as_tensor(X), torch.Tensor)):
        flow = JKOFlow(**QUICK).fit(rows)
        flow.save(tmp_path / "model", overwrite=True)
        for made in (flow, JKOFlow.load(tmp_path / "model"), pickle.loads(pickle.dumps(flow))):
            assert isinstance(made.sample(3, seed=0), kind)
    assert np.array_equal(JKOFlow(**QUICK).fit(X).sample(3, seed=0), flow.sample(3, seed=0).numpy())


def test_latents_with_a_seed_draw_what_is_random():
    counts = np.random.default_rng(0).integers(0, 4, (60, 2))
    whole, plain = JKOFlow(**QUICK, integer=True).fit(counts), JKOFlow(**QUICK).fit(X)
    first, again, other, middle = (whole.latents(counts, seed)[-1] for seed in (1, 1, 2, None))
    assert np.array_equal(first, again)
    assert len(np.unique(first, axis=0)) == 60 > 16 >= len(np.unique(middle, axis=0))
    assert not np.allclose(first, other)
    assert np.allclose(plain.latents(X, 1)[-1], plain.latents(X)[-1])


def test_set_output_makes_frames():
    frame = pd.DataFrame(X, columns=["a", "b"], index=[f"row {k}" for k in range(len(X))])
    flow = JKOFlow(**QUICK).set_output(transform="pandas")
    latent = flow.fit_transform(frame)
    assert list(latent.columns) == list(flow.get_feature_names_out()) == ["jkoflow0", "jkoflow1"]
    assert list(latent.index) == list(frame.index)
    assert np.allclose(flow.inverse_transform(latent), X)
    assert type(flow.score_samples(frame)) is np.ndarray


def test_names_of_features_out_are_those_of_columns_that_vary():
    flow = JKOFlow(**QUICK, drop_constant=True).fit(np.column_stack([X, np.ones(len(X))]))
    assert list(flow.get_feature_names_out()) == ["jkoflow0", "jkoflow1"]
    assert (flow.sample(5, seed=0)[:, 2] == 1).all()


def test_in_pipelines_and_searches():
    pipeline = make_pipeline(StandardScaler(), JKOFlow(**QUICK)).fit(X)
    assert np.allclose(pipeline.inverse_transform(pipeline.transform(X)), X)
    assert pipeline.score_samples(X).shape == (len(X),)
    search = GridSearchCV(JKOFlow(**QUICK), {"iterations": [1, 2]}, cv=2).fit(X)
    assert np.isfinite(search.best_score_)
    assert type(search.score_samples(X)) is np.ndarray


def test_rows_that_come_twice_have_a_start():
    ties = np.random.default_rng(0).integers(0, 3, (20, 3))
    assert np.isfinite(JKOFlow().fit(ties).score(ties))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X + 1j, ValueError, "Complex data not supported: X is in complex128; give its real part"),
        (torch.as_tensor(X) + 1j, ValueError, "Complex data not supported"),
        (X[:1], ValueError, "1 sample.*give hundreds"),
        (X[0], ValueError, "Reshape your data: a single feature to"),
        (X[:0], ValueError, "empty: 0 sample"),
        (np.array([[1.0, None], [2.0, 3.0]], dtype=object), TypeError, "array of numbers: column 1"),
        (np.array([[1.0, "2"], [2.0, "3"]], dtype=object), TypeError, "array of numbers"),
        (np.array([[1.0, {}], [2.0, 3.0]], dtype=object), TypeError, "column 1 .*string or a real number, not 'dict'"),
        (np.array([[1.0, 10**400], [2.0, 3.0]], dtype=object), TypeError, "array of numbers"),
    ],
)
def test_refusals_in_the_words_of_both(x, error, message):
    with pytest.raises(error, match=message):
        JKOFlow(**QUICK).fit(x)
