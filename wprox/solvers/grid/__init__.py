"""The proximal step on grids, by entropic transport."""
