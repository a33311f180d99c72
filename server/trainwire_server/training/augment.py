"""Random changes to training windows."""

from __future__ import annotations

import torch
from torch import Tensor


def add_gaussian_noise(windows: Tensor, std: float) -> Tensor:
    """`windows` plus independent normal noise of standard deviation `std`, of the same shape.

    Draws from torch's generator of the windows' device. The features are scaled, so `std` is in
    units of their standard deviation.
    """
    # Gathered windows are not contiguous, and on the CPU torch then draws nine times slower.
    noise = torch.randn_like(windows, memory_format=torch.contiguous_format)
    return windows + std * noise
