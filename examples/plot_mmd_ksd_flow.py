"""
MMD and KSD flows, how they fail and what helps
===============================================

Both discrepancies are zero at the target alone, and both have places where particles rest though it is not reached. MMD
flows with a narrow kernel leave behind the particles that feel no sample; noise on the points at which the gradient is
taken brings many of them back (Arbel, Korba, Salim and Gretton 2019), a kernel without a scale all of them. KSD flows
stay on the symmetry axis of a mixture (Korba, Aubin-Frankowski, Majewski and Ablin 2021); a little noise leaves it.
"""

import matplotlib.pyplot as plt
import torch

import wprox

# %%
# Two modes, known by samples to MMD and by the log-density to KSD.
generator = torch.Generator().manual_seed(0)
means = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
samples = means[torch.arange(200) % 2] + 0.5 * torch.randn(200, 2, generator=generator, dtype=torch.float64)


def log_density(x):
    return torch.logsumexp(-2 * (x[:, None] - means).square().sum(-1), 1)


# MMD starts off to one side, KSD exactly on the axis between the modes
aside = torch.tensor([0.0, 3.0]) + torch.randn(200, 2, generator=generator, dtype=torch.float64)
axis = torch.stack((torch.zeros(200), torch.linspace(-1, 1, 200)), 1).double()
mmd = wprox.MMD(samples, wprox.kernels.Gaussian(1.0))
ksd = wprox.KSD(log_density)


def fading(k):
    return max(0.0, 3.0 * (1 - k / 350))


runs = {
    "MMD, narrow kernel": (mmd, wprox.ExplicitEuler(), aside, 3.0),
    "MMD, with noise": (mmd, wprox.ExplicitEuler(noise=fading), aside, 3.0),
    "MMD, Riesz kernel": (wprox.MMD(samples), wprox.ExplicitEuler(), aside, 0.5),
    "KSD, from the axis": (ksd, wprox.ExplicitEuler(), axis, 0.02),
    "KSD, with noise": (ksd, wprox.ExplicitEuler(noise=lambda k: 0.3 if k < 200 else 0.0), axis, 0.02),
    "KSD, from one side": (ksd, wprox.ExplicitEuler(), aside, 0.02),
}

# %%
# The particles after 400 steps, over the samples.
figure, axes = plt.subplots(2, 3, figsize=(11, 6.5), layout="constrained", sharex=True, sharey=True)
for ax, (title, (functional, solver, start, step_size)) in zip(axes.flat, runs.items(), strict=True):
    trajectory = wprox.jko(functional, solver, wprox.Particles(start), step_size, n_steps=400)
    ax.scatter(*samples.T, s=4, color="0.8")
    ax.scatter(*trajectory.final.points.T, s=5, color="C0")
    ax.set(title=f"{title}: F = {float(trajectory.values[-1]):.2g}", xlim=(-4, 4), ylim=(-3, 8))
plt.show()
