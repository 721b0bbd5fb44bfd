"""
Aggregation against diffusion
=============================

Animals that attract each other within a short range, and avoid crowding, gather in groups. The model is a sum: an
interaction energy ½ ∬ W(x − y) dρ dρ that pulls together and ∫ ρ² that pushes apart (Topaz, Bertozzi and Lewis 2006).
On a grid the interaction is one convolution by FFT, so it costs no more than the rest of the step.
"""

import matplotlib.pyplot as plt
import torch

import wprox

# %%
# A population that is spread out, but not evenly.
bounds, shape = [(0.0, 1.0), (0.0, 1.0)], (96, 96)
uneven = torch.rand(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
initial = wprox.Grid(uneven.repeat_interleave(8, 0).repeat_interleave(8, 1), bounds)


def attraction(z):
    return -torch.exp(-z.square().sum(-1) / (2 * 0.04**2))


functional = wprox.InteractionEnergy(attraction) + 0.002 * wprox.PorousMedium(2.0)
trajectory = wprox.jko(functional, wprox.SinkhornProx(blur=0.015, tol=1e-5), initial, step_size=0.05, n_steps=40)

# %%
# The population breaks up into groups as wide as the range of attraction, which then hardly feel each other.
figure, axes = plt.subplots(1, 4, figsize=(14, 3.3), layout="constrained")
for ax, k in zip(axes, [0, 10, 40], strict=False):
    trajectory.measures[k].plot(ax)
    ax.set_title(f"t = {0.05 * k:.1f}")
axes[3].plot(0.05 * torch.arange(41), torch.stack(trajectory.values), ".-")
axes[3].set(xlabel="t", ylabel="F(ρ)")
plt.show()
