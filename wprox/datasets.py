"""Planar densities with a known log-density, a picture to make one from, and the handwritten digits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from wprox._checks import as_numbers, as_points, as_real, check_count, check_memory, check_positive
from wprox._random import Seed, make_generator
from wprox._sums import draw

if TYPE_CHECKING:
    from numpy.typing import NDArray

Bounds = list[tuple[float, float]]

BLOCK_VALUES = 2**22  # kernel values formed at once by `log_prob` where a density is a sum of many terms
MOST_NODES = 4000  # of the integral along a moon


class PlanarDensity(ABC):
    """A probability density on the plane that can be drawn from and evaluated exactly, in float64.

    Attributes:
        name: the key of the density in `planar()`.
        bounds: [(low, high), (low, high)], a box that holds all but a millionth of the mass, for grids and plots.
    """

    name: str
    bounds: Bounds

    @abstractmethod
    def sample(self, n: int, seed: Seed = None) -> Tensor:
        """n independent draws, (n, 2)."""

    def log_prob(self, x: Any) -> Tensor:
        """log p(x) for x: (n, 2), (n,).

        Raises:
            ValueError: where x does not have shape (n, 2) or is not finite.
        """
        return self._log_prob(as_points(x, "x", dim=2).double())

    @abstractmethod
    def _log_prob(self, x: Tensor) -> Tensor: ...

    @property
    @abstractmethod
    def _resolution(self) -> float:
        """The standard deviation of the noise: the length on which the density varies."""

    def entropy(self) -> float:
        """The differential entropy −∫ p log p dx, by the trapezoidal rule at a fifth of the noise's standard deviation.

        The rule converges geometrically for smooth functions that vanish at the boundary (Trefethen and Weideman,
        *The exponentially convergent trapezoidal rule*, 2014, section 5); the result is exact to 1e-8.
        """
        margin, spacing = 5 * self._resolution, self._resolution / 5
        axes = [torch.arange(low - margin, high + margin, spacing, dtype=torch.float64) for low, high in self.bounds]
        density = self._density_on_grid(*axes)
        return -float(torch.special.xlogy(density, density).sum()) * spacing**2

    def _density_on_grid(self, first: Tensor, second: Tensor) -> Tensor:
        return self._log_prob(torch.cartesian_prod(first, second)).exp()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Checkerboard(PlanarDensity):
    """The uniform density on 8 squares of side 2 in [−4, 4]², laid like the dark fields of a chessboard.

    Its entropy is log 32.

    Example:
        >>> density = Checkerboard()
        >>> density.log_prob([[-3.0, -3.0], [-1.0, -3.0]]).tolist()
        [-3.4657, -inf]
    """

    name = "checkerboard"

    def __init__(self) -> None:
        self.bounds = [(-4.0, 4.0)] * 2

    @property
    def _resolution(self) -> float:
        return 2.0

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        n, generator = _draws(n), make_generator(seed)
        within = 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
        column = torch.randint(4, (n,), generator=generator)
        row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
        return within + 2 * torch.stack((column, row), dim=1) - 4

    def _log_prob(self, x: Tensor) -> Tensor:
        field = torch.floor((x + 4) / 2)
        inside = ((field >= 0) & (field <= 3)).all(1) & (field.sum(1) % 2 == 0)
        log_density = torch.full((len(x),), -math.log(32), dtype=torch.float64)
        return log_density.masked_fill(~inside, -math.inf)

    def entropy(self) -> float:
        return math.log(32)


class EightGaussians(PlanarDensity):
    """Eight Gaussians of equal weight on a ring.

    Arguments:
        radius: of the ring.
        std: of each Gaussian.

    Example:
        >>> EightGaussians().sample(3, seed=0).shape
        torch.Size([3, 2])
    """

    name = "eight_gaussians"

    def __init__(self, radius: float = 4.0, std: float = 0.5) -> None:
        self.radius, self.std = check_positive(radius, "radius"), check_positive(std, "std")
        self.bounds = _square(self.radius + 5 * self.std)
        angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
        self.centres = self.radius * _on_circle(angles)

    @property
    def _resolution(self) -> float:
        return self.std

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        n, generator = _draws(n), make_generator(seed)
        return self.centres[torch.randint(8, (n,), generator=generator)] + self.std * _noise(n, generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        return _mixture_log_prob(x, self.centres, torch.full((8,), -math.log(8.0)).double(), self.std)


class Rings(PlanarDensity):
    r"""Concentric circles of equal weight, each drawn uniformly and blurred by Gaussian noise.

    A circle of radius R blurred by N(0, σ²I) has the density, at distance r from the centre,

        p(r) = exp(−(r² + R²)/(2σ²)) I₀(rR/σ²) / (2πσ²),

    with the modified Bessel function I₀: it is smooth, also at the centre.

    Arguments:
        radii: of the circles.
        std: σ.

    Example:
        >>> float(Rings(radii=(1e-9,), std=1.0).log_prob([[0.0, 0.0]]))  # a circle without extent: −log 2π
        -1.8379
    """

    name = "rings"

    def __init__(self, radii: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0), std: float = 0.1) -> None:
        given = as_numbers(radii, "radii")
        given = given if isinstance(given, list) else [given]
        if not given:
            raise ValueError("radii is empty; give at least one circle's radius")
        self.radii = tuple(check_positive(radius, f"radii[{k}]") for k, radius in enumerate(given))
        self.std = check_positive(std, "std")
        self.bounds = _square(max(self.radii) + 5 * self.std)

    @property
    def _resolution(self) -> float:
        return self.std

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        n, generator = _draws(n), make_generator(seed)
        radii = torch.tensor(self.radii, dtype=torch.float64)
        radius = radii[torch.randint(len(radii), (n,), generator=generator)]
        angle = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64)
        return radius[:, None] * _on_circle(angle) + self.std * _noise(n, generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        radii = torch.tensor(self.radii, dtype=torch.float64)
        variance = self.std**2
        r = x.norm(dim=1, keepdim=True)
        # i0e(z) = exp(−z) I₀(z): the exponents are combined, so that nothing overflows
        log_rings = -(r - radii).square() / (2 * variance) + torch.special.i0e(r * radii / variance).log()
        return log_rings.logsumexp(1) - math.log(2 * math.pi * variance * len(radii))


class TwoMoons(PlanarDensity):
    r"""Two interleaved half circles of radius 1 with Gaussian noise, as scikit-learn's `make_moons` draws them.

    With the curves c₁(t) = (cos t, sin t) and c₂(t) = (1 − cos t, ½ − sin t), the density

        p(x) = ½ Σ_k (1/π) ∫₀^π N(x; c_k(t), σ²I) dt

    is evaluated by Gauss–Legendre quadrature over t. The integrand is exp(κ cos(t − θ)) up to a factor, with
    κ = |x − centre|/σ²; the number of nodes grows with √κ, and log p is exact to 1e-8.

    Arguments:
        std: σ.

    Example:
        >>> TwoMoons().log_prob([[0.0, 1.0], [0.5, 0.25]])
        tensor([-0.4530, -9.1916], dtype=torch.float64)
    """

    name = "two_moons"

    def __init__(self, std: float = 0.1) -> None:
        self.std = check_positive(std, "std")
        reach = 5 * self.std
        self.bounds = [(-1 - reach, 2 + reach), (-0.5 - reach, 1 + reach)]

    @property
    def _resolution(self) -> float:
        return self.std

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        n, generator = _draws(n), make_generator(seed)
        upper = torch.randint(2, (n, 1), generator=generator).bool()
        arc = _on_circle(math.pi * torch.rand(n, generator=generator, dtype=torch.float64))
        return torch.where(upper, arc, torch.tensor([1.0, 0.5]) - arc) + self.std * _noise(n, generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        # the second moon is the first one turned by half a turn: c₂ = (1, ½) − c₁
        both = torch.cat((x, torch.tensor([1.0, 0.5]) - x))
        upper, lower = self._log_arc(both).split(len(x))
        return torch.logaddexp(upper, lower) - math.log(2)

    def _log_arc(self, x: Tensor) -> Tensor:
        """log (1/π) ∫₀^π N(x; (cos t, sin t), σ²I) dt."""
        farthest = float(x.norm(dim=1).max())
        count = 32 + 8 * math.sqrt(farthest) / self.std
        if not count <= MOST_NODES:
            raise ValueError(
                f"x has points {farthest:.3g} from the moons, whose density is found up to "
                f"{(MOST_NODES / 8 * self.std) ** 2:.3g} away; leave them out"
            )
        nodes, node_weights = np.polynomial.legendre.leggauss(math.ceil(count))
        angles = torch.from_numpy((nodes + 1) * math.pi / 2)
        return _mixture_log_prob(x, _on_circle(angles), torch.from_numpy(node_weights / 2).log(), self.std)


class ImageDensity(PlanarDensity):
    r"""The density that a picture shows: a mixture with one Gaussian a pixel, weighted by the pixel's value.

    The picture fills the box [−half_width, half_width] × [−h, h] with h = half_width · H/W, its first row on top. Its
    log-density is exact, so it tests density models on fine detail.

    Arguments:
        image: (H, W), non-negative; zero pixels carry no mass.
        half_width: of the picture in the plane.
        sigma: the standard deviation of the Gaussians; half a pixel by default.
        name: what to call the density.

    Raises:
        ValueError: where the image is not a grey-scale picture of non-negative, finite values, or is all zero.

    Example:
        >>> density = ImageDensity([[1.0, 0.0], [0.0, 1.0]], half_width=1.0)
        >>> density.log_prob([[-0.5, 0.5], [0.5, 0.5]])  # the first row is on top
        tensor([-1.1266, -2.4516], dtype=torch.float64)
    """

    def __init__(self, image: Any, half_width: float = 4.0, sigma: float | None = None, name: str = "image") -> None:
        if hasattr(image, "__array__") and not isinstance(image, Tensor | np.ndarray):  # as pictures of PIL have
            image = np.asarray(image)
        pixels = as_real(image, "image").double().clone()
        if pixels.ndim != 2:
            raise ValueError(
                f"image must have shape (H, W), got {tuple(pixels.shape)}; average the channels of a colour picture"
            )
        if not bool(torch.isfinite(pixels).all()) or bool((pixels < 0).any()):
            raise ValueError("image must hold finite, non-negative values, as a grey-scale picture does")
        if not bool((pixels > 0).any()):
            raise ValueError("image is zero everywhere; it needs at least one positive pixel")
        self.name = name
        self.half_width = check_positive(half_width, "half_width")
        height, width = pixels.shape
        pixel = 2 * self.half_width / width
        self.sigma = pixel / 2 if sigma is None else check_positive(sigma, "sigma")
        self._columns = (torch.arange(width, dtype=torch.float64) + 0.5) * pixel - self.half_width
        self._rows = (0.5 * height - 0.5 - torch.arange(height, dtype=torch.float64)) * pixel
        self._mass = pixels / pixels.sum()
        row, column = self._mass.nonzero(as_tuple=True)
        self.centres = torch.stack((self._columns[column], self._rows[row]), dim=1)
        self.weights = self._mass[row, column]
        self.bounds = [
            (-side - 5 * self.sigma, side + 5 * self.sigma) for side in (self.half_width, 0.5 * height * pixel)
        ]

    def __repr__(self) -> str:
        height, width = self._mass.shape
        return f"ImageDensity({height} × {width} pixels, half_width={self.half_width:g}, sigma={self.sigma:g})"

    @property
    def _resolution(self) -> float:
        return self.sigma

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        n, generator = _draws(n), make_generator(seed)
        pixel = draw(self.weights, n, generator)
        return self.centres[pixel] + self.sigma * _noise(n, generator)

    def _log_prob(self, x: Tensor) -> Tensor:
        return _mixture_log_prob(x, self.centres, self.weights.log(), self.sigma)

    def _density_on_grid(self, first: Tensor, second: Tensor) -> Tensor:
        # the Gaussians of a lattice of pixels are products, so a grid costs two matrix products
        def kernel(axis: Tensor, centres: Tensor) -> Tensor:
            return torch.exp(-0.5 * ((axis[:, None] - centres) / self.sigma).square())

        density = kernel(first, self._columns) @ self._mass.mT @ kernel(second, self._rows).mT
        return density / (2 * math.pi * self.sigma**2)


def from_image(image: Any = None, half_width: float = 4.0, sigma: float | None = None) -> ImageDensity:
    """The density that a picture (H, W) shows, or that of `rose_image` where none is given; see `ImageDensity`.

    Example:
        >>> density = from_image()
        >>> round(density.entropy(), 3)
        2.591
    """
    return ImageDensity(rose_image() if image is None else image, half_width, sigma)


def rose_image(size: int = 256) -> NDArray[np.float64]:
    """A picture of thin lines, (size, size) with values in [0, 1]: two roses of eight petals, a circle and a spiral.

    A pixel at distance δ from a line has the value a exp(−δ²/(2w²)) with w = 0.0062 in units of half the picture, a = 1
    on the roses and 0.8 on the circle and the spiral; values below 0.05 are 0.

    Example:
        >>> rose_image(64).shape
        (64, 64)
    """
    from scipy.spatial import cKDTree

    size = check_count(size, "size", least=8)
    check_memory(8 * size**2, f"a picture of {size} × {size} pixels")
    line_width, faintest = 0.0062, 0.05
    t = np.linspace(0, 2 * np.pi, 4000)
    turns = np.linspace(0, 6 * np.pi, 4000)
    curves = [  # (radius, angle, value on the line)
        (0.92 * np.cos(4 * t), t, 1.0),
        (0.55 * np.cos(4 * (t + np.pi / 8)), t, 1.0),
        (np.full_like(t, 0.95), t, 0.8),
        (0.45 * turns / turns[-1], turns, 0.8),
    ]
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    pixels = np.stack(np.meshgrid(axis, -axis), axis=-1)
    image = np.zeros((size, size))
    for radius, angle, value in curves:
        tree = cKDTree(np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=-1))
        # beyond this distance the line is fainter than what is kept, and the tree answers infinity
        distance, _ = tree.query(pixels, distance_upper_bound=line_width * math.sqrt(2 * math.log(2 / faintest)))
        image = np.maximum(image, value * np.exp(-((distance / line_width) ** 2) / 2))
    image[image < faintest] = 0
    return image


def planar() -> dict[str, PlanarDensity]:
    """The five planar densities by name: checkerboard, eight_gaussians, rings, two_moons and image.

    Example:
        >>> {name: round(density.entropy(), 3) for name, density in planar().items()}
        {'checkerboard': 3.466, 'eight_gaussians': 3.525, 'rings': 3.134, 'two_moons': 1.008, 'image': 2.591}
    """
    densities = [Checkerboard(), EightGaussians(), Rings(), TwoMoons(), from_image()]
    return {density.name: density for density in densities}


def digits() -> Tensor:
    """scikit-learn's handwritten digits, (1797, 64): 8 × 8 pictures row by row, integers 0 to 16 in float64.

    Example:
        >>> digits().shape
        torch.Size([1797, 64])
    """
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().data)


def _square(half_width: float) -> Bounds:
    return [(-half_width, half_width)] * 2


def _draws(n: int) -> int:
    """A number of draws that fit into memory."""
    check_memory(8 * check_count(n, "n"), f"n = {n} draws")
    return int(n)


def _noise(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _on_circle(angle: Tensor) -> Tensor:
    """(cos t, sin t), (n, 2)."""
    return torch.stack((angle.cos(), angle.sin()), dim=1)


def _mixture_log_prob(x: Tensor, centres: Tensor, log_weights: Tensor, std: float) -> Tensor:
    """log Σ_i w_i N(x; c_i, σ²I) in blocks of rows, so that memory stays bounded."""
    rows = max(1, BLOCK_VALUES // len(centres))
    scaled = centres / std
    blocks = []
    for block in (x / std).split(rows):
        squares = (block[:, None, 0] - scaled[:, 0]).square() + (block[:, None, 1] - scaled[:, 1]).square()
        blocks.append((log_weights - squares / 2).logsumexp(1))
    return torch.cat(blocks) - math.log(2 * math.pi * std**2)
