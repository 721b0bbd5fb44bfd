"""What a functional declares, what a solver is asked with, and what used to go wrong between the two."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import wprox
from wprox.functionals._degree import is_quadratic
from wprox.functionals.quadratic import quadratic_at
from wprox.functionals.terms import terms_of_one_kind
from wprox.solvers.neural.flow_matching import relaxation

FLOAT64 = torch.float64


def normal(n, d=2, seed=0, dtype=FLOAT64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=FLOAT64).to(dtype)


def half_square(x):
    return x.square().sum(-1) / 2


def standard(d=2):
    return wprox.Gaussian(torch.zeros(d, dtype=FLOAT64), torch.eye(d, dtype=FLOAT64))


# --- what a functional is made of ---


def test_a_sum_adds_up_what_its_terms_declare():
    F = 2 * wprox.KL(standard()) + wprox.PotentialEnergy(half_square) - 0.5 * wprox.Entropy()
    F = F + 3 * wprox.InteractionEnergy(half_square) + wprox.PorousMedium(2) + 0 * wprox.MMD(normal(5))
    structure = F.structure()
    assert [piece.weight for piece in structure.potentials] == [2, 1]
    assert structure.entropy == 1.5
    assert [piece.weight for piece in structure.interactions] == [3]
    assert [piece.exponent for piece in structure.internal] == [2]
    assert not structure.rest
    x = normal(4)
    expected = 2 * -standard().log_prob(x) + half_square(x)
    torch.testing.assert_close(structure.potential(x), expected)
    assert not structure.is_gibbs
    assert wprox.KL(standard()).structure().law is not None
    assert (2 * wprox.KL(standard())).structure().law is not None  # a multiple has the same minimiser
    assert (wprox.KL(standard()) + wprox.Entropy()).structure().law is None


class Doubled(wprox.Entropy):
    """2 ∫ ρ log ρ."""

    def __call__(self, rho):
        return 2 * super().__call__(rho)


class Mixin:
    def __call__(self, rho):
        return rho.integrate(half_square)


class Mixed(Mixin, wprox.KL):
    """A value that comes from a class beside the parent."""


class Declared(Doubled):
    """The same value, and what it is made of."""

    def structure(self):
        return wprox.Structure(entropy=2.0)


@pytest.mark.parametrize("F", [Doubled(), Mixed(standard())], ids=["subclass", "mixin"])
def test_a_value_of_ones_own_is_not_what_the_parent_declared(F):
    structure = F.structure()
    assert structure.entropy == 0
    assert not structure.potentials
    assert [piece.term for piece in structure.rest] == [F]
    assert F.modulus is None
    assert type(F).first_variation is wprox.Functional.first_variation
    assert type(F).wasserstein_gradient is wprox.Functional.wasserstein_gradient


def test_a_subclass_may_declare_its_own_structure():
    assert Declared().structure().entropy == 2
    assert Declared().modulus is None

    class Further(Declared):  # has the value of its parent, and so all that it declared
        pass

    assert Further().structure().entropy == 2
    start = wprox.Gaussian(torch.ones(1, dtype=FLOAT64), torch.eye(1, dtype=FLOAT64))
    F = Further() + wprox.PotentialEnergy(half_square)
    step = wprox.GaussianProx().step(F, start, 1.0)
    assert step.ending is wprox.Ending.CLOSED_FORM
    exact = wprox.GaussianProx().step(2 * wprox.Entropy() + wprox.PotentialEnergy(half_square), start, 1.0)
    torch.testing.assert_close(step.measure.covariance_matrix, exact.measure.covariance_matrix)


def test_terms_of_one_kind_are_what_schemes_split():
    F = wprox.KL(standard()) + 0.5 * wprox.InteractionEnergy(half_square)
    kinds = [(weight, type(term).__name__) for weight, term in terms_of_one_kind(F.structure())]
    assert kinds == [(1, "PotentialEnergy"), (1, "Entropy"), (0.5, "InteractionEnergy")]


MATRIX = normal(2, 2, seed=3)
NOISE = torch.tensor([0.1, 0.2], dtype=FLOAT64)
FACTOR = torch.tensor([[2.0, 0.0], [0.5, 1.0]], dtype=FLOAT64)
QUADRATIC = {
    "half square": half_square,
    "matrix": lambda x: ((x @ MATRIX) * x).sum(-1) + 3 * x[:, 0] - 7,
    "shifted": lambda x: ((x - NOISE) / 2).square().sum(-1),
    "power": lambda x: (x**2).mean(-1),
    "einsum": lambda x: torch.einsum("ni,ij,nj->n", x, MATRIX, x),
    "linear network": torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1), torch.nn.Flatten(0)).double(),
    "constant": lambda x: x.new_zeros(len(x)),
    "norm": lambda x: x.norm(dim=-1) ** 2 / 2,
    "norm times norm": lambda x: (n := x.norm(dim=-1)) * n,
    "solve": lambda x: torch.linalg.solve_triangular(FACTOR, x.mT, upper=False).square().sum(0),
    "stacked": lambda x: torch.stack((x[:, 0], x[:, 1]), 1).square().sum(-1),
}


def assigned(x):
    out = torch.zeros_like(x)
    out[:, 0], out[:, 1] = x[:, 0] ** 4, x[:, 1] ** 2
    return out.sum(1)


def added(x):
    out = x.square()
    out[:, 0] += x[:, 0] ** 4
    return out.sum(1)


def by_list(x):
    return x.square().sum(-1) + torch.tensor([a**4 for a in x[:, 0].tolist()], dtype=x.dtype)


def by_branch(x):
    return x.square().sum(-1) if torch.equal(x, x.round()) else x.pow(4).sum(-1) * 0 + x.sum(-1)


OTHERS = {
    "assigned": assigned,
    "added in place": added,
    "a list": by_list,
    "a branch": by_branch,
    "one over": lambda x: torch.div(1.0, x.square().sum(-1) + 1),
    "a norm": lambda x: x.norm(dim=-1),
    "a norm and a square": lambda x: x.norm(dim=-1) + x.norm(dim=-1) ** 2,
    "cubic": lambda x: (x**3).sum(-1),
    "quartic, barely": lambda x: half_square(x) + 1e-6 * x.pow(4).sum(-1),
    "product of squares": lambda x: x.square().prod(-1),
    "branch": lambda x: torch.where(x > 0, x, -x).square().sum(-1),
    "mask": lambda x: ((x > 0) * x).square().sum(-1),
    "rounded": lambda x: x.round().square().sum(-1),
    "in place": lambda x: x.clone().mul_(x).mul_(x).sum(-1),
    "item": lambda x: x.sum(-1) * float(x.detach().sum()),
    "numpy": lambda x: x.sum(-1) + torch.from_numpy(x.detach().numpy() ** 3).sum(-1),
    "network": torch.nn.Sequential(
        torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1), torch.nn.Flatten(0)
    ).double(),
}


@pytest.mark.parametrize("name", list(QUADRATIC))
def test_a_quadratic_is_known_by_its_operations(name):
    V = QUADRATIC[name]
    assert is_quadratic(V, normal(1))
    loc = normal(1, seed=5)[0]
    expansion = quadratic_at(wprox.PotentialEnergy(V).structure(), loc)
    hessian = torch.autograd.functional.hessian(lambda x: V(x[None])[0], loc)
    gradient = torch.autograd.functional.jacobian(lambda x: V(x[None])[0], loc)
    torch.testing.assert_close(expansion.potential, hessian)
    torch.testing.assert_close(expansion.gradient, gradient)


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_is_not_certainly_quadratic_is_not_taken_for_it(name):
    assert not is_quadratic(OTHERS[name], normal(1))
    assert quadratic_at(wprox.PotentialEnergy(OTHERS[name]).structure(), normal(1)[0]) is None


# --- the first variation ---


class Budget(wprox.Functional):
    """(E|x − m|² − c)² with the mean m, in nested verbs and a parameter c."""

    def __init__(self):
        self.c = torch.tensor(1.5, dtype=FLOAT64, requires_grad=True)

    def __call__(self, rho):
        mean = rho.integrate(lambda x: x)
        return (rho.integrate(lambda x: (x - mean).square().sum(-1)) - self.c).square()


def test_the_first_variation_follows_verbs_inside_verbs():
    F, rho = Budget(), wprox.Particles(normal(30))
    field, x = F.first_variation(rho), normal(5, seed=1).requires_grad_()
    mean = rho.points.mean(0)
    spread = (rho.points - mean).square().sum(1).mean()
    torch.testing.assert_close(field(x), 2 * (spread - F.c) * (x - mean).square().sum(1))
    (by_c,) = torch.autograd.grad(field(x).sum(), F.c)  # a graph in the parameter
    torch.testing.assert_close(by_c, -2 * (x - mean).square().sum())


def test_the_first_variation_carries_no_graph_where_nothing_wants_one():
    F = Budget()
    F.c.requires_grad_(False)
    assert not F.first_variation(wprox.Particles(normal(5)))(normal(3)).requires_grad


def test_the_first_variation_says_where_it_is_not_a_field():
    class Reads(wprox.Functional):
        def __call__(self, rho):
            return rho.weights @ half_square(rho.points)

    with pytest.raises(NotImplementedError, match=r"reads rho\.points or rho\.weights.*override first_variation"):
        Reads().first_variation(wprox.Particles(normal(5)))

    class Special(wprox.Functional):
        def __call__(self, rho):
            return rho.loc.square().sum()

    with pytest.raises(NotImplementedError, match=r"asks for rho\.loc is not known"):
        Special().first_variation(standard())
    assert not Special().needs_density(standard())
    with pytest.raises(wprox.DensityUnknownError, match="does not know its density away from its own points"):
        wprox.Entropy().first_variation(wprox.Particles(normal(5), log_density=torch.zeros(5)))(normal(2))
    with pytest.raises(NotImplementedError, match="has no first variation"):
        wprox.Congestion(1.0).first_variation(standard())


def test_gaussians_have_the_first_variation_of_entropy():
    x = normal(6)
    torch.testing.assert_close(wprox.Entropy().first_variation(standard())(x), standard().log_prob(x))
    energy = wprox.PorousMedium(3.0).first_variation(standard())(x)  # U′ = 3 ρ²/2
    torch.testing.assert_close(energy, 1.5 * standard().log_prob(x).exp().square())


@pytest.mark.parametrize("bandwidth", [0.3, 1.0])
def test_kernel_particles_have_the_first_variation_of_the_blob_energy(bandwidth):
    """d/dt F((1 − t)ρ + tδ_y) = ∫ δF/δρ d(δ_y − ρ), by a particle of little mass."""
    x, y, t = normal(20), normal(1, seed=4), 1e-6
    rho = wprox.Particles(x).with_kernel_density(bandwidth)
    for F in (wprox.Entropy(), wprox.PorousMedium(2.0)):
        weights = torch.cat((rho.weights * (1 - t), torch.tensor([t], dtype=FLOAT64)))
        moved = wprox.KernelParticles(torch.cat((x, y)), weights, bandwidth)
        field = F.first_variation(rho)
        slope = float(F(moved) - F(rho)) / t
        assert slope == pytest.approx(float(field(y) - rho.weights @ field(x)), rel=1e-4)


class Loop(wprox.Functional):
    """Σ_k (∫ sin kx dρ)², with the index of the loop in the function."""

    def __call__(self, rho):
        total = 0
        for k in (1, 2, 3):
            total = total + rho.integrate(lambda x: (x[:, 0] * k).sin()) ** 2  # noqa: B023
        return total


def test_functions_that_know_a_loop_vary_when_they_are_called():
    rho, x = wprox.Particles(normal(30)), normal(4, seed=1)
    means = [rho.integrate(lambda x, k=k: (x[:, 0] * k).sin()) for k in (1, 2, 3)]
    expected = sum(2 * mean * (x[:, 0] * k).sin() for k, mean in enumerate(means, 1))
    torch.testing.assert_close(Loop().first_variation(rho)(x), expected)


class Nested(wprox.Functional):
    """A verb inside a function of another one: ∫ |x − E x|² dρ."""

    def __call__(self, rho):
        return rho.integrate(lambda x: (x - rho.integrate(lambda y: y)).square().sum(-1))


class NestedPairs(wprox.Functional):
    """A verb inside a kernel, which is called as often as there are blocks."""

    def __call__(self, rho):
        square = wprox.kernels.EvenKernel(
            lambda z: z.square().sum(-1) * rho.integrate(lambda p: p.square().sum(-1)), memory_budget=2**10
        )
        return rho.integrate_pairs(square)


def test_verbs_inside_functions_are_right_or_refused():
    rho, x = wprox.Particles(normal(40)), normal(4, seed=1)
    mean = rho.points.mean(0)
    torch.testing.assert_close(Nested().first_variation(rho)(x), (x - mean).square().sum(1))
    with pytest.raises(NotImplementedError, match="call the verbs of rho outside of the functions"):
        NestedPairs().first_variation(rho)(x)


@pytest.mark.parametrize("kind", [wprox.SquaredWasserstein, lambda t: wprox.SlicedWasserstein(t, n_projections=5)])
@pytest.mark.parametrize("d", [1, 2])
def test_target_points_without_mass_do_not_pull(kind, d):
    points, weights = torch.cat((normal(5, d), 9 + normal(1, d))), torch.tensor([0.2] * 5 + [0.0], dtype=FLOAT64)
    rho, x = wprox.Particles(normal(4, d, seed=2)), normal(6, d, seed=3)
    with_it = kind(wprox.Particles(points, weights)).first_variation(rho)(x)
    without = kind(wprox.Particles(points[:5])).first_variation(rho)(x)
    torch.testing.assert_close(with_it - with_it[0], without - without[0])


@pytest.mark.parametrize(
    ("parent", "arguments"),
    [
        (wprox.SquaredWasserstein, (torch.zeros(1, 1),)),
        (wprox.SlicedWasserstein, (torch.zeros(1, 1),)),
        (wprox.PorousMedium, (2.0,)),
        (wprox.Congestion, (1.0,)),
        (wprox.KL, (standard(),)),
        (wprox.InteractionEnergy, (wprox.kernels.PowerLaw(4, 2),)),
    ],
)
def test_a_modulus_is_not_inherited_with_another_value(parent, arguments):
    class Negative(parent):
        def __call__(self, rho):
            return -super().__call__(rho)

    assert parent(*arguments).modulus is not None
    assert Negative(*arguments).modulus is None


def test_a_log_target_of_ones_own_has_no_law():
    F = wprox.KL(standard())
    F.log_target = lambda x: -2 * x.square().sum(-1)
    assert F.structure().law is None
    step = wprox.GaussianProx().step(F, standard(), 1.0)
    exact = wprox.GaussianProx().step(wprox.KL(lambda x: -2 * x.square().sum(-1)), standard(), 1.0)
    torch.testing.assert_close(step.measure.covariance_matrix, exact.measure.covariance_matrix)


def test_terms_of_weight_zero_are_not_asked():
    start = wprox.Particles(normal(5))
    F = wprox.PotentialEnergy(half_square) + 0 * wprox.Entropy() + 0 * wprox.Congestion(1.0)
    assert float(F(start)) == pytest.approx(float(half_square(start.points).mean()))
    torch.testing.assert_close(F.wasserstein_gradient(start), start.points)
    assert float((0 * wprox.Entropy())(start)) == 0


def test_needs_density_is_seen_from_the_verbs():
    class Custom(wprox.Functional):
        def __call__(self, rho):
            return rho.integrate_density(torch.sqrt) if rho.dim == 2 else rho.integrate(half_square)

    assert Custom().needs_density(wprox.Particles(normal(3)))
    assert not Custom().needs_density(wprox.Particles(normal(3, 1)))
    assert (wprox.Entropy() + Custom()).needs_density(wprox.Particles(normal(3, 1)))


# --- the problem ---


def test_a_problem_knows_its_objective_and_its_residual():
    x = normal(10)
    F, gamma = wprox.PotentialEnergy(half_square), 0.5
    problem = wprox.Problem(F, wprox.Particles(x), gamma)
    exact = problem.measure.at(x / (1 + gamma))
    assert problem.residual(exact) < 1e-14
    cost = problem.cost(exact)
    torch.testing.assert_close(problem.objective(exact, cost), F(exact) + cost / (2 * gamma))
    assert problem.structure is problem.structure
    assert wprox.Problem(wprox.Entropy(), wprox.Particles(x), gamma).residual(exact) is None


ANCHORED = {
    "particle": (wprox.ParticleProx(tolerance=1e-10), wprox.Particles, 1e-7),
    "quantile": (wprox.QuantileProx(), lambda x: wprox.Quantiles(x[:, 0].sort().values), 1e-7),
    "neural": (
        wprox.NeuralProx(map=wprox.AffineMap, learning_rate=0.05, iterations=600, patience=100),
        wprox.Particles,
        0.02,
    ),
}


@pytest.mark.parametrize("name", list(ANCHORED))
def test_the_transport_cost_counts_from_the_anchor(name):
    """min V(y) + |y − a|²/2γ is y = a/(1 + γ) for V = |y|²/2, wherever the step starts."""
    solver, make, tolerance = ANCHORED[name]
    x = normal(200, 1 if name == "quantile" else 2)
    measure, anchor = make(x), make(2 * x + 1)
    problem = wprox.Problem(wprox.PotentialEnergy(half_square), measure, 0.5, anchor)
    step = solver.ask(problem)
    assert (step.measure.points - anchor.points / 1.5).abs().max() < tolerance
    assert float(step.transport_cost) == pytest.approx(float(problem.cost(step.measure)), rel=1e-5)
    if step.map is not None:
        torch.testing.assert_close(step.map(measure.points)[0].detach(), step.measure.points)


def test_gaussians_count_from_the_anchor_as_well():
    measure, anchor = standard(), wprox.Gaussian(torch.full((2,), 3.0), torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    anchor = anchor.to(FLOAT64)
    F = wprox.KL(standard())
    step = wprox.GaussianProx().ask(wprox.Problem(F, measure, 0.5, anchor))
    exact = wprox.GaussianProx().step(F, anchor, 0.5)
    torch.testing.assert_close(step.measure.covariance_matrix, exact.measure.covariance_matrix)
    pushed = measure.push(step.map)
    torch.testing.assert_close(pushed.loc, exact.measure.loc)
    torch.testing.assert_close(pushed.covariance_matrix, exact.measure.covariance_matrix)


EXPLICIT = {
    "euler": wprox.ExplicitEuler(),
    "forward-backward": wprox.ForwardBackward(wprox.ParticleProx()),
    "langevin": wprox.Langevin(),
}


@pytest.mark.parametrize("name", list(EXPLICIT))
def test_schemes_that_do_not_move_the_anchor_refuse_one(name):
    measure = wprox.Particles(normal(5))
    problem = wprox.Problem(wprox.KL(standard()), measure, 0.1, measure.at(measure.points + 1))
    with pytest.raises(ValueError, match="takes no anchor; ParticleProx"):
        EXPLICIT[name].ask(problem)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"step_size": -0.5}, "step_size must be positive"),
        ({"anchor": normal(5)}, "anchor must be a wprox measure, got Tensor"),
        ({"anchor": wprox.Particles(normal(4))}, r"the anchor must have a point for each .*\(5, 2\), got \(4, 2\)"),
        ({"anchor": wprox.Particles(normal(5), [0.6, 0.1, 0.1, 0.1, 0.1])}, "must have the weights of the measure"),
        ({"functional": half_square}, "functional must be a wprox.Functional, got function"),
    ],
)
def test_a_problem_is_checked(options, error):
    given = {"functional": wprox.PotentialEnergy(half_square), "measure": wprox.Particles(normal(5)), "step_size": 0.5}
    with pytest.raises((TypeError, ValueError), match=error):
        wprox.Problem(**(given | options))


def test_ask_prepares_what_step_prepares():
    F = wprox.PotentialEnergy(half_square)
    with pytest.raises(TypeError, match="GaussianProx needs a Gaussian, got Particles"):
        wprox.GaussianProx().ask(wprox.Problem(F, wprox.Particles(normal(5)), 0.5))
    solver = wprox.NeuralProx(wprox.AffineMap, iterations=2)
    assert solver.ask(wprox.Problem(wprox.KL(standard()), wprox.Particles(normal(50)), 0.5)).measure.is_relative


def test_what_solve_returns_is_checked():
    class Wrong(wprox.Solver):
        def solve(self, problem, state):
            return problem.measure

    with pytest.raises(TypeError, match=r"Wrong.solve must return a wprox.Solved.*it returned Particles"):
        Wrong().step(wprox.PotentialEnergy(half_square), wprox.Particles(normal(5)), 0.5)


# --- what went wrong ---


def test_random_batches_have_no_map_that_belongs_to_all_pairs():
    F = wprox.InteractionEnergy(half_square, batch_size=8) + 0.1 * wprox.Entropy()
    start = standard().to_particles(64, seed=0)
    solver = wprox.ForwardBackward(wprox.NeuralProx(map=wprox.AffineMap, iterations=5))
    step = solver.step(F, start, 0.1)
    assert step.map is None
    assert not step.measure.density_known
    assert "forward map of G is not known" in step.message
    whole = solver.step(wprox.InteractionEnergy(half_square, batch_size=64) + 0.1 * wprox.Entropy(), start, 0.1)
    assert whole.measure.density_known  # the batch is everybody
    torch.testing.assert_close(whole.map(start.points)[0].detach(), whole.measure.points)


class Steep(wprox.PotentialEnergy):
    """A hundred times the potential energy."""

    def __call__(self, rho):
        return 100 * super().__call__(rho)


def test_langevin_goes_by_the_value_of_a_subclass():
    F, start = Steep(half_square) + wprox.Entropy(), wprox.Particles(0.1 * normal(2000))
    with pytest.raises(ValueError, match=r"adjusted=True needs a target that does not change.*is not one"):
        wprox.Langevin(adjusted=True).step(F, start, 1e-3)
    final = wprox.jko(F, wprox.Langevin(), start, 1e-3, 100).final
    # unadjusted: 1/100/(1 − 100γ/2); 4,000 numbers are off by 10 % once in 10⁵ runs
    assert float(final.points.var()) == pytest.approx(0.01 / 0.95, rel=0.1)


class Clipped(wprox.PotentialEnergy):
    """The value of a potential, with a gradient of its own."""

    def wasserstein_gradient(self, rho):
        return super().wasserstein_gradient(rho).clamp(-1, 1)


def test_a_gradient_of_ones_own_has_no_map():
    start = standard().to_particles(64, seed=0)
    solver = wprox.ForwardBackward(wprox.NeuralProx(map=wprox.AffineMap, iterations=5))
    step = solver.step(Clipped(lambda x: 2 * x.square().sum(-1)) + 0.1 * wprox.Entropy(), start, 0.1)
    assert step.map is None
    assert not step.measure.density_known


def test_adjusted_langevin_takes_one_gradient_forth_and_back():
    F = Clipped(lambda x: 2 * x.square().sum(-1)) + wprox.Entropy()
    final = wprox.jko(F, wprox.Langevin(adjusted=True), wprox.Particles(0.5 * normal(4000)), 0.1, 30).final
    # 8,000 numbers of variance 1/4 are off by 7 % less than once in 10⁵ runs
    assert float(final.points.var()) == pytest.approx(0.25, rel=0.07)


def test_explicit_steps_know_when_weights_have_changed():
    F, solver = wprox.InteractionEnergy(half_square), wprox.ExplicitEuler()
    first = solver.step(F, wprox.Particles([[0.0], [1.0]]), 0.1)
    other = wprox.Particles(first.measure.points, [0.9, 0.1])
    again = solver.step(F, other, 0.1, previous=first)
    torch.testing.assert_close(again.measure.points, solver.step(F, other, 0.1).measure.points)


def test_langevin_does_not_take_a_subclass_for_entropy():
    start = wprox.Particles(normal(10))
    with pytest.raises(ValueError, match="noise stands for an entropy of positive weight"):
        wprox.Langevin().step(wprox.PotentialEnergy(half_square) + Doubled(), start, 0.1)
    with pytest.raises(ValueError, match=r"Entropy\(\) needs a density"):
        wprox.Langevin().step(wprox.Entropy() + Doubled(), start, 0.1)


def test_flow_matching_does_not_take_a_subclass_for_kl():
    class Tempered(wprox.KL):
        def __call__(self, rho):
            return super().__call__(rho) + rho.integrate(half_square)

    with pytest.raises(ValueError, match=r"flow matching needs the functional KL\(· ‖ a Gaussian\)"):
        relaxation(Tempered(standard()), 1.0, normal(2))
    relaxation(2 * wprox.KL(standard()), 1.0, normal(2))


class Largest(TorchDispatchMode):
    """The largest tensor that is made, in numbers."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, torch.Tensor):
                self.numel = max(self.numel, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("kernel", [wprox.kernels.Gaussian(), half_square], ids=["radial", "function"])
def test_a_forward_step_sums_pairs_in_blocks(kernel):
    """All differences at once would be 2n² numbers, and the Hessian made several copies of them."""
    n = 1200
    start = standard().to_particles(n, seed=0)
    solver = wprox.ForwardBackward(wprox.NeuralProx(map=wprox.AffineMap, iterations=1))
    F = 0.1 * wprox.InteractionEnergy(kernel) + 0.1 * wprox.Entropy()
    with Largest() as largest:
        step = solver.step(F, start, 0.1)
    assert step.measure.density_known
    assert largest.numel < n * n / 2


def test_minibatches_of_kernel_particles_keep_the_bandwidth():
    rho = wprox.Particles(normal(2000)).with_kernel_density()
    part = rho.subset(torch.arange(128))
    assert part.factor == rho.factor
    same = wprox.KernelParticles(part.points, factor=rho.factor)
    assert float(wprox.Entropy()(part)) == pytest.approx(float(wprox.Entropy()(same)))
    assert abs(rho.factor - wprox.Particles(part.points).with_kernel_density().factor) > 0.1  # Silverman's for 128


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((lambda rho: 0, wprox.ParticleProx()), r"functional must be a wprox.Functional, got function"),
        ((wprox.Entropy, wprox.ParticleProx()), r"functional must be an object, got the class Entropy; call it"),
        ((wprox.Entropy(), wprox.ParticleProx), r"solver must be an object, got the class ParticleProx; call it"),
        ((wprox.Entropy(), "particle"), r"solver must be a wprox.Solver such as .*, got str"),
        ((3.0, wprox.ParticleProx()), r"functional must be a wprox.Functional, got float"),
    ],
)
def test_what_is_given_in_the_place_of_something_else_gets_a_sentence(arguments, error):
    rho = wprox.Particles(normal(3))
    for call in (wprox.jko, lambda *a: next(wprox.jko_steps(*a))):
        with pytest.raises(TypeError, match=error):
            call(*arguments, rho)


@pytest.mark.parametrize(
    ("initial", "error"),
    [
        (normal(3), r"initial must be a wprox measure, got Tensor; wprox.Particles\(points\) makes one"),
        (wprox.Particles, "initial must be a measure, got the class Particles; build one"),
    ],
)
def test_what_is_no_measure_gets_a_sentence(initial, error):
    with pytest.raises(TypeError, match=error):
        wprox.jko(wprox.PotentialEnergy(half_square), wprox.ParticleProx(), initial)
    with pytest.raises(TypeError, match=error.replace("initial", "measure", 1)):
        wprox.ParticleProx().step(wprox.PotentialEnergy(half_square), initial, 0.1)


# --- measures and solvers of one's own ---


class Mirrored(wprox.Measure):
    """Equal atoms at x and −x."""

    def __init__(self, half):
        self.half = half
        self.points = torch.cat((half, -half))
        self.weights = half.new_full((2 * len(half),), 0.5 / len(half))

    def log_density(self):
        raise wprox.DensityUnknownError("atoms have no density")

    def push(self, map):
        y = map(self.points)
        y = y[0] if isinstance(y, tuple) else y
        result = Mirrored(y[: len(self.half)])
        result.points = y
        return result

    def sample(self, n, seed=None):
        return wprox.Particles(self.points).sample(n, seed)


LAGRANGIAN = {
    "particle": wprox.ParticleProx(),
    "euler": wprox.ExplicitEuler(),
    "noisy": wprox.ExplicitEuler(noise=0.01),
    "accelerated": wprox.ExplicitEuler(accelerated=True),
    "forward-backward": wprox.ForwardBackward(wprox.ParticleProx(), forward=lambda term: term.modulus == 1),
    "langevin": wprox.Langevin(),
    "neural": wprox.NeuralProx(map=wprox.AffineMap, iterations=200, learning_rate=0.05),
}


@pytest.mark.parametrize("name", list(LAGRANGIAN))
def test_lagrangian_solvers_take_a_measure_of_ones_own(name):
    F = wprox.PotentialEnergy(half_square, modulus=1.0) + 0.1 * wprox.InteractionEnergy(half_square)
    if name == "langevin":
        F = F + 1e-4 * wprox.Entropy()
    start = Mirrored(3 + normal(40))
    trajectory = wprox.jko(F, LAGRANGIAN[name], start, 0.2, 3)
    assert float(trajectory.values[-1]) < 0.6 * float(trajectory.values[0])
    if name != "neural":  # which carries on what it needs, particles
        assert isinstance(trajectory.final, Mirrored)


class Halfway(wprox.Solver):
    """Written by `step`, as before there was `solve`."""

    def step(self, functional, measure, step_size, *, previous=None, held_out=None):
        rho = measure.push(lambda x: x / 2)
        cost = measure.weights @ (rho.points - measure.points).square().sum(1)
        index = 0 if previous is None else previous.index + 1
        return wprox.Step(rho, None, functional(rho), cost, step_size, converged=index > 0, index=index)


def test_a_solver_may_override_step():
    start = wprox.Particles(normal(5))
    F = wprox.PotentialEnergy(half_square)
    with pytest.warns(RuntimeWarning, match="step 0 did not converge"):
        trajectory = wprox.jko(F, Halfway(), start, 0.1, 2)
    torch.testing.assert_close(trajectory.final.points, start.points / 4)
    assert [step.ending for step in trajectory.steps] == [wprox.Ending.NOT_CONVERGED, wprox.Ending.CONVERGED]
    both = wprox.ForwardBackward(Halfway(), forward=lambda term: isinstance(term, wprox.PotentialEnergy))
    step = both.step(F + wprox.InteractionEnergy(half_square), start, 0.1)
    torch.testing.assert_close(step.measure.points, 0.45 * start.points)


def test_a_solver_without_a_method_says_which():
    class Empty(wprox.Solver):
        pass

    with pytest.raises(NotImplementedError, match=r"Empty needs a method solve\(problem, state\)"):
        Empty().step(wprox.PotentialEnergy(half_square), wprox.Particles(normal(2)), 0.1)


def test_the_state_of_another_solver_is_nothing_to_go_on():
    F, start = wprox.PotentialEnergy(half_square), wprox.Particles(normal(20))
    foreign = wprox.ExplicitEuler(accelerated=True).step(F, start, 0.1)
    for solver in (wprox.ParticleProx(), wprox.ExplicitEuler(), wprox.NeuralProx(wprox.AffineMap, iterations=2)):
        step = solver.step(F, foreign.measure, 0.1, previous=foreign)
        assert step.index == 1
        assert math.isfinite(float(step.value))
