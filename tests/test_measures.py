"""One gauntlet for all measures: integrals against closed forms, pairs in blocks, push-forwards and their densities."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wprox
from wprox.pairs import sums

LOC = [1.0, -2.0]
COVARIANCE = [[2.0, 0.6], [0.6, 0.5]]


def gaussian(dtype=torch.float64):
    return wprox.Gaussian(torch.tensor(LOC, dtype=dtype), torch.tensor(COVARIANCE, dtype=dtype))


def particles(dtype=torch.float64):
    """Particles with the mean and covariance of `gaussian()`, unequal weights, and a density."""
    rho = gaussian(dtype)
    points = torch.cat((rho.points, rho.loc + 2 * (rho.points - rho.loc), rho.loc[None]))
    # Σ w |offset|² is that of the cubature: w·1 + 4·u = 1/4 a point, the rest in the middle
    weights = torch.cat((torch.full((4,), 0.05), torch.full((4,), 0.05), torch.tensor([0.6]))).to(dtype)
    return wprox.Particles(points, weights, log_density=rho.log_prob(points))


MEASURES = {"gaussian": gaussian, "particles": particles}


@pytest.fixture(params=list(MEASURES))
def make(request):
    return MEASURES[request.param]


def square(x):
    return x.square().sum(-1)


def test_attributes(make):
    rho = make()
    assert rho.points.shape == (len(rho), 2)
    assert rho.weights.shape == (len(rho),)
    assert float(rho.weights.sum()) == pytest.approx(1)
    assert bool((rho.weights >= 0).all())
    assert (rho.dim, rho.dtype, rho.device.type) == (2, torch.float64, "cpu")
    assert type(rho).__name__ in repr(rho)


def test_integrate_polynomials(make):
    rho = make()
    loc, covariance = torch.tensor(LOC).double(), torch.tensor(COVARIANCE).double()
    assert torch.allclose(rho.integrate(lambda x: x), loc)
    assert torch.allclose(rho.integrate(square), covariance.trace() + square(loc))
    assert torch.allclose(rho.integrate(lambda x: x[:, 0] * x[:, 1]), covariance[0, 1] + loc.prod())
    # degree three, exact for both by symmetry about the mean: E(x−m)³ = 0
    assert torch.allclose(rho.integrate(lambda x: (x[:, 0] - 1) ** 3), torch.tensor(0.0).double(), atol=1e-12)


def test_integrate_pairs_quadratic(make):
    # E|x − y|² = 2 tr Σ
    assert float(make().integrate_pairs(square)) == pytest.approx(2 * 2.5)


def test_mean_log_density(make):
    rho = make()
    assert float(rho.mean_log_density()) == pytest.approx(float(rho.weights @ rho.log_density()))
    if isinstance(rho, wprox.Gaussian):
        determinant = 2.0 * 0.5 - 0.36
        entropy = -0.5 * (2 * (1 + math.log(2 * math.pi)) + math.log(determinant))
        assert float(rho.mean_log_density()) == pytest.approx(entropy)
        reference = torch.distributions.MultivariateNormal(rho.loc, rho.covariance_matrix)
        assert torch.allclose(rho.log_density(), reference.log_prob(rho.points))
        assert torch.allclose(rho.log_prob(rho.points + 1), reference.log_prob(rho.points + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(make, dtype):
    rho = make(dtype)
    map = wprox.AffineMap.from_matrix(2 * torch.eye(2, dtype=dtype))
    tensors = [
        rho.points,
        rho.weights,
        rho.log_density(),
        rho.mean_log_density(),
        rho.integrate(lambda x: x.double().sum(-1)),
        rho.integrate_pairs(square),
        rho.sample(3, seed=0),
        rho.push(map).points,
        rho.push(map).log_density(),
    ]
    assert {tensor.dtype for tensor in tensors} == {dtype}


@pytest.mark.parametrize("values", [[[1, 2], [3, 4]], torch.tensor([[1, 2], [3, 4]])])
def test_integers_become_the_default_dtype(values):
    assert wprox.Particles(values).dtype == torch.get_default_dtype()


def test_push_by_an_affine_map_is_closed_form(make):
    rho = make()
    matrix = torch.tensor([[1.5, 0.3], [0.3, 0.8]]).double()
    shift = torch.tensor([0.5, 2.0]).double()
    pushed = rho.push(wprox.AffineMap.from_matrix(matrix, shift))
    assert type(pushed) is type(rho)
    law = wprox.Gaussian(matrix @ torch.tensor(LOC).double() + shift, matrix @ rho_covariance() @ matrix)
    # the change of variables turns the density of N(m, Σ) into that of N(Am + b, AΣAᵀ)
    assert torch.allclose(pushed.log_density(), law.log_prob(pushed.points))
    assert torch.allclose(pushed.integrate(lambda x: x), law.loc)
    assert torch.allclose(pushed.integrate_pairs(square), 2 * law.covariance_matrix.trace())


def rho_covariance():
    return torch.tensor(COVARIANCE).double()


def test_push_by_a_nonlinear_map_follows_the_change_of_variables():
    """Normal particles under sinh are log-densities that scipy-free algebra knows: log φ(asinh y) − ½ log(1 + y²)."""
    x = torch.linspace(-2, 2, 9).double()[:, None]
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    rho = wprox.Particles(x, log_density=normal.log_prob(x[:, 0]))
    pushed = rho.push(lambda x: (x.sinh(), x.cosh().log().sum(-1)))
    y = pushed.points[:, 0]
    assert torch.allclose(pushed.log_density(), normal.log_prob(y.asinh()) - 0.5 * torch.log1p(y.square()))


def test_push_without_a_log_det_forgets_the_density():
    rho = particles().push(lambda x: x + 1)
    assert not rho.density_known
    assert torch.allclose(rho.points, particles().points + 1)
    with pytest.raises(wprox.DensityUnknownError):
        rho.mean_log_density()


def test_push_is_differentiable():
    map = wprox.AffineMap(2).double()
    wprox.Entropy()(particles().push(map)).backward()
    # entropy changes by −tr S, whatever the particles are
    assert torch.allclose(map.log_matrix.grad, -torch.eye(2).double())


def test_sample_has_the_law(make):
    """Mean and covariance within six standard errors: a false alarm for one seed in 10⁷."""
    rho, n = make(), 40_000
    x = rho.sample(n, seed=0)
    assert x.shape == (n, 2)
    scale = rho_covariance().diagonal().sqrt()
    assert bool(((x.mean(0) - torch.tensor(LOC).double()).abs() < 6 * scale / math.sqrt(n)).all())
    # the fourth moment of either law is at most 3.5 times the squared variance
    assert torch.allclose(x.T.cov(), rho_covariance(), atol=6 * 2.0 * math.sqrt(2.5 / n))
    assert torch.equal(x[:5], rho.sample(n, seed=0)[:5])
    assert not torch.equal(x, rho.sample(n, seed=1))


def test_sample_from_a_generator_moves_on(make):
    generator = torch.Generator().manual_seed(0)
    first, second = make().sample(20, generator), make().sample(20, generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, make().sample(20, seed=0))


def test_sampling_leaves_the_global_generator_alone(make):
    before = torch.random.get_rng_state()
    make().sample(5, seed=0)
    make().sample(5)
    wprox.Particles.from_distribution(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), 5)
    assert torch.equal(before, torch.random.get_rng_state())


# --- pairs ---


@pytest.mark.parametrize("block_bytes", [1, 500, 3000])
def test_pairs_in_blocks_equal_pairs_at_once(monkeypatch, block_bytes):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(37, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(37, generator=generator).double()
    weights /= weights.sum()

    def kernel(z):
        return torch.exp(-square(z)) + z[..., 0]  # not symmetric: x − y must not become y − x

    def value_and_gradient():
        value = wprox.Particles(points, weights).integrate_pairs(kernel)
        return value, torch.autograd.grad(value, points)[0]

    value, gradient = value_and_gradient()
    differences = points[:, None] - points
    assert torch.allclose(value, weights @ kernel(differences) @ weights)
    monkeypatch.setattr(sums, "PAIR_BLOCK_BYTES", block_bytes)
    in_blocks, gradient_in_blocks = value_and_gradient()
    assert torch.allclose(in_blocks, value)
    assert torch.allclose(gradient_in_blocks, gradient)
    with torch.no_grad():
        assert torch.allclose(wprox.Particles(points, weights).integrate_pairs(kernel), value)


@pytest.mark.parametrize("block_bytes", [2**25, 100])
def test_pairs_differentiate_in_the_kernel_and_the_weights(monkeypatch, block_bytes):
    """d/ds ∬ s|x−y|² = E|x−y|², also where the points themselves need no gradient."""
    monkeypatch.setattr(sums, "PAIR_BLOCK_BYTES", block_bytes)
    scale = torch.tensor(3.0).double().requires_grad_()
    particles().integrate_pairs(lambda z: scale * square(z)).backward()
    assert float(scale.grad) == pytest.approx(5.0)


MEMORY_SCRIPT = """
import resource, torch, wprox
torch.set_num_threads(1)
x = torch.randn(50_000, 3, generator=torch.Generator().manual_seed(0))
value = wprox.Particles(x).integrate_pairs(lambda z: z.square().sum(-1))
try:  # on Linux ru_maxrss starts from that of the parent, pytest, whose size is beside the point
    status = open("/proc/self/status").read()
    kilobytes = int(status.split("VmHWM:")[1].split()[0])
except FileNotFoundError:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(float(value), kilobytes / 2**20)
"""


@pytest.mark.slow
def test_pairs_of_50000_points_fit_in_a_gigabyte():
    output = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True, timeout=240
    ).stdout
    value, gigabytes = map(float, output.split())
    assert value == pytest.approx(6.0, rel=0.02)  # E|x − y|² = 2d, within three standard errors
    assert gigabytes < 1


# --- densities that are not known ---


def test_unknown_density_is_refused():
    rho = wprox.Particles(torch.zeros(3, 2))
    for verb in (rho.log_density, rho.mean_log_density, rho.score):
        with pytest.raises(wprox.DensityUnknownError):
            verb()
    with pytest.raises(wprox.DensityUnknownError, match="log_density="):
        rho.log_density()


def test_relative_density_answers_the_mean_only():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    rho = wprox.Particles(x).relative()
    assert rho.is_relative
    assert not rho.density_known
    assert float(rho.mean_log_density()) == 0
    map = wprox.AffineMap.from_matrix(torch.diag(torch.tensor([2.0, 3.0])).double())
    pushed = rho.push(map)
    assert pushed.is_relative
    assert float(pushed.mean_log_density().detach()) == pytest.approx(-math.log(6))
    assert pushed.subset(slice(2)).is_relative
    with pytest.raises(wprox.DensityUnknownError):
        pushed.log_density()
    assert rho.relative() is rho
    known = particles()
    assert known.relative() is known


def test_gaussian_score_is_that_of_autograd():
    rho = gaussian()
    points = rho.points.clone().requires_grad_()
    (expected,) = torch.autograd.grad(rho.log_prob(points).sum(), points)
    assert torch.allclose(rho.score(), expected)


# --- particles ---


def test_subset_renormalises_weights():
    rho = particles()
    part = rho.subset(torch.tensor([0, 8]))
    assert torch.allclose(part.weights, torch.tensor([0.05, 0.6]).double() / 0.65)
    assert torch.equal(part.log_density(), rho.log_density()[[0, 8]])


def test_from_distribution_carries_the_density():
    law = torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3))
    rho = wprox.Particles.from_distribution(law, 100, seed=0)
    assert torch.equal(rho.log_density(), law.log_prob(rho.points))
    assert torch.equal(rho.points, wprox.Particles.from_distribution(law, 100, seed=0).points)
    generator = torch.Generator().manual_seed(0)
    first = wprox.Particles.from_distribution(law, 100, seed=generator)
    assert not torch.equal(first.points, wprox.Particles.from_distribution(law, 100, seed=generator).points)


def test_gaussian_to_particles_and_back():
    rho = gaussian()
    cloud = rho.to_particles(20_000, seed=0)
    assert torch.equal(cloud.log_density(), rho.log_prob(cloud.points))
    again = wprox.Gaussian.from_samples(cloud.points)
    assert torch.allclose(again.loc, rho.loc, atol=0.05)  # five standard errors
    assert torch.allclose(again.covariance_matrix, rho.covariance_matrix, atol=0.1)
    weighted = wprox.Gaussian.from_samples(particles().points, particles().weights)
    assert torch.allclose(weighted.covariance_matrix, rho.covariance_matrix)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.01, 1.0)), min_size=1, max_size=20),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_integrate_is_linear_and_weights_are_a_probability(rows, a, b):
    points = torch.tensor([[x] for x, _ in rows], dtype=torch.float64)
    weights = torch.tensor([w for _, w in rows], dtype=torch.float64)
    rho = wprox.Particles(points, weights / weights.sum())
    assert float(rho.integrate(lambda x: torch.ones(len(x)))) == pytest.approx(1)
    combined = rho.integrate(lambda x: a * x[:, 0] + b * x[:, 0].sin())
    parts = a * rho.integrate(lambda x: x[:, 0]) + b * rho.integrate(lambda x: x[:, 0].sin())
    assert float(combined) == pytest.approx(float(parts), abs=1e-9)


# --- bad input ---


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: wprox.Particles(torch.zeros(3)), ValueError, r"shape \(n, d\), got \(3,\)\. Reshape your data"),
        (lambda: wprox.Particles(torch.zeros(0, 2)), ValueError, "empty"),
        (lambda: wprox.Particles(torch.zeros(2, 0)), ValueError, "empty"),
        (lambda: wprox.Particles([[1.0], [math.nan]]), ValueError, "1 NaN or infinite entries, the first at row 1, co"),
        (lambda: wprox.Particles([["a"]]), TypeError, "points must be an array of numbers"),
        (lambda: wprox.Particles(torch.zeros(2, 1, dtype=torch.complex64)), TypeError, "must be real"),
        (lambda: wprox.Particles(torch.zeros(2, 1), [1.0]), ValueError, r"weights must have shape \(2,\)"),
        (lambda: wprox.Particles(torch.zeros(2, 1), [1.5, -0.5]), ValueError, "not be negative, the smallest is -0.5"),
        (lambda: wprox.Particles(torch.zeros(2, 1), [1.0, 1.0]), ValueError, "sum to 2; divide them"),
        (lambda: wprox.Particles(torch.zeros(2, 1), log_density=[0.0]), ValueError, "log_density must have shape"),
        (lambda: wprox.Gaussian(torch.zeros(2, 1), torch.eye(2)), ValueError, r"loc must have shape \(d,\)"),
        (lambda: wprox.Gaussian(torch.zeros(3), torch.eye(2)), ValueError, r"shape \(3, 3\) like loc"),
        (lambda: wprox.Gaussian([0.0, 0.0], [[1.0, 1.0], [0.0, 1.0]]), ValueError, "must be symmetric"),
        (lambda: wprox.Gaussian([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]]), ValueError, "smallest eigenvalue is -1"),
        (lambda: gaussian().push(lambda x: x + 1), TypeError, "AffineMap"),
        (lambda: particles().push(lambda x: x.sum()), ValueError, "one value a row"),
        (lambda: particles().push(lambda x: (x, x)), ValueError, r"\(y, log_det\)"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_bad_calls(make):
    rho = make()
    with pytest.raises(ValueError, match="Reduce over the last axis only"):
        rho.integrate(lambda x: x.square().sum())
    with pytest.raises(ValueError, match="one value a row"):
        rho.integrate_pairs(lambda z: z.sum())
    with pytest.raises(ValueError, match="n must be at least 1"):
        rho.sample(0)
    with pytest.raises(TypeError, match="n must be an integer"):
        rho.sample(2.5)
    with pytest.raises(ValueError, match="seed must be at least 0"):
        rho.sample(2, seed=-1)
