"""What is compared between real and generated rows: marginals, associations, nearest neighbours and latent points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wprox.metrics.columns import Column, Columns, count_of, rows_of

TRAINING_ROWS = 20_000  # that neighbours are looked for among, at most
QUERIES = 2_000  # rows whose neighbours are looked for, at most
LEVELS = 50  # of a column of text that count as different in distances
NEAR = 0.05  # the part of the held-out rows that sets what is near


@dataclass(frozen=True)
class MarginalDistance:
    """How far apart a column of two tables is.

    Attributes:
        value: the largest difference of the distribution functions (Kolmogorov and Smirnov); for text the total
            variation ½ Σ |p − q|.
        chance: what equal laws stay below in 95 of 100 cases.
        gaps: the parts of the entries that are missing, real and generated.
    """

    value: float
    chance: float
    gaps: tuple[float, float]


def marginal_distance(real: Column, generated: Column) -> MarginalDistance:
    x, y = real.known, generated.known
    gaps = (1 - len(x) / len(real.values), 1 - len(y) / len(generated.values))
    if not len(x) or not len(y):
        return MarginalDistance(math.nan, math.nan, gaps)
    if real.kind != "text":
        both = np.sort(np.concatenate([x, y]))
        shares = [np.searchsorted(np.sort(part), both, side="right") / len(part) for part in (x, y)]
        value, chance = float(np.abs(shares[0] - shares[1]).max()), 1.358 * math.sqrt(1 / len(x) + 1 / len(y))
        return MarginalDistance(value, chance, gaps)
    counts = [np.bincount(part.astype(int), minlength=len(real.levels)) for part in (x, y)]
    pooled = (counts[0] + counts[1]) / (len(x) + len(y))
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(len(part), pooled, 200) / len(part) for part in (x, y)]
    by_chance = np.abs(drawn[0] - drawn[1]).sum(1) / 2
    value = float(np.abs(counts[0] / len(x) - counts[1] / len(y)).sum()) / 2
    return MarginalDistance(value, float(np.quantile(by_chance, 0.95)), gaps)


def associations(columns: Columns) -> np.ndarray:
    """How strongly columns hang together, (d, d), NaN where one does not vary.

    Spearman's rank correlation of numbers, Cramér's V of texts (without a sign), and the correlation ratio of ranks,
    the root of the part of their variance that lies between the texts, of a number and a text.
    """
    d = len(columns)
    result = np.full((d, d), np.nan)
    for j in range(d):
        for k in range(j, d):
            result[j, k] = result[k, j] = _association(columns[j], columns[k])
    return result


def _association(first: Column, second: Column) -> float:
    both = ~(np.isnan(first.values) | np.isnan(second.values))
    x, y = first.values[both], second.values[both]
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    if first.kind != "text" and second.kind != "text":
        return float(np.corrcoef(_midranks(x), _midranks(y))[0, 1])
    if first.kind == second.kind:
        return _cramers_v(x, y)
    return _ratio(x, _midranks(y)) if first.kind == "text" else _ratio(y, _midranks(x))


def _midranks(x: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _cramers_v(x: np.ndarray, y: np.ndarray) -> float:
    rows, columns = (np.unique(part, return_inverse=True)[1] for part in (x, y))
    counts = np.zeros((rows.max() + 1, columns.max() + 1))
    np.add.at(counts, (rows, columns), 1)
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / len(x)
    return math.sqrt(float((np.square(counts - expected) / expected).sum()) / (len(x) * (min(counts.shape) - 1)))


def _ratio(groups: np.ndarray, ranks: np.ndarray) -> float:
    _, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    means = np.bincount(place, ranks) / counts
    return math.sqrt(float((counts * np.square(means - ranks.mean())).sum() / np.square(ranks - ranks.mean()).sum()))


@dataclass(frozen=True)
class Nearest:
    """Distances to the nearest training row, in standard deviations of the columns, 1 for another text.

    Attributes:
        held_out: of real rows that the model has not seen.
        generated: of generated rows.
    """

    held_out: np.ndarray
    generated: np.ndarray

    @property
    def near(self) -> float:
        """The distance within which a twentieth of the held-out rows lie, or the nearest of them."""
        return float(np.sort(self.held_out)[max(1, int(NEAR * len(self.held_out))) - 1])

    @property
    def held_out_near(self) -> float:
        """The part of the held-out rows that are so near: more than a twentieth where several are equally near."""
        return float((self.held_out <= self.near).mean())

    @property
    def generated_near(self) -> float:
        """The part of the generated rows that are so near."""
        return float((self.generated <= self.near).mean())

    @property
    def chance(self) -> float:
        """What that part stays below in 95 of 100 cases, for generated rows of the law of the held-out rows.

        The probability of the k smallest of n draws is a Beta(k, n − k + 1) variable, whatever the law.
        """
        from scipy.stats import betabinom

        n, m = len(self.held_out), len(self.generated)
        k = round(self.held_out_near * n)
        return float(betabinom.ppf(0.95, m, k, n - k + 1)) / m

    @property
    def copies(self) -> tuple[float, float]:
        """The parts of the held-out and of the generated rows that are equal to a training row."""
        return float((self.held_out == 0).mean()), float((self.generated == 0).mean())


def nearest(train: Columns, held_out: Columns, generated: Columns) -> Nearest:
    """Distances of held-out and of generated rows to the training rows; of large tables those of some rows."""
    from sklearn.neighbors import NearestNeighbors

    rng = np.random.default_rng(0)
    parts = [
        rows_of(table, rng.permutation(count_of(table))[:most])
        for table, most in ((train, TRAINING_ROWS), (held_out, QUERIES), (generated, QUERIES))
    ]
    rows, *queries = _coordinates(parts)
    search = NearestNeighbors(n_neighbors=1).fit(rows)
    found = []
    for query in queries:
        distances, places = search.kneighbors(query)
        equal = (rows[places[:, 0]] == query).all(1)  # distances by squares are rounded
        found.append(np.where(equal, 0.0, distances[:, 0]))
    return Nearest(*found)


def _coordinates(tables: Sequence[Columns]) -> list[np.ndarray]:
    """Rows as points: numbers standardised by the first table, a coordinate for gaps and one for each text."""
    blocks: list[list[np.ndarray]] = [[] for _ in tables]
    for parts in zip(*tables, strict=True):
        known = parts[0].known
        spread = float(known.std()) if len(known) else 0.0
        mean, scale = (float(known.mean()) if len(known) else 0.0), (spread if spread > 0 else 1.0)
        for block, part in zip(blocks, parts, strict=True):
            if part.kind == "text":
                levels = np.arange(min(LEVELS, len(part.levels)))
                block.append((part.values[:, None] == levels) / math.sqrt(2))
            else:
                block.append(np.nan_to_num((part.values - mean) / scale)[:, None])
                block.append(np.isnan(part.values)[:, None].astype(float))
    return [np.concatenate(block, axis=1) for block in blocks]


@dataclass(frozen=True)
class LatentFit:
    """How Gaussian latent points of held-out rows are.

    Attributes:
        distances: for each coordinate the largest difference of its distribution function from Φ, (d,).
        chance: what the largest of them stays below in 95 of 100 cases for normal points.
        mean_square: the mean of |z|²/d, 1 for normal points.
        mean_square_error: its standard deviation for normal points, √(2/(n d)).
        levels: of |z|², the quantiles that are compared, (k,).
        quantiles: of |z|² at these levels, and of χ²_d, (2, k).
    """

    distances: np.ndarray
    chance: float
    mean_square: float
    mean_square_error: float
    levels: np.ndarray
    quantiles: np.ndarray


def latent_fit(z: np.ndarray) -> LatentFit:
    from scipy.stats import chi2, norm

    n, d = z.shape
    probabilities = norm.cdf(np.sort(z, axis=0))
    steps = np.arange(n + 1)[:, None] / n
    distances = np.maximum(np.abs(probabilities - steps[:-1]), np.abs(probabilities - steps[1:])).max(0)
    squares = np.square(z).sum(1)
    levels = (np.arange(min(n, 100)) + 0.5) / min(n, 100)
    return LatentFit(
        distances,
        math.sqrt(math.log(2 * d / 0.05) / 2 / n),  # Massart's bound, for d coordinates at once
        float(squares.mean()) / d,
        math.sqrt(2 / (n * d)),
        levels,
        np.stack([np.quantile(squares, levels), chi2.ppf(levels, d)]),
    )
