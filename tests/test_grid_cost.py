"""The transport cost of steps on grids: a bound of W₂², around walls too, that is exact where a step is simple."""

import math

import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import dijkstra

import wprox
from wprox.solvers.grid.cost import transport_bound
from wprox.solvers.grid.geodesics import Geodesics
from wprox.solvers.grid.scaling import ScalingIteration
from wprox.solvers.grid.terms import sort_terms
from wprox.solvers.grid.walls import make_kernel
from wprox.transport.rosenblatt import rosenblatt_plan

F64 = torch.float64


def histogram(shape, seed, sparsity=0.0, mask=None):
    generator = torch.Generator().manual_seed(seed)
    mass = torch.rand(shape, generator=generator, dtype=F64) ** 4
    mass = mass * (torch.rand(shape, generator=generator) >= sparsity)
    mass = mass if mask is None else mass.masked_fill(mask, 0.0)
    if not float(mass.sum()) > 0:
        mass = torch.ones(shape, dtype=F64) if mask is None else (~mask).double()
    return wprox.Grid(mass, [(-1.0, 1.0), (0.0, 3.0), (0.0, 0.5)][: len(shape)], mask)


def exact(mu, rho, squares=None):
    squares = torch.cdist(mu.points, rho.points).square() if squares is None else squares
    weights = ((w / w.sum()).numpy() for w in (mu.weights, rho.weights))
    return float(ot.emd2(*weights, squares.numpy(), numItermax=10**6))


def bound(mu, rho, blur=0.3, log_scaling=None):
    kernel = make_kernel(mu, blur, None)
    terms = sort_terms(wprox.Entropy().structure(), mu, 1.0, kernel.rooms)
    iteration = ScalingIteration(terms, kernel, mu.weights, None, 1e-6, False)
    return float(
        transport_bound(mu, rho, iteration, torch.zeros_like(mu.weights) if log_scaling is None else log_scaling)
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.sampled_from([(7,), (1, 5), (4, 6), (6, 5), (3, 3, 4), (2, 1, 5)]),
    seed=st.integers(0, 10**6),
    sparsity=st.sampled_from([0.0, 0.5, 0.9]),
    blur=st.sampled_from([0.05, 0.5, 5.0]),
)
def test_the_cost_of_any_two_histograms_is_no_less_than_w2(shape, seed, sparsity, blur):
    mu, rho = histogram(shape, seed, sparsity), histogram(shape, seed + 1, sparsity)
    least, found = exact(mu, rho), bound(mu, rho, blur)
    assert found >= least * (1 - 1e-9) - 1e-14
    if len(shape) == 1:
        assert found == pytest.approx(least, rel=1e-9, abs=1e-14)
    assert bound(mu, mu, blur) == 0


@pytest.mark.parametrize("shape", [(6, 5), (4, 3, 5)])
def test_pieces_are_those_of_a_plan_between_the_two(shape):
    mu, rho = histogram(shape, 0, 0.3), histogram(shape, 1, 0.3)
    for order in ((0, 1, 2), (1, 2, 0))[: len(shape) - 1]:
        pieces = list(rosenblatt_plan(mu.mass, rho.mass, order[: len(shape)] if len(shape) == 3 else (1, 0)))
        for weights, end in ((mu.weights, 0), (rho.weights, 1)):
            sums = torch.zeros_like(weights).index_add_(0, pieces[0][end], pieces[0].mass)
            torch.testing.assert_close(sums, weights, rtol=0, atol=1e-15)


def test_product_maps_cost_their_w2():
    x, y = (histogram((n,), seed).weights for n, seed in ((9, 2), (7, 3)))
    z, t = (histogram((n,), seed).weights for n, seed in ((9, 4), (7, 5)))
    box = [(-1.0, 1.0), (0.0, 3.0)]
    mu, rho = wprox.Grid(x[:, None] * y, box), wprox.Grid(z[:, None] * t, box)
    assert bound(mu, rho) == pytest.approx(exact(mu, rho), rel=1e-9)


def ring(n):
    i = torch.arange(n) - n / 2 + 0.5
    return (i[:, None].square() + i.square()) < (n / 5) ** 2


def maze():
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[2, :-1] = mask[5, 1:] = mask[7, 4] = True
    return mask


def diagonal():
    return torch.eye(6, dtype=torch.bool)  # two rooms that meet at corners


@pytest.mark.parametrize("walls", [ring(10), maze(), diagonal()], ids=["ring", "maze", "diagonal"])
@pytest.mark.parametrize("seed", range(3))
def test_among_walls_the_cost_is_that_of_paths_around_them(walls, seed):
    mu, rho = (histogram(tuple(walls.shape), k, 0.5, walls) for k in (seed, seed + 9))
    if walls is not None and walls.shape == (6, 6):  # as a step does, keep the mass of each room
        above = mu.points[:, 0] / 2 + 0.5 > mu.points[:, 1] / 3
        weights = torch.where(above, rho.weights * mu.weights[above].sum() / rho.weights[above].sum(), 0.0)
        weights = weights + torch.where(above, 0.0, rho.weights * mu.weights[~above].sum() / rho.weights[~above].sum())
        rho = mu.with_weights(weights)
    found, geodesics = bound(mu, rho), Geodesics(mu)
    graph = torch.stack([geodesics.lengths_from(k) for k in range(len(mu))])
    i, j = torch.cartesian_prod(torch.arange(len(mu)), torch.arange(len(mu))).unbind(1)
    straight = torch.cdist(mu.points, mu.points).square()
    seen = geodesics.see(i, j).reshape(len(mu), len(mu))
    assert torch.equal(seen, seen.T)
    torch.testing.assert_close(graph, graph.T, rtol=1e-12, atol=0)
    assert bool((graph[seen] < math.inf).all())  # what is seen is in the same room
    shortest = torch.where(seen, straight, math.inf).sqrt()  # visibility graph: exact but for half cells at corners
    shortest = torch.from_numpy(dijkstra(shortest.masked_fill(shortest == math.inf, 0).numpy(), directed=False))
    finite = shortest.square().masked_fill(shortest == math.inf, 1e6)
    assert found >= exact(mu, rho, finite) * (1 - 1e-9)
    assert found < 5 * exact(mu, rho, finite)
    assert bound(mu, mu) == 0


@pytest.mark.parametrize("walls", [None, ring(20)], ids=["free", "ring"])
def test_flows_on_planes_arrive(walls):
    """The bound falls to 0 with W₂, where the best plan moves no axis by itself too: `jko(tol=...)` ends there."""

    def potential(x):
        return 2 * x[:, 0].square() + 4 * (x[:, 1] - 0.6 * x[:, 0].square() + 0.4).square()

    initial, rest = (
        wprox.Grid.from_density(density, (20, 20), [(-2.0, 2.0), (-2.0, 2.0)], walls)
        for density in (lambda x: torch.exp(-2 * (x - 1.2).square().sum(-1)), lambda x: torch.exp(-potential(x)))
    )
    functional, solver = wprox.PotentialEnergy(potential) + wprox.Entropy(), wprox.SinkhornProx(blur=0.3)
    trajectory = wprox.jko(functional, solver, initial, step_size=4.0, n_steps=20, tol=1e-2)
    assert trajectory.converged
    last = math.sqrt(float(trajectory.steps[-1].transport_cost))
    assert last <= 1e-2 * 4 < math.sqrt(float(trajectory.steps[-2].transport_cost))
    assert float((trajectory.final.weights - rest.weights).abs().sum()) < 0.01
