"""Functionals: values and Wasserstein gradients against closed forms, their algebra, and the density they need."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, Independent, MultivariateNormal, Normal

import wprox

F64 = torch.float64


def gaussian():
    return wprox.Gaussian(torch.tensor([1.0, -2.0], dtype=F64), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=F64))


def target():
    return wprox.Gaussian(torch.tensor([0.5, 0.0], dtype=F64), torch.tensor([[1.0, -0.2], [-0.2, 3.0]], dtype=F64))


def quadrature(std=1.5, n=4000):
    """N(0, std²) on the line, as particles on an even grid with their density: integrates smooth functions exactly."""
    x = torch.linspace(-12 * std, 12 * std, n, dtype=F64)[:, None]
    log_density = wprox.Gaussian(torch.zeros(1, dtype=F64), std**2 * torch.eye(1, dtype=F64)).log_prob(x)
    weights = log_density.exp()
    return wprox.Particles(x, weights / weights.sum(), log_density=log_density)


def half_square(x):
    return 0.5 * x.square().sum(-1)


def quartic(x):
    return x.square().sum(-1) ** 2


# --- values ---


def test_potential_energy_of_a_gaussian():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=F64)
    rho = gaussian()
    value = wprox.PotentialEnergy(lambda x: 0.5 * torch.einsum("ni,ij,nj->n", x, matrix, x))(rho)
    # E ½xᵀAx = ½ tr(AΣ) + ½ mᵀAm
    expected = 0.5 * (matrix @ rho.covariance_matrix).trace() + 0.5 * rho.loc @ matrix @ rho.loc
    assert torch.allclose(value, expected)


def test_interaction_energy_of_a_gaussian():
    # ½ E ½|x − y|² = ½ tr Σ
    assert float(wprox.InteractionEnergy(half_square)(gaussian())) == pytest.approx(1.25)


def test_entropy_of_a_gaussian():
    rho = gaussian()
    reference = MultivariateNormal(rho.loc, rho.covariance_matrix)
    assert torch.allclose(wprox.Entropy()(rho), -reference.entropy())


@pytest.mark.parametrize("kind", ["gaussian", "distribution", "independent"])
def test_kl_between_gaussians(kind):
    rho, pi = gaussian(), target()
    if kind == "independent":
        pi = wprox.Gaussian(pi.loc, pi.covariance_matrix.diagonal().diag())
    reference = MultivariateNormal(pi.loc, pi.covariance_matrix)
    given_target = {
        "gaussian": pi,
        "distribution": reference,
        "independent": Independent(Normal(pi.loc, pi.covariance_matrix.diagonal().sqrt()), 1),
    }[kind]
    expected = torch.distributions.kl_divergence(MultivariateNormal(rho.loc, rho.covariance_matrix), reference)
    assert torch.allclose(wprox.KL(given_target)(rho), expected)


def test_kl_to_an_unnormalised_density_is_off_by_log_z():
    log_z = 1.5
    unnormalised = wprox.KL(lambda x: target().log_prob(x) + log_z)
    assert float(unnormalised(gaussian())) == pytest.approx(float(wprox.KL(target())(gaussian())) - log_z)


@pytest.mark.parametrize("exponent", [0.5, 2.0, 3.0])
def test_porous_medium_of_a_gaussian(exponent):
    std, m = 1.5, exponent
    # ∫ ρᵐ/(m−1) dx of N(0, σ²) is (2πσ²)^{(1−m)/2} / (√m (m − 1))
    expected = (2 * math.pi * std**2) ** ((1 - m) / 2) / math.sqrt(m) / (m - 1)
    assert float(wprox.PorousMedium(m)(quadrature(std))) == pytest.approx(expected, rel=1e-6)


def test_internal_energy_contains_entropy_and_porous_medium():
    rho = quadrature()
    entropy = wprox.InternalEnergy(lambda density: density * density.log())
    assert torch.allclose(entropy(rho), wprox.Entropy()(rho))
    square = wprox.InternalEnergy(lambda density: density**2)
    assert torch.allclose(square(rho), wprox.PorousMedium(2.0)(rho))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_values_keep_the_dtype(dtype):
    rho = wprox.Gaussian(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    functional = wprox.PotentialEnergy(half_square) + 0.5 * wprox.InteractionEnergy(quartic) + wprox.Entropy()
    assert functional(rho).dtype == functional.wasserstein_gradient(rho).dtype == dtype


# --- Wasserstein gradients ---


def test_gradient_of_a_potential_is_its_gradient():
    rho = gaussian()
    gradient = wprox.PotentialEnergy(quartic).wasserstein_gradient(rho)
    assert torch.allclose(gradient, 4 * rho.points.square().sum(-1, keepdim=True) * rho.points)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_of_an_interaction_is_the_convolution(weighted):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=generator, dtype=F64)
    weights = torch.rand(30, generator=generator, dtype=F64) if weighted else torch.ones(30, dtype=F64)
    rho = wprox.Particles(x, weights / weights.sum())
    gradient = wprox.InteractionEnergy(quartic).wasserstein_gradient(rho)
    z = x[:, None] - x  # (∇W ∗ ρ)(x_i) = Σ_j w_j ∇W(x_i − x_j)
    expected = torch.einsum("j,ijk->ik", rho.weights, 4 * z.square().sum(-1, keepdim=True) * z)
    assert torch.allclose(gradient, expected)


def test_gradient_of_kl_is_the_difference_of_scores():
    rho, pi = gaussian(), target()
    score = -torch.linalg.solve(rho.covariance_matrix, (rho.points - rho.loc).T).T
    target_score = -torch.linalg.solve(pi.covariance_matrix, (rho.points - pi.loc).T).T
    assert torch.allclose(wprox.KL(pi).wasserstein_gradient(rho), score - target_score)
    assert torch.allclose(wprox.Entropy().wasserstein_gradient(rho), score)


def test_gradient_of_kl_vanishes_at_the_target():
    assert torch.allclose(wprox.KL(target()).wasserstein_gradient(target()), torch.zeros(4, 2, dtype=F64), atol=1e-12)


@pytest.mark.parametrize("exponent", [0.5, 2.0, 3.0])
def test_gradient_of_an_internal_energy(exponent):
    rho, m = gaussian(), exponent
    points = rho.points.clone().requires_grad_()
    first_variation = m / (m - 1) * (rho.log_prob(points) * (m - 1)).exp()  # U′(ρ)
    (expected,) = torch.autograd.grad(first_variation.sum(), points)
    assert torch.allclose(wprox.PorousMedium(m).wasserstein_gradient(rho), expected)


def test_gradient_of_a_linear_internal_energy_is_zero():
    # ∫ ρ dx = 1 whatever ρ is
    assert not wprox.InternalEnergy(lambda density: density).wasserstein_gradient(gaussian()).any()


def test_gradient_of_a_constant_is_zero():
    class Constant(wprox.Functional):
        def __call__(self, rho):
            return rho.weights.new_tensor(3.0)

    assert not Constant().wasserstein_gradient(gaussian()).any()


FUNCTIONALS = {
    "potential": wprox.PotentialEnergy(half_square),
    "interaction": wprox.InteractionEnergy(half_square),
    "entropy": wprox.Entropy(),
    "kl": wprox.KL(target()),
    "sum": wprox.KL(target()) + 0.3 * wprox.InteractionEnergy(half_square) - 0.1 * wprox.PotentialEnergy(half_square),
}


@pytest.mark.parametrize("name", list(FUNCTIONALS))
def test_gradient_is_the_derivative_along_an_affine_flow(name):
    """d/dt F((id + tξ)#ρ) = E⟨∇F, ξ⟩ for ξ(x) = Sx + b, which keeps a Gaussian Gaussian; central differences."""
    functional, rho = FUNCTIONALS[name], gaussian()
    symmetric = torch.tensor([[0.4, -0.7], [-0.7, 0.9]], dtype=F64)
    shift = torch.tensor([0.3, -1.0], dtype=F64)

    def value(t):
        matrix = torch.eye(2, dtype=F64) + t * symmetric
        return functional(wprox.Gaussian(matrix @ rho.loc + t * shift, matrix @ rho.covariance_matrix @ matrix))

    difference = float(value(1e-4) - value(-1e-4)) / 2e-4
    velocity = rho.points @ symmetric + shift
    inner = float(rho.weights @ (functional.wasserstein_gradient(rho) * velocity).sum(1))
    assert inner == pytest.approx(difference, rel=1e-6)


def test_gradient_works_without_grad_mode_and_leaves_the_measure_alone():
    rho = gaussian()
    with torch.no_grad():
        gradient = wprox.KL(target()).wasserstein_gradient(rho)
    assert not gradient.requires_grad
    assert not rho.points.requires_grad


# --- a functional that the library has never seen ---


class SquaredVariance(wprox.Functional):
    """F(ρ) = (E|x|² − 1)²/4, with ∇F = (E|x|² − 1) x."""

    def __call__(self, rho):
        return (rho.integrate(lambda x: x.square().sum(-1)) - 1).square() / 4


class MeanDensity(wprox.Functional):
    def __call__(self, rho):
        return rho.weights @ rho.log_density().exp()


def test_custom_functional():
    rho = gaussian()
    second_moment = rho.integrate(lambda x: x.square().sum(-1))
    assert torch.allclose(SquaredVariance()(rho), (second_moment - 1).square() / 4)
    assert torch.allclose(SquaredVariance().wasserstein_gradient(rho), (second_moment - 1) * rho.points)


def test_custom_functional_of_the_density_must_bring_its_gradient():
    rho = quadrature(n=50)
    with pytest.raises(NotImplementedError, match="override wasserstein_gradient"):
        MeanDensity().wasserstein_gradient(rho)


def test_functional_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        wprox.Functional()


# --- algebra ---

numbers = st.floats(-5, 5).map(lambda value: round(value, 3))


@settings(max_examples=25, deadline=None)
@given(numbers, numbers, numbers)
def test_combinations_are_linear_in_value_and_gradient(a, b, c):
    f, g, h = wprox.PotentialEnergy(quartic), wprox.InteractionEnergy(half_square), wprox.Entropy()
    rho = gaussian()
    combined = a * (f + b * g) - h * c
    assert torch.allclose(combined(rho), a * f(rho) + a * b * g(rho) - c * h(rho), rtol=1e-8, atol=1e-8)
    gradients = [term.wasserstein_gradient(rho) for term in (f, g, h)]
    expected = a * gradients[0] + a * b * gradients[1] - c * gradients[2]
    assert torch.allclose(combined.wasserstein_gradient(rho), expected, rtol=1e-8, atol=1e-8)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 5), st.none() | st.floats(-3, 3)), min_size=1, max_size=5), st.floats(0, 5))
def test_moduli_add_and_multiply(terms, factor):
    functional = sum(weight * wprox.PotentialEnergy(half_square, modulus=modulus) for weight, modulus in terms)
    relevant = [(weight, modulus) for weight, modulus in terms if weight > 0]
    if any(modulus is None for _, modulus in relevant):
        assert functional.modulus is None
        return
    expected = sum(weight * modulus for weight, modulus in relevant)
    assert functional.modulus == pytest.approx(expected)
    assert (factor * functional).modulus == pytest.approx(factor * expected)


def test_modulus_of_each_functional():
    covariance = torch.tensor([[2.0, 0.0], [0.0, 0.5]], dtype=F64)
    normal = Independent(Normal(torch.zeros(2), torch.tensor([2.0, 1.0])), 1)
    assert wprox.Entropy().modulus == 0
    assert wprox.PotentialEnergy(half_square).modulus is None
    assert wprox.PotentialEnergy(half_square, modulus=1.0).modulus == 1
    assert wprox.InteractionEnergy(half_square, modulus=0.0).modulus == 0
    assert wprox.PorousMedium(2.0).modulus == 0
    assert wprox.PorousMedium(0.5).modulus is None
    assert wprox.InternalEnergy(lambda density: density**2).modulus is None
    assert wprox.KL(wprox.Gaussian(torch.zeros(2, dtype=F64), covariance)).modulus == pytest.approx(0.5)
    assert wprox.KL(MultivariateNormal(torch.zeros(2, dtype=F64), covariance)).modulus == pytest.approx(0.5)
    assert wprox.KL(normal).modulus == pytest.approx(0.25)
    assert wprox.KL(half_square).modulus is None
    assert wprox.KL(half_square, modulus=-1.0).modulus == -1
    # a negative multiple of a convex functional is not known to be λ-convex for any λ
    assert (-wprox.Entropy()).modulus is None
    assert (wprox.PotentialEnergy(half_square, modulus=1.0) - wprox.Entropy()).modulus is None


def test_sums_read_well():
    functional = wprox.PotentialEnergy(half_square) + 0.5 * wprox.Entropy()
    assert repr(functional) == "PotentialEnergy(half_square) + 0.5 * Entropy()"
    assert repr(wprox.PorousMedium(2)) == "PorousMedium(2)"
    assert repr(wprox.KL(target())) == "KL(Gaussian)"
    assert repr(wprox.InteractionEnergy(half_square)) == "InteractionEnergy(half_square)"


# --- refusals ---


@pytest.mark.parametrize(
    "functional", [wprox.Entropy(), wprox.KL(target()), wprox.PorousMedium(2.0), 0.5 * wprox.Entropy()]
)
def test_unknown_density_is_refused(functional):
    rho = wprox.Particles(torch.zeros(3, 2, dtype=F64))
    with pytest.raises(wprox.DensityUnknownError, match="log_density="):
        functional(rho)
    with pytest.raises(wprox.DensityUnknownError):
        functional.wasserstein_gradient(rho)


def test_relative_density_serves_entropy_and_kl_but_not_the_density_itself():
    rho = wprox.Particles(torch.ones(3, 2, dtype=F64)).relative()
    assert float(wprox.Entropy()(rho)) == 0
    assert torch.allclose(wprox.KL(target())(rho), -target().log_prob(rho.points).mean())
    with pytest.raises(wprox.DensityUnknownError):
        wprox.PorousMedium(2.0)(rho)
    with pytest.raises(wprox.DensityUnknownError):
        wprox.Entropy().wasserstein_gradient(rho)


def test_potential_and_interaction_need_no_density():
    rho = wprox.Particles(torch.zeros(3, 2, dtype=F64))
    assert float((wprox.PotentialEnergy(half_square) + wprox.InteractionEnergy(half_square))(rho)) == 0


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: wprox.PotentialEnergy(3.0), TypeError, "potential must be a function of points, got float"),
        (lambda: wprox.InteractionEnergy(None), TypeError, "kernel must be a function"),
        (lambda: wprox.InternalEnergy("log"), TypeError, "energy must be a function"),
        (lambda: wprox.PorousMedium(1.0), ValueError, r"m = 1 is wprox.Entropy\(\)"),
        (lambda: wprox.PorousMedium(-2.0), ValueError, "must be positive and not 1, got -2"),
        (lambda: wprox.PorousMedium(math.nan), ValueError, "must be positive"),
        (lambda: wprox.KL(3.0), TypeError, "got float"),
        (lambda: wprox.KL(Normal(torch.zeros(2), torch.ones(2))), ValueError, "Independent"),
        (lambda: wprox.KL(Categorical(torch.ones(3))), ValueError, "Independent"),
        (lambda: math.inf * wprox.Entropy(), ValueError, "finite number"),
        (lambda: wprox.Entropy() * wprox.Entropy(), TypeError, "functional of your own"),
        (lambda: wprox.Entropy() + 1.0, TypeError, "unsupported operand"),
        (lambda: wprox.KL(target())(wprox.Gaussian(torch.zeros(3), torch.eye(3))), ValueError, "dimension 2, the mea"),
        (lambda: wprox.PotentialEnergy(torch.sum)(gaussian()), ValueError, "one value a row"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


# --- functionals that the solvers cannot use -------------------------------------------------------------------------


class Number(wprox.Functional):
    def __call__(self, rho):
        return 1.0


def start_for(solver):
    if isinstance(solver, wprox.GaussianProx):
        return wprox.Gaussian(torch.zeros(1).double(), torch.eye(1).double())
    return wprox.Quantiles(torch.linspace(-1, 1, 20))


@pytest.mark.parametrize("solver", [wprox.QuantileProx(), wprox.GaussianProx()], ids=["quantile", "gaussian"])
def test_terms_that_are_not_scalars_are_named(solver):
    rho = start_for(solver)
    with pytest.raises(TypeError, match=r"Number.* must return a scalar tensor, it returned float"):
        solver.step(Number(), rho, 0.1)
    with pytest.raises(TypeError, match=r"Number.* must return a scalar tensor, it returned float"):
        solver.step(Number() + wprox.Entropy(), rho, 0.1)
    with pytest.raises(ValueError, match=r"^PotentialEnergy\(.*must be a scalar, it has shape \(1,\)"):
        solver.step(wprox.PotentialEnergy(lambda x: x**2) + wprox.Entropy(), rho, 0.1)


@pytest.mark.parametrize("solver", [wprox.QuantileProx(), wprox.GaussianProx()], ids=["quantile", "gaussian"])
def test_float32_inside_a_functional_is_reported(solver):
    rho, matrix, net = start_for(solver), torch.eye(1), torch.nn.Linear(1, 1)
    with pytest.raises(TypeError, match=r"the solver computes in torch\.float64; make the tensors and networks"):
        solver.step(wprox.PotentialEnergy(lambda x: ((x @ matrix) * x).sum(-1)), rho, 0.1)
    with pytest.raises(TypeError, match=r"the solver computes in torch\.float64; make the tensors and networks"):
        solver.step(wprox.PotentialEnergy(lambda x: net(x)[:, 0]) + wprox.Entropy(), rho, 0.1)
    solver.step(wprox.PotentialEnergy(lambda x: ((x @ matrix.to(x)) * x).sum(-1)), rho, 0.1)


@pytest.mark.parametrize("solver", [wprox.QuantileProx(), wprox.GaussianProx()], ids=["quantile", "gaussian"])
def test_functionals_that_answer_in_float32_are_reported(solver):
    """Newton steps on a function that is rounded to float32 stall, and say only that they were not enough."""
    parts = torch.distributions.Independent(torch.distributions.Normal(torch.tensor([[-1.0], [1.0]]), 1.0), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), parts)
    target = wprox.KL(lambda x: mixture.log_prob(x.float()))
    with pytest.raises(TypeError, match=r"log-density of KL\(<lambda>\) is torch.float32 at float64 points"):
        solver.step(target, start_for(solver), 0.1)
    potential = wprox.PotentialEnergy(lambda x: x.float().square().sum(-1))
    with pytest.raises(TypeError, match=r"a potential energy is torch\.float32 at float64 points"):
        solver.step(potential + wprox.Entropy(), start_for(solver), 0.1)
    assert solver.step(wprox.KL(mixture), start_for(solver), 0.1).converged


def test_interaction_energies_have_no_positive_modulus():
    with pytest.raises(ValueError, match="does not change under translations"):
        wprox.InteractionEnergy(lambda z: z.square().sum(-1), modulus=1.0)
    assert wprox.InteractionEnergy(lambda z: z.square().sum(-1), modulus=-1.0).modulus == -1
