"""The gauntlet of measures: a new class adds one line to `MEASURES`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

import wprox
from wprox.testing import check_measure
from wprox.testing.laws import masses

F64 = torch.float64


def points(dtype, n=12, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)


def cloud(dtype):
    return points(dtype), masses(12, 0).to(dtype)


def cloud_with_density(dtype):
    return *cloud(dtype), points(dtype)[:, 0].clone()


def normal(dtype):
    return torch.tensor([1.0, -2.0], dtype=dtype), torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=dtype)


def nodes(dtype):
    return (torch.linspace(-1, 1, 30, dtype=dtype).sinh(),)


def histogram(*shape):
    return lambda dtype: (masses(int(torch.tensor(shape).prod()), 0).reshape(shape).to(dtype),)


def with_holes(dtype):
    (mass,) = histogram(6, 7)(dtype)
    return (torch.where(mass > mass.median(), mass, 0),)


def walled(dtype):
    (mass,) = histogram(6, 7)(dtype)
    walls = torch.zeros(6, 7, dtype=torch.bool)
    walls[2:4, 3] = True
    return mass * ~walls, walls


def box(dim):
    return [(-1.0, 2.0 + axis) for axis in range(dim)]


@dataclass
class Row:
    """A measure, built from arrays of the caller; `exempt` are laws that it does not keep."""

    build: Callable[..., wprox.Measure]
    arrays: Callable[[torch.dtype], tuple[torch.Tensor, ...]]
    exempt: tuple[str, ...] = ()
    density: bool = True


MEASURES = {
    "particles": Row(wprox.Particles, cloud, density=False),
    "particles with a density": Row(wprox.Particles, cloud_with_density),
    "particles with a relative density": Row(lambda *a: wprox.Particles(*a).relative(), cloud, density=False),
    "one particle": Row(lambda x: wprox.Particles(x), lambda dtype: (points(dtype, 1),), density=False),
    "kernels of a bandwidth": Row(lambda *a: wprox.KernelParticles(*a, bandwidth=0.5), cloud),
    "kernels that follow the spread": Row(wprox.KernelParticles, cloud),
    "Gaussian": Row(wprox.Gaussian, normal),
    "Gaussian with Gauss and Hermite's nodes": Row(lambda *a: wprox.Gaussian(*a, order=5), normal),
    "quantiles": Row(wprox.Quantiles, nodes),
    "grid in 1-D": Row(lambda mass: wprox.Grid(mass, box(1)), histogram(20)),
    "grid in 2-D": Row(lambda mass: wprox.Grid(mass, box(2)), histogram(6, 7)),
    "grid in 3-D": Row(lambda mass: wprox.Grid(mass, box(3)), histogram(3, 4, 5)),
    "grid with empty cells": Row(lambda mass: wprox.Grid(mass, box(2)), with_holes),
    # cells beside a wall take what would fall into it
    "grid with walls": Row(lambda mass, walls: wprox.Grid(mass, box(2), walls), walled, ("push moves the mean",)),
}


def test_every_measure_is_in_the_gauntlet():
    built = {type(row.build(*row.arrays(F64))).__name__ for row in MEASURES.values()}
    public = {
        name
        for name in wprox.__all__
        if isinstance(getattr(wprox, name), type) and issubclass(getattr(wprox, name), wprox.Measure)
    }
    assert public - built == {"Measure"}


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in MEASURES for dtype in (torch.float32, F64)])
def test_laws(name, dtype):
    row = MEASURES[name]
    laws = check_measure(row.build(*row.arrays(dtype)), exempt=row.exempt)
    always = {"integrals", "quadratic pairs", "push by the identity", "other precisions", "detached", "draws"}
    assert always <= set(laws)
    assert ("density" in laws) == row.density


@pytest.mark.parametrize("name", MEASURES)
def test_the_callers_arrays_may_change_afterwards(name):
    row = MEASURES[name]
    arrays = row.arrays(F64)
    rho = row.build(*arrays)

    def said():
        density = [rho.log_density()] if rho.density_known else []
        return [tensor.clone() for tensor in (rho.points, rho.weights, *density, rho.sample(5, seed=0))]

    before = said()
    for array in arrays:
        array.zero_()
    assert all(torch.equal(*pair) for pair in zip(said(), before, strict=True))


@pytest.mark.parametrize("name", ["kernels of a bandwidth", "kernels that follow the spread"])
def test_a_minibatch_is_smoothed_as_the_whole_is(name):
    """So that NeuralProx trains on the functional that it reports."""
    rho = MEASURES[name].build(*MEASURES[name].arrays(F64))
    part = rho.subset(slice(0, 6))
    assert (part.bandwidth, part.factor) == (rho.bandwidth, rho.factor)
