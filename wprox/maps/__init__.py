"""Invertible transport maps with log-determinants."""

from wprox.maps.affine import AffineMap
from wprox.maps.base import ComposedMap, InverseError, TransportMap
from wprox.maps.convex import ConvexMap
from wprox.maps.gradient_step import GradientStepMap
from wprox.maps.monotone import MonotoneMap
from wprox.maps.ode import ODEMap
from wprox.maps.rescaled import RescaledMap
from wprox.maps.residual import ResidualMap
from wprox.maps.spline import SplineMap

__all__ = [
    "AffineMap",
    "ComposedMap",
    "ConvexMap",
    "GradientStepMap",
    "InverseError",
    "MonotoneMap",
    "ODEMap",
    "RescaledMap",
    "ResidualMap",
    "SplineMap",
    "TransportMap",
]
