"""What steps of NeuralProx find of the exact decrease, in all units, and what they say of it."""

import itertools

import pytest
import torch
from test_neural_prox import AFFINE, Constant, cloud, fast, half_square, standard_normal

import wprox
from wprox.maps import RescaledMap
from wprox.solvers import Ending
from wprox.solvers.neural import affine_start, bound
from wprox.solvers.neural.task import Task

F64 = torch.float64


def draws(n, dim, seed=0, dtype=torch.float32):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def double_well(x):
    return (x.square() - 1).square().sum(-1) / 4


def decrease(functional, solver, particles, gamma):
    step = solver.step(functional, particles, gamma)
    return step, float(solver.value(functional, solver.prepare(particles)) - step.value)


# --- as exact as the particles allow


@pytest.mark.parametrize(("dim", "gamma"), [(1, 0.01), (2, 0.05), (8, 1.0)])
def test_a_step_of_few_particles_finds_the_exact_decrease(dim, gamma):
    """500 draws: F over them varies by a twentieth of the decrease, and a fifth is allowed."""
    start, wide = standard_normal(dim, torch.float32), wprox.Gaussian(torch.zeros(dim), 4 * torch.eye(dim))
    F = wprox.KL(wide)
    exact = float(F(start) - wprox.GaussianProx().step(F, start, gamma).value)
    solver = wprox.NeuralProx(iterations=100)
    step, found = decrease(F, solver, wprox.Particles(draws(500, dim)), gamma)
    assert found == pytest.approx(exact, rel=0.2)
    assert step.converged


@pytest.mark.parametrize(
    "functional",
    [wprox.PotentialEnergy(double_well), wprox.MMD(1 + 1.5 * draws(200, 2, seed=1)), wprox.KSD(standard_normal(2))],
    ids=["potential", "MMD", "KSD"],
)
def test_functionals_of_particles_fall_as_for_free_particles(functional):
    particles = wprox.Particles(1 + draws(200, 2))
    exact = float(functional(particles) - wprox.ParticleProx().step(functional, particles, 0.2).value)
    step, found = decrease(functional, wprox.NeuralProx(iterations=100), particles, 0.2)
    assert found == pytest.approx(exact, rel=0.05)
    assert step.residual == pytest.approx(wprox.Problem(functional, particles, 0.2).residual(step.measure))


def test_few_particles_are_fitted_by_few_parameters():
    """A shift by ½ of N(0, I) in eight dimensions: 200 draws tell nothing of the 36 numbers of a matrix."""
    x = draws(200, 8, dtype=F64) + torch.eye(8, dtype=F64)[0]
    step = wprox.NeuralProx(iterations=20).step(wprox.KL(standard_normal(8)), wprox.Particles(x), 1.0)
    jacobian = torch.autograd.functional.jacobian(lambda z: step.map(z[None])[0][0], torch.zeros(8, dtype=F64))
    assert torch.allclose(jacobian, jacobian[0, 0] * torch.eye(8, dtype=F64), atol=1e-6)
    assert float(step.map(x)[0].mean(0)[0]) == pytest.approx(float(x.mean(0)[0]) / 2, abs=0.05)


@pytest.mark.parametrize("gamma", [0.3, 10.0])
def test_the_affine_start_leaves_the_rest_to_the_network(gamma):
    """The best affine map of a banana in a steep well is all but singular; of x²/2 it is the step, whatever its γ."""
    x = draws(1000, 2)
    x[:, 1] += x[:, 0].square()
    F = wprox.PotentialEnergy(half_square if gamma > 1 else lambda x: (x**4).sum(-1) / 4 - x.square().sum(-1))
    steps = [
        solver.step(F, wprox.Particles(x), gamma) for solver in (wprox.NeuralProx(iterations=150), wprox.ParticleProx())
    ]
    found, exact = (float(F(step.measure) + step.transport_cost / (2 * gamma)) for step in steps)
    assert found <= (1.01 if gamma > 1 else 1.1) * exact


def test_a_little_entropy_does_not_squash_the_particles():
    """It is no match for a steep well: the best affine map all but makes a point of a banana."""
    x = draws(400, 2)
    x[:, 1] += x[:, 0].square()
    V = wprox.PotentialEnergy(lambda x: (x**4).sum(-1) / 4 - x.square().sum(-1))
    free = wprox.ParticleProx().step(V, wprox.Particles(x), 0.3)
    step = wprox.NeuralProx(iterations=100).step(V + 0.01 * wprox.Entropy(), wprox.Particles(x), 0.3)
    found, exact = (float(V(s.measure) + s.transport_cost / 0.6) for s in (step, free))
    assert found <= 1.1 * exact


def test_a_narrow_gaussian_is_reached_by_a_map_that_squashes():
    start, narrow = standard_normal(2), wprox.KL(wprox.Gaussian(torch.zeros(2), 1e-4 * torch.eye(2)))
    exact = wprox.GaussianProx().step(narrow, start, 0.1)
    step = wprox.NeuralProx(iterations=50).step(narrow, wprox.Particles(cloud(300, 2)), 0.1)
    assert float(step.transport_cost) == pytest.approx(float(exact.transport_cost), rel=0.01)
    assert float(step.measure.points.var()) == pytest.approx(float(exact.measure.covariance_matrix[0, 0]), rel=0.05)
    assert step.converged


def three_modes(x):
    return torch.logsumexp(torch.stack([-50 * (x - m).square().sum(-1) for m in (-3, 0, 3)]), 0)


@pytest.mark.parametrize("is_entropic", [True, False], ids=["KL", "potential"])
def test_a_minimum_that_is_not_the_lowest_is_not_said_to_be_the_step(is_entropic):
    """The best affine map brings all particles into the middle mode of three, which no network undoes."""
    F = wprox.KL(three_modes) if is_entropic else wprox.PotentialEnergy(lambda x: -three_modes(x))
    start = wprox.Particles(1.5 * draws(300, 1, seed=3))
    step = wprox.NeuralProx(iterations=100).step(F, start, 0.1)
    exact = wprox.ParticleProx().step(wprox.PotentialEnergy(lambda x: -three_modes(x)), start, 0.1)
    found, least = (float(step.value + step.transport_cost / 0.2) for step in (step, exact))
    assert found < least + 3 or not step.converged


@pytest.mark.parametrize("is_entropic", [True, False], ids=["KL", "potential"])
def test_particles_without_a_map_tell_what_is_astray(is_entropic):
    """All in the middle mode of three J is 10 and more, and the step, which keeps three, has 3."""
    F = wprox.KL(three_modes) if is_entropic else wprox.PotentialEnergy(lambda x: -three_modes(x))
    solver, start = wprox.NeuralProx(), wprox.Particles(1.5 * draws(300, 1, seed=3, dtype=F64))
    task = Task.of(wprox.Problem(F, solver.prepare(start), 0.1), True, 0.1, 300, torch.Generator())
    squash = wprox.AffineMap.from_matrix(torch.tensor([[0.1]], dtype=F64), [0.0])
    assert bound.ending_beside_free(task, squash, task.whole) is Ending.ASTRAY
    easy, stretch = (
        (wprox.KL(standard_normal(1)), 0.951) if is_entropic else (wprox.PotentialEnergy(half_square), 1 / 1.1)
    )
    task = Task.of(wprox.Problem(easy, solver.prepare(start), 0.1), True, 0.1, 300, torch.Generator())
    shrink = wprox.AffineMap.from_matrix(torch.tensor([[stretch]], dtype=F64), [0.0])
    assert bound.ending_beside_free(task, shrink, task.whole) is Ending.CONVERGED


@pytest.mark.parametrize("functional", [wprox.KL(standard_normal(2)), 0.3 * wprox.Entropy()], ids=str)
def test_the_bound_of_free_particles_is_above_the_step(functional):
    """For Gaussians the step is known: no particles without a map get below it, up to sampling."""
    x, gamma = cloud(400, 2, 1.0, 0.5), 0.5
    solver, start = wprox.NeuralProx(**AFFINE), wprox.Particles(x)
    step = solver.step(functional, start, gamma, held_out=start)
    problem = wprox.Problem(functional, solver.prepare(start), gamma)
    task = Task.of(problem, True, 0.1, 400, torch.Generator())
    least = task.energy * bound._bound(task, task.whole, task.at_rest(task.whole))
    assert least >= float(step.value + step.transport_cost / (2 * gamma)) - 1e-6


@pytest.mark.parametrize("functional", [wprox.KL(standard_normal(2, torch.float32)), wprox.Entropy()], ids=str)
def test_a_warm_start_is_no_worse_than_a_new_one(functional):
    start, ends = wprox.Particles(draws(300, 2, seed=3) + 2), []
    for warm in (True, False):
        steps = wprox.jko(functional, wprox.NeuralProx(iterations=20, warm_start=warm), start, 0.3, 2).steps
        assert all(step.converged for step in steps)
        ends.append(float(steps[-1].value))
    assert ends[0] <= ends[1] + 0.05


# --- and said


def test_where_nothing_is_gained_the_step_says_so():
    F, start = wprox.KL(standard_normal(2)), wprox.Particles(draws(200, 2, dtype=F64))
    with pytest.warns(RuntimeWarning, match="no gain is shown by these particles.*give more"):
        trajectory = wprox.jko(F, wprox.NeuralProx(iterations=20), start, 0.1, 1)
    assert trajectory.steps[0].ending is Ending.UNSHOWN
    assert not trajectory.steps[0].converged
    assert float(trajectory.values[1]) <= float(trajectory.values[0])


@pytest.mark.parametrize("map", [wprox.AffineMap, "spline"])
@pytest.mark.parametrize("functional", [wprox.PotentialEnergy(double_well), wprox.KL(standard_normal(2))])
def test_one_iteration_is_not_enough_to_have_converged(map, functional):
    step = wprox.NeuralProx(map, iterations=1).step(functional, wprox.Particles(2 + draws(200, 2, dtype=F64)), 0.5)
    if map is wprox.AffineMap or functional.needs_density(step.measure):
        assert step.ending is Ending.ITERATIONS
        assert "allow more of them" in step.message


@pytest.mark.parametrize("iterations", [20, 50, 75])
def test_few_iterations_that_gain_nothing_more_have_converged(iterations):
    """The start is exact for Gaussians, so that there is nothing left to fall."""
    solver = wprox.NeuralProx(iterations=iterations)
    assert solver.step(wprox.KL(standard_normal(2)), wprox.Particles(2 + draws(300, 2, dtype=F64)), 0.5).converged


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("functional", [wprox.KL(standard_normal(2)), wprox.Entropy()], ids=str)
def test_a_handful_of_particles_makes_a_step(functional, n):
    step = wprox.NeuralProx(iterations=20).step(functional, wprox.Particles(draws(n, 2, dtype=F64)), 0.1)
    assert bool(torch.isfinite(step.measure.points).all())
    assert step.ending in (Ending.UNSHOWN, Ending.CONVERGED, Ending.ITERATIONS)


def test_only_values_up_to_a_constant_are_said_to_be_so():
    solver, start = wprox.NeuralProx(iterations=1), wprox.Particles(draws(50, 2, dtype=F64))
    assert "constant" in solver.step(wprox.Entropy(), start, 0.1).message
    assert "constant" not in solver.step(wprox.PotentialEnergy(half_square), start, 0.1).message


@pytest.mark.parametrize("call", [1, 5, 30])
@pytest.mark.parametrize("functional", [wprox.KL(standard_normal(2)), wprox.PotentialEnergy(half_square)], ids=str)
def test_an_interruption_of_the_affine_start_ends_the_step(functional, call, monkeypatch):
    count, value = itertools.count(1), affine_start._Fit.value

    def interrupted(*given):
        if next(count) == call:
            raise KeyboardInterrupt
        return value(*given)

    monkeypatch.setattr(affine_start._Fit, "value", interrupted)
    start = wprox.Particles(2 + draws(100, 2, dtype=F64))
    step = wprox.NeuralProx(iterations=20).step(functional, start, 0.5)
    if next(count) > call:
        assert step.ending is Ending.INTERRUPTED
        assert step.iterations == 0
    solver = wprox.NeuralProx()
    assert float(step.value + step.transport_cost) <= float(solver.value(functional, solver.prepare(start))) + 1e-9


def test_a_map_that_cannot_follow_the_gradient_says_so():
    """The step of cos 3x moves particles to and fro, which an affine map does not."""
    F = wprox.PotentialEnergy(lambda x: (3 * x).cos().sum(-1))
    step = wprox.NeuralProx(**AFFINE).step(F, wprox.Particles(draws(200, 1, dtype=F64)), 0.1)
    assert step.ending in (Ending.UNFOLLOWED, Ending.ITERATIONS)
    assert not step.converged


def test_fine_tuning_that_gains_nothing_stops_half_way():
    solver = fast(iterations=80, patience=80)
    outcome = solver.fine_tune(wprox.AffineMap(2).double(), Constant(1.0), wprox.Particles(cloud(100, 2)))
    assert (outcome.iterations, outcome.best_iteration) == (40, 0)


# --- in all units


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e3, 1e9])
@pytest.mark.parametrize("map", [wprox.AffineMap, "spline"])
def test_a_step_is_the_same_in_all_units(map, scale):
    x = draws(100, 2, dtype=F64) * torch.tensor([0.5, 1.0], dtype=F64) + 2
    solver = wprox.NeuralProx(map, iterations=10)

    def points(s):
        eye = s**2 * torch.eye(2, dtype=F64)
        law = wprox.KL(wprox.Gaussian(torch.zeros(2, dtype=F64), eye))
        well = wprox.PotentialEnergy(lambda x: s**2 * double_well(x / s))
        start = wprox.Particles(s * x)
        return [solver.step(F, start, g).measure.points / s for F, g in ((law, s**2), (well, 0.3))]

    for found, expected in zip(points(scale), points(1.0), strict=True):
        assert float((expected - x).abs().max()) > 0.01
        assert torch.allclose(found, expected, rtol=0, atol=1e-4)


def test_an_affine_map_in_other_units_is_an_affine_map():
    map = wprox.AffineMap.from_matrix(torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double(), [0.3, -0.2])
    loc, x = torch.tensor([3.0, -1.0]).double(), draws(5, 2, dtype=F64)
    rescaled = RescaledMap(map, loc, 10.0)
    for one, other in zip(rescaled(x), map.rescaled(loc, 10.0)(x), strict=True):
        assert torch.allclose(one, other)
    assert torch.allclose(rescaled.inverse(rescaled(x)[0]), x)
    with pytest.raises(ValueError, match=r"loc must have shape \(2,\)"):
        RescaledMap(map, torch.zeros(3))
    with pytest.raises(ValueError, match="scale must be positive"):
        RescaledMap(map, loc, 0.0)


def test_a_warm_start_goes_on_in_the_units_of_the_particles():
    F, x = wprox.PotentialEnergy(half_square), 1e3 * draws(100, 2, dtype=F64) + 2e3
    solver = wprox.NeuralProx(**AFFINE, warm_start=True)
    first = solver.step(F, wprox.Particles(x), 1.0)
    again = wprox.NeuralProx(wprox.AffineMap, iterations=1, learning_rate=1e-9, warm_start=True)
    second = again.step(F, wprox.Particles(x), 1.0, previous=first)
    assert torch.allclose(second.measure.points, first.measure.points, atol=1e-3)
