"""The gradient of a batch, computed in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

import torch
from torch import Tensor

from trainwire.v1 import training_pb2
from trainwire_server.training.augment import add_gaussian_noise
from trainwire_server.training.checkpoint import Progress
from trainwire_server.training.devices import free_memory, is_memory_error
from trainwire_server.training.losses import focal_loss
from trainwire_server.training.setup import Samples, Setup

Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""Numerator and denominator of the loss, logits, labels: what `Tally.add` takes; no gradients."""

_T = TypeVar("_T")


def set_gradients(
    setup: Setup, smoothing: float, starts: Tensor, labels: Tensor, micro_batch: int
) -> list[Part]:
    """Give every parameter its gradient of the batch's loss, computed part by part.

    The denominator of the loss is that of the whole batch, so the gradients of the parts add up to
    that of the batch: networks do not normalise over the batch, so the sum differs by rounding
    alone (and in what dropout and noise draw).

    Args:
        setup: its model is in training.
        smoothing: share of each label that is spread over all classes.
        starts: int64 [batch], first row of each window.
        labels: int64 [batch].
        micro_batch: most windows of a part.
    """
    setup.optimizer.zero_grad()
    whole = setup.weights[labels].sum()
    parts = []
    for rows, own in Samples(starts, labels).batches(micro_batch):
        windows = setup.windows[rows]
        if setup.noise > 0:
            windows = add_gaussian_noise(windows, setup.noise)
        with setup.autocast():
            logits = setup.model(windows)
        logits = logits.float()
        loss, weight = focal_loss(logits, own, setup.weights, setup.gamma, smoothing)
        torch.autograd.backward(loss / whole)
        parts.append((loss.detach(), weight, logits.detach(), own))
    return parts


def fit_into_memory(
    compute: Callable[[int], _T], progress: Progress, device: torch.device
) -> Generator[training_pb2.TrainingEvent, None, _T]:
    """`compute(progress.micro_batch)`, which is halved for good as often as memory runs out.

    Args:
        compute: can be called again after it failed.
        progress: of the run.
        device: what it computes on.

    Yields:
        A `warning` for each halving.

    Raises:
        MemoryError, RuntimeError: memory is not enough for a micro-batch of one window.
    """
    while (result := _attempt(compute, progress.micro_batch)) is None:
        free_memory(device)
        before, progress.micro_batch = progress.micro_batch, progress.micro_batch // 2
        warning = _halved(before, progress.micro_batch)
        yield training_pb2.TrainingEvent(warning=warning)
    return result


def _attempt(compute: Callable[[int], _T], size: int) -> _T | None:
    try:
        return compute(size)
    except (MemoryError, RuntimeError) as error:
        if size == 1 or not is_memory_error(error):
            raise
    # Only out here is the exception gone, and with it the tensors that its traceback holds.
    return None


def _halved(before: int, after: int) -> training_pb2.JobWarning:
    return training_pb2.JobWarning(
        reason=training_pb2.WARNING_REASON_MICRO_BATCH_HALVED,
        message=f"memory ran out with {before} windows at once; batches go on in parts of {after}, "
        "whose gradients add up to the step of the whole batch",
        field="trainer.batch_size",
    )
