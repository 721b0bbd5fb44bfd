"""SinkhornProx among walls: the kernels against dense ones and exact distances, whole steps, rooms and robustness."""

import math
import warnings

import numpy as np
import pytest
import torch
from test_sinkhorn import check_products

import wprox
from wprox.solvers.grid.gibbs import GaussianKernel
from wprox.solvers.grid.walls import HeatKernel, SplitKernel

SQUARE = [(0.0, 1.0), (0.0, 1.0)]


def gaussian(variance, shape, half_width=1.0):
    return wprox.Grid.from_density(
        lambda x: torch.exp(-x.square().sum(-1) / (2 * variance)), shape, [(-half_width, half_width)] * len(shape)
    )


def distance(a, b):
    return float((a.weights - b.weights).abs().sum())


# --- the split kernel -----------------------------------------------------------------------------------------------


def uniform(walls):
    return wprox.Grid.from_density(
        lambda x: torch.ones_like(x[:, 0]), walls.shape, [(0.0, float(n)) for n in walls.shape], walls
    )


def door_and_pillar():
    walls = torch.zeros(13, 11, dtype=torch.bool)
    walls[6] = True
    walls[6, 7:9] = False
    walls[2:4, 3:5] = True
    return walls


def one_cell_wide():
    """A corridor that turns four times."""
    walls = torch.ones(12, 12, dtype=torch.bool)
    walls[1, 1:9] = walls[1:8, 8] = walls[7, 3:9] = walls[7:11, 3] = walls[10, 3:11] = False
    return walls


def staircase():
    """A corridor one cell wide that turns in every cell."""
    walls = torch.ones(12, 12, dtype=torch.bool)
    walls.diagonal().fill_(False)
    walls.diagonal(1).fill_(False)
    return walls


def three_dimensional():
    walls = torch.zeros(6, 5, 4, dtype=torch.bool)
    walls[3] = True
    walls[3, 1:3, 2] = False
    return walls


def two_halves():
    walls = torch.zeros(9, 8, dtype=torch.bool)
    walls[4] = True
    return walls


WALLS = {f.__name__: f() for f in (door_and_pillar, one_cell_wide, staircase, three_dimensional, two_halves)}


def dense(kernel, n):
    return torch.stack([kernel.apply(row) for row in torch.eye(n, dtype=torch.float64)])


def log_dense(kernel, n):
    return torch.stack([kernel.log_apply(row) for row in torch.eye(n, dtype=torch.float64).log()])


def variance(width):
    z = np.arange(-400.0, 401.0)
    weights = np.exp(-(z**2) / (2 * width**2))
    return (weights * z**2).sum() / weights.sum()


def reflected_flow(free, axis, width):
    """Heat flow along an axis from cell to cell, (n, n), by following every place of a lattice back into its run."""
    number = np.full(free.shape, -1)
    number[free] = np.arange(free.sum())
    flow = np.zeros((free.sum(), free.sum()))
    jumps = np.arange(-150, 151)
    weights = np.exp(-(jumps**2) / (2 * width**2))
    for line in np.moveaxis(number, axis, -1).reshape(-1, free.shape[axis]):
        for run in np.split(line, np.flatnonzero(np.diff(line < 0)) + 1):
            if run[0] < 0:
                continue
            for place, cell in enumerate(run):
                image = (place + jumps) % (2 * len(run))
                np.add.at(flow[cell], run[np.minimum(image, 2 * len(run) - 1 - image)], weights / weights.sum())
    return torch.from_numpy(flow)


@pytest.mark.parametrize("name", WALLS)
@pytest.mark.parametrize("blur", [0.3, 1.0, 2.5])
def test_split_kernel_is_the_product_of_reflected_flows(name, blur):
    grid = uniform(WALLS[name])
    kernel = SplitKernel(grid, blur)
    product = torch.eye(len(grid), dtype=torch.float64)
    flows = {factor: reflected_flow((~grid.mask).numpy(), *factor) for factor in set(kernel.factors)}
    for factor in kernel.factors:
        product = product @ flows[factor]
    torch.testing.assert_close(dense(kernel, len(grid)), product, rtol=1e-9, atol=1e-14)
    for axis in range(grid.dim):  # of the free kernel
        total = sum(variance(width) for other, width in kernel.factors if other == axis)
        assert total == pytest.approx(variance(blur), rel=1e-3, abs=2e-3)


@pytest.mark.parametrize("name", WALLS)
@pytest.mark.parametrize("blur", [0.3, 1.0, 2.5, 20.0])
def test_split_kernel_is_symmetric_stochastic_and_positive_within_rooms(name, blur):
    grid = uniform(WALLS[name])
    kernel = SplitKernel(grid, blur)
    matrix, logarithm = dense(kernel, len(grid)), log_dense(kernel, len(grid))
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(matrix.sum(0), torch.ones(len(grid), dtype=torch.float64), rtol=1e-13, atol=0)
    together = torch.ones_like(matrix, dtype=torch.bool)
    assert (kernel.rooms is None) == (name != "two_halves")
    if kernel.rooms is not None:
        together = kernel.rooms[:, None] == kernel.rooms
    assert bool((torch.isfinite(logarithm) == together).all())
    seen = matrix > 1e-280
    torch.testing.assert_close(logarithm[seen], matrix[seen].log(), rtol=1e-11, atol=1e-9)


@pytest.mark.parametrize("name", WALLS)
@pytest.mark.parametrize("span", [1.0, 600.0, 3e4])
def test_split_products_are_those_of_the_dense_kernel(name, span):
    """Of a smooth and a rough field, one with gaps; what the kernel domain does not call lost has all its digits."""
    grid = uniform(WALLS[name])
    kernel = SplitKernel(grid, 0.8)
    log_kernel = log_dense(kernel, len(grid))
    smooth = -span * (grid.points / 12).square().sum(-1)
    assert len(list(check_products(kernel, log_kernel, smooth, span, grid.points[:, 0] > 5))) == 3


def test_split_kernel_is_the_gaussian_one_far_from_walls():
    walls = torch.zeros(48, 48, dtype=torch.bool)
    walls[0, -1] = True
    grid = uniform(walls)
    centre = int((grid.points - 20.5).norm(dim=1).argmin())
    unit = torch.zeros(len(grid), dtype=torch.float64)
    unit[centre] = 1
    squared = (grid.points - grid.points[centre]).square().sum(-1)
    for blur, moves, error in ((1.0, 6, 1.6), (2.0, 6, 0.6), (3.0, 5, 0.2)):
        log_kernel = SplitKernel(grid, blur).log_apply(unit.log()) + math.log(2 * math.pi * blur**2)
        near = squared.sqrt() <= moves * blur
        assert float((log_kernel + squared / (2 * blur**2))[near].abs().max()) < error  # of up to moves²/2


# --- steps, rooms and bounds -----------------------------------------------------------------------------------------


def room(n=32):
    x, y = torch.meshgrid((torch.arange(n) + 0.5) / n, (torch.arange(n) + 0.5) / n, indexing="ij")
    return ((x - 0.6).abs() < 1.1 / n) & ((y - 0.5).abs() > 0.12)


def test_crowd_stays_below_its_bound_and_out_of_walls():
    walls = room()
    crowd = wprox.Grid.from_density(
        lambda x: ((x[:, 0] < 0.4) & ((x[:, 1] - 0.5).abs() < 0.3)).double(), walls.shape, SQUARE, walls
    )
    bound = 1.25 * float(crowd.density.max())
    door = torch.tensor([0.6, 0.5], dtype=torch.float64)
    way = wprox.PotentialEnergy(lambda x: torch.where(x[:, 0] < 0.6, (x - door).norm(dim=1), 0.6 - x[:, 0]))
    solver = wprox.SinkhornProx(blur=0.04, tol=1e-5)
    trajectory = wprox.jko(way + wprox.Congestion(bound), solver, crowd, 0.05, 12)
    assert all(step.converged for step in trajectory.steps)
    for rho in trajectory.measures:
        assert float(rho.density.max()) <= bound * (1 + 1e-3)
        assert abs(float(rho.mass.sum()) - 1) < 1e-10
        assert float(rho.mass[walls].abs().sum()) == 0
    assert float(trajectory.final.integrate(lambda x: (x[:, 0] > 0.6).double())) > 0.2
    values = torch.stack(trajectory.values)
    assert bool(torch.isfinite(values).all() & (values.diff() < 0).all())


def test_heat_kernel_is_the_gaussian_one_without_walls():
    grid = gaussian(0.02, (60, 60))
    blur = 0.1
    v = grid.weights
    heat, gauss = HeatKernel(grid, blur, 40).apply(v), GaussianKernel(grid, blur).apply(v)
    assert float((heat - gauss / gauss.sum()).abs().sum()) < 0.02
    assert float(heat.sum()) == pytest.approx(1, abs=1e-12)  # no flux through the border


def test_heat_kernel_distance_goes_around_the_wall():
    """Varadhan: −2 blur² log K is the squared geodesic distance, here over the top of a wall with a gap there."""
    n = 40
    walls = torch.zeros(n, n, dtype=torch.bool)
    walls[n // 2, : 3 * n // 4] = True
    grid = wprox.Grid.from_density(lambda x: torch.ones_like(x[:, 0]), (n, n), SQUARE, walls)

    def at(x, y):
        return int((grid.points - torch.tensor([x, y])).norm(dim=1).argmin())

    def squared(kernel, a, b):
        delta = torch.zeros(len(grid), dtype=torch.float64)
        delta[b] = 1
        return -2 * 0.1**2 * (kernel.apply(delta)[a] / kernel.apply(delta)[b]).log()

    kernel = HeatKernel(grid, 0.1, 60)
    start, end, corner = at(0.3, 0.4), at(0.7, 0.4), grid.points.new_tensor([0.5125, 0.7625])
    around = sum(float((grid.points[i] - corner).norm()) for i in (start, end))
    assert math.sqrt(float(squared(kernel, start, end))) == pytest.approx(around, rel=0.12)


def two_rooms(right=0.0):
    """40 cells with a wall at cell 20; a share of the mass in the right room, the rest left of 0.4."""
    walls = torch.zeros(40, dtype=torch.bool)
    walls[20] = True
    return wprox.Grid.from_density(
        lambda x: torch.where(x[:, 0] > 0.5, right / 19, (1 - right) * (x[:, 0] < 0.4).double() / 16),
        40,
        [(0.0, 1.0)],
        walls,
    )


@pytest.mark.parametrize("debias", [None, "entropy", "sinkhorn"])
@pytest.mark.parametrize("right", [0.0, 0.25])
@pytest.mark.parametrize("gamma", [0.05, 0.5, 10.0])
@pytest.mark.parametrize("slope", [0, 1, 100, 1e4])
def test_mass_stays_in_its_room(slope, gamma, right, debias):
    solver = wprox.SinkhornProx(debias=debias, iterations=100)
    step = solver.step(wprox.PotentialEnergy(lambda x: -slope * x[:, 0]) + wprox.Entropy(), two_rooms(right), gamma)
    beyond = float(step.measure.mass[21:].sum())
    assert beyond == 0 if right == 0 else abs(beyond - right) < 1e-12  # converged or not
    assert bool(torch.isfinite(step.measure.weights).all())
    assert math.isfinite(float(step.transport_cost))
    assert math.isfinite(float(step.value))


def test_congestion_in_a_room_keeps_the_mass_there():
    way = wprox.PotentialEnergy(lambda x: -5 * x[:, 0])
    for gamma, iterations in ((0.05, 2000), (0.5, 100)):
        step = wprox.SinkhornProx(iterations=iterations).step(way + wprox.Congestion(4.0), two_rooms(), gamma)
        assert float(step.measure.mass[21:].sum()) == 0
        assert step.converged or "a violation of" in step.message
        assert math.isfinite(float(step.value))  # the bound is kept all the same
        assert float(step.measure.density.max()) <= 4 * (1 + 1e-9)
    alone = wprox.Grid.from_density(lambda x: (x[:, 0] < 0.4).double(), 20, [(0.0, 0.5)])
    for gamma in (0.05, 0.5):
        step, free = (
            wprox.SinkhornProx().step(way + wprox.Congestion(4.0), rho, gamma) for rho in (two_rooms(), alone)
        )
        assert step.converged, step.message
        assert float(step.value) == pytest.approx(float(free.value), abs=1e-5)  # the wall is the end of the box
    assert float(step.value) == pytest.approx(-5 * 0.375, abs=1e-3)  # pressed against the wall at density 4


@pytest.mark.parametrize(
    ("bounds", "right", "message"),
    [
        (wprox.Congestion(1.2), 0.0, "20 cells of a room shut in by walls, one of 2, hold a mass of 0.6 in all.* 1 "),
        (wprox.Congestion(1.2), 0.7, "19 cells of a room.*hold a mass of 0.57 in all.* 0.7 there; raise"),
        (wprox.DensityBounds(0.1, 9.0), 0.0, "19 cells of a room.*demand a mass of 0.0475.* 0 there; lower"),
    ],
)
def test_bounds_that_a_room_cannot_keep_are_refused(bounds, right, message):
    with pytest.raises(ValueError, match=message):
        wprox.SinkhornProx().step(bounds, two_rooms(right), 0.5)


def beside_a_wall(n, with_wall):
    """A Gaussian, and a wall in the corner that its mass does not come near."""
    walls = torch.zeros(n, n, dtype=torch.bool)
    walls[-3:-1, : n // 2] = with_wall
    return wprox.Grid.from_density(lambda x: torch.exp(-60 * (x - 0.35).square().sum(-1)), (n, n), SQUARE, walls)


@pytest.mark.parametrize(("blur", "apart"), [(1 / 48, 0.04), (2 / 48, 0.005), (3 / 48, 0.015)])
def test_step_beside_a_harmless_wall_is_the_gaussian_one(blur, apart):
    """At a blur of one cell the factors are three, whose tails are longer: W₂² of the two steps differs by 3.8 %."""
    functional = wprox.PotentialEnergy(lambda x: 5 * x[:, 0]) + 0.5 * wprox.Entropy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver = wprox.SinkhornProx(blur=blur)
        free, walled = (solver.step(functional, beside_a_wall(48, flag), 0.005) for flag in (False, True))
    assert float((walled.measure.mass - free.measure.mass).abs().sum()) < 0.01
    assert float(walled.transport_cost) == pytest.approx(float(free.transport_cost), rel=apart)
    assert float(walled.value) == pytest.approx(float(free.value), rel=5e-3)


@pytest.mark.parametrize("gamma", [0.007, 0.02])
def test_moves_too_long_for_the_heat_kernel_warn(gamma):
    functional = wprox.PotentialEnergy(lambda x: 5 * x[:, 0])
    with pytest.warns(
        RuntimeWarning, match=r"falls off too slowly.*set heat_steps=None, raise blur to 0\.\d+, or lower step_size"
    ):
        wprox.SinkhornProx(heat_steps=10).step(functional, beside_a_wall(96, True), gamma)


def test_warning_of_long_moves_says_how_many_heat_steps_are_enough():
    functional, rho = wprox.PotentialEnergy(lambda x: 10 * x[:, 0]), beside_a_wall(96, True)
    with pytest.warns(RuntimeWarning, match=r"raise blur to 0\.\d+ or heat_steps to \d+"):
        wprox.SinkhornProx(blur=6 / 96, heat_steps=3).step(functional, rho, 0.01)


@pytest.mark.filterwarnings("ignore:mass moved by")  # the warning has tests of its own
def test_heat_steps_are_taken():
    walls = room(16)
    rho = wprox.Grid.from_density(lambda x: torch.exp(-9 * x.square().sum(-1)), (16, 16), SQUARE, walls)
    few, many = (wprox.SinkhornProx(heat_steps=k).step(wprox.Entropy(), rho, 0.01).measure for k in (1, 20))
    assert 1e-4 < distance(few, many) < 0.5


# --- whole steps ----------------------------------------------------------------------------------------------------


def a_room_with_a_door(n=24, dtype=torch.float64):
    walls = torch.zeros(n, n, dtype=torch.bool)
    walls[n // 2] = True
    walls[n // 2, n // 2 - 1 : n // 2 + 1] = False
    walls[3:5, 4:7] = True
    return wprox.Grid.from_density(
        lambda x: torch.exp(-30 * (x - x.new_tensor([0.3, 0.5])).square().sum(-1)), (n, n), SQUARE, walls, dtype
    )


TO_THE_RIGHT = wprox.PotentialEnergy(lambda x: -x[:, 0])


@pytest.mark.parametrize(
    ("functional", "debias"),
    [
        (wprox.Entropy(), None),
        (wprox.Entropy(), "sinkhorn"),
        (0.2 * wprox.PorousMedium(2.0), "entropy"),
        (TO_THE_RIGHT + wprox.Congestion(8.0), "entropy"),
    ],
)
def test_log_domain_is_the_same_iteration_among_walls(functional, debias):
    kernel, log = (
        wprox.SinkhornProx(blur=0.05, debias=debias, log_domain=flag).step(functional, a_room_with_a_door(), 5e-3)
        for flag in (False, True)
    )
    assert kernel.converged
    assert log.state.log_domain
    assert not kernel.state.log_domain
    assert log.iterations == kernel.iterations
    assert distance(log.measure, kernel.measure) < 1e-9


def test_underflow_among_walls_goes_to_the_log_domain():
    """All mass in one cell, from which it has to move by more than 60 blurs."""
    walls = torch.zeros(100, 3, dtype=torch.bool)
    walls[50, 0] = True
    mass = torch.zeros(100, 3, dtype=torch.float64)
    mass[10, 1] = 1
    rho = wprox.Grid(mass, [(0.0, 1.0), (0.0, 0.03)], walls)
    functional = wprox.PotentialEnergy(lambda x: 50 * (x[:, 0] - 0.8).square()) + wprox.Entropy()
    step = wprox.SinkhornProx(blur=0.01).step(functional, rho, 10.0)
    assert step.converged
    assert step.state.log_domain
    gibbs = wprox.Grid.from_density(
        lambda x: torch.exp(-50 * (x[:, 0] - 0.8).square()), rho.shape, rho.bounds, rho.mask
    )
    assert distance(step.measure, gibbs) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cells", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("gamma", [1e-5, 1e-3, 1e-1, 1e1])
def test_nothing_is_nan_among_walls_for_any_blur_and_step(cells, gamma, dtype):
    rho = a_room_with_a_door(12, dtype)
    functional = wprox.PorousMedium(2.0) + wprox.PotentialEnergy(lambda x: 5 * (x - 1).square().sum(-1))
    for debias in (None, "entropy", "sinkhorn"):
        step = wprox.SinkhornProx(blur=cells / 12, debias=debias, iterations=40).step(functional, rho, gamma)
        assert step.measure.dtype == step.value.dtype == step.transport_cost.dtype == dtype
        assert bool(torch.isfinite(step.measure.weights).all())
        assert math.isfinite(float(step.value))
        assert math.isfinite(float(step.transport_cost))
        assert float(step.measure.weights.double().sum()) == pytest.approx(1, abs=1e-6)
        assert step.converged or "tol is" in step.message or "needs a blur of at most" in step.message


@pytest.mark.parametrize("name", ["one_cell_wide", "staircase", "three_dimensional"])
@pytest.mark.parametrize("gamma", [0.1, 10.0])
def test_mass_is_kept_in_narrow_and_in_three_dimensional_walls(name, gamma):
    grid = uniform(WALLS[name])
    rho = grid.with_weights(torch.softmax(-2 * grid.points[:, 0], 0))
    step = wprox.SinkhornProx().step(wprox.PotentialEnergy(lambda x: -x[:, 0]) + wprox.Entropy(), rho, gamma)
    assert step.converged, step.message
    assert abs(float(step.measure.mass.sum()) - 1) < 1e-10
    assert float(step.measure.mass[grid.mask].abs().sum()) == 0
    assert float(step.measure.integrate(lambda x: x[:, 0])) > float(rho.integrate(lambda x: x[:, 0]))


def test_straight_corridor_is_the_line():
    """One cell wide: the step of the same cells without the walls, in one dimension."""
    walls = torch.ones(40, 3, dtype=torch.bool)
    walls[:, 1] = False
    functional = wprox.PotentialEnergy(lambda x: 3 * (x[:, 0] - 0.7).square()) + 0.1 * wprox.Entropy()

    def density(x):
        return torch.exp(-80 * (x[:, 0] - 0.4).square())

    corridor = wprox.Grid.from_density(density, (40, 3), [(0.0, 1.0), (0.0, 0.075)], walls)
    line = wprox.Grid.from_density(density, (40, 1), [(0.0, 1.0), (0.0, 0.025)])  # one cell wide: an estimate, too
    two, one = (wprox.SinkhornProx(tol=1e-8).step(functional, rho, 0.01) for rho in (corridor, line))
    assert distance(two.measure, one.measure) < 4e-3  # three factors in the place of one, at a blur of one cell
    assert float(two.transport_cost) == pytest.approx(float(one.transport_cost), rel=0.03)


def test_step_among_walls_stays_on_the_device(monkeypatch):
    """No tensor goes to numpy or to the CPU on the way."""

    def refused(self, *args, **kwargs):
        raise AssertionError("a tensor left its device")

    rho = a_room_with_a_door()
    for name in ("cpu", "numpy", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, refused)
    for options in ({}, {"log_domain": True}, {"debias": "sinkhorn"}):
        step = wprox.SinkhornProx(**options).step(wprox.Entropy(), rho, 1e-3)
        assert step.converged


def test_implicit_heat_flow_has_no_log_domain():
    rho = wprox.Grid([1.0, 0.0, 1.0], [(0.0, 1.0)], [False, True, False])
    with pytest.raises(ValueError, match="heat_steps=None"):
        wprox.SinkhornProx(log_domain=True, heat_steps=10).step(wprox.Entropy(), rho, 0.1)
