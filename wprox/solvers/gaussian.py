"""Proximal steps among Gaussians: affine maps with a symmetric positive definite matrix."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from wprox._checks import check_count, check_positive
from wprox.functionals import Functional
from wprox.functionals.structure import Pieces, apply, check_precision, split
from wprox.maps import AffineMap
from wprox.measures import DensityUnknownError, Gaussian, Measure
from wprox.measures.gaussian import in_float64
from wprox.measures.laws import as_gaussian
from wprox.metrics import bures_distance
from wprox.solvers.base import Solver, Step, StepFailedError


class GaussianProx(Solver):
    r"""The proximal step among Gaussians.

    W₂ between Gaussians is attained by x ↦ A(x − m) + m′ with A symmetric positive definite, so that the step is

        min over m′ and A of F(N(m′, AΣA)) + (|m′ − m|² + tr (A − I)Σ(A − I)) / (2γ).

    **Exact** where F is a sum of quadratic potentials and interactions, an entropy of weight β ≥ 0 and KL to Gaussians:
    then the JKO step of a Gaussian is a Gaussian. With ∇²V = Q and ∇²W = R, P = Q + R and M = I + γP, the first-order
    condition Σ = (M − γβS⁻¹) S (M − γβS⁻¹) for the new covariance S is solved by

        S = M^{−½} Y M^{−½},   Y = ½ (C + 2γβ + (C² + 4γβC)^½),   C = M^{−½} Σ M^{−½},   (I + γQ)(m′ − m) = −γ∇V(m).

    Whether a potential or a kernel is quadratic is found out by probing its gradient in float64.

    **Otherwise it is the best Gaussian step**: the minimum among Gaussians, by L-BFGS, which in general is not the JKO
    step (it is Gaussian variational inference by JKO: Lambert, Chewi, Bach, Bonnabel and Rigollet, NeurIPS 2022).
    Integrals of F are then as exact as the measure's quadrature: give `Gaussian(..., order=20)` in few dimensions.
    `Step.residual` there is the norm of the whole first-order error, with what no Gaussian can remove; it is `None`
    under the 2d-point rule, which cannot see that part.

    In either case steps are computed in float64, and the residual is that of the measure and the map as they are
    returned: for a float32 Gaussian their rounding, over γ, is most of it.

    Arguments:
        iterations: the largest number of L-BFGS iterations.
        tolerance: of the best Gaussian step: γ times its gradient, in L², relative to the standard deviation.

    Raises:
        TypeError: for a measure other than Gaussian, and a functional that needs a method which Gaussians lack.
        ValueError: where I + γP is not positive definite, so that the step has no minimum.
        StepFailedError: where the best Gaussian step runs away.

    Example:
        >>> import torch, wprox
        >>> F = wprox.KL(wprox.Gaussian(torch.zeros(2), torch.eye(2)))
        >>> step = wprox.GaussianProx().step(F, wprox.Gaussian(torch.full((2,), 3.0), torch.eye(2)), 0.5)
        >>> step.measure.loc  # m/(1 + γ)
        tensor([2., 2.])
    """

    def __init__(self, iterations: int = 1000, tolerance: float = 1e-7) -> None:
        self.iterations = check_count(iterations, "iterations")
        self.tolerance = check_positive(tolerance, "tolerance")

    def prepare(self, measure: Measure) -> Gaussian:
        if not isinstance(measure, Gaussian):
            raise TypeError(
                f"GaussianProx needs a Gaussian, got {type(measure).__name__}; fit one with Gaussian.from_samples(x)"
            )
        return measure

    def step(
        self,
        functional: Functional,
        measure: Measure,
        step_size: float,
        *,
        previous: Step | None = None,
        held_out: Measure | None = None,
    ) -> Step:
        start = time.perf_counter()
        step_size = check_positive(step_size, "step_size")
        given = self.prepare(measure)
        source = in_float64(given)
        apply(functional, source)  # says what is missing, where F does not apply
        pieces = split(functional)
        check_precision(pieces, source)
        quadratic = as_quadratic(pieces, source)
        if quadratic is not None:
            outcome = _closed_form(quadratic, source, step_size)
        else:
            outcome = self._best_gaussian(functional, source, step_size)
        loc, matrix = outcome.loc, outcome.matrix
        stretch = matrix - torch.eye(source.dim, dtype=torch.float64, device=source.device)
        cost = (loc - source.loc).square().sum() + (stretch @ source.covariance_matrix * stretch).sum()
        rho = Gaussian(loc.to(given.dtype), outcome.covariance.to(given.dtype), given.order)
        map = AffineMap.from_matrix(matrix.to(given.dtype), (loc - matrix @ source.loc).to(given.dtype))
        with torch.no_grad():
            value = functional(rho)
            residual = None
            if quadratic is not None:
                residual = _quadratic_residual(quadratic, source, in_float64(rho), map, step_size)
            elif given.order is not None:
                residual = _residual(functional, in_float64(rho), map, step_size)
            if residual is not None:
                residual += _mismatch(source, in_float64(rho), map) / step_size
        return Step(
            measure=rho,
            map=map,
            value=value,
            transport_cost=cost.to(given.dtype),
            step_size=step_size,
            residual=residual,
            converged=outcome.converged,
            iterations=outcome.iterations,
            seconds=time.perf_counter() - start,
            message=outcome.message,
            index=0 if previous is None else previous.index + 1,
        )

    def _best_gaussian(self, functional: Functional, source: Gaussian, step_size: float) -> _Outcome:
        """The minimum over m′ and A = exp(S), in coordinates in which the L² norm of a displacement is Euclidean."""
        d, covariance = source.dim, source.covariance_matrix
        variances, axes = torch.linalg.eigh(covariance)
        lengths = ((variances[:, None] + variances) / 2).sqrt()  # |S|² = tr SΣS = Σ_ij S_ij² (σ_i² + σ_j²)/2

        def unpack(parameters: Tensor) -> tuple[Tensor, Tensor]:
            symmetric = parameters[d:].reshape(d, d)
            symmetric = axes @ ((symmetric + symmetric.mT) / 2 / lengths) @ axes.mT
            return source.loc + parameters[:d], torch.linalg.matrix_exp(symmetric)

        def objective(array: np.ndarray) -> tuple[float, np.ndarray]:
            with torch.enable_grad():
                parameters = torch.from_numpy(array).to(source.loc).requires_grad_()
                loc, matrix = unpack(parameters)
                stretch = matrix - torch.eye(d).to(matrix)
                cost = (loc - source.loc).square().sum() + (stretch @ covariance * stretch).sum()
                rho = Gaussian(loc, matrix @ covariance @ matrix, source.order)
                value = functional(rho) + cost / (2 * step_size)
                (gradient,) = torch.autograd.grad(value, parameters)
            return float(value.detach()), gradient.cpu().numpy()

        spread = math.sqrt(float(variances.sum()))
        goal = self.tolerance * spread / step_size
        gtol = goal / math.sqrt(d + d * d)  # scipy compares the largest entry
        options = {"maxiter": self.iterations, "maxfun": 4 * self.iterations, "maxcor": 30, "ftol": 0.0, "gtol": gtol}
        try:
            result = minimize(objective, np.zeros(d + d * d), jac=True, method="L-BFGS-B", options=options)
        except ValueError as error:  # a covariance that is singular or not finite
            raise StepFailedError(
                f"the step left the Gaussians ({error}): the functional has no minimum near this one; is it bounded "
                f"from below, and step_size = {step_size:g} short enough for it?"
            ) from error
        gradient_norm = float(np.linalg.norm(result.jac))
        with torch.no_grad():
            loc, matrix = unpack(torch.from_numpy(result.x).to(source.loc))
            rho = Gaussian(loc, matrix @ covariance @ matrix, source.order)
        message = f"the best Gaussian step; the norm of the gradient among Gaussians is {gradient_norm:.2g}"
        if source.order is None:
            message += "; Step.residual needs Gaussian(..., order=k)"
        return _Outcome(loc, matrix, rho.covariance_matrix, gradient_norm <= goal, int(result.nit), message)


@dataclass(frozen=True)
class _Outcome:
    loc: Tensor
    matrix: Tensor
    covariance: Tensor
    converged: bool
    iterations: int
    message: str


@dataclass(frozen=True)
class Quadratic:
    """F(N(m, Σ)) = V(m) + ½ tr (Q + R)Σ − ½ β log det Σ + a constant, with ∇V at the mean of the source."""

    gradient: Tensor
    potential: Tensor
    interaction: Tensor
    entropy: float


def as_quadratic(pieces: Pieces, source: Gaussian) -> Quadratic | None:
    """The quadratic pieces of F, or `None` where it has others."""
    if pieces.rest or pieces.internal or pieces.entropy < 0:
        return None
    gradient = torch.zeros_like(source.loc)
    potential, interaction = torch.zeros_like(source.covariance_matrix), torch.zeros_like(source.covariance_matrix)
    others = Pieces(potentials=list(pieces.potentials))
    for weight, divergence in pieces.divergences:
        known = as_gaussian(divergence.target)
        if known is None:
            others.divergences.append((weight, divergence))
        else:
            loc, covariance = (part.detach().to(source.loc) for part in (known.loc, known.covariance_matrix))
            precision = torch.linalg.inv(covariance)
            potential = potential + weight * precision
            gradient = gradient + weight * precision @ (source.loc - loc)
    scale = (
        1 + float(source.loc.abs().max()) + 5 * math.sqrt(float(torch.linalg.eigvalsh(source.covariance_matrix)[-1]))
    )
    if others.has_potential:
        model = _probe(others.potential_gradient, source.loc, scale)
        if model is None:
            return None
        gradient, potential = gradient + model[0], potential + model[1]
    for weight, term in pieces.interactions:
        kernel = Pieces(potentials=[(weight, term.kernel)])
        model = _probe(kernel.potential_gradient, torch.zeros_like(source.loc), scale)
        if model is None:
            return None
        interaction = interaction + model[1]
    return Quadratic(gradient, potential, interaction, pieces.entropy)


def _probe(gradient: Callable[[Tensor], Tensor], centre: Tensor, scale: float) -> tuple[Tensor, Tensor] | None:
    """∇V(centre) and ∇²V where V is quadratic, `None` where it is not; checked at points up to ten scales away."""
    d = len(centre)
    steps = scale * torch.eye(d).to(centre)
    slopes = gradient(torch.cat((centre + steps, centre - steps)))
    hessian = (slopes[:d] - slopes[d:]) / (2 * scale)
    at_centre = gradient(centre[None])[0]
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(32, d, generator=generator, dtype=torch.float64).to(centre)
    offsets = offsets * scale * torch.logspace(-1, 1, 32).to(centre)[:, None] / math.sqrt(d)
    values = gradient(centre + offsets)
    error = (values - at_centre - offsets @ hessian).norm(dim=1)
    size = at_centre.norm() + offsets.norm(dim=1) * hessian.norm()
    if not bool((error <= 1e-10 * size).all()):  # NaN and infinity fail as well
        return None
    return at_centre, (hessian + hessian.mT) / 2


def _closed_form(quadratic: Quadratic, source: Gaussian, step_size: float) -> _Outcome:
    identity = torch.eye(source.dim).to(source.loc)
    hessian = quadratic.potential + quadratic.interaction
    smallest = min(float(torch.linalg.eigvalsh(part)[0]) for part in (hessian, quadratic.potential))
    if 1 + step_size * smallest <= 0:
        raise ValueError(
            f"the step has no minimum: the functional is concave with modulus {smallest:g} and step_size = "
            f"{step_size:g} is too long for it; use step_size < {-1 / smallest:g}"
        )
    loc = source.loc - step_size * torch.linalg.solve(identity + step_size * quadratic.potential, quadratic.gradient)
    values, vectors = torch.linalg.eigh(identity + step_size * hessian)
    half = (vectors / values.sqrt()) @ vectors.mT  # M^{−½}
    heat = step_size * quadratic.entropy
    start, axes = torch.linalg.eigh(half @ source.covariance_matrix @ half)
    gap = (start + (start.square() + 4 * heat * start).sqrt()) / 2  # Y − γβ, which as a difference would cancel
    end = heat + gap
    turned = half @ axes
    covariance = (turned * end) @ turned.mT
    matrix = (turned * (end / gap)) @ turned.mT
    return _Outcome(loc, matrix, covariance, True, 0, "in closed form")


def _inverse(map: AffineMap) -> tuple[Tensor, Tensor]:
    """The matrix exp(−S) of T⁻¹ and the shift of T, in float64, for S and the shift as T holds them.

    By eigenvectors: torch's matrix_exp is off by up to 1e-11 in float64 where |S| is about 0.03.
    """
    log_matrix = map.log_matrix.detach().double()
    exponents, axes = torch.linalg.eigh((log_matrix + log_matrix.mT) / 2)
    return (axes * (-exponents).exp()) @ axes.mT, map.shift.detach().double()


def _mismatch(source: Gaussian, rho: Gaussian, map: AffineMap) -> float:
    """W₂(T⁻¹#ρ, μ): map and measure are rounded each by itself, and (3) wants T#μ = ρ."""
    inverse, shift = _inverse(map)
    return float(bures_distance(inverse @ (rho.loc - shift), inverse @ rho.scale_tril, source.loc, source.scale_tril))


def _quadratic_residual(
    quadratic: Quadratic, source: Gaussian, rho: Gaussian, map: AffineMap, step_size: float
) -> float:
    """‖∇F(ρ) + (id − T⁻¹)/γ‖ in L²(ρ), of an affine field: that at the mean, and the slope weighted by Σ."""
    inverse, shift = _inverse(map)
    origin = inverse @ (rho.loc - shift)
    at_mean = quadratic.gradient + quadratic.potential @ (rho.loc - source.loc) + (rho.loc - origin) / step_size
    slope = quadratic.potential + quadratic.interaction + (torch.eye(rho.dim).to(inverse) - inverse) / step_size
    if quadratic.entropy:
        slope = slope - quadratic.entropy * torch.linalg.inv(rho.covariance_matrix)
    return math.sqrt(float(at_mean.square().sum() + (slope @ rho.covariance_matrix * slope).sum()))


def _residual(functional: Functional, rho: Gaussian, map: AffineMap, step_size: float) -> float | None:
    """‖∇F(ρ) + (id − T⁻¹)/γ‖ in L²(ρ) by the quadrature of ρ; `None` where F cannot give its gradient."""
    try:
        gradient = functional.wasserstein_gradient(rho)
    except (DensityUnknownError, NotImplementedError):
        return None
    inverse, shift = _inverse(map)
    origin = (rho.points - shift) @ inverse
    return math.sqrt(float(rho.weights @ (gradient + (rho.points - origin) / step_size).square().sum(1)))
