"""Warnings that point at the line of the caller, wherever in the library they are given."""

from __future__ import annotations

import sys
import warnings

INSIDE = ("wprox", "torch", "contextlib", "functools")  # whose frames lie between the caller and the warning


def warn(message: str, category: type[Warning] = RuntimeWarning) -> None:
    """Warn at the first frame outside of this library, and of the decorators that it uses."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
