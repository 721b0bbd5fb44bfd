"""JKOFlow(map="ode") against plain flow matching of the same network in the same time, and what its start saves.

    python examples/benchmarks/flow_matching.py [NAME ...] [--seconds 180] [--out results.json]
    python examples/benchmarks/flow_matching.py --warm-start [NAME ...] [--seconds 20] [--step-size 1]

Densities: the planar set, and Gaussian mixtures in 6 and 10 dimensions. Times are CPU seconds of one thread, so that
other work on the machine hardly counts.

The flow has `--blocks` blocks of the given step sizes, each started by flow matching. Plain flow matching regresses a
network of one block's shape, and one widened to the parameters of all blocks, on straight lines from the data to
N(0, I), for as long as the flow took to fit, pushes and looks included, and for as long again with each further
learning rate, of which the best on the test points counts; all are then evaluated adaptively. KL is the mean of
log p − log q over the same test points. "error" is the mean difference of log q between the default tolerance and one a
thousand times smaller, "mass" the integral of the flow's density over a grid.

With --warm-start, a JKO step from the data is trained for `--seconds` without flow matching, at two learning rates, and
again with it for growing parts of that time, each with the whole schedule of learning rates and, as always, with more
steps where the discretisation is too coarse, which takes its own time. Printed are the held-out objectives, evaluated
adaptively, and the least part of a cold start's time after which a start by flow matching has come as far.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from unittest import mock

import torch
from maps import Mixture, cpu_seconds, grid_mass

import wprox
from wprox import datasets
from wprox.maps.base import apply_in_batches
from wprox.solvers.neural.flow_matching import relaxation
from wprox.solvers.neural.training import train

SHARE = 0.2  # of the time for flow matching, in each block
START_SHARE = 0.5  # likewise, of a start that is held against a cold one
PARTS = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)  # of a cold start's time
RATES = (5e-3, 2e-2)  # of cold starts: what NeuralProx and JKOFlow take by default; the others take the last


def densities() -> dict:
    return datasets.planar() | {"mixture_6": Mixture(6), "mixture_10": Mixture(10)}


def network(dim: int, options: dict) -> wprox.ODEMap:
    torch.manual_seed(0)
    return wprox.ODEMap(dim, **options)


def costs(dim: int, batch: int, options: dict) -> tuple[float, float]:
    """CPU seconds of an iteration of flow matching, and of the JKO objective."""
    map, x, t = network(dim, options).train(), torch.randn(batch, dim), torch.rand(batch)
    lines = relaxation(wprox.KL(wprox.Gaussian(torch.zeros(dim), torch.eye(dim))), 1.0, x)
    weights = torch.full((batch,), 1 / batch)
    optimizer = torch.optim.AdamW(map.parameters(), lr=0.0, fused=True)

    def matching() -> None:
        y = lines.draw(x)
        target = lines.velocity(x, y, t, weights)
        (map.velocity(torch.lerp(x, y, t[:, None]), t) - target).square().sum(1).mean().backward()
        optimizer.step()

    def objective() -> None:
        y, log_det = map(x)
        value, penalty = (y.square().sum(1) - log_det).mean(), map.penalty()
        (value if penalty is None else value + penalty).backward()
        optimizer.step()

    return cpu_seconds(matching), cpu_seconds(objective)


def flow_matching(x: torch.Tensor, map: wprox.ODEMap, seconds: float, batch: int, rate: float) -> tuple:
    """Adam with the schedule of NeuralProx, by the clock of the processor."""
    mean, std = x.mean(0), x.std(0)
    z = ((x - mean) / std).float()
    optimizer = torch.optim.AdamW(map.parameters(), lr=rate, weight_decay=0.0, fused=True)
    start, iteration = time.process_time(), 0
    while (part := (time.process_time() - start) / seconds) < 1:
        factor = 0.1 + 0.9 * part / 0.05 if part < 0.05 else 0.5 * (1 + math.cos(math.pi * (part - 0.05) / 0.95))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        x0 = z[torch.randint(len(z), (batch,))]
        x1, t = torch.randn_like(x0), torch.rand(batch)
        loss = (map.velocity(torch.lerp(x0, x1, t[:, None]), t) - (x1 - x0)).square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(map.parameters(), 5.0)
        optimizer.step()
        iteration += 1
    map = map.eval().double()

    def log_prob(x: torch.Tensor) -> torch.Tensor:
        y, log_det = apply_in_batches(map, (x - mean) / std)
        return -0.5 * y.square().sum(1) - 0.5 * y.shape[1] * math.log(2 * math.pi) + log_det - std.log().sum()

    return log_prob, iteration


def run(density, dim: int, arguments: argparse.Namespace) -> dict:
    train, test = density.sample(arguments.rows, 0), density.sample(arguments.test_rows, 1)
    options, blocks, batch = arguments.map_options, arguments.blocks, arguments.batch
    match_cost, cost = costs(dim, batch, options)
    each = 0.85 * arguments.seconds / blocks  # the rest goes to looks and pushes
    fine_tune = 0.3 if blocks > 1 else 0.0
    match = max(1, int(arguments.share * each / match_cost))
    iterations = max(1, int((1 - arguments.share - fine_tune) * each / cost))
    joint = max(1, int(fine_tune * each / cost))  # an iteration of it trains every block
    flow = wprox.JKOFlow(
        map="ode",
        map_options=options,
        n_blocks=blocks,
        tol=-math.inf,
        step_sizes=arguments.step_size,
        flow_matching=match,
        iterations=iterations,
        batch_size=batch,
        patience=1000,
        fine_tune=blocks > 1,
        fine_tune_iterations=joint,
        fine_tune_batch_size=batch,
        **arguments.options,
    )
    start = time.process_time()
    flow.fit(train[5000:], validation=train[:5000])
    seconds = time.process_time() - start
    truth = density.log_prob(test)
    start = time.process_time()
    scores = flow.log_prob(test)
    evaluation = time.process_time() - start
    result = {
        "seconds": seconds,
        "kl": float((truth - scores).mean()),
        "iterations": (match, *(stage["iterations"] for stage in flow.history_)),
        "steps": [block.steps for block in flow.blocks_],
        "greedy": [stage["held_out_nll"] for stage in flow.history_],
        "evaluation": evaluation,
    }
    if dim == 2:
        result["mass"], _ = grid_mass(flow, density, (250,))
    for block in flow.blocks_:
        block.tolerance = 1e-9
    result["error"] = float((flow.log_prob(test[:1000]) - scores[:1000]).mean().abs())
    parameters = sum(p.numel() for block in flow.blocks_ for p in block.parameters())
    hidden = list(flow.blocks_[0].config["hidden"])
    wide = dict(options)
    while sum(p.numel() for p in network(dim, wide).parameters()) < parameters:
        hidden = [width + 4 for width in hidden]
        wide["hidden"] = hidden
    rivals = {"matching": options} | ({"matching_wide": wide} if blocks > 1 else {})
    for name, its in rivals.items():
        found = {}
        for rate in arguments.matching_rates:
            log_prob, result[f"{name}_iterations"] = flow_matching(train, network(dim, its), seconds, batch, rate)
            found[rate] = float((truth - log_prob(test)).mean())
        result[f"{name}_rates"], result[f"{name}_kl"] = found, min(found.values())
    return result


def warm_start(density, dim: int, arguments: argparse.Namespace) -> dict:
    x = density.sample(arguments.rows, 0)
    z = ((x - x.mean(0)) / x.std(0)).float()
    held_out, rho = wprox.Particles(z[:5000]), wprox.Particles(z[5000:])
    target = wprox.KL(wprox.Gaussian(torch.zeros(dim), torch.eye(dim)))
    match_cost, cost = costs(dim, arguments.batch, arguments.map_options)

    def objective(seconds: float, share: float, rate: float) -> tuple[float, float]:
        """The held-out objective, and the CPU seconds of training with its looks, without pushes and checks."""
        step_size = float(arguments.step_size)
        solver = wprox.NeuralProx(
            "ode",
            arguments.map_options,
            iterations=max(1, int((1 - share) * 0.9 * seconds / cost)),
            flow_matching=int(share * 0.9 * seconds / match_cost),
            batch_size=arguments.batch,
            learning_rate=rate,
            patience=1000,
        )
        used = 0.0

        def timed(*its):
            nonlocal used
            start = time.process_time()
            outcome = train(*its)
            used += time.process_time() - start
            return outcome

        with (
            mock.patch("wprox.solvers.neural.neural.train", timed),
            mock.patch("wprox.solvers.neural.flow_matching.train", timed),
        ):
            step = solver.step(target, rho, step_size, held_out=held_out)
        moved = (step.held_out.points - held_out.points).square().sum(1).mean()
        return float(target(step.held_out) + moved / (2 * step_size)), used

    result: dict = {"cold": {rate: objective(arguments.seconds, 0.0, rate) for rate in RATES}, "started": []}
    for part in PARTS:
        result["started"].append(objective(part * arguments.seconds, START_SHARE, RATES[-1]))
    return result


def warm_start_lines(result: dict) -> str:
    """A line a cold start: the least part of its time after which a start by flow matching is as good."""
    lines = []
    for rate, (cold, seconds) in result["cold"].items():
        parts = [used / seconds for value, used in result["started"] if value <= cold]
        reached = f"reached in {min(parts):.2f} of the time" if parts else "not reached"
        lines.append(f"cold, rate {rate:g}: {cold:.4f} in {seconds:.0f} s, {reached}")
    tries = ", ".join(f"{value:.4f} in {used:.0f} s" for value, used in result["started"])
    return "; ".join([*lines, f"started: {tries}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(densities())}; all by default")
    parser.add_argument("--warm-start", action="store_true", help="measure what the flow-matching start saves")
    parser.add_argument("--seconds", type=float, help="CPU seconds: 180, or 20 of a cold start")
    parser.add_argument("--rows", type=int, help="100,000, or 20,000 of a cold start")
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--step-size", type=json.loads, help="γ: a number, or a list with one a block; 100, or 1")
    parser.add_argument("--share", type=float, default=SHARE, help="of the time for flow matching")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument(
        "--matching-rates", type=float, nargs="+", default=[5e-3, 1.5e-2], help="plain flow matching's learning rates"
    )
    parser.add_argument("--map-options", type=json.loads, help="arguments of ODEMap, as JSON")
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of JKOFlow, as JSON")
    parser.add_argument("--out", help="a JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.seconds is None:
        arguments.seconds = 20.0 if arguments.warm_start else 180.0
    if arguments.rows is None:
        arguments.rows = 20_000 if arguments.warm_start else 100_000
    if arguments.step_size is None:
        arguments.step_size = 1.0 if arguments.warm_start else 100.0
    if arguments.map_options is None:
        arguments.map_options = {} if arguments.warm_start else {"steps": 6}
    print(f"{arguments.seconds:g} CPU s of one thread, γ = {arguments.step_size}, ODEMap({arguments.map_options})")
    results = {}
    for name in arguments.names or densities():
        density = densities()[name]
        dim = density.sample(1, 0).shape[1]
        if arguments.warm_start:
            r = results[name] = warm_start(density, dim, arguments)
            print(f"{name:<16} {warm_start_lines(r)}", flush=True)
        else:
            r = results[name] = run(density, dim, arguments)
            rivals = ", ".join(
                f"{key} {rate:g}: {kl:.4f}"
                for key in ("matching", "matching_wide")
                for rate, kl in r.get(f"{key}_rates", {}).items()
            )
            mass = f"mass {r['mass']:.4f}, " if "mass" in r else ""
            print(
                f"{name:<16} {r['seconds']:.0f} s: KL {r['kl']:.4f}, {rivals}, error {r['error']:.0e}, {mass}"
                f"evaluation {r['evaluation']:.0f} s, steps {r['steps']}, iterations {r['iterations']}, "
                f"matching {r['matching_iterations']}, NLL {[round(nll, 4) for nll in r['greedy']]}",
                flush=True,
            )
        if arguments.out:  # after every row, so that nothing is lost
            with open(arguments.out, "w", encoding="utf-8") as file:
                json.dump({"arguments": vars(arguments), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
