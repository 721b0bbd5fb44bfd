"""The Stein critic under its public name; it lives in `wprox.theory.stein`."""

from wprox.theory.stein import StepError, stein_residual

__all__ = ["StepError", "stein_residual"]
