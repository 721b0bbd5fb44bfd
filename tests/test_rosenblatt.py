"""Exact maps of mixtures to the standard normal law: against closed forms, an autodiff Jacobian and quadrature."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wprox
from wprox.maps import ConditionalDensity, GaussianMixtureDensity, KernelDensity, RosenblattMap
from wprox.maps._memory import PeakMemory, memory_limit
from wprox.maps._normal_mixture import NormalMixture, normal_quantile
from wprox.maps.base import describe
from wprox.maps.registry import rebuild
from wprox.testing import check_map


def mixture(dim, components=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    cholesky = (0.3 * draw(components, dim, dim)).tril(-1) + torch.diag_embed(draw(components, dim).abs() + 0.3)
    return GaussianMixtureDensity.of(draw(components).softmax(0), 2 * draw(components, dim), cholesky)


def kernels(dim, centres=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    density = KernelDensity(dim, centres, 2)
    density.centres, density.log_context, density.slopes = (
        draw(centres, dim),
        0.5 * draw(dim, dim),
        0.3 * draw(dim, dim),
    )
    density.log_scales = torch.tensor([[-0.5], [0.5]], dtype=torch.float64).repeat(1, dim)
    return density


def both(dim):
    return RosenblattMap([mixture(dim), kernels(dim)], [0.3, 0.7], torch.arange(dim).flip(0))


def test_the_density_of_a_mixture_is_that_of_torch():
    law, x = mixture(3), torch.randn(50, 3, dtype=torch.float64)
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=law.log_weights),
        torch.distributions.MultivariateNormal(law.loc, scale_tril=law.cholesky),
    )
    assert torch.allclose(law.log_prob(x), expected.log_prob(x), atol=1e-12)


def test_equal_bandwidths_make_the_kernel_density_estimate():
    density, x = kernels(3), torch.randn(30, 3, dtype=torch.float64)
    bandwidth = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    density.log_context, density.slopes = bandwidth.log().repeat(3, 1), torch.zeros(3, 3, dtype=torch.float64)
    density.log_scales = bandwidth.log().repeat(2, 1)
    kernel = torch.distributions.Normal(0.0, bandwidth).log_prob(x[:, None] - density.centres).sum(2)
    assert torch.allclose(density.log_prob(x), kernel.logsumexp(1) - math.log(20), atol=1e-12)


def test_wide_bandwidths_make_a_linear_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    density = KernelDensity(2, 200)
    density.centres, density.log_context = x, torch.full((2, 2), 30.0, dtype=torch.float64)
    density.slopes = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    law = density.conditional(torch.tensor([[1.0]], dtype=torch.float64), 1)
    assert torch.allclose(law.loc[0], x[:, 1] + 2 * (1 - x[:, 0]), atol=1e-12)
    assert torch.allclose(law.log_weights.exp(), torch.full_like(law.loc, 1 / 200))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_density_jacobian_and_round_trip(dim):
    map, x = both(dim), 3 * torch.randn(200, dim, dtype=torch.float64)
    y, log_det = map(x)
    normal = -0.5 * y.square().sum(1) - 0.5 * dim * math.log(2 * math.pi)
    assert torch.allclose(normal + log_det, map.log_prob(x), atol=1e-10)
    assert torch.allclose(map.inverse(y), x, atol=1e-8)
    for point, value in zip(x[:3], log_det[:3], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row: map(row[None])[0][0], point)
        assert torch.allclose(torch.linalg.slogdet(jacobian).logabsdet, value, atol=1e-9)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_laws_of_maps(dim):
    check_map(both(dim))


def test_draws_have_the_law():
    """Of 20,000 draws, the mean and the covariance, each within 5 standard errors (false alarms: 3e-6)."""
    map = RosenblattMap([mixture(3)])
    draws = map.inverse(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    law = mixture(3)
    weights = law.log_weights.exp()
    mean = weights @ law.loc
    assert ((draws.mean(0) - mean).abs() < 5 * draws.std(0) / math.sqrt(len(draws))).all()
    second = torch.einsum("k,kij->ij", weights, law.cholesky @ law.cholesky.mT + law.loc[:, :, None] * law.loc[:, None])
    products = draws[:, :, None] * draws[:, None]
    assert ((products.mean(0) - second).abs() < 5 * products.std(0) / math.sqrt(len(draws))).all()


def test_mass_is_one():
    grid = torch.linspace(-12, 12, 600, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    assert abs(float(both(2).log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2) - 1) < 1e-6


def test_derivatives_of_both_orders():
    map, x = both(2), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: map(x), (x,))
    assert torch.autograd.gradgradcheck(lambda x: map(x)[1], (x,))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(-300, 300), st.floats(1e-6, 1e3), st.floats(-1e3, 1e3))
def test_scores_and_quantiles_far_out(z, scale, shift):
    law = NormalMixture(
        torch.tensor([[0.25, 0.75]], dtype=torch.float64).log(),
        torch.tensor([[shift, shift]], dtype=torch.float64),
        torch.tensor([scale, scale], dtype=torch.float64).log(),
    )
    x = law.quantile(torch.tensor([z], dtype=torch.float64))
    assert abs(float(x[0]) - (shift + scale * z)) <= 1e-9 * (abs(shift) + scale * (1 + abs(z)))
    assert abs(float(law.score(x)[0]) - z) <= 1e-6 * (1 + abs(z)) * (1 + abs(shift) / scale * 1e-6)


def test_normal_quantiles_where_probabilities_are_no_numbers():
    y = torch.tensor([1e-9, 1.0, 7.0, 8.0, 40.0, 299.0, 301.0, 1e4, 1e6], dtype=torch.float64, requires_grad=True)
    log_tail = torch.special.log_ndtr(-y)
    assert torch.allclose(normal_quantile(log_tail.detach()), y.detach(), rtol=1e-8, atol=1e-8)
    (slope,) = torch.autograd.grad(normal_quantile(log_tail).sum(), y)
    assert torch.allclose(slope, torch.ones_like(y), rtol=1e-6)


def test_it_stays_in_float64_and_comes_back_from_its_description():
    map = both(3).float()
    assert map.log_weights.dtype == torch.float64
    again = rebuild(describe(map))
    again.load_state_dict(map.state_dict())
    x = torch.randn(5, 3)
    y, log_det = map(x)
    assert y.dtype == log_det.dtype == torch.float32
    assert torch.equal(again(x)[0], y)
    fresh = rebuild(describe(map))
    assert torch.allclose(fresh(x)[0], x, atol=1e-6)  # newly built it is the identity


def test_refusals():
    with pytest.raises(TypeError, match="densities must be a list of objects of ConditionalDensity, got"):
        RosenblattMap([wprox.AffineMap(2)])
    with pytest.raises(ValueError, match=r"densities must share one dimension, got \[2, 3\]"):
        RosenblattMap([mixture(2), mixture(3)])
    with pytest.raises(ValueError, match="weights must be 2 numbers > 0"):
        RosenblattMap([mixture(2), mixture(2)], [1.0, 0.0])
    with pytest.raises(ValueError, match="order must hold 0, …, 1 once each"):
        RosenblattMap([mixture(2)], order=torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="density of class Mine, which wprox does not know"):
        RosenblattMap.from_config({"densities": [{"class": "Mine", "config": {}}]}, rebuild)
    assert issubclass(KernelDensity, ConditionalDensity)


def test_many_centres_stay_within_the_memory_limit():
    generator = torch.Generator().manual_seed(0)
    density = KernelDensity(2, 500, 2)
    density.centres = torch.randn(500, 2, generator=generator, dtype=torch.float64)
    map, x = RosenblattMap([density]), torch.randn(600, 2, generator=generator, dtype=torch.float64)
    whole = map(x)
    with memory_limit(2**23), torch.no_grad(), PeakMemory() as memory:
        parts, back = map(x), map.inverse(whole[0])
    assert memory.peak <= 2**23 < 8 * 600 * 1000 * 2
    assert torch.allclose(torch.cat([parts[0], parts[1][:, None]], 1), torch.cat([whole[0], whole[1][:, None]], 1))
    assert torch.allclose(back, x, atol=1e-8)
