"""Where a watcher is in the log of a job, and when it asks again.

Nothing here sends or waits, so that it serves the blocking and the asyncio client alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import grpc

from trainwire.v1 import training_pb2
from trainwire_client import channel
from trainwire_client.backoff import Backoff, Outage
from trainwire_client.errors import DataLossError, TrainwireError, UnavailableError, unavailable

__all__ = ["TERMINAL_EVENTS", "TERMINAL_STATES", "Cursor"]

TERMINAL_EVENTS = ("succeeded", "failed", "cancelled")
TERMINAL_STATES = (
    training_pb2.JOB_STATE_SUCCEEDED,
    training_pb2.JOB_STATE_FAILED,
    training_pb2.JOB_STATE_CANCELLED,
)


class Cursor:
    """One watcher of one job.

    Args:
        request: the job and the last event already seen.
        target: the server, for messages.
        backoff: the waits between calls.
        reconnect_for: seconds without any success after which to give up.
        clock: seconds that never go back.

    Attributes:
        job: resource name of the job.
        sequence: number of the last event seen.
        finished: whether that was the terminal one.
    """

    def __init__(
        self,
        request: training_pb2.WatchTrainingRequest,
        target: str,
        backoff: Backoff,
        reconnect_for: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = request.name
        self.sequence = request.after_sequence
        self.finished = False
        self._target = target
        self._reconnect_for = reconnect_for
        self._outage = Outage(backoff, reconnect_for, clock)
        self._clock = clock
        self._connected = clock()

    def next_request(self) -> training_pb2.WatchTrainingRequest:
        """What to call `WatchTraining` with, now."""
        self._connected = self._clock()
        return training_pb2.WatchTrainingRequest(name=self.job, after_sequence=self.sequence)

    def accept(self, event: training_pb2.TrainingEvent) -> bool:
        """Whether the event is news; moves on to it.

        Raises:
            DataLossError: events before it are missing.
        """
        self._outage.end()
        if event.sequence == 0:  # not stored: progress, and what a newer server adds of the kind
            return True
        if event.sequence <= self.sequence:
            return False
        if event.sequence > self.sequence + 1:
            raise DataLossError(
                f"{event.job}: event {event.sequence} came after event {self.sequence}: "
                "events between the two are missing",
                grpc.StatusCode.DATA_LOSS,
            )
        self.sequence = event.sequence
        self.finished = event.WhichOneof("event") in TERMINAL_EVENTS
        return True

    def nothing_follows(self, job: training_pb2.TrainingJob) -> bool:
        """Whether the terminal event had been seen before the watch began."""
        return job.state in TERMINAL_STATES and job.last_sequence <= self.sequence

    def delay_after_end(self) -> float:
        """Seconds to wait after a stream that ended without a terminal event.

        Raises:
            UnavailableError: it is time to give up.
        """
        self._outage.answered()
        return self._delay(UnavailableError(f"the server ended the stream of {self.job}"))

    def delay_after_error(self, error: grpc.RpcError) -> float:
        """Seconds to wait after a stream that broke.

        Raises:
            TrainwireError: asking again would not help, or it is time to give up.
        """
        failure = unavailable(error, self._target)
        if self._clock() - self._connected > channel.ALIVE_SECONDS:
            self._outage.end()
        return self._delay(failure)

    def _delay(self, failure: TrainwireError) -> float:
        delay = self._outage.next_delay(failure.retry_delay)
        if delay is None:
            failure.message += (
                f"\ngave up after {self._reconnect_for:g} s without success; {self.job} may go "
                f"on: watch it again after event {self.sequence}"
            )
            raise failure
        return delay
