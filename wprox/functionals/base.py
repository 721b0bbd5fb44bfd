"""The abstract functional on probability measures: its value, what it declares of itself, sums and multiples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from wprox._autograd import HOW_CUT, elsewhere
from wprox._checks import check_number, check_precision, kind_of
from wprox._modes import doors
from wprox.functionals.first_variation import FirstVariation, from_verbs, uses_density
from wprox.functionals.structure import Rest, Structure
from wprox.measures import DensityUnknownError, Measure, Particles
from wprox.measures.base import require_measure

DERIVED = ("first_variation", "wasserstein_gradient", "structure", "needs_density", "modulus")  # from the value
OF_MEASURES = ("__call__", "first_variation", "wasserstein_gradient")  # methods whose argument is ρ
DOORS = (*OF_MEASURES, "needs_density")


def _of_measures(method: Callable) -> Callable:
    """A method of a functional, whoever wrote it, that refuses what is no measure; fields refuse what are no points.

    Values are real, in single or double precision.
    """

    @wraps(method)
    def checked(self: Functional, rho: Measure) -> Any:
        answer = method(self, require_measure(rho, "rho"))
        if method.__name__ == "first_variation" and not isinstance(answer, FirstVariation):
            return FirstVariation(answer, rho.dim)
        if method.__name__ == "__call__" and isinstance(answer, Tensor):
            _check_real(answer, self)
        return answer

    return checked


def _check_real(value: Tensor, functional: Functional) -> None:
    """Raise `TypeError` for a value that is complex or in half precision, which no solver could follow."""
    if value.is_complex():
        raise TypeError(f"{functional!r} must be a real number, it is {value.dtype}; give its real part, as in z.real")
    if value.is_floating_point():
        check_precision(value.dtype, repr(functional))


class Functional(ABC):
    r"""A functional F: P(R^d) → R, written once in `__call__` with the verbs of a measure.

    The verbs are `rho.integrate(f)`, `rho.integrate_pairs(k)`, `rho.log_density()`, `rho.mean_log_density()` and
    `rho.integrate_density(f)`. A functional written with them, differentiable in torch, runs on every measure and
    every solver. Functionals add (`F + G`) and scale (`0.5 * F`).

    All else follows from the value: the Wasserstein gradient, the first variation, and a structure of which nothing is
    known. Where you know more, say it: `structure` is what solvers ask. A subclass with a `__call__` of its own does
    not inherit what its parent says of another value; it says it anew, or gets the defaults back.

    Attributes:
        modulus: λ where F is known to be λ-convex along generalised geodesics (Ambrosio, Gigli and Savaré,
            *Gradient flows*, section 9.2), else `None`. Sums add, non-negative multiples multiply.

    Example:
        >>> import torch, wprox
        >>> class SquaredSecondMoment(wprox.Functional):
        ...     def __call__(self, rho):
        ...         return rho.integrate(lambda x: x.square().sum(-1)) ** 2
        >>> F = SquaredSecondMoment() + 0.5 * wprox.PotentialEnergy(lambda x: x[:, 0])
        >>> F(wprox.Particles(torch.tensor([[1.0, 1.0]])))
        tensor(4.5000)
    """

    modulus: float | None = None
    __array_ufunc__ = None  # NumPy leaves sums and multiples to the functional

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        lineage = cls.__mro__
        value_from = next(k for k, base in enumerate(lineage) if "__call__" in vars(base))
        for name in DERIVED:
            if next(k for k, base in enumerate(lineage) if name in vars(base)) > value_from:
                setattr(cls, name, vars(Functional)[name])
        for name in OF_MEASURES:
            if vars(cls).get(name, vars(Functional)[name]) is not vars(Functional)[name]:
                setattr(cls, name, _of_measures(vars(cls)[name]))
        doors(cls, "__init__", *DOORS)

    @abstractmethod
    def __call__(self, rho: Measure) -> Tensor:
        """F(ρ), a scalar tensor that is differentiable in the points and the density of ρ."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def _unless_overridden(self, cls: type[Functional], modulus: float | None) -> float | None:
        """The modulus of the value that a class computes, `None` for a subclass that computes another one."""
        return modulus if type(self).__call__ is cls.__call__ else None

    def at_step(self, index: int) -> Functional:
        """The functional that step `index` of `jko` minimises: F itself, but for those that draw at random anew."""
        return self

    def structure(self) -> Structure:
        """What F is made of, for solvers that know more to do with a potential or an entropy than with a value."""
        return Structure(rest=(Rest(1.0, self),))

    def needs_density(self, rho: Measure) -> bool:
        """Whether F(ρ) depends on the density of ρ; by default it is seen from the verbs that F uses."""
        return uses_density(self, rho)

    @_of_measures
    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        r"""δF/δρ as a field: maps any points x: (m, d) to (m,), up to a constant.

        d/dt F((1 − t)ρ + tσ) at t = 0 is ∫ δF/δρ d(σ − ρ) (Santambrogio, *Optimal transport for applied
        mathematicians*, definition 7.12), and the Wasserstein gradient is ∇ δF/δρ. It has a graph in x and in tensors
        of F itself that want a gradient. By default it comes from the verbs that F is written with
        (`wprox.functionals.first_variation`).

        Raises:
            DensityUnknownError: where F needs a density that ρ does not know away from its points.
            NotImplementedError: where F reads `rho.points` or `rho.weights`; override this method there.

        Example:
            >>> import torch, wprox
            >>> F = wprox.InteractionEnergy(lambda z: z.square().sum(-1) / 2)
            >>> field = F.first_variation(wprox.Particles(torch.tensor([[0.0], [2.0]])))
            >>> field(torch.tensor([[1.0], [3.0]]))  # (x² + (x − 2)²)/4
            tensor([0.5000, 2.5000])
        """
        return from_verbs(self, rho)

    @_of_measures
    def wasserstein_gradient(self, rho: Measure) -> Tensor:
        r"""∇_{W₂}F(ρ) = ∇ δF/δρ at the support points, (n, d).

        By automatic differentiation: moving the points by ξ changes log ρ there by −div ξ, and by integration by parts
        dF = Σ_i ⟨∂F/∂x_i, ξ_i⟩ + c E_ρ⟨∇ log ρ, ξ⟩ where F depends on the density through c ∫ log ρ dρ. It is 0 at
        points without mass, where the value of F does not tell it. Where the density is a function of the points, as in
        `Particles.with_kernel_density`, it is ∂F/∂x_i over the weight, through the density.

        Raises:
            DensityUnknownError: where ∇ log ρ is needed and the measure does not know it.
            NotImplementedError: where F depends on the density in another way; override this method there.
            ValueError: where F changes with the points but is cut off from autograd, as by `.detach()`.
        """
        if rho.density_follows_points:
            return gradient_in_points(self, rho)
        with torch.enable_grad():
            points = rho.points.detach().requires_grad_()
            log_density = _density_or_none(rho)
            if log_density is not None:
                log_density = log_density.detach().clone().requires_grad_()
            moved = Particles(points, rho.weights.detach(), log_density)
            value = check_scalar(self(moved), self)
            inputs = [points] if log_density is None else [points, log_density]
            if not value.requires_grad:
                refuse_cut_off(self, moved, value)
                return torch.zeros_like(rho.points)
            by_points, *by_density = torch.autograd.grad(value, inputs, allow_unused=True)
        carriers = rho.weights > 0
        gradient = torch.zeros_like(rho.points)
        if by_points is not None:
            gradient[carriers] = by_points[carriers] / rho.weights[carriers, None]
        if by_density and by_density[0] is not None:
            slope = by_density[0][carriers] / rho.weights[carriers]
            if not torch.allclose(slope, slope.mean().expand_as(slope), rtol=1e-4, atol=1e-8):
                raise NotImplementedError(
                    f"{type(self).__name__} depends on the density by more than ∫ log ρ dρ; "
                    "override wasserstein_gradient(rho) with ∇ δF/δρ at rho.points"
                )
            gradient[carriers] += slope.mean() * rho.score()[carriers]
        return gradient

    def __add__(self, other: Functional) -> Functional:
        if not isinstance(other, Functional):
            raise TypeError(
                "unsupported operand of +: functionals add to functionals, and numbers scale them, got "
                f"{kind_of(other)}"
            )
        return Sum(terms_of(self) + terms_of(other))

    def __radd__(self, other: object) -> Functional:
        # lets sum([F, G]) work
        return self if isinstance(other, int) and other == 0 else self + other  # type: ignore[operator]

    def __mul__(self, factor: float) -> Functional:
        if isinstance(factor, Functional):
            raise TypeError("functionals add and scale; the product of two functionals is a functional of your own")
        value = check_number(factor, "the factor of a functional")
        if not math.isfinite(value):
            raise ValueError(f"a functional can be scaled by a finite number only, got {value}")
        return Sum([(value * weight, term) for weight, term in terms_of(self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Functional:
        number = check_number(divisor, "the divisor of a functional")
        if number == 0:
            raise ZeroDivisionError("a functional cannot be divided by 0; give a number other than 0")
        return self * (1 / number)

    def __neg__(self) -> Functional:
        return -1.0 * self

    def __sub__(self, other: Functional) -> Functional:
        return self + (-other if isinstance(other, Functional) else other)


doors(Functional, *DOORS)


class Sum(Functional):
    r"""A linear combination F = Σ_j c_j F_j; what `+` and `*` build.

    Arguments:
        terms: pairs (c_j, F_j).
    """

    def __init__(self, terms: list[tuple[float, Functional]]) -> None:
        self.terms = terms

    @property
    def modulus(self) -> float | None:  # type: ignore[override]
        total = 0.0
        for weight, term in self.terms:
            if weight == 0:
                continue
            if term.modulus is None or weight < 0:
                return None
            total += weight * term.modulus
        return total

    @property
    def _present(self) -> list[tuple[float, Functional]]:
        """The terms whose weight is not 0."""
        return [(weight, term) for weight, term in self.terms if weight]

    def __call__(self, rho: Measure) -> Tensor:
        values = [weight * check_scalar(term(rho), term) for weight, term in self._present]
        return torch.stack(values).sum() if values else rho.points.new_zeros(())

    def at_step(self, index: int) -> Functional:
        terms = [(weight, term.at_step(index)) for weight, term in self.terms]
        return self if all(new is old for (_, new), (_, old) in zip(terms, self.terms, strict=True)) else Sum(terms)

    def structure(self) -> Structure:
        return sum((weight * term.structure() for weight, term in self._present), Structure())

    def needs_density(self, rho: Measure) -> bool:
        return any(term.needs_density(rho) for _, term in self._present)

    def first_variation(self, rho: Measure) -> Callable[[Tensor], Tensor]:
        return partial(_weighted_sum, [(weight, term.first_variation(rho)) for weight, term in self._present])

    def wasserstein_gradient(self, rho: Measure) -> Tensor:
        gradients = [weight * term.wasserstein_gradient(rho) for weight, term in self._present]
        return torch.stack(gradients).sum(0) if gradients else torch.zeros_like(rho.points)

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g} * {term!r}" if weight != 1 else repr(term) for weight, term in self.terms)


def gradient_in_points(functional: Functional, rho: Measure) -> Tensor:
    """∂F/∂x_i over the weight w_i, (n, d), where the density of ρ is a function of its points; 0 where w_i is 0."""
    with torch.enable_grad():
        points = rho.points.detach().requires_grad_()
        moved = rho.push(lambda _: points)
        value = check_scalar(functional(moved), functional)
        if not value.requires_grad:
            refuse_cut_off(functional, moved, value)
            return torch.zeros_like(rho.points)
        (gradient,) = torch.autograd.grad(value, points, allow_unused=True)
    if gradient is None:
        return torch.zeros_like(rho.points)
    return torch.where(rho.weights[:, None] > 0, gradient / rho.weights[:, None], 0)


def refuse_cut_off(functional: Functional, rho: Measure, value: Tensor) -> None:
    """Raise `ValueError` where a value without a graph changes with the points of ρ, so that its gradient is not 0.

    An indicator, 0 or +∞, is no such value.
    """
    points, log_density = rho.points.detach(), _density_or_none(rho)
    moved = elsewhere(points)
    with torch.no_grad():
        if rho.density_follows_points:
            other = functional(rho.push(lambda _: moved))
        else:
            other = functional(Particles(moved, rho.weights.detach(), log_density))
        gap = float((other - value).abs())
    if math.isfinite(gap) and gap > math.sqrt(torch.finfo(points.dtype).eps) * abs(float(value)):
        raise ValueError(
            f"{functional!r} is cut off from autograd: its value changes by {gap:.3g} when the points move, but "
            f"carries no gradient {HOW_CUT}; compute it with torch alone, or override wasserstein_gradient"
        )


def require_functional(functional: object) -> Functional:
    """The functional itself; a sentence for what is often given in its place.

    Raises:
        TypeError: for a class, a function, and anything else that is not a functional.
    """
    if isinstance(functional, Functional):
        return functional
    if isinstance(functional, type) and issubclass(functional, Functional):
        raise TypeError(
            f"functional must be an object, got the class {functional.__name__}; call it: {functional.__name__}(...)"
        )
    if callable(functional):
        raise TypeError(
            f"functional must be a wprox.Functional, got {type(functional).__name__}; a function of points is a "
            "potential, wprox.PotentialEnergy(V), one of measures the __call__ of a subclass of wprox.Functional"
        )
    raise TypeError(
        f"functional must be a wprox.Functional, got {type(functional).__name__}; wprox.KL(target) and "
        "wprox.PotentialEnergy(V) make some"
    )


def checked_value(functional: Functional, rho: Measure) -> Tensor:
    """F(ρ), checked: a verb that the measure does not have, and a value that is not one number, are reported.

    Raises:
        TypeError: where F asks the measure for a method that it does not have (it names the method), returns something
            other than a tensor, or mixes the precision of the measure with another.
        ValueError: where F(ρ) is not a scalar.
    """
    try:
        value = functional(rho)
    except AttributeError as error:
        if error.obj is not rho:
            raise
        raise TypeError(
            f"{functional!r} does not apply to {type(rho).__name__}: it needs the method {error.name!r}, which "
            f"{type(rho).__name__} does not have. Every measure offers integrate, integrate_pairs, log_density, "
            "mean_log_density and integrate_density"
        ) from None
    except RuntimeError as error:
        if not _works_in_other_precision(functional, rho):
            raise
        raise TypeError(
            f"{functional!r} mixes floating-point types ({error}): the solver computes in {rho.points.dtype}; make the "
            "tensors and networks inside it float64 (A.double(), net.double()), or cast x inside it to their type"
        ) from error
    check_scalar(value, functional)
    return value


def _works_in_other_precision(functional: Functional, rho: Measure) -> bool:
    """Whether F answers for the same measure in another precision, so that a mix of precisions is what failed."""
    other = torch.float32 if rho.dtype == torch.float64 else torch.float64
    try:
        with torch.no_grad():
            points, weights = rho.points.to(other), rho.weights.to(other)
            functional(Particles(points, weights, torch.zeros_like(weights)))
    except (RuntimeError, TypeError, ValueError):
        return False
    return True


def check_scalar(value: object, functional: Functional) -> Tensor:
    """F(ρ), where it is one number that autograd knows; else a sentence that names the functional.

    Raises:
        TypeError: for anything but a tensor.
        ValueError: for a tensor that is not a scalar.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{functional!r} must return a scalar tensor, it returned {type(value).__name__}; without one there is "
            "no gradient to follow: compute it with torch from rho.integrate and the other verbs"
        )
    if value.ndim:
        raise ValueError(
            f"{functional!r} must be a scalar, it has shape {tuple(value.shape)}; a potential or a kernel maps points "
            "(n, d) to (n,), as in x.square().sum(-1)"
        )
    return value


def _weighted_sum(fields: list[tuple[float, Callable[[Tensor], Tensor]]], x: Tensor) -> Tensor:
    """Σ_j c_j φ_j(x)."""
    return sum((weight * field(x) for weight, field in fields), x.new_zeros(len(x)))


def terms_of(functional: Functional) -> list[tuple[float, Functional]]:
    """The pairs (c_j, F_j) of a sum Σ c_j F_j; (1, F) of any other functional."""
    return list(functional.terms) if isinstance(functional, Sum) else [(1.0, functional)]


def _density_or_none(rho: Measure) -> Tensor | None:
    try:
        return rho.log_density()
    except DensityUnknownError:
        return None
