"""Noise on whole channels, as BatchNorm has it from the other samples of a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from trainwire.architectures.noise import Noise


class ChannelNoise(Noise):
    """Each channel of each sample times 1 + e and plus f, both normal; in training alone.

    BatchNorm's means and deviations are those of a small sample, which does to each channel what
    such noise does (Shekhovtsov and Flach 2018, "Stochastic normalizations as Bayesian learning").
    Here a sample does not depend on its batch.

    Args:
        deviation: standard deviation of e and f, in units of a normalised channel.
    """

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, time] -> the same shape."""
        if not self.training or self.deviation == 0:
            return x
        factor, shift = self._draw(x).mul_(self.deviation)
        return torch.addcmul(x + shift, x, factor)

    def _draw(self, x: Tensor) -> Tensor:
        """Independent standard normal values [2, batch, channels, 1]."""
        drawn = x.new_empty((2, *x.shape[:2], 1))
        return drawn.normal_(generator=self.generator)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"deviation={self.deviation}"
