"""wprox: proximal optimisation in Wasserstein space.

Each public name is one line here. The models, which need scikit-learn, are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from wprox import _interruptions as _interruptions
from wprox import kernels as kernels
from wprox import metrics as metrics
from wprox import stein as stein
from wprox import theory as theory
from wprox._version import __version__ as __version__
from wprox.functionals import KL as KL
from wprox.functionals import KSD as KSD
from wprox.functionals import MMD as MMD
from wprox.functionals import Congestion as Congestion
from wprox.functionals import DensityBounds as DensityBounds
from wprox.functionals import Entropy as Entropy
from wprox.functionals import Functional as Functional
from wprox.functionals import InteractionEnergy as InteractionEnergy
from wprox.functionals import InternalEnergy as InternalEnergy
from wprox.functionals import PorousMedium as PorousMedium
from wprox.functionals import PotentialEnergy as PotentialEnergy
from wprox.functionals import SinkhornDivergence as SinkhornDivergence
from wprox.functionals import SlicedWasserstein as SlicedWasserstein
from wprox.functionals import SquaredWasserstein as SquaredWasserstein
from wprox.functionals.structure import Structure as Structure
from wprox.jko import Trajectory as Trajectory
from wprox.jko import jko as jko
from wprox.jko import jko_steps as jko_steps
from wprox.maps import AffineMap as AffineMap
from wprox.maps import ComposedMap as ComposedMap
from wprox.maps import ConvexMap as ConvexMap
from wprox.maps import InverseError as InverseError
from wprox.maps import MonotoneMap as MonotoneMap
from wprox.maps import ODEMap as ODEMap
from wprox.maps import ResidualMap as ResidualMap
from wprox.maps import SplineMap as SplineMap
from wprox.maps import TransportMap as TransportMap
from wprox.measures import DensityUnknownError as DensityUnknownError
from wprox.measures import Gaussian as Gaussian
from wprox.measures import Grid as Grid
from wprox.measures import KernelParticles as KernelParticles
from wprox.measures import Measure as Measure
from wprox.measures import Particles as Particles
from wprox.measures import Quantiles as Quantiles
from wprox.solvers import Ending as Ending
from wprox.solvers import ExplicitEuler as ExplicitEuler
from wprox.solvers import ForwardBackward as ForwardBackward
from wprox.solvers import GaussianProx as GaussianProx
from wprox.solvers import Langevin as Langevin
from wprox.solvers import NeuralProx as NeuralProx
from wprox.solvers import ParticleProx as ParticleProx
from wprox.solvers import Problem as Problem
from wprox.solvers import QuantileProx as QuantileProx
from wprox.solvers import SinkhornProx as SinkhornProx
from wprox.solvers import Solved as Solved
from wprox.solvers import Solver as Solver
from wprox.solvers import Step as Step
from wprox.solvers import StepFailedError as StepFailedError
from wprox.theory.certificate import Certificate as Certificate
from wprox.theory.certificate import certify as certify

if TYPE_CHECKING:
    from wprox import datasets as datasets
    from wprox import models as models
    from wprox.models import JKOFlow as JKOFlow
    from wprox.models import JKOSampler as JKOSampler

_MODELS = ["JKOFlow", "JKOSampler"]
_LATER = ["cli", "datasets", "models", "plot", "testing"]  # modules that come when they are asked for
_MODULES = ["kernels", "metrics", "stein", "theory"]

__all__ = sorted(
    [*_MODELS, *_MODULES]
    + [name for name, value in globals().items() if getattr(value, "__module__", "").startswith("wprox.")]
)

if not TYPE_CHECKING:  # type checkers would take any name for one that is here

    def __getattr__(name: str) -> object:
        """The models, and modules of the package that nothing has imported yet (PEP 562)."""
        from importlib import import_module
        from importlib.util import find_spec

        if name in _MODELS:
            return getattr(import_module("wprox.models"), name)
        if name.isidentifier() and not name.startswith("_") and find_spec(f"wprox.{name}") is not None:
            return import_module(f"wprox.{name}")
        raise AttributeError(f"module 'wprox' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_LATER})
