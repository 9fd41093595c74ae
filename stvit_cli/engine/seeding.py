"""The randomness of a training step: a function of (seed, step, micro-batch), so that none of it has to be stored."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from stvit_cli.data.loader import derive_seed


def seed_micro_batch(seed: int, step: int, micro_batch: int) -> None:
    """Seed the global generators (random, numpy, torch on every device) for one micro-batch of one step.

    ``micro_batch`` counts over all processes, so one process with accumulation draws what many processes draw.
    """
    seed_generators(seed, "step", step, micro_batch)


def seed_generators(*parts: int | str) -> None:
    """Seed the global generators (random, numpy, torch on every device) with what `derive_seed` makes of the parts."""
    derived = derive_seed(*parts)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)


@contextmanager
def kept_generators(device: torch.device) -> Iterator[None]:
    """Restore the states of the global generators (random, numpy, torch on the CPU and on ``device``) after a ``with`` block.

    >>> before = torch.get_rng_state()
    >>> with kept_generators(torch.device("cpu")):
    ...     seed_generators(0, "example")
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    accelerator = None
    if device.type == "cuda":
        accelerator = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        accelerator = torch.mps.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if accelerator is not None and device.type == "cuda":
            torch.cuda.set_rng_state(accelerator, device)
        elif accelerator is not None:
            torch.mps.set_rng_state(accelerator)
