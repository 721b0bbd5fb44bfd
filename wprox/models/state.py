"""A model as a plain state, which files hold: a configuration for JSON, and tensors by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from wprox.maps import TransportMap
from wprox.maps.base import describe
from wprox.maps.registry import rebuild

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
    """The trained map that `map_part` wrote down, in evaluation mode."""
    description, tensors = part
    map = rebuild(description, map_classes)
    map.load_state_dict(tensors)
    return map.eval()


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
