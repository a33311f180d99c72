"""Several threads that each compute a part of a batch, with one set of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainwire.architectures.noise import Noise

_SMALLEST_PART = 16
"""Windows that are worth a thread of their own."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Replica:
    """What one thread computes with.

    Attributes:
        model: in training; its parameters and buffers are those of all replicas.
        generator: of its dropout and noise; None for torch's own.
    """

    model: nn.Module
    generator: torch.Generator | None


class Replicas:
    """The threads; results follow from their number, not from which of them is faster.

    Threads within an operation wait for each other at its end, hundreds of times a step; threads
    that each compute a part of the batch meet once. What `torch.nn.DataParallel` does with GPUs.

    Args:
        model: stays as it is.
        threads: to compute with on the CPU; a GPU takes a batch as a whole.
        batch_size: windows of a step.
        device: where the model is.

    Attributes:
        generators: of all replicas; none on a GPU.
        inner_threads: threads within an operation.
    """

    def __init__(
        self, model: nn.Module, threads: int, batch_size: int, device: torch.device
    ) -> None:
        is_cpu = device.type == "cpu"
        count = max(1, min(threads, batch_size // _SMALLEST_PART)) if is_cpu else 1
        self.generators = [torch.Generator() for _ in range(count)] if is_cpu else []
        self.inner_threads = threads // count
        generators: list[torch.Generator | None] = [*self.generators] or [None]
        self._replicas = [_replicate(model, generator) for generator in generators]
        self._pool = ThreadPoolExecutor(
            count, "replica", initializer=torch.set_num_threads, initargs=(self.inner_threads,)
        )

    @property
    def one(self) -> Replica:
        """One of them, for what a single thread does."""
        return self._replicas[0]

    def map(self, function: Callable[..., _T], *tensors: Tensor) -> list[_T]:
        """`function(replica, *parts)` of even parts of the tensors' rows, in their order.

        Args:
            function: called in several threads at a time.
            tensors: of equal length.

        Raises:
            Exception: of the function, when all calls have ended.
        """
        split = (tensor.tensor_split(len(self._replicas)) for tensor in tensors)
        parts = [part for part in zip(*split, strict=True) if len(part[0])]
        if len(parts) == 1:
            return [function(self._replicas[0], *parts[0])]
        calls = zip(self._replicas, parts, strict=False)
        futures = [self._pool.submit(function, replica, *part) for replica, part in calls]
        wait(futures)
        return [future.result() for future in futures]


def _replicate(model: nn.Module, generator: torch.Generator | None) -> Replica:
    # Buffers too: what a checkpoint brings into the model's own is then in all of them.
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    replica = copy.deepcopy(model, shared).train()
    for module in replica.modules():
        if isinstance(module, Noise):
            module.generator = generator
    return Replica(replica, generator)
