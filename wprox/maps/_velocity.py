"""Velocity fields of neural ODEs: a network of (x, t) whose divergence is exact at the price of one more product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

TIME_WAVES = 3  # cos(kπt), k = 1, …, beside the constant: what the biases know of time
CHUNK = 2**16  # tangents carried at once where there is no graph


@dataclass(frozen=True)
class Activation:
    """σ: from z, σ and σ′; from z and σ, σ′ and σ″, which may do without z."""

    value: Callable[[Tensor], tuple[Tensor, Tensor]]
    slopes: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    keeps: bool = True  # whether the slopes need z


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    a = 2 * (2 * z).sigmoid() - 1  # torch computes a logistic function three times as fast as a tanh
    return a, 1 - a * a


def _tanh_slopes(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    slope = 1 - a * a
    return slope, -2 * a * slope


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    return functional.softplus(z), z.sigmoid()


def _softplus_slopes(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    s = z.sigmoid()
    return s, s * (1 - s)


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    s = z.sigmoid()
    a = z * s
    return a, s + a * (1 - s)


def _silu_slopes(z: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    s = z.sigmoid()
    slope = s + a * (1 - s)
    return slope, (1 - s) * (slope + s - a * s)


def _sine(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.sin(), z.cos()


ACTIVATIONS = {
    "tanh": Activation(_tanh, _tanh_slopes, keeps=False),
    "softplus": Activation(_softplus, _softplus_slopes),
    "silu": Activation(_silu, _silu_slopes),
    "sine": Activation(_sine, lambda z, a: (z.cos(), -a)),
}


class _TwoLayers(torch.autograd.Function):
    r"""(x, W_1, b_1, W_2, b_2, C) ↦ a_2 and d_2ᵀ C d_1, in the notation of `Velocity`, with C transposed.

    Written out, because autograd would keep three times as much for the backward pass, and on a CPU a training
    iteration waits for memory. Thin products are written so that the long axis is the inner or the last one, which is
    five times as fast.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, coupling: Tensor, activation: Activation
    ) -> tuple[Tensor, Tensor]:
        z1 = torch.addmm(b1, x, w1.mT)
        a1, d1 = activation.value(z1)
        z2 = torch.addmm(b2, a1, w2.mT)
        a2, d2 = activation.value(z2)
        q = d1 @ coupling
        kept = (z1, z2) if activation.keeps else (a1, a2)
        ctx.save_for_backward(x, w1, b1, w2, b2, coupling, a1, a2, q, *kept)
        ctx.activation = activation
        return a2, torch.linalg.vecdot(d2, q)

    @staticmethod
    def backward(ctx: Any, g_a2: Tensor, g_div: Tensor) -> tuple[Tensor | None, ...]:
        x, w1, b1, w2, b2, coupling, a1, a2, q, z1, z2 = ctx.saved_tensors
        g_div = g_div[:, None]
        if torch.is_grad_enabled():  # what was saved are numbers; now functions of the arguments are wanted
            z1 = torch.addmm(b1, x, w1.mT)
            a1, d1 = ctx.activation.value(z1)
            z2 = torch.addmm(b2, a1, w2.mT)
            a2, d2 = ctx.activation.value(z2)
            curvature1, curvature2 = ctx.activation.slopes(z1, a1)[1], ctx.activation.slopes(z2, a2)[1]
            g_z2 = g_a2 * d2 + curvature2 * (d1 @ coupling) * g_div
            g_q = d2 * g_div
            g_z1 = (g_z2 @ w2) * d1 + curvature1 * (g_q @ coupling.mT)
        else:
            (d1, curvature1), (d2, curvature2) = ctx.activation.slopes(z1, a1), ctx.activation.slopes(z2, a2)
            g_z2 = (g_a2 * d2).addcmul_(curvature2, q * g_div)
            g_q = d2 * g_div
            g_z1 = (g_z2 @ w2).mul_(d1).addcmul_(curvature1, g_q @ coupling.mT)
        g_x = g_z1 @ w1.mT.contiguous().mT if ctx.needs_input_grad[0] else None
        return g_x, (x.mT @ g_z1).mT, g_z1.sum(0), g_z2.mT @ a1, g_z2.sum(0), d1.mT @ g_q, None


class Instant(NamedTuple):
    """What v(·, t) knows of the time: A, tr A and the biases, of one t or, without A, of a t a row."""

    biases: Sequence[Tensor]
    out_bias: Tensor
    trace: Tensor
    linear: Tensor | None
    waves: Tensor


class Velocity(nn.Module):
    r"""v(x, t) = W_{L+1} a_L + A(t) x + b_{L+1}(t), a_l = σ(z_l), z_l = W_l a_{l−1} + b_l(t), a_0 = x; 0 when new.

    With d_l = σ′(z_l) the divergence is tr A(t) + tr(W_{L+1} diag(d_L) W_L ⋯ diag(d_1) W_1). For L ≤ 2 the trace is
    bilinear in the d_l,

        L = 1:  Σ_i d_1i (W_2 W_1)-diagonal,      L = 2:  d_2ᵀ (W_2 ∘ (W_1 W_3)ᵀ) d_1,

    so that it is exact in every dimension for the price of one more matrix product. Deeper networks carry the tangents
    diag(d_l) W_l ⋯ diag(d_1) W_1 e_i along with the values, d of them, or one along a probe.

    Arguments:
        dim: d.
        hidden: widths of the layers.
        activation: of every layer.
        frequency: the scale of W_1 at the start, times that of other layers.
    """

    def __init__(self, dim: int, hidden: Sequence[int], activation: str, frequency: float) -> None:
        super().__init__()
        self.dim = dim
        self.activation = ACTIVATIONS[activation]
        widths = [dim, *hidden]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for k, (fan_in, width) in enumerate(pairwise(widths)):
            scale = frequency if k == 0 else 1.0
            self.weights.append(torch.randn(width, fan_in) * scale / math.sqrt(fan_in))
            bias = torch.randn(1 + TIME_WAVES, width) * scale
            bias[1:] *= 0.3
            self.biases.append(bias)
        self.out = nn.Parameter(torch.zeros(dim, widths[-1]))
        self.out_bias = nn.Parameter(torch.zeros(1 + TIME_WAVES, dim))
        self.linear = nn.Parameter(torch.zeros(1 + TIME_WAVES, dim, dim))

    def forward(self, x: Tensor, t: Tensor | Instant) -> Tensor:
        """v(x, t), (n, d), for x: (n, d) and t: () or (n,)."""
        now, a = self._now(x, t), x
        for weight, bias in zip(self.weights, now.biases, strict=True):
            a = self.activation.value(torch.addmm(bias, a, weight.mT))[0]
        return self._output(x, a, now)

    def at(self, times: Tensor) -> list[Instant]:
        """For each of the times, (k,): what all points share there, computed at once."""
        now = self._rows(times)
        linear = (now.waves @ self.linear.flatten(1)).view(-1, self.dim, self.dim)
        biases = zip(*(bias.unbind() for bias in now.biases), strict=True)
        return [
            Instant(*parts)
            for parts in zip(
                biases, *(part.unbind() for part in (now.out_bias, now.trace, linear, now.waves)), strict=True
            )
        ]

    def _rows(self, times: Tensor) -> Instant:
        waves = (math.pi * times[:, None] * torch.arange(1 + TIME_WAVES, dtype=times.dtype, device=times.device)).cos()
        trace = waves @ self.linear.diagonal(dim1=1, dim2=2).sum(1)
        return Instant([waves @ bias for bias in self.biases], waves @ self.out_bias, trace, None, waves)

    def _now(self, x: Tensor, t: Tensor | Instant) -> Instant:
        if isinstance(t, Instant):
            return t
        return self._rows(t.to(x)) if t.ndim else self.at(t.to(x)[None])[0]

    def _output(self, x: Tensor, a: Tensor, now: Instant) -> Tensor:
        if now.linear is not None:
            v = torch.addmm(now.out_bias, x, now.linear.mT)
        else:
            both = (now.waves[:, :, None] * x[:, None, :]).flatten(1)
            v = torch.addmm(now.out_bias, both, self.linear.mT.flatten(0, 1))
        return torch.addmm(v, a, self.out.mT)

    def coupling(self) -> Tensor | None:
        """What makes the divergence out of the d_l, once a trajectory; `None` for deeper networks."""
        first = self.weights[0]
        if len(self.weights) == 1:
            return (first * self.out.mT).sum(1)
        if len(self.weights) == 2:
            return self.weights[1].mT * (first @ self.out)
        return None

    def with_divergence(
        self, x: Tensor, t: Tensor | Instant, coupling: Tensor | None, probe: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """v and div v, (n,): from the coupling, else along the probe ε as ⟨ε, ∇v ε⟩, else by d tangents."""
        now = self._now(x, t)
        if coupling is not None and len(self.weights) == 2 and now.linear is not None:
            (w1, w2), (b1, b2) = self.weights, now.biases
            a, trace = _TwoLayers.apply(x, w1, b1, w2, b2, coupling, self.activation)
            return self._output(x, a, now), now.trace + trace
        a, slopes = self._layers(x, now)
        v = self._output(x, a, now)
        if coupling is None and probe is not None:
            return v, (self._jvp(probe, slopes, now) * probe).sum(1)
        if coupling is None:
            return v, now.trace + self._tangents(slopes)
        if len(slopes) == 1:
            return v, now.trace + slopes[0] @ coupling
        return v, now.trace + torch.linalg.vecdot(slopes[1], slopes[0] @ coupling)

    def jvp(self, x: Tensor, t: Tensor | Instant, tangent: Tensor) -> Tensor:
        """∇v(x, t) ε for ε = `tangent`, (n, d)."""
        now = self._now(x, t)
        return self._jvp(tangent, self._layers(x, now)[1], now)

    def _layers(self, x: Tensor, now: Instant) -> tuple[Tensor, list[Tensor]]:
        """a_L and the d_l."""
        a, slopes = x, []
        for weight, bias in zip(self.weights, now.biases, strict=True):
            a, slope = self.activation.value(torch.addmm(bias, a, weight.mT))
            slopes.append(slope)
        return a, slopes

    def _jvp(self, tangent: Tensor, slopes: list[Tensor], now: Instant) -> Tensor:
        a = tangent
        for weight, slope in zip(self.weights, slopes, strict=True):
            a = slope * (a @ weight.mT)
        return self._output(tangent, a, now) - now.out_bias

    def _tangents(self, slopes: list[Tensor]) -> Tensor:
        """tr(W_{L+1} diag(d_L) W_L ⋯ diag(d_1) W_1) by d tangents at once, in groups where nothing is kept."""
        n, d = len(slopes[0]), self.dim
        group = d if torch.is_grad_enabled() else max(1, min(d, CHUNK // max(n, 1)))
        trace = slopes[0].new_zeros(n)
        for axes in torch.arange(d, device=trace.device).split(group):
            a = slopes[0][:, None, :] * self.weights[0].mT[axes]
            for weight, slope in zip(self.weights[1:], slopes[1:], strict=True):
                a = slope[:, None, :] * (a @ weight.mT)
            trace = trace + (a * self.out[axes]).sum((1, 2))
        return trace
