"""
What a kernel density does to particles
=======================================

Particles have no density, so an entropy of them needs one: that of Gaussian kernels at the particles, which gives the
blob energy of Carrillo, Craig and Patacchini (2019). The width of the kernels is a compromise. Narrow ones do not see
the neighbours and let the cloud shrink, wide ones let it clump. Here 300 particles minimise KL to a Gaussian.
"""

import matplotlib.pyplot as plt
import torch

import wprox

spread = torch.tensor([1.0, 0.5], dtype=torch.float64)
target = wprox.Gaussian(torch.zeros(2, dtype=torch.float64), spread.square().diag())
noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
start = wprox.Particles(0.5 * noise + 1)


growing = [0.25 * 2**k for k in range(6)]


def equilibrium(**kernel):
    """Where proximal steps end, and the standard deviations there, relative to those of the target."""
    smooth, solver = start.with_kernel_density(**kernel), wprox.ParticleProx(tolerance=0.02)
    points = wprox.jko(wprox.KL(target), solver, smooth, step_size=growing, n_steps=6).final.points
    return points, points.std(0, correction=0) / spread


# %%
# Fixed bandwidths from narrow to wide, and the default: kernels with the covariance of the particles, scaled by
# Silverman's rule. As they follow every stretching of the cloud, mean and covariance at the minimum are exactly those
# of a Gaussian target.
bandwidths = [0.07, 0.12, 0.2, 0.3, 0.45]
fixed = [equilibrium(bandwidth=h) for h in bandwidths]
points, ratio = equilibrium()
print("default, standard deviations over those of the target:", [round(float(r), 4) for r in ratio])

# %%
# Left: the bias of the standard deviations. Then the clouds, on the contour lines of the target.
figure, axes = plt.subplots(1, 4, figsize=(15, 3.4), layout="constrained")
ratios = torch.stack([r for _, r in fixed])
for axis in range(2):
    axes[0].semilogx(bandwidths, ratios[:, axis], ".-", label=f"axis {axis + 1}, σ = {float(spread[axis]):g}")
axes[0].axhline(1, color="black", linewidth=0.8, linestyle="--", label="the default")
axes[0].set(xlabel="bandwidth", ylabel="standard deviation / target")
axes[0].set_xticks(bandwidths, [str(h) for h in bandwidths], minor=False)
axes[0].minorticks_off()
axes[0].legend()
angle = torch.linspace(0, 2 * torch.pi, 100)
clouds = {f"bandwidth {bandwidths[0]}": fixed[0][0], f"bandwidth {bandwidths[-1]}": fixed[-1][0], "the default": points}
for ax, (title, cloud) in zip(axes[1:], clouds.items(), strict=True):
    for radius in (1, 2):
        ax.plot(radius * spread[0] * angle.cos(), radius * spread[1] * angle.sin(), color="grey", linewidth=0.6)
    ax.scatter(*cloud.T, s=5)
    ax.set(title=title, xlim=(-3, 3), ylim=(-2, 2), xticks=[], yticks=[], aspect="equal")
plt.show()
