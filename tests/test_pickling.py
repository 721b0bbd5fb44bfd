"""What is made of functions that can be pickled can be pickled itself: for processes, joblib and torch.save."""

import pickle

import pytest
import torch

import wprox
from wprox.testing.examples import SquaredSpread, half_square, sample_measures, standard_normal, starts

F64 = torch.float64
PARTICLES, KERNELS, GAUSSIAN, QUANTILES, GRID = starts()
V, W = wprox.PotentialEnergy(half_square, modulus=1.0), wprox.InteractionEnergy(half_square)


def restored(value):
    return pickle.loads(pickle.dumps(value))


def energy(density):
    return density.square()


FUNCTIONALS = [
    V,
    W,
    wprox.InteractionEnergy(wprox.kernels.Riesz(), batch_size=4),
    wprox.Entropy(),
    wprox.InternalEnergy(energy),
    wprox.PorousMedium(2.0),
    wprox.KL(standard_normal(2)),
    wprox.KL(torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))),
    wprox.MMD(PARTICLES),
    wprox.KSD(standard_normal(2)),
    wprox.SquaredWasserstein(PARTICLES),
    wprox.SinkhornDivergence(PARTICLES, blur=0.5),
    wprox.SlicedWasserstein(PARTICLES, n_projections=5),
    wprox.DensityBounds(0.0, 2.0),
    wprox.Congestion(2.0),
    SquaredSpread(),
    0.5 * wprox.PorousMedium(2.0) + V - 2 * wprox.Entropy(),
]


@pytest.mark.parametrize("functional", FUNCTIONALS, ids=repr)
def test_functionals_and_their_first_variations(functional):
    again = restored(functional)
    assert repr(again) == repr(functional)
    for rho in sample_measures(2):
        try:
            value, field = functional(rho), functional.first_variation(rho)
            there = field(rho.points)
        except (NotImplementedError, ValueError, TypeError):  # of a measure that it does not take
            continue
        assert torch.equal(again(rho), value)
        torch.testing.assert_close(restored(field)(rho.points), there)


def quick(map):
    return wprox.NeuralProx(map, iterations=2)


STEPS = [
    (wprox.ParticleProx(), V, PARTICLES),
    (wprox.ParticleProx(), wprox.Entropy(), KERNELS),
    (wprox.ExplicitEuler(), V + W, PARTICLES),
    (wprox.ExplicitEuler(accelerated=True), SquaredSpread(), PARTICLES),
    (wprox.ExplicitEuler(), wprox.KL(standard_normal(2)), GAUSSIAN),
    (wprox.Langevin(), V + wprox.Entropy(), PARTICLES),
    (wprox.GaussianProx(), wprox.KL(standard_normal(2)), GAUSSIAN),
    (wprox.QuantileProx(), wprox.KL(standard_normal(1)), QUANTILES),
    (wprox.SinkhornProx(), wprox.PorousMedium(2.0), GRID),
    (wprox.ForwardBackward(wprox.GaussianProx()), V + wprox.Entropy(), GAUSSIAN),
    (wprox.ForwardBackward(quick(wprox.AffineMap)), V + wprox.Entropy(), PARTICLES),
    *[(quick(map), wprox.KL(standard_normal(2)), PARTICLES) for map in ("spline", "ode", "residual", "convex")],
]


@pytest.mark.parametrize(("solver", "functional", "start"), STEPS, ids=lambda value: type(value).__name__)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_solvers_and_their_trajectories(solver, functional, start):
    trajectory = restored(wprox.jko(functional, solver, start, 0.05, 2))
    again = wprox.jko(functional, restored(solver), restored(start), 0.05, 2)
    assert torch.equal(trajectory.final.points, again.final.points)
    assert torch.equal(trajectory.final.weights, again.final.weights)
    if trajectory.map is not None:
        assert torch.equal(trajectory.map(start.points)[0], again.map(start.points)[0])


def test_models():
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    flow = wprox.JKOFlow(n_blocks=1, iterations=2, fine_tune=False, step_sizes="auto").fit(x)
    assert torch.equal(restored(flow).log_prob(x), flow.log_prob(x))
    start = wprox.Gaussian(torch.zeros(2), 2 * torch.eye(2))
    target = wprox.Gaussian(torch.zeros(2), torch.eye(2))
    sampler = wprox.JKOSampler(target, initial=start, n_blocks=1, iterations=2, forward_steps=1, corrections=1).run()
    assert torch.equal(restored(sampler).sample(3, seed=0), sampler.sample(3, seed=0))


def test_errors():
    """Errors come back from other processes by their arguments; one that cannot be built again hangs the pool."""
    inverse = restored(wprox.InverseError("no inverse was found", 0.5))
    assert (str(inverse), inverse.residual) == ("no inverse was found", 0.5)
    failed = wprox.StepFailedError("the step failed", is_too_long=True)
    failed.index = 3
    assert (restored(failed).index, restored(failed).is_too_long) == (3, True)
