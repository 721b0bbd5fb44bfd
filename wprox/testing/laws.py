"""How laws are asked: what breaks one becomes a sentence, and what a subject refuses is left out."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from wprox._checks import described
from wprox.measures import DensityUnknownError, Measure
from wprox.measures.base import require_measure

Result = TypeVar("Result")
Law = Callable[..., None]

REFUSALS = (DensityUnknownError, NotImplementedError)
WORDS = 4  # that a refusal has at least: fewer tell nobody what to do


class Unasked(Exception):
    """A law that cannot be asked: the subject refuses what it would take, and says so."""


def name_of(law: Law) -> str:
    """The name of a law: that of its function, in words."""
    return law.__name__.replace("_", " ").strip()


def answer(call: Callable[..., Result], *arguments: Any, refusals: tuple[type[Exception], ...] = REFUSALS) -> Result:
    """What the call returns.

    Raises:
        Unasked: where it refuses, with a sentence.
        AssertionError: where it refuses without one.
    """
    try:
        return call(*arguments)
    except refusals as error:
        check_sentence(error)
        raise Unasked(str(error)) from error


def pickled(value: Result, owner: object) -> Result:
    """A copy of a value by way of bytes, as another process gets it.

    Arguments:
        value: the value.
        owner: whose class made it: functions inside of its methods, which bytes cannot name, are its own fault.

    Raises:
        Unasked: where it holds functions or classes of somebody else's that cannot be pickled.
        AssertionError: where it holds functions made inside of methods of the class of its owner.
    """
    try:
        data = pickle.dumps(value)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        for cls in type(owner).__mro__:
            if "<locals>" not in cls.__qualname__ and f"{cls.__qualname__}." in str(error):
                raise AssertionError(
                    f"it cannot be pickled ({error}): make the function that is inside of a method one of the module, "
                    "with functools.partial for its arguments"
                ) from None
        raise Unasked(str(error)) from error
    return pickle.loads(data)


def check_sentence(error: Exception) -> None:
    """Raise `AssertionError` where the message of an error is no sentence."""
    if len(str(error).split()) < WORDS:
        raise AssertionError(
            f"it refuses by {type(error).__name__}({str(error)!r}), which is no sentence that says what was given, "
            "what was expected and what to do"
        )


def refused(call: Callable[..., Any], *arguments: Any, by: tuple[type[Exception], ...], what: str) -> None:
    """Raise `AssertionError` where the call does not refuse its arguments by one of these errors, with a sentence."""
    try:
        call(*arguments)
    except by as error:
        check_sentence(error)
    except Exception as error:
        raise AssertionError(f"{what} ends in {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{what} is taken, where it should be refused by {by[0].__name__}")


def ask(laws: Sequence[Law], subject: str, at: str, *arguments: Any, exempt: Collection[str] = ()) -> list[str]:
    """The names of those laws that could be asked, in order; all of them hold.

    Arguments:
        laws: functions of the arguments, which raise `AssertionError` where they are broken.
        subject: what is asked, for the message.
        at: the input, in words, for the message.
        arguments: what the laws take.
        exempt: names of laws that are left out.

    Raises:
        AssertionError: for the first law that is broken, by how much, and at what input.
    """
    asked = []
    for law in laws:
        if name_of(law) in exempt:
            continue
        try:
            law(*arguments)
        except Unasked:
            continue
        except AssertionError as error:
            raise AssertionError(f"law {name_of(law)!r} of {subject}: {error}, at {at}") from None
        except Exception as error:
            raise AssertionError(
                f"law {name_of(law)!r} of {subject}: it raised {type(error).__name__}: {error}, at {at}"
            ) from error
        asked.append(name_of(law))
    return asked


def check_names(exempt: Collection[str], *tables: Sequence[Law]) -> None:
    """Raise `ValueError` for exemptions from laws that there are not."""
    known = [name_of(law) for laws in tables for law in laws]
    if not isinstance(exempt, list | tuple | set | frozenset) or any(name not in known for name in exempt):
        raise ValueError(f"exempt must hold names of laws out of {known}, got {described(exempt)}")


def check_measures(measures: Any) -> list[Measure]:
    """The measures to ask at, from a sequence of them."""
    found = list(measures) if isinstance(measures, list | tuple) else [measures]
    if not found:
        raise ValueError("measures is empty; give some measures to ask at, or None for one of each kind")
    return [require_measure(rho, f"measures[{k}]") for k, rho in enumerate(found)]


def require(holds: bool, sentence: str) -> None:
    """Raise `AssertionError` with the sentence unless it holds (`assert` can be switched off)."""
    if not holds:
        raise AssertionError(sentence)


def require_close(found: Any, expected: Any, names: tuple[str, str], rtol: float, atol: float = 0.0) -> None:
    """Raise `AssertionError` that names the values where they differ most, unless all entries are close.

    Arguments:
        found: a number or tensor.
        expected: likewise.
        names: what the two are.
        rtol: relative to the largest entry of what is expected.
        atol: in addition.
    """
    found, expected = (torch.as_tensor(value).detach().double() for value in (found, expected))
    if found.shape != expected.shape:
        raise AssertionError(f"{names[0]} has shape {tuple(found.shape)} and {names[1]} {tuple(expected.shape)}")
    if torch.equal(found, expected) or found.numel() == 0:  # infinite ones as well
        return
    error = (found - expected).abs().nan_to_num(nan=math.inf)
    allowed = atol + rtol * float(expected.abs().max())
    if bool((error <= allowed).all()):
        return
    worst = int(error.argmax())
    where = (
        ""
        if found.ndim == 0
        else f" in entry {tuple(int(i) for i in torch.unravel_index(error.argmax(), found.shape))}"
    )
    raise AssertionError(
        f"{names[0]} is {float(found.flatten()[worst]):.8g} and {names[1]} {float(expected.flatten()[worst]):.8g}"
        f"{where}, {float(error.flatten()[worst]):.2g} apart where {allowed:.2g} is allowed"
    )


def shown(rho: Measure, seed: int) -> str:
    """A measure in words, for messages."""
    dtype = str(rho.dtype).removeprefix("torch.")
    return f"{type(rho).__name__} of {len(rho)} points in dimension {rho.dim}, {dtype}, seed {seed}"


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(like: Tensor, *shape: int, seed: int) -> Tensor:
    """Standard normal numbers in the precision of `like`, the same ones in all precisions."""
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(like)


def masses(n: int, seed: int) -> Tensor:
    """Unequal weights that sum to 1, (n,), in float64, none of them small."""
    weights = torch.rand(n, generator=generator(seed), dtype=torch.float64) + 0.5
    return weights / weights.sum()
