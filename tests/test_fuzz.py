"""One wrong argument in a call that works: a sentence, or a right result. A short run; the long one is fuzz.py."""

import inspect

import pytest
import torch
from fuzz import calls, cases
from fuzz_verdict import judge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import wprox
from wprox import kernels, metrics, theory

RESULTS = {  # made by the library, not by its users; and what has no arguments
    *("Certificate", "DensityUnknownError", "Ending", "InverseError", "Solved", "Step", "StepFailedError", "Structure"),
    *("Entropy", "Trajectory", "Distance", "MixedBound", "StepBound", "Logarithmic"),
    *("Functional", "Measure", "RadialKernel", "Solver", "TransportMap"),  # abstract
}
QUICK = [name for name, call in calls().items() if not call.is_slow]


@pytest.mark.parametrize("module", [wprox, kernels, metrics, theory], ids=lambda module: module.__name__)
def test_every_public_name_is_called(module):
    public = {name for name in module.__all__ if not inspect.ismodule(getattr(module, name))} - RESULTS
    called = {word for name in calls() for word in name.replace("(", ".").replace(" ", ".").split(".")}
    assert sorted(public - called) == []


def test_the_calls_work():
    for name in QUICK:
        torch.manual_seed(0)
        calls()[name]()


@settings(max_examples=400, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(cases(slow=False)))
def test_one_wrong_argument(case):
    name, argument, hostile = case
    torch.manual_seed(0)
    outcome = judge(calls()[name], argument, hostile, limit=60.0)
    assert outcome.verdict in ("refused", "works"), f"{name}, {argument} = {hostile}: {outcome.verdict}: {outcome.note}"


@pytest.mark.parametrize(
    ("name", "argument", "hostile"),
    [  # found by long runs of fuzz.py, seeds 11 and 12
        ("Grid.log_density_at", "x", "a tensor with NaN"),
        ("JKOFlow", "validation_fraction", "1e-320"),
        ("JKOSampler", "n_particles", "10**11"),
        ("SplineMap", "frequencies", "10**11"),
        ("Trajectory.log_prob", "initial", "a scalar distribution"),
        ("Trajectory.log_prob", "initial", "a distribution"),
        ("datasets.log_prob", "x", "huge numbers"),
        ("metrics.pareto_k", "weights", "a 0-d array"),
        ("testing.check_map", "seed", "a NumPy integer"),
        ("testing.check_solver", "measures", "an empty list"),
        ("theory.steps_needed", "initial_w2", "1e308"),
        ("theory.step_bound", "step_size", "1e308"),
        ("GradientStepMap", "step_size", "1e308"),
        ("KernelParticles", "factor", "1e-320"),
        ("ODEMap", "frequency", "1e308"),
        ("PorousMedium.wasserstein_gradient", "exponent", "1e308"),
        ("ResidualMap", "lipschitz", "1e-320"),
        ("testing.check_solver", "measures", "zero"),
        ("JKOFlow.certificate", "values", "half"),
    ],
)
def test_what_long_runs_found(name, argument, hostile):
    torch.manual_seed(0)
    outcome = judge(calls()[name], argument, hostile, limit=60.0)
    assert outcome.verdict in ("refused", "works"), f"{outcome.verdict}: {outcome.note}"
