"""`wprox.testing` itself: classes of a user's own pass, and for each law one that breaks it is caught by that law."""

import math

import pytest
import torch
from torch import nn

import wprox
from wprox import testing
from wprox.testing.examples import PROBLEMS, SquaredSpread, half_square, sample_measures, starts
from wprox.testing.laws import name_of

F64 = torch.float64


# --- classes of one's own


class Cloud(wprox.Measure):
    """Equal atoms, with what a measure must have and nothing else."""

    def __init__(self, points):
        self.points = points
        self.weights = points.new_full((len(points),), 1 / len(points))

    def log_density(self):
        raise wprox.DensityUnknownError("the atoms of a Cloud have no density; take a functional that needs none")

    def push(self, map):
        output = map(self.points)
        return Cloud(output[0] if isinstance(output, tuple) else output)

    def sample(self, n, seed=None):
        return wprox.Particles(self.points).sample(n, seed)


class TailMap(wprox.TransportMap):
    """T(x) = sinh(exp(a) asinh x), coordinate by coordinate."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.log_power = nn.Parameter(torch.zeros(dim))

    @property
    def config(self):
        return {"dim": self.dim}

    def forward(self, x):
        u = self.log_power.exp() * x.asinh()
        return u.sinh(), (self.log_power + u.cosh().log() - 0.5 * torch.log1p(x.square())).sum(-1)

    def inverse(self, y):
        return (y.asinh() / self.log_power.exp()).sinh()


class FixedPoint(wprox.Solver):
    """y ← (y + x − γ∇F(y))/2, which converges to the step for γL < 3."""

    accepts = (wprox.Particles, Cloud)
    rounds = 200

    def solve(self, problem, state):
        rho = problem.measure
        for _ in range(self.rounds):
            gradient = problem.functional.wasserstein_gradient(rho)
            rho = rho.at((rho.points + problem.measure.points - problem.step_size * gradient) / 2)
        return wprox.Solved(rho, problem.cost(rho), residual=problem.residual(rho), iterations=self.rounds)


def cloud(n=20):
    return Cloud(torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=F64))


def test_a_functional_of_ones_own():
    assert len(testing.check_functional(SquaredSpread())) > 10
    assert "first variation in points" in testing.check_functional(SquaredSpread(), dim=3, seed=5)


def test_a_measure_of_ones_own():
    laws = testing.check_measure(cloud())
    assert {"integrals", "pairs", "convolutions", "other points", "other precisions", "subsets", "draws"} <= set(laws)
    assert "gradient in points" in testing.check_functional(wprox.InteractionEnergy(half_square), measures=[cloud()])


def test_maps_of_ones_own():
    assert set(testing.check_map(TailMap(3))) == {name_of(law) for law in testing.maps.LAWS}
    assert "config" in testing.check_map(wprox.ComposedMap([wprox.AffineMap(2), TailMap(2)]))


def test_a_solver_of_ones_own():
    problems = ["quadratic potential", "interaction", "a functional of one's own"]
    laws = testing.check_solver(FixedPoint(), problems=problems, measures=starts()[:1])
    assert {"descent", "known answer", "subclasses", "single precision", "precisions agree"} <= set(laws)
    assert "mass" in testing.check_solver(FixedPoint(), problems=problems[:1], measures=[cloud()])


@pytest.mark.parametrize(
    "solver",
    [
        wprox.ParticleProx(),
        wprox.ParticleProx("exact"),
        wprox.ExplicitEuler(),
        wprox.ExplicitEuler(accelerated=True),
        wprox.NeuralProx(map=wprox.AffineMap, iterations=80, learning_rate=0.1),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_solvers_of_particles_take_a_measure_of_ones_own(solver):
    laws = testing.check_solver(solver, problems=["quadratic potential"], measures=[cloud()], rtol=0.05)
    assert {"report", "precision and graph", "mass", "previous", "single precision"} <= set(laws)


# --- functionals that break a law


class Base(SquaredSpread):
    """What the broken ones are but for one thing."""


def broken(**overrides):
    return type("Broken", (Base,), overrides)()


def call(f):
    return {"__call__": lambda self, rho: f(rho)}


def spread(rho):
    return rho.integrate(half_square)


def first_heavy(rho):
    return spread(rho) + 0.1 * rho.points[0].sum()


def drifting():
    count = iter(range(10**6))
    return lambda rho: spread(rho) + 0.1 * next(count)


def parametric(p, cut):
    return broken(**call(lambda rho: spread(rho) * (p.detach() if cut else p).sum().to(rho.points)))


class CountedTwice(torch.autograd.Function):
    """The identity, but for its derivative where that is to be differentiated again."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope if torch.is_grad_enabled() else slope


P = torch.ones(1, dtype=F64, requires_grad=True)
FUNCTIONALS = {
    "value": (
        broken(**call(lambda rho: spread(rho).double())),
        {"measures": [rho.to(torch.float32) for rho in starts()]},
    ),
    "modes": (broken(**call(lambda rho: spread(rho) * (1 + torch.is_grad_enabled()))), {}),
    "representation": (broken(__repr__=lambda self: "two\nlines"), {}),
    "steps": (broken(at_step=lambda self, k: None), {}),
    "precision": (broken(**call(lambda rho: spread(rho) * (1 + (rho.dtype == torch.float32)))), {}),
    "order": (broken(**call(first_heavy)), {}),
    "splitting": (broken(**call(lambda rho: spread(rho) + rho.weights.square().sum())), {}),
    "sums and multiples": (broken(__mul__=lambda self, c: self, __rmul__=lambda self, c: self), {}),
    "gradient in points": (broken(wasserstein_gradient=lambda self, rho: 0.9 * rho.points), {}),
    "gradient without a graph": (
        broken(
            wasserstein_gradient=lambda self, rho: (
                (spread(rho) * 2 - 1) * rho.points * torch.ones(1, requires_grad=True)
            )
        ),
        {"exempt": ["sums and multiples"]},
    ),
    "gradient with a graph": (broken(**call(lambda rho: CountedTwice.apply(spread(rho)))), {}),
    "first variation in points": (broken(first_variation=lambda self, rho: half_square), {}),
    "gradient in weights": (broken(**call(lambda rho: rho.weights.detach() @ half_square(rho.points))), {}),
    "first variation in weights": (
        broken(
            first_variation=lambda self, rho: (
                lambda x: (2 * spread(rho) - 1) * half_square(x) + (x - rho.points[0]).norm(dim=1).sign().detach()
            )
        ),
        {},
    ),
    "gradient in parameters": (parametric(P, cut=True), {"parameters": [P]}),
    "structure": (broken(structure=lambda self: wprox.Entropy().structure()), {"measures": sample_measures(2)[2:]}),
    "modulus": (broken(modulus=5.0), {}),
}


def test_every_law_of_functionals_is_broken_by_someone():
    assert set(FUNCTIONALS) == {name_of(law) for law in testing.functionals.LAWS}


@pytest.mark.parametrize("law", FUNCTIONALS)
def test_functionals_that_break_a_law(law):
    functional, options = FUNCTIONALS[law]
    with pytest.raises(
        AssertionError, match=rf"^law '{law}' of [\s\S]*: .*, at \w+ of \d+ points in dimension 2, float"
    ):
        testing.check_functional(functional, **options)


def test_a_functional_that_refuses_everything_is_not_checked():
    with pytest.raises(
        AssertionError, match=r"nothing was checked: KL\(Gaussian\) refuses every measure.* dimension 2"
    ):
        testing.check_functional(PROBLEMS["Gaussian KL"].functional(2), dim=1)
    curt = broken(**call(lambda rho: (_ for _ in ()).throw(TypeError("no"))))
    with pytest.raises(AssertionError, match=r"law 'refusals' .* is no sentence"):
        testing.check_functional(curt)
    with pytest.raises(AssertionError, match=r"law 'value' of .* raised ZeroDivisionError"):
        testing.check_functional(broken(**call(lambda rho: 1 / 0)))


# --- measures that break a law


def measure(base=wprox.Particles, points=None, **overrides):
    cls = type("Broken", (base,), overrides)
    return cls(cloud(12).points if points is None else points)


def normal():
    return {"loc": torch.zeros(2, dtype=F64), "covariance_matrix": torch.eye(2, dtype=F64)}


def gaussian(**overrides):
    return type("Broken", (wprox.Gaussian,), overrides)(**normal())


def heavy():
    rho = cloud()
    rho.weights = rho.weights * 1.1
    return rho


def negative():
    rho = cloud()
    rho.weights = torch.cat((rho.weights[:1] * -1, rho.weights[1:2] * 3, rho.weights[2:]))
    return rho


def without_itself(self, k):
    at_zero = k(torch.zeros_like(self.points[:1]))
    return Cloud.integrate_pairs(self, k) - self.weights.square().sum() * (at_zero if at_zero.ndim == 0 else at_zero[0])


MEASURES = {
    "shapes": lambda: measure(dtype=torch.float16),
    "weights": negative,
    "integrals": lambda: measure(Cloud, integrate=lambda self, f: 2 * self.weights @ f(self.points)),
    "functions of points": lambda: measure(
        Cloud,
        integrate=lambda self, f: torch.tensordot(
            self.weights, f(self.points).expand(len(self), *f(self.points).shape[1:]), dims=1
        ),
    ),
    "quadratic pairs": lambda: measure(Cloud, integrate_pairs=lambda self, k: Cloud.integrate_pairs(self, k) / 2),
    "pairs": lambda: measure(Cloud, integrate_pairs=without_itself),
    "convolutions": lambda: measure(Cloud, convolve=lambda self, k, x=None: 2 * Cloud.convolve(self, k, x)),
    "density known": lambda: measure(Cloud, density_known=True),
    "density": lambda: gaussian(mean_log_density=lambda self: self.log_density().mean() + 1),
    "density at points": lambda: gaussian(log_density_at=lambda self, x: self.log_prob(x) + 1),
    "score": lambda: gaussian(score=lambda self: self.points - self.loc),
    "push by the identity": lambda: measure(Cloud, push=lambda self, map: Cloud(map(self.points)[0] + 1e-3)),
    "push moves the mean": lambda: measure(Cloud, push=lambda self, map: Cloud(self.points)),
    "push changes the density": lambda: gaussian(
        push=lambda self, map: wprox.Gaussian(map(self.loc[None])[0][0], self.covariance_matrix)
    ),
    "other points": lambda: measure(Cloud, at=lambda self, y: self),
    "other precisions": lambda: measure(Cloud, to=lambda self, dtype: self),
    "detached": lambda: measure(
        Cloud,
        push=lambda self, map: type(self)(
            map(self.points)[0] if isinstance(map(self.points), tuple) else map(self.points)
        ),
        detach=lambda self: self,
    ),
    "subsets": lambda: measure(Cloud, subset=lambda self, index: self),
    "draws": lambda: measure(Cloud, sample=lambda self, n, seed=None: self.points[torch.randint(len(self), (n,))]),
    "draws have the mean": lambda: measure(Cloud, sample=lambda self, n, seed=None: Cloud.sample(self, n, seed) + 0.1),
}


def test_every_law_of_measures_is_broken_by_someone():
    assert set(MEASURES) == {name_of(law) for law in testing.measures.LAWS}


@pytest.mark.parametrize("law", MEASURES)
def test_measures_that_break_a_law(law):
    with pytest.raises(AssertionError, match=rf"^law '{law}' of [\s\S]*, at .* of \d+ points in dimension 2"):
        testing.check_measure(MEASURES[law]())


def test_weights_that_do_not_sum_to_one():
    with pytest.raises(AssertionError, match=r"law 'weights' of .*the sum of the weights is 1\.1.* and 1 1"):
        testing.check_measure(heavy())


# --- maps that break a law


def tail_map(**overrides):
    return type("Broken", (TailMap,), overrides)(2)


def with_unused():
    map = tail_map(config=property(lambda self: {"dim": self.dim}))
    map.unused = nn.Parameter(torch.zeros(1))
    return map


def shifted(self, x):
    y, log_det = TailMap.forward(self, x)
    return y + 1, log_det


class Forgetful(TailMap):
    """Shifts by an option that its config does not mention."""

    def __init__(self, dim=2, shift=1.0):
        super().__init__(dim)
        self.shift = shift

    config = property(lambda self: {"dim": self.dim, "shift": 0.0})

    def forward(self, x):
        y, log_det = super().forward(x)
        return y + self.shift, log_det

    def inverse(self, y):
        return super().inverse(y - self.shift)


MAPS = {
    "shapes": lambda: tail_map(
        forward=lambda self, x: (TailMap.forward(self, x)[0], TailMap.forward(self, x)[1][:, None])
    ),
    "identity": lambda: tail_map(forward=shifted, inverse=lambda self, y: TailMap.inverse(self, y - 1)),
    "gradients": with_unused,
    "round trip": lambda: tail_map(inverse=lambda self, y: TailMap.inverse(self, y) * (1 + 1e-3)),
    "log determinant": lambda: tail_map(
        forward=lambda self, x: (TailMap.forward(self, x)[0], 2 * TailMap.forward(self, x)[1])
    ),
    "rows": lambda: tail_map(
        forward=lambda self, x: TailMap.forward(self, x - x.mean(0).detach()), inverse=lambda self, y: y
    ),
    "copies": lambda: tail_map(__deepcopy__=lambda self, memo: self),
    "config": Forgetful,
}


def test_every_law_of_maps_is_broken_by_someone():
    assert set(MAPS) == {name_of(law) for law in testing.maps.LAWS}


@pytest.mark.parametrize("law", MAPS)
def test_maps_that_break_a_law(law):
    earlier = [name_of(other) for other in testing.maps.LAWS if name_of(other) != law]
    exempt = earlier if law in ("rows", "copies") else []
    with pytest.raises(AssertionError, match=rf"^law '{law}' of \w+: .*, at 100 points in dimension 2, float32"):
        testing.check_map(MAPS[law](), exempt=exempt)


# --- solvers that break a law


class Almost(FixedPoint):
    """What the broken ones are but for one thing."""

    rounds = 60

    def solve(self, problem, state):
        return self.after(super().solve(problem, state), problem)

    def after(self, solved, problem):
        return solved


def changed(**fields):
    """A solver that changes some of what it solved, by functions of it and the problem."""
    from dataclasses import replace

    def after(self, solved, problem):
        return replace(solved, **{name: f(solved, problem) for name, f in fields.items()})

    return type("Broken", (Almost,), {"after": after})()


def solver(**overrides):
    return type("Broken", (Almost,), overrides)()


def stepping(change):
    def step(self, functional, measure, step_size, **options):
        return change(self, functional, measure, step_size, options)

    return solver(step=step)


def reweighted(s, p):
    rho = wprox.Particles(s.measure.points, s.measure.weights.flip(0))
    return rho


def spoil(self, F, rho, gamma, options):
    result = Almost.step(self, F, rho, gamma, **options)
    rho.points.mul_(0.5)
    return result


def without_previous(self, F, rho, gamma, options):
    return Almost.step(self, F, rho, gamma, held_out=options.get("held_out"))


def unchecked(self, F, rho, gamma, options):
    gamma = gamma if gamma > 0 and math.isfinite(gamma) else 0.5
    return Almost.step(self, F, rho, gamma, **options)


def bare(self, F, rho, gamma, options):
    F = F if isinstance(F, wprox.Functional) else wprox.PotentialEnergy(half_square)
    return Almost.step(self, F, rho, gamma, **options)


def as_parent(self, F, rho, gamma, options):
    terms = getattr(F, "terms", [(1.0, F)])
    plain = [(c, wprox.PotentialEnergy(t.potential) if isinstance(t, wprox.PotentialEnergy) else t) for c, t in terms]
    return Almost.step(self, sum(c * t for c, t in plain), rho, gamma, **options)


def in_float64(self, F, rho, gamma, options):
    held_out = options.pop("held_out", None)
    return Almost.step(self, F, rho.to(F64), gamma, held_out=held_out, **options)


def coarse(self, F, rho, gamma, options):
    step = Almost.step(self, F, rho, gamma, **options)
    if rho.dtype == torch.float32:
        step = Almost.step(self, F, rho.at(rho.points + 0.1), gamma, **options)
    return step


SOLVERS = {
    "descent": changed(transport_cost=lambda s, p: 3 * s.transport_cost),
    "known answer": solver(rounds=3),
    "transport cost": changed(transport_cost=lambda s, p: s.transport_cost / 2),
    "report": changed(residual=lambda s, p: -1.0),
    "precision and graph": changed(transport_cost=lambda s, p: s.transport_cost.float()),
    "mass": changed(measure=reweighted),
    "map of the step": changed(map=lambda s, p: wprox.AffineMap(2).double()),
    "start is left alone": stepping(spoil),
    "previous": stepping(without_previous),
    "held out": changed(held_out=lambda s, p: wprox.Particles(torch.zeros(1, 2)) if p.held_out is not None else None),
    "single precision": stepping(in_float64),
    "precisions agree": stepping(coarse),
    "step sizes": stepping(unchecked),
    "what is no functional": stepping(bare),
    "anchor": solver(takes_anchor=True),
    "subclasses": stepping(as_parent),
}
ALL_LAWS = [name_of(law) for law in (*testing.solvers.LAWS, *testing.solvers.GENERAL_LAWS)]


def test_every_law_of_solvers_is_broken_by_someone():
    assert set(SOLVERS) == set(ALL_LAWS)


@pytest.mark.parametrize("law", SOLVERS)
def test_solvers_that_break_a_law(law):
    exempt = [name for name in ("descent", "known answer", "transport cost") if law in ("mass", "start is left alone")]
    with pytest.raises(
        AssertionError, match=rf"^law '{law}' of Broken: .*, at the problem 'quadratic potential' from "
    ):
        testing.check_solver(SOLVERS[law], problems=["quadratic potential"], measures=starts()[:1], exempt=exempt)


def test_a_solver_that_refuses_everything_is_not_checked():
    with pytest.raises(AssertionError, match=r"nothing was checked: QuantileProx refuses everything.*needs Quantiles"):
        testing.check_solver(wprox.QuantileProx(), measures=starts()[:1])


# --- what is asked of the wrong thing


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (testing.check_functional, SquaredSpread),
        (testing.check_functional, half_square),
        (testing.check_measure, torch.zeros(2, 2)),
        (testing.check_map, TailMap),
        (testing.check_solver, wprox.ParticleProx),
    ],
)
def test_instances_are_asked(check, wrong):
    with pytest.raises(AssertionError, match="needs an instance of a wprox"):
        check(wrong)


def test_exemptions_are_from_laws_that_there_are():
    with pytest.raises(ValueError, match="exempt must hold names of laws out of"):
        testing.check_functional(SquaredSpread(), exempt=["sorting"])
    with pytest.raises(ValueError, match="exempt must hold names of laws out of"):
        testing.check_measure(cloud(), exempt="draws")
    with pytest.raises(ValueError, match="there are no problems"):
        testing.check_solver(wprox.ParticleProx(), problems=["sudoku"])
    assert "draws" not in testing.check_measure(cloud(), exempt=["draws"])
