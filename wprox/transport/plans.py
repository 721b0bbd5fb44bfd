"""Optimal plans between weighted points, by the network simplex."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wprox._autograd import Function
from wprox.pairs.distances import half_square_distances


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
    return Plan(*_ExactPlan.apply(x, a, y, b, num_itermax))


class _ExactPlan(Function):
    """The network simplex on numbers: torch hands it no tensors that wear a transform of torch.func."""

    @staticmethod
    def forward(x: Tensor, a: Tensor, y: Tensor, b: Tensor, num_itermax: int) -> tuple[Tensor, ...]:
        import ot

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
        return tuple(part.to(x.device) for part in where)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> tuple[None, ...]:
        return None, None, None, None, None
