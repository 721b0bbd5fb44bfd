"""JKOFlow(map="ode") against plain flow matching of the same network at the same wall time.

    python examples/benchmarks/flow_matching.py [NAME ...] [--seconds 180] [--threads 2] [--out results.json]

Densities: the planar set, and Gaussian mixtures in 6 and 10 dimensions. Plain flow matching regresses a network of one
block's shape, and one widened to the parameters of all blocks, on straight lines from the data to N(0, I), for as long
as the flow took to train; both are then evaluated adaptively. KL is the mean of log p − log q over the same test
points. "error" is the mean difference of log q between the default tolerance and one a thousand times smaller.
"""

from __future__ import annotations

import argparse
import json
import math
import time

import torch
from maps import Mixture

import wprox
from wprox import datasets
from wprox.maps.base import apply_in_batches

SHARE = 0.35  # of the time for flow matching, in each block


def densities() -> dict:
    return datasets.planar() | {"mixture_6": Mixture(6), "mixture_10": Mixture(10)}


def network(dim: int, options: dict) -> wprox.ODEMap:
    torch.manual_seed(0)
    return wprox.ODEMap(dim, **options)


def milliseconds(f, least: float = 1.0) -> float:
    """The time of one call, averaged over `least` seconds after a first one."""
    f()
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < least:
        f()
        calls += 1
    return 1e3 * (time.perf_counter() - start) / calls


def iterations_for(seconds: float, dim: int, batch: int, options: dict, blocks: int, fine_tune: float) -> tuple:
    """Iterations of flow matching and of the JKO objective a block, and of fine-tuning, that fit into the time."""
    map, x, t = network(dim, options).train(), torch.randn(batch, dim), torch.rand(batch)

    def matching() -> None:
        map.velocity(x, t).square().mean().backward()

    def objective() -> None:
        y, log_det = map(x)
        (y.square().mean() - log_det.mean()).backward()

    match, train = milliseconds(matching), milliseconds(objective)
    each = 1e3 * 0.8 * seconds / blocks  # the rest goes to looks and pushes
    return (
        max(1, int(SHARE * each / match)),
        max(1, int((1 - SHARE - fine_tune) * each / train)),
        max(1, int(fine_tune * each / train)),  # an iteration of it trains every block
    )


def flow_matching(x: torch.Tensor, map: wprox.ODEMap, seconds: float, batch: int, rate: float) -> tuple:
    """Adam with the schedule of NeuralProx, by the clock."""
    mean, std = x.mean(0), x.std(0)
    z = ((x - mean) / std).float()
    optimizer = torch.optim.AdamW(map.parameters(), lr=rate, weight_decay=0.0)
    start, iteration = time.perf_counter(), 0
    while (part := (time.perf_counter() - start) / seconds) < 1:
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
    fine_tune = 0.35 if blocks > 1 else 0.0
    match, iterations, joint = iterations_for(arguments.seconds, dim, batch, options, blocks, fine_tune)
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
    start = time.perf_counter()
    flow.fit(train[5000:], validation=train[:5000])
    seconds = time.perf_counter() - start
    truth = density.log_prob(test)
    start = time.perf_counter()
    scores = flow.log_prob(test)
    evaluation = time.perf_counter() - start
    result = {
        "seconds": seconds,
        "kl": float((truth - scores).mean()),
        "iterations": (match, iterations, joint),
        "steps": [block.steps for block in flow.blocks_],
        "greedy": [stage["held_out_nll"] for stage in flow.history_],
        "evaluation": evaluation,
    }
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
        log_prob, result[f"{name}_iterations"] = flow_matching(
            train, network(dim, its), seconds, batch, arguments.matching_rate
        )
        result[f"{name}_kl"] = float((truth - log_prob(test)).mean())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(densities())}; all by default")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--test-rows", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--step-size", type=json.loads, default=20.0, help="γ: a number, or a list with one a block")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--matching-rate", type=float, default=5e-3, help="plain flow matching's learning rate")
    parser.add_argument("--map-options", type=json.loads, default={}, help="arguments of ODEMap, as JSON")
    parser.add_argument("--options", type=json.loads, default={}, help="arguments of JKOFlow, as JSON")
    parser.add_argument("--out", help="a JSON file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, {arguments.seconds:g} s, ODEMap options {arguments.map_options or 'default'}")
    results = {}
    for name in arguments.names or densities():
        density = densities()[name]
        r = results[name] = run(density, density.sample(1, 0).shape[1], arguments)
        rivals = ", ".join(f"{key} {r[key]:.4f}" for key in ("matching_kl", "matching_wide_kl") if key in r)
        print(
            f"{name:<16} {r['seconds']:.0f} s: KL {r['kl']:.4f}, {rivals}, error {r['error']:.0e}, "
            f"evaluation {r['evaluation']:.0f} s, steps {r['steps']}, iterations {r['iterations']}, "
            f"matching {r['matching_iterations']}, greedy {[round(nll, 4) for nll in r['greedy']]}",
            flush=True,
        )
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            json.dump({"arguments": vars(arguments), "results": results}, file, indent=2)


if __name__ == "__main__":
    main()
