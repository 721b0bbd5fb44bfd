"""Residual maps x + f(x) with a Lipschitz constant of f below 1."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from wprox._checks import (
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_memory,
    check_positive,
    check_widths,
)
from wprox.maps._inverse import check_residual, newton_inverse, tolerance_of, with_derivative
from wprox.maps._log_det import log_det, spectral_bound
from wprox.maps.affine import AffineMap
from wprox.maps.base import ComposedMap, TransportMap, in_chunks

EXACT_DIM = 16  # up to which "auto" takes log det (I + ∇f) exactly in training, and inverses are Newton's
SPEED = 4.0  # of frequencies: Adam moves all parameters alike, and these have the farthest to go
EXACT_TERMS = 2  # of the power series, before the roulette starts


class ResidualMap(ComposedMap):
    r"""An affine map followed by residual blocks x + f(x) with Lip(f) ≤ c < 1, each invertible by Banach's theorem.

    f is a network W_m φ(… φ(W_1 x + b_1) …) + b_m with each weight scaled by min(1, c^(1/m)/‖W‖), where ‖W‖ is bounded
    from above (`spectral_bound`), and φ(z) = sin(κz)/κ, of slope at most 1 for every κ: Lip(f) ≤ c is a fact, not an
    estimate. A unit's κ says over which length 1/κ it bends, and is learned: with κ = 1 a network of small Lipschitz
    constant is nearly linear on the data. A block stretches by at most 1 + c and compresses to no less than 1 − c; the
    affine map does the rest (Behrmann, Grathwohl, Chen, Duvenaud and Jacobsen, *Invertible residual networks*, 2019).

    The log-determinant is that of the Jacobian I + J, with the tangents of all d directions sent through the network
    beside the values: exact in evaluation mode and, up to 16 dimensions, in training. Above, training uses the unbiased
    power series of Chen, Behrmann, Duvenaud and Jacobsen, *Residual flows for invertible generative modeling*, 2019,
    with one probe vector v = ±1 a point and Russian roulette,

        log det(I + J) = E Σ_{k=0}^N (−1)^k/(k + 1) vᵀJ^k J v / P(N ≥ k),
        ∂ log det(I + J) = E Σ_{k=0}^N (−1)^k vᵀJ^k (∂J) v / P(N ≥ k),

    where N − 2 is geometric of ratio q = max(½, Lip f): the variance, at most of the order Σ (Lip f)^{2k}/q^k, is
    finite. The inverse is found by the fixed point iteration x ← y − f(x), up to 16 dimensions by Newton's method.

    Arguments:
        dim: d; all arithmetic holds in d = 1 as well.
        blocks: the number of residual blocks.
        hidden: the widths of f's hidden layers; (32, 32) up to the plane, else (64, 64).
        lipschitz: c.
        affine: `False` leaves out the leading `AffineMap`.
        log_det: in training: "exact", "series", or "auto", as said above.
        tolerance: of each block's inverse: |T(x) − y| ≤ tolerance · (1 + |y|); 1e-10 in float64, else 1e-4.

    Raises:
        InverseError: (`inverse`) where the tolerance is not met.

    Example:
        >>> import torch, wprox
        >>> map = wprox.ResidualMap(2)
        >>> x = torch.tensor([[0.3, -0.7]])
        >>> torch.equal(map(x)[0], x)  # the identity at initialisation
        True
    """

    def __init__(
        self,
        dim: int,
        blocks: int = 4,
        hidden: Sequence[int] | None = None,
        lipschitz: float = 0.97,
        affine: bool = True,
        log_det: str = "auto",
        tolerance: float | None = None,
    ) -> None:
        dim, blocks = check_count(dim, "dim"), check_count(blocks, "blocks")
        hidden = ((32, 32) if dim <= 2 else (64, 64)) if hidden is None else hidden
        widths = check_widths(hidden)
        lipschitz = check_fraction(lipschitz, "lipschitz")
        check_choice(log_det, "log_det", ("auto", "exact", "series"))
        affine = check_flag(affine, "affine")
        if tolerance is not None:
            tolerance = check_positive(tolerance, "tolerance")
        series = log_det == "series" or (log_det == "auto" and dim > EXACT_DIM)
        check_memory(4 * blocks * dim * max(widths), f"{blocks} blocks of widths {widths} in dimension {dim}")
        layers: list[TransportMap] = [AffineMap(dim)] if affine else []
        layers.append(_ResidualBlocks(dim, blocks, widths, lipschitz, series, tolerance))
        super().__init__(layers)
        self._config = {
            "dim": dim,
            "blocks": blocks,
            "hidden": widths,
            "lipschitz": lipschitz,
            "affine": affine,
            "log_det": log_det,
            "tolerance": tolerance,
        }

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._config)


Layers = list[tuple[Tensor, Tensor]]


class _ResidualBlocks(TransportMap):
    """Residual blocks with their weights stacked, layer by layer, so that all are normalised at once."""

    def __init__(
        self, dim: int, blocks: int, hidden: list[int], lipschitz: float, series: bool, tolerance: float | None
    ) -> None:
        super().__init__()
        self.dim, self.blocks, self.lipschitz = dim, blocks, lipschitz
        self.series, self.tolerance = series, tolerance
        self.widths = [dim, *hidden, dim]
        self.weights, self.biases, self.frequencies = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for layer, (before, after) in enumerate(pairwise(self.widths)):
            weight = torch.empty(blocks, after, before)
            for k in range(blocks):
                nn.init.orthogonal_(weight[k])  # all singular values alike: the Lipschitz budget is spent evenly
            self.weights.append(nn.Parameter(weight))
            # zeros of the sines lie inside the data (|x| ≈ 1), and inside what the hidden layers make of them
            centres = (0.1 if layer else 1.2) * torch.randn(blocks, after, before)
            self.biases.append(nn.Parameter(-(weight * centres).sum(-1)))
            if layer < len(hidden):  # parameters count from the start, so that weight decay has no say in it
                start = torch.empty(blocks, after).uniform_(math.log(4.0), math.log(64.0))
                self.register_buffer(f"log_frequency_{layer}", start)
                self.frequencies.append(nn.Parameter(torch.zeros(blocks, after)))
        nn.init.zeros_(self.weights[-1])
        nn.init.zeros_(self.biases[-1])

    def layers(self) -> tuple[list[Layers], Tensor]:
        """The weights and biases of each block as a plain network of sines, and the bounds of Lip(f), (blocks,).

        sin(κ(Wx + b))/κ: κ goes into the layer's own weight and bias, 1/κ into the next layer's weight.
        """
        share = self.lipschitz ** (1 / len(self.weights))
        weights, biases, bound = [], list(self.biases), self.weights[0].new_ones(self.blocks)
        for weight in self.weights:
            norm = spectral_bound(weight)
            scale = share / norm.clamp(min=share)
            weights.append(weight * scale[:, None, None])
            bound = bound * (norm * scale).detach()
        for layer, parameter in enumerate(self.frequencies):
            frequency = (self.get_buffer(f"log_frequency_{layer}") + SPEED * parameter).exp()
            weights[layer], biases[layer] = weights[layer] * frequency[:, :, None], biases[layer] * frequency
            weights[layer + 1] = weights[layer + 1] / frequency[:, None]
        by_layer = [zip(w.unbind(), b.unbind(), strict=True) for w, b in zip(weights, biases, strict=True)]
        return [list(layers) for layers in zip(*by_layer, strict=True)], bound

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocks, bounds = self.layers()
        total = x.new_zeros(len(x))
        for layers, bound in zip(blocks, bounds.tolist(), strict=True):
            if self.training and self.series:
                x, part = _estimated(layers, x, max(0.5, bound))
            else:
                x, part = in_chunks(lambda x, layers=layers: _exact(layers, x), x, self._row_values)  # type: ignore[misc]
            total = total + part
        return x, total

    @property
    def _row_values(self) -> int:
        return self.dim * max(self.widths)

    def inverse(self, y: Tensor) -> Tensor:
        blocks, _ = self.layers()
        for layers in reversed(blocks):
            y = self._inverse(layers, y)
        return y

    def _inverse(self, layers: Layers, y: Tensor) -> Tensor:
        tolerance, name = tolerance_of(self.tolerance, y.dtype), f"a block of ResidualMap({self.dim})"

        def evaluate(x: Tensor) -> tuple[Tensor, Tensor]:
            return _jacobian(layers, x)

        def invert(y: Tensor) -> tuple[Tensor, Tensor]:
            if self.dim <= EXACT_DIM:
                return newton_inverse(evaluate, y, tolerance, name), y
            return self._fixed_point(layers, y, tolerance, name), y

        with torch.no_grad():
            x, _ = in_chunks(invert, y, self._row_values)
        return with_derivative(x, evaluate, y)

    def _fixed_point(self, layers: Layers, y: Tensor, tolerance: float, name: str) -> Tensor:
        """x ← y − f(x), until the rows stand still; the residual falls by c a step, so the number of steps is known."""
        result, residual = y.clone(), torch.full_like(y[:, 0], torch.inf)
        rows, x, goal = torch.arange(len(y), device=y.device), y, y
        rounding = torch.finfo(y.dtype).eps
        for _ in range(math.ceil(math.log(rounding / 100) / math.log(self.lipschitz))):
            new = goal - _value(layers, x)
            size = (new - x).norm(dim=1)  # |y − f(x) − x|, of x
            going = (size > 2 * rounding * (1 + goal.norm(dim=1))) & (size < residual[rows])
            result[rows], residual[rows] = x, torch.where(size < residual[rows], size, residual[rows])
            if not bool(going.any()):
                break
            rows, x, goal = rows[going], new[going], goal[going]
        check_residual(residual, y, tolerance, name)
        return result


def _value(layers: Layers, x: Tensor) -> Tensor:
    """f(x), (n, d)."""
    for weight, bias in layers[:-1]:
        x = torch.addmm(bias, x, weight.mT).sin()
    return torch.addmm(layers[-1][1], x, layers[-1][0].mT)


class _SineCosine(torch.autograd.Function):
    """sin z and cos z, which are each other's derivatives: autograd would compute both again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        return z.sin(), z.cos()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output)

    @staticmethod
    def backward(ctx: Any, of_sine: Tensor, of_cosine: Tensor) -> Tensor:
        sine, cosine = ctx.saved_tensors
        return of_sine * cosine - of_cosine * sine


def _slopes(layers: Layers, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """f(x), (n, d), and the slopes in each hidden layer, (n, width)."""
    slopes = []
    for weight, bias in layers[:-1]:
        x, slope = _SineCosine.apply(torch.addmm(bias, x, weight.mT))
        slopes.append(slope)
    return torch.addmm(layers[-1][1], x, layers[-1][0].mT), slopes


def _jacobian(layers: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    """x + f(x), (n, d), and I + ∇f(x), (n, d, d)."""
    value, slopes = _slopes(layers, x)
    tangents = layers[0][0].mT.contiguous() * slopes[0][:, None]  # else the product is laid out as Wᵀ, six times slower
    for (weight, _), slope in zip(layers[1:-1], slopes[1:], strict=True):
        tangents = (tangents @ weight.mT) * slope[:, None]
    jacobian = (tangents @ layers[-1][0].mT).mT
    return x + value, jacobian + torch.eye(x.shape[1], dtype=x.dtype, device=x.device)


def _exact(layers: Layers, x: Tensor) -> tuple[Tensor, Tensor]:
    y, jacobian = _jacobian(layers, x)
    return y, log_det(jacobian)


def _estimated(layers: Layers, x: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """x + f(x) and the power series' estimate of the log-determinant, whose derivative is the Neumann series'."""
    value, slopes = _slopes(layers, x)
    probe = torch.randint(2, x.shape, device=x.device).to(x) * 2 - 1
    along = probe
    for (weight, _), slope in zip(layers[:-1], slopes, strict=True):
        along = (along @ weight.mT) * slope
    along = along @ layers[-1][0].mT  # J v
    with torch.no_grad():
        power, estimate, row = probe, torch.zeros_like(x), torch.zeros_like(x)
        k, survival = 0, 1.0
        while True:
            sign = (-1) ** k / survival
            row, estimate = row + sign * power, estimate + sign / (k + 1) * power
            if k >= EXACT_TERMS:
                if float(torch.rand(())) >= ratio:
                    break
                survival *= ratio
            power = power @ layers[-1][0]
            for (weight, _), slope in zip(layers[-2::-1], slopes[::-1], strict=True):
                power = (power * slope) @ weight
            k += 1
        value_of_series = (estimate * along).sum(1)
    slope_of_series = (row * along).sum(1)
    return x + value, value_of_series + slope_of_series - slope_of_series.detach()
