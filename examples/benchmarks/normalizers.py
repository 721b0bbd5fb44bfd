"""How far is log Z off? `JKOSampler.log_normalizer` on targets whose constant is known, in units of its standard error.

    python examples/benchmarks/normalizers.py [--targets ring rosenbrock …] [--draws 10000] [--seeds 0 1] [--repeats 3]
        [--folder samplers] [--threads 1] [--quick]

A sampler for each target and seed is trained (and kept in the folder of --folder, from where it is taken again), and
asked for log Z `repeats` times with other draws. Most targets are given with the settings as they are; those called
"… modes" with a wide start and `JKOSampler.for_modes`; "one of two modes" and "modes far away" have a start that cannot
find all modes. --quick trains 40 iterations a block, on 5,000 particles: worse samplers, which the interval or the
warning has to tell as well. Columns:

    error        of log Z
    s.e.         its standard error, as told
    z            error/s.e.; "weights" is that of the importance weights of the draws alone
    ESS, k       the effective part of the draws, and the Pareto index of their weights
    warning      whether one came
    s            seconds of `log_normalizer`
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import wprox
from wprox.models.sampler.weights import log_normalizer

LogDensity = Callable[[Tensor], Tensor]


class Target(NamedTuple):
    """log g, its dimension, log Z, and the variance of the start (fitted where there is none) and for `for_modes`."""

    log_density: LogDensity
    dim: int
    log_z: float
    start: float | None = None
    for_modes: bool = False


def log_ring(x: Tensor) -> Tensor:
    return -8 * (x.square().sum(-1).sqrt() - 2).square()


def ring_log_z() -> float:
    r = torch.linspace(0, 8, 800_001, dtype=torch.float64)
    return math.log(2 * math.pi * float(torch.trapezoid(r * (-8 * (r - 2).square()).exp(), r)))


def log_banana(x: Tensor) -> Tensor:
    return -x[:, 0].square() / 2 - 2 * (x[:, 1] - x[:, 0].square() / 2).square()


def log_rosenbrock(x: Tensor) -> Tensor:
    return -((1 - x[:, 0]).square() + 100 * (x[:, 1] - x[:, 0].square()).square()) / 20


def log_funnel(x: Tensor) -> Tensor:
    """v ~ N(0, 9), the others N(0, e^v)."""
    v, d = x[:, 0], x.shape[1] - 1
    rest = x[:, 1:].square().sum(-1) * (-v).exp() + d * v + d * math.log(2 * math.pi)
    return -v.square() / 18 - rest / 2 - math.log(3 * math.sqrt(2 * math.pi))


def log_student(x: Tensor) -> Tensor:
    """Independent, with three degrees of freedom."""
    return -2 * (1 + x.square() / 3).log().sum(-1)


def log_cauchy(x: Tensor) -> Tensor:
    return -(1 + x.square()).log().sum(-1)


def log_laplace(x: Tensor) -> Tensor:
    return -(x.square() + 1e-6).sqrt().sum(-1)


def log_gumbel(x: Tensor) -> Tensor:
    """Skewed: u − e^u in each coordinate, the law of the logarithm of an exponential one."""
    return (x - x.exp()).sum(-1)


def log_double_well(x: Tensor) -> Tensor:
    """Wells at ±1.7 in each coordinate, 2^d of them."""
    return -(x.square() - 3).square().sum(-1) / 4


def double_well_log_z() -> float:
    x = torch.linspace(-8, 8, 160_001, dtype=torch.float64)
    return math.log(float(torch.trapezoid((-(x.square() - 3).square() / 4).exp(), x)))


def laplace_log_z() -> float:
    x = torch.linspace(-40, 40, 4_000_001, dtype=torch.float64)
    return math.log(float(torch.trapezoid((-(x.square() + 1e-6).sqrt()).exp(), x)))


def correlated(dim: int) -> LogDensity:
    """A Gaussian of correlations 0.9 and deviations from 0.3 to 3, as a function."""
    scale = torch.logspace(-0.5, 0.5, dim, dtype=torch.float64)
    covariance = scale[:, None] * scale * (0.9 + 0.1 * torch.eye(dim, dtype=torch.float64))
    law = MultivariateNormal(torch.ones(dim, dtype=torch.float64), covariance, validate_args=False)
    return lambda x: law.log_prob(x.double()).to(x)


def mixture(centres: Tensor, weights: Tensor | None = None, scale: float = 1.0) -> LogDensity:
    weights = torch.ones(len(centres)) if weights is None else weights
    parts = Independent(Normal(centres, torch.full_like(centres, scale), validate_args=False), 1, validate_args=False)
    return MixtureSameFamily(Categorical(weights), parts, validate_args=False).log_prob


def scattered(k: int, dim: int) -> LogDensity:
    """Centres uniform in [−5, 5]^d, unit variance."""
    return mixture(10 * torch.rand(k, dim, generator=torch.Generator().manual_seed(0)) - 5)


def two_modes(distance: float, weight: float, dim: int = 2) -> LogDensity:
    centres = torch.zeros(2, dim)
    centres[0, 0], centres[1, 0] = distance, -distance
    return mixture(centres, torch.tensor([weight, 1 - weight]))


LATTICE = torch.cartesian_prod(*2 * [torch.linspace(-4, 4, 5)])
TARGETS = {
    "ring": Target(log_ring, 2, ring_log_z()),
    "banana": Target(log_banana, 2, math.log(math.pi)),
    "rosenbrock": Target(log_rosenbrock, 2, math.log(2 * math.pi)),
    "funnel 2": Target(log_funnel, 2, 0.0),
    "funnel 10": Target(log_funnel, 10, 0.0),
    "student 2": Target(log_student, 2, 2 * math.log(math.sqrt(3) * math.pi / 2)),
    "student 10": Target(log_student, 10, 10 * math.log(math.sqrt(3) * math.pi / 2)),
    "cauchy 2": Target(log_cauchy, 2, 2 * math.log(math.pi)),
    "laplace 2": Target(log_laplace, 2, 2 * laplace_log_z()),
    "gumbel 5": Target(log_gumbel, 5, 0.0),
    "correlated 5": Target(correlated(5), 5, 0.0),
    "wells 4": Target(log_double_well, 4, 4 * double_well_log_z(), 9.0),
    "mixture 2": Target(scattered(5, 2), 2, 0.0, 16.0),
    "mixture 2 modes": Target(scattered(5, 2), 2, 0.0, 16.0, True),
    "mixture 10 modes": Target(scattered(9, 10), 10, 0.0, 16.0, True),
    "lattice modes": Target(mixture(LATTICE, scale=0.2), 2, 0.0, 9.0, True),
    "two modes": Target(two_modes(5, 0.9), 2, 0.0, 9.0),
    "one of two modes": Target(two_modes(5, 0.7), 2, 0.0),
    "modes far away": Target(two_modes(12, 0.5), 2, 0.0, 1.0),
    "rosenbrock modes": Target(log_rosenbrock, 2, math.log(2 * math.pi), 16.0, True),
    "ring modes": Target(log_ring, 2, ring_log_z(), 9.0, True),
    "funnel 2 modes": Target(log_funnel, 2, 0.0, 9.0, True),
}


def trained(name: str, seed: int, folder: Path | None, options: dict[str, Any]) -> wprox.JKOSampler:
    target = TARGETS[name]
    where = folder / f"{name}-{seed}" if folder else None
    if where and where.exists():
        return wprox.JKOSampler.load(where, target.log_density)
    build = wprox.JKOSampler.for_modes if target.for_modes else wprox.JKOSampler
    initial = None
    if target.start is not None:
        initial = wprox.Gaussian(torch.zeros(target.dim), target.start * torch.eye(target.dim))
    sampler = build(target.log_density, dim=target.dim, initial=initial, seed=seed, **options).run()
    if where:
        sampler.save(where)
    return sampler


def ask(name: str, sampler: wprox.JKOSampler, draws: int, seed: int) -> dict[str, Any]:
    """One estimate, and what the weights of other draws of the sampler say."""
    log_z = TARGETS[name].log_z
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = sampler.log_normalizer(draws, seed=seed)
        seconds, warned = time.process_time() - start, bool(caught)
        x = sampler.sample(draws, seed=seed).double()
        log_weights = TARGETS[name].log_density(x) - sampler.log_prob(x)
        generator = torch.Generator().manual_seed(seed)
        alone = log_normalizer(log_weights, sampler._chain(torch.float64).masses(draws, generator, x))
    return {
        "error": found.value - log_z,
        "standard_error": found.standard_error,
        "z": (found.value - log_z) / found.standard_error,
        "weights": (alone.value - log_z) / alone.standard_error,
        "ess": float(wprox.metrics.ess(log_weights, log=True)) / draws,
        "k": wprox.metrics.pareto_k(log_weights, log=True),
        "warning": warned,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="NAME")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the samplers")
    parser.add_argument("--repeats", type=int, default=3, help="estimates from each sampler")
    parser.add_argument("--folder", type=Path, help="where samplers are kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="samplers of few iterations")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = {"iterations": 40, "n_particles": 5000, "fine_tune_iterations": 40} if arguments.quick else {}
    if arguments.folder:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"{'target':<18}{'error':>9}{'s.e.':>9}{'z':>7}{'weights':>9}{'ESS':>7}{'k':>7}  warning{'s':>6}")
    rows = []
    for name in arguments.targets:
        for seed in arguments.seeds:
            sampler = trained(name, seed, arguments.folder, options)
            for repeat in range(arguments.repeats):
                row = ask(name, sampler, arguments.draws, 100 + repeat)
                rows.append(row)
                print(
                    f"{name:<18}{row['error']:>9.4f}{row['standard_error']:>9.4f}{row['z']:>7.1f}{row['weights']:>9.1f}"
                    f"{row['ess']:>7.3f}{row['k']:>7.2f}  {'yes' if row['warning'] else 'no':<7}{row['seconds']:>6.1f}",
                    flush=True,
                )
    beyond = [row for row in rows if abs(row["z"]) > 3]
    print(
        f"{len(rows)} estimates; beyond three standard errors {len(beyond)}, of these without a warning "
        f"{sum(not row['warning'] for row in beyond)}; by the weights alone "
        f"{sum(abs(row['weights']) > 3 for row in rows)}; warnings {sum(row['warning'] for row in rows)}"
    )


if __name__ == "__main__":
    main()
