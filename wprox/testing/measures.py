"""The laws of measures: integrals, densities, push-forwards, copies and draws."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from wprox._checks import described
from wprox.maps import AffineMap
from wprox.measures import DensityUnknownError, Gaussian, Grid, Measure, Quantiles
from wprox.testing.laws import Unasked, answer, ask, check_names, normal, refused, require, require_close, shown

LARGEST_ERROR = 2e-4  # of the total weight, as in the constructors
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-8}
DRAWS = 4000
STANDARD_ERRORS = 6.0  # a false alarm for one coordinate in 5e8
CONTRACTION = 0.8
NO_PUSH = (TypeError, ValueError, NotImplementedError)  # such as a Grid whose mass would land in a wall


def check_measure(rho: Measure, *, exempt: Collection[str] = ()) -> list[str]:
    """Check the laws that every measure keeps: for your own ones.

    That points and weights are those of a probability; that integrals, over pairs as well, are sums over points and
    weights; that what it knows of its density agrees, at its points and away from them; that push-forwards move the
    mean and the density as they should; that `at`, `to`, `detach` and `subset` give the same measure; and that draws
    follow the seed and have the mean, up to six standard errors: a false alarm in 5e8 coordinates.

    Arguments:
        rho: ρ.
        exempt: names of laws that ρ does not keep, such as "pairs" for a rule of its own for pairs.

    Returns:
        The names of the laws that could be asked, and hold.

    Raises:
        AssertionError: for the first law that is broken: which, by how much and at what measure.

    Example:
        >>> import torch, wprox, wprox.testing
        >>> rho = wprox.Particles(torch.randn(30, 2, generator=torch.Generator().manual_seed(0)))
        >>> laws = wprox.testing.check_measure(rho)
        >>> "integrals" in laws, "density" in laws  # these particles have no density
        (True, False)
        >>> class Forgetful(wprox.Particles):
        ...     def integrate(self, f):
        ...         return f(self.points).mean(0)
        >>> wprox.testing.check_measure(Forgetful([[0.0], [1.0]], weights=[0.25, 0.75]))
        Traceback (most recent call last):
        AssertionError: law 'integrals' of Forgetful(n=2, dim=1, dtype=torch.float32): ...
    """
    require(
        isinstance(rho, Measure), f"check_measure needs an instance of a wprox.Measure, got {described(rho)}; build one"
    )
    check_names(exempt, LAWS)
    with torch.no_grad():
        return ask(LAWS, repr(rho), shown(rho, 0).removesuffix(", seed 0"), rho, exempt=exempt)


# --- what it is


def shapes(rho: Measure) -> None:
    """Points are (n, d), weights (n,), of one dtype, on one device."""
    require(rho.points.ndim == 2, f"points must have shape (n, d), they have {tuple(rho.points.shape)}")
    n, d = rho.points.shape
    require(rho.weights.shape == (n,), f"weights must have shape ({n},), they have {tuple(rho.weights.shape)}")
    require((len(rho), rho.dim) == (n, d), f"len and dim are {(len(rho), rho.dim)} for points of shape {(n, d)}")
    require(rho.points.is_floating_point(), f"points must be floating-point numbers, they are {rho.points.dtype}")
    dtypes = {rho.points.dtype, rho.weights.dtype, rho.dtype}
    require(len(dtypes) == 1, f"points, weights and ρ.dtype must be one dtype, they are {dtypes}")
    devices = {rho.points.device, rho.weights.device, rho.device}
    require(len(devices) == 1, f"points and weights must lie on one device, they lie on {devices}")
    require(bool(repr(rho)) and "\n" not in repr(rho), f"repr(ρ) must be one line, it is {rho!r}")


def weights(rho: Measure) -> None:
    """Weights are not negative and sum to 1."""
    smallest = float(rho.weights.min())
    require(smallest >= 0, f"weights must not be negative, the smallest is {smallest:g}")
    require_close(rho.weights.sum(), 1.0, ("the sum of the weights", "1"), LARGEST_ERROR)


# --- integrals


def integrals(rho: Measure) -> None:
    """∫ f dρ = Σ_i w_i f(x_i), for f with values in R and in R^k."""
    for f, name in (
        (lambda x: torch.ones_like(x[:, 0]), "∫ 1 dρ"),
        (lambda x: 2 * x - 1, "∫ (2x − 1) dρ"),
        (lambda x: x.square().sum(-1), "∫ |x|² dρ"),
        (lambda x: torch.stack((x.sum(-1).sin(), x[:, 0].cos()), 1), "∫ (sin Σx, cos x₁) dρ"),
    ):
        expected = rho.weights @ f(rho.points)
        found = rho.integrate(f)
        require(found.dtype == rho.dtype, f"{name} is {found.dtype} for a measure in {rho.dtype}")
        require_close(found, expected, (name, "the sum over points and weights"), _rounding(rho), _rounding(rho))


def functions_of_points(rho: Measure) -> None:
    """A function of a single point, which forgets the batch, is refused."""
    refused(rho.integrate, lambda x: x.square().sum(), by=(ValueError,), what="a function (n, d) → () in ρ.integrate")
    refused(rho.integrate_pairs, lambda z: z.sum(), by=(ValueError,), what="a kernel (m, d) → () in ρ.integrate_pairs")


def quadratic_pairs(rho: Measure) -> None:
    """∬ |x − y|² dρ dρ = 2 ∫ |x|² dρ − 2 |∫ x dρ|², by whatever rule."""
    mean, second = rho.integrate(lambda x: x), rho.integrate(lambda x: x.square().sum(-1))
    names = ("∬ |x − y|² dρ dρ", "twice the variance")
    found = rho.integrate_pairs(lambda z: z.square().sum(-1))
    size = float(second.abs())
    require_close(found, 2 * (second - mean.square().sum()), names, _rounding(rho), 4 * LARGEST_ERROR * size)


def pairs(rho: Measure) -> None:
    """∬ k(x − y) dρ dρ = Σ_ij w_i w_j k(x_i − x_j), for a kernel that is not even; a Gaussian has a better rule."""
    if isinstance(rho, Gaussian):
        raise Unasked("x − y is Gaussian, and has nodes of its own")

    def kernel(z: Tensor) -> Tensor:
        return torch.exp(-z.square().sum(-1)) + z[:, 0] + z[:, 0].square().sin() * z[:, -1]

    z = rho.points[:, None] - rho.points
    expected = rho.weights @ kernel(z.flatten(0, 1)).reshape(len(rho), len(rho)) @ rho.weights
    found = rho.integrate_pairs(kernel)
    require(found.dtype == rho.dtype, f"∬ k dρ dρ is {found.dtype} for a measure in {rho.dtype}")
    scale = float(z.abs().max()) + 1
    require_close(found, expected, ("∬ k(x − y) dρ dρ", "the double sum"), _rounding(rho), _rounding(rho) * scale)


def convolutions(rho: Measure) -> None:
    """∫ (k ∗ ρ) dρ = ∬ k(x − y) dρ dρ, at the points and at the same points given."""
    if isinstance(rho, Gaussian):
        raise Unasked("x − y is Gaussian, and has nodes of its own")

    def kernel(z: Tensor) -> Tensor:
        return torch.exp(-z.square().sum(-1))

    expected = rho.integrate_pairs(kernel)
    names = ("∫ (k ∗ ρ) dρ", "∬ k(x − y) dρ dρ")
    for values in (rho.convolve(kernel), rho.convolve(kernel, rho.points.clone())):
        require(values.shape == rho.weights.shape, f"k ∗ ρ at n points must be (n,), it is {tuple(values.shape)}")
        require_close(rho.weights @ values, expected, names, _rounding(rho), _rounding(rho))


# --- the density


def density_known(rho: Measure) -> None:
    """ρ.density_known says whether log_density answers; where not, it says why."""
    known = rho.density_known
    try:
        rho.log_density()
    except DensityUnknownError:
        require(not known, "density_known is true, and log_density() refuses")
        refused(rho.log_density, by=(DensityUnknownError,), what="log_density()")
        return
    require(known, "density_known is false, and log_density() answers")


def density(rho: Measure) -> None:
    """The mean of log ρ over the points is mean_log_density and integrate_density(log); integrate_density(1) is 1."""
    log_density = answer(rho.log_density)
    full = rho.weights > 0
    require(log_density.shape == rho.weights.shape, f"log_density() must be (n,), it is {tuple(log_density.shape)}")
    require(log_density.dtype == rho.dtype, f"log_density() is {log_density.dtype} for a measure in {rho.dtype}")
    require(not bool(torch.isnan(log_density[full]).any()), "log_density() is NaN at points that have weight")
    mean = rho.weights[full] @ log_density[full]
    rounding = _rounding(rho)
    require_close(rho.mean_log_density(), mean, ("mean_log_density()", "the mean of log_density()"), rounding, rounding)
    found = rho.integrate_density(lambda s: torch.where(s > 0, s, 1.0).log())
    require_close(found, mean, ("integrate_density(log)", "the mean of log_density()"), rounding, rounding)
    names = ("integrate_density(1)", "1")
    require_close(rho.integrate_density(torch.ones_like), 1.0, names, LARGEST_ERROR)


def density_at_points(rho: Measure) -> None:
    """log_density_at, differentiable at any points, is log_density at the points of ρ."""
    if not rho.density_known:
        raise Unasked("no density")
    full = rho.weights > 0
    points = rho.points[full].clone().requires_grad_()
    with torch.enable_grad():
        found = answer(rho.log_density_at, points)
        require(found.requires_grad, "log_density_at(x) has no graph in x")
        (slope,) = torch.autograd.grad(found.sum(), points)
    require(found.shape == points.shape[:1], f"log_density_at(x) must be (m,), it is {tuple(found.shape)}")
    require(not bool(torch.isnan(slope).any()), "the gradient of log_density_at(x) is NaN at points of ρ")
    names = ("log_density_at(points)", "log_density()")
    require_close(found, rho.log_density()[full], names, _rounding(rho), _rounding(rho))


def score(rho: Measure) -> None:
    """E⟨∇ log ρ, x⟩ = −d (integration by parts), where the density is that of the points themselves."""
    score = answer(rho.score)
    require(score.shape == rho.points.shape, f"score() must be (n, d), it is {tuple(score.shape)}")
    require(score.dtype == rho.dtype, f"score() is {score.dtype} for a measure in {rho.dtype}")
    if rho.density_follows_points and rho.movable:  # the smooth density around the points, not theirs
        return
    found = rho.weights @ (score * (rho.points - rho.integrate(lambda x: x))).sum(1)
    require_close(found, -float(rho.dim), ("E⟨∇ log ρ, x − m⟩", "−d"), 100 * _rounding(rho))


# --- push-forwards and copies


def push_by_the_identity(rho: Measure) -> None:
    """The identity, as a map with a log-determinant, changes nothing."""
    pushed = answer(rho.push, AffineMap(rho.dim).to(rho.points), refusals=NO_PUSH)
    _require_same(pushed, rho, "id#ρ", kind=Measure)


def push_moves_the_mean(rho: Measure) -> None:
    """T#ρ has the mean T(m) and the dtype of ρ, for T(x) = c + 0.8 (x − c) with c the heaviest point."""
    centre = rho.points[rho.weights.argmax()]
    pushed = answer(rho.push, _towards(centre), refusals=NO_PUSH)
    require(pushed.dtype == rho.dtype, f"T#ρ is {pushed.dtype} for a measure in {rho.dtype}")
    mean = rho.integrate(lambda x: x)
    expected = centre + CONTRACTION * (mean - centre)
    size = float(rho.points.abs().max())
    names = ("the mean of T#ρ", "T at the mean of ρ")
    require_close(
        pushed.integrate(lambda x: x), expected, names, 0.0, (_rounding(rho) + LARGEST_ERROR * _off(rho)) * size
    )


def push_changes_the_density(rho: Measure) -> None:
    """∫ log(T#ρ) d(T#ρ) = ∫ log ρ dρ − log|det ∇T|, where the density is that of the points themselves."""
    if (rho.density_follows_points and rho.movable) or isinstance(rho, Grid):
        raise Unasked("a density of kernels or cells of one size does not stretch")
    before = answer(rho.mean_log_density)
    pushed = answer(rho.push, _towards(rho.points[0]), refusals=NO_PUSH)
    expected = before - rho.dim * math.log(CONTRACTION)
    names = ("the mean log-density of T#ρ", "that of ρ, less log|det ∇T|")
    require_close(pushed.mean_log_density(), expected, names, _rounding(rho), _rounding(rho))


def other_points(rho: Measure) -> None:
    """ρ.at(y) has the points y and the weights of ρ."""
    if not rho.movable:
        raise Unasked("its points do not move one by one")
    y = rho.points + normal(rho.points, *rho.points.shape, seed=1)
    moved = rho.at(y)
    require_close(moved.points, y, ("ρ.at(y).points", "y"), 0.0)
    require_close(moved.weights, rho.weights, ("the weights of ρ.at(y)", "those of ρ"), 0.0)
    if rho.density_follows_points:
        require(moved.density_follows_points, "the density of ρ.at(y) no longer follows its points")


def other_precisions(rho: Measure) -> None:
    """ρ.to(dtype) is ρ up to the rounding of float32, and all of one dtype."""
    for dtype in (torch.float32, torch.float64):
        other = rho.to(dtype)
        if not isinstance(rho, Quantiles):  # which stay in float64
            require(other.dtype == dtype, f"ρ.to({dtype}) is {other.dtype}")
        shapes(other)
        _require_same(other, rho, f"ρ.to({dtype})", ROUNDING[torch.float32])
        _require_same(other.to(rho.dtype), rho, f"ρ.to({dtype}).to({rho.dtype})", ROUNDING[torch.float32])


def detached(rho: Measure) -> None:
    """ρ.detach() is ρ without a graph, whatever made ρ."""
    _require_same(rho.detach(), rho, "ρ.detach()")
    leaf = torch.ones((), dtype=rho.dtype, device=rho.device, requires_grad=True)
    with torch.enable_grad():
        try:
            made = rho.push(lambda x: (x * leaf, x.shape[1] * leaf.log().expand(len(x))))
        except NO_PUSH:
            return
        made = made.detach()
        tensors = [made.points, made.weights, made.integrate(lambda x: x)]
        tensors += [made.log_density()] if made.density_known else []
    require(not any(tensor.requires_grad for tensor in tensors), "ρ.detach() carries a graph")


def subsets(rho: Measure) -> None:
    """ρ.subset takes points with their weights, scaled to sum to 1; of all points it is ρ."""
    if not rho.movable:
        refused(rho.subset, slice(None), by=(TypeError, NotImplementedError), what="a subset of nodes")
        return
    n = max(1, len(rho) // 2)
    part, half = rho.subset(slice(0, n)), rho.weights[:n]
    require_close(part.points, rho.points[:n], ("the points of a subset", "those points of ρ"), 0.0)
    require_close(part.weights, half / half.sum(), ("the weights of a subset", "those of ρ, scaled"), _rounding(rho))
    if rho.weights.sum() == 1:
        _require_same(rho.subset(slice(None)), rho, "the subset of all points")


# --- draws


def draws(rho: Measure) -> None:
    """sample(n, seed) is (n, d), follows its seed or generator, and leaves torch's own generator alone."""
    before = torch.random.get_rng_state()
    first, again, other = (rho.sample(20, seed) for seed in (0, 0, 1))
    require(first.shape == (20, rho.dim), f"sample(20) must be (20, {rho.dim}), it is {tuple(first.shape)}")
    require(first.dtype == rho.dtype, f"draws are {first.dtype} for a measure in {rho.dtype}")
    require(torch.equal(first, again), "two draws with one seed differ")
    if len(rho) > 1:
        require(not torch.equal(first, other), "draws with two seeds are the same")
    generator = torch.Generator().manual_seed(0)
    moved_on = rho.sample(20, generator), rho.sample(20, generator)
    require(torch.equal(moved_on[0], first), "draws of a generator differ from those of its seed")
    require(len(rho) == 1 or not torch.equal(*moved_on), "a generator does not move on")
    rho.sample(5)
    require(torch.equal(before, torch.random.get_rng_state()), "sampling changed torch's default generator")


def draws_have_the_mean(rho: Measure) -> None:
    """The mean of 4,000 draws is that of ρ within six standard errors: a false alarm in 5e8 coordinates."""
    x = rho.sample(DRAWS, seed=0).double()
    error = (x.mean(0) - rho.integrate(lambda x: x).double()).abs()
    allowed = STANDARD_ERRORS * x.std(0) / math.sqrt(DRAWS) + LARGEST_ERROR * float(rho.points.abs().max())
    worst = int((error / allowed).argmax())
    require(
        bool((error <= allowed).all()),
        f"the mean of {DRAWS} draws is off by {float(error[worst]):.2g} in coordinate {worst}, where six standard "
        f"errors are {float(allowed[worst]):.2g}",
    )


LAWS = (
    shapes,
    weights,
    integrals,
    functions_of_points,
    quadratic_pairs,
    pairs,
    convolutions,
    density_known,
    density,
    density_at_points,
    score,
    push_by_the_identity,
    push_moves_the_mean,
    push_changes_the_density,
    other_points,
    other_precisions,
    detached,
    subsets,
    draws,
    draws_have_the_mean,
)


def _rounding(rho: Measure) -> float:
    return ROUNDING[torch.float32 if rho.dtype != torch.float64 else torch.float64]


def _off(rho: Measure) -> float:
    """Whether the weights are not those of a probability, but for rounding."""
    return float(abs(float(rho.weights.double().sum()) - 1) > 10 * torch.finfo(rho.dtype).eps)


def _towards(centre: Tensor) -> AffineMap:
    identity = torch.eye(len(centre), dtype=centre.dtype, device=centre.device)
    return AffineMap.from_matrix(CONTRACTION * identity, (1 - CONTRACTION) * centre)


def _require_same(
    found: Measure, rho: Measure, name: str, rounding: float | None = None, kind: type[Measure] | None = None
) -> None:
    """Raise `AssertionError` where two measures differ in points, weights, density or kind."""
    rounding = _rounding(rho) if rounding is None else rounding
    kind = type(rho) if kind is None else kind
    require(isinstance(found, kind), f"{name} is a {type(found).__name__}, not a {kind.__name__}")
    require_close(found.points, rho.points, (f"the points of {name}", "those of ρ"), rounding, rounding)
    require_close(found.weights, rho.weights, (f"the weights of {name}", "those of ρ"), rounding, rounding)
    known = (found.density_known, found.is_relative, found.density_follows_points)
    expected = (rho.density_known, rho.is_relative, rho.density_follows_points)
    require(
        known == expected, f"(density_known, is_relative, density_follows_points) of {name} are {known}, not {expected}"
    )
    if rho.density_known:
        full = rho.weights > 0
        names = (f"the log-density of {name}", "that of ρ")
        require_close(found.log_density()[full], rho.log_density()[full], names, rounding, rounding)
