"""What one would have used instead of a flow: the best Gaussian, Gaussian mixture and kernel density estimate."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_triangular

from wprox._checks import as_points, check_count
from wprox.models.flow.preprocessing import Preprocessing
from wprox.models.flow.table.columns import TableColumns
from wprox.models.flow.table.preprocessing import TablePreprocessing

COMPONENTS = (1, 2, 5, 10, 20, 50)
REGULARIZATIONS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
GAUSSIAN_NOISY_ENTRIES = 10_000_000  # rows × columns over all draws of the dequantisation noise, at most
MIXTURE_ROWS = 20_000  # that a mixture is fitted to, at most
MIXTURE_ENTRIES = 100_000  # rows × columns, at most; the cost grows by another factor of columns
MIXTURE_NOISY_ENTRIES = 300_000  # the same over all draws of the dequantisation noise
KERNEL_SHAPES = (None, 1e-3, 1e-1)  # isotropic, or the covariance plus so much of the identity
KDE_CENTRES = 20_000
KDE_VALIDATION = 500
KDE_HELD_OUT = 10_000
CHUNK_ENTRIES = 4_000_000  # pairs of points in memory at once

_Density = Callable[[np.ndarray], np.ndarray]  # z: (n, d) → log p(z): (n,)


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline.

    Attributes:
        name: "Gaussian", "Gaussian mixture" or "kernel density".
        setting: what was chosen on the validation rows, and where only part of the rows was used.
        nll: mean negative log-likelihood of the held-out rows, nats a row, in the units of the data.
        validation_nll: the same on the validation rows, before the refit on all.
        seconds: the wall time.
    """

    name: str
    setting: str
    nll: float
    validation_nll: float
    seconds: float


@dataclass(frozen=True)
class _Part:
    """Rows in one coordinate system: z: (n, d), log|det ∂z/∂x|: (n,)."""

    z: np.ndarray
    log_det: np.ndarray

    def nll(self, density: _Density) -> float:
        return -float(np.mean(density(self.z) + self.log_det))

    def subset(self, rows: np.ndarray) -> _Part:
        return _Part(self.z[rows], self.log_det[rows])


class _Coordinates:
    """Training, validation and held-out rows in one coordinate system."""

    def __init__(
        self,
        name: str,
        parts: Sequence[torch.Tensor],
        integer: bool,
        bounds: Any,
        seed: int,
        columns: TableColumns | None = None,
    ) -> None:
        self.name = name
        plain = Preprocessing(integer=integer, bounds=bounds, drop_constant=True, plain=True)
        self.preprocessing = (plain if columns is None else TablePreprocessing(columns, plain=True)).fit(parts[0])
        self.rows, self.validation_rows, self.seed = parts[0], parts[1], seed
        self.validation, self.held_out = (self._scored(part) for part in parts[1:])

    def train(self, draws: int = 1) -> np.ndarray:
        """The training rows, (draws × n, d)."""
        return self._points(self.rows, draws)

    def both(self, draws: int = 1) -> np.ndarray:
        """The training and validation rows, which the chosen model is fitted to in the end."""
        return self._points(torch.cat([self.rows, self.validation_rows]), draws)

    def draws(self, most: int, entries: int) -> int:
        """How many draws of the dequantisation noise a row to fit to: `most`, or as many as `entries` numbers hold."""
        return max(1, min(most, entries // (len(self.rows) * self.preprocessing.dim)))

    def _points(self, x: torch.Tensor, draws: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(self.seed)
        return self.preprocessing.forward(x.repeat(draws, 1), generator)[0].numpy()

    def _scored(self, x: torch.Tensor) -> _Part:
        """Rows to be scored, dequantised exactly as `JKOFlow.log_prob` does it."""
        draws = self.preprocessing.scored(x)
        z, log_det = (torch.cat([draw[k] for draw in draws]).numpy() for k in range(2))
        return _Part(z, log_det)


@dataclass(frozen=True)
class _Choice:
    """The best setting of one family in one coordinate system.

    `held_out` refits and returns the held-out NLL; `place` says to the mixtures' search where to go on.
    """

    setting: str
    validation_nll: float
    held_out: Callable[[], float]
    place: tuple[int, int] = (0, 0)


def fit_baselines(
    train: Any,
    validation: Any,
    held_out: Any,
    *,
    integer: bool = False,
    bounds: tuple[Any, Any] | None = None,
    columns: TableColumns | None = None,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> list[Baseline]:
    r"""The best Gaussian, Gaussian mixture and Gaussian kernel density estimate, with their held-out NLL.

    Each family is fitted in standardised coordinates and, for bounded data, also in logit coordinates; the coordinates
    and the family's settings (ridge; components and `reg_covar`; the kernel's shape and bandwidth) are those with the
    best likelihood of the validation rows. The chosen model is refitted to the training and validation rows together.
    Integers are dequantised by uniform noise, in the end with several draws a row, as the
    flow has them. All likelihoods are in the units of the data: with z = φ(x),
    log p(x) = log p_z(φ(x)) + log |det ∇φ(x)|. Columns that are constant in `train` are left out.

    Large tables are subsampled, and `setting` says so: a mixture sees at most 20,000 rows, a kernel density estimate
    has at most 20,000 centres and is evaluated on at most 10,000 held-out rows.

    Arguments:
        train: (n, d).
        validation: (m, d), to choose the settings.
        held_out: (k, d), to report on.
        integer: whether the data are integers.
        bounds: (low, high) between which the data lie, as for `JKOFlow`.
        columns: of a table of mixed columns, of which the parts are the numbers (`TableColumns.read`): the models are
            fitted to the coordinates that a flow has, with the same noise and the same bound of the likelihood.
        seed: of the dequantisation, the subsampling and the mixtures' initialisation.
        report: called with one line of text as each family starts.

    Raises:
        ValueError: for tables that are empty, not finite or of different numbers of columns.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(400, 2))
        >>> [b.name for b in fit_baselines(x[:200], x[200:300], x[300:])]
        ['Gaussian', 'Gaussian mixture', 'kernel density']
    """
    parts = [train, validation, held_out]
    if columns is None:
        width = as_points(train, "train").shape[1]
        names = ("train", "validation", "held_out")
        parts = [as_points(x, name, width).double() for x, name in zip(parts, names, strict=True)]
    seed = check_count(seed, "seed", least=0)
    systems = [_Coordinates("standardised", parts, integer, None, seed, columns)]
    noisy = integer or (columns is not None and columns.is_random)
    if bounds is not None:
        systems.append(_Coordinates("logit", parts, integer, bounds, seed))
    families: list[tuple[str, Callable[[_Coordinates, _Choice | None], _Choice]]] = [
        ("Gaussian", _gaussian),
        ("Gaussian mixture", _mixture),
        ("kernel density", _kernel_density),
    ]
    baselines = []
    for name, family in families:
        start = time.perf_counter()
        if report is not None:
            report(name)
        choices = [(family(system, None), system) for system in systems]
        choice, system = min(choices, key=lambda pair: pair[0].validation_nll)
        if noisy:  # with one draw of the noise a row so far; now, in the better coordinates, with several
            choice = family(system, choice)
        setting = f"{choice.setting}, {system.name} coordinates" if len(systems) > 1 else choice.setting
        nll = choice.held_out()
        baselines.append(Baseline(name, setting, nll, choice.validation_nll, time.perf_counter() - start))
    return baselines


def _gaussian(system: _Coordinates, first: _Choice | None) -> _Choice:
    draws = system.draws(8, GAUSSIAN_NOISY_ENTRIES) if first else 1
    train = system.train(draws)
    scores = {ridge: system.validation.nll(_gaussian_density(train, ridge)) for ridge in REGULARIZATIONS}
    ridge = min(scores, key=scores.__getitem__)
    return _Choice(
        f"full covariance, ridge {ridge:g}",
        scores[ridge],
        lambda: system.held_out.nll(_gaussian_density(system.both(draws), ridge)),
    )


def _gaussian_density(z: np.ndarray, ridge: float) -> _Density:
    n, d = z.shape
    mean = z.mean(0)
    cholesky = np.linalg.cholesky((z - mean).T @ (z - mean) / n + ridge * np.eye(d))
    constant = 0.5 * d * math.log(2 * math.pi) + float(np.log(np.diag(cholesky)).sum())

    def density(points: np.ndarray) -> np.ndarray:
        white = solve_triangular(cholesky, (points - mean).T, lower=True)
        return -0.5 * np.square(white).sum(0) - constant

    return density


def _mixture(system: _Coordinates, first: _Choice | None) -> _Choice:
    """The best mixture by a search in place of a full grid.

    For more and more components the regularisation goes downhill from the last best; where there was a first round,
    from its best place on.
    """
    rng = np.random.default_rng(system.seed)
    draws = system.draws(4, MIXTURE_NOISY_ENTRIES) if first else 1
    limit = draws * max(200, min(MIXTURE_ROWS, MIXTURE_ENTRIES // system.preprocessing.dim))
    train, _ = _subsample(system.train(draws), limit, rng)
    components: Sequence[int] = COMPONENTS
    place = REGULARIZATIONS.index(1e-2)
    if first:
        fewest, place = first.place
        components = [k for k in COMPONENTS if fewest <= k <= 2.5 * fewest]
    validation_nll, k, place = _search_mixtures(system, train, components, place)
    both, said = _subsample(system.both(draws), limit, rng)
    return _Choice(
        f"{k} component{'s' if k > 1 else ''}, reg_covar {REGULARIZATIONS[place]:g}{said}",
        validation_nll,
        lambda: system.held_out.nll(_mixture_density(both, k, REGULARIZATIONS[place], system.seed)),
        (k, place),
    )


def _search_mixtures(
    system: _Coordinates, train: np.ndarray, components: Sequence[int], position: int
) -> tuple[float, int, int]:
    """The best validation NLL, its number of components and its place in REGULARIZATIONS."""
    best, worse = (math.inf, 0, 0), 0
    for k in components:
        if 2 * k > len(train) or worse == 2:
            break
        scores: dict[int, float] = {}

        def score(index: int, k: int = k, scores: dict[int, float] = scores) -> float:
            if not 0 <= index < len(REGULARIZATIONS):
                return math.inf
            if index not in scores:
                density = _mixture_density(train, k, REGULARIZATIONS[index], system.seed)
                scores[index] = system.validation.nll(density)
            return scores[index]

        direction = -1 if score(position - 1) < score(position) else 1
        while score(position + direction) < score(position):
            position += direction
        worse = 0 if score(position) < best[0] else worse + 1
        best = min(best, (score(position), k, position))
    return best


def _mixture_density(z: np.ndarray, components: int, reg_covar: float, seed: int) -> _Density:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a mixture stopped early is judged like any other
        mixture = GaussianMixture(components, reg_covar=reg_covar, random_state=seed % 2**32).fit(z)
    return mixture.score_samples


def _kernel_density(system: _Coordinates, first: _Choice | None) -> _Choice:
    """Isotropic kernels, and kernels shaped like the covariance; bandwidths by factors of 2, then of 2^(1/4)."""
    rng = np.random.default_rng(system.seed)
    draws = system.draws(8, KDE_CENTRES * system.preprocessing.dim) if first else 1
    train, _ = _subsample(system.train(draws), KDE_CENTRES, rng)
    validation = system.validation.subset(_rows(len(system.validation.z), KDE_VALIDATION, rng))

    coarse = 2.0 ** np.arange(-10, 3)
    scores = [_kernel_nll(train, validation, shape, coarse) for shape in KERNEL_SHAPES]
    shape, bandwidth = min(
        zip(KERNEL_SHAPES, [coarse[s.argmin()] for s in scores], [s.min() for s in scores], strict=True),
        key=lambda found: found[2],
    )[:2]
    fine = bandwidth * 2.0 ** (np.arange(-3, 4) / 4)
    fine_scores = _kernel_nll(train, validation, shape, fine)
    bandwidth = fine[fine_scores.argmin()]
    both, said = _subsample(system.both(draws), KDE_CENTRES, rng)
    held_out = system.held_out.subset(_rows(len(system.held_out.z), KDE_HELD_OUT, rng))
    if len(held_out.z) < len(system.held_out.z):
        said += f", on {len(held_out.z):,} held-out rows"
    kernel = "isotropic kernel" if shape is None else f"kernel shaped like the covariance + {shape:g} I"
    return _Choice(
        f"bandwidth {bandwidth:.3g}, {kernel}{said}",
        float(fine_scores.min()),
        lambda: float(_kernel_nll(both, held_out, shape, np.array([bandwidth]))[0]),
    )


def _kernel_nll(centres: np.ndarray, part: _Part, shape: float | None, bandwidths: np.ndarray) -> np.ndarray:
    """NLL for kernels of covariance h² I, or h² (Σ + shape I) with Σ that of the centres, one value a bandwidth h."""
    d = centres.shape[1]
    covariance = np.eye(d) if shape is None else np.cov(centres.T).reshape(d, d) + shape * np.eye(d)
    cholesky = np.linalg.cholesky(covariance)
    white_centres, white_points = (solve_triangular(cholesky, z.T, lower=True).T for z in (centres, part.z))
    log_density = kernel_log_density(white_centres, white_points, bandwidths) - np.log(np.diag(cholesky)).sum()
    return -(log_density + part.log_det).mean(1)


def kernel_log_density(centres: np.ndarray, points: np.ndarray, bandwidths: np.ndarray) -> np.ndarray:
    r"""Gaussian kernel density estimates for several bandwidths at once: log (1/n) Σ_i N(x; c_i, h² I).

    Arguments:
        centres: (n, d).
        points: (m, d).
        bandwidths: (b,).

    Returns:
        (b, m).
    """
    n, d = centres.shape
    result = np.empty((len(bandwidths), len(points)))
    chunk = max(1, CHUNK_ENTRIES // n)
    squares = np.square(centres).sum(1)
    for start in range(0, len(points), chunk):
        block = points[start : start + chunk]
        distances = np.square(block).sum(1)[:, None] + squares - 2 * block @ centres.T
        nearest = np.maximum(distances.min(1), 0.0)
        distances -= nearest[:, None]
        for row, h in enumerate(bandwidths):
            kernel = np.exp(distances / (-2 * h**2))
            log_sum = np.log(kernel.sum(1)) - nearest / (2 * h**2)
            result[row, start : start + chunk] = log_sum - math.log(n) - d * math.log(h * math.sqrt(2 * math.pi))
    return result


def _rows(n: int, limit: int, rng: np.random.Generator) -> np.ndarray:
    return np.arange(n) if n <= limit else np.sort(rng.choice(n, limit, replace=False))


def _subsample(z: np.ndarray, limit: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """At most `limit` rows, and a remark where that is fewer than there are."""
    rows = _rows(len(z), limit, rng)
    return z[rows], f", fitted to {limit:,} of {len(z):,} rows" if len(rows) < len(z) else ""
