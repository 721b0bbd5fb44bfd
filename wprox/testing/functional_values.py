"""The laws of the value of a functional, and of what it says of itself."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor

from wprox.functionals import Functional, InteractionEnergy, InternalEnergy, PotentialEnergy
from wprox.functionals.structure import Structure
from wprox.measures import Grid, Measure, Quantiles
from wprox.measures.laws import log_density_of
from wprox.testing.functional_case import Case, affine_image
from wprox.testing.laws import Unasked, answer, normal, require, require_close

PRECISION = 1e-4  # between float32 and float64


def value(case: Case) -> None:
    """F(ρ) is one number, in the precision and on the device of ρ."""
    value = case.functional(case.rho)
    require(isinstance(value, Tensor), f"F(ρ) must be a tensor, it is a {type(value).__name__}")
    require(value.ndim == 0, f"F(ρ) must be a scalar, it has shape {tuple(value.shape)}")
    require(value.dtype == case.rho.dtype, f"F(ρ) is {value.dtype} for a measure in {case.rho.dtype}")
    require(value.device.type == case.rho.device.type, f"F(ρ) is on {value.device} for a measure on {case.rho.device}")
    require(not bool(torch.isnan(value)), "F(ρ) is NaN")


def modes(case: Case) -> None:
    """F(ρ) and ∇F are the same in every mode of torch: where gradients are on, off, and in inference mode."""
    case.finite()
    with torch.enable_grad():
        expected, gradient = float(case.functional(case.rho).detach()), None
        with suppress(Unasked, TypeError, ValueError):  # where it is refused, which other laws look at
            gradient = answer(case.functional.wasserstein_gradient, case.rho)
    for mode in (torch.no_grad, torch.inference_mode):
        name = f"under torch.{mode.__name__}"
        with mode():
            require_close(case.functional(case.rho), expected, (f"F(ρ) {name}", "F(ρ)"), 1e-6, case.rounding)
            if gradient is not None:
                again = case.functional.wasserstein_gradient(case.rho)
                require_close(again, gradient, (f"∇F {name}", "∇F"), 1e-6, case.rounding)


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
    for combination, expected, text in (
        (2 * F, 2 * f, "2F"),
        (F + G, f + g, "F + G"),
        (F - 0.5 * G, f - 0.5 * g, "F − G/2"),
        (0 + F + F, 2 * f, "0 + F + F"),
        (-F / 2, -f / 2, "−F/2"),
    ):
        names = (f"({text})(ρ)", "the sum of its parts")
        require_close(case.value(rho, combination), expected, names, 1e-6, case.rounding)
    gradient = 2 * answer(F.wasserstein_gradient, rho) - G.wasserstein_gradient(rho)
    names = ("∇(2F − G)", "2∇F − ∇G")
    require_close((2 * F - G).wasserstein_gradient(rho), gradient, names, 1e-6, case.rounding)


# --- what F says of itself


def structure(case: Case) -> None:
    """The pieces of F.structure() add up to F(ρ), and each is the functional that it stands for."""
    structure = case.functional.structure()
    require(isinstance(structure, Structure), f"structure() must be a wprox.Structure, it is {structure!r}")
    rho, total = case.rho, 0.0
    _declarations(structure, rho)
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


def _declarations(structure: Structure, rho: Measure) -> None:
    """The law of a potential has the density exp(−V), up to a factor, and the exponent of an energy is its own."""
    x = rho.points
    for potential in structure.potentials:
        if potential.law is not None:
            gaps = potential.function(x).detach() + log_density_of(potential.law)[1](x).detach()
            require_close(
                gaps, gaps[0].expand_as(gaps), ("V + log of the density of its law", "one constant"), 1e-5, 1e-5
            )
    s = torch.linspace(0.5, 2.0, 5, dtype=torch.float64)
    for piece in structure.internal:
        if (m := piece.exponent) is not None:
            require_close(piece.energy(s), s**m / (m - 1), ("U(s)", f"s^m/(m − 1) for the exponent m = {m:g}"), 1e-6)


def modulus(case: Case) -> None:
    """F(ρ_t) ≤ (1 − t)F(ρ_0) + tF(ρ_1) − λ/2 t(1 − t) E|T_1 − T_0|² where ρ_t = ((1 − t)T_0 + tT_1)#ρ.

    That is a generalised geodesic for gradients T of convex functions. Densities that follow the points are those of
    other measures than the particles' own, and not convex where F is.
    """
    case.finite()
    rho, modulus = case.rho, case.functional.modulus
    if modulus is None or (rho.density_follows_points and rho.movable) or isinstance(rho, Grid):
        raise Unasked("no modulus is known, or none for such a measure")
    for k in range(3):
        scales = normal(rho.points, 2, rho.dim, seed=case.seed + 10 + k).exp().clamp(0.2, 5)
        shifts = normal(rho.points, 2, rho.dim, seed=case.seed + 20 + k)

        def at(t: float, scales: Tensor = scales, shifts: Tensor = shifts) -> Measure:
            scale, shift = ((1 - t) * part[0] + t * part[1] for part in (scales, shifts))
            return affine_image(rho, scale, shift)

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


def _as_particles(rho: Measure) -> Measure:
    if not rho.movable:
        raise Unasked("the points of this measure are no particles")
    return rho
