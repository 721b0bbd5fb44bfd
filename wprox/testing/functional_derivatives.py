"""The laws of the derivatives of a functional: in points, weights and parameters, against difference quotients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from wprox.functionals import Functional
from wprox.measures import Gaussian, Grid, Measure, Quantiles
from wprox.testing.functional_case import OTHERS, SHIFT, Case, affine_line, mixtures, reweighted
from wprox.testing.laws import Unasked, answer, masses, normal, require, require_close


def gradient_in_points(case: Case) -> None:
    """d/dt F((id + tξ)#ρ) = E_ρ⟨∇F, ξ⟩, for ξ affine, and any ξ where every point moves by itself."""
    case.finite()
    gradient = answer(case.functional.wasserstein_gradient, case.rho).detach().double()
    require(gradient.shape == case.rho.points.shape, f"∇F has shape {tuple(gradient.shape)}")
    slack = 0.0
    if isinstance(case.rho, Gaussian) and case.rho.order is not None:  # how far off the quadrature is
        slack = 3 * _quadrature_error(case)
    _compare_along(case, gradient, *affine_line(case.rho, case.seed), slack)
    if case.rho.movable and (case.rho.density_follows_points or not case.rho.density_known):
        direction = normal(case.rho.points, len(case.rho), case.rho.dim, seed=case.seed + 2)
        _compare_along(case, gradient, direction, lambda t: case.rho.at(case.rho.points + t * direction), SHIFT, slack)


def gradient_without_a_graph(case: Case) -> None:
    """∇F is a tensor in the precision of ρ without a graph, the same under `torch.no_grad`; ρ is left alone."""
    case.finite()
    gradient = answer(case.functional.wasserstein_gradient, case.rho)
    require(not gradient.requires_grad, "∇F carries a graph")
    require(not case.rho.points.requires_grad, "points of ρ want a gradient after ∇F was asked for")
    require(gradient.dtype == case.rho.dtype, f"∇F is {gradient.dtype} for a measure in {case.rho.dtype}")
    with torch.no_grad():
        again = case.functional.wasserstein_gradient(case.rho)
    require_close(again, gradient, ("∇F under torch.no_grad", "∇F"), 1e-6, case.rounding)


def gradient_with_a_graph(case: Case) -> None:
    """The derivative of F by points, on which weights depend too, is that of the value, with `create_graph` or not.

    A formula of one's own for second derivatives must not count a path through the weights twice.
    """
    case.finite()
    rho = case.rho
    if not rho.movable or (rho.density_known and not rho.density_follows_points):
        raise Unasked("the points do not move by themselves")
    tilt = normal(rho.points, rho.dim, seed=case.seed + 6) / (1 + rho.points.abs().max())

    def at(x: Tensor) -> Measure:
        weights = rho.weights * ((x - rho.points) @ tilt).exp()
        return reweighted(rho.at(x), weights / weights.sum())

    direction = normal(rho.points, len(rho), rho.dim, seed=case.seed + 7)
    difference = _difference(lambda t: case.value(at(rho.points + t * direction)), SHIFT)
    for keep in (False, True):
        with torch.enable_grad():
            leaf = rho.points.detach().clone().requires_grad_()
            value = answer(case.functional, at(leaf))
            if not value.requires_grad:
                raise Unasked("F does not change with the points")
            (slope,) = torch.autograd.grad(value, leaf, create_graph=keep, materialize_grads=True)
        names = (f"the derivative of F by points and weights with create_graph={keep}", "the difference quotient")
        slope = slope.detach()
        require_close((slope * direction).sum(), difference, names, case.rtol, _scale(case, slope, direction))


def first_variation_in_points(case: Case) -> None:
    """∇ δF/δρ = ∇F at the points of ρ, and δF/δρ is a number a point at any points."""
    case.finite()
    if isinstance(case.rho, Quantiles | Grid) and case.functional.needs_density(case.rho):
        raise Unasked("a density that is linear between the points has no gradient at them")
    slope, gradient = _two_gradients(case.functional, case.rho)
    slack = 0.0
    if isinstance(case.rho, Gaussian) and case.rho.order is not None:  # two rules, which agree with more nodes
        finer = _two_gradients(case.functional, Gaussian(case.rho.loc, case.rho.covariance_matrix, 2 * case.rho.order))
        gap, finer_gap = (float((first - second).abs().max()) for first, second in ((slope, gradient), finer))
        slack = gap if finer_gap < gap / 2 else 0.0
    names = ("∇ δF/δρ at the points of ρ", "∇F")
    require_close(slope, gradient, names, case.rtol, case.rounding + slack)


def _two_gradients(functional: Functional, rho: Measure) -> tuple[Tensor, Tensor]:
    """∇ of the first variation, and the gradient of the value, at the points that have mass."""
    field = answer(functional.first_variation, rho)
    points = rho.points.detach().clone().requires_grad_()
    values = answer(field, points)
    require(values.shape == points.shape[:1], f"δF/δρ at points (n, d) must be (n,), it is {tuple(values.shape)}")
    slope = torch.zeros_like(points)
    if values.requires_grad:
        (slope,) = torch.autograd.grad(values.sum(), points, materialize_grads=True)
    carriers = rho.weights > 0
    return slope[carriers], answer(functional.wasserstein_gradient, rho)[carriers]


# --- derivatives in the weights and in parameters


def gradient_in_weights(case: Case) -> None:
    """The derivative of F by the weights of ρ, along v − w, is that of the value."""
    case.finite()
    rho = case.rho
    if not (rho.movable or isinstance(rho, Grid)):
        raise Unasked("the weights of this measure are not free")
    change = masses(len(rho), case.seed + 3).to(rho.weights) - rho.weights
    leaf = rho.weights.detach().clone().requires_grad_()
    value = case.functional(reweighted(rho, leaf))
    slope = torch.zeros_like(leaf)
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    difference = _difference(lambda t: case.value(reweighted(rho, rho.weights + t * change)), SHIFT)
    names = ("the derivative of F by the weights, along v − w,", "the difference quotient")
    require_close(slope @ change, difference, names, case.rtol, _scale(case, slope, change))


def first_variation_in_weights(case: Case) -> None:
    """d/dt F((1 − t)ρ + tσ) = ∫ δF/δρ d(σ − ρ) at t = 0, for a measure σ on other points."""
    case.finite()
    field = _field(case)
    mix, others, weights = mixtures(case.rho, case.seed)
    with torch.no_grad():
        here, there = answer(field, case.rho.points), answer(field, others)
        inner = weights @ there - case.rho.weights @ here
    h = SHIFT  # one-sided, of second order: weights are not negative
    f0, f1, f2 = (case.value(mix(t)) for t in (0.0, h, 2 * h))
    names = ("∫ δF/δρ d(σ − ρ)", "the difference quotient of F along (1 − t)ρ + tσ")
    scale = float(there.abs().max() + here.abs().max())
    require_close(inner, (4 * f1 - 3 * f0 - f2) / (2 * h), names, case.rtol, case.rounding + case.rtol * scale)


def gradient_in_parameters(case: Case) -> None:
    """The derivatives of F(ρ) and of ∫ δF/δρ dσ by the parameters of F are those of the values."""
    if not case.parameters:
        raise Unasked("no parameters were named")
    case.finite()
    _compare_in_parameters(case, lambda: case.functional(case.rho), "F(ρ)")
    others = case.rho.points  # a density may be 0 elsewhere
    if case.rho.movable:
        others = normal(others, OTHERS, case.rho.dim, seed=case.seed + 4)
    try:
        answer(_field(case), others)
    except Unasked:
        return
    _compare_in_parameters(case, lambda: case.functional.first_variation(case.rho)(others).mean(), "δF/δρ")


def _field(case: Case) -> Callable[[Tensor], Tensor]:
    return answer(case.functional.first_variation, case.rho)


# --- difference quotients


def _difference(f: Callable[[float], float], shift: float) -> float:
    return (f(shift) - f(-shift)) / (2 * shift)


def _scale(case: Case, gradient: Tensor, direction: Tensor) -> float:
    """What difference quotients are allowed, as products of sizes: the inner product itself may be near 0."""
    return case.rounding + case.rtol * float(gradient.norm() * direction.norm())


def _compare_along(
    case: Case,
    gradient: Tensor,
    direction: Tensor,
    line: Callable[[float], Measure],
    shift: float,
    slack: float = 0.0,
) -> None:
    weights, direction = case.rho.weights.double(), direction.double()
    inner = weights @ (gradient * direction).sum(1)
    difference = _difference(lambda t: case.value(line(t)), shift)
    roots = weights.sqrt()[:, None]
    atol = _scale(case, gradient * roots, direction * roots) + slack
    require_close(inner, difference, ("⟨∇F, ξ⟩", "the difference quotient"), case.rtol, atol)


def _quadrature_error(case: Case) -> float:
    """How much ⟨∇F, ξ⟩ and the difference quotient change with another order of a Gaussian's nodes."""
    rho = case.rho
    assert isinstance(rho, Gaussian)
    assert rho.order is not None
    found = []
    for order in (rho.order, rho.order + 3):
        other = Gaussian(rho.loc, rho.covariance_matrix, order)
        direction, line, shift = affine_line(other, case.seed)
        gradient = answer(case.functional.wasserstein_gradient, other)
        inner = float(other.weights @ (gradient * direction).sum(1))
        found.append((inner, _difference(lambda t, line=line: case.value(line(t)), shift)))  # type: ignore[misc]
    return abs(found[0][0] - found[1][0]) + abs(found[0][1] - found[1][1])


def _compare_in_parameters(case: Case, value: Callable[[], Tensor], name: str) -> None:
    with torch.enable_grad():
        total = value()
        require(total.requires_grad, f"{name} has no graph in the parameters of F, of which some want a gradient")
        slopes = torch.autograd.grad(total, list(case.parameters), materialize_grads=True)
    for k, (parameter, slope) in enumerate(zip(case.parameters, slopes, strict=True)):
        direction = normal(parameter, *parameter.shape, seed=case.seed + 30 + k)
        start = parameter.detach().clone()

        def at(t: float, parameter: Tensor = parameter, start: Tensor = start, direction: Tensor = direction) -> float:
            with torch.no_grad():
                parameter.copy_(start + t * direction)
                found = float(value())
                parameter.copy_(start)
            return found

        inner = (slope * direction).sum()
        names = (f"the derivative of {name} by parameter {k}", "the difference quotient")
        require_close(inner, _difference(at, SHIFT), names, case.rtol, _scale(case, slope, direction))
