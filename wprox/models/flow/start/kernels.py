"""Kernel conditional densities whose bandwidths have the greatest likelihood of rows left out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from wprox.maps._memory import current_limit
from wprox.maps._normal_mixture import LOG_TWO_PI
from wprox.maps.conditionals import KernelDensity

CENTRES = 3000  # at most
SCALES = (1.0, 4.0)  # of a coordinate's kernel, in units of its first bandwidth, to begin with
QUERIES = 32  # rows left out, in a step of Adam
RATE = 0.2
PENALTY = 3.0  # nats a bandwidth or slope in use
ITERATIONS = 160
BANDWIDTH_ROWS = 800  # whose likelihood decides of the first bandwidths
COPIES = 16  # tensors as large as all differences of queries and centres that are alive at once, with their gradients
LEAST = 1e-5  # bandwidth of a given coordinate, in standardised units, which float32 resolves


@dataclass(frozen=True)
class Bandwidths:
    """What a `KernelDensity` has beside its centres; see there.

    Attributes:
        log_context: log c_jl, (d, d), of which the part below the diagonal counts.
        slopes: B_jl, (d, d), likewise.
        log_scales: log h_js, (s, d).
        log_mixture: log a_js, (s, d), of sum 1.
    """

    log_context: Tensor
    slopes: Tensor
    log_scales: Tensor
    log_mixture: Tensor

    @classmethod
    def of_product_kernel(cls, log_bandwidth: Tensor) -> Bandwidths:
        """Those that make the kernel density estimate with a product kernel of bandwidths (d,), nearly."""
        d = len(log_bandwidth)
        scales = log_bandwidth.new_tensor(SCALES).log()[:, None]
        mixture = torch.zeros_like(scales).expand(-1, d).clone()
        mixture[0] = 2.0
        return cls(
            log_bandwidth.repeat(d, 1), log_bandwidth.new_zeros(d, d), log_bandwidth + scales, mixture.log_softmax(0)
        )

    @property
    def tensors(self) -> list[Tensor]:
        return [self.log_context, self.slopes, self.log_scales, self.log_mixture]

    def density(self, centres: Tensor) -> KernelDensity:
        """The density with these centres, (n, d)."""
        density = KernelDensity(centres.shape[1], len(centres), len(self.log_scales))
        density.centres = centres.double()
        density.log_context, density.slopes = self.log_context.double(), self.slopes.double()
        density.log_scales, density.log_mixture = self.log_scales.double(), self.log_mixture.double()
        return density

    def log_prob(self, x: Tensor, centres: Tensor, left_out: Tensor | None = None) -> Tensor:
        """log p(x_j | x_<j) of rows x: (m, d), (m, d), with a graph; row r without the centre `left_out[r]`."""
        d = x.shape[1]
        lower = torch.ones(d, d, dtype=x.dtype, device=x.device).tril(-1)
        difference = x[:, None] - centres
        precision = (-2 * self.log_context.clamp(min=math.log(LEAST))).exp() * lower
        log_weights = -0.5 * difference.square() @ precision.mT  # (m, n, d)
        if left_out is not None:
            rows = (left_out < len(centres)).nonzero()[:, 0]
            log_weights[rows, left_out[rows]] = -math.inf
        rest = difference @ (torch.eye(d, dtype=x.dtype, device=x.device) - self.slopes * lower).mT
        shares = self.log_mixture.log_softmax(0) - self.log_scales - 0.5 * LOG_TWO_PI
        squares = -0.5 * rest.square()
        kernel = squares.new_full((), -math.inf)
        for share, log_scale in zip(shares, self.log_scales, strict=True):
            kernel = torch.logaddexp(kernel, share + squares * (-2 * log_scale).exp())
        return torch.logsumexp(log_weights + kernel, 1) - torch.logsumexp(log_weights, 1)

    def penalty(self) -> Tensor:
        """How many bandwidths and slopes are in use, smoothly: 0 for c = ∞ and B = 0."""
        used = (-2 * self.log_context).exp().log1p() + (10 * self.slopes.square()).log1p()
        return used.tril(-1).sum()


def product_bandwidths(x: Tensor, generator: torch.Generator) -> Tensor:
    """log h, (d,), of greatest leave-one-out likelihood of a kernel density estimate of rows x with Π_l N(0, h_l²)."""
    x = x[torch.randperm(len(x), generator=generator)[:CENTRES].to(x.device)]
    n, d = x.shape
    rows = torch.arange(min(n, BANDWIDTH_ROWS), device=x.device)
    log_bandwidth = x.new_full((d,), math.log(0.3)).requires_grad_()
    optimizer = torch.optim.LBFGS([log_bandwidth], max_iter=40, line_search_fn="strong_wolfe")
    at_once = _at_once(n, x)

    def loss() -> Tensor:
        optimizer.zero_grad()
        bounded = log_bandwidth.clamp(min=math.log(LEAST))  # rows that come twice would have it at 0
        objective = bounded.sum()
        objective.backward()
        for part in rows.split(at_once):
            scale = log_bandwidth.clamp(min=math.log(LEAST)).exp()
            itself = part[:, None] == torch.arange(n, device=x.device)
            squares = torch.cdist(x[part] / scale, x / scale).square().masked_fill(itself, math.inf)
            less = torch.logsumexp(-squares / 2, 1).sum() / len(rows)
            (-less).backward()
            objective = objective - less
        return objective

    optimizer.step(loss)
    return log_bandwidth.detach().clamp(min=math.log(LEAST))


def train_bandwidths(
    start: Bandwidths, x: Tensor, centres: Tensor, queries: Tensor, generator: torch.Generator
) -> Bandwidths:
    """Bandwidths of greatest penalised likelihood of the rows x[queries], each left out where it is a centre.

    Arguments:
        start: to begin with.
        x: (n, d).
        centres: (m,), indices of rows.
        queries: (q,), indices of rows.
        generator: draws minibatches of queries.
    """
    parameters = [tensor.clone().requires_grad_() for tensor in start.tensors]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, ITERATIONS)
    bandwidths, places = Bandwidths(*parameters), _places(centres, len(x))
    points = x[centres]
    at_once = _at_once(points.numel(), x)
    for _ in range(ITERATIONS):
        batch = queries[torch.randperm(len(queries), generator=generator)[:QUERIES].to(x.device)]
        optimizer.zero_grad()
        (PENALTY / len(queries) * bandwidths.penalty()).backward()
        for part in batch.split(at_once):
            log_prob = bandwidths.log_prob(x[part], points, places[part]).sum() / len(batch)
            (-log_prob).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        schedule.step()
    log_mixture = parameters[3].log_softmax(0)
    return Bandwidths(*(tensor.detach() for tensor in (*parameters[:3], log_mixture)))


def left_out_log_prob(bandwidths: Bandwidths, x: Tensor, centres: Tensor, queries: Tensor) -> Tensor:
    """log p of the rows x[queries], (q,), each left out where it is a centre."""
    places, points = _places(centres, len(x)), x[centres]
    at_once = min(QUERIES, _at_once(points.numel(), x))
    with torch.no_grad():
        parts = [bandwidths.log_prob(x[part], points, places[part]).sum(1) for part in queries.split(at_once)]
    return torch.cat(parts)


def _at_once(numbers: int, x: Tensor) -> int:
    """How many queries may be looked at together, where each takes tensors of so many numbers of the dtype of x."""
    return max(1, current_limit() // (2 * COPIES * numbers * x.element_size()))


def _places(centres: Tensor, n: int) -> Tensor:
    """For each of n rows its place among the centres; the number of centres, a place of nobody, where it has none."""
    places = torch.full((n,), len(centres), device=centres.device)
    places[centres] = torch.arange(len(centres), device=centres.device)
    return places
