"""Random state from (seed, epoch), so that an epoch is the same whatever ran before it."""

from __future__ import annotations

import numpy as np
import torch


def reseed(seed: int, epoch: int) -> np.random.Generator:
    """Seed torch for an epoch and return an independent NumPy generator for the same.

    torch's generators (of every device) draw initial weights, dropout and noise; NumPy's draws
    which samples are repeated and in what order samples come. Epoch 0 is what precedes training.
    """
    for_torch, for_numpy = np.random.SeedSequence((seed, epoch)).spawn(2)
    torch.manual_seed(int(for_torch.generate_state(1, np.uint64)[0]))
    return np.random.default_rng(for_numpy)
