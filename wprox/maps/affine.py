"""Affine maps with a symmetric positive definite matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wprox._checks import as_floating, check_count
from wprox.maps.base import TransportMap


class AffineMap(TransportMap):
    r"""T(x) = A x + b with A = exp(S) symmetric positive definite, so that log det ∇T = tr S.

    Symmetric positive definite matrices are the linear maps that Brenier's theorem allows as optimal, and the matrix
    exponential makes every one of them reachable without a constraint: S = 0 is the identity, −S the inverse.

    Arguments:
        dim: d.

    Example:
        >>> import torch, wprox
        >>> map = wprox.AffineMap(2)
        >>> y, log_det = map(torch.ones(1, 2))
        >>> y.tolist(), log_det.tolist()
        ([[1.0, 1.0]], [0.0])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = check_count(dim, "dim")
        self.log_matrix = nn.Parameter(torch.zeros(dim, dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    @classmethod
    def from_matrix(cls, matrix: Any, shift: Any = None) -> AffineMap:
        """The map x ↦ A x + b with A = `matrix` (d, d), symmetric positive definite, and b = `shift` (d,) or 0.

        Raises:
            ValueError: where A is not symmetric positive definite.
        """
        matrix = as_floating(matrix, "matrix")
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must have shape (d, d), got {tuple(matrix.shape)}")
        if not torch.allclose(matrix, matrix.mT, rtol=1e-4, atol=1e-6):
            raise ValueError("matrix must be symmetric")
        eigenvalues, eigenvectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        if float(eigenvalues.min()) <= 0:
            raise ValueError(
                f"matrix must be positive definite, its smallest eigenvalue is {float(eigenvalues.min()):g}"
            )
        map = cls(len(matrix)).to(matrix)
        with torch.no_grad():
            map.log_matrix.copy_((eigenvectors * eigenvalues.log()) @ eigenvectors.mT)
            if shift is not None:
                map.shift.copy_(as_floating(shift, "shift"))
        return map

    @property
    def config(self) -> dict[str, Any]:
        return {"dim": self.dim}

    def _symmetric(self) -> Tensor:
        return (self.log_matrix + self.log_matrix.mT) / 2

    @property
    def matrix(self) -> Tensor:
        """A, (d, d)."""
        return symmetric_exponential(self._symmetric())

    def rescaled(self, loc: Tensor, scale: float) -> AffineMap:
        """S ∘ T ∘ S⁻¹ with S(z) = m + s z, an affine map again: this one, where x is measured from m in units of s."""
        map = AffineMap(self.dim).to(self.shift)
        with torch.no_grad():
            map.log_matrix.copy_(self.log_matrix)
            map.shift.copy_(loc - loc @ self.matrix + scale * self.shift)
        return map

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addmm(self.shift, x, self.matrix), self.log_matrix.trace().expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return (y - self.shift) @ symmetric_exponential(-self._symmetric())


def symmetric_exponential(symmetric: Tensor) -> Tensor:
    """exp(S) of a symmetric matrix, (d, d), differentiable."""
    return _SymmetricExponential.apply(symmetric)[0]


class _SymmetricExponential(torch.autograd.Function):
    """exp(S) of a symmetric matrix by its eigenvalues, several times faster than `matrix_exp`, which serves for all.

    With S = V diag(λ) Vᵀ the gradient is V ((Vᵀ G V) ∘ Φ) Vᵀ, Φ_ij = (e^λ_i − e^λ_j)/(λ_i − λ_j) (Higham, *Functions of
    matrices*, 2008, corollary 3.12), which is well defined where eigenvalues meet, as the eigenvectors are not.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(symmetric: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eigenvalues, eigenvectors = torch.linalg.eigh(symmetric)
        return (eigenvectors * eigenvalues.exp()) @ eigenvectors.mT, eigenvalues, eigenvectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs, *output[1:])

    @staticmethod
    def backward(ctx: Any, by_matrix: Tensor, *_: Any) -> Tensor:
        symmetric, eigenvalues, eigenvectors = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient that is to be differentiated: a block of a larger exponential (ibid.)
            top = torch.cat((symmetric, by_matrix), 1)
            block = torch.cat((top, torch.cat((torch.zeros_like(symmetric), symmetric), 1)))
            return torch.linalg.matrix_exp(block)[: len(symmetric), len(symmetric) :]
        half = eigenvalues / 2
        gap = half[:, None] - half
        quotient = torch.where(gap == 0, 1.0, gap.sinh() / gap) * (half[:, None] + half).exp()
        return eigenvectors @ (eigenvectors.mT @ by_matrix @ eigenvectors * quotient) @ eigenvectors.mT
