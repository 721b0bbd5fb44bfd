"""log Z and its standard error: Pareto index, annealed draws, bridge sampling, and warnings of missing mass."""

import math
import warnings

import pytest
import torch

from wprox import Gaussian, JKOSampler
from wprox.maps import InverseError
from wprox.metrics import pareto_k
from wprox.models.sampler.annealing import annealed, log_cauchy
from wprox.models.sampler.normalizer import POPULATIONS, Reverse, bridge, log_prob, reviewed
from wprox.models.sampler.weights import log_normalizer

DOUBLE = torch.empty(0).double()
POPULATION_OF = torch.arange(POPULATIONS).repeat_interleave(500)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed):
    return torch.randn(n, d, generator=seeded(seed), dtype=torch.float64)


def as_it_starts(log_target, initial):
    """The sampler whose law is the initial Gaussian."""
    return JKOSampler(log_target, initial=initial, n_blocks=0).run()


def gaussian(loc, variance=1.0):
    loc = torch.tensor(loc).double()
    return Gaussian(loc, variance * torch.eye(len(loc)).double())


def mixture(parts):
    """Σ w N(m, s² I) for (w, m, s)."""

    def log_density(x):
        terms = [
            math.log(w) - (x - x.new_tensor(m)).square().sum(1) / (2 * s**2) - x.shape[1] * math.log(s * 2.5066282746)
            for w, m, s in parts
        ]
        return torch.stack(terms).logsumexp(0)

    return log_density


def reverse_of(log_weights, log_z=0.0):
    return Reverse(log_weights, POPULATION_OF, torch.full((POPULATIONS,), log_z).double())


def gaussian_pair(seed, n=1000, d=2, shift=0.3, scale=0.9):
    """log g − log ρ for ρ = N(0, I) and g = 7 N(shift, scale² I), at draws of both."""
    log_ratio = mixture([(7.0, [shift] * d, scale)])
    log_start = mixture([(1.0, [0.0] * d, 1.0)])
    x, y = normal(n, d, 2 * seed), shift + scale * normal(len(POPULATION_OF), d, 2 * seed + 1)
    return log_ratio(x) - log_start(x), reverse_of(log_ratio(y) - log_start(y), math.log(7))


# the Pareto index


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_pareto_k_of_pareto_weights(k):
    """The mean of 40 estimates, to four standard errors (false alarms 6e-5) after the pull of ten weights to ½."""
    estimates = torch.tensor([pareto_k(1 / torch.rand(2000, generator=seeded(s)).double() ** k) for s in range(40)])
    tail = math.ceil(3 * math.sqrt(2000))
    expected = (tail * k + 5) / (tail + 10)
    assert float(estimates.mean()) == pytest.approx(expected, abs=4 * float(estimates.std()) / math.sqrt(40))


def test_pareto_k_is_close_to_maximum_likelihood():
    """Zhang and Stephens' estimate against SciPy's numerical maximum, before the pull to ½."""
    from scipy.stats import genpareto

    for seed in range(5):
        values = (1 / torch.rand(2000, generator=seeded(seed)).double() ** 0.6).sort().values
        tail = math.ceil(3 * math.sqrt(2000))
        shape, _, _ = genpareto.fit((values[-tail:] - values[-tail - 1]).numpy(), floc=0)
        assert (pareto_k(values) * (tail + 10) - 5) / tail == pytest.approx(shape, abs=0.06)


def test_pareto_k_of_logarithms_multiples_and_light_tails():
    log_weights = normal(500, 1, 0)[:, 0]
    k = pareto_k(log_weights.exp())
    assert pareto_k(log_weights + 2000, log=True) == pytest.approx(k)
    assert pareto_k(1e-300 * log_weights.exp()) == pytest.approx(k)
    assert pareto_k(torch.rand(5000, generator=seeded(0))) < -0.5  # a uniform law has k = −1
    assert pareto_k(torch.ones(30)) == -math.inf


@pytest.mark.parametrize(
    ("weights", "message"), [([1.0] * 24, "25 or more, got 24"), ([-1.0] * 30, "non-negative"), ([0.0] * 30, "zero")]
)
def test_pareto_k_refuses(weights, message):
    with pytest.raises(ValueError, match=message):
        pareto_k(weights)


# annealed draws


def test_the_cauchy_law_integrates_to_one():
    axis = torch.linspace(-200, 200, 200_001, dtype=torch.float64)[:, None]
    mass = float(torch.trapezoid(log_cauchy(axis).exp(), axis[:, 0]))
    assert mass == pytest.approx(2 / math.pi * math.atan(200), abs=1e-8)
    r = torch.linspace(0, 1000, 1_000_001, dtype=torch.float64)
    plane = log_cauchy(torch.stack((r, torch.zeros_like(r)), dim=1)).exp()
    assert float(torch.trapezoid(2 * math.pi * r * plane, r)) == pytest.approx(1 - 1 / math.sqrt(1 + 1e6), abs=1e-6)


def test_annealed_draws_follow_the_target_and_know_its_mass():
    """Modes 12 deviations from the start: the mean over five populations, to four of its own standard errors."""
    log_g = mixture([(6.0, [12.0, 0.0], 1.0), (2.0, [-12.0, 0.0], 0.5)])
    runs = [annealed(log_g, 2, 500, seeded(s), DOUBLE) for s in range(5)]
    z = torch.tensor([math.exp(run.log_normalizer) for run in runs])
    weights = z / z.sum()
    assert float(z.mean()) == pytest.approx(8, abs=4 * float(z.std()) / math.sqrt(5))
    right = torch.tensor([float((run.points[:, 0] > 0).double().mean()) for run in runs])
    error = float((weights.square() * (right - 0.75).square()).sum().sqrt())
    assert float(weights @ right) == pytest.approx(0.75, abs=4 * error)
    for run in runs:
        assert torch.equal(run.log_density, log_g(run.points))


def test_moves_leave_a_gaussian_as_it_is():
    """χ² of all coordinates about their law: mean 1 to 6 standard errors of independent draws."""
    run = annealed(mixture([(1.0, [0.0] * 10, 1.0)]), 10, 2000, seeded(0), DOUBLE)
    assert float(run.points.square().mean()) == pytest.approx(1, abs=6 * math.sqrt(2 / 20_000))
    assert run.log_normalizer == pytest.approx(0, abs=0.2)


def test_annealing_knows_where_it_does_not_get_to_the_target():
    log_g = mixture([(1.0, [0.0] * 51, 1.0)])
    assert annealed(log_g, 51, 100, seeded(0), DOUBLE) is None
    assert annealed(lambda u: torch.full_like(u[:, 0], -math.inf), 1, 100, seeded(0), DOUBLE) is None


# two estimates


def test_bridge_sampling_is_exact_where_the_sampler_is():
    found = bridge(torch.full((50,), 3.0).double(), None, reverse_of(torch.full((2000,), 3.0).double()))
    assert found == pytest.approx((3, 0), abs=1e-9)


def test_bridge_sampling_covers_and_is_no_worse_than_weights():
    """Normal errors would be beyond 3 for 0.3 % of 200 pairs; with a variance from four populations for up to 5.8 %.

    The latter gives over 25 of 200 with probability 1e-4.
    """
    pairs = [gaussian_pair(seed) for seed in range(200)]
    bridged = [bridge(forward, None, reverse) for forward, reverse in pairs]
    errors = torch.tensor([found.value - math.log(7) for found in bridged])
    told = torch.tensor([found.standard_error for found in bridged])
    assert int((errors.abs() > 3 * told).sum()) <= 25
    assert float(told.square().mean().sqrt() / errors.square().mean().sqrt()) == pytest.approx(1, abs=0.2)
    weights = torch.tensor([log_normalizer(forward).value - math.log(7) for forward, _ in pairs])
    assert float(errors.square().mean()) < float(weights.square().mean())


def test_the_interval_covers_where_nothing_is_wrong_and_no_warning_comes():
    """200 pairs of Gaussians: beyond 3 are 0.3 % of normal errors, so over 4 with probability 4e-4; no warning."""
    beyond = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(200):
            forward, reverse = gaussian_pair(seed)
            value, error = reviewed(forward, None, reverse)
            beyond += abs(value - math.log(7)) > 3 * error
    assert beyond <= 4


def test_the_interval_covers_a_missing_mode_whose_draws_are_given():
    """ρ has one mode of two, with 0.8 of the mass: weights are constant, and the effective sample is all draws."""
    forward = torch.full((10_000,), math.log(0.8)).double()
    log_weights = torch.where(torch.rand(2000, generator=seeded(0)) < 0.8, math.log(0.8), 200.0).double()
    with pytest.warns(RuntimeWarning, match=r"about 0\.(19|2|21) of the target's mass.*Bridge sampling.*Try"):
        value, error = reviewed(forward, None, reverse_of(log_weights))
    assert value == pytest.approx(0, abs=4 * math.sqrt(0.2 * 0.8 / 2000) / 0.8)  # false alarms 6e-5
    assert abs(value) < 3 * error < 1.5
    assert error > 0.2


def test_a_part_that_chance_brings_about_widens_the_interval():
    forward = gaussian_pair(0, n=10_000)[0]
    beyond = torch.full((2000,), math.log(7)).double()
    beyond[:3] = float(forward.max()) + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, error = reviewed(forward, None, reverse_of(beyond, math.log(7)))
    found = log_normalizer(forward)
    assert value == found.value
    assert error == pytest.approx(math.hypot(found.standard_error, 3 / 2000))


def test_weights_that_are_all_equal_do_not_make_the_error_vanish():
    """As those of draws that match one mode exactly and know of no other."""
    forward, reverse = torch.zeros(10_000).double(), reverse_of(torch.zeros(2000).double())
    assert reviewed(forward, None, reverse) == pytest.approx((0, 2 / 2000))


def test_populations_that_lost_mass_are_not_heard():
    forward, reverse = gaussian_pair(0, n=10_000)
    lost = reverse_of(reverse.log_weights + 50, math.log(7) - 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reviewed(forward, None, lost) == reviewed(forward, None, None) == log_normalizer(forward)


def test_heavy_tails_are_told():
    heavy = -1.2 * torch.rand(5000, generator=seeded(0)).double().log()
    with pytest.warns(RuntimeWarning, match=r"tail .* heavy \(Pareto k = 1\.\d\d, above 0\.70\).*No better estimate"):
        assert reviewed(heavy, None, None) == log_normalizer(heavy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reviewed(heavy[:20], None, None)  # too few to tell


# the sampler


def test_a_mode_that_no_draw_is_near_is_told():
    """ρ = N((5, 0), I) and a mode at (−5, 0) with 0.4 of the mass: the weights alone say log 0.6 ± 0."""
    sampler = as_it_starts(mixture([(0.6, [5.0, 0.0], 1.0), (0.4, [-5.0, 0.0], 1.0)]), gaussian([5.0, 0.0]))
    x = sampler.sample(10_000, seed=0)
    assert sampler.effective_sample_size(x) > 0.999 * len(x)
    with pytest.warns(RuntimeWarning, match=r"about 0\.\d+ of the target's mass.*initial Gaussian that covers"):
        value, error = sampler.log_normalizer(seed=0)
    assert abs(value) < error < 1.5


def test_an_arm_that_no_draw_is_in_is_told():
    """A tenth of the mass in an arm that leaves the body, the rest as ρ has it: an effective sample of nearly all."""
    arm = [(0.1 / 8, [3.0 + 0.5 * k, 0.0], 0.3) for k in range(4, 12)]
    sampler = as_it_starts(mixture([(0.9, [0.0, 0.0], 1.0), *arm]), gaussian([0.0, 0.0]))
    x = sampler.sample(10_000, seed=0)
    assert sampler.effective_sample_size(x) > 0.99 * len(x)
    with pytest.warns(RuntimeWarning, match="of the target's mass"):
        value, error = sampler.log_normalizer(seed=0)
    assert abs(value) < 3 * error < 0.6


@pytest.mark.parametrize("dim", [1, 2, 8, 30])
def test_no_warning_where_the_sampler_covers_the_target(dim):
    """N(0, 1.2 I) for N(0, I), three seeds: one of all 12 is beyond 3.5 standard errors with probability 0.6 %."""
    sampler = as_it_starts(mixture([(1.0, [0.0] * dim, 1.0)]), gaussian([0.0] * dim, 1.2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(10, 13):
            value, error = sampler.log_normalizer(4000, seed=seed)
            assert abs(value) < 3.5 * error < 0.06


def test_log_z_is_of_the_seed_and_unpacks_into_two():
    sampler = as_it_starts(mixture([(1.0, [0.0, 0.0], 1.0)]), gaussian([0.0, 0.0], 1.2))
    first = sampler.log_normalizer(500, seed=1)
    assert first == sampler.log_normalizer(500, seed=torch.Generator().manual_seed(1))
    assert first != sampler.log_normalizer(500, seed=2)
    value, error = first
    assert (value, error) == (first.value, first.standard_error)


def test_a_target_that_is_not_defined_far_away_is_still_annealed():
    """NaN beyond 50: where no draw of the sampler comes, and the wide law does."""

    def log_target(x):
        return torch.where(x.square().sum(1) < 2500, -x.square().sum(1) / 2, torch.nan)

    sampler = as_it_starts(log_target, gaussian([0.0, 0.0], 1.2))
    value, error = sampler.log_normalizer(seed=0)
    assert abs(value - math.log(2 * math.pi)) < 4 * error < 0.02


def test_points_that_forward_steps_do_not_reach_have_no_density():
    """The quartic potential folds far out, where `log_prob` refuses all points with one sentence."""
    sampler = JKOSampler(
        lambda x: -(x[:, 0].square() - 4).square() / 4,
        initial=gaussian([0.0], 9.0),
        forward_steps=2,
        n_blocks=0,
        n_particles=2000,
    ).run()
    chain, points = sampler._chain(torch.float64), torch.tensor([[0.5], [7.0], [-0.2]]).double()
    with pytest.raises(InverseError):
        chain.log_prob(points)
    found = log_prob(chain, points)
    assert torch.allclose(found[[0, 2]], chain.log_prob(points[[0, 2]]))
    assert found[1] == -math.inf
    reverse = reverse_of(torch.cat((torch.full((1990,), 2.0), torch.full((10,), math.inf))).double(), 2.0)
    assert bridge(torch.full((10_000,), 2.0).double(), None, reverse).value == pytest.approx(2 + 10 / 1990, abs=1e-4)


def test_rejection_rates_are_taken_out_of_both_estimates():
    """A missing mode behind a rejection step whose rate is 0.05 off."""
    log_target = mixture([(0.7, [3.0], 0.8), (0.3, [-12.0], 0.5)])
    sampler = JKOSampler(log_target, initial=gaussian([3.0]), n_blocks=0, corrections=1, n_particles=4000).run()
    (step,) = sampler.layers_
    sampler.layers_ = [step._replace(rejection_rate=step.rejection_rate + 0.05)]
    with pytest.warns(RuntimeWarning, match="of the target's mass"):
        value, error = sampler.log_normalizer(seed=0)
    assert abs(value) < error < 1


def test_heavy_tails_that_do_no_harm_are_not_told():
    """Weights of nearly 1 with a few of Pareto's law in a thousandth: annealed draws agree, the error stays small."""
    forward = 0.001 * normal(10_000, 1, 0)[:, 0]
    forward[:100] = (1 + 0.1 / torch.rand(100, generator=seeded(1)).double()).log()
    assert pareto_k(forward, log=True) > 0.7
    reverse = reverse_of(0.001 * normal(2000, 1, 2)[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        value, error = reviewed(forward, None, reverse)
    assert abs(value) < 3 * error < 0.05
