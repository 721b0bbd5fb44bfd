"""Functionals and metrics of optimal transport: values and gradients against finite differences and other solvers."""

import math

import numpy as np
import ot
import pytest
import torch
from geomloss import SamplesLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import wprox
from wprox import metrics

FLOAT64 = torch.float64
quick = settings(derandomize=True, deadline=None, max_examples=15)


def cloud(n: int, d: int, seed: int, weighted: bool = True) -> wprox.Particles:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, d, generator=generator, dtype=FLOAT64)
    weights = torch.rand(n, generator=generator, dtype=FLOAT64) + 0.2
    return wprox.Particles(points, weights / weights.sum() if weighted else None)


def gaussian(seed: int, d: int = 2) -> wprox.Gaussian:
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=generator, dtype=FLOAT64)
    loc = torch.randn(d, generator=generator, dtype=FLOAT64)
    return wprox.Gaussian(loc, factor @ factor.mT + 0.3 * torch.eye(d, dtype=FLOAT64))


def functionals(target: wprox.Measure) -> list[wprox.Functional]:
    return [
        wprox.SquaredWasserstein(target),
        wprox.SinkhornDivergence(target, blur=0.5, tol=1e-10),
        wprox.SlicedWasserstein(target, n_projections=20),
    ]


names = pytest.mark.parametrize("k", [0, 1, 2], ids=["exact", "sinkhorn", "sliced"])


# Values


def test_squared_wasserstein_is_the_value_of_pot():
    p, q = cloud(40, 3, 0), cloud(55, 3, 1)
    cost = ot.dist(p.points.numpy(), q.points.numpy())
    expected = ot.emd2(p.weights.numpy(), q.weights.numpy(), cost)
    assert float(wprox.SquaredWasserstein(q)(p)) == pytest.approx(expected / 2, rel=1e-12)
    assert float(metrics.w2(p, q)) == pytest.approx(math.sqrt(expected), rel=1e-12)


def test_on_the_line_it_is_wasserstein_1d_and_the_network_simplex():
    p, q = cloud(40, 1, 0), cloud(55, 1, 1)
    cost = ot.dist(p.points.numpy(), q.points.numpy())
    expected = ot.emd2(p.weights.numpy(), q.weights.numpy(), cost)
    for value in (metrics.w2(p, q), metrics.wasserstein_1d(p, q), metrics.sliced_w2(p, q, n_projections=3)):
        assert float(value) == pytest.approx(math.sqrt(expected), rel=1e-12)


def test_between_gaussians_it_is_the_bures_distance():
    p, q = gaussian(0), gaussian(1)
    assert float(metrics.w2(p, q)) == pytest.approx(float(metrics.bures_wasserstein(p, q)), rel=1e-12)
    assert float(metrics.w2(p, q)) == pytest.approx(
        float(ot.gaussian.bures_wasserstein_distance(p.loc, q.loc, p.covariance_matrix, q.covariance_matrix)), rel=1e-8
    )


def test_gaussians_of_the_line_meet_quantiles_and_particles():
    p = wprox.Gaussian(torch.tensor([1.0], dtype=FLOAT64), torch.tensor([[4.0]], dtype=FLOAT64))
    q = wprox.Gaussian(torch.tensor([-1.0], dtype=FLOAT64), torch.tensor([[1.0]], dtype=FLOAT64))
    nodes = wprox.Quantiles.from_icdf(torch.distributions.Normal(torch.tensor(1.0, dtype=FLOAT64), 2.0).icdf, 2000)
    exact = math.sqrt(4 + 1)
    for pair in ((p, q), (nodes, q), (q, nodes), (wprox.Particles(nodes.points, nodes.weights), q)):
        assert float(metrics.w2(*pair)) == pytest.approx(exact, rel=2e-3)


def log_domain_sinkhorn(p: wprox.Particles, q: wprox.Particles, epsilon: float) -> float:
    """OT_ε by plain iterations to convergence."""
    cost = 0.5 * (p.points[:, None] - q.points).square().sum(-1)
    f, g = torch.zeros(len(p), dtype=FLOAT64), torch.zeros(len(q), dtype=FLOAT64)
    for _ in range(100_000):
        f = -epsilon * torch.logsumexp(q.weights.log() + (g - cost) / epsilon, 1)
        new = -epsilon * torch.logsumexp(p.weights.log()[:, None] + (f[:, None] - cost) / epsilon, 0)
        if p is q:  # alternating is slow here, and averaging fast
            new = (f + new) / 2
        change, g = float((new - g).abs().max()), new
        if change < 1e-13:
            return float(p.weights @ f + q.weights @ g)
    raise AssertionError("not converged")


def test_log_domain_sinkhorn_agrees_with_pot():
    p, q = cloud(20, 2, 0), cloud(25, 2, 1)
    cost = 0.5 * ot.dist(p.points.numpy(), q.points.numpy())
    plan = ot.bregman.sinkhorn_log(p.weights.numpy(), q.weights.numpy(), cost, 0.25, numItermax=10**4, stopThr=1e-14)
    product = np.outer(p.weights.numpy(), q.weights.numpy())
    value = (plan * cost).sum() + 0.25 * (plan * np.log(plan / product)).sum()
    assert log_domain_sinkhorn(p, q, 0.25) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("blur", [0.4, 1.0, 20.0])
def test_sinkhorn_divergence_against_converged_iterations(blur: float):
    p, q = cloud(20, 2, 0), cloud(25, 2, 1)
    expected = log_domain_sinkhorn(p, q, blur**2)
    expected -= (log_domain_sinkhorn(p, p, blur**2) + log_domain_sinkhorn(q, q, blur**2)) / 2
    found = metrics.sinkhorn_divergence(p, q, blur=blur, tol=1e-9)
    assert float(found) == pytest.approx(expected, rel=1e-8)
    assert float(wprox.SinkhornDivergence(q, blur)(p)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("blur", [0.3, 1.0])
def test_sinkhorn_divergence_is_the_value_of_geomloss(blur: float):
    p, q = cloud(60, 2, 0), cloud(80, 2, 1)
    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.99, backend="tensorized")
    expected = float(loss(p.weights, p.points, q.weights, q.points))
    assert float(metrics.sinkhorn_divergence(p, q, blur=blur)) == pytest.approx(expected, rel=1e-3)


def test_sinkhorn_iterations_that_do_not_suffice_warn():
    with pytest.warns(UserWarning, match="raise blur, tol or iterations"):
        wprox.SinkhornDivergence(cloud(20, 2, 0), blur=0.1, iterations=3)(cloud(20, 2, 1))


def test_sinkhorn_divergence_between_gaussians_is_that_of_their_quadrature():
    p, q = (wprox.Gaussian(rho.loc, rho.covariance_matrix) for rho in (gaussian(0), gaussian(1)))
    fine = [wprox.Gaussian(rho.loc, rho.covariance_matrix, order=24) for rho in (p, q)]
    points = [wprox.Particles(rho.points, rho.weights) for rho in fine]
    exact = float(metrics.sinkhorn_divergence(p, q, blur=1.0))
    assert float(metrics.sinkhorn_divergence(*points, blur=1.0)) == pytest.approx(exact, rel=2e-3)


def test_sinkhorn_divergence_tends_to_both_limits():
    p, q = gaussian(0), gaussian(1)
    half = float(metrics.w2(p, q)) ** 2 / 2
    assert float(metrics.sinkhorn_divergence(p, q, blur=1e-3)) == pytest.approx(half, rel=1e-5)
    means = float((p.loc - q.loc).square().sum()) / 2
    assert float(metrics.sinkhorn_divergence(p, q, blur=1000.0)) == pytest.approx(means, rel=1e-4)


@pytest.mark.parametrize("m", [40, 55], ids=["equal numbers", "other numbers"])
@pytest.mark.parametrize("weighted", [False, True])
def test_sliced_wasserstein_is_the_value_of_pot(m: int, weighted: bool):
    p, q = cloud(40, 3, 0, weighted), cloud(m, 3, 1, weighted)
    F = wprox.SlicedWasserstein(q, n_projections=30, seed=5)
    expected = ot.sliced_wasserstein_distance(
        p.points, q.points, p.weights, q.weights, projections=F.directions.mT.contiguous()
    )
    assert float(F(p)) == pytest.approx(float(expected) ** 2 / 2, rel=1e-9)
    assert float(metrics.sliced_w2(p, q, 30, 5)) == pytest.approx(float(expected), rel=1e-9)


def test_sliced_wasserstein_of_a_translation_is_its_length_over_the_root_of_the_dimension():
    p, shift = cloud(30, 3, 0), torch.tensor([3.0, 0.0, 4.0], dtype=FLOAT64)
    moved = wprox.Particles(p.points + shift, p.weights)
    assert float(metrics.sliced_w2(p, moved, n_projections=6)) == pytest.approx(5 / math.sqrt(3), rel=1e-12)
    assert float(metrics.sliced_w2(gaussian(0), gaussian(0), n_projections=7)) == pytest.approx(0, abs=1e-12)


def test_sliced_wasserstein_between_gaussians_is_that_of_their_draws():
    p, q = gaussian(0), gaussian(1)
    draws = [rho.to_particles(20_000, seed) for seed, rho in enumerate((p, q))]
    # standard error of SW₂ about 0.01; a fixed seed
    assert float(metrics.sliced_w2(*draws)) == pytest.approx(float(metrics.sliced_w2(p, q)), abs=0.03)


def test_the_directions_are_unit_vectors_in_orthonormal_sets_and_follow_the_seed():
    F = wprox.SlicedWasserstein(cloud(5, 3, 0), n_projections=7, seed=1)
    assert F.directions.shape == (7, 3)
    torch.testing.assert_close(F.directions[:3] @ F.directions[:3].mT, torch.eye(3, dtype=FLOAT64))
    assert torch.equal(F.directions, wprox.SlicedWasserstein(cloud(5, 3, 0), 7, 1).directions)
    assert not torch.equal(F.directions, wprox.SlicedWasserstein(cloud(5, 3, 0), 7, 2).directions)
    many = wprox.SlicedWasserstein(cloud(5, 2, 0), n_projections=20_000).directions
    # uniform on the circle: the mean of cos 4φ has standard deviation 0.005 at most
    assert abs(float(torch.cos(4 * torch.atan2(many[:, 1], many[:, 0])).mean())) < 0.025


# Gradients


def differences(f: object, x: Tensor, width: float = 1e-5) -> Tensor:
    result = torch.zeros_like(x)
    for k in range(x.numel()):
        step = torch.zeros_like(x).reshape(-1)
        step[k] = width
        step = step.reshape(x.shape)
        result.reshape(-1)[k] = (f(x + step) - f(x - step)) / (2 * width)
    return result


@names
@pytest.mark.parametrize("d", [1, 2])
def test_gradients_in_points_and_weights_are_finite_differences(k: int, d: int):
    p, target = cloud(12, d, 0), cloud(9, d, 1)
    F = functionals(target)[k]
    points, weights = p.points.clone().requires_grad_(), p.weights.clone().requires_grad_()

    def at(points: Tensor, weights: Tensor) -> Tensor:
        rho = wprox.Particles(p.points, p.weights)
        rho.points, rho.weights = points, weights
        return F(rho)

    by_points, by_weights = torch.autograd.grad(at(points, weights), (points, weights))
    expected = differences(lambda x: at(x, p.weights), p.points)
    assert float((by_points - expected).norm() / expected.norm()) < 1e-6
    expected = differences(lambda w: at(p.points, w / w.sum()), p.weights)
    by_weights = by_weights - p.weights @ by_weights
    assert float((by_weights - expected).norm() / expected.norm()) < 1e-6


@pytest.mark.parametrize("k", [0, 2], ids=["exact", "sliced"])
@pytest.mark.parametrize("d", [1, 2])
def test_the_derivative_in_the_weights_supports_the_value_where_masses_tie(k: int, d: int):
    """Convex in the weights, so that F(v) ≥ F(w) + φ·(v − w), also between equal weights and at cells without mass."""
    target = cloud(6, d, 1, weighted=False)
    F = functionals(target)[k]
    p = cloud(8, d, 0)
    start = torch.tensor([0.0, 1, 1, 1, 0, 1, 1, 1], dtype=FLOAT64) / 6
    weights = start.clone().requires_grad_()
    rho = wprox.Particles(p.points, start)
    rho.weights = weights
    value = F(rho)
    (slope,) = torch.autograd.grad(value, weights)
    assert float(start @ slope) == pytest.approx(0, abs=1e-12)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = torch.rand(8, generator=generator, dtype=FLOAT64) ** 3
        other = start + 0.1 * (other / other.sum() - start)
        lower = float(value.detach() + slope @ (other - start))
        assert float(F(wprox.Particles(p.points, other))) >= lower - 1e-12


@names
def test_wasserstein_gradient_between_gaussians_is_that_of_particles(k: int):
    p = wprox.Gaussian(gaussian(0).loc, gaussian(0).covariance_matrix, order=16)
    q = wprox.Gaussian(gaussian(1).loc, gaussian(1).covariance_matrix, order=16)
    F = [
        wprox.SquaredWasserstein(q),
        wprox.SinkhornDivergence(q, blur=1.0),
        wprox.SlicedWasserstein(q, n_projections=20),
    ][k]
    found = F.wasserstein_gradient(p)
    if k == 0:  # x − T(x), with T#p = q
        mapped = p.points - found
        slope = torch.linalg.lstsq(p.points - p.loc, mapped - q.loc).solution
        torch.testing.assert_close(slope, slope.mT)
        torch.testing.assert_close(slope.mT @ p.covariance_matrix @ slope, q.covariance_matrix)
        torch.testing.assert_close(p.weights @ mapped, q.loc)
        return
    direct = wprox.Functional.wasserstein_gradient(F, p)
    twin = [None, wprox.SinkhornDivergence, wprox.SlicedWasserstein][k]
    arguments = {"blur": 1.0} if k == 1 else {"n_projections": 20}
    particles = twin(wprox.Particles(q.points, q.weights), **arguments)
    direct = particles.wasserstein_gradient(wprox.Particles(p.points, p.weights))
    error = (p.weights @ (direct - found).square().sum(1)).sqrt() / (p.weights @ found.square().sum(1)).sqrt()
    assert float(error) < (0.02 if k == 1 else 0.15)  # of the quadrature: atoms for densities


@names
def test_on_the_line_every_measure_gives_the_same_answer(k: int):
    normal = torch.distributions.Normal(torch.tensor(0.5, dtype=FLOAT64), 0.7)
    quantiles = wprox.Quantiles.from_icdf(normal.icdf, 300)
    target = wprox.Quantiles.from_icdf(torch.distributions.Normal(torch.tensor(-1.0, dtype=FLOAT64), 1.2).icdf, 250)
    grid = wprox.Grid.from_density(lambda x: normal.log_prob(x[:, 0]).exp(), 300, [(-4.0, 5.0)])
    particles = wprox.Particles(quantiles.points, quantiles.weights)
    F = functionals(target)[k]
    values = [float(F(rho)) for rho in (quantiles, particles, grid)]
    assert max(values) - min(values) < 5e-3 * values[0]
    if k != 1:
        assert values[0] == pytest.approx((1.5**2 + 0.5**2) / 2, rel=2e-3)
    gradient = F.wasserstein_gradient(quantiles)
    direct = F.wasserstein_gradient(particles)
    assert float((quantiles.weights @ (gradient - direct).square()).sqrt()) < 0.01
    if k != 1:
        middle = slice(50, -50)
        expected = quantiles.points - (-1.0 + 1.2 / 0.7 * (quantiles.points - 0.5))
        torch.testing.assert_close(gradient[middle], expected[middle], atol=0.01, rtol=0)


# Properties


@names
@quick
@given(seed=st.integers(0, 1000), d=st.sampled_from([1, 2, 3]))
def test_zero_at_the_target_positive_elsewhere_and_blind_to_the_order(k: int, seed: int, d: int):
    p, target = cloud(8, d, seed), cloud(11, d, seed + 1)
    F = functionals(target)[k]
    assert float(F(target)) == pytest.approx(0, abs=1e-9)
    value = float(F(p))
    assert value > 0
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    assert float(F(wprox.Particles(p.points[order], p.weights[order]))) == pytest.approx(value, rel=1e-9)
    assert float(functionals(p)[k](target)) == pytest.approx(value, rel=1e-6)


@quick
@given(seed=st.integers(0, 1000), d=st.sampled_from([1, 2, 3]))
def test_w2_and_sliced_w2_satisfy_the_triangle_inequality(seed: int, d: int):
    p, q, r = cloud(6, d, seed), cloud(9, d, seed + 1), cloud(7, d, seed + 2)
    for distance in (metrics.w2, metrics.sliced_w2):
        assert float(distance(p, r)) <= float(distance(p, q)) + float(distance(q, r)) + 1e-12
    assert float(metrics.sliced_w2(p, q)) <= float(metrics.w2(p, q)) * (1 + 1e-12)


def test_modulus_is_one_on_the_line_and_unknown_elsewhere():
    assert [F.modulus for F in functionals(cloud(4, 1, 0))] == [1.0, None, 1.0]
    assert [F.modulus for F in functionals(cloud(4, 2, 0))] == [None, None, None]
    assert (0.5 * wprox.SquaredWasserstein(cloud(4, 1, 0))).modulus == 0.5


@names
def test_value_and_gradient_come_in_the_dtype_of_the_measure(k: int):
    p, target = cloud(8, 2, 0), cloud(9, 2, 1)
    single = wprox.Particles(p.points.float(), p.weights.float())
    F = functionals(target)[k]
    assert F(single).dtype == torch.float32
    assert F.wasserstein_gradient(single).dtype == torch.float32
    assert float(F(single)) == pytest.approx(float(F(p)), rel=1e-5)
    assert functionals(single)[k](target).dtype == FLOAT64


@names
def test_gradients_stay_switched_off(k: int):
    with torch.no_grad():
        functionals(cloud(8, 2, 0))[k](cloud(9, 2, 1))
        assert not torch.is_grad_enabled()


# Steps


def test_quantile_prox_moves_along_the_displacement_interpolation():
    start = wprox.Quantiles.from_icdf(lambda u: 2 * u + u**2, 201)
    target = wprox.Quantiles.from_icdf(lambda u: -1 + u**3, 201)
    step = wprox.QuantileProx().step(wprox.SquaredWasserstein(target), start, 0.5)
    assert step.converged
    torch.testing.assert_close(step.measure.nodes, start.nodes + (target.nodes - start.nodes) / 3)


def test_gaussian_prox_moves_along_the_displacement_interpolation():
    start, target, fraction = gaussian(0), gaussian(1), 0.5 / 1.5
    F = wprox.SquaredWasserstein(target)
    step = wprox.GaussianProx().step(F, wprox.Gaussian(start.loc, start.covariance_matrix, order=5), 0.5)
    assert step.converged
    mapped = start.points - fraction * F.wasserstein_gradient(start)
    torch.testing.assert_close(step.measure.loc, start.weights @ mapped, atol=1e-6, rtol=1e-6)
    centred = mapped - start.weights @ mapped
    torch.testing.assert_close(
        step.measure.covariance_matrix, (centred * start.weights[:, None]).mT @ centred, atol=1e-6, rtol=1e-6
    )
    assert step.residual is not None
    assert step.residual < 1e-5


@pytest.mark.parametrize("coupling", ["identity", "exact"])
@pytest.mark.parametrize("step_size", [0.5, 5.0])
def test_particle_prox_moves_along_the_displacement_interpolation(coupling: str, step_size: float):
    start = cloud(40, 2, 0, weighted=False)
    target = wprox.Particles(0.5 * cloud(40, 2, 1).points + torch.tensor([3.0, 0.0], dtype=FLOAT64))
    F = wprox.SquaredWasserstein(target)
    step = wprox.ParticleProx(coupling=coupling).step(F, start, step_size)
    plan = ot.emd([], [], ot.dist(start.points.numpy(), target.points.numpy()))
    mapped = torch.from_numpy(40 * plan) @ target.points
    assert step.converged
    torch.testing.assert_close(
        step.measure.points, start.points + step_size / (1 + step_size) * (mapped - start.points)
    )


def test_sinkhorn_prox_on_the_sinkhorn_divergence_moves_along_the_displacement_interpolation():
    start, target = (
        wprox.Grid.from_density(lambda x, c=c: torch.exp(-50 * (x[:, 0] - c).square()), 48, [(0.0, 1.0)])
        for c in (0.35, 0.65)
    )
    F = wprox.SinkhornDivergence(target, blur=0.1)
    step = wprox.SinkhornProx().step(F, start, 0.25)
    assert step.converged
    means = [float(rho.weights @ rho.points[:, 0]) for rho in (start, step.measure, target)]
    assert (means[1] - means[0]) / (means[2] - means[0]) == pytest.approx(0.2, abs=2e-3)


def test_the_barycentre_of_translated_copies_is_the_copy_at_the_mean_translation():
    shape = cloud(30, 2, 0, weighted=False).points
    shifts = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-1.0, -1.0]], dtype=FLOAT64)
    weights = [0.5, 0.25, 0.25]
    F = sum(weight * wprox.SquaredWasserstein(shape + shift) for weight, shift in zip(weights, shifts, strict=True))
    final = wprox.jko(F, wprox.ParticleProx(), wprox.Particles(shape), step_size=100.0, n_steps=6).final
    expected = wprox.Particles(shape + torch.tensor(weights, dtype=FLOAT64) @ shifts)
    assert float(metrics.w2(final, expected)) < 1e-9


# Bad input


@names
def test_targets_and_measures_that_do_not_fit(k: int):
    make = [
        wprox.SquaredWasserstein,
        lambda target: wprox.SinkhornDivergence(target, blur=0.5),
        wprox.SlicedWasserstein,
    ][k]
    with pytest.raises(ValueError, match="target lives in dimension 2, the measure in dimension 3"):
        make(cloud(5, 2, 0))(cloud(5, 3, 0))
    with pytest.raises(ValueError, match="target is empty"):
        make(torch.zeros(0, 2))
    with pytest.raises(ValueError, match=r"target must have shape \(n, d\)"):
        make(torch.zeros(5))
    with pytest.raises(TypeError, match=r"Particles\.from_distribution"):
        make(torch.distributions.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"order=k"):
        make(gaussian(0))(cloud(5, 2, 0))
    with pytest.raises(ValueError, match=r"order=k"):
        make(cloud(5, 2, 0)).wasserstein_gradient(gaussian(0))
    with pytest.raises(ValueError, match=r"they sum to 1\.2"):
        make(wprox.Particles(torch.zeros(2, 2), weights=[0.6, 0.6]))


def test_options_out_of_range():
    target = cloud(5, 2, 0)
    with pytest.raises(ValueError, match="blur must be positive"):
        wprox.SinkhornDivergence(target, blur=0.0)
    with pytest.raises(ValueError, match="tol must be positive"):
        wprox.SinkhornDivergence(target, blur=0.1, tol=0.0)
    with pytest.raises(ValueError, match="n_projections must be at least 1"):
        wprox.SlicedWasserstein(target, n_projections=0)
    with pytest.raises(ValueError, match="num_itermax must be at least 1"):
        wprox.SquaredWasserstein(target, num_itermax=0)
    with pytest.raises(ValueError, match="one dimension"):
        metrics.w2(target, cloud(5, 3, 0))


def test_a_network_simplex_that_does_not_finish_says_what_to_set():
    with pytest.raises(RuntimeError, match="raise num_itermax, which is 5"):
        wprox.SquaredWasserstein(cloud(50, 2, 0), num_itermax=5)(cloud(50, 2, 1))
