r"""
A proximal step in Wasserstein space
====================================

A cloud of particles sits high on a landscape :math:`V` with two valleys. One proximal step moves it to

.. math:: \rho_\gamma = \operatorname{argmin}_\rho \; F(\rho) + \frac{W_2^2(\mu, \rho)}{2\gamma},
          \qquad F(\rho) = \int V \, d\rho + \tau \int \rho \log \rho .

:math:`F` pulls the cloud down the slopes and keeps it spread out; the transport cost :math:`W_2^2` makes every move
cost the square of its length. The step size :math:`\gamma` sets the price: a small one buys a short move along the
steepest descent of :math:`F`, a larger one a long way towards its minimiser. The step needs no more than particles and
an invertible network that moves them.
"""

import matplotlib.pyplot as plt
import torch

import wprox

# %%
# The landscape, the functional and the start
# -------------------------------------------
# The valleys are at (±1.5, 0). The entropy, scaled by a temperature, keeps the particles from falling onto two points.


def landscape(x):
    return 0.35 * (x[..., 0].square() - 2.25).square() + 0.8 * x[..., 1].square()


functional = wprox.PotentialEnergy(landscape) + 0.2 * wprox.Entropy()
blob = wprox.Gaussian(torch.tensor([0.0, 1.7]), 0.09 * torch.eye(2))
start = blob.to_particles(4000, seed=0)

# %%
# One step for each of three step sizes
# -------------------------------------
# All three start from the same cloud: this is not yet a trajectory, it is one step at three prices.

solver = wprox.NeuralProx(map_options={"frequencies": 2}, iterations=400, learning_rate=2e-3, seed=0)
step_sizes = [0.1, 0.4, 1.5]
steps = [solver.step(functional, start, gamma) for gamma in step_sizes]
for step in steps:
    print(f"γ = {step.step_size:<5g} F = {float(step.value):6.3f}   E|T(x) − x|² = {float(step.transport_cost):.3f}")

# %%
# The picture
# -----------
# Each particle keeps the colour of where it started, from left to right, and a few show the way they went. Optimal
# transport does not let ways cross.

horizontal, vertical = torch.linspace(-2.5, 2.5, 200), torch.linspace(-1.3, 2.7, 160)
grid = torch.stack(torch.meshgrid(horizontal, vertical, indexing="xy"), dim=-1)
levels = [0.16 * k**2 for k in range(10)]
ways = slice(0, None, 100)  # of every hundredth particle

figure, panels = plt.subplots(1, 4, figsize=(14, 3.2), sharex=True, sharey=True, layout="constrained")
clouds = {"the start μ": start} | {f"ρ for γ = {step.step_size:g}": step.measure for step in steps}
for panel, (title, cloud) in zip(panels, clouds.items(), strict=True):
    panel.contourf(horizontal, vertical, landscape(grid), levels, cmap="Greys", vmax=14, extend="max")
    panel.contour(horizontal, vertical, landscape(grid), levels, colors="white", linewidths=0.7)
    panel.scatter(*cloud.points.T, c=start.points[:, 0], cmap="Spectral", s=3, linewidths=0)
    if cloud is not start:
        pairs = torch.stack((start.points[ways], cloud.points[ways]))
        panel.plot(pairs[..., 0], pairs[..., 1], color="black", linewidth=0.6, alpha=0.5)
        panel.scatter(*cloud.points[ways].T, color="black", s=5, linewidths=0)
    panel.set(title=title, xlim=(-2.5, 2.5), ylim=(-1.3, 2.7), xticks=[], yticks=[], aspect="equal")
plt.show()
