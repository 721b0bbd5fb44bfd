"""The JKO sampler: draws, density, evidence and weights; rejection steps; files and bad input."""

import copy
import json
import math
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from sklearn.exceptions import NotFittedError

import wprox
from wprox import Gaussian, JKOSampler
from wprox.maps import InverseError
from wprox.models.sampler.chain import Chain, RejectionStep
from wprox.models.sampler.forward import ForwardStep
from wprox.models.sampler.target import fitted_gaussian
from wprox.models.sampler.weights import effective_size
from wprox.solvers import StepFailedError

FORMAT_1 = Path(__file__).parent / "data" / "format_1_sampler"
QUICK = {"n_blocks": 2, "iterations": 60, "fine_tune_iterations": 20, "n_particles": 4000}
WIDE = Gaussian(torch.zeros(2), 4 * torch.eye(2))


def two_modes(distance=2.0, weight=0.5, dim=2):
    """A mixture of N(±distance e₁, ½² I), the first with the given weight."""
    means = torch.zeros(2, dim)
    means[0, 0], means[1, 0] = distance, -distance
    return torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([weight, 1 - weight])),
        torch.distributions.Independent(torch.distributions.Normal(means, 0.5 * torch.ones(2, dim)), 1),
    )


def unnormalised(x):
    """Three times the density of `two_modes`."""
    return two_modes().log_prob(x) + math.log(3)


@pytest.fixture(scope="module")
def sampler():
    return JKOSampler(unnormalised, initial=WIDE, corrections=2, seed=0, **QUICK).run()


def log_two_bumps(x):
    """An unnormalised density of the line."""
    return torch.logaddexp(-2 * (x[:, 0] - 1.5).square(), math.log(0.3) - 2 * (x[:, 0] + 1.5).square())


@pytest.fixture(scope="module")
def chain():
    """N(0, 1) through two rejection steps, a map and a third, on the line, with their parameters to four digits."""
    layers = []
    generator = torch.Generator().manual_seed(0)
    map = wprox.AffineMap.from_matrix(torch.tensor([[0.8]]).double(), torch.tensor([0.2]).double())
    for added in ("rejection", "rejection", map, "rejection"):
        if added == "rejection":
            rho = Chain(1, layers, log_two_bumps).draw(100_000, generator, torch.empty(0).double())
            log_ratio = log_two_bumps(rho.points) - rho.log_density()
            layers.append(RejectionStep.fit(log_ratio, 0.3))
        else:
            layers.append(added)
    return Chain(1, layers, log_two_bumps)


# what it draws


def test_a_gaussian_target_is_found_exactly_without_blocks():
    """The fitted initial Gaussian is the target: no block gains, and log Z = log 5; its error is what 2,000 annealed

    draws cannot exclude, a mode of 2/2000 of the mass: weights that are all equal are no proof that there is none.
    """
    target = Gaussian(torch.tensor([30.0, -1.0]).double(), torch.tensor([[4.0, 1.0], [1.0, 0.5]]).double())
    sampler = JKOSampler(lambda x: target.log_prob(x) + math.log(5), initial=target, **QUICK).run()
    assert not sampler.layers_
    assert sampler.log_normalizer(seed=0) == pytest.approx((math.log(5), 2 / 2000), abs=1e-9)
    fitted = JKOSampler(target, **QUICK | {"iterations": 10}).run()
    assert torch.allclose(fitted.initial_.loc, target.loc, atol=0.01)
    assert torch.allclose(fitted.initial_.covariance_matrix, target.covariance_matrix, rtol=0.01)
    x = fitted.sample(10, seed=0)
    assert x.dtype == torch.float64
    assert torch.allclose(fitted.log_prob(x), target.log_prob(x), atol=1e-3)


@pytest.mark.parametrize(
    "target",
    [
        Gaussian(torch.zeros(2), torch.eye(2)),
        torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)),
        torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1),
    ],
    ids=["Gaussian", "MultivariateNormal", "Independent"],
)
def test_a_gaussian_target_is_the_start_however_it_is_given(target):
    initial = fitted_gaussian(wprox.KL(target), 2, seed=0)
    assert initial.dtype == torch.float32
    assert torch.allclose(initial.loc, torch.zeros(2), atol=1e-6)
    assert torch.allclose(initial.covariance_matrix, torch.eye(2), atol=1e-6)


# argmin of E log(1 + s²z²/ν)(ν + 1)/2 − log s over s
@pytest.mark.parametrize(("df", "expected"), [(1.0, 1.6339), (5.0, 1.1674)])
def test_independent_heavy_tails_do_not_run_away_from_the_cubature_points(df, expected):
    law = torch.distributions.Independent(torch.distributions.StudentT(torch.full((10,), df).double()), 1)
    initial = fitted_gaussian(wprox.KL(law), 10, seed=0)
    deviations = initial.covariance_matrix.diagonal().sqrt().float() / (1 + math.sqrt(2 / 10))
    assert torch.allclose(deviations.log().mean().exp(), torch.tensor(expected), rtol=0.03)
    assert float(deviations.max() / deviations.min()) < 1.2


def test_the_default_initial_gaussian_has_the_scale_of_the_target():
    """A skewed density thirty wide and a fifth high: moments within a third, but for the widening by 1 + √(2/d)."""

    def log_target(x):
        u = (x - x.new_tensor([200.0, -1.0])) / x.new_tensor([30.0, 0.2])
        return u.sum(-1) - u.exp().sum(-1)  # the log-gamma law: mean −0.577, variance 1.645

    initial = JKOSampler(log_target, dim=2, n_blocks=1, iterations=1, fine_tune=False, n_particles=100).run().initial_
    scale = torch.tensor([30.0, 0.2])
    assert torch.allclose((initial.loc - torch.tensor([200.0, -1.0])) / scale, torch.full((2,), -0.577), atol=0.4)
    deviation = initial.covariance_matrix.diagonal().sqrt() / scale / 2
    assert torch.allclose(deviation, torch.full((2,), math.sqrt(1.645)), rtol=0.34)


def test_log_prob_integrates_to_one(sampler):
    axis = torch.linspace(-9, 9, 180, dtype=torch.float64)
    density = sampler.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert float(density.sum()) * float(axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=0.03)


def test_draws_are_near_the_target_and_log_z_is_found(sampler):
    """Both modes within 10 % of their mass (0.05 is 4.5 standard errors of 2000 draws); log Z = log 3."""
    right = (sampler.sample(2000, seed=1)[:, 0] > 0).double().mean()
    assert float(right) == pytest.approx(0.5, abs=0.05)
    value, error = sampler.log_normalizer(20_000, seed=1)
    assert 0 < error < 0.02
    assert abs(value - math.log(3)) < 4 * error  # false alarms: 6e-5


def test_density_of_draws_is_that_of_log_prob(sampler):
    draws = sampler._draw(500, torch.Generator().manual_seed(0), torch.float64)
    x = sampler._target.to_x(draws.points)
    assert torch.allclose(sampler.log_prob(x), draws.log_density() - math.log(4), atol=1e-6)


def test_importance_weights_correct_expectations(sampler):
    x = sampler.sample(20_000, seed=2).double()
    weights = sampler.importance_weights(x)
    assert float(weights.sum()) == pytest.approx(1)
    n = sampler.effective_sample_size(x)
    assert 0.5 * len(x) < n <= len(x) * (1 + 1e-6)
    assert n == pytest.approx(1 / float(weights.square().sum()))
    # E|x|² = 2² + 2/4, and its variance under π is below 2² · 2 + 1
    assert float(weights @ x.square().sum(1)) == pytest.approx(4.5, abs=4 * 3 / math.sqrt(n))  # false alarms: 6e-5


def test_history_tells_the_stages(sampler):
    stages = [stage["stage"] for stage in sampler.history_]
    assert stages[0] == "block"
    assert stages.index("fine-tuning") in (1, 2)
    assert stages[stages.index("fine-tuning") + 1 :] in (["rejection"], ["rejection"] * 2)
    kl = [stage["kl"] + math.log(3) for stage in sampler.history_]
    assert all(after < before + 0.02 for before, after in pairwise(kl))  # 4 standard errors of each
    assert kl[-1] < 0.05


def test_corrected_blocks_are_followed_by_corrections():
    sampler = JKOSampler(
        unnormalised,
        initial=WIDE,
        corrections=1,
        corrected_blocks=1,
        tol=-math.inf,
        fine_tune=False,
        **QUICK | {"n_blocks": 1},
    ).run()
    stages = [stage["stage"] for stage in sampler.history_]
    assert stages == ["block", "rejection", "block", "rejection"]
    x = sampler.sample(200, seed=0).double()
    assert torch.isfinite(sampler.log_prob(x)).all()


def test_affine_blocks_follow_the_closed_form():
    """KL to N(0, I) from N(m, I), exact steps: m' = m/(1 + γ); 0.02 is six standard errors of the draws."""
    target = Gaussian(torch.zeros(2), torch.eye(2))
    initial = Gaussian(torch.tensor([3.0, 0.0]), torch.eye(2))
    sampler = JKOSampler(
        target,
        initial=initial,
        map=wprox.AffineMap,
        step_sizes=[1.0, 0.5],
        n_blocks=2,
        iterations=200,
        learning_rate=0.05,
        n_particles=50_000,
        tol=-math.inf,
        fine_tune=False,
    ).run()
    assert [stage["step_size"] for stage in sampler.history_] == [1.0, 0.5]
    mean = sampler.sample(50_000, seed=1).mean(0)
    assert torch.allclose(mean, torch.tensor([1.0, 0.0]), atol=0.02)


@pytest.mark.parametrize("memory_budget", [2**29, 2**12])
def test_fine_tuning_on_a_gaussian_takes_fresh_draws(memory_budget):
    """An affine map from N(0, I) to N(m, I): every minibatch is another one, so nothing can be learned by heart."""
    seen = []

    def log_target(x):
        seen.append(x.detach())
        return -(x - torch.tensor([1.0, -2.0])).square().sum(-1) / 2

    map = wprox.AffineMap(2)
    solver = wprox.NeuralProx(map=wprox.AffineMap, iterations=200, batch_size=256, learning_rate=0.05, seed=0)
    start = Gaussian(torch.zeros(2), torch.eye(2))
    solver.fine_tune(map, wprox.KL(log_target), start, memory_budget=memory_budget)
    assert torch.allclose(map.shift, torch.tensor([1.0, -2.0]), atol=0.05)
    assert torch.allclose(map.matrix, torch.eye(2), atol=0.05)
    batches = [x for x in seen if len(x) != 8192][2:]  # without what measures the memory, and looks
    assert len(batches) >= 100
    assert (len(batches[0]) == 256) == (memory_budget > 2**20)
    assert not torch.equal(map.inverse(batches[-1]), map.inverse(batches[-2]))


def test_same_seed_same_sampler():
    options = QUICK | {"n_blocks": 1, "iterations": 20, "fine_tune_iterations": 5, "n_particles": 500, "corrections": 1}
    first, second, other = (JKOSampler(unnormalised, initial=WIDE, seed=seed, **options).run() for seed in (3, 3, 4))
    assert torch.equal(first.sample(50, seed=1), second.sample(50, seed=1))
    assert not torch.equal(first.sample(50, seed=1), other.sample(50, seed=1))


def test_draws_are_not_the_noise_of_training_with_the_same_seed(monkeypatch):
    """Blocks know by heart what they were trained on, and draws of the same seed would flatter them."""
    seen = []
    monkeypatch.setattr(wprox.NeuralProx, "step", lambda self, functional, measure, *_: seen.append(measure.points))
    with pytest.raises(AttributeError):
        JKOSampler(unnormalised, initial=WIDE, n_particles=2000, seed=3).run()
    sampler = JKOSampler(unnormalised, initial=WIDE, n_blocks=0, seed=3).run()
    assert not torch.isin(sampler.sample(5000, seed=3) / 2, seen[0]).any()


def test_random_state_outside_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    JKOSampler(
        unnormalised, initial=WIDE, n_blocks=1, iterations=2, n_particles=100, fine_tune_iterations=2
    ).run().sample(3)
    assert torch.equal(torch.rand(3), expected)


# rejection steps


def test_corrections_without_any_map():
    """From N(0, 4 I), which covers both modes: the effective part of a sample goes up with each."""
    sampler = JKOSampler(unnormalised, initial=WIDE, n_blocks=0, corrections=4, n_particles=5000).run()
    assert [stage["stage"] for stage in sampler.history_] == ["rejection"] * 4
    ess = [stage["ess"] for stage in sampler.history_]
    assert ess == sorted(ess)
    value, error = sampler.log_normalizer(20_000, seed=0)
    assert abs(value - math.log(3)) < 4 * error < 0.1  # false alarms: 6e-5


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 0.9])
def test_a_fitted_rejection_step_has_the_rate_that_was_asked_for(rate):
    log_ratio = torch.randn(5000, generator=torch.Generator().manual_seed(0)).double() * 3 + 100
    step = RejectionStep.fit(log_ratio, rate)
    assert step.rejection_rate == pytest.approx(rate, abs=1e-6)
    assert 1 - float(step.acceptance(log_ratio).mean()) == pytest.approx(rate, abs=1e-6)


def test_points_without_target_density_are_rejected():
    log_ratio = torch.tensor([0.0, 1.0, -math.inf, -math.inf])
    step = RejectionStep.fit(log_ratio, 0.2)
    assert step.rejection_rate == pytest.approx(0.5)
    assert step.acceptance(log_ratio).tolist() == [1, 1, 0, 0]


def test_density_after_rejection_steps_integrates_to_one(chain):
    """Up to the errors of the rates: four standard errors, false alarms 6e-5."""
    axis = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    mass = float(torch.trapezoid(chain.log_prob(axis).exp(), axis[:, 0]))
    error = math.sqrt(sum(layer.standard_error**2 for layer in chain.layers if isinstance(layer, RejectionStep)))
    assert abs(mass - 1) < 4 * error < 0.02


def test_draws_after_rejection_steps_follow_the_density(chain):
    """Pearson's χ² of 100,000 draws in 40 cells; false alarms 1e-4, for the seed that is fixed never."""
    edges = torch.linspace(-3, 3, 39, dtype=torch.float64)
    draws = chain.draw(100_000, torch.Generator().manual_seed(7), torch.empty(0).double())
    assert torch.allclose(draws.log_density(), chain.log_prob(draws.points), atol=1e-10)
    counts = torch.bincount(torch.bucketize(draws.points[:, 0], edges), minlength=40).double()
    axis = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    density = chain.log_prob(axis[:, None]).exp()
    cells = torch.zeros(40).double().index_add(0, torch.bucketize(axis, edges), density)
    expected = 100_000 * cells / cells.sum()
    statistic = float(((counts - expected).square() / expected).sum())
    assert statistic < 83.0  # the 0.9999 quantile of χ² with 39 degrees of freedom


def test_every_rejection_step_lowers_the_kl_divergence(chain):
    axis = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    log_target = log_two_bumps(axis)

    def kl(layers):
        log_rho = Chain(1, layers, log_two_bumps).log_prob(axis)
        return float(torch.trapezoid(log_rho.exp() * (log_rho - log_target), axis[:, 0]))

    start, once, twice = kl(chain.layers[:0]), kl(chain.layers[:1]), kl(chain.layers[:2])
    assert start > once > twice
    assert kl(chain.layers) < kl(chain.layers[:3])


def test_rejection_steps_find_weights_that_the_flow_does_not():
    """Modes at ±5 of mass 0.9 and 0.1, from a start that puts half on either side."""
    target = two_modes(5.0, 0.9)
    options = QUICK | {"fine_tune": False, "corrections": 8, "seed": 0}
    corrected = JKOSampler(target, initial=Gaussian(torch.zeros(2), 9 * torch.eye(2)), **options).run()
    plain = copy.copy(corrected)
    plain.layers_ = [layer for layer in corrected.layers_ if isinstance(layer, wprox.TransportMap)]

    def right(sampler):
        return float((sampler.sample(4000, seed=0)[:, 0] > 0).double().mean())

    assert abs(right(plain) - 0.9) > 0.1
    assert right(corrected) == pytest.approx(0.9, abs=0.02)  # 4 standard errors: false alarms 6e-5


def test_masses_estimate_the_integral_of_a_density_with_wrong_rates(chain):
    """The integral of the line by quadrature, to four standard errors of the estimate: false alarms 6e-5."""
    layers = [
        layer._replace(rejection_rate=layer.rejection_rate + 0.05) if isinstance(layer, RejectionStep) else layer
        for layer in chain.layers
    ]
    wrong = Chain(1, layers, log_two_bumps)
    axis = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    integral = float(torch.trapezoid(wrong.log_prob(axis).exp(), axis[:, 0]))
    assert integral > 1.1
    masses = wrong.masses(20_000, torch.Generator().manual_seed(0), axis)
    assert float(masses.mean()) == pytest.approx(integral, abs=4 * float(masses.std()) / math.sqrt(20_000))


def test_log_z_does_not_feel_errors_of_rates():
    """Four standard errors: false alarms 6e-5. Rates that are off by 0.03 would shift log Z by about 0.09."""
    target = two_modes(2.0, 0.8)
    sampler = JKOSampler.for_modes(target, WIDE, n_blocks=0, n_particles=4000, seed=0).run()
    wrong = copy.copy(sampler)
    wrong.layers_ = [
        layer._replace(rejection_rate=layer.rejection_rate + 0.03) if isinstance(layer, RejectionStep) else layer
        for layer in sampler.layers_
    ]
    assert sum(isinstance(layer, RejectionStep) for layer in wrong.layers_) >= 4
    for either in (sampler, wrong):
        value, error = either.log_normalizer(20_000, seed=0)
        assert 0 < error < 0.015
        assert abs(value) < 4 * error


def test_draws_that_rejection_steps_keep_follow_the_new_law():
    """Those in training, of which most are kept, against fresh ones: their density, and the mass of a mode."""
    sampler = JKOSampler(two_modes(2.0, 0.8), initial=WIDE, forward_steps=6, n_blocks=0, n_particles=8000).run()
    training = sampler._training(torch.Generator().manual_seed(0))
    particles = training.correct(training.draw(), 3)
    assert len(sampler.layers_) >= 4
    expected = sampler._chain(torch.float32).log_prob(particles.points[:500])
    assert torch.allclose(particles.log_density()[:500], expected, atol=1e-3)
    right = [float((x[:, 0] > 0).double().mean()) for x in (particles.points, sampler.sample(8000, seed=0))]
    assert right[0] == pytest.approx(right[1], abs=4 * math.sqrt(2 * 0.25 / 8000))  # false alarms: 6e-5


# forward steps


def test_forward_steps_to_a_gaussian_follow_the_closed_form():
    """From N(0, 16 I) to N(0, I) each halves the deviation, so that two are exact and no third helps."""
    start = Gaussian(torch.zeros(3).double(), 16 * torch.eye(3).double())
    sampler = JKOSampler(
        lambda x: -x.square().sum(-1) / 2, initial=start, forward_steps=6, n_blocks=0, n_particles=1000
    ).run()
    assert [stage["stage"] for stage in sampler.history_] == ["forward step"] * 2
    assert [stage["step_size"] for stage in sampler.history_] == pytest.approx([0.5 / 16] * 2)  # in units of N(0, 16 I)
    x = sampler.sample(100, seed=0)
    assert torch.allclose(sampler.log_prob(x), -x.square().sum(-1) / 2 - 1.5 * math.log(2 * math.pi))
    assert sampler.log_normalizer(seed=0) == pytest.approx((1.5 * math.log(2 * math.pi), 2 / 2000), abs=1e-9)


def test_forward_steps_leave_in_each_mode_what_lies_in_its_basin():
    """Modes at (±5, 0) that are mirror images but for their mass: the basins are half-planes, up to the mass."""
    target = two_modes(5.0, 0.6)
    start = Gaussian(torch.zeros(2), 9 * torch.eye(2))
    sampler = JKOSampler(target, initial=start, forward_steps=6, n_blocks=0, n_particles=1000).run()
    noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    x = noise
    for layer in sampler.layers_:
        assert isinstance(layer, ForwardStep)
        x, _ = layer(x)
    far = noise[:, 0].abs() > 0.05
    assert torch.equal(x[far, 0] > 0, noise[far, 0] > 0)
    assert float(((x[far] * 3)[:, 0].abs() - 5).abs().mean()) < 1


def test_forward_steps_that_gain_nothing_are_left_out():
    target = Gaussian(torch.zeros(2), torch.eye(2))
    assert not JKOSampler(target, initial=target, forward_steps=3, n_blocks=0, n_particles=500).run().layers_


def test_a_potential_without_wells_has_no_forward_steps():
    """V = −log cosh x₁ is concave, and no start in its tails would end: only the first look at it is tested."""
    start = Gaussian(torch.zeros(2), torch.eye(2))
    sampler = JKOSampler(
        lambda x: x.cosh().log().sum(-1), initial=start, forward_steps=3, n_blocks=0, n_particles=500
    ).run()
    assert not sampler.layers_


def log_quartic(x):
    return -(x[:, 0].square() - 4).square() / 4


def quartic_sampler(n_particles):
    start = Gaussian(torch.zeros(1).double(), 9 * torch.eye(1).double())
    return JKOSampler(log_quartic, initial=start, forward_steps=2, n_blocks=0, n_particles=n_particles).run()


def test_folds_of_forward_steps_are_told():
    """Few particles tell little of a curvature that grows without bound; all of many do, with a margin of two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # draws in training may fold as well
        few = quartic_sampler(20)
    with pytest.warns(RuntimeWarning, match=r"folds space at \d+ of \d+ points"):
        few.sample(20_000, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quartic_sampler(20_000).sample(20_000, seed=0)


def test_density_where_forward_steps_have_no_inverse():
    sampler = quartic_sampler(2000)
    with pytest.raises(InverseError, match=r"not known at all of these points.*forward_steps=0") as raised:
        sampler.log_prob([[0.0], [20.0]])
    assert raised.value.residual > 1e-10


def test_density_after_forward_steps_integrates_to_one():
    """Between the images of ±4 deviations of the start, what lies between these: to 1e-6."""
    sampler = quartic_sampler(2000)
    ends, density = torch.tensor([[-4.0], [4.0]]).double(), torch.distributions.Normal(0, 1)
    for layer in sampler.layers_:
        ends, _ = layer(ends)
    axis = torch.linspace(float(3 * ends[0]), float(3 * ends[1]), 40_001, dtype=torch.float64)
    mass = float(torch.trapezoid(sampler.log_prob(axis[:, None]).exp(), axis))
    assert mass == pytest.approx(float(2 * density.cdf(torch.tensor(4.0)) - 1), abs=1e-6)


def test_second_derivatives_that_are_not_finite_are_named():
    def log_bumps(x):  # the derivative of the weights of logaddexp is ∞/∞ where its arguments are far apart
        return torch.logaddexp(-20 * (x - 1).square().sum(-1), -20 * (x + 1).square().sum(-1))

    with pytest.raises(ValueError, match=r"second derivatives .* not finite at \d+ of \d+ points.*logsumexp"):
        JKOSampler.for_modes(log_bumps, WIDE, n_particles=1000).run()


def test_settings_for_modes_find_weights_in_six_dimensions_and_can_be_changed():
    """Masses 0.9 and 0.1 at distance 8, a start that puts half on either side; 0.02 is four standard errors."""
    start = Gaussian(torch.zeros(6), 9 * torch.eye(6))
    options = {"iterations": 40, "n_particles": 4000, "corrections": 5, "fine_tune": True, "fine_tune_iterations": 5}
    small = {"transforms": 2, "hidden": (32,)}
    sampler = JKOSampler.for_modes(two_modes(4.0, 0.9, 6), start, map_options=small, seed=0, **options).run()
    assert sampler.corrections == 5
    assert JKOSampler.for_modes(two_modes(4.0, 0.9, 6), start).corrections == 6
    stages = [stage["stage"] for stage in sampler.history_]
    blocks = stages.index("block")
    assert "rejection" in stages[:blocks]
    assert stages[blocks : blocks + 3] == ["block", "fine-tuning", "rejection"]
    x = sampler.sample(4000, seed=0)
    assert float((x[:, 0] > 0).double().mean()) == pytest.approx(0.9, abs=0.02)  # false alarms: 6e-5
    assert sampler.effective_sample_size(x) > 0.8 * len(x)


# files


def test_save_and_load(sampler, tmp_path):
    sampler.save(tmp_path / "model")
    loaded = JKOSampler.load(tmp_path / "model", unnormalised)
    assert torch.equal(loaded.sample(20, seed=0), sampler.sample(20, seed=0))
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.log_prob(x), sampler.log_prob(x))
    assert loaded.log_normalizer(seed=0) == sampler.log_normalizer(seed=0)
    assert loaded.history_ == sampler.history_
    assert loaded.n_particles == sampler.n_particles
    assert loaded.correct(1) is loaded
    with pytest.raises(ValueError, match="overwrite"):
        sampler.save(tmp_path / "model")
    sampler.save(tmp_path / "model", overwrite=True)


def test_forward_steps_are_saved(tmp_path):
    sampler = JKOSampler.for_modes(two_modes(), WIDE, n_blocks=0, n_particles=1000, seed=0).run()
    sampler.save(tmp_path / "model")
    loaded = JKOSampler.load(tmp_path / "model", two_modes())
    x = sampler.sample(20, seed=0)
    assert isinstance(loaded.layers_[0], ForwardStep)
    assert torch.equal(loaded.sample(20, seed=0), x)
    assert torch.equal(loaded.log_prob(x), sampler.log_prob(x))


def test_models_of_format_1_are_read():
    """A sampler that wprox 0.1.0 wrote, at the commit before the models were made thin, with what it said then."""

    def log_two_bumps(x):
        bumps = torch.stack(
            (-2 * (x - 1.5).square().sum(-1), math.log(0.3) - 2 * (x + 1.5).square().sum(-1)),
        )
        return bumps.logsumexp(0)

    expected = json.loads((FORMAT_1 / "expected.json").read_text())
    sampler = JKOSampler.load(FORMAT_1, log_two_bumps)
    kinds = [type(layer).__name__ for layer in sampler.layers_]
    assert kinds == ["ForwardStep", "RejectionStep", "SplineMap", "SplineMap", "RejectionStep"]
    x = torch.tensor(expected["points"], dtype=torch.float64)
    for values, name in ((sampler.log_prob(x), "log_prob"), (sampler.sample(3, seed=1), "sample")):
        assert torch.allclose(values, torch.tensor(expected[name], dtype=torch.float64), rtol=1e-10)
    assert sampler.log_normalizer(200, seed=0) == pytest.approx(expected["log_normalizer"], rel=1e-9)
    assert (sampler.n_blocks, sampler.forward_steps, sampler.tol) == (2, 1, -math.inf)


@pytest.mark.parametrize(
    ("options", "n_blocks"),
    [
        ({}, 6),
        ({"step_sizes": 0.5}, 6),
        ({"step_sizes": [0.5, 2.0]}, 2),
        ({"step_sizes": [0.5, 2.0, 3.0], "n_blocks": 2}, 2),
        ({"step_sizes": [0.5, 2.0, 3.0], "corrected_blocks": 1}, 2),
        ({"step_sizes": [0.5], "corrected_blocks": 1}, 0),
    ],
)
def test_a_sequence_of_step_sizes_is_the_number_of_blocks(options, n_blocks):
    sampler = JKOSampler(unnormalised, initial=WIDE, **options)
    assert sampler.n_blocks == n_blocks
    assert sampler.step_sizes is options.get("step_sizes")
    assert JKOSampler.for_modes(unnormalised, WIDE, **options).n_blocks == (n_blocks if n_blocks != 6 else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_sizes": [0.5], "n_blocks": 2}, "1 entries for 2 steps; give one a block, or leave n_blocks out"),
        ({"step_sizes": [0.5], "n_blocks": 1, "corrected_blocks": 1}, "1 entries for 2 steps"),
        ({"step_sizes": [0.5], "corrected_blocks": 2}, "1 entries for 2 steps; give one a block$"),
        ({"step_sizes": [0.5, -1.0]}, r"step_size\[1\] must be positive"),
    ],
)
def test_too_few_step_sizes(options, message):
    with pytest.raises(ValueError, match=message):
        JKOSampler(unnormalised, initial=WIDE, **options)


def test_blocks_of_a_sequence_are_trained_and_saved(tmp_path):
    options = {"iterations": 2, "n_particles": 100, "batch_size": 32, "fine_tune": False, "tol": -math.inf}
    sampler = JKOSampler(unnormalised, initial=WIDE, map=wprox.AffineMap, step_sizes=(0.5, 2.0), **options).run()
    assert [stage["step_size"] for stage in sampler.history_] == [0.5, 2.0]
    sampler.save(tmp_path / "model")
    loaded = JKOSampler.load(tmp_path / "model", unnormalised)
    assert (loaded.step_sizes, loaded.n_blocks) == ([0.5, 2.0], 2)


@pytest.mark.parametrize("map", ["spline", "ode", "residual", "convex"])
def test_maps_of_every_name_are_saved(map, tmp_path):
    options = {"iterations": 2, "n_particles": 100, "batch_size": 32, "fine_tune": False, "tol": -math.inf}
    small = None if map == "convex" else {"hidden": (16,)}
    first = JKOSampler(
        unnormalised, initial=WIDE, map=map, map_options=small, step_sizes=[1.0], n_blocks=1, corrections=1, **options
    ).run()
    first.save(tmp_path / "model")
    loaded = JKOSampler.load(tmp_path / "model", unnormalised)
    assert torch.equal(loaded.sample(20, seed=0), first.sample(20, seed=0))
    assert (loaded.map, loaded.step_sizes, loaded.tol) == (map, [1.0], -math.inf)
    assert torch.equal(loaded.run().sample(20, seed=0), first.sample(20, seed=0))  # trained again as it was


def test_foreign_files_are_refused(sampler, tmp_path):
    sampler.save(tmp_path / "sampler")
    flow = wprox.JKOFlow(n_blocks=1, iterations=1, fine_tune=False).fit(torch.randn(100, 2))
    flow.save(tmp_path / "flow")
    with pytest.raises(ValueError, match="JKOFlow"):
        JKOSampler.load(tmp_path / "flow", unnormalised)
    with pytest.raises(ValueError, match="JKOSampler"):
        wprox.JKOFlow.load(tmp_path / "sampler")
    with pytest.raises(ValueError, match="no such folder"):
        JKOSampler.load(tmp_path / "nothing", unnormalised)


def test_maps_of_ones_own_are_loaded_by_their_class(tmp_path):
    class MyMap(wprox.AffineMap):
        pass

    sampler = JKOSampler(unnormalised, initial=WIDE, map=MyMap, n_blocks=1, iterations=30, fine_tune=False).run()
    sampler.save(tmp_path / "model")
    with pytest.raises(ValueError, match="MyMap"):
        JKOSampler.load(tmp_path / "model", unnormalised)
    loaded = JKOSampler.load(tmp_path / "model", unnormalised, map_classes=[MyMap])
    assert torch.equal(loaded.sample(5, seed=0), sampler.sample(5, seed=0))


def test_maps_of_ones_own_inside_composed_maps_are_saved(tmp_path):
    class MyMap(wprox.AffineMap):
        pass

    class Unsaid(wprox.AffineMap):
        config = wprox.TransportMap.config

    options = {"initial": WIDE, "step_sizes": [1.0], "iterations": 2, "n_particles": 100, "tol": -math.inf}
    for own in (MyMap, Unsaid):
        sampler = JKOSampler(
            unnormalised, map=lambda dim, own=own: wprox.ComposedMap([wprox.AffineMap(dim), own(dim)]), **options
        ).run()
        if own is Unsaid:
            with pytest.raises(ValueError, match="Unsaid does not say how to rebuild it"):
                sampler.save(tmp_path / "other")
            continue
        sampler.save(tmp_path / "model")
        loaded = JKOSampler.load(tmp_path / "model", unnormalised, map_classes=[MyMap])
        assert torch.equal(loaded.sample(5, seed=0), sampler.sample(5, seed=0))


def test_log_prob_is_that_of_the_layers_as_they_are(sampler):
    """Its copies of the maps in other precisions are made anew where a map has changed, and not before."""
    sampler = copy.deepcopy(sampler)
    x = torch.zeros(3, 2, dtype=torch.float64)
    before, chain = sampler.log_prob(x), sampler._chain(torch.float64)
    assert [a is b for a, b in zip(chain.layers, sampler._chain(torch.float64).layers, strict=True)]
    maps = [layer for layer in sampler.layers_ if isinstance(layer, wprox.TransportMap)]
    with torch.no_grad():
        next(maps[0].parameters()).add_(0.1)
    after = sampler.log_prob(x)
    assert not torch.equal(after, before)
    assert torch.equal(copy.deepcopy(sampler).log_prob(x), after)


def test_arguments_that_are_set_later_count():
    sampler = JKOSampler(unnormalised, initial=WIDE, n_blocks=0, n_particles=1000)
    sampler.corrections = 1
    assert [stage["stage"] for stage in sampler.run().history_] == ["rejection"]
    sampler.corrections = -1
    with pytest.raises(ValueError, match="corrections"):
        sampler.run()


# bad input


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (lambda x: torch.where(x[:, 0] > 0, torch.nan, -x.square().sum(-1)), ValueError, r"NaN at \d+ of 1000 points"),
        (lambda x: torch.where(x[:, 0] > 0, torch.inf, -x.square().sum(-1)), ValueError, r"\+∞ at \d+ of 1000 points"),
        (lambda x: torch.where(x[:, 0] > 0, -x.square().sum(-1), -torch.inf), ValueError, r"−∞ at \d+ of 1000 points"),
        (lambda x: -x.square(), ValueError, r"one log-density a row, \(1000,\); it returned shape \(1000, 2\)"),
        (lambda x: -x.square().sum(), ValueError, r"one log-density a row"),
        (lambda x: -x.detach().square().sum(-1), TypeError, "not differentiable"),
        (lambda x: -x.detach().square().sum(-1) + 0 * torch.zeros(1, requires_grad=True), TypeError, "no way from"),
        (lambda x: -x.round().square().sum(-1), TypeError, "it varies, from .* and its gradient is 0 at all of 1000"),
        (lambda x: (-(x.detach().numpy() ** 2)).sum(-1), TypeError, "must return a tensor"),
        (lambda x: -(x - x).norm(dim=-1) * x.new_tensor(math.inf), ValueError, "NaN"),
        (lambda x: -torch.where(x > 0, x, x * 0).sqrt().sum(-1), ValueError, "gradient of the target's log-density"),
        (lambda x: -(x @ torch.eye(2).double()).square().sum(-1), TypeError, "floating-point types"),
    ],
)
@pytest.mark.parametrize("initial", [WIDE, None])
def test_bad_targets_are_named(target, error, message, initial):
    with pytest.raises(error, match=message):
        JKOSampler(target, dim=2, initial=initial).run()


def test_an_error_of_the_target_that_no_precision_mends_is_its_own():
    def target(x):
        return x @ torch.zeros(3)  # whose message names shapes

    with pytest.raises(RuntimeError, match="size mismatch"):
        JKOSampler(target, initial=WIDE).run()

    def named(x):
        raise RuntimeError("this dtype of error is another one")

    with pytest.raises(RuntimeError, match="is another one"):
        JKOSampler(named, initial=WIDE).run()


def test_a_target_that_turns_bad_far_from_the_start_says_where():
    def target(x):
        return torch.where(x[:, 0] > 8, torch.nan, x[:, 0])  # pulls to the right

    with pytest.raises(ValueError, match=r"NaN at .* points, .*\((8|9|1\d)"):
        JKOSampler(target, initial=WIDE, step_sizes=100.0, **QUICK).run()


def test_a_target_that_no_gaussian_fits_says_what_to_give():
    with pytest.raises(StepFailedError, match="initial=Gaussian"):
        JKOSampler(lambda x: x.square().sum(-1), dim=2).run()


def test_dimensions_must_be_known_and_agree():
    with pytest.raises(ValueError, match="nothing says it"):
        JKOSampler(lambda x: -x.square().sum(-1))
    with pytest.raises(ValueError, match="the target says 3, initial says 2"):
        JKOSampler(Gaussian(torch.zeros(3), torch.eye(3)), initial=WIDE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_blocks": -1}, "n_blocks"),
        ({"forward_steps": -1}, "forward_steps"),
        ({"rejection_rate": 1.0}, "rejection_rate"),
        ({"corrections": -1}, "corrections"),
        ({"tol": math.nan}, "tol"),
        ({"n_particles": 1}, "n_particles"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"map": "splines"}, "map must be one of"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        JKOSampler(unnormalised, initial=WIDE, **options)


def test_use_before_run():
    sampler = JKOSampler(unnormalised, initial=WIDE)
    for use in (sampler.sample, sampler.log_normalizer, lambda: sampler.log_prob(torch.zeros(1, 2))):
        with pytest.raises(NotFittedError, match="run"):
            use()


def test_effective_size_is_the_one_of_metrics():
    log_weights = torch.randn(1000, generator=torch.Generator().manual_seed(0)).double() * 3 + 700
    assert effective_size(log_weights) == pytest.approx(float(wprox.metrics.ess(log_weights, log=True)))
    assert effective_size(torch.zeros(7)) == 7
    assert effective_size(torch.full((7,), -math.inf)) == 0


def test_useless_weights_warn_and_say_what_to_try():
    far = Gaussian(torch.full((2,), 20.0), torch.eye(2))
    sampler = JKOSampler(far, initial=WIDE, n_blocks=1, iterations=1, fine_tune=False, n_particles=100).run()
    x = sampler.sample(2000, seed=0)
    for use in (sampler.importance_weights, sampler.effective_sample_size, lambda _: sampler.log_normalizer(2000)):
        with pytest.warns(RuntimeWarning, match=r"effective sample size is .* of 2000 draws.*initial Gaussian"):
            use(x)


def test_good_weights_do_not_warn(sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.importance_weights(sampler.sample(1000, seed=0))


def test_interruption_keeps_the_blocks(monkeypatch):
    original, calls = wprox.NeuralProx.step, []

    def step(self, *arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(wprox.NeuralProx, "step", step)
    with pytest.warns(RuntimeWarning, match="interrupted; the sampler has the 1 layers"):
        sampler = JKOSampler(unnormalised, initial=WIDE, **QUICK).run()
    assert sampler.interrupted_
    assert sampler.sample(3, seed=0).shape == (3, 2)
    with pytest.raises(KeyboardInterrupt):
        JKOSampler(unnormalised, initial=WIDE, **QUICK).run()
