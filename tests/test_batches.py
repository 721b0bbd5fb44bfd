"""Minibatches of particles: without copies, and without bias for every functional for which there can be none."""

import itertools

import pytest
import torch

import wprox
from wprox import kernels
from wprox.solvers.neural.batches import Batch, Batches

F64 = torch.float64


def normal(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def potential(x):
    return x.square().sum(-1).square() / 4 - x[:, 0]


def log_target(x):
    return -x.square().sum(-1).square() / 4


N, M = 5, 3
WEIGHTS = torch.tensor([0.1, 0.35, 0.05, 0.2, 0.3], dtype=F64)
TARGET = normal(4, 2, seed=1)
UNBIASED = {
    "potential": wprox.PotentialEnergy(potential),
    "interaction, smooth": wprox.InteractionEnergy(kernels.Gaussian()),
    "interaction, singular": wprox.InteractionEnergy(kernels.Logarithmic()),
    "interaction, a function": wprox.InteractionEnergy(lambda z: z.square().sum(-1) + 1),
    "interaction, random batches": wprox.InteractionEnergy(kernels.PowerLaw(4, 2), batch_size=2),
    "entropy": wprox.Entropy(),
    "internal": wprox.PorousMedium(2.0),
    "KL": wprox.KL(log_target),
    "MMD": wprox.MMD(TARGET),
    "MMD, Gaussian": wprox.MMD(TARGET, kernels.Gaussian()),
    "MMD, unbiased": wprox.MMD(TARGET, kernels.Gaussian(), unbiased=True),
    "KSD": wprox.KSD(log_target),
    "sum": wprox.KL(log_target) + 0.5 * wprox.MMD(TARGET),
}
# convex along mixtures, so that the mean over minibatches is never below (Jensen), but for rounding
BIASED = {
    "squared Wasserstein": wprox.SquaredWasserstein(TARGET),
    "Sinkhorn": wprox.SinkhornDivergence(TARGET, blur=0.5, tol=1e-10),
    "sliced": wprox.SlicedWasserstein(normal(7, 2, seed=1), 20),
}


def every_even_batch(n=N, m=M):
    for rows in itertools.combinations(range(n), m):
        yield 1.0, Batch(torch.tensor(rows), torch.full((m,), 1 / m, dtype=F64), (1 - 1 / m) / (1 - 1 / n))


def every_uneven_batch(weights=WEIGHTS, m=M):
    """All that random groups and one row of each can be, with their probabilities."""
    n = len(weights)
    sizes = [n // m + (g < n % m) for g in range(m)]
    together = 1 - sum(p * (p - 1) for p in sizes) / (n * (n - 1))
    for order in itertools.permutations(range(n)):
        left = iter(order)
        groups = [[next(left) for _ in range(p)] for p in sizes]
        if any(group != sorted(group) for group in groups):  # the order within a group does not count
            continue
        masses = torch.stack([weights[group].sum() for group in groups])
        for rows in itertools.product(*groups):
            chance = float((weights[list(rows)] / masses).prod())
            yield chance, Batch(torch.tensor(rows), masses, together)


def mean_over(batches, functional, rho):
    """The mean of value and gradient (in the points of ρ)."""
    total, mass = torch.zeros((), dtype=F64), 0.0
    for chance, batch in batches:
        total, mass = (
            total + chance * functional(batch.of(rho).push(lambda x: (1.5 * x + 0.1, x.sum(-1)))),
            mass + chance,
        )
    total = total / mass
    return total.detach(), torch.autograd.grad(total, rho.points)[0]


def cloud(weights):
    rho = wprox.Particles(normal(N, 2), weights, log_density=normal(N, 1, seed=2)[:, 0] / 10)
    rho.points.requires_grad_()
    return rho


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_all_minibatches_is_the_whole_in_value_and_gradient(name):
    for weights, batches in ((None, every_even_batch), (WEIGHTS, every_uneven_batch)):
        functional, rho = UNBIASED[name], cloud(weights)
        exact = functional
        if name == "interaction, random batches":  # whose mean over shuffles is the sum over all pairs
            if weights is not None:
                continue
            functional, exact = Shuffled(functional), wprox.InteractionEnergy(kernels.PowerLaw(4, 2))
        value, gradient = mean_over(batches(), functional, rho)
        expected, expected_gradient = mean_over([(1.0, Batch(torch.arange(N)))], exact, rho)
        assert torch.allclose(value, expected, rtol=1e-10, atol=1e-12)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-9, atol=1e-11)


class Shuffled(wprox.Functional):
    """The mean of an interaction over all its shuffles of three particles, which are as likely as each other."""

    def __init__(self, energy):
        self.energy = energy

    def __call__(self, rho):
        firsts, seed = {}, 0
        while len(firsts) < 3:  # which of the three is in the batch of one
            order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
            firsts.setdefault(int(order[-1]), rho.integrate_random_batches(self.energy.kernel, 2, seed))
            seed += 1
        return sum(firsts.values()) / 6


@pytest.mark.parametrize("name", BIASED)
def test_distances_to_a_target_are_biased_upwards_and_less_so_for_larger_minibatches(name):
    rho = wprox.Particles(normal(6, 2))
    functional = BIASED[name]
    exact, biases = float(functional(rho)), []
    for m in (2, 4, 5):
        values = [float(functional(batch.of(rho))) for _, batch in every_even_batch(6, m)]
        biases.append(sum(values) / len(values) - exact)
    assert 0 < biases[2] < biases[1] < biases[0]
    # as that of a mean of squares is: proportional to 1/m − 1/n, up to a factor
    assert biases[0] / (1 / 2 - 1 / 6) == pytest.approx(biases[2] / (1 / 5 - 1 / 6), rel=1.0)


@pytest.mark.parametrize("weights", [torch.full((7,), 1 / 7, dtype=F64), torch.cat((WEIGHTS, torch.zeros(2))).double()])
def test_draws_have_the_weights_that_the_estimates_need(weights):
    """E v_i = w_i and E v_i v_j = q w_i w_j, each within 4.5 standard errors: false alarms in 2e-4 of runs."""
    n, draws = len(weights), 5000
    batches = Batches(weights, 3, torch.Generator().manual_seed(0))
    v = torch.zeros(draws, n, dtype=F64)
    for k in range(draws):
        batch = batches.draw()
        assert len(batch.rows.unique()) == 3
        v[k, batch.rows] = batch.weights
    assert torch.allclose(v.sum(1), torch.ones(draws, dtype=F64))
    pairs = torch.triu_indices(n, n, 1)
    products = v[:, pairs[0]] * v[:, pairs[1]]
    for found, expected in ((v, weights), (products, batch.together * weights[pairs[0]] * weights[pairs[1]])):
        assert bool(((found.mean(0) - expected).abs() <= 4.5 * found.std(0) / draws**0.5 + 1e-12).all())


def test_all_rows_are_taken_as_they_are_and_all_carriers_with_their_weights():
    weights = torch.tensor([0.5, 0.0, 0.25, 0.0, 0.25], dtype=F64)
    whole = Batches(weights, 5, torch.Generator()).draw()
    assert whole.weights is None
    batch = Batches(weights, 4, torch.Generator()).draw()
    order = batch.rows.argsort()
    assert batch.rows[order].tolist() == [0, 2, 4]
    assert torch.allclose(batch.weights[order], weights[[0, 2, 4]])
    assert batch.together == 1


@pytest.mark.parametrize("weights", [torch.full((5,), 0.2, dtype=F64), WEIGHTS])
def test_a_minibatch_has_at_least_two_rows(weights):
    """One row tells nothing of pairs."""
    batch = Batches(weights, 1, torch.Generator().manual_seed(0)).draw()
    assert len(batch.rows.unique()) == 2
    assert batch.together > 0
    rho = wprox.Particles(normal(5, 2), weights)
    solver = wprox.NeuralProx(map=wprox.AffineMap, iterations=5, batch_size=1)
    for F in (wprox.InteractionEnergy(kernels.Gaussian()), wprox.MMD(TARGET), wprox.MMD(TARGET, unbiased=True)):
        assert bool(torch.isfinite(solver.step(F, rho, 0.1).measure.points).all())
        for start in (rho, wprox.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))):
            outcome = solver.fine_tune(wprox.AffineMap(2).double(), F, start, held_out=rho, memory_budget=1)
            assert outcome.iterations == 5


@pytest.mark.parametrize("kernel", [kernels.PowerLaw(2, 0), kernels.Logarithmic()], ids=str)
def test_a_particle_never_meets_its_copy(kernel):
    F = wprox.InteractionEnergy(kernel) + wprox.PotentialEnergy(lambda x: x.square().sum(-1))
    weights = torch.rand(300, generator=torch.Generator().manual_seed(0), dtype=F64)
    for rho in (wprox.Particles(normal(300, 2)), wprox.Particles(normal(300, 2), weights / weights.sum())):
        solver = wprox.NeuralProx(map=wprox.AffineMap, iterations=30, batch_size=100, learning_rate=0.02)
        step = solver.step(F, rho, 0.1)
        assert float(step.value) < float(F(rho))


def test_a_minibatch_of_a_minibatch_counts_for_itself():
    rho = wprox.Particles(normal(N, 2))
    (_, batch), *_ = every_even_batch()
    part = batch.of(rho)
    again = wprox.Particles(part.points[:2])
    assert torch.allclose(wprox.MMD(TARGET)(part.subset(slice(2))), wprox.MMD(TARGET)(again))
    assert not torch.allclose(wprox.MMD(TARGET)(part), wprox.MMD(TARGET)(wprox.Particles(part.points)))
