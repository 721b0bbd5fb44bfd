"""How much of the exact decrease of F a step of NeuralProx finds. Run: python examples/benchmarks/neural_steps.py

One step of `wprox.NeuralProx()` for each functional, number of particles, step size and dimension; the numbers of
docs/choose_a_solver.md come from here. The exact decrease is that of GaussianProx for functionals of the density, on
the law that the particles are drawn from, and that of ParticleProx on the same particles for the others. `--quick`
takes one step size, two dimensions and 500 particles.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import wprox
from wprox import kernels


@dataclass(frozen=True)
class Case:
    """A functional, and a Gaussian from which the particles are drawn."""

    name: str
    functional: wprox.Functional
    start: wprox.Gaussian
    is_exact_for_gaussians: bool = False


def gaussian(dim: int, loc: float, scale: float) -> wprox.Gaussian:
    return wprox.Gaussian(torch.full((dim,), loc), scale**2 * torch.eye(dim))


def draws(dim: int, loc: float, scale: float, n: int = 500, seed: int = 7) -> Tensor:
    return gaussian(dim, loc, scale).sample(n, seed=seed)


def double_well(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(-1) / 4


def cases(dim: int) -> Iterator[Case]:
    standard, wide = gaussian(dim, 0.0, 1.0), gaussian(dim, 0.0, 2.0)
    yield Case("KL to N(0, 4 I)", wprox.KL(wide), standard, True)
    yield Case("KL to N(0, I), from afar", wprox.KL(standard), gaussian(dim, 2.0, 0.5), True)
    yield Case("Entropy", wprox.Entropy(), standard, True)
    yield Case("potential, double well", wprox.PotentialEnergy(double_well), standard)
    yield Case("interaction, PowerLaw(4, 2)", wprox.InteractionEnergy(kernels.PowerLaw(4, 2)), standard)
    yield Case("MMD, Riesz", wprox.MMD(draws(dim, 1.0, 1.5)), standard)
    yield Case("KSD", wprox.KSD(gaussian(dim, 1.0, 1.5)), standard)
    yield Case("SlicedWasserstein", wprox.SlicedWasserstein(draws(dim, 1.0, 1.5), 8 * dim), standard)
    yield Case("SinkhornDivergence", wprox.SinkhornDivergence(draws(dim, 1.0, 1.5, 300), 0.5 * dim**0.5), standard)
    yield Case("SquaredWasserstein", wprox.SquaredWasserstein(draws(dim, 1.0, 1.5, 300)), standard)


def exact_decrease(case: Case, particles: wprox.Particles, step_size: float) -> float:
    if case.is_exact_for_gaussians:
        step = wprox.GaussianProx().step(case.functional, case.start, step_size)
        return float(case.functional(case.start) - step.value)
    step = wprox.ParticleProx().step(case.functional, particles, step_size)
    return float(case.functional(particles) - step.value)


def row(case: Case, dim: int, n: int, step_size: float) -> None:
    particles = wprox.Particles(case.start.sample(n, seed=n))
    began = time.process_time()
    solver = wprox.NeuralProx()
    before = float(solver.value(case.functional, solver.prepare(particles)))
    step = solver.step(case.functional, particles, step_size)
    seconds = time.process_time() - began
    exact, found = exact_decrease(case, particles, step_size), before - float(step.value)
    print(
        f"| {case.name} | {dim} | {n} | {step_size:g} | {exact:.4g} | {found:.4g} | {found / exact:.2f} | "
        f"{step.converged} | {seconds:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one step size, two dimensions, 500 particles")
    parser.add_argument("--only", default="", help="cases whose names hold this")
    parser.add_argument("--dims", type=int, nargs="+", default=None)
    parser.add_argument("--sizes", type=int, nargs="+", default=None)
    parser.add_argument("--step-sizes", type=float, nargs="+", default=None)
    arguments = parser.parse_args()
    dims = arguments.dims or ([1, 2] if arguments.quick else [1, 2, 8])
    sizes = arguments.sizes or ([500] if arguments.quick else [500, 5000])
    step_sizes = arguments.step_sizes or ([0.1] if arguments.quick else [0.01, 0.1, 1.0])
    warnings.simplefilter("ignore")
    print("| functional | d | n | γ | exact decrease | found | ratio | converged | CPU seconds |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |")
    for dim in dims:
        for case in cases(dim):
            if arguments.only in case.name:
                for n in sizes:
                    for step_size in step_sizes:
                        row(case, dim, n, step_size)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    main()
