"""Randomness: seeds, generators, and draws from them on any device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from wprox._checks import check_count

Seed = int | torch.Generator | None


def check_seed(seed: Any) -> int:
    """An integer from 0 to 2⁶³ − 1."""
    if check_count(seed, "seed", least=0) >= 2**63:
        raise ValueError(f"seed must be below 2⁶³, got {seed}")
    return int(seed)


def as_seed(seed: Any) -> Seed:
    """A seed, a generator or `None`, checked where nothing is drawn from it as well."""
    return seed if seed is None or isinstance(seed, torch.Generator) else check_seed(seed)


def step_seed(seed: int, index: int) -> int:
    """A seed of its own for every step of a trajectory."""
    return (seed * 1_000_003 + index * 7_919) % 2**62


def make_generator(seed: Seed, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator from a seed; `None` draws a fresh seed from the operating system, a generator is passed through."""
    if isinstance(seed, torch.Generator):
        return seed
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(check_seed(seed))
    return generator


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed torch's default generators inside the block and restore them afterwards: `nn.Linear` knows no others."""
    cuda = torch.device(device).type == "cuda"
    with torch.random.fork_rng(devices=[torch.device(device)] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
