"""KL proximal operators against independent solvers, cell by cell and for whole steps."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wprox
from wprox.solvers.grid.kl_prox import LocalTerms, wright_omega
from wprox.solvers.grid.terms import sort_terms
from wprox.solvers.grid.walls import SplitKernel


def test_wright_omega_against_scipy():
    z = torch.linspace(-700, 1000, 40001, dtype=torch.float64)
    reference = scipy.special.wrightomega(z.numpy())
    assert np.abs(wright_omega(z).numpy() / reference - 1).max() < 1e-13


def test_wright_omega_is_lambert_w():
    z = torch.linspace(-5, 5, 101, dtype=torch.float64)
    assert np.allclose(wright_omega(z).numpy(), scipy.special.lambertw(np.exp(z.numpy())).real, rtol=1e-13)


def test_wright_omega_at_the_ends():
    z = torch.tensor([-math.inf, -800.0, -100.0], dtype=torch.float64)
    assert torch.equal(wright_omega(z)[:2], torch.zeros(2, dtype=torch.float64))
    assert torch.allclose(wright_omega(z)[2], z[2].exp())


CASES = {
    "potential": (lambda r: 0.7 * r, LocalTerms(3.0, potential=torch.full((5,), 0.7))),
    "entropy": (lambda r: 1.3 * r * np.log(r), LocalTerms(3.0, entropy=1.3)),
    "negative entropy": (lambda r: -0.2 * r * np.log(r), LocalTerms(3.0, entropy=-0.2)),
    "m = 2": (lambda r: 0.4 * r**2, LocalTerms(3.0, powers={2.0: 0.4})),
    "m = 3": (lambda r: 0.4 * r**3 / 2, LocalTerms(3.0, powers={3.0: 0.4})),
    "m = 1/2": (lambda r: 0.4 * r**0.5 / -0.5, LocalTerms(3.0, powers={0.5: 0.4})),
    "m = 2 and entropy": (lambda r: r**2 + r * np.log(r), LocalTerms(3.0, powers={2.0: 1.0}, entropy=1.0)),
    "m = 2 and m = 4": (lambda r: r**2 + r**4 / 3, LocalTerms(3.0, powers={2.0: 1.0, 4.0: 1.0})),
    "an energy": (lambda r: np.cosh(r) - 1, LocalTerms(3.0, energies=[(1.0, lambda r: torch.cosh(r) - 1)])),
    "an energy and m = 2": (
        lambda r: 2 * r**1.5 + r**2,
        LocalTerms(3.0, powers={2.0: 1.0}, energies=[(2.0, lambda r: r**1.5)]),
    ),
    "upper": (lambda r: 0 * r, LocalTerms(3.0, upper=torch.full((5,), 1.5, dtype=torch.float64))),
    "lower and m = 2": (
        lambda r: r**2,
        LocalTerms(3.0, powers={2.0: 1.0}, lower=torch.full((5,), 0.25, dtype=torch.float64)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_prox_is_the_minimiser_in_every_cell(name):
    energy, terms = CASES[name]
    reference = torch.tensor([1e-3, 0.2, 1.0, 3.0, 40.0], dtype=torch.float64)
    low = 1e-9 if terms.lower is None else float(terms.lower[0])
    high = 1e6 if terms.upper is None else float(terms.upper[0])
    density = terms.prox(reference.log()).exp()
    for q, found in zip(reference.tolist(), density.tolist(), strict=True):

        def objective(log_r, q=q):
            r = math.exp(log_r)
            return energy(r) + (r * math.log(r / q) - r + q) / terms.strength

        best = scipy.optimize.minimize_scalar(
            objective, bounds=(math.log(low), math.log(high)), method="bounded", options={"xatol": 1e-10}
        )
        assert objective(math.log(found)) <= best.fun + 1e-12
        assert found == pytest.approx(math.exp(best.x), rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    log_q=st.floats(-600, 600),
    log_strength=st.floats(-12, 12),
    m=st.floats(0.3, 6.0).filter(lambda m: abs(m - 1) > 0.05),
    entropy=st.floats(0, 5),
)
def test_closed_form_solves_its_equation(log_q, log_strength, m, entropy):
    s = math.exp(log_strength)
    q = torch.tensor([log_q], dtype=torch.float64)
    ell = LocalTerms(s, entropy=entropy, powers={m: 1.0}).prox(q)
    assert bool(torch.isfinite(ell).all())
    power = s * m / (m - 1) * math.exp(min(700.0, (m - 1) * float(ell)))
    terms = [(1 + s * entropy) * float(ell), power, -log_q, s * entropy]
    assert abs(sum(terms)) <= 1e-9 * (1 + max(map(abs, terms)))


@settings(max_examples=40, deadline=None)
@given(log_q=st.floats(-300, 300), log_strength=st.floats(-10, 10))
def test_newton_agrees_with_the_closed_form(log_q, log_strength):
    s, q = math.exp(log_strength), torch.tensor([log_q, 0.0], dtype=torch.float64)
    newton = LocalTerms(s, energies=[(1.0, lambda r: r**2)]).prox(q)
    assert torch.allclose(newton, LocalTerms(s, powers={2.0: 1.0}).prox(q), rtol=1e-10, atol=1e-10)


def test_prox_is_monotone_in_the_reference():
    q = torch.linspace(-300, 300, 501, dtype=torch.float64)
    for terms in (LocalTerms(50.0, powers={2.0: 1.0}), LocalTerms(50.0, powers={0.5: 1.0}), LocalTerms(2.0)):
        assert bool((terms.prox(q).diff() > 0).all())


# --- whole steps against a dense solver -----------------------------------------------------------------------------

SHAPE, BOUNDS, BLUR, GAMMA = (12, 12), [(0.0, 1.0), (0.0, 1.0)], 1 / 12, 0.02
STIFFNESS = 3000.0  # of the augmented Lagrangian that keeps bounds


def initial():
    return wprox.Grid.from_density(
        lambda x: torch.exp(-20 * (x - x.new_tensor([0.35, 0.6])).square().sum(-1)) + 0.05, SHAPE, BOUNDS
    )


def dense_step(functional, grid, debias, lower=0.0, upper=math.inf, log_gibbs=None):
    """The minimiser over plans with first marginal μ, π_ij = μ_i softmax_j(g_j − c_ij/ε), by L-BFGS on g.

    The problem is convex in π, so that a vanishing derivative in every entry of π, which is asserted, proves the
    minimum. Bounds on the density are kept by an augmented Lagrangian. Nothing is shared with SinkhornProx.
    """
    points, mu, volume = grid.points, grid.weights, grid.cell_volume
    if log_gibbs is None:
        log_gibbs = -(points[:, None] - points).square().sum(-1) / (2 * BLUR**2)
    bounds = torch.tensor([[upper], [-lower]], dtype=torch.float64) * volume
    multipliers = torch.zeros(2, len(mu), dtype=torch.float64)
    bounded = upper < math.inf

    def excess(rho):
        return torch.stack((rho, -rho)) - bounds

    def self_transport(rho):
        """½ OT_ε(ρ, ρ)/ε by its dual, whose maximiser d ⊙ K d = ρ need not be differentiated."""
        gibbs, d = log_gibbs.exp(), rho.detach().sqrt()
        for _ in range(200):
            following = (d * rho.detach() / (gibbs @ d)).sqrt()
            change, d = float((following / d - 1).abs().max()), following
            if change < 1e-13:
                break
        return (rho * d.log()).sum() - (d @ gibbs @ d - 1) / 2

    def lagrangian(pi):
        rho = pi.sum(0)
        value = (pi * (pi.log() - log_gibbs)).sum() + GAMMA / BLUR**2 * functional(grid.with_weights(rho))
        if debias == "entropy":
            value = value - (rho * rho.log()).sum() / 2
        elif debias == "sinkhorn":
            value = value - self_transport(rho)
        if bounded:
            pressed = (multipliers + STIFFNESS * excess(rho)).clamp(min=0)
            value = value + (pressed.square() - multipliers.square()).sum() / (2 * STIFFNESS)
        return value

    def plan(g):
        return mu[:, None] * torch.softmax(g + log_gibbs, 1)

    def with_gradient(flat):
        g = torch.from_numpy(flat).requires_grad_()
        value = lagrangian(plan(g))
        (gradient,) = torch.autograd.grad(value, g)
        return float(value.detach()), gradient.numpy()

    g = np.zeros(len(mu))
    options = {"maxiter": 3000, "maxfun": 6000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 50}
    for _ in range(60 if bounded else 1):
        g = scipy.optimize.minimize(with_gradient, g, jac=True, method="L-BFGS-B", options=options).x
        if bounded:
            multipliers = (multipliers + STIFFNESS * excess(plan(torch.from_numpy(g)).sum(0))).clamp(min=0)
    pi = plan(torch.from_numpy(g)).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(lagrangian(pi), pi)
    by_row = gradient - (pi * gradient).sum(1, keepdim=True) / mu[:, None]
    assert float((pi * by_row).detach().abs().sum()) < 1e-6  # stationary over all plans with first marginal μ
    return pi.detach().sum(0)


class Custom(wprox.Functional):
    """Neither local nor quadratic, and nothing but a value."""

    def __call__(self, rho):
        moment = rho.integrate(lambda x: (x - 0.5).square().sum(-1))
        return 20 * (moment - 0.02).square() + 0.05 * rho.integrate(lambda x: x[:, 0]) + 0.02 * rho.mean_log_density()


class HandWrittenSquare(wprox.Functional):
    """A local functional that the solver does not recognise."""

    def __call__(self, rho):
        return (rho.weights * rho.log_density().exp()).sum()


class SquaredIntegral(wprox.Functional):
    """c (∫ φ dρ − t)²: convex, and coupled over any distance."""

    def __init__(self, c, f, target=0.0):
        self.c, self.f, self.target = c, f, target

    def __call__(self, rho):
        return self.c * (rho.integrate(self.f) - self.target).square()


def squared_first_coordinate(strength):
    return SquaredIntegral(strength / GAMMA, lambda x: x[:, 0], 0.2) + 0.1 * wprox.Entropy()


POTENTIAL = wprox.PotentialEnergy(lambda x: 3 * (x - 0.5).square().sum(-1) + x[:, 0] * x[:, 1])
FUNCTIONALS = {
    "potential": (POTENTIAL, {}),
    "entropy": (wprox.Entropy(), {}),
    "KL": (wprox.KL(lambda x: -4 * (x - 0.7).square().sum(-1)), {}),
    "porous medium m = 2": (0.5 * wprox.PorousMedium(2.0) + POTENTIAL, {}),
    "porous medium m = 3": (0.1 * wprox.PorousMedium(3.0), {}),
    "fast diffusion m = 1/2": (wprox.PorousMedium(0.5), {}),
    "internal": (wprox.InternalEnergy(lambda r: 0.3 * r**1.5), {}),
    "two powers": (0.2 * wprox.PorousMedium(2.0) + 0.1 * wprox.PorousMedium(3.0), {}),
    "congestion": (POTENTIAL + wprox.Congestion(2.5), {"upper": 2.5}),
    "box": (wprox.DensityBounds(0.4, 2.5) + 0.3 * wprox.Entropy(), {"lower": 0.4, "upper": 2.5}),
    "interaction": (wprox.InteractionEnergy(lambda z: 2 * z.square().sum(-1)) + 0.1 * wprox.Entropy(), {}),
    "asymmetric interaction": (
        wprox.InteractionEnergy(lambda z: 2 * z[:, 0].square() + z[:, 1] + torch.sin(3 * z[:, 0]))
        + 0.1 * wprox.Entropy(),
        {},
    ),
    "repulsive interaction": (
        wprox.InteractionEnergy(lambda z: 3 * torch.exp(-z.square().sum(-1) / (2 * 0.2**2))) + 0.05 * wprox.Entropy(),
        {},
    ),
    "attractive interaction": (
        wprox.InteractionEnergy(lambda z: -torch.exp(-z.square().sum(-1) / (2 * 0.2**2))) + 0.1 * wprox.Entropy(),
        {},
    ),
    "custom": (Custom(), {}),
    "custom, squared potential": (SquaredIntegral(5.0, POTENTIAL.potential) + 0.02 * wprox.Entropy(), {}),
    "custom, squared potential without entropy": (SquaredIntegral(5.0, POTENTIAL.potential), {}),
    "custom, weakly coupled": (squared_first_coordinate(0.1), {}),
    "custom, coupled": (squared_first_coordinate(1.0), {}),
    "custom, strongly coupled": (squared_first_coordinate(10.0), {}),
    "custom, concave": (SquaredIntegral(-2.0, lambda x: x[:, 0] + x[:, 1]) + 0.1 * wprox.Entropy(), {}),
    "custom local": (HandWrittenSquare() + POTENTIAL, {}),
}


SINKHORN = ("entropy", "KL", "porous medium m = 2")


def smooth_part(functional, bounds):
    """F without the bounds on the density, which the dense solver takes apart."""
    if not bounds:
        return functional
    return sum((c * f for c, f in functional.terms if not isinstance(f, wprox.DensityBounds)), 0)


@pytest.mark.parametrize(
    ("name", "debias"),
    [*itertools.product(FUNCTIONALS, (None, "entropy")), *((name, "sinkhorn") for name in SINKHORN)],
)
def test_step_is_that_of_a_dense_solver(name, debias):
    functional, bounds = FUNCTIONALS[name]
    grid = initial()
    step = wprox.SinkhornProx(blur=BLUR, debias=debias, tol=1e-9).step(functional, grid, GAMMA)
    assert step.converged, step.message
    reference = dense_step(smooth_part(functional, bounds), grid, debias, **bounds)
    assert float((step.measure.weights - reference).abs().max()) < 1e-5
    assert float((step.measure.weights - reference).abs().sum()) < 1e-4


WALLED = ("potential", "KL", "porous medium m = 2", "congestion", "interaction", "custom")


@pytest.mark.parametrize(
    ("name", "debias"),
    [("potential", None), *((name, "entropy") for name in WALLED), ("KL", "sinkhorn")],
)
def test_step_among_walls_is_that_of_a_dense_solver(name, debias):
    functional, bounds = FUNCTIONALS[name]
    walls = torch.zeros(SHAPE, dtype=torch.bool)
    walls[7] = True
    walls[7, 4:6] = False
    walls[2:4, 8] = True
    grid = wprox.Grid(initial().mass.masked_fill(walls, 0.0), BOUNDS, walls)
    step = wprox.SinkhornProx(blur=BLUR, debias=debias, tol=1e-9).step(functional, grid, GAMMA)
    assert step.converged, step.message
    units = torch.eye(len(grid), dtype=torch.float64).log()
    log_gibbs = torch.stack([SplitKernel(grid, BLUR).log_apply(unit) for unit in units])
    reference = dense_step(smooth_part(functional, bounds), grid, debias, **bounds, log_gibbs=log_gibbs)
    assert float((step.measure.weights - reference).abs().max()) < 1e-5
    assert float((step.measure.weights - reference).abs().sum()) < 1e-4


def frank_wolfe_gap(functional, grid, rho, upper=math.inf):
    """A bound of J(ρ) − min J for J = γF/ε + (OT_ε(μ, ·) − ½ OT_ε(·, ·))/ε, which is convex for convex F.

    It is ⟨g, ρ⟩ − min_σ ⟨g, σ⟩ over measures σ within the bound, with the derivative g = γF′/ε + log K d − log K a of
    J from Sinkhorn iterations in which nothing is shared with SinkhornProx.
    """
    points, mu = grid.points, grid.weights
    gibbs = (-(points[:, None] - points).square().sum(-1) / (2 * BLUR**2)).exp()
    b, d = torch.ones_like(rho), rho.sqrt()
    for _ in range(3000):
        a = mu / (gibbs @ b)
        b = rho / (gibbs @ a)
        d = torch.where(rho > 0, (d * rho / (gibbs @ d)).sqrt(), 0.0)
    assert float((d * (gibbs @ d) - rho).abs().sum() + (a * (gibbs @ b) - mu).abs().sum()) < 1e-9
    weights = rho.clone().requires_grad_()
    (slope,) = torch.autograd.grad(functional(grid.with_weights(weights)), weights)
    slope = GAMMA / BLUR**2 * slope + (gibbs @ d).log() - (gibbs @ a).log()
    order = slope.argsort()
    room = torch.full_like(rho, min(1.0, upper * grid.cell_volume)).cumsum(0).clamp(max=1.0)
    return float(slope @ rho - slope[order] @ torch.diff(room, prepend=room.new_zeros(1)))


@pytest.mark.parametrize("cells_with_mass", ["all", "some"])
@pytest.mark.parametrize("name", ["potential", "congestion", "quadratic interaction"])
def test_debiased_step_without_entropy_is_proved_by_its_gap(name, cells_with_mass):
    smooth, upper, grid = POTENTIAL, math.inf, initial()
    if cells_with_mass == "some":
        grid = wprox.Grid.from_density(lambda x: (0.1 - (x - 0.5).square().sum(-1)).clamp(min=0), SHAPE, BOUNDS)
    if name == "congestion":
        upper = 1.2 * float(grid.density.max())
    elif name != "potential":
        smooth = wprox.InteractionEnergy(lambda z: 2 * z.square().sum(-1))
    functional = smooth if upper == math.inf else smooth + wprox.Congestion(upper)
    steps = {
        debias: wprox.SinkhornProx(blur=BLUR, debias=debias, tol=1e-7).step(functional, grid, GAMMA)
        for debias in ("sinkhorn", "entropy")
    }
    assert all(step.converged for step in steps.values())
    gap, other = (frank_wolfe_gap(smooth, grid, step.measure.weights, upper) for step in steps.values())
    assert gap < 1e-5
    assert other > 1e-2  # the entropy correction solves another problem, which the gap tells apart


def test_terms_are_sorted_by_type():
    grid = initial()
    functional = POTENTIAL + 2 * wprox.KL(lambda x: -x[:, 0]) + 0.5 * wprox.PorousMedium(2.0) + wprox.Entropy()
    terms = sort_terms((functional + 0 * Custom()).structure(), grid, 1.0)
    assert not terms.smooth
    assert terms.local.entropy == 3.0
    assert terms.local.powers == {2.0: 0.5}
    expected = POTENTIAL.potential(grid.points) + 2 * grid.points[:, 0]
    assert torch.allclose(terms.local.potential, expected - expected.min())


def test_a_subclass_with_a_value_of_its_own_goes_by_that_value():
    class Doubled(wprox.Entropy):
        def __call__(self, rho):
            return 2 * super().__call__(rho)

    solver = wprox.SinkhornProx(tol=1e-9)
    a, b = (solver.step(f, initial(), GAMMA).measure.weights for f in (Doubled(), 2 * wprox.Entropy()))
    assert float((a - b).abs().sum()) < 1e-6


def test_once_differentiable_functional_is_solved_by_damping():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.square().sum()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    class Square(wprox.Functional):
        def __call__(self, rho):
            return Once.apply(rho.weights) / rho.cell_volume

    solver = wprox.SinkhornProx(tol=1e-7, iterations=5000)
    step = solver.step(0.1 * Square(), initial(), GAMMA)
    known = solver.step(0.1 * wprox.PorousMedium(2.0), initial(), GAMMA)
    assert step.converged, step.message
    assert float((step.measure.weights - known.measure.weights).abs().sum()) < 1e-4


def test_functional_without_a_finite_first_variation_is_named():
    class Bad(wprox.Functional):
        def __call__(self, rho):
            return (rho.weights * math.inf).sum()

        def __repr__(self):
            return "Bad()"

    with pytest.raises(wprox.StepFailedError, match=r"Bad\(\).*144 cells"):
        wprox.SinkhornProx().step(Bad(), initial(), GAMMA)
