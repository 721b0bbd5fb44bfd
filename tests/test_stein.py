"""The Stein critic against steps whose error is known."""

import math

import pytest
import torch

import wprox
from wprox.theory.stein import StepError, stein_residual


def injected_step(d, n, error, kind, seed, gamma=0.5):
    """Draws before and after an exact Gaussian step for KL(· ‖ N(0, I)) with an error put in, and its true ε."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    identity = torch.eye(d, dtype=torch.float64)
    source = wprox.Gaussian(torch.ones(d, dtype=torch.float64), factor @ factor.mT + 0.3 * identity)
    target = wprox.Gaussian(torch.zeros(d, dtype=torch.float64), identity)
    map = wprox.GaussianProx().step(wprox.KL(target), source, gamma).map
    matrix, shift = map.matrix.detach(), map.shift.detach().clone()
    if kind == "shift":
        shift[0] += error / (1 + 1 / gamma)
    else:
        matrix = matrix * (1 + error / (math.sqrt(d) * (2 + 1 / gamma)))
    before = source.sample(n, seed=seed + 100)
    after = before @ matrix.mT + shift
    new = wprox.Gaussian(matrix @ source.loc + shift, matrix @ source.covariance_matrix @ matrix.mT)
    # ξ = x − S⁻¹(x − m′) + (x − T⁻¹x)/γ is affine
    at_mean = new.loc + (new.loc - source.loc) / gamma
    slope = identity - torch.linalg.inv(new.covariance_matrix) + (identity - torch.linalg.inv(matrix)) / gamma
    square = at_mean.square().sum() + (slope @ new.covariance_matrix * slope).sum()
    return before, after, gamma, math.sqrt(float(square))


@pytest.mark.parametrize("kind", ["shift", "stretch"])
@pytest.mark.parametrize("error", [0.3, 1.0])
@pytest.mark.parametrize(("d", "n", "tolerance"), [(2, 10_000, 0.15), (10, 10_000, 0.25)])
def test_known_error_is_recovered(d, n, tolerance, error, kind):
    for seed in range(2):
        before, after, gamma, true = injected_step(d, n, error, kind, seed)
        found = stein_residual(before, after, lambda x: x, gamma, seed=seed)
        assert isinstance(found, StepError)
        assert found.estimate == pytest.approx(true, rel=tolerance)
        assert found.standard_error < tolerance * true


@pytest.mark.parametrize("d", [1, 2])
def test_error_that_is_not_affine(d):
    """p_n = N(0, I) and T⁻¹(x) = x − γ η(x) give ξ = η, whatever η is."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, d, generator=generator, dtype=torch.float64)
    field = 0.5 * torch.sin(1.5 * x.roll(1, 1) + 0.5)
    true = math.sqrt(float(field.square().sum(1).mean()))
    found = stein_residual(x - 0.5 * field, x, lambda x: x, 0.5)
    assert found.estimate == pytest.approx(true, rel=0.15)


def test_exact_step_has_an_error_within_noise_and_seeds_repeat():
    before, after, gamma, _ = injected_step(2, 10_000, 0.0, "shift", 0)
    found = stein_residual(before, after, lambda x: x, gamma)
    assert found.estimate < 0.06
    assert found == stein_residual(before, after, lambda x: x, gamma)


def test_the_half_that_is_evaluated_has_not_been_fitted():
    """An exact step has ε² = 0: on its own half the critic would find √(degrees of freedom/n), about 0.35 here."""
    found = [stein_residual(*injected_step(10, 2000, 0.0, "shift", seed)[:2], lambda x: x, 0.5) for seed in range(8)]
    assert sum(error.estimate for error in found) / 8 < 0.2


def test_standard_error_is_the_spread_over_draws():
    """Twelve independent steps with one and the same error: 12 spreads from a χ² law are within a factor of 2."""
    before, after, gamma, _ = injected_step(2, 12 * 3000, 0.5, "stretch", 0)
    found = [stein_residual(x, y, lambda x: x, gamma) for x, y in zip(before.chunk(12), after.chunk(12), strict=True)]
    estimates = torch.tensor([error.estimate for error in found])
    typical = sum(error.standard_error for error in found) / 12
    assert 0.5 * typical < float(estimates.std()) < 2 * typical


def test_entropy_weight_and_float32():
    """G = ∫ |x|²/2 dρ + β ∫ ρ log ρ is stationary at N(0, βI); the identity step has ε = 0 there, and not for β = 1."""
    x = 2 * torch.randn(10_000, 2, generator=torch.Generator().manual_seed(0))
    right = stein_residual(x, x, lambda x: x, 1.0, entropy_weight=4.0)
    wrong = stein_residual(x, x, lambda x: x, 1.0, entropy_weight=1.0)
    assert right.estimate < 0.2
    assert wrong.estimate == pytest.approx(math.sqrt(2) * 1.5, rel=0.05)  # |x − x/4| = ¾|x|


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(50, 2), torch.zeros(49, 2)), "match row by row"),
        ((torch.zeros(50, 1), torch.zeros(50, 2)), "1 columns, expected 2"),
        ((torch.rand(10, 2), torch.rand(10, 2)), "at least 40 points"),
        ((torch.ones(50, 2), torch.ones(50, 2)), "no density"),
        ((torch.full((50, 2), math.nan), torch.ones(50, 2)), "NaN"),
    ],
)
def test_bad_points(arguments, message):
    with pytest.raises(ValueError, match=message):
        stein_residual(*arguments, lambda x: x, 1.0)


def test_bad_settings():
    x = torch.randn(50, 2)
    with pytest.raises(ValueError, match="step_size must be positive"):
        stein_residual(x, x, lambda x: x, 0.0)
    with pytest.raises(ValueError, match="entropy_weight"):
        stein_residual(x, x, lambda x: x, 1.0, entropy_weight=-1.0)
    with pytest.raises(ValueError, match="grad_potential must map"):
        stein_residual(x, x, lambda x: x.sum(-1), 1.0)


def test_more_features_see_more_of_a_wiggly_error():
    x = torch.randn(6000, 1, generator=torch.Generator().manual_seed(0)).double()
    after = x + 0.5 * (3 * x).sin() / 2  # γ = 1: v = x' + (x' − x), an error far from affine
    few, many = (wprox.stein.stein_residual(x, after, lambda x: x, 1.0, features=n).estimate for n in (1, 400))
    assert few < many
