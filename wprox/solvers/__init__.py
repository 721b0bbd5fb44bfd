"""Solvers of the proximal step: one method, step(functional, measure, step_size) -> Step."""

from wprox.solvers.base import Ending, Solved, Solver, Step
from wprox.solvers.explicit import ExplicitEuler
from wprox.solvers.forward_backward import ForwardBackward
from wprox.solvers.gaussian import GaussianProx
from wprox.solvers.grid.sinkhorn import SinkhornProx
from wprox.solvers.langevin import Langevin
from wprox.solvers.neural.neural import NeuralProx
from wprox.solvers.particle import ParticleProx
from wprox.solvers.problem import Problem, StepFailedError
from wprox.solvers.quantile import QuantileProx

__all__ = [
    "Ending",
    "ExplicitEuler",
    "ForwardBackward",
    "GaussianProx",
    "Langevin",
    "NeuralProx",
    "ParticleProx",
    "Problem",
    "QuantileProx",
    "SinkhornProx",
    "Solved",
    "Solver",
    "Step",
    "StepFailedError",
]
