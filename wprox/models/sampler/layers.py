"""The layers of a JKO sampler as parts of its state: maps, forward steps and rejection steps."""

from __future__ import annotations

from collections.abc import Sequence

from wprox.maps import TransportMap
from wprox.models.sampler.chain import Layer, RejectionStep
from wprox.models.sampler.forward import forward_step
from wprox.models.sampler.target import ScaledTarget
from wprox.models.state import Part, map_of, map_part


def layer_part(layer: Layer) -> Part:
    """A layer as a part of a state."""
    if isinstance(layer, RejectionStep):
        return {"class": "RejectionStep", "config": layer._asdict()}, {}
    return map_part(layer)


def layer_of(part: Part, target: ScaledTarget, map_classes: Sequence[type[TransportMap]]) -> Layer:
    """The layer that `layer_part` wrote down; forward steps follow the target, which is not part of a state."""
    description, _ = part
    if description["class"] == "RejectionStep":
        return RejectionStep(**description["config"])
    if description["class"] == "ForwardStep":
        return forward_step(target, **description["config"])
    return map_of(part, map_classes)
