"""What ResidualMap and ConvexMap promise beyond the gauntlet: bounds, estimators, inverses and known JKO steps."""

import math
from functools import partial

import ot
import pytest
import torch

import wprox
from wprox import datasets
from wprox._random import seeded
from wprox.maps._inverse import newton_inverse
from wprox.maps._log_det import log_det, spectral_bound, symmetric_log_det
from wprox.maps.convex import lanczos
from wprox.maps.residual import _jacobian, _SineCosine

F64 = torch.float64
RESIDUAL, CONVEX = wprox.ResidualMap, wprox.ConvexMap


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=generator(seed), dtype=F64).to(dtype)


def perturbed(map, scale=0.05, seed=0):
    map = map.double().eval()
    with seeded(seed), torch.no_grad():
        for parameter in map.parameters():
            parameter += scale * torch.randn_like(parameter)
    return map


def jacobian_of(map, x):
    return torch.autograd.functional.jacobian(lambda x: map(x)[0].sum(0), x).transpose(0, 1)


# --- linear algebra ---


@pytest.mark.parametrize("shape", [(64, 2), (3, 40), (64, 64), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_spectral_bound_is_above_and_tight(shape, dtype):
    weight = torch.cat((randn(5, *shape, dtype=dtype), 1e4 * randn(2, *shape, seed=1, dtype=dtype)))
    exact = torch.linalg.matrix_norm(weight.double(), 2)
    bound = spectral_bound(weight).double()
    rounding = 20 * torch.finfo(dtype).eps
    assert bool((bound >= exact * (1 - rounding)).all())
    assert bool((bound <= exact * min(shape) ** (1 / 514) * (1 + rounding)).all())
    assert float(spectral_bound(torch.zeros(1, *shape, dtype=dtype))) == 0


def test_spectral_bound_has_its_derivative():
    weight = randn(2, 6, 4).requires_grad_()
    assert torch.autograd.gradcheck(partial(spectral_bound, squarings=3), (weight,))
    assert torch.autograd.gradgradcheck(partial(spectral_bound, squarings=3), (weight,))
    zero = torch.zeros(1, 3, 3, dtype=F64, requires_grad=True)
    spectral_bound(zero).sum().backward()
    assert bool(torch.isfinite(zero.grad).all())


@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_log_det_and_its_derivative(d):
    matrix = (torch.eye(d, dtype=F64) + 0.2 * randn(4, d, d)).requires_grad_()
    assert torch.allclose(log_det(matrix), torch.linalg.slogdet(matrix)[1])
    assert torch.autograd.gradcheck(log_det, (matrix,))
    assert torch.autograd.gradgradcheck(log_det, (matrix,))


@pytest.mark.parametrize("d", [1, 2, 3, 8])
def test_symmetric_log_det_and_its_derivative(d):
    matrix = spd(4, d).requires_grad_()
    assert torch.allclose(symmetric_log_det(matrix), torch.linalg.slogdet(matrix)[1])
    # gradcheck moves one entry, so that the matrix must be made symmetric again
    assert torch.autograd.gradcheck(lambda m: symmetric_log_det((m + m.mT) / 2), (matrix,))
    assert torch.autograd.gradgradcheck(lambda m: symmetric_log_det((m + m.mT) / 2), (matrix,))


def test_symmetric_log_det_survives_a_rounding_error_that_makes_it_indefinite():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, -1e-8])).expand(2, 4, 4)
    assert torch.allclose(symmetric_log_det(matrix), torch.full((2,), math.log(1e-8)))


def test_log_det_of_a_singular_matrix_is_not_a_number():
    assert not bool(torch.isfinite(log_det(torch.zeros(1, 3, 3))).any())


def test_sine_and_cosine_have_their_derivatives():
    z = (3 * randn(3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(_SineCosine.apply, (z,))
    assert torch.autograd.gradgradcheck(_SineCosine.apply, (z,))


def spd(n, d):
    factor = randn(n, d, d) / math.sqrt(d)
    return factor @ factor.mT + 0.3 * torch.eye(d, dtype=F64)


def test_lanczos_is_exact_in_full_and_close_early():
    matrix, probe = spd(5, 12), randn(5, 12, seed=1).sign()
    values, vectors = torch.linalg.eigh(matrix)
    exact = ((vectors.mT @ probe[:, :, None])[:, :, 0].square() * values.log()).sum(1)
    solved = torch.linalg.solve(matrix, probe)

    def apply(v):
        return (matrix @ v[:, :, None])[:, :, 0]

    value, solution = lanczos(apply, probe, 12)
    assert torch.allclose(value, exact)
    assert torch.allclose(solution, solved)
    value, solution = lanczos(apply, probe, 7)
    assert torch.allclose(value, exact, atol=1e-2)
    assert torch.allclose(solution, solved, atol=0.1)
    scaled = lanczos(lambda v: 3 * v, probe, 5)  # the Krylov space is a line
    assert torch.allclose(scaled[0], torch.full((5,), 12 * math.log(3), dtype=F64))
    assert torch.allclose(scaled[1], probe / 3)


# --- invertible by construction ---


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_residual_blocks_stay_below_their_lipschitz_constant(scale):
    map = perturbed(RESIDUAL(3, blocks=2, hidden=(16, 16), lipschitz=0.9, affine=False), scale)
    blocks, bounds = map.maps[0].layers()
    assert bool((bounds <= 0.9 + 1e-12).all())
    x = randn(2000, 3)
    for layers in blocks:
        with torch.no_grad():
            _, jacobian = _jacobian(layers, x)
        norms = torch.linalg.matrix_norm(jacobian - torch.eye(3, dtype=F64), 2)
        assert float(norms.max()) <= 0.9
        assert scale < 1 or float(norms.max()) > 0.2  # the bound is not idle


@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_convex_map_is_a_gradient_of_a_strongly_convex_function(scale):
    map = perturbed(CONVEX(4, groups=2, pieces=8, convexity=0.05), scale)
    jacobian = jacobian_of(map, randn(200, 4))
    assert torch.allclose(jacobian, jacobian.mT, atol=1e-10)
    assert float(torch.linalg.eigvalsh(jacobian).min()) >= 0.05 - 1e-10


# --- which log-determinant ---


@pytest.mark.parametrize(("cls", "low", "high"), [(RESIDUAL, 16, 17), (CONVEX, 32, 33)])
def test_auto_is_exact_up_to_a_dimension(cls, low, high):
    for dim, exact in ((low, True), (high, False)):
        map = perturbed(cls(dim)).train()
        x = randn(5, dim)
        with seeded(0):
            assert torch.equal(map(x)[1], map(x)[1]) == exact
            map.eval()
            assert torch.equal(map(x)[1], map(x)[1])


@pytest.mark.parametrize("cls", [RESIDUAL, CONVEX])
def test_log_det_can_be_chosen(cls):
    for choice, exact in (("exact", True), ("series" if cls is RESIDUAL else "stochastic", False)):
        map = perturbed(cls(3, log_det=choice)).train()
        x = randn(5, 3)
        with seeded(0):
            assert torch.equal(map(x)[1], map(x)[1]) == exact


# --- inverses ---


@pytest.mark.parametrize("dim", [2, 20])
@pytest.mark.parametrize("cls", [RESIDUAL, CONVEX])
def test_an_inverse_that_misses_its_tolerance_raises(cls, dim):
    map = perturbed(cls(dim, tolerance=1e-30), 0.1)
    with pytest.raises(wprox.InverseError, match=rf"{cls.__name__}\({dim}\).*more than its tolerance 1e-30") as caught:
        map.inverse(randn(50, dim))
    assert 0 < caught.value.residual < 1e-12
    with pytest.raises(wprox.InverseError, match="inf"):
        perturbed(cls(dim)).inverse(torch.full((1, dim), math.nan, dtype=F64))


def test_newton_comes_from_far_away():
    """T(x) = x + 100 arctan(50 x): full steps would jump for ever between flat ends."""

    def evaluate(x):
        return x + 100 * (50 * x).atan(), torch.diag_embed(1 + 5000 / (1 + (50 * x).square()))

    y = torch.linspace(-300, 300, 101, dtype=F64)[:, None]
    x = newton_inverse(evaluate, y, 1e-10, "T")
    assert float((evaluate(x)[0] - y).abs().max()) < 1e-10 * 301


@pytest.mark.parametrize("dim", [2, 20])
@pytest.mark.parametrize("cls", [RESIDUAL, CONVEX])
def test_inverses_of_wild_maps_in_both_precisions(cls, dim):
    map = perturbed(cls(dim), 0.3 / math.sqrt(dim))
    x = randn(300, dim)
    with torch.no_grad():
        assert torch.allclose(map(map.inverse(x))[0], x, atol=1e-8)
        assert torch.allclose(map.float()(map.inverse(x.float()))[0], x.float(), atol=1e-3)


@pytest.mark.parametrize("cls", [RESIDUAL, CONVEX])
def test_the_inverse_is_differentiable(cls):
    """T⁻¹(T(x)) = x for all parameters and points, so that its derivatives are 0 and 1."""
    map = perturbed(cls(3), 0.1)
    x = randn(20, 3).requires_grad_()
    back = map.inverse(map(x)[0])
    weights = randn(20, 3, seed=1)
    gradients = torch.autograd.grad((weights * back).sum(), [x, *map.parameters()], allow_unused=True)
    assert torch.allclose(gradients[0], weights, atol=1e-7)
    assert all(float(g.abs().max()) < 1e-6 for g in gradients[1:] if g is not None)


# --- JKO steps ---


def test_the_convex_step_is_optimal_transport():
    """By Brenier's theorem a gradient of a convex function is optimal, also where the training is not finished."""
    x = datasets.TwoMoons().sample(2000, seed=0).float()
    rho = wprox.Particles((x - x.mean(0)) / x.std(0))
    F = wprox.KL(wprox.Gaussian(torch.zeros(2), torch.eye(2)))
    step = wprox.NeuralProx("convex", iterations=150).step(F, rho, 1.0)
    n = 1000
    before, after = rho.points[:n].double(), step.measure.points[:n].double()
    cost = float((before - after).square().sum(1).mean())
    exact = ot.emd2([], [], torch.cdist(before, after).square().numpy(), numItermax=10**6)
    assert cost > 0.1
    assert cost == pytest.approx(exact, rel=0.01)


# --- arguments ---


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: RESIDUAL(0), ValueError, "dim must be at least 1"),
        (lambda: RESIDUAL(2, blocks=0), ValueError, "blocks must be at least 1"),
        (lambda: RESIDUAL(2, hidden=()), ValueError, "hidden is empty"),
        (lambda: RESIDUAL(2, hidden=(8, 0)), ValueError, r"hidden\[1\] must be at least 1"),
        (lambda: RESIDUAL(2, lipschitz=1.0), ValueError, "lipschitz must lie between 0 and 1, got 1"),
        (
            lambda: RESIDUAL(2, log_det="stochastic"),
            ValueError,
            r"one of \['auto', 'exact', 'series'\], got 'stochastic'",
        ),
        (lambda: RESIDUAL(2, tolerance=0), ValueError, "tolerance must be positive"),
        (lambda: CONVEX(0), ValueError, "dim must be at least 1"),
        (lambda: CONVEX(2, groups=0), ValueError, "groups must be at least 1"),
        (lambda: CONVEX(2, pieces=1), ValueError, "pieces must be at least 2"),
        (lambda: CONVEX(2, convexity=0), ValueError, "convexity must be positive"),
        (lambda: CONVEX(2, log_det="series"), ValueError, r"one of \['auto', 'exact', 'stochastic'\], got 'series'"),
        (lambda: CONVEX(2, lanczos_steps=0), ValueError, "lanczos_steps must be at least 1"),
        (lambda: CONVEX(2, tolerance=-1), ValueError, "tolerance must be positive"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()
