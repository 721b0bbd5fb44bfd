"""Pair sums at scale; MMD and KSD flows against gradient descent. Run: python examples/benchmarks/particles.py

Every number of docs/kernels.md comes from here. `--quick` leaves out 50,000 particles. Times are CPU seconds of one
thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import wprox
from wprox import kernels

F64 = torch.float64


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cpu_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_megabytes() -> float:
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024


def value_and_gradient(functional: wprox.Functional, x: Tensor) -> None:
    points = x.clone().requires_grad_()
    functional(wprox.Particles(points)).backward()


def matrix_product(x: Tensor, rows: int) -> None:
    """(X Xᵀ) X, chunk by chunk: n² inner products, and their product with (n, d)."""
    for start in range(0, len(x), rows):
        (x[start : start + rows] @ x.mT) @ x


def scale_table(quick: bool) -> None:
    x = normal(20_000, 2)
    print("\n20,000 particles in the plane, float64: value and gradient")
    chunks = {rows: cpu_seconds(lambda rows=rows: matrix_product(x, rows)) for rows in (64, 256, 1024)}
    print("plain matrix products, rows a chunk: " + ", ".join(f"{rows}: {t:.2f} s" for rows, t in chunks.items()))
    for kernel in (
        kernels.PowerLaw(4, 2),
        kernels.PowerLaw(2, 0),
        kernels.Gaussian(),
        kernels.Riesz(),
        kernels.Morse(2, 0.5),
    ):
        seconds = cpu_seconds(lambda kernel=kernel: value_and_gradient(wprox.InteractionEnergy(kernel), x))
        print(
            f"{kernel!s:60.60} {seconds:5.2f} s = {seconds / chunks[1024]:.2f} × chunks of 1024, "
            f"{seconds / min(chunks.values()):.2f} × the best; peak {peak_megabytes():.0f} MB"
        )
    value_and_gradient(wprox.InteractionEnergy(kernels.PowerLaw(4, 2), batch_size=32), normal(1000, 2))  # warm up
    print("cost against n, PowerLaw(4, 2): all pairs, and random batches of 32")
    for n in (1000, 5000, 20_000) if quick else (1000, 5000, 20_000, 50_000):
        x = normal(n, 2)
        times = [
            cpu_seconds(
                lambda x=x, size=size: value_and_gradient(
                    wprox.InteractionEnergy(kernels.PowerLaw(4, 2), None, size), x
                )
            )
            for size in (None, 32)
        ]
        print(f"n = {n:6d}  {times[0]:6.3f} s  {times[1]:6.3f} s  peak {peak_megabytes():.0f} MB")


def descend(value: Callable[[Tensor], Tensor], x: Tensor, gamma: float, n_steps: int) -> tuple[float, float]:
    """Plain gradient descent on n F by autograd: the final value, and the seconds."""
    start = time.process_time()
    for _ in range(n_steps):
        points = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(value(points), points)
        x = x - gamma * len(x) * gradient
    return float(value(x).detach()), time.process_time() - start


def until(
    functional: wprox.Functional, solver: wprox.Solver, x: Tensor, gamma: float, goal: float
) -> tuple[float, float]:
    """The value, at or below the goal, and the seconds that wprox needs to get there."""
    start, value = time.process_time(), float("inf")
    for step in wprox.jko_steps(functional, solver, wprox.Particles(x), gamma, 1000):
        value = float(step.value)
        if value <= goal or time.process_time() - start > 60:
            break
    return value, time.process_time() - start


def mixture(x: Tensor) -> Tensor:
    means = x.new_tensor([[-2.0, 0.0], [2.0, 0.0]])
    return torch.logsumexp(-(x[:, None] - means).square().sum(-1) / 2, 1)


def imq_stein(x: Tensor) -> Tensor:
    """½ KSD² with the inverse multiquadric, as one writes it with autograd."""
    points = x if x.requires_grad else x.clone().requires_grad_()
    (s,) = torch.autograd.grad(mixture(points).sum(), points, create_graph=True)
    z = points[:, None] - points
    r = 1 + z.square().sum(-1)
    cross = ((s[:, None] - s) * z).sum(-1)
    k = (s @ s.mT) / r.sqrt() + (cross + x.shape[1]) * r**-1.5 - 3 * z.square().sum(-1) * r**-2.5
    return k.mean() / 2


def flows(quick: bool) -> None:
    from geomloss import SamplesLoss

    steps = 100 if quick else 300
    target = torch.cat((normal(500, 2, 1) - 2, normal(500, 2, 2) + 2))
    x = 0.5 * normal(1000, 2)
    loss = SamplesLoss("energy", backend="tensorized")
    riesz, stein = wprox.MMD(target), wprox.KSD(mixture)
    for name, reference, gamma, functional in (
        ("MMD, Riesz: GeomLoss", lambda points: loss(points, target), 0.5, riesz),
        ("KSD, IMQ: autograd", imq_stein, 0.2, stein),
    ):
        goal, seconds = descend(reference, x, gamma, steps)
        scale = float(functional(wprox.Particles(x))) / float(reference(x))
        print(f"\n{name}, {steps} gradient steps of {gamma}: {goal:.3e} in {seconds:.2f} s (F/F = {scale:.4f})")
        for label, solver, step in (
            ("ExplicitEuler", wprox.ExplicitEuler(), gamma),
            ("ExplicitEuler(accelerated=True)", wprox.ExplicitEuler(accelerated=True), gamma),
            ("ParticleProx, γ = 20 times as large", wprox.ParticleProx(tolerance=1e-2), 20 * gamma),
        ):
            value, mine = until(functional, solver, x, step, goal * scale)
            print(f"  {label:36} {value / scale:.3e} in {mine:.2f} s = {mine / seconds:.2f} ×")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    flows("--quick" in sys.argv)
    scale_table("--quick" in sys.argv)
