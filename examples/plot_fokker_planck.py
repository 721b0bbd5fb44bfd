"""
Langevin dynamics without noise: the Fokker–Planck equation
===========================================================

The law of dX = −∇V(X) dt + √2 dW follows the gradient flow of KL(ρ ‖ e^{−V}) in Wasserstein space (Jordan, Kinderlehrer
and Otto 1998). Here V has two wells joined by a bent valley; all mass starts in one of them, settles there at once, and
then leaks slowly into the other.
"""

import matplotlib.pyplot as plt
import torch

import wprox


def log_gibbs(x):
    """−V, not normalised and not separable."""
    return -(2 * (x[:, 0].square() - 1).square() + 4 * (x[:, 1] - 0.6 * x[:, 0].square() + 0.4).square())


# %%
# Steps that double as the flow slows down: from 0.02 to 2.56.
bounds, shape = [(-2.2, 2.2), (-2.0, 2.4)], (128, 128)
initial = wprox.Grid.from_density(
    lambda x: torch.exp(-10 * (x - x.new_tensor([1.2, 0.9])).square().sum(-1)), shape, bounds
)
functional = wprox.KL(log_gibbs)
step_sizes = [0.02 * 2 ** (k // 5) for k in range(38)]
solver = wprox.SinkhornProx(blur=3 * initial.cell_widths[0])
trajectory = wprox.jko(functional, solver, initial, step_sizes, n_steps=38)

# %%
# The values are KL(ρ ‖ e^{−V}) up to log Z. They fall in two phases, one for each time scale.
gibbs = wprox.Grid.from_density(lambda x: log_gibbs(x).exp(), shape, bounds)
divergence = torch.stack(trajectory.values) - functional(gibbs)
times = torch.tensor([0.0, *step_sizes]).cumsum(0)
figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
for ax, k in zip(axes, [0, 8, 38], strict=False):
    trajectory.measures[k].plot(ax)
    ax.set_title(f"t = {float(times[k]):.2f}")
axes[3].semilogy(times, divergence, ".-")
distance = (trajectory.final.weights - gibbs.weights).abs().sum()
axes[3].set(xlabel="t", ylabel="KL(ρ | Gibbs)", title=f"L1 distance at the end: {float(distance):.4f}")
plt.show()
