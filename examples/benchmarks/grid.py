"""Errors and times of SinkhornProx on equations with exact solutions. Run: python examples/benchmarks/grid.py [--quick]

Every number in docs/grids.md comes from here. `--quick` leaves out what takes more than a few seconds.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable

import torch
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

import wprox
from wprox.solvers.grid.gibbs import Kernel

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


def debiased_table() -> None:
    """What `tol` determines of a step with debias="sinkhorn" where F has no entropy, KL or power in it."""
    print(
        "\nOne step with debias='sinkhorn' and F without entropy, 16², γ = 0.01, tol=1e-6: L1 distance to tol=1e-8, and"
    )
    print("that after a blur; L1 distance to the step with debias='entropy'")
    rho = wprox.Grid.from_density(
        lambda x: torch.exp(-20 * (x - x.new_tensor([0.35, 0.6])).square().sum(-1)) + 0.05, (16, 16), SQUARE
    )
    potential = wprox.PotentialEnergy(lambda x: 3 * (x - 0.5).square().sum(-1) + x[:, 0] * x[:, 1])
    cases = {
        "potential": potential,
        "congestion": potential + wprox.Congestion(2.5),
        "interaction": wprox.InteractionEnergy(lambda z: 2 * z.square().sum(-1)),
    }
    for cells in (1, 2):
        blur = cells / 16
        gibbs = (-torch.cdist(rho.points, rho.points).square() / (2 * blur**2)).exp()
        gibbs = gibbs / gibbs.sum(0)
        for name, functional in cases.items():
            coarse, fine, other = (
                wprox.SinkhornProx(blur, debias, tol, 8000).step(functional, rho, 0.01)
                for debias, tol in (("sinkhorn", 1e-6), ("sinkhorn", 1e-8), ("entropy", 1e-6))
            )
            gap = coarse.measure.weights - fine.measure.weights
            print(
                f"{name:11} blur {cells} cells  {coarse.iterations:4d} iterations, converged: {coarse.converged}  L1 "
                f"{float(gap.abs().sum()):.1e}, blurred {float((gibbs @ gap).abs().sum()):.1e} (the finer one "
                f"converged: {fine.converged})  to entropy {distance(coarse.measure, other.measure.weights):.3f}"
            )


def walls_table() -> None:
    """Among walls against the Gaussian kernel, by a wall that is not in the way: one cell in an empty corner."""
    print("\nAmong walls and without, 64², one step: L1 distance, and the ratio of the transport costs")
    walls = torch.zeros(64, 64, dtype=torch.bool)
    walls[0, -1] = True
    free, walled = (
        wprox.Grid.from_density(
            lambda x: torch.exp(-30 * (x - x.new_tensor([0.4, 0.55])).square().sum(-1)), (64, 64), SQUARE, mask
        )
        for mask in (None, walls)
    )
    drift = wprox.PotentialEnergy(lambda x: -x[:, 0])
    cases = {"entropy": (wprox.Entropy(), (1e-3, 1e-2)), "drift": (drift, (1e-2, 1e-1))}
    cases["porous medium"] = wprox.PorousMedium(2.0), (1e-4, 1e-3)
    for name, (functional, step_sizes) in cases.items():
        for gamma in step_sizes:
            for cells, heat_steps in ((1, None), (1, 10), (3, None), (3, 40)):
                exact = wprox.SinkhornProx(cells / 64).step(functional, free, gamma)
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    step = wprox.SinkhornProx(cells / 64, heat_steps=heat_steps).step(functional, walled, gamma)
                print(
                    f"{name:13} γ {gamma:g}  blur {cells} cells, heat_steps={heat_steps}  moves of "
                    f"{math.sqrt(float(exact.transport_cost)) * 64 / cells:.2f} blurs  "
                    f"L1 {float((exact.measure.mass - step.measure.mass).abs().sum()):.4f}  "
                    f"cost {float(step.transport_cost / exact.transport_cost):.2f}  warned: {bool(caught)}"
                )


def geodesic(walls: Tensor) -> Tensor:
    """Distances around walls between the free cells, (n, n), in cells: shortest paths over the corners of walls."""
    around = torch.nn.functional.pad(walls, (1, 1, 1, 1)).double()
    corners = torch.nn.functional.avg_pool2d(around[None, None], 2, 1)[0, 0] == 0.25  # of one wall in four cells
    nodes = torch.cat(((~walls).nonzero() + 0.5, corners.nonzero().double()))
    lengths = torch.cdist(nodes, nodes)
    on_the_way = torch.linspace(0, 1, 200, dtype=torch.float64)[1:-1, None]
    for row, start in zip(lengths, nodes, strict=True):
        points = start + (nodes[:, None] - start) * on_the_way
        cell = points.floor().minimum(points.new_tensor(walls.shape) - 1)
        inside = (points - cell - 0.5).abs().amax(-1) < 0.5 - 1e-6  # and not on a face
        row[(walls[tuple(cell.long().unbind(-1))] & inside).any(1)] = 0  # no edge
    n = int((~walls).sum())
    return torch.from_numpy(shortest_path(lengths.numpy(), directed=False))[:n, :n]


class GeodesicKernel(Kernel):
    """exp(−d²/(2 blur²)) with exact distances d, as one dense matrix."""

    reaches_everywhere = True

    def __init__(self, distances: Tensor, blur: float) -> None:
        self.logarithm = -distances.square() / (2 * blur**2)
        self.matrix = self.logarithm.exp()

    def apply(self, field: Tensor) -> Tensor:
        return self.matrix @ field

    def log_apply(self, log_field: Tensor) -> Tensor:
        return torch.logsumexp(self.logarithm + log_field, 1)


def geodesic_table() -> None:
    """Steps around walls against those with the Gibbs kernel of the exact distances."""
    print(
        "\nA crowd walks γ cells around a wall, 28 × 24 cells: L1 distance to the step with exp(−d²/(2 blur²)) of the"
    )
    print("exact distance d around walls, and the ratio of the transport costs")
    x, y = torch.meshgrid(torch.arange(28) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    obstacles = {
        "door": ((x - 14).abs() < 1) & ((y - 12).abs() > 2),
        "pillar": (x - 14).square() + (y - 12).square() < 16,
    }
    for name, walls in obstacles.items():
        distances = geodesic(walls)
        rho = wprox.Grid.from_density(
            lambda x: torch.exp(-(x - x.new_tensor([10.0, 14.0])).square().sum(-1) / 18),
            (28, 24),
            [(0.0, 28.0), (0.0, 24.0)],
            walls,
        )
        to_exit = distances[int((rho.points - torch.tensor([20.0, 12.0])).norm(dim=1).argmin())]
        way = wprox.PotentialEnergy(lambda x, d=to_exit: d) + wprox.Congestion(1.2 * float(rho.density.max()))
        for blur, moves in ((1.0, 2), (1.0, 5), (2.0, 1), (2.0, 2), (2.0, 5)):
            solver = wprox.SinkhornProx(blur)
            solver._kernel = rho, blur, GeodesicKernel(distances, blur)
            exact = solver.step(way, rho, moves * blur)
            row = f"{name:6} blur {blur:g} cells, moves of up to {moves} blurs "
            for heat_steps in (None, 10, 40):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    step = wprox.SinkhornProx(blur, heat_steps=heat_steps).step(way, rho, moves * blur)
                row += (
                    f"  heat_steps={heat_steps}: L1 {distance(step.measure, exact.measure.weights):.3f}, cost "
                    f"{float(step.transport_cost / exact.transport_cost):.2f}"
                )
            print(row)


def corridor_table() -> None:
    print("\nA corridor one cell wide with four bends against the same corridor unrolled: drift and a little entropy")
    cells, corner = [], (1, 1)
    for step, count in (((0, 1), 14), ((1, 0), 8), ((0, -1), 9), ((1, 0), 7), ((0, 1), 14)):
        for _ in range(count):
            cells.append(corner)
            corner = (corner[0] + step[0], corner[1] + step[1])
    walls = torch.ones(22, 22, dtype=torch.bool)
    walls[tuple(torch.tensor(cells).mT)] = False
    grid = wprox.Grid((~walls).double(), [(0.0, 22.0)] * 2, walls)
    along = torch.tensor([cells.index((int(x), int(y))) for x, y in grid.points.tolist()])
    line = wprox.Grid.from_density(lambda x: torch.exp(-(x[:, 0] - 12.5).square() / 18), 52, [(0.0, 52.0)])
    bent = wprox.PotentialEnergy(lambda x: -along.double()) + 0.3 * wprox.Entropy()
    straight = wprox.PotentialEnergy(lambda x: -x[:, 0]) + 0.3 * wprox.Entropy()
    for blur in (1.0, 2.0):
        for gamma in (1.0, 3.0, 8.0):
            solver = wprox.SinkhornProx(blur)
            step = solver.step(bent, grid.with_weights(line.weights[along]), gamma)
            exact = solver.step(straight, line, gamma)
            moved = float(step.measure.weights @ along.double() - line.weights @ torch.arange(52).double())
            print(
                f"blur {blur:g} cells, a drift by {gamma:g}: mass moved by {moved:.2f}  "
                f"L1 {distance(exact.measure, torch.zeros(52).double().scatter(0, along, step.measure.weights)):.3f}"
            )


class Squares(wprox.Functional):
    """c Σ (∫ φ_i dρ − t_i)²: coupled over any distance, and known to the solver by its value only."""

    def __init__(self, strength: float, count: int) -> None:
        waves = (lambda x: x[:, 0], lambda x: x[:, 0].square(), lambda x: torch.sin(6 * x[:, 0]))
        self.strength, self.terms = strength, list(zip(waves, (0.2, 0.4, 0.9), strict=True))[:count]

    def __call__(self, rho: wprox.Measure) -> Tensor:
        return self.strength * sum((rho.integrate(wave) - target).square() for wave, target in self.terms)


def cost_table() -> None:
    """The transport cost of steps, an upper bound of W₂², against W₂²."""
    print("\nOne step at 20², γ = 0.02 and blur of one cell: transport cost over W₂², from three starts")
    starts = {
        "a Gaussian": lambda x: torch.exp(-30 * (x - x.new_tensor([0.4, 0.55])).square().sum(-1)),
        "two": lambda x: (
            torch.exp(-60 * (x - x.new_tensor([0.25, 0.3])).square().sum(-1))
            + torch.exp(-60 * (x - x.new_tensor([0.7, 0.75])).square().sum(-1))
        ),
        "a ring": lambda x: torch.exp(-400 * ((x - 0.5).square().sum(-1) - 0.08).square()),
    }
    functionals = {
        "entropy": wprox.Entropy(),
        "porous medium": wprox.PorousMedium(2.0),
        "bent potential": wprox.PotentialEnergy(lambda x: 8 * (x[:, 1] - x[:, 0].square()).square() + x[:, 0]),
        "KL": wprox.KL(lambda x: -20 * (x[:, 0] - x[:, 1]).square() - 4 * (x - 0.5).square().sum(-1)),
        "interaction": wprox.InteractionEnergy(lambda z: 4 * z.square().sum(-1)) + 0.2 * wprox.Entropy(),
        "congestion": wprox.PotentialEnergy(lambda x: 4 * (x - 0.5).norm(dim=1)) + wprox.Congestion(4.0),
    }
    ratios = []
    for name, functional in functionals.items():
        row = f"{name:14}"
        for density in starts.values():
            rho = wprox.Grid.from_density(density, (20, 20), SQUARE)
            step = wprox.SinkhornProx().step(functional, rho, 0.02)
            ratios.append(float(step.transport_cost) / float(wprox.metrics.w2(rho, step.measure)) ** 2)
            row += f"  {ratios[-1]:.3f}"
        print(row)
    print(f"from {min(ratios):.2f} to {max(ratios):.2f}, {torch.tensor(ratios).median():.2f} in the median")


def coupled_table() -> None:
    print("\nCustom functionals: squares of integrals with a factor c that compete, one step at 24², 2,000 iterations")
    rho = wprox.Grid.from_density(
        lambda x: torch.exp(-30 * (x - x.new_tensor([0.4, 0.55])).square().sum(-1)), (24, 24), SQUARE
    )
    for count in (1, 3):
        for entropy in (0.1, 0.0):
            for strength in (0.1, 1.0, 10.0):
                row = f"{count} square(s), {entropy} entropy, γ c = {strength:4}:"
                for gamma in (0.02, 0.1, 1.0):
                    functional = Squares(strength / gamma, count) + entropy * wprox.Entropy()
                    step = wprox.SinkhornProx().step(functional, rho, gamma)
                    row += f"  γ {gamma:g} {step.iterations} iterations" + ("" if step.converged else " (not settled)")
                print(row)


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
            f"{name:12} log domain: {step.state.log_domain}  {step.iterations} iterations  "
            f"{wall:.2f} s wall  {cpu:.2f} s cpu"
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
    solver = wprox.SinkhornProx(blur=0.25, tol=1e-5)
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
    debiased_table()
    heat_table()
    underflow_table()
    aggregation_table()
    crowd_table()
    walls_table()
    geodesic_table()
    corridor_table()
    coupled_table()
    cost_table()


if __name__ == "__main__":
    main()
