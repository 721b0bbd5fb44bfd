"""The exact solvers and the theory, measured: every number of docs/exact_solvers.md and docs/theory.md.

python examples/benchmarks/exact.py            # all, about four minutes on one core
python examples/benchmarks/exact.py newton     # one part
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from scipy import integrate, special, stats

import wprox

FLOAT64 = torch.float64
NORMAL = torch.distributions.Normal(torch.tensor(0.0, dtype=FLOAT64), torch.tensor(1.0, dtype=FLOAT64))


def standard(d: int) -> wprox.Gaussian:
    return wprox.Gaussian(torch.zeros(d, dtype=FLOAT64), torch.eye(d, dtype=FLOAT64))


def normal_quantiles(loc: float, scale: float, n: int) -> wprox.Quantiles:
    return wprox.Quantiles.from_icdf(lambda u: loc + scale * NORMAL.icdf(u), n)


def l1_distance(rho: wprox.Quantiles, density: Callable, low: float, high: float) -> float:
    x = torch.linspace(low, high, 1_000_001, dtype=FLOAT64)
    return float(torch.trapezoid((rho.log_prob(x).exp() - density(x)).abs(), x))


def newton() -> None:
    """One step for V = (x² − 1)² plus entropy, γ = 0.1, from N(3, 0.04)."""
    functional = wprox.PotentialEnergy(lambda x: (x[:, 0] ** 2 - 1) ** 2) + wprox.Entropy()
    print("nodes      iterations  seconds  cpu seconds  ns a node and iteration (cpu)  residual")
    for n in (10_000, 100_000, 1_000_000):
        start = normal_quantiles(3.0, 0.2, n)
        wall, cpu, step = math.inf, math.inf, None
        for _ in range(3):
            before = time.process_time()
            step = wprox.QuantileProx().step(functional, start, 0.1)
            wall, cpu = min(wall, step.seconds), min(cpu, time.process_time() - before)
        assert step.converged
        unit = 1e9 * cpu / (n * step.iterations)
        print(f"{n:9,d}  {step.iterations:10d}  {wall:7.3f}  {cpu:11.3f}  {unit:29.0f}  {step.residual:.1e}")


def gaussians() -> None:
    """KL(· ‖ N(0, 1)) from N(3, 0.04), γ = 0.5, ten steps: errors against the closed form."""
    gamma, m, s = 0.5, 3.0, 0.2
    start = wprox.Gaussian([m], torch.tensor([[s**2]], dtype=FLOAT64))
    gaussian = wprox.jko(wprox.KL(standard(1)), wprox.GaussianProx(), start, step_size=gamma, n_steps=10)
    line = wprox.jko(
        wprox.KL(standard(1)), wprox.QuantileProx(), normal_quantiles(m, s, 20_000), step_size=gamma, n_steps=10
    )
    errors = {"GaussianProx": [0.0, 0.0], "QuantileProx, n = 20,000": [0.0, 0.0]}
    for exact, nodes in zip(gaussian.measures[1:], line.measures[1:], strict=True):
        m, s = m / (1 + gamma), (s + math.sqrt(s**2 + 4 * gamma * (1 + gamma))) / (2 * (1 + gamma))
        mean = float(nodes.weights @ nodes.nodes)
        deviation = math.sqrt(float(nodes.weights @ (nodes.nodes - mean).square()))
        for name, found in (
            ("GaussianProx", (float(exact.loc), math.sqrt(float(exact.covariance_matrix)))),
            ("QuantileProx, n = 20,000", (mean, deviation)),
        ):
            errors[name] = [max(errors[name][0], abs(found[0] - m)), max(errors[name][1], abs(found[1] - s))]
    for name, (mean_error, deviation_error) in errors.items():
        print(f"{name}: largest error of the mean {mean_error:.1e}, of the standard deviation {deviation_error:.1e}")
    print("GaussianProx, one step between random Gaussians that do not commute:")
    for d in (2, 50, 300):
        generator = torch.Generator().manual_seed(d)
        one, two = (torch.randn(d, d, generator=generator, dtype=FLOAT64) for _ in range(2))
        identity = torch.eye(d, dtype=FLOAT64)
        target = wprox.Gaussian(torch.ones(d, dtype=FLOAT64), one @ one.mT / d + identity)
        source = wprox.Gaussian(torch.zeros(d, dtype=FLOAT64), two @ two.mT / d + 0.1 * identity)
        step = wprox.GaussianProx().step(wprox.KL(target), source, 1.0)
        print(f"    d = {d:3d}: residual {step.residual:.1e}, {step.seconds:.3f} s")


def double_well() -> None:
    """∫ (x² − 1)² dρ + ½ ∫ ρ log ρ from N(1, 0.09): the L1 distance to Gibbs at the end."""
    mass, _ = integrate.quad(lambda x: math.exp(-2 * (x**2 - 1) ** 2), -5, 5)
    functional = wprox.PotentialEnergy(lambda x: (x[:, 0] ** 2 - 1) ** 2) + 0.5 * wprox.Entropy()
    for n in (1_000, 10_000):
        trajectory = wprox.jko(
            functional,
            wprox.QuantileProx(),
            normal_quantiles(1.0, 0.3, n),
            step_size=lambda k: min(0.05 * 1.5**k, 100.0),
            n_steps=40,
            tol=1e-8,
        )
        error = l1_distance(trajectory.final, lambda x: torch.exp(-2 * (x**2 - 1) ** 2) / mass, -4, 4)
        print(f"n = {n:6,d}: L1 {error:.1e} after {len(trajectory)} steps")


def barenblatt(m: float) -> tuple[Callable, Callable]:
    """Density and quantile function of t^{−α}(C − k|x|² t^{−2α})_+^{1/(m−1)} with α = 1/(m + 1)."""
    alpha, power = 1 / (m + 1), 1 / (m - 1)
    k = (m - 1) * alpha / (2 * m)
    mass = special.beta(0.5, power + 1) if m > 1 else special.beta(0.5, -power - 0.5)
    constant = (math.sqrt(abs(k)) / mass) ** (1 / (power + 0.5))

    def density(x: torch.Tensor, t: float) -> torch.Tensor:
        return t**-alpha * (constant - k * (x / t**alpha) ** 2).clamp(min=0) ** power

    def icdf(u: torch.Tensor, t: float) -> torch.Tensor:
        if m > 1:
            unit = 2 * special.betaincinv(power + 1, power + 1, u.numpy()) - 1
        else:
            degrees = -2 * power - 1
            unit = stats.t.ppf(u.numpy(), degrees) / math.sqrt(degrees)
        return torch.from_numpy(unit) * math.sqrt(constant / abs(k)) * t**alpha

    return density, icdf


def porous_medium() -> None:
    """From Barenblatt's profile at t = 0.5 to t = 1.5 with n = 20,000: errors and orders in γ."""
    for m in (2.0, 3.0, 0.7):
        density, icdf = barenblatt(m)
        start, exact = (wprox.Quantiles.from_icdf(lambda u, t=t, icdf=icdf: icdf(u, t), 20_000) for t in (0.5, 1.5))
        w2, l1 = [], []
        for n_steps in (10, 20, 40, 80):
            functional = wprox.PorousMedium(m)
            trajectory = wprox.jko(functional, wprox.QuantileProx(), start, step_size=1 / n_steps, n_steps=n_steps)
            w2.append(float(wprox.metrics.wasserstein_1d(trajectory.final, exact)))
            l1.append(l1_distance(trajectory.final, lambda x, density=density: density(x, 1.5), -8, 8))
        orders = [f"{math.log2(w2[k] / w2[k + 1]):.2f}" for k in range(3)]
        print(f"m = {m}: γ = 1/10 … 1/80, W₂ {_list(w2)}, orders {', '.join(orders)}; L1 {_list(l1)}")


def aggregation() -> None:
    """W(z) = |z|²/2 − log|z| from a uniform law: the semicircle of radius √2."""
    for n in (125, 250, 500):
        trajectory = wprox.jko(
            wprox.InteractionEnergy(lambda z: z[:, 0] ** 2 / 2 - z[:, 0].abs().log()),
            wprox.QuantileProx(),
            wprox.Quantiles(torch.linspace(-0.5, 1.0, n, dtype=FLOAT64)),
            step_size=2.0,
            n_steps=8,
        )
        final = trajectory.final
        centre = float(final.weights @ final.nodes)
        error = l1_distance(final, lambda x, c=centre: (2 - (x - c) ** 2).clamp(min=0).sqrt() / math.pi, -2, 2.5)
        radius = float(final.nodes[-1] - final.nodes[0]) / 2
        iterations = sum(step.iterations for step in trajectory.steps) / len(trajectory)
        print(f"n = {n}: L1 {error:.1e}, radius {radius:.4f} (√2 = {2**0.5:.4f}), {iterations:.0f} iterations")


def plateau() -> None:
    """KL(· ‖ N(0, I/λ)) with an error ε in one direction in every step: where W₂² settles."""
    from dataclasses import replace

    for error, modulus in ((0.1, 1.0), (0.3, 2.0)):
        functional = wprox.KL(wprox.Gaussian([0.0, 0.0], torch.eye(2, dtype=FLOAT64) / modulus))
        tilted = functional + wprox.PotentialEnergy(lambda x, error=error: error * x[:, 0])
        start = wprox.Gaussian([4.0, -1.0], torch.eye(2, dtype=FLOAT64))
        steps, measures = [], [start]
        for _ in range(100):
            step = wprox.GaussianProx().step(tilted, measures[-1], 1.0)
            steps.append(replace(step, value=functional(step.measure), residual=error + step.residual))
            measures.append(step.measure)
        trajectory = wprox.Trajectory(measures, [functional(rho) for rho in measures], steps)
        certificate = wprox.certify(trajectory, functional)
        settled, bound = certificate.measured_w2[-1] ** 2, certificate.w2[-1] ** 2
        print(f"ε = {error}, λ = {modulus}: W₂² settles at {settled:.6f}, ε²/λ² = {(error / modulus) ** 2:.6f}, "
              f"bound {bound:.6f}, ratio {bound / settled:.3f}, holds: {certificate.holds}")  # fmt: skip
        broken = wprox.certify(trajectory, functional, residuals=error / 3)
        print(f"    with ε reported as a third: holds: {broken.holds}, first at step {broken.violations[0]}")


def critic() -> None:
    """A Gaussian step with an error put in: the critic's ε over the true ε, ten seeds that its design never saw."""
    for n, errors in ((10_000, (0.1, 0.3, 1.0)), (40_000, (0.1,))):
        for d, gamma in ((2, 0.5), (10, 0.5)):
            identity = torch.eye(d, dtype=FLOAT64)
            for error in errors:
                for kind in ("shift", "stretch"):
                    ratios = [_critic_ratio(d, gamma, error, kind, seed, n, identity) for seed in range(100, 110)]
                    worst = max(abs(ratio - 1) for ratio in ratios)
                    print(f"n = {n:6,d}, d = {d:2d}, {kind:7s}, error {error}: mean ratio {np.mean(ratios):.3f}, "
                          f"worst off by {worst:.0%}")  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for frequency in (1.0, 3.0, 6.0):
        x = torch.randn(20_000, 2, generator=generator, dtype=FLOAT64)
        field = 0.5 * torch.sin(frequency * x.roll(1, 1) + 0.5)
        found = wprox.stein.stein_residual(x - 0.5 * field, x, lambda x: x, 0.5)
        true = math.sqrt(float(field.square().sum(1).mean()))
        print(f"d = 2, n = 20,000, error ½ sin({frequency:g} x): ratio {found.estimate / true:.2f}")


def _critic_ratio(d: int, gamma: float, error: float, kind: str, seed: int, n: int, identity: torch.Tensor) -> float:
    factor = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64) / math.sqrt(d)
    source = wprox.Gaussian(torch.ones(d, dtype=FLOAT64), factor @ factor.mT + 0.3 * identity)
    map = wprox.GaussianProx().step(wprox.KL(standard(d)), source, gamma).map
    matrix, shift = map.matrix.detach(), map.shift.detach().clone()
    if kind == "shift":
        shift[0] += error / (1 + 1 / gamma)
    else:
        matrix = matrix * (1 + error / (math.sqrt(d) * (2 + 1 / gamma)))
    new = wprox.Gaussian(matrix @ source.loc + shift, matrix @ source.covariance_matrix @ matrix.mT)
    at_mean = new.loc + (new.loc - source.loc) / gamma
    slope = identity - torch.linalg.inv(new.covariance_matrix) + (identity - torch.linalg.inv(matrix)) / gamma
    true = math.sqrt(float(at_mean.square().sum() + (slope @ new.covariance_matrix * slope).sum()))
    before = source.sample(n, seed=seed + 100)
    found = wprox.stein.stein_residual(before, before @ matrix.mT + shift, lambda x: x, gamma, seed)
    return found.estimate / true


def _list(values: list[float]) -> str:
    return ", ".join(f"{value:.1e}" for value in values)


PARTS = (newton, gaussians, double_well, porous_medium, aggregation, plateau, critic)

if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    for part in PARTS:
        if not wanted or part.__name__ in wanted:
            print(f"\n{part.__name__}: {part.__doc__}")
            part()
