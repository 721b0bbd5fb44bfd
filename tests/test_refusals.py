"""Combinations that must be refused, each with the sentence it is refused with: a new one adds one line to a table.

What each class refuses in its own arguments stands beside its other tests.
"""

import math

import pytest
import torch

import wprox
from wprox.testing.examples import SquaredSpread, half_square, standard_normal, starts

F64 = torch.float64
PARTICLES, KERNELS, GAUSSIAN, QUANTILES, GRID = starts()
V, W = wprox.PotentialEnergy(half_square), wprox.InteractionEnergy(half_square)
KL, KL_LINE = wprox.KL(standard_normal(2)), wprox.KL(standard_normal(1))


def quartic(x):
    return x.square().sum(-1).square()


class Number(wprox.Functional):
    def __call__(self, rho):
        return 1.0


class Vector(wprox.Functional):
    def __call__(self, rho):
        return rho.integrate(lambda x: x)


class CutOff(wprox.Functional):
    def __call__(self, rho):
        return rho.integrate(lambda x: half_square(x).detach())


class NeedsNodes(wprox.Functional):
    def __call__(self, rho):
        return rho.nodes.square().mean()


class InFloat32(wprox.Functional):
    def __call__(self, rho):
        return rho.integrate(lambda x: (x @ torch.eye(x.shape[1])).square().sum(-1))


def affine():
    return wprox.NeuralProx(map=wprox.AffineMap, iterations=2)


DENSITY_OF = r"these particles have no density"
UNKNOWN = wprox.DensityUnknownError
STEPS = {  # (solver, functional, measure, error, sentence)
    # a functional of the density, and particles that have none
    "ParticleProx: Entropy": (
        wprox.ParticleProx(),
        wprox.Entropy(),
        PARTICLES,
        UNKNOWN,
        r"Entropy.*with_kernel_density",
    ),
    "ParticleProx: KL": (wprox.ParticleProx(), V + KL, PARTICLES, UNKNOWN, r"KL.*with_kernel_density"),
    "ParticleProx: PorousMedium": (wprox.ParticleProx(), wprox.PorousMedium(2.0), PARTICLES, UNKNOWN, "kernel_density"),
    "NeuralProx: PorousMedium": (affine(), wprox.PorousMedium(2.0), PARTICLES, UNKNOWN, DENSITY_OF),
    "NeuralProx: Congestion": (affine(), V + wprox.Congestion(2.0), PARTICLES, UNKNOWN, DENSITY_OF),
    "ExplicitEuler: Entropy": (wprox.ExplicitEuler(), V + wprox.Entropy(), PARTICLES, UNKNOWN, "do not know here"),
    # functionals that a scheme cannot split
    "ForwardBackward: no implicit part": (
        wprox.ForwardBackward(wprox.ParticleProx()),
        V + W,
        PARTICLES,
        ValueError,
        "every term of .* goes forward",
    ),
    "ForwardBackward: leaves the Gaussians": (
        wprox.ForwardBackward(wprox.GaussianProx()),
        wprox.PotentialEnergy(quartic) + wprox.Entropy(),
        GAUSSIAN,
        ValueError,
        "leaves the Gaussians: its gradient is not affine",
    ),
    "ForwardBackward: SquaredSpread": (
        wprox.ForwardBackward(wprox.GaussianProx()),
        SquaredSpread() + KL,
        GAUSSIAN,
        ValueError,
        "leaves the Gaussians",
    ),
    "ExplicitEuler: leaves the Gaussians": (
        wprox.ExplicitEuler(),
        wprox.PotentialEnergy(quartic),
        GAUSSIAN,
        ValueError,
        "not affine",
    ),
    "Langevin: no entropy": (
        wprox.Langevin(),
        V,
        PARTICLES,
        ValueError,
        "ExplicitEuler follows functionals without one",
    ),
    "Langevin: negative entropy": (wprox.Langevin(), V - wprox.Entropy(), PARTICLES, ValueError, "has -1"),
    "Langevin: another density": (
        wprox.Langevin(),
        KL + wprox.PorousMedium(2.0),
        PARTICLES,
        ValueError,
        r"PorousMedium\(2\) needs a density",
    ),
    "Langevin, adjusted: interactions": (
        wprox.Langevin(adjusted=True),
        W + KL,
        PARTICLES,
        ValueError,
        r"InteractionEnergy.* is not one; use adjusted=False",
    ),
    "NeuralProx: flow matching for another functional": (
        wprox.NeuralProx("ode", iterations=2, flow_matching=2),
        V + KL,
        PARTICLES,
        ValueError,
        "leave flow_matching at 0",
    ),
    # steps without a minimum
    "GaussianProx: too long for a concave potential": (
        wprox.GaussianProx(),
        -2 * V,
        GAUSSIAN,
        ValueError,
        r"step_size < 0\.5",
    ),
    "GaussianProx: minus the entropy": (
        wprox.GaussianProx(),
        -5.0 * wprox.Entropy(),
        GAUSSIAN,
        wprox.StepFailedError,
        "no minimum near this one",
    ),
    "ParticleProx: unbounded": (
        wprox.ParticleProx(),
        -2 * wprox.PotentialEnergy(quartic),
        PARTICLES,
        wprox.StepFailedError,
        "no minimum near",
    ),
    "ExplicitEuler: nodes that cross": (
        wprox.ExplicitEuler(),
        4 * V,
        QUANTILES,
        wprox.StepFailedError,
        "in order only for step_size below 0.25",
    ),
    "ExplicitEuler: a singular Gaussian": (
        wprox.ExplicitEuler(),
        2 * V,
        GAUSSIAN,
        wprox.StepFailedError,
        "singular.*below 1/L = 0.5, and step_size is 0.5",
    ),
    # values that are no functional's
    "ParticleProx: a number": (wprox.ParticleProx(), Number(), PARTICLES, TypeError, "must return a scalar tensor"),
    "QuantileProx: a number": (wprox.QuantileProx(), Number() + V, QUANTILES, TypeError, "must return a scalar tensor"),
    "GaussianProx: a vector": (wprox.GaussianProx(), Vector(), GAUSSIAN, ValueError, r"must be a scalar, it has shape"),
    "ParticleProx: cut off": (wprox.ParticleProx(), CutOff() + V, PARTICLES, ValueError, r"CutOff\(\) is cut off"),
    "ExplicitEuler: cut off": (wprox.ExplicitEuler(), CutOff(), PARTICLES, ValueError, r"CutOff\(\) is cut off"),
    "ParticleProx: a missing verb": (wprox.ParticleProx(), NeedsNodes(), PARTICLES, TypeError, "method 'nodes'"),
    "GaussianProx: float32 inside": (
        wprox.GaussianProx(),
        InFloat32(),
        GAUSSIAN,
        TypeError,
        r"computes in torch\.float64",
    ),
    "KL in another dimension": (
        wprox.GaussianProx(),
        KL_LINE,
        GAUSSIAN,
        ValueError,
        "dimension 1, the measure in dimension 2",
    ),
    "a Gaussian without nodes": (
        wprox.GaussianProx(),
        wprox.SquaredWasserstein(PARTICLES),
        wprox.Gaussian(torch.zeros(2), torch.eye(2)),
        ValueError,
        "too few: use Gaussian",
    ),
    "MMD of pairs on nodes": (
        wprox.QuantileProx(),
        wprox.MMD(torch.zeros(5, 1), unbiased=True),
        QUANTILES,
        TypeError,
        "needs unbiased=False",
    ),
    "SinkhornProx: a singular kernel": (
        wprox.SinkhornProx(),
        wprox.InteractionEnergy(wprox.kernels.Logarithmic()),
        GRID,
        ValueError,
        "on a grid it must be finite",
    ),
    "particles that coincide": (
        wprox.ParticleProx(),
        wprox.InteractionEnergy(wprox.kernels.Logarithmic()),
        wprox.Particles(torch.ones(2, 2)),
        ValueError,
        "particles 0 and 1 coincide",
    ),
    "SinkhornProx: log domain and heat steps": (
        wprox.SinkhornProx(log_domain=True, heat_steps=5),
        V,
        wprox.Grid([1.0, 2.0, 0.0], [(0.0, 1.0)], [False, False, True]),
        ValueError,
        "needs heat_steps=None",
    ),
    "SinkhornProx: bounds without room": (
        wprox.SinkhornProx(),
        V + wprox.Congestion(0.01),
        GRID,
        ValueError,
        "mass|hold",
    ),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_that_are_refused(name):
    solver, functional, measure, error, sentence = STEPS[name]
    with pytest.raises(error, match=f"(?s){sentence}"):
        solver.step(functional, measure, 0.5)


NO_FUNCTIONAL = {
    "a function of measures": (lambda rho: rho.integrate(half_square), "must be a wprox.Functional, got function"),
    "a class": (wprox.Entropy, r"got the class Entropy; call it: Entropy\(...\)"),
    "a number": (1.0, "must be a wprox.Functional, got float"),
    "a solver": (wprox.ParticleProx(), "must be a wprox.Functional, got ParticleProx"),
}


@pytest.mark.parametrize("name", NO_FUNCTIONAL)
@pytest.mark.parametrize(
    ("solver", "measure"),
    [
        (wprox.ParticleProx(), PARTICLES),
        (affine(), PARTICLES),
        (wprox.GaussianProx(), GAUSSIAN),
        (wprox.QuantileProx(), QUANTILES),
        (wprox.SinkhornProx(), GRID),
        (wprox.ExplicitEuler(), PARTICLES),
        (wprox.Langevin(), PARTICLES),
        (wprox.ForwardBackward(wprox.GaussianProx()), GAUSSIAN),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_functional(name, solver, measure):
    wrong, sentence = NO_FUNCTIONAL[name]
    with pytest.raises(TypeError, match=sentence):
        solver.step(wrong, measure, 0.1)
    with pytest.raises(TypeError, match=sentence):
        wprox.jko(wrong, solver, measure, 0.1, 1)


CALLS = {  # (call, error, sentence)
    "jko: a class of solvers": (
        lambda: wprox.jko(V, wprox.ParticleProx, PARTICLES),
        TypeError,
        "the class ParticleProx",
    ),
    "jko: no solver": (lambda: wprox.jko(V, "particles", PARTICLES), TypeError, "solver must be"),
    "jko: a class of measures": (
        lambda: wprox.jko(V, wprox.ParticleProx(), wprox.Particles),
        TypeError,
        "class Particles",
    ),
    "jko: points": (
        lambda: wprox.jko(V, wprox.ParticleProx(), torch.zeros(3, 2)),
        TypeError,
        "initial must be a wprox measure, got Tensor",
    ),
    "a product of functionals": (lambda: V * W, TypeError, "functional of your own"),
    "a number added": (lambda: V + 1.0, TypeError, "unsupported operand"),
    "an infinite multiple": (lambda: math.inf * V, ValueError, "finite number"),
    "a Gaussian under another map": (
        lambda: GAUSSIAN.push(lambda x: x + 1),
        TypeError,
        "stays Gaussian only under an Aff",
    ),
    "nodes that decrease": (lambda: QUANTILES.push(lambda x: -x), ValueError, "increasing maps only"),
    "mass out of the box": (lambda: GRID.push(lambda x: x + 10), ValueError, "lie outside the bounds"),
    "some nodes of a rule": (lambda: GAUSSIAN.subset(slice(2)), TypeError, "no particles of which some could be taken"),
    "some cells": (lambda: GRID.subset(slice(2)), TypeError, "no particles of which some could be taken"),
    "an unknown density": (PARTICLES.log_density, UNKNOWN, DENSITY_OF),
    "a relative density": (PARTICLES.relative().log_density, UNKNOWN, DENSITY_OF),
    "a density away from the points": (
        lambda: PARTICLES.log_density_at(torch.zeros(1, 2)),
        UNKNOWN,
        "away from its own points",
    ),
    "a first variation without a density": (
        lambda: wprox.Entropy().first_variation(PARTICLES)(torch.zeros(1, 2, dtype=F64)),
        UNKNOWN,
        "density",
    ),
    "a first variation whose bandwidth follows": (
        lambda: wprox.Entropy().first_variation(PARTICLES.with_kernel_density())(torch.zeros(1, 2, dtype=F64)),
        UNKNOWN,
        "give a fixed one",
    ),
    "a first variation of bounds": (
        lambda: wprox.Congestion(1.0).first_variation(KERNELS)(torch.zeros(1, 2, dtype=F64)),
        NotImplementedError,
        "Congestion",
    ),
    "a function for MMD's target": (lambda: wprox.MMD(half_square), TypeError, "MMD needs draws"),
    "a function for a transport target": (
        lambda: wprox.SquaredWasserstein(half_square),
        TypeError,
        "a measure or points",
    ),
    # functions and maps that return something else
    "a potential that returns nothing": (
        lambda: PARTICLES.integrate(lambda x: None),
        TypeError,
        "must return a tensor with one value a row of its points, .*it returned None",
    ),
    "a potential that returns complex numbers": (
        lambda: wprox.PotentialEnergy(lambda x: x.sum(1) * 1j)(PARTICLES),
        TypeError,
        "must return real numbers",
    ),
    "a potential of several values": (
        lambda: wprox.PotentialEnergy(lambda x: x)(PARTICLES),
        ValueError,
        "must be a scalar, it has shape",
    ),
    "a kernel of several values": (
        lambda: wprox.InteractionEnergy(lambda z: z)(PARTICLES),
        ValueError,
        "the kernel must map",
    ),
    "an energy that returns nothing": (
        lambda: wprox.InternalEnergy(lambda s: None)(KERNELS),
        TypeError,
        "energy must return a tensor",
    ),
    "a map to numbers": (lambda: PARTICLES.push(lambda x: x.sum(1)), ValueError, "map must return points of shape"),
    "a map to three things": (lambda: PARTICLES.push(lambda x: (x, x, x)), ValueError, "it returned 3 things"),
    "a class for a map": (lambda: PARTICLES.push(wprox.AffineMap), TypeError, "map must be a function"),
    "a quantile function that is a number": (
        lambda: wprox.Quantiles.from_icdf(3, 5),
        TypeError,
        "icdf must be a function of levels, got int",
    ),
    # kinds of things
    "points for a measure": (lambda: V(PARTICLES.points), TypeError, r"rho must be a wprox measure, got Tensor"),
    "text for points of a field": (
        lambda: W.first_variation(PARTICLES)("x"),
        TypeError,
        "x must be an array of number",
    ),
    "a dimension of a field": (
        lambda: W.first_variation(PARTICLES)(torch.zeros(3, 5)),
        ValueError,
        r"x must be points of shape \(n, 2\)",
    ),
    "a distance to points": (
        lambda: wprox.metrics.w2(PARTICLES, PARTICLES.points),
        TypeError,
        "q must be a wprox measure, got Tensor",
    ),
    "text for a number": (lambda: wprox.SinkhornProx(blur="0.5"), TypeError, "blur must be a number, got '0.5'"),
    "text for a flag": (lambda: wprox.Langevin(adjusted="no"), TypeError, "adjusted must be True or False, got 'no'"),
    "a fraction for a count": (
        lambda: wprox.Particles([[0.0]]).sample(torch.tensor(2.5)),
        TypeError,
        "n must be an int",
    ),
    "a name for the initial Gaussian": (
        lambda: wprox.JKOSampler(lambda x: -half_square(x), initial="N"),
        TypeError,
        "initial must be a wprox.Gaussian",
    ),
    "points of another dimension for a map": (
        lambda: wprox.AffineMap(2)(torch.zeros(3, 5)),
        ValueError,
        r"x must be points of shape \(n, 2\)",
    ),
    "points of another precision for a map": (
        lambda: wprox.AffineMap(2)(torch.zeros(3, 2, dtype=F64)),
        TypeError,
        "x is torch.float64 and the map torch.float32",
    ),
    "a KL in another dimension, explicitly": (
        lambda: wprox.ExplicitEuler().step(KL_LINE, GAUSSIAN, 0.1),
        ValueError,
        "dimension 1, the measure in dimension 2",
    ),
    # numbers beyond floating point, and beyond memory
    "a step size beyond a float": (
        lambda: wprox.ParticleProx().step(V, PARTICLES, 10**400),
        ValueError,
        "step_size must be a number that a float holds.*an integer of 1329 bits",
    ),
    "a seed beyond 64 bits": (
        lambda: PARTICLES.sample(1, seed=2**70),
        ValueError,
        "seed must be an integer of 64 bits",
    ),
    "draws beyond memory": (lambda: PARTICLES.sample(10**12), ValueError, "GiB of memory, and this machine has"),
    "cells beyond memory": (
        lambda: wprox.Grid.from_density(half_square, (10**6, 10**6), [(0.0, 1.0)] * 2),
        ValueError,
        "a grid of shape .* GiB of memory",
    ),
    "steps without end": (
        lambda: wprox.jko(V, wprox.ExplicitEuler(), PARTICLES, 1e-9, until=1e9),
        ValueError,
        "takes more than 1000000 steps",
    ),
    "backward that is a class": (
        lambda: wprox.ForwardBackward(wprox.GaussianProx),
        TypeError,
        "backward must be a solver",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_refused(name):
    call, error, sentence = CALLS[name]
    with pytest.raises(error, match=sentence):
        call()


HALF = {
    "Particles": lambda x: wprox.Particles(x),
    "their weights": lambda x: wprox.Particles([[0.0], [1.0]], weights=x[:2, 0].abs() * 0 + 0.5),
    "Gaussian": lambda x: wprox.Gaussian(x[0], torch.eye(2, dtype=x.dtype)),
    "Gaussian.from_samples": lambda x: wprox.Gaussian.from_samples(x),
    "Gaussian.log_prob": lambda x: standard_normal(2).log_prob(x),
    "Quantiles": lambda x: wprox.Quantiles(x[:, 0].sort().values),
    "Grid": lambda x: wprox.Grid(x.abs(), [(0.0, 1.0)] * 2),
    "to": lambda x: PARTICLES.to(x.dtype),
    "MMD": lambda x: wprox.MMD(x),
    "SquaredWasserstein": lambda x: wprox.SquaredWasserstein(x),
    "a potential": lambda x: PARTICLES.integrate(lambda y: half_square(y).to(x.dtype)),
    "ess": lambda x: wprox.metrics.ess(x[:, 0].abs()),
    "ess of logarithms": lambda x: wprox.metrics.ess(x[:, 0], log=True),
    "a map": lambda x: wprox.AffineMap(2)(x),
    "a first variation": lambda x: W.first_variation(PARTICLES)(x),
    "stein_residual": lambda x: wprox.stein.stein_residual(x, x, lambda y: y, 1.0),
    "median_bandwidth": lambda x: wprox.kernels.median_bandwidth(x),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_refused_when_data_come_in(name, dtype):
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    with pytest.raises(TypeError, match=r"must be in torch\.float32 or torch\.float64, got torch\.b?float16"):
        HALF[name](x)


def test_a_table_in_half_precision_is_taken_in_single():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).half()
    flow = wprox.JKOFlow(n_blocks=1, iterations=1, fine_tune=False).fit(x)
    assert torch.equal(flow.log_prob(x), flow.log_prob(x.float()))


def test_a_law_in_half_precision_is_taken_in_double():
    law = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2).half(), torch.ones(2).half()), 1)
    assert wprox.KL(law)(GAUSSIAN).dtype == GAUSSIAN.dtype


def test_an_atom_among_weights_that_are_zero():
    with pytest.raises(ValueError, match="the law has an atom: one draw of x has all the weight"):
        wprox.Quantiles.from_samples([1.0, 2.0, 3.0], 5, weights=[0.0, 1.0, 0.0])


def test_steps_are_refused_before_the_first_is_asked_for():
    with pytest.raises(TypeError, match="n_steps must be an integer"):
        wprox.jko_steps(V, wprox.ExplicitEuler(), PARTICLES, 0.1, n_steps="ten")


def test_numbers_of_numpy_and_torch_are_numbers():
    import numpy as np

    three, half = np.int64(3), np.float64(0.5)
    assert wprox.SplineMap(three, transforms=np.int32(1)).config["dim"] == 3
    assert wprox.Particles(np.zeros((2, 2))).sample(torch.tensor(3), seed=three).shape == (3, 2)
    steps = wprox.jko(
        half * V, wprox.ParticleProx(), PARTICLES, step_size=torch.tensor([0.5, 0.5]), n_steps=np.int64(2)
    )
    assert len(steps) == 2
