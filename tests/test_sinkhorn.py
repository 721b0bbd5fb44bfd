"""SinkhornProx: equations with exact solutions, walls, robustness, debiasing and bad input."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wprox
from wprox.solvers.grid.gibbs import GaussianKernel

SQUARE = [(0.0, 1.0), (0.0, 1.0)]


def gaussian(variance, shape, half_width=1.0):
    return wprox.Grid.from_density(
        lambda x: torch.exp(-x.square().sum(-1) / (2 * variance)), shape, [(-half_width, half_width)] * len(shape)
    )


def bump(n=24, dtype=torch.float64):
    return wprox.Grid.from_density(
        lambda x: torch.exp(-30 * (x - x.new_tensor([0.4, 0.55])).square().sum(-1)), (n, n), SQUARE, dtype=dtype
    )


def distance(a, b):
    return float((a.weights - b.weights).abs().sum())


def barenblatt(x, t):
    return (1 / math.sqrt(8 * math.pi) - (x - 0.5).square().sum(-1) / (16 * math.sqrt(t))).clamp(min=0) / math.sqrt(t)


def porous_medium(n, n_steps, **options):
    initial = wprox.Grid.from_density(lambda x: barenblatt(x, 1e-4), (n, n), SQUARE)
    exact = wprox.Grid.from_density(lambda x: barenblatt(x, 1.1e-3), (n, n), SQUARE)
    solver = wprox.SinkhornProx(**options)
    trajectory = wprox.jko(wprox.PorousMedium(2.0), solver, initial, 1e-3 / n_steps, n_steps)
    assert all(step.converged for step in trajectory.steps)
    return distance(trajectory.final, exact), trajectory


# --- exact solutions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [96, 128])
def test_barenblatt_within_the_stated_error(n):
    error, _ = porous_medium(n, 10, blur=1.2 / 128, debias=None, tol=1e-5)
    assert error < 0.022


def test_barenblatt_error_is_of_first_order_in_the_step():
    errors = [porous_medium(96, n_steps, blur=math.sqrt(1e-3 / n_steps))[0] for n_steps in (5, 10, 20)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(0.8 < order < 1.2 for order in orders), (errors, orders)


@pytest.mark.parametrize("shape", [(200,), (64, 64), (32, 32, 32)])
def test_heat_equation_steps_of_a_gaussian(shape):
    gamma, variance = 2e-3, 0.02
    rho, solver, previous = gaussian(variance, shape), wprox.SinkhornProx(), None
    for _ in range(3):
        root = (math.sqrt(variance) + math.sqrt(variance + 4 * gamma)) / 2  # σ' = σ + γ/σ', the exact proximal step
        variance = root**2
        previous = solver.step(wprox.Entropy(), rho, gamma, previous=previous)
        rho = previous.measure
        assert previous.converged
    assert distance(rho, gaussian(variance, shape)) < 0.02


def double_well(x):
    return 2 * (x[:, 0].square() - 1).square() + x[:, 1].square()


def bent_valley(x):
    return 2 * (x[:, 0].square() - 1).square() + 4 * (x[:, 1] - 0.6 * x[:, 0].square() + 0.4).square()


@pytest.mark.parametrize("potential", [double_well, bent_valley])
def test_fokker_planck_reaches_gibbs_and_kl_decreases(potential):
    bounds, shape = [(-2.2, 2.2), (-2.0, 2.4)], (64, 64)
    initial = wprox.Grid.from_density(
        lambda x: torch.exp(-10 * (x - x.new_tensor([1.2, 0.9])).square().sum(-1)), shape, bounds
    )
    gibbs = wprox.Grid.from_density(lambda x: torch.exp(-potential(x)), shape, bounds)
    functional = wprox.PotentialEnergy(potential) + wprox.Entropy()
    solver = wprox.SinkhornProx(blur=1.5 * initial.cell_widths[0])
    trajectory = wprox.jko(functional, solver, initial, lambda k: 0.02 * 2 ** (k // 4), 34)
    assert distance(trajectory.final, gibbs) < 1e-2
    divergence = torch.stack(trajectory.values) - functional(gibbs)
    assert bool((divergence.diff() < 0).all())
    assert float(divergence[-1]) < 1e-3


def test_transport_cost_of_a_shift():
    """A strong linear potential with the entropy of the start held moves mass by γ|∇V|: W₂² is its square."""
    rho = gaussian(0.02, (128,), half_width=2.0)
    step = wprox.SinkhornProx(blur=0.05).step(wprox.PotentialEnergy(lambda x: -3 * x[:, 0]), rho, 0.1)
    assert float(step.measure.integrate(lambda x: x[:, 0])) == pytest.approx(0.3, abs=2e-3)
    assert float(step.transport_cost) == pytest.approx(0.09, rel=0.03)


def test_transport_cost_vanishes_at_a_fixed_point():
    rho = gaussian(0.05, (40, 40))
    target = wprox.KL(lambda x: -x.square().sum(-1) / (2 * 0.05))
    step = wprox.SinkhornProx(tol=1e-9, debias="sinkhorn").step(target, rho, 0.05)
    assert float(step.transport_cost) < 1e-6


# --- bias -----------------------------------------------------------------------------------------------------------


def test_debiasing_lowers_the_error_in_order():
    """The Gibbs measure is the minimiser: how far one step moves it is the bias."""
    variance, blur = 0.05, 0.15
    rho = gaussian(variance, (48, 48))
    target = wprox.KL(lambda x: -x.square().sum(-1) / (2 * variance))
    moved = {
        debias: distance(wprox.SinkhornProx(blur=blur, debias=debias, tol=1e-8).step(target, rho, 0.02).measure, rho)
        for debias in (None, "entropy", "sinkhorn")
    }
    assert moved["entropy"] < moved[None] / 2
    assert moved["sinkhorn"] < 1e-5


def test_debiased_step_of_a_gaussian_is_the_exact_one():
    rho = gaussian(0.02, (256,))
    exact = gaussian(((math.sqrt(0.02) + math.sqrt(0.028)) / 2) ** 2, (256,))
    errors = [
        distance(wprox.SinkhornProx(blur=0.04, debias=debias).step(wprox.Entropy(), rho, 2e-3).measure, exact)
        for debias in (None, "entropy")
    ]
    assert errors[1] < errors[0] / 10


# --- robustness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cells", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("gamma", [1e-5, 1e-3, 1e-1, 1e1])
def test_nothing_is_nan_for_any_blur_and_step(cells, gamma, dtype):
    rho = bump(16, dtype)
    functional = wprox.PorousMedium(2.0) + wprox.PotentialEnergy(lambda x: 5 * x.square().sum(-1))
    for debias in (None, "entropy", "sinkhorn"):
        solver = wprox.SinkhornProx(blur=cells / 16, debias=debias, iterations=120)
        step = solver.step(functional, rho, gamma)
        assert step.measure.dtype == step.value.dtype == step.transport_cost.dtype == dtype
        assert bool(torch.isfinite(step.measure.weights).all())
        assert math.isfinite(float(step.value))
        assert math.isfinite(float(step.transport_cost))
        assert float(step.measure.weights.sum()) == pytest.approx(1, abs=1e-6)
        assert step.converged or "tol is" in step.message or "needs a blur of at most" in step.message


def test_log_domain_is_the_same_iteration():
    rho, functional = bump(), wprox.PorousMedium(2.0)
    kernel = wprox.SinkhornProx(blur=0.05).step(functional, rho, 1e-3)
    log = wprox.SinkhornProx(blur=0.05, log_domain=True).step(functional, rho, 1e-3)
    assert log.state.log_domain
    assert not kernel.state.log_domain
    assert log.iterations == kernel.iterations
    assert distance(log.measure, kernel.measure) < 1e-10


def test_underflow_is_noticed_and_goes_to_the_log_domain():
    """Mass has to move by 60 blurs, where the kernel is e^(−1800)."""
    rho = wprox.Grid.from_density(lambda x: torch.exp(-((x[:, 0] - 0.2) ** 2) / 2e-3), 100, [(0.0, 1.0)])
    functional = wprox.PotentialEnergy(lambda x: 50 * (x[:, 0] - 0.8).square()) + wprox.Entropy()
    step = wprox.SinkhornProx(blur=0.01).step(functional, rho, 10.0)
    assert step.converged
    assert step.state.log_domain
    assert "log domain" in step.message
    gibbs = wprox.Grid.from_density(lambda x: torch.exp(-50 * (x[:, 0] - 0.8).square()), 100, [(0.0, 1.0)])
    assert distance(step.measure, gibbs) < 1e-2


def check_products(kernel, log_kernel, smooth, span, empty):
    """Products of a smooth field, a rough one and one with gaps, against log K; whether it has gaps, what is lost."""
    noise = torch.rand(len(smooth), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gaps = torch.where(empty | (noise < 0.3), -math.inf, smooth)
    for field in (smooth, span * noise, gaps):
        exact = torch.logsumexp(log_kernel + field, 1)
        torch.testing.assert_close(kernel.log_apply(field), exact, rtol=1e-11, atol=1e-9)
        product, lost = kernel.product(field)
        torch.testing.assert_close(product[~lost], exact[~lost], rtol=1e-11, atol=1e-9)
        assert bool((product >= exact - 1e-9 * (1 + exact.abs())).all())  # an upper bound elsewhere
        yield field is gaps, lost


@pytest.mark.parametrize("span", [1.0, 600.0, 3e4])
@pytest.mark.parametrize("cells", [0.5, 1.0, 4.0])
def test_products_are_those_of_the_dense_kernel(cells, span):
    """Of a smooth and a rough field, one with gaps; what the kernel domain does not call lost has all its digits."""
    grid = wprox.Grid(torch.ones(40, 30, dtype=torch.float64), SQUARE)
    blur = cells / 40
    log_kernel = -(grid.points[:, None] - grid.points).square().sum(-1) / (2 * blur**2)
    smooth = -span * grid.points.square().sum(-1)
    has_gaps = grid.points[:, 0] > 0.5
    for gaps, lost in check_products(GaussianKernel(grid, blur), log_kernel, smooth, span, has_gaps):
        assert not bool(lost.any()) or span > 600 or cells < 1 or gaps


def test_steep_potentials_stay_in_the_kernel_domain():
    rho = wprox.Grid.from_density(lambda x: torch.exp(-9 * x.square().sum(-1)), (64, 64), SQUARE)
    solver = {flag: wprox.SinkhornProx(blur=1 / 128, log_domain=flag) for flag in (False, True)}
    kernel, log = (solver[flag].step(wprox.Entropy(), rho, 0.004) for flag in (False, True))
    assert kernel.converged
    assert not kernel.state.log_domain
    assert distance(kernel.measure, log.measure) < 1e-5


def test_acceleration_saves_iterations_and_changes_nothing():
    rho, functional = bump(32), wprox.PorousMedium(2.0)
    plain = wprox.SinkhornProx(memory=0, debias=None, tol=1e-8, iterations=20000).step(functional, rho, 1e-3)
    fast = wprox.SinkhornProx(debias=None, tol=1e-8).step(functional, rho, 1e-3)
    assert plain.converged
    assert fast.converged
    assert fast.iterations < plain.iterations / 2
    assert distance(plain.measure, fast.measure) < 1e-5


def test_warm_start_saves_iterations():
    rho, functional, solver = bump(32), wprox.Entropy(), wprox.SinkhornProx()
    first = solver.step(functional, rho, 1e-3)
    warm = solver.step(functional, first.measure, 1e-3, previous=first)
    cold = solver.step(functional, first.measure, 1e-3)
    assert warm.index == 1
    assert cold.index == 0
    assert warm.iterations <= cold.iterations
    assert distance(warm.measure, cold.measure) < 1e-4


def test_steps_on_another_grid_start_afresh():
    solver = wprox.SinkhornProx()
    first = solver.step(wprox.Entropy(), bump(16), 1e-3)
    other = solver.step(wprox.Entropy(), bump(20), 1e-3, previous=first)
    assert other.converged
    assert other.measure.shape == (20, 20)


def test_unrelated_previous_step_changes_nothing():
    solver = wprox.SinkhornProx()
    other = wprox.Grid.from_density(lambda x: (x[:, 0] > 0.8).double(), (24, 24), SQUARE)
    alone = solver.step(wprox.Entropy(), bump(), 1e-3)
    previous = solver.step(wprox.PotentialEnergy(lambda x: -x[:, 0]), other, 1e-3)
    after = solver.step(wprox.Entropy(), bump(), 1e-3, previous=previous)
    assert float(after.transport_cost) == pytest.approx(float(alone.transport_cost), rel=1e-3)
    assert distance(after.measure, alone.measure) < 1e-4


@pytest.mark.parametrize("debias", [None, "entropy", "sinkhorn"])
def test_negative_entropy_is_solved_or_refused(debias):
    """With γ|e| = 0.6 blur², past what a debiased step can be convex for."""
    functional = -0.6 / (24**2 * 0.01) * wprox.Entropy() + wprox.PotentialEnergy(lambda x: x.square().sum(-1))
    if debias is None:
        assert wprox.SinkhornProx(debias=None).step(functional, bump(), 0.01).converged
    else:
        with pytest.raises(ValueError, match=r"concave part.* γ < blur²/0\.208.*debias=None, which doubles"):
            wprox.SinkhornProx(debias=debias).step(functional, bump(), 0.01)


def test_unconverged_step_says_so():
    step = wprox.SinkhornProx(iterations=2).step(wprox.PorousMedium(2.0), bump(), 1e-2)
    assert not step.converged
    assert step.state.violation > 1e-6
    assert "raise iterations" in step.message
    assert "tol is 1e-06" in step.message


@settings(max_examples=15, deadline=None)
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    log_gamma=st.floats(-4, 0),
    m=st.sampled_from([0.5, 2.0, 3.0]),
)
def test_mass_is_kept_on_any_grid(shape, seed, log_gamma, m):
    mass = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rho = wprox.Grid(mass + 1e-3, [(0.0, 1.0)] * len(shape))
    step = wprox.SinkhornProx(blur=0.3, iterations=200).step(wprox.PorousMedium(m), rho, 10**log_gamma)
    assert abs(float(step.measure.weights.sum()) - 1) < 1e-10
    assert bool((step.measure.weights >= 0).all())
    assert step.measure.shape == tuple(shape)


@pytest.mark.parametrize("debias", [None, "entropy", "sinkhorn"])
def test_a_constant_in_the_potential_changes_nothing(debias):
    solver = wprox.SinkhornProx(debias=debias)
    a, b = (
        solver.step(wprox.PotentialEnergy(lambda x, c=c: c + x[:, 0]) + wprox.Entropy(), bump(), 0.05)
        for c in (0.0, 1e6)
    )
    assert a.converged
    assert b.converged
    assert distance(a.measure, b.measure) < 1e-6


@pytest.mark.parametrize("height", [1e6, 1e306])
def test_huge_potential_is_solved_or_refused(height):
    step = wprox.SinkhornProx(iterations=200).step(wprox.PotentialEnergy(lambda x: height * x[:, 0]), bump(), 10.0)
    assert bool(torch.isfinite(step.measure.weights).all())
    assert step.converged or "lower step_size" in step.message or "raise iterations" in step.message


SHUT = wprox.PotentialEnergy(lambda x: torch.where(x[:, 0] > 0.7, math.inf, 0.0))


@pytest.mark.parametrize(
    "functional",
    [
        wprox.Entropy(),
        wprox.PorousMedium(0.5),
        wprox.PorousMedium(2.0),
        wprox.PorousMedium(2.0) + wprox.PorousMedium(3.0),
        wprox.InternalEnergy(lambda r: r**1.5),
        wprox.Congestion(4.0),
        wprox.DensityBounds(lambda x: 0.1 * (x[:, 0] < 0.7), 5.0),
        wprox.InteractionEnergy(lambda z: z.square().sum(-1)),
    ],
)
def test_potential_may_be_infinite_in_places(functional):
    functional = SHUT + functional
    step = wprox.SinkhornProx().step(functional, bump(), 1e-2)
    assert step.converged
    assert math.isfinite(float(step.value))
    assert float(step.measure.integrate(lambda x: (x[:, 0] > 0.7).double())) == 0


# --- interactions ---------------------------------------------------------------------------------------------------


def attraction(z):
    return -torch.exp(-z.square().sum(-1) / (2 * 0.2**2))


class HandWrittenInteraction(wprox.Functional):
    def __call__(self, rho):
        return rho.integrate_pairs(attraction) / 2


def test_interaction_is_that_of_its_value():
    solver = wprox.SinkhornProx(blur=0.05, tol=1e-7)
    steps = [
        solver.step(f + 0.1 * wprox.Entropy(), bump(), 0.05)
        for f in (wprox.InteractionEnergy(attraction), HandWrittenInteraction())
    ]
    assert all(step.converged for step in steps)
    assert distance(steps[0].measure, steps[1].measure) < 1e-5


def test_semi_implicit_agrees_to_first_order():
    functional = wprox.InteractionEnergy(attraction) + 0.1 * wprox.Entropy()
    gaps = []
    for gamma in (0.04, 0.02):
        a, b = (
            wprox.SinkhornProx(blur=0.05, semi_implicit=flag, tol=1e-8).step(functional, bump(), gamma).measure
            for flag in (False, True)
        )
        gaps.append(distance(a, b))
    assert 0 < gaps[1] < gaps[0] / 2.5  # each step differs by O(γ²)


class SquaredMoment(wprox.Functional):
    def __call__(self, rho):
        return 10 * (rho.integrate(lambda x: x[:, 0]) - 0.2).square()


@pytest.mark.parametrize("gamma", [0.02, 0.1, 1.0, 10.0])
def test_linearisation_settles_on_strongly_coupled_convex_functionals(gamma):
    functional = SquaredMoment() + 0.1 * wprox.Entropy()
    step = wprox.SinkhornProx(iterations=800).step(functional, bump(), gamma)
    assert step.converged, step.message
    assert float(step.value) < float(functional(bump()))


def test_linearisation_that_has_not_settled_says_so():
    functional = SquaredMoment() + 0.1 * wprox.Entropy()
    step = wprox.SinkhornProx(iterations=30).step(functional, bump(), 0.1)
    assert not step.converged
    assert "linearisation does not settle" in step.message
    assert float(step.value) < float(functional(bump()))


class Squares(wprox.Functional):
    """Three squares of integrals that compete."""

    def __call__(self, rho):
        waves = (lambda x: x[:, 0]), (lambda x: x[:, 0].square()), (lambda x: torch.sin(6 * x[:, 0]))
        return sum((rho.integrate(f) - t).square() for f, t in zip(waves, (0.2, 0.4, 0.9), strict=True))


@pytest.mark.parametrize("gamma", [0.02, 0.1, 1.0])
def test_stiff_squares_that_compete_settle(gamma):
    functional = 10 / gamma * Squares() + 0.1 * wprox.Entropy()
    step, finer = (wprox.SinkhornProx(tol=tol).step(functional, bump(), gamma) for tol in (1e-6, 1e-7))
    assert step.converged, step.message
    assert step.iterations <= 1000
    # the objective, whose minimum is flat, is determined better than its minimiser
    objective, lower = (float(s.value + s.transport_cost / (2 * gamma)) for s in (step, finer))
    assert objective == pytest.approx(lower, rel=1e-5)


def test_step_that_does_not_settle_is_the_last_that_lowered_the_objective():
    """A state from which moves are short for want of relaxation is not near a solution, and must not be returned."""
    functional = 500 * Squares() + 0.1 * wprox.Entropy()
    short, long = (wprox.SinkhornProx(iterations=n).step(functional, bump(), 0.02) for n in (500, 1000))
    assert not short.converged
    assert "linearisation does not settle" in short.message
    assert float(short.value) < 0.4 * float(functional(bump()))
    assert float(long.value) <= float(short.value) * (1 + 1e-3)


class Wave(wprox.Functional):
    """A sine of squared integrals: moves cross its humps, and would end on one where only slopes judged them."""

    def __init__(self, height):
        self.height = height

    def __call__(self, rho):
        waves = (lambda x: x[:, 0] - 0.1), (lambda x: torch.sin(9 * x[:, 0])), (lambda x: torch.cos(17 * x[:, 0]))
        z, w, y = (rho.integrate(f) for f in waves)
        return self.height * torch.sin(5 * (z.square() + 0.3 * w.square() + 0.2 * y.square() - z * w))


@pytest.mark.parametrize("height", [50.0, 200.0])
def test_moves_that_end_on_a_hump_are_undone(height):
    functional = Wave(height) + 0.1 * wprox.Entropy()
    rho = wprox.Grid.from_density(lambda x: torch.exp(-200 * (x[:, 0] - 0.3).square()), 24, [(0.0, 1.0)])
    step = wprox.SinkhornProx(iterations=400).step(functional, rho, 0.02)  # whether it settles hangs on rounding
    assert float(step.value + step.transport_cost / 0.04) < -0.5 * height  # the least value of the sine is −1
    assert float(functional(rho)) > 0


def test_steep_interaction_ends_without_nan():
    functional = wprox.InteractionEnergy(lambda z: -50 * torch.exp(-z.square().sum(-1) / (2 * 0.1**2)))
    step = wprox.SinkhornProx(iterations=150).step(functional + 0.05 * wprox.PorousMedium(2.0), bump(), 1.0)
    assert bool(torch.isfinite(step.measure.weights).all())
    assert step.converged or "raise iterations" in step.message


# --- bad input ------------------------------------------------------------------------------------------------------


def test_blur_far_under_a_cell_warns():
    with pytest.warns(RuntimeWarning, match=r"0\.1 of a cell.*Set blur to about a cell, 0\.0417"):
        wprox.SinkhornProx(blur=0.1 / 24, iterations=3).step(wprox.Entropy(), bump(), 1e-3)


def test_blur_of_a_cell_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert wprox.SinkhornProx().step(wprox.Entropy(), bump(), 1e-3).state.blur == pytest.approx(1 / 24)


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
def test_step_size_must_be_positive(gamma):
    with pytest.raises(ValueError, match="step_size must be positive"):
        wprox.SinkhornProx().step(wprox.Entropy(), bump(), gamma)


def test_other_measures_are_refused_with_the_way_out():
    rho = wprox.Particles(torch.zeros(3, 2))
    for call in (lambda s: s.step(wprox.Entropy(), rho, 0.1), lambda s: s.prepare(rho)):
        with pytest.raises(TypeError, match=r"needs a Grid, got Particles.*from_particles"):
            call(wprox.SinkhornProx())


@pytest.mark.parametrize(
    ("functional", "message"),
    [
        (wprox.Congestion(0.9), "upper bound on the density.*hold a mass of 0.9"),
        (SHUT + wprox.DensityBounds(0.1, 5.0), "at 168 cells where the lower bound on the density is positive"),
        (SHUT + wprox.Congestion(1.2), "upper bound on the density.*hold a mass of 0.85"),
        (
            SHUT + wprox.PotentialEnergy(lambda x: torch.where(x[:, 0] < 0.7, math.inf, 0.0)),
            r"0 where a potential is \+∞.* hold a mass of 0 ",
        ),
        (wprox.DensityBounds(1.1, 3.0), "lower bound on the density.*demand a mass of 1.1"),
        (-1.0 * wprox.Congestion(3.0), "cannot be multiplied by -1"),
        (wprox.PotentialEnergy(lambda x: x[:, 0] * math.nan), "NaN"),
        (wprox.PotentialEnergy(lambda x: x), r"one value a point, \(576,\)"),
        (wprox.PotentialEnergy(lambda x: torch.full_like(x[:, 0], math.inf)), "at every cell centre"),
        (wprox.Entropy() - 3 * wprox.Entropy(), "concave part"),
        (wprox.KL(wprox.Gaussian(torch.zeros(3), torch.eye(3))), "dimension 3, the measure in dimension 2"),
    ],
)
def test_functionals_that_cannot_be_solved(functional, message):
    with pytest.raises(ValueError, match=message):
        wprox.SinkhornProx().step(functional, bump(), 0.1)


def test_a_function_is_not_a_functional():
    with pytest.raises(TypeError, match=r"must be a wprox\.Functional, got function"):
        wprox.SinkhornProx().step(lambda rho: rho.weights.sum(), bump(), 0.1)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"blur": 0.0}, "blur must be positive"),
        ({"blur": -1.0}, "blur must be positive"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"memory": -1}, "memory must be at least 0"),
        ({"heat_steps": 0}, "heat_steps must be at least 1"),
        ({"debias": "janati"}, "debias must be one of"),
    ],
)
def test_options_are_checked(options, error):
    with pytest.raises(ValueError, match=error):
        wprox.SinkhornProx(**options)


def test_a_functional_that_changes_where_its_derivative_is_zero_is_told():
    """Cut off from autograd in the masses, but for a constant that carries a graph."""

    class Cut(wprox.Functional):
        def __call__(self, rho):
            return rho.weights.detach() @ rho.points[:, 0] + 0.0 * rho.weights.sum()

    drift = wprox.PotentialEnergy(lambda x: x[:, 0])
    with pytest.warns(RuntimeWarning, match="derivative in the masses is 0 everywhere"):
        wprox.SinkhornProx().step(Cut() + drift, bump(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wprox.SinkhornProx().step(wprox.PotentialEnergy(lambda x: x[:, 0]) + Constant(), bump(), 0.1)


class Constant(wprox.Functional):
    def __call__(self, rho):
        return 3 * rho.weights.sum()


def test_the_functional_is_evaluated_once_at_the_start():
    seen = []

    class Counted(wprox.Functional):
        def __call__(self, rho):
            if not torch.is_grad_enabled():
                seen.append(rho.weights)
            return rho.integrate(lambda x: x[:, 0]) ** 2

    rho = bump()
    wprox.SinkhornProx().step(Counted() + wprox.Entropy(), rho, 0.01)
    assert sum(torch.equal(weights, rho.weights) for weights in seen) == 1


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_step_that_does_not_converge_says_what_it_costs(iterations):
    rho = bump()
    step = wprox.SinkhornProx(iterations=iterations).step(wprox.PorousMedium(2.0), rho, 1e-2)
    assert not step.converged
    assert float(step.transport_cost) >= float(wprox.metrics.w2(rho, step.measure)) ** 2 * (1 - 1e-9)
    assert float(step.transport_cost) > 0


@pytest.mark.parametrize("gamma", [1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("debias", [None, "entropy", "sinkhorn"])
def test_the_transport_cost_of_steps_is_a_bound_and_not_far_from_w2(gamma, debias):
    rho = bump(10)
    functional = wprox.PotentialEnergy(lambda x: 4 * (x[:, 1] - x[:, 0] ** 2) ** 2) + 0.1 * wprox.Entropy()
    step = wprox.SinkhornProx(debias=debias).step(functional, rho, gamma)
    exact = float(wprox.metrics.w2(rho, step.measure)) ** 2
    assert exact * (1 - 1e-9) <= float(step.transport_cost) <= 2 * exact
