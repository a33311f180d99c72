"""Trainings through the service: submitted all at once, read back one by one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

Settings = dict[str, str]
"""Fields of the request by path, as `trainwire train --set` takes them."""


@dataclass(frozen=True)
class Run:
    """One training to be done.

    Attributes:
        part: the question it belongs to.
        data: name of the data.
        model: name of the model.
        variant: what is different from other runs of the model; empty where nothing is.
        seed: of the training.
        dataset: resource name of the uploaded data.
        settings: the request.
    """

    part: str
    data: str
    model: str
    variant: str
    seed: int
    dataset: str
    settings: Settings


@dataclass(frozen=True)
class Record:
    """What came of a run; metrics are shares, not per cent.

    Attributes:
        test, validation: accuracy, balanced_accuracy, macro_f1, loss by name.
        interval: 90 % interval of the test's macro F1, where there is one.
        windows: how many trained, validated and tested.
        best_epoch, epochs: the one taken, and how many there were.
        seconds: of the training, epochs alone.
    """

    part: str
    data: str
    model: str
    variant: str
    seed: int
    test: dict[str, float]
    validation: dict[str, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    windows: tuple[int, int, int] = (0, 0, 0)
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0


def train_all(client: TrainingClient, runs: Iterable[Run]) -> Iterator[Record]:
    """Train all of them, as many at a time as the server does; records in the order of the runs.

    Raises:
        JobFailedError: one failed.
    """
    submitted = [(run, client.submit(make_request(run))) for run in runs]
    began = time.monotonic()
    for run, job in submitted:
        client.wait(job)
        record = _record(run, list(client.watch(job)))
        _report(record, time.monotonic() - began)
        yield record


def make_request(run: Run) -> training_pb2.TrainingRequest:
    """The request of a run."""
    request = training_pb2.TrainingRequest(dataset=run.dataset)
    for path, text in run.settings.items():
        contract.assign(request, path, text)
    request.trainer.seed = run.seed
    return request


def _record(run: Run, events: list[training_pb2.TrainingEvent]) -> Record:
    started = next(event.started for event in events if event.HasField("started"))
    done = events[-1].succeeded
    return Record(
        part=run.part,
        data=run.data,
        model=run.model,
        variant=run.variant,
        seed=run.seed,
        test=_metrics(done.test),
        validation=_metrics(done.validation),
        interval=_interval(done),
        windows=(started.train.windows, started.validation.windows, started.test.windows),
        best_epoch=done.best_epoch,
        epochs=done.epochs_run,
        seconds=round(sum(event.epoch.seconds for event in events if event.HasField("epoch")), 1),
    )


def _metrics(split: training_pb2.SplitMetrics) -> dict[str, float]:
    names = ("accuracy", "balanced_accuracy", "macro_f1", "loss")
    return {name: round(getattr(split, name), 5) for name in names}


def _interval(done: training_pb2.JobSucceeded) -> tuple[float, float] | None:
    for interval in done.test_intervals:
        if interval.metric == "macro_f1":
            return round(interval.lower, 5), round(interval.upper, 5)
    return None


def _report(record: Record, seconds: float) -> None:
    print(
        f"{seconds:6.0f} s  {record.part:10} {record.data:28} {record.model:16} "
        f"{record.variant:14} seed {record.seed}  accuracy {record.test['accuracy']:.3f}  "
        f"macro F1 {record.test['macro_f1']:.3f}  "
        f"best of {record.epochs}: {record.best_epoch}  {record.seconds:.0f} s",
        flush=True,
    )
