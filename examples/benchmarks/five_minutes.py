"""The likelihood that the default map reaches in five minutes on two cores, on densities with as many rows as it takes.

    python examples/benchmarks/five_minutes.py [image mixture_10] [--seed 0] [--options '{"fine_tune_iterations": 500}']

The image is the planar density of thin lines (`datasets.from_image`), mixture_10 the mixture in ten dimensions of
`maps.py`. One thread is used and CPU seconds are printed, which other work on the machine hardly changes: with fewer
than 300 of them it takes less than five minutes. Columns:

    CPU s        of training, and in brackets what the blocks took before they were trained together
    NLL, KL      over 10,000 test points, KL = NLL − the entropy over the same points; "greedy" before joint training,
                 "training" over as many training points: what is lost by learning them by heart is the difference
    round trip   the largest |x − T⁻¹(T(x))| over the test points, in float64 and in float32
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

import torch
from maps import Mixture
from planar import round_trip

import wprox
from wprox import datasets

# Rows are free here, so that nothing is learned by heart: blocks are trained shortly one after the other, as a start,
# and most of the time goes to training all of them together, in large batches.
SETTINGS: dict[str, dict[str, Any]] = {
    "image": {
        "n_blocks": 8,
        "fine_tune_iterations": 4300,
        "fine_tune_batch_size": 2048,
        "fine_tune_learning_rate": 3e-3,
    },
    "mixture_10": {
        "n_blocks": 4,
        "batch_size": 1024,
        "fine_tune_iterations": 5000,
        "fine_tune_batch_size": 1024,
        "fine_tune_learning_rate": 2e-3,
    },
}
START = {"iterations": 60, "tol": -math.inf, "patience": 60}  # of the blocks one after the other


def density_of(name: str) -> Any:
    return datasets.planar()[name] if name == "image" else Mixture(10)


def run(name: str, rows: int, seed: int, options: dict[str, Any]) -> None:
    density = density_of(name)
    train, held_out, test = (density.sample(n, seed + k) for k, n in enumerate((rows, 10_000, 10_000)))
    start = time.process_time()
    flow = wprox.JKOFlow(seed=seed, **(START | SETTINGS[name] | options)).fit(train, validation=held_out)
    seconds = time.process_time() - start
    blocks = [stage for stage in flow.history_ if "transport_cost" in stage]
    together = sum(stage["seconds"] for stage in flow.history_[len(blocks) :])
    share = sum(stage["seconds"] for stage in blocks) / (sum(stage["seconds"] for stage in blocks) + together)
    nll = -flow.score(test)
    kl = [-flow.score(x) + float(density.log_prob(x).mean()) for x in (test, train[: len(test)])]
    greedy = blocks[-1]["held_out_nll"] + float(density.log_prob(held_out).mean())
    print(
        f"{name:<12}{seconds:>7.0f} ({seconds * share:.0f}){nll:>9.4f}{kl[0]:>9.4f}{greedy:>9.4f}{kl[1]:>10.4f}"
        f"{len(blocks):>8d}{round_trip(flow, test):>12.1e}{round_trip(flow, test.float()):>9.1e}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SETTINGS, []], help="image, mixture_10; both by default")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of JKOFlow, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.rows} rows, one thread; options {arguments.options or 'as in the script'}")
    print(f"{'density':<12}{'CPU s':>7} (blocks){'NLL':>5}{'KL':>9}{'greedy':>9}{'training':>10}{'blocks':>8}", end="")
    print(f"{'round trip':>12}{'float32':>9}", flush=True)
    for name in arguments.names or SETTINGS:
        run(name, arguments.rows, arguments.seed, arguments.options)


if __name__ == "__main__":
    main()
