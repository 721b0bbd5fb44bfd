"""One thread a test process, and the same default generator for each test, in whatever order they run.

The operations are small: two processes (pytest -n 2) share two cores better than two threads do.
"""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _default_generator():
    """Networks built without a seed start from torch's default generator."""
    torch.manual_seed(0)
