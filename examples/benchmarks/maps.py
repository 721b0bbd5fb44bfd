"""Which map? Every map of NeuralProx × densities: likelihood, invertibility, optimality and time.

    python examples/benchmarks/maps.py [--maps spline convex] [--data two_moons mixture_10] [--seconds 25] [--out FILE]
    python examples/benchmarks/maps.py --iterations 50 --rows 2000 --data two_moons     # a quick look
    python examples/benchmarks/maps.py --out FILE --table                               # FILE as Markdown

A flow of `--blocks` JKO steps is trained one after the other, then all together for a third of the time. The budget,
`--seconds`, is CPU time of one thread, which other work on the machine changes little; it becomes iterations by the
measured time of one. Rows are written to FILE one by one, and those that are there are not computed again. Densities:
the planar set, Gaussian mixtures in 6, 10 and 32 dimensions, and the digits, whose NLL is in bits a pixel and which
have no KL. Columns:

    CPU s        of training, with looks at the held-out rows and, for "ode", flow matching and refinements
    NLL, KL      over 10,000 test points (3,000 of "ode"), KL = NLL − the entropy over the same points; "greedy" is the
                 KL before joint training
    mass         the integral of exp(log_prob), for planar densities: the mean of two grids that are half a cell apart,
                 finer until they agree to 0.2 %; the script fails where it is not within 1 % of 1
    round trip   the largest |x − T⁻¹(T(x))| over 1,000 test points, in float64 and in float32
    cost/W₂²     of the first JKO step: E|T(x) − x|² over the exact W₂² between the 2,000 points and their images
    ε            the first-order error of the last JKO step, before joint training, by a Stein critic
    test s       CPU time of all these columns
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import wprox
from wprox import datasets
from wprox.maps.base import apply_in_batches
from wprox.maps.registry import MAPS, map_factory
from wprox.models.flow.settings import FlowSettings
from wprox.models.flow.training import train_together
from wprox.theory.stein import stein_residual

JOINT = 1 / 3  # of the time
HELD_OUT = 2000
LOOK_EVERY = 25  # iterations, as JKOFlow does
MATCHING = 3  # iterations of flow matching, which cost a tenth, for one of the JKO objective; for maps that are flows
GRIDS = (200, 400, 800)  # cells a side, for the mass
ODE_TEST_ROWS, ODE_GRIDS = 3000, (100, 200, 400)  # a row of an ODE costs up to a hundred times that of a spline


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
        return density.sample(rows, seed), density.sample(HELD_OUT, seed + 1), density.sample(10_000, seed + 2)
    x = datasets.digits()[torch.randperm(1797, generator=torch.Generator().manual_seed(seed))]
    return x[:1300], x[1300:1500], x[1500:]


def cpu_seconds(call: Callable[[], object], least: float = 0.5) -> float:
    """CPU time of one call, after a first one."""
    call()
    start, calls = time.process_time(), 0
    while time.process_time() - start < least:
        call()
        calls += 1
    return (time.process_time() - start) / calls


def iterations_for(seconds: float, map: wprox.TransportMap, batch_size: int, blocks: int, rows: int) -> tuple[int, int]:
    """Iterations a block, and of all together, that fit into the time with their looks and the pushes of the rows."""
    with torch.no_grad():  # away from the identity, where random series are short
        for parameter in map.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    x, held_out = torch.randn(batch_size, map.dim), torch.randn(HELD_OUT, map.dim)

    def step() -> None:
        y, log_det = map.train()(x)
        (y.square().sum(1) - log_det).mean().backward()

    def look() -> None:
        with map.discretised():
            apply_in_batches(map.eval(), held_out)

    looking = cpu_seconds(look)
    each, push = cpu_seconds(step) + looking / LOOK_EVERY, looking * rows / HELD_OUT
    matching = 1 + MATCHING / 10 if isinstance(map, wprox.ODEMap) else 1
    greedy = ((1 - JOINT) * seconds / blocks - push) / (each * matching)
    joint = JOINT * seconds / (blocks * (each + cpu_seconds(step)))  # batches are twice as large
    return max(LOOK_EVERY, int(greedy)), max(LOOK_EVERY, int(joint))


def optimality(points: Tensor, images: Tensor, n: int = 2000) -> float:
    """E|T(x) − x|² / W₂² between the first n points and their images."""
    points, images = points[:n].double(), images[:n].double()
    cost = float((points - images).square().sum(1).mean())
    return cost / float(wprox.metrics.w2(wprox.Particles(points), wprox.Particles(images), 10**7)) ** 2


def round_trip(flow: wprox.JKOFlow, z: Tensor) -> float:
    """In the coordinates that the blocks see; infinite where an inverse is not found."""
    map = copy.deepcopy(wprox.ComposedMap(flow.blocks_)).to(z.dtype)
    try:
        with torch.no_grad():
            return float((map.inverse(map(z)[0]) - z).abs().max())
    except wprox.InverseError:
        return math.inf


def grid_mass(flow: wprox.JKOFlow, density: datasets.PlanarDensity, sizes: Sequence[int]) -> tuple[float, int]:
    """∫ exp(log_prob) over the density's box and a quarter more on each side, and the cells a side that it took."""
    for size in sizes:
        parts = []
        for shift in (0.25, 0.75):
            axes, cell = [], 1.0
            for low, high in density.bounds:
                width = 1.5 * (high - low) / size
                axes.append(low - 0.25 * (high - low) + width * (torch.arange(size, dtype=torch.float64) + shift))
                cell *= width
            parts.append(float(flow.log_prob(torch.cartesian_prod(*axes)).exp().sum()) * cell)
        if abs(parts[0] - parts[1]) < 2e-3:
            break
    return sum(parts) / 2, size


def run(map: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    density = densities()[name]
    train, held_out, test = rows_of(name, density, arguments.rows, arguments.seed)
    if map == "ode":
        test = test[:ODE_TEST_ROWS]
    dim = datasets.digits().std(0).count_nonzero().item() if density is None else train.shape[1]
    blocks, options = arguments.blocks, arguments.map_options.get(map, {})
    batch_size = 1024 if dim <= 8 else 256
    if arguments.iterations:
        iterations, joint = arguments.iterations, arguments.iterations
    else:
        torch.manual_seed(arguments.seed)
        rows = arguments.rows if density is not None else 10_000  # repeated to about as many
        iterations, joint = iterations_for(arguments.seconds, map_factory(map, options)(dim), batch_size, blocks, rows)
    data = {"integer": True, "bounds": (0, 16), "drop_constant": True} if density is None else {}
    flow = wprox.JKOFlow(
        map,
        options or None,
        step_sizes=arguments.step_size,
        n_blocks=blocks,
        tol=-math.inf,
        iterations=iterations,
        batch_size=batch_size,
        flow_matching=min(1000, MATCHING * iterations) if map == "ode" else 0,
        patience=max(8, iterations // 50),
        fine_tune=False,
        fine_tune_iterations=joint,
        seed=arguments.seed,
        **data,
    )
    start = time.process_time()
    flow.fit(train, validation=held_out)
    seconds = time.process_time() - start

    def score(log_prob: Callable[[Tensor], Tensor]) -> float:
        return -float(log_prob(test).mean())

    start = time.process_time()
    entropy = score(density.log_prob) if density is not None else math.nan
    # with the noise of dequantisation: midpoints of cells have no density, and ε would measure that
    path = [flow.preprocessing_.forward(test, torch.Generator().manual_seed(arguments.seed))[0].float()]
    for block in flow.blocks_:
        path.append(apply_in_batches(block, path[-1])[0])
    path = [points.double() for points in path]
    result = {
        "greedy": score(flow.log_prob) - entropy,
        "optimality": optimality(path[0], path[1]),
        "residual": stein_residual(path[-2], path[-1], lambda x: x, arguments.step_size, arguments.seed).estimate,
    }
    tests, start = time.process_time() - start, time.process_time()
    if blocks > 1:
        settings = FlowSettings.of(flow.get_params(deep=False), flow._data.size)
        train_together(flow._trained, settings, flow._data)  # as `fit` would have done
    result["seconds"] = seconds + time.process_time() - start
    start = time.process_time()
    nats = score(flow.log_prob)
    result["nll"] = nats if density is not None else nats / (64 * math.log(2))
    result["kl"] = nats - entropy
    result["round_trip"] = round_trip(flow, path[0][:1000].double())
    result["round_trip_float32"] = round_trip(flow, path[0][:1000].float())
    result["mass"], result["grid"] = math.nan, 0
    if isinstance(density, datasets.PlanarDensity):
        result["mass"], result["grid"] = grid_mass(flow, density, ODE_GRIDS if map == "ode" else GRIDS)
    result["iterations"], result["joint"] = iterations, joint
    result["tests"] = tests + time.process_time() - start
    return result


HEADER = (
    f"{'density':<16}{'map':<10}{'CPU s':>7}{'NLL':>9}{'KL':>9}{'greedy':>9}{'mass':>8}{'round trip':>12}"
    f"{'float32':>9}{'cost/W₂²':>10}{'ε':>8}{'iterations':>12}{'test s':>8}"
)


def line(name: str, map: str, r: dict) -> str:
    return (
        f"{name:<16}{map:<10}{r['seconds']:>7.1f}{r['nll']:>9.4f}{r['kl']:>9.4f}{r['greedy']:>9.4f}"
        f"{r['mass']:>8.4f}{r['round_trip']:>12.1e}{r['round_trip_float32']:>9.1e}{r['optimality']:>10.3f}"
        f"{r['residual']:>8.3f}{r['iterations']:>12d}{r['tests']:>8.1f}"
    )


def table(results: dict) -> str:
    """Markdown: KL (of digits: bits a pixel) of each map, then a row a map with the worst over the densities."""
    maps = [map for map in MAPS if any(map in row for row in results.values())]
    lines = ["| KL, nats | " + " | ".join(maps) + " |", "| --- " * (1 + len(maps)) + "|"]
    for name, row in results.items():
        key = "nll" if name == "digits" else "kl"
        cells = [f"{row[map][key]:.4f}" if map in row else "" for map in maps]
        label = "digits, bits a pixel" if name == "digits" else name.replace("_", " ")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| over all densities | " + " | ".join(maps) + " |", lines[1]]

    def over(map: str, key: str) -> list[float]:
        return [row[map][key] for row in results.values() if map in row and not math.isnan(row[map][key])]

    def between(key: str, form: str) -> list[str]:
        return [f"{min(over(map, key)):{form}} to {max(over(map, key)):{form}}" for map in maps]

    worst = [f"{max(over(map, 'mass'), key=lambda mass: abs(mass - 1)):.4f}" for map in maps]
    for label, cells in (
        ("mass, the worst", worst),
        ("round trip, float64, the worst", [f"{max(over(map, 'round_trip')):.0e}" for map in maps]),
        ("round trip, float32, the worst", [f"{max(over(map, 'round_trip_float32')):.0e}" for map in maps]),
        ("cost/W₂² of the first step", between("optimality", ".3f")),
        ("ε of the last step", between("residual", ".2f")),
        ("CPU s of training", between("seconds", ".0f")),
        ("CPU s of testing", between("tests", ".0f")),
    ):
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def stored_results(path: Path | None, settings: dict | None) -> dict[str, dict]:
    """What the file holds by density and map; it must have been made with these settings, if they are given."""
    if path is None or not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    if settings is not None and stored["settings"] != settings:
        raise SystemExit(f"{path} was made with {stored['settings']}; give the same, or another file")
    return stored["results"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", nargs="+", choices=list(MAPS), default=list(MAPS))
    parser.add_argument("--data", nargs="+", choices=list(densities()), default=list(densities()), metavar="NAME")
    parser.add_argument("--seconds", type=float, default=25, help="of CPU time for training a map on a density")
    parser.add_argument("--iterations", type=int, help="a block and of joint training, in place of --seconds")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--step-size", type=float, default=1.0)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--map-options", type=json.loads, default={}, help='as JSON: {"convex": {"pieces": 128}}')
    parser.add_argument("--out", type=Path, help="a JSON file for the results, continued where it exists")
    parser.add_argument("--table", action="store_true", help="print the results in --out as Markdown, and stop")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.map_options) - set(MAPS)):
        parser.error(f"--map-options go by the name of a map, {list(MAPS)}; got {unknown}")
    settings = {name: value for name, value in vars(arguments).items() if name not in ("maps", "data", "out", "table")}
    results = stored_results(arguments.out, None if arguments.table else settings)
    if arguments.table:
        print(table(results))
        return
    torch.set_num_threads(1)
    effort = f"{arguments.iterations} iterations" if arguments.iterations else f"{arguments.seconds:g} CPU s"
    cells = [(map, name) for map in arguments.maps for name in arguments.data if map not in results.get(name, {})]
    print(
        f"one thread, {arguments.blocks} blocks, γ = {arguments.step_size:g}, {effort} a row, {len(cells)} rows to go"
    )
    print(HEADER)
    started = time.perf_counter()
    for done, (map, name) in enumerate(cells, 1):
        row = run(map, name, arguments)
        left = (time.perf_counter() - started) / done * (len(cells) - done) / 60
        print(line(name, map, row) + f"   {left:.0f} min to go", flush=True)
        results = stored_results(arguments.out, settings) or results  # another process may have written to it
        results.setdefault(name, {})[map] = row
        if arguments.out:
            ordered = {key: results[key] for key in densities() if key in results}
            text = json.dumps({"settings": settings, "results": ordered}, indent=2)
            part = arguments.out.with_suffix(f".{os.getpid()}")
            part.write_text(text, encoding="utf-8")
            part.replace(arguments.out)  # in one move: another process may be reading
    wrong = [f"{name} ({map})" for name, row in results.items() for map, r in row.items() if abs(r["mass"] - 1) > 0.01]
    if wrong:
        raise SystemExit(f"log_prob does not integrate to 1 on {', '.join(wrong)}")


if __name__ == "__main__":
    main()
