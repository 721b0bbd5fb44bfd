"""Functionals of optimal transport, measured: every number of docs/transport.md.

python examples/benchmarks/transport.py            # all, about five minutes on one core that is busy
python examples/benchmarks/transport.py accuracy   # one part
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time

import torch
from geomloss import SamplesLoss

import wprox

SIZES = (500, 1000, 2000, 5000)


def clouds(n: int, d: int = 2) -> tuple[wprox.Particles, wprox.Particles]:
    """n standard normal points, and n points of a ring."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, n, d, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return wprox.Particles(x), wprox.Particles(2 * y / y.norm(dim=1, keepdim=True) + noise)


def make(name: str, target: wprox.Particles) -> wprox.Functional:
    if name == "exact":
        return wprox.SquaredWasserstein(target)
    if name == "sliced":
        return wprox.SlicedWasserstein(target, n_projections=100)
    return wprox.SinkhornDivergence(target, blur=float(name.split()[1]))


NAMES = ("exact", "sinkhorn 0.5", "sinkhorn 0.1", "sliced")


def one(name: str, n: int) -> None:
    """Value and gradient in the points once, in a process of its own: seconds, and the peak of its memory."""
    p, q = clouds(n)
    functional = make(name, q)
    make(name, clouds(20)[1]).wasserstein_gradient(clouds(20)[0])
    start, cpu = time.perf_counter(), time.process_time()
    functional.wasserstein_gradient(p)
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:13s} {n:6,d} {wall:8.2f} {cpu:8.2f} {memory:9.0f}", flush=True)


def cost() -> None:
    print("functional         n  seconds      cpu  MB peak")
    for name in NAMES:
        for n in SIZES:
            subprocess.run([sys.executable, __file__, "one", name, str(n)], check=True)


def accuracy() -> None:
    """The gradient of GeomLoss at its schedules, and ours at its tolerances, against ours at 1e-12; n = 300."""
    p, q = clouds(300)
    print("blur  method             value (relative)  gradient (relative)  cpu seconds")
    for blur in (0.5, 0.1):
        exact = wprox.SinkhornDivergence(q, blur, tol=1e-12, iterations=10**5)
        value, gradient = float(exact(p)), exact.wasserstein_gradient(p)
        rows = [(f"ours, tol {tol:g}", wprox.SinkhornDivergence(q, blur, tol=tol)) for tol in (1e-3, 1e-6)]
        rows += [(f"GeomLoss, {scaling:g}", scaling) for scaling in (0.5, 0.9, 0.99)]
        for name, row in rows:
            cpu = time.process_time()
            x = p.points.clone().requires_grad_()
            if isinstance(row, float):
                loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=row, backend="tensorized")
                value_found = loss(p.weights, x, q.weights, q.points)
            else:
                value_found = row(wprox.Particles(x, p.weights))
            (slope,) = torch.autograd.grad(value_found, x)
            cpu = time.process_time() - cpu
            error = float((len(p) * slope - gradient).norm() / gradient.norm())
            wrong = abs(float(value_found.detach()) / value - 1)
            print(f"{blur:4g}  {name:17s}  {wrong:16.1e}  {error:19.1e}  {cpu:11.2f}", flush=True)


def projections() -> None:
    """SW₂² by L directions against 20,000, in dimension 2 and 10: root mean square over 50 seeds, relative."""
    print(" d    L  error")
    for d in (2, 10):
        p, q = clouds(200, d)
        exact = float(wprox.SlicedWasserstein(q, 20_000, seed=10**6)(p))
        for number in (10, 100, 1000):
            errors = [float(wprox.SlicedWasserstein(q, number, seed)(p)) / exact - 1 for seed in range(50)]
            print(f"{d:2d} {number:4d}  {math.sqrt(sum(error**2 for error in errors) / 50):.1e}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["one"]:
        one(sys.argv[2], int(sys.argv[3]))
    else:
        parts = {"accuracy": accuracy, "projections": projections, "cost": cost}
        for part in sys.argv[1:] or parts:
            parts[part]()
