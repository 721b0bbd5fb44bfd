"""Errors and times of SinkhornProx on equations with exact solutions. Run: python examples/benchmarks/grid.py [--quick]

Every number in docs/grids.md comes from here. `--quick` leaves out what takes more than a few seconds.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import wprox

SQUARE = [(0.0, 1.0), (0.0, 1.0)]


def timed(run: Callable[[], wprox.Trajectory]) -> tuple[wprox.Trajectory, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def distance(rho: wprox.Grid, weights: Tensor) -> float:
    return float((rho.weights - weights).abs().sum())


def iterations(trajectory: wprox.Trajectory) -> int:
    return sum(step.iterations for step in trajectory.steps)


def barenblatt(x: Tensor, t: float) -> Tensor:
    return (1 / math.sqrt(8 * math.pi) - (x - 0.5).square().sum(-1) / (16 * math.sqrt(t))).clamp(min=0) / math.sqrt(t)


def porous_medium(n: int, blur: float, debias: str | None, n_steps: int, tol: float) -> tuple[float, str]:
    initial = wprox.Grid.from_density(lambda x: barenblatt(x, 1e-4), (n, n), SQUARE)
    exact = wprox.Grid.from_density(lambda x: barenblatt(x, 1.1e-3), (n, n), SQUARE)
    solver = wprox.SinkhornProx(blur=blur, debias=debias, tol=tol)
    trajectory, wall, cpu = timed(lambda: wprox.jko(wprox.PorousMedium(2.0), solver, initial, 1e-3 / n_steps, n_steps))
    error = distance(trajectory.final, exact.weights)
    row = f"{n:4d}²  {blur * n:4.1f} cells  {debias!s:9} {n_steps:3d} steps  L1 {error:.4f}"
    return error, f"{row}  {iterations(trajectory):5d} iterations  {wall:6.2f} s wall  {cpu:6.2f} s cpu"


def porous_medium_table(quick: bool) -> None:
    print("\nPorous medium, m = 2, Barenblatt from t = 1e-4 to 1.1e-3; blur 1.2/128, biased")
    for n in (128, 256) if quick else (128, 256, 512):
        print(porous_medium(n, 1.2 / 128, None, 10, 1e-5)[1])
    print("One cell, without and with the entropy correction")
    for debias in (None, "entropy"):
        print(porous_medium(128, 1 / 128, debias, 10, 1e-6)[1])
    print("Twice that blur: the correction measured where the bias is what matters")
    for debias in (None, "entropy"):
        print(porous_medium(128, 2 / 128, debias, 10, 1e-6)[1])
    print("γ → 0 with blur = √γ, entropy correction (blur = 1.28 cells of 128² at γ = 1e-4)")
    last = math.nan
    for n, n_steps in ((128, 5), (128, 10), (128, 20), (256, 40))[: 3 if quick else 4]:
        error, row = porous_medium(n, math.sqrt(1e-3 / n_steps), "entropy", n_steps, 1e-6)
        print(row + ("" if math.isnan(last) else f"  order {math.log2(last / error):.2f}"))
        last = error


def separable(x: Tensor) -> Tensor:
    return 2 * (x[:, 0].square() - 1).square() + x[:, 1].square()


def bent(x: Tensor) -> Tensor:
    return 2 * (x[:, 0].square() - 1).square() + 4 * (x[:, 1] - 0.6 * x[:, 0].square() + 0.4).square()


def fokker_planck_table() -> None:
    print("\nFokker–Planck to Gibbs, 128², blur 3 cells, γ doubling every 5 steps from 0.02")
    bounds = [(-2.2, 2.2), (-2.0, 2.4)]
    for potential in (separable, bent):
        initial = wprox.Grid.from_density(
            lambda x: torch.exp(-10 * (x - x.new_tensor([1.2, 0.9])).square().sum(-1)), (128, 128), bounds
        )
        gibbs = wprox.Grid.from_density(lambda x, V=potential: torch.exp(-V(x)), (128, 128), bounds)
        functional = wprox.PotentialEnergy(potential) + wprox.Entropy()
        for debias in (None, "entropy", "sinkhorn"):
            solver = wprox.SinkhornProx(blur=3 * initial.cell_widths[0], debias=debias)
            trajectory, wall, cpu = timed(
                lambda f=functional, s=solver, i=initial: wprox.jko(f, s, i, lambda k: 0.02 * 2 ** (k // 5), 45)
            )
            divergence = torch.stack(trajectory.values) - functional(gibbs)
            print(
                f"{potential.__name__:10} {debias!s:9} L1 to Gibbs {distance(trajectory.final, gibbs.weights):.1e}  "
                f"KL {float(divergence[0]):.2f} → {float(divergence[-1]):.1e}  decreasing at every step: "
                f"{bool((divergence.diff() < 0).all())}  {wall:.1f} s wall  {cpu:.1f} s cpu"
            )


def heat_table() -> None:
    print("\nHeat equation from variance 0.01 to 0.02 on [−1, 1]^d, 10 steps: L1 distance to the exact Gaussian, and")
    print("to that of exact proximal steps (σ' = σ + γ/σ'), which leaves out the error of the time step")
    for shape in ((256,), (128, 128), (64, 64, 64)):
        d, gamma, variance = len(shape), 5e-4, 0.01
        stepped = variance
        for _ in range(10):  # s' with s' − √s·√s' = γ, for standard deviations √s
            root = (math.sqrt(stepped) + math.sqrt(stepped + 4 * gamma)) / 2
            stepped = root**2
        grids = [
            wprox.Grid.from_density(lambda x, v=v: torch.exp(-x.square().sum(-1) / (2 * v)), shape, [(-1.0, 1.0)] * d)
            for v in (variance, 0.02, stepped)
        ]
        for debias in (None, "entropy"):
            trajectory, wall, cpu = timed(
                lambda g=grids, b=debias, y=gamma: wprox.jko(wprox.Entropy(), wprox.SinkhornProx(debias=b), g[0], y, 10)
            )
            print(
                f"{shape!s:14} {debias!s:9} L1 {distance(trajectory.final, grids[1].weights):.4f}, against exact "
                f"proximal steps {distance(trajectory.final, grids[2].weights):.4f}  {iterations(trajectory):4d} "
                f"iterations  {wall:.2f} s wall  {cpu:.2f} s cpu"
            )


def underflow_table() -> None:
    print("\nHeat, one step where the potentials span more than e^700: in the kernel domain, and from a point")
    slope = wprox.Grid.from_density(lambda x: torch.exp(-9 * x.square().sum(-1)), (128, 128), SQUARE)
    point = torch.zeros(192, 192, dtype=torch.float64)
    point[10, 50] = 1
    for name, initial, gamma in (("exp(−9|x|²)", slope, 0.004), ("a point", wprox.Grid(point, SQUARE), 0.002)):
        solver = wprox.SinkhornProx()
        trajectory, wall, cpu = timed(lambda s=solver, i=initial, g=gamma: wprox.jko(wprox.Entropy(), s, i, g, 1))
        (step,) = trajectory.steps
        print(
            f"{name:12} log domain: {step.log_domain}  {step.iterations} iterations  {wall:.2f} s wall  {cpu:.2f} s cpu"
        )


def aggregation_table() -> None:
    print("\nAggregation–diffusion at 256² against the porous medium step, 3 steps each")
    initial = wprox.Grid.from_density(
        lambda x: (
            torch.exp(-(x - 0.4).square().sum(-1) / 0.02)
            + 0.5 * torch.exp(-(x - x.new_tensor([0.7, 0.75])).square().sum(-1) / 0.01)
        ),
        (256, 256),
        SQUARE,
    )
    diffusion = 0.02 * wprox.PorousMedium(2.0)
    attraction = wprox.InteractionEnergy(lambda z: -0.2 * torch.exp(-z.square().sum(-1) / (2 * 0.15**2)))
    base = math.nan
    for name, functional in (("porous medium", diffusion), ("aggregation", diffusion + attraction)):
        solver = wprox.SinkhornProx(blur=1.2 / 128)
        trajectory, wall, cpu = timed(lambda f=functional, s=solver: wprox.jko(f, s, initial, 5e-3, 3))
        base = cpu if math.isnan(base) else base
        print(
            f"{name:14} {iterations(trajectory):4d} iterations  {wall / 3:.2f} s wall, {cpu / 3:.2f} s cpu a step  "
            f"ratio {cpu / base:.2f}"
        )


def crowd_table() -> None:
    print("\nCrowd motion through a door, 90 × 60 cells with walls, 27 steps")
    x, y = torch.meshgrid((torch.arange(90) + 0.5) / 10, (torch.arange(60) + 0.5) / 10, indexing="ij")
    walls = ((x - 6.1).abs() < 0.2) & ((y - 3).abs() > 0.4)
    crowd = wprox.Grid.from_density(
        lambda x: ((x[:, 0] < 3) & ((x[:, 1] - 3).abs() < 2)).double(), (90, 60), [(0.0, 9.0), (0.0, 6.0)], walls
    )
    bound = float(crowd.density.max()) / 0.8
    door = torch.tensor([6.1, 3.0], dtype=torch.float64)
    way = wprox.PotentialEnergy(lambda x: torch.where(x[:, 0] < 6.1, (x - door).norm(dim=1), 6.1 - x[:, 0]))
    solver = wprox.SinkhornProx(blur=0.25, heat_steps=20, tol=1e-5)
    trajectory, wall, cpu = timed(lambda: wprox.jko(way + wprox.Congestion(bound), solver, crowd, 0.25, 27))
    over = max(float(rho.density.max()) for rho in trajectory.measures) / bound - 1
    drift = max(abs(float(rho.mass.sum()) - 1) for rho in trajectory.measures)
    inside = max(float(rho.mass[walls].sum()) for rho in trajectory.measures)
    print(
        f"density over its bound by {over:.1e} (relative)  mass off by {drift:.1e}  mass inside walls {inside:.1e}  "
        f"{iterations(trajectory)} iterations  {wall:.1f} s wall  {cpu:.1f} s cpu"
    )


def main() -> None:
    quick = "--quick" in sys.argv[1:]
    print(f"{os.cpu_count()} cores, {torch.get_num_threads()} thread(s), torch {torch.__version__}, float64")
    porous_medium_table(quick)
    fokker_planck_table()
    heat_table()
    underflow_table()
    aggregation_table()
    crowd_table()


if __name__ == "__main__":
    main()
