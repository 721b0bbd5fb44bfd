"""Velocity fields of neural ODEs: a network of (x, t) whose divergence is exact at the price of one more product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

TIME_WAVES = 3  # cos(kπt), k = 1, …, beside the constant: what the biases know of time
CHUNK = 2**16  # tangents carried at once where there is no graph

Activation = Callable[[Tensor], tuple[Tensor, Tensor]]


def _tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    a = z.tanh()
    return a, 1 - a * a


def _softplus(z: Tensor) -> tuple[Tensor, Tensor]:
    return functional.softplus(z), z.sigmoid()


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    s = z.sigmoid()
    a = z * s
    return a, s + a * (1 - s)


def _sine(z: Tensor) -> tuple[Tensor, Tensor]:
    return z.sin(), z.cos()


ACTIVATIONS: dict[str, Activation] = {"tanh": _tanh, "softplus": _softplus, "silu": _silu, "sine": _sine}


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

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), (n, d), for x: (n, d) and t: () or (n,)."""
        time, a = self._time(x, t), x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            a = self.activation(torch.addmm(time @ bias, a, weight.mT))[0]
        return self._output(x, a, time)

    def _time(self, x: Tensor, t: Tensor) -> Tensor:
        waves = torch.arange(1 + TIME_WAVES, dtype=x.dtype, device=x.device)
        return (math.pi * t.to(x)[..., None] * waves).cos()

    def _output(self, x: Tensor, a: Tensor, time: Tensor) -> Tensor:
        if time.ndim == 1:
            linear = (time @ self.linear.flatten(1)).view(self.dim, self.dim)
            v = torch.addmm(time @ self.out_bias, x, linear.mT)
        else:
            both = (time[:, :, None] * x[:, None, :]).flatten(1)
            v = torch.addmm(time @ self.out_bias, both, self.linear.mT.flatten(0, 1))
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
        self, x: Tensor, t: Tensor, coupling: Tensor | None, probe: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """v and div v, (n,): from the coupling, else along the probe ε as ⟨ε, ∇v ε⟩, else by d tangents."""
        time, a = self._time(x, t), x
        slopes = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            a, slope = self.activation(torch.addmm(time @ bias, a, weight.mT))
            slopes.append(slope)
        v = self._output(x, a, time)
        if coupling is None and probe is not None:
            return v, (self._jvp(probe, slopes, time) * probe).sum(1)
        trace = time @ self.linear.diagonal(dim1=1, dim2=2).sum(1)
        if coupling is None:
            return v, trace + self._tangents(slopes)
        if len(slopes) == 1:
            return v, trace + slopes[0] @ coupling
        return v, trace + (slopes[1] * (slopes[0] @ coupling)).sum(1)

    def jvp(self, x: Tensor, t: Tensor, tangent: Tensor) -> Tensor:
        """∇v(x, t) ε for ε = `tangent`, (n, d)."""
        time, a = self._time(x, t), x
        slopes = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            a, slope = self.activation(torch.addmm(time @ bias, a, weight.mT))
            slopes.append(slope)
        return self._jvp(tangent, slopes, time)

    def _jvp(self, tangent: Tensor, slopes: list[Tensor], time: Tensor) -> Tensor:
        a = tangent
        for weight, slope in zip(self.weights, slopes, strict=True):
            a = slope * (a @ weight.mT)
        return self._output(tangent, a, time) - time @ self.out_bias

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
