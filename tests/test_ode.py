"""ODEMap beyond the gauntlet: schemes, divergences, penalties, and its training by NeuralProx and JKOFlow."""

import copy
import itertools
import math
from functools import partial

import pytest
import test_neural_prox
import torch
from scipy.integrate import solve_ivp
from test_neural_prox import standard_normal

import wprox
from wprox._random import seeded
from wprox.maps._runge_kutta import SCHEMES, adaptive, fixed
from wprox.maps._velocity import ACTIVATIONS, _TwoLayers
from wprox.solvers.neural.flow_matching import Relaxation, relaxation

F64 = torch.float64


def build(dim, perturb=0.05, seed=0, **options):
    with seeded(seed):
        map = wprox.ODEMap(dim, **options).double()
        with torch.no_grad():
            for parameter in map.parameters():
                parameter += perturb * torch.randn_like(parameter)
    return map


def points(n, dim):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=F64)


def cloud(n, loc, scale):
    """Points with exactly the mean loc and the covariance scale² I."""
    return test_neural_prox.cloud(n, len(loc), torch.tensor(loc, dtype=F64), scale, seed=1, dtype=torch.float32)


# --- the schemes ---


@pytest.mark.parametrize(("method", "order"), [("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_fixed_schemes_have_their_order(method, order):
    """y' = y cos t on a partition of [0, 1] that is not even."""
    errors = []
    for n in (8, 16, 32):
        times = [(k / n) ** 1.5 for k in range(n + 1)]
        (y,) = fixed(lambda t, y: (y * math.cos(t),), torch.ones(1, 1, dtype=F64), times, method)
        errors.append(abs(float(y) - math.exp(math.sin(1.0))))
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.3)
    assert set(SCHEMES) == {"midpoint", "heun", "rk4"}


@pytest.mark.parametrize(("method", "order"), [("midpoint", 3), ("heun", 3), ("rk4", 5)])
def test_error_estimates_vanish_with_the_step(method, order):
    """Squares of O(h²) or O(h³) a step, of the path and of its integral; nothing where the field is constant."""
    x = torch.ones(1, 1, dtype=F64)

    def error(n, rates):
        times = [k / n for k in range(n + 1)]
        return float(fixed(lambda t, y: rates(t, y), x, times, method, with_error=True)[-1])

    for rates in (
        lambda t, y: (y * math.cos(t), torch.zeros(1, dtype=F64)),
        lambda t, y: (torch.ones_like(y), y[:, 0].exp()),
    ):
        assert math.log2(error(16, rates) / error(32, rates)) == pytest.approx(order, abs=0.3)
    assert error(4, lambda t, y: (torch.ones_like(y), torch.ones(1, dtype=F64))) < 1e-28


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_the_written_out_gradient_is_that_of_the_formula(activation):
    """Of value and divergence, by finite differences; so are second derivatives."""
    generator = torch.Generator().manual_seed(0)
    shapes = (4, 2), (3, 2), (3,), (5, 3), (5,), (3, 5)
    inputs = [torch.randn(shape, generator=generator, dtype=F64, requires_grad=True) for shape in shapes]

    def both(*inputs):
        return _TwoLayers.apply(*inputs, ACTIVATIONS[activation])

    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs)


def test_adaptive_is_scipy_and_rows_do_not_see_one_another():
    """A pendulum a row; the fast ones have steps of their own."""
    rates = torch.tensor([1.0, 5.0, 25.0], dtype=F64)
    start = torch.tensor([[1.0, 0.0]], dtype=F64).repeat(3, 1)

    def field(t, y):
        # tell the rows apart by their energies' scale, which the field keeps in a third column
        return torch.stack((y[:, 2] * y[:, 1], -y[:, 2] * y[:, 0].sin(), 0 * t), 1)

    y = adaptive(field, torch.cat((start, rates[:, None]), 1), 1e-10, 0.1)
    for k, rate in enumerate(rates.tolist()):
        exact = solve_ivp(
            lambda t, y, rate=rate: [rate * y[1], -rate * math.sin(y[0])], (0, 1), [1, 0], rtol=1e-12, atol=1e-12
        ).y[:, -1]
        assert y[k, :2].tolist() == pytest.approx(exact.tolist(), abs=1e-8)
        alone = adaptive(field, torch.cat((start[k : k + 1], rates[k, None, None]), 1), 1e-10, 0.1)
        assert torch.equal(alone[0], y[k])


def test_a_flow_too_stiff_raises_and_nan_goes_through():
    def explodes(t, y):
        return y.square()  # from y = 2 it is infinite at t = 1/2

    with pytest.raises(FloatingPointError, match=r"steps of .* to meet its tolerance 1e-06 at t = 0\.5"):
        adaptive(explodes, torch.tensor([[2.0], [0.1]], dtype=F64), 1e-6, 0.1)
    y = adaptive(explodes, torch.tensor([[math.nan], [0.5]], dtype=F64), 1e-6, 0.1)
    assert math.isnan(float(y[0]))
    assert float(y[1]) == pytest.approx(1.0, abs=1e-4)


def steep(rate):
    """T(x) = 5 + e^rate (x − 5), the flow of dx/dt = rate (x − 5)."""
    map = wprox.ODEMap(1, hidden=(4,)).eval()
    with torch.no_grad():
        map.network.linear[0], map.network.out_bias[0] = rate, -5 * rate
    return map


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("dim", [1, 3])
def test_an_inverse_meets_its_bound_where_local_errors_add_up(dim, dtype):
    """Against the same flow in float64 to 1e-12; integrated backwards once, it misses the bound."""
    map, y = build(dim, perturb=0.8, hidden=(16, 16)).to(dtype).eval(), 2 * points(400, dim).to(dtype)
    exact = copy.deepcopy(map).double()
    exact.tolerance = 1e-12

    def residual(x):
        difference = (exact(x.double())[0] - y).norm(dim=1)
        return float((difference / (1 + y.norm(dim=1))).max()) / map._tolerance(y)

    with torch.no_grad():
        assert residual(map._flow_back(y, map._tolerance(y), dtype)[0]) > 300
        assert residual(map.inverse(y)) <= 130  # 100, as it is computed, with a tenth of the tolerance


def test_an_inverse_that_misses_its_bound_says_so():
    y = torch.tensor([[2.0], [5.0]])
    for rate in (-3.0, 3.0):
        with torch.no_grad():
            assert torch.allclose(steep(rate)(steep(rate).inverse(y))[0], y, atol=1e-3)
    map = steep(14.0)  # rounding x = 5 in float32 moves T(x) by 0.3
    with pytest.raises(wprox.InverseError, match=r"ODEMap\(1\) has .* at 1 of 2 points; .* float64") as caught:
        map.inverse(y)
    assert 1e-3 < caught.value.residual < 0.3
    assert torch.allclose(map.double().inverse(y.double()), 5 + math.exp(-14) * (y.double() - 5), atol=1e-9)
    with pytest.raises(wprox.InverseError, match=r"up to inf.* at 1 of 2 points"):
        map.inverse(torch.tensor([[math.nan], [5.0]], dtype=F64))
    assert map.inverse(y[:0].double()).shape == (0, 1)


def test_an_inverse_that_is_not_reached_says_so():
    map = build(1, hidden=(4,)).eval()
    map.network.forward = lambda x, t: -x.square()
    y = torch.tensor([[2.0]], dtype=F64)
    with pytest.raises(wprox.InverseError, match="was not reached: the flow needs steps") as caught:
        map.inverse(y)
    assert caught.value.residual == math.inf


def test_the_inverse_is_differentiable_where_rows_are_computed_anew():
    """T(T⁻¹(y)) = y for all parameters and points, so that its derivatives are 0 and 1."""
    map, y = build(1, perturb=0.8, hidden=(16, 16)).eval(), (2 * points(400, 1)).requires_grad_()
    with torch.no_grad():
        residual = map._flow_back(y, map.tolerance, F64)[1] / (1 + y.norm(dim=1))
    assert float(residual.max()) > 100 * map.tolerance
    x = map.inverse(y)
    of_y, *gradients = torch.autograd.grad(map(x)[0].square().sum() / 2, [y, *map.parameters()])
    assert torch.allclose(of_y, y, atol=1e-2)
    fixed_x = torch.autograd.grad(map(x.detach())[0].square().sum() / 2, list(map.parameters()))
    for gradient, alone in zip(gradients, fixed_x, strict=True):
        assert float(gradient.norm()) < 2e-3 * float(alone.norm())


def test_the_tolerance_is_met():
    map, x = build(3, perturb=0.2, hidden=(16, 16)).eval(), points(100, 3)
    with torch.no_grad():
        map.tolerance = 1e-12
        exact = torch.cat((map(x)[0], map(x)[1][:, None]), 1)
        for tolerance in (1e-3, 1e-5, 1e-8):
            map.tolerance = tolerance
            error = (torch.cat((map(x)[0], map(x)[1][:, None]), 1) - exact).abs().max()
            assert tolerance / 1e4 < float(error) < 20 * tolerance  # some twenty steps, each within the tolerance


# --- divergences ---


@pytest.mark.parametrize("hidden", [(7,), (7, 9), (7, 9, 8)], ids=["one layer", "two", "three"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_divergence_is_the_trace_of_the_jacobian(hidden, activation):
    network = build(4, perturb=0.3, hidden=hidden, activation=activation).network
    x, t = points(5, 4), torch.linspace(0, 1, 5, dtype=F64)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, t).sum(0), x).transpose(0, 1)
    trace = jacobian.diagonal(dim1=1, dim2=2).sum(1)
    v, divergence = network.with_divergence(x, t, network.coupling())
    assert torch.allclose(v, network(x, t))
    assert torch.allclose(divergence, trace)
    with torch.no_grad():  # in groups of tangents
        assert torch.allclose(network.with_divergence(x, t, network.coupling())[1], trace)
        # one time for all rows
        assert torch.allclose(network(x, t[2])[2], v[2])
        assert torch.allclose(network.with_divergence(x, t[2], network.coupling())[1][2], trace[2])
    probe = points(5, 4).flip(0)
    assert torch.allclose(network.jvp(x, t, probe), (jacobian @ probe[:, :, None])[:, :, 0])


def test_training_is_exact_up_to_exact_dim_and_random_above():
    x = points(20, 6)
    for options, exact in (({}, True), ({"hidden": (8, 8, 8)}, True), ({"hidden": (8, 8, 8), "exact_dim": 5}, False)):
        map = build(6, steps=1, **options).train()  # one step: no jitter
        assert torch.equal(map(x)[0], map(x)[0])
        assert torch.equal(map(x)[1], map(x)[1]) == exact


# --- training mode ---


def test_the_partition_is_drawn_anew_and_seeded():
    map, x = build(2, perturb=0.2, hidden=(16, 16), steps=2).train(), points(20, 2)
    with seeded(0):
        first, second = map(x)[0], map(x)[0]
    with seeded(0):
        assert torch.equal(map(x)[0], first)
    assert not torch.equal(first, second)
    map.eval()
    with map.discretised():
        coarse = map(x)[0].detach()
        assert torch.equal(map(x)[0], coarse)
    fine = map(x)[0].detach()
    assert 1e-6 < float((coarse - fine).abs().max()) < 0.1
    assert map.refine() == "2 → 4 steps"
    with map.discretised():
        assert float((map(x)[0].detach() - fine).abs().max()) < float((coarse - fine).abs().max()) / 4
    assert map.config["steps"] == 4


def test_penalties_are_the_integrals_they_say():
    """On v(x, t) = A x: ∫|v|² dt and ∫‖A‖² dt, where A is symmetric, by the eigenvalues."""
    eigenvalues = torch.tensor([0.5, -1.0], dtype=F64)
    x = points(30, 2)

    def penalty(**options):
        map = wprox.ODEMap(2, steps=8, **({"error": 0.0} | options)).double().train()
        with torch.no_grad():
            map.network.linear[0] = torch.diag(eigenvalues)
        map(x)
        return map.penalty(), map

    kinetic, map = penalty(kinetic=2.0)
    # ∫ λ² x² e^{2λt} dt = λ x² (e^{2λ} − 1)/2
    expected = 2 * (eigenvalues * x.square() * ((2 * eigenvalues).exp() - 1) / 2).sum(1).mean()
    assert float(kinetic.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert map.penalty() is None  # it is asked for once
    jacobian, _ = penalty(jacobian=3.0)
    assert float(jacobian.detach()) == pytest.approx(3 * 1.25)  # of signs ε: |diag(λ) ε|² = Σ λ²
    assert penalty()[0] is None
    both = wprox.ComposedMap([penalty(kinetic=1.0)[1], wprox.AffineMap(2).double()]).train()
    both(x)
    copy.deepcopy(both)  # its graph stays behind
    assert float(both.penalty().detach()) > 0
    assert both.penalty() is None


def test_penalties_reach_the_training():
    rho = wprox.Particles(cloud(500, (2.0, 0.0), 0.5))
    F = wprox.KL(standard_normal(2, torch.float32))
    costs = [
        float(
            wprox.NeuralProx(partial(wprox.ODEMap, hidden=(16,), kinetic=k), iterations=40, standardise=False)
            .step(F, rho, 1.0)
            .transport_cost
        )
        for k in (0.0, 5.0)
    ]
    assert costs[1] < 0.5 * costs[0]


# --- NeuralProx ---


def test_a_coarse_discretisation_is_refined_and_reported():
    x = torch.cat((cloud(300, (-2.0, 0.0), 0.1), cloud(300, (2.0, 0.0), 0.1)))
    rho, F = wprox.Particles(x), wprox.KL(standard_normal(2, torch.float32))
    options = {"steps": 1, "method": "heun", "hidden": (16, 16), "error": 0.0}
    solver = wprox.NeuralProx("ode", options, iterations=40, gap_tolerance=0.02, standardise=False)
    step = solver.step(F, rho, 5.0, held_out=rho)
    assert "1 → 2 steps" in step.message
    assert step.map.steps > 1
    assert step.iterations > 40
    hopeless = wprox.NeuralProx("ode", options, iterations=10, gap_tolerance=1e-9, standardise=False).step(
        F, rho, 5.0, held_out=rho
    )
    assert hopeless.map.steps == 8
    assert not hopeless.converged
    assert "the discretised objective is off by" in hopeless.message
    assert "off by" not in wprox.NeuralProx(iterations=2).step(F, rho, 5.0).message


def test_the_error_penalty_keeps_the_discretisation_true():
    """One step a block: without the penalty the objective in training leaves the true one behind."""
    x = torch.cat((cloud(300, (-2.0, 0.0), 0.1), cloud(300, (2.0, 0.0), 0.1)))
    rho, F = wprox.Particles(x), wprox.KL(standard_normal(2, torch.float32))
    options = {"steps": 1, "hidden": (16, 16)}

    def gap(error):
        solver = wprox.NeuralProx(
            "ode", options | {"error": error}, iterations=80, learning_rate=1e-2, gap_tolerance=1e9, standardise=False
        )
        map = solver.step(F, rho, 5.0, held_out=rho).map
        with torch.no_grad():
            value = float(F(rho.relative().push(map)))
            with map.discretised():
                return abs(float(F(rho.relative().push(map))) - value)

    assert gap(3.0) < 0.3 * gap(0.0)


def test_the_step_is_reproducible_and_leaves_the_generator_alone():
    rho, F = wprox.Particles(cloud(300, (1.0, 0.0), 0.5)), wprox.KL(standard_normal(2, torch.float32))
    before = torch.get_rng_state()
    solver = wprox.NeuralProx("ode", {"hidden": (16, 16)}, iterations=10, flow_matching=10)
    first, again = (solver.step(F, rho, 1.0).measure.points for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


# --- flow matching ---


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_the_relaxation_has_the_law_of_the_gradient_flow(weight):
    """N(μ, S) goes to N(m + A(μ − m), A S A + Σ − A Σ A); a mean moves as in the JKO step. Errors under 5 standard ones
    in each of six moments: false alarms 4e-6."""
    loc, covariance = torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    target, gamma, n = wprox.Gaussian(loc, covariance), 0.8, 200_000
    draw = relaxation(weight * wprox.KL(target), gamma, loc).draw
    x = torch.tensor([[3.0, 0.0]], dtype=F64).expand(n, 2)
    with seeded(0):
        y = draw(x)
    A = torch.linalg.inv(torch.eye(2, dtype=F64) + gamma * weight * torch.linalg.inv(covariance))
    assert torch.allclose(y.mean(0), loc + A @ (x[0] - loc), atol=5 * math.sqrt(2 / n))
    assert torch.allclose(y.T.cov(), covariance - A @ covariance @ A, atol=5 * 2 * math.sqrt(2 / n))
    # for N(0, I): e^{−s} = 1/(1 + γ)
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    with seeded(0):
        y = relaxation(wprox.KL(normal), 1.0, loc).draw(x)
    assert torch.allclose(y.mean(0), x[0] / 2, atol=5 / math.sqrt(n))
    assert torch.allclose(y.var(0), torch.full((2,), 0.75, dtype=F64), atol=5 * math.sqrt(2 / n))


def test_flow_matching_alone_nearly_makes_the_step():
    rho = wprox.Particles(cloud(4000, (2.0, 0.0), 0.5))
    F = wprox.KL(standard_normal(2, torch.float32))
    options = {"map": "ode", "map_options": {"hidden": (32, 32)}, "iterations": 1, "learning_rate": 5e-3}
    cold = wprox.NeuralProx(**options, standardise=False).step(F, rho, 1.0)
    warm = wprox.NeuralProx(**options, flow_matching=300).step(F, rho, 1.0)
    assert float(cold.measure.points[:, 0].mean()) > 1.9
    assert float(warm.measure.points[:, 0].mean()) == pytest.approx(1.0, abs=0.1)
    assert float(warm.measure.points.var(0).mean()) == pytest.approx(0.25 / 4 + 0.75, rel=0.1)


@pytest.mark.parametrize(
    ("functional", "options", "error", "message"),
    [
        (wprox.Entropy(), {"map": "ode"}, ValueError, r"needs the functional KL.*got Entropy"),
        (wprox.KL(lambda x: -x.square().sum(-1)), {"map": "ode"}, ValueError, "leave flow_matching at 0"),
        (wprox.KL(standard_normal(2)), {"map": "spline"}, TypeError, "velocity.*such as wprox.ODEMap, got SplineMap"),
    ],
)
def test_flow_matching_says_what_it_needs(functional, options, error, message):
    with pytest.raises(error, match=message):
        wprox.NeuralProx(**options, flow_matching=5).step(functional, wprox.Particles(points(100, 2)), 1.0)


def test_the_target_of_flow_matching_is_the_mean_over_pairs_that_cross():
    """Against Gaussian densities of x_t given x′, written out."""
    loc, covariance = torch.tensor([1.0, -1.0], dtype=F64), torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    flow, n = relaxation(wprox.KL(wprox.Gaussian(loc, covariance)), 0.8, loc), 100
    x, weights, t = points(n, 2), torch.rand(n, dtype=F64), torch.rand(n, dtype=F64)
    weights[3] = 0.0
    y = flow.draw(x)
    A, N = ((flow.axes * values) @ flow.axes.mT for values in (flow.decays, flow.noises))
    at, expected = torch.lerp(x, y, t[:, None]), torch.empty_like(x)
    for i in range(n):
        means = loc + (x - loc) @ ((1 - t[i]) * torch.eye(2, dtype=F64) + t[i] * A)
        law = torch.distributions.MultivariateNormal(means, t[i] ** 2 * N @ N)
        chances = (weights * law.log_prob(at[i]).exp()).nan_to_num()
        expected[i] = chances @ ((at[i] - x) / t[i]) / chances.sum()
    target = flow.velocity(x, y, t, weights)
    assert torch.allclose(target[weights > 0], expected[weights > 0], atol=1e-6)
    assert float((target - (y - x)).norm()) > 0.3 * float((y - x).norm())
    # in groups of 128; a row alone, and one whose time is too small for the dtype, keep their own
    many = [part.repeat(3, 1) for part in (x, y)]
    assert torch.isfinite(flow.velocity(*many, t.repeat(3), weights.repeat(3))).all()
    assert torch.allclose(flow.velocity(x[:1], y[:1], t[:1], weights[:1]), y[:1] - x[:1])
    x, y, weights = x.float(), y.float(), weights.float()
    flow = relaxation(wprox.KL(standard_normal(2, torch.float32)), 0.8, x[0])
    assert torch.equal(flow.velocity(x, y, torch.full((n,), 1e-4), weights), y - x)


@pytest.mark.parametrize("gamma", [1e-12, 1e-8, 1e-4, 1.0, 1e4, 1e12])
def test_the_relaxation_of_short_and_long_steps_is_exact_in_float32(gamma):
    flow = relaxation(wprox.KL(standard_normal(2, torch.float32)), gamma, torch.zeros(1))
    assert flow.noises.tolist() == pytest.approx([math.sqrt(-math.expm1(-2 * math.log1p(gamma)))] * 2, rel=1e-6)
    x = points(100, 2).float()
    y = flow.draw(x)
    assert torch.isfinite(flow.velocity(x, y, torch.linspace(0, 1, 100), torch.full((100,), 0.01))).all()


def test_ctrl_c_in_flow_matching_ends_the_step(monkeypatch):
    velocity, calls = Relaxation.velocity, itertools.count()

    def interrupted(*arguments):
        if next(calls) == 40:
            raise KeyboardInterrupt
        return velocity(*arguments)

    monkeypatch.setattr(Relaxation, "velocity", interrupted)
    solver = wprox.NeuralProx("ode", {"hidden": (8,)}, iterations=500, flow_matching=100)
    step = solver.step(wprox.KL(standard_normal(2, torch.float32)), wprox.Particles(points(100, 2).float()), 1.0)
    assert step.interrupted
    assert not step.converged
    assert step.iterations < 40


# --- JKOFlow ---


def test_jko_flow_with_ode_blocks_is_saved_and_loaded(tmp_path):
    x = cloud(600, (1.0, 0.0), 0.5).double()
    flow = wprox.JKOFlow(
        map="ode",
        map_options={"hidden": (16, 16), "steps": 2},
        n_blocks=2,
        tol=-math.inf,
        iterations=10,
        flow_matching=20,
        batch_size=128,
        fine_tune_iterations=5,
    ).fit(x)
    assert [type(block) for block in flow.blocks_] == [wprox.ODEMap] * 2
    flow.save(tmp_path / "flow")
    again = wprox.JKOFlow.load(tmp_path / "flow")
    assert torch.equal(again.log_prob(x[:20]), flow.log_prob(x[:20]))
    assert torch.allclose(flow.inverse_transform(flow.transform(x[:20])), x[:20], atol=1e-4)
    assert again.blocks_[0].config == flow.blocks_[0].config


def test_jko_flow_reports_a_discretisation_and_the_likelihood_without_it(recwarn):
    """The reported NLL is the adaptive one of the held-out rows, not that of the scheme in training."""
    x = torch.cat((cloud(300, (-2.0, 0.0), 0.1), cloud(300, (2.0, 0.0), 0.1))).double()
    options = {"steps": 1, "method": "heun", "hidden": (16, 16), "error": 0.0}
    flow = wprox.JKOFlow("ode", options, n_blocks=1, iterations=30, flow_matching=0, jitter=0.0, step_sizes=5.0)
    flow.fine_tune_iterations = 20
    flow.fit(x, validation=x)
    assert flow.history_[-1]["held_out_nll"] == pytest.approx(-flow.score(x), abs=1e-4)
    assert "the discretised objective is off by" in flow.history_[-1]["message"]
    coarse = [str(warning.message) for warning in recwarn if "too coarse a discretisation" in str(warning.message)]
    assert len(coarse) == sum(
        float(stage["message"].rsplit("off by ")[-1].split(";")[0]) > 0.01 for stage in flow.history_
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"hidden": ()}, ValueError, "hidden is empty"),
        ({"hidden": 64}, TypeError, r"width of each hidden layer, as in \(64, 64\), got 64"),
        ({"hidden": (0,)}, ValueError, r"hidden\[0\] must be at least 1"),
        ({"activation": "relu"}, ValueError, "activation must be one of .* got 'relu'"),
        ({"method": "euler"}, ValueError, "method must be one of .* got 'euler'"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be positive"),
        ({"exact_dim": -1}, ValueError, "exact_dim must be at least 0"),
        ({"error": -1.0}, ValueError, "error must be finite and not negative"),
        ({"kinetic": -1.0}, ValueError, "kinetic must be finite and not negative"),
        ({"jacobian": -1.0}, ValueError, "jacobian must be finite and not negative"),
        ({"frequency": 0.0}, ValueError, "frequency must be positive"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        wprox.ODEMap(2, **options)
