"""Features of windows that stay the same over a training, computed once."""

from __future__ import annotations

import torch
from torch import Tensor

from trainwire.architectures.fitted import FittedNetwork
from trainwire_server.training.streaming import StreamedWindows

MOST_BYTES = 2**30
"""Features that take more than this are computed anew each time."""


class Extraction:
    """Takes the place of a run's windows: their features, computed when first asked for and kept.

    Computed in the first epoch, so that it is cancelled and reports as any other part of it does.
    Threads may ask at the same time: what two of them compute is the same.

    Args:
        network: fitted; its fixed part does not change any more.
        windows: float32 [rows, features, time], may be a view.
        rows: int32 or int64 [n]: all that will be asked for.
    """

    def __init__(
        self, network: FittedNetwork, windows: Tensor | StreamedWindows, rows: Tensor
    ) -> None:
        self._network = network
        self._windows = windows
        self._places = rows.new_full((len(windows),), -1)
        self._places[rows] = torch.arange(len(rows), dtype=rows.dtype, device=rows.device)
        self._features = torch.empty(len(rows), network.width, device=rows.device)
        self._is_known = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        self._is_complete = False

    @property
    def nbytes(self) -> int:
        """What it takes when all is computed."""
        return self._features.nbytes

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Features float32 [n, width] of the windows at these rows, int64 [n]."""
        places = self._places[rows]
        if not self._is_complete:
            self._compute(rows[~self._is_known[places]])
        return self._features[places]

    def _compute(self, rows: Tensor) -> None:
        for part in torch.split(rows, self._network.windows_at_a_time):
            places = self._places[part]
            self._features[places] = self._network.extract(self._windows[part])
            self._is_known[places] = True
        self._is_complete = bool(self._is_known.all())


def is_small_enough(network: FittedNetwork, windows: int) -> bool:
    """Whether the features of so many windows are worth the memory."""
    return windows * network.width * torch.float32.itemsize <= MOST_BYTES
