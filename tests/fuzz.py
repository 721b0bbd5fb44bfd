"""Calls of the public interface with one wrong argument each: every one ends in a sentence, or in a right result.

    python tests/fuzz.py --seconds 600 --seed 1

`CALLS` holds, for each public function and class, a call that works; `HOSTILE` what is put in the place of one of its
arguments. The verdict on what comes of it is one of VERDICTS. The short run of the tests is in test_fuzz.py.
"""

from __future__ import annotations

import argparse
import ast
import collections
import math
import random
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import wprox
import wprox.testing
from wprox import datasets, kernels, metrics, theory
from wprox.maps import GradientStepMap

VERDICTS = ("refused", "works", "obscure", "silent", "hang", "memory")
WORDS = 9  # that an error has at least, so that it can say what was given, what was expected and what to do
STOCK = (  # what Python and torch say of their own insides
    "has no attribute",
    "not callable",
    "Could not infer",
    "too large",
    "real scalar",
    "size of tensor",
    "missing 1",
    "not implemented for",
)
F64 = torch.float64


class OwnError(Exception):
    """What a user's function raises itself: it passes through."""


class TooSlowError(BaseException):
    """Raised by the alarm."""


# --- what is put in the place of an argument


def _raise(x):
    raise OwnError("a function of one's own failed")


class Duck:
    """An object that is nothing in particular."""


HOSTILE: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "text",
    "a number as text": lambda: "1.0",
    "bytes": lambda: b"bytes",
    "a dict": lambda: {"a": 1.0},
    "an empty dict": dict,
    "an empty list": list,
    "a list": lambda: [1.0, 2.0, 3.0],
    "a ragged list": lambda: [[1.0, 2.0], [3.0]],
    "a list of text": lambda: ["a", "b"],
    "a set": lambda: {1.0, 2.0},
    "a generator": lambda: (k for k in range(2)),
    "an object": Duck,
    "a class": lambda: Duck,
    "a class of ours": lambda: wprox.Particles,
    "a class of solvers": lambda: wprox.ParticleProx,
    "a class of functionals": lambda: wprox.Entropy,
    "a measure": lambda: wprox.Particles(torch.zeros(3, 2)),
    "a Gaussian of another dimension": lambda: wprox.Gaussian(torch.zeros(7), torch.eye(7)),
    "a functional": wprox.Entropy,
    "a solver": wprox.ParticleProx,
    "a map": lambda: wprox.AffineMap(3),
    "a distribution": lambda: Independent(Normal(torch.zeros(3), 1.0), 1),
    "a scalar distribution": lambda: Normal(0.0, 1.0),
    "a module": lambda: np,
    "True": lambda: True,
    "zero": lambda: 0,
    "a negative number": lambda: -1,
    "a negative float": lambda: -0.5,
    "half": lambda: 0.5,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "1e308": lambda: 1e308,
    "1e-320": lambda: 1e-320,
    "2**70": lambda: 2**70,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "10**11": lambda: 10**11,
    "a complex number": lambda: 1j,
    "a NumPy float": lambda: np.float64(0.25),
    "a NumPy integer": lambda: np.int64(2),
    "a NumPy half": lambda: np.float16(0.25),
    "a 0-d tensor": lambda: torch.tensor(0.5),
    "a 0-d array": lambda: np.array(0.5),
    "an empty tensor": lambda: torch.empty(0),
    "no rows": lambda: torch.empty(0, 2),
    "no columns": lambda: torch.empty(5, 0),
    "a vector": lambda: torch.arange(5.0),
    "a matrix": lambda: torch.arange(15.0).reshape(5, 3),
    "three axes": lambda: torch.zeros(2, 3, 4),
    "integers": lambda: torch.arange(24).reshape(12, 2),
    "booleans": lambda: torch.ones(12, 2, dtype=torch.bool),
    "a complex tensor": lambda: torch.ones(12, 2, dtype=torch.complex64),
    "float16": lambda: torch.ones(12, 2, dtype=torch.float16),
    "bfloat16": lambda: torch.eye(2, dtype=torch.bfloat16),
    "NumPy float16": lambda: np.ones((12, 2), np.float16),
    "a NumPy longdouble": lambda: np.ones((12, 2), np.longdouble),
    "a tensor with NaN": lambda: torch.full((12, 2), math.nan),
    "a tensor with inf": lambda: torch.full((12, 2), math.inf),
    "huge numbers": lambda: torch.full((12, 2), 1e38),
    "an array of objects": lambda: np.array([[None, 1.0]] * 12, dtype=object),
    "an array of text": lambda: np.array([["a", "b"]] * 12),
    "dates": lambda: np.array(["2020-01-01"] * 12, "datetime64[D]"),
    "a list with 10**400": lambda: [[10**400, 1.0]] * 12,
    "a function": lambda: lambda *arguments: 1.0,
    "a function that returns None": lambda: lambda *x: None,
    "a function that returns text": lambda: lambda *x: "text",
    "a function that returns a list of text": lambda: lambda *x: ["text"] * len(x[0]),
    "a function that returns a scalar": lambda: lambda *x: torch.tensor(1.0),
    "a function that returns a complex number": lambda: lambda *x: 1j,
    "a function that returns complex numbers": lambda: lambda *x: _rows(x[0]) * 1j,
    "a function that returns a dict": lambda: lambda *x: {},
    "a function that returns itself twice": lambda: lambda *x: (x[0], x[0]),
    "a function that returns three things": lambda: lambda *x: (x[0], x[0], x[0]),
    "a function that returns other rows": lambda: lambda *x: torch.zeros(len(x[0]) + 1),
    "a function that returns a matrix": lambda: lambda *x: x[0][:, None] if x[0].ndim == 1 else x[0],
    "a function that returns columns": lambda: lambda *x: torch.ones(len(x[0]), 1),
    "a function that returns NaN": lambda: lambda *x: _rows(x[0]) * math.nan,
    "a function that returns inf": lambda: lambda *x: _rows(x[0]) + math.inf,
    "a function that returns half precision": lambda: lambda *x: _rows(x[0]).half(),
    "a function that raises": lambda: _raise,
}


def _rows(x: Tensor) -> Tensor:
    return x if x.ndim == 1 else x.sum(-1)


# --- calls that work


@dataclass(frozen=True)
class Call:
    """A call that works.

    Attributes:
        function: what is called.
        arguments: by name, each built anew.
        is_slow: whether the short run leaves it out.
        free: names of arguments that take anything.
    """

    function: Callable[..., Any]
    arguments: dict[str, Callable[[], Any]]
    is_slow: bool = False
    free: tuple[str, ...] = ()

    def __call__(self, **changes: Any) -> Any:
        return self.function(**{name: make() for name, make in self.arguments.items()} | changes)


def _call(function: Callable[..., Any], is_slow: bool = False, free: tuple[str, ...] = (), /, **arguments: Any) -> Call:
    def constant(value: Any) -> Callable[[], Any]:
        return lambda: value

    return Call(function, {name: constant(value) for name, value in arguments.items()}, is_slow, free)


def _points(n: int = 12, d: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def half_square(x: Tensor) -> Tensor:
    return x.square().sum(-1) / 2


def square(density: Tensor) -> Tensor:
    return density.square()


def double(x: Tensor) -> Tensor:
    return 2 * x


X, LOG = _points(), torch.zeros(12)
LAW = wprox.Gaussian(torch.zeros(2), torch.eye(2))
MEASURES: dict[str, wprox.Measure] = {
    "Particles": wprox.Particles(X, log_density=LOG),
    "KernelParticles": wprox.Particles(X).with_kernel_density(0.5),
    "Gaussian": LAW,
    "Quantiles": wprox.Quantiles(torch.linspace(-1, 1, 20)),
    "Grid": wprox.Grid.from_density(lambda x: torch.exp(-half_square(x)), (6, 6), [(-2.0, 2.0)] * 2),
}
PARTICLES = wprox.Particles(X)
V, W = wprox.PotentialEnergy(half_square, 1.0), wprox.InteractionEnergy(half_square)
FUNCTIONALS: dict[str, Call] = {
    "PotentialEnergy": _call(wprox.PotentialEnergy, potential=half_square, modulus=1.0),
    "InteractionEnergy": _call(wprox.InteractionEnergy, kernel=half_square, modulus=0.0, batch_size=4, seed=0),
    "Entropy": _call(wprox.Entropy),
    "InternalEnergy": _call(wprox.InternalEnergy, energy=square, modulus=0.0),
    "PorousMedium": _call(wprox.PorousMedium, exponent=2.0),
    "KL": _call(wprox.KL, target=lambda x: -half_square(x), modulus=1.0),
    "MMD": _call(wprox.MMD, target=X, kernel=None, unbiased=False, n_samples=10, seed=0),
    "KSD": _call(wprox.KSD, target=lambda x: -half_square(x), kernel=None),
    "KSD of a score": _call(wprox.KSD, score=lambda x: -x),
    "SquaredWasserstein": _call(wprox.SquaredWasserstein, target=X, num_itermax=1000),
    "SinkhornDivergence": _call(wprox.SinkhornDivergence, target=X, blur=0.5, tol=1e-3, iterations=100),
    "SlicedWasserstein": _call(wprox.SlicedWasserstein, target=X, n_projections=4, seed=0),
    "DensityBounds": _call(wprox.DensityBounds, lower=0.0, upper=9.0, tolerance=1e-3),
    "Congestion": _call(wprox.Congestion, max_density=9.0, tolerance=1e-3),
}
SOLVERS: dict[str, tuple[Call, str]] = {  # with the kind of measure that they take
    "ParticleProx": (
        _call(
            wprox.ParticleProx,
            coupling="identity",
            blur=None,
            iterations=20,
            tolerance=1e-3,
            absolute_tolerance=1e-6,
            memory=5,
        ),
        "KernelParticles",
    ),
    "GaussianProx": (_call(wprox.GaussianProx, iterations=20, tolerance=1e-5), "Gaussian"),
    "QuantileProx": (_call(wprox.QuantileProx, iterations=20, tolerance=1e-6, memory=5), "Quantiles"),
    "SinkhornProx": (
        _call(
            wprox.SinkhornProx,
            blur=0.5,
            debias="entropy",
            tol=1e-3,
            iterations=50,
            memory=3,
            semi_implicit=False,
            heat_steps=None,
            log_domain=False,
        ),
        "Grid",
    ),
    "NeuralProx": (
        _call(
            wprox.NeuralProx,
            map=wprox.AffineMap,
            map_options=None,
            iterations=2,
            batch_size=8,
            learning_rate=1e-2,
            weight_decay=0.0,
            clip=5.0,
            check_every=1,
            patience=1,
            validation_fraction=0.2,
            warm_start=False,
            flow_matching=0,
            gap_tolerance=0.01,
            seed=0,
            progress=False,
        ),
        "Particles",
    ),
    "ExplicitEuler": (_call(wprox.ExplicitEuler, accelerated=False, noise=0.0, seed=0), "Particles"),
    "Langevin": (_call(wprox.Langevin, adjusted=False, seed=0), "Particles"),
    "ForwardBackward": (_call(wprox.ForwardBackward, backward=wprox.GaussianProx(), forward=None), "Gaussian"),
}
FLOW = {
    "map": "spline",
    "map_options": None,
    "step_sizes": 1.0,
    "n_blocks": 1,
    "iterations": 1,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "jitter": 0.0,
    "flow_matching": 0,
    "patience": 1,
    "tol": 1e-3,
    "transport_tol": 0.0,
    "fine_tune": False,
    "fine_tune_iterations": 1,
    "fine_tune_learning_rate": 1e-3,
    "fine_tune_batch_size": 16,
    "memory_budget": 2**24,
    "validation_fraction": 0.2,
    "standardize": True,
    "integer": False,
    "bounds": None,
    "smoothing": 0.0,
    "drop_constant": False,
    "seed": 0,
    "progress": False,
}
SAMPLER = {
    "target": lambda x: -half_square(x),
    "dim": 2,
    "initial": LAW,
    "map": "spline",
    "map_options": None,
    "step_sizes": 1.0,
    "n_blocks": 1,
    "iterations": 1,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "n_particles": 40,
    "tol": 0.01,
    "fine_tune": False,
    "fine_tune_iterations": 1,
    "fine_tune_learning_rate": 1e-3,
    "fine_tune_batch_size": 16,
    "corrections": 0,
    "rejection_rate": 0.3,
    "corrected_blocks": 0,
    "forward_steps": 0,
    "memory_budget": 2**24,
    "seed": 0,
    "progress": False,
}
MAPS: dict[str, Call] = {
    "AffineMap": _call(wprox.AffineMap, dim=2),
    "SplineMap": _call(
        wprox.SplineMap,
        dim=2,
        transforms=1,
        bins=4,
        hidden=(8,),
        frequencies=0,
        bound=5.0,
        coupling=True,
        affine=True,
        dropout=0.0,
    ),
    "ODEMap": _call(
        wprox.ODEMap,
        dim=2,
        hidden=(8,),
        activation="tanh",
        frequency=1.0,
        steps=1,
        method="rk4",
        tolerance=1e-4,
        exact_dim=16,
        kinetic=0.0,
        jacobian=0.0,
    ),
    "ResidualMap": _call(
        wprox.ResidualMap, dim=2, blocks=1, hidden=(8,), lipschitz=0.9, affine=True, log_det="auto", tolerance=1e-4
    ),
    "ConvexMap": _call(
        wprox.ConvexMap,
        dim=2,
        groups=1,
        pieces=4,
        convexity=1e-3,
        log_det="auto",
        lanczos_steps=3,
        tolerance=1e-4,
    ),
    "MonotoneMap": _call(wprox.MonotoneMap, source=torch.linspace(0, 1, 5), target=torch.linspace(0, 2, 5)),
    "GradientStepMap": _call(
        GradientStepMap, dim=2, potential=half_square, step_size=0.1, batch_size=8, tolerance=1e-4
    ),
}
KERNELS = {
    "Gaussian": _call(kernels.Gaussian, bandwidth=1.0),
    "Laplace": _call(kernels.Laplace, bandwidth=1.0),
    "InverseMultiquadric": _call(kernels.InverseMultiquadric, bandwidth=1.0, exponent=0.5),
    "Riesz": _call(kernels.Riesz, exponent=1.0),
    "Morse": _call(kernels.Morse, repulsion=1.0, repulsion_length=1.0, attraction=1.0, attraction_length=2.0),
    "PowerLaw": _call(kernels.PowerLaw, attraction=2.0, repulsion=1.0),
    "EvenKernel": _call(kernels.EvenKernel, function=half_square, singular=False, memory_budget=2**16),
}


def _applied(call: Call, arguments: Callable[[Any], Any], is_slow: bool = False) -> Call:
    """A call, and what is done with its result."""
    return Call(lambda **given: arguments(call.function(**given)), call.arguments, is_slow or call.is_slow, call.free)


def _calls() -> dict[str, Call]:
    calls = _measure_calls() | _functional_calls() | _solver_calls() | _map_calls() | _metric_calls() | _model_calls()
    for name, kernel in KERNELS.items():
        calls[f"kernels.{name}"] = _applied(kernel, lambda k: k(X))
        calls[f"InteractionEnergy(kernels.{name})"] = _applied(kernel, lambda k: wprox.InteractionEnergy(k)(PARTICLES))
    calls["kernels.Riesz.__call__"] = _call(lambda z: kernels.Riesz()(z), z=X)
    calls["kernels.with_backend"] = _call(kernels.Riesz().with_backend, backend="blocks")
    calls["kernels.median_bandwidth"] = _call(kernels.median_bandwidth, points=X, seed=0)
    return calls | _theory_calls() | _dataset_calls() | _law_calls()


def _measure_calls() -> dict[str, Call]:
    law = Independent(Normal(torch.zeros(2), 1.0), 1)
    bounds, mask = [(-4.0, 4.0)] * 2, torch.zeros(4, 4, dtype=torch.bool)
    calls = {
        "Particles": _call(wprox.Particles, points=X, weights=torch.full((12,), 1 / 12), log_density=LOG),
        "Particles.from_distribution": _call(wprox.Particles.from_distribution, distribution=law, n=5, seed=0),
        "Particles.with_kernel_density": _call(PARTICLES.with_kernel_density, bandwidth=0.5, factor=None),
        "KernelParticles": _call(
            lambda **a: wprox.KernelParticles(**a).log_density(), points=X, weights=None, bandwidth=None, factor=1.0
        ),
        "Gaussian": _call(wprox.Gaussian, loc=torch.zeros(2), covariance_matrix=torch.eye(2), order=3),
        "Gaussian.from_samples": _call(wprox.Gaussian.from_samples, points=X, weights=None),
        "Gaussian.log_prob": _call(LAW.log_prob, x=X),
        "Gaussian.to_particles": _call(LAW.to_particles, n=5, seed=0),
        "Quantiles": _call(wprox.Quantiles, nodes=torch.linspace(0, 1, 5)),
        "Quantiles.from_icdf": _call(wprox.Quantiles.from_icdf, icdf=torch.special.ndtri, n=9),
        "Quantiles.from_samples": _call(wprox.Quantiles.from_samples, x=X[:, 0], n=5, weights=None),
        "Quantiles.icdf": _call(MEASURES["Quantiles"].icdf, u=torch.tensor([0.1, 0.5])),
        "Quantiles.log_prob": _call(MEASURES["Quantiles"].log_prob, x=torch.tensor([0.1, 0.5])),
        "Quantiles.to_particles": _call(MEASURES["Quantiles"].to_particles, n=5, seed=0),
        "Grid": _call(wprox.Grid, mass=torch.ones(4, 4), bounds=bounds, mask=mask),
        "Grid.from_density": _call(
            wprox.Grid.from_density,
            density=lambda x: torch.exp(-half_square(x)),
            shape=(4, 4),
            bounds=bounds,
            mask=mask,
            dtype=F64,
        ),
        "Grid.from_particles": _call(wprox.Grid.from_particles, particles=X, shape=(4, 4), bounds=bounds, mask=None),
    }
    for name, rho in MEASURES.items():
        points = rho.points[:3].clone()
        pushed: Any = wprox.AffineMap.from_matrix(2 * torch.eye(2)) if name == "Gaussian" else double
        calls |= {
            f"{name}.integrate": _call(rho.integrate, f=half_square),
            f"{name}.integrate_pairs": _call(rho.integrate_pairs, k=half_square),
            f"{name}.convolve": _call(rho.convolve, k=half_square, x=points),
            f"{name}.integrate_density": _call(rho.integrate_density, f=square),
            f"{name}.push": _call(rho.push, map=pushed if name != "Grid" else lambda x: x / 2),
            f"{name}.sample": _call(rho.sample, n=3, seed=0),
            f"{name}.to": _call(rho.to, dtype=torch.float32),
        }
        if name != "Particles":
            calls[f"{name}.log_density_at"] = _call(rho.log_density_at, x=points)
        if rho.movable:
            calls[f"{name}.at"] = _call(rho.at, points=rho.points)
            calls[f"{name}.subset"] = _call(rho.subset, index=torch.tensor([0, 1, 2]))
    return calls


def _functional_calls() -> dict[str, Call]:
    calls = {}
    for name, call in FUNCTIONALS.items():
        rho = MEASURES["Particles"]
        calls[f"F = {name}"] = _applied(call, lambda F, rho=rho: F(rho))
        calls[f"{name}.wasserstein_gradient"] = (
            _applied(
                call,
                lambda F: F.wasserstein_gradient(
                    MEASURES["KernelParticles"] if F.needs_density(PARTICLES) else PARTICLES
                ),
            )
            if "Bounds" not in name and "Congestion" not in name
            else calls[f"F = {name}"]
        )
        F = call()
        calls[f"{name}()(rho)"] = _call(F, rho=rho)
        if "Bounds" not in name and "Congestion" not in name:
            other = MEASURES["KernelParticles"]
            calls[f"{name}.first_variation(rho)(x)"] = _call(
                lambda rho, x, F=F: F.first_variation(rho)(x), rho=other, x=X
            )
    calls |= {
        "F + G": _call(lambda other: V + other, other=W),
        "F - G": _call(lambda other: V - other, other=W),
        "F * c": _call(lambda factor: (V * factor)(PARTICLES), factor=2.0),
        "c * F": _call(lambda factor: (factor * V)(PARTICLES), factor=2.0),
        "F / c": _call(lambda divisor: (V / divisor)(PARTICLES), divisor=2.0),
        "KL of a law": _call(lambda target: wprox.KL(target)(MEASURES["Particles"]), target=LAW),
    }
    return calls


OF_FUNCTIONS = ("PotentialEnergy", "InteractionEnergy", "InternalEnergy", "KL")


def _solver_calls() -> dict[str, Call]:
    calls = {}
    for name, (call, kind) in SOLVERS.items():
        solver, rho = call(), MEASURES[kind]
        dim = rho.dim
        F: wprox.Functional = V + wprox.KL(wprox.Gaussian(torch.zeros(dim), torch.eye(dim)))
        F = V if name == "ExplicitEuler" else F
        slow = name in ("NeuralProx", "SinkhornProx")
        calls[name] = _applied(call, lambda s, F=F, rho=rho: s.step(F, rho, 0.1), slow)
        calls[f"{name}.step"] = _call(
            solver.step, slow, functional=F, measure=rho, step_size=0.1, previous=None, held_out=None
        )
        for other in OF_FUNCTIONS:
            of = FUNCTIONALS[other].arguments
            if name == "ExplicitEuler" and other in ("InternalEnergy", "KL"):
                rho = MEASURES["KernelParticles"]
            argument = next(iter(of))

            def stepped(solver: Any = solver, rho: Any = rho, other: str = other, **given: Any) -> Any:
                F = getattr(wprox, other)(*given.values())
                if isinstance(solver, wprox.Langevin | wprox.ForwardBackward):
                    F = F + wprox.Entropy()
                return solver.step(F, rho, 0.1)

            calls[f"{name}.step({other})"] = Call(stepped, {argument: of[argument]}, slow)
    euler = wprox.ExplicitEuler()
    calls |= {
        "jko": _call(
            wprox.jko,
            functional=V,
            solver=euler,
            initial=PARTICLES,
            step_size=0.1,
            n_steps=2,
            tol=1e-9,
            progress=False,
            until=None,
        ),
        "jko(until)": _call(wprox.jko, functional=V, solver=euler, initial=PARTICLES, step_size=[0.1, 0.2], until=0.3),
        "jko_steps": _call(
            lambda **a: list(wprox.jko_steps(**a)),
            functional=V,
            solver=euler,
            initial=PARTICLES,
            step_size=0.1,
            n_steps=2,
            held_out=None,
        ),
        "Problem": _call(
            wprox.Problem, functional=V, measure=PARTICLES, step_size=0.1, anchor=None, held_out=None, index=0
        ),
    }
    trajectory = wprox.jko(V, wprox.GaussianProx(), LAW, 0.1, 2)
    calls["Trajectory.log_prob"] = _call(trajectory.log_prob, x=X, initial=LAW)
    calls["certify"] = _call(
        wprox.certify,
        trajectory=trajectory,
        functional=V,
        step_sizes=None,
        residuals=0.1,
        modulus=1.0,
        minimiser=None,
        initial_w2=1.0,
        values=None,
        inverse_errors=0.1,
        lipschitz=1.0,
        seed=0,
    )
    return calls


def _map_calls() -> dict[str, Call]:
    calls = {}
    for name, call in MAPS.items():
        x = X[:, :1] if name == "MonotoneMap" else X
        calls[name] = _applied(call, lambda T, x=x: T(x.to(next(T.parameters(), x).dtype)))
        T = call()
        calls[f"{name}.forward"] = _call(T, x=x)
        calls[f"{name}.inverse"] = _call(T.inverse, y=x)
    calls["AffineMap.from_matrix"] = _call(wprox.AffineMap.from_matrix, matrix=torch.eye(2), shift=torch.zeros(2))
    calls["ComposedMap"] = _call(lambda maps: wprox.ComposedMap(maps)(X), maps=[wprox.AffineMap(2)])
    return calls


def _metric_calls() -> dict[str, Call]:
    p, q = MEASURES["Particles"], PARTICLES
    line = MEASURES["Quantiles"]
    return {
        "metrics.bures_wasserstein": _call(metrics.bures_wasserstein, p=LAW, q=LAW),
        "metrics.energy_distance": _call(metrics.energy_distance, p=p, q=q),
        "metrics.ess": _call(metrics.ess, weights=torch.tensor([0.5, 0.5]), log=False),
        "metrics.ess(log)": _call(lambda weights: metrics.ess(weights, log=True), weights=torch.tensor([0.5, 0.5])),
        "metrics.mmd": _call(metrics.mmd, p=p, q=q, kernel=None, unbiased=False),
        "metrics.sinkhorn_divergence": _call(metrics.sinkhorn_divergence, p=p, q=q, blur=0.5, tol=1e-3, iterations=100),
        "metrics.sliced_w2": _call(metrics.sliced_w2, p=p, q=q, n_projections=4, seed=0),
        "metrics.w2": _call(metrics.w2, p=p, q=q, num_itermax=1000),
        "metrics.wasserstein": _call(metrics.wasserstein, p=LAW, q=LAW, method=None, seed=0),
        "metrics.wasserstein(moments)": _call(metrics.wasserstein, p=p, q=q, method="moments", seed=0),
        "metrics.wasserstein_1d": _call(metrics.wasserstein_1d, p=line, q=line),
    }


def _theory_calls() -> dict[str, Call]:
    numbers = {"initial_w2": 1.0, "step_sizes": [0.1, 0.2], "errors": [0.1, 0.1], "modulus": 1.0, "n_steps": None}
    return {
        "theory.contraction_factor": _call(theory.contraction_factor, step_size=0.1, modulus=1.0),
        "theory.inverse_bound": _call(
            theory.inverse_bound, inverse_errors=[0.1, 0.1], lipschitz=[1.0, 1.0], n_steps=None
        ),
        "theory.inverse_bound(n)": _call(theory.inverse_bound, inverse_errors=0.1, lipschitz=1.0, n_steps=2),
        "theory.mixed_bound": _call(theory.mixed_bound, **numbers, inverse_errors=0.1, lipschitz=1.0),
        "theory.objective_bound": _call(theory.objective_bound, **numbers),
        "theory.w2_bound": _call(theory.w2_bound, **numbers),
        "theory.pinsker": _call(theory.pinsker, kl=0.1),
        "theory.plateau": _call(theory.plateau, error=0.1, modulus=1.0),
        "theory.smoothing_bound": _call(theory.smoothing_bound, delta=0.1, second_moment=1.0, dim=2),
        "theory.step_bound": _call(theory.step_bound, w2=1.0, step_size=0.1, error=0.1, modulus=1.0),
        "theory.steps_needed": _call(
            theory.steps_needed, error=0.1, initial_w2=1.0, step_size=0.1, modulus=1.0, target=9.0
        ),
        "stein.stein_residual": _call(
            wprox.stein.stein_residual,
            points_before=_points(60),
            points_after=_points(60) + 0.1,
            grad_potential=lambda x: x,
            step_size=1.0,
            seed=0,
            entropy_weight=1.0,
            features=10,
        ),
    }


def _dataset_calls() -> dict[str, Call]:
    moons = datasets.TwoMoons()
    return {
        "datasets.EightGaussians": _call(datasets.EightGaussians, radius=4.0, std=0.5),
        "datasets.Rings": _call(datasets.Rings, radii=(1.0, 2.0), std=0.1),
        "datasets.TwoMoons": _call(datasets.TwoMoons, std=0.1),
        "datasets.ImageDensity": _call(
            datasets.ImageDensity, False, ("name",), image=torch.ones(8, 8), half_width=4.0, sigma=0.5, name="image"
        ),
        "datasets.from_image": _call(datasets.from_image, image=torch.ones(8, 8), half_width=4.0, sigma=0.5),
        "datasets.rose_image": _call(datasets.rose_image, size=16),
        "datasets.sample": _call(moons.sample, n=3, seed=0),
        "datasets.log_prob": _call(moons.log_prob, x=X),
    }


def _law_calls() -> dict[str, Call]:
    check = wprox.testing
    return {
        "testing.check_functional": _call(
            check.check_functional,
            True,
            functional=V,
            dim=2,
            measures=[PARTICLES.to(F64)],
            parameters=(),
            exempt=(),
            seed=0,
        ),
        "testing.check_measure": _call(check.check_measure, True, rho=PARTICLES, exempt=()),
        "testing.check_map": _call(check.check_map, True, map=wprox.AffineMap(2), exempt=(), seed=0),
        "testing.check_solver": _call(
            check.check_solver, True, solver=wprox.GaussianProx(), problems=["interaction"], measures=[LAW], exempt=()
        ),
    }


@lru_cache(maxsize=1)
def _fitted() -> tuple[wprox.JKOFlow, wprox.JKOSampler]:
    return wprox.JKOFlow(**FLOW).fit(_points(60)), wprox.JKOSampler(**SAMPLER).run()


def _model_calls() -> dict[str, Call]:
    flow, sampler = _fitted()
    X60 = _points(60)
    calls = {
        "JKOFlow": _call(lambda **a: wprox.JKOFlow(**a).fit(X60), True, **FLOW),
        "JKOFlow.fit": _call(
            lambda **a: wprox.JKOFlow(**FLOW).fit(**a), True, ("y",), X=X60, y=None, validation=_points(12)
        ),
        "JKOFlow.score": _call(flow.score, False, ("y",), X=X, y=None),
        "JKOFlow.sample": _call(flow.sample, n=3, seed=0),
        "JKOFlow.inverse_transform": _call(flow.inverse_transform, Z=X),
        "JKOFlow.certificate": _call(flow.certificate, True, X=X60, initial_w2="samples", values=None, seed=0),
        "JKOFlow.refine": _call(
            lambda **a: wprox.JKOFlow(**FLOW | {"n_blocks": 2, "tol": -math.inf}).fit(X60).refine(**a), True, rounds=1
        ),
        "JKOSampler": _call(lambda **a: wprox.JKOSampler(**a).run(), True, **SAMPLER),
        "JKOSampler.for_modes": _call(
            wprox.JKOSampler.for_modes, target=lambda x: -half_square(x), initial=LAW, n_particles=40
        ),
        "JKOSampler.sample": _call(sampler.sample, n=3, seed=0),
        "JKOSampler.correct": _call(lambda steps: _fitted()[1].correct(steps), True, steps=1),
        "JKOSampler.log_normalizer": _call(sampler.log_normalizer, n=20, seed=0),
    }
    for name in ("log_prob", "transform", "score_samples", "latents"):
        calls[f"JKOFlow.{name}"] = _call(getattr(flow, name), X=X)
    for name in ("log_prob", "importance_weights", "effective_sample_size"):
        calls[f"JKOSampler.{name}"] = _call(getattr(sampler, name), x=X)
    return calls | _file_calls(flow, sampler)


def _file_calls(flow: wprox.JKOFlow, sampler: wprox.JKOSampler) -> dict[str, Call]:
    base = folder = Path(tempfile.mkdtemp(prefix="wprox_fuzz_"))
    flow.save(folder / "flow")
    sampler.save(folder / "sampler")
    return {
        "JKOFlow.load": _call(wprox.JKOFlow.load, folder=folder / "flow", map_classes=()),
        "JKOSampler.load": _call(
            wprox.JKOSampler.load, folder=folder / "sampler", target=lambda x: -half_square(x), map_classes=()
        ),
        "JKOFlow.save": _call(
            lambda folder, overwrite: flow.save(base / folder if isinstance(folder, str) else folder, overwrite),
            folder=base / "flow",
            overwrite=True,
        ),
    }


# --- verdicts


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    Attributes:
        verdict: one of VERDICTS.
        note: the error, or what is wrong with the result.
    """

    verdict: str
    note: str = ""


@dataclass
class Tally:
    """Counts of verdicts, and the calls that are at fault."""

    counts: collections.Counter = field(default_factory=collections.Counter)
    faults: list[tuple[str, str, str, Outcome]] = field(default_factory=list)

    def add(self, call: str, argument: str, hostile: str, outcome: Outcome) -> None:
        self.counts[outcome.verdict] += 1
        if outcome.verdict not in ("refused", "works"):
            self.faults.append((call, argument, hostile, outcome))


def judge(call: Call, argument: str, hostile: str, limit: float = 5.0) -> Outcome:
    """The verdict on a call with one argument replaced."""
    wrong = HOSTILE[hostile]()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            result = call(**{argument: wrong})
        except TooSlowError:
            return Outcome("hang", f"over {limit:g} s")
        except OwnError:
            return Outcome("refused", "its own error")
        except Exception as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return _of_error(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    told = any(issubclass(warning.category, RuntimeWarning | UserWarning) for warning in warned)
    note = _of_result(result)
    if note and not told:
        return Outcome("silent", note)
    return Outcome("works", "with a warning" if told else "")


def _alarm(*_: Any) -> None:
    raise TooSlowError


def _of_error(error: Exception) -> Outcome:
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return Outcome("memory", text)
    last = traceback.extract_tb(error.__traceback__)[-1]
    if last.filename == __file__:
        return Outcome("refused", f"its own error: {text}")
    if not _is_raised_by_us(last):
        return Outcome("obscure", text)
    stock = [phrase for phrase in STOCK if phrase in str(error)]
    if len(str(error).split()) < WORDS or stock:
        return Outcome("obscure", text)
    return Outcome("refused", text)


def _is_raised_by_us(last: traceback.FrameSummary) -> bool:
    """Whether the last frame of an error is a `raise` of this library."""
    if Path(wprox.__file__).parent not in Path(last.filename).parents:
        return False
    return any(first <= last.lineno <= end for first, end in _raises(last.filename))


@cache
def _raises(filename: str) -> list[tuple[int, int]]:
    tree = ast.parse(Path(filename).read_text())
    return [(node.lineno, node.end_lineno or node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Raise)]


def _of_result(result: Any) -> str:
    """What is wrong with a result; nothing for one that may be right."""
    if isinstance(result, Tensor):
        if result.is_complex() or result.dtype in (torch.float16, torch.bfloat16):
            return f"a tensor in {result.dtype}"
        return "NaN in a tensor" if result.is_floating_point() and bool(result.isnan().any()) else ""
    if isinstance(result, float):
        return "NaN" if math.isnan(result) else ""
    if isinstance(result, wprox.Measure):
        if result.points.ndim != 2 or result.weights.shape != result.points.shape[:1]:
            return f"points of shape {tuple(result.points.shape)}"
        if not bool(torch.isfinite(result.points).all() & torch.isfinite(result.weights).all()):
            return "a measure at points, or of weights, that are not finite"
        return _of_result(result.points) or _of_result(result.weights)
    if isinstance(result, wprox.Step):
        if result.value.ndim:
            return f"a value of shape {tuple(result.value.shape)}"
        return _of_result(result.measure) or _of_result(result.value) or _of_result(result.transport_cost)
    if isinstance(result, wprox.Trajectory):
        return _of_result(result.final)
    if isinstance(result, tuple | list):
        return next((note for part in result if (note := _of_result(part))), "")
    return ""


# --- runs


def cases(slow: bool = True) -> list[tuple[str, str, str]]:
    """All triples of a call, one of its arguments and something hostile."""
    return [
        (name, argument, hostile)
        for name, call in calls().items()
        if slow or not call.is_slow
        for argument in call.arguments
        if argument not in call.free
        for hostile in HOSTILE
    ]


@lru_cache(maxsize=1)
def calls() -> dict[str, Call]:
    """All calls, by name."""
    return _calls()


def run(seconds: float, seed: int, only: str = "", slow: bool = True, limit: float = 5.0) -> Tally:
    """Judge cases in random order, for so many seconds or until there are no more."""
    todo = [case for case in cases(slow) if only in case[0]]
    random.Random(seed).shuffle(todo)
    tally, start = Tally(), time.perf_counter()
    for name, argument, hostile in _until(todo, start + seconds):
        torch.manual_seed(0)
        tally.add(name, argument, hostile, judge(calls()[name], argument, hostile, limit))
    return tally


def _until(todo: list[tuple[str, str, str]], end: float) -> Iterator[tuple[str, str, str]]:
    for case in todo:
        if time.perf_counter() > end:
            return
        yield case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="calls whose name holds this")
    parser.add_argument("--quick", action="store_true", help="leave slow calls out")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds a call")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of address space")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (int(options.memory * 2**30), resource.RLIM_INFINITY))
    torch.set_num_threads(1)
    tally = run(options.seconds, options.seed, options.only, not options.quick, options.limit)
    for name, argument, hostile, outcome in sorted(tally.faults, key=lambda fault: (fault[3].verdict, fault[0])):
        print(f"{outcome.verdict}: {name}, {argument} = {hostile}: {outcome.note.splitlines()[0][:150]}")
    print(f"{tally.counts.total()} of {len(cases())} calls:", dict(tally.counts))
    raise SystemExit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
