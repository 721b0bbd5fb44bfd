"""Pictures: what they show is what they were given; nothing touches pyplot."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch

import wprox
from wprox import JKOFlow, Particles, Trajectory
from wprox.plot import Panel, draw, plot_flow, plot_samples, plot_trajectory

matplotlib.use("agg")


def particles(n, dim, shift=0.0, **options):
    return Particles(torch.randn(n, dim, generator=torch.Generator().manual_seed(0)) + shift, **options)


def trajectory_of(measures):
    return Trajectory(measures, [torch.tensor(1.0 / (k + 1)) for k in range(len(measures))])


def drawn(figure, tmp_path):
    """Rendering finds what building does not."""
    figure.savefig(tmp_path / "picture.png")
    return figure


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_trajectory_in_any_dimension(tmp_path, dim):
    axes = trajectory_of([particles(200, dim, k) for k in range(8)]).plot(count=3)
    drawn(axes[0].figure, tmp_path)
    titles = [ax.get_title() for ax in axes]
    assert titles == ["start" if dim < 3 else "start (coordinates 1 and 2 of 5)", "step 4", "step 7", "F"]
    assert axes[-1].lines[0].get_ydata() == pytest.approx([1 / (k + 1) for k in range(8)])
    assert axes[0].get_xlim() == axes[2].get_xlim()


def test_trajectory_shorter_than_the_count(tmp_path):
    axes = trajectory_of([particles(50, 2), particles(50, 2, 1.0)]).plot()
    assert [ax.get_title() for ax in axes] == ["start", "step 1", "F"]


def test_trajectory_on_axes_of_ones_own(tmp_path):
    figure = matplotlib.figure.Figure()
    own = figure.subplots(2, 3)
    axes = plot_trajectory(trajectory_of([particles(50, 2), particles(50, 2, 1.0)]), own, count=5)
    assert axes == [own[0, 0], own[0, 1], own[1, 2]]
    assert not own[0, 2].get_visible()
    with pytest.raises(ValueError, match="plotting 5 measures and the values needs 6 axes, got 2"):
        plot_trajectory(trajectory_of([particles(50, 2)] * 5), own[0, :2])
    with pytest.raises(ValueError, match="count must be at least 1"):
        plot_trajectory(trajectory_of([particles(50, 2)]), count=0)


def test_points_are_as_large_as_their_weights(tmp_path):
    weights = torch.tensor([0.1, 0.2, 0.7])
    axes = trajectory_of([Particles(torch.eye(3)[:, :2], weights)]).plot()
    sizes = axes[0].collections[0].get_sizes()
    assert sizes / sizes.max() == pytest.approx((weights / weights.max()).numpy())


def test_density_on_the_line_where_it_is_known(tmp_path):
    known = Particles.from_distribution(torch.distributions.MultivariateNormal(torch.zeros(1), torch.eye(1)), 500, 0)
    gaussian = wprox.Gaussian(torch.zeros(1), torch.eye(1))
    axes = trajectory_of([known, gaussian, particles(500, 1)]).plot(count=3)
    for ax in axes[:2]:
        x, density = ax.lines[0].get_data()
        assert density == pytest.approx(np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), rel=1e-4)
    heights = np.array([bar.get_height() * bar.get_width() for bar in axes[2].patches])
    assert not axes[2].lines
    assert heights.sum() == pytest.approx(1)


def test_a_weighted_grid_on_the_line_has_one_bar_a_node(tmp_path):
    nodes = torch.linspace(0, 1, 21)[:, None]
    weights = torch.softmax(-10 * nodes[:, 0], 0)
    bars = trajectory_of([Particles(nodes, weights)]).plot()[0].patches
    assert [bar.get_height() for bar in bars] == pytest.approx((weights / 0.05).tolist(), rel=1e-3)


def some_grid(shape, power=1.0, **options):
    x = [torch.linspace(0.5, 1.5, n, dtype=torch.float64) ** (power * (axis + 1)) for axis, n in enumerate(shape)]
    mass = torch.stack(torch.meshgrid(*x, indexing="ij")).prod(0)
    if "mask" in options:
        mass[options["mask"]] = 0
    return wprox.Grid(mass, [(0.0, 2.0 + axis) for axis in range(len(shape))], **options)


def test_a_grid_in_the_plane_is_an_image_with_its_walls(tmp_path):
    mask = torch.zeros(96, 90, dtype=torch.bool)
    mask[20:25, 30:] = True
    grids = [some_grid((96, 90), power, mask=mask) for power in (1.0, 4.0)]
    axes = trajectory_of(grids).plot()
    drawn(axes[0].figure, tmp_path)
    assert [ax.get_title() for ax in axes] == ["start", "step 1", "F"]
    for ax, grid in zip(axes, grids, strict=False):
        (image,) = ax.images
        assert not ax.collections  # no dots
        assert np.array_equal(np.ma.getmaskarray(image.get_array()), mask.T)
        assert image.get_array().filled(0) == pytest.approx(grid.density.T.numpy())
        assert image.get_extent() == [0.0, 2.0, 0.0, 3.0]
        assert image.get_clim() == (0.0, pytest.approx(float(grid.density.max())))  # colours of its own
        assert ax.get_xlabel() == f"density 0 to {float(grid.density.max()):.3g}"
        assert (ax.get_xlim(), ax.get_ylim()) == ((0.0, 2.0), (0.0, 3.0))
        assert matplotlib.colors.to_rgb(ax.get_facecolor()) == (0.75, 0.75, 0.75)


def test_a_grid_in_space_is_its_middle_slice_and_says_so(tmp_path):
    grid = some_grid((6, 7, 8))
    axes = trajectory_of([grid, grid]).plot()
    drawn(axes[0].figure, tmp_path)
    assert [ax.get_title() for ax in axes] == ["start (z = 2.25)", "step 1", "F"]
    assert axes[0].images[0].get_array().filled() == pytest.approx(grid.density[:, :, 4].T.numpy())
    assert float(grid.points[4, 2]) == 2.25


def test_a_grid_on_the_line_is_a_line_over_its_cells(tmp_path):
    mask = torch.tensor([False, False, True, False, False])
    grid = some_grid((5,), mask=mask)
    axes = trajectory_of([grid, grid]).plot()
    drawn(axes[0].figure, tmp_path)
    for ax in (axes[0], grid.plot()):
        x, y = ax.lines[0].get_data()
        assert x == pytest.approx([0.0, 0.4, 0.4, 0.8, 0.8, 1.2, 1.2, 1.6, 1.6, 2.0])
        assert np.nan_to_num(y[::2]) == pytest.approx(grid.density.numpy())
        assert np.isnan(y) == pytest.approx(mask.repeat_interleave(2).numpy())
        (wall,) = ax.patches
        assert (wall.get_x(), wall.get_width()) == pytest.approx((0.8, 0.4))
        assert ax.get_xlim() == (0.0, 2.0)
        assert ax.get_ylim()[0] == 0


def test_quantiles_and_kernel_densities_are_drawn_as_densities(tmp_path):
    line = wprox.Quantiles.from_icdf(lambda u: 2 * u, 50)
    axes = trajectory_of([line, particles(100, 1).with_kernel_density(0.5)]).plot()
    drawn(axes[0].figure, tmp_path)
    assert axes[0].lines[0].get_ydata() == pytest.approx(np.full(len(line), 0.5))
    assert axes[1].lines
    assert axes[0].get_xlim() == axes[1].get_xlim()


def test_a_measure_of_ones_own_says_how_it_is_drawn():
    class Circle(Particles):
        pass

    @draw.register(Circle)
    def _(measure, ax):
        ax.plot(*measure.points.T)
        return Panel(measure.points.numpy(), "closed")

    class Inside(Circle):
        pass

    angle = torch.linspace(0, 2 * np.pi, 100)
    points = torch.stack((angle.cos(), angle.sin()), 1)
    axes = trajectory_of([Inside(points), Inside(2 * points)]).plot()
    assert [ax.get_title() for ax in axes] == ["start (closed)", "step 1", "F"]
    assert axes[0].lines
    assert not axes[0].collections
    assert axes[0].get_xlim() == pytest.approx((-2.4, 2.4), abs=0.01)


def test_gaussian_in_the_plane_is_drawn_by_samples(tmp_path):
    axes = trajectory_of([wprox.Gaussian(torch.zeros(2), torch.eye(2))]).plot()
    points = axes[0].collections[0].get_offsets()
    assert len(points) > 1000
    assert np.cov(points.T) == pytest.approx(np.eye(2), abs=0.15)


@pytest.mark.parametrize("dim", [1, 2, 3, 40])
def test_samples(tmp_path, dim):
    real = np.random.default_rng(0).normal(size=(100, dim))
    figure = drawn(plot_samples(real, torch.as_tensor(real[:50] + 1), [f"c{j}" for j in range(dim)]), tmp_path)
    titles = [ax.get_title() for ax in figure.axes]
    if dim == 2:
        assert titles == ["data", "generated"]
        assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    else:
        assert len(titles) == min(dim, 16)
        assert titles[0] == "c0"
        assert titles[-1] == f"c{dim - 1}"
        legend_title = figure.legends[0].get_title().get_text()
        assert legend_title == ("16 of 40 columns" if dim == 40 else "")


def test_samples_of_integers_have_one_bar_a_value(tmp_path):
    real = np.random.default_rng(0).integers(0, 5, size=(300, 3))
    figure = plot_samples(real, real)
    assert figure.axes[0].patches[0].get_width() == 1
    assert figure.axes[0].patches[0].get_height() == pytest.approx(np.mean(real[:, 0] == 0))


def test_samples_of_different_columns():
    with pytest.raises(ValueError, match=r"tables of the same columns, got \(5, 2\), \(5, 3\)"):
        plot_samples(np.zeros((5, 2)), np.zeros((5, 3)))


@pytest.mark.parametrize("dim", [1, 2, 4])
def test_flow(tmp_path, dim):
    x = np.random.default_rng(0).normal(size=(200, dim)) + 3
    flow = JKOFlow(n_blocks=2, iterations=5, tol=1e-9, fine_tune_iterations=2, batch_size=32).fit(x)
    figure = drawn(plot_flow(flow, x), tmp_path)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["data", *(f"block {k + 1}" for k in range(len(flow.blocks_))), "validation NLL (nats)"]
    blocks = [entry["held_out_nll"] for entry in flow.history_ if "step_size" in entry]
    assert figure.axes[-1].lines[0].get_ydata() == pytest.approx(blocks)
    assert len(plot_flow(flow, x, panels=1).axes) == 2


def test_importing_wprox_and_drawing_leaves_pyplot_alone():
    code = """
import sys, torch, wprox, wprox.plot, wprox.cli
assert "matplotlib" not in sys.modules
wprox.plot.plot_samples(torch.zeros(3, 2), torch.ones(3, 2)).savefig(sys.stderr.buffer, format="png")
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_slice_that_is_all_wall_is_drawn():
    walls = torch.zeros(4, 4, 4, dtype=torch.bool)
    walls[:, :, 2] = True
    grid = wprox.Grid.from_density(lambda x: torch.exp(-x.square().sum(-1)), (4, 4, 4), [(-1.0, 1.0)] * 3, walls)
    assert len(grid.plot()) == 3
    assert len(wprox.Trajectory([grid], [torch.tensor(1.0)]).plot()) == 2
