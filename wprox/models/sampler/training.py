"""How the chain of a JKO sampler grows: forward steps, blocks, their training together, and rejection steps."""

from __future__ import annotations

import time
from typing import Any

import torch
from tqdm.auto import tqdm

from wprox._checks import step_sizes
from wprox._warnings import warn
from wprox.maps import ComposedMap, TransportMap
from wprox.measures import Gaussian, Particles
from wprox.models.sampler.chain import Chain, Layer, RejectionStep
from wprox.models.sampler.forward import forward_step, greatest_curvature
from wprox.models.sampler.settings import SamplerSettings
from wprox.models.sampler.target import ScaledTarget
from wprox.models.sampler.weights import effective_size
from wprox.solvers import NeuralProx

FORWARD_SHRINKAGE = 0.5  # by how much a forward step shrinks where the curvature is greatest
ENOUGH = 0.999  # the effective part of a sample that needs no further correction


class ChainTraining:
    """Adds layers to a chain that starts at N(0, I), stage by stage.

    Each stage takes draws of the chain and returns draws of the chain as it is then, on which no network was trained:
    networks of this size learn draws by heart, which then no longer tell what the next stage needs to know.

    Arguments:
        target: π in the units of the chain.
        layers: the layers so far. New ones are appended to this list, which keeps them whatever ends a stage.
        history: a dict a stage, likewise.
        settings: of the sampler.
        generator: of all draws.
    """

    def __init__(
        self,
        target: ScaledTarget,
        layers: list[Layer],
        history: list[dict[str, Any]],
        settings: SamplerSettings,
        generator: torch.Generator,
    ) -> None:
        self.target, self.layers, self.history, self.interrupted = target, layers, history, False
        self.settings, self.generator = settings, generator

    def run(self) -> None:
        """Forward steps, blocks as long as they help, all blocks together, corrections, and corrected blocks.

        Ctrl-C ends it early, with a warning, and keeps the layers so far; where there are none it is raised.
        """
        settings = self.settings
        n_blocks, n_all = settings.n_blocks, settings.n_blocks + settings.corrected_blocks
        gamma = step_sizes(settings.step_sizes, n_all)
        try:
            with tqdm(total=n_all, desc="blocks", disable=not settings.progress) as bar:
                particles = self.descend(self.draw(), settings.forward_steps)
                if self.layers and n_blocks:
                    particles = self.correct(particles, settings.corrections)
                fixed = len(self.layers)
                for k in range(n_blocks):
                    before, particles = particles, self.add_block(particles, settings.block_solver(k), gamma(k))
                    bar.update()
                    if particles is before:
                        break
                if settings.fine_tune and len(self.layers) > fixed:
                    particles = self.train_together(fixed)
                particles = self.correct(particles, settings.corrections)
                for k in range(n_blocks, n_all):
                    particles = self.add_block(particles, settings.block_solver(k), gamma(k))
                    particles = self.correct(particles, settings.corrections)
                    bar.update()
        except KeyboardInterrupt:
            if not self.layers:
                raise
            self.interrupted = True
            warn(f"interrupted; the sampler has the {len(self.layers)} layers trained so far")

    def draw(self, n: int | None = None, layers: int | None = None) -> Particles:
        """n draws of the chain, or of its first `layers`; `n_particles` where n is not given."""
        like = torch.empty(0, dtype=torch.float32, device=self.target.units.device)
        chain = Chain(self.target.dim, self.layers[:layers], self.target.log_prob)
        return chain.draw(self.settings.n_particles if n is None else n, self.generator, like)

    def descend(self, particles: Particles, steps: int) -> Particles:
        """Up to so many forward steps along the potential, as long as each makes KL smaller by `tol`."""
        for _ in range(steps):
            start = time.perf_counter()
            curvature = greatest_curvature(self.target, particles.points)
            if curvature <= 0:
                break
            step_size = FORWARD_SHRINKAGE / curvature
            self.layers.append(forward_step(self.target, step_size))
            after = self.draw()
            if not self._kl(particles) - self._kl(after) >= self.settings.tol:
                self.layers.pop()
                break
            self._log("forward step", after, start, step_size=step_size)
            particles = after
        return particles

    def add_block(self, particles: Particles, solver: NeuralProx, step_size: float) -> Particles:
        """Add a block, where it makes KL smaller by `tol`; else the draws are returned as they came."""
        start = time.perf_counter()
        step = solver.step(self.target.functional, particles, step_size)
        if step.interrupted:
            raise KeyboardInterrupt
        assert step.map is not None
        self.layers.append(step.map)
        after = self.draw()
        if self._kl(particles) - self._kl(after) < self.settings.tol:
            self.layers.pop()
            return particles
        self._log(
            "block",
            after,
            start,
            step_size=step.step_size,
            transport_cost=float(step.transport_cost),
            iterations=step.iterations,
        )
        return after

    def train_together(self, fixed: int) -> Particles:
        """Train all blocks, which are the layers after the first `fixed` ones."""
        start = time.perf_counter()
        start_law: Gaussian | Particles = Gaussian(torch.zeros(self.target.dim), torch.eye(self.target.dim))
        if fixed:
            start_law = self.draw(layers=fixed)
        blocks = ComposedMap([layer for layer in self.layers[fixed:] if isinstance(layer, TransportMap)])
        solver, budget = self.settings.joint_solver(), self.settings.memory_budget
        outcome = solver.fine_tune(blocks, self.target.functional, start_law, memory_budget=budget)
        if outcome.interrupted:
            raise KeyboardInterrupt
        particles = self.draw()
        self._log("fine-tuning", particles, start, iterations=outcome.iterations)
        return particles

    def correct(self, particles: Particles, steps: int) -> Particles:
        """Up to so many rejection steps, as long as one has work to do."""
        for _ in range(steps):
            log_weights = self.target.log_weights(particles)
            if effective_size(log_weights) >= ENOUGH * len(log_weights):
                break
            start = time.perf_counter()
            step = RejectionStep.fit(log_weights, self.settings.rejection_rate)
            dice = torch.rand(len(log_weights), generator=self.generator).to(log_weights.device)
            rejected = dice >= step.acceptance(log_weights)
            points, log_density = particles.points.clone(), particles.log_density() + step.log_factor(log_weights)
            if bool(rejected.any()):  # the rest are draws of the new law as they are, and none has been trained on
                fresh = self.draw(int(rejected.sum()))
                points[rejected] = fresh.points
                log_density[rejected] = fresh.log_density() + step.log_factor(self.target.log_weights(fresh))
            self.layers.append(step)
            particles = Particles(points, log_density=log_density)
            self._log("rejection", particles, start)
        return particles

    def _kl(self, particles: Particles) -> float:
        return -float(self.target.log_weights(particles).mean())

    def _log(self, stage: str, particles: Particles, start: float, **more: Any) -> None:
        log_weights = self.target.log_weights(particles)
        self.history.append(
            {
                "stage": stage,
                "kl": -float(log_weights.mean()),
                "ess": effective_size(log_weights) / len(log_weights),
                "seconds": time.perf_counter() - start,
                **more,
            }
        )
