"""What the events of a job have told so far."""

from __future__ import annotations

from trainwire.v1 import training_pb2
from trainwire_client.report import short_name

__all__ = ["History"]

_RECENT = 10


class History:
    """Collects the events of one job.

    Attributes:
        job: the job as it was when the watch began.
        started: what the training process said at its start, if it has started.
        epochs: the epochs done, in order.
        progress: the heartbeat of the epoch that is running, if there was one.
        resumed: the last time that training went on from a checkpoint, if it did.
        warnings: the warnings, in order.
        end: the terminal event, if it has come.
    """

    def __init__(self, job: training_pb2.TrainingJob) -> None:
        self.job = job
        self.queue_position = job.queue_position
        self.started: training_pb2.JobStarted | None = None
        self.epochs: list[training_pb2.EpochCompleted] = []
        self.progress: training_pb2.EpochProgress | None = None
        self.resumed: training_pb2.TrainingEvent | None = None
        self.warnings: list[training_pb2.JobWarning] = []
        self.end: training_pb2.TrainingEvent | None = None
        self._first = self._last = 0.0

    def add(self, event: training_pb2.TrainingEvent) -> None:
        """Take note of one event."""
        kind = event.WhichOneof("event")
        self._last = max(self._last, event.time.ToNanoseconds() / 1e9)
        if kind == "queued":
            self.queue_position = event.queued.queue_position
        elif kind == "started":
            self.started, self._first = event.started, self._last
        elif kind == "epoch":
            self.epochs.append(event.epoch)
            self.progress = None
        elif kind == "progress":
            # Without steps it is a sign of life alone: the stream is there, nothing is new.
            self.progress = event.progress if event.progress.steps else self.progress
        elif kind == "warning":
            self.warnings.append(event.warning)
        elif kind == "resumed":
            self.resumed, self.progress = event, None
        elif kind is not None:  # a kind that only a newer server knows ends nothing
            self.end = event

    @property
    def state(self) -> str:
        """State of the job as far as the events tell, a lower-case word."""
        if self.end is not None:
            return str(self.end.WhichOneof("event"))
        if self.started is not None or self.epochs or self.progress is not None:
            return "running"
        return short_name(training_pb2.JobState, self.job.state).lower()

    @property
    def elapsed_seconds(self) -> float:
        """From the start of training to the last event, by the server's clock."""
        return self._last - self._first if self._first else 0.0

    @property
    def done(self) -> int:
        """Epochs done, those of the job that this one continues included."""
        resumed = self.resumed.resumed.epoch if self.resumed is not None else 0
        return max(self.epochs[-1].epoch if self.epochs else 0, resumed)

    @property
    def epoch_limit(self) -> int:
        """Epochs at most."""
        return self.epochs[-1].epochs if self.epochs else self.job.request.trainer.epochs

    @property
    def fraction_of_epoch(self) -> float:
        """How much of the running epoch is done, from 0 to 1."""
        if self.progress is None or not self.progress.steps:
            return 0.0
        return self.progress.step / self.progress.steps

    @property
    def best(self) -> training_pb2.EpochCompleted | None:
        """The best epoch so far."""
        return next((epoch for epoch in reversed(self.epochs) if epoch.is_best), None)

    def seconds_left(self) -> float | None:
        """Until the last epoch at the pace of the recent ones; None before the first is done.

        Early stopping may end the job before.
        """
        recent = [epoch.seconds for epoch in self.epochs[-_RECENT:]]
        if not recent:
            return None
        left = self.epoch_limit - self.done - self.fraction_of_epoch
        return max(left, 0.0) * sum(recent) / len(recent)
