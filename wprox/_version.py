"""The version of wprox."""

__version__ = "0.1.0"
