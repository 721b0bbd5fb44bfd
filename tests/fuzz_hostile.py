"""What is put in the place of an argument: wrong kinds, shapes, types and numbers, and functions that go wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import wprox


class OwnError(Exception):
    """What a user's function raises itself: it passes through."""


def _raise(x):
    raise OwnError("a function of one's own failed")


class Duck:
    """An object that is nothing in particular."""


HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "text",
    "a number as text": lambda: "1.0",
    "bytes": lambda: b"bytes",
    "a dict": lambda: {"a": 1.0},
    "an empty dict": dict,
    "an empty list": list,
    "a list": lambda: [1.0, 2.0, 3.0],
    "a ragged list": lambda: [[1.0, 2.0], [3.0]],
    "a list of text": lambda: ["a", "b"],
    "a set": lambda: {1.0, 2.0},
    "a generator": lambda: (k for k in range(2)),
    "an object": Duck,
    "a class": lambda: Duck,
    "a class of ours": lambda: wprox.Particles,
    "a class of solvers": lambda: wprox.ParticleProx,
    "a class of functionals": lambda: wprox.Entropy,
    "a measure": lambda: wprox.Particles(torch.zeros(3, 2)),
    "a Gaussian of another dimension": lambda: wprox.Gaussian(torch.zeros(7), torch.eye(7)),
    "a functional": wprox.Entropy,
    "a solver": wprox.ParticleProx,
    "a map": lambda: wprox.AffineMap(3),
    "a distribution": lambda: Independent(Normal(torch.zeros(3), 1.0), 1),
    "a scalar distribution": lambda: Normal(0.0, 1.0),
    "a module": lambda: np,
    "True": lambda: True,
    "zero": lambda: 0,
    "a negative number": lambda: -1,
    "a negative float": lambda: -0.5,
    "half": lambda: 0.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1e308": lambda: 1e308,
    "1e-320": lambda: 1e-320,
    "2**70": lambda: 2**70,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "10**11": lambda: 10**11,
    "a complex number": lambda: 1j,
    "a NumPy float": lambda: np.float64(0.25),
    "a NumPy integer": lambda: np.int64(2),
    "a NumPy half": lambda: np.float16(0.25),
    "a 0-d tensor": lambda: torch.tensor(0.5),
    "a 0-d array": lambda: np.array(0.5),
    "an empty tensor": lambda: torch.empty(0),
    "no rows": lambda: torch.empty(0, 2),
    "no columns": lambda: torch.empty(5, 0),
    "a vector": lambda: torch.arange(5.0),
    "a matrix": lambda: torch.arange(15.0).reshape(5, 3),
    "three axes": lambda: torch.zeros(2, 3, 4),
    "integers": lambda: torch.arange(24).reshape(12, 2),
    "booleans": lambda: torch.ones(12, 2, dtype=torch.bool),
    "a complex tensor": lambda: torch.ones(12, 2, dtype=torch.complex64),
    "float16": lambda: torch.ones(12, 2, dtype=torch.float16),
    "bfloat16": lambda: torch.eye(2, dtype=torch.bfloat16),
    "NumPy float16": lambda: np.ones((12, 2), np.float16),
    "a NumPy longdouble": lambda: np.ones((12, 2), np.longdouble),
    "a tensor with NaN": lambda: torch.full((12, 2), math.nan),
    "a tensor with inf": lambda: torch.full((12, 2), math.inf),
    "huge numbers": lambda: torch.full((12, 2), 1e38),
    "an array of objects": lambda: np.array([[None, 1.0]] * 12, dtype=object),
    "an array of text": lambda: np.array([["a", "b"]] * 12),
    "dates": lambda: np.array(["2020-01-01"] * 12, "datetime64[D]"),
    "a list with 10**400": lambda: [[10**400, 1.0]] * 12,
    "a function": lambda: lambda *arguments: 1.0,
    "a function that returns None": lambda: lambda *x: None,
    "a function that returns text": lambda: lambda *x: "text",
    "a function that returns a list of text": lambda: lambda *x: ["text"] * len(x[0]),
    "a function that returns a scalar": lambda: lambda *x: torch.tensor(1.0),
    "a function that returns a complex number": lambda: lambda *x: 1j,
    "a function that returns complex numbers": lambda: lambda *x: _rows(x[0]) * 1j,
    "a function that returns a dict": lambda: lambda *x: {},
    "a function that returns itself twice": lambda: lambda *x: (x[0], x[0]),
    "a function that returns three things": lambda: lambda *x: (x[0], x[0], x[0]),
    "a function that returns other rows": lambda: lambda *x: torch.zeros(len(x[0]) + 1),
    "a function that returns a matrix": lambda: lambda *x: x[0][:, None] if x[0].ndim == 1 else x[0],
    "a function that returns columns": lambda: lambda *x: torch.ones(len(x[0]), 1),
    "a function that returns NaN": lambda: lambda *x: _rows(x[0]) * math.nan,
    "a function that returns inf": lambda: lambda *x: _rows(x[0]) + math.inf,
    "a function that returns half precision": lambda: lambda *x: _rows(x[0]).half(),
    "a function that raises": lambda: _raise,
}


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 1 else x.sum(-1)
