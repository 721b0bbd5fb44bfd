"""Whether a function of points is a polynomial of degree two at most, read off the operations that it is made of."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# operations whose result has the largest degree of their tensors, the sum of two degrees, or none
LINEAR = """
    add sub rsub neg sum mean view _unsafe_view reshape expand permute t transpose unsqueeze squeeze select slice index
    cat stack clone alias unbind split split_with_sizes chunk diagonal flip roll tril triu _to_copy copy cumsum
    index_select gather repeat narrow movedim trace constant_pad_nd
""".split()  # noqa: SIM905
PRODUCTS = ("mul", "mm", "bmm", "mv", "dot")
SUMS_OF_PRODUCTS = ("addmm", "baddbmm", "addmv", "addcmul", "addbmm")
CONSTANT = """
    zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty zeros ones full empty arange eye
    scalar_tensor lift_fresh
""".split()  # noqa: SIM905
SOLVES = {"linalg_solve_triangular": 1, "_linalg_solve_ex": 1, "triangular_solve": 0, "cholesky_solve": 0}  # where b is
UNKNOWN = math.inf


def is_quadratic(function: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    """Whether V is certainly a polynomial of degree at most two in points like those of `like`, (n, d).

    V runs once, and each of its operations says what degree its result has: sums the largest, products the sum. An
    operation that is not a polynomial, or that is not known here, an assignment in place, and a value that leaves torch
    (`.item()`, `.numpy()`, `.detach()`, a comparison) make the answer no. What leaves torch without being seen, as by
    `.tolist()`, shows in the third differences of V along a line, which must vanish.
    """
    with torch.enable_grad():  # so that .numpy() needs .detach(), which is seen
        x = torch.linspace(0.5, 1.5, 4 * like.shape[1], dtype=like.dtype, device=like.device).reshape(4, -1)
        x.requires_grad_()
        with _Degrees(x) as degrees, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that leave torch
            value = function(x)
    if not isinstance(value, Tensor) or value.shape != (4,) or degrees.escaped or degrees.of(value) > 2:
        return False
    value = value.detach().double()
    third = value[3] - 3 * value[2] + 3 * value[1] - value[0]  # the rows of x are on a line, at equal distances
    return bool(third.abs() <= 1e3 * torch.finfo(like.dtype).eps * value.abs().max())


class _Degrees(TorchDispatchMode):
    """Follows a function's operations and keeps the degree of every tensor in x."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.degrees: dict[int, tuple[Tensor, float]] = {}  # the tensors too, so that no id is used again
        self.squares: dict[int, tuple[Tensor, float]] = {}  # of Euclidean norms: the degree of their square
        self.escaped = False
        self.put(x, 1)

    def of(self, value: object) -> float:
        known = self.degrees.get(id(value))
        return 0 if known is None else known[1]

    def put(self, value: object, degree: float) -> None:
        if isinstance(value, Tensor) and degree:
            self.degrees[id(value)] = value, degree
        elif isinstance(value, tuple | list):
            for part in value:
                self.put(part, degree)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        degrees = [self.of(value) for value in _tensors((args, tuple(kwargs.values())))]
        if not any(degrees):
            return result
        in_place = name.endswith("_") and not name.endswith("__")
        if in_place or not _tensors(result):
            self.escaped = True
        degree = self._degree(name, args, kwargs, degrees)
        if isinstance(result, Tensor) and not result.is_floating_point():
            degree = UNKNOWN
        self.put(result, degree)
        if name == "linalg_vector_norm" and (len(args) < 2 or args[1] == 2):
            self.squares[id(result)] = result, 2 * degrees[0]
        return result

    def _degree(self, name: str, args: tuple, kwargs: dict[str, Any], degrees: list[float]) -> float:
        if name in CONSTANT:
            return 0
        if name in LINEAR:
            return max(degrees)
        first = args[0] if args else None
        norm = self.squares.get(id(first))
        if norm is not None:
            squared = (name == "pow" and args[1] == 2) or (name == "mul" and args[1] is first)
            return norm[1] if squared else UNKNOWN
        if name in PRODUCTS:
            return sum(degrees)
        if name in SUMS_OF_PRODUCTS:
            return max(degrees[0], sum(degrees[1:]))
        if name == "div" and isinstance(first, Tensor) and kwargs.get("rounding_mode") is None:
            return degrees[0] if not any(degrees[1:]) else UNKNOWN
        if name == "mse_loss":
            return 2 * max(degrees)
        if name == "pow" and not isinstance(args[1], Tensor) and args[1] == int(args[1]) >= 0:
            return int(args[1]) * degrees[0]
        if name in SOLVES:  # A⁻¹ b for a constant A
            return self.of(args[SOLVES[name]]) if not self.of(args[1 - SOLVES[name]]) else UNKNOWN
        return UNKNOWN


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, tuple | list) else []
