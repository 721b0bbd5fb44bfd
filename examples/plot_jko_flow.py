r"""
A JKO flow from data to noise
=============================

The JKO flow repeats one proximal step with :math:`F = \mathrm{KL}(\cdot \,\|\, N(0, I))`. Each step trains one
invertible block that takes the data a little closer to the Gaussian; run backwards, the blocks turn Gaussian noise into
new data, and the change of variables gives the exact density. Here the data are two moons, whose true density is known.
"""

import matplotlib.pyplot as plt
import torch

import wprox
from wprox import datasets

# %%
# Fit
# ---
# Small steps make a path that is easy to watch: the blocks are trained one after the other, then all together.

moons = datasets.TwoMoons()
flow = wprox.JKOFlow(
    map_options={"frequencies": 1, "bins": 8},  # the density is smooth, so the network need not follow fine detail
    step_sizes=[0.03, 0.06, 0.12, 0.25, 0.5],
    n_blocks=5,
    iterations=200,
    fine_tune_iterations=300,
    seed=0,
)
flow.fit(moons.sample(12_000, seed=0))
test = moons.sample(4000, seed=1)
nll = -flow.score(test)
print(f"test NLL {nll:.3f}, entropy {moons.entropy():.3f}: KL(data ‖ model) ≈ {nll - moons.entropy():.3f} nats")

# %%
# Data to noise, noise to data
# ----------------------------
# Above, test points after each block, in the colours of where they started. Below, the true density, the learned one
# and new samples.

path = flow.latents(test)
colours = torch.atan2(test[:, 1] - 0.25, test[:, 0] - 0.5)  # the direction from the middle

figure = plt.figure(figsize=(14, 5.6), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(1, 1.1))
for k, (panel, points) in enumerate(zip(above.subplots(1, len(path)), path, strict=True)):
    panel.scatter(*points.T, c=colours, cmap="twilight_shifted", s=2, linewidths=0)
    panel.set(xlim=(-3.3, 3.3), ylim=(-3.3, 3.3), xticks=[], yticks=[], aspect="equal")
    panel.set_title("data" if k == 0 else f"after block {k}")

(left, right), (low, high) = moons.bounds
horizontal, vertical = torch.linspace(left, right, 320), torch.linspace(low, high, 200)
grid = torch.stack(torch.meshgrid(horizontal, vertical, indexing="xy"), dim=-1).reshape(-1, 2).double()
panels = below.subplots(1, 3)
for panel, title, model in zip(panels, ("true density", "learned density"), (moons, flow), strict=False):
    density = model.log_prob(grid).exp().reshape(200, 320)
    panel.imshow(density, extent=(left, right, low, high), origin="lower", cmap="magma", vmin=0, vmax=0.75)
    panel.set(title=title, xticks=[], yticks=[])
panels[2].scatter(*flow.sample(4000, seed=2).T, color="#3d3d5c", s=2, linewidths=0)
panels[2].set(title="samples", xlim=(left, right), ylim=(low, high), xticks=[], yticks=[], aspect="equal")
plt.show()
