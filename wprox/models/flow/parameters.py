"""A flow's arguments as files hold them, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from wprox.models.step_sizes import entries


def to_json(arguments: Mapping[str, Any], trained: Sequence[float]) -> dict[str, Any]:
    """The arguments of a flow, as JSON can hold them.

    A map that is a factory becomes `None`, since the blocks say what they are; step sizes that are a function become
    those of the blocks.

    Arguments:
        arguments: by name, as `JKOFlow` takes them.
        trained: the step sizes of the blocks.
    """
    held = dict(arguments)
    if callable(held["map"]):
        held["map"] = None
    if callable(held["step_sizes"]):
        held["step_sizes"], held["n_blocks"] = list(trained), len(trained)
    elif (sizes := entries(held["step_sizes"])) is not None:
        held["step_sizes"] = sizes
    if isinstance(held["columns"], Mapping):
        held["columns"] = {str(name): wish for name, wish in held["columns"].items()}
    elif held["columns"] is not None:
        held["columns"] = "auto"
    if held["bounds"] is not None:
        held["bounds"] = [torch.as_tensor(end).tolist() for end in held["bounds"]]
    return held


def from_json(held: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a flow from what `to_json` returned."""
    arguments = dict(held)
    arguments["map"] = arguments["map"] or "spline"
    if arguments["bounds"] is not None:
        arguments["bounds"] = tuple(arguments["bounds"])
    sizes = entries(arguments["step_sizes"])
    if sizes is not None and arguments["n_blocks"] is not None:
        # wprox 0.1.0 wrote the step sizes of the blocks that were trained beside the number of those that might be
        arguments["n_blocks"] = min(arguments["n_blocks"], len(sizes))
    return arguments
