"""The one registry of maps: by the names that users give, and by the classes that files name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from wprox._checks import described, is_several, kind_of
from wprox.maps.affine import AffineMap
from wprox.maps.base import ComposedMap, TransportMap
from wprox.maps.convex import ConvexMap
from wprox.maps.ode import ODEMap
from wprox.maps.rescaled import RescaledMap
from wprox.maps.residual import ResidualMap
from wprox.maps.rosenblatt import RosenblattMap
from wprox.maps.spline import SplineMap


class UnknownMapError(ValueError):
    """A description of a map whose class is not known."""


MapFactory = Callable[[int], TransportMap]

REGISTRY: tuple[tuple[str | None, type[TransportMap]], ...] = (  # the name as in map="spline", where there is one
    ("spline", SplineMap),
    ("ode", ODEMap),
    ("residual", ResidualMap),
    ("convex", ConvexMap),
    (None, AffineMap),
    (None, ComposedMap),
    (None, RescaledMap),
    (None, RosenblattMap),
)
MAPS: dict[str, type[TransportMap]] = {name: cls for name, cls in REGISTRY if name is not None}


def map_factory(map: str | MapFactory, options: dict[str, Any] | None = None) -> MapFactory:
    """The factory dim → map for a map's name and options, or the factory itself.

    Raises:
        ValueError: for an unknown name, and options beside a factory.
        TypeError: for options that the named map does not have, and for what is no factory.

    Example:
        >>> from wprox.maps.registry import map_factory
        >>> map_factory("spline", {"bins": 4})(2).config["bins"]
        4
    """
    options = check_options(options)
    if isinstance(map, str):
        if map not in MAPS:
            raise ValueError(f"map must be one of {sorted(MAPS)} or a factory dim -> TransportMap, got {map!r}")
        cls = MAPS[map]
        known = list(inspect.signature(cls).parameters)[1:]  # without dim
        if unknown := [name for name in options if name not in known]:
            raise TypeError(f"map_options of {map!r} may hold {known}, got {unknown}")
        return partial(cls, **options)
    if isinstance(map, nn.Module):
        raise TypeError(
            f"map must be a name or a factory dim -> TransportMap, got a map, {type(map).__name__}; give its class, or "
            "lambda dim: map for steps that start from it"
        )
    is_functional = hasattr(map, "wasserstein_gradient")  # it can be called, with measures
    if not callable(map) or is_functional or (isinstance(map, type) and not issubclass(map, TransportMap)):
        raise TypeError(
            f"map must be a name or a factory dim -> TransportMap, got {kind_of(map)}; names are {sorted(MAPS)}"
        )
    if options:
        raise ValueError(
            "map_options go with a map's name; give a factory its options yourself, as in functools.partial"
        )
    return map


def check_options(options: Any) -> dict[str, Any]:
    """The options of a named map, none by default."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise TypeError(
            f"map_options must be a dict of arguments of the map, as in {{'bins': 8}}, got {described(options)}"
        )
    return dict(options)


def check_map_classes(map_classes: Any) -> Sequence[type[TransportMap]]:
    """Classes of maps, as `load` takes them.

    Raises:
        TypeError: for anything but a list of subclasses of `TransportMap`.
    """
    classes = list(map_classes) if is_several(map_classes) else [map_classes]
    wrong = [cls for cls in classes if not (isinstance(cls, type) and issubclass(cls, TransportMap))]
    if wrong or isinstance(map_classes, type | str):
        raise TypeError(f"map_classes must be a list of subclasses of wprox.TransportMap, got {described(map_classes)}")
    return classes


def rebuild(description: dict[str, Any], map_classes: Sequence[type[TransportMap]] = ()) -> TransportMap:
    """The map that `wprox.maps.base.describe` described, newly built.

    Arguments:
        description: {"class": the name of its class, "config": its config}.
        map_classes: classes beside those of wprox.

    Raises:
        UnknownMapError: for a class that is neither.

    Example:
        >>> import wprox
        >>> from wprox.maps.base import describe
        >>> from wprox.maps.registry import rebuild
        >>> map = wprox.ComposedMap([wprox.AffineMap(2), wprox.SplineMap(2)])
        >>> [type(part).__name__ for part in rebuild(describe(map)).maps]
        ['AffineMap', 'SplineMap']
    """
    known = {cls.__name__: cls for _, cls in REGISTRY} | {cls.__name__: cls for cls in map_classes}
    name = description["class"]
    if name not in known:
        raise UnknownMapError(
            f"a map is of class {name}, which wprox does not know; give it as load(folder, ..., map_classes=[{name}])"
        )
    return known[name].from_config(description["config"], lambda part: rebuild(part, map_classes))


class Allowance(TorchFunctionMode):
    """Inside, torch makes so many numbers and no more: a description of a few letters can ask for gigabytes of them.

    Arguments:
        numbers: in tensors that are made.
        calls: of functions of torch.

    Raises:
        ValueError: (inside) before more are made.

    Example:
        >>> from wprox.maps.registry import Allowance, rebuild
        >>> with Allowance(1_000_000, 1000):
        ...     rebuild({"class": "AffineMap", "config": {"dim": 10_000}})
        Traceback (most recent call last):
        ...
        ValueError: a map has more parameters than there are
    """

    def __init__(self, numbers: int, calls: int) -> None:
        super().__init__()
        self.numbers, self.calls = numbers, calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls -= 1
        self.numbers -= _made(func, args)
        if min(self.calls, self.numbers) < 0:
            raise ValueError("a map has more parameters than there are")
        return func(*args, **kwargs)


_SIZED = {torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn}
_SIZED |= {Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones, Tensor.new_full}
_REPEATED = {Tensor.repeat, Tensor.repeat_interleave}
_COUNTED = {torch.arange, torch.linspace, torch.randperm}


def _made(func: Callable[..., Any], args: Sequence[Any]) -> int:
    """How many numbers a function of torch makes, at most; 0 where it makes no more than it was given."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    sizes = [
        size for arg in args for size in (arg if isinstance(arg, tuple | list) else [arg]) if isinstance(size, int)
    ]
    if func in _COUNTED:
        return max(sizes, default=0)
    if func is torch.eye:
        return math.prod(sizes * (3 - len(sizes)))
    if func in _SIZED or func in _REPEATED:
        return math.prod(sizes) * (tensors[0].numel() if func in _REPEATED else 1)
    shapes = {tensor.shape for tensor in tensors}
    try:
        return math.prod(torch.broadcast_shapes(*shapes)) if len(shapes) > 1 else 0
    except RuntimeError:  # no operation entry by entry
        return sum(tensor.numel() for tensor in tensors)
