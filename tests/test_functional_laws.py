"""The gauntlet of functionals: a new class adds one line to `FUNCTIONALS`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import wprox
from wprox.testing import check_functional
from wprox.testing.examples import SquaredSpread, half_square

F64 = torch.float64


def points(n, dim, seed=7):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=F64)


def nothing(dim):
    return ()


def samples(dim):
    return (points(15, dim) + 1,)


def moments(dim):
    return points(1, dim)[0], torch.diag(torch.linspace(0.5, 2.0, dim, dtype=F64))


def laplace(dim=2):
    return torch.distributions.Independent(torch.distributions.Laplace(torch.ones(dim, dtype=F64), 1.0), 1)


def double_well(x):
    return (x.square().sum(-1) - 1).square()


def quartic(z):
    return z.square().sum(-1).square()


def gaussian_bump(z):
    return torch.exp(-z.square().sum(-1))


def bump_score(x):
    return -x - x.cos()


def below(x):
    return 50 + x[:, 0].square()


@dataclass
class Row:
    """A functional, built from arrays of the caller, and what is asked of it.

    Not a functional of the measure alone are sums that leave out i = j, where particles split in two meet themselves,
    and random batches, which follow the order of the particles and whose first variation is that of all pairs.
    Kantorovich's potential has a kink at an atom whose
    mass goes to several places.
    """

    build: Callable[..., wprox.Functional]
    arrays: Callable[[int], tuple[torch.Tensor, ...]] = nothing
    exempt: tuple[str, ...] = ()
    dims: tuple[int, ...] = (1, 2)
    rtol: float = 1e-5
    measures: str = ""  # a kind of measure, where all of them take too long


PAIRS = ("splitting", "first variation in weights")
KINKS = ("first variation in points",)
FUNCTIONALS = {
    "potential": Row(lambda: wprox.PotentialEnergy(double_well), dims=(1, 2, 3)),
    "convex potential": Row(lambda: wprox.PotentialEnergy(half_square, modulus=1.0)),
    "concave potential": Row(lambda: wprox.PotentialEnergy(lambda x: x.cos().sum(-1), modulus=-1.0)),
    "interaction": Row(lambda: wprox.InteractionEnergy(gaussian_bump), dims=(1, 2, 3)),
    "convex interaction": Row(lambda: wprox.InteractionEnergy(quartic, modulus=0.0)),
    "power law": Row(lambda: wprox.InteractionEnergy(wprox.kernels.PowerLaw(4, 2))),
    "Morse": Row(lambda: wprox.InteractionEnergy(wprox.kernels.Morse(2.0, 0.5))),
    "charges": Row(
        lambda: wprox.InteractionEnergy(wprox.kernels.PowerLaw(2, 0)), exempt=PAIRS, dims=(2,), measures="Particles"
    ),
    "random batches": Row(
        lambda: wprox.InteractionEnergy(quartic, batch_size=4),
        exempt=("order", *PAIRS, *KINKS),
        dims=(2,),
        measures="Particles",
    ),
    "entropy": Row(wprox.Entropy, dims=(1, 2, 3)),
    "internal energy": Row(lambda: wprox.InternalEnergy(lambda s: s * s.log())),
    "porous medium": Row(lambda: wprox.PorousMedium(2.0), dims=(1, 2, 3)),
    "fast diffusion": Row(lambda: wprox.PorousMedium(0.7)),
    "KL to a Gaussian": Row(lambda *law: wprox.KL(wprox.Gaussian(*law)), moments, dims=(1, 2, 3)),
    "KL to a distribution": Row(lambda: wprox.KL(laplace()), dims=(2,)),
    "KL to a density": Row(lambda: wprox.KL(lambda x: -double_well(x))),
    "MMD": Row(wprox.MMD, samples),
    "MMD of a Gaussian kernel": Row(lambda y: wprox.MMD(y, wprox.kernels.Gaussian()), samples),
    "MMD of Laplace's kernel": Row(lambda y: wprox.MMD(y, wprox.kernels.Laplace()), samples, dims=(2,)),
    "MMD of a function": Row(lambda y: wprox.MMD(y, gaussian_bump), samples, dims=(2,)),
    "MMD, unbiased": Row(
        lambda y: wprox.MMD(y, wprox.kernels.Gaussian(), unbiased=True), samples, exempt=PAIRS, dims=(2,)
    ),
    "MMD to a measure": Row(lambda *law: wprox.MMD(wprox.Gaussian(*law), n_samples=20), moments, dims=(2,)),
    "KSD": Row(lambda: wprox.KSD(lambda x: -double_well(x))),
    "KSD of a score": Row(lambda: wprox.KSD(score=bump_score), dims=(2,)),
    "KSD to a Gaussian": Row(lambda *law: wprox.KSD(wprox.Gaussian(*law)), moments, dims=(2,)),
    "Wasserstein": Row(wprox.SquaredWasserstein, samples, KINKS),
    "Wasserstein to a Gaussian": Row(lambda *law: wprox.SquaredWasserstein(wprox.Gaussian(*law)), moments, KINKS),
    "Sinkhorn": Row(
        lambda y: wprox.SinkhornDivergence(y, blur=1.0, tol=1e-11), samples, dims=(2,), measures="Particles", rtol=1e-4
    ),
    "sliced": Row(lambda y: wprox.SlicedWasserstein(y, n_projections=10), samples, KINKS),
    "congestion": Row(lambda: wprox.Congestion(50.0)),
    "congestion, elsewhere": Row(lambda: wprox.Congestion(below), dims=(2,)),
    "density bounds": Row(lambda: wprox.DensityBounds(0.0, 50.0)),
    "of one's own": Row(SquaredSpread),
    "sum": Row(
        lambda *law: (
            wprox.KL(wprox.Gaussian(*law))
            + 0.3 * wprox.InteractionEnergy(quartic)
            - 0.1 * wprox.PotentialEnergy(double_well)
            + SquaredSpread()
        ),
        moments,
    ),
}


def test_every_functional_is_in_the_gauntlet():
    built = {type(row.build(*row.arrays(2))).__name__ for row in FUNCTIONALS.values()}
    public = {
        name
        for name in wprox.__all__
        if isinstance(getattr(wprox, name), type) and issubclass(getattr(wprox, name), wprox.Functional)
    }
    assert public - built == {"Functional"}


@pytest.mark.parametrize(("name", "dim"), [(name, dim) for name, row in FUNCTIONALS.items() for dim in row.dims])
def test_laws(name, dim):
    row = FUNCTIONALS[name]
    functional = row.build(*row.arrays(dim))
    measures = None
    if row.measures:
        measures = [rho for rho in wprox.testing.examples.sample_measures(dim) if type(rho).__name__ == row.measures]
    laws = check_functional(functional, dim=dim, measures=measures, exempt=row.exempt, rtol=row.rtol)
    always = {"value", "representation", "steps", "precision", "structure", "sums and multiples", "gradient in points"}
    assert always <= set(laws)
    assert ("modulus" in laws) == (functional.modulus is not None)


@pytest.mark.parametrize(
    "name", [name for name, row in FUNCTIONALS.items() if row.arrays is not nothing and name != "MMD to a measure"]
)  # which draws from it at once
def test_the_callers_arrays_may_change_afterwards(name):
    row = FUNCTIONALS[name]
    arrays = row.arrays(2)
    functional = row.build(*arrays)
    rho = wprox.testing.examples.sample_measures(2)[
        4 if "KL" in name or name in ("sum", "Wasserstein to a Gaussian") else 0
    ]
    before, gradient = functional(rho), functional.wasserstein_gradient(rho)
    for array in arrays:
        array *= 2
    assert torch.equal(functional(rho), before)
    assert torch.equal(functional.wasserstein_gradient(rho), gradient)


# --- functionals with parameters of their own


def shift_of(dim=2):
    return (0.5 + torch.arange(dim, dtype=F64)).requires_grad_()


def kernel_of(width):
    return lambda z: torch.exp(-z.square().sum(-1) / width.square().sum())


class Power(wprox.kernels.RadialKernel):
    """exp(−p |z|²), with a p that may be trained."""

    smooth = True

    def __init__(self, p):
        self.p = p

    def profile(self, s):
        return torch.exp(-self.p.square().sum() * s)


PARAMETRIC = {
    "potential": lambda p: wprox.PotentialEnergy(lambda x: (x - p.to(x)).square().sum(-1).square()),
    "interaction": lambda p: wprox.InteractionEnergy(lambda z: kernel_of(p.to(z))(z)),
    "KL": lambda p: wprox.KL(lambda x: -(x - p.to(x)).square().sum(-1)),
    "MMD": lambda p: wprox.MMD(points(9, 2), lambda z: kernel_of(p.to(z))(z)),
    "internal energy": lambda p: wprox.InternalEnergy(lambda s: p.square().sum().to(s) * s.square()),
    "of one's own": lambda p: Scaled(p),
}


class Scaled(wprox.Functional):
    """p · (E|x|²)²."""

    def __init__(self, p):
        self.p = p

    def __call__(self, rho):
        return self.p.sum().to(rho.points) * rho.integrate(lambda x: x.square().sum(-1)) ** 2


@pytest.mark.parametrize("name", PARAMETRIC)
def test_parameters(name):
    p = shift_of()
    assert "gradient in parameters" in check_functional(PARAMETRIC[name](p), parameters=[p])
