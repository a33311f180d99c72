"""The gradient of a batch, computed in parts that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from trainwire.v1 import training_pb2
from trainwire_server.training.augment import augment, mix
from trainwire_server.training.checkpoint import Progress
from trainwire_server.training.devices import free_memory, is_memory_error
from trainwire_server.training.losses import focal_loss, mixed_focal_loss
from trainwire_server.training.replicas import Replica
from trainwire_server.training.setup import Setup

Part = tuple[Tensor, Tensor, Tensor, Tensor]
"""Numerator and denominator of the loss, logits, labels: what `Tally.add` takes; no gradients."""

_DIMENSIONS_WITH_HEADS = 3
"""Of logits [batch, heads, classes]; else they are [batch, classes]."""
_Differentiated = tuple[Part, Sequence[Tensor]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Mixed:
    """What the samples of a batch are mixed with: int64 [n] first rows and class indices.

    Attributes:
        shares: float32 [n], in [0, 1], of the samples themselves; the rest is that of these.
    """

    starts: Tensor
    labels: Tensor
    shares: Tensor


def set_gradients(
    setup: Setup,
    smoothing: float,
    starts: Tensor,
    labels: Tensor,
    micro_batch: int,
    shares: Tensor | None = None,
) -> list[Part]:
    """Give every parameter its gradient of the batch's loss, computed part by part.

    The denominator of the loss is that of the whole batch, so the gradients of the parts add up to
    that of the batch: networks do not normalise over the batch, so the sum differs by rounding
    alone (and in what dropout and augmentation draw). Mixtures are those of the batch as well: each
    sample is mixed with the one before it in the batch, whatever part that one is in.

    Args:
        setup: what the run holds.
        smoothing: share of each label that is spread over all classes.
        starts: int64 [batch], first row of each window.
        labels: int64 [batch].
        micro_batch: most windows that are computed at a time, in a part for each replica.
        shares: float32 [batch], of each sample in its mixture; nothing is mixed if None.
    """
    setup.optimizer.zero_grad(set_to_none=False)
    columns = [starts, labels]
    weights = setup.weights[labels]
    if shares is not None:
        # In an order that is drawn anew in each epoch, the one before is as random as any.
        mixed = Mixed(starts.roll(1), labels.roll(1), shares)
        columns += [mixed.starts, mixed.labels, mixed.shares]
        weights = torch.lerp(setup.weights[mixed.labels], weights, shares)
    whole = weights.sum()

    def gather_and_differentiate(
        replica: Replica, rows: Tensor, own: Tensor, *others: Tensor
    ) -> _Differentiated:
        mixed = Mixed(*others) if others else None
        return differentiate(setup, smoothing, whole, replica, setup.inputs[rows], own, mixed)

    parts = []
    for batch in zip(*(torch.split(column, micro_batch) for column in columns), strict=True):
        for part, gradients in setup.replicas.map(gather_and_differentiate, *batch):
            add_gradients(setup.model, gradients)
            parts.append(part)
    return parts


def differentiate(
    setup: Setup,
    smoothing: float,
    whole: Tensor,
    replica: Replica,
    windows: Tensor,
    labels: Tensor,
    mixed: Mixed | None = None,
) -> _Differentiated:
    """A part of a batch, and the gradient of its share of the loss for each parameter.

    Args:
        whole: denominator of the batch's loss.
        windows: float32 [part, features, time], or features of a network's fixed part.
        labels: int64 [part].
        mixed: what the windows are mixed with, if they are. Metrics then count the label that has
            the larger share.
    """
    if mixed is not None:
        windows = mix(windows, setup.inputs[mixed.starts], mixed.shares)
    windows = augment(windows, setup.augmentation, replica.generator)
    with setup.autocast():
        logits = replica.model(windows)
    logits = logits.float()
    loss, weight = _training_loss(setup, smoothing, logits, labels, mixed)
    gradients = torch.autograd.grad(loss / whole, list(replica.model.parameters()))
    if mixed is not None:
        labels = torch.where(mixed.shares >= 0.5, labels, mixed.labels)
    return (loss.detach(), weight, _verdict(logits.detach()), labels), gradients


def _training_loss(
    setup: Setup, smoothing: float, logits: Tensor, labels: Tensor, mixed: Mixed | None
) -> tuple[Tensor, Tensor]:
    """Numerator and denominator of the loss; of a network with heads, the mean of theirs."""
    if logits.dim() == _DIMENSIONS_WITH_HEADS:
        heads = [_training_loss(setup, smoothing, each, labels, mixed) for each in logits.unbind(1)]
        return torch.stack([loss for loss, _ in heads]).mean(), heads[0][1]
    if mixed is None:
        return focal_loss(logits, labels, setup.weights, setup.gamma, smoothing)
    return mixed_focal_loss(
        logits, labels, mixed.labels, mixed.shares, setup.weights, setup.gamma, smoothing
    )


def _verdict(logits: Tensor) -> Tensor:
    """[batch, classes], as the network has it when it does not train."""
    return logits.mean(dim=1) if logits.dim() == _DIMENSIONS_WITH_HEADS else logits


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
