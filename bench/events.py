"""What the events of a training tell of its speed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.loops import Run

from trainwire.v1 import training_pb2


@dataclass(frozen=True)
class Trained:
    """One of our own runs.

    Attributes:
        run: its speed and its final loss.
        seconds: of an epoch with its validation, mean of all epochs but the first.
    """

    run: Run
    seconds: float


def read_events(events: Iterable[training_pb2.TrainingEvent]) -> Trained:
    """Iterate over the events of a run as they come.

    Raises:
        RuntimeError: it did not succeed.
    """
    epochs, event = [], training_pb2.TrainingEvent()
    for event in events:
        if event.HasField("epoch"):
            epochs.append(event.epoch)
    if not event.HasField("succeeded"):
        raise RuntimeError(f"a training to be measured ended with {event}")
    later = epochs[1:]
    rate = len(later) / sum(1 / epoch.windows_per_second for epoch in later)
    seconds = sum(epoch.seconds for epoch in later) / len(later)
    return Trained(Run(rate, epochs[-1].validation.loss), seconds)
