"""Preprocessing: bounds without atoms or missing mass, scales that no row decides, tails, rows without a density."""

import math
import pickle
import warnings

import pytest
import torch

from wprox import JKOFlow
from wprox.models.flow.bounded import Probit, ShrunkLogit
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.tails import HEAVY, START, Tails, robust_moments

QUICK = {"n_blocks": 1, "iterations": 40, "fine_tune": False}
F64 = torch.float64


def uniform(n, d=1, seed=0):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def normal(n, d=1, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def one(d=1):
    return torch.zeros(d, dtype=F64), torch.ones(d, dtype=F64)


# bounds


def test_probit_is_inverted_and_differentiated():
    map = Probit(*(torch.tensor([end], dtype=F64) for end in (-2.0, 3.0)), torch.full((2, 1), 1e-5, dtype=F64))
    x = torch.tensor([-2 + 1e-12, -1.9, 0.5, 2.9, 3 - 1e-12], dtype=F64)[:, None].requires_grad_()
    z, log_slope = map.forward(x)
    assert torch.allclose(map.inverse(z), x, rtol=0, atol=1e-15)
    slope = torch.autograd.grad(z.sum(), x)[0]
    assert torch.allclose(slope.log(), log_slope, rtol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 1 / 6])
def test_mass_at_a_bound_makes_gaussian_tails(alpha):
    """P(p < s) = s^α gives P(z < −a) = Φ(−a)^α exactly."""
    map = Probit(*one(), torch.zeros(2, 1, dtype=F64))
    level = torch.tensor([[1e-3], [0.01], [0.3]], dtype=F64)
    z, _ = map.forward(level ** (1 / alpha))
    assert torch.allclose((alpha * torch.special.log_ndtr(z)).exp(), level, rtol=1e-9)
    assert torch.allclose(map.inverse(z), level ** (1 / alpha), rtol=1e-9)


@pytest.mark.parametrize(
    "law", [lambda u: u, lambda u: torch.sin(u * torch.pi / 2) ** 2, lambda u: u**6, lambda u: 1 - u**6]
)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_no_mass_on_or_beyond_the_bounds(law, dtype):
    x = law(uniform(1500)).to(dtype)  # 1 − u⁶ has ones, by rounding
    flow = JKOFlow(bounds=(0.0, 1.0), **QUICK).fit(x)
    sample = flow.sample(4000, seed=0)
    assert bool(((sample > 0) & (sample < 1)).all())
    # z = Φ⁻¹(p) at equally spaced places covers poles at both ends
    z = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    z = z[(z > -8) & (z < 8)][:, None]
    near = torch.special.ndtr(z)
    density = flow.log_prob(near).exp() * (-z[:, 0].square() / 2).exp() / math.sqrt(2 * math.pi)
    assert float(density.sum() * 0.004) == pytest.approx(1, abs=2e-3)


def test_numbers_on_a_bound_have_a_density_and_no_spike():
    x = uniform(1000)
    x[:300] = 0.0
    preprocessing = Preprocessing(bounds=(0.0, 1.0)).fit(x)
    edge = float(preprocessing.bounded.edges[0])
    assert edge == pytest.approx(1e-4 * float(x.mean()))
    spread = preprocessing.bounded.spread(x, torch.Generator().manual_seed(0))
    assert bool((spread[:300] > 0).all() & (spread[:300] < edge).all())
    assert torch.equal(spread[300:][x[300:] > edge], x[300:][x[300:] > edge])
    at, middle = (preprocessing.forward(torch.tensor([[value]], dtype=F64)) for value in (0.0, edge / 2))
    assert torch.allclose(torch.cat(at, 0) if at[0].ndim == 1 else at[0], middle[0])


def test_rows_outside_their_bounds_have_density_zero():
    flow = JKOFlow(bounds=(0.0, 1.0), **QUICK).fit(uniform(300, 2))
    rows = torch.tensor([[0.5, 0.5], [1.5, 0.5], [0.2, -0.1], [0.0, 1.0]], dtype=F64)
    value = flow.log_prob(rows)
    assert value.isneginf().tolist() == [False, True, True, False]
    assert torch.allclose(value[[0, 3]], flow.log_prob(rows[[0, 3]]))
    with pytest.warns(
        RuntimeWarning, match="2 of 4 rows have density 0 .*, the first is row 1, so that the mean is −∞"
    ):
        assert flow.score(rows) == -math.inf
    for refuse in (flow.transform, flow.latents, flow.fit):
        with pytest.raises(ValueError, match="2 entries lie outside their bounds, the first at row 1, column 0"):
            refuse(rows)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("map", ["spline", "residual", "convex"])
def test_rows_far_out_have_density_zero_and_not_nan(map, dtype):
    flow = JKOFlow(map=map, n_blocks=1, iterations=1, fine_tune=False)
    flow.fit(1e-3 * normal(100, 2).to(dtype))
    far = torch.tensor([[1e25, 0.0], [0.0, -3e38], [3e38, 3e38]], dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not bool(flow.log_prob(far).isnan().any())


def test_the_logit_of_old_folders_is_the_one_they_were_fitted_with():
    old = Preprocessing(bounds=(0.0, 1.0), plain=True).fit(uniform(50))
    assert isinstance(old.bounded, ShrunkLogit)
    again = Preprocessing(bounds=(0.0, 1.0)).load_state(old.state())
    assert torch.equal(again.forward(uniform(50))[0], old.forward(uniform(50))[0])


# scales and tails


def test_moments_are_those_of_the_column_unless_a_row_is_far_out():
    x = torch.cat((normal(300), uniform(300), -uniform(300).log(), (uniform(300) < 0.01).double()), 1)
    mean, std = robust_moments(x)
    assert torch.equal(mean, x.mean(0))
    assert torch.equal(std, x.std(0))
    x[7] = 1e6
    mean, std = robust_moments(x)
    assert float((mean - x[8:].mean(0)).abs().max()) < 0.2
    assert float((std / x[8:].std(0)).max()) < 20  # among ones that are rare the far row still counts for many


@pytest.mark.parametrize("n", [10, 60, 300])
def test_an_outlier_is_told_however_few_rows_there_are(n):
    x = normal(n, 2)
    x[n // 2, 1] = 1e6
    with pytest.warns(UserWarning, match=f"row {n // 2} lies .* standard deviations from the mean in column 1"):
        preprocessing = Preprocessing().fit(x)
    assert float(preprocessing.std.max()) < 10


@pytest.mark.parametrize("strength", HEAVY)
def test_tails_are_inverted_differentiated_and_smooth(strength):
    tails = Tails(torch.tensor([strength, 0.0], dtype=F64))
    z = torch.tensor([-1e9, -50.0, -START - 1e-6, -2.0, 0.0, START - 1e-9, START + 1e-9, 4.0, 1e4], dtype=F64)
    z = torch.stack((z, z), 1).requires_grad_()
    y, log_slope = tails.forward(z)
    assert torch.equal(y[:, 1], z[:, 1])
    assert torch.allclose(tails.inverse(y), z, rtol=1e-9)
    slope = torch.autograd.grad(y.sum(), z)[0]
    assert torch.allclose(slope.log(), log_slope, rtol=1e-6, atol=1e-8)
    assert float(log_slope[4:7].detach().abs().max()) < 1e-7
    survival = (1 + strength * (z[-2:, 0] - START) / 0.30459) ** (-1 / strength)
    assert torch.allclose(
        torch.special.ndtr(-y[-2:, 0]), survival * torch.special.ndtr(torch.tensor(-START)), rtol=1e-4
    )


def test_tails_are_heavy_where_held_out_rows_want_them():
    """Of 2,000 rows: nothing for a Gaussian, uniform, Laplace or bimodal column, a heavy tail for Cauchy's."""
    n = 2000
    laplace = -(uniform(n).log()) * (1 - 2 * (uniform(n, seed=1) < 0.5).double())
    two = normal(n) + 6 * (uniform(n) < 0.5).double()
    cauchy = torch.tan(math.pi * (uniform(n) - 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strength = Preprocessing().fit(torch.cat((normal(n), uniform(n), laplace, two, cauchy), 1)).tails.strength
    assert strength.tolist() == [0, 0, 0, 0, 1]


def test_one_far_row_does_not_widen_what_is_generated(tmp_path):
    x = normal(300, 2)
    x[0, 0] = 1e6
    with pytest.warns(UserWarning, match="row 0 lies"):
        flow = JKOFlow(n_blocks=1, iterations=60, fine_tune=False).fit(x)
    sample = flow.sample(4000, seed=0)[:, 0]
    assert 0.5 < float(sample.quantile(0.75) - sample.quantile(0.25)) / 1.349 < 2
    flow.save(tmp_path / "model")
    again = JKOFlow.load(tmp_path / "model")
    assert torch.equal(again.log_prob(x), flow.log_prob(x))
    assert torch.allclose(flow.inverse_transform(flow.transform(x)), x, rtol=1e-6)


def test_a_cauchy_column_costs_its_entropy():
    """log 4π; without heavy tails a held-out row cost up to 1,923 nats."""
    x = torch.tan(math.pi * (uniform(2000) - 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flow = JKOFlow(n_blocks=1, iterations=100, fine_tune=False, jitter=0.0).fit(x[:1000])
    assert -flow.score(x[1000:]) < math.log(4 * math.pi) + 0.6


def test_log_prob_has_a_gradient_on_the_bounds_too():
    flow = JKOFlow(n_blocks=1, iterations=2, fine_tune=False, bounds=(0, 1)).fit(uniform(300, 2))
    x = torch.tensor([[0.0, 0.5], [1.0, 0.3], [0.2, 1.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    assert bool(gradient.isfinite().all())
    inner = torch.tensor([[0.31, 0.5], [0.5, 0.77]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: flow.preprocessing_.forward(x), inner)


def test_integers_between_fractions_are_the_whole_numbers_between_them():
    x = torch.randint(0, 4, (400, 2), generator=torch.Generator().manual_seed(0)).double()
    flow, same = (
        JKOFlow(n_blocks=1, iterations=2, fine_tune=False, integer=True, bounds=bounds).fit(x)
        for bounds in ((-0.5, 3.5), (0, 3))
    )
    rows = flow.sample(500, seed=0)
    assert sorted(rows.unique().tolist()) == [0, 1, 2, 3]
    assert torch.equal(rows, same.sample(500, seed=0))
    assert flow.log_prob([[-1.0, 0.0], [4.0, 0.0]]).tolist() == [-math.inf, -math.inf]
    with pytest.raises(ValueError, match="two whole numbers"):
        JKOFlow(integer=True, bounds=(0.2, 1.5)).fit(x)


@pytest.mark.parametrize("bounds", [None, (0, 1)])
def test_what_was_pickled_before_is_what_it_was(bounds):
    fitted = Preprocessing(bounds=bounds, plain=True).fit(uniform(50, 2))
    old = {name: value for name, value in vars(fitted).items() if name not in ("bounded", "tails", "plain")}
    if fitted.bounded is not None:
        old |= fitted.bounded.state()  # low and high
    known = Preprocessing.__new__(Preprocessing)
    known.__setstate__(old)
    for one, other in zip(fitted.forward(uniform(9, 2)), known.forward(uniform(9, 2)), strict=True):
        assert torch.equal(one, other)
    again = pickle.loads(pickle.dumps(known))
    assert torch.equal(again.inverse(normal(9, 2)), fitted.inverse(normal(9, 2)))
    assert not hasattr(known, "low")


@pytest.mark.parametrize(("part", "place"), [(0.2, 50), (0.1, 30), (0.05, 100), (0.05, 1000), (0.45, 100)])
def test_a_mode_far_out_is_no_outlier(part, place):
    x = normal(1000)
    x[: int(part * 1000)] += place
    x = x[torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
    mean, std = robust_moments(x)
    assert torch.equal(mean, x.mean(0))
    assert torch.equal(std, x.std(0))
    assert not Tails.fit((x - mean) / std).any


@pytest.mark.parametrize("law", ["cauchy", "lognormal"])
def test_tails_are_no_mode(law):
    """The moments stay those of the middle: at worst one of 20 seeds is taken for a mode where ALIKE is 0.5."""
    for seed in range(20):
        x = (
            (math.pi * (uniform(1000, seed=seed) - 0.5)).tan()
            if law == "cauchy"
            else (2 * normal(1000, seed=seed)).exp()
        )
        assert float(robust_moments(x)[1]) < 15


def test_latent_points_beyond_all_numbers_give_the_largest():
    flow = JKOFlow(**QUICK).fit((math.pi * (uniform(500) - 0.5)).tan())
    assert flow.preprocessing_.tails.any
    for dtype in (torch.float32, F64):
        rows = flow.inverse_transform(torch.tensor([[100.0], [-100.0], [1e4], [0.1]], dtype=dtype))
        assert bool(rows.isfinite().all())
        assert float(rows[0]) > float(rows[3]) > float(rows[1])
