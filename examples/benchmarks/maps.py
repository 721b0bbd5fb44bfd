"""Which map? Every map of NeuralProx × densities: likelihood, invertibility, optimality and time.

    python examples/benchmarks/maps.py [--maps spline convex] [--data two_moons mixture_10] [--seconds 120]
    python examples/benchmarks/maps.py --iterations 50 --rows 2000 --data two_moons     # a quick look

A flow of `--blocks` JKO steps is trained one after the other, then all together for a third of the time; `--seconds`
become iterations by the measured time of one. Densities: the planar set, Gaussian mixtures in 6, 10 and 32 dimensions,
and the digits, whose NLL is in bits a pixel and which have no KL. Columns:

    seconds      of training
    NLL, KL      over test points, KL = NLL − the entropy over the same points; "greedy" is the KL before joint training
    mass         the integral of exp(log_prob) over a grid, for planar densities
    round trip   the largest |x − T⁻¹(T(x))| over 1,000 test points, in float64 and in float32
    cost/W₂²     of the first JKO step: E|T(x) − x|² over the exact W₂² between the 2,000 points and their images
    ε            the first-order error of the last JKO step, before joint training, by a Stein critic
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

import wprox
from wprox import datasets
from wprox.maps.base import apply_in_batches
from wprox.solvers.neural import MAPS, map_factory
from wprox.stein import stein_residual

JOINT = 1 / 3  # of the time
MATCHING = 3  # iterations of flow matching, which cost a tenth, for one of the JKO objective; for maps that are flows


class Mixture:
    """Eight Gaussians of unequal weights and widths around random centres."""

    def __init__(self, dim: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = 2 * torch.randn(8, dim, generator=generator, dtype=torch.float64)
        scales = 0.3 + 0.7 * torch.rand(8, dim, generator=generator, dtype=torch.float64)
        weights = torch.rand(8, generator=generator, dtype=torch.float64) + 0.5
        self.law = torch.distributions.MixtureSameFamily(
            torch.distributions.Categorical(weights),
            torch.distributions.Independent(torch.distributions.Normal(centres, scales), 1),
        )

    def sample(self, n: int, seed: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.law.sample((n,))

    def log_prob(self, x: Tensor) -> Tensor:
        return self.law.log_prob(x)


def densities() -> dict:
    return datasets.planar() | {f"mixture_{dim}": Mixture(dim) for dim in (6, 10, 32)} | {"digits": None}


def rows_of(name: str, density, rows: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Training, held-out and test rows."""
    if density is not None:
        return density.sample(rows, seed), density.sample(5000, seed + 1), density.sample(10_000, seed + 2)
    x = datasets.digits()[torch.randperm(1797, generator=torch.Generator().manual_seed(seed))]
    return x[:1300], x[1300:1500], x[1500:]


def iteration_seconds(map: wprox.TransportMap, batch_size: int, least: float = 0.5) -> float:
    """Of one gradient step of the JKO objective."""
    map = map.train()
    with torch.no_grad():  # away from the identity, where random series are short
        for parameter in map.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    x = torch.randn(batch_size, map.dim)

    def step() -> None:
        y, log_det = map(x)
        (y.square().sum(1) - log_det).mean().backward()

    step()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < least:
        step()
        calls += 1
    return (time.perf_counter() - start) / calls


def optimality(points: Tensor, images: Tensor, n: int = 2000) -> float:
    """E|T(x) − x|² / W₂² between the first n points and their images."""
    points, images = points[:n].double(), images[:n].double()
    cost = float((points - images).square().sum(1).mean())
    return cost / float(wprox.metrics.w2(wprox.Particles(points), wprox.Particles(images), 10**7)) ** 2


def round_trip(flow: wprox.JKOFlow, z: Tensor) -> float:
    """In the coordinates that the blocks see; infinite where an inverse is not found."""
    map = wprox.ComposedMap(flow.blocks_).to(z.dtype)
    try:
        with torch.no_grad():
            return float((map.inverse(map(z)[0]) - z).abs().max())
    except wprox.InverseError:
        return math.inf


def grid_mass(flow: wprox.JKOFlow, density: datasets.PlanarDensity, size: int = 800) -> float:
    axes, cell = [], 1.0
    for low, high in density.bounds:
        margin = 0.25 * (high - low)
        axes.append(torch.linspace(low - margin, high + margin, size, dtype=torch.float64))
        cell *= float(axes[-1][1] - axes[-1][0])
    return float(flow.log_prob(torch.cartesian_prod(*axes)).exp().sum()) * cell


def run(map: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    density = densities()[name]
    train, held_out, test = rows_of(name, density, arguments.rows, arguments.seed)
    dim, blocks = train.shape[1], arguments.blocks
    options = arguments.map_options.get(map, {})
    batch_size = 1024 if dim <= 8 else 256
    if arguments.iterations:
        iterations, joint = arguments.iterations, arguments.iterations
    else:  # looks at the held-out rows and pushes take about a fifth
        torch.manual_seed(arguments.seed)
        each = iteration_seconds(map_factory(map, options)(dim), batch_size) / 0.8
        iterations = max(1, int((1 - JOINT) * arguments.seconds / (blocks * each)))
        joint = max(1, int(JOINT * arguments.seconds / (blocks * 2 * each)))  # batches are twice as large
    data = {"integer": True, "bounds": (0, 16), "drop_constant": True} if density is None else {}
    shared = {"batch_size": batch_size, "seed": arguments.seed}
    flow = wprox.JKOFlow(
        map,
        options or None,
        step_sizes=arguments.step_size,
        n_blocks=blocks,
        tol=-math.inf,
        iterations=iterations,
        flow_matching=min(1000, MATCHING * iterations) if map == "ode" else 0,
        patience=max(8, iterations // 50),
        fine_tune=False,
        **shared,
        **data,
    )
    start = time.perf_counter()
    flow.fit(train, validation=held_out)
    seconds = time.perf_counter() - start

    def score(log_prob: Callable[[Tensor], Tensor]) -> float:
        return -float(log_prob(test).mean())

    entropy = score(density.log_prob) if density is not None else math.nan
    # with the noise of dequantisation: midpoints of cells have no density, and ε would measure that
    path = [flow.preprocessing_.forward(test, torch.Generator().manual_seed(arguments.seed))[0].float()]
    for block in flow.blocks_:
        path.append(apply_in_batches(block, path[-1])[0])
    path = [points.double() for points in path]
    greedy = score(flow.log_prob)
    result = {
        "greedy": greedy - entropy,
        "optimality": optimality(path[0], path[1]),
        "residual": stein_residual(path[-2], path[-1], lambda x: x, arguments.step_size, arguments.seed).estimate,
    }
    start = time.perf_counter()
    if blocks > 1:
        train_together(flow, train, held_out, joint, shared)
    result["seconds"] = seconds + time.perf_counter() - start
    result["nll"] = score(flow.log_prob) if density is not None else score(flow.log_prob) / (64 * math.log(2))
    result["kl"] = score(flow.log_prob) - entropy
    result["round_trip"] = round_trip(flow, path[0][:1000].double())
    result["round_trip_float32"] = round_trip(flow, path[0][:1000].float())
    # an ODE is smooth, and a row of it costs a hundred times that of a spline
    result["mass"] = grid_mass(flow, density, 200 if map == "ode" else 800) if dim == 2 else math.nan
    result["iterations"] = iterations
    return result


def train_together(flow: wprox.JKOFlow, train: Tensor, held_out: Tensor, iterations: int, shared: dict) -> None:
    """The joint training of JKOFlow, after its greedy part has been looked at."""
    generator = torch.Generator().manual_seed(shared["seed"])
    copies = math.ceil(10_000 / len(train)) if flow.preprocessing_.is_random else 1
    points, validation = (
        wprox.Particles(flow.preprocessing_.forward(rows, generator)[0].float())
        for rows in (train.repeat(copies, 1), held_out.repeat(copies, 1))
    )
    d = points.dim
    solver = wprox.NeuralProx(
        iterations=iterations,
        batch_size=2 * shared["batch_size"],
        learning_rate=3e-3 if d <= 8 else 3e-4,
        patience=max(8, iterations // 50),
        seed=shared["seed"],
    )
    target = wprox.KL(wprox.Gaussian(torch.zeros(d), torch.eye(d)))
    map = wprox.ComposedMap(flow.blocks_).float()
    if not torch.isfinite(apply_in_batches(map, validation.points)[1]).all():
        return
    solver.fine_tune(map, target, points, validation)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", nargs="+", choices=sorted(MAPS), default=sorted(MAPS))
    parser.add_argument("--data", nargs="+", choices=list(densities()), default=list(densities()), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=120, help="of training a map on a density")
    parser.add_argument("--iterations", type=int, help="a block and of joint training, in place of --seconds")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--step-size", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--map-options", type=json.loads, default={}, help='as JSON: {"convex": {"pieces": 128}}')
    parser.add_argument("--out", help="a JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    effort = f"{arguments.iterations} iterations" if arguments.iterations else f"{arguments.seconds:g} s"
    print(f"{arguments.threads} threads, {arguments.blocks} blocks, γ = {arguments.step_size:g}, {effort}")
    print(
        f"{'density':<16}{'map':<10}{'seconds':>8}{'NLL':>9}{'KL':>9}{'greedy':>9}{'mass':>8}{'round trip':>12}"
        f"{'float32':>9}{'cost/W₂²':>10}{'ε':>8}{'iterations':>12}"
    )
    results: dict[str, dict] = {}
    for name in arguments.data:
        for map in arguments.maps:
            r = results.setdefault(name, {})[map] = run(map, name, arguments)
            print(
                f"{name:<16}{map:<10}{r['seconds']:>8.1f}{r['nll']:>9.4f}{r['kl']:>9.4f}{r['greedy']:>9.4f}"
                f"{r['mass']:>8.4f}{r['round_trip']:>12.1e}{r['round_trip_float32']:>9.1e}{r['optimality']:>10.3f}"
                f"{r['residual']:>8.3f}{r['iterations']:>12d}",
                flush=True,
            )
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(arguments), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
