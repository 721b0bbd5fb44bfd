"""Gaussians and mixtures of them, with as much shrinkage as rows left out want."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wprox.maps.conditionals import GaussianMixtureDensity

RIDGES = (0.0, 1e-10, 1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 3e-1)
COMPONENTS = (2, 3, 5, 10, 20, 50)
FLOORS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)  # added to the variances of a mixture's components
FIRST_FLOOR = FLOORS.index(1e-2)
MIXTURE_ENTRIES = 100_000  # rows × columns that a mixture is fitted to, at most
ENOUGH = 300  # rows left out, from which on one fold chooses a mixture

Fit = Callable[[Tensor], GaussianMixtureDensity]  # of rows (n, d)


class Fold(NamedTuple):
    """Indices of rows to fit to, and of rows left out."""

    kept: Tensor
    left_out: Tensor


def gaussian_fits() -> dict[str, Fit]:
    """Gaussians with the covariance of the rows plus a ridge, and that of Ledoit and Wolf (2004)."""
    fits: dict[str, Fit] = {f"ridge {ridge:g}": partial(_gaussian, ridge=ridge) for ridge in RIDGES}
    return fits | {"Ledoit–Wolf": _ledoit_wolf}


def _gaussian(x: Tensor, *, ridge: float) -> GaussianMixtureDensity:
    centred = x - x.mean(0)
    return _single(x, centred.mT @ centred / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device))


def _ledoit_wolf(x: Tensor) -> GaussianMixtureDensity:
    from sklearn.covariance import LedoitWolf

    return _single(x, torch.as_tensor(LedoitWolf().fit(x.cpu().numpy()).covariance_).to(x))


def _single(x: Tensor, covariance: Tensor) -> GaussianMixtureDensity:
    """A Gaussian with the mean of rows x.

    Raises:
        torch.linalg.LinAlgError: for a covariance that is singular.
    """
    return GaussianMixtureDensity.of(x.new_ones(1), x.mean(0, keepdim=True), torch.linalg.cholesky(covariance)[None])


def mixture_fit(components: int, floor: float, seed: int) -> Fit:
    """Maximum likelihood by expectation maximisation (scikit-learn's `GaussianMixture`)."""

    def fit(x: Tensor) -> GaussianMixtureDensity:
        from sklearn.mixture import GaussianMixture

        rows = min(len(x), max(200, MIXTURE_ENTRIES // x.shape[1]))
        some = x[torch.linspace(0, len(x) - 1, rows).long()].cpu().numpy()
        count = min(components, max(1, rows // 2))
        with warnings.catch_warnings():  # that it did not converge: rows left out judge it
            warnings.simplefilter("ignore")
            mixture = GaussianMixture(count, reg_covar=floor, random_state=seed).fit(some)
        weights, loc, covariance = (
            torch.as_tensor(np.asarray(part)).to(x) for part in (mixture.weights_, mixture.means_, mixture.covariances_)
        )
        return GaussianMixtureDensity.of(weights.clamp(min=1e-300), loc, torch.linalg.cholesky(covariance))

    return fit


def left_out_log_prob(fit: Fit, x: Tensor, folds: Sequence[Fold]) -> Tensor:
    """log p of the rows left out, fold after fold; −∞ where a fit fails."""
    parts = []
    for fold in folds:
        try:
            parts.append(joint_log_prob(fit(x[fold.kept]), x[fold.left_out]))
        except (torch.linalg.LinAlgError, ValueError):
            parts.append(x.new_full((len(fold.left_out),), -torch.inf))
    return torch.cat(parts)


def joint_log_prob(density: GaussianMixtureDensity, x: Tensor) -> Tensor:
    """log p(x), (n,), at once for all coordinates."""
    u = torch.linalg.solve_triangular(density.cholesky, (x - density.loc[:, None]).mT, upper=False)
    log_det = density.cholesky.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = density.log_weights - log_det - 0.5 * x.shape[1] * np.log(2 * np.pi)
    return torch.logsumexp(constant[:, None] - 0.5 * u.square().sum(1), 0)


def best_gaussian(x: Tensor, folds: Sequence[Fold]) -> tuple[str, Fit]:
    """The Gaussian of greatest likelihood of rows left out."""
    fits = gaussian_fits()
    scores = {name: float(left_out_log_prob(fit, x, folds).mean()) for name, fit in fits.items()}
    name = max(scores, key=scores.__getitem__)
    return name, fits[name]


def best_mixture(x: Tensor, folds: Sequence[Fold], seed: int) -> tuple[str, Fit]:
    """The mixture of greatest likelihood of rows left out, by a search that goes on while more components help."""
    folds = folds[:1] if len(folds[0].left_out) >= ENOUGH else folds
    scores: dict[tuple[int, int], float] = {}

    def score(components: int, place: int) -> float:
        if not 0 <= place < len(FLOORS):
            return -torch.inf
        if (components, place) not in scores:
            fit = mixture_fit(components, FLOORS[place], seed)
            scores[components, place] = float(left_out_log_prob(fit, x, folds).mean())
        return scores[components, place]

    place, best, misses = FIRST_FLOOR, -torch.inf, 0
    for components in COMPONENTS:
        if 2 * components > len(folds[0].kept) or misses == 2:
            break
        for direction in (-1, 1):
            while score(components, place + direction) > score(components, place):
                place += direction
        misses = 0 if score(components, place) > best else misses + 1
        best = max(best, score(components, place))
    if not scores:
        return best_gaussian(x, folds)
    components, place = max(scores, key=scores.__getitem__)
    return f"{components} components, floor {FLOORS[place]:g}", mixture_fit(components, FLOORS[place], seed)
