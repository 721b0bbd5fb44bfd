"""Proximal steps among Gaussians: affine maps with a symmetric positive definite matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wprox._autograd import SHIFT
from wprox._checks import check_count, check_positive
from wprox.functionals.base import refuse_cut_off_terms
from wprox.functionals.quadratic import Quadratic, quadratic_at
from wprox.maps import AffineMap
from wprox.measures import Gaussian
from wprox.solvers._lbfgs import NOISE, Minimiser
from wprox.solvers.base import Ending, Solved, Solver
from wprox.solvers.problem import Problem, StepFailedError, non_finite
from wprox.transport.gaussian import bures_square

MEMORY = 30  # pairs of L-BFGS
STRETCH = 20.0  # the largest |log| of a factor by which a Gaussian is stretched or shrunk in one round
ROUND = 1.0  # the same, beyond which another round starts from there, in its own units
ROUNDS = 8
DIGITS = 16 * torch.finfo(torch.float64).eps
FAR = 1e12  # how far a step may look for its minimum, in spreads of the start and of an explicit step


class GaussianProx(Solver):
    r"""The proximal step among Gaussians.

    W₂ between Gaussians is attained by x ↦ A(x − m) + m′ with A symmetric positive definite, so that the step is

        min over m′ and A of F(N(m′, AΣA)) + (|m′ − m|² + tr (A − I)Σ(A − I)) / (2γ).

    **Exact** where F is a sum of quadratic potentials and interactions, an entropy of weight β ≥ 0 and KL to Gaussians:
    then the JKO step of a Gaussian is a Gaussian. With ∇²V = Q and ∇²W = R, P = Q + R and M = I + γP, the first-order
    condition Σ = (M − γβS⁻¹) S (M − γβS⁻¹) for the new covariance S is solved by

        S = M^{−½} Y M^{−½},   Y = ½ (C + 2γβ + (C² + 4γβC)^½),   C = M^{−½} Σ M^{−½},   (I + γQ)(m′ − m) = −γ∇V(m).

    A Gaussian target says that it is one; a potential or a kernel of your own is quadratic where the operations that it
    is made of say so (`wprox.functionals.quadratic`).

    **Otherwise it is the best Gaussian step**: the minimum among Gaussians, by L-BFGS, which in general is not the JKO
    step (it is Gaussian variational inference by JKO: Lambert, Chewi, Bach, Bonnabel and Rigollet, NeurIPS 2022).
    Integrals of F are then as exact as the measure's quadrature: give `Gaussian(..., order=20)` in few dimensions.
    `Step.residual` there is the norm of the whole first-order error, with what no Gaussian can remove; it is `None`
    under the 2d-point rule, which cannot see that part.

    In either case steps are computed in float64, and the residual is that of the measure and the map as they are
    returned: for a float32 Gaussian their rounding, over γ, is most of it.

    Arguments:
        iterations: the largest number of L-BFGS iterations.
        tolerance: of the best Gaussian step: γ times its gradient, in L²(ρ), relative to the standard deviation of ρ.

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

    accepts = (Gaussian,)
    takes_anchor = True
    conversion = "fit one to its points, with Gaussian.from_samples(x)"
    noise = NOISE  # of the values of F, relative to them

    def __init__(self, iterations: int = 1000, tolerance: float = 1e-7) -> None:
        self.iterations = check_count(iterations, "iterations")
        self.tolerance = check_positive(tolerance, "tolerance")

    @torch.no_grad()
    def solve(self, problem: Problem, state: Any) -> Solved:
        given = problem.measure
        assert isinstance(given, Gaussian)
        assert isinstance(problem.anchor, Gaussian)
        source = problem.anchor.to(torch.float64)
        step_size = problem.step_size
        problem.value(source)  # says what is missing, where F does not apply
        problem.check_precision()
        quadratic = quadratic_at(problem.structure, source.loc)
        if quadratic is not None and quadratic.entropy >= 0:
            outcome = _closed_form(quadratic, source, step_size)
        else:
            _refuse_cut_off(problem, source)
            quadratic, outcome = None, self._best_gaussian(problem, source)
        loc, matrix = outcome.loc, outcome.matrix
        stretch = matrix - torch.eye(source.dim, dtype=torch.float64, device=source.device)
        cost = (loc - source.loc).square().sum() + (stretch @ source.covariance_matrix * stretch).sum()
        rho = Gaussian(loc.to(given.dtype), outcome.covariance.to(given.dtype), given.order)
        map = AffineMap.from_matrix(matrix.to(given.dtype), (loc - matrix @ source.loc).to(given.dtype))
        residual = _first_order_error(problem, quadratic, source, rho.to(torch.float64), map)
        if problem.anchor is not given:
            map = _optimal_map(given.to(torch.float64), rho.to(torch.float64)).to(given.dtype)
        return Solved(
            rho, cost.to(given.dtype), map, None, residual, outcome.ending, outcome.message, outcome.iterations
        )

    def _best_gaussian(self, problem: Problem, source: Gaussian) -> _Outcome:
        """The minimum over Gaussians, by L-BFGS, in rounds: each in the units of the Gaussian that it starts from.

        A gradient by log A is A∇J, small where A is, whatever ∇J: the last round ends near to where it began.
        """
        base, iterations = source, 0
        for _ in range(ROUNDS):
            objective = _Objective(problem, source, base)
            search = Minimiser(objective.evaluate, objective.origin(), lambda gradient: gradient, MEMORY, self.noise)
            goal = max(self.tolerance, objective.digits)

            def is_done(trial: _Trial, goal: float = goal) -> bool:
                return float(trial.gradient.norm()) <= goal

            descending = search.run(is_done, self.iterations - iterations)
            iterations += search.iterations
            stretch = objective.stretch(search.point.position)
            loc, matrix = objective.unpack(search.point.position)
            covariance = matrix @ base.covariance_matrix @ matrix
            covariance = (covariance + covariance.mT) / 2
            if stretch <= ROUND or iterations >= self.iterations:
                break
            base = Gaussian(loc, covariance, source.order)
        else:
            raise StepFailedError(objective.runs_away)
        if base is not source:
            matrix = _optimal_matrix(source, Gaussian(loc, covariance))
        ending = Ending.CONVERGED if is_done(search.point) else Ending.ITERATIONS
        if not descending:
            if float(torch.linalg.eigvalsh(matrix).log().abs().max()) > STRETCH / 2:
                raise StepFailedError(objective.runs_away)
            ending = Ending.STALLED if search.stalled else Ending.NO_DESCENT
        norm = float(search.point.gradient.norm()) * objective.spread / problem.step_size
        message = f"the best Gaussian step; the norm of the gradient among Gaussians is {norm:.2g}"
        if not ending.is_success:
            message += f": {ending.value}"
        if source.order is None:
            message += "; Step.residual needs Gaussian(..., order=k)"
        return _Outcome(loc, matrix, covariance, ending, iterations, message)


@dataclass(frozen=True)
class _Trial:
    """J γ/s², but for the cost at the start of the round, and its gradient at a position, (d + d²,)."""

    position: Tensor
    value: float
    gradient: Tensor


class _Objective:
    """J γ/s² over m′ and B = exp(S) around N(m₀, Σ₀), in coordinates in which the norm in L² is Euclidean; s² = tr Σ₀.

    Arguments:
        problem: F and γ.
        source: N(m, Σ), in float64, from where the cost counts.
        base: N(m₀, Σ₀), the source itself in the first round, with the new Gaussian N(m′, BΣ₀B).

    Attributes:
        digits: the rounding of the pull towards the source, over s.
    """

    def __init__(self, problem: Problem, source: Gaussian, base: Gaussian) -> None:
        self.problem, self.source, self.base = problem, source, base
        variances, self.axes = torch.linalg.eigh(base.covariance_matrix)
        self.spread = math.sqrt(float(variances.sum()))
        # |S|² = tr SΣS = Σ_ij S_ij² (σ_i² + σ_j²)/2
        self.lengths = ((variances[:, None] + variances) / 2).sqrt() / self.spread
        self.moved = (base.loc - source.loc) / self.spread
        self.nearest, self.gap = self._nearest(base.scale_tril)
        self.digits = DIGITS * math.sqrt(float(self.moved.square().sum() + self.gap.square().sum()))
        self.limit = math.inf
        self.runs_away = (
            "the step left the Gaussians: the functional has no minimum near this one; is it bounded from below, and "
            f"step_size = {problem.step_size:g} short enough for it?"
        )

    def origin(self) -> _Trial:
        """The start, checked."""
        d = self.source.dim
        trial = self.evaluate(self.source.loc.new_zeros(d + d * d))
        if not (math.isfinite(trial.value) and bool(torch.isfinite(trial.gradient).all())):
            raise StepFailedError(non_finite(self.problem.functional, self.base))
        self.limit = FAR * (1 + float(trial.gradient.norm()))
        return trial

    def logarithm(self, position: Tensor) -> Tensor:
        """S."""
        d = self.source.dim
        symmetric = position[d:].reshape(d, d)
        return self.axes @ ((symmetric + symmetric.mT) / 2 / self.lengths) @ self.axes.mT

    def stretch(self, position: Tensor) -> float:
        """The largest |log| of an eigenvalue of B."""
        return float(torch.linalg.eigvalsh(self.logarithm(position)).abs().max())

    def unpack(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """m′ and B."""
        shift = self.spread * position[: self.source.dim]
        return self.base.loc + shift, torch.linalg.matrix_exp(self.logarithm(position))

    def _nearest(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """L′R/s and (L′R − L)/s, where the rotation R brings a factor L′ of a covariance as near as can be to L.

        |m′ − m|² + |L′R − L|² is the cost, and at its minimum the derivative of R drops out.
        """
        with torch.no_grad():
            left, _, right = torch.linalg.svd(factor.mT @ self.source.scale_tril)
        turned = factor @ (left @ right)
        return turned / self.spread, (turned - self.source.scale_tril) / self.spread

    def _cost(self, shift: Tensor, matrix: Tensor) -> Tensor:
        """The cost over s², but for what it is at the base: a difference of squares that does not cancel."""
        turned, gap = self._nearest(matrix @ self.base.scale_tril)
        moved = shift @ (2 * self.moved + shift)
        return moved + ((turned - self.nearest) * (gap + self.gap)).sum()

    def evaluate(self, position: Tensor) -> _Trial:
        """J γ/s² and its gradient; +∞ where B is singular in floating point."""
        if not float(position.norm()) <= self.limit:
            raise StepFailedError(self.runs_away)
        base, scale = self.base, self.problem.step_size / self.spread**2
        outside = _Trial(position, math.inf, torch.full_like(position, math.nan))
        if not self.stretch(position) <= STRETCH:
            return outside
        with torch.enable_grad():
            parameters = position.detach().requires_grad_()
            loc, matrix = self.unpack(parameters)
            try:
                rho = Gaussian(loc, matrix @ base.covariance_matrix @ matrix, base.order)
            except ValueError:  # singular next to its largest eigenvalue
                return outside
            value = scale * self.problem.functional(rho) + self._cost(parameters[: base.dim], matrix) / 2
            (gradient,) = torch.autograd.grad(value, parameters)
        return _Trial(position, float(value.detach()), gradient)


@dataclass(frozen=True)
class _Outcome:
    loc: Tensor
    matrix: Tensor
    covariance: Tensor
    ending: Ending
    iterations: int = 0
    message: str = ""


def _refuse_cut_off(problem: Problem, source: Gaussian) -> None:
    """Raise `ValueError` where a term changes with the Gaussian but is cut off from autograd."""
    loc, covariance = source.loc.detach(), source.covariance_matrix.detach()
    with torch.enable_grad():
        tracked = Gaussian(loc.clone().requires_grad_(), covariance.clone().requires_grad_(), source.order)
    other = Gaussian(loc + SHIFT * covariance.diagonal().sqrt(), (1 + SHIFT) * covariance, source.order)
    refuse_cut_off_terms(problem.functional, tracked, other)


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
    return _Outcome(loc, matrix, covariance, Ending.CLOSED_FORM)


def _inverse(map: AffineMap) -> tuple[Tensor, Tensor]:
    """The matrix exp(−S) of T⁻¹ and the shift of T, in float64, for S and the shift as T holds them.

    By eigenvectors: torch's matrix_exp is off by up to 1e-11 in float64 where |S| is about 0.03.
    """
    log_matrix = map.log_matrix.detach().double()
    exponents, axes = torch.linalg.eigh((log_matrix + log_matrix.mT) / 2)
    return (axes * (-exponents).exp()) @ axes.mT, map.shift.detach().double()


def _mismatch(source: Gaussian, rho: Gaussian, map: AffineMap) -> float:
    """W₂(T⁻¹#ρ, μ): map and measure are rounded each by itself, and (3) of docs/theory.md wants T#μ = ρ."""
    inverse, shift = _inverse(map)
    square = bures_square(inverse @ (rho.loc - shift), inverse @ rho.scale_tril, source.loc, source.scale_tril)
    return math.sqrt(max(0.0, float(square)))


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


def _first_order_error(
    problem: Problem, quadratic: Quadratic | None, source: Gaussian, rho: Gaussian, map: AffineMap
) -> float | None:
    """The residual of measure and map as they are returned; `None` where the quadrature of ρ cannot see it."""
    if quadratic is not None:
        residual: float | None = _quadratic_residual(quadratic, source, rho, map, problem.step_size)
    elif rho.order is not None:
        inverse, shift = _inverse(map)
        residual = problem.residual(rho, (rho.points - shift) @ inverse)
    else:
        return None
    return None if residual is None else residual + _mismatch(source, rho, map) / problem.step_size


def _optimal_matrix(source: Gaussian, rho: Gaussian) -> Tensor:
    """A of the optimal map from one Gaussian to another."""
    factor, other = source.scale_tril, rho.scale_tril
    left, _, right = torch.linalg.svd(other.mT @ factor)
    matrix = torch.linalg.solve_triangular(factor, other @ (left @ right), upper=False, left=False)
    return (matrix + matrix.mT) / 2


def _optimal_map(source: Gaussian, rho: Gaussian) -> AffineMap:
    """The optimal map from one Gaussian to another: from the source to the anchor's step, where these differ."""
    matrix = _optimal_matrix(source, rho)
    return AffineMap.from_matrix(matrix, rho.loc - matrix @ source.loc)
