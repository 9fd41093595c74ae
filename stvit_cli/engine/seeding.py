"""The randomness of a training step: a function of (seed, step, micro-batch), so that none of it has to be stored."""

from __future__ import annotations

import random

import numpy as np
import torch

from stvit_cli.data.loader import derive_seed


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Seed the global generators (random, numpy, torch on every device) for one micro-batch of one step.

    ``micro_batch`` counts over all processes, so one process with accumulation draws what many processes draw.
    """
    derived = derive_seed(seed, "step", step, micro_batch)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)
