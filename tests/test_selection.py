"""What a flow of a small table consists of: never behind the simple models, atoms kept, saved and loaded whole."""

import math

import numpy as np
import pytest
import torch

import wprox
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.selection import is_wanted
from wprox.models.flow.settings import TableSize
from wprox.models.flow.start.kernels import Bandwidths, product_bandwidths
from wprox.models.flow.start.kernels import left_out_log_prob as kernel_log_prob
from wprox.models.flow.start.mixtures import Fold, best_gaussian, best_mixture, joint_log_prob, left_out_log_prob
from wprox.models.flow.start.stacking import best_start, stacked_weights


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def table_of_atoms(n, seed):
    """A column of five values, one that follows it closely, one that is independent, and one on the line of both."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 5, (n,), generator=generator).double()
    noise = normal(n, 3, seed + 1)
    follows = level.square() / 5 + 0.01 * noise[:, 0]
    return torch.stack((level + 1e-3 * noise[:, 2], follows, noise[:, 1], follows + noise[:, 1]), 1) + torch.tensor(
        [0.0, 0.0, 0.0, 1.0]
    ) * 1e-3 * normal(n, 4, seed + 2)


@pytest.fixture(scope="module")
def fitted():
    return wprox.JKOFlow(seed=0).fit(table_of_atoms(120, 0))


def test_atoms_survive(fitted):
    """The conditionals see that a level decides the second column, and two columns the last."""
    test = table_of_atoms(500, 7)
    gaussian = torch.distributions.MultivariateNormal(test.mean(0), test.T.cov())
    assert fitted.score(test) > float(gaussian.log_prob(test).mean()) + 5
    draws = fitted.sample(500, seed=0)
    level = draws[:, 0].round()
    assert float((draws[:, 0] - level).abs().median()) < 0.01
    assert float((draws[:, 1] - level.square() / 5).abs().median()) < 0.1
    assert float((draws[:, 3] - draws[:, 1] - draws[:, 2]).abs().median()) < 0.02


def test_a_selection_says_what_and_why(fitted):
    said = fitted.selection_
    assert said.chosen in ("start", "start and blocks")
    assert said.rows == 120
    assert math.isclose(sum(weight for _, weight, _ in said.start), 1.0, abs_tol=0.01)
    assert all(said.nll["start"] < nll + 0.05 for _, _, nll in said.start)
    assert "rows left out" in str(said)
    assert "kernels" in str(said)


def test_round_trips_and_files(fitted, tmp_path):
    x = table_of_atoms(20, 3)
    assert torch.allclose(fitted.inverse_transform(fitted.transform(x)), x, atol=1e-6)
    assert torch.allclose(fitted.log_prob(x.float()).double(), fitted.log_prob(x), atol=0.05)  # x itself is rounded
    assert len(fitted.latents(x)) == len(fitted.blocks_) + 2
    fitted.save(tmp_path / "model")
    again = wprox.JKOFlow.load(tmp_path / "model")
    assert torch.equal(again.log_prob(x), fitted.log_prob(x))
    assert again.selection_ == fitted.selection_
    assert torch.equal(again.sample(5, seed=1), fitted.sample(5, seed=1))


def test_what_needs_blocks_says_so():
    fitted = wprox.JKOFlow(seed=0).fit(normal(60, 4))
    assert not fitted.blocks_
    with pytest.raises(ValueError, match=r"there are no steps to certify\. Fit it with selection=False"):
        fitted.certificate(normal(50, 4, 1))
    with pytest.raises(ValueError, match="the flow has no blocks, so that there is nothing to re-space"):
        fitted.refine()


def test_the_same_seed_gives_the_same_flow(fitted):
    again = wprox.JKOFlow(seed=0).fit(table_of_atoms(120, 0))
    x = table_of_atoms(20, 3)
    assert torch.equal(again.log_prob(x), fitted.log_prob(x))


def test_order_and_units_of_columns_do_not_matter_to_the_start(fitted):
    test = table_of_atoms(300, 7)
    order, scale = [2, 0, 3, 1], torch.tensor([1e3, 1.0, 1e-4, 7.0], dtype=torch.float64)
    z, other = (
        Preprocessing().fit(x).forward(x)[0] for x in (table_of_atoms(120, 0), table_of_atoms(120, 0)[:, order] * scale)
    )
    assert torch.allclose(z[:, order], other, atol=1e-9)
    starts = [best_start(points, 0).map(points) for points in (z, other)]
    test = Preprocessing().fit(table_of_atoms(120, 0)).forward(test)[0]
    scores = [
        float(start.log_prob(points).mean()) for start, points in zip(starts, (test, test[:, order]), strict=True)
    ]
    assert abs(scores[0] - scores[1]) < 0.05


@pytest.mark.parametrize(("n", "d"), [(50, 20), (200, 5)])
def test_gaussian_data_are_not_behind_a_gaussian(n, d):
    """With two columns of correlation 1 − 1e-8, against Ledoit–Wolf and the full covariance, in nats a row."""
    from sklearn.covariance import LedoitWolf

    mixing = normal(d, d, 5)
    x = normal(n + 2000, d, 6) @ mixing
    x[:, 1] = x[:, 0] + math.sqrt(2e-8) * float(x[:, 0].std()) * normal(n + 2000, 1, 7)[:, 0]
    x = (x - x[:n].mean(0)) / x[:n].std(0)
    train, test = x[:n], x[n:]
    full = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov(correction=0))
    best = max(LedoitWolf().fit(train.numpy()).score(test.numpy()), float(full.log_prob(test).mean()))
    assert wprox.JKOFlow(seed=0).fit(train).score(test) > best - 0.02


def test_many_columns_begin_with_a_gaussian():
    train, test = normal(50, 120), normal(500, 120, 1)
    flow = wprox.JKOFlow(seed=0).fit(train)
    assert [name.split(",")[0] for name, _, _ in flow.selection_.start] == ["Gaussian"]
    assert flow.score(test) > -120 * 0.5 * math.log(2 * math.pi * math.e) - 20


def test_validation_rows_choose_and_are_not_trained_on():
    train, validation = table_of_atoms(150, 0), table_of_atoms(60, 5)
    flow = wprox.JKOFlow(seed=0).fit(train, validation=validation)
    assert flow.selection_.rows == 60
    kernels = [part for part in flow.start_.densities if hasattr(part, "centres")]
    assert [len(part.centres) for part in kernels] == [150]


def test_who_says_how_blocks_are_trained_gets_blocks():
    defaults = wprox.JKOFlow._defaults()
    small, large, wide = TableSize(200, 3), TableSize(20_000, 3), TableSize(200, 1000)
    wants = lambda size, **given: is_wanted(defaults | given, defaults, size)  # noqa: E731
    assert wants(small)
    assert wants(small, seed=3, standardize=False)
    assert not wants(small, n_blocks=2)
    assert not wants(small, selection=False)
    assert wants(small, selection=True, n_blocks=2)
    assert not wants(large)
    assert not wants(wide)


def test_stacked_weights_have_the_greatest_likelihood():
    log_prob = normal(200, 3)
    weights = stacked_weights(log_prob)
    value = lambda w: float((w.log() + log_prob).logsumexp(1).sum() + 0.5 * w.log().sum())  # noqa: E731
    assert math.isclose(float(weights.sum()), 1.0, abs_tol=1e-12)
    for seed in range(20):
        other = (weights.log() + 0.1 * normal(1, 3, seed)[0]).softmax(0)
        assert value(weights) >= value(other)


def test_rows_are_left_out():
    """Against the conditionals of the density that never saw the row."""
    x = normal(12, 3)
    bandwidths = Bandwidths.of_product_kernel(product_bandwidths(x, torch.Generator().manual_seed(0)))
    found = kernel_log_prob(bandwidths, x, torch.arange(12), torch.tensor([4, 7]))
    for value, row in zip(found, (4, 7), strict=True):
        others = [k for k in range(12) if k != row]
        assert math.isclose(float(value), float(bandwidths.density(x[others]).log_prob(x[[row]])), abs_tol=1e-9)


def test_simple_models_are_chosen_by_rows_left_out():
    generator = torch.Generator().manual_seed(0)
    x = normal(300, 2) + 6 * torch.randint(0, 2, (300, 1), generator=generator)
    folds = [Fold(torch.arange(200), torch.arange(200, 300))]
    name, fit = best_mixture(x, folds, 0)
    assert name.startswith("2 components")
    by_torch = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=fit(x).log_weights),
        torch.distributions.MultivariateNormal(fit(x).loc, scale_tril=fit(x).cholesky),
    )
    assert torch.allclose(joint_log_prob(fit(x), x), by_torch.log_prob(x), atol=1e-9)
    _, gaussian = best_gaussian(x, folds)
    assert left_out_log_prob(fit, x, folds).mean() > left_out_log_prob(gaussian, x, folds).mean()
    singular = torch.cat((x, x[:, :1]), 1)
    assert best_gaussian(singular, folds)[0] != "ridge 0"


def test_a_frame_of_few_rows():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": np.arange(30.0) % 7, "b": np.arange(30.0) ** 2})
    flow = wprox.JKOFlow(seed=0).fit(frame)
    assert np.isfinite(np.asarray(flow.log_prob(frame[["b", "a"]]))).all()
