"""Modes of torch: what the library computes does not depend on the mode in which it is called.

Inside `torch.inference_mode` gradients are 0 without a word, also under `torch.enable_grad`, and what is made there is
of no use to autograd later. Doors of the library therefore leave the mode, with copies of the tensors that were made in
it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable
from copy import copy
from functools import lru_cache, partial, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

PLAIN = (bool, int, float, str, types.FunctionType)
Call = TypeVar("Call", bound=Callable[..., Any])


def in_any_mode(function: Call, trains: bool = False) -> Call:
    """The function, run outside of inference mode, with copies of those arguments that hold tensors made inside.

    Arguments:
        function: a function, or a method, whose object itself is not copied.
        trains: whether gradients are switched on inside, whatever the caller has switched off; else they stay as off
            as they are, as inference mode has them off.

    Raises:
        TypeError: where a function that the caller gave holds a tensor made in inference mode.
    """

    own = int(function.__code__.co_varnames[:1] in (("self",), ("cls",)))

    @wraps(function)
    def run(*args: Any, **options: Any) -> Any:
        grad, is_inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        try:
            if not is_inside and (grad or not trains):
                found = function(*args[:own], *ordinary(args[own:]), **ordinary(options))
            else:
                with torch.inference_mode(False), torch.set_grad_enabled(grad or trains):
                    found = function(*args[:own], *ordinary(args[own:]), **ordinary(options))
        except RuntimeError as error:
            if "nference tensor" not in str(error):
                raise
            raise TypeError(
                "a function inside holds a tensor that was made in torch.inference_mode, which autograd cannot use "
                f"({error}); make it outside of that mode, or give the function tensor.clone() made outside"
            ) from error
        if isinstance(found, types.FunctionType):  # a field, to be asked later and perhaps in the mode again
            return in_any_mode(found)
        return found

    run.__dict__["_in_any_mode"] = True
    return run  # type: ignore[return-value]


def doors(cls: type, *names: str, trains: bool = False) -> None:
    """Make those of the named methods that a class defines itself run in any mode."""
    for name in names:
        method = vars(cls).get(name)
        if isinstance(method, classmethod):
            setattr(cls, name, classmethod(in_any_mode(method.__func__, trains)))
        elif isinstance(method, types.FunctionType) and "_in_any_mode" not in vars(method):
            setattr(cls, name, in_any_mode(method, trains))


def ordinary(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """The value itself, or a copy where it holds tensors made in inference mode, with others in their place.

    It looks into tuples, lists, dicts, and objects of this library and of torch.distributions; the copy is shallow.
    """
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if value is None or isinstance(value, PLAIN):
        return value
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)][1]
    found = _ordinary(value, memo)
    memo[id(value)] = value, found  # the value too, so that its id is not used again
    return found


def _ordinary(value: Any, memo: dict[int, Any]) -> Any:
    if isinstance(value, tuple | list):
        parts = [ordinary(part, memo) for part in value]
        if all(new is old for new, old in zip(parts, value, strict=True)):
            return value
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if type(value) is dict:
        entries = {key: ordinary(part, memo) for key, part in value.items()}
        return entries if any(entries[key] is not part for key, part in value.items()) else value
    if isinstance(value, types.MethodType):
        owner = ordinary(value.__self__, memo)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if isinstance(value, partial):
        parts = ordinary((value.args, value.keywords), memo)
        unchanged = parts[0] is value.args and parts[1] is value.keywords
        return value if unchanged else partial(value.func, *parts[0], **parts[1])
    if isinstance(value, nn.Module | type) or not _is_known(type(value)):  # type: ignore[arg-type]
        return value
    held = getattr(value, "__dict__", {})
    state = {name: new for name, part in held.items() if (new := ordinary(part, memo)) is not part}
    if not state:
        return value
    new = copy(value)
    for name, part in state.items():
        object.__setattr__(new, name, part)  # some are frozen
    return new


@lru_cache(maxsize=1000)
def _is_known(cls: Hashable) -> bool:
    """Whether a class, or one that it inherits from, is of this library or of torch's distributions."""
    return any(base.__module__.startswith(("wprox.", "torch.distributions")) for base in cls.__mro__[:-1])  # type: ignore[attr-defined]
