"""Invertible transport maps with log-determinants."""

from wprox.maps.affine import AffineMap
from wprox.maps.base import ComposedMap, InverseError, TransportMap
from wprox.maps.conditionals import ConditionalDensity, GaussianMixtureDensity, KernelDensity
from wprox.maps.convex import ConvexMap
from wprox.maps.gradient_step import GradientStepMap
from wprox.maps.monotone import MonotoneMap
from wprox.maps.ode import ODEMap
from wprox.maps.rescaled import RescaledMap
from wprox.maps.residual import ResidualMap
from wprox.maps.rosenblatt import RosenblattMap
from wprox.maps.spline import SplineMap

__all__ = [
    "AffineMap",
    "ComposedMap",
    "ConditionalDensity",
    "ConvexMap",
    "GaussianMixtureDensity",
    "GradientStepMap",
    "InverseError",
    "KernelDensity",
    "MonotoneMap",
    "ODEMap",
    "RescaledMap",
    "ResidualMap",
    "RosenblattMap",
    "SplineMap",
    "TransportMap",
]
