"""Invertible maps that are flows of neural ordinary differential equations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wprox._checks import check_count, check_non_negative, check_positive
from wprox.maps._runge_kutta import SCHEMES, Field, adaptive, fixed
from wprox.maps._velocity import ACTIVATIONS, Velocity
from wprox.maps.base import TransportMap

ROUNDINGS = 10  # a tolerance is at least so many rounding errors of the dtype


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
            that carries a checkerboard to a Gaussian, the default leaves 1e-5 in log-determinants.
        exact_dim: the dimension up to which deep networks are trained with the exact divergence.
        kinetic: weight of ∫ E|v|² dt in the training objective, which straightens the paths (Finlay, Jacobsen,
            Nurbekyan, Oberman, *How to train your neural ODE*, 2020, section 3).
        jacobian: weight of ∫ E‖∇v‖² dt (Frobenius), estimated along one random ε (ibid.).

    Raises:
        FloatingPointError: in evaluation, where the tolerance cannot be met.

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
    ) -> None:
        super().__init__()
        self.dim = check_count(dim, "dim")
        widths = [check_count(width, f"hidden[{k}]") for k, width in enumerate(hidden)]
        if not widths:
            raise ValueError("hidden is empty; give the width of at least one layer")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {sorted(ACTIVATIONS)}, got {activation!r}")
        if method not in SCHEMES:
            raise ValueError(f"method must be one of {sorted(SCHEMES)}, got {method!r}")
        self.steps = check_count(steps, "steps")
        self.method = method
        self.tolerance = check_positive(tolerance, "tolerance")
        self.exact_dim = check_count(exact_dim, "exact_dim", least=0)
        self.kinetic = check_non_negative(kinetic, "kinetic")
        self.jacobian = check_non_negative(jacobian, "jacobian")
        self._network = {
            "hidden": widths,
            "activation": activation,
            "frequency": check_positive(frequency, "frequency"),
        }
        self.network = Velocity(dim, widths, activation, frequency)
        self._discretised = False
        self._penalty: Tensor | None = None

    @property
    def config(self) -> dict[str, Any]:
        names = ("dim", "steps", "method", "tolerance", "exact_dim", "kinetic", "jacobian")
        return {name: getattr(self, name) for name in names} | self._network

    def __getstate__(self) -> dict[str, Any]:  # a penalty that nobody asked for has a graph, which cannot be copied
        return self.__dict__ | {"_penalty": None}

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), (n, d), for x: (n, d) and t: () or (n,)."""
        return self.network(x, t)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        start = torch.cat((x, x.new_zeros(len(x), 1)), 1)
        if self.training:
            end = self._train_forward(x)
        elif self._discretised:
            end = fixed(self._field(), start, _partition(self.steps), self.method)
        else:
            end = adaptive(self._field(), start, self._tolerance(x), 0.5 / self.steps)
        return end[:, : self.dim], end[:, self.dim]

    def inverse(self, y: Tensor) -> Tensor:
        return adaptive(lambda s, y: -self.network(y, 1 - s), y, self._tolerance(y), 0.5 / self.steps)

    def _tolerance(self, x: Tensor) -> float:
        return max(self.tolerance, ROUNDINGS * torch.finfo(x.dtype).eps)

    def _field(self) -> Field:
        """The velocity of (x, log-determinant)."""
        coupling = self.network.coupling()

        def field(t: Tensor, y: Tensor) -> Tensor:
            v, divergence = self.network.with_divergence(y[:, : self.dim], t, coupling)
            return torch.cat((v, divergence[:, None]), 1)

        return field

    def _train_forward(self, x: Tensor) -> Tensor:
        """(T(x), log-determinant, …) through a random partition, and the penalty."""
        coupling = self.network.coupling()
        probe = None
        if self.jacobian or (coupling is None and self.dim > self.exact_dim):
            probe = 2 * torch.randint_like(x, 2) - 1
        stochastic = probe if self.dim > self.exact_dim else None
        penalised = self.kinetic > 0 or self.jacobian > 0

        def field(t: Tensor, y: Tensor) -> Tensor:
            here = y[:, : self.dim]
            v, divergence = self.network.with_divergence(here, t, coupling, stochastic)
            if not penalised:
                return torch.cat((v, divergence[:, None]), 1)
            penalty = self.kinetic * v.square().sum(1)
            if self.jacobian and probe is not None:
                penalty = penalty + self.jacobian * self.network.jvp(here, t, probe).square().sum(1)
            return torch.cat((v, divergence[:, None], penalty[:, None]), 1)

        start = torch.cat((x, x.new_zeros(len(x), 1 + penalised)), 1)
        jitter = (torch.rand(self.steps - 1) - 0.5).tolist()
        end = fixed(field, start, _partition(self.steps, jitter), self.method)
        self._penalty = end[:, -1].mean() if penalised else None
        return end

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
