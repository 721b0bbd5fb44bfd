"""The flow-matching start of a neural step: a velocity field regressed on straight lines, before any likelihood."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from wprox.functionals import Functional
from wprox.maps import TransportMap
from wprox.measures import Particles
from wprox.measures.laws import as_gaussian
from wprox.solvers.neural.training import Outcome, Training, train

VALIDATION_ROWS = 4096
LOOKS = 10
GROUP = 128  # rows among which the targets of a minibatch are averaged
RATE = 1.5e-2  # Adam's: a regression bears, and needs, another one than the JKO objective


@runtime_checkable
class HasVelocity(Protocol):
    """A map that is the flow of a velocity field on [0, 1], as `ODEMap` is."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v(x, t), (n, d), for x: (n, d) and t: (n,)."""


@dataclass(frozen=True)
class Relaxation:
    r"""x ↦ m + A (x − m) + N z, z ∼ N(0, I), with A and N symmetric, positive and of the same axes.

    Arguments:
        loc: m, (d,).
        axes: (d, d), whose columns are the axes of A and N.
        decays: (d,), the eigenvalues of A.
        noises: (d,), those of N.
    """

    loc: Tensor
    axes: Tensor
    decays: Tensor
    noises: Tensor

    def draw(self, x: Tensor) -> Tensor:
        """(n, d), one draw for each row of x."""
        decay, noise = ((self.axes * values) @ self.axes.mT for values in (self.decays, self.noises))
        return self.loc + (x - self.loc) @ decay + torch.randn_like(x) @ noise

    def velocity(self, x: Tensor, y: Tensor, t: Tensor, weights: Tensor) -> Tensor:
        r"""What flow matching regresses on at x_t = (1 − t) x + t y: the mean of y′ − x′ over the pairs through x_t.

        The pair itself is one draw of it. Of the pairs that start in the same group of rows and are at x_t as well,

            y′ − x′ = (x_t − x′)/t   with probabilities ∝ w(x′) N(x_t; m + ((1 − t) I + t A)(x′ − m), t² N²),

        the mean has the same expectation given x_t, in groups of any size, since it is the conditional expectation of
        y − x given the group, t and x_t, and a far smaller variance (Xu, Tong, Jaakkola, *Stable target field for
        reduced variance score estimation in diffusion models*, 2023, equation 6). Where the group has no second row
        near, this is y − x itself.

        Arguments:
            x, y: (n, d), with y = draw(x).
            t: (n,).
            weights: (n,), of the rows.
        """
        groups = zip(*(part.split(GROUP) for part in (x, y, t[:, None], weights)), strict=True)
        return torch.cat([self._mean_velocity(*group) for group in groups])

    def _mean_velocity(self, x: Tensor, y: Tensor, t: Tensor, weights: Tensor) -> Tensor:
        u, v = (x - self.loc) @ self.axes, (y - self.loc) @ self.axes
        at = torch.lerp(u, v, t) / (t * self.noises)
        slope = (1 - t + t * self.decays) / (t * self.noises)
        exponents = (at * slope) @ u.mT - 0.5 * slope.square() @ u.square().mT
        mean = (exponents + weights.clamp(min=torch.finfo(x.dtype).tiny).log()).softmax(1) @ u
        # a small t makes differences of squares, of which rounding leaves nothing
        exact = at.square().sum(1, keepdim=True) * torch.finfo(x.dtype).eps < 1e-2
        return y - x + torch.where(exact, (u - mean) / t, 0) @ self.axes.mT


def relaxation(functional: Functional, step_size: float, like: Tensor) -> Relaxation:
    r"""The gradient flow of c KL(· ‖ N(m, Σ)), run so long that its mean moves as in a JKO step:

        A = (I + γ c Σ⁻¹)⁻¹,   N = (Σ − A Σ A)^{1/2}.

    For N(0, I) it is the Ornstein–Uhlenbeck process e^{−s} x + √(1 − e^{−2s}) z at the time s = log(1 + γ); where the
    eigenvalues of Σ differ, so do the times of its axes.

    Raises:
        ValueError: for any other functional.
    """
    structure = functional.structure()
    gaussian, weight = as_gaussian(structure.law), structure.entropy
    if gaussian is None:
        raise ValueError(
            f"flow matching needs the functional KL(· ‖ a Gaussian), whose gradient flow it can draw from, got "
            f"{functional!r}; give wprox.KL(wprox.Gaussian(loc, covariance)), or leave flow_matching at 0"
        )
    loc, covariance = (part.detach().to(like) for part in (gaussian.loc, gaussian.covariance_matrix))
    variances, axes = torch.linalg.eigh(covariance)
    times = step_size * weight / variances
    decays = 1 / (1 + times)
    return Relaxation(loc, axes, decays, (variances * times * decays * (1 + decays)).sqrt())  # no 1 − A², for a small γ


def match_flow(
    map: TransportMap,
    relaxation: Relaxation,
    training: Particles,
    validation: Particles,
    iterations: int,
    settings: Training,
    generator: torch.Generator,
    describe: str,
    progress: bool,
) -> Outcome:
    r"""Minimise E|v((1 − t) x + t y, t) − (y − x)|² over v, with y drawn by the relaxation and t uniform, in place.

    The flow of the minimiser carries the law of x to that of y (Lipman, Chen, Ben-Hamu, Nickel, Le, *Flow matching for
    generative modeling*, 2023; Liu, Gong, Liu 2023). An iteration costs one pass through the network, the targets
    y − x are averaged over pairs that cross (`Relaxation.velocity`), and the learning rate is its own, 0.015 at the top
    of the schedule.

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
        y, t = relaxation.draw(x), torch.rand(len(x), dtype=x.dtype, device=x.device)
        target = relaxation.velocity(x, y, t, part.weights)
        error = (flow.velocity(torch.lerp(x, y, t[:, None]), t) - target).square().sum(1)
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
        lambda batch: loss(batch.of(training)),
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
