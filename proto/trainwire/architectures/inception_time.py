"""Convolutions of several lengths side by side, in depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from trainwire.architectures.dropout import Dropout

_MODULES_OF_A_BLOCK = 3


class InceptionTime(nn.Module):
    """One network of InceptionTime (Ismail Fawaz et al. 2020, "InceptionTime: finding AlexNet for
    time series classification"), but for its normalisation.

    Takes float32 [batch, features, time] and returns logits [batch, classes]. Where the paper has
    BatchNorm this has GroupNorm (Wu and He 2018), in groups of four channels: a sample's logits do
    not depend on its batch. The paper has no dropout; here it acts on what the head takes.

    Args:
        features: values per time step.
        classes: number of logits.
        depth: inception modules; every third ends in a residual connection (He et al. 2016).
        filters: channels of each of a module's four convolutions.
        kernel_size: time steps that the longest of them sees; at least 4.
        bottleneck_size: channels that the three longer ones take.
        dropout: probability, before the head.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        depth: int,
        filters: int,
        kernel_size: int,
        bottleneck_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        width = 4 * filters
        inputs = [features] + [width] * (depth - 1)
        blocks = [inputs[i : i + _MODULES_OF_A_BLOCK] for i in range(0, depth, _MODULES_OF_A_BLOCK)]
        self.blocks = nn.Sequential(
            *(InceptionBlock(block, filters, kernel_size, bottleneck_size) for block in blocks)
        )
        self.head = nn.Sequential(Dropout(dropout), nn.Linear(width, classes))

    def forward(self, windows: Tensor) -> Tensor:
        """Logits [batch, classes] of windows [batch, features, time]."""
        logits: Tensor = self.head(self.blocks(windows).mean(dim=2))
        return logits


class InceptionBlock(nn.Module):
    """Modules one after the other; three have their input added to their output."""

    def __init__(
        self, inputs: list[int], filters: int, kernel_size: int, bottleneck_size: int
    ) -> None:
        super().__init__()
        width = 4 * filters
        self.body = nn.Sequential(
            *(
                InceptionModule(channels, filters, kernel_size, bottleneck_size)
                for channels in inputs
            )
        )
        self.skip = None
        if len(inputs) == _MODULES_OF_A_BLOCK:
            self.skip = nn.Sequential(
                nn.Conv1d(inputs[0], width, 1, bias=False), _normalisation(filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs[0], time] -> [batch, 4 x filters, time]."""
        found: Tensor = self.body(x)
        return found if self.skip is None else relu(found + self.skip(x))


class InceptionModule(nn.Module):
    """Convolutions of three lengths and a maximum, side by side; GroupNorm, ReLU."""

    def __init__(self, inputs: int, filters: int, kernel_size: int, bottleneck_size: int) -> None:
        super().__init__()
        has_bottleneck = inputs > 1
        middle = bottleneck_size if has_bottleneck else inputs
        self.bottleneck = (
            nn.Conv1d(inputs, middle, 1, bias=False) if has_bottleneck else nn.Identity()
        )
        self.lengths = [kernel_size // part for part in (1, 2, 4)]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(middle, filters, length, bias=False) for length in self.lengths
        )
        self.maximum = nn.Sequential(
            nn.MaxPool1d(3, stride=1, padding=1), nn.Conv1d(inputs, filters, 1, bias=False)
        )
        self.norm = _normalisation(filters)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, time] -> [batch, 4 x filters, time]."""
        narrow = self.bottleneck(x)
        # By hand: padding="same" copies, and says so, where a kernel's length is even.
        parts = [
            convolution(pad(narrow, ((length - 1) // 2, length // 2)))
            for convolution, length in zip(self.convolutions, self.lengths, strict=True)
        ]
        return relu(self.norm(torch.cat([*parts, self.maximum(x)], dim=1)))


def _normalisation(filters: int) -> nn.GroupNorm:
    # Of the numbers of groups tried, 1, 8 and 32 for 128 channels, the last came closest to
    # BatchNorm; see docs/models.md.
    return nn.GroupNorm(filters, 4 * filters)
