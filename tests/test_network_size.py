"""The network that a flow trains by default, and all that fit takes, stay within the memory budget."""

import pytest
import torch

import wprox
from wprox.maps._memory import PeakMemory
from wprox.models.flow.network_size import TRAINED, blocks_within, options_within, training_bytes


@pytest.mark.parametrize("options", [{}, {"affine": False, "transforms": 3, "bins": 5}, {"coupling": False}])
@pytest.mark.parametrize("dim", [1, 2, 40, 60])
def test_the_size_of_a_map_is_known_without_making_it(dim, options):
    options = {"hidden": (32, 16)} | options
    count = sum(parameter.numel() for parameter in wprox.SplineMap(dim, **options).parameters())
    assert training_bytes(options, dim) == pytest.approx(TRAINED * count, rel=0.05 if dim > 2 else 1, abs=100)


@pytest.mark.parametrize("n_blocks", [1, 8])
@pytest.mark.parametrize("dim", [2, 100, 450, 1_000, 3_000, 10_000])
def test_training_takes_half_of_the_budget(dim, n_blocks):
    budget = 2**29
    options = options_within({}, dim, n_blocks, budget)
    narrowest = options.get("hidden") == (8, 8)
    assert training_bytes(options, dim) * n_blocks <= budget // 2 or narrowest
    assert training_bytes(options, dim) * blocks_within(options, dim, budget) <= budget // 2 or narrowest
    assert options == {} or dim * n_blocks >= 3_000  # what is no trouble stays as it was
    assert blocks_within(options_within({}, dim, 1, budget), dim, budget) >= 8 or dim > 450


def test_what_is_asked_for_is_made():
    given = {"hidden": (128,), "affine": True}
    assert options_within(given, 5_000, 8, 2**24) == given


def test_a_fit_of_a_wide_table_stays_within_its_budget():
    n, d, budget = 100, 1_000, 2**24
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flow = wprox.JKOFlow(iterations=1, fine_tune_iterations=1, memory_budget=budget, tol=-float("inf"))
    with PeakMemory() as memory:
        flow.fit(x)
    assert memory.peak <= budget + 2 * 8 * n * d
