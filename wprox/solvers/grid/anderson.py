"""Anderson acceleration of a fixed-point iteration."""

from __future__ import annotations

import torch
from torch import Tensor

REGULARISATION = 1e-10  # of the normal equations, relative to their trace


class Anderson:
    r"""x_{k+1} = g_k − Σ_j c_j (g_{j+1} − g_j), c = argmin |r_k − Σ_j c_j (r_{j+1} − r_j)|², with r = g − x.

    Type-II Anderson acceleration (Walker and Ni, *Anderson acceleration for fixed-point iterations*, SIAM J. Numer.
    Anal. 2011, equations 2.2 and 2.3), in a weighted norm that the caller may change from one iteration to the next.

    Arguments:
        memory: the number of differences kept; 0 gives the plain iteration x_{k+1} = g_k.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.restart()

    def restart(self) -> None:
        """Forget all differences."""
        self.count = 0
        self.last: tuple[Tensor, Tensor] | None = None

    def next(self, x: Tensor, image: Tensor, scale: Tensor) -> Tensor:
        """The next iterate.

        Arguments:
            x: (k, n), the iterate.
            image: (k, n), its image g under the fixed-point map.
            scale: (n,), the square roots of the weights of the norm.
        """
        if self.memory == 0:
            return image
        residual = image - x
        if self.last is None:
            self.residuals = x.new_empty(self.memory, *x.shape)
            self.images = x.new_empty(self.memory, *x.shape)
            self.last = image, residual
            return image
        slot = self.count % self.memory
        torch.sub(residual, self.last[1], out=self.residuals[slot])
        torch.sub(image, self.last[0], out=self.images[slot])
        self.count += 1
        self.last = image, residual
        kept = min(self.count, self.memory)
        scaled = (self.residuals[:kept] * scale).reshape(kept, -1)
        normal = (scaled @ scaled.mT).double()
        right = (scaled @ (residual * scale).reshape(-1)).double()
        ridge = REGULARISATION * normal.trace() + torch.finfo(torch.float64).tiny
        normal.diagonal().add_(ridge)
        coefficients = torch.linalg.solve(normal, right).to(x)
        return image - torch.tensordot(coefficients, self.images[:kept], dims=1)
