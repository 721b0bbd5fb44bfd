"""The law at a given time: `jko(..., until=t)`, times and densities of a trajectory."""

import math

import pytest
import torch

import wprox

OU = wprox.KL(wprox.Gaussian(torch.tensor([1.0, -0.5]).double(), torch.tensor([[1.0, 0.3], [0.3, 0.6]]).double()))
START = wprox.Gaussian(torch.zeros(2).double(), torch.eye(2).double())


def ornstein_uhlenbeck(time):
    """The law at time t of dX = −Σ⁻¹(X − b) dt + √2 dW from N(0, I), with E = exp(−tΣ⁻¹): N(b − Eb, EE + Σ(I − EE))."""
    b, covariance = OU.target.loc, OU.target.covariance_matrix
    decay = torch.linalg.matrix_exp(-time * torch.linalg.inv(covariance))
    rest = covariance @ (torch.eye(2).double() - decay @ decay)
    return wprox.Gaussian(b - decay @ b, decay @ decay + (rest + rest.mT) / 2)


def symmetric_kl(p, q):
    p, q = (torch.distributions.MultivariateNormal(law.loc, law.covariance_matrix) for law in (p, q))
    return float(torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p))


def test_the_last_step_is_shortened_to_end_at_the_time():
    trajectory = wprox.jko(OU, wprox.GaussianProx(), START, step_size=0.3, until=1.0)
    assert torch.allclose(trajectory.times, torch.tensor([0, 0.3, 0.6, 0.9, 1.0]).double())
    assert len(wprox.jko(OU, wprox.GaussianProx(), START, step_size=0.05, until=1.0)) == 20  # no step of 1e-16
    growing = wprox.jko(OU, wprox.GaussianProx(), START, step_size=lambda k: 0.1 * 2**k, until=1.0)
    assert torch.allclose(growing.times, torch.tensor([0, 0.1, 0.3, 0.7, 1.0]).double())


def test_step_sizes_that_do_not_reach_the_time_are_refused():
    with pytest.raises(ValueError, match=r"sum to 0.5, which is less than until=1"):
        wprox.jko(OU, wprox.GaussianProx(), START, step_size=[0.2, 0.3], until=1.0)
    with pytest.raises(ValueError, match="until must be positive"):
        wprox.jko(OU, wprox.GaussianProx(), START, until=0.0)


def test_ornstein_uhlenbeck_converges_to_the_true_law_to_first_order():
    """W₂ is of first order in γ, so KL of second: halving γ divides it by four, in the limit."""
    truth = ornstein_uhlenbeck(1.0)
    errors = [
        symmetric_kl(wprox.jko(OU, wprox.GaussianProx(), START, step_size=gamma, until=1.0).final, truth)
        for gamma in (0.1, 0.05, 0.025)
    ]
    assert errors[1] < 5e-4
    assert 3.5 < errors[0] / errors[1] < 4.5
    assert 3.5 < errors[1] / errors[2] < 4.5


def test_log_prob_anywhere_is_that_of_the_last_measure():
    trajectory = wprox.jko(OU, wprox.GaussianProx(), START, step_size=0.25, until=1.0)
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(trajectory.log_prob(x), trajectory.final.log_prob(x), atol=1e-9)
    assert trajectory.log_prob(x.float()).dtype == torch.float32
    assert torch.allclose(trajectory.log_prob(x.float()).double(), trajectory.final.log_prob(x), atol=1e-4)


def test_log_prob_of_particles_needs_the_law_that_they_were_drawn_from():
    solver = wprox.NeuralProx(map=wprox.AffineMap, iterations=20)
    trajectory = wprox.jko(OU, solver, START.to_particles(200, seed=0), step_size=0.5, until=1.0)
    final = trajectory.final
    assert torch.allclose(trajectory.log_prob(final.points, initial=START), final.log_density(), atol=1e-8)
    with pytest.raises(TypeError, match="give the law"):
        trajectory.log_prob(final.points)


def test_log_prob_without_maps_is_refused():
    grid = wprox.Grid.from_density(lambda x: (-x.square().sum(-1)).exp(), (16,), [(-3.0, 3.0)])
    trajectory = wprox.jko(wprox.Entropy(), wprox.SinkhornProx(blur=0.5), grid, step_size=0.1, until=0.1)
    with pytest.raises(TypeError, match="maps"):
        trajectory.log_prob(torch.zeros(1, 1))


def test_a_potential_with_entropy_is_a_drift_diffusion():
    """dX = −X dt + √(2τ) dW from N(0, 1): the variance at t is τ + (1 − τ) e^{−2t}."""
    tau, time = 0.5, 0.7
    functional = wprox.PotentialEnergy(lambda x: x.square().sum(-1) / 2) + tau * wprox.Entropy()
    start = wprox.Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    final = wprox.jko(functional, wprox.GaussianProx(), start, step_size=0.01, until=time).final
    assert float(final.covariance_matrix) == pytest.approx(tau + (1 - tau) * math.exp(-2 * time), rel=0.01)
