"""The convergence theory of proximal steps: bounds as functions of numbers, the Stein critic, and certificates."""

from wprox.theory.bounds import (
    MixedBound,
    StepBound,
    contraction_factor,
    inverse_bound,
    mixed_bound,
    objective_bound,
    pinsker,
    plateau,
    smoothing_bound,
    step_bound,
    steps_needed,
    w2_bound,
)

__all__ = [
    "MixedBound",
    "StepBound",
    "contraction_factor",
    "inverse_bound",
    "mixed_bound",
    "objective_bound",
    "pinsker",
    "plateau",
    "smoothing_bound",
    "step_bound",
    "steps_needed",
    "w2_bound",
]
