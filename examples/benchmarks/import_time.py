"""Seconds that `import wprox` adds to `import torch`: medians over fresh processes of one thread.

python examples/benchmarks/import_time.py            # 15 processes a row
python examples/benchmarks/import_time.py --runs 5

"compiled" runs from bytecode, as any installed package does from its second import on; "from source" compiles wprox at
each import, as under PYTHONDONTWRITEBYTECODE.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

PROGRAM = """
import sys, time
start = time.perf_counter()
import torch
sys.dont_write_bytecode, sys.pycache_prefix = {from_source}, {folder!r}
between, cpu = time.perf_counter(), time.process_time()
{statement}
print(between - start, time.perf_counter() - between, time.process_time() - cpu)
"""
ROWS = (
    ("import wprox", "compiled"),
    ("import wprox", "from source"),
    ("from wprox import JKOFlow", "compiled"),
    ("import wprox.cli", "compiled"),
)


def measure(statement: str, from_source: bool, folder: str, runs: int) -> list[float]:
    """Medians: seconds of `import torch`, seconds of the statement after it, and its CPU seconds."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", PROGRAM.format(statement=statement, from_source=from_source, folder=folder)]
    times = []
    for _ in range(runs + 1):
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        times.append([float(seconds) for seconds in output.split()])
    return [statistics.median(column) for column in zip(*times[1:], strict=True)]  # the first one writes bytecode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    print(f"{'after import torch':26} {'bytecode':12} seconds  CPU seconds  (import torch alone: seconds)")
    for statement, kind in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            torch_seconds, seconds, cpu = measure(statement, kind == "from source", folder, runs)
        print(f"{statement:26} {kind:12} {seconds:7.3f}  {cpu:11.3f}  ({torch_seconds:.3f})")


if __name__ == "__main__":
    main()
