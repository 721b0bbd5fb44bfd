"""JKO sampling and Fokker–Planck flows against published numbers.

    python examples/benchmarks/sampling.py [--part mixtures ou evidence] [--dims 2 4 …] [--seeds 5] [--threads 2]
        [--options '{"corrections": 6}'] [--out results.json]

The settings and the numbers to compare with are those of Mokrov, Korotin, Li, Genevay, Solomon and Burnaev,
*Large-scale Wasserstein gradient flows* (NeurIPS 2021), whose results are shipped with their code. symKL is
KL(ρ ‖ π) + KL(π ‖ ρ), each the mean over 8,192 draws with exact densities; means over seeds.

mixtures: centres uniform in [−5, 5]^d, unit variance, equal weights, from N(0, 16 I). "flow" is the sampler after joint
    fine-tuning (from d = 6 without it, but with a rejection step after each block), "corrected" after its last
    rejection steps. "worst mode" is the largest relative error of the mass in the
    Voronoi cell of a centre, on 50,000 draws against 200,000 of the target. "seconds" are of training and corrections.
ou: the law at t = 1 of the Ornstein–Uhlenbeck process from N(0, I) with stationary law N(b, Σ), b ~ N(0, I) and Σ of
    scikit-learn's make_spd_matrix, γ = 0.05: `GaussianProx` has the error of the discretisation alone, `NeuralProx`
    (affine maps, 50,000 particles) that of training too; its symKL is in closed form, its maps being affine.
evidence: log Z of a mixture (Z = 1) over seeds. If |error|/standard error were that of a normal law, 18 or more of 20
    would lie within two with probability 0.94.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time

import numpy as np
import torch
from sklearn.datasets import make_spd_matrix
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

import wprox
from wprox.maps import TransportMap
from wprox.models.chain import RejectionStep

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
# the largest number of rejection steps at the end: a mode whose mass is wrong by a factor f takes log f / log 1.3
CORRECTIONS = {2: 4, 4: 6, 6: 6, 8: 6, 10: 8, 12: 8}
# from d = 6: at d = 12 blocks alone lose modes, and a rejection step after each keeps them
INTERLEAVED = {
    "n_blocks": 1,
    "corrected_blocks": 5,
    "corrections": 1,
    "step_sizes": [0.01, 0.03, 0.1, 0.4, 2.0, 10.0],
    "iterations": 250,
    "batch_size": 512,
    "n_particles": 20_000,
    "fine_tune": False,
}


def mixture(d: int, seed: int) -> MixtureSameFamily:
    k = MIXTURES[d][0]
    centres = 10 * torch.rand(k, d, generator=torch.Generator().manual_seed(seed)) - 5
    return MixtureSameFamily(Categorical(torch.ones(k)), Independent(Normal(centres, torch.ones(k, d)), 1))


def target_draws(target: MixtureSameFamily, n: int, seed: int) -> torch.Tensor:
    return wprox.Particles.from_distribution(target, n, seed).points


def symmetric_kl(sampler: wprox.JKOSampler, target: MixtureSameFamily, seed: int) -> float:
    x, y = sampler.sample(DRAWS, seed=seed), target_draws(target, DRAWS, seed)
    backward = (sampler.log_prob(x) - target.log_prob(x)).mean()
    return float(backward + (target.log_prob(y) - sampler.log_prob(y)).mean())


def worst_mode(sampler: wprox.JKOSampler, target: MixtureSameFamily, seed: int) -> float:
    centres = target.component_distribution.mean

    def masses(x: torch.Tensor) -> torch.Tensor:
        return torch.bincount(torch.cdist(x, centres).argmin(1), minlength=len(centres)) / len(x)

    expected = masses(target_draws(target, 200_000, seed))
    return float((masses(sampler.sample(50_000, seed=seed)) / expected - 1).abs().max())


def run_mixture(d: int, seed: int, options: dict) -> dict[str, float]:
    target = mixture(d, seed)
    initial = wprox.Gaussian(torch.zeros(d), 16 * torch.eye(d))
    options = (INTERLEAVED if d >= 6 else {}) | options
    start, cpu = time.perf_counter(), time.process_time()
    sampler = wprox.JKOSampler(target, initial=initial, seed=seed, **options).run()
    flow_seconds, cpu_flow = time.perf_counter() - start, time.process_time() - cpu
    blocks = sum(isinstance(layer, TransportMap) for layer in sampler.layers_)
    flow = symmetric_kl(sampler, target, 10_000 + seed)
    flow_worst = worst_mode(sampler, target, 10_000 + seed)
    again, cpu_again = time.perf_counter(), time.process_time()
    sampler.correct(CORRECTIONS[d])
    seconds, cpu_seconds = flow_seconds + time.perf_counter() - again, cpu_flow + time.process_time() - cpu_again
    return {
        "flow": flow,
        "flow_worst_mode": flow_worst,
        "flow_seconds": flow_seconds,
        "corrected": symmetric_kl(sampler, target, 20_000 + seed),
        "worst_mode": worst_mode(sampler, target, 20_000 + seed),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "blocks": blocks,
        "corrections": sum(isinstance(layer, RejectionStep) for layer in sampler.layers_),
        "ess": sampler.history_[-1]["ess"],
    }


def mixtures(dims: list[int], seeds: int, options: dict) -> dict[str, dict]:
    print("\nmixtures, from N(0, 16 I): symKL to the target, mean (worst) over seeds")
    print(
        f"{'d':>3}{'ICNN-JKO':>10}{'EM + KDE':>10}{'flow':>9}{'corrected':>18}{'worst mode':>12}{'s':>9}{'theirs':>8}"
    )
    results: dict[str, dict] = {}
    for d in dims:
        runs = []
        for seed in range(seeds):
            runs.append(run_mixture(d, seed, dict(options)))
            print(f"d = {d}, seed {seed}: {runs[-1]}", file=sys.stderr, flush=True)
        _, published, published_seconds, particles = MIXTURES[d]
        corrected = [run["corrected"] for run in runs]
        results[str(d)] = {"runs": runs, "published": published}
        print(
            f"{d:>3}{published:>10.4f}{particles:>10.3f}{mean(runs, 'flow'):>9.4f}"
            f"{statistics.fmean(corrected):>10.4f} ({max(corrected):.4f})"
            f"{max(run['worst_mode'] for run in runs):>11.1%}{mean(runs, 'seconds'):>9.0f}{published_seconds:>8.0f}"
            f"   flow alone: worst mode {max(run['flow_worst_mode'] for run in runs):.0%}, "
            f"{mean(runs, 'flow_seconds'):.0f} s; {mean(runs, 'blocks'):.1f} blocks, {mean(runs, 'corrections'):.1f} "
            f"corrections, CPU {mean(runs, 'cpu_seconds'):.0f} s, ESS {mean(runs, 'ess'):.1%}",
            flush=True,
        )
    return results


def mean(runs: list[dict], name: str) -> float:
    return statistics.fmean(run[name] for run in runs)


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


def ou(dims: list[int], seeds: int, step_size: float = 0.05) -> dict[str, dict]:
    print(f"\nOrnstein–Uhlenbeck, symKL to the true law at t = 1, γ = {step_size}: mean (worst) over seeds")
    print(f"{'d':>3}{'ICNN-JKO':>10}{'half':>9}{'GaussianProx':>20}{'NeuralProx':>20}{'seconds':>9}")
    results: dict[str, dict] = {}
    for d in dims:
        exact, neural, seconds = [], [], []
        for seed in range(seeds):
            rng = np.random.RandomState(seed)
            covariance = torch.tensor(make_spd_matrix(d, random_state=rng))
            b = torch.tensor(rng.randn(d))
            functional = wprox.KL(wprox.Gaussian(b, covariance))
            start = wprox.Gaussian(torch.zeros(d).double(), torch.eye(d).double())
            truth = ornstein_uhlenbeck(b, covariance, 1.0)
            final = wprox.jko(functional, wprox.GaussianProx(), start, step_size, until=1.0).final
            exact.append(gaussian_symmetric_kl(final, truth))
            clock = time.perf_counter()
            solver = wprox.NeuralProx(
                map=wprox.AffineMap, learning_rate=0.02, iterations=200, batch_size=2048, seed=seed
            )
            trajectory = wprox.jko(functional, solver, start.to_particles(50_000, seed), step_size, until=1.0)
            seconds.append(time.perf_counter() - clock)
            neural.append(gaussian_symmetric_kl(push_gaussian(start, trajectory.map), truth))
        results[str(d)] = {"exact": exact, "neural": neural, "published": OU[d]}
        print(
            f"{d:>3}{OU[d]:>10.4f}{OU[d] / 2:>9.5f}{statistics.fmean(exact):>10.5f} ({max(exact):.5f})"
            f"{statistics.fmean(neural):>10.5f} ({max(neural):.5f}){statistics.fmean(seconds):>9.1f}",
            flush=True,
        )
    return results


def evidence(seeds: int, options: dict) -> dict[str, object]:
    print("\nlog Z of the mixture of d = 2 (Z = 1), 10,000 draws, a sampler a seed")
    within, pairs = 0, []
    for seed in range(seeds):
        initial = wprox.Gaussian(torch.zeros(2), 16 * torch.eye(2))
        quick = {"n_blocks": 2, "iterations": 150, "fine_tune": False, "corrections": 3, "n_particles": 20_000}
        sampler = wprox.JKOSampler(mixture(2, seed), initial=initial, seed=seed, **(quick | options)).run()
        estimate = sampler.log_normalizer(10_000, seed=seed)
        within += abs(estimate.value) <= 2 * estimate.standard_error
        pairs.append(tuple(estimate))
        print(f"{seed:>3}  log Z {estimate.value:+.5f} ± {estimate.standard_error:.5f}", flush=True)
    print(f"within two standard errors: {within} of {seeds}")
    return {"within": within, "estimates": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--part", nargs="+", choices=["mixtures", "ou", "evidence"], default=["mixtures", "ou", "evidence"]
    )
    parser.add_argument("--dims", type=int, nargs="+", help="all of the published ones by default")
    parser.add_argument("--seeds", type=int, help="5 by default, 20 for evidence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of JKOSampler, as JSON")
    parser.add_argument("--out", help="a JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    results: dict[str, object] = {}
    if "mixtures" in arguments.part:
        dims = [d for d in MIXTURES if arguments.dims is None or d in arguments.dims]
        results["mixtures"] = mixtures(dims, arguments.seeds or 5, arguments.options)
    if "ou" in arguments.part:
        results["ou"] = ou([d for d in OU if arguments.dims is None or d in arguments.dims], arguments.seeds or 5)
    if "evidence" in arguments.part:
        results["evidence"] = evidence(arguments.seeds or 20, arguments.options)
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    main()
