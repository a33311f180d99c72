"""The gradient of a batch, computed in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainwire.v1 import training_pb2
from trainwire_server.training.augment import add_gaussian_noise
from trainwire_server.training.checkpoint import Progress
from trainwire_server.training.devices import free_memory, is_memory_error
from trainwire_server.training.losses import focal_loss
from trainwire_server.training.replicas import Replica
from trainwire_server.training.setup import Samples, Setup

Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""Numerator and denominator of the loss, logits, labels: what `Tally.add` takes; no gradients."""

_Differentiated = tuple[Part, Sequence[Tensor]]
_T = TypeVar("_T")


def set_gradients(
    setup: Setup, smoothing: float, starts: Tensor, labels: Tensor, micro_batch: int
) -> list[Part]:
    """Give every parameter its gradient of the batch's loss, computed part by part.

    The denominator of the loss is that of the whole batch, so the gradients of the parts add up to
    that of the batch: networks do not normalise over the batch, so the sum differs by rounding
    alone (and in what dropout and noise draw).

    Args:
        setup: what the run holds.
        smoothing: share of each label that is spread over all classes.
        starts: int64 [batch], first row of each window.
        labels: int64 [batch].
        micro_batch: most windows that are computed at a time, in a part for each replica.
    """
    setup.optimizer.zero_grad(set_to_none=False)
    whole = setup.weights[labels].sum()

    def gather_and_differentiate(replica: Replica, rows: Tensor, own: Tensor) -> _Differentiated:
        return differentiate(setup, smoothing, whole, replica, setup.inputs[rows], own)

    parts = []
    for batch in Samples(starts, labels).batches(micro_batch):
        for part, gradients in setup.replicas.map(gather_and_differentiate, *batch):
            add_gradients(setup.model, gradients)
            parts.append(part)
    return parts


def differentiate(
    setup: Setup, smoothing: float, whole: Tensor, replica: Replica, windows: Tensor, labels: Tensor
) -> _Differentiated:
    """A part of a batch, and the gradient of its share of the loss for each parameter.

    Args:
        whole: denominator of the batch's loss.
        windows: float32 [part, features, time], or features of a network's fixed part.
        labels: int64 [part].
    """
    if setup.noise > 0:
        windows = add_gaussian_noise(windows, setup.noise, replica.generator)
    with setup.autocast():
        logits = replica.model(windows)
    logits = logits.float()
    loss, weight = focal_loss(logits, labels, setup.weights, setup.gamma, smoothing)
    gradients = torch.autograd.grad(loss / whole, list(replica.model.parameters()))
    return (loss.detach(), weight, logits.detach(), labels), gradients


def add_gradients(model: nn.Module, gradients: Sequence[Tensor]) -> None:
    """Add to each parameter's gradient, which always has the parameter's layout in memory."""
    # What autograd returns may be transposed, and the fused optimizer reads memory as it lies.
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad += gradient


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
