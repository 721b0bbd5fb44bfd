"""A model as a plain state, which files hold: a configuration for JSON, and tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from wprox.maps import TransportMap
from wprox.maps.base import describe
from wprox.maps.registry import Allowance, rebuild

LARGEST = 1e18  # a number in the description of a map, whose square is a number in float32 too
SPARE, MORE = 1_000_000, 10  # building a map makes so many numbers, and so many times those of its tensors, at most

Part = tuple[dict[str, Any], Mapping[str, Tensor]]  # what JSON holds of a part of a model, and the part's tensors


class State(NamedTuple):
    """What a model gives to be written, and takes to be what it was.

    Attributes:
        config: what JSON can hold; numbers and arrays of numpy and torch are written as Python's.
        tensors: by name.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]


class StateError(ValueError):
    """A state whose parts do not fit together."""


def map_part(map: TransportMap) -> Part:
    """A trained map as a part of a state.

    Raises:
        ValueError: for a map, or a part of a composed one, that does not say how to rebuild it.
    """
    try:
        return describe(map), map.state_dict()
    except NotImplementedError as error:
        raise ValueError(f"the model cannot be saved: {error}") from None


def map_of(part: Part, map_classes: Sequence[type[TransportMap]]) -> TransportMap:
    """The trained map that `map_part` wrote down, in evaluation mode.

    Raises:
        StateError: where the tensors are not those of the map, or not finite.
    """
    description, tensors = part
    if not map_classes:
        _check_sizes(description)
    numbers, calls = sum(tensor.numel() for tensor in tensors.values()), len(tensors)
    allowance = Allowance(SPARE + MORE * numbers, 10 * MORE * (10 + calls))
    with nullcontext() if map_classes else allowance:  # classes of one's own may make what they like
        map = rebuild(description, map_classes)
    check_tensors(tensors, map.state_dict())
    for name, fresh in map.state_dict().items():
        if bool(fresh.isfinite().all()):
            check_numbers(tensors[name], name)
        if not (map_classes or fresh.is_floating_point() or _same_kind_of_order(tensors[name], fresh)):
            raise StateError(f"{name} is not as the map is made")
    map.load_state_dict(tensors)
    return map.eval()


def _check_sizes(described: Any) -> None:
    """Raise `StateError` for numbers in the description of a map, or of maps in it, that are none or beyond use."""
    if isinstance(described, dict | list):
        for value in described.values() if isinstance(described, dict) else described:
            _check_sizes(value)
    elif isinstance(described, float | int) and not abs(described) <= LARGEST:
        raise StateError(f"a map has a setting of {described:g}")


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise `StateError` where tensors have other names, shapes or kinds of numbers than those that are expected."""
    if wrong := sorted(set(tensors) ^ set(expected)):
        raise StateError(f"{wrong[0]} is {'missing' if wrong[0] in expected else 'unknown'}")
    for name, tensor in tensors.items():
        other = expected[name]
        if tensor.shape != other.shape:
            raise StateError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(other.shape)}")
        if _kind(tensor) != _kind(other):
            raise StateError(f"{name} has type {tensor.dtype}, expected {other.dtype}")


def check_numbers(tensor: Tensor, name: str) -> None:
    """Raise `StateError` for NaN and infinite entries."""
    if not bool(tensor.isfinite().all()):
        raise StateError(f"{name} has NaN or infinite entries")


def check_dimensions(maps: Iterable[TransportMap], dim: int) -> None:
    """Raise `StateError` for a map of another dimension."""
    if wrong := [map.dim for map in maps if map.dim != dim]:
        raise StateError(f"a map has {wrong[0]} dimensions, expected {dim}")


def _same_kind_of_order(tensor: Tensor, fresh: Tensor) -> bool:
    """Whether whole numbers are those of a new map in some order, and switches those of a new map."""
    if fresh.dtype == torch.bool:
        return torch.equal(tensor, fresh)
    return torch.equal(tensor.flatten().sort().values, fresh.flatten().sort().values)


def _kind(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.dtype == torch.bool


def pack(prefix: str, parts: Iterable[Part]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The descriptions of numbered parts, and the tensors of all, named by prefix and number."""
    descriptions: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for k, (description, own) in enumerate(parts):
        descriptions.append(description)
        tensors |= {f"{prefix}.{k}.{name}": tensor for name, tensor in own.items()}
    return descriptions, tensors


def unpack(prefix: str, descriptions: Iterable[dict[str, Any]], tensors: Mapping[str, Tensor]) -> Iterator[Part]:
    """The parts that `pack` numbered."""
    for k, description in enumerate(descriptions):
        yield description, with_prefix(f"{prefix}.{k}.", tensors)


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by what follows it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
