"""The command line under its public name; it lives in `wprox.app.cli`."""

from wprox.app.cli import app, main

__all__ = ["app", "main"]
