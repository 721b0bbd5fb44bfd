"""
A table as it is
================

Customers of a shop: a town, a plan, a number of visits, what was paid (nothing, by many), an age that is missing for
some, and the day of the first visit. `columns="auto"` finds out what each column is, models all of them together, gaps
included, and gives rows of the same kinds back.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import wprox

# %%
# A table with dependence
# -----------------------
# Older people live in Ulm and do not tell their age; a better plan means more visits and higher bills.

rng = np.random.default_rng(0)
n = 900
town = rng.choice(["Bonn", "Köln", "Ulm"], n, p=[0.5, 0.3, 0.2])
plan = rng.choice(["free", "basic", "gold"], n, p=[0.5, 0.3, 0.2])
level = np.select([plan == "basic", plan == "gold"], [1.0, 2.0], 0.0)
age = np.round(18 + rng.gamma(4, 6, n) + 15 * (town == "Ulm"))
visits = rng.poisson(3 + 4 * level)
bill = np.round(np.exp(1 + 0.8 * level + 0.02 * age + 0.4 * rng.standard_normal(n)), 2)
rows = pd.DataFrame(
    {
        "town": town,
        "plan": pd.Categorical(plan, ["free", "basic", "gold"], ordered=True),
        "visits": visits,
        "paid": np.where(rng.random(n) < 0.6 - 0.25 * level, 0.0, bill),
        "age": np.where(rng.random(n) < np.where(town == "Ulm", 0.4, 0.1), np.nan, age),
        "since": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.round(600 * rng.beta(2, 1 + level)), unit="D"),
    }
)

# %%
# Fit and sample
# --------------
# The flow says how it took each column. Rows that it makes are a data frame like the data.

flow = wprox.JKOFlow(columns="auto", seed=0).fit(rows)
print(flow.columns_)
made = flow.sample(n, seed=0)
print(made.head())
print(f"log-probability of the rows, on average: {flow.log_prob(rows).mean():.2f}, of new ones {flow.score(made):.2f}")

# %%
# Real and generated
# ------------------

figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
colours = {"data": "0.7", "generated": "C1"}
tables = {"data": rows, "generated": made}
for k, (name, frame) in enumerate(tables.items()):
    share = frame.groupby(["town", "plan"], observed=True).size() / n
    axes[0, 0].bar(np.arange(9) + 0.4 * k, share, 0.4, color=colours[name], label=name)
    axes[0, 1].hist(
        frame["visits"], np.arange(-0.5, 25), density=True, color=colours[name], histtype=["bar", "step"][k]
    )
    paid = frame["paid"].replace(0, 0.3)
    axes[0, 2].hist(paid, np.geomspace(0.25, 500, 40), color=colours[name], histtype=["bar", "step"][k])
    gaps = frame["age"].isna().groupby(frame["town"]).mean()
    axes[1, 0].bar(np.arange(3) + 0.4 * k, gaps, 0.4, color=colours[name])
    axes[1, k + 1].scatter(
        frame["since"], frame["paid"].replace(0, 0.3), s=6, c=frame["plan"].cat.codes, cmap="viridis", alpha=0.6
    )
    axes[1, k + 1].set(yscale="log", ylim=(0.2, 500), title=f"{name}: paid by first visit, colour: plan")
    axes[1, k + 1].tick_params(axis="x", rotation=30)
axes[0, 0].set(title="town and plan", xticks=np.arange(9) + 0.2)
axes[0, 0].set_xticklabels(
    [f"{t} {p}" for t in ("Bonn", "Köln", "Ulm") for p in ("free", "basic", "gold")], rotation=60
)
axes[0, 1].set(title="visits")
axes[0, 2].set(title="paid (nothing: the bar on the left)", xscale="log")
axes[1, 0].set(title="share of ages that are missing", xticks=np.arange(3) + 0.2, xticklabels=["Bonn", "Köln", "Ulm"])
figure.legend(loc="outside upper center", ncols=2, frameon=False)
plt.show()
