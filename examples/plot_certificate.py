r"""
A certificate for a JKO flow
============================

A flow that was trained by proximal steps comes with a bound on what it generates. Each block has a first-order error
ε_n, which a Stein critic estimates from data that the flow has not seen; with the step sizes and the distance of the
data from the Gaussian they bound KL(data ‖ generated), without the density of the data.

Here the density of the data is known, a mixture of four Gaussians, so that the true KL can be held against the bound.
The bound is valid (up to the estimates in it) and not tight: it allows for errors that all point the worst way.
"""

import copy

import matplotlib.pyplot as plt
import torch

import wprox

means = torch.tensor([[6.0, 2.0], [2.0, 2.0], [4.0, 4.0], [4.0, 0.0]])
data = torch.distributions.MixtureSameFamily(
    torch.distributions.Categorical(torch.full((4,), 0.25)),
    torch.distributions.MultivariateNormal(means, 0.25 * torch.eye(2)),
)
torch.manual_seed(0)
training, unseen = data.sample((8000,)), data.sample((20_000,))

# %%
# Joint fine-tuning would improve the likelihood, but its blocks would no longer be proximal steps.
flow = wprox.JKOFlow(step_sizes=1.0, n_blocks=8, standardize=False, fine_tune=False, seed=0).fit(training)
certificate = flow.certificate(unseen)
print(certificate)


def true_kl(n_blocks):
    """KL(data ‖ generated) of the flow's first blocks."""
    part = copy.copy(flow)
    part.blocks_ = flow.blocks_[:n_blocks]
    return float((data.log_prob(unseen) - part.log_prob(unseen)).mean())


steps = range(1, len(flow.blocks_) + 1)
measured = [true_kl(n) for n in steps]
print("true KL after each block:", [round(kl, 4) for kl in measured])
assert all(kl <= bound for kl, bound in zip(measured, certificate.objective, strict=True))

figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
axes[0].scatter(*unseen[:3000].T, s=2, alpha=0.5, label="data")
axes[0].scatter(*flow.sample(3000, seed=0).T, s=2, alpha=0.5, label="generated")
axes[0].set(aspect="equal", title="data and samples of the flow")
axes[0].legend(markerscale=4)
axes[1].bar(steps, certificate.residuals)
axes[1].set(title="error ε of each block, with two standard errors", xlabel="block n")
axes[2].semilogy(steps, certificate.objective, "C3", label="certified bound")
axes[2].semilogy(steps, measured, "o-", color="C0", label="true KL(data ‖ generated)")
axes[2].set(title="KL after n blocks", xlabel="block n")
axes[2].legend()
plt.show()
