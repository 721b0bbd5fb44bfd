"""The laws of functionals: a value, its gradients in points, weights and parameters, and what F says of itself."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from wprox.functionals import Functional
from wprox.measures import Measure
from wprox.testing import functional_derivatives as derivatives
from wprox.testing import functional_values as values
from wprox.testing.examples import sample_measures
from wprox.testing.functional_case import Case
from wprox.testing.laws import ask, check_names, check_sentence, require, shown

LAWS = (
    values.value,
    values.modes,
    values.representation,
    values.steps,
    values.precision,
    values.order,
    values.splitting,
    values.sums_and_multiples,
    derivatives.gradient_in_points,
    derivatives.gradient_without_a_graph,
    derivatives.gradient_in_weights,
    derivatives.gradient_with_a_graph,
    derivatives.first_variation_in_points,
    derivatives.first_variation_in_weights,
    derivatives.gradient_in_parameters,
    values.structure,
    values.modulus,
)


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

    and ∇ δF/δρ = ∇_{W₂}F at the points, also with `create_graph=True` and where weights depend on points; that none of
    it changes in `torch.no_grad` and `torch.inference_mode`; that the pieces F says it consists of add up to it; and
    where it has a modulus λ, that it is λ-convex along straight lines between images of ρ under gradients of convex
    functions, which are generalised geodesics (Ambrosio, Gigli and Savaré, *Gradient flows*, definition 9.2.2).

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
