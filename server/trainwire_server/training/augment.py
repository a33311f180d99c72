"""Random changes to training windows."""

from __future__ import annotations

import torch
from torch import Tensor


def add_gaussian_noise(
    windows: Tensor, std: float, generator: torch.Generator | None = None
) -> Tensor:
    """`windows` plus independent normal noise of standard deviation `std`, of the same shape.

    Draws from the generator, or from torch's of the windows' device. The features are scaled, so
    `std` is in units of their standard deviation.
    """
    # Not randn_like: gathered windows are not contiguous, and torch then draws nine times slower.
    noise = torch.randn(
        windows.shape, generator=generator, dtype=windows.dtype, device=windows.device
    )
    return windows + std * noise
