"""The laws of functionals: a value, its gradients in points, weights and parameters, and what F says of itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.functionals import Functional, InteractionEnergy, InternalEnergy, PotentialEnergy
from wprox.functionals.structure import Structure
from wprox.maps import AffineMap
from wprox.measures import Gaussian, Grid, KernelParticles, Measure, Particles, Quantiles
from wprox.testing.examples import sample_measures
from wprox.testing.laws import (
    Unasked,
    answer,
    ask,
    check_names,
    check_sentence,
    masses,
    normal,
    require,
    require_close,
    shown,
)

SHIFT = 1e-5  # of difference quotients, in units of the points: rounding and curvature are both near 1e-10
AFFINE_SHIFT = 1e-4  # where the map itself is rounded to 1e-12
ROUNDING = 1e-8  # of difference quotients, relative to the value
PRECISION = 1e-4  # between float32 and float64
OTHERS = 5  # points of the measure that ρ is mixed with


@dataclass(frozen=True)
class Case:
    """A functional at a measure where it has a value."""

    functional: Functional
    rho: Measure
    parameters: Sequence[Tensor]
    rtol: float
    seed: int

    def value(self, rho: Measure, functional: Functional | None = None) -> float:
        """F(ρ), or that of another functional, as a number."""
        with torch.no_grad():
            return float((self.functional if functional is None else functional)(rho))

    @property
    def rounding(self) -> float:
        return ROUNDING * (1 + abs(self.value(self.rho)))

    def finite(self) -> None:
        """Leave the law out where F(ρ) is infinite: there it has no derivatives."""
        if not math.isfinite(self.value(self.rho)):
            raise Unasked("F(ρ) is infinite")


def check_functional(
    functional: Functional,
    *,
    dim: int = 2,
    measures: Sequence[Measure] | None = None,
    parameters: Sequence[Tensor] = (),
    exempt: Collection[str] = (),
    rtol: float = 1e-5,
    seed: int = 0,
) -> list[str]:
    r"""Check the laws that every functional keeps: for your own ones.

    That F(ρ) is one number in the precision of ρ; that it does not depend on how ρ is written down (the order of its
    points, a point split in two, float32 or float64); that sums and multiples add up; that the gradient in the points,
    in the weights and in parameters is that of the value, by difference quotients,

        d/dt F((id + tξ)#ρ) = E_ρ⟨∇F, ξ⟩,        d/dt F((1 − t)ρ + tσ) = ∫ δF/δρ d(σ − ρ),

    and ∇ δF/δρ = ∇_{W₂}F at the points; that the pieces F says it consists of add up to it; and where it has a modulus
    λ, that it is λ-convex along straight lines between images of ρ under gradients of convex functions, which are
    generalised geodesics (Ambrosio, Gigli and Savaré, *Gradient flows*, definition 9.2.2).

    A law that cannot be asked is left out: where F refuses a kind of measure, or its gradient there, with a
    `TypeError`, `ValueError` (a `DensityUnknownError` is one) or `NotImplementedError` that says why.

    Arguments:
        functional: F.
        dim: the dimension of the measures.
        measures: where to ask; by default small ones of every kind that there is in this dimension.
        parameters: tensors inside F that want a gradient, to be checked too.
        exempt: names of laws that F does not keep, such as "order" for random batches.
        rtol: of derivatives against difference quotients.
        seed: of the measures and directions.

    Returns:
        The names of the laws that could be asked, and hold.

    Raises:
        AssertionError: for the first law that is broken: which, by how much and at what measure; and where F refuses
            every measure.

    Example:
        >>> import wprox, wprox.testing
        >>> class SquaredSpread(wprox.Functional):
        ...     def __call__(self, rho):
        ...         return (rho.integrate(lambda x: x.square().sum(-1)) - 1) ** 2 / 4
        >>> laws = wprox.testing.check_functional(SquaredSpread())
        >>> "gradient in points" in laws, "order" in laws
        (True, True)
        >>> class Halved(SquaredSpread):  # a gradient that is not that of the value
        ...     def wasserstein_gradient(self, rho):
        ...         return super().wasserstein_gradient(rho) / 2
        >>> wprox.testing.check_functional(Halved())
        Traceback (most recent call last):
        AssertionError: law 'gradient in points' of Halved(): ⟨∇F, ξ⟩ is ...
    """
    require(
        isinstance(functional, Functional),
        f"check_functional needs an instance of a wprox.Functional, got {functional!r}",
    )
    check_names(exempt, LAWS)
    asked: list[str] = []
    refusals: list[str] = []
    for rho in sample_measures(dim, seed) if measures is None else measures:
        at = shown(rho, seed)
        try:
            with torch.no_grad():
                functional(rho)
        except (TypeError, ValueError, NotImplementedError) as error:
            try:
                check_sentence(error)
            except AssertionError as broken:
                raise AssertionError(f"law 'refusals' of {functional!r}: {broken}, at {at}") from error
            refusals.append(f"{at}: {error}")
            continue
        except Exception as error:
            raise AssertionError(
                f"law 'value' of {functional!r}: it raised {type(error).__name__}: {error}, at {at}"
            ) from error
        asked += ask(LAWS, repr(functional), at, Case(functional, rho, parameters, rtol, seed), exempt=exempt)
    require(bool(asked), f"nothing was checked: {functional!r} refuses every measure. " + "; ".join(refusals))
    return list(dict.fromkeys(asked))


# --- the value


def value(case: Case) -> None:
    """F(ρ) is one number, in the precision and on the device of ρ."""
    value = case.functional(case.rho)
    require(isinstance(value, Tensor), f"F(ρ) must be a tensor, it is a {type(value).__name__}")
    require(value.ndim == 0, f"F(ρ) must be a scalar, it has shape {tuple(value.shape)}")
    require(value.dtype == case.rho.dtype, f"F(ρ) is {value.dtype} for a measure in {case.rho.dtype}")
    require(value.device.type == case.rho.device.type, f"F(ρ) is on {value.device} for a measure on {case.rho.device}")
    require(not bool(torch.isnan(value)), "F(ρ) is NaN")


def representation(case: Case) -> None:
    """repr(F) is one line."""
    text = repr(case.functional)
    require(bool(text) and "\n" not in text, f"repr(F) must be one line, it is {text!r}")


def steps(case: Case) -> None:
    """F.at_step(k) is a functional, of the same value whenever it is asked."""
    for k in (0, 3):
        at_step = case.functional.at_step(k)
        require(isinstance(at_step, Functional), f"at_step({k}) must be a Functional, it is {at_step!r}")
        with torch.no_grad():
            first, second = at_step(case.rho), case.functional.at_step(k)(case.rho)
        require_close(second, first, (f"at_step({k})(ρ), asked again,", "the first time"), 0.0)


def precision(case: Case) -> None:
    """float32 agrees with float64."""
    coarse, fine = case.rho.to(torch.float32), case.rho.to(torch.float64)
    value = answer(case.functional, coarse)
    require(value.dtype == coarse.dtype, f"F(ρ) is {value.dtype} for a measure in {coarse.dtype}")
    exact = case.value(fine)
    require_close(value, exact, ("F(ρ) in float32", "in float64"), PRECISION, PRECISION)


def order(case: Case) -> None:
    """F(ρ) does not depend on the order of the points."""
    rho = _as_particles(case.rho)
    reverse = torch.arange(len(rho) - 1, -1, -1, device=rho.device)
    names = ("F(ρ), the points in reverse order,", "F(ρ)")
    require_close(case.value(rho.subset(reverse)), case.value(rho), names, case.rtol, case.rounding)


def splitting(case: Case) -> None:
    """F(ρ) does not change where each point is split into two of half the weight."""
    rho = _as_particles(case.rho)
    twice = torch.arange(len(rho), device=rho.device).repeat(2)
    names = ("F(ρ), each point split into two halves,", "F(ρ)")
    require_close(case.value(rho.subset(twice)), case.value(rho), names, case.rtol, case.rounding)


def sums_and_multiples(case: Case) -> None:
    """(aF + bG)(ρ) = aF(ρ) + bG(ρ), and so for gradients."""
    case.finite()
    F, G, rho = case.functional, PotentialEnergy(lambda x: x.square().sum(-1) / 2), case.rho
    f, g = case.value(rho), float(G(rho))
    for total, expected, text in (
        (2 * F, 2 * f, "2F"),
        (F + G, f + g, "F + G"),
        (F - 0.5 * G, f - 0.5 * g, "F − G/2"),
        (sum([F, F]), 2 * f, "F + F"),
        (-F / 2, -f / 2, "−F/2"),
    ):
        require_close(case.value(rho, total), expected, (f"({text})(ρ)", "the sum of its parts"), 1e-6, case.rounding)
    gradient = answer(F.wasserstein_gradient, rho)
    expected = 2 * gradient - G.wasserstein_gradient(rho)
    names = ("∇(2F − G)", "2∇F − ∇G")
    require_close((2 * F - G).wasserstein_gradient(rho), expected, names, 1e-6, case.rounding)


# --- derivatives in the points


def gradient_in_points(case: Case) -> None:
    """d/dt F((id + tξ)#ρ) = E_ρ⟨∇F, ξ⟩, for ξ affine, and any ξ where every point moves by itself."""
    case.finite()
    gradient = answer(case.functional.wasserstein_gradient, case.rho).double()
    require(gradient.shape == case.rho.points.shape, f"∇F has shape {tuple(gradient.shape)}")
    slack = 0.0
    if isinstance(case.rho, Gaussian) and case.rho.order is not None:  # how far off the quadrature is
        slack = 3 * _quadrature_error(case)
    _compare_along(case, gradient, *_affine_line(case.rho, case.seed), slack)
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


def first_variation_in_points(case: Case) -> None:
    """∇ δF/δρ = ∇F at the points of ρ, and δF/δρ is a number a point at any points."""
    case.finite()
    if isinstance(case.rho, Quantiles | Grid) and case.functional.needs_density(case.rho):
        raise Unasked("a density that is linear between the points has no gradient at them")
    field = _field(case)
    points = case.rho.points.detach().clone().requires_grad_()
    values = answer(field, points)
    require(values.shape == points.shape[:1], f"δF/δρ at points (n, d) must be (n,), it is {tuple(values.shape)}")
    slope = torch.zeros_like(points)
    if values.requires_grad:
        (slope,) = torch.autograd.grad(values.sum(), points, materialize_grads=True)
    gradient = answer(case.functional.wasserstein_gradient, case.rho)
    carriers = case.rho.weights > 0
    names = ("∇ δF/δρ at the points of ρ", "∇F")
    require_close(slope[carriers], gradient[carriers], names, case.rtol, case.rounding)


# --- derivatives in the weights and in parameters


def gradient_in_weights(case: Case) -> None:
    """The derivative of F by the weights of ρ, along v − w, is that of the value."""
    case.finite()
    rho = case.rho
    if not (rho.movable or isinstance(rho, Grid)) or rho.density_follows_points:
        raise Unasked("the weights of this measure are not free, or its density does not differentiate in them")
    change = masses(len(rho), case.seed + 3).to(rho.weights) - rho.weights
    leaf = rho.weights.detach().clone().requires_grad_()
    value = case.functional(_reweighted(rho, leaf))
    slope = torch.zeros_like(leaf)
    if value.requires_grad:
        (slope,) = torch.autograd.grad(value, leaf, materialize_grads=True)
    difference = _difference(lambda t: case.value(_reweighted(rho, rho.weights + t * change)), SHIFT)
    names = ("the derivative of F by the weights, along v − w,", "the difference quotient")
    require_close(slope @ change, difference, names, case.rtol, _scale(case, slope, change))


def first_variation_in_weights(case: Case) -> None:
    """d/dt F((1 − t)ρ + tσ) = ∫ δF/δρ d(σ − ρ) at t = 0, for a measure σ on other points."""
    case.finite()
    field = _field(case)
    mix, others, weights = _mixtures(case.rho, case.seed)
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


# --- what F says of itself


def structure(case: Case) -> None:
    """The pieces of F.structure() add up to F(ρ), and each is the functional that it stands for."""
    structure = case.functional.structure()
    require(isinstance(structure, Structure), f"structure() must be a wprox.Structure, it is {structure!r}")
    rho, total = case.rho, 0.0
    with torch.no_grad():
        parts = [(p.weight, rho.integrate(p.function), p.term) for p in structure.potentials]
        parts += [(p.weight, InternalEnergy(p.energy)(rho), p.term) for p in structure.internal]
        for p in structure.interactions:
            value = p.term(rho) if p.is_sampled(rho) else InteractionEnergy(p.kernel)(rho)
            parts.append((p.weight, value, p.term))
        parts += [(p.weight, p.term(rho), None) for p in structure.others]
        if structure.entropy:
            parts.append((structure.entropy, rho.mean_log_density(), None))
        for weight, value, term in parts:
            total += weight * float(value)
            if term is not None:
                names = (f"{term!r} at ρ", "the piece of the structure that it stands for")
                require_close(term(rho), value, names, 1e-6, case.rounding)
    require_close(total, case.value(rho), ("the pieces of structure() at ρ", "F(ρ)"), 1e-6, case.rounding)


def modulus(case: Case) -> None:
    """F(ρ_t) ≤ (1 − t)F(ρ_0) + tF(ρ_1) − λ/2 t(1 − t) E|T_1 − T_0|² where ρ_t = ((1 − t)T_0 + tT_1)#ρ.

    That is a generalised geodesic for gradients T of convex functions. Densities that follow the points are those of other measures than the points' own, and not convex where F is.
    """
    case.finite()
    rho, modulus = case.rho, case.functional.modulus
    if modulus is None or rho.density_follows_points or isinstance(rho, Grid):
        raise Unasked("no modulus is known, or none for such a measure")
    for k in range(3):
        scales = normal(rho.points, 2, rho.dim, seed=case.seed + 10 + k).exp().clamp(0.2, 5)
        shifts = normal(rho.points, 2, rho.dim, seed=case.seed + 20 + k)

        def at(t: float, scales: Tensor = scales, shifts: Tensor = shifts) -> Measure:
            scale, shift = ((1 - t) * part[0] + t * part[1] for part in (scales, shifts))
            return _affine(rho, scale, shift)

        images = rho.points * (scales[1] - scales[0]) + shifts[1] - shifts[0]
        cost = float(rho.weights @ images.square().sum(1))
        if isinstance(rho, Quantiles):  # linear between the nodes: weights overrate a square
            start, end = images[:-1, 0], images[1:, 0]
            cost = float((start.square() + start * end + end.square()).mean()) / 3
        ends = case.value(at(0.0)), case.value(at(1.0))
        for t in (0.25, 0.5, 0.75):
            bound = (1 - t) * ends[0] + t * ends[1] - modulus / 2 * t * (1 - t) * cost
            slack = 1e-7 * (abs(ends[0]) + abs(ends[1]) + cost)
            found = case.value(at(t))
            require(
                found <= bound + slack,
                f"F is not {modulus:g}-convex, as its modulus says: at t = {t} of a geodesic it is {found:.8g}, above "
                f"{bound:.8g}",
            )


LAWS = (
    value,
    representation,
    steps,
    precision,
    order,
    splitting,
    sums_and_multiples,
    gradient_in_points,
    gradient_without_a_graph,
    first_variation_in_points,
    gradient_in_weights,
    first_variation_in_weights,
    gradient_in_parameters,
    structure,
    modulus,
)


# --- measures nearby


def _as_particles(rho: Measure) -> Measure:
    if not rho.movable:
        raise Unasked("the points of this measure are no particles")
    return rho


def _field(case: Case) -> Callable[[Tensor], Tensor]:
    return answer(case.functional.first_variation, case.rho)


def _affine(rho: Measure, scale: Tensor, shift: Tensor) -> Measure:
    """The image of ρ under x ↦ scale x + shift, with a positive scale for each coordinate."""
    if isinstance(rho, Gaussian):
        return answer(rho.push, AffineMap.from_matrix(torch.diag(scale), shift))
    log_det = scale.log().sum()
    return rho.push(lambda x: (x * scale + shift, log_det.expand(len(x)).to(x)))


def _affine_line(rho: Measure, seed: int) -> tuple[Tensor, Callable[[float], Measure], float]:
    """ξ(x) = Dx + b at the points, with D diagonal, the measure (id + tξ)#ρ by t, and how long t is.

    With D diagonal a Gaussian's nodes move along ξ themselves, whatever its covariance is.
    """
    if isinstance(rho, Grid):
        raise Unasked("the points of a Grid do not move")
    stretch, shift = normal(rho.points, 2, rho.dim, seed=seed + 1)
    direction = rho.points * stretch + shift
    return direction, lambda t: _affine(rho, 1 + t * stretch, t * shift), AFFINE_SHIFT


def _reweighted(rho: Measure, weights: Tensor) -> Measure:
    """The same points with other weights."""
    if isinstance(rho, Grid):
        return rho.with_weights(weights)
    result = copy(rho)
    result.weights = weights
    return result


def _mixtures(rho: Measure, seed: int) -> tuple[Callable[[float], Measure], Tensor, Tensor]:
    """(1 − t)ρ + tσ by t, with the points and the weights of σ."""
    if isinstance(rho, Grid):
        weights = masses(len(rho), seed + 5).to(rho.weights)
        return lambda t: rho.with_weights((1 - t) * rho.weights + t * weights), rho.points, weights
    others = normal(rho.points, OTHERS, rho.dim, seed=seed + 5)
    weights = masses(OTHERS, seed + 5).to(rho.weights)
    points = torch.cat((rho.points, others))

    def mixed(t: float) -> Tensor:
        return torch.cat(((1 - t) * rho.weights, t * weights))

    if isinstance(rho, KernelParticles) and rho.bandwidth is not None:
        return lambda t: KernelParticles(points, mixed(t), bandwidth=rho.bandwidth), others, weights
    if type(rho) is Particles and not rho.density_known and not rho.is_relative:
        return lambda t: Particles(points, mixed(t)), others, weights
    raise Unasked("mixtures of this measure are of another kind")


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
        direction, line, shift = _affine_line(other, case.seed)
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
