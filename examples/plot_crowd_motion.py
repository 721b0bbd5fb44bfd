"""
A crowd leaves a room
=====================

Everybody walks towards the door as fast as possible, and nobody can stand where others already stand: the density may
not exceed one person a place. Maury, Roudneff-Chupin and Santambrogio (2010) saw that this is a gradient flow in
Wasserstein space: of the distance to the door, under a bound on the density. With wprox it is a sum of two functionals,
and the walls are a mask of the grid, around which mass moves.
"""

import matplotlib.pyplot as plt
import torch

import wprox

# %%
# A room of 6 by 6 with a door 0.8 wide, a pillar in front of it and a hall behind. The crowd fills four fifths of the
# places where it stands; `max_density` is one person a place.
bounds, shape = [(0.0, 9.0), (0.0, 6.0)], (90, 60)
x, y = torch.meshgrid((torch.arange(90) + 0.5) / 10, (torch.arange(60) + 0.5) / 10, indexing="ij")
walls = ((x - 6.1).abs() < 0.2) & ((y - 3).abs() > 0.4)
walls |= (x - 4.8).square() + (y - 3).square() < 0.3**2


def people(x):
    return ((x[:, 0] > 0.4) & (x[:, 0] < 3) & ((x[:, 1] - 3).abs() < 2)).double()


crowd = wprox.Grid.from_density(people, shape, bounds, mask=walls)
max_density = float(crowd.density.max()) / 0.8


def distance_to_exit(x):
    door = x.new_tensor([6.1, 3.0])
    return torch.where(x[:, 0] < 6.1, (x - door).norm(dim=1), 6.1 - x[:, 0])


functional = wprox.PotentialEnergy(distance_to_exit) + wprox.Congestion(max_density)

# %%
# One call of `jko` is the whole simulation. Everybody would walk a distance of γ = 0.25 in a step, were they alone.
solver = wprox.SinkhornProx(blur=0.25, tol=1e-5)
trajectory = wprox.jko(functional, solver, crowd, step_size=0.25, n_steps=27)

# %%
# The crowd walks, jams in front of the door at exactly the largest density, and leaves through it at the rate that the
# width of the door allows. Walls are grey.
figure, axes = plt.subplots(2, 3, figsize=(11, 5.4), sharex=True, sharey=True, layout="constrained")
for k, ax in zip([0, 5, 9, 14, 20, 27], axes.flat, strict=True):
    trajectory.measures[k].plot(ax)
    ax.images[0].set_clim(0, max_density)
    outside = trajectory.measures[k].integrate(lambda x: (x[:, 0] > 6.1).double())
    ax.set_title(f"t = {0.25 * k:g}, {float(outside):.0%} are out")
    ax.label_outer()
bar = figure.colorbar(axes[0, 0].images[0], ax=axes, shrink=0.7, ticks=[0, max_density / 2, max_density])
bar.ax.set_yticklabels(["0", "½", "1"])
bar.set_label("persons a place")
plt.show()
