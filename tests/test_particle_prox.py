"""ParticleProx against closed forms and independent computations, and the blob energy of particles."""

import math
from types import SimpleNamespace

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wprox
from wprox.functionals.base import Functional
from wprox.solvers._lbfgs import REACH, Minimiser

F64 = torch.float64


def normal(n, dim=2, seed=0, dtype=F64):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def half_square(x):
    return 0.5 * x.square().sum(-1)


def double_well(x):
    return (x.square().sum(-1) - 1).square()


def cost(step, start):
    return start.weights @ (step.measure.points - start.points).square().sum(1)


TIGHT = wprox.ParticleProx(tolerance=1e-9, absolute_tolerance=1e-12)

# --- closed forms ---


@pytest.mark.parametrize("step_size", [0.01, 0.5, 100.0])
@pytest.mark.parametrize("modulus", [0.1, 3.0])
def test_quadratic_potential(step_size, modulus):
    start = wprox.Particles(normal(50, 3))
    step = TIGHT.step(wprox.PotentialEnergy(lambda x: modulus * half_square(x)), start, step_size)
    assert step.converged
    assert torch.allclose(step.measure.points, start.points / (1 + step_size * modulus), atol=1e-8)
    assert torch.allclose(step.transport_cost, cost(step, start))
    assert torch.allclose(step.value, modulus * half_square(step.measure.points).mean())


def test_stiff_potential_does_not_limit_the_step_size():
    stiffness = torch.tensor([1e4, 1.0], dtype=F64)
    start = wprox.Particles(normal(1000))
    F = wprox.PotentialEnergy(lambda x: half_square(stiffness.sqrt() * x))
    step = wprox.ParticleProx().step(F, start, 1.0)
    assert step.converged
    assert torch.allclose(step.measure.points, start.points / (1 + stiffness), atol=1e-3)
    trajectory = wprox.jko(F, wprox.ParticleProx(), start, step_size=1.0, n_steps=20)
    assert float(trajectory.values[-1]) < 1e-10


class HalfSquaredWasserstein(Functional):
    """½W₂²(·, ν) by POT."""

    def __init__(self, target):
        self.target = target

    def __call__(self, rho):
        weights = np.full(len(self.target), 1 / len(self.target))
        costs = torch.cdist(rho.points, self.target).square()
        plan = torch.from_numpy(ot.emd(weights, weights, costs.detach().numpy()))
        return (plan * costs).sum() / 2


def test_displacement_interpolation_under_the_exact_coupling():
    start, target, gamma = normal(60), normal(60, seed=1) + 3, 0.5
    matching = ot.emd([], [], torch.cdist(start, target).square().numpy()).argmax(1)
    F = HalfSquaredWasserstein(target)
    step = wprox.ParticleProx("exact", tolerance=1e-8).step(F, wprox.Particles(start), gamma)
    expected = start + gamma / (1 + gamma) * (target[matching] - start)
    assert step.converged
    assert torch.allclose(step.measure.points, expected, atol=1e-6)
    assert torch.allclose(step.transport_cost, (expected - start).square().sum(1).mean(), atol=1e-7)


def test_attraction_and_repulsion_end_on_a_circle():
    def kernel(z):
        squared = z.square().sum(-1)
        return squared.square() / 4 - squared / 2

    start = wprox.Particles(normal(100))
    F = wprox.InteractionEnergy(kernel)
    final = wprox.jko(F, wprox.ParticleProx(), start, step_size=20.0, n_steps=60).final
    radii = (final.points - final.points.mean(0)).norm(dim=1)
    assert torch.allclose(radii, torch.full_like(radii, 1 / math.sqrt(3)), atol=1e-3)


def test_logarithmic_repulsion_fills_the_disc():
    def kernel(z):  # no particle acts on itself
        squared = z.square().sum(-1)
        apart = squared > 0
        return torch.where(apart, squared - torch.where(apart, squared, 1).log(), 0) / 2

    start, solver = wprox.Particles(normal(200)), wprox.ParticleProx(tolerance=1e-2)
    final = wprox.jko(wprox.InteractionEnergy(kernel), solver, start, step_size=20.0, n_steps=4).final
    squares = (final.points - final.points.mean(0)).square().sum(1)
    # |x|² is uniform on [0, 1], but for the shells in which 200 particles lie
    assert math.isclose(float(squares.mean()), 199 / 400, abs_tol=1e-3)  # exact for n particles: Σ_ij z·∇W(z) = 0
    assert math.isclose(float(squares.square().mean()), 1 / 3, abs_tol=0.01)
    for part in (0.25, 0.5, 0.75):
        assert math.isclose(float((squares <= part).double().mean()), part, abs_tol=0.04)


# --- couplings ---


@pytest.mark.parametrize("weighted", [False, True])
def test_the_exact_coupling_is_never_dearer(weighted):
    weights = (
        torch.rand(40, generator=torch.Generator().manual_seed(3), dtype=F64) if weighted else torch.ones(40).to(F64)
    )
    start = wprox.Particles(2 * normal(40, 1), weights / weights.sum())
    F = wprox.PotentialEnergy(lambda x: 5 * torch.cos(3 * x[:, 0]) + 0.1 * x[:, 0] ** 2)
    free = wprox.ParticleProx().step(F, start, 20.0)
    planned = wprox.ParticleProx("exact").step(F, start, 20.0)
    exact = ot.emd2_1d(
        start.points[:, 0].numpy(), planned.measure.points[:, 0].numpy(), start.weights.numpy(), start.weights.numpy()
    )
    assert planned.converged
    assert torch.allclose(planned.transport_cost, torch.tensor(exact, dtype=F64), rtol=1e-6)
    total = [float(step.value + step.transport_cost / 40) for step in (planned, free)]
    assert total[0] <= total[1] + 1e-9


def test_the_entropic_coupling_approaches_the_exact_one():
    start, F = wprox.Particles(normal(80)), wprox.PotentialEnergy(lambda x: half_square(x - 2))
    exact = wprox.ParticleProx("exact").step(F, start, 1.0)
    entropic = wprox.ParticleProx("sinkhorn", blur=0.1, tolerance=1e-2).step(F, start, 1.0)
    assert entropic.converged
    assert torch.allclose(entropic.measure.points, exact.measure.points, atol=0.1)
    assert torch.allclose(entropic.transport_cost, exact.transport_cost, rtol=0.05)
    assert float(entropic.value) <= float(F(start))


# --- weights ---


@pytest.mark.parametrize("coupling", ["identity", "exact"])
def test_a_weight_counts_as_that_many_copies(coupling):
    x = normal(20)
    copies = torch.cat((x, x[:10]))
    weights = torch.full((20,), 1 / 30, dtype=F64)
    weights[:10] *= 2
    F = wprox.PotentialEnergy(double_well) + wprox.InteractionEnergy(half_square) + 0.1 * wprox.Entropy()
    solver = wprox.ParticleProx(coupling, tolerance=1e-8)
    one = solver.step(F, wprox.Particles(x, weights).with_kernel_density(0.5), 0.5)
    many = solver.step(F, wprox.Particles(copies).with_kernel_density(0.5), 0.5)
    assert torch.allclose(one.measure.points, many.measure.points[:20], atol=1e-6)
    assert torch.allclose(one.value, many.value)
    assert math.isclose(one.residual, many.residual, abs_tol=1e-6)


def test_particles_without_mass_stay():
    x = normal(20)
    weights = torch.full((20,), 1 / 18, dtype=F64)
    weights[[3, 7]] = 0
    x[3] = 1e3  # where the density underflows
    for coupling in ("identity", "exact"):
        start = wprox.Particles(x, weights).with_kernel_density()
        step = wprox.ParticleProx(coupling).step(wprox.KL(wprox.Gaussian(torch.zeros(2), torch.eye(2))), start, 0.5)
        assert step.converged
        assert torch.equal(step.measure.points[[3, 7]], x[[3, 7]])
        assert bool((step.measure.points[:3] != x[:3]).all())


# --- the residual, monotonicity ---


def test_the_residual_against_an_independent_computation():
    x, weights = normal(30), torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=F64)
    weights /= weights.sum()
    start = wprox.Particles(x, weights)
    step = wprox.ParticleProx(iterations=2).step(wprox.PotentialEnergy(double_well), start, 0.3)
    y = step.measure.points
    gradient = 4 * (y.square().sum(1, keepdim=True) - 1) * y + (y - x) / 0.3
    assert math.isclose(step.residual, float((weights @ gradient.square().sum(1)).sqrt()), rel_tol=1e-9)
    assert step.residual > 1e-3
    assert not step.converged
    assert "iterations were not enough" in step.message


TERMS = {
    "potential": lambda: wprox.PotentialEnergy(double_well),
    "waves": lambda: wprox.PotentialEnergy(lambda x: torch.sin(4 * x).sum(-1)),
    "interaction": lambda: wprox.InteractionEnergy(lambda z: -torch.exp(-z.square().sum(-1))),
    "entropy": wprox.Entropy,
    "porous medium": lambda: wprox.PorousMedium(2.0),
    "fast diffusion": lambda: wprox.PorousMedium(0.7),
    "kl": lambda: wprox.KL(wprox.Gaussian(torch.ones(2), torch.eye(2))),
    "swarm": lambda: wprox.InteractionEnergy(wprox.kernels.Morse(2.0, 0.5)),
    "charges": lambda: wprox.InteractionEnergy(wprox.kernels.PowerLaw(2, 0)),
    "mmd, riesz": lambda: wprox.MMD(normal(15, seed=7) + 1),
    "mmd, unbiased": lambda: wprox.MMD(normal(15, seed=7) + 1, wprox.kernels.Gaussian(), unbiased=True),
    "mmd, laplace": lambda: wprox.MMD(normal(15, seed=7) + 1, wprox.kernels.Laplace()),
    "ksd": lambda: wprox.KSD(lambda x: -double_well(x)),
    "wasserstein": lambda: wprox.SquaredWasserstein(normal(15, seed=7) + 1),
    "sinkhorn": lambda: wprox.SinkhornDivergence(normal(15, seed=7) + 1, blur=0.5),
    "sliced": lambda: wprox.SlicedWasserstein(normal(15, seed=7) + 1, n_projections=20),
}


@pytest.mark.parametrize("coupling", ["identity", "exact"])
@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    terms=st.dictionaries(st.sampled_from(sorted(TERMS)), st.floats(0.1, 5.0), min_size=1, max_size=3),
    step_size=st.floats(0.01, 10.0),
    bandwidth=st.sampled_from([None, 0.2, 1.0]),
    equal=st.booleans(),
    seed=st.integers(0, 100),
)
def test_the_functional_never_increases(coupling, terms, step_size, bandwidth, equal, seed):
    check_descent(coupling, terms, step_size, bandwidth, equal, seed)


@pytest.mark.parametrize("term", sorted(TERMS))
def test_no_term_increases_by_itself(term):
    check_descent("identity", {term: 1.0}, 3.0, None, False, 1)


def check_descent(coupling, terms, step_size, bandwidth, equal, seed):
    """F + W₂²/(2γ) after a step is at most F before, for each of two steps, and some step moves."""
    F = sum(weight * TERMS[name]() for name, weight in terms.items())
    weights = torch.rand(20, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.1
    weights = None if equal else weights / weights.sum()
    start = wprox.Particles(normal(20, seed=seed), weights).with_kernel_density(bandwidth)
    steps = list(wprox.jko_steps(F, wprox.ParticleProx(coupling, iterations=20), start, step_size, 2))
    before = float(F(start))
    for step in steps:
        assert float(step.value) + float(step.transport_cost) / (2 * step_size) <= before + 1e-12 * abs(before)
        before = float(step.value)
    assert float(steps[0].transport_cost) > 0


def test_a_barrier_is_not_crossed():
    def wall(x):  # +∞ for |x| ≥ 1
        gap = 1 - x.square().sum(-1)
        return torch.where(gap > 0, -torch.where(gap > 0, gap, 1).log(), math.inf) - 10 * x[:, 0]

    start = wprox.Particles(0.3 * torch.tanh(normal(50)))
    step = wprox.ParticleProx().step(wprox.PotentialEnergy(wall), start, 100.0)
    assert step.converged
    assert float(step.measure.points.norm(dim=1).max()) < 1


@pytest.mark.parametrize("coupling", ["identity", "exact"])
def test_a_trial_where_particles_meet_is_not_the_end(coupling):
    """The first trial is the explicit step, which takes all four particles to 0, where they repel infinitely."""
    start = wprox.Particles(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=F64))
    F = wprox.PotentialEnergy(lambda x: 1.375 * half_square(x)) + wprox.InteractionEnergy(wprox.kernels.Logarithmic())
    assert torch.equal(F.wasserstein_gradient(start), start.points)
    step = wprox.ParticleProx(coupling, tolerance=1e-8).step(F, start, 1.0)
    radius = (1 + math.sqrt(1 + 4 * 2.375 * 0.375)) / (2 * 2.375)  # r − 1 + 1.375 r − 0.375/r = 0
    assert step.converged
    assert torch.allclose(step.measure.points, radius * start.points, atol=1e-7)
    twice = wprox.Particles(start.points[[0, 1, 0]])
    with pytest.raises(ValueError, match=r"particles 0 and 2 coincide at \[1.0, 0.0\]"):
        wprox.ParticleProx(coupling).step(F, twice, 1.0)


def test_at_a_minimum_nothing_moves():
    start = wprox.Particles(torch.zeros(5, 2, dtype=F64))
    step = wprox.ParticleProx().step(wprox.PotentialEnergy(half_square), start, 1.0)
    assert step.converged
    assert torch.equal(step.measure.points, start.points)
    assert float(step.transport_cost) == 0


def test_previous_steps_save_evaluations():
    start = wprox.Particles(normal(100))
    F = wprox.PotentialEnergy(double_well)
    first = TIGHT.step(F, start, 0.1)
    warm, cold = TIGHT.step(F, first.measure, 0.1, previous=first), TIGHT.step(F, first.measure, 0.1)
    assert (warm.index, cold.index) == (1, 0)
    assert torch.allclose(warm.measure.points, cold.measure.points, atol=1e-7)
    assert torch.allclose(warm.state.displacement, warm.measure.points - first.measure.points)


# --- precision, interruption, bad input ---


@pytest.mark.parametrize("coupling", ["identity", "exact", "sinkhorn"])
def test_results_come_in_the_callers_precision(coupling):
    solver = wprox.ParticleProx(coupling, blur=0.1 if coupling == "sinkhorn" else None)
    start = wprox.Particles(normal(20, dtype=torch.float32)).with_kernel_density()
    step = solver.step(wprox.PotentialEnergy(half_square) + 0.1 * wprox.Entropy(), start, 0.5)
    assert isinstance(step.measure, wprox.KernelParticles)
    for tensor in (step.measure.points, step.measure.weights, step.value, step.transport_cost, step.state.displacement):
        assert tensor.dtype == torch.float32
        assert not tensor.requires_grad


def test_interruption_returns_the_best_so_far():
    calls = 0

    def potential(x):
        nonlocal calls
        calls += 1
        if calls == 15:
            raise KeyboardInterrupt
        return double_well(x)

    start = wprox.Particles(3 * normal(50))
    with pytest.warns(RuntimeWarning, match="interrupted after 1 steps"):
        trajectory = wprox.jko(wprox.PotentialEnergy(potential), wprox.ParticleProx(), start, 0.5, n_steps=3)
    step = trajectory.steps[0]
    assert step.interrupted
    assert not step.converged
    assert float(step.value) < float(trajectory.values[0])


def test_a_gradient_that_is_not_finite_names_its_term():
    def cusp(x):
        return x.norm(dim=-1).sqrt()

    start = wprox.Particles(torch.zeros(3, 2, dtype=F64))
    with pytest.raises(wprox.StepFailedError, match=r"PotentialEnergy\(cusp\) is not finite at 3 of 3 points"):
        wprox.ParticleProx().step(wprox.PotentialEnergy(half_square) + wprox.PotentialEnergy(cusp), start, 1.0)


def test_of_terms_that_read_alike_the_number_is_told():
    smooth, singular = (
        wprox.PotentialEnergy(f) for f in (lambda x: x[:, 0], lambda x: (x - x.detach()).norm(dim=1).sqrt())
    )
    with pytest.raises(wprox.StepFailedError, match="term 2 of 2, is not finite"):
        wprox.ParticleProx().step(smooth + singular, wprox.Particles(normal(5)), 1.0)


def test_a_value_that_is_not_finite_names_its_term():
    F = wprox.PotentialEnergy(half_square) + wprox.PotentialEnergy(lambda x: x[:, 0] * math.inf)
    with pytest.raises(wprox.StepFailedError, match="PotentialEnergy"):
        wprox.ParticleProx().step(F, wprox.Particles(normal(5).abs()), 1.0)


def test_a_functional_of_your_own_is_named_by_its_class():
    class LogOfMean(Functional):
        def __call__(self, rho):
            return rho.integrate(lambda x: x[:, 0]).log()

    F = wprox.PotentialEnergy(half_square) + LogOfMean()
    with pytest.raises(wprox.StepFailedError, match=r"LogOfMean\(\) is"):
        wprox.ParticleProx().step(F, wprox.Particles(-normal(5).abs()), 1.0)


def test_a_step_without_minimum_is_reported():
    with pytest.raises(wprox.StepFailedError, match="no minimum"):
        wprox.ParticleProx().step(wprox.PotentialEnergy(lambda x: -half_square(x)), wprox.Particles(normal(5)), 2.0)


def test_a_long_way_to_go_is_not_taken_for_running_away():
    start = wprox.Particles(1e-9 * normal(10))  # near the top of the hill between the wells
    step = wprox.ParticleProx().step(wprox.PotentialEnergy(double_well), start, 1.0)
    radius = math.sqrt(3) / 2  # 4 (r² − 1) r + r = 0
    assert step.converged
    assert torch.allclose(step.measure.points.norm(dim=1), torch.full((10,), radius, dtype=F64), atol=2e-3)


def test_a_kink_is_reported():
    start = wprox.Particles(normal(20))
    step = wprox.ParticleProx(iterations=50).step(wprox.PotentialEnergy(lambda x: x.abs().sum(-1)), start, 1.0)
    assert not step.converged
    assert "smooth" in step.message or "iterations" in step.message
    assert float(step.value) < float(start.points.abs().sum(1).mean())


@pytest.mark.parametrize("functional", [wprox.Entropy(), wprox.PorousMedium(2.0)], ids=repr)
@pytest.mark.parametrize("known", [False, True])
def test_functionals_of_the_density_need_a_kernel_density(functional, known):
    start = wprox.Particles(normal(10), log_density=torch.zeros(10) if known else None)
    with pytest.raises(wprox.DensityUnknownError, match=r"Particles\.with_kernel_density"):
        wprox.ParticleProx().step(functional, start, 1.0)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: wprox.ParticleProx("optimal"), ValueError, "coupling must be one of"),
        (lambda: wprox.ParticleProx("sinkhorn"), ValueError, "needs a blur"),
        (lambda: wprox.ParticleProx(blur=0.1), ValueError, "blur goes with"),
        (lambda: wprox.ParticleProx("sinkhorn", blur=0), ValueError, "blur must be positive"),
        (lambda: wprox.ParticleProx(iterations=0), ValueError, "iterations"),
        (lambda: wprox.ParticleProx(tolerance=-1), ValueError, "tolerance"),
        (lambda: wprox.ParticleProx(memory=0), ValueError, "memory"),
        (lambda: wprox.Particles(normal(5)).with_kernel_density(0.0), ValueError, "bandwidth must be positive"),
        (lambda: wprox.Particles(normal(5)).with_kernel_density(0.1, 0.2), ValueError, "not both"),
        (lambda: wprox.Particles(torch.ones(5, 2)).with_kernel_density(), ValueError, "covariance of the 5 particles"),
        (lambda: wprox.Particles([[1.0, 2.0]]).with_kernel_density(), ValueError, "singular"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("functional", "measure", "step_size", "error", "message"),
    [
        (wprox.PotentialEnergy(half_square), wprox.Gaussian(torch.zeros(1), torch.eye(1)), 1.0, TypeError, "Particles"),
        (wprox.PotentialEnergy(half_square), wprox.Particles(normal(4)), 0.0, ValueError, "step_size"),
        (wprox.PotentialEnergy(torch.sum), wprox.Particles(normal(4)), 1.0, ValueError, "one value a row"),
        (
            wprox.PotentialEnergy(lambda x: half_square(x).float()),
            wprox.Particles(normal(4)),
            1.0,
            TypeError,
            "float32 at float64 points",
        ),
        (
            wprox.KL(wprox.Gaussian(torch.zeros(3), torch.eye(3))),
            wprox.Particles(normal(4)).with_kernel_density(),
            1.0,
            ValueError,
            "dimension 3",
        ),
    ],
)
def test_bad_steps(functional, measure, step_size, error, message):
    with pytest.raises(error, match=message):
        wprox.ParticleProx().step(functional, measure, step_size)


# --- the kernel density ---


def reference_log_density(points, weights, covariance):
    kernels = torch.distributions.MultivariateNormal(points, covariance)
    return torch.logsumexp(weights.log() + kernels.log_prob(points[:, None]), 1)


@pytest.mark.parametrize("n", [30, 700])  # one block and several
@pytest.mark.parametrize("bandwidth", [None, 0.3])
def test_the_kernel_density_against_torch(n, bandwidth, monkeypatch):
    points = (normal(n, 3) @ normal(3, 3, seed=4)).requires_grad_()
    weights = torch.rand(n, generator=torch.Generator().manual_seed(2), dtype=F64)
    weights /= weights.sum()
    rho = wprox.Particles(points, weights).with_kernel_density(bandwidth)
    centred = points - weights @ points
    covariance = (centred * weights[:, None]).mT @ centred * (rho.factor or 1) ** 2
    if bandwidth is not None:
        covariance = bandwidth**2 * torch.eye(3, dtype=F64)
    expected = reference_log_density(points, weights, covariance)
    cotangent = normal(n, 1, seed=5)[:, 0]
    (gradient,) = torch.autograd.grad(expected @ cotangent, points, retain_graph=True)
    for kept in (2**27, 0):  # with the kernel values kept for the backward pass, and computed again
        monkeypatch.setattr("wprox.pairs.log_density.KEPT_BYTES", kept)
        actual = rho.log_density()
        assert torch.allclose(actual, expected, atol=1e-10)
        assert torch.allclose(torch.autograd.grad(actual @ cotangent, points)[0], gradient, atol=1e-9)
    elsewhere = points.detach().clone().requires_grad_()
    kernels = torch.distributions.MultivariateNormal(points.detach(), covariance.detach())
    field = torch.logsumexp(weights.log() + kernels.log_prob(elsewhere[:, None]), 1).sum()
    assert torch.allclose(rho.score(), torch.autograd.grad(field, elsewhere)[0], atol=1e-9)


@pytest.mark.parametrize("functional", [wprox.Entropy(), wprox.PorousMedium(2.0), TERMS["kl"]()], ids=repr)
@pytest.mark.parametrize("bandwidth", [None, 0.3])
def test_the_wasserstein_gradient_is_that_of_the_blob_energy(functional, bandwidth):
    weights = torch.rand(40, generator=torch.Generator().manual_seed(2), dtype=F64)
    rho = wprox.Particles(normal(40), weights / weights.sum()).with_kernel_density(bandwidth)
    field, t = normal(40, seed=1), 1e-5
    change = (functional(rho.push(lambda x: x + t * field)) - functional(rho.push(lambda x: x - t * field))) / (2 * t)
    gradient = functional.wasserstein_gradient(rho)
    assert torch.allclose(rho.weights @ (gradient * field).sum(1), change, rtol=1e-6)


def test_the_entropy_follows_affine_maps_exactly():
    rho = wprox.Particles(normal(50)).with_kernel_density()
    matrix = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=F64)
    moved = rho.push(lambda x: 3 * x @ matrix.mT + 1)
    assert torch.allclose(wprox.Entropy()(moved), wprox.Entropy()(rho) - math.log(9))


def test_the_default_bandwidth_has_the_moments_of_a_gaussian_target():
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
    target = wprox.Gaussian(torch.tensor([1.0, -2.0], dtype=F64), covariance)
    start = wprox.Particles(0.1 * normal(60) + 3).with_kernel_density()
    trajectory = wprox.jko(wprox.KL(target), wprox.ParticleProx(tolerance=1e-2), start, step_size=10.0, n_steps=5)
    found = wprox.Gaussian.from_samples(trajectory.final.points)
    assert torch.allclose(found.loc, target.loc, atol=1e-3)
    assert torch.allclose(found.covariance_matrix, covariance, rtol=1e-2)


def test_kernel_particles_keep_their_kernel():
    rho = wprox.Particles(normal(20)).with_kernel_density(factor=0.7)
    for other in (
        rho.push(lambda x: 2 * x),
        rho.detach(),
        rho.subset(slice(0, 10)),
        rho.relative(),
        rho.to(torch.float32),
    ):
        assert isinstance(other, wprox.KernelParticles)
        assert other.factor == 0.7
        assert other.density_known
        assert not other.is_relative
        assert other.log_density().dtype == other.dtype


def test_particles_that_collapse_have_infinite_entropy():
    rho = wprox.Particles(normal(20)).with_kernel_density()
    assert float(wprox.Entropy()(rho.push(lambda x: x * torch.tensor([1.0, 0.0])))) == math.inf


class CutOff(wprox.Functional):
    def __call__(self, rho):
        return rho.integrate(lambda x: x.detach().square().sum(-1))


@pytest.mark.parametrize("solver", [wprox.ParticleProx(), wprox.ExplicitEuler()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("alone", [True, False])
def test_a_functional_cut_off_from_autograd_is_refused(solver, alone):
    """It used to converge at once, where it was."""
    functional = CutOff() if alone else CutOff() + wprox.PotentialEnergy(lambda x: x[:, 0])
    rho = wprox.Particles(torch.randn(9, 2, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"CutOff\(\) is cut off from autograd"):
        solver.step(functional, rho, 0.5)
    with pytest.raises(ValueError, match=r"CutOff\(\) is cut off from autograd"):
        solver.step(functional, rho.with_kernel_density(), 0.5)
    constant = wprox.PotentialEnergy(lambda x: torch.ones_like(x[:, 0]))
    farthest = float(rho.points.norm(dim=1).max())
    indicator = wprox.PotentialEnergy(
        lambda x: torch.where(x.norm(dim=1) <= farthest + 1e-6, 0 * x[:, 0].detach(), math.inf)
    )
    for functional in (constant, indicator):
        assert torch.equal(solver.step(functional, rho, 0.5).measure.points, rho.points)


def test_steps_onto_the_cusps_of_a_kernel_end_where_nothing_becomes_smaller():
    """Particles that reach samples under the Riesz kernel: long steps used to search for ever, or to run away."""
    generator = torch.Generator().manual_seed(1)
    target, start = (torch.randn(n, 2, generator=generator, dtype=torch.float64) for n in (40, 40))
    with pytest.warns(RuntimeWarning, match="kinks"):
        trajectory = wprox.jko(wprox.MMD(target), wprox.ParticleProx(), wprox.Particles(start), 10.0, 2)
    values = torch.stack(trajectory.values)
    assert bool((values.diff() <= 1e-12).all())
    assert values[-1] < 0.1 * values[0]
    for step in trajectory.steps:
        assert not step.converged
        assert "kinks" in step.message
        assert step.iterations < 500
    rounded = wprox.ParticleProx().step(wprox.MMD(target, Rounded()), wprox.Particles(start), 10.0)
    assert rounded.converged
    first = trajectory.steps[0]
    least = wprox.MMD(target)(rounded.measure) + rounded.transport_cost / 20
    assert first.value + first.transport_cost / 20 < 1.005 * least


class Rounded(wprox.kernels.RadialKernel):
    """The Riesz kernel without its cusp."""

    smooth = True

    def profile(self, s):
        return -(s + 1e-6).sqrt()


STIFFNESS = torch.logspace(0, 6, 30, dtype=F64)
SLOW = {
    "blob": lambda: (
        wprox.KL(wprox.Gaussian(torch.zeros(2, dtype=F64), torch.tensor([1.0, 0.25], dtype=F64).diag())),
        wprox.Particles(0.3 * normal(60) + 2).with_kernel_density(0.2),
        4.0,
        1e-2,
    ),
    "valley": lambda: (
        wprox.PotentialEnergy(lambda x: 1e4 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2),
        wprox.Particles(normal(50)),
        100.0,
        1e-6,
    ),
    "stiff": lambda: (
        wprox.PotentialEnergy(lambda x: x.square() @ STIFFNESS / 2),
        wprox.Particles(normal(10, 30)),
        1.0,
        1e-3,
    ),
}


@pytest.mark.parametrize("case", SLOW)
def test_smooth_functionals_are_never_given_up(case):
    """Searches that are slow for their condition number used to end as if they were at kinks."""
    functional, start, gamma, tolerance = SLOW[case]()
    step = wprox.ParticleProx(tolerance=tolerance, iterations=10_000).step(functional, start, gamma)
    assert step.converged, step.message
    if case == "stiff":
        assert torch.allclose(step.measure.points, start.points / (1 + STIFFNESS), atol=1e-3)


def test_pairs_that_contradict_each_other_do_not_send_a_search_astray():
    start = _lbfgs_point(torch.tensor([1.0, 1.0], dtype=torch.float64))
    search = Minimiser(_lbfgs_point, start, lambda v: v, memory=5)
    search.history.add(torch.tensor([1.0, 0.0]).double(), torch.tensor([1e-13, 1.0]).double())
    assert float(search.history.apply(start.gradient, search.solve).norm()) > 1e6
    assert float(search._direction().norm()) == pytest.approx(REACH * math.sqrt(2))
    assert search.run(lambda point: float(point.gradient.norm()) < 1e-8, 20)


def _lbfgs_point(position):
    return SimpleNamespace(position=position, value=float(position.square().sum() / 2), gradient=position)
