"""Gradients of strongly convex log-sum-exp networks: the maps that Brenier's theorem says a JKO step is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from wprox._checks import check_choice, check_count, check_fraction, check_memory, check_positive
from wprox.maps._inverse import newton_inverse, tolerance_of, with_derivative
from wprox.maps._log_det import symmetric_log_det
from wprox.maps.base import TransportMap, in_chunks

EXACT_DIM = 32  # up to which "auto" takes log det ∇²ψ exactly in training
SPEED = 4.0  # of anchors and temperatures: Adam moves all parameters alike, and these have the farthest to go


class ConvexMap(TransportMap):
    r"""T = ∇ψ for a strongly convex ψ: a quadratic plus groups of smooth maxima of affine functions.

    With G groups of K affine pieces, anchors t_gk and temperatures κ_g,

        ψ(x) = ½ xᵀA x + b·x + Σ_g (s_g/κ_g) log Σ_k exp κ_g (t_gk·x − ½|t_gk|² − c_gk),         s_g ≥ 0, A ≥ α,
        T(x) = A x + b + Σ_g s_g Σ_k p_gk(x) t_gk,                         p_g(x) = softmax of the group's exponents,
        ∇T(x) = A + Σ_g s_g κ_g Cov_{p_g(x)}(t_g) ≥ α.

    Log-sum-exp networks are convex in their input and dense among the convex functions on compact sets (Calafiore,
    Gaubert and Possieri, *Log-sum-exp neural networks and posynomial models for convex and log-log-convex data*, 2020),
    and their Hessian is one matrix product. As κ → ∞, T becomes the map of semi-discrete transport, which sends the
    power cell of t_gk to it. Trained as JKO steps, gradients of convex networks are in Mokrov et al. 2021 and Bunne et
    al. 2022, as flows in Huang et al., *Convex potential flows*, 2021.

    The log-determinant is exact in evaluation mode and, up to 32 dimensions, in training. Above, training uses one
    probe vector v = ±1 a point: vᵀ(log H)v by Lanczos quadrature (Ubaru, Chen and Saad 2017), whose Krylov basis also
    gives H⁻¹v, as conjugate gradients do, and with it the derivative vᵀH⁻¹(∂H)v. The inverse minimises ψ(x) − x·y by
    Newton's method.

    Arguments:
        dim: d; all maps of the line that increase are gradients, so d = 1 is nothing special.
        groups: G.
        pieces: K.
        convexity: α, in (0, 1): no direction is compressed by more.
        log_det: in training: "exact", "stochastic", or "auto", as said above.
        lanczos_steps: of the stochastic mode: exact when they are d, while the error else falls exponentially.
        tolerance: of the inverse: |T(x) − y| ≤ tolerance · (1 + |y|); 1e-10 in float64, else 1e-4.

    Raises:
        InverseError: (`inverse`) where the tolerance is not met.

    Example:
        >>> import torch, wprox
        >>> map = wprox.ConvexMap(2)
        >>> x = torch.tensor([[0.3, -0.7]])
        >>> torch.equal(map(x)[0], x)  # the identity at initialisation
        True
    """

    start: Tensor
    log_temperature: Tensor

    def __init__(
        self,
        dim: int,
        groups: int = 4,
        pieces: int = 64,
        convexity: float = 1e-3,
        log_det: str = "auto",
        lanczos_steps: int = 20,
        tolerance: float | None = None,
    ) -> None:
        super().__init__()
        self.dim = check_count(dim, "dim")
        self.groups = check_count(groups, "groups")
        self.pieces = check_count(pieces, "pieces", least=2)
        self.convexity = check_fraction(convexity, "convexity")
        check_choice(log_det, "log_det", ("auto", "exact", "stochastic"))
        self.log_det = log_det
        self.lanczos_steps = check_count(lanczos_steps, "lanczos_steps")
        self.tolerance = None if tolerance is None else check_positive(tolerance, "tolerance")
        check_memory(4 * self.groups * self.pieces * self.dim + self.dim**2, f"{groups} groups of {pieces} pieces")
        # groups see the data coarsely to finely: piece k rules where x is near t_k, over a width of κ^(−½). Parameters
        # count from there, so that weight decay draws the map to the identity
        low, high = math.log(8 / dim), math.log(64 / dim)
        self.register_buffer("start", 1.2 * torch.randn(groups, pieces, dim))
        self.register_buffer("log_temperature", torch.linspace(low, high, groups))
        self.anchors = nn.Parameter(torch.zeros(groups, pieces, dim))
        self.offsets = nn.Parameter(torch.zeros(groups, pieces))
        self.temperatures = nn.Parameter(torch.zeros(groups))
        self.gains = nn.Parameter(torch.zeros(groups))
        self.factor = nn.Parameter(torch.zeros(dim, dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    @property
    def config(self) -> dict[str, Any]:
        names = ("dim", "groups", "pieces", "convexity", "log_det", "lanczos_steps", "tolerance")
        return {name: getattr(self, name) for name in names}

    def _quadratic(self) -> Tensor:
        """A, (d, d); the identity to the last bit where the factor is 0."""
        factor = self.factor
        grown = factor + factor.mT + factor @ factor.mT  # (I + M)(I + M)ᵀ − I
        return torch.eye(self.dim, dtype=factor.dtype, device=factor.device) + (1 - self.convexity) * grown

    def _network(self) -> tuple[Tensor, Tensor, Tensor]:
        """t: (G, K, d), κ: (G,) and s: (G,)."""
        # |gain| whose derivative at 0 is 1, not 0: there the map starts
        gains = self.gains * torch.where(self.gains >= 0, 1.0, -1.0).to(self.gains)
        return self.start + SPEED * self.anchors, (self.log_temperature + SPEED * self.temperatures).exp(), gains

    def _transport(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """T(x) and what ∇T(x) is made of: A, t, s κ, the probabilities p: (G, n, K) and the means Σ p t: (G, n, d)."""
        matrix, (anchors, temperature, gains) = self._quadratic(), self._network()
        bias = -temperature[:, None] * (0.5 * anchors.square().sum(-1) + SPEED * self.offsets)
        weight = temperature[:, None, None] * anchors
        exponents = torch.baddbmm(bias[:, None], x.expand(self.groups, *x.shape), weight.mT)
        probabilities = exponents.softmax(-1)
        means = torch.bmm(probabilities, anchors)
        y = torch.addmm(self.shift, x, matrix) + (gains[:, None, None] * means).sum(0)
        return y, (matrix, anchors, gains * temperature, probabilities, means)

    def _hessian(self, matrix: Tensor, anchors: Tensor, rates: Tensor, probabilities: Tensor, means: Tensor) -> Tensor:
        """∇T(x) = A + Σ_g s_g κ_g (Σ_k p_gk t_gk t_gkᵀ − m_g m_gᵀ), (n, d, d)."""
        n = probabilities.shape[1]
        squares = (rates[:, None, None, None] * anchors[..., :, None] * anchors[..., None, :]).flatten(2)
        second = torch.addbmm(matrix.reshape(1, -1).expand(n, -1), probabilities, squares).unflatten(1, matrix.shape)
        means = means.transpose(0, 1)
        return torch.baddbmm(second, (means * rates[:, None]).mT, means, alpha=-1)

    def _jacobian(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, parts = self._transport(x)
        return y, self._hessian(*parts)

    def _exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, hessian = self._jacobian(x)
        return y, symmetric_log_det(hessian)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        stochastic = self.log_det == "stochastic" or (self.log_det == "auto" and self.dim > EXACT_DIM)
        if self.training and stochastic:
            return self._estimated(x)
        return in_chunks(self._exact, x, self._row_values)

    @property
    def _row_values(self) -> int:
        return self.groups * self.pieces + self.dim**2

    def _estimated(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, parts = self._transport(x)
        probe = torch.randint(2, x.shape, device=x.device).to(x) * 2 - 1
        with torch.no_grad():
            value, solved = lanczos(lambda v: _apply(parts, v), probe, min(self.lanczos_steps, self.dim))
        slope = (solved * _apply(parts, probe)).sum(1)  # vᵀH⁻¹ H v, whose derivative is that of H alone
        return y, value + slope - slope.detach()

    def inverse(self, y: Tensor) -> Tensor:
        def invert(y: Tensor) -> tuple[Tensor, Tensor]:
            tolerance = tolerance_of(self.tolerance, y.dtype)
            return newton_inverse(self._jacobian, y, tolerance, f"ConvexMap({self.dim})"), y

        with torch.no_grad():
            x, _ = in_chunks(invert, y, self._row_values)
        return with_derivative(x, self._jacobian, y)


def _apply(parts: tuple[Tensor, ...], v: Tensor) -> Tensor:
    """∇T(x) v, (n, d), without the matrix."""
    matrix, anchors, rates, probabilities, means = parts
    along = torch.bmm(v.expand(len(anchors), *v.shape), anchors.mT)  # t_gk·v
    centred = along - (means * v).sum(-1, keepdim=True)
    return v @ matrix + torch.addbmm(torch.zeros_like(v), probabilities * centred, rates[:, None, None] * anchors)


def lanczos(apply: Callable[[Tensor], Tensor], probe: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    r"""vᵀ(log H)v, (n,), and H⁻¹v, (n, d), for positive definite H_1, …, H_n known by their products with vectors.

    With the Krylov basis Q of H and v/|v| and the tridiagonal S = QᵀHQ: vᵀ(log H)v ≈ |v|² e₁ᵀ(log S)e₁ and
    H⁻¹v ≈ |v| Q S⁻¹e₁ (Golub and Meurant, *Matrices, moments and quadrature*, 2010), both exact when `steps` is d.
    """
    length = probe.norm(dim=1, keepdim=True)
    q, before = probe / length, torch.zeros_like(probe)
    coupling = torch.zeros_like(length)
    basis, diagonal, beside = [], [], []
    for _ in range(steps):
        basis.append(q)
        w = apply(q) - coupling * before
        diagonal.append((w * q).sum(1))
        w = w - diagonal[-1][:, None] * q
        stack = torch.stack(basis, dim=1)
        w = w - torch.bmm(torch.bmm(w[:, None], stack.mT), stack)[:, 0]  # orthogonal to rounding error
        coupling = w.norm(dim=1, keepdim=True)
        # an exhausted Krylov space: the next vector is 0, and the rows of S that follow are those of the identity
        alive = coupling > 64 * torch.finfo(w.dtype).eps * diagonal[0][:, None]
        coupling = torch.where(alive, coupling, torch.zeros_like(coupling))
        before, q = q, torch.where(alive, w / coupling, torch.zeros_like(w))
        beside.append(coupling[:, 0])
    off = torch.stack(beside[:-1], dim=1) if steps > 1 else probe.new_zeros(len(probe), 0)
    alphas = torch.stack(diagonal, dim=1)
    alphas = torch.where(alphas > 0, alphas, torch.ones_like(alphas))
    tridiagonal = torch.diag_embed(alphas) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(tridiagonal)
    first = vectors[:, 0]
    value = length[:, 0].square() * (first.square() * values.log()).sum(1)
    solved = torch.bmm((first / values)[:, None] @ vectors.mT, torch.stack(basis, dim=1))[:, 0] * length
    return value, solved
