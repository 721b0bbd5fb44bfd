"""JKOFlow on planar densities whose log-density is known: time, NLL, entropy and KL = NLL − entropy.

    python examples/benchmarks/planar.py [NAME ...] [--threads 2] [--rows 200000] [--out results.json]

NLL and entropy are means over the same 10,000 test points, so that KL is their paired difference; the exact entropy
(by quadrature) stands beside it. "CPU s" is the training time of all threads together, "to 0.45" the part of it after
which the held-out KL is at most 0.45.
"mass" is the integral of exp(log_prob) over a grid (the script fails beyond 1 %), "round trip" the largest
|x − T⁻¹(T(x))| over the test points, in float64 as they are, and in float32.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch

import wprox
from wprox import datasets


def run(density: datasets.PlanarDensity, rows: int, seed: int, options: dict) -> dict[str, float]:
    train, test = density.sample(rows, seed=seed), density.sample(10_000, seed=seed + 1)
    start, cpu_start = time.perf_counter(), time.process_time()
    flow = wprox.JKOFlow(seed=seed, **options).fit(train)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    entropy = -float(density.log_prob(test).mean())
    nll = -flow.score(test)
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "nll": nll,
        "entropy": entropy,
        "exact_entropy": density.entropy(),
        "kl": nll - entropy,
        "seconds_to_0.45": cpu_seconds / seconds * seconds_to(flow, density.entropy() + 0.45),
        "blocks": len(flow.blocks_),
        "greedy_kl": flow.history_[len(flow.blocks_) - 1]["held_out_nll"] - density.entropy(),
        "mass": grid_mass(flow, density),
        "round_trip": round_trip(flow, test),
        "round_trip_float32": round_trip(flow, test.float()),
    }


def seconds_to(flow: wprox.JKOFlow, nll: float) -> float:
    """The training time up to the end of the first stage whose held-out NLL is at most `nll`; infinite if none."""
    total = 0.0
    for stage in flow.history_:
        total += stage["seconds"]
        if stage["held_out_nll"] <= nll:
            return total
    return float("inf")


def round_trip(flow: wprox.JKOFlow, x: torch.Tensor) -> float:
    return float((flow.inverse_transform(flow.transform(x)) - x).abs().max())


def grid_mass(flow: wprox.JKOFlow, density: datasets.PlanarDensity, size: int = 800) -> float:
    axes = []
    for low, high in density.bounds:
        margin = 0.25 * (high - low)
        axes.append(torch.linspace(low - margin, high + margin, size, dtype=torch.float64))
    cell = float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0]))
    return float(flow.log_prob(torch.cartesian_prod(*axes)).exp().sum()) * cell


def main() -> None:
    densities = datasets.planar()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(densities)}; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of JKOFlow, as JSON")
    parser.add_argument("--out", help="a JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{arguments.rows} training points, JKOFlow options {arguments.options or 'default'}")
    header = f"{'density':<16}{'seconds':>8}{'CPU s':>8}{'NLL':>9}{'entropy':>9}{'exact':>9}{'KL':>9}{'greedy':>9}"
    print(header + f"{'to 0.45':>9}{'blocks':>8}{'mass':>8}{'round trip':>12}{'float32':>9}")
    results = {}
    for name in arguments.names or densities:
        r = results[name] = run(densities[name], arguments.rows, arguments.seed, arguments.options)
        print(
            f"{name:<16}{r['seconds']:>8.1f}{r['cpu_seconds']:>8.1f}{r['nll']:>9.4f}{r['entropy']:>9.4f}{r['exact_entropy']:>9.4f}"
            f"{r['kl']:>9.4f}{r['greedy_kl']:>9.4f}{r['seconds_to_0.45']:>9.1f}{r['blocks']:>8d}{r['mass']:>8.4f}"
            f"{r['round_trip']:>12.1e}{r['round_trip_float32']:>9.1e}",
            flush=True,
        )
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({"threads": arguments.threads, "rows": arguments.rows, "results": results}, file, indent=2)
    wrong = [name for name, r in results.items() if abs(r["mass"] - 1) > 0.01]
    if wrong:
        raise SystemExit(f"log_prob does not integrate to 1 on {', '.join(wrong)}")


if __name__ == "__main__":
    main()
