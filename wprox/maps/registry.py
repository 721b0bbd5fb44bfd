"""The one registry of maps: by the names that users give, and by the classes that files name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

from wprox.maps.affine import AffineMap
from wprox.maps.base import ComposedMap, TransportMap
from wprox.maps.convex import ConvexMap
from wprox.maps.ode import ODEMap
from wprox.maps.rescaled import RescaledMap
from wprox.maps.residual import ResidualMap
from wprox.maps.spline import SplineMap

MapFactory = Callable[[int], TransportMap]

REGISTRY: tuple[tuple[str | None, type[TransportMap]], ...] = (  # the name as in map="spline", where there is one
    ("spline", SplineMap),
    ("ode", ODEMap),
    ("residual", ResidualMap),
    ("convex", ConvexMap),
    (None, AffineMap),
    (None, ComposedMap),
    (None, RescaledMap),
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
    if isinstance(map, str):
        if map not in MAPS:
            raise ValueError(f"map must be one of {sorted(MAPS)} or a factory dim -> TransportMap, got {map!r}")
        cls = MAPS[map]
        known = list(inspect.signature(cls).parameters)[1:]  # without dim
        if unknown := [name for name in options or {} if name not in known]:
            raise TypeError(f"map_options of {map!r} may hold {known}, got {unknown}")
        return lambda dim: cls(dim, **(options or {}))
    if isinstance(map, nn.Module):
        raise TypeError(
            f"map must be a name or a factory dim -> TransportMap, got a map, {type(map).__name__}; give its class, or "
            "lambda dim: map for steps that start from it"
        )
    if not callable(map):
        raise TypeError(f"map must be a name or a factory dim -> TransportMap, got {type(map).__name__}")
    if options:
        raise ValueError(
            "map_options go with a map's name; give a factory its options yourself, as in functools.partial"
        )
    return map


def check_map_classes(map_classes: Any) -> Sequence[type[TransportMap]]:
    """Classes of maps, as `load` takes them.

    Raises:
        TypeError: for anything but a list of subclasses of `TransportMap`.
    """
    classes = list(map_classes) if isinstance(map_classes, Iterable) else [map_classes]
    wrong = [cls for cls in classes if not (isinstance(cls, type) and issubclass(cls, TransportMap))]
    if wrong or isinstance(map_classes, type | str):
        raise TypeError(f"map_classes must be a list of subclasses of wprox.TransportMap, got {map_classes!r}")
    return classes


def rebuild(description: dict[str, Any], map_classes: Sequence[type[TransportMap]] = ()) -> TransportMap:
    """The map that `wprox.maps.base.describe` described, newly built.

    Arguments:
        description: {"class": the name of its class, "config": its config}.
        map_classes: classes beside those of wprox.

    Raises:
        ValueError: for a class that is neither.

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
        raise ValueError(
            f"a map is of class {name}, which wprox does not know; give it as load(folder, ..., map_classes=[{name}])"
        )
    return known[name].from_config(description["config"], lambda part: rebuild(part, map_classes))
