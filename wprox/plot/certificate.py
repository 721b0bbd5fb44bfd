"""A certificate: the bounds of the theory, step by step, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from wprox.plot.figure import integer_ticks, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class HasBounds(Protocol):
    """What is drawn of a certificate."""

    @property
    def w2(self) -> list[float]: ...
    @property
    def objective(self) -> list[float]: ...
    @property
    def measured_w2(self) -> list[float] | None: ...
    @property
    def measured_objective(self) -> list[float] | None: ...
    @property
    def is_estimate(self) -> bool: ...


def plot_certificate(certificate: HasBounds, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Draw the bounds of W₂² and of G − G*; see `Certificate.plot`."""
    axes = list(new_figure(9, 3.5).subplots(1, 2) if axes is None else axes)
    if len(axes) != 2:
        raise ValueError(f"a certificate is drawn on two axes, got {len(axes)}")
    steps = range(len(certificate.w2))
    measured_squares = None if certificate.measured_w2 is None else [w2**2 for w2 in certificate.measured_w2]
    panels = (
        ("$W_2^2(p_n, q)$", steps, [w2**2 for w2 in certificate.w2], measured_squares),
        ("$G(p_n) - G^*$", steps[1:], certificate.objective, certificate.measured_objective),
    )
    for ax, (title, index, bound, measured) in zip(axes, panels, strict=True):
        ax.semilogy(index, bound, label="estimated bound" if certificate.is_estimate else "bound", color="C3")
        if measured is not None:
            positive = [(n, value) for n, value in zip(index, measured, strict=True) if value > 0]
            ax.semilogy(
                [n for n, _ in positive], [v for _, v in positive], "o", markersize=3, label="measured", color="C0"
            )
        ax.set_title(title)
        ax.set_xlabel("step n")
        integer_ticks(ax)
        ax.legend()
    return axes
