r"""
A small table
=============

On a few hundred rows a network learns the rows by heart, and a Gaussian mixture is hard to beat. `wprox.JKOFlow` begins
where the best simple model ends: with the exact map of a stacked mixture of a Gaussian, a Gaussian mixture and kernel
conditionals to the standard normal law. Rows left out choose their weights, and whether blocks come after it.

The table has 250 rows: a column of five levels, one that follows from the level, and one that follows from both.
"""

import matplotlib.pyplot as plt
import torch

import wprox


def table(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    level = torch.randint(0, 5, (n,), generator=generator)
    noise = torch.randn(n, 3, generator=generator)
    curve = torch.sin(1.3 * level) + 0.1 * (1 + level) * noise[:, 0]
    return torch.stack((level + 0.02 * noise[:, 1], curve, curve.square() + 0.1 * noise[:, 2]), 1)


train, held_out = table(250, 0), table(1000, 1)
flow = wprox.JKOFlow(seed=0).fit(train)
print(flow.selection_)

# %%
# Held-out rows, in nats each: the flow, and the Gaussian with the covariance of the table.

gaussian = torch.distributions.MultivariateNormal(train.mean(0), train.T.cov())
figures = {"flow": -flow.score(held_out), "Gaussian": -float(gaussian.log_prob(held_out).mean())}
print({name: round(figure, 2) for name, figure in figures.items()})

# %%
# Levels stay levels in what is generated, and the curve stays a curve.

draws = flow.sample(250, seed=0)
fig, axes = plt.subplots(2, 2, figsize=(7, 6), sharex="col", sharey="col", layout="constrained")
for row, (name, rows) in zip(axes, {"table": train, "generated": draws}.items(), strict=True):
    for axis, (i, j) in zip(row, ((0, 1), (1, 2)), strict=True):
        axis.scatter(rows[:, i], rows[:, j], s=8)
        axis.set(title=name, xlabel=f"column {i + 1}", ylabel=f"column {j + 1}")
plt.show()
