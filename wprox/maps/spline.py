"""Invertible maps of neural spline transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from wprox._checks import check_count, check_flag, check_memory, check_non_negative, check_positive, check_widths
from wprox.maps._rational_quadratic import inverse_spline, spline
from wprox.maps.affine import AffineMap
from wprox.maps.base import ComposedMap, TransportMap

MOST_OCTAVES = 52  # of a number in float64
LARGEST_BOUND = 1e18  # whose square is a number in float32 too


class SplineMap(ComposedMap):
    r"""An affine map followed by neural spline transforms (Durkan, Bekasov, Murray, Papamakarios 2019).

    Each transform leaves one half x_a of the coordinates and moves the other monotonically, coordinate by coordinate,
    by a rational-quadratic spline on [−bound, bound] whose knots are a network's function of x_a; outside the box it is
    the identity. In the plane the coordinate axes turn from pair to pair of transforms, in higher dimension the halves
    are drawn at random. In one dimension there is nothing to condition on and the map is one spline.

    Arguments:
        dim: d.
        transforms: the number of spline transforms.
        bins: the number of spline bins; 16 up to three dimensions, else 8.
        hidden: the widths of the conditioner's hidden layers; (64,) in the plane, else (128, 128).
        frequencies: the number of octaves of Fourier features, sin and cos of 2^j π x_a / bound, that the conditioner
            sees beside x_a, so that it can follow fine detail (Tancik et al. 2020); 6 in the plane, else 0.
        bound: the half-width of the splines' box, in units of x; at most 10¹⁸.
        coupling: `False` replaces halves by an autoregressive conditioner: more expressive a transform, but `inverse`
            costs d passes in place of one.
        affine: `False` leaves out the leading `AffineMap`.
        dropout: of the coupling conditioners' last hidden layer, in training.

    Example:
        >>> import torch, wprox
        >>> map = wprox.SplineMap(2)
        >>> x = torch.tensor([[0.3, -0.7]])
        >>> torch.allclose(map(x)[0], x, atol=1e-5)  # the identity at initialisation
        True
    """

    def __init__(
        self,
        dim: int,
        transforms: int = 2,
        bins: int | None = None,
        hidden: Sequence[int] | None = None,
        frequencies: int | None = None,
        bound: float = 5.0,
        coupling: bool = True,
        affine: bool = True,
        dropout: float = 0.0,
    ) -> None:
        dim, transforms = check_count(dim, "dim"), check_count(transforms, "transforms")
        bins = (16 if dim <= 3 else 8) if bins is None else check_count(bins, "bins", least=2)
        widths = ((64,) if dim <= 2 else (128, 128)) if hidden is None else tuple(check_widths(hidden, least=0))
        frequencies = (6 if dim == 2 else 0) if frequencies is None else check_count(frequencies, "frequencies", 0)
        if frequencies > MOST_OCTAVES:
            raise ValueError(
                f"frequencies must be at most {MOST_OCTAVES} octaves, got {frequencies}: finer ones are rounding alone"
            )
        bound = check_positive(bound, "bound")
        if bound > LARGEST_BOUND:
            raise ValueError(f"bound must be at most {LARGEST_BOUND:g}, got {bound:g}; rescale x to the size of 1")
        coupling, affine = check_flag(coupling, "coupling"), check_flag(affine, "affine")
        dropout = check_non_negative(dropout, "dropout")
        if not dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {dropout:g}; it is a part of the units")
        outputs = 3 * bins * dim * (widths[-1] if widths else 1) * transforms
        check_memory(2 * outputs, f"{transforms} transforms of {bins} bins in dimension {dim}")
        layers: list[TransportMap] = [AffineMap(dim)] if affine else []
        if dim == 1:
            layers.append(_ElementwiseSpline(bins, bound))
        elif coupling:
            layers += [
                _CouplingSpline(axes, kept, bins, widths, frequencies, bound, dropout)
                for axes, kept in _splits(dim, transforms)
            ]
        else:
            layers += [_AutoregressiveSpline(axes, bins, widths, bound) for axes, _ in _splits(dim, transforms)]
        super().__init__(layers)
        self._config = {
            "dim": dim,
            "transforms": transforms,
            "bins": bins,
            "hidden": list(widths),
            "frequencies": frequencies,
            "bound": bound,
            "coupling": coupling,
            "affine": affine,
            "dropout": dropout,
        }

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._config)


class _Axes(nn.Module):
    """Orthogonal coordinates of one transform.

    In the plane they are kept as an angle, and the matrix whose columns are the axes is made on the fly, so that they
    are orthogonal to the precision of whatever dtype the map is cast to; in higher dimension they are a permutation.
    """

    angle: Tensor
    order: Tensor

    def __init__(self, angle: float | None, order: Tensor) -> None:
        super().__init__()
        self.planar = angle is not None
        self.register_buffer("angle", torch.tensor(angle if angle is not None else 0.0))
        self.register_buffer("order", order)

    def coordinates(self, x: Tensor) -> Tensor:
        """Points x, (n, d), in these coordinates, as columns (d, n)."""
        return self().mT @ x.mT if self.planar else x.mT.index_select(0, self.order)

    def points(self, z: Tensor) -> Tensor:
        """The points (n, d) with coordinates z, (d, n)."""
        return (self() @ z if self.planar else z.index_select(0, self.order.argsort())).mT

    def forward(self) -> Tensor:
        """The matrix whose columns are the axes, (d, d)."""
        if self.planar:
            cos, sin = self.angle.cos(), self.angle.sin()
            return torch.stack((cos, -sin, sin, cos)).view(2, 2)[:, self.order]
        return torch.eye(len(self.order), dtype=self.angle.dtype, device=self.angle.device)[:, self.order]


def _splits(dim: int, transforms: int) -> list[tuple[_Axes, int]]:
    """For each transform its axes and the number of coordinates that it keeps.

    Transforms come in pairs on the same axes, the second with the halves exchanged.
    """
    pairs = (transforms + 1) // 2
    start = float(torch.rand(()))
    kept = dim // 2
    result = []
    for pair in range(pairs):
        # a right angle would repeat a pair, so the pairs share out a quarter turn
        angle = 0.5 * math.pi * (start + pair / pairs) if dim == 2 else None
        order = torch.arange(2) if dim == 2 else torch.randperm(dim)
        result += [(_Axes(angle, order), kept), (_Axes(angle, order.flip(0)), dim - kept)]
    return result[:transforms]


def _by_columns(network: nn.Sequential, features: Tensor) -> Tensor:
    """The network on points that are columns, (features, n) → (outputs, n): splines want their parameters in rows."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            mask = getattr(layer, "mask", None)
            weight = layer.weight if mask is None else mask * layer.weight
            features = torch.addmm(layer.bias[:, None], weight, features)
        else:
            features = layer(features)
    return features


def _zero_last_layer(network: nn.Sequential) -> nn.Sequential:
    """All-zero parameters make equal bins and unit slopes: the identity."""
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network


class _ElementwiseSpline(TransportMap):
    """One spline on the line."""

    def __init__(self, bins: int, bound: float) -> None:
        super().__init__()
        self.dim, self.bins, self.bound = 1, bins, bound
        self.parameters_ = nn.Parameter(torch.zeros(1, 3 * bins - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parameters = self.parameters_[..., None].expand(-1, -1, len(x))
        y, log_slope = spline(x.mT, parameters, self.bins, self.bound)
        return y.mT, log_slope[0]

    def inverse(self, y: Tensor) -> Tensor:
        parameters = self.parameters_[..., None].expand(-1, -1, len(y))
        return inverse_spline(y.mT, parameters, self.bins, self.bound).mT


class _CouplingSpline(TransportMap):
    """Splines of the second part of x @ axes, conditioned on the first."""

    octaves: Tensor

    def __init__(
        self,
        axes: _Axes,
        kept: int,
        bins: int,
        hidden: tuple[int, ...],
        frequencies: int,
        bound: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.dim, self.kept, self.bins, self.bound = len(axes.order), kept, bins, bound
        self.axes = axes
        self.register_buffer("octaves", math.pi / bound * 2.0 ** torch.arange(frequencies), persistent=False)
        moved = self.dim - kept
        widths = (kept * (1 + 2 * frequencies), *hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[-1], moved * (3 * bins - 1)))
        self.network = _zero_last_layer(nn.Sequential(*layers))

    def _parameters_of(self, fixed: Tensor) -> Tensor:
        """The splines' parameters, (moved, 3 bins − 1, n), where the kept coordinates are the columns (kept, n)."""
        features = fixed
        if len(self.octaves):
            phases = (fixed[:, None] * self.octaves[:, None]).flatten(0, 1)
            features = torch.cat((fixed, phases.sin(), phases.cos()))
        return _by_columns(self.network, features).unflatten(0, (-1, 3 * self.bins - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fixed, moved = self.axes.coordinates(x).split((self.kept, self.dim - self.kept))
        moved, log_slope = spline(moved, self._parameters_of(fixed), self.bins, self.bound)
        return self.axes.points(torch.cat((fixed, moved))), log_slope.sum(0)

    def inverse(self, y: Tensor) -> Tensor:
        fixed, moved = self.axes.coordinates(y).split((self.kept, self.dim - self.kept))
        moved = inverse_spline(moved, self._parameters_of(fixed), self.bins, self.bound)
        return self.axes.points(torch.cat((fixed, moved)))


class _MaskedLinear(nn.Linear):
    """A linear layer with those weights only that a mask (out, in) lets through."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.mask * self.weight, self.bias)


def _autoregressive_network(dim: int, outputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """`outputs` numbers a coordinate, functions of the coordinates before it (MADE: Germain et al. 2015).

    A unit of degree m sees the units of degree at most m of the layer before it: coordinates have degrees 1, …, d,
    hidden units 1, …, d − 1 in turn, and the outputs of coordinate k have degree k − 1.
    """
    inner = [torch.arange(width) % (dim - 1) + 1 for width in hidden]
    degrees = [torch.arange(dim) + 1, *inner, torch.arange(dim).repeat_interleave(outputs)]
    layers: list[nn.Module] = []
    for before, after in pairwise(degrees):
        layers += [_MaskedLinear(after[:, None] >= before), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class _AutoregressiveSpline(TransportMap):
    """Splines of every coordinate of x @ axes, each conditioned on all before it."""

    def __init__(self, axes: _Axes, bins: int, hidden: tuple[int, ...], bound: float) -> None:
        super().__init__()
        self.dim, self.bins, self.bound = len(axes.order), bins, bound
        self.axes = axes
        self.network = _zero_last_layer(_autoregressive_network(self.dim, 3 * bins - 1, hidden))

    def _parameters_of(self, z: Tensor) -> Tensor:
        return _by_columns(self.network, z).unflatten(0, (-1, 3 * self.bins - 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.axes.coordinates(x)
        z, log_slope = spline(z, self._parameters_of(z), self.bins, self.bound)
        return self.axes.points(z), log_slope.sum(0)

    def inverse(self, y: Tensor) -> Tensor:
        y = self.axes.coordinates(y)
        z = torch.zeros_like(y)
        for _ in range(len(y)):  # pass k makes coordinate k final
            z = inverse_spline(y, self._parameters_of(z), self.bins, self.bound)
        return self.axes.points(z)
