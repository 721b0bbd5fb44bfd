"""NeuralProx against the closed form of a JKO step, unknown densities, failures, interruption and reproducibility."""

import itertools
import math
from functools import partial

import pytest
import torch

import wprox
from wprox.maps.registry import map_factory
from wprox.solvers.neural.training import Outcome, saved_bytes_per_row

F64 = torch.float64


def half_square(x):
    return 0.5 * x.square().sum(-1)


def standard_normal(dim, dtype=F64):
    return wprox.Gaussian(torch.zeros(dim, dtype=dtype), torch.eye(dim, dtype=dtype))


def cloud(n, dim, loc=0.0, scale=1.0, seed=0, dtype=F64):
    """Points with exactly the mean loc and the covariance scale² I: closed forms hold without sampling error."""
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    x = x - x.mean(0)
    x = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / n), x.T, upper=False).T
    return (loc + scale * x).to(dtype)


def closed_form(m, s, gamma):
    """The JKO step of KL(· ‖ N(0, I)) from N(m, s²I): m' = m/(1+γ) and (1+γ)s'² − s s' − γ = 0 (docs/theory.md)."""
    return m / (1 + gamma), (s + math.sqrt(s**2 + 4 * gamma * (1 + gamma))) / (2 * (1 + gamma))


AFFINE = {"map": wprox.AffineMap, "learning_rate": 0.05, "iterations": 400, "patience": 24}


def spline_of(map):
    """The network in a map that starts with it, in units of the particles, and ends with the best affine map."""
    return next((part for part in map.modules() if isinstance(part, wprox.SplineMap)), None)


def fast(**options):
    """A solver for tests that do not look at the quality of the map."""
    return wprox.NeuralProx(**{"map": wprox.AffineMap, "iterations": 20, "check_every": 5, **options})


# --- the closed form ---


@pytest.mark.parametrize("known", [True, False], ids=["density known", "density unknown"])
def test_affine_steps_are_the_closed_form(known):
    """With the full batch the objective knows the points by mean and covariance only: exact up to the optimiser."""
    m, s, gamma = 1.0, 0.3, 0.5
    x = cloud(500, 2, m, s)
    law = wprox.Gaussian(torch.full((2,), m, dtype=F64), s**2 * torch.eye(2, dtype=F64))
    rho = wprox.Particles(x, log_density=law.log_prob(x) if known else None)
    functional, previous = wprox.KL(standard_normal(2)), None
    for _ in range(3):
        previous = wprox.NeuralProx(**AFFINE).step(functional, rho, gamma, previous=previous, held_out=rho)
        rho = previous.measure
        cost, old_m, old_s = float(previous.transport_cost), m, s
        m, s = closed_form(m, s, gamma)
        fitted = wprox.Gaussian.from_samples(rho.points)
        assert torch.allclose(fitted.loc, torch.full((2,), m, dtype=F64), atol=2e-3)
        assert torch.allclose(fitted.covariance_matrix, s**2 * torch.eye(2, dtype=F64), atol=2e-3)
        # the step is optimal transport between Gaussians: W₂² = d (m − m')² + d (s − s')²
        assert cost == pytest.approx(2 * (m - old_m) ** 2 + 2 * (s - old_s) ** 2, rel=5e-3)
        if known:
            kl = m**2 + s**2 - 1 - 2 * math.log(s)
            assert float(previous.value) == pytest.approx(kl, abs=5e-3)
    assert previous.index == 2


def test_spline_step_is_the_closed_form_within_sampling_error():
    m, s, gamma, n = 1.5, 0.5, 1.0, 4000
    rho = wprox.Particles(cloud(n, 2, m, s, dtype=torch.float32))
    step = wprox.NeuralProx(iterations=250, batch_size=512, seed=0).step(
        wprox.KL(standard_normal(2, torch.float32)), rho, gamma
    )
    m, s = closed_form(m, s, gamma)
    fitted = wprox.Gaussian.from_samples(step.measure.points)
    # three times the error of a mean of n/10 held-out points, which decide where training stops
    tolerance = 3 * s / math.sqrt(n / 10)
    assert torch.allclose(fitted.loc, torch.full((2,), m), atol=tolerance)
    assert torch.allclose(fitted.covariance_matrix, s**2 * torch.eye(2), atol=2 * tolerance)


def test_potential_step_contracts_by_one_over_one_plus_gamma():
    x = cloud(300, 3, loc=2.0)
    solver = wprox.NeuralProx(**AFFINE)
    step = solver.step(wprox.PotentialEnergy(half_square), wprox.Particles(x), 1.0, held_out=wprox.Particles(x))
    assert torch.allclose(step.measure.points, x / 2, atol=0.02)


def test_quality_of_the_step_is_its_objective():
    """No affine map near the one found does better."""
    x = cloud(400, 2, loc=1.0, scale=0.5)
    rho, gamma = wprox.Particles(x).relative(), 0.5
    functional = wprox.KL(standard_normal(2))
    step = wprox.NeuralProx(**AFFINE).step(functional, rho, gamma, held_out=rho)

    def objective(map):
        with torch.no_grad():
            pushed = rho.push(map)
            return float(functional(pushed) + (pushed.points - x).square().sum(1).mean() / (2 * gamma))

    best = objective(step.map)
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        other = wprox.AffineMap(2).double()
        with torch.no_grad():
            for parameter, found in zip(other.parameters(), step.map.parameters(), strict=True):
                parameter.copy_(found + 0.1 * torch.randn(found.shape, generator=generator, dtype=F64))
        assert objective(other) > best


# --- what a step reports ---


def test_step_reports_the_map_that_made_it():
    rho = wprox.Particles(cloud(200, 2, loc=1.0))
    functional = wprox.KL(standard_normal(2))
    step = fast(map="spline").step(functional, rho, 0.5)
    assert spline_of(step.map) is not None
    assert torch.equal(step.measure.points, step.map(rho.points)[0])
    assert not step.measure.points.requires_grad
    assert not step.map.training
    assert float(step.transport_cost) == pytest.approx(float((step.measure.points - rho.points).square().sum(1).mean()))
    assert (step.step_size, step.index, step.converged, step.interrupted) == (0.5, 0, True, False)
    assert 0 < step.iterations <= 20
    assert step.seconds > 0
    assert "held-out objective" in step.message


def test_held_out_particles_are_pushed_along():
    rho, held_out = wprox.Particles(cloud(200, 2)), wprox.Particles(cloud(50, 2, seed=1))
    step = fast().step(wprox.PotentialEnergy(half_square), rho, 0.5, held_out=held_out)
    assert torch.equal(step.held_out.points, step.map(held_out.points)[0])
    assert fast().step(wprox.PotentialEnergy(half_square), rho, 0.5).held_out is None


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_dtype_is_kept(dtype):
    step = fast(map="spline").step(
        wprox.KL(standard_normal(2, dtype)), wprox.Particles(cloud(100, 2, dtype=dtype)), 0.5
    )
    assert step.measure.dtype == step.value.dtype == next(step.map.parameters()).dtype == dtype


def test_a_step_never_does_worse_than_standing_still():
    """The identity is the first state, and the best one is kept."""
    rho = wprox.Particles(cloud(100, 2))
    reckless = fast(map="spline", learning_rate=5.0, clip=1e6)
    step = reckless.step(wprox.PotentialEnergy(half_square), rho, 0.5, held_out=rho)
    assert float(step.value) + float(step.transport_cost) / (2 * 0.5) <= float(half_square(rho.points).mean()) + 1e-9


def test_early_stopping():
    rho = wprox.Particles(cloud(100, 2))
    solver = wprox.NeuralProx(map=wprox.AffineMap, iterations=5000, check_every=5, patience=2, learning_rate=0.1)
    step = solver.step(wprox.PotentialEnergy(half_square), rho, 1e-6)
    assert step.iterations < 5000


def test_warm_start_begins_where_the_last_step_ended():
    rho = wprox.Particles(cloud(200, 2, loc=3.0))
    functional = wprox.PotentialEnergy(half_square)
    first = wprox.NeuralProx(**AFFINE).step(functional, rho, 1.0, held_out=rho)
    frozen = {"map": wprox.AffineMap, "iterations": 1, "learning_rate": 1e-12}
    warm = wprox.NeuralProx(**frozen, warm_start=True).step(functional, rho, 1.0, previous=first, held_out=rho)
    cold = wprox.NeuralProx(**frozen).step(functional, rho, 1.0, previous=first, held_out=rho)
    assert torch.allclose(warm.measure.points, first.measure.points)
    assert torch.allclose(cold.measure.points, rho.points)
    assert warm.map is not first.map


# --- densities ---


def test_unknown_density_is_minimised_and_reported_up_to_a_constant():
    x = cloud(300, 2, loc=1.0, scale=0.5)
    law = wprox.Gaussian(torch.ones(2, dtype=F64), 0.25 * torch.eye(2, dtype=F64))
    log_density = law.log_prob(x)
    functional = wprox.KL(standard_normal(2))
    unknown = fast().step(functional, wprox.Particles(x), 0.5)
    known = fast().step(functional, wprox.Particles(x, log_density=log_density), 0.5)
    assert torch.allclose(known.measure.points, unknown.measure.points)
    # the values differ by the constant ∫ log μ dμ, and the step says so
    assert float(known.value - unknown.value) == pytest.approx(float(log_density.mean()))
    assert unknown.measure.is_relative
    assert "up to the constant" in unknown.message
    assert not known.measure.is_relative
    assert "constant" not in known.message


def test_known_density_is_carried_along():
    x = cloud(300, 1)
    law = standard_normal(1)
    step = fast().step(wprox.PotentialEnergy(half_square), wprox.Particles(x, log_density=law.log_prob(x)), 1.0)
    scale, shift = step.map.matrix.detach(), step.map.shift.detach()
    pushed_law = wprox.Gaussian(shift, scale @ scale.T)
    assert torch.allclose(step.measure.log_density(), pushed_law.log_prob(step.measure.points))


def test_internal_energy_needs_the_density():
    x = cloud(300, 1, scale=0.3)
    spread = wprox.PorousMedium(2.0)
    with pytest.raises(wprox.DensityUnknownError, match="log_density="):
        fast().step(spread, wprox.Particles(x), 0.1)
    with pytest.raises(wprox.DensityUnknownError):
        wprox.jko(spread, fast(), wprox.Particles(x), n_steps=1)
    law = wprox.Gaussian(torch.zeros(1, dtype=F64), 0.09 * torch.eye(1, dtype=F64))
    rho = wprox.Particles(x, log_density=law.log_prob(x))
    step = wprox.NeuralProx(**AFFINE).step(spread, rho, 0.1, held_out=rho)
    # E ρ under T(x) = a x is c/a: minimise c/a + s²(a − 1)²/(2γ) over a
    c = float(spread(rho))
    a = torch.linspace(1, 5, 400_001, dtype=F64)
    best = a[(c / a + 0.09 * (a - 1) ** 2 / 0.2).argmin()]
    assert float(step.map.matrix.detach()) == pytest.approx(float(best), rel=5e-3)
    assert float(step.value) == pytest.approx(c / float(best), rel=5e-3)


# --- weights ---


@pytest.mark.parametrize("batch_size", [4096, 64], ids=["full batch", "minibatches"])
def test_weights_count(batch_size):
    """All the mass sits at 2 although most points sit at −10: the barycentre moves from 2 to 1."""
    points = torch.cat((torch.full((900, 1), -10.0), torch.full((300, 1), 2.0))).double()
    weights = torch.cat((torch.full((900,), 0.001 / 900), torch.full((300,), 0.999 / 300))).double()
    rho = wprox.Particles(points, weights)
    solver = wprox.NeuralProx(**{**AFFINE, "batch_size": batch_size})
    step = solver.step(wprox.PotentialEnergy(half_square), rho, 1.0, held_out=rho)
    mean, old = step.measure.integrate(lambda x: x), rho.integrate(lambda x: x)
    assert float(mean) == pytest.approx(float(old) / 2, abs=0.05)


def test_a_minibatch_without_weight_does_no_harm():
    """One point in a hundred carries mass, so a batch drawn evenly would often carry none."""
    points = torch.arange(1000, dtype=F64)[:, None] / 1000
    weights = torch.zeros(1000, dtype=F64)
    weights[::100] = 0.1
    rho = wprox.Particles(points, weights)
    step = fast(batch_size=16).step(wprox.PotentialEnergy(half_square), rho, 1.0)
    assert bool(torch.isfinite(step.measure.points).all())


# --- failures ---


class FailsAfter(wprox.Functional):
    """½E|x|², but NaN from the given call that wants a gradient on."""

    def __init__(self, calls):
        self.calls = itertools.count()
        self.limit = calls

    def __call__(self, rho):
        value = rho.integrate(half_square)
        if torch.is_grad_enabled() and next(self.calls) >= self.limit:
            value = value * math.nan
        return value


def test_failure_names_step_iteration_and_remedy():
    with pytest.raises(
        wprox.StepFailedError, match=r"step 0, iteration 3: .* nan .* lower learning_rate \(now 0.005\)"
    ):
        fast().step(FailsAfter(3), wprox.Particles(cloud(100, 2)), 0.5)


def test_failure_at_the_start_is_not_blamed_on_training():
    infinite = wprox.PotentialEnergy(lambda x: x[:, 0] * math.inf)
    with pytest.raises(wprox.StepFailedError, match=r"step 0: .* before the first iteration; check that"):
        fast().step(infinite, wprox.Particles(cloud(100, 2).abs()), 0.5)


def test_failure_keeps_the_trajectory():
    # a step takes 20 gradients, and one more for its residual
    with pytest.raises(wprox.StepFailedError, match="step 2, iteration 5") as caught:
        wprox.jko(FailsAfter(47), fast(), wprox.Particles(cloud(100, 2)), step_size=0.5, n_steps=4)
    trajectory = caught.value.trajectory
    assert isinstance(trajectory, wprox.Trajectory)
    assert (len(trajectory.steps), len(trajectory.measures), len(trajectory.values)) == (2, 3, 3)


# --- Ctrl-C ---


class InterruptsAt(wprox.Functional):
    """½E|x|², with Ctrl-C at the given call."""

    def __init__(self, call):
        self.calls = itertools.count()
        self.call = call

    def __call__(self, rho):
        if next(self.calls) == self.call:
            raise KeyboardInterrupt
        return rho.integrate(half_square)


class Constant(wprox.Functional):
    """A functional with the same value at every measure."""

    def __init__(self, value):
        self.value = value

    def __call__(self, rho):
        return rho.points.new_tensor(self.value)


def test_interrupted_step_returns_its_best_state():
    rho = wprox.Particles(cloud(100, 2, loc=3.0))
    step = fast(iterations=500, learning_rate=0.05).step(InterruptsAt(200), rho, 1.0)
    assert step.interrupted
    assert not step.converged
    assert 100 < step.iterations < 200
    assert "interrupted at iteration" in step.message
    assert float(step.value) < 0.8 * float(half_square(rho.points).mean())
    assert torch.equal(step.measure.points, step.map(rho.points)[0])


def test_ctrl_c_before_the_first_iteration_of_fine_tuning_leaves_the_map_in_evaluation():
    map = wprox.SplineMap(2, dropout=0.5).double().eval()
    with pytest.raises(KeyboardInterrupt):
        fast().fine_tune(map, InterruptsAt(0), wprox.Particles(cloud(100, 2)))
    assert not any(module.training for module in map.modules())


def test_a_refinement_without_gain_names_the_iteration_of_the_best_state(monkeypatch):
    outcomes = iter([Outcome(1.0, 2.0, 30, 20, False), Outcome(1.0, 1.0, 7, 0, False), Outcome(0.9, 1.0, 7, 5, False)])
    monkeypatch.setattr("wprox.solvers.neural.neural.train", lambda *arguments: next(outcomes))
    monkeypatch.setattr("wprox.solvers.neural.neural.REFINEMENTS", 2)
    F = Constant(10.0)  # its value without the error of the scheme
    step = fast(map="ode").step(F, wprox.Particles(cloud(100, 2)), 1.0)
    assert step.message.startswith("best held-out objective at iteration 42 of 44; ")
    assert not step.converged
    assert step.map.steps == 12

    outcomes = iter([Outcome(1.0, 2.0, 30, 20, False), Outcome(1.0, 1.0, 7, 0, False), Outcome(1.0, 1.0, 7, 0, False)])
    step = fast(map="ode").step(F, wprox.Particles(cloud(100, 2)), 1.0)
    assert step.message.startswith("best held-out objective at iteration 20 of 44; ")

    outcomes = iter([Outcome(1.0, 2.0, 30, 20, False), Outcome(1.0, 1.0, 7, 0, False), Outcome(0.9, 1.0, 7, 5, False)])
    outcome = fast().fine_tune(wprox.ODEMap(2).double(), F, wprox.Particles(cloud(100, 2)))
    assert (outcome.initial, outcome.objective) == (2.0, 10.0)


def test_a_discretisation_is_judged_by_what_training_gains(monkeypatch):
    """Off by 3 where the objective fell by 50,000: the tolerance of 0.01 allows 5, and 0.01 where it fell by 50."""
    F, rho = Constant(10_003.0), wprox.Particles(cloud(100, 2))
    monkeypatch.setattr("wprox.solvers.neural.neural.train", lambda *arguments: Outcome(1e4, 6e4, 30, 20, False))
    step = fast(map="ode").step(F, rho, 1.0)
    assert step.converged
    assert step.map.steps == 3
    assert "iteration 20 of 30; the discretised objective is off by 3" in step.message
    assert not fast(map="ode", gap_tolerance=1e-3).step(F, rho, 1.0).converged
    monkeypatch.setattr("wprox.solvers.neural.neural.train", lambda *arguments: Outcome(1e4, 10_050.0, 30, 20, False))
    assert not fast(map="ode").step(F, rho, 1.0).converged


@pytest.mark.parametrize("call", [34, 31], ids=["in training", "before training"])
def test_interrupted_jko_returns_what_it_has(call):
    """Call 0 is the start; a step is 3 before, 20 iterations with 4 looks and 3 after, so step 1 begins at call 31."""
    rho = wprox.Particles(cloud(100, 2, loc=3.0))
    with pytest.warns(RuntimeWarning, match="interrupted after"):
        trajectory = wprox.jko(InterruptsAt(call), fast(), rho, step_size=0.5, n_steps=4)
    assert trajectory.interrupted
    assert len(trajectory.steps) == len(trajectory.measures) - 1 == len(trajectory.values) - 1
    assert len(trajectory) == (2 if call == 34 else 1)
    assert float(trajectory.values[-1]) <= float(trajectory.values[0])


# --- reproducibility ---


@pytest.mark.parametrize("options", [{}, {"dropout": 0.5}], ids=["plain", "dropout"])
def test_same_seed_same_result_and_global_generator_untouched(options):
    rho = wprox.Particles(cloud(300, 3, dtype=torch.float32))
    functional = wprox.PotentialEnergy(lambda x: x.cos().sum(-1))

    def run(seed):
        solver = fast(map="spline", map_options={"hidden": (16,), **options}, batch_size=64, seed=seed)
        return wprox.jko(functional, solver, rho, step_size=0.5, n_steps=2).final.points

    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = run(0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12345)
    assert torch.equal(run(0), first)
    assert not torch.equal(run(1), first)


def test_steps_draw_differently():
    solver = fast(map="spline")
    rho = wprox.Particles(cloud(100, 2))
    trajectory = wprox.jko(wprox.PotentialEnergy(half_square), solver, rho, n_steps=2)
    angles = [spline_of(step.map).maps[1].axes.angle for step in trajectory.steps]
    assert float(angles[0]) != float(angles[1])


# --- fine-tuning ---


def trained_blocks(n=600):
    x = cloud(n, 2)
    x = torch.stack((x[:, 0], x[:, 1] + x[:, 0].square()), dim=1).float()
    functional = wprox.KL(standard_normal(2, torch.float32))
    solver = wprox.NeuralProx(
        map_options={"hidden": (16,), "bins": 6, "frequencies": 0}, iterations=40, batch_size=256, check_every=10
    )
    trajectory = wprox.jko(functional, solver, wprox.Particles(x), step_size=0.5, n_steps=2)
    return solver, functional, trajectory


def test_fine_tuning_lowers_the_objective_in_place():
    solver, functional, trajectory = trained_blocks()
    before, start = trajectory.values[-1], trajectory.measures[0]
    map = trajectory.map
    outcome = solver.fine_tune(map, functional, start, held_out=start)
    with torch.no_grad():
        after = functional(start.push(map))
    assert float(after) < float(before) - 0.05
    assert float(after) == pytest.approx(outcome.objective, abs=1e-4)
    assert not map.training


def test_fine_tuning_is_reproducible_and_splits_off_a_held_out_part():
    results = []
    for _ in range(2):
        solver, functional, trajectory = trained_blocks()
        results.append(solver.fine_tune(trajectory.map, functional, trajectory.measures[0]).objective)
        torch.manual_seed(7)
    assert results[0] == results[1]


@pytest.mark.parametrize("budget", [2**18, 2**20, 2**29])
def test_fine_tuning_keeps_to_its_memory_budget(budget):
    solver, functional, trajectory = trained_blocks()
    map, start = trajectory.map, trajectory.measures[0]
    batches = []

    class Spy(wprox.Functional):
        def __call__(self, rho):
            if torch.is_grad_enabled():
                batches.append(len(rho))
            return functional(rho)

    solver.fine_tune(map, Spy(), start, held_out=start, memory_budget=budget)
    largest = max(batches[1:])  # the first call is the probe
    rows = torch.arange(largest)
    kept = largest * saved_bytes_per_row(map, lambda rows: functional(start.subset(rows).push(map)), rows)
    assert kept <= budget
    assert largest == 256 or kept > budget / 4  # and no smaller than it must be


def test_saved_bytes_are_those_that_autograd_keeps():
    weight = torch.ones(5, 7, requires_grad=True)
    x = torch.ones(10, 5)

    def forward(rows):
        hidden = x[rows] @ weight  # keeps x[rows], 5 floats a row
        return hidden.sin().sum()  # keeps hidden, 7 floats a row

    assert saved_bytes_per_row(torch.nn.Identity(), forward, torch.arange(10)) == pytest.approx(4 * (5 + 7), abs=0.5)


# --- arguments ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"map": "ode", "map_options": {"step": 2}}, TypeError, r"of 'ode' may hold \['hidden', .*got \['step'\]"),
        ({"map": "splines"}, ValueError, r"map must be one of \[.*'spline'.*\] or a factory.*got 'splines'"),
        ({"map": 3}, TypeError, "map must be a name or a factory"),
        ({"map": wprox.AffineMap(2)}, TypeError, "got a map, AffineMap; give its class, or lambda dim: map"),
        ({"map": wprox.AffineMap, "map_options": {"bins": 4}}, ValueError, "functools.partial"),
        ({"iterations": 0}, ValueError, "iterations must be at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"learning_rate": -1}, ValueError, "learning_rate must be positive"),
        ({"clip": 0}, ValueError, "clip must be positive"),
        ({"check_every": 0}, ValueError, "check_every must be at least 1"),
        ({"patience": 0}, ValueError, "patience must be at least 1"),
        ({"validation_fraction": 1.0}, ValueError, "validation_fraction must lie between 0 and 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        wprox.NeuralProx(**options)


def test_bad_factories_and_measures():
    rho, functional = wprox.Particles(cloud(100, 2)), wprox.PotentialEnergy(half_square)
    with pytest.raises(TypeError, match="must return a TransportMap, got Linear"):
        fast(map=lambda dim: torch.nn.Linear(dim, dim)).step(functional, rho, 0.5)
    with pytest.raises(ValueError, match="dimension 5 for points of dimension 2"):
        fast(map=lambda dim: wprox.AffineMap(5)).step(functional, rho, 0.5)
    with pytest.raises(TypeError, match=r"needs Particles.*got Gaussian.*to_particles"):
        fast().step(functional, standard_normal(2), 0.5)
    with pytest.raises(ValueError, match=r"step_size must be positive and finite, got -0\.5"):
        fast().step(functional, rho, -0.5)
    with pytest.raises(ValueError, match=r"cannot hold out 0.1 of 1 particle with mass"):
        fast().step(wprox.KL(standard_normal(2)), wprox.Particles(cloud(100, 2)[:1]), 0.5)
    with pytest.raises(ValueError, match="dimension 3, the measure in dimension 2"):
        fast().step(wprox.KL(standard_normal(3)), rho, 0.5)


def test_a_factory_may_give_the_same_map_for_every_step():
    """A step trains a copy of it, else the second would change what the first one did."""
    map, x = wprox.AffineMap(2).double(), cloud(100, 2, 3.0)
    trajectory = wprox.jko(
        wprox.PotentialEnergy(half_square), fast(map=lambda dim: map), wprox.Particles(x), step_size=1.0, n_steps=2
    )
    with torch.no_grad():
        assert torch.allclose(trajectory.map(x)[0], trajectory.final.points)
        assert torch.equal(map(x)[0], x)


def test_factories():
    assert isinstance(map_factory("spline", {"bins": 4})(2), wprox.SplineMap)
    assert map_factory(partial(wprox.SplineMap, bins=4))(2).config["bins"] == 4
