"""The baselines against independent computations, in the units of the data."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import multivariate_normal
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from wprox.app import baselines
from wprox.app.baselines import fit_baselines, kernel_log_density
from wprox.models.flow.table.columns import TableColumns


def banana(n, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    x[:, 1] = 0.3 * x[:, 1] + x[:, 0] ** 2
    return 3.0 * x + 10.0


def split(x):
    n = len(x)
    return x[: n // 2], x[n // 2 : 3 * n // 4], x[3 * n // 4 :]


@pytest.fixture(scope="module")
def parts():
    return split(banana(800))


@pytest.fixture(scope="module")
def fitted(parts):
    return {baseline.name: baseline for baseline in fit_baselines(*parts)}


def test_gaussian_is_scipys(parts, fitted):
    both = np.concatenate(parts[:2])
    expected = -multivariate_normal(both.mean(0), np.cov(both.T, bias=True)).logpdf(parts[2]).mean()
    assert fitted["Gaussian"].nll == pytest.approx(expected, abs=0.01)  # up to the ridge


def test_mixture_is_about_the_best_of_a_full_grid(parts, fitted):
    train, validation, _ = parts
    scale = train.std(0)
    grid = [
        GaussianMixture(k, reg_covar=reg, random_state=0).fit(train / scale).score(validation / scale)
        for k in (1, 2, 5, 10, 20)
        for reg in (1e-6, 1e-4, 1e-2, 1e-1)
    ]
    best = -(max(grid) - np.log(scale).sum())
    assert fitted["Gaussian mixture"].validation_nll < best + 0.05
    assert fitted["Gaussian mixture"].nll < fitted["Gaussian"].nll - 0.5


def test_kernel_density_is_sklearns(parts):
    train, _, held_out = parts
    bandwidths = np.array([0.1, 0.5, 2.0])
    ours = kernel_log_density(train, held_out, bandwidths)
    for row, h in zip(ours, bandwidths, strict=True):
        np.testing.assert_allclose(row, KernelDensity(bandwidth=h).fit(train).score_samples(held_out), rtol=1e-8)


def test_kernel_density_in_chunks_and_far_away(parts, monkeypatch):
    train, _, held_out = parts
    whole = kernel_log_density(train, held_out, np.array([0.3]))
    monkeypatch.setattr(baselines, "CHUNK_ENTRIES", 1_000)
    np.testing.assert_allclose(kernel_log_density(train, held_out, np.array([0.3])), whole)
    assert np.isfinite(kernel_log_density(train, held_out + 1e4, np.array([1e-2]))).all()


def test_kernel_density_beats_a_coarse_grid_of_sklearns(parts, fitted):
    train, validation, _ = parts
    scale = train.std(0)
    best = max(
        KernelDensity(bandwidth=h).fit(train / scale).score(validation / scale) / len(validation)
        for h in (0.03, 0.1, 0.3, 1.0)
    )
    assert fitted["kernel density"].validation_nll <= -(best - np.log(scale).sum()) + 0.01


def grid_nll(train, validation, points, **options):
    """Baselines as functions: each grid point is a held-out set of its own, so that `nll` is −log p there."""
    return np.array([[b.nll for b in fit_baselines(train, validation, point[None], **options)] for point in points])


@pytest.mark.parametrize("bounds", [None, (0.0, 2.0)])
def test_densities_integrate_to_one_in_the_units_of_the_data(bounds, monkeypatch):
    monkeypatch.setattr(baselines, "COMPONENTS", (1, 2))
    rng = np.random.default_rng(0)
    x = rng.beta(2, 5, size=(60, 1)) * 2
    low, high = bounds or (-6.0, 8.0)
    grid = (np.arange(30) + 0.5)[:, None] / 30 * (high - low) + low
    density = np.exp(-grid_nll(x[:40], x[40:], grid, bounds=bounds))
    mass = density.sum(0) * (high - low) / 30
    # in logit coordinates up to 1 % of the range beyond each bound is possible, and next to no mass is there
    assert mass == pytest.approx(np.ones(3), abs=0.03)


def test_integers_are_counted_in_probabilities(monkeypatch):
    monkeypatch.setattr(baselines, "COMPONENTS", (1, 2, 5))
    x = np.random.default_rng(0).integers(0, 4, size=(2000, 1)).astype(float)
    for baseline in fit_baselines(*split(x), integer=True, bounds=(0, 3)):
        assert math.log(4) - 0.01 < baseline.nll < math.log(4) + 0.4
        assert baseline.setting.endswith("coordinates")


def test_logit_coordinates_are_chosen_where_they_are_better():
    z = np.random.default_rng(0).normal(size=(600, 1)) * 3
    for baseline in fit_baselines(*split(1 / (1 + np.exp(-z))), bounds=(0, 1)):
        assert baseline.setting.endswith("logit coordinates")


def test_units_and_constant_columns(parts, fitted):
    wider = [np.column_stack([100 * part, np.full(len(part), 7.0)]) for part in parts]
    for baseline in fit_baselines(*wider):
        assert baseline.nll == pytest.approx(fitted[baseline.name].nll + 2 * math.log(100), abs=1e-6)


def test_same_seed_same_result(parts, fitted):
    assert [b.nll for b in fit_baselines(*parts)] == [b.nll for b in fitted.values()]


def test_large_tables_are_subsampled_and_it_is_said(parts, fitted, monkeypatch):
    monkeypatch.setattr(baselines, "MIXTURE_ROWS", 300)
    monkeypatch.setattr(baselines, "KDE_CENTRES", 300)
    monkeypatch.setattr(baselines, "KDE_HELD_OUT", 100)
    said = []
    _, mixture, kde = fit_baselines(*parts, report=said.append)
    assert "fitted to 300 of 600 rows" in mixture.setting
    assert "fitted to 300 of 600 rows, on 100 held-out rows" in kde.setting
    assert abs(kde.nll - fitted["kernel density"].nll) < 1.0
    assert said == ["Gaussian", "Gaussian mixture", "kernel density"]


def test_bad_input(parts):
    with pytest.raises(ValueError, match="held_out has 1 columns, expected 2"):
        fit_baselines(parts[0], parts[1], parts[2][:, :1])
    with pytest.raises(ValueError, match="validation is empty"):
        fit_baselines(parts[0], parts[1][:0], parts[2])
    with pytest.raises(ValueError, match="seed must be at least 0"):
        fit_baselines(*parts, seed=-1)


def test_mixed_columns_have_the_entropy_of_independent_ones():
    """A category, whole numbers with gaps and a normal column, independent: the Gaussian's NLL is the entropy.

    To three standard errors of the mean of 1,500 rows, plus what is estimated with: 0.05 and 0.03 nats.
    """
    rng = np.random.default_rng(0)
    n = 6000
    frame = pd.DataFrame(
        {
            "town": rng.choice(["a", "b", "c"], n, p=[0.5, 0.3, 0.2]),
            "count": np.where(rng.random(n) < 0.25, np.nan, np.round(20 * rng.standard_normal(n))),
            "x": 3 * rng.standard_normal(n),
        }
    )
    columns = TableColumns.learn(frame)
    system = baselines._Coordinates("standardised", split(columns.read(frame)), False, None, 0, columns)
    nll = baselines._gaussian(system, None).held_out()
    normal = 0.5 * math.log(2 * math.pi * math.e)
    town = -sum(p * math.log(p) for p in (0.5, 0.3, 0.2))
    count = -0.25 * math.log(0.25) - 0.75 * math.log(0.75) + 0.75 * (normal + math.log(20))
    assert abs(nll - (town + count + normal + math.log(3))) < 0.08
