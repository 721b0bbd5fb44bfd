"""Quantiles and QuantileProx: the measure, its steps, and known solutions on the line."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

import wprox

relaxed = settings(deadline=None, max_examples=50)  # the first call of a kind is slow

NORMAL = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())


def standard_deviation(rho):
    mean = rho.weights @ rho.nodes
    return float((rho.weights @ (rho.nodes - mean).square()).sqrt())


def l1_distance(rho, density, low, high, points=400_001):
    """∫ |ρ − density| dx on a fine grid, with the piecewise constant density of ρ."""
    x = torch.linspace(low, high, points, dtype=torch.float64)
    return float(torch.trapezoid((rho.log_prob(x).exp() - density(x)).abs(), x))


def normal_quantiles(loc, scale, n):
    return wprox.Quantiles.from_icdf(lambda u: loc + scale * NORMAL.icdf(u), n)


def half_square(x):
    return 0.5 * x[:, 0].square()


increasing = st.lists(st.floats(0.01, 3.0), min_size=2, max_size=40).map(
    lambda gaps: torch.tensor(gaps, dtype=torch.float64).cumsum(0)
)

# --- the measure ---------------------------------------------------------------------------------------------------


@relaxed
@given(increasing)
def test_mass_is_one_and_density_is_mass_over_spacing(nodes):
    rho = wprox.Quantiles(nodes)
    assert rho.weights.shape == (len(nodes),)
    assert float(rho.weights.sum()) == pytest.approx(1)
    assert float(rho.density @ rho.spacing) == pytest.approx(1)
    assert float(rho.weights @ rho.log_density()) == pytest.approx(float(rho.density.log().mean()))


@relaxed
@given(increasing, st.floats(-3, 3), st.floats(0.1, 3))
def test_w2_of_a_translation_and_a_dilation(nodes, shift, factor):
    rho = wprox.Quantiles(nodes)
    w2 = wprox.metrics.wasserstein_1d
    assert float(w2(rho, rho.push(lambda x: x + shift))) == pytest.approx(abs(shift), abs=1e-12)
    assert float(w2(rho, rho.push(lambda x: factor * x))) == pytest.approx(
        abs(factor - 1) * math.sqrt(float(rho.integrate(lambda x: x[:, 0].square()))), abs=1e-12
    )


@relaxed
@given(increasing)
def test_score_is_the_gradient_of_the_mean_log_density(nodes):
    nodes = nodes.clone().requires_grad_()
    rho = wprox.Quantiles(nodes)
    (gradient,) = torch.autograd.grad(rho.mean_log_density(), nodes)
    assert torch.allclose(rho.score()[:, 0], gradient / rho.weights)


@pytest.mark.parametrize("n", [100, 1000, 10_000])
def test_normal_moments_converge(n):
    rho = normal_quantiles(3.0, 0.2, n)
    assert float(rho.integrate(lambda x: x[:, 0])) == pytest.approx(3, abs=1e-12)
    assert standard_deviation(rho) == pytest.approx(0.2, abs=0.02 / n)
    entropy = -0.5 * (1 + math.log(2 * math.pi * 0.04))
    assert float(wprox.Entropy()(rho)) == pytest.approx(entropy, abs=2 / n)


def test_from_icdf_of_a_bounded_law_uses_its_ends():
    rho = wprox.Quantiles.from_icdf(lambda u: 2 * u - 1, 11)
    assert rho.nodes[[0, -1]].tolist() == [-1, 1]
    assert torch.allclose(rho.density, torch.full((10,), 0.5, dtype=torch.float64))


def test_from_samples_are_the_linear_quantiles_of_numpy():
    x = torch.randn(501, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rho = wprox.Quantiles.from_samples(x, 21)
    assert torch.allclose(rho.nodes, torch.quantile(x, torch.linspace(0, 1, 21, dtype=torch.float64)))
    assert torch.equal(rho.nodes, wprox.Quantiles.from_samples(x[:, None], 21).nodes)


def test_from_samples_with_weights_follows_them():
    x = torch.linspace(0, 1, 2001, dtype=torch.float64)
    weights = 2 * x / (2 * x).sum()  # density 2x: quantile function √u
    rho = wprox.Quantiles.from_samples(x, 5, weights=weights)
    assert torch.allclose(rho.nodes[1:], torch.linspace(0, 1, 5, dtype=torch.float64)[1:].sqrt(), atol=1e-3)


def test_draws_follow_the_quantile_function():
    rho = normal_quantiles(1.0, 2.0, 2001)
    x = rho.sample(4000, seed=0)
    assert x.shape == (4000, 1)
    assert torch.equal(x, rho.sample(4000, seed=0))
    assert stats.kstest(x[:, 0].numpy(), "norm", args=(1, 2)).pvalue > 0.01
    particles = rho.to_particles(10, seed=1)
    exact = torch.distributions.Normal(1.0, 2.0).log_prob(particles.points[:, 0])
    assert torch.allclose(particles.log_density(), exact, atol=1e-2)


def test_log_prob_outside_and_icdf_at_the_nodes():
    rho = wprox.Quantiles([0.0, 1.0, 3.0])
    assert rho.log_prob([-0.1, 0.5, 2.0, 3.1]).exp().tolist() == pytest.approx([0, 0.5, 0.25, 0])
    assert rho.icdf([0.0, 0.5, 0.75, 1.0]).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"levels must lie in \[0, 1\]"):
        rho.icdf([1.1])


def test_pairs_are_summed_in_blocks_and_singular_kernels_meet_midpoints(monkeypatch):
    rho = normal_quantiles(0.0, 1.0, 400)
    assert float(rho.integrate_pairs(half_square)) == pytest.approx(1.0, abs=1e-4)
    # E log|x − y| for independent N(0, 1): log 2 / 2 + E log|z| + ... = log √2 − (γ_Euler + log 2)/2
    logarithm = lambda z: z[:, 0].abs().log()  # noqa: E731
    exact = 0.5 * math.log(2) - 0.5 * (0.5772156649015329 + math.log(2))
    whole = rho.integrate_pairs(logarithm)
    assert float(whole) == pytest.approx(exact, abs=1e-2)
    monkeypatch.setattr("wprox.pairs.sums.PAIR_BLOCK_BYTES", 2**12)
    assert float(rho.integrate_pairs(logarithm)) == pytest.approx(float(whole))


def test_plot_draws_a_density_of_mass_one():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, ax = pyplot.subplots()
    assert normal_quantiles(0.0, 1.0, 500).plot(ax, label="normal") is ax
    x, y = (torch.from_numpy(values) for values in ax.lines[0].get_data())
    assert float(torch.trapezoid(y, x)) == pytest.approx(1, abs=1e-2)
    pyplot.close("all")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([0.0, 2.0, 1.0], "not sorted, first at index 1: 2, then 1"),
        ([0.0, 1.0, 1.0], "repeated, first at index 1"),
        ([0.0, math.nan, 1.0], "1 NaN or infinite"),
        ([0.0, math.inf], "1 NaN or infinite"),
        ([0.0], "n ≥ 2"),
        ([[0.0, 1.0]], "n ≥ 2"),
    ],
)
def test_bad_nodes(nodes, message):
    with pytest.raises(ValueError, match=message):
        wprox.Quantiles(nodes)


def test_bad_constructions():
    with pytest.raises(ValueError, match="atom"):
        wprox.Quantiles.from_samples([0.0, 1.0, 1.0, 1.0, 2.0], 9)
    with pytest.raises(ValueError, match="at least two draws"):
        wprox.Quantiles.from_samples([1.0], 9)
    with pytest.raises(ValueError, match="must increase strictly"):
        wprox.Quantiles.from_icdf(lambda u: -u, 5)
    with pytest.raises(ValueError, match="NaN or infinite"):
        wprox.Quantiles.from_icdf(lambda u: u / 0, 5)
    with pytest.raises(ValueError, match="increasing maps only"):
        wprox.Quantiles([0.0, 1.0]).push(lambda x: -x)


# --- maps of the line ----------------------------------------------------------------------------------------------


@relaxed
@given(increasing, st.lists(st.floats(-5, 90), min_size=1, max_size=20))
def test_monotone_map_inverts_and_knows_its_slope(nodes, x):
    map = wprox.MonotoneMap(nodes, 2 * nodes + nodes.square() / 10)
    points = torch.tensor(x, dtype=torch.float64)[:, None]
    y, log_det = map(points)
    assert torch.allclose(map.inverse(y), points, atol=1e-8)
    step = 1e-7
    slope = (map(points + step)[0] - map(points - step)[0])[:, 0] / (2 * step)
    at_a_kink = (points - nodes).abs().min(1).values < 2 * step
    assert torch.allclose(log_det.exp()[~at_a_kink], slope[~at_a_kink], rtol=1e-4)


# --- steps ---------------------------------------------------------------------------------------------------------


def test_gaussian_trajectory_to_the_closed_form():
    target = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(1), torch.ones(1)), 1)
    gamma, m, s = 0.5, 3.0, 0.2
    trajectory = wprox.jko(
        wprox.KL(target), wprox.QuantileProx(), normal_quantiles(m, s, 20_000), step_size=gamma, n_steps=10
    )
    for step in trajectory.steps:
        m, s = m / (1 + gamma), (s + math.sqrt(s**2 + 4 * gamma * (1 + gamma))) / (2 * (1 + gamma))
        assert float(step.measure.integrate(lambda x: x[:, 0])) == pytest.approx(m, abs=1e-4)
        assert standard_deviation(step.measure) == pytest.approx(s, abs=1e-4)
        assert step.converged
        assert step.iterations < 10


def test_potential_alone_contracts_every_node():
    rho = wprox.Quantiles(torch.linspace(-1, 2, 50, dtype=torch.float64))
    step = wprox.QuantileProx().step(wprox.PotentialEnergy(lambda x: 1.5 * x[:, 0].square()), rho, 0.4)
    assert torch.allclose(step.measure.nodes, rho.nodes / (1 + 3 * 0.4), atol=1e-14)
    assert step.residual < 1e-13
    assert float(step.transport_cost) == pytest.approx(float(wprox.metrics.wasserstein_1d(rho, step.measure)) ** 2)
    assert torch.allclose(step.map(rho.points)[0][:, 0], step.measure.nodes)


def test_residual_is_the_gradient_of_the_objective():
    """After one Newton step the residual is what autograd says ‖∇J‖ is."""
    rho = normal_quantiles(1.0, 0.5, 200)
    functional = wprox.PotentialEnergy(lambda x: x[:, 0] ** 4) + wprox.Entropy() + 0.5 * wprox.PorousMedium(2.0)
    step = wprox.QuantileProx(iterations=1).step(functional, rho, 0.3)
    assert not step.converged
    nodes = step.measure.nodes.clone().requires_grad_()
    objective = functional(wprox.Quantiles(nodes)) + rho.weights @ (nodes - rho.nodes).square() / (2 * 0.3)
    (gradient,) = torch.autograd.grad(objective, nodes)
    assert step.residual == pytest.approx(math.sqrt(float((gradient.square() / rho.weights).sum())), rel=1e-10)


class OpaqueSum(wprox.Functional):
    """A functional that the solver cannot take apart."""

    def __init__(self, functional):
        self.functional = functional

    def __call__(self, rho):
        return self.functional(rho)


@pytest.mark.parametrize(
    "functional",
    [
        wprox.PotentialEnergy(half_square) + wprox.Entropy(),
        wprox.KL(torch.distributions.MultivariateNormal(torch.zeros(1).double(), torch.eye(1).double())),
        wprox.PotentialEnergy(lambda x: x[:, 0].cosh()) + wprox.PorousMedium(3.0),
        wprox.PotentialEnergy(half_square) + wprox.InternalEnergy(lambda p: p**1.5),
    ],
    ids=["entropy", "kl", "porous", "internal"],
)
def test_newton_and_lbfgs_agree(functional):
    rho = normal_quantiles(1.0, 0.5, 60)
    newton = wprox.QuantileProx().step(functional, rho, 0.5)
    general = wprox.QuantileProx(iterations=2000).step(OpaqueSum(functional), rho, 0.5)
    assert newton.converged
    assert general.converged
    assert torch.allclose(newton.measure.nodes, general.measure.nodes, atol=1e-6)


def test_a_functional_of_your_own_that_needs_the_density_takes_few_steps():
    functional = OpaqueSum(wprox.Entropy() + wprox.PotentialEnergy(half_square))
    step = wprox.QuantileProx().step(functional, normal_quantiles(1.0, 0.5, 2000), 0.5)
    assert step.converged
    assert step.iterations < 20


@pytest.mark.parametrize("scale", [1e-2, 1e-5, 1e-10])
def test_a_nearly_singular_start_spreads(scale):
    """Gaps of 1e-14 make the Hessian singular to rounding; σ' = √(γ/(1 + γ)) up to O(σ)."""
    target = torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1))
    step = wprox.QuantileProx().step(wprox.KL(target), normal_quantiles(0.0, scale, 2000), 0.5)
    assert step.converged
    exact = (scale + math.sqrt(scale**2 + 4 * 0.5 * 1.5)) / (2 * 1.5)
    assert standard_deviation(step.measure) == pytest.approx(exact, abs=1e-5)


def test_newton_with_a_smooth_interaction_needs_few_steps():
    functional = wprox.Entropy() + wprox.InteractionEnergy(half_square)
    step = wprox.QuantileProx().step(functional, normal_quantiles(1.0, 0.5, 500), 0.5)
    exact = wprox.GaussianProx().step(functional, wprox.Gaussian([1.0], [[0.25]]), 0.5).measure
    assert step.converged
    assert step.iterations < 40
    assert standard_deviation(step.measure) == pytest.approx(math.sqrt(float(exact.covariance_matrix)), abs=1e-3)


@relaxed
@given(increasing, st.floats(0.01, 10), st.integers(0, 3))
def test_steps_lower_the_objective_and_keep_the_order(nodes, step_size, which):
    functional = (
        wprox.PotentialEnergy(half_square) + wprox.Entropy(),
        wprox.PorousMedium(2.0) + wprox.PotentialEnergy(lambda x: (x[:, 0] - 1).abs().pow(3)),
        wprox.PorousMedium(0.6),
        wprox.PotentialEnergy(lambda x: (x[:, 0].square() - 1).square()) + 0.3 * wprox.Entropy(),  # V is not convex
    )[which]
    rho = wprox.Quantiles(nodes)
    step = wprox.QuantileProx().step(functional, rho, step_size)
    assert bool((step.measure.nodes.diff() > 0).all())
    assert step.converged
    before, after = float(functional(rho)), float(step.value + step.transport_cost / (2 * step_size))
    assert after <= before + 1e-9 * (1 + abs(before))


# --- known solutions -----------------------------------------------------------------------------------------------


def test_double_well_fokker_planck_reaches_gibbs():
    potential = lambda x: (x[:, 0].square() - 1).square()  # noqa: E731
    mass, _ = integrate.quad(lambda x: math.exp(-2 * (x**2 - 1) ** 2), -5, 5)
    trajectory = wprox.jko(
        wprox.PotentialEnergy(potential) + 0.5 * wprox.Entropy(),
        wprox.QuantileProx(),
        normal_quantiles(1.0, 0.3, 10_000),
        step_size=lambda k: min(0.05 * 1.5**k, 100.0),
        n_steps=40,
        tol=1e-8,
    )
    assert trajectory.converged
    assert l1_distance(trajectory.final, lambda x: torch.exp(-2 * (x**2 - 1) ** 2) / mass, -4, 4) < 1e-3


def barenblatt(m):
    """Density (x, t) and quantile function (u, t) of ρ = t^{−α}(C − k|x|² t^{−2α})_+^{1/(m−1)}, α = 1/(m + 1)."""
    alpha, power = 1 / (m + 1), 1 / (m - 1)
    k = (m - 1) * alpha / (2 * m)
    mass = special.beta(0.5, power + 1) if m > 1 else special.beta(0.5, -power - 0.5)
    constant = (math.sqrt(abs(k)) / mass) ** (1 / (power + 0.5))
    radius = math.sqrt(constant / abs(k))

    def density(x, t):
        return t**-alpha * (constant - k * (x / t**alpha) ** 2).clamp(min=0) ** power

    def icdf(u, t):
        if m > 1:
            unit = 2 * special.betaincinv(power + 1, power + 1, u.numpy()) - 1
        else:
            degrees = -2 * power - 1
            unit = stats.t.ppf(u.numpy(), degrees) / math.sqrt(degrees)
        return torch.from_numpy(unit) * radius * t**alpha

    return density, icdf


@pytest.mark.parametrize("m", [2.0, 3.0, 0.7])
def test_porous_medium_follows_barenblatt_in_first_order(m):
    density, icdf = barenblatt(m)
    initial = wprox.Quantiles.from_icdf(lambda u: icdf(u, 0.5), 10_000)
    exact = wprox.Quantiles.from_icdf(lambda u: icdf(u, 1.5), 10_000)
    errors, l1 = [], []
    for n_steps in (10, 20, 40, 80):
        trajectory = wprox.jko(
            wprox.PorousMedium(m), wprox.QuantileProx(), initial, step_size=1 / n_steps, n_steps=n_steps
        )
        assert all(step.converged for step in trajectory.steps)
        errors.append(float(wprox.metrics.wasserstein_1d(trajectory.final, exact)))
        l1.append(l1_distance(trajectory.final, lambda x: density(x, 1.5), -8, 8))
    orders = [math.log2(errors[k] / errors[k + 1]) for k in range(3)]
    least = 0.9 if m > 1 else 0.8  # the tail of fast diffusion, cut at the end nodes, is what remains
    assert all(least < order < 1.1 for order in orders), orders
    assert l1[-1] < 2e-3, l1


def test_aggregation_reaches_the_semicircle():
    kernel = lambda z: z[:, 0].square() / 2 - z[:, 0].abs().log()  # noqa: E731
    trajectory = wprox.jko(
        wprox.InteractionEnergy(kernel),
        wprox.QuantileProx(),
        wprox.Quantiles(torch.linspace(-0.5, 1.0, 300, dtype=torch.float64)),
        step_size=2.0,
        n_steps=8,
    )
    final = trajectory.final
    centre = float(final.integrate(lambda x: x[:, 0]))
    assert centre == pytest.approx(0.25, abs=1e-6)  # interaction keeps the mean
    assert final.nodes[[0, -1]].tolist() == pytest.approx([centre - math.sqrt(2), centre + math.sqrt(2)], abs=2e-2)

    def semicircle(x):
        return (2 - (x - centre) ** 2).clamp(min=0).sqrt() / math.pi

    assert l1_distance(final, semicircle, -2, 2.5) < 1e-2


def test_half_squared_distance_steps_along_the_displacement_interpolation():
    class HalfSquaredDistance(wprox.Functional):
        def __init__(self, target):
            self.target = target

        def __call__(self, rho):
            return wprox.metrics.wasserstein_1d(rho, self.target) ** 2 / 2

    rho, target, gamma = normal_quantiles(0.0, 1.0, 200), normal_quantiles(3.0, 0.5, 200), 0.5
    step = wprox.QuantileProx().step(HalfSquaredDistance(target), rho, gamma)
    t = gamma / (1 + gamma)
    assert torch.allclose(step.measure.nodes, (1 - t) * rho.nodes + t * target.nodes, atol=1e-12)
    still = wprox.QuantileProx().step(HalfSquaredDistance(rho), rho, gamma)
    assert torch.equal(still.measure.nodes, rho.nodes)  # W₂ = 0 has no derivative, W₂² has


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_multiples_of_kl(weight):
    """c KL(· ‖ N(0, 1)) + V, for V = x²/2, is c ∫ρ log ρ + ∫ (c + 1) x²/2: its steps are Gaussian, up to the nodes."""
    target = wprox.Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    potential = wprox.PotentialEnergy(lambda x: x[:, 0].square() / 2)
    nodes = wprox.QuantileProx().step(weight * wprox.KL(target) + potential, normal_quantiles(3.0, 0.2, 5000), 0.5)
    # (1 + γ(c + 1)) s² − σ s − γ c = 0
    a, b, c = 1 + 0.5 * (weight + 1), -0.2, -0.5 * weight
    s = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    rho = nodes.measure
    mean = float(rho.weights @ rho.nodes)
    assert mean == pytest.approx(3.0 / a, abs=1e-6)
    assert math.sqrt(float(rho.weights @ (rho.nodes - mean).square())) == pytest.approx(s, abs=1e-3)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_a_step_that_does_not_converge_says_so_and_the_driver_warns_once():
    functional = wprox.PotentialEnergy(lambda x: x[:, 0] ** 4) + wprox.Entropy()
    rho = normal_quantiles(3.0, 0.1, 100)
    with pytest.warns(RuntimeWarning, match=r"step 0 did not converge \(residual .*1 iterations were not") as record:
        trajectory = wprox.jko(functional, wprox.QuantileProx(iterations=1), rho, step_size=1.0, n_steps=3)
    assert len(record) == 1
    assert not trajectory.steps[0].converged


@pytest.mark.parametrize("step_size", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("solver", [wprox.QuantileProx(), wprox.GaussianProx()], ids=["quantile", "gaussian"])
def test_bad_step_size(solver, step_size):
    rho = normal_quantiles(0, 1, 10) if isinstance(solver, wprox.QuantileProx) else wprox.Gaussian([0.0], [[1.0]])
    with pytest.raises(ValueError, match="step_size must be positive and finite"):
        solver.step(wprox.Entropy(), rho, step_size)


def test_wrong_measures_and_functionals():
    class NeedsAGrid(wprox.Functional):
        def __call__(self, rho):
            return rho.cell_volume.sum()

    rho = normal_quantiles(0, 1, 10)
    with pytest.raises(TypeError, match="needs Quantiles, got Particles"):
        wprox.jko(wprox.Entropy(), wprox.QuantileProx(), wprox.Particles([[0.0]]))
    with pytest.raises(TypeError, match="does not apply to Quantiles: it needs the method 'cell_volume'"):
        wprox.QuantileProx().step(NeedsAGrid(), rho, 0.1)
    with pytest.raises(TypeError, match="does not apply to Quantiles: it needs the method 'cell_volume'"):
        wprox.jko(NeedsAGrid(), wprox.QuantileProx(), rho)
    with pytest.raises(ValueError, match=r"must be a scalar, it has shape \(1,\)"):
        wprox.QuantileProx().step(wprox.PotentialEnergy(lambda x: x**2), rho, 0.1)
    planar = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="dimension 2, the measure in dimension 1"):
        wprox.QuantileProx().step(wprox.KL(planar), rho, 0.1)
    root = wprox.PotentialEnergy(lambda x: x[:, 0].abs().sqrt())
    with pytest.raises(wprox.StepFailedError, match="gradient of the objective is not finite at node 1, x = 0"):
        wprox.QuantileProx().step(root, wprox.Quantiles([-1.0, 0.0, 1.0]), 0.1)
    with pytest.raises(wprox.StepFailedError, match="the functional is nan at the measure"):
        wprox.QuantileProx().step(wprox.PotentialEnergy(lambda x: x[:, 0].log()), wprox.Quantiles([-1.0, 1.0]), 0.1)


def test_nodes_that_would_collapse_are_not_reported_as_converged():
    """|x − 1/2| pulls many nodes to one point: an atom, which Quantiles cannot hold."""
    step = wprox.QuantileProx(iterations=30).step(
        wprox.PotentialEnergy(lambda x: (x[:, 0] - 0.5).abs()), wprox.Quantiles(torch.linspace(0, 1, 20)), 1.0
    )
    assert not step.converged
    assert bool((step.measure.nodes.diff() > 0).all())


def test_float32_and_integer_nodes_become_float64():
    assert wprox.Quantiles(torch.arange(4)).dtype == torch.float64
    assert wprox.Quantiles(torch.rand(5).cumsum(0)).log_density().dtype == torch.float64


def test_options_of_the_solver_trade_accuracy_for_work():
    """A loose tolerance stops earlier, a short memory later; both end at the minimiser of the tight run."""
    rho = normal_quantiles(2.0, 0.3, 200)
    functional = wprox.InteractionEnergy(lambda z: z.square().sum(-1) / 2 + z.square().sum(-1) ** 2) + wprox.Entropy()
    tight = wprox.QuantileProx().step(functional, rho, 0.5)
    loose = wprox.QuantileProx(tolerance=1e-3).step(functional, rho, 0.5)
    forgetful = wprox.QuantileProx(memory=1).step(functional, rho, 0.5)
    assert loose.converged
    assert loose.iterations <= tight.iterations <= forgetful.iterations
    assert torch.allclose(loose.measure.nodes, tight.measure.nodes, atol=1e-2)
    assert torch.allclose(forgetful.measure.nodes, tight.measure.nodes, atol=1e-5)
    assert not wprox.QuantileProx(iterations=1).step(functional, rho, 0.5).converged
