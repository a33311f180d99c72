"""The loops that training is measured against: each trains once and says how fast it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from bench.network import HybridCnnLstm
from bench.task import Task
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader, Dataset

from trainwire_server.data.prepare import Prepared, Split
from trainwire_server.training.setup import set_up
from trainwire_server.training.steps import set_gradients

CPU = torch.device("cpu")
Score = Callable[[Sequence[int], Sequence[int]], object]
"""Metrics of an epoch from true and predicted classes."""


@dataclass(frozen=True)
class Run:
    """What one run showed.

    Attributes:
        rate: training windows per second, all epochs but the first.
        loss: mean validation cross-entropy at the end; NaN where nothing was learned.
    """

    rate: float
    loss: float


Loader = DataLoader[tuple[Tensor, int]]


class Windows(Dataset[tuple[Tensor, int]]):
    """A window slice per item, as tutorials write it."""

    def __init__(self, prepared: Prepared, split: Split) -> None:
        self._matrix = torch.from_numpy(prepared.features)
        self._split, self._time = split, prepared.sequence_length

    def __len__(self) -> int:
        return len(self._split.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        start = int(self._split.starts[index])
        return self._matrix[start : start + self._time].T, int(self._split.labels[index])


def make_network(task: Task) -> nn.Module:
    """The plain network with torch as a script of its own would find it, and fresh weights."""
    # What ran before in this process asked for reproducible kernels; people seldom do.
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.request.trainer.seed)
    prepared = task.prepared
    features, classes = len(prepared.feature_columns), len(prepared.class_names)
    return HybridCnnLstm(task.request.model, features, classes)


def make_optimizer(task: Task, network: nn.Module) -> torch.optim.Optimizer:
    """AdamW with the task's numbers."""
    trainer = task.request.trainer
    return torch.optim.AdamW(
        network.parameters(), trainer.learning_rate, weight_decay=trainer.weight_decay
    )


def make_loaders(task: Task, workers: int, pin_memory: bool = False) -> tuple[Loader, Loader]:
    """Batches of the training split, shuffled, and of the validation split."""
    size, prepared = task.request.trainer.batch_size, task.prepared
    train, validation = (
        DataLoader(
            Windows(prepared, split),
            size,
            shuffle=split is prepared.train,
            num_workers=workers,
            # Workers that live on are the faster choice.
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )
        for split in (prepared.train, prepared.validation)
    )
    return train, validation


def idiomatic(
    task: Task,
    workers: int,
    score: Score,
    device: torch.device = CPU,
    precision: torch.dtype = torch.float32,
) -> Run:
    """Dataset, DataLoader, `.item()` per batch, metrics of lists per epoch."""
    network = make_network(task).to(device)
    optimizer = make_optimizer(task, network)
    criterion = nn.CrossEntropyLoss()
    train, validation = make_loaders(task, workers, pin_memory=device.type == "cuda")
    autocast = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    seconds = []
    for _ in range(task.request.trainer.epochs):
        began = time.perf_counter()
        network.train()
        running = 0.0
        true: list[int] = []
        predicted: list[int] = []
        for batch, classes in train:
            windows, labels = batch.to(device), classes.to(device)
            optimizer.zero_grad()
            with autocast:
                logits = network(windows)
                loss = criterion(logits, labels)
            torch.autograd.backward(loss)
            clip_grad_norm_(network.parameters(), task.request.trainer.gradient_clip_norm)
            optimizer.step()
            running += loss.item()
            predicted += logits.argmax(1).tolist()
            true += labels.tolist()
        score(true, predicted)
        seconds.append(time.perf_counter() - began)
        final = validation_loss(network, validation, device)
    return Run(rate(len(task.prepared.train.starts), seconds), final)


def rate(windows: int, seconds: Sequence[float]) -> float:
    """Windows per second of all epochs but the first."""
    return windows * (len(seconds) - 1) / sum(seconds[1:])


def validation_loss(network: nn.Module, loader: Loader, device: torch.device = CPU) -> float:
    """Mean cross-entropy."""
    network.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for batch, classes in loader:
            logits, labels = network(batch.to(device)), classes.to(device)
            total += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            count += len(labels)
    return total / count


def compute_only(task: Task) -> Run:
    """The trainer's own steps, as many as in an epoch, all on one batch that is there already."""
    size = task.request.trainer.batch_size
    count = len(task.prepared.train.starts) // size
    step = make_step(task)
    repeat(step, 3)
    return Run(count * size / repeat(step, count), float("nan"))


def make_step(task: Task, capturable: bool = False) -> Callable[[], None]:
    """What the trainer does with its first batch: gradients, clipping, optimizer.

    Args:
        capturable: whether the optimizer can be part of a CUDA graph.
    """
    trainer = task.request.trainer
    setup = set_up(task.request, task.prepared, task.threads)
    batch = next(setup.train.batches(trainer.batch_size))
    smoothing = trainer.label_smoothing
    for group in setup.optimizer.param_groups:
        group["capturable"] = capturable

    def step() -> None:
        set_gradients(setup, smoothing, batch.starts, batch.labels, trainer.batch_size)
        clip_grad_norm_(setup.model.parameters(), trainer.gradient_clip_norm)
        setup.optimizer.step()

    return step


def repeat(step: Callable[[], None], times: int) -> float:
    """Seconds that so many calls take."""
    began = time.perf_counter()
    for _ in range(times):
        step()
    return time.perf_counter() - began
