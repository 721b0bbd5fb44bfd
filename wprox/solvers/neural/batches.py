"""Minibatches drawn without replacement: no particle meets its own copy, and estimates have no bias."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wprox.measures import Particles

LEAST = 2  # rows in a minibatch, where there are so many


class Batch(NamedTuple):
    """Rows drawn from particles.

    Attributes:
        rows: their indices, (m,).
        weights: v of the rows, (m,), summing to 1; `None` where all rows were taken, as they are.
        together: q with E v_i v_j = q w_i w_j for i ≠ j.
    """

    rows: Tensor
    weights: Tensor | None = None
    together: float = 1.0

    def of(self, measure: Particles) -> Particles:
        """The minibatch of particles."""
        if self.weights is None:
            return measure
        return measure.minibatch(self.rows, self.weights, self.together)


class Batches:
    r"""Draws m of n rows of weights w, without replacement, such that E Σ_i v_i f_i = Σ_i w_i f_i and Σ_i v_i = 1.

    Rows of equal weight are dealt in random order, and shuffled anew when fewer than m are left: v = 1/m and
    q = (1 − 1/m)/(1 − 1/n). Else each draw divides the rows with mass into m random groups, as even in number as can
    be, and takes one row of each group in proportion to its weight, which carries the weight of its group (Rao, Hartley
    and Cochran, *On a simple procedure of unequal probability sampling without replacement*, 1962). Draws of two
    groups are independent, so that q is the probability that two rows are in different groups,
    1 − Σ_g p_g (p_g − 1)/(n (n − 1)), whatever their weights are.

    Arguments:
        weights: w, (n,).
        size: m, and 2 for 1, of which functionals of pairs would know nothing; all rows in order where there are no
            more.
        generator: of the draws, on the CPU.
    """

    def __init__(self, weights: Tensor, size: int, generator: torch.Generator) -> None:
        self.size, self.generator, self.device = max(size, LEAST), generator, weights.device
        self.rows = len(weights)
        self.even = bool((weights == weights[0]).all())
        self.carriers = weights.nonzero()[:, 0].cpu()
        self.weights = weights.double().cpu()[self.carriers]
        self.order = self.carriers[:0]  # of the rows still to be dealt

    def draw(self) -> Batch:
        """The next minibatch."""
        n, m = self.rows, self.size
        if n <= m:
            return Batch(torch.arange(n, device=self.device))
        if not self.even:
            return self._from_groups()
        if len(self.order) < m:
            self.order = torch.randperm(n, generator=self.generator)
        rows, self.order = self.order[:m], self.order[m:]
        weights = torch.full((m,), 1 / m, dtype=torch.float64, device=self.device)
        return Batch(rows.to(self.device), weights, (1 - 1 / m) / (1 - 1 / n))

    def _from_groups(self) -> Batch:
        """One row of each of m random groups, or every row with mass where there are no more."""
        n = len(self.carriers)
        m = min(self.size, n)
        order = torch.randperm(n, generator=self.generator)
        sizes = torch.full((m,), n // m)
        sizes[: n % m] += 1
        ends = sizes.cumsum(0)
        sums = torch.cat((torch.zeros(1, dtype=torch.float64), self.weights[order].cumsum(0)))
        low, high = sums[ends - sizes], sums[ends]
        at = low + torch.rand(m, dtype=torch.float64, generator=self.generator) * (high - low)
        # rounding must not lead into the next group
        found = torch.searchsorted(sums, at, right=True) - 1
        rows = self.carriers[order[torch.minimum(torch.maximum(found, ends - sizes), ends - 1)]]
        together = 1 - float((sizes * (sizes - 1)).sum()) / max(n * (n - 1), 1)
        weights = (high - low) / sums[-1]
        return Batch(rows.to(self.device), weights.to(self.device), together)
