"""Maps in another precision: copies that are made once, and again where the map has changed."""

from __future__ import annotations

import copy
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from wprox.maps.base import ComposedMap, TransportMap

# A copy lives as long as its map, and outside of it, so that it is neither pickled nor copied with it.
_copies: WeakKeyDictionary[TransportMap, dict[torch.dtype, TransportMap]] = WeakKeyDictionary()


def in_precision(map: TransportMap, dtype: torch.dtype) -> TransportMap:
    """The map in a floating-point type, for evaluation: itself where it is in that type, else a copy, which is kept.

    A kept copy is returned only while it is what a new one would be: all tensors and all attributes of all modules are
    compared with the map's own, so that training in place, loading a state or setting an attribute are seen. That costs
    a small part of an evaluation at one point; copying costs as much as the evaluation. Of a `ComposedMap` each part is
    kept by itself.

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
    tensors = [*map.parameters(), *map.buffers()]
    if all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
        return map
    kept = _copies.setdefault(map, {})
    if dtype not in kept or not _is_copy(kept[dtype], map):
        kept[dtype] = copy.deepcopy(map).to(dtype)
    return kept[dtype]


def _is_copy(other: nn.Module, map: nn.Module) -> bool:
    """Whether a module is what a new copy of a map would be, in its own precision."""
    theirs, ours = list(other.modules()), list(map.modules())
    return len(theirs) == len(ours) and all(
        type(copied) is type(module)
        and vars(copied).keys() == vars(module).keys()
        and all(_is_same(vars(copied)[name], value) for name, value in vars(module).items())
        for copied, module in zip(theirs, ours, strict=True)
    )


def _is_same(copied: object, value: object) -> bool:
    """Whether an attribute is what a copy of the value would be. What cannot be compared counts as changed."""
    if copied is value:
        return True
    if isinstance(value, Tensor):
        return (
            isinstance(copied, Tensor)
            and copied.device == value.device
            and copied.requires_grad == value.requires_grad
            and torch.equal(value.detach().to(copied.dtype), copied.detach())
        )
    if isinstance(value, nn.Module):  # compared in its turn
        return isinstance(copied, nn.Module)
    if isinstance(value, dict):
        return (
            isinstance(copied, dict)
            and list(copied) == list(value)
            and all(_is_same(copied[key], entry) for key, entry in value.items())
        )
    if isinstance(value, list | tuple):
        return (
            isinstance(copied, list | tuple)
            and len(copied) == len(value)
            and all(_is_same(*pair) for pair in zip(copied, value, strict=True))
        )
    try:
        return type(copied) is type(value) and bool(copied == value)
    except (RuntimeError, TypeError, ValueError):  # arrays, for example
        return False
