"""The laws of transport maps: invertible, with the log-determinant of their Jacobian, and rebuilt from their config."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wprox._checks import described
from wprox._random import check_seed, seeded
from wprox.maps import TransportMap
from wprox.maps.base import describe
from wprox.maps.registry import rebuild
from wprox.testing.laws import Unasked, answer, ask, check_names, normal, pickled, require, require_close

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
PERTURBATION = 0.05  # of the parameters of a map that is the identity, so that there is something to check
FAR = 0.05  # how far a map moves points at least, where it is not the identity
SPREAD = 3.0  # of the points: some lie outside of the box of a spline
ROWS, JACOBIANS = 100, 6
ROW = slice(2, 3)  # that is mapped alone


@dataclass(frozen=True)
class Case:
    """A map in evaluation mode and in one precision, away from the identity, with points to map."""

    given: TransportMap
    map: TransportMap
    x: Tensor

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.x.dtype]

    # computed once, as some maps take their time

    @cached_property
    def image(self) -> tuple[Tensor, Tensor]:
        """T(x) and log|det ∇T|."""
        with torch.no_grad():
            return self.map(self.x)

    @cached_property
    def back(self) -> Tensor:
        """T⁻¹(T(x))."""
        with torch.no_grad():
            return self.map.inverse(self.image[0])

    @cached_property
    def alone(self) -> tuple[Tensor, Tensor, Tensor]:
        """T(x), log|det ∇T| and T⁻¹(T(x)) of one row by itself."""
        with torch.no_grad():
            return *self.map(self.x[ROW]), self.map.inverse(self.image[0][ROW])


def check_map(
    map: TransportMap,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    points: Callable[[int], Tensor] | None = None,
    exempt: Collection[str] = (),
    seed: int = 0,
) -> list[str]:
    """Check the laws that every transport map keeps: for your own ones.

    That newly built it is the identity; that the inverse undoes it, from both sides; that its log-determinant is that
    of the autodiff Jacobian, which is positive; that gradients reach every parameter; that rows do not depend on one
    another; that `state_dict`, `copy.deepcopy` and `config`, through JSON, give the same map again. All but the first
    are asked of a copy: of the map as it is, or, where that is the identity, with its parameters perturbed.

    Arguments:
        map: T.
        dtypes: the precisions to ask in, with tolerances 1e-4 for float32 and 1e-8 for float64.
        points: gives n points in float64, (n, d), where T is not defined everywhere; 3 N(0, I) by default.
        exempt: names of laws that T does not keep, such as "config" for a map that cannot be rebuilt.
        seed: of the points and perturbations.

    Returns:
        The names of the laws that could be asked, and hold.

    Raises:
        AssertionError: for the first law that is broken: which, by how much and at what input.

    Example:
        >>> import wprox, wprox.testing
        >>> laws = wprox.testing.check_map(wprox.AffineMap(2))
        >>> "round trip" in laws, "log determinant" in laws
        (True, True)
        >>> class Forgetful(wprox.AffineMap):
        ...     def forward(self, x):
        ...         return super().forward(x)[0], x.new_zeros(len(x))
        >>> wprox.testing.check_map(Forgetful(2))
        Traceback (most recent call last):
        AssertionError: law 'log determinant' of Forgetful: log|det ∇T| is 0 and that of the autodiff Jacobian ...
    """
    require(
        isinstance(map, TransportMap),
        f"check_map needs an instance of a wprox.TransportMap, got {described(map)}; build one",
    )
    check_names(exempt, LAWS)
    seed = check_seed(seed)
    asked: list[str] = []
    for dtype in dtypes:
        x = normal(torch.empty(0, dtype=torch.float64), ROWS, map.dim, seed=seed) * SPREAD
        if points is not None:
            x = points(ROWS)
        x = x.to(dtype)
        at = f"{ROWS} points in dimension {map.dim}, {str(dtype).removeprefix('torch.')}, seed {seed}"
        asked += ask(LAWS, type(map).__name__, at, Case(map, _away(map, x, seed), x), exempt=exempt)
    return list(dict.fromkeys(asked))


# --- laws


def shapes(case: Case) -> None:
    """T(x) is (n, d), log|det ∇T| and nothing else (n,), in the precision of x; for no rows and one row too."""
    none = case.x[:0]
    with torch.no_grad():
        output = case.map(none)
        what = f"forward must return (T(x), log|det ∇T|), it returned {described(output)}"
        require(isinstance(output, tuple) and len(output) == 2, what)
        empty = (*output, case.map.inverse(none))
    found = ((case.x, (*case.image, case.back)), (case.x[ROW], case.alone), (none, empty))
    for x, (y, log_det, back) in found:
        for name, found, shape in (("T(x)", y, x.shape), ("log_det", log_det, x.shape[:1]), ("T⁻¹(y)", back, x.shape)):
            require(found.shape == shape, f"{name} must have shape {tuple(shape)}, it has {tuple(found.shape)}")
            require(found.dtype == x.dtype, f"{name} is {found.dtype} for points in {x.dtype}")
    require(case.map.dim == case.x.shape[1], f"dim is {case.map.dim}")


def identity(case: Case) -> None:
    """Newly built from its config, T is the identity."""
    if not any(True for _ in case.given.parameters()):
        raise Unasked("a map without parameters is what it was made for")
    map = _rebuilt(case)
    with torch.no_grad():
        y, log_det = map(case.x)
    require_close(y, case.x, ("T(x) of a newly built map", "x"), 0.0, case.tolerance)
    require_close(log_det, torch.zeros_like(log_det), ("log|det ∇T| of a newly built map", "0"), 0.0, case.tolerance)


def gradients(case: Case) -> None:
    """Gradients of T(x) and its log-determinant reach every parameter; they are finite."""
    parameters = dict(case.map.named_parameters())
    if not parameters:
        raise Unasked("there are no parameters")
    map = deepcopy(case.map)
    y, log_det = map(case.x)
    (y.square().sum(-1) + log_det).mean().backward()
    for name, parameter in map.named_parameters():
        if not parameter.requires_grad:
            continue
        require(parameter.grad is not None, f"no gradient reaches the parameter {name!r}")
        gradient = torch.as_tensor(parameter.grad)
        require(bool(torch.isfinite(gradient).all()), f"the gradient of {name!r} is not finite")
        require(bool(gradient.any()), f"the gradient of {name!r} is 0")


def round_trip(case: Case) -> None:
    """T⁻¹(T(x)) = x and T(T⁻¹(x)) = x, for a T that moves points."""
    with torch.no_grad():
        moved = float((case.image[0] - case.x).abs().max())
        require(moved > FAR, f"T moves points by {moved:.2g} only, so that a round trip says nothing")
        there = case.map(case.map.inverse(case.x))[0]
    require_close(case.back, case.x, ("T⁻¹(T(x))", "x"), 0.0, case.tolerance)
    require_close(there, case.x, ("T(T⁻¹(x))", "x"), 0.0, case.tolerance)


def log_determinant(case: Case) -> None:
    """log|det ∇T| is that of the autodiff Jacobian, whose determinant is positive."""
    x = case.x[:JACOBIANS]
    # rows do not depend on one another, so the Jacobian of the sum holds every row's own
    rows = torch.autograd.functional.jacobian(lambda x: case.map(x)[0].sum(0), x, vectorize=True)
    sign, log_det = torch.linalg.slogdet(torch.as_tensor(rows).transpose(0, 1))
    require(bool((sign > 0).all()), "det ∇T is not positive: the map folds or reflects space")
    found = case.image[1][:JACOBIANS]
    rtol = 1e-5 if x.dtype == torch.float64 else 1e-4
    require_close(found, log_det, ("log|det ∇T|", "that of the autodiff Jacobian"), rtol, case.tolerance)


def rows(case: Case) -> None:
    """A row is mapped alone as it is in the batch."""
    names = ("T(x)", "log|det ∇T|", "T⁻¹(T(x))")
    for name, alone, batch in zip(names, case.alone, (*case.image, case.back), strict=True):
        texts = (f"{name} of one row alone", f"{name} of it in the batch")
        require_close(alone, batch[ROW], texts, 0.0, case.tolerance)


def copies(case: Case) -> None:
    """copy.deepcopy gives the same map, which no longer shares parameters."""
    again = deepcopy(case.map)
    with torch.no_grad():
        _require_equal(again(case.x), case.image, "a deep copy")
    shared = {id(p) for p in again.parameters()} & {id(p) for p in case.map.parameters()}
    require(not shared, "a deep copy shares parameters with the map")


def pickling(case: Case) -> None:
    """T goes to another process and is T there."""
    again = pickled(case.map, case.map)
    with torch.no_grad():
        _require_equal(again(case.x), case.image, "a pickled map")


def config(case: Case) -> None:
    """The map that `config` rebuilds, through JSON, with the state_dict of T, is T again; its config is the same."""
    again = _rebuilt(case)
    require(again.config == case.map.config, f"the rebuilt map has the config {again.config}, not {case.map.config}")
    again.load_state_dict(case.map.state_dict())
    with torch.no_grad():
        found = (*again(case.x), again.inverse(case.image[0]))
    _require_equal(found, (*case.image, case.back), "the map rebuilt from config and state_dict")


LAWS = (shapes, identity, gradients, round_trip, log_determinant, rows, copies, pickling, config)


def _away(map: TransportMap, x: Tensor, seed: int) -> TransportMap:
    """A copy in evaluation mode and the precision of x; where it is the identity, with other parameters."""
    away = deepcopy(map).to(x.dtype).eval()
    with torch.no_grad():
        if not float((away(x)[0] - x).abs().max()) > FAR:
            for k, parameter in enumerate(away.parameters()):
                parameter.add_(PERTURBATION * normal(parameter, *parameter.shape, seed=seed + 1 + k))
    return away


def _rebuilt(case: Case) -> TransportMap:
    description = json.loads(json.dumps(answer(describe, case.map)))
    classes = [type(part) for part in case.map.modules() if isinstance(part, TransportMap)]
    with seeded(99):
        return rebuild(description, classes).to(case.x.dtype).eval()


def _require_equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], name: str) -> None:
    same = all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    require(same, f"{name} gives other values than the map")
