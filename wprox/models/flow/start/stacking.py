"""The best simple model of a table: a stacked mixture of a Gaussian, a Gaussian mixture and kernel conditionals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.maps.conditionals import ConditionalDensity
from wprox.maps.rosenblatt import RosenblattMap
from wprox.models.flow.start.kernels import (
    CENTRES,
    Bandwidths,
    left_out_log_prob,
    product_bandwidths,
    train_bandwidths,
)
from wprox.models.flow.start.mixtures import Fold, best_gaussian, best_mixture
from wprox.models.flow.start.mixtures import left_out_log_prob as mixture_log_prob

COLUMNS = 100  # above which a start is Gaussian
FEW = 1000  # rows, below which each is left out once; else a part of them is
FOLDS = 3  # where each is
PARTS = 20  # in which Gaussians see rows left out
PART = 0.25  # of the rows, and
MOST = 1000  # of them, that are left out once
UPDATES = 200  # of the weights
PRIOR = 0.5  # rows that every model is credited with
LEAST_WEIGHT = 1e-3  # below which a model is left out


@dataclass(frozen=True)
class Expert:
    """A model of the table among others.

    Attributes:
        name: with its setting.
        log_prob: of the rows left out, (m,), by the model without them.
        density: the model of rows that are given, (n, d).
        weight: π in the stacked mixture.
    """

    name: str
    log_prob: Tensor
    density: Callable[[Tensor], ConditionalDensity]
    weight: float = 0.0


@dataclass(frozen=True)
class Start:
    """What the blocks of a flow begin with.

    Attributes:
        experts: those that have a part in it, with their weights.
        order: of the columns, (d,).
        bandwidth: of the kernel density estimate with a product kernel, column by column, (d,).
        folds: the rows left out, and those kept.
        log_prob: of the rows left out, (m,), fold after fold.
    """

    experts: Sequence[Expert]
    order: Tensor
    bandwidth: Tensor
    folds: Sequence[Fold]
    log_prob: Tensor

    def map(self, x: Tensor) -> RosenblattMap:
        """The map of the stacked mixture of rows x: (n, d) to N(0, I)."""
        points = x[:, self.order]
        densities = [expert.density(points) for expert in self.experts]
        return RosenblattMap(densities, [expert.weight for expert in self.experts], self.order)


def best_start(x: Tensor, seed: int, folds: Sequence[Fold] | None = None) -> Start:
    """The stacked mixture for standardised rows x: (n, d), in float64.

    Arguments:
        folds: which rows are left out; parts of all by default.
    """
    generator = torch.Generator().manual_seed(seed)
    log_bandwidth = product_bandwidths(x, generator)
    order = log_bandwidth.argsort()
    points = x[:, order]
    folds = _folds(len(x), generator) if folds is None else folds
    experts = [_gaussian(points, folds)]
    if x.shape[1] <= COLUMNS:
        experts += [
            _mixtures("Gaussian mixture", points, folds, best_mixture(points, folds, seed)),
            _kernels(points, folds, log_bandwidth[order], generator),
        ]
    log_prob = torch.stack([expert.log_prob for expert in experts], 1)
    weights = stacked_weights(log_prob)
    kept = [
        Expert(expert.name, expert.log_prob, expert.density, float(weight))
        for expert, weight in zip(experts, weights, strict=True)
        if weight > LEAST_WEIGHT
    ]
    return Start(kept, order, log_bandwidth.exp(), folds, torch.logsumexp(weights.log() + log_prob, 1))


def stacked_weights(log_prob: Tensor) -> Tensor:
    r"""π of greatest Π_i Σ_m π_m p_m(x_i) · Π_m π_m^a, for log p_m(x_i): (n, M), by expectation maximisation.

    (Stacked density estimation: Smyth and Wolpert, *Linearly combining density estimators via stacking*, 1999.)
    """
    count = log_prob.shape[1]
    weights = log_prob.new_full((count,), 1 / count)
    for _ in range(UPDATES):
        shares = (weights.log() + log_prob).softmax(1).nan_to_num(0.0)
        weights = (shares.sum(0) + PRIOR) / (len(log_prob) + PRIOR * count)
        weights = weights / weights.sum()
    return weights


def _folds(n: int, generator: torch.Generator) -> list[Fold]:
    order = torch.randperm(n, generator=generator)
    if n >= FEW:
        held = min(MOST, round(PART * n))
        return [Fold(order[held:], order[:held])]
    return _in_folds(order, FOLDS)


def _gaussian(x: Tensor, folds: Sequence[Fold]) -> Expert:
    """A Gaussian judged by rows that are left out a few at a time, since what it needs depends on their number."""
    if len(folds) == 1:
        return _mixtures("Gaussian", x, folds, best_gaussian(x, folds))
    left_out = torch.cat([fold.left_out for fold in folds])
    fine = _in_folds(left_out, PARTS)  # in the same order
    return _mixtures("Gaussian", x, fine, best_gaussian(x, fine))


def _in_folds(rows: Tensor, count: int) -> list[Fold]:
    """So many folds, which leave out rows in the order given."""
    parts = rows.tensor_split(min(count, len(rows)))
    return [Fold(torch.cat([*parts[:k], *parts[k + 1 :]]), parts[k]) for k in range(len(parts))]


def _mixtures(family: str, x: Tensor, folds: Sequence[Fold], chosen: tuple[str, Callable]) -> Expert:
    name, fit = chosen
    return Expert(f"{family}, {name}", mixture_log_prob(fit, x, folds), fit)


def _kernels(x: Tensor, folds: Sequence[Fold], log_bandwidth: Tensor, generator: torch.Generator) -> Expert:
    """Bandwidths trained on the rows of each fold, judged on those left out, which stay centres for one another."""
    points, start = x.float(), Bandwidths.of_product_kernel(log_bandwidth.float())
    centres = torch.randperm(len(x), generator=generator)[:CENTRES]
    found = [train_bandwidths(start, points, centres, fold.kept, generator) for fold in folds]
    log_prob = [
        left_out_log_prob(bandwidths, points, centres, fold.left_out)
        for bandwidths, fold in zip(found, folds, strict=True)
    ]
    mean = Bandwidths(*(torch.stack(parts).mean(0) for parts in zip(*(one.tensors for one in found), strict=True)))

    def density(rows: Tensor) -> ConditionalDensity:
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:CENTRES]
        return mean.density(rows[some])

    return Expert("kernels", torch.cat(log_prob).double(), density)
