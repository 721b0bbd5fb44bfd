"""Models: thin compositions of functionals, solvers and maps."""

from wprox.models.flow.jko_flow import JKOFlow
from wprox.models.sampler.jko_sampler import JKOSampler

__all__ = ["JKOFlow", "JKOSampler"]
