"""Models: thin compositions of functionals, solvers and maps."""

from wprox.models.jko_flow import JKOFlow
from wprox.models.jko_sampler import JKOSampler

__all__ = ["JKOFlow", "JKOSampler"]
