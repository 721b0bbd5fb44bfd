"""Optimal transport between Gaussians: the Bures–Wasserstein distance, and its entropic kin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wprox._autograd import Function, Needs, with_gradients


def bures_square(loc: Tensor, factor: Tensor, other_loc: Tensor, other_factor: Tensor) -> Tensor:
    """W₂² between N(m, LLᵀ) and N(m′, L′L′ᵀ), for any factors L, L′: (d, d), in float64."""
    loc, factor = loc.double(), factor.double()
    other_loc, other_factor = other_loc.to(loc), other_factor.to(loc)
    return (loc - other_loc).square().sum() + with_gradients(_procrustes, _in_covariances, factor, other_factor)


def _procrustes(needs: Needs, factor: Tensor, other: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """min_R ‖L − L′R‖² over rotations; at the minimum the derivative of R drops out."""
    left, _, right = torch.linalg.svd(other.mT @ factor)
    rotation = left @ right
    gap = factor - other @ rotation
    return gap.square().sum(), [2 * gap, -2 * gap @ rotation.mT]


def _in_covariances(factor: Tensor, other: Tensor) -> Tensor:
    """The same as tr Σ + tr Σ′ − 2 tr (MᵀM)^½, M = L′ᵀL, which loses digits and has all derivatives."""
    product = other.mT @ factor
    return factor.square().sum() + other.square().sum() - 2 * matrix_root(product.mT @ product).trace()


def entropic_trace(factor: Tensor, other: Tensor, epsilon: float) -> Tensor:
    """−tr X + ε log det(X + ε), X = (4 MMᵀ + ε²)^½, M = LᵀL′: what OT_ε between Gaussians has in L and L′."""

    def compute(needs: Needs, factor: Tensor, other: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        left, values, right = torch.linalg.svd(factor.mT @ other)
        roots = (4 * values.square() + epsilon**2).sqrt()
        slope = (left * (-4 * values / (roots + epsilon))) @ right  # in M
        return -(roots - epsilon * (roots + epsilon).log()).sum(), [other @ slope.mT, factor @ slope]

    def plain(factor: Tensor, other: Tensor) -> Tensor:
        product, identity = factor.mT @ other, torch.eye(len(factor)).to(factor)
        root = matrix_root(4 * product @ product.mT + epsilon**2 * identity)
        return epsilon * (root + epsilon * identity).logdet() - root.trace()

    return with_gradients(compute, plain, factor, other)


def matrix_root(matrix: Tensor) -> Tensor:
    """A^½ of a symmetric positive definite matrix, with derivatives of every order, also where eigenvalues are equal.

    dX of X = A^½ solves X dX + dX X = dA.
    """
    return _MatrixRoot.apply(matrix)


class _MatrixRoot(Function):
    @staticmethod
    def forward(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return _Sylvester.apply(ctx.saved_tensors[0], slope)


class _Sylvester(Function):
    """The Y with XY + YX = G for a symmetric positive definite X."""

    @staticmethod
    def forward(matrix: Tensor, right: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ ((vectors.mT @ right @ vectors) / (values[:, None] + values)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        matrix, solution = ctx.saved_tensors
        by_right = _Sylvester.apply(matrix, slope)
        return -(by_right @ solution.mT + solution.mT @ by_right), by_right
