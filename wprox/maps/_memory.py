"""How many rows a function of rows may see at once, by the memory that it takes for a few."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MEMORY_BUDGET = 2**29  # bytes, where nobody says another number
MOST_ROWS = 4096  # at once; more are no faster
NUMBER_BYTES = 2**13  # an entry of the rows that a function takes at most, so that few need no measuring
PROBE = 64  # rows to measure on, or fewer, where so many could exceed the budget, but
LEAST_PROBE = 4

_budget = ContextVar("memory_budget", default=MEMORY_BUDGET)


@contextmanager
def memory_limit(memory_budget: int) -> Iterator[None]:
    """Inside, rows are mapped within this budget, however deep the code that maps them."""
    token = _budget.set(memory_budget)
    try:
        yield
    finally:
        _budget.reset(token)


def current_limit() -> int:
    """The budget of the `memory_limit` that this is inside of, in bytes."""
    return _budget.get()


class PeakMemory(TorchDispatchMode):
    """Inside, counts the bytes of the tensors that are newly made and alive; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, list[int]] = {}  # the address of memory to its bytes and the number of tensors in it
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_plain(leaf)}
        for tensor in tree_leaves(result):
            if not _is_plain(tensor):
                continue
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if address not in self.alive and (address in given or not address):
                continue  # a view of what was there before
            entry = self.alive.setdefault(address, [storage.nbytes(), 0])
            self.now += 0 if entry[1] else entry[0]
            entry[1] += 1
            weakref.finalize(tensor, self._release, address)
        self.peak = max(self.peak, self.now)
        return result

    def _release(self, address: int) -> None:
        entry = self.alive[address]
        entry[1] -= 1
        if not entry[1]:
            self.now -= self.alive.pop(address)[0]


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


@torch.no_grad()
def rows_at_once(function: Callable[[Tensor], object], x: Tensor, memory_budget: int | None = None) -> int:
    """The number of rows of x: (n, d) that `function` may see at once within a budget of bytes, at least one.

    The budget is that of `memory_limit` by default. What `function` takes is measured on a few rows, and counted as
    growing in proportion to them. Half of the budget is left for what is not measured: the rows themselves, their
    images, and memory that is not given back at once. Narrow rows are not measured on, which takes as long as mapping
    hundreds of them: they are few numbers at once.
    """
    memory_budget = current_limit() if memory_budget is None else memory_budget
    most = min(MOST_ROWS, max(1, len(x)))
    if len(x) <= PROBE or most * x.shape[1] * NUMBER_BYTES <= memory_budget:
        return most
    probe = min(PROBE, max(LEAST_PROBE, memory_budget // (2 * NUMBER_BYTES * x.shape[1])))
    with PeakMemory() as memory:
        function(x[:probe])
    return max(1, min(most, memory_budget * probe // (2 * max(1, memory.peak))))


def in_batches(function: Callable[[Tensor], tuple[Tensor, ...]], x: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """The function's values of all rows of x: (n, d), `batch_size` rows at a time, each batch in its place at once."""
    results: list[Tensor] = []
    parts_of: list[tuple[Tensor, ...]] = []
    for start in range(0, len(x), batch_size):
        parts = function(x[start : start + batch_size])
        if len(x) <= batch_size:
            return parts
        if torch.is_grad_enabled():  # a graph does not like writing in place
            parts_of.append(parts)
            continue
        if not results:
            results = [part.new_empty(len(x), *part.shape[1:]) for part in parts]
        for result, part in zip(results, parts, strict=True):
            result[start : start + batch_size] = part
    return tuple(results) if results else tuple(torch.cat(parts) for parts in zip(*parts_of, strict=True))
