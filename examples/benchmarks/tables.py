"""Held-out likelihood on real tables, beside what one would have used instead of a flow.

    python examples/benchmarks/tables.py --data ../shared/data/tables            # all tables, three splits each
    python examples/benchmarks/tables.py iris yacht --splits 1

Columns with ties (fewer than 95 % distinct values) are dequantised once, for all methods alike, by uniform noise as
wide as the smallest gap between values; copies of columns are dropped. 80/20 split by a seeded permutation,
standardised by the training part; a tenth of the training part selects where a method needs that. Figures are
held-out nats a row (lower is better), the mean over the splits; seconds are CPU time of one thread. zuko's neural
spline flow has as much time as the flow took, but at least ten seconds.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import zuko
from sklearn import datasets
from sklearn.covariance import LedoitWolf

import wprox
from wprox.app.baselines import fit_baselines

SHIPPED = {
    "iris": datasets.load_iris,
    "wine13": datasets.load_wine,
    "breast_cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "digits": datasets.load_digits,
}
GAUSSIAN = {"gauss-50x20": (50, 20), "gauss-200x5": (200, 5), "gauss-300x5": (300, 5)}
TIES = 0.95
LEAST_SECONDS = 10.0


def load(name: str, folder: Path | None) -> np.ndarray:
    """A table by its name: of a folder, of scikit-learn, or Gaussian with correlations up to 1 − 1e-8."""
    if name in GAUSSIAN:
        d = GAUSSIAN[name][1]
        rng = np.random.default_rng(0)
        x = rng.normal(size=(2000, d)) @ rng.normal(size=(d, d))
        x[:, 1] = x[:, 0] + math.sqrt(2e-8) * x[:, 0].std() * rng.normal(size=len(x))
        return x
    if name in SHIPPED:
        data = SHIPPED[name]()
        return np.column_stack([data.data, data.target]) if name == "iris" else np.asarray(data.data)
    if folder is None:
        raise SystemExit(f"{name}: say where the tables are, as in --data ../shared/data/tables")
    return np.loadtxt(folder / f"{name}.csv.gz", delimiter=",")


def dequantised(x: np.ndarray) -> np.ndarray:
    """Without constant columns and copies, and with noise on the columns that have ties."""
    rng, kept = np.random.default_rng(0), []
    for column in x.T:
        if len(np.unique(column)) > 1 and not any(np.array_equal(column, other) for other in kept):
            kept.append(column)
    x = np.stack(kept, 1).astype(float)
    for j, column in enumerate(x.T):
        values = np.unique(column)
        if len(values) < TIES * len(column):
            x[:, j] += rng.uniform(0, np.diff(values).min(), len(column))
    return x


def split(x: np.ndarray, name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows held out, standardised by the former."""
    order = np.random.default_rng(seed).permutation(len(x))
    held = len(x) - GAUSSIAN[name][0] if name in GAUSSIAN else round(0.2 * len(x))
    train, test = x[order[held:]], x[order[:held]]
    mean, std = train.mean(0), train.std(0)
    return (train - mean) / std, (test - mean) / std


def spline_flow(train: np.ndarray, test: np.ndarray, seconds: float) -> float:
    """The held-out NLL of zuko's neural spline flow, trained for so long or until a tenth of the rows says stop."""
    torch.manual_seed(0)
    rows, held_out = (torch.as_tensor(part, dtype=torch.float32) for part in (train, test))
    order = torch.randperm(len(rows))
    validation, rows = rows[order[: len(rows) // 10]], rows[order[len(rows) // 10 :]]
    flow = zuko.flows.NSF(rows.shape[1], transforms=3, hidden_features=(128, 128))
    optimizer = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=1e-4)
    best, state, waited, start = math.inf, copy.deepcopy(flow.state_dict()), 0, time.process_time()
    while time.process_time() - start < seconds and waited < 30:
        for batch in torch.randperm(len(rows)).split(256):
            loss = -flow().log_prob(rows[batch]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            score = float(-flow().log_prob(validation).mean())
        waited += 1
        if score < best:
            best, state, waited = score, copy.deepcopy(flow.state_dict()), 0
    flow.load_state_dict(state)
    with torch.no_grad():
        return float(-flow().log_prob(held_out).mean())


def measured(train: np.ndarray, test: np.ndarray) -> tuple[dict[str, float], str]:
    """Held-out NLL by method, and what the flow chose."""
    start = time.process_time()
    flow = wprox.JKOFlow().fit(torch.as_tensor(train))
    seconds = time.process_time() - start
    result = {"JKO flow": -flow.score(torch.as_tensor(test)), "seconds": seconds}
    result["Ledoit–Wolf"] = -LedoitWolf().fit(train).score(test)
    held = len(train) // 10
    for baseline in fit_baselines(train[held:], train[:held], test):
        result[baseline.name] = baseline.nll
    result["zuko NSF"] = spline_flow(train, test, max(seconds, LEAST_SECONDS))
    return result, str(flow.selection_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", help="names; all by default")
    parser.add_argument("--data", type=Path, help="folder with NAME.csv.gz")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true", help="say what the flow chose")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    names = options.tables or [*SHIPPED, *GAUSSIAN]
    if not options.tables and options.data:
        names += sorted(path.name.removesuffix(".csv.gz") for path in options.data.glob("*.csv.gz"))
    methods = ["JKO flow", "Ledoit–Wolf", "Gaussian", "Gaussian mixture", "kernel density", "zuko NSF"]
    print(
        f"{'table':14} {'rows':>6} {'d':>3} " + " ".join(f"{method:>16}" for method in methods) + "  ahead by   seconds"
    )
    for name in names:
        x = dequantised(load(name, options.data))
        results = []
        for seed in range(options.splits):
            train, test = split(x, name, seed)
            result, said = measured(train, test)
            results.append(result)
            if options.verbose:
                print(f"  split {seed}: {said}; " + ", ".join(f"{key} {value:.3f}" for key, value in result.items()))
        mean = {key: float(np.mean([result[key] for result in results])) for key in results[0]}
        gain = min(mean[method] for method in methods[1:]) - mean["JKO flow"]
        figures = " ".join(f"{mean[method]:16.3f}" for method in methods)
        print(f"{name:14} {len(train):6} {x.shape[1]:3} {figures} {gain:9.3f} {mean['seconds']:9.1f}", flush=True)


if __name__ == "__main__":
    main()
