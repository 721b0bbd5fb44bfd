"""
The porous medium equation and its exact solution
=================================================

Gas that seeps through a porous medium obeys ∂ρ = Δρᵐ. Otto (2001) showed that it is the gradient flow of
∫ ρᵐ/(m − 1) in Wasserstein space. Unlike heat it has an edge, which moves at finite speed, and Barenblatt's profile
solves it exactly. Here m = 2 on a grid, against that solution.
"""

import math

import matplotlib.pyplot as plt

import wprox


def barenblatt(x, t):
    """ρ(x, t) for m = 2 in the plane, of mass 1, released at the centre of the unit square at time 0."""
    squared = (x - 0.5).square().sum(-1)
    return (1 / math.sqrt(8 * math.pi) - squared / (16 * math.sqrt(t))).clamp(min=0) / math.sqrt(t)


# %%
# Twenty proximal steps from time 1e-4 to 1.1e-3, on 128 × 128 cells.
start, step_size, n_steps = 1e-4, 5e-5, 20
bounds = [(0.0, 1.0), (0.0, 1.0)]
initial = wprox.Grid.from_density(lambda x: barenblatt(x, start), (128, 128), bounds)
trajectory = wprox.jko(wprox.PorousMedium(2.0), wprox.SinkhornProx(), initial, step_size, n_steps)

# %%
# The density on a cut through the middle, with the exact one dashed. The error is the time step's: it halves with it.
figure, (image, cut) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
trajectory.final.plot(image)
image.set_title(f"t = {start + n_steps * step_size:g}")
for k, colour in zip([0, 2, 6, 20], plt.cm.viridis([0.0, 0.3, 0.6, 0.85]), strict=True):
    measure, t = trajectory.measures[k], start + k * step_size
    exact = barenblatt(measure.points, t).reshape(measure.shape)
    cut.plot(measure.axes[0], measure.density[:, 64], color=colour, label=f"t = {t:g}")
    cut.plot(measure.axes[0], exact[:, 64], "--", color="black", linewidth=0.8)
error = (trajectory.final.density - exact).abs().sum() * measure.cell_volume
cut.set(xlabel="x", ylabel="density at y = 0.5", title=f"L1 error at the end: {float(error):.3f}")
cut.legend()
plt.show()
