"""The abstract transport map: invertible, with a log-determinant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn

from wprox._autograd import needed
from wprox._checks import as_rows, described, is_several
from wprox.maps._memory import current_limit, in_batches, rows_at_once
from wprox.maps.precision import frozen

CHUNK_BYTES = 128  # of the memory limit a number of an intermediate tensor, of which there may be sixteen of float64


def _of_points(method: Callable) -> Callable:
    """`forward` or `inverse` of a map, whoever wrote it, that refuses what are no points (n, d) of its dimension."""

    name = "x" if method.__name__ == "forward" else "y"

    @wraps(method)
    def checked(self: TransportMap, *given: Any, **named: Any) -> Any:
        points, *more = given or (named.pop(name, None),)
        points = as_rows(points, name, self.dim)
        try:
            return method(self, points, *more, **named)
        except RuntimeError as error:
            dtypes = {tensor.dtype for tensor in self.parameters()} - {points.dtype}
            if not dtypes or isinstance(error, InverseError):
                raise
            raise TypeError(
                f"{name} is {points.dtype} and the map {' and '.join(map(str, dtypes))} ({error}); convert one of "
                "them, as in map.double() or x.float()"
            ) from error

    return checked


class TransportMap(nn.Module, ABC):
    """An invertible map T: R^d → R^d with its log-determinant; the identity when newly built.

    `forward` returns T(x) and log|det ∇T(x)|; `inverse` returns T⁻¹(y). A map that `JKOFlow.save` shall store gives in
    `config` the arguments that rebuild it, alone or inside a `ComposedMap`.

    Attributes:
        dim: the dimension d.
        keeps_precision: whether it computes in the precision of its own tensors whatever that of the points is, and
            wants nothing trained; `False` but for `RosenblattMap`.
    """

    dim: int
    keeps_precision = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("forward", "inverse"):
            if name in vars(cls):
                setattr(cls, name, _of_points(vars(cls)[name]))

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """T(x), (n, d), and log|det ∇T(x)|, (n,)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """T⁻¹(y), (n, d)."""

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as JSON can hold them."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how to rebuild it; give it a property `config` that returns the "
            "arguments of its constructor, as JSON can hold them"
        )

    @classmethod
    def from_config(cls, config: dict[str, Any], rebuild: Callable[[dict[str, Any]], TransportMap]) -> TransportMap:
        """A new map with this `config`.

        Arguments:
            config: what `config` returned.
            rebuild: from what `describe` says of a map to a new map, for classes that are made of maps.
        """
        return cls(**config)

    # what training asks for; most maps have nothing to say

    def penalty(self) -> Tensor | None:
        """What the last `forward` in training mode adds to the objective beside the functional and the transport."""
        return None

    @property
    def is_discretised(self) -> bool:
        """Whether training computes the map with an error of discretisation that evaluation does not have."""
        return False

    @contextmanager
    def discretised(self) -> Iterator[None]:
        """Inside, evaluation mode has the discretisation of training, without what is random in it."""
        yield

    def refine(self) -> str:
        """Make the discretisation of training finer; says what it did."""
        return ""


class InverseError(RuntimeError):
    """An inverse that did not meet its tolerance; `residual` is the largest |T(x) − y| / (1 + |y|) that was left."""

    def __init__(self, message: str, residual: float) -> None:
        super().__init__(message)
        self.residual = residual

    def __reduce__(self) -> tuple[Any, ...]:  # errors come back from other processes by their arguments
        return type(self), (*self.args, self.residual)


class ComposedMap(TransportMap):
    r"""T_N ∘ … ∘ T_1: the maps are applied in the order given, log-determinants add.

    Arguments:
        maps: maps of one dimension, the first applied first.

    Example:
        >>> import torch, wprox
        >>> scaling = wprox.AffineMap.from_matrix(2 * torch.eye(2))
        >>> y, log_det = wprox.ComposedMap([scaling, scaling])(torch.ones(1, 2))
        >>> y.detach()
        tensor([[4.0000, 4.0000]])
    """

    def __init__(self, maps: Sequence[TransportMap]) -> None:
        super().__init__()
        maps = list(maps) if is_several(maps) else maps
        if not isinstance(maps, list) or not all(isinstance(map, TransportMap) for map in maps):
            raise TypeError(f"maps must be a list of objects of wprox.TransportMap, got {described(maps)}")
        if not maps:
            raise ValueError("a ComposedMap needs at least one map, and the list of maps is empty")
        dims = sorted({map.dim for map in maps})
        if len(dims) > 1:
            raise ValueError(f"composed maps must share one dimension, got {dims}")
        self.dim = dims[0]
        self.layers = nn.ModuleList(maps)

    @property
    def maps(self) -> list[TransportMap]:
        """T_1, …, T_N."""
        return [cast(TransportMap, layer) for layer in self.layers]

    @property
    def config(self) -> dict[str, Any]:
        if type(self).__init__ is not ComposedMap.__init__:
            return super().config  # which asks for one: the maps alone do not rebuild a class with other arguments
        return {"maps": [describe(map) for map in self.maps]}

    @classmethod
    def from_config(cls, config: dict[str, Any], rebuild: Callable[[dict[str, Any]], TransportMap]) -> TransportMap:
        if cls.config is not ComposedMap.config:  # a class that says itself what its constructor takes
            return cls(**config)
        return cls([rebuild(part) for part in config["maps"]])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for map in self.maps:
            x, part = map(x)
            log_det = log_det + part
        return x, log_det

    def inverse(self, y: Tensor) -> Tensor:
        for map in reversed(self.maps):
            y = map.inverse(y)
        return y

    def penalty(self) -> Tensor | None:
        penalties = [penalty for map in self.maps if (penalty := map.penalty()) is not None]
        return torch.stack(penalties).sum() if penalties else None

    @property
    def is_discretised(self) -> bool:
        return any(map.is_discretised for map in self.maps)

    @contextmanager
    def discretised(self) -> Iterator[None]:
        with ExitStack() as stack:
            for map in self.maps:
                stack.enter_context(map.discretised())
            yield

    def refine(self) -> str:
        return ", ".join(said for map in self.maps if (said := map.refine()))


def describe(map: TransportMap) -> dict[str, Any]:
    """What rebuilds a map, as JSON can hold it: the name of its class and its `config`; see `wprox.maps.registry`."""
    return {"class": type(map).__name__, "config": map.config}


def apply_in_batches(
    map: TransportMap, x: Tensor, batch_size: int | None = None, memory_budget: int | None = None
) -> tuple[Tensor, Tensor]:
    """T(x) and its log-determinant, in as many rows at once as the memory allows, or `batch_size`.

    They have a graph in x alone, where x wants one.
    """
    map, wanted = for_points(map, x)
    rows = rows_at_once(map, x, memory_budget) if batch_size is None else batch_size
    with torch.set_grad_enabled(wanted):
        y, log_det = in_batches(map, x, rows)
    return y, log_det


def invert_in_batches(
    map: TransportMap, y: Tensor, batch_size: int | None = None, memory_budget: int | None = None
) -> Tensor:
    """T⁻¹(y), as `apply_in_batches` takes T(x)."""
    map, wanted = for_points(map, y)
    rows = rows_at_once(map.inverse, y, memory_budget) if batch_size is None else batch_size
    with torch.set_grad_enabled(wanted):
        return in_batches(lambda part: (map.inverse(part),), y, rows)[0]


def for_points(map: TransportMap, x: Tensor) -> tuple[TransportMap, bool]:
    """The map with which to evaluate points, and whether to keep a graph: it is to end at the points."""
    (wanted,) = needed(x)
    return (frozen(map) if wanted else map), wanted


def in_chunks(apply: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor, row_values: int) -> tuple[Tensor, Tensor]:
    """apply(x), by chunks of rows where no graph is kept, so that `row_values` numbers a row stay bounded in memory."""
    rows = max(1, current_limit() // (CHUNK_BYTES * max(1, row_values)))
    if torch.is_grad_enabled() or len(x) <= rows:
        return apply(x)
    parts = [apply(chunk) for chunk in x.split(rows)]
    return torch.cat([first for first, _ in parts]), torch.cat([second for _, second in parts])
