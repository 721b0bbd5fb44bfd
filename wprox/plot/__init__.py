"""Pictures: a trajectory of measures, generated rows beside real ones, a flow block by block, a certificate."""

from wprox.plot.certificate import plot_certificate
from wprox.plot.flow import plot_flow
from wprox.plot.measures import Panel, draw
from wprox.plot.samples import plot_samples
from wprox.plot.trajectory import plot_trajectory

__all__ = ["Panel", "draw", "plot_certificate", "plot_flow", "plot_samples", "plot_trajectory"]
