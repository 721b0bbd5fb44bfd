"""Pair sums and steps at scale; MMD and KSD flows against descent. Run: python examples/benchmarks/particles.py

Every number of docs/kernels.md, and the cost of a step in docs/particles.md, come from here. `--quick` leaves out
50,000 particles, `--steps` all but the steps, `--keops` all but KeOps. Times are CPU seconds of one
thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import importlib.util
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


def quartic(z: Tensor) -> Tensor:
    """PowerLaw(4, 2), as a function of which nothing is known."""
    squared = z.square().sum(-1)
    return squared.square() / 4 - squared / 2


def verdict(name: str, value: float, limit: float, unit: str) -> None:
    print(f"{name}: {value:.2f} {unit}, the limit being {limit:g}: {'met' if value <= limit else 'MISSED'}")


def scale_table(quick: bool) -> None:
    x = normal(20_000, 2)
    print("\n20,000 particles in the plane, float64: value and gradient")
    chunks = {rows: cpu_seconds(lambda rows=rows: matrix_product(x, rows)) for rows in (64, 256, 1024)}
    print("plain matrix products, rows a chunk: " + ", ".join(f"{rows}: {t:.2f} s" for rows, t in chunks.items()))
    slowest = 0.0
    for kernel in (
        kernels.PowerLaw(4, 2),
        kernels.PowerLaw(2, 0),
        kernels.Gaussian(),
        kernels.Riesz(),
        kernels.Morse(2, 0.5),
    ):
        seconds = cpu_seconds(lambda kernel=kernel: value_and_gradient(wprox.InteractionEnergy(kernel), x))
        slowest = max(slowest, seconds / chunks[1024])
        print(
            f"{kernel!s:60.60} {seconds:5.2f} s = {seconds / chunks[1024]:.2f} × chunks of 1024, "
            f"{seconds / min(chunks.values()):.2f} × the best; peak {peak_megabytes():.0f} MB"
        )
    verdict("slowest kernel against matrix products in chunks of 1,024", slowest, 2, "times")
    for dtype in (torch.float32, F64):
        cloud = normal(20_000, 3).to(dtype)
        seconds = cpu_seconds(lambda cloud=cloud: value_and_gradient(wprox.InteractionEnergy(quartic), cloud))
        print(f"a function of differences, in 3-D, {dtype}: {seconds:.2f} s; peak {peak_megabytes():.0f} MB")
    verdict("peak memory of the process", peak_megabytes() / 1024, 1, "GB")
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


def step_table(quick: bool) -> None:
    target = wprox.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    swarm = kernels.PowerLaw(4, 2)
    cases: list[tuple[str, wprox.Functional]] = [
        (
            "potential, condition number 1e4",
            wprox.PotentialEnergy(lambda x: (x * x.new_tensor([1e4, 1.0]) * x).sum(-1)),
        ),
        ("PowerLaw(4, 2), batches of 32", wprox.InteractionEnergy(swarm, batch_size=32)),
        ("PowerLaw(4, 2), all pairs", wprox.InteractionEnergy(swarm)),
        ("KL to N(0, I), kernel density", wprox.KL(target)),
    ]
    value_and_gradient(wprox.InteractionEnergy(swarm, batch_size=32), normal(1000, 2))  # warm up
    print("\nOne step of ParticleProx(tolerance=1e-2), γ = 1, from N(0, I/4) in the plane")
    print("| functional | n | seconds | evaluations | seconds an evaluation | peak MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for n in (1000, 5000, 20_000) if quick else (1000, 5000, 20_000, 50_000):
        start = wprox.Particles(normal(n, 2) / 2)
        for name, functional in cases[: None if n < 50_000 else -1]:  # the last takes 100 evaluations of 9 s there
            measure = start.with_kernel_density() if isinstance(functional, wprox.KL) else start
            began = time.process_time()
            step = wprox.ParticleProx(tolerance=1e-2).step(functional, measure, 1.0)
            seconds = time.process_time() - began
            print(
                f"| {name} | {n} | {seconds:.2f} | {step.state.evaluations} | {seconds / step.state.evaluations:.4f} | "
                f"{peak_megabytes():.0f} |",
                flush=True,
            )


def keops_table() -> None:
    """Two kernels by KeOps, where it is installed (pip install pykeops, and a C++ compiler), and in blocks."""
    if importlib.util.find_spec("pykeops") is None:
        print("\npykeops is not installed: no comparison with KeOps")
        return
    print("\nValue and gradient: KeOps / blocks, in seconds")
    for kernel in (kernels.Gaussian(), kernels.Laplace()):
        for d in (2, 3, 10):
            row = []
            for n in (10, 1000, 5000, 20_000):  # the first compiles
                x = normal(n, d)
                energies = [wprox.InteractionEnergy(kernel.with_backend(backend)) for backend in ("keops", "blocks")]
                times = [cpu_seconds(lambda x=x, energy=energy: value_and_gradient(energy, x)) for energy in energies]
                row.append(f"{times[0]:.3f} / {times[1]:.3f}")
            print(f"| {kernel}, d = {d} | " + " | ".join(row[1:]) + " |", flush=True)


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
        scale = float(functional(wprox.Particles(x)).detach()) / float(reference(x).detach())
        print(f"\n{name}, {steps} gradient steps of {gamma}: {goal:.3e} in {seconds:.2f} s (F/F = {scale:.4f})")
        best = float("inf")
        for label, solver, step in (
            ("ExplicitEuler", wprox.ExplicitEuler(), gamma),
            ("ExplicitEuler(accelerated=True)", wprox.ExplicitEuler(accelerated=True), gamma),
            ("ParticleProx, γ = 20 times as large", wprox.ParticleProx(tolerance=1e-2), 20 * gamma),
        ):
            value, mine = until(functional, solver, x, step, goal * scale)
            if value <= goal * scale:
                best = min(best, mine / seconds)
            print(f"  {label:36} {value / scale:.3e} in {mine:.2f} s = {mine / seconds:.2f} ×", flush=True)
        verdict("  the quickest against plain descent, to its value", best, 0.5, "times")


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    only = {"--steps", "--keops"} & set(sys.argv)
    if not only:
        flows("--quick" in sys.argv)
        scale_table("--quick" in sys.argv)
    if not only or "--keops" in only:
        keops_table()
    if not only or "--steps" in only:
        step_table("--quick" in sys.argv)
