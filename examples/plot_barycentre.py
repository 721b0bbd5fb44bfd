"""
Wasserstein barycentres of three shapes
=======================================

The barycentre of shapes ν₁, ν₂, ν₃ with weights λ is the minimiser of Σ_j λ_j ½W₂²(·, ν_j): a shape in between, which
moves their points instead of fading one into the other (Agueh and Carlier 2011). The functional is a sum of
:class:`wprox.SquaredWasserstein`, and iterating proximal steps on it is the proximal point method.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import wprox

# %%
# Three shapes, each of 250 particles spread evenly: a ring, a star and two discs.
n, golden = 250, (1 + 5**0.5) / 2


def spread(inside):
    """n points of a shape, out of a spiral that covers a disc evenly."""
    for total in range(n, 40 * n, 10):
        k = torch.arange(total, dtype=torch.float64) + 0.5
        radius, angle = 1.1 * (k / total).sqrt(), 2 * torch.pi * golden * k
        points = torch.stack((radius * angle.cos(), radius * angle.sin()), 1)
        points = points[inside(*points.T)]
        if len(points) >= n:
            return points[:n]


def in_star(x, y):
    angle = torch.atan2(x, y)
    return torch.hypot(x, y) < 0.45 + 0.6 * (5 * angle / torch.pi % 2 - 1).abs().square()


shapes = [
    spread(lambda x, y: (torch.hypot(x, y) - 0.8).abs() < 0.15),
    spread(in_star),
    spread(lambda x, y: torch.hypot(x.abs() - 0.58, y) < 0.42),
]

# %%
# One proximal step with a large step size nearly is the barycentre; after two of them the value hardly changes.
distances = [wprox.SquaredWasserstein(shape) for shape in shapes]


def barycentre(weights):
    functional = sum(weight * distance for weight, distance in zip(weights, distances, strict=True))
    start = wprox.Particles(shapes[int(np.argmax(weights))])
    return wprox.jko(functional, wprox.ParticleProx(), start, step_size=10.0, n_steps=2)


trajectory = barycentre([1 / 3, 1 / 3, 1 / 3])
print("the sum of squared distances:", *(f"{float(value):.4f}" for value in trajectory.values))

# %%
# A triangle of weights, with the shapes at its corners.
colours = np.array([[0.85, 0.25, 0.30], [0.95, 0.70, 0.10], [0.15, 0.40, 0.75]])
figure, ax = plt.subplots(figsize=(9, 8.2), layout="constrained")
side = 4
for i in range(side + 1):
    for j in range(side + 1 - i):
        weights = np.array([side - i - j, i, j]) / side
        points = shapes[int(weights.argmax())] if weights.max() == 1 else barycentre(weights).final.points
        centre = weights @ np.array([[0.0, 3.0], [-1.9, 0.0], [1.9, 0.0]]) * 2.6
        ax.scatter(*(points.numpy() + centre).T, s=8, color=weights @ colours, linewidths=0)
ax.set_aspect("equal")
ax.axis("off")
plt.show()
