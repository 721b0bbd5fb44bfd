"""Grid: quadrature, convolution, walls, particles in and out, pictures and bad input."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import wprox

SHAPES = [(7,), (5, 6), (3, 4, 5)]


def bounds_of(shape):
    return [(-1.0, 1.0 + axis) for axis in range(len(shape))]


def random_grid(shape, seed=0, mask=None, dtype=torch.float64):
    mass = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if mask is not None:
        mass = mass * ~mask
    return wprox.Grid(mass, bounds_of(shape), mask)


def some_walls(shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_and_totals(shape):
    rho = random_grid(shape)
    n, d = math.prod(shape), len(shape)
    assert rho.points.shape == (n, d)
    assert rho.weights.shape == (n,)
    assert rho.dim == d
    assert rho.mass.shape == shape
    assert rho.density.shape == shape
    assert [len(axis) for axis in rho.axes] == list(shape)
    assert float(rho.weights.sum()) == pytest.approx(1, abs=1e-14)
    assert float(rho.density.sum()) * rho.cell_volume == pytest.approx(1, abs=1e-14)
    assert rho.points.dtype == torch.float64


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("walls", [False, True])
def test_integrate_pairs_is_the_double_sum(shape, walls):
    rho = random_grid(shape, mask=some_walls(shape) if walls else None)

    def k(z):
        return torch.exp(-z.square().sum(-1)) + z[:, 0]  # not symmetric

    assert torch.allclose(rho.integrate_pairs(k), rho.to_particles().integrate_pairs(k), rtol=1e-12)
    differences = (rho.points[:, None] - rho.points).reshape(-1, rho.dim)
    assert torch.allclose(rho.convolve(k), k(differences).reshape(len(rho), -1) @ rho.weights, rtol=1e-11)


def test_integrate_pairs_is_differentiable_twice():
    rho = random_grid((4, 3))

    def value(weights):
        return rho.with_weights(weights).integrate_pairs(lambda z: torch.cos(z).sum(-1)) ** 2

    assert torch.autograd.gradgradcheck(value, rho.weights.clone().requires_grad_())


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 70))
def test_convolution_of_every_length(n):
    rho = wprox.Grid(torch.ones(n, dtype=torch.float64), [(0.0, float(n))])
    assert torch.allclose(rho.convolve(lambda z: z[:, 0]), rho.points[:, 0] - n / 2, atol=1e-10)


def test_log_density_of_empty_cells():
    rho = wprox.Grid([0.0, 1.0, 3.0], bounds=[(0.0, 6.0)])
    assert torch.equal(rho.log_density(), torch.tensor([-math.inf, math.log(1 / 8), math.log(3 / 8)]))
    assert float(rho.mean_log_density()) == pytest.approx(0.25 * math.log(1 / 8) + 0.75 * math.log(3 / 8), rel=1e-6)
    assert float(wprox.PorousMedium(2.0)(rho)) == pytest.approx(2 * (1 / 64 + 9 / 64))
    assert float(wprox.PorousMedium(0.5)(rho)) == pytest.approx(-4 * (math.sqrt(1 / 8) + math.sqrt(3 / 8)))


def test_infinite_potential_counts_only_where_there_is_mass():
    wall = wprox.PotentialEnergy(lambda x: torch.where(x[:, 0] < 2, math.inf, 1.0))
    assert float(wall(wprox.Grid([0.0, 1.0, 3.0], bounds=[(0.0, 6.0)]))) == 1
    assert float(wall(wprox.Grid([1.0, 1.0, 3.0], bounds=[(0.0, 6.0)]))) == math.inf


def test_from_density_takes_distributions_and_callables():
    normal = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    a = wprox.Grid.from_density(normal, (40, 40), [(-5.0, 5.0)] * 2)
    b = wprox.Grid.from_density(lambda x: torch.exp(-x.square().sum(-1) / 2), (40, 40), [(-5.0, 5.0)] * 2)
    assert torch.allclose(a.weights, b.weights, atol=1e-15)
    assert float(a.mean_log_density()) == pytest.approx(-1 - math.log(2 * math.pi), abs=1e-4)


def test_dtype_goes_through():
    rho = random_grid((5, 6), dtype=torch.float32)
    assert rho.points.dtype == rho.weights.dtype == rho.density.dtype == torch.float32
    assert rho.to(torch.float64).points.dtype == torch.float64
    assert wprox.Grid(np.array([3, 1]), [(0, 1)]).weights.tolist() == [0.75, 0.25]


def test_walls_hold_no_points_and_no_mass():
    walls = some_walls((5, 6))
    rho = wprox.Grid.from_density(lambda x: 1 + x[:, 0].square(), (5, 6), bounds_of((5, 6)), walls)
    assert len(rho) == int((~walls).sum())
    assert float(rho.mass[walls].abs().sum()) == 0
    assert torch.equal(rho.flatten(rho.mass), rho.weights)
    assert torch.equal(rho.unflatten(rho.weights, fill=-1.0)[walls], -torch.ones(int(walls.sum())).double())


@settings(max_examples=30, deadline=None)
@given(
    points=st.lists(st.tuples(st.floats(0.5, 3.5), st.floats(0.5, 2.5)), min_size=1, max_size=20),
)
def test_from_particles_keeps_mass_and_mean(points):
    x = torch.tensor(points, dtype=torch.float64)
    rho = wprox.Grid.from_particles(x, (4, 3), [(0.0, 4.0), (0.0, 3.0)])
    assert float(rho.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.allclose(rho.integrate(lambda y: y), x.mean(0), atol=1e-9)


def test_from_particles_at_the_border_and_beside_a_wall():
    walls = torch.tensor([False, False, True, False])
    rho = wprox.Grid.from_particles([[0.0], [1.9], [4.0]], 4, [(0.0, 4.0)], walls)
    assert torch.allclose(rho.mass, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]))


def test_push_moves_the_mean():
    mass = torch.zeros(30, 30, dtype=torch.float64)
    mass[10:20, 10:20] = 1
    rho = wprox.Grid(mass, [(-2.0, 2.0)] * 2)
    shift = torch.tensor([0.31, -0.2], dtype=torch.float64)
    assert torch.allclose(rho.push(lambda x: x * 0.9 + shift).integrate(lambda x: x), shift, atol=1e-12)
    with pytest.raises(ValueError, match="outside the bounds"):
        rho.push(lambda x: x + 3)


def test_sample_follows_the_histogram():
    rho = wprox.Grid([1.0, 0.0, 3.0], bounds=[(0.0, 3.0)])
    x = rho.sample(4000, seed=0)[:, 0]
    assert torch.equal(x, rho.sample(4000, seed=0)[:, 0])
    assert not bool(((x > 1) & (x < 2)).any())
    assert float((x > 2).double().mean()) == pytest.approx(0.75, abs=0.03)
    assert float(x[x < 1].mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_plot_draws_in_every_dimension(shape):
    axes = random_grid(shape, mask=some_walls(shape)).plot()
    drawn = axes if isinstance(axes, list) else [axes]
    assert len(drawn) == (3 if len(shape) == 3 else 1)
    assert all(ax.lines or ax.images for ax in drawn)


def test_plot_takes_axes():
    axes = Figure().subplots(1, 3)
    assert random_grid((3, 4, 5)).plot(axes) == list(axes)
    assert random_grid((5, 6)).plot(axes[0]) is axes[0]
    with pytest.raises(ValueError, match="three axes"):
        random_grid((3, 4, 5)).plot(axes[:2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: wprox.Grid([1.0, -1.0, 2.0], [(0, 1)]), "must not be negative, the smallest entry is -1"),
        (lambda: wprox.Grid([0.0, 0.0], [(0, 1)]), "positive total"),
        (lambda: wprox.Grid([1.0, math.nan], [(0, 1)]), "NaN"),
        (lambda: wprox.Grid(torch.ones(3, 3), [(0, 1)]), "mass has 2 axes.*bounds has 1 pairs"),
        (lambda: wprox.Grid(torch.ones(2, 2, 2, 2), [(0, 1)] * 4), "one, two or three dimensions"),
        (lambda: wprox.Grid(1.0, []), "one, two or three dimensions"),
        (lambda: wprox.Grid(torch.ones(0), [(0, 1)]), "at least one cell"),
        (lambda: wprox.Grid([1.0, 1.0], (0, 1)), r"one pair \(low, high\) an axis"),
        (lambda: wprox.Grid([1.0, 1.0], [(1, 0)]), "low < high"),
        (lambda: wprox.Grid([1.0, 1.0], [(0, math.inf)]), "finite"),
        (lambda: wprox.Grid([1.0, 1.0], [(0, 1)], [1, 0]), "mask must be boolean"),
        (lambda: wprox.Grid([1.0, 1.0], [(0, 1)], [True]), "mask must be boolean"),
        (lambda: wprox.Grid([1.0, 3.0], [(0, 1)], [True, False]), "0.25 of the mass lies inside walls"),
        (lambda: wprox.Grid([1.0, 3.0], [(0, 1)], [True, True]), "every cell is a wall"),
        (lambda: wprox.Grid.from_density(lambda x: x[:, 0] - 5, 3, [(0, 1)]), "must not be negative"),
        (lambda: wprox.Grid.from_density(lambda x: x[:, 0] * math.inf, 3, [(0, 1)]), "density at the cell centres"),
        (lambda: wprox.Grid.from_density(lambda x: x, 3, [(0, 1)]), "one number a point"),
        (lambda: wprox.Grid.from_density(lambda x: x.sum(), 3, [(0, 1)]), "last axis"),
        (lambda: wprox.Grid.from_density(lambda x: x[:, 0], 0, [(0, 1)]), "at least 1"),
        (lambda: wprox.Grid.from_particles([[2.0]], 3, [(0, 1)]), "1 of 1 points lie outside the bounds"),
        (lambda: wprox.Grid.from_particles([[0.1]], 2, [(0, 1)], [True, False]), "inside walls"),
        (lambda: wprox.Grid.from_particles([[0.1, 0.1]], 2, [(0, 1)]), "dimension 2"),
        (lambda: random_grid((4,)).convolve(lambda z: -z.norm(dim=1).log()), "finite, at 0 too"),
        (lambda: wprox.Congestion(-1.0), "max_density must not be negative"),
        (lambda: wprox.Congestion(0), "max_density must be positive, got 0"),
        (lambda: wprox.Congestion(lambda x: 2 + x)(random_grid((4,))), r"one number a point, \(4,\), got \(4, 1\)"),
        (lambda: wprox.DensityBounds(2.0, 1.0), "lower must be below upper"),
        (lambda: wprox.DensityBounds(0.0, 1.0, tolerance=-1), "tolerance"),
        (lambda: wprox.Congestion(lambda x: x[:, 0] - 10)(random_grid((4,))), "0 ≤ lower ≤ upper"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bounds_of_the_wrong_type():
    with pytest.raises(TypeError, match="max_density must be a number or a function"):
        wprox.Congestion("one")


def test_density_of_the_wrong_type():
    with pytest.raises(TypeError, match=r"function of points.*got Tensor.*Grid\(mass, bounds\)"):
        wprox.Grid.from_density(torch.ones(3), 3, [(0, 1)])


def test_density_of_a_gaussian():
    normal = wprox.Gaussian(torch.zeros(2, dtype=torch.float64), 0.1 * torch.eye(2, dtype=torch.float64))
    rho = wprox.Grid.from_density(normal, (20, 20), [(-1, 1)] * 2)
    by_hand = wprox.Grid.from_density(lambda x: torch.exp(-5 * x.square().sum(-1)), (20, 20), [(-1, 1)] * 2)
    torch.testing.assert_close(rho.weights, by_hand.weights)


@pytest.mark.parametrize("values", [torch.full((4,), 1e38), torch.full((4,), 1e308, dtype=torch.float64)])
def test_total_that_overflows(values):
    assert wprox.Grid(values, [(0, 1)]).weights.tolist() == [0.25] * 4


def test_bounds_that_depend_on_the_place():
    rho = wprox.Grid([1.0, 3.0], bounds=[(0.0, 1.0)])  # densities 0.5 and 1.5
    assert float(wprox.Congestion(lambda x: 1 + x[:, 0])(rho)) == 0
    assert float(wprox.Congestion(lambda x: 1.6 - x[:, 0])(rho)) == math.inf
    assert float(wprox.DensityBounds(lambda x: 2 * x[:, 0])(rho)) == 0
    assert float(wprox.Congestion(1.4995, tolerance=1e-3)(rho)) == 0
