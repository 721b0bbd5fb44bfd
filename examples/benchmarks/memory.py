"""Peak memory of a flow's fit, log_prob, sample and transform on tables of several shapes, beside what is allowed.

Allowed are `memory_budget` and twice the data, beside the parameters of the network with their gradients, moments and
copies, which are printed. Each line is measured in a process of its own.

    python examples/benchmarks/memory.py [rows columns]
"""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import torch

import wprox

SHAPES = ((1_000_000, 10), (20_000, 1_000), (2_000, 10_000))
JOBS = ("fit", "log_prob", "sample", "transform")
BUDGET = 2**29
MEGABYTE = 2**20


def resident(peak: bool) -> float:
    """The resident memory now, or its peak since `forget_peak`, in MB (Linux)."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(n: int, d: int, job: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    hidden = {"hidden": [16]} if d > 1_000 else {}
    flow = wprox.JKOFlow(
        n_blocks=1, iterations=2, fine_tune_iterations=2, memory_budget=BUDGET, tol=-float("inf"), map_options=hidden
    )
    few = torch.randn(200, d, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if job != "fit":
        flow.fit(few)
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    forget_peak()
    before = resident(peak=False)
    {"fit": lambda: flow.fit(x), "sample": lambda: flow.sample(n, seed=0)}.get(job, lambda: getattr(flow, job)(x))()
    data = x.numel() * 8 / MEGABYTE
    network = sum(p.numel() * 4 for block in flow.blocks_ for p in block.parameters()) / MEGABYTE
    print(
        f"{n:>9,} x {d:<6,} {job:<9} peak grows by {resident(peak=True) - before:6.0f} MB; "
        f"allowed {BUDGET / MEGABYTE + 2 * data:6.0f} (data {data:.0f}), parameters {network:.0f} MB",
        flush=True,
    )


def main() -> None:
    if len(sys.argv) == 4:
        measure(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
        return
    shapes = [(int(sys.argv[1]), int(sys.argv[2]))] if len(sys.argv) == 3 else SHAPES
    for n, d in shapes:
        for job in JOBS:
            subprocess.run([sys.executable, __file__, str(n), str(d), job], check=True)


if __name__ == "__main__":
    main()
