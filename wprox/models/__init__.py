"""Models: thin compositions of functionals, solvers and maps."""

from wprox.models.jko_flow import JKOFlow

__all__ = ["JKOFlow"]
