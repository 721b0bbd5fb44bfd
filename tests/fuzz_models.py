"""Calls that work: of maps, metrics, bounds, data sets, laws and models."""

from __future__ import annotations

import math
import tempfile
from functools import lru_cache
from pathlib import Path

import torch
from fuzz_calls import F64, LAW, MEASURES, PARTICLES, Call, V, X, applied, half_square, some_points, works

import wprox
import wprox.testing
from wprox import datasets, metrics, theory
from wprox.maps import GradientStepMap

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
    "AffineMap": works(wprox.AffineMap, dim=2),
    "SplineMap": works(
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
    "ODEMap": works(
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
    "ResidualMap": works(
        wprox.ResidualMap, dim=2, blocks=1, hidden=(8,), lipschitz=0.9, affine=True, log_det="auto", tolerance=1e-4
    ),
    "ConvexMap": works(
        wprox.ConvexMap,
        dim=2,
        groups=1,
        pieces=4,
        convexity=1e-3,
        log_det="auto",
        lanczos_steps=3,
        tolerance=1e-4,
    ),
    "MonotoneMap": works(wprox.MonotoneMap, source=torch.linspace(0, 1, 5), target=torch.linspace(0, 2, 5)),
    "GradientStepMap": works(
        GradientStepMap, dim=2, potential=half_square, step_size=0.1, batch_size=8, tolerance=1e-4
    ),
}


def map_calls() -> dict[str, Call]:
    calls = {}
    for name, call in MAPS.items():
        x = X[:, :1] if name == "MonotoneMap" else X
        calls[name] = applied(call, lambda T, x=x: T(x.to(next(T.parameters(), x).dtype)))
        T = call()
        calls[f"{name}.forward"] = works(T, x=x)
        calls[f"{name}.inverse"] = works(T.inverse, y=x)
    calls["AffineMap.from_matrix"] = works(wprox.AffineMap.from_matrix, matrix=torch.eye(2), shift=torch.zeros(2))
    calls["ComposedMap"] = works(lambda maps: wprox.ComposedMap(maps)(X), maps=[wprox.AffineMap(2)])
    return calls


def metric_calls() -> dict[str, Call]:
    p, q = MEASURES["Particles"], PARTICLES
    line = MEASURES["Quantiles"]
    return {
        "metrics.bures_wasserstein": works(metrics.bures_wasserstein, p=LAW, q=LAW),
        "metrics.classifier_two_sample": works(
            metrics.classifier_two_sample, True, real=some_points(40), generated=some_points(40, seed=1), seed=0
        ),
        "metrics.train_on_synthetic": works(
            metrics.train_on_synthetic,
            True,
            real=some_points(40),
            generated=some_points(40, seed=1),
            test=some_points(40, seed=2),
            target="x2",
            seed=0,
        ),
        "metrics.energy_distance": works(metrics.energy_distance, p=p, q=q),
        "metrics.ess": works(metrics.ess, weights=torch.tensor([0.5, 0.5]), log=False),
        "metrics.pareto_k": works(metrics.pareto_k, weights=torch.linspace(0.1, 1, 60), log=False),
        "metrics.ess(log)": works(lambda weights: metrics.ess(weights, log=True), weights=torch.tensor([0.5, 0.5])),
        "metrics.mmd": works(metrics.mmd, p=p, q=q, kernel=None, unbiased=False),
        "metrics.sinkhorn_divergence": works(metrics.sinkhorn_divergence, p=p, q=q, blur=0.5, tol=1e-3, iterations=100),
        "metrics.sliced_w2": works(metrics.sliced_w2, p=p, q=q, n_projections=4, seed=0),
        "metrics.w2": works(metrics.w2, p=p, q=q, num_itermax=1000),
        "metrics.wasserstein": works(metrics.wasserstein, p=LAW, q=LAW, method=None, seed=0),
        "metrics.wasserstein(moments)": works(metrics.wasserstein, p=p, q=q, method="moments", seed=0),
        "metrics.wasserstein_1d": works(metrics.wasserstein_1d, p=line, q=line),
    }


def theory_calls() -> dict[str, Call]:
    numbers = {"initial_w2": 1.0, "step_sizes": [0.1, 0.2], "errors": [0.1, 0.1], "modulus": 1.0, "n_steps": None}
    return {
        "theory.contraction_factor": works(theory.contraction_factor, step_size=0.1, modulus=1.0),
        "theory.inverse_bound": works(
            theory.inverse_bound, inverse_errors=[0.1, 0.1], lipschitz=[1.0, 1.0], n_steps=None
        ),
        "theory.inverse_bound(n)": works(theory.inverse_bound, inverse_errors=0.1, lipschitz=1.0, n_steps=2),
        "theory.mixed_bound": works(theory.mixed_bound, **numbers, inverse_errors=0.1, lipschitz=1.0),
        "theory.objective_bound": works(theory.objective_bound, **numbers),
        "theory.w2_bound": works(theory.w2_bound, **numbers),
        "theory.pinsker": works(theory.pinsker, kl=0.1),
        "theory.plateau": works(theory.plateau, error=0.1, modulus=1.0),
        "theory.smoothing_bound": works(theory.smoothing_bound, delta=0.1, second_moment=1.0, dim=2),
        "theory.step_bound": works(theory.step_bound, w2=1.0, step_size=0.1, error=0.1, modulus=1.0),
        "theory.steps_needed": works(
            theory.steps_needed, error=0.1, initial_w2=1.0, step_size=0.1, modulus=1.0, target=9.0
        ),
        "stein.stein_residual": works(
            wprox.stein.stein_residual,
            points_before=some_points(60),
            points_after=some_points(60) + 0.1,
            grad_potential=lambda x: x,
            step_size=1.0,
            seed=0,
            entropy_weight=1.0,
            features=10,
        ),
    }


def dataset_calls() -> dict[str, Call]:
    moons = datasets.TwoMoons()
    return {
        "datasets.EightGaussians": works(datasets.EightGaussians, radius=4.0, std=0.5),
        "datasets.Rings": works(datasets.Rings, radii=(1.0, 2.0), std=0.1),
        "datasets.TwoMoons": works(datasets.TwoMoons, std=0.1),
        "datasets.ImageDensity": works(
            datasets.ImageDensity, False, ("name",), image=torch.ones(8, 8), half_width=4.0, sigma=0.5, name="image"
        ),
        "datasets.from_image": works(datasets.from_image, image=torch.ones(8, 8), half_width=4.0, sigma=0.5),
        "datasets.rose_image": works(datasets.rose_image, size=16),
        "datasets.sample": works(moons.sample, n=3, seed=0),
        "datasets.log_prob": works(moons.log_prob, x=X),
    }


def law_calls() -> dict[str, Call]:
    check = wprox.testing
    return {
        "testing.check_functional": works(
            check.check_functional,
            True,
            functional=V,
            dim=2,
            measures=[PARTICLES.to(F64)],
            parameters=(),
            exempt=(),
            seed=0,
        ),
        "testing.check_measure": works(check.check_measure, True, rho=PARTICLES, exempt=()),
        "testing.check_map": works(check.check_map, True, map=wprox.AffineMap(2), exempt=(), seed=0),
        "testing.check_solver": works(
            check.check_solver, True, solver=wprox.GaussianProx(), problems=["interaction"], measures=[LAW], exempt=()
        ),
    }


@lru_cache(maxsize=1)
def _fitted() -> tuple[wprox.JKOFlow, wprox.JKOSampler]:
    return wprox.JKOFlow(**FLOW).fit(some_points(60)), wprox.JKOSampler(**SAMPLER).run()


def model_calls() -> dict[str, Call]:
    flow, sampler = _fitted()
    X60 = some_points(60)
    calls = {
        "JKOFlow": works(lambda **a: wprox.JKOFlow(**a).fit(X60), True, **FLOW),
        "JKOFlow.fit": works(
            lambda **a: wprox.JKOFlow(**FLOW).fit(**a), True, ("y",), X=X60, y=None, validation=some_points(12)
        ),
        "JKOFlow.score": works(flow.score, False, ("y",), X=X, y=None),
        "JKOFlow.sample": works(flow.sample, n=3, seed=0),
        "JKOFlow.inverse_transform": works(flow.inverse_transform, Z=X),
        "JKOFlow.certificate": works(flow.certificate, True, X=X60, initial_w2="samples", values=None, seed=0),
        "JKOFlow.refine": works(
            lambda **a: wprox.JKOFlow(**FLOW | {"n_blocks": 2, "tol": -math.inf}).fit(X60).refine(**a), True, rounds=1
        ),
        "JKOSampler": works(lambda **a: wprox.JKOSampler(**a).run(), True, **SAMPLER),
        "JKOSampler.for_modes": works(
            wprox.JKOSampler.for_modes, target=lambda x: -half_square(x), initial=LAW, n_particles=40
        ),
        "JKOSampler.sample": works(sampler.sample, n=3, seed=0),
        "JKOSampler.correct": works(lambda steps: _fitted()[1].correct(steps), True, steps=1),
        "JKOSampler.log_normalizer": works(sampler.log_normalizer, n=20, seed=0),
    }
    for name in ("log_prob", "transform", "score_samples", "latents"):
        calls[f"JKOFlow.{name}"] = works(getattr(flow, name), X=X)
    for name in ("log_prob", "importance_weights", "effective_sample_size"):
        calls[f"JKOSampler.{name}"] = works(getattr(sampler, name), x=X)
    return calls | _file_calls(flow, sampler)


def _file_calls(flow: wprox.JKOFlow, sampler: wprox.JKOSampler) -> dict[str, Call]:
    base = folder = Path(tempfile.mkdtemp(prefix="wprox_fuzz_"))
    flow.save(folder / "flow")
    sampler.save(folder / "sampler")
    return {
        "JKOFlow.load": works(wprox.JKOFlow.load, folder=folder / "flow", map_classes=()),
        "JKOSampler.load": works(
            wprox.JKOSampler.load, folder=folder / "sampler", target=lambda x: -half_square(x), map_classes=()
        ),
        "JKOFlow.save": works(
            lambda folder, overwrite: flow.save(base / folder if isinstance(folder, str) else folder, overwrite),
            folder=base / "flow",
            overwrite=True,
        ),
    }
