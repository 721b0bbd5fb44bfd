"""JKO sampling and Fokker–Planck flows against published numbers.

    python examples/benchmarks/sampling.py [--part mixtures ou splines evidence] [--dims 2 4 …] [--seeds 0 1 …]
        [--threads 1] [--options '{"corrections": 10}'] [--out results.jsonl]

The settings and the numbers to compare with are those of Mokrov, Korotin, Li, Genevay, Solomon and Burnaev,
*Large-scale Wasserstein gradient flows* (NeurIPS 2021), whose results are shipped with their code. symKL is
KL(ρ ‖ π) + KL(π ‖ ρ), each the mean over 8,192 draws with exact densities; means over seeds. Seconds are CPU seconds of
this process, which is one thread by default. Rows are appended to the file of --out as they are found, and those that
it has already are not computed again.

mixtures: centres uniform in [−5, 5]^d, unit variance, equal weights, from N(0, 16 I), by `JKOSampler.for_modes` as it
    is. "worst mode" is the largest relative error of the mass in the Voronoi cell of a centre, on 50,000 draws against
    200,000 of the target; "noise" is the standard error that this has from the 50,000, at the smallest mode.
ou: the law at t = 1 of the Ornstein–Uhlenbeck process from N(0, I) with stationary law N(b, Σ), b ~ N(0, I) and Σ of
    scikit-learn's make_spd_matrix, γ = 0.05: `GaussianProx` has the error of the discretisation alone, `NeuralProx`
    (affine maps, 50,000 particles) that of training too; its symKL is in closed form, its maps being affine.
splines: the same at d = 2 with small splines in place of affine maps, for 50,000 and for 200,000 particles: what they
    add is the noise of the particles. symKL from 20,000 draws each way.
evidence: log Z of a mixture of d = 2 (Z = 1) over seeds. If |error|/standard error were that of a normal law, 18 or
    more of 20 would lie within two with probability 0.94.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_spd_matrix
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

import wprox
from wprox.maps import TransportMap

# d: number of centres, symKL of ICNN-JKO, seconds of its training, symKL of Euler–Maruyama with 50,000 particles
MIXTURES = {
    2: (5, 0.0615, 960, 0.077),
    4: (6, 0.1755, 1670, 0.440),
    6: (7, 0.301, 2300, 1.50),
    8: (8, 0.396, 3300, 3.45),
    10: (9, 0.329, 4000, 5.58),
    12: (10, 0.509, 7100, 10.2),
}
OU = {1: 0.0009, 2: 0.0037, 4: 0.0081, 6: 0.0104, 8: 0.0141, 10: 0.0157, 12: 0.0162}  # d: symKL of ICNN-JKO
DRAWS = 8192
MODE_DRAWS = 50_000
PARTS = ["mixtures", "ou", "splines", "evidence"]
Row = dict[str, Any]


def mixture(d: int, seed: int) -> MixtureSameFamily:
    k = MIXTURES[d][0]
    centres = 10 * torch.rand(k, d, generator=torch.Generator().manual_seed(seed)) - 5
    # unchecked, as the times in the docs are: torch's checks of x are a third of the time of a small mixture
    parts = Independent(Normal(centres, torch.ones(k, d), validate_args=False), 1, validate_args=False)
    return MixtureSameFamily(Categorical(torch.ones(k)), parts, validate_args=False)


def target_draws(target: MixtureSameFamily, n: int, seed: int) -> torch.Tensor:
    return wprox.Particles.from_distribution(target, n, seed).points


def mode_masses(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    return torch.bincount(torch.cdist(x, centres).argmin(1), minlength=len(centres)) / len(x)


def mixture_row(d: int, seed: int, options: dict[str, Any]) -> Row:
    target = mixture(d, seed)
    start = time.process_time()
    initial = wprox.Gaussian(torch.zeros(d), 16 * torch.eye(d))
    sampler = wprox.JKOSampler.for_modes(target, initial, seed=seed, **options).run()
    seconds = time.process_time() - start
    x, y = sampler.sample(MODE_DRAWS, seed=10_000 + seed), target_draws(target, 200_000, 10_000 + seed)
    expected = mode_masses(y, target.component_distribution.mean)
    mass = mode_masses(x, target.component_distribution.mean)
    x, y = x[:DRAWS], y[:DRAWS]
    backward = float((sampler.log_prob(x) - target.log_prob(x)).mean())
    forward = float((target.log_prob(y) - sampler.log_prob(y)).mean())
    stages = [stage["stage"] for stage in sampler.history_]
    return {
        "symkl": backward + forward,
        "worst_mode": float((mass / expected - 1).abs().max()),
        "noise": math.sqrt(float((1 / expected.min() - 1) / MODE_DRAWS)),
        "seconds": seconds,
        "evaluation_seconds": time.process_time() - start - seconds,
        "ess": sampler.history_[-1]["ess"],
        "blocks": stages.count("block"),
        "rejections": stages.count("rejection"),
    }


def by(rows: list[Row], name: str, values: Iterable[Any]) -> Iterator[tuple[Any, list[Row]]]:
    """Each of the values that some rows have under the name, with these rows."""
    for value in values:
        if runs := [row for row in rows if row[name] == value]:
            yield value, runs


def print_mixtures(rows: list[Row]) -> None:
    print("\nmixtures, from N(0, 16 I): symKL to the target and seconds of a run, mean (worst) over seeds")
    print(
        f"{'d':>3}{'seeds':>6}{'ICNN-JKO':>10}{'EM + KDE':>10}{'JKOSampler':>19}{'worst mode':>12}{'noise':>7}"
        f"{'ESS':>7}{'seconds':>16}{'theirs':>8}{'a fifth':>9}"
    )
    for d, runs in by(rows, "d", MIXTURES):
        _, published, published_seconds, particles = MIXTURES[d]
        symkl, seconds = [run["symkl"] for run in runs], [run["seconds"] for run in runs]
        print(
            f"{d:>3}{len(runs):>6}{published:>10.4f}{particles:>10.3f}{statistics.fmean(symkl):>10.4f} "
            f"({max(symkl):.4f}){max(run['worst_mode'] for run in runs):>11.1%}"
            f"{max(run['noise'] for run in runs):>7.1%}{statistics.fmean(run['ess'] for run in runs):>7.1%}"
            f"{statistics.fmean(seconds):>9.0f} ({max(seconds):>4.0f}){published_seconds:>8}"
            f"{published_seconds / 5:>9.0f}"
        )


def ornstein_uhlenbeck(b: torch.Tensor, covariance: torch.Tensor, t: float) -> wprox.Gaussian:
    """N(b − Eb, EE + Σ(I − EE)) with E = exp(−tΣ⁻¹): the law at time t from N(0, I)."""
    variances, axes = torch.linalg.eigh(covariance)
    decay = (-t / variances).exp()
    loc = b - axes @ (decay * (axes.mT @ b))
    return wprox.Gaussian(loc, (axes * (decay**2 + variances * (1 - decay**2))) @ axes.mT)


def gaussian_symmetric_kl(p: wprox.Gaussian, q: wprox.Gaussian) -> float:
    p_, q_ = (MultivariateNormal(law.loc, law.covariance_matrix) for law in (p, q))
    return float((kl_divergence(p_, q_) + kl_divergence(q_, p_)).detach())


def push_gaussian(law: wprox.Gaussian, map: TransportMap | None) -> wprox.Gaussian:
    """T#N for the composition of affine maps."""
    assert isinstance(map, wprox.ComposedMap)
    for part in map.maps:
        law = law.push(part)
    return law


def ou_problem(d: int, seed: int) -> tuple[wprox.Gaussian, wprox.Gaussian, wprox.Gaussian]:
    """The stationary law, the start and the law at t = 1."""
    rng = np.random.RandomState(seed)
    covariance = torch.tensor(make_spd_matrix(d, random_state=rng))
    b = torch.tensor(rng.randn(d))
    start = wprox.Gaussian(torch.zeros(d).double(), torch.eye(d).double())
    return wprox.Gaussian(b, covariance), start, ornstein_uhlenbeck(b, covariance, 1.0)


def ou_row(d: int, seed: int, step_size: float = 0.05) -> Row:
    stationary, start, truth = ou_problem(d, seed)
    functional = wprox.KL(stationary)
    exact = wprox.jko(functional, wprox.GaussianProx(), start, step_size, until=1.0).final
    assert isinstance(exact, wprox.Gaussian)
    clock = time.process_time()
    solver = wprox.NeuralProx(map=wprox.AffineMap, learning_rate=0.02, iterations=200, batch_size=2048, seed=seed)
    trajectory = wprox.jko(functional, solver, start.to_particles(50_000, seed), step_size, until=1.0)
    return {
        "exact": gaussian_symmetric_kl(exact, truth),
        "neural": gaussian_symmetric_kl(push_gaussian(start, trajectory.map), truth),
        "seconds": time.process_time() - clock,
    }


def splines_row(d: int, seed: int, n: int, iterations: int, batch_size: int) -> Row:
    stationary, start, truth = (wprox.Gaussian(p.loc.float(), p.covariance_matrix.float()) for p in ou_problem(d, seed))
    clock = time.process_time()
    options = {"frequencies": 0, "bins": 8, "hidden": (32,)}
    solver = wprox.NeuralProx("spline", options, iterations=iterations, batch_size=batch_size, seed=seed)
    trajectory = wprox.jko(wprox.KL(stationary), solver, start.to_particles(n, seed), 0.05, until=1.0)
    seconds = time.process_time() - clock
    u, y = start.sample(20_000, seed=10_000 + seed), truth.sample(20_000, seed=20_000 + seed)
    assert trajectory.map is not None
    with torch.no_grad():
        x, log_det = trajectory.map(u)
        backward = start.log_prob(u) - log_det - truth.log_prob(x)
        forward = truth.log_prob(y) - trajectory.log_prob(y, initial=start)
    error = math.sqrt(float(backward.var() + forward.var()) / len(x))
    return {"symkl": float(backward.mean() + forward.mean()), "standard_error": error, "seconds": seconds}


def print_splines(rows: list[Row]) -> None:
    print("\nOrnstein–Uhlenbeck, d = 2, by splines: symKL to the true law at t = 1, mean (worst) over seeds")
    for n, runs in by(rows, "n", (50_000, 200_000)):
        symkl, seconds = [run["symkl"] for run in runs], statistics.fmean(run["seconds"] for run in runs)
        error = math.sqrt(sum(run["standard_error"] ** 2 for run in runs)) / len(runs)
        print(f"{n:>8,} particles: {statistics.fmean(symkl):.5f} ± {error:.5f} ({max(symkl):.5f}), {seconds:.0f} s")


def print_ou(rows: list[Row]) -> None:
    print("\nOrnstein–Uhlenbeck, symKL to the true law at t = 1, γ = 0.05: mean (worst) over seeds")
    print(f"{'d':>3}{'seeds':>6}{'ICNN-JKO':>10}{'half':>9}{'GaussianProx':>20}{'NeuralProx':>20}{'seconds':>9}")
    for d, runs in by(rows, "d", OU):
        exact, neural = [run["exact"] for run in runs], [run["neural"] for run in runs]
        print(
            f"{d:>3}{len(runs):>6}{OU[d]:>10.4f}{OU[d] / 2:>9.5f}{statistics.fmean(exact):>10.5f} "
            f"({max(exact):.5f}){statistics.fmean(neural):>10.5f} ({max(neural):.5f})"
            f"{statistics.fmean(run['seconds'] for run in runs):>9.0f}"
        )


def evidence_row(d: int, seed: int, options: dict[str, Any]) -> Row:
    initial = wprox.Gaussian(torch.zeros(d), 16 * torch.eye(d))
    sampler = wprox.JKOSampler.for_modes(mixture(d, seed), initial, seed=seed, **options).run()
    return sampler.log_normalizer(10_000, seed=seed)._asdict()


def print_evidence(rows: list[Row]) -> None:
    within = sum(abs(row["value"]) <= 2 * row["standard_error"] for row in rows)
    error = statistics.fmean(row["standard_error"] for row in rows)
    worst = max(abs(row["value"]) / row["standard_error"] for row in rows)
    print(
        f"\nlog Z of the mixtures of d = 2 (Z = 1), 10,000 draws: within two standard errors for {within} of", len(rows)
    )
    print(f"seeds; the mean standard error is {error:.4f}, the worst estimate {worst:.1f} of its own off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--dims", type=int, nargs="+", help="all of the published ones by default")
    parser.add_argument("--seeds", type=int, nargs="+", help="0 to 4 by default, to 19 for evidence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of JKOSampler, as JSON")
    parser.add_argument("--out", type=Path, help="a file of one JSON object a row, which is continued")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    rows: list[Row] = []
    if arguments.out and arguments.out.exists():
        rows = [json.loads(line) for line in arguments.out.read_text(encoding="utf-8").splitlines()]
    options = arguments.options
    given_dims = arguments.dims or list(OU)
    jobs: list[tuple[str, int, Row, int, Callable[[int, int], Row]]] = [
        *(("mixtures", d, {"options": options}, 5, partial(mixture_row, options=options)) for d in MIXTURES),
        *(("ou", d, {}, 5, ou_row) for d in OU),
        ("splines", 2, {"n": 50_000}, 5, partial(splines_row, n=50_000, iterations=100, batch_size=2048)),
        ("splines", 2, {"n": 200_000}, 5, partial(splines_row, n=200_000, iterations=150, batch_size=4096)),
        ("evidence", 2, {"options": options}, 20, partial(evidence_row, options=options)),
    ]
    for part, d, settings, seeds, row_of in jobs:
        if part not in arguments.part or d not in given_dims:
            continue
        for seed in arguments.seeds or range(seeds):
            key = {"part": part, "d": d, "seed": seed, **settings}
            if any(row | key == row for row in rows):
                continue
            rows.append(key | row_of(d, seed))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    printers = {"mixtures": print_mixtures, "ou": print_ou, "splines": print_splines, "evidence": print_evidence}
    for part, print_part in printers.items():
        if of_part := [row for row in rows if row["part"] == part]:
            print_part(of_part)


if __name__ == "__main__":
    main()
