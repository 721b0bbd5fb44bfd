"""The planar densities: mass, samples that follow the density, seeds, and the quadrature of the two moons."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from wprox import datasets

DENSITIES = datasets.planar()


@pytest.fixture(params=list(DENSITIES))
def density(request):
    return DENSITIES[request.param]


def grid(density, shape):
    """Midpoints (shape[0] · shape[1], 2) of the cells of a grid on the box, and the cells' area."""
    axes, area = [], 1.0
    for (low, high), count in zip(density.bounds, shape, strict=True):
        width = (high - low) / count
        axes.append(low + width * (torch.arange(count, dtype=torch.float64) + 0.5))
        area *= width
    return torch.cartesian_prod(*axes), area


def test_planar_names_all_five():
    assert list(DENSITIES) == ["checkerboard", "eight_gaussians", "rings", "two_moons", "image"]
    assert all(name == density.name for name, density in DENSITIES.items())


@pytest.mark.parametrize("name", ["checkerboard", "eight_gaussians", "rings", "two_moons"])
def test_density_integrates_to_one(name):
    points, area = grid(DENSITIES[name], (300, 300))
    mass = float(DENSITIES[name].log_prob(points).exp().sum()) * area
    # the box leaves out at most the tail beyond 5 standard deviations
    assert mass == pytest.approx(1, abs=2e-6)


def test_image_density_integrates_to_one():
    density = datasets.from_image(datasets.rose_image(32))
    points, area = grid(density, (300, 300))
    assert float(density.log_prob(points).exp().sum()) * area == pytest.approx(1, abs=2e-6)


def test_image_density_on_a_grid_is_its_log_prob():
    density = datasets.from_image(datasets.rose_image(24)[:, 4:])
    first, second = torch.linspace(-4, 4, 50).double(), torch.linspace(-5, 5, 60).double()
    expected = density.log_prob(torch.cartesian_prod(first, second)).exp()
    assert torch.allclose(density._density_on_grid(first, second).flatten(), expected, rtol=1e-10, atol=1e-300)


def cell_masses(density, cells, per_cell):
    """The mass of each of cells × cells boxes, by the midpoint rule with per_cell² points in each."""
    n = cells * per_cell
    points, area = grid(density, (n, n))
    if isinstance(density, datasets.ImageDensity):
        axes = points.view(n, n, 2)
        values = density._density_on_grid(axes[:, 0, 0], axes[0, :, 1])
    else:
        values = density.log_prob(points).exp()
    return values.view(cells, per_cell, cells, per_cell).sum(dim=(1, 3)) * area


def test_samples_follow_the_density(density):
    """Pearson's χ² on 12 × 12 cells; with the fixed seed it passes or fails for ever, and a correct sampler would fail
    for one seed in 10⁴."""
    n, cells = 100_000, 12
    expected = n * cell_masses(density, cells, per_cell=120 if density.name == "image" else 20).flatten()
    low = torch.tensor([bound[0] for bound in density.bounds])
    width = torch.tensor([(bound[1] - bound[0]) / cells for bound in density.bounds])
    index = ((density.sample(n, seed=0) - low) / width).floor().long()
    inside = ((index >= 0) & (index < cells)).all(1)
    assert int((~inside).sum()) <= 5  # n times a millionth, and then some
    observed = torch.bincount(index[inside] @ torch.tensor([cells, 1]), minlength=cells**2).double()
    enough = expected >= 10  # cells with fewer are pooled, as χ² needs
    observed = torch.cat((observed[enough], observed[~enough].sum()[None]))
    expected = torch.cat((expected[enough], expected[~enough].sum()[None]))
    kept = expected > 0.5
    statistic = float(((observed - expected).square() / expected)[kept].sum())
    assert statistic < chi2.ppf(1 - 1e-4, int(kept.sum()) - 1)
    assert float(observed[~kept].sum()) <= 5


def test_entropy_is_the_mean_of_minus_log_prob(density):
    """Within five standard errors: a false alarm for one seed in 10⁶."""
    values = -density.log_prob(density.sample(2000, seed=1))
    # the checkerboard's log-density is constant, so its standard error is zero
    assert abs(float(values.mean()) - density.entropy()) <= 5 * float(values.std()) / math.sqrt(2000) + 1e-12


def test_entropy_of_one_gaussian_is_closed_form():
    one = datasets.ImageDensity([[1.0]], half_width=1.0, sigma=0.3)
    assert one.entropy() == pytest.approx(1 + math.log(2 * math.pi * 0.3**2), abs=1e-9)


def test_seeds_reproduce(density):
    first, again, other = density.sample(50, seed=3), density.sample(50, seed=3), density.sample(50, seed=4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (50, 2)
    assert first.dtype == density.log_prob(first).dtype == torch.float64


def test_sampling_leaves_the_global_generator_alone(density):
    before = torch.random.get_rng_state()
    density.sample(10, seed=0)
    density.sample(10)
    assert torch.equal(before, torch.random.get_rng_state())


def moons_by_brute_force(x, std):
    """log p by the trapezoidal rule with 200,000 nodes."""
    t = np.linspace(0, np.pi, 200_001)
    weights = np.full(t.shape, 1 / 200_000)
    weights[[0, -1]] /= 2
    curves = (np.stack((np.cos(t), np.sin(t))), np.stack((1 - np.cos(t), 0.5 - np.sin(t))))
    values = []
    for point in x.numpy():
        parts = []
        for curve in curves:
            exponent = -((point[:, None] - curve) ** 2).sum(0) / (2 * std**2)
            parts.append(exponent.max() + np.log(weights @ np.exp(exponent - exponent.max())))
        values.append(np.logaddexp(*parts) - np.log(4 * np.pi * std**2))
    return torch.tensor(values)


@pytest.mark.parametrize("std", [0.03, 0.1, 0.5])
def test_two_moons_against_brute_force(std):
    density = datasets.TwoMoons(std)
    # draws, both centres, the ends of the arcs and a point far in the tail
    special = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, 0.0], [1.0, 0.0], [2.0, 0.5], [0.5, 0.25], [-2.0, 3.0]])
    x = torch.cat((density.sample(20, seed=0), special.double()))
    assert torch.allclose(density.log_prob(x), moons_by_brute_force(x, std), rtol=1e-8, atol=1e-8)


def test_two_moons_do_not_depend_on_the_company_of_a_point():
    density = datasets.TwoMoons()
    x = density.sample(5, seed=0)
    far = torch.cat((x, torch.tensor([[80.0, -90.0]]).double()))
    assert torch.allclose(density.log_prob(far)[:5], density.log_prob(x), atol=1e-10, rtol=0)


def test_blocks_do_not_change_the_value(density, monkeypatch):
    x = density.sample(40, seed=0)
    expected = density.log_prob(x)
    monkeypatch.setattr(datasets, "BLOCK_VALUES", 1)
    assert torch.equal(density.log_prob(x), expected)


def test_rings_density_is_that_of_a_blurred_circle():
    rings = datasets.Rings(radii=(2.0,), std=0.4)
    angles = torch.arange(2000, dtype=torch.float64) * 2 * math.pi / 2000
    circle = 2 * torch.stack((angles.cos(), angles.sin()), dim=1)
    x = torch.tensor([[0.0, 0.0], [1.0, 0.5], [-2.0, 3.0]]).double()
    kernel = torch.exp(-torch.cdist(x, circle).square() / (2 * 0.4**2)) / (2 * math.pi * 0.4**2)
    assert torch.allclose(rings.log_prob(x), kernel.mean(1).log(), atol=1e-10)


def test_rose_is_drawn_with_thin_lines():
    image = datasets.rose_image()
    assert image.shape == (256, 256)
    assert image.min() == 0
    assert 0.99 < image.max() <= 1
    assert (image > 0).sum() == 14_282
    assert image[image > 0].min() >= 0.05


def test_rose_pixel_is_a_gaussian_of_its_distance_to_the_line():
    size = 64
    t = np.linspace(0, 2 * np.pi, 4000)
    circle = 0.95 * np.stack((np.cos(t), np.sin(t)))
    pixel = np.array([0.015625, 0.953125])  # row 1, column 32: near nothing but the circle
    distance = np.sqrt(((pixel[:, None] - circle) ** 2).sum(0)).min()
    assert datasets.rose_image(size)[1, 32] == pytest.approx(0.8 * np.exp(-(distance**2) / (2 * 0.0062**2)))


def test_image_rows_run_from_the_top():
    image = np.zeros((4, 8))
    image[0, 7] = 1.0  # the top right corner
    density = datasets.from_image(image, half_width=4.0)
    assert density.centres.tolist() == [[3.5, 1.5]]
    assert density.sigma == 0.5
    assert density.bounds == [(-6.5, 6.5), (-4.5, 4.5)]


def test_digits():
    x = datasets.digits()
    assert x.shape == (1797, 64)
    assert x.dtype == torch.float64
    assert (float(x.min()), float(x.max())) == (0, 16)
    assert torch.equal(x, x.round())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: datasets.ImageDensity(np.zeros((4, 4))), "at least one positive pixel"),
        (lambda: datasets.ImageDensity(-np.ones((4, 4))), "non-negative"),
        (lambda: datasets.ImageDensity(np.full((4, 4), np.nan)), "finite"),
        (lambda: datasets.ImageDensity(np.ones((4, 4, 3))), r"got \(4, 4, 3\)"),
        (lambda: datasets.ImageDensity(np.ones((4, 4)), half_width=-1), "half_width must be positive"),
        (lambda: datasets.ImageDensity(np.ones((4, 4)), sigma=0), "sigma must be positive"),
        (lambda: datasets.EightGaussians(std=0), "std must be positive"),
        (lambda: datasets.EightGaussians(radius=math.nan), "radius must be positive"),
        (lambda: datasets.Rings(radii=()), "radii is empty"),
        (lambda: datasets.Rings(radii=(1.0, -1.0)), r"radii\[1\] must be positive"),
        (lambda: datasets.TwoMoons(std=-0.1), "std must be positive"),
        (lambda: datasets.rose_image(2), "size must be at least 8"),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_calls(density):
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        density.sample(0)
    with pytest.raises(TypeError, match="n must be an integer"):
        density.sample(1.5)
    with pytest.raises(ValueError, match="x has 3 columns, expected 2"):
        density.log_prob(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="NaN or infinite"):
        density.log_prob([[0.0, math.nan]])
