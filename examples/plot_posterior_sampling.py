r"""
Sampling a posterior: forward–backward against Langevin
=======================================================

Where is a transmitter, given its measured distances to two beacons, one of them precise, one rough? The posterior
:math:`\pi` is a crescent. Both schemes minimise

.. math:: \mathrm{KL}(\rho \,\|\, \pi) = \int V \, d\rho + \int \rho \log \rho, \qquad V = -\log \pi,

and both begin a step by going down the gradient of :math:`V`. Then Langevin dynamics adds
noise, while forward–backward (Salim, Korba and Luise 2020) takes a proximal step along the entropy, here that of the
particles smoothed by a narrow kernel. The step size is the same, near the limit :math:`1/L` that the direction across
the crescent sets. There noise makes the crescent too thick, unless moves are accepted or rejected. Forward–backward has
no such bias, but for the small one of the kernel, and it spreads its particles evenly: nothing is left to chance.
"""

import matplotlib.pyplot as plt
import torch

import wprox

beacons = torch.tensor([[0.0, 0.0], [2.0, 1.0]], dtype=torch.float64)
measured = torch.tensor([1.5, 1.6], dtype=torch.float64)
accuracy = torch.tensor([0.25, 0.6], dtype=torch.float64)


def log_posterior(x):
    distances = (x[:, None] - beacons).norm(dim=-1)
    return -(((distances - measured) / accuracy).square().sum(-1) + x.square().sum(-1) / 4) / 2


# %%
# The same start and the same steps for all. 1/L is about 0.06: L = 1/0.25² of the precise beacon, and a little.
functional = wprox.KL(log_posterior)
generator = torch.Generator().manual_seed(0)
points = 0.3 * torch.randn(400, 2, dtype=torch.float64, generator=generator)
start = wprox.Particles(points + torch.tensor([0.5, -1.0], dtype=torch.float64))
gamma, n_steps = 0.05, 220
backward = wprox.ParticleProx(tolerance=1e-3)
trajectories = {
    "forward–backward": wprox.jko(
        functional, wprox.ForwardBackward(backward), start.with_kernel_density(bandwidth=0.1), gamma, n_steps
    ),
    "Langevin, unadjusted": wprox.jko(functional, wprox.Langevin(), start, gamma, n_steps),
    "Langevin, adjusted": wprox.jko(functional, wprox.Langevin(adjusted=True), start, gamma, n_steps),
}

# %%
# The truth, by quadrature: the mean of the posterior, and how much the distance to the precise beacon varies.
grid = wprox.Grid.from_density(lambda x: log_posterior(x).exp(), (200, 200), [(-3.0, 3.5), (-3.0, 3.5)])


def thickness(rho):
    distance = (rho.points - beacons[0]).norm(dim=1)
    return float((rho.weights @ (distance - rho.weights @ distance).square()).sqrt())


def off_centre(rho):
    return float((rho.weights @ rho.points - grid.weights @ grid.points).norm())


print(f"{'the posterior':22s} thickness {thickness(grid):.3f}")
for name, trajectory in trajectories.items():
    print(f"{name:22s} thickness {thickness(trajectory.final):.3f}, mean off by {off_centre(trajectory.final):.3f}")

# %%
# The picture: particles on the contours of the posterior, and how thickness settles.
figure, axes = plt.subplots(1, 4, figsize=(14, 3.5), layout="constrained")
x, y = grid.axes
levels = float(grid.density.max()) * torch.tensor([0.01, 0.1, 0.4, 0.8])
for ax, (name, trajectory) in zip(axes, trajectories.items(), strict=False):
    ax.contourf(x, y, grid.density.mT, [*levels.tolist(), float(grid.density.max())], cmap="Blues", alpha=0.6)
    ax.scatter(*trajectory.final.points.mT, s=4, color="black")
    ax.plot(*beacons.mT, "r^")
    ax.set(title=name, aspect="equal", xlim=(-2.2, 2.9), ylim=(-2.4, 2.7))
    axes[3].plot([thickness(rho) for rho in trajectory.measures], label=name)
axes[3].axhline(thickness(grid), color="black", linestyle=":", label="the posterior")
axes[3].set(title="thickness of the crescent", xlabel="steps", ylim=(0.0, 0.45))
axes[3].legend(fontsize=8)
plt.show()
