"""The client against a server that fails in ways a healthy one does not."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, empty_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

import trainwire_client
from trainwire.contract import Violation
from trainwire.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from trainwire_client import TrainingClient, errors
from trainwire_client.backoff import Backoff, Outage

JOB = "jobs/one"
FAST = Backoff(initial=0.001, maximum=0.002)


class FaultyServer(
    training_pb2_grpc.TrainingServiceServicer,
    dataset_pb2_grpc.DatasetServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """Plays one script entry for each call: an answer, or a function of request and context."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.requests: list[Any] = []
        self.address = ""

    def _next(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        answer = self.script.pop(0)
        return answer(request, context) if callable(answer) else answer

    Train = SubmitTraining = GetTraining = CancelTraining = _next
    ListTrainings = WatchTraining = GetModel = ListModels = DownloadModel = _next
    GetDataset = ListDatasets = _next
    DeleteTraining = DeleteDataset = DeleteModel = _next
    ResumeTraining = SetModelAlias = _next

    def UploadDataset(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802
        return self._next(request_iterator, context)


@contextmanager
def _serve(server: FaultyServer) -> Iterator[TrainingClient]:
    grpc_server = grpc.server(futures.ThreadPoolExecutor(4))
    training_pb2_grpc.add_TrainingServiceServicer_to_server(server, grpc_server)
    dataset_pb2_grpc.add_DatasetServiceServicer_to_server(server, grpc_server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(server, grpc_server)
    server.address = f"127.0.0.1:{grpc_server.add_insecure_port('127.0.0.1:0')}"
    grpc_server.start()
    try:
        with TrainingClient(server.address, backoff=FAST, retry_for=5, reconnect_for=5) as client:
            yield client
    finally:
        grpc_server.stop(None).wait()


def _fail(code: grpc.StatusCode, text: str = "no") -> Callable[[Any, Any], Any]:
    return lambda _, context: context.abort(code, text)


def _fail_richly(
    code: int, reason: str, *violations: tuple[str, str], retry_after: float = 0
) -> Callable[[Any, Any], Any]:
    info = error_details_pb2.ErrorInfo(reason=reason, domain="trainwire")
    bad, retry = error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for field, description in violations:
        bad.field_violations.add(field=field, description=description)
    retry.retry_delay.FromNanoseconds(round(1e9 * retry_after))
    details = [any_pb2.Any() for _ in range(3)]
    for packed, detail in zip(details, (info, bad, retry), strict=True):
        packed.Pack(detail)
    status = status_pb2.Status(code=code, message="it is wrong", details=details)
    return lambda _, context: context.abort_with_status(rpc_status.to_status(status))


def _request() -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest(dataset="datasets/d")
    request.data.column.name = "label"
    return request


def _event(sequence: int, kind: str = "epoch") -> training_pb2.TrainingEvent:
    event = training_pb2.TrainingEvent(job=JOB, sequence=sequence)
    getattr(event, kind).SetInParent()
    return event


def _events(*sequences: int, terminal: bool = False) -> list[training_pb2.TrainingEvent]:
    events = [_event(sequence) for sequence in sequences]
    if terminal:
        events[-1] = _event(sequences[-1], "succeeded")
    return events


def _then_fail(
    code: grpc.StatusCode, events: list[training_pb2.TrainingEvent]
) -> Callable[[Any, Any], Iterator[training_pb2.TrainingEvent]]:
    def stream(_: Any, context: Any) -> Iterator[training_pb2.TrainingEvent]:
        yield from events
        context.abort(code, "broken off")

    return stream


def _job(state: training_pb2.JobState.ValueType, **fields: Any) -> training_pb2.TrainingJob:
    return training_pb2.TrainingJob(name=JOB, state=state, **fields)


RUNNING = _job(training_pb2.JOB_STATE_RUNNING, last_sequence=9)

# ------------------------------------------------------------------------ the table


def test_every_status_code_has_a_class() -> None:
    codes = {code for code, reason in errors.STATUS_CLASSES if not reason}
    assert codes == set(grpc.StatusCode) - {grpc.StatusCode.OK}


def test_a_reason_refines_the_class_of_its_code() -> None:
    for (code, reason), kind in errors.STATUS_CLASSES.items():
        assert issubclass(kind, errors.STATUS_CLASSES[code, ""]), (code, reason)


def test_every_exception_is_exported() -> None:
    kinds = {name for name in errors.__all__ if name.endswith("Error")}
    assert kinds <= set(trainwire_client.__all__)
    assert {kind.__name__ for kind in errors.STATUS_CLASSES.values()} <= kinds


@pytest.mark.parametrize("code", sorted(set(grpc.StatusCode) - {grpc.StatusCode.OK}, key=str))
def test_every_status_becomes_its_exception(code: grpc.StatusCode) -> None:
    server = FaultyServer(_fail(code, "for a reason"))
    kind = errors.STATUS_CLASSES[code, ""]
    with (
        _serve(server),
        TrainingClient(server.address, retry_for=0) as client,
        pytest.raises(kind, match="for a reason") as caught,
    ):
        client.get(JOB)
    assert caught.value.code is code


def test_details_are_decoded_and_readable() -> None:
    answer = _fail_richly(
        code_pb2.FAILED_PRECONDITION,
        "DATASET_UNSUITABLE",
        ("data.column.name", "no column 'x'"),
        ("data.windows.time_column", "no column 't'"),
    )
    with (
        _serve(FaultyServer(answer)) as client,
        pytest.raises(trainwire_client.DatasetUnsuitableError) as caught,
    ):
        client.submit(_request())
    assert caught.value.reason == "DATASET_UNSUITABLE"
    assert caught.value.violations[1] == Violation("data.windows.time_column", "no column 't'")
    assert str(caught.value).splitlines() == [
        "it is wrong",
        "  data.column.name: no column 'x'",
        "  data.windows.time_column: no column 't'",
    ]


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (code_pb2.RESOURCE_EXHAUSTED, "QUEUE_FULL", trainwire_client.QueueFullError),
        (code_pb2.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", trainwire_client.QuotaExceededError),
        (code_pb2.RESOURCE_EXHAUSTED, "STORAGE_FULL", trainwire_client.StorageFullError),
        (code_pb2.RESOURCE_EXHAUSTED, "", trainwire_client.ResourceExhaustedError),
        (code_pb2.FAILED_PRECONDITION, "JOB_NOT_RESUMABLE", trainwire_client.JobNotResumableError),
        (code_pb2.FAILED_PRECONDITION, "MODEL_IN_USE", trainwire_client.ModelInUseError),
    ],
)
def test_reasons_that_callers_tell_apart_have_classes(code: int, reason: str, kind: Any) -> None:
    server = FaultyServer(_fail_richly(code, reason))
    with _serve(server) as client, pytest.raises(kind) as caught:
        client.submit(_request())
    assert type(caught.value) is kind
    assert caught.value.reason == reason


def test_a_server_that_stops_says_when_it_wants_to_be_asked_again() -> None:
    stopping = _fail_richly(code_pb2.UNAVAILABLE, "SERVER_STOPPING", retry_after=2.5)
    server = FaultyServer(stopping)
    with (
        _serve(server),
        TrainingClient(server.address, retry_for=0) as client,
        pytest.raises(trainwire_client.UnavailableError) as caught,
    ):
        client.submit(_request())
    assert (caught.value.reason, caught.value.retry_delay) == ("SERVER_STOPPING", 2.5)


# ------------------------------------------------------------------------ unary calls


def test_violations_are_found_before_anything_is_sent() -> None:
    request = _request()
    request.trainer.epochs = 0
    request.model.dropout = 2
    server = FaultyServer()
    with _serve(server) as client, pytest.raises(trainwire_client.InvalidRequestError) as caught:
        client.train(request)
    assert {violation.field for violation in caught.value.violations} == {
        "trainer.epochs",
        "model.dropout",
    }
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert not server.requests


def test_submit_tries_again_with_the_same_request_id() -> None:
    unavailable = _fail(grpc.StatusCode.UNAVAILABLE)
    server, request = FaultyServer(unavailable, unavailable, RUNNING), _request()
    with _serve(server) as client:
        assert client.submit(request) == RUNNING
    assert len({sent.request_id for sent in server.requests}) == 1
    assert len(server.requests[0].request_id) == 32
    assert not request.HasField("request_id")


def test_a_request_id_of_the_caller_is_kept() -> None:
    server, request = FaultyServer(RUNNING), _request()
    request.request_id = "mine"
    with _serve(server) as client:
        client.submit(request)
    assert server.requests == [request]


def test_only_unavailable_is_tried_again() -> None:
    server = FaultyServer(_fail(grpc.StatusCode.INTERNAL), RUNNING)
    with _serve(server) as client, pytest.raises(trainwire_client.InternalError):
        client.get(JOB)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_named() -> None:
    with (
        TrainingClient("127.0.0.1:1", retry_for=0) as client,
        pytest.raises(trainwire_client.UnavailableError, match=r"127\.0\.0\.1:1"),
    ):
        client.info()


def test_a_call_that_hangs_ends_at_its_deadline() -> None:
    release = threading.Event()
    server = FaultyServer(lambda *_: release.wait() and RUNNING)
    with _serve(server), TrainingClient(server.address, timeout=0.05) as client:
        with pytest.raises(trainwire_client.DeadlineExceededError):
            client.get(JOB)
        release.set()


@pytest.mark.parametrize("job", [JOB, "one", training_pb2.TrainingJob(name=JOB)])
def test_a_job_goes_by_message_full_name_or_id(job: Any) -> None:
    server = FaultyServer(RUNNING, RUNNING)
    with _serve(server) as client:
        client.get(job)
        client.cancel(job)
    assert [request.name for request in server.requests] == [JOB, JOB]


@pytest.mark.parametrize("job", ["models/one", "", "jobs/", "jobs/a b", dataset_pb2.Dataset()])
def test_what_names_no_job_is_refused(job: Any) -> None:
    with TrainingClient("127.0.0.1:1", retry_for=0) as client:
        with pytest.raises(trainwire_client.InvalidRequestError, match="name"):
            client.get(job)
        with pytest.raises(trainwire_client.InvalidRequestError, match="name"):
            client.watch(job)


def test_list_goes_through_all_pages() -> None:
    jobs = [training_pb2.TrainingJob(name=f"jobs/{i}") for i in range(3)]
    server = FaultyServer(
        training_pb2.ListTrainingsResponse(jobs=jobs[:2], next_page_token="more"),
        training_pb2.ListTrainingsResponse(jobs=jobs[2:]),
    )
    with _serve(server) as client:
        assert list(client.list(page_size=2)) == jobs
    assert [request.page_token for request in server.requests] == ["", "more"]
    assert [request.page_size for request in server.requests] == [2, 2]


# ------------------------------------------------------------------------ watch


def _watched(server: FaultyServer, after: int = 0) -> list[int]:
    with _serve(server) as client:
        return [event.sequence for event in client.watch(JOB, after)]


def test_watch_goes_on_where_the_stream_broke() -> None:
    server = FaultyServer(
        _then_fail(grpc.StatusCode.UNAVAILABLE, _events(1, 2)),
        _fail(grpc.StatusCode.UNAVAILABLE),
        _then_fail(grpc.StatusCode.UNAVAILABLE, []),
        lambda *_: iter(_events(3, 4, terminal=True)),
    )
    assert _watched(server) == [1, 2, 3, 4]
    assert [request.after_sequence for request in server.requests] == [0, 2, 2, 2]


def test_train_submits_and_survives_reconnects() -> None:
    server = FaultyServer(
        RUNNING,
        _then_fail(grpc.StatusCode.UNAVAILABLE, _events(1)),
        lambda *_: iter(_events(2, terminal=True)),
    )
    with _serve(server) as client:
        assert [event.sequence for event in client.train(_request())] == [1, 2]


def test_watch_survives_the_death_of_the_server() -> None:
    dead = threading.Event()
    port = 0

    def start(server: FaultyServer) -> grpc.Server:
        nonlocal port
        started = grpc.server(futures.ThreadPoolExecutor(4))
        training_pb2_grpc.add_TrainingServiceServicer_to_server(server, started)
        port = started.add_insecure_port(f"127.0.0.1:{port}")
        started.start()
        return started

    def stream(*_: Any) -> Iterator[training_pb2.TrainingEvent]:
        yield from _events(1)
        dead.wait()

    first = FaultyServer(stream)
    running = start(first)
    with TrainingClient(f"127.0.0.1:{port}", backoff=FAST) as client:
        events = client.watch(JOB)
        assert next(events).sequence == 1
        stopped = running.stop(None)
        dead.set()
        stopped.wait()
        second = FaultyServer(lambda *_: iter(_events(2, terminal=True)))
        running = start(second)
        assert [event.sequence for event in events] == [2]
        running.stop(None).wait()
    assert second.requests[0].after_sequence == 1


def test_a_stream_that_ends_without_a_terminal_event_is_not_the_end() -> None:
    server = FaultyServer(
        lambda *_: iter(_events(1)), RUNNING, lambda *_: iter(_events(2, terminal=True))
    )
    assert _watched(server) == [1, 2]
    assert server.requests[2].after_sequence == 1


def test_an_outage_after_the_end_of_a_stream_is_one_of_the_watch() -> None:
    """`reconnect_for` limits it, not the `retry_for` of single calls."""
    server = FaultyServer(
        lambda *_: iter(_events(1)),
        _fail(grpc.StatusCode.UNAVAILABLE),
        _then_fail(grpc.StatusCode.UNAVAILABLE, []),
        lambda *_: iter(_events(2, terminal=True)),
    )
    with (
        _serve(server),
        TrainingClient(server.address, backoff=FAST, retry_for=0, reconnect_for=5) as client,
    ):
        assert [event.sequence for event in client.watch(JOB)] == [1, 2]
    assert [type(request).__name__ for request in server.requests] == [
        "WatchTrainingRequest",
        "GetTrainingRequest",
        "WatchTrainingRequest",
        "WatchTrainingRequest",
    ]


def test_a_job_whose_terminal_event_was_seen_before_has_nothing_to_watch() -> None:
    done = _job(training_pb2.JOB_STATE_SUCCEEDED, last_sequence=4)
    assert _watched(FaultyServer(lambda *_: iter([]), done), after=4) == []


def test_progress_never_moves_the_cursor() -> None:
    progress = _event(0, "progress")
    server = FaultyServer(
        _then_fail(grpc.StatusCode.UNAVAILABLE, [*_events(1, 2), progress, progress]),
        lambda *_: iter([progress, *_events(3, terminal=True)]),
    )
    assert _watched(server) == [1, 2, 0, 0, 0, 3]
    assert server.requests[1].after_sequence == 2


def test_duplicates_are_dropped_and_gaps_are_errors() -> None:
    server = FaultyServer(lambda *_: iter(_events(1, 1, 2, 1, 3, terminal=True)))
    assert _watched(server) == [1, 2, 3]
    gap = FaultyServer(lambda *_: iter(_events(1, 2, 4, terminal=True)))
    with pytest.raises(trainwire_client.DataLossError, match="event 4 came after event 2"):
        _watched(gap)
    late = FaultyServer(lambda *_: iter(_events(2, terminal=True)))
    with pytest.raises(trainwire_client.DataLossError, match="event 2 came after event 0"):
        _watched(late)


def test_nothing_is_read_after_the_terminal_event() -> None:
    server = FaultyServer(lambda *_: iter([*_events(1, terminal=True), *_events(2, 3)]))
    assert _watched(server) == [1]
    assert len(server.requests) == 1


def test_other_errors_end_the_watch() -> None:
    server = FaultyServer(_then_fail(grpc.StatusCode.OUT_OF_RANGE, _events(1)))
    with pytest.raises(trainwire_client.OutOfRangeError):
        _watched(server)


def test_watch_gives_up_and_says_where_it_was() -> None:
    server = FaultyServer(_then_fail(grpc.StatusCode.UNAVAILABLE, _events(1)))
    with (
        _serve(server),
        TrainingClient(server.address, reconnect_for=0) as client,
        pytest.raises(trainwire_client.UnavailableError) as caught,
    ):
        list(client.watch(JOB))
    assert "gave up after 0 s" in str(caught.value)
    assert "watch it again after event 1" in str(caught.value)


def test_leaving_the_loop_ends_the_stream() -> None:
    ended = threading.Event()

    def stream(_: Any, context: Any) -> Iterator[training_pb2.TrainingEvent]:
        context.add_callback(ended.set)
        yield from _events(1)
        ended.wait()

    with _serve(FaultyServer(stream)) as client:
        with closing(client.watch(JOB)) as events:  # type: ignore[type-var]
            next(events)
        assert ended.wait(5)


def test_wait_returns_the_job_or_raises_its_failure() -> None:
    failed = _job(training_pb2.JOB_STATE_FAILED)
    failed.failure.reason = training_pb2.FAILURE_REASON_EMPTY_SPLIT
    failed.failure.message = "no window to test on"
    failed.failure.field_violations.add(field="data.split", description="too small")
    ends = {
        training_pb2.JOB_STATE_SUCCEEDED: _job(training_pb2.JOB_STATE_SUCCEEDED, model="models/m"),
        training_pb2.JOB_STATE_CANCELLED: _job(training_pb2.JOB_STATE_CANCELLED),
        training_pb2.JOB_STATE_FAILED: failed,
    }
    script = [(lambda *_: iter(_events(1, terminal=True)), job) for job in ends.values()]
    with _serve(FaultyServer(*(answer for pair in script for answer in pair))) as client:
        assert client.wait(JOB).model == "models/m"
        with pytest.raises(trainwire_client.JobCancelledError):
            client.wait(JOB)
        with pytest.raises(trainwire_client.JobFailedError) as caught:
            client.wait(JOB)
    assert caught.value.reason == "EMPTY_SPLIT"
    assert str(caught.value) == (
        "jobs/one failed (EMPTY_SPLIT): no window to test on\n  data.split: too small"
    )


# ------------------------------------------------------------------------ backoff


def test_delays_grow_to_a_maximum_and_are_spread() -> None:
    delays = Backoff(initial=1, maximum=8, factor=2).delays()
    drawn = [next(delays) for _ in range(200)]
    for delay, ceiling in zip(drawn, [1, 2, 4, *[8] * 197], strict=True):
        assert ceiling / 2 <= delay <= ceiling
    assert len(set(drawn)) == 200


def test_an_outage_ends_at_its_limit_counted_from_the_first_failure() -> None:
    now = [1000.0]
    outage = Outage(Backoff(initial=1, maximum=4), limit=10, clock=lambda: now[0])
    now[0] += 100  # a long success is no outage
    assert outage.next_delay() is not None
    now[0] += 9.5
    last = outage.next_delay()
    assert last is not None
    assert last <= 0.5
    now[0] += 0.5
    assert outage.next_delay() is None
    outage.answered()
    slow = outage.next_delay()
    assert slow is not None
    assert slow >= 2  # answers do not bring the short delays back
    outage.end()
    quick = outage.next_delay()
    assert quick is not None
    assert quick <= 1


@pytest.mark.parametrize(("hint", "least", "most"), [(0, 0.5, 1), (2, 2.5, 3), (60, 4, 4)])
def test_the_first_wait_is_as_long_as_the_server_said_within_the_maximum(
    hint: float, least: float, most: float
) -> None:
    outage = Outage(Backoff(initial=1, maximum=4), limit=100)
    delay = outage.delay_after(errors.UnavailableError("stopping", retry_delay=hint))
    assert least <= delay <= most


def test_no_hint_goes_beyond_the_time_to_give_up() -> None:
    outage = Outage(Backoff(initial=1, maximum=40), limit=5, clock=lambda: 0.0)
    assert outage.next_delay(hint=30) == 5


# ------------------------------------------------------------------------ resume


def test_resume_sends_what_is_to_be_different_and_nothing_else() -> None:
    server = FaultyServer(RUNNING)
    with _serve(server) as client:
        assert client.resume("one", epochs=300) == RUNNING
    (sent,) = server.requests
    assert sent.name == JOB
    assert len(sent.changes.request_id) == 32
    expected = training_pb2.TrainingRequest(request_id=sent.changes.request_id)
    expected.trainer.epochs = 300
    assert sent.changes == expected


def test_resume_tries_again_with_the_same_request_id() -> None:
    unavailable = _fail(grpc.StatusCode.UNAVAILABLE)
    server, changes = FaultyServer(unavailable, unavailable, RUNNING), _changes()
    with _serve(server) as client:
        client.resume(RUNNING, changes=changes)
    assert len({sent.changes.request_id for sent in server.requests}) == 1
    assert server.requests[0].changes.request_id
    assert changes == _changes()


def test_a_request_id_among_the_changes_is_kept() -> None:
    server, changes = FaultyServer(RUNNING), _changes()
    changes.request_id = "mine"
    with _serve(server) as client:
        client.resume(JOB, changes=changes, epochs=7)
    (sent,) = server.requests
    changes.trainer.epochs = 7
    assert sent.changes == changes


def _changes() -> training_pb2.TrainingRequest:
    return training_pb2.TrainingRequest(display_name="longer", labels={"team": "a"})


def test_what_is_wrong_with_changes_is_told_before_they_are_sent() -> None:
    server, changes = FaultyServer(), _changes()
    changes.trainer.epochs = 0
    with _serve(server) as client:
        for wrong, field in (
            ({"changes": changes}, "changes.trainer.epochs"),
            ({"changes": changes, "epochs": 9}, "changes.trainer.epochs"),
            ({"epochs": 100_001}, "changes.trainer.epochs"),
        ):
            with pytest.raises(errors.InvalidRequestError) as caught:
                client.resume(JOB, **wrong)
            assert [violation.field for violation in caught.value.violations] == [field]
        with pytest.raises(errors.InvalidRequestError, match="name"):
            client.resume("models/m")
    assert server.requests == []


def test_resume_raises_what_the_server_says() -> None:
    fixed = ("changes.trainer.learning_rate", "cannot be changed")
    refused = _fail_richly(code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", fixed)
    late = _fail_richly(code_pb2.FAILED_PRECONDITION, "JOB_NOT_RESUMABLE")
    with _serve(FaultyServer(refused, late)) as client:
        with pytest.raises(errors.InvalidRequestError) as caught:
            client.resume(JOB)
        assert caught.value.violations == (Violation(*fixed),)
        with pytest.raises(errors.JobNotResumableError):
            client.resume(JOB)


# ------------------------------------------------------------------------ aliases

MODEL = model_pb2.Model(name="models/m", aliases=["production"])


@pytest.mark.parametrize("model", [MODEL, "models/m", "m"])
def test_an_alias_is_set_for_a_model(model: Any) -> None:
    server = FaultyServer(MODEL)
    with _serve(server) as client:
        assert client.set_alias("production", model) == MODEL
    assert server.requests == [model_pb2.SetModelAliasRequest(alias="production", name="models/m")]


def test_an_alias_is_removed() -> None:
    server = FaultyServer(MODEL)
    with _serve(server) as client:
        client.remove_alias("production")
    assert server.requests == [model_pb2.SetModelAliasRequest(alias="production")]
    assert not server.requests[0].HasField("name")


def test_an_alias_that_a_lost_try_removed_is_removed() -> None:
    gone = _fail(grpc.StatusCode.NOT_FOUND)
    with _serve(FaultyServer(_fail(grpc.StatusCode.UNAVAILABLE), gone)) as client:
        client.remove_alias("production")
    with _serve(FaultyServer(gone)) as client, pytest.raises(errors.NotFoundError):
        client.remove_alias("production")


@pytest.mark.parametrize("alias", ["", "Production", "models/production", "1st", 64 * "a"])
def test_what_is_no_alias_is_refused_before_it_is_sent(alias: str) -> None:
    server = FaultyServer()
    with _serve(server) as client:
        for wrong in (lambda: client.set_alias(alias, "m"), lambda: client.remove_alias(alias)):
            with pytest.raises(errors.InvalidRequestError) as caught:
                wrong()
            assert [violation.field for violation in caught.value.violations] == ["alias"]
    assert server.requests == []


@pytest.mark.parametrize("name", ["production", "models/production"])
def test_a_model_goes_by_alias_and_is_downloaded_by_its_own_name(name: str, tmp_path: Path) -> None:
    server = FaultyServer(MODEL, lambda *_: iter(()))
    with _serve(server) as client:
        client.download(name, tmp_path)
    assert server.requests == [
        model_pb2.GetModelRequest(name="models/production"),
        model_pb2.DownloadModelRequest(name="models/m"),
    ]


# ------------------------------------------------------------------------ validate, list, delete


def test_validate_asks_without_training_and_leaves_the_request_alone() -> None:
    server, request = FaultyServer(_fail(grpc.StatusCode.UNAVAILABLE), RUNNING), _request()
    with _serve(server) as client:
        client.validate(request)
    assert [sent.validate_only for sent in server.requests] == [True, True]
    assert request == _request()


def test_what_makes_no_job_cannot_be_watched() -> None:
    server, request = FaultyServer(), _request()
    request.validate_only = True
    with _serve(server) as client, pytest.raises(errors.InvalidRequestError) as caught:
        client.train(request)
    assert [violation.field for violation in caught.value.violations] == ["validate_only"]
    assert server.requests == []


def test_list_sends_its_filters_with_every_page() -> None:
    page = training_pb2.ListTrainingsResponse(jobs=[RUNNING], next_page_token="next")
    server = FaultyServer(page, training_pb2.ListTrainingsResponse())
    with _serve(server) as client:
        assert list(client.list(states=[training_pb2.JOB_STATE_RUNNING], labels={"a": "b"})) == [
            RUNNING
        ]
    for request in server.requests:
        assert list(request.states) == [training_pb2.JOB_STATE_RUNNING]
        assert dict(request.labels) == {"a": "b"}


@pytest.mark.parametrize(
    ("resource", "request_type"),
    [
        (RUNNING, training_pb2.DeleteTrainingRequest),
        ("jobs/one", training_pb2.DeleteTrainingRequest),
        (dataset_pb2.Dataset(name="datasets/d"), dataset_pb2.DeleteDatasetRequest),
        ("models/m", model_pb2.DeleteModelRequest),
    ],
)
def test_delete_goes_by_message_or_full_name(resource: Any, request_type: Any) -> None:
    server = FaultyServer(empty_pb2.Empty())
    with _serve(server) as client:
        client.delete(resource)
    (sent,) = server.requests
    assert sent == request_type(name=getattr(resource, "name", resource))


@pytest.mark.parametrize("resource", ["one", "", "jobs/", "other/one", training_pb2.TrainingJob()])
def test_what_names_nothing_is_not_deleted(resource: Any) -> None:
    server = FaultyServer()
    with _serve(server) as client, pytest.raises(errors.InvalidRequestError) as caught:
        client.delete(resource)
    assert [violation.field for violation in caught.value.violations] == ["name"]
    assert server.requests == []


def test_what_a_lost_try_deleted_is_deleted() -> None:
    gone = _fail(grpc.StatusCode.NOT_FOUND)
    with _serve(FaultyServer(_fail(grpc.StatusCode.UNAVAILABLE), gone)) as client:
        client.delete(JOB)
    with _serve(FaultyServer(gone)) as client, pytest.raises(errors.NotFoundError):
        client.delete(JOB)


# ------------------------------------------------------------------------ upload


def test_upload_sends_the_header_then_all_bytes() -> None:
    received: list[dataset_pb2.UploadDatasetRequest] = []

    def accept(messages: Any, _: Any) -> dataset_pb2.Dataset:
        received.extend(messages)
        return dataset_pb2.Dataset(name="datasets/d")

    progress: list[tuple[int, int]] = []
    with _serve(FaultyServer(accept)) as client:
        sent = client.upload(
            {"a": np.arange(300_000)}, on_progress=lambda *step: progress.append(step)
        )
    data = b"".join(message.chunk.data for message in received[1:])
    header = received[0].header
    assert sent.name == "datasets/d"
    assert header.format == dataset_pb2.DATASET_FORMAT_ARROW
    assert header.size_bytes == len(data) > 2 * 2**20
    assert header.sha256 == hashlib.sha256(data).hexdigest()
    assert progress[-1] == (len(data), len(data))


def test_upload_sends_a_file_as_it_is(tmp_path: Path) -> None:
    received: list[dataset_pb2.UploadDatasetRequest] = []

    def accept(messages: Any, _: Any) -> dataset_pb2.Dataset:
        received.extend(messages)
        return dataset_pb2.Dataset(name="datasets/d")

    path = tmp_path / "prices.csv"
    path.write_bytes(b"close\n" + b"1.25\n" * 300_000)
    with _serve(FaultyServer(accept)) as client:
        client.upload(path)
    header, *chunks = received
    assert header.header.format == dataset_pb2.DATASET_FORMAT_CSV
    assert b"".join(message.chunk.data for message in chunks) == path.read_bytes()


def test_upload_accepts_an_answer_to_the_header_alone() -> None:
    def known(messages: Any, _: Any) -> dataset_pb2.Dataset:
        return dataset_pb2.Dataset(name="datasets/d", sha256=next(messages).header.sha256)

    with _serve(FaultyServer(known)) as client:
        assert len(client.upload({"a": np.arange(3_000_000)}).sha256) == 64


def test_upload_starts_anew_after_unavailable() -> None:
    def accept(messages: Any, _: Any) -> dataset_pb2.Dataset:
        first, *chunks = messages
        size = sum(len(message.chunk.data) for message in chunks)
        assert size == first.header.size_bytes
        return dataset_pb2.Dataset(name="datasets/d", size_bytes=size)

    server = FaultyServer(_fail(grpc.StatusCode.UNAVAILABLE), accept)
    with _serve(server) as client:
        assert client.upload({"a": np.arange(500_000)}).size_bytes > 4_000_000


# ------------------------------------------------------------------------ download

FILES = {"model.safetensors": b"weights" * 1000, "request.json": b"{}", "empty": b""}


def _file(name: str, data: bytes) -> model_pb2.ModelFile:
    digest = hashlib.sha256(data).hexdigest()
    return model_pb2.ModelFile(name=name, size_bytes=len(data), sha256=digest)


def _model(files: dict[str, bytes]) -> model_pb2.Model:
    described = [_file(name, data) for name, data in files.items()]
    return model_pb2.Model(name="models/m", files=described)


def _messages(files: dict[str, bytes]) -> Iterator[model_pb2.DownloadModelResponse]:
    for name, data in files.items():
        yield model_pb2.DownloadModelResponse(file=_file(name, data))
        for start in range(0, len(data), 999):
            chunk = model_pb2.ModelChunk(data=data[start : start + 999])
            yield model_pb2.DownloadModelResponse(chunk=chunk)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_download_writes_every_file(tmp_path: Path) -> None:
    server = FaultyServer(_model(FILES), lambda *_: _messages(FILES))
    with _serve(server) as client:
        assert client.download("m", tmp_path / "new" / "m") == tmp_path / "new" / "m"
    assert _content(tmp_path / "new" / "m") == FILES


def test_download_tries_again_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    def broken(_: Any, context: Any) -> Iterator[model_pb2.DownloadModelResponse]:
        messages = _messages(FILES)
        yield next(messages)
        yield next(messages)
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with _serve(FaultyServer(_model(FILES), broken, lambda *_: _messages(FILES))) as client:
        client.download("models/m", tmp_path)
    assert _content(tmp_path) == FILES


def test_download_overwrites_only_when_told(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("mine")
    server = FaultyServer(_model(FILES), _model(FILES), lambda *_: _messages(FILES))
    with _serve(server) as client:
        with pytest.raises(FileExistsError, match=r"request\.json"):
            client.download("m", tmp_path)
        assert _content(tmp_path) == {"request.json": b"mine"}
        client.download("m", tmp_path, overwrite=True)
    assert _content(tmp_path) == FILES


def _damaged() -> Iterator[model_pb2.DownloadModelResponse]:
    yield model_pb2.DownloadModelResponse(file=_file("a", b"right"))
    yield model_pb2.DownloadModelResponse(chunk=model_pb2.ModelChunk(data=b"wrong"))


def _cut_short() -> Iterator[model_pb2.DownloadModelResponse]:
    yield model_pb2.DownloadModelResponse(file=_file("a", b"right"))
    yield model_pb2.DownloadModelResponse(chunk=model_pb2.ModelChunk(data=b"rig"))


def _headless() -> Iterator[model_pb2.DownloadModelResponse]:
    yield model_pb2.DownloadModelResponse(chunk=model_pb2.ModelChunk(data=b"right"))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (_damaged, "another SHA-256"),
        (_cut_short, "a has 3 bytes; announced: 5"),
        (_headless, "bytes of no file"),
        (lambda: _messages({"b": b"right"}), "ended without a"),
        (lambda: _messages({"../a": b"right"}), "a plain name"),
    ],
)
def test_a_download_that_is_not_what_was_announced_leaves_no_file(
    tmp_path: Path, messages: Any, words: str
) -> None:
    server = FaultyServer(_model({"a": b"right"}), lambda *_: messages())
    with _serve(server) as client, pytest.raises(trainwire_client.DataLossError, match=words):
        client.download("m", tmp_path)
    assert _content(tmp_path) == {}


@pytest.mark.parametrize("name", ["../x", "a/b", "a\\b", "..", "", "/etc/x", "c:x"])
def test_file_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    server = FaultyServer(_model({name: b""}))
    with _serve(server) as client, pytest.raises(trainwire_client.DataLossError, match="plain"):
        client.download("m", tmp_path)
    assert len(server.requests) == 1


# ------------------------------------------------------------------------ imports


def test_the_client_is_light() -> None:
    heavy = ["torch", "numpy", "pyarrow", "rich", "typer", "pandas", "safetensors"]
    code = (
        "import sys, trainwire_client; trainwire_client.TrainingClient('127.0.0.1:1').close();"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "[]\n"
