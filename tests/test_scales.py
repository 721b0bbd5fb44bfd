"""Precision, scale and offset: against float64 and closed forms, over twenty decades."""

import math

import pytest
import torch

import wprox
from wprox.metrics import energy_distance, mmd, sinkhorn_divergence, w2
from wprox.models.sampler.target import ScaledTarget
from wprox.solvers import Ending

DECADES = (1e-10, 1e-5, 1e5, 1e10)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- sums and draws


def test_a_million_particles_in_float32_sum_as_in_float64():
    n = 1_000_000
    x = normal(n, 1).float() + 1000
    rho, truth = wprox.Particles(x, log_density=x[:, 0]), float(x.double().mean())
    moved = rho.at(x + 1000)
    problem = wprox.Problem(wprox.PotentialEnergy(lambda x: x[:, 0]), rho, 1.0)
    for found, expected in (
        (rho.integrate(lambda x: torch.ones_like(x[:, 0])), 1.0),
        (wprox.PotentialEnergy(lambda x: x[:, 0])(rho), truth),
        (rho.mean_log_density(), truth),
        (problem.cost(moved), 1e6),
        (wprox.Gaussian.from_samples(x).loc[0], truth),
        (wprox.Gaussian.from_samples(x).covariance_matrix[0, 0], float(x.double().var(correction=0))),
        (wprox.Grid.from_particles(rho.at(x - 1000), 4, [(-20.0, 20.0)]).weights.sum(), 1.0),
    ):
        assert float(found) == pytest.approx(expected, rel=1e-6)


def test_draws_reach_small_weights_and_never_weights_of_zero():
    small = torch.full((1000,), 1e-8)
    weights = torch.cat((torch.tensor([0.0, 1 - 1e-5, 0.0]), small, torch.zeros(2)))
    points = torch.arange(len(weights)).float()[:, None]
    for rho in (wprox.Particles(points, weights), wprox.Grid(weights, [(0.0, float(len(weights)))])):
        drawn = rho.sample(2_000_000, seed=0)[:, 0].floor()
        assert set(drawn[drawn < 3].tolist()) == {1.0}
        assert float(drawn.max()) < 1003
        # Poisson of mean 20: outside of these once in 2e6 and in 1e5 seeds
        assert 4 <= int((drawn >= 3).sum()) <= 43


def test_more_than_2_to_the_24_atoms_can_be_drawn_from():
    assert wprox.Grid(torch.ones(257, 256, 256), [(0, 1)] * 3).sample(3, seed=0).shape == (3, 3)


@pytest.mark.parametrize("kernel", [None, wprox.kernels.Gaussian(), lambda z: torch.exp(-z.square().sum(-1))])
def test_discrepancies_of_like_samples_in_float32_are_those_in_float64(kernel):
    x = normal(500, 2).float()
    for y in (x + 1e-4, x + 1e-3, x.flip(0)):
        found = float(mmd(wprox.Particles(x), wprox.Particles(y), kernel))
        truth = float(mmd(wprox.Particles(x.double()), wprox.Particles(y.double()), kernel))
        assert found == pytest.approx(truth, rel=1e-3, abs=1e-12)
        assert found >= -1e-12
    assert float(energy_distance(wprox.Particles(x + 1000), wprox.Particles(x + 1000))) >= -1e-12


def test_a_kernel_in_float32_keeps_its_precision():
    matrix = torch.eye(2)
    F = wprox.MMD(normal(20, 2).float(), kernel=lambda z: torch.exp(-(z @ matrix).square().sum(-1)))
    assert F(wprox.Particles(normal(20, 2, seed=1).float())).dtype == torch.float32


# --- distances in units


@pytest.mark.parametrize("s", DECADES)
def test_distances_scale(s):
    x, y = normal(30, 2), normal(40, 2, seed=1) + 1
    line = wprox.Quantiles.from_samples(x[:, 0], 20), wprox.Quantiles.from_samples(y[:, 0], 20)
    law, other = (wprox.Gaussian.from_samples(z) for z in (x, y))
    pairs = {
        "plans": (wprox.Particles(x), wprox.Particles(y), lambda rho: rho.at(s * rho.points)),
        "quantiles": (*line, lambda rho: wprox.Quantiles(s * rho.nodes)),
        "line": (wprox.Particles(x[:, :1]), wprox.Particles(y[:, :1]), lambda rho: rho.at(s * rho.points)),
        "Bures": (law, other, lambda rho: wprox.Gaussian(s * rho.loc, s**2 * rho.covariance_matrix)),
    }
    for name, (p, q, scaled) in pairs.items():
        assert float(w2(scaled(p), scaled(q))) == pytest.approx(s * float(w2(p, q)), rel=1e-9), name
    p, q, scaled = pairs["plans"]
    found = float(sinkhorn_divergence(scaled(p), scaled(q), 0.5 * s))
    assert found == pytest.approx(s**2 * float(sinkhorn_divergence(p, q, 0.5)), rel=1e-6)


def test_far_points_leave_the_plan_of_the_others_exact():
    x, y = normal(30, 2), normal(30, 2, seed=1)
    near = float(w2(wprox.Particles(x[1:]), wprox.Particles(y[1:])))
    x[0] = y[0] = 1e8
    far = w2(wprox.Particles(x), wprox.Particles(y.flip(0)))
    assert float(far) == pytest.approx(near * math.sqrt(29 / 30), rel=1e-9)


@pytest.mark.parametrize("blur", [1.0, 0.1, 0.01, 0.001])
def test_the_sinkhorn_divergence_of_a_measure_to_itself_is_zero_at_every_blur(blur):
    x = normal(60, 2)
    for y in (x, x.flip(0)):
        assert abs(float(sinkhorn_divergence(wprox.Particles(x), wprox.Particles(y), blur))) <= 1e-12


def test_the_sinkhorn_divergence_at_small_blur_is_half_of_w2_squared():
    p, q = wprox.Particles(normal(60, 2)), wprox.Particles(normal(60, 2, seed=1) + 0.3)
    assert float(sinkhorn_divergence(p, q, 1e-3)) == pytest.approx(float(w2(p, q)) ** 2 / 2, rel=1e-4)


# --- steps


def test_a_gaussian_step_from_where_the_functional_is_infinite_fails_with_a_sentence():
    law = wprox.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    with pytest.raises(wprox.StepFailedError, match="has left the domain"):
        wprox.GaussianProx().step(wprox.KL(law) + wprox.Congestion(0.05), law, 0.2)


def test_the_sampler_fits_its_start_in_units_of_the_target():
    from wprox.models.sampler.target import fitted_gaussian

    for s, m in ((1e-3, 0.0), (1e3, 1e5)):

        def log_banana(x, s=s, m=m):
            z = (x - m) / s
            return -z[:, 0].square() / 2 - 2 * (z[:, 1] - z[:, 0].square() / 2).square()

        fitted = fitted_gaussian(wprox.KL(log_banana), 2, seed=0)
        deviations = fitted.covariance_matrix.diagonal().sqrt() / s  # twice those of the best Gaussian, (1/√2, 1/2)
        assert torch.allclose(deviations, torch.tensor([math.sqrt(2), 1.0]), rtol=1e-2)


def test_a_grid_step_far_shorter_than_blur_squared_does_not_say_that_it_converged():
    x = (torch.arange(64).double() + 0.5) / 64
    rho = wprox.Grid(((x - 0.5).abs() < 0.2).double() + 1e-12, [(0.0, 1.0)])
    F = wprox.PotentialEnergy(lambda x: (x[:, 0] - 0.3) ** 2)
    step = wprox.SinkhornProx().step(F, rho, 1e-8)
    assert not step.converged
    assert "needs a blur of at most" in step.message
    assert float(step.transport_cost) >= float(w2(rho, step.measure)) ** 2 * (1 - 1e-9)
    assert wprox.SinkhornProx().step(F, rho, 1e-2).converged


@pytest.mark.parametrize("s", [1e-9, 1e5, 1e9])
@pytest.mark.parametrize("name", ["potential", "MMD", "W2", "exact", "slow"])
def test_particle_steps_are_the_same_in_all_units_of_length_and_time(name, s):
    z = normal(60, 2)
    coupling = "exact" if name == "exact" else "identity"

    def step(s):
        F = {
            "MMD": lambda: wprox.MMD(s * (z + 1), kernel=wprox.kernels.Gaussian(s)),
            "W2": lambda: s**-2 * wprox.SquaredWasserstein(wprox.Particles(s * (z.flip(0) + 1))),
            "slow": lambda: s**-2 * wprox.PotentialEnergy(lambda x: (x - 1).square().sum(-1) / 2),
        }.get(name, lambda: wprox.PotentialEnergy(lambda x: (x / s - 1).square().sum(-1) / 2))()
        unit = 1.0 if name == "slow" else s
        found = wprox.ParticleProx(coupling).step(F, wprox.Particles(unit * z), s**2)
        assert found.converged
        return found.measure.points / unit

    assert torch.allclose(step(s), step(1.0), rtol=0, atol=1e-9)


def test_one_particle_far_away_does_not_end_the_step_of_the_others():
    z = normal(40, 2)
    F = wprox.MMD(z + 0.3)
    z[0] = 1e9
    step = wprox.ParticleProx().step(F, wprox.Particles(z), 0.2)
    near = z.clone()
    near[0] = 1e3
    expected = wprox.ParticleProx().step(F, wprox.Particles(near), 0.2)
    assert step.converged
    assert torch.allclose(step.measure.points[1:], expected.measure.points[1:], rtol=0, atol=1e-4)
    assert float((step.measure.points - z)[1:].norm()) > 0.1


@pytest.mark.parametrize("step_size", [1e-12, 1e-9, 1e9])
def test_particle_steps_are_made_however_short_they_are_and_end_at_rest(step_size):
    z = normal(10, 1)
    F = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2)
    step = wprox.ParticleProx().step(F, wprox.Particles(z), step_size)
    assert step.converged
    expected = z / (1 + step_size)
    assert float((step.measure.points - expected).norm()) <= 1e-3 * float((expected - z).norm())
    quartic = wprox.PotentialEnergy(lambda x: (x - 1).square().sum(-1) + (x - 1).pow(4).sum(-1))
    assert wprox.ParticleProx().step(quartic, wprox.Particles(1 + 1e-16 * z), step_size).converged


@pytest.mark.parametrize("s", [1e-9, 1e-5, 1.0, 1e6, 1e9])
def test_the_best_gaussian_is_found_from_afar(s):
    """2σ + 1.2σ³ − 1/σ + σ = s for V = x² + x⁴/10, an entropy and γ = 1; the left side increases."""
    low, high = 1e-3, 1 + s
    for _ in range(200):
        middle = (low + high) / 2
        rises = 2 * middle + 1.2 * middle**3 - 1 / middle + middle > s
        low, high = (low, middle) if rises else (middle, high)
    F = wprox.PotentialEnergy(lambda x: (x**2 + 0.1 * x**4).sum(-1)) + wprox.Entropy()
    start = wprox.Gaussian(torch.zeros(1).double(), torch.full((1, 1), s * s).double(), 12)
    step = wprox.GaussianProx().step(F, start, 1.0)
    assert step.converged
    assert float(step.measure.covariance_matrix.sqrt()) == pytest.approx(low, rel=1e-7)
    assert float(step.transport_cost) == pytest.approx((s - low) ** 2, rel=1e-6)
    assert float(step.map(start.loc[None] + s)[0].detach()) == pytest.approx(low, rel=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1000.0])
def test_smearing_is_told_whatever_constant_is_added_and_though_f_falls(constant):
    x = (torch.arange(32).double() + 0.5) / 32
    rho = wprox.Grid(((x - 0.5).abs() < 0.2).double() + 1e-12, [(0.0, 1.0)])
    potential = wprox.PotentialEnergy(lambda x: (x[:, 0] - 0.3) ** 2 + constant)
    for F in (potential, potential + wprox.Entropy()):
        assert wprox.SinkhornProx().step(F, rho, 1e-8).ending is Ending.SMEARED
        assert wprox.SinkhornProx().step(F, rho, 1e-2).converged


class Given(wprox.Functional):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def __call__(self, rho):
        return self.value(rho)


STARTS = {
    wprox.QuantileProx: wprox.Quantiles(torch.linspace(0, 1, 11).double()),
    wprox.GaussianProx: wprox.Gaussian(torch.zeros(1), torch.eye(1)),
    wprox.SinkhornProx: wprox.Grid((torch.arange(8).double() + 1) / 36, [(0.0, 1.0)]),
}


@pytest.mark.parametrize("solver", STARTS)
def test_steps_refuse_functionals_that_are_no_number_or_cut_off(solver):
    def step(value):
        return solver().step(Given(value), STARTS[solver], 0.1)

    def mean(rho):
        return rho.integrate(lambda x: x[:, 0] ** 2)

    with pytest.raises(ValueError, match="cut off from autograd"):
        step(lambda rho: mean(rho).detach())
    with pytest.raises(TypeError, match="must return a scalar tensor"):
        step(lambda rho: None)
    with pytest.raises(wprox.StepFailedError, match=r"finite|nan"):
        step(lambda rho: mean(rho) * math.nan)


def test_sliced_distances_in_batches_are_those_at_once(monkeypatch):
    p, q = wprox.Particles(normal(20, 3)), wprox.Particles(normal(30, 3, seed=1))
    at_once = wprox.metrics.sliced_w2(p, q, 64)
    monkeypatch.setattr("wprox.transport.line.NUMBERS_AT_ONCE", 500)
    assert float(wprox.metrics.sliced_w2(p, q, 64)) == pytest.approx(float(at_once), rel=1e-12)


def test_the_sinkhorn_divergence_bears_points_far_away():
    x, y = normal(50, 2), normal(50, 2, seed=1) + 0.5
    x[0], y[3] = 1e3, 1e3 + 1
    near = float(sinkhorn_divergence(wprox.Particles(x), wprox.Particles(y), 1.0))
    x[0], y[3] = 1e6, 1e6 + 1
    assert float(sinkhorn_divergence(wprox.Particles(x), wprox.Particles(y), 1.0)) == pytest.approx(near, rel=1e-4)


def test_a_step_that_failed_is_no_arrival():
    class Stuck(wprox.Solver):
        def solve(self, problem, state):
            return wprox.Solved(problem.measure, problem.cost(problem.measure), ending=Ending.NOT_CONVERGED)

    F = wprox.PotentialEnergy(lambda x: x.square().sum(-1))
    with pytest.warns(RuntimeWarning, match="did not converge"):
        trajectory = wprox.jko(F, Stuck(), wprox.Particles([[1.0]]), 0.1, 3, tol=1e-3)
    assert len(trajectory) == 3
    assert not trajectory.converged


def test_entropic_couplings_end_and_bound_the_distance_with_weights_below_rounding():
    x, y = normal(12, 2), normal(8, 2, seed=1)
    weights = torch.cat((torch.full((6,), 2.5e-31), torch.full((6,), 1 / 6))).double()
    rho = wprox.Particles(x, weights)
    step = wprox.ParticleProx("sinkhorn", blur=0.3, iterations=3).step(wprox.MMD(y), rho, 0.2)
    assert float(step.transport_cost) >= float(w2(rho, step.measure)) ** 2 * (1 - 1e-9)


def test_a_target_far_from_0_is_not_rounded_to_the_single_precision_of_its_coordinates():
    """log g(m + s u) + log s at m = 5, s = 1e-3 is that at m = 0, s = 1: in float32 x knows u to 2e-4 only."""
    u = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))

    def scaled(s, m):
        units = wprox.Gaussian(torch.full((2,), m), s**2 * torch.eye(2))
        return ScaledTarget(lambda x: -8 * ((x - m) / s).square().sum(1).sin(), units)

    far, near = scaled(1e-3, 5.0), scaled(1.0, 0.0)
    difference = far.log_prob(u) - near.log_prob(u)
    torch.testing.assert_close(difference, difference.mean().expand(100), atol=1e-4, rtol=0)
    assert far.log_prob(u).dtype == torch.float32


def test_points_too_far_apart_for_blur_are_told():
    x = normal(20, 2)
    far = x.clone()
    far[0] = 1e9
    with pytest.warns(UserWarning, match="points are so far apart"):
        sinkhorn_divergence(wprox.Particles(x), wprox.Particles(far), 0.5)
