"""A fitted JKO flow or sampler as the tensors and the configuration of a model folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wprox.maps import AffineMap, ConvexMap, ODEMap, ResidualMap, SplineMap, TransportMap
from wprox.measures import Gaussian
from wprox.models.flow.training import preprocessing_of
from wprox.models.folders import load_folder, save_folder
from wprox.models.sampler.chain import Layer, RejectionStep
from wprox.models.sampler.training import forward_step

if TYPE_CHECKING:
    from wprox.models.flow.jko_flow import JKOFlow
    from wprox.models.sampler.jko_sampler import JKOSampler

MAP_CLASSES: dict[str, type[TransportMap]] = {
    cls.__name__: cls for cls in (AffineMap, ConvexMap, ODEMap, ResidualMap, SplineMap)
}


def write_flow(flow: JKOFlow, folder: str | Path, overwrite: bool) -> None:
    """Write a fitted flow; see `JKOFlow.save`."""
    preprocessing = {f"preprocessing.{name}": tensor for name, tensor in flow.preprocessing_.state().items()}
    blocks, tensors = _described("blocks", flow.blocks_)
    parameters = flow.get_params()
    if callable(parameters["map"]):
        parameters["map"] = None  # the blocks say what they are
    if parameters["step_sizes"] not in (None, "auto"):
        parameters["step_sizes"] = list(flow.step_sizes_)
    if flow.bounds is not None:
        parameters["bounds"] = [torch.as_tensor(end).tolist() for end in flow.bounds]
    config = {
        "model": "JKOFlow",
        "parameters": parameters,
        "blocks": blocks,
        "step_sizes": flow.step_sizes_,
        "jitter": flow.jitter_,
        "columns": list(flow.feature_names_in_) if hasattr(flow, "feature_names_in_") else None,
        "history": flow.history_,
        "dtype": str(flow._dtype).removeprefix("torch."),
        "interrupted": flow.interrupted_,
    }
    save_folder(folder, preprocessing | tensors, config, overwrite)


def read_flow(cls: type[JKOFlow], folder: str | Path, map_classes: Sequence[type[TransportMap]]) -> JKOFlow:
    """Read what `write_flow` wrote; see `JKOFlow.load`."""
    tensors, config = _opened(folder, "JKOFlow")
    _check_config(config, tensors, folder)
    known = _known_maps(map_classes)
    with _naming_damage(folder):
        parameters = dict(config["parameters"])
        parameters["map"] = parameters["map"] or "spline"
        if parameters["bounds"] is not None:
            parameters["bounds"] = tuple(parameters["bounds"])
        flow = cls(**parameters)
        flow.preprocessing_ = preprocessing_of(flow).load_state(_part(tensors, "preprocessing."))
        flow.blocks_ = []
        for k, block in enumerate(config["blocks"]):
            flow.blocks_.append(_rebuilt(block, _part(tensors, f"blocks.{k}."), known, folder))
        flow.n_features_in_ = flow.preprocessing_.n_features
        flow.step_sizes_ = config["step_sizes"]
        flow.jitter_ = config["jitter"]
        flow.history_ = config["history"]
        flow.interrupted_ = config["interrupted"]
        if config["columns"] is not None:
            flow.feature_names_in_ = np.array(config["columns"], dtype=object)
        flow._dtype = getattr(torch, config["dtype"])
    return flow


def write_sampler(sampler: JKOSampler, folder: str | Path, overwrite: bool) -> None:
    """Write a sampler that has run; see `JKOSampler.save`."""
    initial = {"loc": sampler.initial_.loc, "scale_tril": sampler.initial_.scale_tril}
    layers, tensors = _described("layers", sampler.layers_)
    config = {
        "model": "JKOSampler",
        "parameters": sampler._parameters,
        "layers": layers,
        "history": sampler.history_,
        "interrupted": sampler.interrupted_,
    }
    save_folder(folder, initial | tensors, config, overwrite)


def read_sampler(
    cls: type[JKOSampler], folder: str | Path, target: Any, map_classes: Sequence[type[TransportMap]]
) -> JKOSampler:
    """Read what `write_sampler` wrote; see `JKOSampler.load`."""
    tensors, config = _opened(folder, "JKOSampler")
    known = _known_maps(map_classes)
    with _naming_damage(folder):
        scale_tril = tensors["scale_tril"]
        initial = Gaussian(tensors["loc"], scale_tril @ scale_tril.mT)
        initial.scale_tril = scale_tril  # not the factor of the product, which is rounded
        sampler = cls(target, initial=initial, **config["parameters"])
        sampler.initial_ = initial
        sampler.layers_ = []
        for k, layer in enumerate(config["layers"]):
            if layer["class"] == "RejectionStep":
                sampler.layers_.append(RejectionStep(**layer["config"]))
            elif layer["class"] == "ForwardStep":
                sampler.layers_.append(forward_step(sampler._target, **layer["config"]))
            else:
                sampler.layers_.append(_rebuilt(layer, _part(tensors, f"layers.{k}."), known, folder))
        sampler.history_ = config["history"]
        sampler.interrupted_ = config["interrupted"]
    return sampler


def _described(prefix: str, layers: Sequence[Layer]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Class and configuration of each map or rejection step, and the tensors of all, named by prefix and number."""
    described: list[dict[str, Any]] = []
    tensors: dict[str, Tensor] = {}
    for k, layer in enumerate(layers):
        if isinstance(layer, RejectionStep):
            described.append({"class": "RejectionStep", "config": layer._asdict()})
        else:
            described.append({"class": type(layer).__name__, "config": layer.config})
            tensors |= {f"{prefix}.{k}.{name}": tensor for name, tensor in layer.state_dict().items()}
    return described, tensors


def _opened(folder: str | Path, model: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the configuration of a folder, which must hold such a model."""
    tensors, config = load_folder(folder)
    if config.get("model") != model:
        raise ValueError(f"{folder} holds a {config.get('model')!r}, not a {model}")
    return tensors, config


def _known_maps(map_classes: Sequence[type[TransportMap]]) -> dict[str, type[TransportMap]]:
    return MAP_CLASSES | {map_class.__name__: map_class for map_class in map_classes}


@contextmanager
def _naming_damage(folder: str | Path) -> Iterator[None]:
    """Raise `ValueError` that names the folder where its parts do not fit together."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise _damaged(folder, error) from None


def _damaged(folder: str | Path, reason: object) -> ValueError:
    return ValueError(f"{folder} is damaged: its files do not fit together ({reason}); save it again")


def _rebuilt(
    block: dict[str, Any], state: dict[str, Tensor], known: dict[str, type[TransportMap]], folder: str | Path
) -> TransportMap:
    """A trained map from its class, configuration and tensors."""
    if block["class"] not in known:
        raise ValueError(
            f"{folder} has blocks of class {block['class']}, which wprox does not know; "
            f"give it as load(folder, ..., map_classes=[{block['class']}])"
        )
    map = known[block["class"]](**block["config"])
    map.load_state_dict(state)
    return map.eval()


def _check_config(config: dict[str, Any], tensors: dict[str, Tensor], folder: str | Path) -> None:
    """Refuse what would fail only when the flow is used."""
    history = config.get("history")
    stages = {"block", "held_out_nll", "iterations", "seconds"}
    ends = ["preprocessing.low", "preprocessing.high"]
    parameters = config.get("parameters")
    complaints = {
        "it names no known dtype": config.get("dtype") not in ("float16", "bfloat16", "float32", "float64"),
        "it has no blocks": not config.get("blocks"),
        "its history is incomplete": not isinstance(history, list)
        or not all(isinstance(stage, dict) and stages <= set(stage) for stage in history),
        "its bounds are missing": isinstance(parameters, dict)
        and parameters.get("bounds") is not None
        and not all(name in tensors for name in ends),
    }
    for complaint, applies in complaints.items():
        if applies:
            raise _damaged(folder, complaint)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
