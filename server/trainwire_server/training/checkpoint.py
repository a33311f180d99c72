"""The best weights so far: a copy in memory, and one on disk that outlives the process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from torch import Tensor, nn

BEST = "best.safetensors"

Weights = dict[str, Tensor]


def copy_weights(module: nn.Module) -> Weights:
    """The module's weights now, on the CPU; later training does not change them.

    A state dict alone would not do: its tensors are the live weights.
    """
    return {name: tensor.to("cpu", copy=True) for name, tensor in module.state_dict().items()}


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in the safetensors format, whole or not at all; the bytes follow from them."""
    write_file(path, safetensors.torch.save(dict(weights)))


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that after a crash or power loss it is the old one or the whole new one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
