"""The loops that training is measured against, each run once: windows per second of its epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainwire import contract
from trainwire.architectures.build import build
from trainwire.v1 import training_pb2
from trainwire_server.data.prepare import Prepared
from trainwire_server.training.devices import fix_arithmetic
from trainwire_server.training.setup import set_up


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        rate: training windows per second of the last epoch.
        loss: mean validation cross-entropy after it; NaN where nothing was learned.
    """

    rate: float
    loss: float


class _Windows(Dataset[tuple[torch.Tensor, int]]):
    """A window slice per item, as tutorials write it."""

    def __init__(self, prepared: Prepared, starts: np.ndarray, labels: np.ndarray) -> None:
        self._matrix = torch.from_numpy(prepared.features)
        self._starts, self._labels = starts, labels
        self._time = prepared.sequence_length

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        start = int(self._starts[index])
        return self._matrix[start : start + self._time].T, int(self._labels[index])


def idiomatic(
    request: training_pb2.TrainingRequest, prepared: Prepared, threads: int, workers: int
) -> Run:
    """Dataset, DataLoader, `.item()` per batch, scikit-learn's metrics per epoch."""
    # What runs before in this process asks torch for reproducible kernels; tutorials do not.
    fix_arithmetic(threads, deterministic=False)
    effective = contract.resolve(request)
    torch.manual_seed(effective.trainer.seed)
    classes = len(prepared.class_names)
    model = build(effective.model, len(prepared.feature_columns), classes)
    optimizer = torch.optim.AdamW(model.parameters(), effective.trainer.learning_rate)
    criterion = nn.CrossEntropyLoss()
    splits = (prepared.train, prepared.validation)
    train, validation = (_Windows(prepared, split.starts, split.labels) for split in splits)
    size = effective.trainer.batch_size
    loaders = [
        DataLoader(train, size, shuffle=True, num_workers=workers),
        DataLoader(validation, size, num_workers=workers),
    ]
    run = Run(0.0, float("nan"))
    for _ in range(effective.trainer.epochs):
        began = time.perf_counter()
        model.train()
        running, predicted, true = 0.0, [], []
        for windows, labels in loaders[0]:
            optimizer.zero_grad()
            logits = model(windows)
            loss = criterion(logits, labels)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), effective.trainer.gradient_clip_norm)
            optimizer.step()
            running += loss.item()
            predicted += logits.argmax(1).tolist()
            true += labels.tolist()
        accuracy_score(true, predicted)
        f1_score(true, predicted, average="macro")
        rate = len(train) / (time.perf_counter() - began)
        run = Run(rate, _loss(model, loaders[1]))
    return run


def _loss(model: nn.Module, loader: DataLoader[tuple[torch.Tensor, int]]) -> float:
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for windows, labels in loader:
            total += nn.functional.cross_entropy(model(windows), labels, reduction="sum").item()
            count += len(labels)
    return total / count


def compute_only(request: training_pb2.TrainingRequest, prepared: Prepared, threads: int) -> Run:
    """The same steps over and over on one batch that is there already: what the network costs."""
    effective = contract.resolve(request)
    setup = set_up(effective, prepared, threads)
    starts, labels = setup.train.batches(effective.trainer.batch_size)[0]
    windows = setup.windows[starts].contiguous()
    steps = -(-len(setup.train) // effective.trainer.batch_size)
    clip = effective.trainer.gradient_clip_norm

    def step() -> None:
        setup.optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(setup.model(windows), labels))
        nn.utils.clip_grad_norm_(setup.model.parameters(), clip)
        setup.optimizer.step()

    _repeat(step, 3)
    seconds = _repeat(step, steps)
    return Run(steps * len(labels) / seconds, float("nan"))


def _repeat(step: Callable[[], None], times: int) -> float:
    began = time.perf_counter()
    for _ in range(times):
        step()
    return time.perf_counter() - began
