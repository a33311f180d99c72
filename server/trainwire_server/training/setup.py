"""Everything a training run holds, made from the request and the data before the first epoch.

The request is read here and nowhere in the loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainwire.architectures.build import build
from trainwire.architectures.fitted import FittedNetwork
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared, Split
from trainwire_server.training.balancing import (
    class_weights,
    count_classes,
    oversample,
    undersample,
)
from trainwire_server.training.devices import find_device, find_precision, fix_arithmetic
from trainwire_server.training.extraction import Extraction, is_small_enough
from trainwire_server.training.replicas import Replicas
from trainwire_server.training.schedules import Schedule
from trainwire_server.training.seeds import reseed

EVALUATION_FACTOR = 4
"""Batches without gradients are this much larger: they keep no activations."""


@dataclass(frozen=True)
class Samples:
    """Windows of a split, on the device: int64 [n] first rows and int64 [n] class indices."""

    starts: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, positions: Tensor) -> Samples:
        """The samples at these positions (int64, on the device), in this order."""
        return Samples(self.starts[positions], self.labels[positions])

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """(starts, labels) of each batch, in order; the last may be smaller."""
        return list(
            zip(torch.split(self.starts, size), torch.split(self.labels, size), strict=True)
        )


@dataclass(frozen=True)
class Balance:
    """Which training samples an epoch sees and how its loss weighs them.

    Attributes:
        positions: int64, positions in the training split, some of large classes left out and those
            of small classes repeated.
        counts: int64 [classes], training samples of each class.
        balanced_counts: int64 [classes], the same as trained on.
        weights: float64 [classes].
    """

    positions: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    balanced_counts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setup:
    """What a run holds.

    Attributes:
        threads: threads it computes with on the CPU.
        model: in evaluation; holds the weights.
        replicas: of the model, in training.
        windows: float32 [rows - T + 1, features, T], a view of the resident matrix: the windows
            themselves come into being batch by batch, by indexing it with their first rows.
        inputs: what the network takes, by first row too: the windows, or what a fixed first part
            of the network makes of them.
        weights: float32 [classes], of the loss.
        gamma: focusing exponent; 0 where focal loss is off.
        noise: standard deviation; 0 where augmentation is off.
    """

    device: torch.device
    threads: int
    precision: training_pb2.Precision.ValueType
    model: nn.Module
    replicas: Replicas
    optimizer: torch.optim.AdamW
    schedule: Schedule
    windows: Tensor
    inputs: Tensor | Extraction
    train: Samples
    validation: Samples
    test: Samples
    balance: Balance
    weights: Tensor
    gamma: float
    noise: float

    def autocast(self) -> torch.autocast:
        """The precision of forward passes, as a context."""
        bf16 = self.precision == training_pb2.PRECISION_BF16
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16)


def set_up(request: training_pb2.TrainingRequest, prepared: Prepared, threads: int) -> Setup:
    """Device, network, optimizer and resident data of a run.

    Args:
        request: effective parameters (`contract.resolve`).
        prepared: from `data.prepare`.
        threads: threads to compute with on the CPU.

    Raises:
        JobFailure: DEVICE_UNAVAILABLE.
    """
    trainer, balancing = request.trainer, request.balancing
    fix_arithmetic(trainer.deterministic)
    device = find_device(request.resources.device)
    rng = reseed(trainer.seed, 0)
    classes = len(prepared.class_names)
    # Initial weights are drawn on the CPU, so that they are the same on every device.
    model = _build(request, prepared, threads).to(device).eval()
    replicas = Replicas(model, threads, trainer.batch_size, device)
    torch.set_num_threads(replicas.inner_threads)
    optimizer = torch.optim.AdamW(
        model.parameters(), trainer.learning_rate, weight_decay=trainer.weight_decay, fused=True
    )
    balance = _balance(balancing, prepared.train.labels, classes, rng)
    steps = -(-len(balance.positions) // trainer.batch_size)
    matrix = torch.from_numpy(prepared.features).to(device)
    windows = matrix.unfold(0, prepared.sequence_length, 1)
    splits = [_samples(s, device) for s in (prepared.train, prepared.validation, prepared.test)]
    train, validation, test = splits
    return Setup(
        device=device,
        threads=threads,
        precision=find_precision(trainer.precision, device),
        model=model,
        replicas=replicas,
        optimizer=optimizer,
        schedule=Schedule(trainer, optimizer, steps),
        windows=windows,
        inputs=_inputs(request, model, windows, splits),
        train=train,
        validation=validation,
        test=test,
        balance=balance,
        weights=torch.from_numpy(balance.weights).to(device, torch.float32),
        gamma=balancing.focal_gamma if balancing.use_focal_loss else 0.0,
        noise=trainer.gaussian_noise_std if trainer.use_augmentation else 0.0,
    )


def _build(request: training_pb2.TrainingRequest, prepared: Prepared, threads: int) -> nn.Module:
    features, classes = len(prepared.feature_columns), len(prepared.class_names)
    network = build(request.model, features, classes, prepared.sequence_length)
    if isinstance(network, FittedNetwork):
        torch.set_num_threads(threads)
        windows = torch.from_numpy(prepared.features).unfold(0, prepared.sequence_length, 1)
        # Validation and test windows stay unseen; classes are as frequent as they are.
        network.fit_to(windows, torch.from_numpy(prepared.train.starts))
    return network


def _inputs(
    request: training_pb2.TrainingRequest, model: nn.Module, windows: Tensor, splits: list[Samples]
) -> Tensor | Extraction:
    # Augmented windows are others in every epoch, and so are their features.
    if request.trainer.use_augmentation or not isinstance(model, FittedNetwork):
        return windows
    rows = torch.cat([split.starts for split in splits])
    return Extraction(model, windows, rows) if is_small_enough(model, len(rows)) else windows


def _samples(split: Split, device: torch.device) -> Samples:
    starts, labels = torch.from_numpy(split.starts), torch.from_numpy(split.labels)
    return Samples(starts.to(device), labels.to(device))


def _balance(
    balancing: training_pb2.BalancingParams,
    labels: npt.NDArray[np.int64],
    classes: int,
    rng: np.random.Generator,
) -> Balance:
    positions = np.arange(len(labels))
    if balancing.use_undersampling:
        positions = undersample(labels, balancing.undersample_ratio, rng)
    if balancing.use_oversampling:
        positions = positions[oversample(labels[positions], balancing.oversample_ratio, rng)]
    # Weights from the counts before resampling would make up for the same imbalance twice.
    balanced_counts = count_classes(labels[positions], classes)
    weights = np.ones(classes)
    if balancing.use_class_weights:
        weights = class_weights(balanced_counts, balancing.class_weight_method)
    return Balance(positions, count_classes(labels, classes), balanced_counts, weights)
