"""What a minibatch of particles knows of the particles that it was drawn from, so that its estimates have no bias."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Thinning:
    r"""Rows drawn without replacement, of weights v that make integrals exact in the mean: E Σ v_i f(x_i) = ∫ f dρ.

    Sums over pairs need more: two rows i ≠ j are drawn with E v_i v_j = q w_i w_j, and a row with E v_i² ≠ w_i². So

        Σ_ij w_i w_j k_ij  =  E [ (Σ_ij v_i v_j k_ij − Σ_i v_i² k_ii)/q + Σ_i v_i w_i k_ii ].

    For m of n rows of equal weight v_i = 1/m and q = (1 − 1/m)/(1 − 1/n).

    Attributes:
        weights: w of the rows drawn, (m,), in the whole.
        diagonal: Σ_i w_i² of the whole.
        together: q.
    """

    weights: Tensor
    diagonal: float
    together: float

    def pairs(self, total: Tensor, weights: Tensor, own: Tensor | None) -> Tensor:
        """The estimate of the sum over pairs of the whole.

        Arguments:
            total: Σ_ij v_i v_j k_ij of the minibatch.
            weights: v, (m,).
            own: k_ii, (m,), or one number for all of them; `None` where these pairs are left out of the sums.
        """
        if own is None:
            return total / self.together
        squares, mean = weights.square(), weights * self.weights
        if own.ndim == 0:
            return (total - squares.sum() * own) / self.together + self.diagonal * own
        return (total - squares @ own) / self.together + mean @ own
