"""Proximal steps on grids by entropic transport."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_choice, check_count, check_flag, check_length, check_positive
from wprox._warnings import warn
from wprox.functionals.base import checked_value, terms_of
from wprox.measures import Grid
from wprox.solvers.base import Ending, Solved, Solver
from wprox.solvers.grid.cost import transport_bound
from wprox.solvers.grid.gibbs import Kernel
from wprox.solvers.grid.scaling import ScalingIteration, Solution
from wprox.solvers.grid.terms import GridTerms, sort_terms
from wprox.solvers.grid.walls import HeatKernel, make_kernel
from wprox.solvers.problem import Problem, StepFailedError, non_finite

DEBIAS = (None, "entropy", "sinkhorn")
SMALLEST_BLUR = 0.25  # in cells: exp(−1/(2 · 0.25²)) = 3e-4 of the mass reaches a neighbour

LONG_MOVE = 0.5  # the relative error of the transport cost by implicit heat flow, to first order, beyond which to warn
ROUNDING = 1e-12  # of values of F, relative to them
ROUGHLY = 10.0  # times `tol`: the relative error of F that it leaves
COARSEST_BLUR = 0.125  # of the longest side: where the blur of a first step starts
ANNEALING_TOL, ANNEALING_ITERATIONS = 1e-2, 50  # of each larger blur


@dataclass(frozen=True)
class _State:
    """What the next step starts from.

    Attributes:
        measure: ρ, as it was returned.
        step_size: γ.
        log_scalings: (k, n), log b, and log d of a debiased step.
        self_scaling: (n,), log d with d ⊙ K d = ρ.
        violation: the marginal's violation in mass.
        blur: the blur that was used.
        log_domain: whether the step ended in the log domain.
    """

    measure: Grid
    step_size: float
    log_scalings: Tensor
    self_scaling: Tensor
    violation: float
    blur: float
    log_domain: bool


class SinkhornProx(Solver):
    r"""The proximal step on a `Grid`, with entropic transport in the place of W₂²: mass moves, the support stays.

    Minimises  F(ρ) + OT_ε(μ, ρ)/γ,  where OT_ε(μ, ρ) = min_π ∫ ½|x − y|² dπ + ε ∫ π log π  over the plans π from μ to ρ
    and ε = blur² (Peyré, *Entropic approximation of Wasserstein gradient flows*, 2015; Chizat, Peyré, Schmitzer and
    Vialard, *Scaling algorithms for unbalanced optimal transport problems*, 2018). Each iteration applies the kernel
    exp(−|x − y|²/(2 blur²)) twice, one axis after the other, and a KL proximal operator of F, and is accelerated by
    Anderson's method. Where the grid has walls, mass goes around them: the kernel is heat flow on the free cells
    (Solomon et al., *Convolutional Wasserstein distances*, 2015), split into exact flows along the axes, so that its
    tails are those of a Gaussian.

    Potentials, entropy, KL, power laws, bounds on the density and their sums are solved in closed form, internal
    energies by a Newton iteration. Interaction energies and functionals that define only `__call__` are linearised,
    with the diagonal of their Hessian, around the last solution until that settles, by shorter moves if it overshoots.

    Entropic transport diffuses: it adds about ½ε ∫ ρ log ρ to γF. `debias` subtracts that:

    - "entropy" subtracts ½ε ∫ ρ log ρ itself. The bias falls from O(blur²/γ) to O(blur⁴/γ), at almost no cost.
    - "sinkhorn" subtracts ½ OT_ε(ρ, ρ), which leaves the Sinkhorn divergence (Janati, Cuturi and Gramfort 2020):
      minimisers of F are then exact fixed points. It costs a third product with the kernel and more iterations, many
      more where F contains neither entropy nor KL nor a power: it hardly sees details of ρ finer than blur, which `tol`
      then does not determine.
    - `None` keeps the bias.

    `Step.residual` stays `None`: the first-order error of W₂² would have to contain the bias and that of the grid.
    `Step.transport_cost` is W₂²(μ, ρ) on the line. In higher dimensions it is an upper bound, the least cost of a few
    true plans from μ to ρ: Knothe–Rosenblatt couplings, exact where mass moves along the axes, and the entropic plan.
    Among walls distances are lengths of paths that go around them.

    Arguments:
        blur: the standard deviation of the kernel, in units of length as in GeomLoss; the widest cell by default.
        debias: "entropy", "sinkhorn" or `None`.
        tol: stop once the plan's second marginal is this close to ρ, in mass; the first one is exact.
        iterations: the largest number of iterations of one step.
        memory: of Anderson acceleration; 0 is the plain scaling iteration.
        semi_implicit: linearise interactions and custom functionals once, around μ, in place of solving for them: the
            semi-implicit scheme, which costs less and is of the same order in γ.
        heat_steps: take this number of implicit steps of heat flow among walls in the place of the split flow, as
            Solomon et al. do. They are factorised once, on the CPU, know no log domain, and fall off too slowly for
            moves beyond half a blur, of which a warning tells. Of no effect without walls.
        log_domain: iterate in the log domain from the start. It is slow, and needed only where the kernel domain
            underflows, which is noticed.

    Raises:
        TypeError: for a measure that is not a `Grid`.
        ValueError: for bounds on the density that cannot hold the mass of some room shut in by walls, and potentials
            that are NaN.
        StepFailedError: where a custom functional has no finite first variation.

    Example:
        >>> import torch, wprox
        >>> rho = wprox.Grid.from_density(lambda x: torch.exp(-8 * x[:, 0] ** 2), 100, [(-2.0, 2.0)])
        >>> step = wprox.SinkhornProx().step(wprox.Entropy(), rho, 0.05)
        >>> step.converged, step.measure.integrate(lambda x: x[:, 0] ** 2)  # the heat equation: 1/16 + 2γ, nearly
        (True, tensor(0.15..., dtype=torch.float64))
    """

    accepts = (Grid,)
    takes_anchor = True
    conversion = (
        "build one with Grid.from_density(density, shape, bounds) or Grid.from_particles(particles, shape, bounds)"
    )

    def __init__(
        self,
        blur: float | None = None,
        debias: str | None = "entropy",
        tol: float = 1e-6,
        iterations: int = 2000,
        memory: int = 5,
        semi_implicit: bool = False,
        heat_steps: int | None = None,
        log_domain: bool = False,
    ) -> None:
        self.blur = None if blur is None else check_length(blur, "blur")
        self.debias = check_choice(debias, "debias", DEBIAS)
        self.tol = check_positive(tol, "tol")
        self.iterations = check_count(iterations, "iterations")
        self.memory = min(check_count(memory, "memory", least=0), self.iterations)  # which a step never exceeds
        self.semi_implicit = check_flag(semi_implicit, "semi_implicit")
        self.heat_steps = None if heat_steps is None else check_count(heat_steps, "heat_steps")
        self.log_domain = check_flag(log_domain, "log_domain")
        self._kernel: tuple[Grid, float, Kernel] | None = None

    @torch.no_grad()
    def solve(self, problem: Problem, state: Any) -> Solved:
        source, gamma = problem.anchor, problem.step_size
        assert isinstance(source, Grid)
        if self.log_domain and self.heat_steps is not None and source.mask is not None:
            raise ValueError(
                "log_domain=True among walls needs heat_steps=None: implicit steps are solved in the kernel domain"
            )
        grid = source.to(torch.float64)
        kernel, blur = self._kernel_of(grid)
        terms = sort_terms(problem.structure, grid, gamma / blur**2, kernel.rooms, self.debias)
        before = _value(problem, grid)
        iteration = ScalingIteration(terms, kernel, grid.weights, self.debias, self.tol, self.log_domain)
        known = state if isinstance(state, _State) and _continues(state, grid, blur) else None
        scalings = None
        if known is not None:
            scalings = iteration.continued(known.log_scalings, gamma / known.step_size)
        if scalings is None:
            scalings = self._annealed(terms, grid, blur)
        if scalings is None:
            scalings = iteration.start()
        solution = iteration.solve(scalings, self.memory, self.iterations, not self.semi_implicit)
        own_target = iteration.self_scaling(solution.mass.log())
        divergence = iteration.divergence(solution, _own_scaling(known, source, iteration), own_target)
        estimate = (2 * blur**2 * divergence).clamp(min=0.0)  # ≥ 0, but for rounding
        if isinstance(kernel, HeatKernel):
            _warn_of_long_moves(float(estimate), blur, kernel.steps, max(grid.cell_widths))
        end = grid._with_weights(solution.mass)
        result = source.with_weights(solution.mass.to(source.dtype))
        cost = transport_bound(grid, result.to(torch.float64), iteration, solution.log_scalings[0])
        if grid.dim == 1 and grid.mask is None:
            estimate = cost  # exact
        value = _value(problem, end)
        ending, message = solution.ending, solution.message
        share = blur**2 / gamma
        if ending.is_success and self._is_smeared(solution, before, value, estimate / (2 * gamma), share):
            ending = Ending.SMEARED
            need = "at most" if share > 1 else "well below"
            message = (
                f"{ending.value}: step_size = {gamma:.3g} needs a blur of {need} its root, {math.sqrt(gamma):.3g}, "
                f"and cells no wider, and blur is {blur:.3g}; raise step_size, or refine the grid"
            )
        return Solved(
            measure=result,
            transport_cost=cost.to(source.dtype),
            value=value.to(source.dtype),
            ending=ending,
            message=message,
            iterations=solution.iterations,
            state=_State(
                result, gamma, solution.log_scalings, own_target, solution.violation, blur, solution.log_domain
            ),
        )

    def _is_smeared(self, solution: Solution, before: Tensor, value: Tensor, cost: Tensor, share: float) -> bool:
        """Whether F has risen by more than `tol` explains, or F + W₂²/(2γ) where γ is below blur².

        Without debiasing F may rise for the bias, which the caller has asked for.

        Arguments:
            solution: of the iteration, whose scaling is −δF/δρ/share.
            before: F(α).
            value: F(ρ).
            cost: W₂²(α, ρ)/(2γ), rather too little of it than too much.
            share: blur²/γ, of the entropy of the plan in the objective, next to F.
        """
        carried = solution.mass > 0
        mass, slope = solution.mass[carried], share * solution.log_scalings[0][carried]
        scale = float(mass @ (slope - mass @ slope).abs()) + (share if share <= 1 else 0.0)
        rounding = ROUGHLY * self.tol * scale + ROUNDING * max(abs(float(before)), abs(float(value)))
        if share <= 1:
            return self.debias is not None and float(value - before) > rounding
        return float(value + cost - before) > rounding

    def _annealed(self, terms: GridTerms, grid: Grid, blur: float) -> Tensor | None:
        """Where to start without a step before: the potentials of larger blurs, halved down to the given one."""
        coarsest = max(high - low for low, high in grid.bounds) * COARSEST_BLUR
        halvings = max(0, math.ceil(math.log2(coarsest / blur)))
        scalings = None
        for level in range(halvings, 0, -1):
            wide = blur * 2**level
            iteration = ScalingIteration(
                terms.with_strength(terms.local.strength / 4**level),
                make_kernel(grid, wide, self.heat_steps),
                grid.weights,
                self.debias,
                ANNEALING_TOL,
                self.log_domain,
            )
            scalings = iteration.start() if scalings is None else scalings
            scalings = iteration.solve(scalings, self.memory, ANNEALING_ITERATIONS, False).log_scalings
            scalings[0] *= 4  # the potential ε log b is what stays
        return scalings

    def _kernel_of(self, grid: Grid) -> tuple[Kernel, float]:
        """The kernel, kept from one step to the next, and its blur."""
        widest = max(grid.cell_widths)
        blur = widest if self.blur is None else self.blur
        if self._kernel is not None:
            known, known_blur, kernel = self._kernel
            if known_blur == blur and known.device == grid.device and known.same_cells(grid):
                return kernel, blur
        if blur < SMALLEST_BLUR * widest:
            warn(
                f"blur={blur:.3g} is {blur / widest:.2g} of a cell: the kernel is the identity and mass cannot move. "
                f"Set blur to about a cell, {widest:.3g} (SinkhornProx's default), or refine the grid"
            )
        kernel = make_kernel(grid, blur, self.heat_steps)
        self._kernel = grid, blur, kernel
        return kernel, blur


def _value(problem: Problem, rho: Grid) -> Tensor:
    """F(ρ), checked term by term; it may be infinite, but not NaN."""
    value = sum(
        (weight * checked_value(term, rho) for weight, term in terms_of(problem.functional) if weight),
        rho.weights.new_zeros(()),
    )
    if bool(value.isnan()):
        raise StepFailedError(non_finite(problem.functional, rho))
    return value


def _warn_of_long_moves(cost: float, blur: float, heat_steps: int, width: float) -> None:
    r"""Warn where implicit heat flow makes the moves of a step far too cheap.

    With θ = √cost/blur², k steps on cells of width w move mass by sinh(θw) blur²/w / (1 − θ² blur²/2k) in the place of
    θ blur²: the cost is off by a factor of about 1 + cost/blur² (1/k + w²/3blur²), to first order.
    """
    moved = cost / blur**2
    lattice = moved * width**2 / (3 * blur**2)
    if moved / heat_steps + lattice <= LONG_MOVE:
        return
    slope, bend = 1 / heat_steps, width**2 / 3
    inverse = (math.sqrt(slope**2 + bend / cost) - slope) / (2 * bend)  # of blur², where the error is 1/4
    advice = f"raise blur to {1 / math.sqrt(inverse):.2g}"
    if lattice < 0.2:
        advice += f" or heat_steps to {math.ceil(moved / (0.25 - lattice))}"
    warn(
        f"mass moved by {math.sqrt(moved):.3g} blurs in the quadratic mean: so far implicit heat flow falls off too "
        f"slowly, and this step made moves too cheap and moved too much; set heat_steps=None, {advice}, or lower "
        "step_size"
    )


def _continues(state: _State, grid: Grid, blur: float) -> bool:
    """Whether the potentials of the step before belong to the same cells and blur."""
    return state.blur == blur and grid.same_cells(state.measure)


def _own_scaling(state: _State | None, source: Grid, iteration: ScalingIteration) -> Tensor:
    """log d with d ⊙ K d = μ, (n,): that of the step before, where μ is what it ended with."""
    same = state is not None and state.measure.dtype == source.dtype
    if state is not None and same and torch.equal(state.measure.weights, source.weights):
        return state.self_scaling
    return iteration.self_scaling(iteration.log_mass)
