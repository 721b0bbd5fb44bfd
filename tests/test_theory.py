"""The bounds (4) to (6), held against exact trajectories with controlled errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wprox
from wprox import theory

relaxed = settings(deadline=None, max_examples=50)
positive, error = st.floats(0.01, 10), st.floats(0, 3)

# --- formulas ---------------------------------------------------------------------------------------------------------


@relaxed
@given(positive, positive, error, positive, st.integers(1, 40))
def test_recursion_is_within_the_closed_forms(w2, gamma, eps, lam, n):
    """(4) step by step is (5) with 4ε²/λ² times 1 − (1 + γλ/2)^{−n}, and (6) with the W₂ before it."""
    bounds = theory.w2_bound(w2, gamma, eps, lam, n_steps=n)
    objectives = theory.objective_bound(w2, gamma, eps, lam, n_steps=n)
    assert len(bounds) == n + 1
    assert len(objectives) == n
    factor = (1 + gamma * lam / 2) ** -n
    assert bounds[-1] ** 2 == pytest.approx(factor * w2**2 + (1 - factor) * 4 * eps**2 / lam**2)
    assert bounds[-1] ** 2 <= (factor * w2**2 + 4 * eps**2 / lam**2) * (1 + 1e-12)
    assert objectives[-1] == pytest.approx(bounds[-2] ** 2 / (2 * gamma) + eps**2 / lam)
    assert theory.contraction_factor(gamma, lam) == pytest.approx(1 / (1 + gamma * lam / 2))
    assert theory.plateau(eps, lam) == pytest.approx(2 * eps / lam)


def test_per_step_sizes_and_errors():
    sizes, errors, lam = [0.5, 2.0, 1.0], [0.1, 0.0, 0.3], 0.7
    square, expected_w2, expected_objective = 4.0, [2.0], []
    for gamma, eps in zip(sizes, errors, strict=True):
        right = square + 2 * gamma * eps**2 / lam
        expected_objective.append(right / (2 * gamma))
        square = right / (1 + gamma * lam / 2)
        expected_w2.append(math.sqrt(square))
    assert theory.w2_bound(2.0, sizes, errors, lam) == pytest.approx(expected_w2)
    assert theory.objective_bound(2.0, sizes, errors, lam) == pytest.approx(expected_objective)


@relaxed
@given(st.floats(1e-4, 1), st.floats(0.01, 10), positive, positive)
def test_steps_needed_is_enough_and_not_one_too_many(eps, w2, gamma, lam):
    n = theory.steps_needed(eps, w2, gamma, lam)
    target = (1 + 5 / (2 * gamma * lam)) * eps**2 / lam

    def guarantee(n):  # (5) in (6)
        square = (1 + gamma * lam / 2) ** -(n - 1) * w2**2 + 4 * eps**2 / lam**2
        return square / (2 * gamma) + eps**2 / lam

    assert guarantee(n) <= target * (1 + 1e-9)
    assert n == 1 or guarantee(n - 1) > target * (1 - 1e-9)
    assert theory.objective_bound(w2, gamma, eps, lam, n_steps=n)[-1] <= target * (1 + 1e-9)


def test_steps_needed_grows_like_the_logarithm():
    counts = [theory.steps_needed(10.0**-k, 1.0, 1.0, 1.0) for k in range(1, 7)]
    growth = [counts[k + 1] - counts[k] for k in range(5)]
    assert all(abs(step - 2 * math.log(10) / math.log(1.5)) < 1 for step in growth)
    with pytest.raises(ValueError, match="levels off at"):
        theory.steps_needed(0.1, 1.0, 1.0, 1.0, target=0.001)
    assert theory.steps_needed(0.0, 1.0, 1.0, 1.0, target=0.6) == 1


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.1, 2.0])
def test_smoothing_bound_holds_for_gaussians_and_is_the_formula(delta):
    scale, d = 0.5, 3
    law = wprox.Gaussian(torch.ones(d).double(), scale**2 * torch.eye(d).double())
    shrink = math.exp(-delta)
    smooth = wprox.Gaussian(shrink * law.loc, (shrink**2 * scale**2 + 1 - shrink**2) * torch.eye(d).double())
    moment = float(law.integrate(lambda x: x.square().sum(-1)))
    bound = theory.smoothing_bound(delta, moment, d)
    assert bound**2 == pytest.approx((1 - shrink) ** 2 * moment + (1 - shrink**2) * d)
    assert float(wprox.metrics.bures_wasserstein(law, smooth)) <= bound + 1e-12


def test_inverse_bound_holds_for_affine_blocks():
    """Blocks T_n(x) = x/K_n, whose inverses stretch by K_n, inverted with a shift: T_n(S_n(y)) = y + ε_n."""
    stretch, errors = [1.5, 0.8, 2.0], [0.01, 0.02, 0.005]
    y = exact = 0.3
    for factor, eps in zip(reversed(stretch), reversed(errors), strict=True):
        y, exact = factor * (y + eps), factor * exact
    bound = theory.inverse_bound(errors, stretch)
    assert bound == pytest.approx(0.01 * 1.5 + 0.02 * 1.5 * 0.8 + 0.005 * 1.5 * 0.8 * 2.0)
    assert y - exact == pytest.approx(bound)  # errors of one sign add up: the bound is sharp
    assert theory.inverse_bound(0.1, 2.0, n_steps=2) == pytest.approx(0.1 * 2 + 0.1 * 4)


def test_mixed_bound_puts_the_pieces_together():
    bound = theory.mixed_bound(1.0, 0.5, [0.1, 0.2], 1.0, 0.01, 2.0)
    assert bound.kl == theory.objective_bound(1.0, 0.5, [0.1, 0.2], 1.0)[-1]
    assert bound.tv == theory.pinsker(bound.kl)
    assert bound.w2 == theory.inverse_bound(0.01, [2.0, 2.0])
    with pytest.raises(ValueError, match="at least one block"):
        theory.mixed_bound(1.0, [], [], 1.0, [], [])


@relaxed
@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999))
def test_pinsker_bounds_the_total_variation_of_coins(p, q):
    kl = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert abs(p - q) <= theory.pinsker(max(kl, 0.0)) + 1e-9
    assert theory.pinsker(100.0) == 1
    assert theory.pinsker(0.02) == 0.1


def test_steps_needed_where_the_factor_rounds_to_one():
    n = theory.steps_needed(0.0, 0.1, 1.0, 1e-17, target=0.001)
    assert n == pytest.approx(1 + math.log(0.005 / 0.001) / 0.5e-17, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.w2_bound(1.0, 0.5, 0.1, 0.0, n_steps=1), "modulus λ must be positive"),
        (lambda: theory.w2_bound(1.0, 0.5, 0.1, -1.0, n_steps=1), "nothing can be certified"),
        (lambda: theory.contraction_factor(0.5, None), "modulus λ of the functional is unknown"),
        (lambda: theory.contraction_factor(0.0, 1.0), "step_size must be positive"),
        (lambda: theory.w2_bound(-1.0, 0.5, 0.1, 1.0, n_steps=1), "initial_w2 must be finite and not negative"),
        (lambda: theory.w2_bound(1.0, [0.5], [-0.1], 1.0), r"errors\[0\] must be finite and not negative"),
        (lambda: theory.w2_bound(1.0, [0.5, 0.5], [0.1], 1.0), r"got lengths \[1, 2\]"),
        (lambda: theory.w2_bound(1.0, 0.5, 0.1, 1.0), "give n_steps"),
        (lambda: theory.w2_bound(math.nan, 0.5, 0.1, 1.0, n_steps=1), "finite"),
        (lambda: theory.smoothing_bound(-0.1, 1.0, 2), "delta"),
        (lambda: theory.pinsker(-1.0), "kl"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- trajectories -----------------------------------------------------------------------------------------------------


class Tilted(wprox.Solver):
    """Exact steps of F + V_n for a controlled error V_n; the residual with respect to F is ‖∇V_n‖ in L²(p_n)."""

    def __init__(self, solver, fields):
        self.solver, self.fields = solver, fields

    def step(self, functional, measure, step_size, *, previous=None, held_out=None):
        from dataclasses import replace

        field = self.fields[0 if previous is None else previous.index + 1]
        step = self.solver.step(
            functional + wprox.PotentialEnergy(field.potential), measure, step_size, previous=previous
        )
        slope = step.measure.integrate(lambda x: field.gradient(x).square().sum(-1))
        with torch.no_grad():
            return replace(step, value=functional(step.measure), residual=math.sqrt(float(slope)) + step.residual)


class Field:
    """V(x) = ⟨c, x⟩ + ½ xᵀ E x."""

    def __init__(self, constant, matrix):
        self.constant, self.matrix = constant, matrix

    def potential(self, x):
        return x @ self.constant + 0.5 * ((x @ self.matrix) * x).sum(-1)

    def gradient(self, x):
        return self.constant + x @ self.matrix


def random_field(d, size, generator):
    matrix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return Field(size * torch.randn(d, generator=generator, dtype=torch.float64), size * (matrix + matrix.mT) / (4 * d))


@pytest.mark.parametrize("gamma", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("lam", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("eps", [0.0, 0.1, 1.0])
def test_no_trajectory_of_gaussians_exceeds_the_bounds(gamma, lam, eps):
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        d = 1 + seed
        target = wprox.Gaussian(torch.zeros(d).double(), torch.eye(d).double() / lam)
        factor = torch.randn(d, d, generator=generator, dtype=torch.float64)
        loc = 3 * torch.randn(d, generator=generator, dtype=torch.float64)
        start = wprox.Gaussian(loc, factor @ factor.mT + 0.01 * torch.eye(d).double())
        fields = [random_field(d, eps * min(1.0, lam, 1 / gamma), generator) for _ in range(25)]
        functional = wprox.KL(target)
        assert functional.modulus == pytest.approx(lam)
        solver = Tilted(wprox.GaussianProx(), fields)
        trajectory = wprox.jko(functional, solver, start, step_size=gamma, n_steps=25)
        certificate = wprox.certify(trajectory, functional)
        assert certificate.measured_w2 is not None
        assert certificate.measured_objective is not None
        assert certificate.holds, certificate.sentence
        # (5) and (6) as they are written, with the largest error
        largest = max(step.residual for step in trajectory.steps)
        for n in range(1, 26):
            square = certificate.measured_w2[n] ** 2
            closed_form = (1 + gamma * lam / 2) ** -n * certificate.measured_w2[0] ** 2 + 4 * largest**2 / lam**2
            assert square <= closed_form * (1 + 1e-9) + 1e-12
            gap = certificate.measured_w2[n - 1] ** 2 / (2 * gamma) + largest**2 / lam
            assert certificate.measured_objective[n - 1] <= gap * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("gamma", [0.1, 2.0])
@pytest.mark.parametrize("eps", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_no_trajectory_on_the_line_exceeds_the_bounds(gamma, eps, seed):
    """A potential that is not quadratic, V = x²/2 + log cosh 2x (1 ≤ V″), from random quantiles."""
    generator = torch.Generator().manual_seed(seed)
    potential = lambda x: 0.5 * x[:, 0].square() + torch.nn.functional.softplus(-4 * x[:, 0]) + 2 * x[:, 0]  # noqa: E731
    functional = wprox.PotentialEnergy(potential, modulus=1.0) + wprox.Entropy()
    gaps = torch.rand(300, generator=generator, dtype=torch.float64).pow(3) + 1e-3
    start = wprox.Quantiles(gaps.cumsum(0) * 0.05 - 4)
    fields = [random_field(1, eps * min(1.0, 1 / gamma), generator) for _ in range(20)]
    trajectory = wprox.jko(functional, Tilted(wprox.QuantileProx(), fields), start, step_size=gamma, n_steps=20)
    certificate = wprox.certify(trajectory, functional)
    assert certificate.initial_w2.kind == "exact"
    assert certificate.holds, certificate.sentence


def constant_error(eps, lam, gamma, n_steps, d=2):
    direction = torch.zeros(d).double()
    direction[0] = eps
    functional = wprox.KL(wprox.Gaussian(torch.zeros(d).double(), torch.eye(d).double() / lam))
    solver = Tilted(wprox.GaussianProx(), [Field(direction, torch.zeros(d, d).double())] * n_steps)
    start = wprox.Gaussian(torch.full((d,), 2.0).double(), torch.eye(d).double())
    return functional, wprox.jko(functional, solver, start, step_size=gamma, n_steps=n_steps)


@pytest.mark.parametrize("gamma", [0.5, 5.0])
@pytest.mark.parametrize(("eps", "lam"), [(0.1, 1.0), (0.3, 2.0), (1.0, 0.5)])
def test_a_constant_error_settles_at_a_quarter_of_the_plateau(eps, lam, gamma):
    functional, trajectory = constant_error(eps, lam, gamma, n_steps=200)
    certificate = wprox.certify(trajectory, functional)
    square = certificate.measured_w2[-1] ** 2
    assert square == pytest.approx(eps**2 / lam**2, rel=1e-6)
    assert square == pytest.approx(theory.plateau(eps, lam) ** 2 / 4, rel=1e-6)
    assert certificate.w2[-1] == pytest.approx(theory.plateau(eps, lam), rel=1e-6)
    assert certificate.holds


def test_a_broken_step_with_an_error_under_reported_is_caught():
    """The plateau is within a factor two of the truth, so an ε reported at less than half is found out."""
    functional, trajectory = constant_error(0.5, 1.0, 1.0, n_steps=60)
    assert wprox.certify(trajectory, functional).holds
    reported = [step.residual / 3 for step in trajectory.steps]
    certificate = wprox.certify(trajectory, functional, residuals=reported)
    assert certificate.holds is False
    assert certificate.violations
    assert "a step error is larger than reported" in certificate.sentence
