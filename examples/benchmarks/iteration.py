"""CPU milliseconds of one training iteration of every map, and of `SplineMap` on zuko's spline transform.

    python examples/benchmarks/iteration.py [--residual] [--dims 2 8 32] [--batch 1024] [--repeats 15]

An iteration is the value and the gradient of E|T(x)|²/2 − log det ∇T(x) over a minibatch. CPU time of one thread, the
least of the repeats; the maps take turns, so that other work on the machine disturbs all alike. With --residual, a
`ResidualMap` is trained first, since its random series is short as long as its Lipschitz constant is small.
"""

from __future__ import annotations

import argparse
import time
from unittest import mock

import torch
from maps import Mixture
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

import wprox
from wprox.maps.registry import MAPS, map_factory


def zuko_spline(x: Tensor, parameters: Tensor, bins: int, bound: float) -> tuple[Tensor, Tensor]:
    widths, heights, slopes = parameters.transpose(1, 2).split((bins, bins, bins - 1), dim=-1)
    return MonotonicRQSTransform(widths, heights, slopes, bound=bound).call_and_ladj(x)


def iteration(map: wprox.TransportMap, x: Tensor) -> float:
    start = time.process_time()
    y, log_det = map(x)
    (0.5 * y.square().sum(1) - log_det).mean().backward()
    return 1e3 * (time.process_time() - start)


def trained_residual(dim: int, batch: int, repeats: int) -> tuple[float, float, float]:
    """Milliseconds of a trained ResidualMap with its exact log-determinant and by its series, and the bound of Lip(f).

    Trained on a mixture of eight Gaussians, until its Lipschitz constants are near what they may be.
    """
    x = Mixture(dim).sample(10_000, 0).float()
    rho = wprox.Particles((x - x.mean(0)) / x.std(0))
    target = wprox.KL(wprox.Gaussian(torch.zeros(dim), torch.eye(dim)))
    map = wprox.NeuralProx("residual", iterations=150, batch_size=256).step(target, rho, 1.0).map
    assert isinstance(map, wprox.ResidualMap)
    times = {}
    for log_det in ("exact", "series"):
        other = wprox.ResidualMap(**(map.config | {"log_det": log_det})).train()
        other.load_state_dict(map.state_dict())
        times[log_det] = sorted(iteration(other, rho.points[:batch]) for _ in range(2 * repeats))[repeats]
    return times["exact"], times["series"], float(map.maps[-1].layers()[1].max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--residual", action="store_true", help="a trained ResidualMap, exact and by its random series")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.residual:
        print(f"median CPU ms an iteration, batch {arguments.batch}, one thread\n  d   exact  series   Lip(f)")
        for dim in arguments.dims:
            exact, series, bound = trained_residual(dim, arguments.batch, arguments.repeats)
            print(f"{dim:>3}{exact:>8.1f}{series:>8.1f}{bound:>9.3f}", flush=True)
        return
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
