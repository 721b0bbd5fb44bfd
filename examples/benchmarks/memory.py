"""Peak memory of a flow's fit, log_prob, sample and transform, and of `wprox score`, beside what is allowed.

Allowed are `memory_budget` and twice the data for tables of several shapes, with the defaults of a flow but two
iterations (and one block, where blocks are small), and twice the file for `wprox score`, of files of 300 MB. Each line
counts from what is there before it.

    python examples/benchmarks/memory.py                  all of it, which takes minutes
    python examples/benchmarks/memory.py rows columns     one shape
    python examples/benchmarks/memory.py score            the files
"""

from __future__ import annotations

import contextlib
import importlib
import io
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

import wprox
import wprox.tables
from wprox.app.tables import ENDINGS

SHAPES = ((1_000_000, 10), (20_000, 1_000), (2_000, 10_000))
BUDGET = 2**29
MEGABYTE = 2**20
FILE_BYTES = 300 * MEGABYTE


def resident(peak: bool) -> float:
    """The resident memory now, or its peak since `forget_peak`, in MB (Linux)."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(n: int, d: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    n_blocks = 1 if d < 100 else None  # small ones take no memory to speak of, and minutes
    flow = wprox.JKOFlow(
        n_blocks=n_blocks, iterations=2, fine_tune_iterations=2, memory_budget=BUDGET, tol=-float("inf")
    )
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    data = x.numel() * x.element_size() / MEGABYTE
    jobs = {
        "fit": lambda: flow.fit(x),
        "log_prob": lambda: flow.log_prob(x),
        "sample": lambda: flow.sample(n, seed=0),
        "transform": lambda: flow.transform(x),
    }
    for job, run in jobs.items():
        forget_peak()
        before = resident(peak=False)
        run()
        taken, allowed = resident(peak=True) - before, BUDGET / MEGABYTE + 2 * data
        print(f"| {n:,} × {d:,} | `{job}` | {taken:.0f} MB | {allowed:.0f} MB |", flush=True)


def write_files(folder: Path) -> list[Path]:
    """A table as a file of about 300 MB of each kind."""
    values = np.random.default_rng(0).standard_normal((FILE_BYTES // 80, 10))
    files = [folder / f"table{ending}" for ending in ENDINGS]
    wprox.tables.write_table(folder / "block.csv", values[:10_000])
    header, _, block = (folder / "block.csv").read_bytes().partition(b"\n")
    (folder / "block.csv").unlink()
    with files[0].open("wb") as stream:
        stream.write(header + b"\n")
        for _ in range(FILE_BYTES // len(block)):
            stream.write(block)
    for file in files[1:]:
        wprox.tables.write_table(file, values)
    return files


def measure_score(model: Path, file: Path) -> None:
    from wprox.app.cli import app

    importlib.import_module("pyarrow.parquet")
    forget_peak()
    before = resident(peak=False)
    with contextlib.redirect_stdout(io.StringIO()):
        app(["score", str(model), str(file)], standalone_mode=False)
    taken, size = resident(peak=True) - before, file.stat().st_size / MEGABYTE
    print(f"| {file.suffix}, {size:.0f} MB | `wprox score` | {taken:.0f} MB | {2 * size:.0f} MB |", flush=True)


def measure_scores(folder: Path) -> None:
    few = torch.randn(500, 10, generator=torch.Generator().manual_seed(0))
    wprox.JKOFlow(n_blocks=1, iterations=2, fine_tune=False).fit(few).save(folder / "model")
    for file in write_files(folder):
        subprocess.run([sys.executable, __file__, "score", str(folder / "model"), str(file)], check=True)


def main() -> None:
    given = sys.argv[1:]
    if len(given) == 2:
        measure(int(given[0]), int(given[1]))
    elif len(given) == 3:
        measure_score(Path(given[1]), Path(given[2]))
    elif given:
        with tempfile.TemporaryDirectory() as folder:
            measure_scores(Path(folder))
    else:
        print("| table | what | peak memory | allowed |\n| --- | --- | --- | --- |", flush=True)
        for arguments in (*SHAPES, ("score",)):
            subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
