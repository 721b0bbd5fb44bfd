"""Radial kernels: one gauntlet for all, definiteness, moduli and what bad input is told."""

import math

import pytest
import torch

import wprox
from wprox import kernels

F64 = torch.float64
INTERACTIONS = [
    kernels.PowerLaw(4, 2),
    kernels.PowerLaw(3, 2.5),
    kernels.PowerLaw(2.5, 1.5),
    kernels.PowerLaw(2, 0),
    kernels.PowerLaw(0, -1),
    kernels.Morse(2.0, 0.5),
    kernels.Morse(1.5, 0.7, 0.8),
    kernels.Logarithmic(),
]
DISCREPANCIES = [
    kernels.Gaussian(0.7),
    kernels.Laplace(0.7),
    kernels.InverseMultiquadric(0.7, 0.3),
    kernels.Riesz(1.0),
    kernels.Riesz(0.5),
]
ALL = INTERACTIONS + DISCREPANCIES


def name(kernel):
    return (
        str(kernel) if isinstance(kernel, kernels.RadialKernel) else getattr(kernel, "__name__", type(kernel).__name__)
    )


def normal(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


@pytest.mark.parametrize("kernel", ALL, ids=name)
def test_kernels_are_even_and_radial(kernel):
    z = normal(20, 3)
    assert torch.allclose(kernel(z), kernel(-z))
    assert torch.allclose(kernel(z), kernel.profile(z.square().sum(-1)))


@pytest.mark.parametrize("kernel", ALL, ids=name)
def test_derivatives_of_the_profile_are_those_of_autograd(kernel):
    s = normal(20).square() + 0.1
    order = 3 if kernel.smooth else 1
    known, automatic = kernel.derivatives(s, order), kernels.RadialKernel.derivatives(kernel, s, order)
    assert len(known) == order + 1
    for mine, other in zip(known, automatic, strict=True):
        assert torch.allclose(mine, other, rtol=1e-10)
    assert torch.equal(s, normal(20).square() + 0.1)  # left as it was


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kernel", ALL, ids=name)
def test_value_and_gradient_at_zero(kernel, dtype):
    z = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
    value = kernel(z)
    assert value.dtype == dtype
    assert bool(torch.isfinite(value).all()) != kernel.singular
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert torch.equal(gradient, torch.zeros_like(z))


@pytest.mark.parametrize("kernel", ALL, ids=name)
def test_nan_is_not_hidden(kernel):
    assert bool(torch.isnan(kernel(torch.full((1, 2), math.nan))).all())


@pytest.mark.parametrize("kernel", DISCREPANCIES, ids=name)
def test_kernels_of_discrepancies_are_conditionally_positive_definite(kernel):
    x = normal(40, 2)
    gram = kernel((x[:, None] - x).reshape(-1, 2)).reshape(40, 40)
    if not isinstance(kernel, kernels.Riesz):
        assert float(torch.linalg.eigvalsh(gram).min()) > -1e-12
    centring = torch.eye(40, dtype=F64) - 1 / 40
    assert float(torch.linalg.eigvalsh(centring @ gram @ centring).min()) > -1e-12


@pytest.mark.parametrize(("a", "b"), [(4, 2), (3, 2.5), (5, 3), (6, 2)])
def test_the_modulus_of_a_power_law_is_the_least_eigenvalue_of_its_hessian(a, b):
    kernel = kernels.PowerLaw(a, b)
    r = torch.linspace(1e-4, 2, 20001, dtype=F64)
    least = torch.minimum(r ** (a - 2) - r ** (b - 2), (a - 1) * r ** (a - 2) - (b - 1) * r ** (b - 2)).min()
    assert kernel.modulus == pytest.approx(float(least), abs=1e-6)
    assert wprox.InteractionEnergy(kernel).modulus == kernel.modulus


def test_moduli_that_are_not_known():
    assert kernels.PowerLaw(2, 1).modulus is None
    assert kernels.Morse(2.0, 0.5).modulus is None


def test_median_bandwidth():
    assert kernels.median_bandwidth([[0.0], [0.0], [0.0], [5.0]]) == 5.0  # repeated points tell nothing
    # |x − y| of independent N(0, 1) has the median 0.6745 √2; 1,000 draws miss it by 5 % less than once in 10⁴ seeds
    assert kernels.median_bandwidth(normal(3000, 1)) == pytest.approx(0.6745 * math.sqrt(2), rel=0.05)
    with pytest.raises(ValueError, match="the 2 points coincide"):
        kernels.median_bandwidth([[1.0], [1.0]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kernels.PowerLaw(2, 4), "larger than that of repulsion, got 2 and 4"),
        (lambda: kernels.Riesz(2), "between 0 and 2, got 2"),
        (lambda: kernels.Gaussian(0), "bandwidth must be positive"),
        (lambda: kernels.Laplace(-1), "bandwidth must be positive"),
        (lambda: kernels.InverseMultiquadric(1, 0), "exponent must be positive"),
        (lambda: kernels.Morse(1, 0), "repulsion_length must be positive"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
