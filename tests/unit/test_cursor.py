"""Where a watcher is and when it asks again, with a clock of its own."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from trainwire.v1 import training_pb2
from trainwire_client.backoff import Backoff
from trainwire_client.channel import ALIVE_SECONDS
from trainwire_client.cursor import Cursor
from trainwire_client.errors import OutOfRangeError, UnavailableError

LIMIT = 10.0


class Broken(grpc.RpcError):
    """How a stream broke, with what the server said of when to try again."""

    def __init__(
        self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, retry_after: float = 0
    ) -> None:
        self._code = code
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(1e9 * retry_after))
        packed = any_pb2.Any()
        packed.Pack(retry)
        number = code_pb2.UNAVAILABLE
        status = status_pb2.Status(code=number, message=self.details(), details=[packed])
        self._trailers = rpc_status.to_status(status).trailing_metadata if retry_after else ()

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "broken off"

    def trailing_metadata(self) -> Any:
        return self._trailers


class Clock:
    """Seconds that pass when told."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cursor(clock: Clock) -> Cursor:
    request = training_pb2.WatchTrainingRequest(name="jobs/one", after_sequence=6)
    return Cursor(request, "server:1", Backoff(initial=1, maximum=8), LIMIT, clock)


def epoch(sequence: int) -> training_pb2.TrainingEvent:
    event = training_pb2.TrainingEvent(job="jobs/one", sequence=sequence)
    event.epoch.SetInParent()
    return event


def test_it_asks_for_what_follows_the_last_event(cursor: Cursor) -> None:
    assert cursor.accept(epoch(7))
    assert not cursor.accept(epoch(7))
    expected = training_pb2.WatchTrainingRequest(name="jobs/one", after_sequence=7)
    assert cursor.next_request() == expected


def test_it_gives_up_when_nothing_worked_for_long_enough(cursor: Cursor, clock: Clock) -> None:
    cursor.next_request()
    assert cursor.delay_after_error(Broken()) <= 1
    clock.now += LIMIT
    cursor.next_request()
    with pytest.raises(UnavailableError, match=r"gave up after 10 s .* after event 6"):
        cursor.delay_after_error(Broken())


def test_an_event_ends_an_outage(cursor: Cursor, clock: Clock) -> None:
    cursor.delay_after_error(Broken())
    clock.now += LIMIT
    cursor.accept(epoch(7))
    assert cursor.delay_after_error(Broken()) <= 1


def test_a_stream_that_stood_long_ends_an_outage_though_silent(
    cursor: Cursor, clock: Clock
) -> None:
    cursor.delay_after_error(Broken())
    cursor.next_request()
    clock.now += ALIVE_SECONDS + 1
    assert cursor.delay_after_error(Broken()) <= 1


def test_streams_that_end_are_asked_for_again_ever_more_slowly(
    cursor: Cursor, clock: Clock
) -> None:
    delays = []
    for _ in range(4):
        delays.append(cursor.delay_after_end())
        clock.now += LIMIT
    assert all(delay >= ceiling / 2 for delay, ceiling in zip(delays, (1, 2, 4, 8), strict=True))


def test_it_asks_again_after_the_time_that_the_server_named(cursor: Cursor) -> None:
    assert 2.5 + 0.5 <= cursor.delay_after_error(Broken(retry_after=2.5)) <= 2.5 + 1
    # It is gone then, and does not say any more when it will be back.
    assert 1 <= cursor.delay_after_error(Broken()) <= 2


def test_no_hint_makes_it_wait_longer_than_the_longest_delay(cursor: Cursor) -> None:
    assert cursor.delay_after_error(Broken(retry_after=3600)) == 8


def test_what_asking_again_cannot_mend_is_raised(cursor: Cursor) -> None:
    with pytest.raises(OutOfRangeError):
        cursor.delay_after_error(Broken(grpc.StatusCode.OUT_OF_RANGE))
