"""Sums over pairs: radial kernels against plain autograd, singular ones, second derivatives, random batches."""

import pytest
import torch
from test_kernels import ALL, F64, name, normal

import wprox
from wprox import kernels
from wprox.pairs import radial, sums


def weights(n, seed=1):
    values = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return values / values.sum()


def dense(kernel, x, w, y=None, v=None):
    y, v, itself = (x, w, True) if y is None else (y, v, False)
    values = kernel((x[:, None] - y).reshape(-1, x.shape[1])).reshape(len(x), len(y))
    if itself and kernel.singular:
        own = torch.eye(len(x), dtype=torch.bool)
        z = torch.where(own[..., None], torch.ones_like(x[:1]), x[:, None] - x)
        values = kernel(z.reshape(-1, x.shape[1])).reshape(len(x), len(x)).masked_fill(own, 0)
    return w @ values @ v


@pytest.mark.parametrize("dim", [1, 2, 7])
@pytest.mark.parametrize("kernel", ALL, ids=name)
def test_value_and_gradients_in_blocks_are_those_of_autograd(monkeypatch, kernel, dim):
    monkeypatch.setattr(radial, "SIDE", 8)
    x, w = normal(29, dim).requires_grad_(), weights(29).requires_grad_()
    y, v = (normal(18, dim, seed=2) + 0.5).requires_grad_(), weights(18, 3).requires_grad_()
    for inputs in ((x, w), (x, w, y, v)):
        value, expected = sums.pair_sum(kernel, *inputs), dense(kernel, *inputs)
        assert torch.allclose(value, expected, rtol=1e-10)
        gradients, expected = torch.autograd.grad(value, inputs), torch.autograd.grad(expected, inputs)
        for mine, other in zip(gradients, expected, strict=True):
            assert torch.allclose(mine, other, rtol=1e-9, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("inputs", [1, 2])
def test_second_derivatives_fall_back_on_autograd(inputs):
    points = [(normal(7, 2, seed=k) + k).requires_grad_() for k in range(inputs)]

    def value(*points):
        flat = [part for x in points for part in (x, torch.full((7,), 1 / 7, dtype=F64))]
        return sums.pair_sum(kernels.Gaussian(), *flat)

    assert torch.autograd.gradcheck(value, points)
    assert torch.autograd.gradgradcheck(value, points)


@pytest.mark.parametrize("dim", [2, 6])
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_near_points_keep_their_digits(dim, shift):
    """float32 and a cloud far from 0: |x|² + |y|² − 2⟨x, y⟩ would have no digit left of distances of 1e-3."""
    x = (shift + 1e-3 * normal(50, dim)).float()
    exact = dense(kernels.Laplace(1e-3), x.double(), torch.full((50,), 0.02, dtype=F64))
    assert float(wprox.Particles(x).integrate_pairs(kernels.Laplace(1e-3))) == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kernel", [k for k in ALL if not k.singular], ids=name)
def test_coinciding_particles_do_not_push_each_other(kernel, dtype):
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 0.0]], dtype=dtype)
    gradient = wprox.InteractionEnergy(kernel).wasserstein_gradient(wprox.Particles(x))
    assert gradient.dtype == dtype
    assert bool(torch.isfinite(gradient).all())
    assert torch.equal(gradient[0], gradient[1])
    alone = wprox.InteractionEnergy(kernel).wasserstein_gradient(wprox.Particles(x[1:], [2 / 3, 1 / 3]))
    assert torch.allclose(gradient[1:], alone, atol=1e-6)


class LogOfFirst:
    """A kernel that is not radial: log|z_1| is infinite at 0, and marked so."""

    singular = True

    def __call__(self, z):
        return -z[:, 0].abs().log()


@pytest.mark.parametrize("kernel", [kernels.Logarithmic(), kernels.PowerLaw(2, -1), LogOfFirst()], ids=name)
def test_singular_kernels_leave_self_pairs_out_and_name_pairs_that_coincide(kernel):
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [5.0, 0.0]], dtype=F64)
    by_hand = sum(2 / 9 * kernel(torch.tensor([[z, 0.0]], dtype=F64)) for z in (3.0, 2.0, 5.0))
    rho = wprox.Particles(x)
    assert torch.allclose(rho.integrate_pairs(kernel), by_hand)
    assert bool(torch.isfinite(wprox.InteractionEnergy(kernel).wasserstein_gradient(rho)).all())
    twice = wprox.Particles(torch.cat((x, x[1:2])))
    with pytest.raises(ValueError, match=r"particles 1 and 3 coincide at \[3.0, 0.0\]"):
        wprox.InteractionEnergy(kernel)(twice)


def test_a_function_that_is_infinite_at_0_is_told_how_to_say_so():
    with pytest.raises(ValueError, match="singular = True"):
        wprox.Particles(normal(3, 2)).integrate_pairs(lambda z: -z.norm(dim=-1).log())


def test_singular_kernels_on_other_measures():
    kernel = kernels.Logarithmic()
    nodes = wprox.Quantiles(torch.linspace(0, 1, 2001, dtype=F64))
    assert float(nodes.integrate_pairs(kernel)) == pytest.approx(1.5, abs=1e-3)  # −∬ log|x − y| on [0, 1]²
    with pytest.raises(ValueError, match="on a grid it must be finite"):
        wprox.Grid([1.0, 1.0], [(0.0, 1.0)]).integrate_pairs(kernel)
    law = torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)
    # −E log|z| of z ~ N(0, 2I) in the plane is −½(log 4 − γ_Euler)
    assert float(wprox.Gaussian(*law, order=60).integrate_pairs(kernel)) == pytest.approx(-0.40454, abs=2e-2)
    with pytest.raises(ValueError, match="even order"):
        wprox.Gaussian(*law, order=5).integrate_pairs(kernel)


# --- functions that are not radial kernels ---


def skewed(z):  # even, but not radial
    return torch.exp(-(z[:, 0] * z[:, -1]).square()) + z.square().sum(-1)


@pytest.mark.parametrize("memory_budget", [None, 1, 700])
@pytest.mark.parametrize("function", [skewed, LogOfFirst()], ids=name)
def test_even_functions_in_tiles_are_those_of_autograd(function, memory_budget):
    x, w = normal(23, 2).requires_grad_(), weights(23).requires_grad_()
    kernel = kernels.EvenKernel(function, memory_budget=memory_budget)
    value, expected = sums.pair_sum(kernel, x, w), dense(kernel, x, w)
    assert torch.allclose(value, expected)
    for mine, other in zip(torch.autograd.grad(value, (x, w)), torch.autograd.grad(expected, (x, w)), strict=True):
        assert torch.allclose(mine, other)
    with torch.no_grad():
        assert torch.allclose(sums.pair_sum(kernel, x, w), value)


@pytest.mark.parametrize("function", [skewed, lambda z: z[:, 0].sin() + z.square().sum(-1)], ids=name)
def test_second_derivatives_of_functions_fall_back_on_autograd(function):
    w = weights(6).requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, w: sums.pair_sum(function, x, w), (normal(6, 2).requires_grad_(), w))


def test_potentials_of_functions_in_tiles_are_those_of_autograd(monkeypatch):
    monkeypatch.setattr(sums, "PAIR_BLOCK_BYTES", 200)
    x, y, v = normal(11, 2).requires_grad_(), normal(7, 2, seed=2), weights(7)
    value = sums.potential(skewed, x, y, v)
    expected = skewed((x[:, None] - y).reshape(-1, 2)).reshape(11, 7) @ v
    assert torch.allclose(value, expected)
    slope = normal(11)
    assert torch.allclose(torch.autograd.grad(value @ slope, x)[0], torch.autograd.grad(expected @ slope, x)[0])
    assert torch.autograd.gradgradcheck(lambda x: sums.potential(skewed, x, y, v), x)


def test_an_interaction_takes_each_pair_of_a_function_once(monkeypatch):
    monkeypatch.setattr(sums, "PAIR_BLOCK_BYTES", 64)  # tiles of 2 × 2 pairs
    seen = []

    def counted(z):
        seen.append(len(z))
        return z.square().sum(-1)

    rho = wprox.Particles(normal(10, 2).requires_grad_())
    rho.integrate_pairs(counted)
    every = sum(seen)
    seen.clear()
    wprox.InteractionEnergy(counted)(rho)
    assert (every, sum(seen)) == (101, 61)  # of 100 pairs the 15 tiles on and above the diagonal; one more is a trial
    seen.clear()
    wprox.InteractionEnergy(kernels.EvenKernel(counted, memory_budget=2**10))(rho)
    assert max(seen) == 64


def test_functions_that_are_not_even_are_no_interactions():
    with pytest.raises(ValueError, match=r"is not even.*give \(W\(z\) \+ W\(−z\)\)/2"):
        wprox.InteractionEnergy(lambda z: z[:, 0])(wprox.Particles(normal(5, 2)))
    with pytest.raises(ValueError, match="memory_budget must be at least 1"):
        kernels.EvenKernel(skewed, memory_budget=0)
    with pytest.raises(TypeError, match="function of differences, got int"):
        kernels.EvenKernel(3)


def test_a_kernel_that_is_trained_keeps_its_graph():
    scale = torch.tensor(2.0, dtype=F64, requires_grad=True)
    rho = wprox.Particles(normal(9, 2))
    value = wprox.InteractionEnergy(lambda z: scale * z.square().sum(-1))(rho)
    assert torch.allclose(torch.autograd.grad(value, scale)[0], value / 2)


def test_a_radial_kernel_that_is_trained_keeps_its_graph():
    class Trained(kernels.RadialKernel):
        smooth = True
        rate = torch.tensor(2.0, dtype=F64, requires_grad=True)

        def profile(self, s):
            return self.rate * s

    kernel, x, y = Trained(), normal(9, 2), normal(5, 2, seed=2)
    for value in (sums.pair_sum(kernel, x, weights(9)), sums.potential(kernel, x, y, weights(5)).sum()):
        assert torch.allclose(torch.autograd.grad(value, kernel.rate)[0], value.detach() / 2)


# --- random batches ---


@pytest.mark.parametrize(
    "kernel", [kernels.Gaussian(), kernels.Logarithmic(), lambda z: z.square().sum(-1) + 1], ids=name
)
def test_the_mean_over_shuffles_is_the_energy(kernel):
    rho = wprox.Particles(normal(23, 2), weights(23))
    exact = float(wprox.InteractionEnergy(kernel)(rho))
    batched = wprox.InteractionEnergy(kernel, batch_size=5)
    values = torch.stack([batched.at_step(k)(rho) for k in range(400)])
    # four standard errors: a false alarm in 16,000
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 20


def test_a_shuffle_is_fixed_within_a_step_and_new_in_the_next(monkeypatch):
    rho = wprox.Particles(normal(23, 2).requires_grad_())
    functional = wprox.InteractionEnergy(kernels.Gaussian(), batch_size=5, seed=3) + wprox.PotentialEnergy(
        lambda x: x[:, 0]
    )
    first = functional.at_step(0)
    value, again = first(rho), first(rho)
    assert torch.equal(value, again)
    assert not torch.equal(value, functional.at_step(1)(rho))
    (gradient,) = torch.autograd.grad(value, rho.points)
    monkeypatch.setattr(sums, "PAIR_BLOCK_BYTES", 100)
    in_blocks = first(rho)
    assert torch.allclose(in_blocks, value)
    assert torch.allclose(torch.autograd.grad(in_blocks, rho.points)[0], gradient)


def test_functionals_without_draws_are_themselves_at_every_step():
    functional = wprox.InteractionEnergy(kernels.Gaussian()) + wprox.Entropy()
    assert functional.at_step(3) is functional


def test_random_batches_draw_particles_together():
    functional = wprox.InteractionEnergy(lambda z: z.square().sum(-1) / 2, batch_size=10)
    trajectory = wprox.jko(functional, wprox.ExplicitEuler(), wprox.Particles(normal(100, 2)), 0.2, 40)
    # the mean stays; each exact step would shrink the distances by 0.8, and to second order in noise the batches do too
    assert float(trajectory.final.points.std(0).max()) < 1e-2
    assert torch.allclose(trajectory.final.points.mean(0), trajectory.measures[0].points.mean(0))


@pytest.mark.parametrize("size", [1, 0])
def test_a_batch_needs_two(size):
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        wprox.InteractionEnergy(kernels.Gaussian(), batch_size=size)


# --- closed forms of swarms ---


def test_power_law_4_2_ends_on_a_circle_and_2_0_fills_a_disc():
    start = wprox.Particles(0.3 * normal(60, 2))
    ring = wprox.jko(wprox.InteractionEnergy(kernels.PowerLaw(4, 2)), wprox.ParticleProx(), start, 5.0, 12).final.points
    radii = (ring - ring.mean(0)).norm(dim=1)
    assert torch.allclose(radii, torch.full_like(radii, 3**-0.5), atol=1e-3)
    disc = wprox.jko(wprox.InteractionEnergy(kernels.PowerLaw(2, 0)), wprox.ParticleProx(), start, 5.0, 12).final.points
    radii = (disc - disc.mean(0)).norm(dim=1)
    # uniform on the unit disc: the outermost at 1 − O(n^{-1/2}), E|x|² = ½ − O(1/n)
    assert 0.9 < float(radii.max()) < 1.05
    assert float(radii.square().mean()) == pytest.approx(0.5, abs=0.02)
