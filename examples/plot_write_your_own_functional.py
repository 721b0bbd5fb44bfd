r"""
Write your own functional
=========================

A functional is written once, with the verbs of a measure, and then runs on every measure and every solver. This one
wants a variance of 1 and does not mind where the mass is, and a second one keeps the mass smooth:

.. math:: F(\rho) = \tfrac{1}{2} \big(\operatorname{Var} \rho - 1\big)^2 + \tfrac{1}{5} \int \rho \log \rho .

Five solvers, with five kinds of measure, take the same five proximal steps from the same law of the line.
"""

import time

import matplotlib.pyplot as plt
import torch

import wprox

# %%
# The functional. That is all: values, sums, gradients and steps follow from it.


class SpreadBudget(wprox.Functional):
    """F(ρ) = ½ (Var ρ − 1)²."""

    def __call__(self, rho):
        mean, square = rho.integrate(lambda x: torch.cat((x, x.square()), 1))
        return 0.5 * (square - mean.square() - 1).square()


F = SpreadBudget() + 0.2 * wprox.Entropy()

# %%
# The start is N(0, 0.3²), as five measures: quantiles, a Gaussian, a grid, particles with a kernel density, and
# particles whose density a network follows.
start = wprox.Gaussian(torch.zeros(1, dtype=torch.float64), torch.tensor([[0.09]], dtype=torch.float64))
normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 0.3)
levels = (torch.arange(300, dtype=torch.float64) + 0.5) / 300
problems = {
    "quantiles": (wprox.QuantileProx(), wprox.Quantiles.from_icdf(normal.icdf, 300)),
    "Gaussian": (wprox.GaussianProx(), start),
    "grid": (
        wprox.SinkhornProx(blur=0.1, tol=1e-4),
        wprox.Grid.from_density(lambda x: start.log_prob(x).exp(), 100, [(-5.0, 5.0)]),
    ),
    "particles": (wprox.ParticleProx(), wprox.Particles(normal.icdf(levels)[:, None]).with_kernel_density()),
    "network": (
        wprox.NeuralProx(map=wprox.AffineMap, iterations=200, learning_rate=0.01),
        start.to_particles(10_000, seed=0),
    ),
}
results = {}
for name, (solver, measure) in problems.items():
    began = time.perf_counter()
    results[name] = wprox.jko(F, solver, measure, step_size=0.2, n_steps=5)
    values = "  ".join(f"{float(value):7.4f}" for value in results[name].values)
    print(f"{name:10s} F = {values}   {time.perf_counter() - began:.2f} s")

# %%
# The five answers side by side. The exact step of a Gaussian is a Gaussian here, so the second is exact, and the others
# are held against it (dashed). The network sees samples only; the kernel density of the particles is a little wide.
exact = results["Gaussian"].final
line = torch.linspace(-4, 4, 300, dtype=torch.float64)[:, None]
figure, axes = plt.subplots(1, 5, figsize=(15, 2.9), sharex=True, sharey=True, layout="constrained")
for ax, (name, trajectory) in zip(axes, results.items(), strict=True):
    rho = trajectory.final
    if name == "Gaussian":
        ax.plot(line, rho.log_prob(line).exp())
    else:
        order = rho.points[:, 0].argsort()
        ax.plot(rho.points[order, 0], rho.log_density()[order].exp())
    ax.plot(line, exact.log_prob(line).exp(), "--", color="black", linewidth=0.8)
    ax.plot(line, start.log_prob(line).exp(), ":", color="grey")
    ax.set(title=f"{name}: F = {float(trajectory.values[-1]):.3f}", xlim=(-4, 4), ylim=(0, 0.7), xlabel="x")
plt.show()
