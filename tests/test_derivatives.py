"""Every public function of tensors against difference quotients, in every tensor, once and twice; modes of torch."""

import warnings

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import MultivariateNormal

import wprox
from wprox import kernels, metrics
from wprox.maps import GradientStepMap
from wprox.measures.particles import KernelParticles

F64 = torch.float64
EYE = torch.eye(2, dtype=F64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def masses(n, seed=0):
    values = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.2
    return values / values.sum()


def particles(x, w):
    return wprox.Particles(x, w / w.sum())


def smooth(x, w, **options):
    return particles(x, w).with_kernel_density(**options)


def gaussian(loc, factor, **options):
    return wprox.Gaussian(loc, factor @ factor.mT, **options)


def on_line(masses):
    grid = wprox.Grid(torch.ones(len(masses), dtype=F64), [(-1.0, 1.0)])
    return grid.with_weights(masses / masses.sum())


def in_plane(masses):
    grid = wprox.Grid(torch.ones(2, len(masses) // 2, dtype=F64), [(-1.0, 1.0)] * 2)
    return grid.with_weights(masses / masses.sum())


X, W, Y, V = normal(5, 2), masses(5), normal(4, 2, seed=1) + 0.3, masses(4, 1)
X1, Y1 = normal(5, 1), normal(4, 1, seed=1)
M, N = normal(2, seed=3), normal(2, seed=4)
L = torch.tensor([[1.0, 0.0], [0.3, 0.8]], dtype=F64)
K = torch.tensor([[0.7, 0.2], [-0.1, 1.5]], dtype=F64)
NODES = torch.linspace(-1, 1, 6, dtype=F64) + 0.01 * torch.arange(6) ** 2
FEWER = torch.linspace(-2, 1, 4, dtype=F64)
CELLS, OTHERS = masses(6), masses(6, 3)


def bump(z):
    return (-z.square().sum(-1)).exp()


def of(functional):
    """F(ρ) as a function of points and weights."""
    return lambda x, w: functional(particles(x, w))


def between(make):
    """F(ρ; ν) as a function of points and weights of both."""
    return lambda x, w, y, v: make(particles(y, v))(particles(x, w))


def among_gaussians(make):
    return lambda m, left, n, right: make(gaussian(n, right))(gaussian(m, left))


BOTH, BOTH_ON_LINE, LAWS = (X, W, Y, V), (X1, W, Y1, V), (M, L, N, K)
TABLE = {
    "PotentialEnergy": (of(wprox.PotentialEnergy(lambda x: (x**4).sum(1).sin())), (X, W)),
    "InteractionEnergy of a function": (of(wprox.InteractionEnergy(bump)), (X, W)),
    "InteractionEnergy of a kernel": (of(wprox.InteractionEnergy(kernels.PowerLaw(2, -1))), (X, W)),
    "InteractionEnergy in batches": (of(wprox.InteractionEnergy(bump, batch_size=2)), (X, W)),
    "MMD": (between(wprox.MMD), BOTH),
    "MMD of a function": (between(lambda q: wprox.MMD(q, bump)), BOTH),
    "MMD, unbiased": (between(lambda q: wprox.MMD(q, kernels.Gaussian(), unbiased=True)), BOTH),
    "KSD": (lambda x, w, m, f: wprox.KSD(gaussian(m, f))(particles(x, w)), (X, W, M, L)),
    "KSD, its target alone": (lambda m, f: wprox.KSD(gaussian(m, f))(particles(X, W)), (M, L)),
    "KL, kernel density": (lambda x, w, m, f: wprox.KL(gaussian(m, f))(smooth(x, w)), (X, W, M, L)),
    "Entropy, fixed bandwidth": (lambda x, w: wprox.Entropy()(smooth(x, w, bandwidth=0.5)), (X, W)),
    "PorousMedium, fixed factor": (lambda x, w: wprox.PorousMedium(1.7)(smooth(x, w, factor=0.7)), (X, W)),
    "SquaredWasserstein": (between(wprox.SquaredWasserstein), BOTH),
    "SquaredWasserstein, points": (lambda x, y: wprox.SquaredWasserstein(y)(particles(x, W)), (X, Y)),
    "SquaredWasserstein on the line": (between(wprox.SquaredWasserstein), BOTH_ON_LINE),
    "SquaredWasserstein on the line, points": (lambda x, y: wprox.SquaredWasserstein(y)(particles(x, W)), (X1, Y1)),
    "SquaredWasserstein of quantiles": (
        lambda a, b: wprox.SquaredWasserstein(wprox.Quantiles(b))(wprox.Quantiles(a)),
        (NODES, FEWER),
    ),
    "SquaredWasserstein of particles to quantiles": (
        lambda x, w, a: wprox.SquaredWasserstein(wprox.Quantiles(a))(particles(x, w)),
        (X1, W, NODES),
    ),
    "SquaredWasserstein of Gaussians": (among_gaussians(wprox.SquaredWasserstein), LAWS),
    "SquaredWasserstein of round Gaussians": (among_gaussians(wprox.SquaredWasserstein), (M, EYE, N, 2 * EYE)),
    "SquaredWasserstein, a Gaussian by nodes": (
        lambda m, f, y: wprox.SquaredWasserstein(y)(gaussian(m, f, order=3)),
        (M, L, Y),
    ),
    "SquaredWasserstein of grids": (lambda a, b: wprox.SquaredWasserstein(in_plane(b))(in_plane(a)), (CELLS, OTHERS)),
    "SinkhornDivergence": (between(lambda q: wprox.SinkhornDivergence(q, 0.7, 1e-13)), BOTH),
    "SinkhornDivergence of Gaussians": (among_gaussians(lambda q: wprox.SinkhornDivergence(q, 0.7)), LAWS),
    "SinkhornDivergence of round Gaussians": (
        among_gaussians(lambda q: wprox.SinkhornDivergence(q, 0.7)),
        (M, EYE, N, 2 * EYE),
    ),
    "SlicedWasserstein": (between(lambda q: wprox.SlicedWasserstein(q, 5)), BOTH),
    "SlicedWasserstein, points": (lambda x, y: wprox.SlicedWasserstein(y, 5)(particles(x, W)), (X, Y)),
    "SlicedWasserstein of Gaussians": (among_gaussians(lambda q: wprox.SlicedWasserstein(q, 5)), LAWS),
    "KL of Gaussians": (among_gaussians(wprox.KL), LAWS),
    "PorousMedium of a Gaussian": (lambda m, f: wprox.PorousMedium(1.7)(gaussian(m, f)), (M, L)),
    "KL of quantiles": (lambda a: wprox.KL(gaussian(M[:1], L[:1, :1]))(wprox.Quantiles(a)), (NODES,)),
    "KL of a grid": (lambda a, m, f: wprox.KL(gaussian(m, f))(on_line(a)), (CELLS, M[:1], L[:1, :1])),
    "MMD of grids": (lambda a, b: wprox.MMD(on_line(b))(on_line(a)), (CELLS, OTHERS)),
    "KSD of a grid": (lambda a, m, f: wprox.KSD(gaussian(m, f))(on_line(a)), (CELLS, M[:1], L[:1, :1])),
    "metrics.w2": (lambda x, w, y, v: metrics.w2(particles(x, w), particles(y, v)), BOTH),
    "metrics.wasserstein_1d": (lambda x, y: metrics.wasserstein_1d(particles(x, W), particles(y, V)), (X1, Y1)),
    "metrics.bures_wasserstein": (
        lambda m, f, n, k: metrics.bures_wasserstein(gaussian(m, f), MultivariateNormal(n, k @ k.mT)),
        LAWS,
    ),
    "metrics.sinkhorn_divergence": (
        lambda x, w, y, v: metrics.sinkhorn_divergence(particles(x, w), particles(y, v), 0.7, 1e-13),
        BOTH,
    ),
    "metrics.sliced_w2": (lambda x, y: metrics.sliced_w2(particles(x, W), particles(y, V), 5), (X, Y)),
    "metrics.mmd": (lambda x, w, y, v: metrics.mmd(particles(x, w), particles(y, v), kernels.Laplace()), BOTH),
    "metrics.energy_distance": (lambda x, w, y, v: metrics.energy_distance(particles(x, w), particles(y, v)), BOTH),
    "metrics.ess": (lambda w: metrics.ess(w), (W,)),
    "metrics.ess of logarithms": (lambda w: metrics.ess(w, log=True), (W,)),
    "KernelParticles.log_density_at": (lambda x: smooth(X, W).log_density_at(x), (Y,)),
}
REFUSED = {"SquaredWasserstein", "SquaredWasserstein on the line", "SquaredWasserstein of grids"}
REFUSED |= {"SlicedWasserstein", "metrics.w2"}  # the Hessian in the weights, where potentials are not smooth


@pytest.mark.parametrize("name", TABLE)
def test_first_and_second_derivatives_are_those_of_difference_quotients(name):
    function, arguments = TABLE[name]
    inputs = tuple(value.clone().requires_grad_() for value in arguments)
    assert gradcheck(function, inputs, atol=1e-6, rtol=1e-4, fast_mode=True)
    if name in REFUSED:
        with pytest.raises(NotImplementedError, match="W₂ has no second derivatives"):
            gradgradcheck(function, inputs, fast_mode=True)
        return
    assert gradgradcheck(function, inputs, atol=1e-5, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("name", TABLE)
def test_gradients_with_a_graph_and_those_of_torch_func_are_the_same(name):
    function, arguments = TABLE[name]
    inputs = tuple(value.clone().requires_grad_() for value in arguments)
    expected = torch.autograd.grad(function(*inputs).sum(), inputs, materialize_grads=True)
    kept = torch.autograd.grad(function(*inputs).sum(), inputs, create_graph=True, materialize_grads=True)
    by_func = torch.func.grad(lambda *args: function(*args).sum(), argnums=tuple(range(len(inputs))))(*arguments)
    for mine, other, third in zip(expected, kept, by_func, strict=True):
        assert torch.allclose(mine, other, rtol=1e-12, atol=1e-12)
        assert torch.allclose(mine, third, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("functional", [wprox.MMD(Y), wprox.KSD(lambda x: -x.square().sum(1) / 2), wprox.Entropy()])
def test_no_path_is_counted_twice_where_weights_depend_on_points(functional):
    def value(x):
        rho = particles(x, x.square().sum(1).exp())
        return functional(rho.with_kernel_density() if isinstance(functional, wprox.Entropy) else rho)

    x = X.clone().requires_grad_()
    assert gradcheck(value, (x,), fast_mode=True)
    assert gradgradcheck(value, (x,), fast_mode=True)


def test_batches_of_torch_func_are_refused_by_a_sentence():
    F, batch = wprox.MMD(Y), torch.stack((X, 2 * X))
    with pytest.raises(TypeError, match=r"torch\.vmap .* loop"):
        torch.vmap(lambda x: F(wprox.Particles(x)))(batch)
    with pytest.raises(TypeError, match=r"vmap|forward-mode"):
        torch.func.hessian(lambda x: F(wprox.Particles(x)))(X)


# --- what is cut off from autograd

CUT = {
    "detached": lambda x: -x.detach().square().sum(-1) / 2,
    "by numpy": lambda x: torch.as_tensor(-(x.detach().numpy() ** 2).sum(-1) / 2),
}
ASKED = {
    "gradient": lambda F: F.wasserstein_gradient(smooth(X, W)),
    "ExplicitEuler": lambda F: wprox.ExplicitEuler().step(F, smooth(X, W), 0.1),
    "ParticleProx": lambda F: wprox.ParticleProx().step(F, smooth(X, W), 0.1),
    "NeuralProx": lambda F: wprox.NeuralProx(map=wprox.AffineMap, iterations=2).step(
        F, wprox.Particles(normal(60, 2)), 0.1
    ),
    "GaussianProx": lambda F: wprox.GaussianProx().step(F, gaussian(M, L), 0.1),
}


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize("cut", CUT)
def test_kl_to_a_target_without_a_gradient_has_a_value_and_no_step(cut, ask):
    F = wprox.KL(CUT[cut])
    assert torch.isfinite(F(smooth(X, W)))
    with pytest.raises(ValueError, match="cut off from autograd"):
        ASKED[ask](F)


@pytest.mark.parametrize(
    "functional",
    [
        wprox.PotentialEnergy(lambda x: x.square().sum(1)) + wprox.PotentialEnergy(CUT["detached"]),
        wprox.InteractionEnergy(lambda z: z.detach().square().sum(-1)),
        wprox.MMD(Y, lambda z: bump(z.detach())),
        wprox.InternalEnergy(lambda s: s.detach() ** 2),
        wprox.KSD(score=lambda x: -x.detach()),
    ],
    ids=["one of two potentials", "interaction", "MMD", "internal energy", "score"],
)
def test_what_is_cut_off_is_refused_where_a_gradient_is_asked(functional):
    assert torch.isfinite(functional(smooth(X, W)))
    with pytest.raises(ValueError, match="cut off from autograd"):
        functional.wasserstein_gradient(smooth(X, W))


def test_constants_and_indicators_are_not_cut_off():
    inside = torch.distributions.Independent(
        torch.distributions.Uniform(-9 * torch.ones(2).double(), 9 * torch.ones(2).double()), 1
    )
    for F in (wprox.KL(lambda x: x.new_zeros(len(x))), wprox.KL(inside)):
        entropy = wprox.Entropy().wasserstein_gradient(smooth(X, W))
        assert torch.equal(F.wasserstein_gradient(smooth(X, W)), entropy)


# --- log_prob of models


@pytest.fixture(scope="module")
def flow():
    return wprox.JKOFlow(n_blocks=1, iterations=20, fine_tune=False).fit(normal(200, 2))


@pytest.fixture(scope="module")
def sampler():
    start = gaussian(torch.zeros(2, dtype=F64), 2 * EYE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return wprox.JKOSampler(
            lambda x: -(x**4).sum(1) / 4, initial=start, n_blocks=1, iterations=20, n_particles=1000, fine_tune=False,
            forward_steps=1, tol=-torch.inf, corrections=1,
        ).run()  # fmt: skip


def test_log_prob_of_a_flow_has_derivatives_and_serves_as_a_target(flow):
    x = X.clone().requires_grad_()
    assert gradcheck(flow.log_prob, (x,), fast_mode=True)
    assert gradgradcheck(flow.log_prob, (x,), fast_mode=True)
    assert gradcheck(flow.transform, (x,), fast_mode=True)
    assert not flow.log_prob(X).requires_grad
    parameters = [parameter for block in flow.blocks_ for parameter in block.parameters()]
    for parameter in parameters:
        parameter.grad = None
    flow.log_prob(x).sum().backward()
    assert all(parameter.grad is None for parameter in parameters)
    rho = smooth(X, W)
    for F in (wprox.KL(flow.log_prob), wprox.KSD(flow.log_prob), wprox.PotentialEnergy(flow.log_prob)):
        h, move = 1e-6, X.flip(0)
        moved = [float(F(rho.at(X + t * move))) for t in (h, -h)]
        slope = W @ (F.wasserstein_gradient(rho) * move).sum(1)
        assert float(slope) == pytest.approx((moved[0] - moved[1]) / (2 * h), rel=1e-5)


def test_log_prob_of_a_sampler_has_a_gradient_and_refuses_a_second_through_newton(sampler):
    assert any(isinstance(layer, GradientStepMap) for layer in sampler.layers_)
    x = (X / 2).requires_grad_()
    assert gradcheck(sampler.log_prob, (x,), fast_mode=True)
    assert not sampler.log_prob(X / 2).requires_grad
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.functional.hessian(lambda x: sampler.log_prob(x).sum(), X / 2)


@pytest.mark.parametrize("map", [wprox.ResidualMap(2, hidden=(8,)), wprox.ConvexMap(2), wprox.SplineMap(2)])
def test_inverses_have_first_derivatives_and_second_ones_or_a_sentence(map):
    map = map.double()
    with torch.no_grad():
        for k, parameter in enumerate(map.parameters()):
            parameter += 0.1 * normal(*parameter.shape, seed=k)
    map.eval()
    x = (X / 2).requires_grad_()
    assert gradcheck(map.inverse, (x,), fast_mode=True)
    if isinstance(map, wprox.SplineMap):
        assert gradgradcheck(map.inverse, (x,), fast_mode=True)
        return
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.functional.hessian(lambda x: map.inverse(x).sum(), X / 2)


# --- modes of torch

V_OF = wprox.PotentialEnergy(lambda x: (x**4).sum(1))
CLOUD = wprox.Particles(normal(60, 2))
MODES = [torch.inference_mode, torch.no_grad]
JOBS = {
    "KSD": lambda f, s: wprox.KSD(lambda x: -x.square().sum(1) / 2)(CLOUD),
    "gradient": lambda f, s: V_OF.wasserstein_gradient(CLOUD),
    "first variation": lambda f, s: wprox.KSD(lambda x: -(x**4).sum(1)).first_variation(CLOUD)(Y * 1),
    "a measure made inside": lambda f, s: wprox.KL(gaussian(M, L)).wasserstein_gradient(smooth(X * 1, W * 1)),
    "a target made inside": lambda f, s: (
        wprox.ExplicitEuler().step(wprox.KL(MultivariateNormal(M * 1, EYE * 2)), smooth(X, W), 0.1).measure.points
    ),
    "GaussianProx": lambda f, s: wprox.GaussianProx().step(V_OF, gaussian(M, L, order=5), 0.1).measure.loc,
    "QuantileProx": lambda f, s: wprox.QuantileProx().step(V_OF, wprox.Quantiles(NODES), 0.1).measure.points,
    "ParticleProx": lambda f, s: wprox.ParticleProx().step(V_OF, CLOUD, 0.1).measure.points,
    "NeuralProx": lambda f, s: (
        wprox.NeuralProx(map=wprox.AffineMap, iterations=5).step(V_OF, CLOUD, 0.1).measure.points
    ),
    "jko": lambda f, s: wprox.jko(V_OF, wprox.ExplicitEuler(), CLOUD, 0.01, 2).final.points,
    "JKOFlow": lambda f, s: (
        wprox.JKOFlow(n_blocks=1, iterations=5, fine_tune_iterations=5).fit(CLOUD.points).log_prob(X)
    ),
    "flow.sample": lambda f, s: f.sample(5, seed=0),
    "sampler.sample": lambda f, s: s.sample(5, seed=0),
    "sampler.log_prob": lambda f, s: s.log_prob(X / 2),
    "map": lambda f, s: GradientStepMap(2, lambda x: (x**4).sum(1), 0.01)(X)[0],
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", JOBS)
def test_numbers_are_the_same_in_every_mode(name, mode, flow, sampler):
    expected = JOBS[name](flow, sampler)
    with warnings.catch_warnings(), mode():
        warnings.simplefilter("ignore")
        found = JOBS[name](flow, sampler)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert not found.requires_grad


def test_what_is_made_in_inference_mode_is_of_use_outside():
    with torch.inference_mode():
        rho, target = smooth(X * 1, W * 1), wprox.MMD(Y * 1)
        pushed = wprox.Particles(X).push(lambda x: 2 * x)
        trained = wprox.JKOFlow(n_blocks=1, iterations=2, fine_tune=False).fit(normal(60, 2))
    assert isinstance(rho, KernelParticles)
    assert torch.equal(target.wasserstein_gradient(rho), wprox.MMD(Y).wasserstein_gradient(smooth(X, W)))
    assert torch.equal(wprox.ParticleProx().step(V_OF, pushed, 0.1).value, wprox.ParticleProx().step(
        V_OF, wprox.Particles(2 * X), 0.1).value)  # fmt: skip
    assert trained.log_prob(X.clone().requires_grad_()).requires_grad


def test_a_function_that_holds_a_tensor_of_inference_mode_is_named():
    with torch.inference_mode():
        centre = torch.ones(2, dtype=F64)
    F = wprox.PotentialEnergy(lambda x: (x * centre).sum(1))
    with pytest.raises(TypeError, match=r"made in torch\.inference_mode"):
        F.wasserstein_gradient(CLOUD)


# --- tensors of the target


@pytest.mark.parametrize(
    "make", [wprox.SquaredWasserstein, lambda q: wprox.SinkhornDivergence(q, 0.7), wprox.SlicedWasserstein]
)
@pytest.mark.parametrize("kind", ["particles", "gaussian"])
def test_first_variations_of_transport_costs_refuse_derivatives_in_the_target(make, kind):
    y, x = Y.clone().requires_grad_(), X.clone().requires_grad_()
    target = particles(y, V) if kind == "particles" else gaussian(y[0], L)
    rho = particles(X, W) if kind == "particles" else gaussian(M, K)
    field = make(target).first_variation(rho)
    (slope,) = torch.autograd.grad(field(x).sum(), x)
    fixed = make(particles(Y, V) if kind == "particles" else gaussian(Y[0], L)).first_variation(rho)
    assert torch.equal(slope, torch.autograd.grad(fixed(x).sum(), x)[0])
    with pytest.raises(NotImplementedError, match="none in the tensors of the target"):
        torch.autograd.grad(field(X).sum(), y)


LAW = torch.distributions.Independent


@pytest.mark.parametrize(
    ("make", "parameters"),
    [
        (lambda m, f: MultivariateNormal(m, scale_tril=f.tril()), (M, L)),
        (lambda m, s: LAW(torch.distributions.Laplace(m, s.exp()), 1), (M, N)),
        (lambda m, s: LAW(torch.distributions.StudentT(5.0, m, s.exp()), 1), (M, N)),
    ],
)
def test_laws_have_gradients_in_their_parameters_by_their_draws(make, parameters):
    def of_law(functional):
        return lambda *args: functional(wprox.Particles.from_distribution(make(*args), 6, seed=0))

    inputs = tuple(value.clone().requires_grad_() for value in parameters)
    distance = lambda *args: wprox.MMD(make(*args), n_samples=6, seed=0)(particles(X, W))  # noqa: E731
    cost = lambda *args: wprox.SquaredWasserstein(  # noqa: E731
        wprox.Particles.from_distribution(make(*args), 6, seed=0)
    )(particles(X, W))
    for function in (distance, cost, of_law(wprox.PotentialEnergy(lambda x: (x**4).sum(1)))):
        assert gradcheck(function, inputs, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_laws_whose_draws_have_no_gradient_are_refused_where_one_is_wanted():
    m = torch.zeros(2, 2, dtype=F64, requires_grad=True)
    law = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(2, dtype=F64)), LAW(torch.distributions.Normal(m, 1.0), 1)
    )
    with pytest.raises(TypeError, match="want a gradient, and its draws have none"):
        wprox.MMD(law)
    with torch.no_grad():
        assert not wprox.MMD(law, n_samples=9).target.points.requires_grad
