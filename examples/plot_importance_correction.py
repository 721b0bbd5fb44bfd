"""
Importance correction: weights of modes that lie far apart
==========================================================

Eight modes of unequal mass on a circle, far from one another. A flow that starts from a wide Gaussian finds all of
them, but hardly how much mass each should have: maps move mass locally, and none pays that has to cross the empty
space between two modes. Rejection–resampling steps (Hertrich and Gruhlke, *Importance corrected neural JKO sampling*,
2025) move mass at any distance: a draw where there is too much is replaced by a new draw of the flow, wherever that
lands. The density of the result is known, so that weights, KL and log Z can be read off.
"""

import math

import matplotlib.pyplot as plt
import torch

import wprox

angles = 2 * math.pi * torch.arange(8) / 8
means = 8 * torch.stack((angles.cos(), angles.sin()), dim=1)
mass = torch.tensor([4.0, 1.0, 8.0, 1.0, 2.0, 6.0, 1.0, 1.0]) / 24
target = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(mass),
    torch.distributions.Independent(torch.distributions.Normal(means, 0.7 * torch.ones(8, 2)), 1),
)

# %%
# One sampler with eight correction steps; without them it is the plain flow, with the same blocks.
start = wprox.Gaussian(torch.zeros(2), 36 * torch.eye(2))
corrected = wprox.JKOSampler(target, initial=start, n_blocks=3, n_particles=20_000, fine_tune_iterations=100, seed=0)
plain = corrected.run().sample(20_000, seed=1)
flow_normalizer = corrected.log_normalizer(seed=2)
corrected.correct(8)
draws = corrected.sample(20_000, seed=1)
for stage in corrected.history_:
    print(f"{stage['stage']:<12} KL {stage['kl']:.4f}  effective sample {stage['ess']:.1%}  {stage['seconds']:.1f} s")
print("log Z = 0 by the flow:", flow_normalizer, "and corrected:", corrected.log_normalizer(seed=2))


def weights(x):
    return torch.bincount(torch.cdist(x, means).argmin(1), minlength=8) / len(x)


for name, x in {"flow": plain, "corrected": draws}.items():
    print(f"largest relative error of a mode's mass, {name}: {float((weights(x) / mass - 1).abs().max()):.0%}")

# %%
figure, axes = plt.subplots(1, 4, figsize=(15, 4), layout="constrained")
torch.manual_seed(0)
for ax, (title, x) in zip(
    axes, {"target": target.sample((3000,)), "flow": plain, "corrected": draws}.items(), strict=False
):
    ax.scatter(*x[:3000].T, s=2, alpha=0.4)
    ax.set(aspect="equal", xlim=(-11, 11), ylim=(-11, 11), title=title)
places = torch.arange(8)
for shift, (label, values) in zip(
    (-0.25, 0, 0.25), {"target": mass, "flow": weights(plain), "corrected": weights(draws)}.items(), strict=True
):
    axes[3].bar(places + shift, values, 0.25, label=label)
axes[3].set(title="mass of each mode", xlabel="mode")
axes[3].legend()
plt.show()
