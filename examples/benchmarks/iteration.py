"""CPU milliseconds of one training iteration of every map, and of `SplineMap` on zuko's spline transform.

    python examples/benchmarks/iteration.py [--dims 2 8 32] [--batch 1024] [--repeats 15]

An iteration is the value and the gradient of E|T(x)|²/2 − log det ∇T(x) over a minibatch. CPU time of one thread, the
least of the repeats; the maps take turns, so that other work on the machine disturbs all alike.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

import wprox
from wprox.solvers.neural import MAPS, map_factory


def zuko_spline(x: Tensor, parameters: Tensor, bins: int, bound: float) -> tuple[Tensor, Tensor]:
    widths, heights, slopes = parameters.transpose(1, 2).split((bins, bins, bins - 1), dim=-1)
    return MonotonicRQSTransform(widths, heights, slopes, bound=bound).call_and_ladj(x)


def iteration(map: wprox.TransportMap, x: Tensor) -> float:
    start = time.process_time()
    y, log_det = map(x)
    (0.5 * y.square().sum(1) - log_det).mean().backward()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = [*MAPS, "spline, zuko"]
    print(f"CPU ms an iteration, batch {arguments.batch}, one thread\n{'d':>3}" + "".join(f"{n:>14}" for n in names))
    for dim in arguments.dims:
        torch.manual_seed(0)
        x = torch.randn(arguments.batch, dim)
        maps = {name: map_factory(name)(dim).train() for name in MAPS}
        with torch.no_grad():  # away from the identity, where random series are short
            for map in maps.values():
                for parameter in map.parameters():
                    parameter += 0.02 * torch.randn_like(parameter)
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.repeats):
            for name, map in maps.items():
                times[name].append(iteration(map, x))
            with mock.patch("wprox.maps.spline.spline", zuko_spline):
                times[names[-1]].append(iteration(maps["spline"], x))
        print(f"{dim:>3}" + "".join(f"{min(times[name]):>14.1f}" for name in names), flush=True)


if __name__ == "__main__":
    main()
