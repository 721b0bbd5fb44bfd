"""From a table of numbers to standardised points, and back, with the log-determinant on the way."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from wprox._checks import as_floating, as_points, check_non_negative

LIKELIHOOD_DRAWS = 8  # dequantisation draws over which the log-likelihood of integer data is averaged
MARGIN = 0.01  # of the range on each side, so that values at a bound stay finite under the logit


class Preprocessing:
    r"""Constant columns out, integers dequantised, bounded values through the logit, then standardised and smoothed.

    The steps, each optional, with z the result:

    - integers: x + u with u ~ U[0, 1)^d, whose density bounds the probability of x from below (Theis, van den Oord and
      Bethge 2016, equation (5));
    - bounds: logit(p) with p = m + (1 − 2m) (x − low)/(high − low) and a margin m = 0.01 for values at a bound;
    - standardisation: (x − mean)/std, column by column;
    - smoothing: e^{−δ} z + √(1 − e^{−2δ}) n with n ~ N(0, I), the Ornstein–Uhlenbeck process run for a time δ, which
      gives a law without a density one (Cheng, Lu, Tan and Xie 2024).

    Arguments:
        standardize: whether to standardise.
        integer: whether the data are integers.
        bounds: (low, high), numbers or one a column, between which the data lie; for integers both belong to the range.
        smoothing: δ ≥ 0.
        drop_constant: leave out columns that hold one value only, and put them back in what is generated.
    """

    def __init__(
        self,
        standardize: bool = True,
        integer: bool = False,
        bounds: tuple[Any, Any] | None = None,
        smoothing: float = 0.0,
        drop_constant: bool = False,
    ) -> None:
        self.standardize = bool(standardize)
        self.integer = bool(integer)
        self.bounds = bounds
        self.smoothing = check_non_negative(smoothing, "smoothing")
        self.drop_constant = bool(drop_constant)
        if bounds is not None and (not isinstance(bounds, tuple | list) or len(bounds) != 2):
            raise ValueError(f"bounds must be a pair (low, high) of numbers or of one number a column, got {bounds!r}")

    def fit(self, x: Tensor, columns: list[str] | None = None) -> Preprocessing:
        """Learn which columns vary, the bounds and the moments from x: (n, d)."""
        x = x.double()
        self.n_features = x.shape[1]
        constant = (x == x[0]).all(0)
        if bool(constant.any()) and not self.drop_constant:
            names = [columns[j] if columns else str(j) for j in constant.nonzero()[:, 0].tolist()]
            listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
            raise ValueError(
                f"{len(names)} of {x.shape[1]} columns are constant: {listed}; a constant has no density. Drop them, "
                "or set drop_constant=True (--drop-constant) to leave them out and put them back in what is generated"
            )
        if bool(constant.all()):
            raise ValueError("all columns are constant; there is nothing to learn")
        self.kept = (~constant).nonzero()[:, 0]
        self.template = x[0].clone()
        if self.bounds is not None:
            self.low, self.high = self._check_bounds(x)
        self.mean, self.std = x.new_zeros(len(self.kept)), x.new_ones(len(self.kept))
        if self.standardize:
            generator = torch.Generator(device=x.device).manual_seed(0)
            z, _ = self._to_line(x, self._noise(x, generator) if self.integer else None)
            self.mean, self.std = z.mean(0), z.std(0)
            bad = ~(self.std.isfinite() & self.mean.isfinite() & (self.std > 0))
            if bool(bad.any()):
                raise ValueError(
                    f"column {int(self.kept[bad][0])} has a spread of {float(self.std[bad][0]):g}, which floating "
                    "point cannot standardise; rescale or shift it before fitting"
                )
            _warn_of_outliers((z - self.mean) / self.std, self.kept)
        return self

    def _check_bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.bounds is not None
        ends = []
        for value, name in zip(self.bounds, ("low", "high"), strict=True):
            end = as_floating(value, f"bounds: {name}").to(x)
            if end.ndim > 1 or (end.ndim == 1 and len(end) != self.n_features):
                raise ValueError(
                    f"bounds: {name} must be a number or {self.n_features} of them, got shape {tuple(end.shape)}"
                )
            ends.append(end.expand(self.n_features)[self.kept])
        low, high = ends
        if not bool((low < high).all()):
            raise ValueError("bounds: low must be below high in every column")
        self._check_inside(x[:, self.kept], low, high)
        return low, high + 1 if self.integer else high

    def _check_inside(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        outside = (x < low) | (x > high)
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            raise ValueError(
                f"{int(outside.sum())} entries lie outside their bounds, the first at row {row}, column "
                f"{int(self.kept[column])}: {float(x[row, column]):g} is not in "
                f"[{float(low[column]):g}, {float(high[column]):g}]"
            )

    @property
    def dim(self) -> int:
        """The number of columns that vary: the dimension of z."""
        return len(self.kept)

    @property
    def is_random(self) -> bool:
        """Whether `forward` adds noise: to integers, or to smooth."""
        return self.integer or self.smoothing > 0

    def check(self, x: Any, name: str = "X") -> Tensor:
        """A table with the columns that were fitted, as a finite tensor; whole numbers for integer data."""
        points = as_points(x, name, self.n_features)
        if self.integer and bool((points != points.round()).any()):
            bad = (points != points.round()).nonzero()
            row, column = bad[0].tolist()
            raise ValueError(
                f"integer=True, but {len(bad)} entries of {name} are not whole numbers, the first at row {row}, column "
                f"{column}: {float(points[row, column]):g}"
            )
        if self.bounds is not None:
            high = self.high - 1 if self.integer else self.high
            self._check_inside(points[:, self.kept], self.low.to(points), high.to(points))
        return points

    def _noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(len(x), self.dim, generator=generator, dtype=x.dtype, device=x.device)

    def row_noise(self, x: Tensor, draws: int) -> Tensor:
        """Uniform noise that is a function of the row alone, (draws, n, dim): a row scores the same in any company.

        A rank-one lattice in the draws (Korobov), shifted by a hash of the row (Cranley and Patterson 1976).
        """
        generator = torch.Generator(device=x.device).manual_seed(0)
        key, spread = torch.rand(2, self.dim, generator=generator, dtype=torch.float64, device=x.device)
        hashed = (x[:, self.kept].detach().double() @ (1 + key)) % 1
        shift = (hashed[:, None] * (1e4 + 1e5 * spread)) % 1
        lattice = torch.arange(draws, device=x.device)[:, None] * (key + spread)
        return ((shift + lattice[:, None]) % 1).to(x)

    def _to_line(self, x: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Everything before the standardisation; without noise, integers move to the middle of their cell."""
        x = x[:, self.kept]
        log_det = x.new_zeros(len(x))
        if self.integer:
            x = x + (0.5 if noise is None else noise)
        if self.bounds is not None:
            width = self.high - self.low
            p = MARGIN + (1 - 2 * MARGIN) * (x - self.low) / width
            log_slope = math.log(1 - 2 * MARGIN) - width.log() - p.log() - (-p).log1p()
            return p.logit(), log_det + log_slope.sum(1)
        return x, log_det

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z: (n, dim) and log|det ∂z/∂x|: (n,), computed in float64 and returned in the dtype of x.

        Arguments:
            x: (n, n_features).
            generator: draws the noise that dequantises and smooths, as training needs it. Without one nothing is
                smoothed, and integers move to the middle of their cell or by `noise`.
            noise: (n, dim), dequantises integers where no generator does.
        """
        dtype, x = x.dtype, x.to(self.mean)
        if self.integer and generator is not None:
            noise = self._noise(x, generator)
        z, log_det = self._to_line(x, None if noise is None else noise.to(x))
        z = (z - self.mean) / self.std
        log_det = log_det - self.std.log().sum()
        if self.smoothing and generator is not None:
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            z = math.exp(-self.smoothing) * z + math.sqrt(-math.expm1(-2 * self.smoothing)) * noise
        return z.to(dtype), log_det.to(dtype)

    def scored(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """`forward` of rows whose likelihood is asked for, which is the mean over these points of a row.

        Eight draws of the dequantisation noise for integer data, and one without noise for all others.
        """
        if not self.integer:
            return [self.forward(x)]
        return [self.forward(x, noise=noise) for noise in self.row_noise(x, LIKELIHOOD_DRAWS)]

    def inverse(self, z: Tensor) -> Tensor:
        """x: (n, n_features) from z: (n, dim), in its dtype; integers are whole and constant columns put back."""
        x = z.to(self.mean) * self.std + self.mean
        if self.bounds is not None:
            p = x.sigmoid()
            x = self.low + (self.high - self.low) * (p - MARGIN) / (1 - 2 * MARGIN)
            # the margin on each side holds next to no mass; what falls there belongs to the bound
            x = x.clamp(self.low, self.high)
        if self.integer:
            x = x.floor()
            if self.bounds is not None:
                x = torch.minimum(x, self.high - 1)
        full = self.template.expand(len(x), -1).clone()
        full[:, self.kept] = x
        return full.to(z.dtype)

    def state(self) -> dict[str, Tensor]:
        """What `fit` learned, as tensors."""
        state = {"kept": self.kept, "template": self.template, "mean": self.mean, "std": self.std}
        if self.bounds is not None:
            state |= {"low": self.low, "high": self.high}
        return state

    def load_state(self, state: dict[str, Tensor]) -> Preprocessing:
        """Put back what `state` returned."""
        for name, tensor in state.items():
            setattr(self, name, tensor)
        self.n_features = len(self.template)
        return self


def _warn_of_outliers(z: Tensor, kept: Tensor, limit: float = 20.0) -> None:
    """One far row widens its column's unit so much that all others crowd together; say so instead of training on it."""
    far = z.abs().max(1).values
    if float(far.max()) > limit:
        row = int(far.argmax())
        column = int(kept[z[row].abs().argmax()])
        warnings.warn(
            f"row {row} lies {float(far[row]):.0f} standard deviations from the mean in column {column}; such outliers "
            "spoil the fit for all other rows. Remove or transform them (a logarithm, for example)",
            UserWarning,
            stacklevel=4,
        )
