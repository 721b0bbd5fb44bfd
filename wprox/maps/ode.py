"""Invertible maps that are flows of neural ordinary differential equations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from wprox._checks import check_choice, check_count, check_memory, check_non_negative, check_positive, check_widths
from wprox.maps._inverse import check_residual
from wprox.maps._runge_kutta import SCHEMES, Field, adaptive, fixed, stages
from wprox.maps._velocity import ACTIVATIONS, Velocity
from wprox.maps.base import InverseError, TransportMap

ROUNDINGS = 10  # a tolerance is at least so many rounding errors of the dtype
INVERSE = 100  # an inverse is held to so many tolerances, since local errors add up
FINER = 4  # tolerances, each a tenth of the one before, for rows whose inverse misses that


class ODEMap(TransportMap):
    r"""The flow of dx/dt = v(x, t) from t = 0 to 1, for a network v (Chen, Rubanova, Bettencourt, Duvenaud 2018).

    T(x) = x(1) and log det ∇T(x) = ∫₀¹ div v(x(t), t) dt; backwards in time it is the inverse. In evaluation mode all
    three are computed adaptively to the tolerance, each row by itself. In training mode a fixed Runge–Kutta scheme runs
    through a partition of [0, 1] that is drawn anew each time, so that the network cannot learn the partition's
    errors; `NeuralProx` holds it against the adaptive solution and refines it where they differ.

    Networks of up to two hidden layers have their exact divergence at the price of one more matrix product, in every
    dimension; deeper ones by d tangents up to `exact_dim`, in training above it by Hutchinson's estimate ⟨ε, ∇v ε⟩
    with one random ε of signs a row and trajectory (Grathwohl et al., *FFJORD*, 2019), which is unbiased.

    Arguments:
        dim: d.
        hidden: the widths of the network's hidden layers.
        activation: "tanh", "softplus", "silu" or "sine".
        frequency: the scale of the first layer's weights at the start: larger ones see finer detail.
        steps: of the training partition.
        method: of training: "rk4", "midpoint" or "heun".
        tolerance: of evaluation: the local error a step in each coordinate and in the log-determinant, relative to
            1 + |value|, and not below ten rounding errors, 1.2e-6 in float32. Errors add up over the steps: on a flow
            that carries a checkerboard to a Gaussian, the default leaves 1e-5 in log-determinants. An inverse is held
            to |T(x) − y| ≤ 100 · tolerance · (1 + |y|): it is carried forwards again, and rows that miss this are
            computed anew in float64, to tolerances down to 1e-4 of this one.
        exact_dim: the dimension up to which deep networks are trained with the exact divergence.
        kinetic: weight of ∫ E|v|² dt in the training objective, which straightens the paths (Finlay, Jacobsen,
            Nurbekyan, Oberman, *How to train your neural ODE*, 2020, section 3).
        jacobian: weight of ∫ E‖∇v‖² dt (Frobenius), estimated along one random ε (ibid.).
        error: weight of the mean square of the training scheme's local error estimates, summed over its steps: without
            it a likelihood learns to exploit the errors of its integrator (Pal, Ma, Shah, Rackauckas, *Opening the
            blackbox: accelerating neural differential equations by regularizing internal solver heuristics*, 2021).

    Raises:
        FloatingPointError: in evaluation, where the tolerance cannot be met.
        InverseError: (`inverse`) where |T(x) − y| stays above its bound, as in float32 where rounding x moves T(x)
            farther than that; with an infinite residual where the flow does not come to its end, and for NaN.

    Example:
        >>> import torch, wprox
        >>> map = wprox.ODEMap(2).eval()
        >>> x = torch.tensor([[0.3, -0.7]])
        >>> torch.equal(map(x)[0], x)  # the identity at initialisation
        True
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (96, 96),
        activation: str = "tanh",
        frequency: float = 1.0,
        steps: int = 3,
        method: str = "rk4",
        tolerance: float = 1e-6,
        exact_dim: int = 16,
        kinetic: float = 0.0,
        jacobian: float = 0.0,
        error: float = 3.0,
    ) -> None:
        super().__init__()
        self.dim = check_count(dim, "dim")
        widths = check_widths(hidden)
        check_choice(activation, "activation", sorted(ACTIVATIONS))
        check_choice(method, "method", sorted(SCHEMES))
        self.steps = check_count(steps, "steps")
        self.method = method
        self.tolerance = check_positive(tolerance, "tolerance")
        self.exact_dim = check_count(exact_dim, "exact_dim", least=0)
        self.kinetic = check_non_negative(kinetic, "kinetic")
        self.jacobian = check_non_negative(jacobian, "jacobian")
        self.error = check_non_negative(error, "error")
        frequency = check_positive(frequency, "frequency")
        check_memory(20 * self.steps, f"{steps} steps")
        self._network = {
            "hidden": widths,
            "activation": activation,
            "frequency": frequency,
        }
        check_memory(4 * dim * max(widths), f"a network of widths {widths} in dimension {dim}")
        self.network = Velocity(dim, widths, activation, frequency)
        self._discretised = False
        self._penalty: Tensor | None = None

    @property
    def config(self) -> dict[str, Any]:
        names = ("dim", "steps", "method", "tolerance", "exact_dim", "kinetic", "jacobian", "error")
        return {name: getattr(self, name) for name in names} | self._network

    def __getstate__(self) -> dict[str, Any]:  # a penalty that nobody asked for has a graph, which cannot be copied
        return self.__dict__ | {"_penalty": None}

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), (n, d), for x: (n, d) and t: () or (n,)."""
        return self.network(x, t)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            return self._through_partition(x, (torch.rand(self.steps - 1) - 0.5).tolist())
        if self._discretised:
            return self._through_partition(x)
        start = torch.cat((x, x.new_zeros(len(x), 1)), 1)
        end = adaptive(self._field(), start, self._tolerance(x), 0.5 / self.steps)
        return end[:, : self.dim], end[:, self.dim]

    def inverse(self, y: Tensor) -> Tensor:
        tolerance, dtype, name = self._tolerance(y), y.dtype, f"ODEMap({self.dim})"
        bound, scale = INVERSE * tolerance, 1 + y.detach().norm(dim=1)
        x, residual = y, torch.full_like(scale, torch.inf)
        missed = y.isfinite().all(1)
        for _ in range(1 + FINER):
            rows = missed.nonzero()[:, 0]
            if not len(rows):
                break
            try:
                found, residual[rows] = self._flow_back(y[rows], tolerance, dtype)
            except FloatingPointError as error:
                reason = f"the inverse of {name} was not reached: {error}"
                raise InverseError(reason, float((residual / scale)[rows].max())) from error
            x = x.index_copy(0, rows, found)
            missed = missed & ~(residual <= bound * scale)
            dtype = torch.float64
            tolerance = max(tolerance / 10, ROUNDINGS * torch.finfo(dtype).eps)
        check_residual(residual, y, bound, name)
        return x

    def _flow_back(self, y: Tensor, tolerance: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """x(0) from x(1) = y, rounded to the dtype of y, and |T(x) − y|, (n,); both are computed in the given dtype."""
        weights = {name: weight.to(dtype) for name, weight in self.network.named_parameters()}

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            return functional_call(self.network, weights, (x, t))

        x = adaptive(lambda s, x: -velocity(1 - s, x), y.to(dtype), tolerance, 0.5 / self.steps).to(y.dtype)
        with torch.no_grad():  # to a finer tolerance, since the errors of equal steps can undo each other
            again = adaptive(velocity, x.to(dtype), tolerance / ROUNDINGS, 0.5 / self.steps)
            return x, (again - y).norm(dim=1).to(y.dtype)

    def _tolerance(self, x: Tensor) -> float:
        return max(self.tolerance, ROUNDINGS * torch.finfo(x.dtype).eps)

    def _field(self) -> Field:
        """The velocity of (x, log-determinant)."""
        coupling = self.network.coupling()

        def field(t: Tensor, y: Tensor) -> Tensor:
            v, divergence = self.network.with_divergence(y[:, : self.dim], t, coupling)
            return torch.cat((v, divergence[:, None]), 1)

        return field

    def _through_partition(self, x: Tensor, jitter: Sequence[float] = ()) -> tuple[Tensor, Tensor]:
        """T(x) and its log-determinant by the fixed scheme; in training, the penalty is kept."""
        coupling = self.network.coupling()
        penalised = self.training and (self.kinetic > 0 or self.jacobian > 0)
        checked = self.training and self.error > 0
        exact = coupling is not None or not self.training or self.dim <= self.exact_dim
        probe = None if exact and not (penalised and self.jacobian) else 2 * torch.randint_like(x, 2) - 1
        times = _partition(self.steps, jitter)
        where = stages(times, self.method)
        instants = dict(zip(where, self.network.at(x.new_tensor(where)), strict=True))

        def field(t: float, x: Tensor) -> tuple[Tensor, ...]:
            v, divergence = self.network.with_divergence(x, instants[t], coupling, None if exact else probe)
            if not penalised:
                return v, divergence
            penalty = self.kinetic * v.square().sum(1)
            if self.jacobian and probe is not None:
                penalty = penalty + self.jacobian * self.network.jvp(x, instants[t], probe).square().sum(1)
            return v, divergence, penalty

        y, log_det, *penalties = fixed(field, x, times, self.method, checked)
        if checked:
            penalties[-1] = self.error * penalties[-1]
        if self.training:
            self._penalty = torch.stack(penalties).sum(0).mean() if penalties else None
        return y, log_det

    # what training asks for

    def penalty(self) -> Tensor | None:
        penalty, self._penalty = self._penalty, None
        return penalty

    @property
    def is_discretised(self) -> bool:
        return True

    @contextmanager
    def discretised(self) -> Iterator[None]:
        self._discretised = True
        try:
            yield
        finally:
            self._discretised = False

    def refine(self) -> str:
        self.steps *= 2
        return f"{self.steps // 2} → {self.steps} steps"


def _partition(steps: int, jitter: Sequence[float] = ()) -> list[float]:
    """k/steps, the inner points moved by up to half of half an interval."""
    moves = [0.0, *jitter, 0.0] if jitter else [0.0] * (steps + 1)
    return [(k + 0.5 * move) / steps for k, move in enumerate(moves)]
