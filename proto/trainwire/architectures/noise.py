"""What all modules that draw random numbers have in common."""

from __future__ import annotations

import torch
from torch import nn


class Noise(nn.Module):
    """A module that draws random numbers in training.

    Attributes:
        generator: where they come from on a CPU, the same thread's alone; None for torch's own. A
            GPU draws from torch's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator: torch.Generator | None = None
