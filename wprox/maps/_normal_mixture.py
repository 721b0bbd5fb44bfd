"""Mixtures of normal laws on the line, many at once: densities, normal scores and their inverse."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_TWO_PI = math.log(2 * math.pi)
FAR = -25.0  # log P(N(0, 1) > y), below which y comes from an asymptotic series
NEGLIGIBLE = -60.0  # log-weight under the largest, below which a component has no part in a quantile
LOST = 1e-280  # a probability, below which sums of its parts lose digits
ASYMPTOTIC = 300.0  # from where φ(y)/Φ(−y) is its series to all digits
INVERSE_ROOT_TWO = 1 / math.sqrt(2)
ITERATIONS = 200  # of the search for a quantile; bisection alone needs about 100


class NormalMixture(NamedTuple):
    """Laws Σ_k w_k N(m_k, s_k²) on the line, one a row.

    Attributes:
        log_weights: log w_k, (n, K), of sum 1 in each row.
        loc: m_k, (n, K).
        log_scale: log s_k, (K,) or (n, K).
    """

    log_weights: Tensor
    loc: Tensor
    log_scale: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of x: (n,), a number a row."""
        u = (x[:, None] - self.loc) * (-self.log_scale).exp()
        return torch.logsumexp(self.log_weights - self.log_scale - 0.5 * (u.square() + LOG_TWO_PI), 1)

    def score(self, x: Tensor) -> Tensor:
        """z = Φ⁻¹(F(x)) of x: (n,), with all digits in both tails."""
        u = (x[:, None] - self.loc) * (-self.log_scale).exp()
        with torch.no_grad():
            below = (self.log_weights.exp() * torch.erfc(u * -INVERSE_ROOT_TWO)).sum(1) < 1  # twice the probability
        side = torch.where(below, 1.0, -1.0).to(x)
        return -side * normal_quantile(self._log_tail(u, side))

    def quantile(self, z: Tensor) -> Tensor:
        """x with F(x) = Φ(z), for z: (n,).

        It lies between the least and the largest of the components' own, m_k + s_k z: Newton's method between them for
        the logarithm of the nearer tail, and bisection where a step leaves the bracket or is over half of the last.
        """
        if not len(z):
            return z
        law = self._of_weight()
        side = torch.where(z < 0, 1.0, -1.0).to(z)
        goal = torch.special.log_ndtr(-z.abs())
        ends = law.loc + law.log_scale.exp() * z[:, None]
        possible = law.log_weights > -math.inf
        low = torch.where(possible, ends, math.inf).amin(1)
        high = torch.where(possible, ends, -math.inf).amax(1)
        x, before = (low + high) / 2, high - low
        rows, result = torch.arange(len(z), device=z.device), x.clone()
        for _ in range(ITERATIONS):
            log_tail, log_prob = law._tail(x, side)
            error = side * (log_tail - goal)  # of the sign of F(x) − Φ(z)
            low, high = torch.where(error < 0, x, low), torch.where(error < 0, high, x)
            step = error * (log_tail - log_prob).exp()
            newton, middle = x - step, (low + high) / 2
            inside = (newton > low) & (newton < high) & (2 * step.abs() < before)
            rounding = 2 * torch.finfo(z.dtype).eps * (low.abs() + high.abs())
            result[rows] = x
            going = (error != 0) & (high - low > rounding) & ~(step.abs() < rounding / 4)
            if not bool(going.any()):
                break
            before = torch.where(inside, step.abs(), (high - low) / 2)
            x = torch.where(inside, newton, middle)
            if not bool(going.all()):
                parts = (part[going] for part in (rows, x, goal, side, low, high, before))
                (rows, x, goal, side, low, high, before), law = parts, law.rows(going)
        return result

    def _tail(self, x: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
        """log P(X < x) where the side is 1, log P(X > x) where it is −1, and log p(x), for x: (n,)."""
        u = (x[:, None] - self.loc) * (-self.log_scale).exp()
        log_prob = torch.logsumexp(self.log_weights - self.log_scale - 0.5 * (u.square() + LOG_TWO_PI), 1)
        return self._log_tail(u, side), log_prob

    def _log_tail(self, u: Tensor, side: Tensor) -> Tensor:
        tail = (self.log_weights.exp() * torch.erfc(u * (-INVERSE_ROOT_TWO * side[:, None]))).sum(1) / 2
        is_lost = tail < LOST
        log_tail = tail.masked_fill(is_lost, 0.5).clamp(max=0.5).log()
        if bool(is_lost.any()):
            far = self.log_weights[is_lost] + torch.special.log_ndtr(side[is_lost, None] * u[is_lost])
            log_tail = log_tail.masked_scatter(is_lost, torch.logsumexp(far, 1))
        return log_tail

    def rows(self, which: Tensor) -> NormalMixture:
        """The laws of some rows."""
        log_scale = self.log_scale[which] if self.log_scale.ndim == 2 else self.log_scale
        return NormalMixture(self.log_weights[which], self.loc[which], log_scale)

    def _of_weight(self) -> NormalMixture:
        """The laws without the components whose weight is nothing beside the largest."""
        kept = self.log_weights > self.log_weights.amax(1, keepdim=True) + NEGLIGIBLE
        count = max(1, int(kept.sum(1).max()))
        if 2 * count > self.loc.shape[1]:
            return self
        log_weights, index = self.log_weights.topk(count, 1)
        log_scale = self.log_scale.expand_as(self.loc).gather(1, index)
        return NormalMixture(log_weights, self.loc.gather(1, index), log_scale)


def normal_quantile(log_tail: Tensor) -> Tensor:
    """y ≥ 0 with log P(N(0, 1) > y) = `log_tail` ≤ log ½, where the probability itself is no number any more, too.

    From −25 down by Newton's method from the leading terms of the asymptotic series; its last two steps have the graph,
    which makes the first and the second derivative right.
    """
    is_far = log_tail < FAR
    near = -torch.special.ndtri(log_tail.masked_fill(is_far, FAR).exp())
    if not bool(is_far.any()):
        return near
    far = log_tail.masked_fill(~is_far, FAR)
    with torch.no_grad():
        y = (-2 * far - (-4 * math.pi * far).log()).sqrt()
        for _ in range(3):
            y = _newton(y, far)
    return torch.where(is_far, _newton(_newton(y, far), far), near)


def _newton(y: Tensor, log_tail: Tensor) -> Tensor:
    reached = torch.special.log_ndtr(-y)
    near = (-0.5 * y.square() - 0.5 * LOG_TWO_PI - reached).clamp(max=10.0).exp()
    hazard = torch.where(y < ASYMPTOTIC, near, y + 1 / y - 2 / y**3)
    return y + (reached - log_tail) / hazard
