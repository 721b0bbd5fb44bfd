r"""The first variation of a functional from the verbs that it is written with.

F sees ρ by what its verbs answer: F(ρ) = Φ(a_1, a_2, …), where a_i is ∫ f_i dρ, ∬ k_i dρ dρ or an integral of the
density. By the chain rule

    δF/δρ(x) = Σ_i (∂Φ/∂a_i) δa_i/δρ(x),    δ∫f dρ = f,   δ∬k dρdρ = k ∗ ρ + k(−·) ∗ ρ,   δ∫f(ρ)dρ = f(ρ) + ρ f′(ρ),

which is a field: it can be evaluated at any point. The derivatives ∂Φ/∂a_i come by automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wprox._checks import as_rows
from wprox._modes import in_any_mode
from wprox._random import Seed
from wprox.kernels import EvenKernel, RadialKernel
from wprox.measures import Measure

Field = Callable[[Tensor], Tensor]
ADVICE = (
    "write it with rho.integrate, rho.integrate_pairs, rho.mean_log_density and rho.integrate_density, or override "
    "first_variation(rho)"
)


@dataclass(frozen=True)
class FirstVariation:
    """δF/δρ as a field: maps any points x: (m, d) to (m,), up to a constant.

    Attributes:
        field: the field, unchecked.
        dim: d.
    """

    field: Field
    dim: int

    @in_any_mode
    def __call__(self, x: Any) -> Tensor:
        return self.field(as_rows(x, "x", self.dim))


def from_verbs(functional: Callable[[Measure], Tensor], rho: Measure) -> Field:
    """δF/δρ at any points, x: (m, d) → (m,), up to a constant, with a graph in x and in the parameters of F.

    Raises:
        NotImplementedError: where F does more with ρ than to call its verbs.
        DensityUnknownError: where F needs a density that ρ does not know.
    """
    recorder = _Recorder(rho)
    with torch.enable_grad():
        value = functional(recorder)
        if not value.requires_grad:  # F does not depend on ρ
            return zero_field
        leaves = recorder.zeros
        read = [recorder.read_points, recorder.read_weights]
        slopes = torch.autograd.grad(value, [*leaves, *read], create_graph=True, allow_unused=True)
        if any(slope is not None for slope in slopes[len(leaves) :]):
            raise NotImplementedError(
                f"the first variation of {functional!r} is known at the points of ρ only, since it reads rho.points or "
                f"rho.weights; {ADVICE}"
            )
        if not has_other_leaves(value, {id(leaf) for leaf in (*leaves, *read)}):
            slopes = tuple(None if slope is None else slope.detach() for slope in slopes)
    return partial(_varied, functional, rho, slopes[: len(leaves)])


def zero_field(x: Tensor) -> Tensor:
    """The first variation of a functional that does not depend on ρ."""
    return x.new_zeros(len(x))


def _varied(
    functional: Callable[[Measure], Tensor], rho: Measure, slopes: Sequence[Tensor | None], x: Tensor
) -> Tensor:
    """Σ_i (∂Φ/∂a_i) δa_i/δρ(x), from ∂Φ/∂a_i."""
    # F runs once more, and each verb varies when it is called: its function may hold other answers, or loop indices
    again = _Recorder(rho, at=x, wanted=[slope is not None for slope in slopes])
    functional(again)
    if len(again.fields) != len(slopes):
        raise NotImplementedError(
            f"the first variation of {functional!r} is not known, since it does not ask the same questions each "
            "time; call the verbs of rho outside of the functions that are given to other verbs"
        )
    total = x.new_zeros(len(x))
    for slope, values in zip(slopes, again.fields, strict=True):
        if slope is not None and values is not None:
            part = values * slope.to(values) if slope.ndim == 0 else values @ slope.to(values)
            total = total + part.to(x)
    return total


def gradient_of_field(field: Field, x: Tensor) -> Tensor:
    """∇φ of a field at points x: (m, d), (m, d), without a graph."""
    with torch.enable_grad():
        points = x.detach().requires_grad_()
        value = field(points)
        if not value.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(value.sum(), points, materialize_grads=True)[0]


def uses_density(functional: Callable[[Measure], Tensor], rho: Measure) -> bool:
    """Whether F asks ρ for its density: F is called, and the verbs that it uses are seen."""
    recorder = _Recorder(rho, blind=True)
    with torch.no_grad():
        functional(recorder)
    return recorder.asked_density


class _Recorder(Measure):
    """A measure that answers as ρ does, and notes with each answer how it varies with ρ.

    To every answer a zero is added whose derivative is that of F by this answer.

    Arguments:
        rho: ρ.
        blind: answer questions after the density by zeros.
        at: points (m, d) at which to evaluate the variations, in place of adding zeros.
        wanted: which of these are wanted.
    """

    def __init__(
        self, rho: Measure, blind: bool = False, at: Tensor | None = None, wanted: Sequence[bool] = ()
    ) -> None:
        self.rho, self.blind, self.at_points, self.wanted = rho.detach(), blind, at, wanted
        self.zeros: list[Tensor] = []
        self.fields: list[Tensor | None] = []
        self.is_varying = False
        self.asked_density = False
        self.movable, self.is_empirical, self.is_relative = rho.movable, rho.is_empirical, rho.is_relative
        # not given to the verbs: a derivative by these shows that F reads them itself
        self.read_points = self.rho.points.clone().requires_grad_(at is None)
        self.read_weights = self.rho.weights.clone().requires_grad_(at is None)
        self.points, self.weights = self.read_points, self.read_weights

    def _noted(self, answer: Tensor, variation: Field) -> Tensor:
        if self.is_varying:  # a question inside a function that is evaluated elsewhere: noted where it was asked
            return answer
        if self.at_points is None:
            self.zeros.append(torch.zeros_like(answer).requires_grad_())
            return answer + self.zeros[-1]
        self.is_varying = True
        k = len(self.fields)
        self.fields.append(variation(self.at_points) if k < len(self.wanted) and self.wanted[k] else None)
        self.is_varying = False
        return answer

    def integrate(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        return self._noted(self.rho.integrate(f), f)

    def integrate_pairs(self, k: Callable[[Tensor], Tensor]) -> Tensor:
        def variation(x: Tensor) -> Tensor:
            forth = self.rho.convolve(k, x)
            if isinstance(k, RadialKernel | EvenKernel):
                return 2 * forth
            return forth + self.rho.convolve(_Reflected(k), x)

        return self._noted(self.rho.integrate_pairs(k), variation)

    def mean_log_density(self) -> Tensor:
        self.asked_density = True
        if self.blind:
            return self.rho.weights.new_zeros(())
        return self._noted(self.rho.mean_log_density(), self.rho.density_variation)

    def integrate_density(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        self.asked_density = True
        if self.blind:
            return self.rho.weights.new_zeros(())
        return self._noted(self.rho.integrate_density(f), lambda x: self.rho.density_variation(x, f))

    def log_density(self) -> Tensor:
        def unknown(x: Tensor) -> Tensor:
            raise NotImplementedError(
                f"a functional of rho.log_density() has its first variation at the points of ρ only; {ADVICE}"
            )

        self.asked_density = True
        if self.blind:
            return torch.zeros_like(self.rho.weights)
        return self._noted(self.rho.log_density(), unknown)

    def score(self) -> Tensor:
        self.asked_density = True
        if self.blind:
            return torch.zeros_like(self.rho.points)
        raise NotImplementedError(f"the first variation of a functional of rho.score() is not known; {ADVICE}")

    def push(self, map: Callable) -> Any:
        if self.blind:
            return _Recorder(self.rho.push(map), blind=True)
        raise NotImplementedError(f"the first variation of a functional that pushes ρ is not known; {ADVICE}")

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        return self.rho.sample(n, seed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "rho" not in vars(self):
            raise AttributeError(name)
        value = getattr(self.rho, name)
        if self.blind:
            return value
        raise NotImplementedError(
            f"the first variation of a functional that asks for rho.{name} is not known; {ADVICE}"
        )

    def __repr__(self) -> str:
        return repr(self.rho)


class _Reflected:
    """k(−z)."""

    def __init__(self, k: Callable[[Tensor], Tensor]) -> None:
        self.k, self.singular = k, bool(getattr(k, "singular", False))

    def __call__(self, z: Tensor) -> Tensor:
        return self.k(-z)


def has_other_leaves(value: Tensor, own: set[int]) -> bool:
    """Whether the graph of a value has leaves other than these, by their ids: tensors of F that want a gradient."""
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own:
            return True
        waiting.extend(parent for parent, _ in node.next_functions)
    return False
