"""From a table of numbers to standardised points, and back, with the log-determinant on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wprox._checks import as_floating, as_points, check_flag, check_non_negative, described
from wprox._warnings import warn
from wprox.models.flow.bounded import Bounded, Probit, ShrunkLogit, bounded_from_state
from wprox.models.flow.tails import Tails, robust_moments

LIKELIHOOD_DRAWS = 8  # dequantisation draws over which the log-likelihood of integer data is averaged
FAR = 20.0  # standard deviations from the mean beyond which a row is warned of


class Preprocessing:
    r"""Constant columns out, integers dequantised, bounded values onto the line, then standardised and smoothed.

    The steps, each optional, with z the result:

    - integers: x + u with u ~ U[0, 1)^d, whose density bounds the probability of x from below (Theis, van den Oord and
      Bethge 2016, equation (5));
    - bounds: Φ⁻¹(p) with p = (x − low)/(high − low), which maps the open interval onto the line (`Probit`);
    - standardisation: (x − mean)/std, column by column, with moments that no single row decides (`robust_moments`), and
      a map from heavy to Gaussian tails where held-out rows want one (`Tails`);
    - smoothing: e^{−δ} z + √(1 − e^{−2δ}) n with n ~ N(0, I), the Ornstein–Uhlenbeck process run for a time δ, which
      gives a law without a density one (Cheng, Lu, Tan and Xie 2024).

    Arguments:
        standardize: whether to standardise.
        integer: whether the data are integers.
        bounds: (low, high), numbers or one a column, between which the data lie; for integers both belong to the range.
        smoothing: δ ≥ 0.
        drop_constant: leave out columns that hold one value only, and put them back in what is generated.
        plain: no heavy tails, and the logit in place of the probit, as in 0.1.0.
    """

    bounded: Bounded | None = None

    def __init__(
        self,
        standardize: bool = True,
        integer: bool = False,
        bounds: tuple[Any, Any] | None = None,
        smoothing: float = 0.0,
        drop_constant: bool = False,
        plain: bool = False,
    ) -> None:
        self.standardize = check_flag(standardize, "standardize")
        self.integer = check_flag(integer, "integer")
        self.bounds = bounds
        self.smoothing = check_non_negative(smoothing, "smoothing")
        self.drop_constant = check_flag(drop_constant, "drop_constant")
        self.plain = plain
        if bounds is not None and (not isinstance(bounds, tuple | list) or len(bounds) != 2):
            raise ValueError(
                f"bounds must be a pair (low, high) of numbers or of one number a column, got {described(bounds)}"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, by 0.1.0 too, which had no tails, and the ends in place of the map between them."""
        if "mean" in state and "tails" not in state:
            learned = {"bounded": bounded_from_state(state), "tails": Tails(torch.zeros_like(state["mean"]))}
            state = {name: value for name, value in state.items() if name not in ("low", "high")} | learned
        self.__dict__.update({"plain": False} | state)

    def fit(self, x: Tensor, columns: list[str] | None = None) -> Preprocessing:
        """Learn which columns vary, the bounds, the moments and the tails from x: (n, d)."""
        given, x = x, x.double()
        self.n_features = x.shape[1]
        if len(x) == 1:
            raise ValueError("the table has 1 sample, in which nothing varies; give hundreds of rows to learn from")
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
            low, high = self._ends(x)
            self.bounded = ShrunkLogit(low, high) if self.plain else Probit.fit(x[:, self.kept], low, high)
            self._check_inside(given)
        self.mean, self.std = x.new_zeros(self.dim), x.new_ones(self.dim)
        self.tails = Tails(x.new_zeros(self.dim))
        if self.standardize:
            generator = torch.Generator(device=x.device).manual_seed(0)
            z, _ = self._to_line(x, None, generator)
            self.mean, self.std = robust_moments(z)
            bad = ~(self.std.isfinite() & self.mean.isfinite() & (self.std > 0))
            if bool(bad.any()):
                raise ValueError(
                    f"column {int(self.kept[bad][0])} has a spread of {float(self.std[bad][0]):g}, which floating "
                    "point cannot standardise; rescale or shift it before fitting"
                )
            z = (z - self.mean).div_(self.std)
            _warn_of_outliers(z, [columns[j] if columns else str(j) for j in self.kept.tolist()])
            if self.bounded is None and not self.plain:
                self.tails = Tails.fit(z)
        return self

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The ends of the range of each column that is kept; the last integer has a cell of its own."""
        assert self.bounds is not None
        ends = []
        for value, name in zip(self.bounds, ("low", "high"), strict=True):
            end = as_floating(value, f"bounds: {name}").to(x)
            if end.ndim > 1 or (end.ndim == 1 and len(end) != self.n_features):
                raise ValueError(
                    f"bounds: {name} must be a number or {self.n_features} of them, got shape {tuple(end.shape)}"
                )
            ends.append(end.expand(self.n_features)[self.kept])
        low, high = (ends[0].ceil(), ends[1].floor()) if self.integer else ends
        if not bool((low < high).all()):
            whole = ", and two whole numbers between them where integer=True" if self.integer else ""
            raise ValueError(f"bounds: low must be below high in every column{whole}")
        return low, high + 1 if self.integer else high

    def _bounds_of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The bounds, as numbers of the dtype of x."""
        assert self.bounded is not None
        low, high = self.bounded.low, self.bounded.high
        return low.to(x), (high - 1 if self.integer else high).to(x)

    def inside(self, x: Tensor) -> Tensor:
        """Which rows of x: (n, n_features) lie within the bounds, (n,)."""
        if self.bounded is None:
            return torch.ones(len(x), dtype=torch.bool, device=x.device)
        low, high = self._bounds_of(x)
        x = x[:, self.kept]
        return ((x >= low) & (x <= high)).all(1)

    def _check_inside(self, x: Tensor) -> None:
        inside = self.inside(x)
        if not bool(inside.all()):
            low, high = self._bounds_of(x)
            x = x[:, self.kept]
            outside = (x < low) | (x > high)
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

    def check(self, x: Any, name: str = "X", within_bounds: bool = True) -> Tensor:
        """A table with the columns that were fitted, as a finite tensor; whole numbers for integer data.

        Arguments:
            within_bounds: whether rows outside the bounds are refused.
        """
        points = as_points(x, name, self.n_features)
        if self.integer and bool((points != points.round()).any()):
            bad = (points != points.round()).nonzero()
            row, column = bad[0].tolist()
            raise ValueError(
                f"integer=True, but {len(bad)} entries of {name} are not whole numbers, the first at row {row}, column "
                f"{column}: {float(points[row, column]):g}"
            )
        if within_bounds:
            self._check_inside(points)
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

    def _to_line(self, x: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Everything before the standardisation; without noise, integers move to the middle of their cell."""
        if self.integer and generator is not None:
            noise = self._noise(x, generator)
        x = x.contiguous() if self.dim == self.n_features else x[:, self.kept]
        log_det = x.new_zeros(len(x))
        if self.integer:
            x = x + (0.5 if noise is None else noise.to(x))
        elif isinstance(self.bounded, Probit) and generator is not None:
            x = self.bounded.spread(x, generator)
        if self.bounded is not None:
            z, log_slope = self.bounded.forward(x)
            return z, log_det + log_slope.sum(1)
        return x, log_det

    def forward(
        self, x: Tensor, generator: torch.Generator | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """z: (n, dim) and log|det ∂z/∂x|: (n,), computed in float64 and returned in the dtype of x.

        Arguments:
            x: (n, n_features).
            generator: draws the noise that dequantises and smooths, as training needs it. Without one nothing is
                smoothed, and integers move to the middle of their cell or by `noise`, numbers on a bound beside it.
            noise: (n, dim), dequantises integers where no generator does.
        """
        dtype, x = x.dtype, x.to(self.mean)
        z, log_det = self._to_line(x, noise, generator)
        z = (z - self.mean) / self.std
        log_det = log_det - self.std.log().sum()
        if self.tails.any:
            z, log_slope = self.tails.forward(z)
            log_det = log_det + log_slope.sum(1)
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

    def inverse(self, z: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """x: (n, n_features) from z: (n, dim); integers are whole and constant columns put back.

        Arguments:
            dtype: of x; that of z by default. In it, too, x lies between its bounds and not on them.
        """
        x = self.tails.inverse(z.to(self.mean)) * self.std + self.mean
        if self.bounded is not None:
            x = self.bounded.inverse(x)
        if self.integer:
            x = x.floor()
            if self.bounded is not None:
                x = torch.minimum(x, self.bounded.high - 1)
        full = self.template.expand(len(x), -1).clone()
        full[:, self.kept] = x
        dtype = dtype or z.dtype
        if self.tails.any:  # which grow fast beyond what is ever drawn
            largest = torch.finfo(dtype).max
            full = full.clamp(-largest, largest)
        full = full.to(dtype)
        if isinstance(self.bounded, Probit) and not self.integer:
            full[:, self.kept] = _between(full[:, self.kept], self.bounded)
        return full

    def state(self) -> dict[str, Tensor]:
        """What `fit` learned, as tensors."""
        state = {"kept": self.kept, "template": self.template, "mean": self.mean, "std": self.std}
        state |= {} if self.bounded is None else self.bounded.state()
        return state | ({"tails": self.tails.strength} if self.tails.any else {})

    def load_state(self, state: dict[str, Tensor]) -> Preprocessing:
        """Put back what `state` returned, here or in 0.1.0."""
        self.kept, self.template, self.mean, self.std = (state[name] for name in ("kept", "template", "mean", "std"))
        self.bounded = bounded_from_state(state)
        self.tails = Tails(state.get("tails", torch.zeros_like(self.mean)))
        self.n_features = len(self.template)
        return self


def _between(x: Tensor, bounded: Bounded) -> Tensor:
    """x with what rounding has put on a bound or beyond moved to the nearest number between the bounds."""
    low, high = bounded.low.to(x), bounded.high.to(x)
    return torch.minimum(torch.maximum(x, torch.nextafter(low, high)), torch.nextafter(high, low))


def _warn_of_outliers(z: Tensor, names: Sequence[str]) -> None:
    """One row far from all others may be a mistake, and has more weight in training than it should."""
    far = torch.maximum(z.amax(1), -z.amin(1))
    if float(far.max()) > FAR:
        row = int(far.argmax())
        column = names[int(z[row].abs().argmax())]
        warn(
            f"row {row} lies {float(far[row]):.0f} standard deviations from the mean in column {column} (of the rows "
            "that are not so far out). Such rows pull at the fit of all others: remove them, or transform the column "
            "(by a logarithm, for example)",
            UserWarning,
        )
