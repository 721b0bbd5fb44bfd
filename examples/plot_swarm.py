"""
Swarms: attraction and repulsion
================================

Particles that attract each other from afar and repel each other nearby settle into patterns. With W(z) = |z|^a/a −
|z|^b/b the exponents decide which (Kolokolnikov, Sun, Uminsky and Bertozzi 2011; Balagué, Carrillo, Laurent and Raoul
2013). Implicit steps of length 5 get there in a few, since their length is not limited by the stiffest pair.
"""

import matplotlib.pyplot as plt
import torch

import wprox
from wprox.kernels import Morse, PowerLaw

# %%
# Three hundred particles, scattered at random.
generator = torch.Generator().manual_seed(0)
initial = wprox.Particles(0.5 * torch.randn(300, 2, generator=generator, dtype=torch.float64))

swarms = {
    "disc: |z|²/2 − log|z|": PowerLaw(2, 0),
    "thin middle: |z|⁴/4 − log|z|": PowerLaw(4, 0),
    "ring: |z|⁴/4 − |z|²/2": PowerLaw(4, 2),
    "three spots: |z|⁷/7 − |z|³/3": PowerLaw(7, 3),
    "even ring: |z|⁵/5 − |z|^1.5/1.5": PowerLaw(5, 1.5),
    "Morse swarm": Morse(repulsion=2.0, repulsion_length=0.5, attraction=1.0, attraction_length=1.5),
}

# %%
# Two are closed forms, drawn as circles: the uniform law on the unit disc, and the circle of radius 1/√3.
figure, axes = plt.subplots(2, 3, figsize=(10, 6.6), layout="constrained")
solver = wprox.ParticleProx(tolerance=1e-3)
for ax, (title, kernel) in zip(axes.flat, swarms.items(), strict=True):
    trajectory = wprox.jko(wprox.InteractionEnergy(kernel), solver, initial, step_size=5.0, n_steps=12)
    x = trajectory.final.points
    x = x - x.mean(0)
    ax.scatter(*x.T, s=5, alpha=0.6)
    ax.set(title=title, aspect="equal")
    radius = {"disc": 1.0, "ring": 3**-0.5}.get(title.split(":")[0])
    if radius is not None:
        ax.add_patch(plt.Circle((0, 0), radius, fill=False, color="C1"))
plt.show()
