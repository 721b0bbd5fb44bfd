"""Arguments that are refused by their own name, and what is made of those that are taken: a new one adds one line."""

from pathlib import Path

import pytest
import torch

import wprox
from wprox.testing import check_solver
from wprox.testing.examples import half_square, starts

PARTICLES, _, GAUSSIAN, QUANTILES, GRID = starts()
V = wprox.PotentialEnergy(half_square)


class Complex(wprox.Functional):
    def __call__(self, rho):
        return rho.integrate(half_square) * 1j


class Half(wprox.Functional):
    def __call__(self, rho):
        return rho.integrate(half_square).half()


@pytest.mark.parametrize(
    ("solver", "measure"),
    [
        (wprox.ParticleProx(), PARTICLES),
        (wprox.NeuralProx(map=wprox.AffineMap, iterations=2), PARTICLES),
        (wprox.ExplicitEuler(), PARTICLES),
        (wprox.GaussianProx(), GAUSSIAN),
        (wprox.QuantileProx(), QUANTILES),
        (wprox.SinkhornProx(), GRID),
    ],
)
def test_values_are_real_and_in_single_or_double_precision(solver, measure):
    with pytest.raises(TypeError, match=r"Complex\(\) must be a real number, it is torch.complex128; give"):
        solver.step(Complex(), measure, 0.1)
    with pytest.raises(TypeError, match=r"Half\(\) must be in torch.float32 or torch.float64, got torch.float16"):
        solver.step(Half(), measure, 0.1)


def test_a_step_that_returns_no_step():
    class Halves(wprox.Solver):
        def step(self, functional, measure, step_size, *, previous=None, held_out=None):
            return measure.at(measure.points / 2)

    with pytest.raises(TypeError, match=r"Halves.step must return a wprox.Step, it returned Particles; write"):
        wprox.jko(V, Halves(), PARTICLES, n_steps=1)


NORMAL = torch.distributions.Normal(torch.zeros(2), 1.0)
KERNEL = wprox.kernels.Gaussian(1.0)
COST = torch.tensor(1.0)
ARGUMENTS = {  # (call, error, sentence)
    "Solved: measure": (lambda: wprox.Solved("x", COST), TypeError, "measure must be a wprox measure, got str"),
    "Solved: ending": (
        lambda: wprox.Solved(PARTICLES, COST, ending="done"),
        TypeError,
        "ending must be a wprox.Ending, as in Ending.CONVERGED, got 'done'",
    ),
    "Solved: cost": (
        lambda: wprox.Solved(PARTICLES, torch.ones(2)),
        TypeError,
        r"transport_cost must be a scalar tensor of a real number, got Tensor of shape \(2,\)",
    ),
    "Solved: value": (
        lambda: wprox.Solved(PARTICLES, COST, value="x"),
        TypeError,
        "value must be a scalar tensor of a real number, got 'x'",
    ),
    "Solved: map": (
        lambda: wprox.Solved(PARTICLES, COST, map=half_square),
        TypeError,
        "map must be a wprox TransportMap, or None, got",
    ),
    "Solved: message": (lambda: wprox.Solved(PARTICLES, COST, message=None), TypeError, "message must be text"),
    "Solved: residual": (lambda: wprox.Solved(PARTICLES, COST, residual="x"), TypeError, "residual must be a number"),
    "MMD: seed": (lambda: wprox.MMD(PARTICLES, seed="text"), TypeError, "seed must be an integer, got 'text'"),
    "median_bandwidth: seed": (
        lambda: wprox.kernels.median_bandwidth([[0.0], [1.0]], seed=-1),
        ValueError,
        "seed must be at least 0",
    ),
    "with_weights: text": (lambda: GRID.with_weights("text"), TypeError, "weights must be an array of numbers"),
    "with_weights: negative": (lambda: GRID.with_weights(-GRID.weights), ValueError, "weights must not be negative"),
    "with_weights: too few": (
        lambda: GRID.with_weights(GRID.weights[:3]),
        ValueError,
        r"weights must have shape \(60,\), one a cell, got \(3,\)",
    ),
    "noise: a class": (
        lambda: wprox.ExplicitEuler(noise=wprox.Particles),
        TypeError,
        "noise must be a function of the step's index, got the class Particles",
    ),
    "forward: a class": (
        lambda: wprox.ForwardBackward(wprox.ParticleProx(), forward=wprox.Particles),
        TypeError,
        "forward must be a function of a functional, term -> bool, got the class Particles",
    ),
    "map: a functional": (
        lambda: wprox.NeuralProx(map=V),
        TypeError,
        "map must be a name or a factory dim -> TransportMap, got PotentialEnergy",
    ),
    "at: None": (lambda: PARTICLES.at(None), TypeError, "points must be an array of numbers, got None"),
    "at: rows": (
        lambda: PARTICLES.at(PARTICLES.points[:2]),
        ValueError,
        "points must be 24, one for each of the measure's, got 2",
    ),
    "at: columns": (
        lambda: PARTICLES.at(PARTICLES.points[:, 0]),
        ValueError,
        r"points must be points of shape \(n, 2\), one a row, got \(24,\)",
    ),
    "initial_w2": (
        lambda: wprox.certify(step_sizes=0.1, residuals=[0.0], modulus=1.0, initial_w2="x"),
        ValueError,
        r"initial_w2 must be one of \[None, 'exact', 'moments', 'samples'\], got 'x'",
    ),
    "from_distribution: many laws": (
        lambda: wprox.Particles.from_distribution(NORMAL, 5),
        ValueError,
        r"distribution must be one distribution over vectors, got batch shape \(2,\) .*Independent\(distribution, 1\)",
    ),
    "check_solver: no problems": (
        lambda: check_solver(wprox.ParticleProx(), problems=torch.empty(0)),
        ValueError,
        r"problems is empty, got Tensor of shape \(0,\)",
    ),
}
for name, measure in {"particles": PARTICLES, "grid": GRID}.items():
    for size in (None, 2.5, "text"):
        ARGUMENTS[f"batches of {name}: size {size}"] = (
            lambda measure=measure, size=size: measure.integrate_random_batches(KERNEL, size, 0),
            TypeError,
            "size must be an integer, got",
        )
    ARGUMENTS[f"batches of {name}: no pairs"] = (
        lambda measure=measure: measure.integrate_random_batches(KERNEL, 1, 0),
        ValueError,
        "size must be at least 2, got 1",
    )
    ARGUMENTS[f"batches of {name}: seed"] = (
        lambda measure=measure: measure.integrate_random_batches(KERNEL, 2, "text"),
        TypeError,
        "seed must be an integer, got 'text'",
    )


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_are_refused_by_their_own_name(name):
    call, error, sentence = ARGUMENTS[name]
    with pytest.raises(error, match=sentence):
        call()


def test_kernel_densities_around_draws():
    law = torch.distributions.Independent(NORMAL, 1)
    rho = wprox.measures.particles.KernelParticles.from_distribution(law, 50, seed=0, bandwidth=0.3)
    assert rho.bandwidth == 0.3
    assert torch.equal(rho.points, wprox.Particles.from_distribution(law, 50, seed=0).points)


def test_weights_that_single_precision_rounds_are_divided_by_their_sum():
    weights = torch.full((10**5,), 1.00003e-5, requires_grad=True)
    rho = wprox.Particles(torch.linspace(0, 1, 10**5)[:, None], weights)
    assert float(rho.weights.detach().double().sum()) == pytest.approx(1, abs=1e-7)
    (gradient,) = torch.autograd.grad(rho.integrate(lambda x: 3 + x[:, 0]), weights)
    assert float(gradient.mean()) == pytest.approx(0, abs=1e-4)  # F(w/Σw) does not change with the sum


def test_no_more_of_an_iterator_is_read_than_there_are_steps():
    sizes = iter([0.1, 0.2, "the next run's"])
    assert len(wprox.jko(V, wprox.ExplicitEuler(), PARTICLES, sizes, 2)) == 2
    assert next(sizes) == "the next run's"


def test_warnings_are_given_in_one_place():
    files = Path(wprox.__file__).parent.rglob("*.py")
    assert [file.name for file in files if "warnings.warn(" in file.read_text()] == ["_warnings.py"]


def test_warnings_name_the_line_of_the_caller():
    stiff = 100 * V
    with pytest.warns(RuntimeWarning, match="F has grown ten-fold") as told:
        wprox.jko(stiff, wprox.ExplicitEuler(), PARTICLES, 1.0, 2)
    flow = wprox.JKOFlow(n_blocks=1, iterations=1, fine_tune=False, bounds=(0.0, 1.0))
    x = torch.rand(100, 1, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), pytest.warns(RuntimeWarning, match="density 0") as more:
        flow.fit(x).score(torch.tensor([[0.5], [2.0]]))
    assert {warning.filename for warning in [*told, *more] if warning.category is RuntimeWarning} == {__file__}
