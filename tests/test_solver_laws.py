"""The gauntlet of solvers, each with the problems of `wprox.testing`: a new class adds one line to `SOLVERS`."""

from dataclasses import dataclass

import pytest

import wprox
from wprox.testing import check_solver
from wprox.testing.examples import PROBLEMS, starts
from wprox.testing.laws import name_of
from wprox.testing.solvers import GENERAL_LAWS

NO_DENSITY = ("quadratic potential", "interaction", "a functional of one's own")  # which needs none
WITH_ENTROPY = ("Gaussian KL", "a sum of all")
LENGTHS = ("units",)  # an option is a length, or Adam takes rounding in a gradient of zero for a direction
RANDOM = ("precisions agree",)  # the numbers that are drawn are not those of another precision


def neural():
    return wprox.NeuralProx(map=wprox.AffineMap, iterations=80, learning_rate=0.1)


@dataclass
class Row:
    """A solver, with the problems and the kinds of measures that it takes.

    `rtol` is how far, relative to the length of the step, it may be from the known answers.
    """

    solver: wprox.Solver
    takes: tuple[str, ...]
    problems: tuple[str, ...] = tuple(PROBLEMS)
    rtol: float = 1e-3
    exempt: tuple[str, ...] = ()


PARTICLES = ("Particles", "KernelParticles")
MOVES = (*PARTICLES, "Gaussian", "Quantiles")
SOLVERS = {
    "ParticleProx": Row(wprox.ParticleProx(), PARTICLES),
    "ParticleProx, exact coupling": Row(wprox.ParticleProx("exact"), PARTICLES),
    # of a blur at which it is quick, and its cost not yet W₂²
    "ParticleProx, entropic coupling": Row(
        wprox.ParticleProx("sinkhorn", blur=0.7),
        PARTICLES[:1],
        NO_DENSITY[:2],
        exempt=("known answer", "anchor", "descent", *LENGTHS),  # the cost that it lowers is entropic
    ),
    "GaussianProx": Row(wprox.GaussianProx(), ("Gaussian",)),
    "QuantileProx": Row(wprox.QuantileProx(), ("Quantiles",), rtol=5e-3),
    "NeuralProx": Row(neural(), PARTICLES[:1], rtol=0.05, exempt=LENGTHS),
    "SinkhornProx": Row(wprox.SinkhornProx(), ("Grid",), rtol=0.05),
    "SinkhornProx, not debiased": Row(wprox.SinkhornProx(debias=None), ("Grid",), NO_DENSITY[:2], 0.1),
    "ExplicitEuler": Row(wprox.ExplicitEuler(), MOVES),
    "ExplicitEuler, noisy": Row(wprox.ExplicitEuler(noise=0.1), PARTICLES[:1], NO_DENSITY, exempt=(*RANDOM, *LENGTHS)),
    "ExplicitEuler, accelerated": Row(wprox.ExplicitEuler(accelerated=True), PARTICLES),
    "ForwardBackward, GaussianProx": Row(wprox.ForwardBackward(wprox.GaussianProx()), ("Gaussian",), WITH_ENTROPY[:1]),
    "ForwardBackward, QuantileProx": Row(wprox.ForwardBackward(wprox.QuantileProx()), ("Quantiles",), WITH_ENTROPY),
    "ForwardBackward, NeuralProx": Row(
        wprox.ForwardBackward(neural()), PARTICLES[:1], WITH_ENTROPY, 0.05, exempt=LENGTHS
    ),
    "ForwardBackward, ParticleProx": Row(wprox.ForwardBackward(wprox.ParticleProx()), PARTICLES[1:], WITH_ENTROPY),
    "Langevin": Row(wprox.Langevin(), PARTICLES, WITH_ENTROPY, exempt=RANDOM),
    "Langevin, adjusted": Row(wprox.Langevin(adjusted=True), PARTICLES, WITH_ENTROPY[:1], exempt=RANDOM),
}
CASES = [(name, problem) for name, row in SOLVERS.items() for problem in row.problems]
GENERAL = tuple(name_of(law) for law in GENERAL_LAWS)


def of_kinds(kinds):
    return [rho for rho in starts() if type(rho).__name__ in kinds]


def test_every_solver_is_in_the_gauntlet():
    public = {
        name
        for name in dir(wprox)
        if isinstance(getattr(wprox, name), type) and issubclass(getattr(wprox, name), wprox.Solver)
    }
    assert public - {type(row.solver).__name__ for row in SOLVERS.values()} == {"Solver"}


@pytest.mark.parametrize(("name", "problem"), CASES)
def test_steps(name, problem):
    row = SOLVERS[name]
    exempt = (*row.exempt, *GENERAL)
    laws = check_solver(row.solver, problems=[problem], measures=of_kinds(row.takes), exempt=exempt, rtol=row.rtol)
    assert {"report", "precision and graph", "mass"} <= set(laws)
    assert ("descent" in laws) == (row.solver.is_proximal and "descent" not in row.exempt)
    is_known = PROBLEMS[problem].after is not None and row.solver.is_proximal and "known answer" not in row.exempt
    smooths = isinstance(row.solver, wprox.ParticleProx) and PROBLEMS[problem].needs_density
    assert ("known answer" in laws) == (is_known and not smooths)


@pytest.mark.parametrize("name", SOLVERS)
def test_laws_of_the_solver(name):
    row = SOLVERS[name]
    laws = check_solver(
        row.solver, problems=row.problems[:1], measures=of_kinds(row.takes), exempt=row.exempt, rtol=row.rtol
    )
    always = {"start is left alone", "previous", "held out", "step sizes", "what is no functional", "subclasses"}
    assert always <= set(laws)


@pytest.mark.parametrize("name", SOLVERS)
def test_other_measures_are_refused_with_what_to_convert_them_to(name):
    row = SOLVERS[name]
    F = PROBLEMS[row.problems[0]].functional(2)
    assert {type(rho).__name__ for rho in starts() if row.solver.takes(rho)} >= set(row.takes)
    for rho in [rho for rho in starts() if not row.solver.takes(rho)]:
        sentence = rf"needs? .*{type(rho).__name__}.*[;:] .*"
        with pytest.raises(TypeError, match=sentence):
            row.solver.prepare(rho)
        with pytest.raises(TypeError, match=sentence):
            row.solver.step(F, rho, 0.1)
