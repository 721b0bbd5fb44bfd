"""GaussianProx against closed forms, the best Gaussian step, and the Bures–Wasserstein distance."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

import wprox

relaxed = settings(deadline=None, max_examples=30)
FLOAT64 = torch.float64


def random_spd(d, seed, least=0.1):
    factor = torch.randn(d, d, dtype=FLOAT64, generator=torch.Generator().manual_seed(seed))
    return factor @ factor.mT / d + least * torch.eye(d, dtype=FLOAT64)


def random_gaussian(d, seed, least=0.1, order=None):
    loc = torch.randn(d, dtype=FLOAT64, generator=torch.Generator().manual_seed(seed + 1000))
    return wprox.Gaussian(loc, random_spd(d, seed, least), order)


def standard(d):
    return wprox.Gaussian(torch.zeros(d, dtype=FLOAT64), torch.eye(d, dtype=FLOAT64))


def close(p, q, tolerance=1e-9):
    return torch.allclose(p.loc, q.loc, atol=tolerance, rtol=0) and torch.allclose(
        p.covariance_matrix, q.covariance_matrix, atol=tolerance, rtol=0
    )


def quadratic(matrix, slope=0.0):
    return wprox.PotentialEnergy(lambda x: 0.5 * ((x @ matrix) * x).sum(-1) + slope * x[:, 0])


# --- closed forms of docs/theory.md --------------------------------------------------------------------------------


@relaxed
@given(st.floats(0.01, 20), st.floats(-5, 5), st.floats(0.05, 5), st.integers(1, 5))
def test_kl_to_the_standard_normal(gamma, m, s, d):
    rho = wprox.Gaussian(torch.full((d,), m, dtype=FLOAT64), s**2 * torch.eye(d, dtype=FLOAT64))
    step = wprox.GaussianProx().step(wprox.KL(standard(d)), rho, gamma)
    new = (s + math.sqrt(s**2 + 4 * gamma * (1 + gamma))) / (2 * (1 + gamma))
    assert (1 + gamma) * new**2 - s * new - gamma == pytest.approx(0, abs=1e-9 * (1 + gamma))
    exact = wprox.Gaussian(torch.full((d,), m / (1 + gamma), dtype=FLOAT64), new**2 * torch.eye(d, dtype=FLOAT64))
    assert close(step.measure, exact)
    assert step.residual < 1e-9 * (1 + 1 / gamma)
    assert float(step.transport_cost) == pytest.approx(float(wprox.metrics.bures_wasserstein(rho, exact)) ** 2)


@relaxed
@given(st.floats(0.01, 10), st.floats(0.0, 5), st.integers(1, 4))
def test_potential_alone_contracts(gamma, modulus, d):
    rho = random_gaussian(d, 0)
    functional = wprox.PotentialEnergy(lambda x: modulus * x.square().sum(-1) / 2)
    step = wprox.GaussianProx().step(functional, rho, gamma)
    factor = 1 / (1 + gamma * modulus)
    assert close(step.measure, wprox.Gaussian(factor * rho.loc, factor**2 * rho.covariance_matrix))


def test_heat_flow_at_small_steps_is_the_heat_equation():
    """Entropy alone: ∂Σ = 2 I, in first order in γ."""
    rho = random_gaussian(3, 0)
    errors = []
    for n_steps in (50, 100):
        final = wprox.jko(wprox.Entropy(), wprox.GaussianProx(), rho, step_size=1 / n_steps, n_steps=n_steps).final
        exact = rho.covariance_matrix + 2 * torch.eye(3)
        errors.append(float((final.covariance_matrix - exact).norm()))
    assert errors[1] < 0.55 * errors[0] < 0.1


def test_ornstein_uhlenbeck_in_first_order():
    rho, t = random_gaussian(2, 1), 1.0
    shrink = math.exp(-t)
    exact = wprox.Gaussian(
        shrink * rho.loc, shrink**2 * rho.covariance_matrix + (1 - shrink**2) * torch.eye(2, dtype=FLOAT64)
    )
    errors = []
    for n_steps in (20, 40, 80):
        final = wprox.jko(wprox.KL(standard(2)), wprox.GaussianProx(), rho, step_size=t / n_steps, n_steps=n_steps)
        errors.append(float(wprox.metrics.bures_wasserstein(final.final, exact)))
    orders = [math.log2(errors[k] / errors[k + 1]) for k in range(2)]
    assert all(0.9 < order < 1.1 for order in orders), orders


@pytest.mark.parametrize("d", [1, 2, 5, 50])
def test_all_exact_pieces_together_are_stationary_and_need_not_commute(d):
    matrix = random_spd(d, 7, least=0.0)
    functional = (
        wprox.KL(random_gaussian(d, 3, least=1.0))
        + quadratic(matrix, slope=1.0)
        + 0.7 * wprox.Entropy()
        + 0.3 * wprox.InteractionEnergy(lambda z: ((z @ matrix) * z).sum(-1))
    )
    rho = random_gaussian(d, 5)
    step = wprox.GaussianProx().step(functional, rho, 0.4)
    assert step.message == "in closed form"
    assert step.residual < 1e-11
    assert close(rho.push(step.map), step.measure)
    # the first-order condition by automatic differentiation, without the solver's own matrices
    gradient = functional.wasserstein_gradient(step.measure)
    points = step.measure.points
    error = gradient + (points - step.map.inverse(points).detach()) / 0.4
    assert float(error.abs().max()) < 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_no_gaussian_nearby_is_better(seed):
    functional = wprox.KL(random_gaussian(3, seed)) + quadratic(random_spd(3, seed + 10))
    rho = random_gaussian(3, seed + 20)
    step = wprox.GaussianProx().step(functional, rho, 0.3)

    def objective(new):
        return float(functional(new)) + float(wprox.metrics.bures_wasserstein(rho, new)) ** 2 / 0.6

    best = objective(step.measure)
    assert best == pytest.approx(float(step.value + step.transport_cost / 0.6), rel=1e-12)
    for k in range(10):
        push = torch.eye(3, dtype=FLOAT64) + 0.05 * random_spd(3, 100 + k)
        other = wprox.Gaussian(step.measure.loc + 0.01 * k, push @ step.measure.covariance_matrix @ push)
        assert objective(other) > best


def test_three_hundred_dimensions():
    rho = random_gaussian(300, 0)
    step = wprox.GaussianProx().step(wprox.KL(random_gaussian(300, 1, least=1.0)), rho, 1.0)
    assert step.residual < 1e-9


@pytest.mark.parametrize(
    "target",
    [
        torch.distributions.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        torch.distributions.Independent(torch.distributions.Normal(torch.ones(2), torch.tensor([1.0, 2.0])), 1),
        wprox.Gaussian(torch.ones(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
        lambda x: -0.5 * (x - 1).square().sum(-1),
    ],
    ids=["MultivariateNormal", "Independent", "Gaussian", "callable"],
)
def test_iterated_steps_reach_any_kind_of_gaussian_target(target):
    start = wprox.Gaussian(torch.tensor([3.0, -1.0]), 0.01 * torch.eye(2))
    trajectory = wprox.jko(wprox.KL(target), wprox.GaussianProx(), start, step_size=10.0, n_steps=20)
    covariance = {torch.distributions.Independent: torch.diag(torch.tensor([1.0, 4.0]))}.get(
        type(target), getattr(target, "covariance_matrix", torch.eye(2))
    )
    assert all(step.message == "in closed form" for step in trajectory.steps)
    assert trajectory.final.dtype == torch.float32
    assert torch.allclose(trajectory.final.loc, torch.ones(2), atol=1e-5)
    assert torch.allclose(trajectory.final.covariance_matrix, covariance, atol=1e-4)


def first_order_error(functional, source, step, gamma):
    """‖∇F(ρ) + (id − S)/γ‖ in L²(ρ), S the optimal map from ρ back to μ, by 20 Gauss–Hermite points an axis."""
    rho = wprox.Gaussian(step.measure.loc.double(), step.measure.covariance_matrix.double(), order=20)
    values, vectors = torch.linalg.eigh(rho.covariance_matrix)
    half, inverse = (vectors * values.sqrt()) @ vectors.mT, (vectors / values.sqrt()) @ vectors.mT
    values, vectors = torch.linalg.eigh(half @ source.covariance_matrix.double() @ half)
    back = inverse @ ((vectors * values.sqrt()) @ vectors.mT) @ inverse
    origin = source.loc.double() + (rho.points - rho.loc) @ back
    field = functional.wasserstein_gradient(rho) + (rho.points - origin) / gamma
    return math.sqrt(float(rho.weights @ field.square().sum(1)))


@pytest.mark.parametrize("gamma", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize(("weight", "loc"), [(1.0, [300.0, -100.0]), (3.0, [300.0, -100.0]), (1.0, [0.0, 0.0])])
def test_float32_residual_is_that_of_what_is_returned(gamma, weight, loc):
    """Rounding of the new mean and covariance, over γ: 1e-2 at γ = 1e-3, of which float64 knows nothing."""
    target = random_gaussian(2, 1)
    functional = weight * wprox.KL(wprox.Gaussian(0 * target.loc, target.covariance_matrix))
    source = wprox.Gaussian(torch.tensor(loc), torch.tensor([[1.0, 0.3], [0.3, 3.0]]))
    step = wprox.GaussianProx().step(functional, source, gamma)
    assert step.message == "in closed form"
    assert step.measure.dtype == torch.float32
    exact = first_order_error(functional, source, step, gamma)
    assert 1e-8 < exact <= step.residual * (1 + 1e-9)
    # the map is rounded by itself: its own error, and how far it misses the source
    rho = wprox.Gaussian(step.measure.loc.double(), step.measure.covariance_matrix.double(), order=20)
    exponent = step.map.log_matrix.detach().double()
    inverse = torch.from_numpy(expm(-(exponent + exponent.mT).numpy() / 2))
    origin = (rho.points - step.map.shift.detach().double()) @ inverse
    field = functional.wasserstein_gradient(rho) + (rho.points - origin) / gamma
    missed = wprox.metrics.bures_wasserstein(
        wprox.Gaussian.from_samples(origin, rho.weights),
        wprox.Gaussian(source.loc.double(), source.covariance_matrix.double()),
    )
    total = math.sqrt(float(rho.weights @ field.square().sum(1))) + float(missed) / gamma
    assert step.residual == pytest.approx(total, rel=1e-3)


def test_float32_certificate_holds_at_the_rounding_of_the_target():
    functional = wprox.KL(wprox.Gaussian(torch.tensor([5.0, 1.0]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])))
    start = wprox.Gaussian(torch.tensor([-3.0, 0.3]), 0.1 * torch.eye(2))
    for gamma in (0.1, 10.0):
        trajectory = wprox.jko(functional, wprox.GaussianProx(), start, step_size=gamma, n_steps=100)
        certificate = wprox.certify(trajectory, functional)
        assert certificate.holds, certificate.sentence


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_multiples_of_kl(weight):
    """c KL(· ‖ N(t, Θ)) + V: the condition of stationarity with c in the precision and in the entropy."""
    target = random_gaussian(3, 1)
    functional = weight * wprox.KL(target) + quadratic(random_spd(3, 2), slope=0.5)
    rho = random_gaussian(3, 3)
    step = wprox.GaussianProx().step(functional, rho, 0.7)
    assert first_order_error(functional, rho, step, 0.7) < 1e-12
    precision = weight * torch.linalg.inv(target.covariance_matrix) + random_spd(3, 2)
    slope = weight * torch.linalg.solve(target.covariance_matrix, rho.loc - target.loc) + random_spd(3, 2) @ rho.loc
    slope[0] += 0.5
    loc = rho.loc - 0.7 * torch.linalg.solve(torch.eye(3) + 0.7 * precision, slope)
    inverse = torch.eye(3) + 0.7 * (precision - weight * torch.linalg.inv(step.measure.covariance_matrix))
    assert torch.allclose(step.measure.loc, loc, atol=1e-12)
    assert torch.allclose(inverse @ step.measure.covariance_matrix @ inverse, rho.covariance_matrix, atol=1e-12)


@pytest.mark.parametrize("gamma", [1e4, 1e8, 1e12])
def test_long_steps_from_narrow_gaussians_do_not_cancel(gamma):
    rho = wprox.Gaussian(torch.zeros(1, dtype=FLOAT64), 1e-12 * torch.eye(1, dtype=FLOAT64))
    step = wprox.GaussianProx().step(wprox.KL(standard(1)), rho, gamma)
    assert close(rho.push(step.map), step.measure, 1e-13)
    assert step.residual < 1e-12


class HalfSquaredDistance(wprox.Functional):
    """½ W₂²(·, ν)."""

    def __init__(self, distance, target):
        self.distance, self.target = distance, target

    def __call__(self, rho):
        return self.distance(rho, self.target) ** 2 / 2


@pytest.mark.parametrize("isotropic", [True, False])
def test_half_squared_distance_steps_along_the_displacement_interpolation(isotropic):
    """The prox of ½ W₂²(·, ν) is the displacement interpolation at t = γ/(1 + γ): Ambrosio et al., chapter 7."""
    gamma, identity = 0.5, torch.eye(2, dtype=FLOAT64)
    rho = standard(2) if isotropic else random_gaussian(2, 0)
    target = wprox.Gaussian(torch.ones(2, dtype=FLOAT64), 4 * identity) if isotropic else random_gaussian(2, 1)
    step = wprox.GaussianProx().step(HalfSquaredDistance(wprox.metrics.bures_wasserstein, target), rho, gamma)
    assert step.converged
    t, w2 = gamma / (1 + gamma), float(wprox.metrics.bures_wasserstein(rho, target))
    if isotropic:
        assert close(step.measure, wprox.Gaussian(t * target.loc, (1 + t) ** 2 * identity), 1e-7)
    # on the geodesic, at t: the distances to both ends add up
    assert float(wprox.metrics.bures_wasserstein(rho, step.measure)) == pytest.approx(t * w2, abs=1e-7)
    assert float(wprox.metrics.bures_wasserstein(step.measure, target)) == pytest.approx((1 - t) * w2, abs=1e-7)
    still = wprox.GaussianProx().step(HalfSquaredDistance(wprox.metrics.bures_wasserstein, rho), rho, gamma)
    assert close(still.measure, rho, 1e-7)  # W₂ = 0 has no derivative, W₂² has


def test_bures_wasserstein_gradient_at_equal_singular_values():
    loc = torch.zeros(2, dtype=FLOAT64)
    covariance = torch.eye(2, dtype=FLOAT64).requires_grad_()
    target = wprox.Gaussian(loc, 4 * torch.eye(2, dtype=FLOAT64))
    (wprox.metrics.bures_wasserstein(wprox.Gaussian(loc, covariance), target) ** 2).backward()
    assert torch.allclose(
        covariance.grad, torch.eye(2, dtype=FLOAT64) * (1 - 2), atol=1e-12
    )  # I − (Bures map) = I − 2I


# --- the best Gaussian step -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 6])
def test_general_path_agrees_with_the_closed_form(d):
    class Opaque(wprox.Functional):
        def __init__(self, functional):
            self.functional = functional

        def __call__(self, rho):
            return self.functional(rho)

    functional = wprox.KL(random_gaussian(d, 3)) + wprox.InteractionEnergy(lambda z: z.square().sum(-1))
    rho = random_gaussian(d, 4)
    exact = wprox.GaussianProx().step(functional, rho, 0.5)
    best = wprox.GaussianProx().step(Opaque(functional), rho, 0.5)
    assert "best Gaussian" in best.message
    assert best.converged
    assert best.residual is None  # 2d points cannot see what is not affine
    assert close(exact.measure, best.measure, 1e-6)


def test_variational_inference_of_a_quartic():
    """V = x⁴/4 + entropy: the best Gaussian has E V″ = 3σ² = 1/σ², and a residual that no Gaussian removes."""
    functional = wprox.PotentialEnergy(lambda x: x[:, 0] ** 4 / 4) + wprox.Entropy()
    start = wprox.Gaussian(torch.tensor([0.5]).double(), torch.eye(1).double(), order=20)
    trajectory = wprox.jko(functional, wprox.GaussianProx(), start, step_size=1.0, n_steps=30)
    first = trajectory.steps[0]
    assert first.residual == pytest.approx(first_order_error(functional, start, first, 1.0), rel=1e-6)
    assert first.residual > 0.1
    variance = float(trajectory.final.covariance_matrix)
    assert variance == pytest.approx(1 / math.sqrt(3), abs=1e-6)
    # at the stationary point ξ = x³ − x/σ² with E ξ² = 15σ⁶ − 6σ² + 1/σ²
    exact = math.sqrt(15 * variance**3 - 6 * variance + 1 / variance)
    assert trajectory.steps[-1].residual == pytest.approx(exact, rel=1e-6)


def test_porous_medium_among_gaussians():
    """∫ρ² of N(m, σ²I) is (4πσ²)^{−d/2}, by radial quadrature; the best Gaussian spreads."""
    rho = wprox.Gaussian(torch.zeros(2).double(), 0.5 * torch.eye(2).double(), order=10)
    assert float(wprox.PorousMedium(2.0)(rho)) == pytest.approx(1 / (4 * math.pi * 0.5), rel=1e-12)
    step = wprox.GaussianProx().step(wprox.PorousMedium(2.0), rho, 0.5)
    assert step.converged
    s = math.sqrt(float(step.measure.covariance_matrix[0, 0]))
    # derivative of 1/(4πs²) + 2(s − σ)²/(2γ)
    assert -1 / (2 * math.pi * s**3) + 2 * (s - math.sqrt(0.5)) / 0.5 == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("m", [0.7, 2.0, 3.0])
@pytest.mark.parametrize("d", [1, 3, 200])
def test_internal_energies_of_gaussians(m, d):
    rho = wprox.Gaussian(torch.zeros(d).double(), torch.eye(d).double() / (2 * math.pi))  # peak density 1
    assert float(wprox.PorousMedium(m)(rho)) * (m - 1) == pytest.approx(m ** (-d / 2), rel=1e-8)


def test_gauss_hermite_points():
    rho = random_gaussian(2, 0, order=6)
    assert rho.points.shape == (36, 2)
    assert float(rho.weights.sum()) == pytest.approx(1)
    whitened = torch.linalg.solve_triangular(rho.scale_tril, (rho.points - rho.loc).mT, upper=False).mT
    assert float(rho.weights @ whitened[:, 0].pow(8)) == pytest.approx(105)
    assert torch.allclose(rho.log_density(), rho.log_prob(rho.points))
    assert rho.push(wprox.AffineMap(2).double()).order == 6
    with pytest.raises(ValueError, match="makes 1e"):
        wprox.Gaussian(torch.zeros(30), torch.eye(30), order=10)


# --- Bures–Wasserstein ----------------------------------------------------------------------------------------------


@relaxed
@given(st.integers(1, 6), st.integers(0, 50))
def test_bures_wasserstein_is_the_trace_formula(d, seed):
    p, q = random_gaussian(d, seed), random_gaussian(d, seed + 1)

    def root(matrix):
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT

    half = root(p.covariance_matrix)
    middle = root(half @ q.covariance_matrix @ half)
    square = (p.loc - q.loc).square().sum() + (p.covariance_matrix + q.covariance_matrix - 2 * middle).trace()
    assert float(wprox.metrics.bures_wasserstein(p, q)) ** 2 == pytest.approx(float(square), rel=1e-9)
    assert float(wprox.metrics.bures_wasserstein(q, p)) == pytest.approx(float(square) ** 0.5, rel=1e-9)


def test_small_bures_wasserstein_distances_do_not_cancel():
    p = standard(3)
    q = wprox.Gaussian(p.loc, (1 + 1e-10) ** 2 * p.covariance_matrix)
    assert float(wprox.metrics.bures_wasserstein(p, q)) == pytest.approx(math.sqrt(3) * 1e-10, rel=1e-4)


def test_distances_on_the_line_agree():
    normal = torch.distributions.Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
    p = wprox.Quantiles.from_icdf(normal.icdf, 4000)
    q = wprox.Quantiles.from_icdf(lambda u: 1 + 2 * normal.icdf(u), 3000)
    exact = wprox.metrics.bures_wasserstein(wprox.Gaussian([0.0], [[1.0]]), wprox.Gaussian([1.0], [[4.0]]))
    assert float(wprox.metrics.wasserstein_1d(p, q)) == pytest.approx(float(exact), abs=2e-3)
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0], [0.5], [2.0]])
    # three equal masses against two: (0, 0.5), half of (·, 2), (1, 3)
    square = (0.5**2 + (2**2 + 1) / 2 + 2**2) / 3
    w2 = wprox.metrics.wasserstein_1d(wprox.Particles(x), wprox.Particles(y))
    assert float(w2) == pytest.approx(math.sqrt(square))
    weighted = wprox.Particles([[0.0], [9.0], [1.0]], weights=[0.5, 0.0, 0.5])
    assert float(wprox.metrics.wasserstein_1d(weighted, wprox.Particles(y))) == pytest.approx(math.sqrt(square))


def test_general_distance_says_how_it_is_known():
    p, q = random_gaussian(2, 0), random_gaussian(2, 1)
    exact = wprox.metrics.wasserstein(p, q)
    assert exact.kind == "exact"
    bound = wprox.metrics.wasserstein(p, q, "moments")
    assert bound.kind == "upper bound from moments"
    assert bound.value >= exact.value
    estimate = wprox.metrics.wasserstein(
        p, torch.distributions.MultivariateNormal(q.loc, q.covariance_matrix), "samples"
    )
    assert estimate.kind == "estimate from samples"
    assert estimate.value == pytest.approx(exact.value, rel=0.1)
    particles = wprox.Particles(p.sample(500, seed=0))
    assert wprox.metrics.wasserstein(particles, q).kind == "upper bound from moments"
    cauchy = torch.distributions.Independent(torch.distributions.Cauchy(torch.zeros(2), torch.ones(2)), 1)
    with pytest.raises(ValueError, match="q = Independent does not know a finite mean and variance"):
        wprox.metrics.wasserstein(particles, cauchy)
    with pytest.raises(ValueError, match="exactly between Gaussians"):
        wprox.metrics.wasserstein(particles, q, "exact")


# --- bad input ------------------------------------------------------------------------------------------------------


def test_bad_covariance_says_its_smallest_eigenvalue():
    with pytest.raises(ValueError, match=r"smallest eigenvalue is -0\.5"):
        wprox.Gaussian([0.0, 0.0], [[1.0, 1.5], [1.5, 1.0]])
    with pytest.raises(ValueError, match="must be symmetric"):
        wprox.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]])


def test_a_step_without_a_minimum_names_the_longest_step():
    functional = wprox.PotentialEnergy(lambda x: -x.square().sum(-1))
    with pytest.raises(ValueError, match=r"step_size < 0.5"):
        wprox.GaussianProx().step(functional, standard(2), 0.6)
    assert wprox.GaussianProx().step(functional, standard(2), 0.4).residual < 1e-9


@pytest.mark.parametrize("functional", [-1.0 * wprox.Entropy(), wprox.PotentialEnergy(lambda x: -x.pow(4).sum(-1))])
def test_a_best_gaussian_that_runs_away_is_a_failed_step(functional):
    with pytest.raises(wprox.StepFailedError, match="has no minimum near this one"):
        wprox.GaussianProx().step(functional, standard(2), 0.5)


def test_wrong_measures_and_functionals():
    class NeedsNodes(wprox.Functional):
        def __call__(self, rho):
            return rho.nodes.sum()

    with pytest.raises(TypeError, match="needs a Gaussian, got Particles"):
        wprox.GaussianProx().step(wprox.Entropy(), wprox.Particles([[0.0]]), 0.1)
    with pytest.raises(TypeError, match="does not apply to Gaussian: it needs the method 'nodes'"):
        wprox.GaussianProx().step(NeedsNodes(), standard(2), 0.1)
    with pytest.raises(TypeError, match="must be a Gaussian, got Quantiles"):
        wprox.metrics.bures_wasserstein(wprox.Quantiles([0.0, 1.0]), standard(1))
    with pytest.raises(ValueError, match="one dimension"):
        wprox.metrics.bures_wasserstein(standard(1), standard(2))
    with pytest.raises(ValueError, match="must live on the line"):
        wprox.metrics.wasserstein_1d(wprox.Particles([[0.0, 1.0]]), wprox.Quantiles([0.0, 1.0]))
    with pytest.raises(TypeError, match="must be Quantiles"):
        wprox.metrics.wasserstein_1d(standard(1), wprox.Quantiles([0.0, 1.0]))


def test_nearly_quadratic_potentials_are_not_taken_for_quadratic():
    functional = wprox.PotentialEnergy(lambda x: 0.5 * x.square().sum(-1) + 1e-6 * x.pow(4).sum(-1)) + wprox.Entropy()
    step = wprox.GaussianProx().step(functional, standard(2), 0.5)
    assert "best Gaussian" in step.message
    huber = wprox.PotentialEnergy(lambda x: torch.nn.functional.huber_loss(x, 0 * x, reduction="none").sum(-1))
    assert "best Gaussian" in wprox.GaussianProx().step(huber, standard(2), 0.5).message


def test_options_of_the_solver_trade_accuracy_for_work():
    quartic = wprox.PotentialEnergy(lambda x: x.square().sum(-1).square()) + wprox.Entropy()
    rho = random_gaussian(2, seed=0, order=12)
    tight = wprox.GaussianProx().step(quartic, rho, 0.3)
    loose = wprox.GaussianProx(tolerance=1e-2).step(quartic, rho, 0.3)
    assert loose.converged
    assert loose.iterations < tight.iterations
    assert close(loose.measure, tight.measure, 5e-2)
    assert not wprox.GaussianProx(iterations=1).step(quartic, rho, 0.3).converged
