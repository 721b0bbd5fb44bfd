"""MMD and KSD: values and gradients against double loops, closed forms and unbiasedness; metrics of kernels."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from test_kernels import DISCREPANCIES, F64, name, normal
from torch.distributions import MultivariateNormal

import wprox
from wprox import kernels


def weights(n, seed=1):
    values = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return values / values.sum()


# --- MMD ---


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("kernel", [*DISCREPANCIES, lambda z: torch.exp(-z.square().sum(-1))], ids=name)
def test_mmd_is_the_double_sum(kernel, unbiased):
    x, w, y, v = normal(12, 3).requires_grad_(), weights(12), normal(9, 3, seed=2) + 1, weights(9, 3)

    def mean(x, w, y, v, apart):
        total, mass = 0.0, 0.0
        for i in range(len(x)):
            for j in range(len(y)):
                if not (apart and i == j):
                    total, mass = total + w[i] * v[j] * kernel((x[i] - y[j])[None])[0], mass + float(w[i] * v[j])
        return total / mass

    expected = (mean(x, w, x, w, unbiased) + mean(y, v, y, v, unbiased)) / 2 - mean(x, w, y, v, False)
    value = wprox.MMD(wprox.Particles(y, v), kernel, unbiased)(wprox.Particles(x, w))
    assert torch.allclose(value, expected)
    assert torch.allclose(torch.autograd.grad(value, x)[0], torch.autograd.grad(expected, x)[0])


def test_mmd_between_gaussians_with_a_gaussian_kernel():
    """E k(x − y) of x − y ~ N(m, S) is h^d det(h²I + S)^{−½} exp(−½ mᵀ(h²I + S)⁻¹m)."""
    p, q = wprox.Gaussian([0.0, 0.0], torch.eye(2, dtype=F64), order=40), (torch.tensor([1.0, 0.5]).double(), 0.5)

    def expected(mean, variance, h=1.5):
        return h**2 / (h**2 + variance) * math.exp(-0.5 * float(mean @ mean) / (h**2 + variance))

    m, variance = q
    zero = torch.zeros_like(m)
    exact = 0.5 * (expected(zero, 2.0) + expected(zero, 2 * variance)) - expected(m, 1 + variance)
    grid = wprox.Grid.from_density(wprox.Gaussian(m, variance * torch.eye(2, dtype=F64)), (60, 60), [(-5.0, 6.0)] * 2)
    assert float(wprox.MMD(grid, kernels.Gaussian(1.5))(p)) == pytest.approx(exact, rel=1e-6)


def test_mmd_vanishes_at_its_target_and_nowhere_else():
    y = normal(20, 2)
    for kernel in DISCREPANCIES:
        functional = wprox.MMD(y, kernel)
        assert abs(float(functional(wprox.Particles(y)))) < 1e-12 < float(functional(wprox.Particles(y + 0.1)))
        assert float(functional.wasserstein_gradient(wprox.Particles(y)).abs().max()) < 1e-10


def test_unbiased_means_are_exact():
    """Of 300 pairs of samples of one law; the mean of the estimates is 0, but for a false alarm in 16,000."""
    generator = torch.Generator().manual_seed(0)
    values = []
    for _ in range(300):
        x, y = torch.randn(2, 15, 2, generator=generator, dtype=F64)
        values.append(wprox.metrics.mmd(wprox.Particles(x), wprox.Particles(y), kernels.Gaussian(), unbiased=True))
    values = torch.stack(values)
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(300)
    assert float(values.min()) < 0


@pytest.mark.parametrize("law", ["distribution", "gaussian"])
def test_targets_that_are_drawn(law):
    target = (
        MultivariateNormal(torch.zeros(2), torch.eye(2))
        if law == "distribution"
        else wprox.Gaussian([0.0, 0.0], torch.eye(2))
    )
    one, two, three = (wprox.MMD(target, n_samples=50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.target.points, two.target.points)
    assert not torch.equal(one.target.points, three.target.points)
    assert len(one.target) == 50


def test_mmd_runs_on_every_measure():
    target = wprox.Quantiles.from_icdf(torch.distributions.Normal(1.0, 1.0).icdf, 400)
    functional = wprox.MMD(target, kernels.Gaussian())
    values = [
        functional(wprox.Quantiles.from_icdf(torch.distributions.Normal(0.0, 1.0).icdf, 400)),
        functional(wprox.Grid.from_density(wprox.Gaussian([0.0], [[1.0]]), 400, [(-8.0, 8.0)])),
        functional(wprox.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64), order=40)),
    ]
    # h²/(h² + 2) … with h = 1 and d = 1: (1 − exp(−1/6))/√3
    for value in values:
        assert float(value) == pytest.approx((1 - math.exp(-1 / 6)) / math.sqrt(3), rel=1e-3)


class Decay(kernels.RadialKernel):
    smooth = True

    def __init__(self, rate):
        self.rate = rate

    def profile(self, s):
        return torch.exp(-self.rate * s)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("radial", [True, False])
def test_mmd_of_a_kernel_that_is_trained(radial, unbiased):
    """The target's own pairs have a gradient too, and follow the kernel as it is trained."""
    x, y = wprox.Particles(normal(8, 2)), normal(6, 2, seed=2) + 1

    def functional(rate):
        kernel = Decay(rate) if radial else lambda z: torch.exp(-rate * z.square().sum(-1))
        return wprox.MMD(y, kernel, unbiased)

    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    mine = functional(rate)
    change = (functional(rate.detach() + 1e-5)(x) - functional(rate.detach() - 1e-5)(x)) / 2e-5
    assert torch.allclose(torch.autograd.grad(mine(x), rate)[0], change, rtol=1e-7)
    with torch.no_grad():
        rate.fill_(1.4)
        assert torch.allclose(mine(x), functional(rate.detach())(x))


def test_ksd_refuses_a_kernel_that_is_trained():
    """Its gradient in the kernel would be missing."""
    rate = torch.tensor(0.7, dtype=F64, requires_grad=True)
    rho, functional = wprox.Particles(normal(8, 2)), wprox.KSD(lambda x: -x.square().sum(-1) / 2, Decay(rate))
    with pytest.raises(ValueError, match=r"not differentiable in the parameters.*requires_grad_\(False\)"):
        functional(rho)
    rate.requires_grad_(False)
    assert float(functional(rho)) > 0


def test_mmd_bad_input():
    with pytest.raises(ValueError, match="the target lives in dimension 2, the measure in dimension 3"):
        wprox.MMD(normal(4, 2))(wprox.Particles(normal(4, 3)))
    with pytest.raises(ValueError, match="infinite at 0"):
        wprox.MMD(normal(4, 2), kernels.Logarithmic())
    with pytest.raises(TypeError, match="MMD needs draws"):
        wprox.MMD(lambda x: x.sum(-1))
    with pytest.raises(TypeError, match="Quantiles needs unbiased=False"):
        wprox.MMD(normal(4, 1), unbiased=True)(wprox.Quantiles([0.0, 1.0]))
    with pytest.raises(ValueError, match="at least two particles"):
        wprox.MMD(normal(4, 1), unbiased=True)(wprox.Particles(normal(1, 1)))


# --- KSD ---


def log_target(x):
    return -0.25 * x.square().sum(-1) ** 2 + torch.sin(x[:, 0])


def stein_by_autograd(kernel, x, w):
    """½ ∬ k_π, from Jacobians of k by autograd, pair by pair."""
    scores = torch.autograd.grad(log_target(x).sum(), x, create_graph=True)[0]
    jacobian, total = torch.autograd.functional.jacobian, 0.0
    for i in range(len(x)):
        for j in range(len(x)):

            def k(a, b):
                return kernel((a - b)[None])[0]

            in_x, in_y = jacobian(k, (x[i], x[j]), create_graph=True)
            mixed = jacobian(
                lambda b, i=i, k=k: jacobian(lambda a: k(a, b), x[i], create_graph=True),
                x[j],
                create_graph=True,
            )
            pair = scores[i] @ scores[j] * k(x[i], x[j]) + scores[i] @ in_y + scores[j] @ in_x + mixed.diagonal().sum()
            total = total + w[i] * w[j] * pair
    return total / 2


@pytest.mark.parametrize("dim", [1, 2, 6])
@pytest.mark.parametrize("kernel", [kernels.Gaussian(0.8), kernels.InverseMultiquadric(1.3, 0.4)], ids=name)
def test_ksd_is_the_double_sum_and_so_is_its_gradient(monkeypatch, kernel, dim):
    monkeypatch.setattr("wprox.pairs.radial.SIDE", 2)
    x, w = normal(5, dim).requires_grad_(), weights(5).requires_grad_()
    expected = stein_by_autograd(kernel, x, w)
    rho = wprox.Particles(x)
    rho.weights = w
    value = wprox.KSD(log_target, kernel)(rho)
    assert torch.allclose(value, expected)
    for mine, other in zip(torch.autograd.grad(value, (x, w)), torch.autograd.grad(expected, (x, w)), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(wprox.KSD(log_target, kernel)(rho), expected)


def test_a_score_serves_in_place_of_a_log_density():
    rho = wprox.Particles(normal(20, 2).requires_grad_())
    by_density, by_score = wprox.KSD(lambda x: -x.square().sum(-1) / 2), wprox.KSD(score=lambda x: -x)
    assert torch.allclose(by_density(rho), by_score(rho))
    assert torch.allclose(by_density.wasserstein_gradient(rho), by_score.wasserstein_gradient(rho))


def test_ksd_of_a_gaussian_target_vanishes_on_it_alone():
    """∬ k_π dπ dπ = 0, by quadrature; and at N(m, I) it is not."""
    target = wprox.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1, dtype=F64))
    at = lambda m: wprox.Quantiles.from_icdf(torch.distributions.Normal(m, 1.0).icdf, 600)  # noqa: E731
    assert float(wprox.KSD(target)(at(0.0))) < 1e-5 < 0.1 < float(wprox.KSD(target)(at(1.0)))


def test_ksd_keeps_the_dtype():
    rho = wprox.Particles(normal(6, 2).float().requires_grad_())
    functional = wprox.KSD(MultivariateNormal(torch.zeros(2), torch.eye(2)))
    assert functional(rho).dtype == functional.wasserstein_gradient(rho).dtype == torch.float32


@pytest.mark.parametrize("kernel", [kernels.Gaussian(0.8), kernels.InverseMultiquadric()], ids=name)
def test_second_derivatives_of_ksd_fall_back_on_autograd(kernel):
    def value(x):
        return wprox.KSD(log_target, kernel)(wprox.Particles(x))

    assert torch.autograd.gradgradcheck(value, normal(5, 2).requires_grad_())


def test_ksd_bad_input():
    with pytest.raises(TypeError, match="give either a target"):
        wprox.KSD()
    with pytest.raises(TypeError, match=r"second derivatives at 0, which Laplace\(bandwidth=1.0\)"):
        wprox.KSD(log_target, kernels.Laplace())
    with pytest.raises(ValueError, match="dimension 2, the measure in dimension 3"):
        wprox.KSD(wprox.Gaussian([0.0, 0.0], torch.eye(2)))(wprox.Particles(normal(4, 3)))
    with pytest.raises(ValueError, match="the score must map"):
        wprox.KSD(score=lambda x: x[:, 0])(wprox.Particles(normal(4, 3)))
    with pytest.raises(ValueError, match="does not depend on x"):
        wprox.KSD(lambda x: torch.zeros(len(x)))(wprox.Particles(normal(4, 3)))


# --- metrics ---


def test_energy_distance_is_the_square_of_that_of_scipy():
    x, y = normal(30, 1), normal(20, 1, seed=2) + 0.3
    expected = scipy.stats.energy_distance(x[:, 0].numpy(), y[:, 0].numpy()) ** 2
    assert float(wprox.metrics.energy_distance(wprox.Particles(x), wprox.Particles(y))) == pytest.approx(expected)


def test_metrics_draw_from_laws():
    law = MultivariateNormal(torch.zeros(2), torch.eye(2))
    other = wprox.Gaussian(torch.tensor([1.0, 0.0]), torch.eye(2))
    near, far = wprox.metrics.energy_distance(law, law), wprox.metrics.energy_distance(law, other)
    assert 0 <= float(near) < 0.02 < 0.3 < float(far)


def test_ess():
    assert float(wprox.metrics.ess(np.ones(7))) == pytest.approx(7)
    logs = normal(9) - 1000
    assert torch.allclose(wprox.metrics.ess(logs, log=True), wprox.metrics.ess((logs + 1000).exp()))
    assert float(wprox.metrics.ess([-math.inf, 0.0], log=True)) == 1
    assert float(wprox.metrics.ess([1000, 1000], log=True)) == 2
    with pytest.raises(ValueError, match="log-weights must have shape"):
        wprox.metrics.ess([], log=True)
    for bad in ([0.0, 0.0], [-1.0, 2.0]):
        with pytest.raises(ValueError, match="not all zero"):
            wprox.metrics.ess(bad)
    for bad in ([-math.inf, -math.inf], []):
        with pytest.raises(ValueError, match="finite maximum"):
            wprox.metrics.ess(bad, log=True)


def test_metrics_of_kernels_are_squares_and_take_measures():
    p, q = wprox.Particles(normal(9, 2)), wprox.Particles(normal(7, 2, seed=2))
    assert torch.allclose(wprox.metrics.mmd(p, q, kernels.Laplace()), 2 * wprox.MMD(q, kernels.Laplace())(p))
    assert torch.equal(wprox.metrics.energy_distance(p, q), wprox.metrics.mmd(p, q, kernels.Riesz(1)))
    with pytest.raises(TypeError, match="a measure or a torch distribution, got list"):
        wprox.metrics.energy_distance([[0.0]], q)
