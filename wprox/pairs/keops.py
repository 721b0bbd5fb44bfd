"""Sums over pairs of points for radial kernels by KeOps: on a GPU, and wherever the kernel asks for it.

KeOps compiles the formula of a kernel, its gradient included, into one loop over pairs that stores none of them
(Charlier, Feydy, Glaunès, Collin and Durif, *Kernel operations on the GPU, with autodiff, without memory overflows*,
JMLR 2021). On a CPU the blocks of `_radial` take a fifth to two thirds of its time.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
from torch import Tensor

from wprox.kernels.base import RadialKernel, check_backend


class NoFormulaError(TypeError):
    """The profile of a kernel is no formula of KeOps."""


def keops_sums(
    kernel: RadialKernel, points: Tensor, others: Tensor, weights: Tensor, gradient: bool, own: bool = False
) -> tuple[Tensor, Tensor | None] | None:
    """u_i = Σ_j v_j k(x_i − y_j), (n,), and where `gradient` ∂u_i/∂x_i, (n, d), float64; `None` where blocks sum.

    Arguments:
        own: whether y are the points x themselves, none twice: a singular kernel leaves those that coincide out.

    Raises:
        ImportError: where the kernel asks for KeOps and it is not installed.
        NoFormulaError: where it does and its profile is no formula of KeOps.
        RuntimeError: where the formula does not compile.
    """
    backend = check_backend(kernel.backend)
    if backend == "blocks" or (backend == "auto" and not (points.device.type == "cuda" and is_ready())):
        return None
    if find_spec("pykeops") is None:
        raise ImportError(
            'backend="keops" needs pykeops, which is not installed: pip install pykeops (it compiles every formula '
            'once, and needs a C++ compiler); backend="blocks" needs nothing'
        )
    from pykeops.torch import LazyTensor  # here, because its import takes seconds and looks for compilers

    x, y = (LazyTensor(p.detach().double().contiguous(), axis=axis) for axis, p in ((0, points), (1, others)))
    v = LazyTensor(weights.detach().double()[:, None].contiguous(), axis=1)
    try:
        value = _values(kernel, ((x - y) ** 2).sum(-1), own)
    except NoFormulaError:
        if backend == "auto":
            return None
        raise
    terms = value.concat(value.grad(x, LazyTensor(points.new_ones(1, dtype=torch.float64)))) if gradient else value
    try:
        sums = (terms * v).sum(axis=1)
    except ImportError as error:  # of what it has just compiled
        raise RuntimeError(
            f"KeOps could not compile {kernel}: it needs a C++ compiler (g++, or the one that CXX names) and Python's "
            'headers; backend="blocks" needs neither'
        ) from error
    return sums[:, 0], sums[:, 1:] if gradient else None


def is_ready() -> bool:
    """Whether KeOps and the compiler that it needs are there."""
    return find_spec("pykeops") is not None and which(os.environ.get("CXX", "g++")) is not None


def _values(kernel: RadialKernel, s: Any, own: bool) -> Any:
    """φ at squared distances, a LazyTensor; as in the blocks, its slope at 0 is 0 where the kernel is not smooth."""
    if kernel.smooth:
        return _profile(kernel, s)
    at_zero = 0.0 if own and kernel.singular else float(kernel.profile(torch.zeros(1, dtype=torch.float64)))
    coincide = -s  # ≥ 0 where the points are one; the inner choice keeps 0 · ∞ out of the gradient
    return coincide.ifelse(at_zero, _profile(kernel, coincide.ifelse(1.0, s)))


def _profile(kernel: RadialKernel, s: Any) -> Any:
    try:
        value = kernel.profile(s)
        if not isinstance(value, type(s)):
            raise TypeError(f"it returned {type(value).__name__}")
    except (TypeError, AttributeError, ValueError, NotImplementedError) as error:
        raise NoFormulaError(
            f"the profile of {kernel} is no formula of KeOps ({error}): write it with operators and methods, as in "
            '(-s).exp() in place of torch.exp(-s), or take backend="blocks"'
        ) from error
    return value
