"""Windows of a table that a GPU has no room for."""

from __future__ import annotations

import torch
from torch import Tensor

_SHARE = 0.5
"""Of a GPU's free memory that a table may take; the rest is for weights and activations."""


class StreamedWindows:
    """Takes the place of windows on the device: gathered on the host batch by batch, and sent.

    Slower than windows that are there, because each batch waits for the one before it.

    Args:
        windows: float32 [rows, features, time], on the host; may be a view.
        device: where they are needed.
    """

    def __init__(self, windows: Tensor, device: torch.device) -> None:
        self._windows = windows
        self._device = device

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """float32 [n, features, time], on the device, of the windows at these rows, int64 [n]."""
        gathered = self._windows[rows.cpu()].contiguous()
        if self._device.type == "cuda":
            # Pinned memory is sent while the host goes on; torch keeps it until then.
            gathered = gathered.pin_memory()
        return gathered.to(self._device, non_blocking=True)


def has_room(matrix: Tensor, device: torch.device) -> bool:
    """Whether a table, float32 [rows, features], is to be kept on the device."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return matrix.nbytes <= _SHARE * free
