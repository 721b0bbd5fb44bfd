"""An order for the levels of categories that have none: neighbours are those that are alike in the other columns."""

from __future__ import annotations

import torch
from torch import Tensor

from wprox.models.flow.table.laws import find

ROWS = 20_000  # that the order is found by, at most
INDICATORS = 2_000  # columns of the matrix, at most


def canonical_orders(columns: list[Tensor], levels: list[tuple[float, ...] | None], wanted: list[int]) -> list[Tensor]:
    r"""For each wanted category the places of its levels in the order of their first canonical variate.

    With numbers standardised and a level of frequency p as the column (1_level − p)/√p, as in the factor analysis of
    mixed data (Pagès 2004), the block of the Gram matrix between the levels of a category and all other columns holds
    its correlations with them; the first left singular vector, divided by √p, scores the levels. For one other category
    that is correspondence analysis. In that order, and as normal numbers, the category correlates with the others.

    Arguments:
        columns: (n,) each.
        levels: of each column, `None` for numbers.
        wanted: which columns are categories without an order.
    """
    blocks, roots = [], {}
    step = -(-len(columns[0]) // ROWS)
    for j, (column, own) in enumerate(zip(columns, levels, strict=True)):
        x = column[::step].double()
        if own is None:
            x = torch.where(x.isfinite(), x, x[x.isfinite()].mean())
            blocks.append(((x - x.mean()) / x.std().clamp(min=1e-300))[:, None].nan_to_num(0.0))
            continue
        codes = find(x, x.new_tensor(own))
        indicators = torch.nn.functional.one_hot(codes.clamp(min=0), len(own)).double() * (codes >= 0)[:, None]
        roots[j] = indicators.mean(0).clamp(min=0.5 / len(x)).sqrt()
        blocks.append((indicators - indicators.mean(0)) / roots[j])
    ends = torch.tensor([0, *(block.shape[1] for block in blocks)]).cumsum(0).tolist()
    if ends[-1] > INDICATORS:
        return [torch.arange(len(levels[j] or ())) for j in wanted]
    matrix = torch.cat(blocks, 1)
    gram = matrix.T @ matrix / len(matrix)
    orders = []
    for j in wanted:
        start, end = ends[j], ends[j + 1]
        others = torch.cat((gram[start:end, :start], gram[start:end, end:]), 1)
        if not others.numel():
            orders.append(torch.arange(end - start))
            continue
        scores = torch.linalg.svd(others, full_matrices=False).U[:, 0] / roots[j]
        scores = scores * scores[scores.abs().argmax()].sign()
        orders.append(scores.argsort(stable=True))
    return orders
