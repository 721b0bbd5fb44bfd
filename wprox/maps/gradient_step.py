"""Explicit steps along a gradient, as transport maps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wprox._checks import check_count, check_positive
from wprox._modes import in_any_mode
from wprox.maps._inverse import newton_inverse, tolerance_of, with_derivative
from wprox.maps.base import InverseError, TransportMap


class GradientStepMap(TransportMap):
    r"""T(x) = x − γ∇φ(x), invertible while γ∇²φ ≺ I.

    T is then the gradient of the convex function |x|²/2 − γφ, hence the optimal map to its image (Brenier). Its
    Jacobian comes by automatic differentiation, d backward passes a block of points; the inverse by Newton's method.

    Arguments:
        dim: d.
        potential: φ, maps points (n, d) to (n,), twice differentiable in torch.
        step_size: γ > 0.
        batch_size: points whose Jacobians are formed at once.
        tolerance: of |T(x) − y| / (1 + |y|) in the inverse, which goes on as long as it gets better; 1e-10 in float64,
            else 1e-4. A potential that computes in less precision than its points needs a larger one.

    Raises:
        InverseError: by `inverse`, where it finds no point that is mapped there.

    Example:
        >>> import torch
        >>> from wprox.maps import GradientStepMap
        >>> map = GradientStepMap(2, lambda x: x.square().sum(-1) / 2, step_size=0.5)
        >>> y, log_det = map(torch.ones(1, 2))
        >>> y.tolist(), log_det.exp().tolist(), map.inverse(y).tolist()
        ([[0.5, 0.5]], [0.25], [[1.0, 1.0]])
    """

    def __init__(
        self,
        dim: int,
        potential: Callable[[Tensor], Tensor],
        step_size: float,
        batch_size: int = 4096,
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_count(dim, "dim")
        self.potential = potential
        self.step_size = check_positive(step_size, "step_size")
        self.batch_size = check_count(batch_size, "batch_size")
        self.tolerance = tolerance if tolerance is None else check_positive(tolerance, "tolerance")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self._expand(batch) for batch in x.split(self.batch_size)]
        return torch.cat([y for y, _ in parts]), torch.cat([jacobian.slogdet().logabsdet for _, jacobian in parts])

    def jacobian(self, x: Tensor) -> Tensor:
        """∇T = I − γ∇²φ at points (n, d), (n, d, d), without a graph."""
        return torch.cat([self._expand(batch)[1] for batch in x.detach().split(self.batch_size)])

    def least_stretch(self, x: Tensor) -> float:
        """The smallest eigenvalue of ∇T at points (n, d); T folds where it is not positive."""
        return min(float(torch.linalg.eigvalsh(self.jacobian(part)).min()) for part in x.split(self.batch_size))

    def inverse(self, y: Tensor) -> Tensor:
        return torch.cat([self._invert(batch) for batch in y.split(self.batch_size)])

    def _invert(self, y: Tensor) -> Tensor:
        try:
            with torch.no_grad():
                x = newton_inverse(self._expand, y, tolerance_of(self.tolerance, y.dtype), "x − γ∇φ(x)")
            return with_derivative(x, self._expand, y)
        except InverseError as error:
            raise InverseError(
                f"{error}: the map may fold there; it is invertible for step_size below 1/L, L the largest eigenvalue "
                f"of ∇²φ, and step_size is {self.step_size:g}",
                error.residual,
            ) from None

    @in_any_mode
    def _expand(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x), (n, d), and ∇T(x), (n, d, d); with a graph where x has one."""
        keep = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            points = x if keep else x.detach().requires_grad_()
            value = self.potential(points).sum()
            rows: list[Tensor] = []
            gradient = torch.zeros_like(points)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, points, create_graph=True)
            for j in range(self.dim):
                row: Tensor | None = None
                if gradient.requires_grad:
                    (row,) = torch.autograd.grad(
                        gradient[:, j].sum(), points, create_graph=keep, retain_graph=True, allow_unused=True
                    )
                rows.append(torch.zeros_like(points) if row is None else row)
            image = points - self.step_size * gradient
            jacobian = torch.eye(self.dim).to(points) - self.step_size * torch.stack(rows, dim=1)
        return (image, jacobian) if keep else (image.detach(), jacobian.detach())
