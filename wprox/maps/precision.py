"""Maps in another precision, for evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def in_precision(module: Module, dtype: torch.dtype) -> Module:
    """The module in a floating-point type: itself where it is in that type, else a copy of it with other tensors.

    Parts that keep their precision (`TransportMap.keeps_precision`) are taken as they are. The copy is shallow but for
    tensors and for what containers hold, so that it costs a tenth of a deep one and is made anew each time: it cannot
    be out of date.

    Example:
        >>> import torch, wprox
        >>> from wprox.maps.precision import in_precision
        >>> map = wprox.AffineMap(2)
        >>> in_precision(map, torch.float64).shift.dtype, in_precision(map, torch.float32) is map
        (torch.float64, True)
    """
    tensors = [*module.parameters(), *module.buffers()]
    if all(tensor.dtype == dtype for tensor in tensors if tensor.is_floating_point()):
        return module
    return _cast(module, lambda tensor: tensor.to(dtype), {})


def frozen(module: Module) -> Module:
    """The module with parameters that want no gradient: itself where that is so, else a copy with the same numbers."""
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    return _cast(module, lambda tensor: tensor, {}, freeze=True)


def _cast(module: Any, convert: Callable[[Tensor], Tensor], memo: dict[int, Any], freeze: bool = False) -> Any:
    """A copy of a module; `memo` has the copy of each module and tensor by its id, as that of `copy.deepcopy`."""
    if id(module) in memo:
        return memo[id(module)]
    if getattr(module, "keeps_precision", False):
        return module
    new = memo[id(module)] = module.__class__.__new__(module.__class__)
    state = dict(vars(module))
    for kind in ("_parameters", "_buffers"):
        state[kind] = {name: _converted(value, convert, memo, freeze) for name, value in state[kind].items()}
    state["_modules"] = {
        name: None if part is None else _cast(part, convert, memo, freeze) for name, part in module._modules.items()
    }
    for name, value in state.items():
        if isinstance(value, list | dict | tuple) and value and name not in ("_parameters", "_buffers", "_modules"):
            state[name] = copy.deepcopy(value, memo)  # which may refer to modules and tensors
    new.__dict__ = state
    return new


def _converted(
    tensor: Tensor | None, convert: Callable[[Tensor], Tensor], memo: dict[int, Any], freeze: bool
) -> Tensor | None:
    if tensor is None or id(tensor) in memo:
        return None if tensor is None else memo[id(tensor)]
    new = convert(tensor.detach()) if tensor.is_floating_point() else tensor.clone()
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, tensor.requires_grad and not freeze)
    memo[id(tensor)] = new
    return new
