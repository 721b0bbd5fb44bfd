"""The explicit schemes, plain, noisy and accelerated, forward–backward splitting and Langevin dynamics."""

import math
import re
import warnings
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wprox
from wprox.maps import GradientStepMap, InverseError

relaxed = settings(deadline=None, max_examples=20, derandomize=True)
FLOAT64 = torch.float64
NORMAL = torch.distributions.Normal(torch.zeros((), dtype=FLOAT64), torch.ones((), dtype=FLOAT64))


def particles(n=60, d=2, seed=0, dtype=FLOAT64, centre=1.0):
    generator = torch.Generator().manual_seed(seed)
    points = centre + torch.randn(n, d, generator=generator, dtype=dtype)
    weights = torch.rand(n, generator=generator, dtype=dtype) + 0.1
    return wprox.Particles(points, weights / weights.sum())


def standard(d, dtype=FLOAT64):
    return wprox.Gaussian(torch.zeros(d, dtype=dtype), torch.eye(d, dtype=dtype))


def quadratic(eigenvalues, modulus=None):
    diagonal = torch.as_tensor(eigenvalues, dtype=FLOAT64)
    return wprox.PotentialEnergy(lambda x: (x.square() * diagonal.to(x)).sum(-1) / 2, modulus)


def attraction(z):
    return 0.3 * z.square().sum(-1)


# each scheme with a functional that it takes; the backward half of the last two is an affine map
def neural(seed=0):
    return wprox.NeuralProx(map=wprox.AffineMap, iterations=30, learning_rate=0.05, seed=seed)


SMOOTH = quadratic([1.0, 2.0]) + wprox.InteractionEnergy(attraction)
SCHEMES = {
    "explicit": (lambda seed: wprox.ExplicitEuler(seed=seed), SMOOTH),
    "noisy": (lambda seed: wprox.ExplicitEuler(noise=0.1, seed=seed), SMOOTH),
    "accelerated": (lambda seed: wprox.ExplicitEuler(accelerated=True, seed=seed), SMOOTH),
    "langevin": (lambda seed: wprox.Langevin(seed=seed), SMOOTH + 0.5 * wprox.Entropy()),
    "adjusted": (lambda seed: wprox.Langevin(adjusted=True, seed=seed), wprox.KL(standard(2))),
    "forward-backward": (lambda seed: wprox.ForwardBackward(neural(seed)), wprox.KL(standard(2))),
}
RANDOM = ["noisy", "langevin", "adjusted", "forward-backward"]
every_scheme = pytest.mark.parametrize("name", SCHEMES)


# --- the gauntlet ---------------------------------------------------------------------------------------------------


@every_scheme
@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
def test_a_trajectory_keeps_shape_precision_and_mass(name, dtype):
    make, F = SCHEMES[name]
    start = particles(dtype=dtype)
    before = start.points.clone()
    trajectory = wprox.jko(F, make(0), start, step_size=0.05, n_steps=3)
    assert torch.equal(start.points, before)
    assert [step.index for step in trajectory.steps] == [0, 1, 2]
    for step in trajectory.steps:
        rho = step.measure
        assert rho.points.shape == (60, 2)
        assert rho.dtype == dtype
        assert not rho.points.requires_grad
        assert torch.equal(rho.weights, start.weights)
        assert step.value.shape == ()
        assert step.value.dtype == dtype
        assert torch.isfinite(step.value)
        assert step.transport_cost.shape == ()
        assert float(step.transport_cost) > 0
        assert step.converged or name == "forward-backward"  # 30 iterations of a network are too few to tell
        assert step.step_size == 0.05
    moved = (trajectory.measures[1].points - start.points).square().sum(1) @ start.weights
    torch.testing.assert_close(moved, trajectory.steps[0].transport_cost)


@every_scheme
def test_seeds_reproduce_and_steps_draw_their_own(name):
    make, F = SCHEMES[name]
    runs = [wprox.jko(F, make(seed), particles(), 0.05, 2).final.points for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2]) == (name not in RANDOM)


@pytest.mark.parametrize("name", ["noisy", "langevin", "adjusted"])
def test_two_steps_do_not_share_their_noise(name):
    make, F = SCHEMES[name]
    solver, rho = make(0), particles()
    first = solver.step(F, rho, 0.05)
    again = solver.step(F, rho, 0.05, previous=first)
    assert not torch.equal(first.measure.points, again.measure.points)


@pytest.mark.parametrize("name", [name for name in SCHEMES if name not in RANDOM])  # the noise of copies differs
def test_weights_count(name):
    # weights of a tenth and nine tenths act like one particle and nine copies of another
    make, F = SCHEMES[name]
    two = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=FLOAT64)
    weighted = wprox.jko(F, make(0), wprox.Particles(two, [0.1, 0.9]), 0.1, 4)
    copies = wprox.jko(F, make(0), wprox.Particles(torch.cat((two[:1], two[1:].expand(9, 2)))), 0.1, 4)
    torch.testing.assert_close(weighted.final.points, copies.final.points[:2])
    torch.testing.assert_close(weighted.values[-1], copies.values[-1])


@every_scheme
@pytest.mark.parametrize("step_size", [0.0, -1.0, math.nan, math.inf])
def test_step_sizes_that_are_not_positive_are_refused(name, step_size):
    make, F = SCHEMES[name]
    with pytest.raises(ValueError, match="step_size must be positive"):
        make(0).step(F, particles(), step_size)


def root(x):
    return x.abs().sum(-1).sqrt()


def edge(x):
    return (x - x.detach()).square().sum(-1).sqrt()


@every_scheme
def test_a_gradient_that_is_not_finite_names_its_functional(name):
    make, F = SCHEMES[name]
    rho = wprox.Particles(torch.cat((torch.zeros(1, 2, dtype=FLOAT64), particles().points)))
    # with noise the gradient is taken beside the particles, so there it must fail everywhere
    fails = edge if name == "noisy" else root
    message = rf"step 0: the gradient of PotentialEnergy\({fails.__name__}\) is not finite"
    with pytest.raises(wprox.StepFailedError, match=message):
        make(0).step(F + wprox.PotentialEnergy(fails), rho, 0.1)


@every_scheme
def test_cells_do_not_move(name):
    make, F = SCHEMES[name]
    rho = wprox.Grid.from_density(lambda x: torch.exp(-x.square().sum(-1)), (8, 8), [(-2, 2), (-2, 2)])
    with pytest.raises(TypeError, match="Grid"):
        wprox.jko(F, make(0), rho, 0.1, 1)
    with pytest.raises(TypeError, match="Grid"):
        make(0).step(F, rho, 0.1)


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "forward-backward"])  # there backward decides
def test_functionals_of_an_unknown_density_are_refused(name):
    make, F = SCHEMES[name]
    with pytest.raises(ValueError, match=r"density"):
        make(0).step(F + wprox.PorousMedium(2.0), particles(), 0.1)


# --- explicit Euler -------------------------------------------------------------------------------------------------


@relaxed
@given(st.floats(0.01, 0.9), st.floats(0.1, 3), st.integers(1, 6), st.integers(1, 4))
def test_quadratic_potential_shrinks_by_one_minus_gamma_lambda(gamma, modulus, n_steps, d):
    start = particles(d=d)
    trajectory = wprox.jko(quadratic([modulus] * d), wprox.ExplicitEuler(), start, gamma, n_steps)
    torch.testing.assert_close(trajectory.final.points, start.points * (1 - gamma * modulus) ** n_steps)
    # ∇F(ρ) ∘ T − ∇F(μ) = −γλ² x
    expected = gamma * modulus**2 * float(start.weights @ start.points.square().sum(1)) ** 0.5
    assert trajectory.steps[0].residual == pytest.approx(expected)
    second = (gamma * modulus) ** 2 * float(start.weights @ start.points.square().sum(1))
    assert float(trajectory.steps[0].transport_cost) == pytest.approx(second)


def test_the_gradient_is_computed_once_a_step():
    calls = []

    class Counted(wprox.Functional):
        def __call__(self, rho):
            return rho.integrate(lambda x: x.square().sum(-1))

        def wasserstein_gradient(self, rho):
            calls.append(rho)
            return 2 * rho.points

    F = Counted()
    wprox.jko(F, wprox.ExplicitEuler(), particles(), 0.1, 5)
    assert len(calls) == 6
    step = wprox.ExplicitEuler().step(F, particles(), 0.1)
    again = wprox.ExplicitEuler().step(0.5 * F, step.measure, 0.1, previous=step)  # another F: nothing is reused
    torch.testing.assert_close(again.measure.points, 0.9 * step.measure.points)


def test_the_residual_is_of_first_order_in_gamma():
    F = wprox.PotentialEnergy(lambda x: x.square().square().sum(-1) / 4) + wprox.InteractionEnergy(attraction)
    residuals = [wprox.ExplicitEuler().step(F, particles(), gamma).residual for gamma in (1e-3, 5e-4)]
    assert residuals[0] / residuals[1] == pytest.approx(2, rel=0.02)


@relaxed
@given(st.floats(0.01, 0.6), st.floats(0.3, 3), st.integers(1, 3), st.integers(0, 50))
def test_gaussians_move_exactly(gamma, variance, d, seed):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, d, generator=generator, dtype=FLOAT64)
    covariance = factor @ factor.mT / d + variance * torch.eye(d, dtype=FLOAT64)
    rho = wprox.Gaussian(torch.randn(d, generator=generator, dtype=FLOAT64), covariance)
    F = wprox.KL(standard(d)) + wprox.InteractionEnergy(attraction)
    step = wprox.ExplicitEuler().step(F, rho, gamma)
    # ∇F(ρ) = x − Σ⁻¹(x − m) + 0.6 (x − m)
    matrix = (1 - 1.6 * gamma) * torch.eye(d, dtype=FLOAT64) + gamma * torch.linalg.inv(covariance)
    torch.testing.assert_close(step.measure.loc, (1 - gamma) * rho.loc)
    torch.testing.assert_close(step.measure.covariance_matrix, matrix @ covariance @ matrix)
    exact = ((1 - gamma) * rho.loc - rho.loc).square().sum()
    shift = matrix - torch.eye(d, dtype=FLOAT64)
    torch.testing.assert_close(step.transport_cost, exact + (shift @ covariance @ shift).trace())
    new = step.measure.covariance_matrix
    change = 1.6 * matrix - torch.linalg.inv(new) @ matrix - (1.6 * torch.eye(d).to(new) - torch.linalg.inv(covariance))
    error = (gamma * rho.loc).square().sum() + (change @ covariance @ change.mT).trace()
    assert step.residual == pytest.approx(float(error) ** 0.5, abs=1e-9)
    if step.map is not None:
        pushed = rho.push(step.map)
        torch.testing.assert_close(pushed.covariance_matrix, new)


def test_gaussians_keep_their_precision_and_say_what_they_cannot():
    rho = wprox.Gaussian(torch.ones(2), torch.eye(2), order=3)
    step = wprox.ExplicitEuler().step(quadratic([1.0, 2.0]), rho, 0.1)
    assert step.measure.dtype == torch.float32
    assert step.measure.order == 3
    flipped = wprox.ExplicitEuler().step(quadratic([1.0, 1.0]), rho, 1.5)  # stable, but no longer optimal
    assert flipped.map is None
    assert torch.allclose(flipped.measure.covariance_matrix, 0.25 * torch.eye(2))
    with pytest.raises(ValueError, match="not affine"):
        wprox.ExplicitEuler().step(wprox.PotentialEnergy(lambda x: x.square().square().sum(-1)), rho, 0.1)
    with pytest.raises(wprox.StepFailedError, match=r"singular.*step_size below 1/L = 0\.5, and step_size is 0\.5"):
        wprox.ExplicitEuler().step(quadratic([1.0, 2.0]), rho, 0.5)


def test_quantiles_move_with_a_map_until_they_would_cross():
    rho = wprox.Quantiles.from_icdf(lambda u: 1 + NORMAL.icdf(u), 200)
    F = wprox.PotentialEnergy(lambda x: x[:, 0].square())
    step = wprox.ExplicitEuler().step(F, rho, 0.2)
    torch.testing.assert_close(step.measure.nodes, 0.6 * rho.nodes)
    torch.testing.assert_close(step.map(rho.points)[0][:, 0], step.measure.nodes)
    with pytest.raises(wprox.StepFailedError, match=r"in order only for step_size below 0\.5, and it is 0\.6"):
        wprox.ExplicitEuler().step(F, rho, 0.6)
    heat = wprox.ExplicitEuler().step(wprox.Entropy(), rho, 1e-6)  # the score is known
    assert float(heat.value) < float(wprox.Entropy()(rho))


def test_a_stiff_potential_diverges_at_a_long_step_and_says_so():
    F = quadratic([1.0, 1e4])
    with (
        pytest.warns(RuntimeWarning, match=r"grown ten-fold.*step_size must be below 0\.0002, and it is 1"),
        pytest.raises(wprox.StepFailedError, match=r"step \d+: the value of PotentialEnergy.*2/L") as caught,
    ):
        wprox.jko(F, wprox.ExplicitEuler(), particles(), step_size=1.0, n_steps=100)
    assert 1 < len(caught.value.trajectory) < 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trajectory = wprox.jko(F, wprox.ExplicitEuler(), particles(), step_size=1.9e-4, n_steps=50)  # below 2/L
    assert trajectory.values[-1] < trajectory.values[0]


def test_growth_is_warned_of_once():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wprox.jko(quadratic([1.0, 1.0]), wprox.ExplicitEuler(), particles(), step_size=3.0, n_steps=6)  # factor −2
    assert [str(w.message).startswith("F has grown ten-fold") for w in caught] == [True]


def test_rounding_is_no_growth():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wprox.jko(wprox.KL(standard(2)), wprox.GaussianProx(), standard(2), step_size=1.0, n_steps=3)  # from 0 to 4e-16


@pytest.mark.parametrize("offset", [0.0, -1.0, 1e3])
def test_growth_is_not_seen_where_nothing_grows(offset):
    F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2 + offset) + wprox.Entropy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # from the mode, the potential rises from its minimum to d/2
        wprox.jko(F, wprox.Langevin(), wprox.Particles(torch.zeros(500, 2)), step_size=0.1, n_steps=60)


@relaxed
@given(st.floats(0.1, 5), st.floats(0.0, 2), st.floats(0.05, 0.95), st.integers(0, 100))
def test_the_objective_falls_below_the_limit(stiffness, strength, part, seed):
    """Potentials and interactions of either sign, with L counting the interaction twice."""
    F = wprox.PotentialEnergy(lambda x: stiffness * x.cos().sum(-1)) + wprox.InteractionEnergy(
        lambda z: strength * torch.exp(-z.square().sum(-1) / 2)
    )
    limit = 2 / (stiffness + 2 * strength)
    values = wprox.jko(F, wprox.ExplicitEuler(), particles(30, seed=seed), part * limit, 5).values
    assert all(float(b) <= float(a) + 1e-12 for a, b in pairwise(values))


# --- noise ----------------------------------------------------------------------------------------------------------


def mmd_to(target, width):
    """½ MMD² with the kernel exp(−|x − y|²/2w²), up to a constant, from energies."""

    def kernel(z):
        return torch.exp(-z.square().sum(-1) / (2 * width**2))

    def attraction(x):
        return -kernel((x[:, None] - target).reshape(-1, x.shape[1])).reshape(len(x), -1).mean(1)

    constant = wprox.Particles(target).integrate_pairs(kernel) / 2
    interaction = wprox.InteractionEnergy(kernel) + wprox.PotentialEnergy(attraction)
    return interaction + wprox.PotentialEnergy(lambda x: constant.expand(len(x)))


def test_the_noisy_gradient_is_that_of_the_measure_at_noisy_points():
    rho, target = particles(), particles(seed=1, centre=0.0).points
    F = mmd_to(target, 1.0)
    gamma, beta = 0.1, 0.3
    noisy = wprox.ExplicitEuler(noise=beta, seed=5).step(F, rho, gamma)
    same = wprox.ExplicitEuler(noise=beta, seed=5).step(wprox.PotentialEnergy(lambda x: x.sum(-1)), rho, gamma)
    assert torch.allclose(same.measure.points, rho.points - gamma)  # a constant gradient does not see the noise
    shift = wprox.ExplicitEuler(noise=beta, seed=5).step(quadratic([1.0, 1.0]), rho, gamma)
    x = ((rho.points - shift.measure.points) / gamma).requires_grad_()  # x + βξ, from ∇V = id
    differences, weights = (x[:, None] - rho.points), rho.weights
    field = torch.exp(-differences.square().sum(-1) / 2) @ weights
    field = field - torch.exp(-(x[:, None] - target).square().sum(-1) / 2).mean(1)
    (gradient,) = torch.autograd.grad(field.sum(), x)
    torch.testing.assert_close(noisy.measure.points, rho.points - gamma * gradient, atol=1e-6, rtol=0)
    assert 0.2 < float((x - rho.points).detach().std()) < 0.4


def test_noise_cures_a_flow_that_is_stuck():
    # particles on a line of symmetry of the target: the gradient never leads off it
    half = particles(25, 2, seed=1, centre=0.0).points
    target = torch.cat((half, half * torch.tensor([1.0, -1.0], dtype=FLOAT64)))
    along = particles(40, 1, seed=2, centre=0.0).points
    F, start = mmd_to(target, 1.0), wprox.Particles(torch.cat((along, torch.zeros_like(along)), 1))
    plain = wprox.jko(F, wprox.ExplicitEuler(), start, 1.0, 60)
    assert float(plain.final.points[:, 1].abs().max()) < 1e-3
    cured = wprox.jko(F, wprox.ExplicitEuler(noise=lambda k: 0.3 * (1 - k / 60)), start, 1.0, 60)
    assert float(cured.values[-1]) < 0.1 * float(plain.values[-1])


def test_noise_arguments_are_checked():
    with pytest.raises(ValueError, match="noise must be finite and not negative"):
        wprox.ExplicitEuler(noise=-1.0)
    with pytest.raises(ValueError, match=r"noise\(0\) must be finite and not negative"):
        wprox.ExplicitEuler(noise=lambda k: -1.0).step(SMOOTH, particles(), 0.1)
    with pytest.raises(TypeError, match="need Particles, got Gaussian"):
        wprox.jko(quadratic([1.0]), wprox.ExplicitEuler(accelerated=True), standard(1), 0.1, 1)
    known = wprox.Particles.from_distribution(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)), 9)
    with pytest.raises(wprox.DensityUnknownError, match="do not know"):
        wprox.ExplicitEuler().step(wprox.Entropy(), known, 0.1)


# --- acceleration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_acceleration_reaches_the_rate_of_theory(condition):
    eigenvalues = torch.logspace(0, math.log10(condition), 5, dtype=FLOAT64)
    F, start = quadratic(eigenvalues, modulus=1.0), particles(20, 5)
    n = 300
    trajectory = wprox.jko(F, wprox.ExplicitEuler(accelerated=True), start, 1 / condition, n)
    # Nesterov 2004, theorem 2.2.3, with x* = 0: F_k ≤ (1 − √(1/κ))^k (F_0 + λ|x_0|²/2)
    scale = float(trajectory.values[0]) + float(start.weights @ start.points.square().sum(1)) / 2
    for k in (1, 10, 100, n):
        assert float(trajectory.values[k]) <= scale * (1 - condition**-0.5) ** k * (1 + 1e-9)
    plain = wprox.jko(F, wprox.ExplicitEuler(), start, 1 / condition, n)
    if condition == 1e3:
        assert float(trajectory.values[n]) < 0.01 * float(plain.values[n])


def test_acceleration_restarts_where_the_modulus_is_unknown():
    F, start, n = quadratic([1.0, 1e3]), particles(20), 400
    trajectory = wprox.jko(F, wprox.ExplicitEuler(accelerated=True), start, 1e-3, n)
    plain = wprox.jko(F, wprox.ExplicitEuler(), start, 1e-3, n)
    restarts = [step.state.since_restart for step in trajectory.steps].count(0)
    assert 1 <= restarts < n / 10
    assert float(trajectory.values[-1]) < 1e-3 * float(plain.values[-1])


def test_momentum_is_that_of_the_trajectory_only():
    F, solver = quadratic([1.0, 2.0]), wprox.ExplicitEuler(accelerated=True)
    first = solver.step(F, particles(), 0.1)
    elsewhere = solver.step(F, particles(seed=1), 0.1, previous=first)  # not where the first step ended
    torch.testing.assert_close(elsewhere.measure.points, solver.step(F, particles(seed=1), 0.1).measure.points)
    second = solver.step(F, first.measure, 0.1, previous=first)
    extrapolated = first.measure.points + 0.25 * (first.measure.points - particles().points)  # β_1 = 1/4
    scale = 1 - 0.1 * torch.tensor([1.0, 2.0], dtype=FLOAT64)
    torch.testing.assert_close(second.measure.points, extrapolated * scale)
    assert second.residual is None
    assert second.map is None


# --- forward–backward -----------------------------------------------------------------------------------------------


@relaxed
@given(st.floats(0.05, 1.0, exclude_max=True), st.floats(-5, 5), st.floats(0.2, 4))
def test_forward_backward_of_kl_between_gaussians(gamma, m, s):
    rho = wprox.Gaussian(torch.full((2,), m, dtype=FLOAT64), s**2 * torch.eye(2, dtype=FLOAT64))
    F = wprox.KL(standard(2))
    step = wprox.ForwardBackward(wprox.GaussianProx()).step(F, rho, gamma)
    half = (1 - gamma) * s
    new = (half + math.sqrt(half**2 + 4 * gamma)) / 2  # σ′² − (1 − γ)σσ′ − γ = 0
    torch.testing.assert_close(step.measure.loc, (1 - gamma) * rho.loc)
    torch.testing.assert_close(step.measure.covariance_matrix, new**2 * torch.eye(2, dtype=FLOAT64))
    # T(x) = (1 − γ)m + (σ′/σ)(x − m)
    torch.testing.assert_close(float(step.transport_cost), 2 * (gamma * m) ** 2 + 2 * (new - s) ** 2)
    torch.testing.assert_close(rho.push(step.map.maps[0]).push(step.map.maps[1]).loc, step.measure.loc)
    # ∇F(ρ) + (id − T⁻¹)/γ at T(x): the part of ∇V that moved, T(x) − x
    assert step.residual == pytest.approx(float(step.transport_cost) ** 0.5, abs=1e-7)


@relaxed
@given(st.floats(0.05, 0.95))
def test_forward_backward_is_unbiased(gamma):
    solver = wprox.ForwardBackward(wprox.GaussianProx())
    step = solver.step(wprox.KL(standard(2)), standard(2), gamma)
    torch.testing.assert_close(step.measure.covariance_matrix, torch.eye(2, dtype=FLOAT64))
    assert step.residual < 1e-7
    assert float(step.transport_cost) < 1e-12


def test_forward_backward_contracts_as_the_theorem_says():
    covariance = torch.diag(torch.tensor([1.0, 0.1], dtype=FLOAT64))  # λ = 1, L = 10, γ < 1/L
    target = wprox.Gaussian(torch.zeros(2, dtype=FLOAT64), covariance)
    start = wprox.Gaussian(torch.tensor([3.0, -2.0], dtype=FLOAT64), torch.eye(2, dtype=FLOAT64))
    trajectory = wprox.jko(wprox.KL(target), wprox.ForwardBackward(wprox.GaussianProx()), start, 0.09, 40)
    distances = [float(wprox.metrics.bures_wasserstein(rho, target)) ** 2 for rho in trajectory.measures]
    assert all(b <= (1 - 0.09) * a * (1 + 1e-9) for a, b in pairwise(distances))


def test_forward_backward_on_the_line_agrees_with_gaussians():
    rho = wprox.Quantiles.from_icdf(lambda u: 2 + 0.5 * NORMAL.icdf(u), 2000)
    F = wprox.KL(standard(1))
    solver = wprox.ForwardBackward(wprox.QuantileProx())
    trajectory = wprox.jko(F, solver, rho, 0.3, 3)
    gaussian = wprox.Gaussian(torch.full((1,), 2.0).double(), 0.25 * torch.eye(1, dtype=FLOAT64))
    exact = wprox.jko(F, wprox.ForwardBackward(wprox.GaussianProx()), gaussian, 0.3, 3).final
    mean, variance = (float(trajectory.final.integrate(lambda x, k=k: x[:, 0] ** k)) for k in (1, 2))
    assert mean == pytest.approx(float(exact.loc), abs=1e-6)
    assert variance - mean**2 == pytest.approx(float(exact.covariance_matrix), abs=2e-3)
    assert torch.allclose(trajectory.map(rho.points)[0], trajectory.final.points)
    step = trajectory.steps[0]
    assert isinstance(step.state, wprox.Step)  # the backward half
    # its bound holds: ∇F(ρ) + (id − T⁻¹)/γ, from the nodes
    error = F.wasserstein_gradient(step.measure)[:, 0] + (step.measure.nodes - rho.nodes) / 0.3
    assert float(rho.weights @ error.square()) ** 0.5 <= step.residual * (1 + 1e-6)


def test_the_density_follows_the_particles_through_both_halves():
    gaussian = wprox.Gaussian(torch.full((2,), 2.0, dtype=FLOAT64), 0.25 * torch.eye(2, dtype=FLOAT64))
    start = gaussian.to_particles(400, seed=0)
    F = wprox.KL(standard(2)) + wprox.InteractionEnergy(attraction)
    step = wprox.ForwardBackward(neural()).step(F, start, 0.3)
    x = start.points[:20].clone().requires_grad_()
    y, log_det = step.map(x)
    jacobian = torch.stack([torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(2)], 1)
    torch.testing.assert_close(jacobian.det().log(), log_det)
    torch.testing.assert_close(step.measure.log_density()[:20], start.log_density()[:20] - log_det.detach())
    torch.testing.assert_close(step.map.inverse(y.detach()), x.detach())
    assert float(step.value) < float(F(start))


def test_relative_values_are_those_of_one_constant():
    start = particles(300)
    solver = wprox.ForwardBackward(neural())
    trajectory = wprox.jko(wprox.KL(standard(2)), solver, start, 0.5, 4)
    assert trajectory.final.is_relative
    values = [float(value) for value in trajectory.values]
    assert values == sorted(values, reverse=True)


class Drift(wprox.Functional):
    """A functional whose map is not known off the particles."""

    def __call__(self, rho):
        return (rho.points * rho.weights[:, None]).sum(0).square().sum() / 2


def test_a_forward_part_without_a_map_loses_the_density_and_says_so():
    step = wprox.ForwardBackward(neural()).step(Drift() + wprox.Entropy(), particles(), 0.2)
    assert step.map is None
    assert "constant of this step" in step.message
    held = particles(seed=3).relative()
    step = wprox.ForwardBackward(neural()).step(Drift() + wprox.Entropy(), particles(), 0.2, held_out=held)
    assert len(step.held_out) == len(held)


def test_held_out_particles_take_the_same_maps():
    held = particles(seed=3)
    step = wprox.ForwardBackward(neural()).step(wprox.KL(standard(2)), particles(), 0.2, held_out=held)
    torch.testing.assert_close(step.held_out.points, step.map(held.points)[0].detach())


@relaxed
@given(st.floats(0.05, 0.9), st.integers(0, 20))
def test_forward_backward_of_particles(gamma, seed):
    rho = particles(seed=seed)
    F = quadratic([1.0, 3.0]) + wprox.InteractionEnergy(attraction)
    solver = wprox.ForwardBackward(wprox.ParticleProx(), forward=lambda term: isinstance(term, wprox.InteractionEnergy))
    step = solver.step(F, rho, gamma)
    mean = rho.weights @ rho.points
    middle = rho.points - gamma * 0.6 * (rho.points - mean)  # then x/(1 + γλ)
    exact = middle / (1 + gamma * torch.tensor([1.0, 3.0], dtype=FLOAT64))
    torch.testing.assert_close(step.measure.points, exact, atol=1e-5, rtol=0)
    error = F.wasserstein_gradient(step.measure) + (step.measure.points - rho.points) / gamma
    assert float(rho.weights @ error.square().sum(1)) ** 0.5 <= step.residual * (1 + 1e-9)
    torch.testing.assert_close(step.transport_cost, rho.weights @ (step.measure.points - rho.points).square().sum(1))


def test_forward_backward_with_a_kernel_density():
    start = particles(150).with_kernel_density(0.3)
    F = wprox.KL(standard(2))
    trajectory = wprox.jko(F, wprox.ForwardBackward(wprox.ParticleProx()), start, 0.3, 15)
    final, last = trajectory.final, trajectory.steps[-1]
    assert type(final) is type(start)
    assert all(float(b) <= float(a) for a, b in pairwise(trajectory.values))
    torch.testing.assert_close(trajectory.values[-1], F(final))
    error = F.wasserstein_gradient(final) + (final.points - trajectory.measures[-2].points) / 0.3
    assert float(final.weights @ error.square().sum(1)) ** 0.5 <= last.residual * (1 + 1e-9)
    # it ends where the proximal steps of the whole end: at the minimiser of the blob energy
    prox = wprox.jko(F, wprox.ParticleProx(), final, 10.0, 3)
    assert float(prox.values[-1]) > float(trajectory.values[-1]) - 0.02


def test_the_other_schemes_with_a_kernel_density():
    start = particles(150).with_kernel_density(0.3)
    F = wprox.KL(standard(2))
    explicit = wprox.jko(F, wprox.ExplicitEuler(), start, 0.05, 10)  # the gradient flow of the blob energy
    assert all(float(b) < float(a) for a, b in pairwise(explicit.values))
    langevin = wprox.jko(F, wprox.Langevin(), start, 0.05, 3)
    torch.testing.assert_close(langevin.values[-1], F(langevin.final))


def test_forward_chooses_the_terms():
    rho, seen = particles(), []

    def only_interactions(term):
        seen.append(type(term).__name__)
        return isinstance(term, wprox.InteractionEnergy)

    F = wprox.KL(standard(2)) + wprox.InteractionEnergy(attraction)
    step = wprox.ForwardBackward(neural(), forward=only_interactions).step(F, rho, 0.5)
    assert seen == ["PotentialEnergy", "Entropy", "InteractionEnergy"]
    middle = wprox.ExplicitEuler().step(wprox.InteractionEnergy(attraction), rho, 0.5).measure
    torch.testing.assert_close(step.map.maps[0](rho.points)[0], middle.points)
    # with nothing forward, the step is the backward solver's
    gaussian = wprox.Gaussian(torch.ones(2, dtype=FLOAT64), 2 * torch.eye(2, dtype=FLOAT64))
    whole = wprox.ForwardBackward(wprox.GaussianProx(), forward=lambda term: False).step(F, gaussian, 0.5)
    prox = wprox.GaussianProx().step(F, gaussian, 0.5)
    torch.testing.assert_close(whole.measure.covariance_matrix, prox.measure.covariance_matrix)
    assert whole.residual == pytest.approx(prox.residual, abs=1e-9)


def test_a_fold_is_refused_with_its_limit():
    rho = wprox.Gaussian(torch.zeros(2), torch.eye(2)).to_particles(50, seed=0)
    with pytest.raises(wprox.StepFailedError, match=r"folds space.*below 1/L = 0\.25.*step_size is 0\.5"):
        wprox.ForwardBackward(neural()).step(quadratic([1.0, 4.0]) + wprox.Entropy(), rho, 0.5)


def test_forward_backward_refuses_what_it_cannot_split():
    with pytest.raises(TypeError, match="backward must be a solver"):
        wprox.ForwardBackward("neural")
    with pytest.raises(TypeError, match="term -> bool"):
        wprox.ForwardBackward(neural(), forward=SMOOTH and 3)
    with pytest.raises(ValueError, match=r"every term of .* goes forward"):
        wprox.ForwardBackward(neural()).step(SMOOTH, particles(), 0.1)
    with pytest.raises(TypeError, match="QuantileProx needs Quantiles"):
        wprox.ForwardBackward(wprox.QuantileProx()).step(wprox.KL(standard(2)), particles(), 0.1)
    F = wprox.PotentialEnergy(lambda x: x.square().square().sum(-1)) + wprox.Entropy()
    with pytest.raises(ValueError, match="leaves the Gaussians"):
        wprox.ForwardBackward(wprox.GaussianProx()).step(F, standard(2), 0.1)


# --- Langevin -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_unadjusted_langevin_has_its_known_bias(temperature):
    gamma, n = 0.8, 20_000
    F = quadratic([1.0, 1.0]) + temperature * wprox.Entropy()
    trajectory = wprox.jko(F, wprox.Langevin(), wprox.Particles(torch.zeros(n, 2, dtype=FLOAT64)), gamma, 12)
    # 40,000 draws: the sample variance has a relative standard deviation of √(2/40,000) = 0.0071; false alarm at
    # 4.5 of them: 7e-6
    expected = temperature / (1 - gamma / 2) * (1 - (1 - gamma) ** 24)
    assert float(trajectory.final.points.square().mean()) == pytest.approx(expected, rel=0.032)
    assert float(trajectory.values[-1]) == pytest.approx(float(trajectory.final.points.square().sum(1).mean() / 2))


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_adjusted_langevin_is_exact(temperature):
    n = 20_000
    start = temperature**0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=FLOAT64)
    F = temperature * (quadratic([1.0, 1.0]) / temperature + wprox.Entropy())
    trajectory = wprox.jko(F, wprox.Langevin(adjusted=True), wprox.Particles(start), 1.0, 15)
    x = trajectory.final.points / temperature**0.5
    # stationary: variance as above, fourth moment 3 with standard deviation √(96/40,000) = 0.049; 4.5 of them each
    assert float(x.square().mean()) == pytest.approx(1, abs=0.032)
    assert float(x.pow(4).mean()) == pytest.approx(3, abs=0.22)
    accepted = int(re.search(r"accepted (\d+)%", trajectory.steps[-1].message).group(1))
    assert 20 < accepted < 95
    still = (trajectory.measures[-1].points == trajectory.measures[-2].points).all(1).double().mean()
    assert float(still) == pytest.approx(1 - accepted / 100, abs=0.006)


def test_adjusted_langevin_stays_inside_the_support():
    def log_uniform(x):
        return torch.where((x.abs() < 1).all(-1), -0.1 * x.square().sum(-1), -math.inf)

    rho = wprox.Particles(torch.zeros(500, 2, dtype=FLOAT64))
    final = wprox.jko(wprox.KL(log_uniform), wprox.Langevin(adjusted=True), rho, 0.2, 20).final
    assert float(final.points.abs().max()) < 1
    assert float(final.points.std()) > 0.4


def test_langevin_drops_a_density_that_would_be_wrong():
    law = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    start = wprox.Particles.from_distribution(law, 50, seed=0)
    trajectory = wprox.jko(wprox.KL(law), wprox.Langevin(), start, 0.1, 2)
    assert not any(rho.density_known for rho in trajectory.measures)
    assert float(trajectory.values[0]) == pytest.approx(-float(law.log_prob(start.points).mean()))


def test_langevin_refuses_other_functionals():
    with pytest.raises(ValueError, match="ExplicitEuler follows functionals without one"):
        wprox.Langevin().step(SMOOTH, particles(), 0.1)
    with pytest.raises(ValueError, match="has -1"):
        wprox.Langevin().step(SMOOTH - wprox.Entropy(), particles(), 0.1)
    with pytest.raises(ValueError, match=r"InteractionEnergy.* is not one; use adjusted=False"):
        wprox.Langevin(adjusted=True).step(SMOOTH + wprox.Entropy(), particles(), 0.1)
    with pytest.raises(TypeError, match="Langevin needs Particles, got Gaussian"):
        wprox.jko(wprox.KL(standard(1)), wprox.Langevin(), standard(1), 0.1, 1)
    heat = wprox.Langevin().step(wprox.Entropy(), particles(), 0.1)  # Brownian motion
    assert float(heat.value) == 0
    assert float(heat.transport_cost) > 0


def test_langevin_says_that_it_diverged():
    with (
        pytest.warns(RuntimeWarning, match="stable only for step_size < 2/L"),
        pytest.raises(wprox.StepFailedError, match="stable only for step_size < 2/L"),
    ):
        wprox.jko(quadratic([1.0, 1e4]) + wprox.Entropy(), wprox.Langevin(), particles(), 1.0, 100)


# --- the map of an explicit step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, FLOAT64])
def test_gradient_step_map_inverts_and_knows_its_determinant(dtype):
    map = GradientStepMap(3, lambda x: x.cos().sum(-1) + (x.sum(-1)).sin() / 4, step_size=0.5, batch_size=7)
    x = torch.randn(40, 3, dtype=dtype, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y, log_det = map(x)
    rows = [torch.autograd.grad(y[:, j].sum(), x, retain_graph=True)[0] for j in range(3)]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(torch.stack(rows, 1).det().log(), log_det, atol=tolerance, rtol=0)
    torch.testing.assert_close(map.inverse(y.detach()), x.detach(), atol=tolerance, rtol=0)
    assert 0 < map.least_stretch(x) < 1
    detached = map(x.detach())[0]
    assert not detached.requires_grad
    assert torch.equal(detached, y.detach())


def test_gradient_step_map_of_a_linear_potential_is_a_shift():
    map = GradientStepMap(2, lambda x: x[:, 0], step_size=0.5)
    y, log_det = map(torch.zeros(3, 2))
    assert y.tolist() == [[-0.5, 0.0]] * 3
    assert log_det.tolist() == [0.0] * 3
    constant = GradientStepMap(2, lambda x: torch.ones(len(x)), step_size=0.5)
    assert torch.equal(constant(torch.ones(3, 2))[0], torch.ones(3, 2))


def test_gradient_step_map_says_where_it_folds():
    map = GradientStepMap(1, lambda x: 2 * x[:, 0].cos(), step_size=1.0)  # x + 2 sin x
    folded = GradientStepMap(1, lambda x: x.square().square().sum(-1), step_size=1.0)
    assert torch.allclose(map.inverse(torch.zeros(1, 1)), torch.zeros(1, 1))
    assert folded.least_stretch(torch.ones(1, 1)) < 0
    flat = GradientStepMap(1, lambda x: x[:, 0].square() / 2, step_size=1.0)  # T = 0
    with pytest.raises(InverseError, match=r"may fold there.*step_size is 1") as raised:
        flat.inverse(torch.ones(1, 1))
    assert raised.value.residual == pytest.approx(0.5)  # |T(x) − y| / (1 + |y|) with T = 0
