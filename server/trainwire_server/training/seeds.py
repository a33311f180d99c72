"""Random state from (seed, epoch), so that an epoch is the same whatever ran before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def reseed(
    seed: int, epoch: int, generators: Sequence[torch.Generator] = ()
) -> np.random.Generator:
    """Seed torch for an epoch and return an independent NumPy generator for the same.

    torch's own generators (of every device) draw initial weights and, on a GPU, dropout and noise;
    NumPy's draws which samples are repeated and in what order samples come. Epoch 0 is what
    precedes training.

    Args:
        generators: seeded too, each independent of all others.
    """
    for_torch, for_numpy, *others = np.random.SeedSequence((seed, epoch)).spawn(2 + len(generators))
    torch.manual_seed(_number(for_torch))
    for generator, sequence in zip(generators, others, strict=True):
        generator.manual_seed(_number(sequence))
    return np.random.default_rng(for_numpy)


def _number(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0])
