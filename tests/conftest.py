"""One thread a test process: the operations are small, and two processes (pytest -n 2) share two cores better."""

import torch

torch.set_num_threads(1)
