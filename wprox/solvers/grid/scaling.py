"""The scaling iteration of one entropic proximal step, and the transport cost that it ends with."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.solvers.base import Ending
from wprox.solvers.grid.anderson import Anderson
from wprox.solvers.grid.gibbs import Kernel
from wprox.solvers.grid.kl_prox import LocalTerms
from wprox.solvers.grid.mirror_descent import Linearisation
from wprox.solvers.grid.terms import GridTerms

DIVERGENCE = 10.0  # an accelerated iterate may raise the violation by this factor; beyond, the plain one is taken
FAR = 0.2  # a violation above this, in mass, is far from a solution: accelerated iterates must lower it there
CONTINUES = 0.5  # a start whose violation is above this is no better than none
LOST_FRACTION = 0.01  # of the tolerance: the mass that the kernel domain may misplace by underflow
NEGLIGIBLE = 1e-20  # cells below this fraction of the largest mass are not extrapolated
SELF_ITERATIONS = 200  # of the transport of a measure to itself, which takes about ten
WHAT_TO_TRY = "raise iterations, or ease the problem with a larger blur or a smaller step_size"
BISECTIONS = 70  # from a width of 2400 down to rounding
LARGEST = 600.0  # the logarithm of a mass that still counts in full in the violation
LOG_ZERO = -1e200  # stands for log 0 in the scalings: finite, so that differences of iterates are


@dataclass
class Iterate:
    """One pass of the scaling iteration: where it started, where it leads and how far it is from a solution."""

    image: Tensor
    log_mass: Tensor
    log_source: Tensor
    violation: float
    misplaced: float


@dataclass
class Solution:
    """What the scaling iteration ended with.

    Attributes:
        mass: (n,), the new masses, summing to 1.
        log_scalings: (k, n), log b and, for the debiased step, log d: where a next step may start from.
        log_source: (n,), log a.
        violation: the marginal's violation, in mass.
        ending: how it ended.
        message: the same with its numbers.
        log_domain: whether it ended in the log domain.
    """

    mass: Tensor
    log_scalings: Tensor
    log_source: Tensor
    violation: float
    iterations: int
    ending: Ending
    message: str
    log_domain: bool


class ScalingIteration:
    r"""Alternating maximisation of the dual of  min_π γ F(π₂) + ε KL(π | K),  π₁ = μ,  with ε = blur².

    With a plan π = diag(b) K diag(a), one pass is (Peyré 2015, equation 19; Chizat et al. 2018, algorithm 1)

        a = μ / (K b),    q = K a,    p = prox_{γF/ε}(q),    b = p / q,

    and ‖p − b ⊙ q‖₁ is the violation of the second marginal before it, in mass; the first one holds exactly. The
    debiased steps put q ⊙ d in the place of q in the proximal operator, where ε log d is the derivative of what is
    subtracted: d = √ρ for the entropy ½ε ∫ ρ log ρ, and d ⊙ K d = p for ½ OT_ε(ρ, ρ), which the averaged iteration
    d ← √(d p / K d) solves (Janati, Cuturi and Gramfort, *Debiased Sinkhorn barycenters*, 2020, algorithm 1).

    All fields are logarithms; each product with K exponentiates them relative to their maximum. Where a sum underflows
    the kernel domain gives an upper bound, and the mass in question is counted; if it matters, the iteration goes on in
    the log domain.

    Arguments:
        terms: the functional.
        kernel: K.
        mass: (n,), the masses of μ.
        debias: None, "entropy" or "sinkhorn".
        tol: the violation at which to stop.
        log_domain: start in the log domain.
    """

    def __init__(
        self, terms: GridTerms, kernel: Kernel, mass: Tensor, debias: str | None, tol: float, log_domain: bool
    ) -> None:
        self.terms, self.kernel, self.mass, self.debias, self.tol = terms, kernel, mass, debias, tol
        self.log_mass = mass.log()
        self.log_volume = torch.as_tensor(terms.grid.cell_volume, dtype=mass.dtype).log().to(mass)
        self.log_domain = log_domain
        self.closed: Tensor | None = None  # (n,), true in rooms where μ has no mass: they stay empty
        if kernel.rooms is not None:
            self.room_mass = self.by_room(mass)
            self.closed = self.room_mass == 0

    def by_room(self, mass: Tensor) -> Tensor:
        """The total of a field in each room, at every point (n,)."""
        rooms = self.kernel.rooms
        assert rooms is not None
        return mass.new_zeros(int(rooms.max()) + 1).index_add(0, rooms, mass)[rooms]

    def normalised(self, log_mass: Tensor) -> Tensor:
        """The logarithms of masses, (n,), scaled so that every room has the mass of μ in it."""
        if self.closed is None:
            return log_mass - torch.logsumexp(log_mass, 0)
        relative = log_mass - self.kernel.largest(log_mass)
        scaled = relative - self.by_room(relative.exp()).log() + self.room_mass.log()
        return scaled.masked_fill(self.closed, -math.inf)

    def within_bounds(self, log_mass: Tensor) -> Tensor:
        """The masses clip(c p, lower, upper), (n,), with c such that every room has the mass of μ; by bisection."""
        local, volume = self.terms.local, self.log_volume.exp()
        if local.lower is None and local.upper is None:
            return self.normalised(log_mass).exp()
        lower = torch.zeros_like(log_mass) if local.lower is None else local.lower * volume
        upper = torch.full_like(log_mass, math.inf) if local.upper is None else local.upper * volume
        if local.potential is not None:
            upper = upper.masked_fill(local.potential == math.inf, 0.0)
        log_mass = (log_mass - self.kernel.largest(log_mass)).clamp(min=-LARGEST)
        wanted = self.mass.sum() if self.closed is None else self.room_mass
        low, high = torch.full_like(log_mass, -2 * LARGEST), torch.full_like(log_mass, 2 * LARGEST)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            mass = (log_mass + middle).exp().clamp(min=lower, max=upper)
            over = (mass.sum() if self.closed is None else self.by_room(mass)) > wanted
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        return self.normalised(mass.log()).exp()

    def product(self, log_field: Tensor) -> tuple[Tensor, Tensor | None]:
        """log K e^u, and where it is only an upper bound."""
        if self.log_domain:
            return self.kernel.log_apply(log_field), None
        return self.kernel.product(log_field)

    def start(self) -> Tensor:
        """The scalings of a first step, b = 1 and d = √(K μ)."""
        zero = torch.zeros_like(self.mass)
        if self.debias is None:
            return zero[None]
        blurred, _ = self.kernel.product(self.log_mass)
        return torch.stack((zero, (blurred - blurred.exp().sum().log() - self.log_volume) / 2))

    def continued(self, log_scalings: Tensor | None, factor: float) -> Tensor | None:
        """The scalings of the step before as a start, `None` where they leave the marginal far from right.

        Arguments:
            log_scalings: (k, n), of the step before.
            factor: its γ into this one's, since log b is γ/ε times the first variation of F.
        """
        start = self.start()
        if log_scalings is None or log_scalings.shape != start.shape:
            return None
        scalings = log_scalings.clone()
        scalings[0] *= factor
        first = self.step(scalings, Linearisation(self.terms, self.mass, False, self.tol).local)
        return scalings if first.violation <= CONTINUES and first.misplaced <= CONTINUES else None

    def reference(self) -> Tensor:
        """A positive measure near the solution, where smooth terms are first linearised."""
        blurred, _ = self.kernel.product(self.log_mass)
        return (blurred - torch.logsumexp(blurred, 0)).exp()

    def step(self, scalings: Tensor, local: LocalTerms) -> Iterate:
        """One pass from the given log-scalings, (k, n)."""
        log_b = scalings[0]
        target, lost_target = self.product(log_b)
        log_a = self.log_mass - target
        log_q, lost_q = self.product(log_a)
        reference = log_q - self.log_volume
        if self.debias is not None:
            reference = reference + scalings[1]
        log_density = local.prox(reference)
        if self.closed is not None:
            log_density = log_density.masked_fill(self.closed, -math.inf)
        log_p = log_density + self.log_volume
        p = log_p.clamp(max=LARGEST).exp()  # far from a solution the total of p is no longer 1
        image = [log_p - log_q]
        if self.debias == "entropy":
            image.append((self.normalised(log_p) - self.log_volume) / 2)  # of the mass that p has only in the end
        elif self.debias == "sinkhorn":
            own, _ = self.product(scalings[1])
            image.append((scalings[1] + log_p - own) / 2)
        misplaced = 0.0
        if lost_target is not None and lost_q is not None:
            misplaced = float(self.mass[lost_target].sum() + p[lost_q].sum())
        violation = float((p - (log_q + log_b).exp()).abs().sum())
        return Iterate(torch.stack(image).clamp(min=LOG_ZERO), log_p, log_a, violation, misplaced)

    def solve(self, scalings: Tensor, memory: int, iterations: int, relinearise: bool) -> Solution:
        """Iterate from the given scalings until the violation is at most the tolerance.

        Smooth terms are linearised around the last solution again and again, until that changes the masses by less than
        ten times the tolerance; only once, around μ, where `relinearise` is false.
        """
        anderson = Anderson(memory)
        around = self.reference() if relinearise and self.terms.smooth else self.mass
        linearisation = Linearisation(self.terms, around, relinearise, self.tol)
        best, last, fallback, accelerated = math.inf, math.inf, scalings, False
        # to return if none converges: the iterate of least violation, or the last that linearisation accepted
        kept, error = None, math.inf
        for count in range(1, iterations + 1):
            current = self.step(scalings, linearisation.local)
            misplaces = current.misplaced > LOST_FRACTION * self.tol
            finite = math.isfinite(current.violation) and math.isfinite(float(current.log_mass.max()))
            if accelerated and (misplaces or not current.violation <= max(last, min(DIVERGENCE * best, FAR))):
                scalings, accelerated, best = fallback, False, math.inf
                anderson.restart()
                continue
            if (misplaces or not finite) and not self.log_domain and self.kernel.reaches_everywhere:
                self.log_domain = True
                anderson.restart()
                continue
            if not finite:
                if linearisation.retracts():
                    best, accelerated, scalings = math.inf, False, linearisation.scalings
                    anderson.restart()
                    continue
                log_a = torch.zeros_like(self.mass)
                ending = Ending.OVERFLOW
                return Solution(self.mass, self.start(), log_a, 1.0, count, ending, ending.value, self.log_domain)
            solved = current.violation <= linearisation.tol
            mass = self.normalised(current.log_mass).exp() if solved else self.mass
            if solved and linearisation.resolves(mass, current.violation):
                if misplaces:
                    return self._solution(current, count, Ending.OUT_OF_REACH, Ending.OUT_OF_REACH.value)
                if linearisation.settles(mass, current.violation, current.image):
                    return self._solution(current, count, Ending.CONVERGED, "")
                if linearisation.accepted:  # moves may be short for want of relaxation, far from a solution
                    kept, error = current, linearisation.moved
                best, accelerated, scalings = math.inf, False, linearisation.scalings
                anderson.restart()
                continue
            if not linearisation.repeat and current.violation < error:
                kept, error = current, current.violation
            best, last, fallback = min(best, current.violation), current.violation, current.image
            root = (0.5 * current.log_mass).exp()
            extrapolated = anderson.next(scalings, current.image, root)
            scalings = torch.where(root > math.sqrt(NEGLIGIBLE) * root.max(), extrapolated, current.image)
            accelerated = memory > 0
        current = current if kept is None else kept
        ending, message = (
            Ending.ITERATIONS,
            f"a violation of {current.violation:.2g} in mass is left, tol is {self.tol:.2g}",
        )
        if kept is not None and linearisation.repeat:
            ending = Ending.UNSETTLED
            message = f"linearisation does not settle, and would have moved a mass of {error:.2g} next"
        return self._solution(current, iterations, ending, f"{message}; {WHAT_TO_TRY}")

    def _solution(self, last: Iterate, count: int, ending: Ending, message: str) -> Solution:
        mass = self.within_bounds(last.log_mass)
        if not message:
            domain = "log" if self.log_domain else "kernel"
            message = f"a violation of {last.violation:.2g} in mass after {count} iterations in the {domain} domain"
        return Solution(mass, last.image, last.log_source, last.violation, count, ending, message, self.log_domain)

    def self_scaling(self, log_mass: Tensor) -> Tensor:
        """log d with d ⊙ K d = ρ, (n,): the transport of a measure to itself; −∞ where there is no mass."""
        log_d = log_mass / 2
        mass = log_mass.exp()
        for _ in range(SELF_ITERATIONS):
            image, _ = self.product(log_d)
            violation = float((mass - (log_d + image).exp()).abs().sum())
            log_d = (log_d + log_mass - image) / 2
            if violation <= self.tol:
                break
        return log_d

    def divergence(self, solution: Solution, own_source: Tensor, own_target: Tensor) -> Tensor:
        r"""The Sinkhorn divergence OT_ε(μ, ρ) − ½ OT_ε(μ, μ) − ½ OT_ε(ρ, ρ) over ε, from the four potentials."""
        source, target = self.mass, solution.mass
        first = torch.where(source > 0, source * (solution.log_source - own_source), 0.0)
        second = torch.where(target > 0, target * (solution.log_scalings[0] - own_target), 0.0)
        return first.sum() + second.sum()
