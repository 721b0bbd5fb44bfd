"""Laws from outside: which are Gaussian, wherever that is asked."""

import math

import pytest
import torch
from torch.distributions import Independent, Laplace, MultivariateNormal, Normal

import wprox
from wprox.measures.laws import as_gaussian, log_density_of, standard_normal, standard_normal_log_prob
from wprox.solvers.neural.flow_matching import relaxation

LOC, SCALE = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double()
GAUSSIANS = [
    wprox.Gaussian(LOC, torch.diag(SCALE.square())),
    MultivariateNormal(LOC, torch.diag(SCALE.square())),
    MultivariateNormal(LOC, scale_tril=torch.diag(SCALE)),
    Independent(Normal(LOC, SCALE), 1),
]
IDS = ["Gaussian", "MultivariateNormal", "scale_tril", "Independent"]


@pytest.mark.parametrize("law", GAUSSIANS, ids=IDS)
def test_a_gaussian_is_one_however_it_is_given(law):
    gaussian = as_gaussian(law)
    assert torch.equal(gaussian.loc, LOC)
    assert torch.allclose(gaussian.covariance_matrix, torch.diag(SCALE.square()))
    F = wprox.KL(law)
    assert F.modulus == pytest.approx(1 / 4)
    assert wprox.metrics.wasserstein(wprox.Gaussian(LOC, torch.eye(2)), law).kind == "exact"
    start = wprox.Gaussian(torch.zeros(2).double(), torch.eye(2).double())
    step = wprox.GaussianProx().step(F, start, 1.0)
    assert step.message == "in closed form"
    assert torch.allclose(relaxation(F, 1.0, LOC).loc, LOC)


@pytest.mark.parametrize(
    "law",
    [
        Normal(LOC, SCALE),
        Independent(Laplace(LOC, SCALE), 1),
        Independent(Normal(LOC.expand(3, 2), SCALE), 1),
        Independent(Normal(LOC.expand(3, 2), SCALE), 2),
        MultivariateNormal(LOC.expand(3, 2), torch.eye(2).double()),
        wprox.Particles(torch.eye(2)),
        lambda x: x.sum(1),
    ],
)
def test_what_is_no_gaussian_over_vectors_is_none(law):
    assert as_gaussian(law) is None


def test_a_covariance_without_a_factor_in_float32_is_taken_in_float64():
    tril = torch.tensor([[1.0, 0.0], [1.0, 1e-5]])
    law = MultivariateNormal(torch.zeros(2), scale_tril=tril)
    gaussian = as_gaussian(law)
    assert gaussian.dtype == torch.float64
    assert torch.allclose(gaussian.scale_tril, tril.double(), atol=1e-8)
    assert wprox.KL(law).modulus == pytest.approx(0.5, rel=1e-6)
    assert as_gaussian(MultivariateNormal(torch.zeros(2), scale_tril=torch.tensor([[1.0, 0.0], [1.0, 1e-20]]))) is None


def test_standard_normal():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(standard_normal(x).log_prob(x), standard_normal_log_prob(x))
    assert float(standard_normal_log_prob(torch.zeros(1, 3))) == pytest.approx(-1.5 * math.log(2 * math.pi))


def test_log_density_of():
    dim, log_prob = log_density_of(GAUSSIANS[1])
    assert dim == 2
    assert torch.allclose(log_prob(LOC[None]), GAUSSIANS[0].log_prob(LOC[None]))
    with pytest.raises(TypeError, match="got int"):
        log_density_of(3)
    with pytest.raises(ValueError, match="Independent"):
        log_density_of(Normal(LOC, SCALE))
