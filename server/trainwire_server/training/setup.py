"""Everything a training run holds, made from the request and the data before the first epoch.

The request is read here and nowhere in the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trainwire.architectures.build import build
from trainwire.architectures.fitted import FittedNetwork
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Integers, Prepared, Split, narrow
from trainwire_server.training import smote
from trainwire_server.training.adjustment import refuse_many_classes
from trainwire_server.training.augment import (
    Augmentation,
    read_augmentation,
    warn_of_lone_windows,
)
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
from trainwire_server.training.streaming import StreamedWindows, has_room

EVALUATION_FACTOR = 4
"""Batches without gradients are this much larger: they keep no activations."""


@dataclass(frozen=True)
class Samples:
    """Windows of a split, on the device: [n] first rows and [n] class indices.

    Integers as small as will do (`prepare.Split`); int64, as losses want them, of what is taken.
    """

    starts: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, positions: Tensor | slice) -> Samples:
        """The samples at these positions (integers, on the device), in this order."""
        return Samples(self.starts[positions].long(), self.labels[positions].long())

    def batches(self, size: int) -> Iterator[Samples]:
        """Batch by batch, in order; the last may be smaller."""
        return (self.take(slice(i, i + size)) for i in range(0, len(self), size))


@dataclass(frozen=True)
class Balance:
    """Which training samples an epoch sees and how its loss weighs them.

    Attributes:
        positions: in `Setup.train`, some of large classes left out and those of small classes
            repeated, or synthetic ones among them.
        counts: int64 [classes], training samples of each class.
        balanced_counts: int64 [classes], the same as trained on.
        weights: float64 [classes].
    """

    positions: Integers
    counts: npt.NDArray[np.int64]
    balanced_counts: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]

    @property
    def sample_weights(self) -> npt.NDArray[np.float64]:
        """What a training sample of each class counts in an epoch's loss, in the mean of its class.

        Float64 [classes]; 0 for a class without samples.
        """
        return self.weights * self.balanced_counts / np.maximum(self.counts, 1)


@dataclass(frozen=True)
class _Resampled:
    """What an epoch may see and what it does see.

    Attributes:
        features: float32 [rows, features], scaled; rows of synthetic windows come last.
        samples: those of the training split, then synthetic ones.
        positions: int64, of those that an epoch sees.
    """

    features: npt.NDArray[np.float32]
    samples: Split
    positions: npt.NDArray[np.int64]
    warnings: list[training_pb2.JobWarning] = field(default_factory=list)


@dataclass(frozen=True)
class Setup:
    """What a run holds.

    Attributes:
        threads: threads it computes with on the CPU.
        model: in evaluation; holds the weights.
        replicas: of the model, in training.
        windows: float32 [rows - T + 1, features, T], a view of the matrix: the windows themselves
            come into being batch by batch, by indexing it with their first rows. On the host if the
            device has no room for the matrix.
        inputs: what the network takes, by first row too: the windows, or what a fixed first part
            of the network makes of them.
        train: samples of the training split, then those made by SMOTE.
        weights: float32 [classes], of the loss.
        gamma: focusing exponent; 0 where focal loss is off.
        augmentation: what changes training windows.
        warnings: what a user should know of all this.
    """

    device: torch.device
    threads: int
    precision: training_pb2.Precision.ValueType
    model: nn.Module
    replicas: Replicas
    optimizer: torch.optim.AdamW
    schedule: Schedule
    windows: Tensor
    inputs: Tensor | Extraction | StreamedWindows
    train: Samples
    validation: Samples
    test: Samples
    balance: Balance
    weights: Tensor
    gamma: float
    augmentation: Augmentation
    warnings: list[training_pb2.JobWarning]

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
        JobFailure: DEVICE_UNAVAILABLE, SMOTE_TOO_LARGE, or TOO_MANY_CLASSES for `prediction`.
    """
    refuse_many_classes(request.prediction, len(prepared.class_names))
    trainer, balancing = request.trainer, request.balancing
    fix_arithmetic(trainer.deterministic)
    device = find_device(request.resources.device)
    rng = reseed(trainer.seed, 0)
    classes = len(prepared.class_names)
    resampled = _resample(balancing, prepared, threads, rng)
    balance = _balance(balancing, prepared.train.labels, resampled, classes)
    # Initial weights are drawn on the CPU, so that they are the same on every device.
    model = _build(request, prepared, balance, threads).to(device).eval()
    replicas = Replicas(model, threads, trainer.batch_size, device)
    torch.set_num_threads(replicas.inner_threads)
    optimizer = torch.optim.AdamW(
        model.parameters(), trainer.learning_rate, weight_decay=trainer.weight_decay, fused=True
    )
    augmentation = read_augmentation(trainer)
    steps = -(-len(balance.positions) // trainer.batch_size)
    matrix = torch.from_numpy(resampled.features)
    is_resident = has_room(matrix, device)
    windows = (matrix.to(device) if is_resident else matrix).unfold(0, prepared.sequence_length, 1)
    source = windows if is_resident else StreamedWindows(windows, device)
    splits = [_samples(s, device) for s in (resampled.samples, prepared.validation, prepared.test)]
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
        inputs=_inputs(augmentation, model, source, splits),
        train=train,
        validation=validation,
        test=test,
        balance=balance,
        weights=torch.from_numpy(balance.weights).to(device, torch.float32),
        gamma=balancing.focal_gamma if balancing.use_focal_loss else 0.0,
        augmentation=augmentation,
        warnings=[
            *resampled.warnings,
            *warn_of_lone_windows(augmentation, min(trainer.batch_size, len(balance.positions))),
            *([] if is_resident else [_streamed(matrix, device)]),
        ],
    )


def _build(
    request: training_pb2.TrainingRequest, prepared: Prepared, balance: Balance, threads: int
) -> nn.Module:
    features, classes = len(prepared.feature_columns), len(prepared.class_names)
    network = build(request.model, features, classes, prepared.sequence_length)
    if isinstance(network, FittedNetwork):
        torch.set_num_threads(threads)
        windows = torch.from_numpy(prepared.features).unfold(0, prepared.sequence_length, 1)
        # Validation and test windows stay unseen. Each training window once: repeated ones would
        # not be left out by leaving one out, so balancing comes as weights.
        network.fit_to(
            windows,
            torch.from_numpy(prepared.train.starts).long(),
            torch.from_numpy(prepared.train.labels).long(),
            torch.from_numpy(balance.sample_weights),
        )
    return network


def _streamed(matrix: Tensor, device: torch.device) -> training_pb2.JobWarning:
    return training_pb2.JobWarning(
        reason=training_pb2.WARNING_REASON_WINDOWS_STREAMED,
        message=f"the scaled table takes {matrix.nbytes} bytes, more than half of what is free on "
        f"{device}; it stays in the host's memory, and windows are sent batch by batch",
        field="data",
    )


def _inputs(
    augmentation: Augmentation,
    model: nn.Module,
    windows: Tensor | StreamedWindows,
    splits: list[Samples],
) -> Tensor | Extraction | StreamedWindows:
    # Augmented windows are others in every epoch, and so are their features.
    if augmentation.is_active or not isinstance(model, FittedNetwork):
        return windows
    rows = torch.cat([split.starts for split in splits])
    return Extraction(model, windows, rows) if is_small_enough(model, len(rows)) else windows


def _samples(split: Split, device: torch.device) -> Samples:
    starts, labels = torch.from_numpy(split.starts), torch.from_numpy(split.labels)
    return Samples(starts.to(device), labels.to(device))


def _resample(
    balancing: training_pb2.BalancingParams,
    prepared: Prepared,
    threads: int,
    rng: np.random.Generator,
) -> _Resampled:
    labels = prepared.train.labels
    positions = np.arange(len(labels))
    if balancing.use_undersampling:
        positions = undersample(labels, balancing.undersample_ratio, rng)
    if balancing.use_oversampling:
        if balancing.oversample_method == training_pb2.OVERSAMPLE_METHOD_SMOTE:
            return _synthesize(balancing, prepared, positions, threads, rng)
        positions = positions[oversample(labels[positions], balancing.oversample_ratio, rng)]
    return _Resampled(prepared.features, prepared.train, positions)


def _synthesize(
    balancing: training_pb2.BalancingParams,
    prepared: Prepared,
    kept: npt.NDArray[np.int64],
    threads: int,
    rng: np.random.Generator,
) -> _Resampled:
    train, length, ratio = prepared.train, prepared.sequence_length, balancing.oversample_ratio
    neighbors, classes = balancing.smote_k_neighbors, len(prepared.class_names)
    samples = replace(train, starts=train.starts[kept], labels=train.labels[kept])
    counts = count_classes(samples.labels, classes)
    missing = smote.missing_samples(counts, ratio)
    if not missing.any():
        return _Resampled(prepared.features, train, kept)
    made = smote.synthesize(
        prepared.features, length, samples, classes, ratio, neighbors, threads, rng
    )
    added = np.arange(len(made.labels))
    starts = np.concatenate([train.starts, len(prepared.features) + length * added])
    return _Resampled(
        features=np.concatenate([prepared.features, made.rows]),
        samples=replace(train, starts=starts, labels=np.concatenate([train.labels, made.labels])),
        positions=np.concatenate([kept, len(train.labels) + added]),
        warnings=smote.warn_of_few_samples(counts, missing, neighbors, prepared.class_names),
    )


def _balance(
    balancing: training_pb2.BalancingParams,
    labels: Integers,
    resampled: _Resampled,
    classes: int,
) -> Balance:
    # Weights from the counts before resampling would make up for the same imbalance twice.
    balanced_counts = count_classes(resampled.samples.labels[resampled.positions], classes)
    weights = np.ones(classes)
    if balancing.use_class_weights:
        weights = class_weights(balanced_counts, balancing.class_weight_method)
    return Balance(
        positions=narrow(resampled.positions, resampled.positions.max(initial=0)),
        counts=count_classes(labels, classes),
        balanced_counts=balanced_counts,
        weights=weights,
    )
