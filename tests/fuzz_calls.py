"""Calls that work: of measures, functionals, kernels and solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

import wprox
from wprox import kernels

F64 = torch.float64


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


def works(function: Callable[..., Any], is_slow: bool = False, free: tuple[str, ...] = (), /, **arguments: Any) -> Call:
    def constant(value: Any) -> Callable[[], Any]:
        return lambda: value

    return Call(function, {name: constant(value) for name, value in arguments.items()}, is_slow, free)


def some_points(n: int = 12, d: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def half_square(x: Tensor) -> Tensor:
    return x.square().sum(-1) / 2


def square(density: Tensor) -> Tensor:
    return density.square()


def double(x: Tensor) -> Tensor:
    return 2 * x


X, LOG = some_points(), torch.zeros(12)
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
    "PotentialEnergy": works(wprox.PotentialEnergy, potential=half_square, modulus=1.0),
    "InteractionEnergy": works(wprox.InteractionEnergy, kernel=half_square, modulus=0.0, batch_size=4, seed=0),
    "Entropy": works(wprox.Entropy),
    "InternalEnergy": works(wprox.InternalEnergy, energy=square, modulus=0.0),
    "PorousMedium": works(wprox.PorousMedium, exponent=2.0),
    "KL": works(wprox.KL, target=lambda x: -half_square(x), modulus=1.0),
    "MMD": works(wprox.MMD, target=X, kernel=None, unbiased=False, n_samples=10, seed=0),
    "KSD": works(wprox.KSD, target=lambda x: -half_square(x), kernel=None),
    "KSD of a score": works(wprox.KSD, score=lambda x: -x),
    "SquaredWasserstein": works(wprox.SquaredWasserstein, target=X, num_itermax=1000),
    "SinkhornDivergence": works(wprox.SinkhornDivergence, target=X, blur=0.5, tol=1e-3, iterations=100),
    "SlicedWasserstein": works(wprox.SlicedWasserstein, target=X, n_projections=4, seed=0),
    "DensityBounds": works(wprox.DensityBounds, lower=0.0, upper=9.0, tolerance=1e-3),
    "Congestion": works(wprox.Congestion, max_density=9.0, tolerance=1e-3),
}
SOLVERS: dict[str, tuple[Call, str]] = {  # with the kind of measure that they take
    "ParticleProx": (
        works(
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
    "GaussianProx": (works(wprox.GaussianProx, iterations=20, tolerance=1e-5), "Gaussian"),
    "QuantileProx": (works(wprox.QuantileProx, iterations=20, tolerance=1e-6, memory=5), "Quantiles"),
    "SinkhornProx": (
        works(
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
        works(
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
    "ExplicitEuler": (works(wprox.ExplicitEuler, accelerated=False, noise=0.0, seed=0), "Particles"),
    "Langevin": (works(wprox.Langevin, adjusted=False, seed=0), "Particles"),
    "ForwardBackward": (works(wprox.ForwardBackward, backward=wprox.GaussianProx(), forward=None), "Gaussian"),
}
KERNELS = {
    "Gaussian": works(kernels.Gaussian, bandwidth=1.0),
    "Laplace": works(kernels.Laplace, bandwidth=1.0),
    "InverseMultiquadric": works(kernels.InverseMultiquadric, bandwidth=1.0, exponent=0.5),
    "Riesz": works(kernels.Riesz, exponent=1.0),
    "Morse": works(kernels.Morse, repulsion=1.0, repulsion_length=1.0, attraction=1.0, attraction_length=2.0),
    "PowerLaw": works(kernels.PowerLaw, attraction=2.0, repulsion=1.0),
    "EvenKernel": works(kernels.EvenKernel, function=half_square, singular=False, memory_budget=2**16),
}


def applied(call: Call, arguments: Callable[[Any], Any], is_slow: bool = False) -> Call:
    """A call, and what is done with its result."""
    return Call(lambda **given: arguments(call.function(**given)), call.arguments, is_slow or call.is_slow, call.free)


def kernel_calls() -> dict[str, Call]:
    calls = {}
    for name, kernel in KERNELS.items():
        calls[f"kernels.{name}"] = applied(kernel, lambda k: k(X))
        calls[f"InteractionEnergy(kernels.{name})"] = applied(kernel, lambda k: wprox.InteractionEnergy(k)(PARTICLES))
    calls["kernels.Riesz.__call__"] = works(lambda z: kernels.Riesz()(z), z=X)
    calls["kernels.with_backend"] = works(kernels.Riesz().with_backend, backend="blocks")
    calls["kernels.median_bandwidth"] = works(kernels.median_bandwidth, points=X, seed=0)
    return calls


def measure_calls() -> dict[str, Call]:
    law = Independent(Normal(torch.zeros(2), 1.0), 1)
    bounds, mask = [(-4.0, 4.0)] * 2, torch.zeros(4, 4, dtype=torch.bool)
    calls = {
        "Particles": works(wprox.Particles, points=X, weights=torch.full((12,), 1 / 12), log_density=LOG),
        "Particles.from_distribution": works(wprox.Particles.from_distribution, distribution=law, n=5, seed=0),
        "Particles.with_kernel_density": works(PARTICLES.with_kernel_density, bandwidth=0.5, factor=None),
        "KernelParticles": works(
            lambda **a: wprox.KernelParticles(**a).log_density(), points=X, weights=None, bandwidth=None, factor=1.0
        ),
        "Gaussian": works(wprox.Gaussian, loc=torch.zeros(2), covariance_matrix=torch.eye(2), order=3),
        "Gaussian.from_samples": works(wprox.Gaussian.from_samples, points=X, weights=None),
        "Gaussian.log_prob": works(LAW.log_prob, x=X),
        "Gaussian.to_particles": works(LAW.to_particles, n=5, seed=0),
        "Quantiles": works(wprox.Quantiles, nodes=torch.linspace(0, 1, 5)),
        "Quantiles.from_icdf": works(wprox.Quantiles.from_icdf, icdf=torch.special.ndtri, n=9),
        "Quantiles.from_samples": works(wprox.Quantiles.from_samples, x=X[:, 0], n=5, weights=None),
        "Quantiles.icdf": works(MEASURES["Quantiles"].icdf, u=torch.tensor([0.1, 0.5])),
        "Quantiles.log_prob": works(MEASURES["Quantiles"].log_prob, x=torch.tensor([0.1, 0.5])),
        "Quantiles.to_particles": works(MEASURES["Quantiles"].to_particles, n=5, seed=0),
        "Grid": works(wprox.Grid, mass=torch.ones(4, 4), bounds=bounds, mask=mask),
        "Grid.from_density": works(
            wprox.Grid.from_density,
            density=lambda x: torch.exp(-half_square(x)),
            shape=(4, 4),
            bounds=bounds,
            mask=mask,
            dtype=F64,
        ),
        "Grid.from_particles": works(wprox.Grid.from_particles, particles=X, shape=(4, 4), bounds=bounds, mask=None),
    }
    for name, rho in MEASURES.items():
        points = rho.points[:3].clone()
        pushed: Any = wprox.AffineMap.from_matrix(2 * torch.eye(2)) if name == "Gaussian" else double
        calls |= {
            f"{name}.integrate": works(rho.integrate, f=half_square),
            f"{name}.integrate_pairs": works(rho.integrate_pairs, k=half_square),
            f"{name}.convolve": works(rho.convolve, k=half_square, x=points),
            f"{name}.integrate_density": works(rho.integrate_density, f=square),
            f"{name}.push": works(rho.push, map=pushed if name != "Grid" else lambda x: x / 2),
            f"{name}.sample": works(rho.sample, n=3, seed=0),
            f"{name}.to": works(rho.to, dtype=torch.float32),
        }
        if name != "Particles":
            calls[f"{name}.log_density_at"] = works(rho.log_density_at, x=points)
        if rho.movable:
            calls[f"{name}.at"] = works(rho.at, points=rho.points)
            calls[f"{name}.subset"] = works(rho.subset, index=torch.tensor([0, 1, 2]))
    return calls


def functional_calls() -> dict[str, Call]:
    calls = {}
    for name, call in FUNCTIONALS.items():
        rho = MEASURES["Particles"]
        calls[f"F = {name}"] = applied(call, lambda F, rho=rho: F(rho))
        calls[f"{name}.wasserstein_gradient"] = (
            applied(
                call,
                lambda F: F.wasserstein_gradient(
                    MEASURES["KernelParticles"] if F.needs_density(PARTICLES) else PARTICLES
                ),
            )
            if "Bounds" not in name and "Congestion" not in name
            else calls[f"F = {name}"]
        )
        F = call()
        calls[f"{name}()(rho)"] = works(F, rho=rho)
        if "Bounds" not in name and "Congestion" not in name:
            other = MEASURES["KernelParticles"]
            calls[f"{name}.first_variation(rho)(x)"] = works(
                lambda rho, x, F=F: F.first_variation(rho)(x), rho=other, x=X
            )
    calls |= {
        "F + G": works(lambda other: V + other, other=W),
        "F - G": works(lambda other: V - other, other=W),
        "F * c": works(lambda factor: (V * factor)(PARTICLES), factor=2.0),
        "c * F": works(lambda factor: (factor * V)(PARTICLES), factor=2.0),
        "F / c": works(lambda divisor: (V / divisor)(PARTICLES), divisor=2.0),
        "KL of a law": works(lambda target: wprox.KL(target)(MEASURES["Particles"]), target=LAW),
    }
    return calls


OF_FUNCTIONS = ("PotentialEnergy", "InteractionEnergy", "InternalEnergy", "KL")


def solver_calls() -> dict[str, Call]:
    calls = {}
    for name, (call, kind) in SOLVERS.items():
        solver, rho = call(), MEASURES[kind]
        dim = rho.dim
        F: wprox.Functional = V + wprox.KL(wprox.Gaussian(torch.zeros(dim), torch.eye(dim)))
        F = V if name == "ExplicitEuler" else F
        slow = name in ("NeuralProx", "SinkhornProx")
        calls[name] = applied(call, lambda s, F=F, rho=rho: s.step(F, rho, 0.1), slow)
        calls[f"{name}.step"] = works(
            solver.step, slow, functional=F, measure=rho, step_size=0.1, previous=None, held_out=None
        )
        for other in OF_FUNCTIONS:
            if name == "Langevin" and other == "InternalEnergy":  # which it refuses
                continue
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
        "jko": works(
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
        "jko(until)": works(wprox.jko, functional=V, solver=euler, initial=PARTICLES, step_size=[0.1, 0.2], until=0.3),
        "jko_steps": works(
            lambda **a: list(wprox.jko_steps(**a)),
            functional=V,
            solver=euler,
            initial=PARTICLES,
            step_size=0.1,
            n_steps=2,
            held_out=None,
        ),
        "Problem": works(
            wprox.Problem, functional=V, measure=PARTICLES, step_size=0.1, anchor=None, held_out=None, index=0
        ),
    }
    trajectory = wprox.jko(V, wprox.GaussianProx(), LAW, 0.1, 2)
    calls["Trajectory.log_prob"] = works(trajectory.log_prob, x=X, initial=LAW)
    calls["certify"] = works(
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
