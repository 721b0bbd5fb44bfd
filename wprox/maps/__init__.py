"""Invertible transport maps with log-determinants."""

from wprox.maps.affine import AffineMap
from wprox.maps.base import ComposedMap, TransportMap
from wprox.maps.gradient import GradientStepMap
from wprox.maps.monotone import MonotoneMap
from wprox.maps.ode import ODEMap
from wprox.maps.spline import SplineMap

__all__ = ["AffineMap", "ComposedMap", "GradientStepMap", "MonotoneMap", "ODEMap", "SplineMap", "TransportMap"]
