"""The rational-quadratic spline against zuko's, its gradients against finite differences, and affine exponentials."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zuko.nn import MaskedMLP
from zuko.transforms import MonotonicRQSTransform

import wprox
from wprox._random import seeded
from wprox.maps._rational_quadratic import inverse_spline, spline
from wprox.maps.affine import _SymmetricExponential
from wprox.maps.spline import _autoregressive_network

torch.distributions.Distribution.set_default_validate_args(True)  # zuko switches it off for the whole process

SHAPES = [(1, 16, 40), (3, 8, 20), (4, 2, 20), (2, 3, 1)]  # coordinates, bins, points


def draw(m, bins, n, dtype=torch.float64, spread=2.0, seed=0):
    """Points, some of them outside [−5, 5], and parameters."""
    generator = torch.Generator().manual_seed(seed)
    x = 3 * torch.randn(m, n, generator=generator, dtype=torch.float64)
    parameters = spread * torch.randn(m, 3 * bins - 1, n, generator=generator, dtype=torch.float64)
    return x.to(dtype).requires_grad_(), parameters.to(dtype).requires_grad_()


def reference(parameters, bins, bound=5.0):
    return MonotonicRQSTransform(*parameters.transpose(1, 2).split((bins, bins, bins - 1), dim=-1), bound=bound)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_spline_and_gradients_are_those_of_zuko(shape, dtype, tolerance):
    x, parameters = draw(*shape, dtype, spread=1.0)
    bins = shape[1]
    by_y, by_log_slope = torch.randn(2, *x.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    values = spline(x, parameters, bins, 5.0)
    expected = reference(parameters, bins).call_and_ladj(x)
    gradients = torch.autograd.grad(values, (x, parameters), (by_y, by_log_slope))
    expected_gradients = torch.autograd.grad(expected, (x, parameters), (by_y, by_log_slope))
    for found, wanted in zip((*values, *gradients), (*expected, *expected_gradients), strict=True):
        assert found.dtype == dtype
        assert torch.allclose(found, wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_inverse_and_gradients_are_those_of_zuko(shape):
    y, parameters = draw(*shape)
    x = inverse_spline(y, parameters, shape[1], 5.0)
    expected = reference(parameters, shape[1]).inv(y)
    assert torch.allclose(x, expected, atol=1e-9)
    found = torch.autograd.grad(x.sin().sum(), (y, parameters))
    wanted = torch.autograd.grad(expected.sin().sum(), (y, parameters))
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_first_and_second_derivatives(shape):
    x, parameters = draw(*shape)
    arguments = (x[:, :2].detach().requires_grad_(), parameters[..., :2].detach().requires_grad_())
    assert torch.autograd.gradcheck(lambda *a: spline(*a, shape[1], 5.0), arguments)
    assert torch.autograd.gradgradcheck(lambda *a: spline(*a, shape[1], 5.0), arguments)
    assert torch.autograd.gradcheck(lambda *a: inverse_spline(*a, shape[1], 5.0), arguments)


def test_one_output_may_go_without_a_gradient():
    x, parameters = draw(2, 4, 6)
    for output in (0, 1):
        found = torch.autograd.grad(spline(x, parameters, 4, 5.0)[output].sum(), (x, parameters))
        wanted = torch.autograd.grad(reference(parameters, 4).call_and_ladj(x)[output].sum(), (x, parameters))
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(found, wanted, strict=True))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    bins=st.integers(2, 20),
    bound=st.floats(0.1, 50),
    spread=st.floats(0, 20),
    seed=st.integers(0, 1000),
    double=st.booleans(),
)
def test_splines_are_monotone_and_the_identity_outside(bins, bound, spread, seed, double):
    dtype = torch.float64 if double else torch.float32
    _, parameters = draw(1, bins, 1, dtype, spread, seed)
    x = torch.linspace(-1.5 * bound, 1.5 * bound, 501, dtype=dtype)[None]
    with torch.no_grad():
        shared = parameters.expand(-1, -1, x.shape[1])
        y, log_slope = spline(x, shared, bins, bound)
        back = inverse_spline(y, shared, bins, bound)
        again = spline(back, shared, bins, bound)[0]
    outside = x.abs() >= bound
    assert torch.equal(y[outside], x[outside])
    assert not log_slope[outside].any()
    rounding = 100 * torch.finfo(dtype).eps * bound
    assert float(y.diff().min()) >= -rounding
    assert float(y[~outside].abs().max()) <= bound + rounding
    assert torch.isfinite(log_slope).all()
    # the rounding of x is multiplied by the slope
    assert float((again - y).abs().max()) < rounding * (1 + float(log_slope.exp().max()))


def test_knots_edges_and_far_points():
    """At a knot both bins agree; at ±bound, ±∞ and beyond, the identity; nan stays nan and harms no other point."""
    _, parameters = draw(1, 5, 1)
    with torch.no_grad():
        knots = reference(parameters, 5).horizontal.mT[0].mT  # (1, 6)
        shared = parameters.expand(-1, -1, 6)
        below, above = (spline(knots + shift, shared, 5, 5.0) for shift in (-1e-13, 1e-13))
        assert torch.allclose(below[0], reference(parameters, 5).vertical[0], atol=1e-10)
        assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(below, above, strict=True))
        far = torch.tensor([[-torch.inf, -5.0, 5.0, 1e30, torch.nan, 1.0]]).double()
        y, log_slope = spline(far, shared, 5, 5.0)
    assert torch.equal(y[:, :4], far[:, :4])
    assert torch.equal(log_slope[:, :4], torch.zeros(1, 4).double())
    assert bool(y[0, 4].isnan())
    assert bool(torch.isfinite(y[0, 5]) & torch.isfinite(log_slope[0, 5]))


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_a_map_is_what_it_was_with_zuko(dim, monkeypatch):
    """The whole `SplineMap`, parameters, axes and all, in the formulas of the version that ran on zuko's transform."""
    with seeded(dim):
        map = wprox.SplineMap(dim, bins=6, frequencies=2).double()
        with torch.no_grad():
            for parameter in map.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    x = 2 * torch.randn(50, dim, generator=torch.Generator().manual_seed(1)).double()
    y, log_det = map.maps[0](x)
    for layer in map.maps[1:]:
        if dim == 1:
            transform = reference(layer.parameters_[..., None].expand(-1, -1, len(y)), 6)
            moved, log_slope = transform.call_and_ladj(y.mT)
            y, log_det = moved.mT, log_det + log_slope[0]
            continue
        axes = layer.axes()
        z = y @ axes
        fixed, moved = z[:, : layer.kept], z[:, layer.kept :]
        phases = (fixed[..., None] * layer.octaves).flatten(1)
        parameters = layer.network(torch.cat((fixed, phases.sin(), phases.cos()), dim=1))
        transform = reference(parameters.unflatten(-1, (moved.shape[1], 17)).permute(1, 2, 0), 6)
        moved, log_slope = transform.call_and_ladj(moved.mT)
        y, log_det = torch.cat((fixed, moved.mT), dim=1) @ axes.mT, log_det + log_slope.sum(0)
    assert torch.allclose(map(x)[0], y, atol=1e-12)
    assert torch.allclose(map(x)[1], log_det, atol=1e-12)


@pytest.mark.parametrize("hidden", [(), (1,), (2, 5), (64, 64)])
@pytest.mark.parametrize("dim", [2, 3, 7])
def test_the_autoregressive_network_is_that_of_zuko(dim, hidden):
    """The same names, masks, initial parameters and values, so that files written with zuko's load as before."""
    with seeded(0):
        network = _autoregressive_network(dim, 5, hidden)
    with seeded(0):
        earlier = torch.ones(dim, dim).tril(-1).bool().repeat_interleave(5, dim=0)
        expected = MaskedMLP(earlier, hidden, activation=nn.SiLU)
    found, wanted = network.state_dict(), expected.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    x = torch.randn(10, dim, generator=torch.Generator().manual_seed(1))
    assert torch.equal(network(x), expected(x))


@pytest.mark.parametrize("options", [{}, {"coupling": False, "hidden": (8,)}])
def test_second_derivatives_of_a_map(options):
    """The Hessian of log det ∇T, as the score of a pushed density needs, against differences of the gradient."""
    with seeded(3):
        map = wprox.SplineMap(2, bins=4, frequencies=1, **options).double()
        with torch.no_grad():
            for parameter in map.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1)).double()
    assert torch.autograd.gradgradcheck(lambda x: map(x), (x.requires_grad_(),))


def test_functional_transforms():
    """`torch.func` works on maps: a Jacobian point by point."""
    with seeded(0):
        map = wprox.SplineMap(2, bins=4).double()
        with torch.no_grad():
            for parameter in map.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double()
    jacobian = torch.func.vmap(torch.func.jacrev(lambda point: map(point[None])[0][0]))(x)
    assert torch.allclose(jacobian.det().abs().log(), map(x)[1])


@pytest.mark.parametrize(
    "symmetric",
    [torch.zeros(3, 3), torch.diag(torch.tensor([1.0, 1.0, -2.0])), torch.tensor([[0.3, 2.0], [2.0, -1.0]])],
    ids=["zero", "repeated", "general"],
)
def test_exponential_of_a_symmetric_matrix(symmetric):
    symmetric = symmetric.double().requires_grad_()

    def exponential(matrix):
        return _SymmetricExponential.apply((matrix + matrix.mT) / 2)[0]

    assert torch.allclose(exponential(symmetric), torch.linalg.matrix_exp(symmetric), atol=1e-13)
    assert torch.autograd.gradcheck(exponential, symmetric)
    assert torch.autograd.gradgradcheck(exponential, symmetric)
