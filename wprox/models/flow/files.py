"""A fitted flow as files hold it, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from wprox.maps import TransportMap
from wprox.models.flow.checks import check_config, check_preprocessing
from wprox.models.flow.estimator import FlowEstimator
from wprox.models.flow.parameters import from_json, to_json
from wprox.models.flow.selection import Selection
from wprox.models.flow.table.files import check_table, table_from_json, table_to_json
from wprox.models.flow.training import TrainedBlocks
from wprox.models.state import State, check_dimensions, map_of, map_part, pack, unpack, with_prefix

Flow = TypeVar("Flow", bound=FlowEstimator)


def state_of(flow: FlowEstimator) -> State:
    """The fitted flow without its training data."""
    config = {
        "parameters": to_json(flow.get_params(deep=False), flow.step_sizes_),
        "jitter": flow.jitter_,
        "columns": list(flow.feature_names_in_) if hasattr(flow, "feature_names_in_") else None,
        "dtype": str(flow._dtype).removeprefix("torch."),
        "saw_tensor": flow._saw_tensor,
        "preprocessing": sorted(flow.preprocessing_.state()),
        "table": table_to_json(flow.columns_) if hasattr(flow, "columns_") else None,
    }
    preprocessing = {f"preprocessing.{name}": tensor for name, tensor in flow.preprocessing_.state().items()}
    if flow.selection_ is not None:
        config["selection"] = flow.selection_.to_json()
    blocks = flow._trained.state()
    start, tensors = pack("start", [] if flow.start_ is None else [map_part(flow.start_)])
    config |= {"start": start} if start else {}
    return State(config | blocks.config, preprocessing | tensors | blocks.tensors)


def flow_of(cls: type[Flow], state: State, map_classes: Sequence[type[TransportMap]]) -> Flow:
    """The flow whose `state_of` this is."""
    config, tensors = state
    check_config(config, tensors)
    flow = cls(**from_json(config["parameters"]))
    learned = with_prefix("preprocessing.", tensors)
    table = table_from_json(config.get("table"))
    flow._take_preprocessing(flow._new_preprocessing(table).load_state(learned))
    check_preprocessing(flow.preprocessing_, learned, config["columns"] if table is None else None)
    if table is not None:
        check_table(table, flow.preprocessing_.dim, config["columns"])
    flow._take(TrainedBlocks.from_state(state, map_classes))
    starts = [map_of(part, ()) for part in unpack("start", config.get("start", []), tensors)]
    flow.start_ = starts[0] if starts else None
    flow.selection_ = Selection.from_json(config["selection"]) if "selection" in config else None
    check_dimensions([*starts, *flow.blocks_], flow.preprocessing_.dim)
    flow.n_features_in_ = flow.preprocessing_.n_features if table is None else len(table.columns)
    flow.jitter_, flow._dtype = config["jitter"], getattr(torch, config["dtype"])
    flow._saw_tensor = config.get("saw_tensor", True)
    flow._name_features(config["columns"])
    return flow
