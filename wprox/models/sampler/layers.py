"""The layers of a JKO sampler as parts of its state: maps, forward steps and rejection steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from wprox.maps import TransportMap
from wprox.models.json_files import is_list, is_number, is_text
from wprox.models.sampler.chain import Layer, RejectionStep
from wprox.models.sampler.forward import forward_step
from wprox.models.sampler.target import ScaledTarget
from wprox.models.state import Part, StateError, check_numbers, map_of, map_part


def layer_part(layer: Layer) -> Part:
    """A layer as a part of a state."""
    if isinstance(layer, RejectionStep):
        return {"class": "RejectionStep", "config": layer._asdict()}, {}
    return map_part(layer)


def layer_of(part: Part, target: ScaledTarget, map_classes: Sequence[type[TransportMap]]) -> Layer:
    """The layer that `layer_part` wrote down; forward steps follow the target, which is not part of a state."""
    description, _ = part
    if description["class"] == "RejectionStep":
        step = RejectionStep(**description["config"])
        if not (is_list(list(step), is_number) and 0 <= step.rejection_rate <= 1 and step.log_threshold < math.inf):
            raise StateError(f"a rejection step has the numbers {list(step)}")
        return step
    if description["class"] == "ForwardStep":
        return forward_step(target, **description["config"])
    return map_of(part, map_classes)


def check_state(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise `StateError` for what would fail, or mean something else, only when the sampler is used."""
    for name in ("loc", "scale_tril"):
        check_numbers(tensors[name], name)
    loc, factor = tensors["loc"], tensors["scale_tril"]
    if not (loc.is_floating_point() and factor.dtype == loc.dtype and loc.ndim == 1):
        raise StateError(f"loc and scale_tril have types {loc.dtype} and {factor.dtype} and shape {tuple(loc.shape)}")
    if factor.shape != 2 * loc.shape or bool((factor.diagonal() <= 0).any()) or bool(factor.triu(1).any()):
        raise StateError("scale_tril is no lower triangular matrix with a positive diagonal")
    if not is_list(config.get("history"), _is_stage):
        raise StateError("its history is incomplete")
    if not isinstance(config.get("interrupted"), bool):
        raise StateError("it does not say whether it was interrupted")


def _is_stage(stage: Any) -> bool:
    """Whether a dict is one that `history_` may hold."""
    if not isinstance(stage, dict) or not {"stage", "kl", "ess", "seconds"} <= set(stage):
        return False
    return is_text(stage["stage"]) and all(is_number(value) for name, value in stage.items() if name != "stage")
