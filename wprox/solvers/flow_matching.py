"""The flow-matching start of a neural step: a velocity field regressed on straight lines, before any likelihood."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from wprox.functionals import KL, Functional
from wprox.functionals.base import Sum
from wprox.maps import TransportMap
from wprox.measures import Gaussian, Particles
from wprox.solvers.training import Outcome, Training, batch_of, train

VALIDATION_ROWS = 4096
LOOKS = 10
RATE = 1.5e-2  # Adam's: a regression bears, and needs, another one than the JKO objective


@runtime_checkable
class HasVelocity(Protocol):
    """A map that is the flow of a velocity field on [0, 1], as `ODEMap` is."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), (n, d), for x: (n, d) and t: (n,)."""


def relaxation(functional: Functional, step_size: float, like: Tensor) -> Callable[[Tensor], Tensor]:
    r"""x ↦ m + A (x − m) + (Σ − A Σ A)^{1/2} z, z ∼ N(0, I): the gradient flow of c KL(· ‖ N(m, Σ)), run so long that
    its mean moves as in a JKO step, A = (I + γ c Σ⁻¹)⁻¹.

    For N(0, I) it is the Ornstein–Uhlenbeck process e^{−s} x + √(1 − e^{−2s}) z at the time s = log(1 + γ); where the
    eigenvalues of Σ differ, so do the times of its axes.

    Raises:
        ValueError: for any other functional.
    """
    weight, kl = 1.0, functional
    if isinstance(functional, Sum) and len(functional.terms) == 1:
        weight, kl = functional.terms[0]
    moments = _moments(kl.target) if isinstance(kl, KL) and weight > 0 else None
    if moments is None:
        raise ValueError(
            f"flow matching needs the functional KL(· ‖ a Gaussian), whose gradient flow it can draw from, got "
            f"{functional!r}; give wprox.KL(wprox.Gaussian(loc, covariance)), or leave flow_matching at 0"
        )
    loc, covariance = (part.detach().to(like) for part in moments)
    variances, axes = torch.linalg.eigh(covariance)
    decays = 1 / (1 + step_size * weight / variances)
    decay = (axes * decays) @ axes.mT
    noise = (axes * (variances * (1 - decays**2)).sqrt()) @ axes.mT

    def draw(x: Tensor) -> Tensor:
        return loc + (x - loc) @ decay + torch.randn_like(x) @ noise

    return draw


def _moments(target: object) -> tuple[Tensor, Tensor] | None:
    if isinstance(target, Gaussian | MultivariateNormal):
        return target.loc, target.covariance_matrix
    if isinstance(target, Independent) and isinstance(target.base_dist, Normal):
        return target.base_dist.loc, torch.diag(target.base_dist.variance)
    return None


def match_flow(
    map: TransportMap,
    draw: Callable[[Tensor], Tensor],
    training: Particles,
    validation: Particles,
    iterations: int,
    settings: Training,
    generator: torch.Generator,
    describe: str,
    progress: bool,
) -> Outcome:
    r"""Minimise E|v((1 − t) x + t y, t) − (y − x)|² over v, with y = draw(x) and t uniform, in place.

    The flow of the minimiser carries the law of x to that of y (Lipman, Chen, Ben-Hamu, Nickel, Le, *Flow matching for
    generative modeling*, 2023; Liu, Gong, Liu 2023). An iteration costs one pass through the network, and the learning
    rate is its own, 0.015 at the top of the schedule.

    Raises:
        TypeError: for a map without velocity.
    """
    if not isinstance(map, HasVelocity):
        raise TypeError(
            f"flow matching needs a map that is the flow of a velocity(x, t), such as wprox.ODEMap, got "
            f"{type(map).__name__}; leave flow_matching at 0"
        )
    flow = cast(HasVelocity, map)

    def loss(part: Particles) -> Tensor:
        x = part.points
        y, t = draw(x), torch.rand(len(x), dtype=x.dtype, device=x.device)
        error = (flow.velocity(torch.lerp(x, y, t[:, None]), t) - (y - x)).square().sum(1)
        return error @ part.weights

    looked_at = validation.subset(validation.weights.nonzero()[:VALIDATION_ROWS, 0])
    fixed_draws = int(torch.randint(2**62, (), generator=generator))

    def held_out() -> float:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(fixed_draws)
            return float(loss(looked_at))

    every = max(1, iterations // LOOKS)
    return train(
        map,
        lambda rows: loss(batch_of(training, rows)),
        held_out,
        training.weights,
        replace(
            settings,
            iterations=iterations,
            learning_rate=RATE,
            check_every=every,
            patience=LOOKS + 2,
        ),
        generator,
        f"{describe}, flow matching",
        progress,
    )
