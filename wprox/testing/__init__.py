"""Laws that functionals keep: for your own classes, and for the tests of this library.

Each `check_…` takes one object, asks it every law that classes of its kind keep, and raises `AssertionError` for the
first that is broken: which law, by how much and at what input. It returns the names of the laws that could be asked.
"""

from wprox.testing.functionals import check_functional
from wprox.testing.maps import check_map
from wprox.testing.measures import check_measure
from wprox.testing.solvers import check_solver

__all__ = ["check_functional", "check_map", "check_measure", "check_solver"]
