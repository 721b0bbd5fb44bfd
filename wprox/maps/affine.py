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
        return torch.linalg.matrix_exp(self._symmetric())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.addmm(self.shift, x, self.matrix), self.log_matrix.trace().expand(len(x))

    def inverse(self, y: Tensor) -> Tensor:
        return (y - self.shift) @ torch.linalg.matrix_exp(-self._symmetric())
