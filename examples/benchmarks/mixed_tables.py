"""Tables of mixed columns: how much generated rows are like new real ones, beside SDV's Gaussian copula and CTGAN.

    python examples/benchmarks/mixed_tables.py                        all tables, the flow alone
    python examples/benchmarks/mixed_tables.py --table titanic --methods flow copula ctgan
    python examples/benchmarks/mixed_tables.py --minutes 2 --methods ctgan      CTGAN in two minutes of one core

Half of the rows are modelled; generated rows are held against the others, and so is the modelled half itself ("real",
the ceiling). `marginals`: the total variation of columns of labels and the Kolmogorov distance of numbers, gaps
included, on average; `pairs`: the mean absolute difference of Cramér's V of all pairs of columns, numbers in five bins;
`gaps`: the largest difference of a column's share of gaps; `forest`: the area under the ROC curve, on real rows, of a
random forest for the target that is trained on generated ones. The tables `titanic` and `adult` are made here, with a
dependence like that of the tables of those names; `fair`, `anes96` and `randhie` come with statsmodels. SDV is not
needed for the flow: pip install sdv statsmodels. `seconds` are those of one core; CTGAN has as many as the flow took,
where that ran before it.
"""

from __future__ import annotations

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from wprox import JKOFlow

BINS = 5


def titanic(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """Passengers: classes, fares with zeros, ages with gaps, a deck that is mostly missing."""
    pclass = rng.choice([1, 2, 3], n, p=[0.24, 0.21, 0.55])
    female = rng.random(n) < np.array([0.43, 0.41, 0.29])[pclass - 1]
    age = np.clip(rng.gamma(9, np.array([4.3, 3.4, 2.8])[pclass - 1]), 0.5, 80)
    age = np.where(age < 5, np.round(age * 2) / 2, np.round(age))
    siblings = rng.poisson(np.where(age < 14, 1.6, 0.35))
    parents = rng.poisson(np.where(age < 14, 1.3, 0.25 + 0.2 * female))
    base = np.array([4.1, 2.9, 2.2])[pclass - 1] + 0.25 * np.log1p(siblings + parents)
    fare = np.round(np.exp(base + np.array([0.6, 0.35, 0.3])[pclass - 1] * rng.standard_normal(n)), 2)
    fare = np.where(rng.random(n) < 0.02, 0.0, fare)
    port = rng.random(n)
    embarked = np.where(port < np.array([0.4, 0.1, 0.14])[pclass - 1], "Cherbourg", "Southampton").astype(object)
    embarked[(port > 0.9) & (pclass == 3)] = "Queenstown"
    deck = np.array([rng.choice(list(("ABCDE", "DEF", "EFG")[k - 1])) for k in pclass], dtype=object)
    deck[rng.random(n) > np.array([0.8, 0.09, 0.03])[pclass - 1]] = None
    logit = 1.0 + 2.6 * female - 1.0 * (pclass - 1) - 0.03 * age + 0.8 * (age < 10) - 0.3 * siblings
    survived = rng.random(n) < 1 / (1 + np.exp(-logit))
    age = np.where(rng.random(n) < np.array([0.13, 0.06, 0.28])[pclass - 1], np.nan, age)
    columns = {"pclass": pclass, "sex": np.where(female, "female", "male"), "age": age, "sibsp": siblings}
    return pd.DataFrame(
        columns | {"parch": parents, "fare": fare, "embarked": embarked, "deck": deck, "survived": survived}
    )


def adult(n: int, rng: np.random.Generator) -> pd.DataFrame:
    """A census: education in words and years, hours with a peak at 40, gains mostly 0, gaps that go together."""
    schools = ["7th-8th", "9th", "11th", "HS-grad", "Some-college", "Assoc", "Bachelors", "Masters", "Doctorate"]
    years = np.array([4, 5, 7, 9, 10, 11, 13, 14, 16])
    jobs = ["Service", "Craft", "Transport", "Sales", "Clerical", "Exec", "Prof"]
    age = 17 + np.round(np.clip(rng.gamma(2.6, 8.5, n), 0, 73)).astype(int)
    skill = rng.standard_normal(n) + 0.01 * (age - 38)
    level = np.searchsorted([-2, -1.6, -1.1, 0.0, 0.6, 0.8, 1.5, 2.1], skill + 0.5 * rng.standard_normal(n))
    female = rng.random(n) < 0.33
    job = np.clip(np.round(0.55 * level + 1.3 * rng.standard_normal(n) + 0.8 * female), 0, 6).astype(int)
    married = rng.random(n) < 1 / (1 + np.exp(-(0.09 * (age - 30) - 0.9 * female)))
    marital = np.where(married, "Married", np.where(age + 8 * rng.standard_normal(n) > 38, "Divorced", "Never-married"))
    relation = np.where(married, np.where(female, "Wife", "Husband"), np.where(age < 24, "Own-child", "Not-in-family"))
    hours = np.round(np.clip(40 + 3 * (job - 3) - 5 * female + 11 * rng.standard_normal(n), 1, 99))
    hours = np.where(rng.random(n) < 0.47, 40, hours).astype(int)
    logit = -6.2 + 0.35 * level + 0.3 * job + 0.03 * age + 1.9 * married + 0.025 * (hours - 40) - 0.3 * female
    income = rng.random(n) < 1 / (1 + np.exp(-logit))
    gain = np.where(
        rng.random(n) < 0.03 + 0.15 * income, np.round(np.exp(8 + 0.9 * income + rng.standard_normal(n))), 0
    )
    country = rng.choice(["US", "MX", "PH", "DE", "CA", "IN", "CU"], n, p=[0.9, 0.03, 0.02, 0.015, 0.015, 0.01, 0.01])
    employer = np.where(rng.random(n) < 0.7, "Private", np.where(job > 4, "Self-emp", "Gov")).astype(object)
    occupation = np.array(jobs, dtype=object)[job]
    unknown = rng.random(n) < np.where(age < 22, 0.18, 0.04)
    employer[unknown] = occupation[unknown] = None
    start = np.datetime64("1994-01-03") + np.round(180 * rng.beta(2, 3, n) + 40 * (job > 4)).astype(int)
    numbers = {"age": age, "hours": hours, "gain": gain.astype(int), "years": years[level]}
    labels = {"employer": employer, "education": np.array(schools)[level], "marital": marital, "occupation": occupation}
    more = {"relation": relation, "sex": np.where(female, "Female", "Male"), "country": country}
    return pd.DataFrame(numbers | labels | more | {"interview": start.astype("datetime64[s]"), "income": income})


def shipped(name: str, target: str) -> Callable[[int, np.random.Generator], pd.DataFrame]:
    """A table of statsmodels, at most 8,000 rows of it, with a target of two values."""

    def load(n: int, rng: np.random.Generator) -> pd.DataFrame:
        from importlib import import_module

        frame = import_module(f"statsmodels.datasets.{name}").load_pandas().data.reset_index(drop=True)
        frame = frame.sample(min(n, len(frame)), random_state=0).reset_index(drop=True)
        frame[target] = frame[target] > frame[target].median()
        whole = [c for c in frame if frame[c].dtype == float and (frame[c] == frame[c].round()).all()]
        return frame.astype(dict.fromkeys(whole, int))

    return load


TABLES = {  # what makes it, rows, target
    "titanic": (titanic, 1782, "survived"),
    "adult": (adult, 8000, "income"),
    "fair": (shipped("fair", "affairs"), 6366, "affairs"),
    "anes96": (shipped("anes96", "vote"), 944, "vote"),
    "randhie": (shipped("randhie", "mdvis"), 8000, "mdvis"),
}


def flow(train: pd.DataFrame, n: int, seconds: float) -> pd.DataFrame:
    return JKOFlow(columns="auto").fit(train).sample(n, seed=0)


def described(train: pd.DataFrame) -> Any:
    """What SDV asks to be told of the columns."""
    from sdv.metadata import Metadata

    metadata = Metadata()
    metadata.add_table("table")
    kinds = {"M": "datetime", "b": "boolean", "i": "numerical", "f": "numerical"}
    for name in train:
        metadata.add_column(name, "table", sdtype=kinds.get(getattr(train[name].dtype, "kind", "O"), "categorical"))
    return metadata


def copula(train: pd.DataFrame, n: int, seconds: float) -> pd.DataFrame:
    from sdv.single_table import GaussianCopulaSynthesizer

    synthesizer = GaussianCopulaSynthesizer(described(train))
    synthesizer.fit({"table": train})
    return synthesizer.sample(n)["table"]


def ctgan(train: pd.DataFrame, n: int, seconds: float) -> pd.DataFrame:
    """As many epochs as take about so many seconds, by the time of five."""
    from sdv.single_table import CTGANSynthesizer

    metadata = described(train)
    times = []
    for epochs in (1, 6):
        start = time.process_time()
        CTGANSynthesizer(metadata, epochs=epochs).fit({"table": train})
        times.append(time.process_time() - start)
    each = max(1e-3, (times[1] - times[0]) / 5)
    synthesizer = CTGANSynthesizer(metadata, epochs=max(10, round((seconds - times[0] + each) / each)))
    synthesizer.fit({"table": train})
    return synthesizer.sample(n)["table"]


METHODS = {"flow": flow, "copula": copula, "ctgan": ctgan}


def is_number(column: pd.Series) -> bool:
    kind = column.dtype.kind if hasattr(column.dtype, "kind") else "O"
    return (kind in "iuf" and column.nunique() > 10) or kind == "M"


def as_numbers(column: pd.Series) -> pd.Series:
    return (
        column.astype("int64").where(column.notna()).astype(float) if column.dtype.kind == "M" else column.astype(float)
    )


def distance(real: pd.Series, made: pd.Series) -> float:
    """The Kolmogorov distance of numbers, the total variation of labels; a gap is a number beyond all, or a label."""
    if is_number(real):
        x, y = (np.sort(as_numbers(c).fillna(np.inf).to_numpy()) for c in (real, made))
        places = np.unique(np.concatenate((x, y)))
        return float(
            np.abs(np.searchsorted(x, places, "right") / len(x) - np.searchsorted(y, places, "right") / len(y)).max()
        )
    p, q = (c.astype(str).where(c.notna(), "missing").value_counts(normalize=True) for c in (real, made))
    return float(p.subtract(q, fill_value=0).abs().sum() / 2)


def binned(frame: pd.DataFrame, like: pd.DataFrame) -> pd.DataFrame:
    """Columns as labels: numbers in bins of equal mass in the table `like`."""
    bins = {}
    for name in like:
        if is_number(like[name]):
            edges = np.unique(np.nanquantile(as_numbers(like[name]), np.linspace(0, 1, BINS + 1)[1:-1]))
            numbers = as_numbers(frame[name])
            bins[name] = pd.Series(np.searchsorted(edges, numbers)).where(numbers.notna().to_numpy(), -1).astype(str)
        else:
            bins[name] = frame[name].astype(str).where(frame[name].notna(), "missing").reset_index(drop=True)
    return pd.DataFrame(bins)


def association(frame: pd.DataFrame) -> np.ndarray:
    """Cramér's V of all pairs of columns of labels."""
    found = []
    for x, y in itertools.combinations(frame, 2):
        table = pd.crosstab(frame[x], frame[y]).to_numpy().astype(float)
        expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
        least = max(1, min(table.shape) - 1)
        found.append(np.sqrt(((table - expected) ** 2 / expected).sum() / table.sum() / least))
    return np.array(found)


def forest(train: pd.DataFrame, test: pd.DataFrame, target: str) -> float:
    """The area under the ROC curve of a random forest that is trained on one table and tested on another."""

    def inputs(frame: pd.DataFrame) -> np.ndarray:
        columns = []
        for name in test.columns.drop(target):
            if is_number(test[name]) or test[name].dtype.kind in "iuf":
                columns.append(as_numbers(frame[name]).fillna(-1e9).to_numpy()[:, None])
            else:
                levels = sorted(test[name].dropna().unique())
                columns.append(np.stack([(frame[name] == level).to_numpy() for level in levels], 1).astype(float))
        return np.concatenate(columns, 1)

    said = train[target].astype(bool)
    if said.nunique() < 2:
        return 0.5
    model = RandomForestClassifier(300, min_samples_leaf=3, random_state=0).fit(inputs(train), said)
    return float(roc_auc_score(test[target].astype(bool), model.predict_proba(inputs(test))[:, 1]))


def report(name: str, methods: list[str], seconds: float, seed: int) -> None:
    make, n, target = TABLES[name]
    whole = make(n, np.random.default_rng(seed))
    order = np.random.default_rng(seed + 1).permutation(len(whole))
    train, test = (whole.iloc[np.sort(part)].reset_index(drop=True) for part in np.array_split(order, 2))
    real = association(binned(test, test))
    print(f"\n{name}: {len(train)} rows, {train.shape[1]} columns, seed {seed}")
    print(f"{'':8s}{'marginals':>10s}{'pairs':>8s}{'gaps':>8s}{'forest':>8s}{'seconds':>9s}", flush=True)
    for method in ["real", *methods]:
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002, which SDV draws from
        start = time.process_time()
        made = train if method == "real" else METHODS[method](train, len(train), seconds)
        took = time.process_time() - start
        seconds = took if method == "flow" else seconds
        marginals = np.mean([distance(test[c], made[c]) for c in test])
        pairs = np.abs(association(binned(made, test)) - real).mean()
        gaps = (test.isna().mean() - made.isna().mean()).abs().max()
        score = forest(made, test, target)
        print(f"{method:8s}{marginals:10.4f}{pairs:8.4f}{gaps:8.4f}{score:8.4f}{took:9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", nargs="+", choices=TABLES, default=["titanic", "adult"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["flow"])
    parser.add_argument("--minutes", type=float, default=2.0, help="for CTGAN, where the flow does not run before it")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name, seed in itertools.product(options.table, range(options.seeds)):
        report(name, options.methods, 60 * options.minutes, seed)


if __name__ == "__main__":
    main()
