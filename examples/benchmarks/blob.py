"""The bias of the blob density: JKO of KL(· ‖ N(0, Σ)) with 2,000 particles in the plane, against the bandwidth.

`python examples/benchmarks/blob.py [n]` prints the standard deviations that the particles end with, relative to
those of the target, for kernels that follow the particles (a factor of their spread) and for fixed bandwidths.
"""

from __future__ import annotations

import sys
import time

import torch

import wprox

STANDARD_DEVIATIONS = torch.tensor([1.0, 0.5], dtype=torch.float64)


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    target = wprox.Gaussian(torch.zeros(2, dtype=torch.float64), STANDARD_DEVIATIONS.square().diag())
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = wprox.Particles(0.3 * noise + 2.0)
    solver = wprox.ParticleProx(tolerance=1e-2)
    print(f"{n} particles; standard deviations relative to the target's, 5 steps of size 4 from N((2, 2), 0.09 I)")
    print("| kernel | axis 1 | axis 2 | KL, smoothed | seconds a step | evaluations a step |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    kernels: list[tuple[str, dict[str, float]]] = [("default (Silverman)", {})]
    kernels += [(f"factor {f:g}", {"factor": f}) for f in (0.1, 0.5)]
    kernels += [(f"bandwidth {h:g}", {"bandwidth": h}) for h in (0.05, 0.1, 0.2, 0.4)]
    for name, options in kernels:
        began = time.perf_counter()
        trajectory = wprox.jko(wprox.KL(target), solver, start.with_kernel_density(**options), step_size=4.0, n_steps=5)
        seconds = (time.perf_counter() - began) / 5
        points = trajectory.final.points
        ratio = (points.square().mean(0) - points.mean(0).square()).sqrt() / STANDARD_DEVIATIONS
        evaluations = sum(step.state.evaluations for step in trajectory.steps) / 5
        value = float(trajectory.values[-1])
        print(
            f"| {name} | {ratio[0]:.3f} | {ratio[1]:.3f} | {value:.3f} | {seconds:.2f} | {evaluations:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
