"""Networks whose first part is fixed: fitted to training windows once, then never trained."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class FittedNetwork(nn.Module, ABC):
    """A network that has to see training windows before its first step.

    What it learns from them and keeps are buffers: they go with its weights wherever these go. The
    weights that are trained may begin at what it learns from the labels.

    Attributes:
        width: features that `extract` gives.
        windows_at_a_time: with how many `extract` is fastest on a CPU.
    """

    width: int
    windows_at_a_time: int

    @abstractmethod
    def fit_to(self, windows: Tensor, rows: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Set buffers and first weights; random choices come from torch's generator of the CPU.

        Args:
            windows: float32 [rows, features, time], each from its row on, on the CPU; may be a view
                that would be huge if it were copied.
            rows: int64 [n], ascending, at least one: those of the windows that may be looked at.
            labels: int64 [n], class of each of these.
            weights: float64 [classes], above 0 for each that occurs: what a window of the class
                counts where classes are learned.
        """

    @abstractmethod
    def fitting_bytes(self, rows: int) -> int:
        """Most memory that `fit_to` takes at a time, given so many rows."""

    @abstractmethod
    def extract(self, windows: Tensor) -> Tensor:
        """Features [batch, width] of windows [batch, features, time].

        The same for ever once the network is fitted, and for each window alone. `forward` takes
        them in place of the windows.
        """
