"""Optimal plans between weighted points, by the network simplex."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from wprox._checks import check_memory


class Plan(NamedTuple):
    """The entries P_ij > 0 of a plan, and the potential ψ of its second marginal.

    Attributes:
        rows: (k,), the i.
        columns: (k,), the j.
        mass: (k,), the P_ij.
        potential: (m,), ψ, with φ_i = min_j ½|x_i − y_j|² − ψ_j for the first marginal; −∞ at points without mass.
    """

    rows: Tensor
    columns: Tensor
    mass: Tensor
    potential: Tensor


def exact_plan(x: Tensor, a: Tensor, y: Tensor, b: Tensor, num_itermax: int = 10**6) -> Plan:
    """The optimal plan between weighted points, by the network simplex of POT, in float64 on the CPU.

    Arguments:
        x: (n, d), with weights a: (n,).
        y: (m, d), with weights b: (m,).
        num_itermax: the largest number of pivots.

    Raises:
        RuntimeError: where these are not enough.
    """
    import ot

    with torch.no_grad():
        cost = half_square_distances(x, y).cpu()
        rows, columns = ((weights > 0).cpu() for weights in (a, b))
        if not (bool(rows.all()) and bool(columns.all())):
            cost = cost[rows][:, columns]
        first, second = (weights[kept.to(weights.device)].double().cpu() for weights, kept in ((a, rows), (b, columns)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # POT warns where it fails, which is an error here
            array, log = ot.emd(
                (first / first.sum()).numpy(),
                (second / second.sum()).numpy(),
                cost.numpy(),
                numItermax=num_itermax,
                log=True,
            )
        if log["warning"] is not None:
            raise RuntimeError(
                f"the network simplex did not find the optimal plan between {len(first)} and {len(second)} points "
                f"({log['warning']}); raise num_itermax, which is {num_itermax}"
            )
        plan = torch.from_numpy(array)
        i, j = plan.nonzero(as_tuple=True)
        potential = torch.full_like(b, -math.inf, dtype=torch.float64, device="cpu")
        potential[columns] = torch.from_numpy(log["v"])
        where = rows.nonzero()[i, 0], columns.nonzero()[j, 0], plan[i, j], potential
        return Plan(*(part.to(x.device) for part in where))


def half_square_distances(x: Tensor, y: Tensor) -> Tensor:
    """½|x_i − y_j|², (n, m) in float64, without cancellation far from the origin."""
    check_memory(3 * len(x) * len(y), f"the distances of {len(x)} from {len(y)} points")
    return torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square() / 2
