"""Maps in another precision: copies that are made once, and again where the map has changed."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from wprox.maps.base import ComposedMap, TransportMap

CONTAINERS = (dict, OrderedDict, set)

# A copy lives as long as its map, and outside of it, so that it is neither pickled nor copied with it.
_copies: WeakKeyDictionary[TransportMap, dict[torch.dtype, TransportMap]] = WeakKeyDictionary()


def in_precision(map: TransportMap, dtype: torch.dtype) -> TransportMap:
    """The map in a floating-point type, for evaluation: itself where it is in that type, else a copy, which is kept.

    A kept copy is returned only while it is what a new one would be: all tensors and all attributes of all modules are
    compared with the map's own, so that training in place, loading a state or setting an attribute are seen. For a
    spline that costs a quarter of an evaluation at one point, and copying more than the whole. Of a `ComposedMap` each
    part is kept by itself.

    Arguments:
        map: the map; it is not changed.
        dtype: of its parameters.

    Example:
        >>> import torch, wprox
        >>> from wprox.maps.precision import in_precision
        >>> map = wprox.AffineMap(2)
        >>> double = in_precision(map, torch.float64)
        >>> double.shift.dtype, in_precision(map, torch.float64) is double, in_precision(map, torch.float32) is map
        (torch.float64, True, True)
        >>> _ = map.shift.data.add_(1)
        >>> in_precision(map, torch.float64).shift.tolist()
        [1.0, 1.0]
    """
    if type(map) is ComposedMap:
        return ComposedMap([in_precision(part, dtype) for part in map.maps])
    kept = _copies.get(map, {})
    with torch.no_grad():
        if dtype in kept and _is_copy(kept[dtype], map):
            return kept[dtype]
    tensors = [*map.parameters(), *map.buffers()]
    if all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
        return map
    _copies[map] = kept | {dtype: copy.deepcopy(map).to(dtype)}
    return _copies[map][dtype]


def _is_copy(other: nn.Module, map: nn.Module) -> bool:
    """Whether a module is what a new copy of a map would be, in its own precision."""
    if type(other) is not type(map):
        return False
    theirs, ours = vars(other), vars(map)
    if theirs.keys() != ours.keys():
        return False
    for name, value in ours.items():
        copied = theirs[name]
        if copied is value or (type(value) in CONTAINERS and not value and not copied):
            continue  # numbers, strings, functions and dictionaries without hooks: little is left to compare
        if name == "_modules":
            if list(copied) != list(value):
                return False
            for key, part in value.items():
                if copied[key] is not part and not (copied[key] is not None and _is_copy(copied[key], part)):
                    return False
        elif not _is_same(copied, value):
            return False
    return True


def _is_same(copied: Any, value: Any) -> bool:
    """Whether an attribute is what a copy of the value would be. What cannot be compared counts as changed."""
    if copied is value:
        return True
    if isinstance(value, Tensor):
        if not (isinstance(copied, Tensor) and copied.device == value.device):
            return False
        narrower = min(value.dtype, copied.dtype, key=lambda dtype: dtype.itemsize)
        same = torch.equal(value.to(narrower), copied.to(narrower))
        return same and copied.requires_grad == value.requires_grad
    if isinstance(value, dict):
        if not isinstance(copied, dict) or copied.keys() != value.keys():
            return False
        return all(_is_same(copied[key], entry) for key, entry in value.items()) if value else True
    if isinstance(value, list | tuple):
        if not isinstance(copied, list | tuple) or len(copied) != len(value):
            return False
        return all(_is_same(*pair) for pair in zip(copied, value, strict=True))
    try:
        return type(copied) is type(value) and bool(copied == value)
    except (RuntimeError, TypeError, ValueError):  # arrays, for example
        return False
