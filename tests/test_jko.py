"""The driver: step sizes, stopping, warnings, the generator of steps and the trajectory; on a stub solver."""

import math

import numpy as np
import pytest
import torch

import wprox
from wprox.solvers.base import Solver


def half_square(x):
    return 0.5 * x.square().sum(-1)


FUNCTIONAL = wprox.PotentialEnergy(half_square)


class ExactStub(Solver):
    """The proximal step of ½|x|², T(x) = x/(1+γ), in closed form; `fails` lists the steps that do not converge."""

    def __init__(self, with_map=True, fails=()):
        self.with_map, self.fails, self.calls = with_map, fails, []

    def step(self, functional, measure, step_size, *, previous=None, held_out=None):
        index = 0 if previous is None else previous.index + 1
        self.calls.append((step_size, previous, held_out))
        dim = measure.dim
        map = wprox.AffineMap.from_matrix(torch.eye(dim, dtype=measure.dtype) / (1 + step_size)).requires_grad_(False)
        rho = measure.push(map)
        return wprox.Step(
            measure=rho,
            map=map if self.with_map else None,
            value=functional(rho),
            transport_cost=measure.weights @ (rho.points - measure.points).square().sum(1),
            step_size=step_size,
            residual=0.25,
            converged=index not in self.fails,
            message="the stub was told to fail",
            index=index,
            held_out=None if held_out is None else held_out.push(map),
        )


@pytest.fixture
def rho():
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 2
    return wprox.Particles(points)


# --- step sizes ---


@pytest.mark.parametrize(
    "step_size",
    [
        0.5,
        1,
        np.float32(0.5),
        torch.tensor(0.5),
        [0.5, 0.25, 2.0],
        (0.5, 0.25, 2.0),
        np.array([0.5, 0.25, 2.0]),
        torch.tensor([0.5, 0.25, 2.0]),
        lambda k: 0.5 * 2**k,
    ],
    ids=["float", "int", "numpy number", "torch number", "list", "tuple", "array", "tensor", "callable"],
)
def test_step_sizes(rho, step_size):
    trajectory = wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=step_size, n_steps=3)
    if callable(step_size):
        expected = [step_size(k) for k in range(3)]
    else:
        expected = np.broadcast_to(np.asarray(step_size, dtype=float), 3).tolist()
    assert [step.step_size for step in trajectory.steps] == expected
    factor = math.prod(1 / (1 + gamma) for gamma in expected)
    assert torch.allclose(trajectory.final.points, factor * rho.points)


@pytest.mark.parametrize(
    ("step_size", "error", "message"),
    [
        (0.0, ValueError, "step_size must be positive and finite, got 0"),
        (-0.1, ValueError, "got -0.1"),
        (math.nan, ValueError, "got nan"),
        (math.inf, ValueError, "got inf"),
        ([0.1, -0.2, 0.1], ValueError, r"step_size\[1\] must be positive and finite, got -0.2"),
        ([0.1, 0.2], ValueError, "step_size has 2 entries for 3 steps; give one a step"),
        (None, TypeError, "step_size must be a number, got None"),
        (lambda k: 1.0 - k, ValueError, r"step_size\(1\) must be positive and finite, got 0"),
    ],
)
def test_bad_step_sizes(rho, step_size, error, message):
    with pytest.raises(error, match=message):
        wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=step_size, n_steps=3)


def test_bad_counts_and_tolerances(rho):
    with pytest.raises(ValueError, match="n_steps must be at least 1, got 0"):
        wprox.jko(FUNCTIONAL, ExactStub(), rho, n_steps=0)
    with pytest.raises(TypeError, match="n_steps must be an integer"):
        wprox.jko(FUNCTIONAL, ExactStub(), rho, n_steps=2.5)
    with pytest.raises(ValueError, match="tol must be positive"):
        wprox.jko(FUNCTIONAL, ExactStub(), rho, tol=0.0)


# --- the trajectory ---


def test_trajectory_holds_measures_values_and_steps(rho):
    trajectory = wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=1.0, n_steps=4)
    assert (len(trajectory), len(trajectory.steps), len(trajectory.measures), len(trajectory.values)) == (4, 4, 5, 5)
    assert trajectory.final is trajectory.measures[-1]
    assert torch.equal(trajectory.measures[0].points, rho.points)
    for k, (measure, value) in enumerate(zip(trajectory.measures, trajectory.values, strict=True)):
        assert torch.allclose(value, FUNCTIONAL(rho) / 4**k)
        assert torch.allclose(measure.points, rho.points / 2**k)
    assert not trajectory.converged
    assert not trajectory.interrupted


def test_the_exact_step_satisfies_the_descent_inequality(rho):
    """F(ρ_{k+1}) + W₂²/(2γ) ≤ F(ρ_k): the defining property of a proximal step."""
    trajectory = wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=[0.1, 1.0, 3.0], n_steps=3)
    for before, step in zip(trajectory.values, trajectory.steps, strict=False):
        assert float(step.value + step.transport_cost / (2 * step.step_size)) <= float(before)


def test_trajectory_map_is_the_composition(rho):
    trajectory = wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=[1.0, 3.0], n_steps=2)
    y, log_det = trajectory.map(rho.points)
    assert torch.allclose(y, trajectory.final.points)
    assert torch.allclose(log_det, torch.full((20,), -2 * math.log(8), dtype=torch.float64))
    assert torch.allclose(trajectory.map.inverse(y), rho.points)


def test_trajectory_without_maps_has_no_map(rho):
    assert wprox.jko(FUNCTIONAL, ExactStub(with_map=False), rho, n_steps=2).map is None
    assert wprox.Trajectory([rho], [FUNCTIONAL(rho)]).map is None


# --- stopping ---


def test_tol_stops_at_the_first_slow_step(rho):
    # the speed of step k is √E|x_k − x_{k+1}|²/γ = √(E|x₀|²)/2^{k+1} for γ = 1
    start = math.sqrt(float(rho.points.square().sum(1).mean()))
    trajectory = wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=1.0, n_steps=50, tol=1.01 * start / 2**4)
    assert trajectory.converged
    assert len(trajectory) == 4


def test_tol_counts_speed_not_distance(rho):
    """A tenth of the step size moves a tenth as far at the same speed: it must not look converged."""
    start = math.sqrt(float(rho.points.square().sum(1).mean()))
    trajectory = wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=1e-3, n_steps=3, tol=0.5 * start)
    assert not trajectory.converged
    assert len(trajectory) == 3


# --- warnings and progress ---


def test_one_warning_however_many_steps_do_not_converge(rho):
    with pytest.warns(RuntimeWarning, match="did not converge") as caught:
        trajectory = wprox.jko(FUNCTIONAL, ExactStub(fails=(1, 2)), rho, n_steps=4)
    assert len(caught) == 1
    assert "step 1 did not converge (residual 0.25): the stub was told to fail" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert [step.converged for step in trajectory.steps] == [True, False, False, True]


@pytest.mark.filterwarnings("error")
def test_no_warning_where_all_converge(rho):
    wprox.jko(FUNCTIONAL, ExactStub(), rho, n_steps=2)


def test_progress_is_shown_on_request_only(rho, capsys):
    wprox.jko(FUNCTIONAL, ExactStub(), rho, n_steps=2)
    assert capsys.readouterr().err == ""
    wprox.jko(FUNCTIONAL, ExactStub(), rho, n_steps=2, progress=True)
    output = capsys.readouterr().err
    assert "jko" in output
    assert "2/2" in output


# --- step by step ---


def test_jko_steps_yields_the_steps_of_jko(rho):
    solver = ExactStub()
    steps = wprox.jko_steps(FUNCTIONAL, solver, rho, step_size=lambda k: 1.0 + k, n_steps=10)
    taken = [next(steps), next(steps)]
    assert len(solver.calls) == 2  # lazily: nobody asked for the third
    full = wprox.jko(FUNCTIONAL, ExactStub(), rho, step_size=lambda k: 1.0 + k, n_steps=2)
    for one, other in zip(taken, full.steps, strict=True):
        assert torch.equal(one.measure.points, other.measure.points)
    assert [step.index for step in taken] == [0, 1]


def test_jko_steps_ends(rho):
    assert len(list(wprox.jko_steps(FUNCTIONAL, ExactStub(), rho, n_steps=3))) == 3


def test_solvers_see_the_previous_step_and_the_pushed_held_out_measure(rho):
    solver = ExactStub()
    held_out = wprox.Particles(rho.points[:5])
    steps = list(wprox.jko_steps(FUNCTIONAL, solver, rho, 1.0, n_steps=3, held_out=held_out))
    assert [previous for _, previous, _ in solver.calls] == [None, steps[0], steps[1]]
    assert torch.allclose(solver.calls[2][2].points, rho.points[:5] / 4)
    assert torch.allclose(steps[-1].held_out.points, rho.points[:5] / 8)


def test_solvers_prepare_the_initial_measure(rho):
    class Preparing(ExactStub):
        def prepare(self, measure):
            return wprox.Particles(measure.points + 100)

    trajectory = wprox.jko(FUNCTIONAL, Preparing(), rho, step_size=1.0, n_steps=1)
    assert torch.equal(trajectory.measures[0].points, rho.points + 100)
    assert torch.allclose(trajectory.final.points, (rho.points + 100) / 2)


# --- failures ---


class Breaking(ExactStub):
    def __init__(self, error, at):
        super().__init__()
        self.error, self.at = error, at

    def step(self, functional, measure, step_size, *, previous=None, held_out=None):
        if len(self.calls) == self.at:
            raise self.error
        return super().step(functional, measure, step_size, previous=previous, held_out=held_out)


def test_failed_step_carries_the_trajectory(rho):
    with pytest.raises(wprox.StepFailedError, match="it broke") as caught:
        wprox.jko(FUNCTIONAL, Breaking(wprox.StepFailedError("it broke"), at=2), rho, n_steps=5)
    assert len(caught.value.trajectory) == 2
    assert len(caught.value.trajectory.measures) == 3


@pytest.mark.parametrize("at", [0, 2])
def test_ctrl_c_returns_the_steps_so_far(rho, at):
    with pytest.warns(RuntimeWarning, match=f"interrupted after {at} steps"):
        trajectory = wprox.jko(FUNCTIONAL, Breaking(KeyboardInterrupt(), at=at), rho, n_steps=5)
    assert trajectory.interrupted
    assert len(trajectory) == at
    assert len(trajectory.measures) == len(trajectory.values) == at + 1


def test_other_errors_pass_through(rho):
    with pytest.raises(ZeroDivisionError):
        wprox.jko(FUNCTIONAL, Breaking(ZeroDivisionError(), at=1), rho, n_steps=2)
