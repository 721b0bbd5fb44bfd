"""
A crowd leaves a room
=====================

Everybody walks towards the door as fast as possible, and nobody can stand where others already stand: the density may
not exceed one person a place. Maury, Roudneff-Chupin and Santambrogio (2010) saw that this is a gradient flow in
Wasserstein space: of the distance to the door, under the constraint ρ ≤ 1. With wprox it is a sum of two functionals,
and the walls are a mask of the grid, around which mass moves.
"""

import matplotlib.pyplot as plt
import torch

import wprox

# %%
# A room 6 by 6 with a door 0.8 wide, a pillar in front of it, and a hall behind.
bounds, shape = [(0.0, 9.0), (0.0, 6.0)], (90, 60)
x, y = torch.meshgrid(*[(torch.arange(n) + 0.5) / 10 for n in shape], indexing="ij")
walls = ((x - 6.1).abs() < 0.2) & ((y - 3).abs() > 0.4)
walls |= (x - 4.8).square() + (y - 3).square() < 0.3**2

crowd = wprox.Grid.from_density(
    lambda x: ((x[:, 0] < 2.6) & ((x[:, 1] - 3).abs() < 2)).double() * 0.8, shape, bounds, mask=walls
)
max_density = 1 / (0.8 * 4 * 2.6) * 0.8  # in units of a probability density: 0.8 · 4 · 2.6 persons in all, one a place
max_density *= 1.25


def distance_to_exit(x):
    door = x.new_tensor([6.1, 3.0])
    return torch.where(x[:, 0] < 6.1, (x - door).norm(dim=1), 6.1 - x[:, 0])


functional = wprox.PotentialEnergy(distance_to_exit) + wprox.Congestion(max_density)

# %%
# One call of `jko` is the whole simulation; a step of γ = 0.25 is a quarter of the time that it takes to walk 1.
solver = wprox.SinkhornProx(blur=0.15, tol=1e-5)
trajectory = wprox.jko(functional, solver, crowd, step_size=0.25, n_steps=36)
