"""One gauntlet for all transport maps: a new class adds one line to `MAPS`.

The laws are those of `wprox.testing.check_map`, in float32 and float64. What is covered: every map in dimensions 2 and
8, and one map of each kind, those in `EVERYWHERE`, in dimensions 1, 3 and 32 too; the flows, whose calls are slow, in
all five dimensions together. Log-determinants that are estimated are tested in all dimensions in
float64, and in dimension 8 in float32.
"""

import math
from functools import partial

import pytest
import torch

import wprox
from wprox._random import seeded
from wprox.maps import RescaledMap
from wprox.maps._memory import PeakMemory, rows_at_once
from wprox.maps.base import apply_in_batches, invert_in_batches
from wprox.testing import check_map
from wprox.testing.laws import name_of
from wprox.testing.maps import LAWS

MAPS = {
    "affine": wprox.AffineMap,
    "coupling": wprox.SplineMap,
    "coupling, no affine": partial(wprox.SplineMap, affine=False, transforms=3),
    "autoregressive": partial(wprox.SplineMap, coupling=False, hidden=(16,), bins=6),
    "autoregressive, no affine": partial(wprox.SplineMap, coupling=False, affine=False, hidden=(16,), bins=6),
    "with dropout": partial(wprox.SplineMap, dropout=0.5),
    "residual": wprox.ResidualMap,
    "residual, no affine": partial(wprox.ResidualMap, affine=False, blocks=2, hidden=(32,), lipschitz=0.8),
    "convex": wprox.ConvexMap,
    "convex, one group": partial(wprox.ConvexMap, groups=1, pieces=8),
    "ode": partial(wprox.ODEMap, hidden=(24, 24), tolerance=1e-10),
    "ode, shallow": partial(wprox.ODEMap, hidden=(32,), activation="softplus", method="midpoint", tolerance=1e-10),
    "ode, deep": partial(wprox.ODEMap, hidden=(8, 8, 8), activation="silu", exact_dim=1, tolerance=1e-10),
    "rescaled": lambda dim: RescaledMap(wprox.SplineMap(dim, bins=4), torch.full((dim,), 2.0), 3.0),
    "composed": lambda dim: wprox.ComposedMap([wprox.AffineMap(dim), wprox.SplineMap(dim, bins=4)]),
}
EVERYWHERE = ["affine", "coupling", "autoregressive", "residual", "convex", "composed"]
FLOWS = {"ode": [2], "ode, shallow": [1, 3, 32], "ode, deep": [8]}  # a call takes tenths of a second
CASES = [(name, dim) for name in MAPS for dim in FLOWS.get(name, [1, 2, 3, 8, 32] if name in EVERYWHERE else [2, 8])]
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}


@pytest.fixture(params=list(MAPS))
def factory(request):
    return MAPS[request.param]


def build(factory, dim, dtype=torch.float64, perturb=0.05, seed=0):
    """A map away from the identity, in evaluation mode."""
    with seeded(seed):
        map = factory(dim).to(dtype).eval()
        with torch.no_grad():
            for parameter in map.parameters():
                parameter += perturb * torch.randn_like(parameter)
    return map


def points(n, dim, dtype):
    # some of them outside the splines' box [−5, 5]
    return 3 * torch.randn(n, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_laws(name, dim):
    """Shapes, gradients, round trips, log-determinant, rows one by one, deep copies, config and state_dict."""
    laws = check_map(MAPS[name](dim))
    assert set(laws) == {name_of(law) for law in LAWS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_identity_at_initialisation(factory, dtype):
    """As the factory gives it; the law asks the map that its config builds."""
    x = points(50, 3, dtype)
    y, log_det = build(factory, 3, dtype, perturb=0.0)(x)
    assert torch.allclose(y, x, atol=TOLERANCE[dtype], rtol=0)
    assert torch.allclose(log_det, torch.zeros_like(log_det), atol=TOLERANCE[dtype])


def test_a_stiff_map_has_its_inverse_too(factory):
    """Slopes down to 1e-3, where x depends on y with a condition number of 10⁴ and more."""
    map = build(factory, 8, perturb=0.1)
    x = points(200, 8, torch.float64)
    with torch.no_grad():
        assert float((map.inverse(map(x)[0]) - x).abs().max()) < 1e-7


STOCHASTIC = {
    "residual": (partial(wprox.ResidualMap, hidden=(4,), blocks=2, log_det="series", affine=False), 0.3),
    "convex": (partial(wprox.ConvexMap, groups=2, pieces=12, log_det="stochastic"), 0.1),
    "convex, 6 Lanczos steps": (
        partial(wprox.ConvexMap, groups=2, pieces=12, log_det="stochastic", lanczos_steps=6),
        0.1,
    ),
    "ode": (partial(wprox.ODEMap, hidden=(8, 8, 8), exact_dim=0, steps=1), 0.15),  # one step, so that no jitter is
}


@pytest.mark.parametrize(
    ("dim", "dtype"),
    [*((dim, torch.float64) for dim in (1, 2, 8, 32)), (8, torch.float32)],
    ids=lambda value: str(value).removeprefix("torch."),
)
@pytest.mark.parametrize("name", list(STOCHASTIC))
def test_stochastic_log_det_is_unbiased_in_value_and_derivative(name, dim, dtype):
    """z-tests, |z| < 4.5: false alarms 7e-6 a test; a bias of 6.5 standard errors is found with probability 0.977, and
    that is asserted to be under 0.12 nats in all dimensions together.

    Batches are independent; within one, rows share the roulette. The default number of Lanczos steps is 20.
    """
    factory, perturb = STOCHASTIC[name]
    if dim == 32 and name != "residual":  # so that the spread of one probe is about one
        perturb *= 0.3
    map = build(factory, dim, dtype, perturb)
    x = points(8, dim, dtype) / 3
    with seeded(3):
        direction = [torch.randn_like(p) for p in map.parameters()]

    def value_and_slope(x):
        log_det = map(x)[1].mean()
        gradients = torch.autograd.grad(log_det, list(map.parameters()), allow_unused=True)
        return float(log_det.detach()), sum(
            float((g * v).sum()) for g, v in zip(gradients, direction, strict=True) if g is not None
        )

    with map.discretised():
        exact = torch.tensor(value_and_slope(x), dtype=torch.float64)
        size = float(map(x)[1].detach().abs().mean())
    map.train()
    with seeded(5):
        draws = torch.tensor([value_and_slope(x.repeat(8, 1)) for _ in range(200)], dtype=torch.float64)
    error = draws.std(0) / math.sqrt(len(draws))
    if name != "residual" and dim == 1:  # where a probe is ±1
        assert torch.allclose(draws, exact.expand_as(draws), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        return
    z = (draws.mean(0) - exact) / error
    assert float(z.abs().max()) < 4.5, z
    assert float(6.5 * error[0]) < 0.12  # the power
    assert float(draws.std(0).min()) > 1e-4  # it is the stochastic mode that is tested
    assert size > 5 * float(error[0])  # and the log-determinants are not 0


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_second_derivatives_are_differences_of_the_first(factory, training):
    """The curvature of a pushed log-density, along one direction at each point; and a Jacobian by `torch.func`."""
    map = build(factory, 3).train(training)
    x, direction = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def score(x):
        x = x.clone().requires_grad_()
        with seeded(0):
            y, log_det = map(x)
            return x, *torch.autograd.grad((log_det - y.square().sum(1) / 2).sum(), x, create_graph=True)

    start, first = score(x)
    (curvature,) = torch.autograd.grad((first * direction).sum(), start)
    h = 1e-5
    difference = (score(x + h * direction)[1] - score(x - h * direction)[1]).detach() / (2 * h)
    # of a row, ∇² log p · direction
    assert torch.allclose(curvature, difference, rtol=1e-4, atol=1e-4)
    if not training:
        (jacobian,) = torch.func.jacrev(lambda x: map(x)[0].sum(0))(x).transpose(0, 1)[:1]
        assert torch.allclose(torch.linalg.slogdet(jacobian)[1], map(x)[1][0], atol=1e-8)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_no_rows(factory, training):
    map = build(factory, 3).train(training)
    none = torch.empty(0, 3, dtype=torch.float64)
    y, log_det = map(none)
    assert y.shape == map.inverse(none).shape == (0, 3)
    assert log_det.shape == (0,)


def test_in_batches_is_at_once(factory):
    map = build(factory, 3)
    x = points(50, 3, torch.float64)
    with torch.no_grad():
        y, log_det = map(x)
    in_batches, log_det_in_batches = apply_in_batches(map, x, batch_size=20)
    assert not in_batches.requires_grad
    assert torch.allclose(in_batches, y, atol=1e-12)
    assert torch.allclose(log_det_in_batches, log_det, atol=1e-12)
    assert torch.allclose(invert_in_batches(map, y, batch_size=20), x, atol=1e-8)


# --- what is particular to one class ---


def test_affine_from_matrix():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    map = wprox.AffineMap.from_matrix(matrix, [1.0, -1.0])
    x = points(4, 2, torch.float64)
    y, log_det = map(x)
    assert torch.allclose(map.matrix, matrix)
    assert torch.allclose(y, x @ matrix + torch.tensor([1.0, -1.0]).double())
    assert torch.allclose(log_det, matrix.logdet().expand(4))


def test_affine_matrix_stays_symmetric_positive_definite():
    map = build(wprox.AffineMap, 8, perturb=2.0)
    assert torch.allclose(map.matrix, map.matrix.mT)
    assert float(torch.linalg.eigvalsh(map.matrix.detach()).min()) > 0


def test_composed_map_applies_the_first_map_first():
    scale = wprox.AffineMap.from_matrix(2 * torch.eye(2))
    shift = wprox.AffineMap.from_matrix(torch.eye(2), [1.0, 0.0])
    map = wprox.ComposedMap([scale, shift])
    assert torch.allclose(map(torch.ones(1, 2))[0], torch.tensor([[3.0, 2.0]]))
    assert torch.allclose(map.inverse(torch.tensor([[3.0, 2.0]])), torch.ones(1, 2))
    assert map.maps == [scale, shift]


def test_splines_are_the_identity_outside_their_box():
    map = build(partial(wprox.SplineMap, affine=False, bound=2.0), 1)
    x = torch.tensor([[-2.5], [2.5], [100.0]]).double()
    assert torch.allclose(map(x)[0], x)
    assert torch.allclose(map(x)[1], torch.zeros(3).double())
    assert float((map(x / 100)[0] - x / 100).detach().abs().max()) > 1e-3


def test_dropout_acts_in_training_only():
    map = build(MAPS["with dropout"], 8)
    x = points(20, 8, torch.float64)
    assert torch.equal(map(x)[0], map(x)[0])
    map.train()
    with seeded(0):
        assert not torch.equal(map(x)[0], map(x)[0])


def test_every_coordinate_moves():
    """Each transform leaves half of the coordinates; a pair of them moves all, in turned or permuted axes."""
    for dim in (2, 3, 8):
        map = build(partial(wprox.SplineMap, affine=False), dim)
        x = points(50, dim, torch.float64).clamp(-3, 3)
        assert bool(((map(x)[0] - x).abs().amax(0) > 1e-3).all())


def test_options_change_the_map():
    def count(**options):
        return sum(parameter.numel() for parameter in wprox.SplineMap(2, **options).parameters())

    assert count(transforms=4) > count(transforms=2)
    assert count(bins=32) > count(bins=8)
    assert count(hidden=(128,)) > count(hidden=(32,))
    assert count(frequencies=8) > count(frequencies=0)
    assert count(affine=False) == count() - 6
    assert wprox.SplineMap(2, hidden=()).config["hidden"] == []


def test_seed_decides_the_initial_map():
    first, again, other = (build(wprox.SplineMap, 3, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: wprox.AffineMap(0), ValueError, "dim must be at least 1, got 0"),
        (lambda: wprox.AffineMap(2.0), TypeError, "dim must be an integer"),
        (
            lambda: wprox.AffineMap.from_matrix(torch.zeros(2, 3)),
            ValueError,
            r"shape \(d, d\), one row a coordinate, got \(2, 3\)",
        ),
        (lambda: wprox.AffineMap.from_matrix([[1.0, 1.0], [0.0, 1.0]]), ValueError, "symmetric"),
        (lambda: wprox.AffineMap.from_matrix(-torch.eye(2)), ValueError, "smallest eigenvalue is -1"),
        (lambda: wprox.ComposedMap([]), ValueError, "at least one map"),
        (lambda: wprox.ComposedMap([wprox.AffineMap(1), wprox.AffineMap(2)]), ValueError, r"got \[1, 2\]"),
        (lambda: wprox.SplineMap(0), ValueError, "dim must be at least 1"),
        (lambda: wprox.SplineMap(2, transforms=0), ValueError, "transforms must be at least 1"),
        (lambda: wprox.SplineMap(2, bins=1), ValueError, "bins must be at least 2"),
        (lambda: wprox.SplineMap(2, hidden=(8, 0)), ValueError, r"hidden\[1\] must be at least 1"),
        (lambda: wprox.SplineMap(2, frequencies=-1), ValueError, "frequencies must be at least 0"),
        (lambda: wprox.SplineMap(2, bound=0.0), ValueError, "bound must be positive"),
        (lambda: wprox.SplineMap(2, dropout=1.0), ValueError, r"dropout must lie in \[0, 1\), got 1"),
        (lambda: wprox.TransportMap(), TypeError, "abstract"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("dim", [10, 300])
def test_rows_at_once_take_no_more_than_the_budget(dim):
    map = wprox.SplineMap(dim, affine=False).eval()
    x = torch.randn(4000, dim)
    for budget in (2**24, 2**26):
        rows = rows_at_once(map, x, budget)
        assert 1 <= rows < 4000 or dim == 10
        with torch.no_grad(), PeakMemory() as memory:
            map(x[:rows])
        assert memory.peak <= 0.6 * budget
    for together, apart in zip(
        apply_in_batches(map, x, 4000), apply_in_batches(map, x, memory_budget=2**24), strict=True
    ):
        assert torch.allclose(together, apart, atol=1e-6)


def test_peak_memory_counts_what_is_alive():
    with PeakMemory() as memory:
        x = torch.zeros(1000)
        y = x + 1
        del x
        z = y.view(10, 100) * 2
    assert memory.peak == 8000
    assert memory.now == 8000
    del y, z
    assert memory.now == 0
