"""The verdict on a call with one wrong argument."""

from __future__ import annotations

import ast
import math
import signal
import traceback
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fuzz_calls import Call
from fuzz_hostile import HOSTILE, OwnError
from torch import Tensor

import wprox

VERDICTS = ("refused", "works", "obscure", "silent", "hang", "memory")
NOT_FINITE = (  # of which tensors are functions as in torch: NaN in, NaN out
    "a tensor with NaN",
    "a tensor with inf",
    "huge numbers",
    "a function that returns NaN",
    "a function that returns inf",
)
WORDS = 9  # that an error has at least, so that it can say what was given, what was expected and what to do
STOCK = (  # what Python and torch say of their own insides
    "has no attribute",
    "not callable",
    "Could not infer",
    "too large",
    "real scalar",
    "size of tensor",
    "missing 1",
    "not implemented for",
)


class TooSlowError(BaseException):
    """Raised by the alarm."""


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
        verdict: one of VERDICTS.
        note: the error, or what is wrong with the result.
    """

    verdict: str
    note: str = ""


def judge(call: Call, argument: str, hostile: str, limit: float = 5.0) -> Outcome:
    """The verdict on a call with one argument replaced."""
    wrong = HOSTILE[hostile]()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            result = call(**{argument: wrong})
        except TooSlowError:
            return Outcome("hang", f"over {limit:g} s")
        except OwnError:
            return Outcome("refused", "its own error")
        except Exception as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return _of_error(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    told = any(issubclass(warning.category, RuntimeWarning | UserWarning) for warning in warned)
    note = _of_result(result)
    if note and not told and hostile not in NOT_FINITE:
        return Outcome("silent", note)
    return Outcome("works", "with a warning" if told else "")


def _alarm(*_: Any) -> None:
    raise TooSlowError


def _of_error(error: Exception) -> Outcome:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return Outcome("memory", text)
    last = traceback.extract_tb(error.__traceback__)[-1]
    if Path(last.filename).parent == Path(__file__).parent:  # in a function of the user's own
        return Outcome("refused", f"its own error: {text}")
    if not _is_raised_by_us(last):
        return Outcome("obscure", text)
    stock = [phrase for phrase in STOCK if phrase in str(error)]
    if len(str(error).split()) < WORDS or stock:
        return Outcome("obscure", text)
    return Outcome("refused", text)


def _is_raised_by_us(last: traceback.FrameSummary) -> bool:
    """Whether the last frame of an error is a `raise` of this library."""
    if Path(wprox.__file__).parent not in Path(last.filename).parents:
        return False
    return any(first <= last.lineno <= end for first, end in _raises(last.filename))


@cache
def _raises(filename: str) -> list[tuple[int, int]]:
    tree = ast.parse(Path(filename).read_text())
    return [(node.lineno, node.end_lineno or node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Raise)]


def _of_result(result: Any) -> str:
    """What is wrong with a result; nothing for one that may be right."""
    if isinstance(result, Tensor):
        if result.is_complex() or result.dtype in (torch.float16, torch.bfloat16):
            return f"a tensor in {result.dtype}"
        return "NaN in a tensor" if result.is_floating_point() and bool(result.isnan().any()) else ""
    if isinstance(result, float):
        return "NaN" if math.isnan(result) else ""
    if isinstance(result, wprox.Measure):
        if result.points.ndim != 2 or result.weights.shape != result.points.shape[:1]:
            return f"points of shape {tuple(result.points.shape)}"
        if not bool(torch.isfinite(result.points).all() & torch.isfinite(result.weights).all()):
            return "a measure at points, or of weights, that are not finite"
        return _of_result(result.points) or _of_result(result.weights)
    if isinstance(result, wprox.Step):
        if result.value.ndim:
            return f"a value of shape {tuple(result.value.shape)}"
        return _of_result(result.measure) or _of_result(result.value) or _of_result(result.transport_cost)
    if isinstance(result, wprox.Trajectory):
        return _of_result(result.final)
    if isinstance(result, tuple | list):
        return next((note for part in result if (note := _of_result(part))), "")
    return ""
