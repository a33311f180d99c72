"""TrainingService over the wire."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pytest
from google.protobuf import json_format

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient

Columns = dict[str, Any]
RequestFor = Callable[..., training_pb2.TrainingRequest]
Call = Callable[[training_pb2.TrainingRequest], Any]
Refusal = Callable[[Callable[[], Any]], Any]

UNKNOWN_FIELD_BYTES = bytes([0x80, 0x4B, 0x01])
"""Field number 1200, a varint, value 1."""


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> training_pb2_grpc.TrainingServiceStub:
    return training_pb2_grpc.TrainingServiceStub(channel)


@pytest.fixture(params=["SubmitTraining", "Train"])
def submit(request: pytest.FixtureRequest, stub: training_pb2_grpc.TrainingServiceStub) -> Call:
    """Submits a request as it is, over the unary and over the streaming call."""
    method: Call = getattr(stub, request.param)
    return method


def stored(
    events: Iterator[training_pb2.TrainingEvent],
) -> list[training_pb2.TrainingEvent]:
    """All events but progress, which is not stored."""
    return [event for event in events if event.WhichOneof("event") != "progress"]


def kinds(events: list[training_pb2.TrainingEvent]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def test_train_streams_from_queued_to_succeeded(
    stub: training_pb2_grpc.TrainingServiceStub, request_for: RequestFor
) -> None:
    events = stored(stub.Train(request_for()))
    assert kinds(events) == ["queued", "started", "epoch", "epoch", "epoch", "succeeded"]
    assert [event.sequence for event in events] == list(range(1, 7))
    assert len({event.job for event in events}) == 1
    assert [event.attempt for event in events] == [0, 1, 1, 1, 1, 1]
    assert [event.epoch.epoch for event in events[2:5]] == [1, 2, 3]


# ------------------------------------------------------------------------ what is refused


def test_every_violation_comes_at_once_with_its_path(
    submit: Call, request_for: RequestFor, refusal: Refusal
) -> None:
    request = request_for(epochs=0, learning_rate=math.nan, label_smoothing=math.inf, seed=2**31)
    request.trainer.scheduler_type = 99  # type: ignore[assignment]
    request.trainer.precision = training_pb2.PRECISION_UNSPECIFIED
    request.trainer.MergeFromString(UNKNOWN_FIELD_BYTES)
    request.data.chronological.MergeFromString(UNKNOWN_FIELD_BYTES)
    request.data.chronological.train_fraction = 0.9
    request.data.chronological.validation_fraction = 0.5
    request.data.windows.feature_columns[:] = ["a", "a"]
    request.data.column.ClearField("name")
    request.model.hybrid_cnn_lstm.pool_size = 9
    request.labels["k" * 200] = "v"
    request.request_id = "no spaces"
    refused = refusal(lambda: submit(request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "INVALID_REQUEST"
    expected = {
        "trainer.1200": "unknown field number 1200 of trainwire.v1.TrainerParams",
        "data.chronological.1200": "unknown field number 1200",
        "trainer.epochs": "[1, 100000]",
        "trainer.learning_rate": "nan is not allowed; allowed: (0, 1)",
        "trainer.label_smoothing": "inf is not allowed; allowed: [0, 0.5]",
        "trainer.seed": "[0, 2147483647]",
        "trainer.scheduler_type": "99 is not a value of SchedulerType; allowed: SCHEDULER_TYPE_",
        "trainer.precision": "PRECISION_UNSPECIFIED is not a value of Precision",
        "data.chronological.train_fraction": "less than 1 together with",
        "data.windows.feature_columns[1]": "'a' is there twice",
        "data.column.name": "required",
        "model.hybrid_cnn_lstm.pool_size": "at most data.windows.sequence_length, which is 8",
        f"labels.{'k' * 40}": "at most 128 characters",
        "request_id": "'no spaces' is not allowed",
    }
    assert set(refused.fields) == set(expected)
    for path, words in expected.items():
        assert words in refused.fields[path]
    # The message is for people, and short; the details have them all.
    assert refused.message.startswith(
        f"data.chronological.1200: {expected['data.chronological.1200']}"
    )


def test_a_broken_request_is_refused_before_its_dataset_is_looked_for(
    submit: Call, request_for: RequestFor, refusal: Refusal
) -> None:
    request = request_for(epochs=0)
    request.dataset = "datasets/sha256-none"
    assert set(refusal(lambda: submit(request)).fields) == {"trainer.epochs"}


def test_a_missing_dataset_is_not_found_before_columns_are_looked_for(
    submit: Call, request_for: RequestFor, refusal: Refusal
) -> None:
    request = request_for()
    request.dataset = "datasets/sha256-none"
    request.data.column.name = "no such column"
    refused = refusal(lambda: submit(request))
    assert refused.code is grpc.StatusCode.NOT_FOUND
    assert "datasets/sha256-none" in refused.message
    assert set(refused.fields) == {"dataset"}


def with_values(columns: Columns, name: str, values: list[float]) -> Columns:
    """The columns with the first values of one replaced."""
    return {**columns, name: np.concatenate([values, columns[name][len(values) :]])}


def test_missing_columns_are_a_failed_precondition(
    submit: Call, request_for: RequestFor, refusal: Refusal
) -> None:
    request = request_for()
    request.data.windows.feature_columns[:] = ["a", "bb"]
    request.data.windows.time_column = "tme"
    request.data.column.name = "z"
    refused = refusal(lambda: submit(request))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "DATASET_UNSUITABLE"
    assert set(refused.fields) == {
        "data.windows.feature_columns",
        "data.windows.time_column",
        "data.column.name",
    }
    assert "no column 'tme' (did you mean 'time'?)" in refused.fields["data.windows.time_column"]


def unusable_tables() -> Iterator[Any]:
    nan, inf = [math.nan], [math.inf, -math.inf]
    yield pytest.param(
        lambda columns: with_values(columns, "a", nan),
        {"data.windows.feature_columns": "column 'a' has 1 NaN or infinite values"},
        id="NaN in a feature",
    )
    yield pytest.param(
        lambda columns: with_values(columns, "b", inf),
        {"data.windows.feature_columns": "column 'b' has 2 NaN or infinite values"},
        id="infinity in a feature",
    )
    yield pytest.param(
        lambda columns: {**columns, "y": columns["y"].astype(np.float64)},
        {"data.column.name": "column 'y' is FLOAT"},
        id="a label that is a real number",
    )
    yield pytest.param(
        lambda columns: {name: values[:0] for name, values in columns.items()},
        {"dataset": "has no rows"},
        id="no rows",
    )
    yield pytest.param(
        lambda columns: {name: values[:7] for name, values in columns.items()},
        {"data.windows.sequence_length": "a window takes 8 rows, but the dataset has 7"},
        id="fewer rows than a window",
    )


@pytest.mark.parametrize(("change", "fields"), list(unusable_tables()))
def test_what_the_profile_tells_is_a_failed_precondition(
    change: Callable[[Columns], Columns],
    fields: Mapping[str, str],
    submit: Call,
    client: TrainingClient,
    columns: Callable[..., Columns],
    small: RequestFor,
    refusal: Refusal,
) -> None:
    dataset = client.upload(change(columns()))
    refused = refusal(lambda: submit(small(dataset.name)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "DATASET_UNSUITABLE"
    assert set(refused.fields) == set(fields)
    assert all(words in refused.fields[path] for path, words in fields.items())


def test_nulls_are_a_failed_precondition(
    submit: Call,
    client: TrainingClient,
    columns: Callable[..., Columns],
    small: RequestFor,
    refusal: Refusal,
) -> None:
    labels = pa.array([None, *columns()["y"][1:]])
    dataset = client.upload(pa.table({**columns(), "y": labels}))
    refused = refusal(lambda: submit(small(dataset.name)))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "column 'y' has 1 missing values" in refused.fields["data.column.name"]


def test_a_gpu_that_is_not_there_is_a_failed_precondition(
    submit: Call, client: TrainingClient, request_for: RequestFor, refusal: Refusal
) -> None:
    if any(device.name.startswith("cuda") for device in client.info().devices):
        pytest.skip("this machine has a GPU")
    request = request_for()
    request.resources.device = training_pb2.DEVICE_CUDA
    refused = refusal(lambda: submit(request))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "DEVICE_UNAVAILABLE"
    assert refused.fields == {"resources.device": "allowed: DEVICE_AUTO, DEVICE_CPU"}


# ------------------------------------------------------------------------ what fails in the worker


def one_class(columns: Columns, request: training_pb2.TrainingRequest) -> Columns:
    return {**columns, "y": np.zeros_like(columns["y"])}


def short_group(columns: Columns, request: training_pb2.TrainingRequest) -> Columns:
    request.data.windows.group_column = "group"
    group = columns["group"].astype("<U5")
    group[10:15] = "short"
    return {**columns, "group": group}


def no_test_windows(columns: Columns, request: training_pb2.TrainingRequest) -> Columns:
    request.data.chronological.validation_fraction = 0.28
    return columns


def no_train_windows(columns: Columns, request: training_pb2.TrainingRequest) -> Columns:
    request.data.chronological.train_fraction = 0.01
    return columns


FAILURES = [
    (one_class, training_pb2.FAILURE_REASON_SINGLE_CLASS, "data.column.name"),
    (short_group, training_pb2.FAILURE_REASON_GROUP_TOO_SHORT, "data.windows.sequence_length"),
    (no_test_windows, training_pb2.FAILURE_REASON_EMPTY_SPLIT, "data.chronological"),
    (no_train_windows, training_pb2.FAILURE_REASON_EMPTY_SPLIT, "data.chronological"),
]


@pytest.mark.parametrize(("change", "reason", "field"), FAILURES)
def test_what_only_a_worker_sees_ends_the_job_with_a_reason(
    change: Callable[[Columns, training_pb2.TrainingRequest], Columns],
    reason: training_pb2.FailureReason.ValueType,
    field: str,
    submit: Call,
    client: TrainingClient,
    columns: Callable[..., Columns],
    small: RequestFor,
) -> None:
    request = small("", epochs=1)
    request.dataset = client.upload(change(columns(), request)).name
    answer = submit(request)
    name = answer.name if isinstance(answer, training_pb2.TrainingJob) else next(answer).job
    last = stored(client.watch(name))[-1]
    if not isinstance(answer, training_pb2.TrainingJob):
        assert stored(answer)[-1] == last
    failure, job = last.failed.failure, client.get(name)
    assert failure.reason == reason
    assert job.state == training_pb2.JOB_STATE_FAILED
    assert job.failure == failure
    assert any(violation.field.startswith(field) for violation in failure.field_violations)
    assert not [trace for trace in ("Traceback", 'File "', "Error:") if trace in str(failure)]


# ------------------------------------------------------------------------ the job


def test_a_job_says_what_was_set_and_what_will_be_used(
    client: TrainingClient, dataset: dataset_pb2.Dataset, request_for: RequestFor
) -> None:
    request = request_for(weight_decay=0.0)
    request.display_name, request.labels["team"] = "my run", "quant"
    job = client.submit(request)
    set_fields = ["request_id", *contract.set_fields(request)]
    assert sorted(job.set_fields) == sorted(set_fields)
    assert "trainer.weight_decay" in job.set_fields
    assert "model.hybrid_cnn_lstm.attention_heads" in job.set_fields
    expected = contract.resolve(request)
    expected.request_id = job.request.request_id
    assert job.request == expected
    assert contract.differences(contract.resolve(job.request), job.request) == []
    assert job.request.trainer.HasField("weight_decay")
    assert job.request.data.chronological.embargo_rows == 8
    assert job.request_digest == contract.request_digest(request)
    assert job.dataset_digest == dataset.sha256 == dataset.name.removeprefix("datasets/sha256-")
    assert job.contract_version == contract.contract_version()
    assert (job.display_name, dict(job.labels)) == ("my run", {"team": "quant"})
    assert job.progress.epochs == 3


def test_a_finished_job_has_its_times_its_progress_and_its_model(
    client: TrainingClient, request_for: RequestFor
) -> None:
    job = client.submit(request_for())
    events = stored(client.watch(job))
    done = client.get(job)
    assert done.state == training_pb2.JOB_STATE_SUCCEEDED
    assert done.last_sequence == len(events)
    assert done.attempt == 1
    assert done.queue_position == 0
    assert done.progress.epoch == 3
    best = next(event.epoch for event in reversed(events) if event.epoch.is_best)
    assert done.progress.best_epoch == best.epoch == events[-1].succeeded.best_epoch
    assert done.progress.best_validation == best.validation == events[-1].succeeded.validation
    assert done.model == events[-1].succeeded.model
    assert events[1].started.request == done.request
    assert not done.HasField("failure")
    times = (done.create_time, done.start_time, done.end_time)
    assert [time.ToNanoseconds() for time in times] == sorted(t.ToNanoseconds() for t in times)
    assert done.update_time == done.end_time == events[-1].time


def test_fields_without_effect_are_warnings(
    client: TrainingClient, request_for: RequestFor
) -> None:
    request = request_for(scheduler_type=training_pb2.SCHEDULER_TYPE_CONSTANT, scheduler_t_0=3)
    request.balancing.use_focal_loss = False
    request.balancing.focal_gamma = 1.0
    job = client.submit(request)
    assert {warning.reason for warning in job.warnings} == {
        training_pb2.WARNING_REASON_FIELD_WITHOUT_EFFECT
    }
    assert {warning.field for warning in job.warnings} == {
        "trainer.scheduler_t_0",
        "balancing.focal_gamma",
    }
    events = stored(client.watch(job))
    assert [event.warning for event in events[1:3]] == list(job.warnings)


# ------------------------------------------------------------------------ idempotency


def test_the_same_request_id_is_the_same_job(
    stub: training_pb2_grpc.TrainingServiceStub, request_for: RequestFor
) -> None:
    request = request_for(epochs=1)
    request.request_id = uuid.uuid4().hex
    first = stub.SubmitTraining(request)
    events = stored(stub.Train(request))
    assert {event.job for event in events} == {first.name}
    assert kinds(events)[-1] == "succeeded"
    again = stub.SubmitTraining(request)
    assert again == stub.GetTraining(training_pb2.GetTrainingRequest(name=first.name))


def test_without_a_request_id_every_request_is_a_job_of_its_own(
    stub: training_pb2_grpc.TrainingServiceStub, request_for: RequestFor
) -> None:
    request = request_for(epochs=1)
    assert stub.SubmitTraining(request).name != stub.SubmitTraining(request).name


def test_twenty_calls_at_once_with_four_ids_are_four_jobs(
    stub: training_pb2_grpc.TrainingServiceStub, request_for: RequestFor
) -> None:
    requests = [request_for(epochs=1) for _ in range(4)]
    for request in requests:
        request.request_id = uuid.uuid4().hex
    calls = [stub.SubmitTraining.future(request) for request in requests for _ in range(5)]
    jobs = [call.result() for call in calls]
    assert len({job.name for job in jobs}) == 4
    assert all(job.name == jobs[i - i % 5].name for i, job in enumerate(jobs))


def test_a_request_id_with_another_request_already_exists(
    submit: Call,
    stub: training_pb2_grpc.TrainingServiceStub,
    request_for: RequestFor,
    refusal: Refusal,
) -> None:
    request = request_for(epochs=1)
    request.request_id = uuid.uuid4().hex
    job = stub.SubmitTraining(request)
    request.trainer.epochs = 2
    request.balancing.focal_gamma = 2.5
    refused = refusal(lambda: submit(request))
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS
    assert refused.reason == "REQUEST_ID_REUSED"
    # A default that is written out is another request too: `set_fields` would differ.
    assert set(refused.fields) == {"trainer.epochs", "balancing.focal_gamma"}
    assert job.name in refused.message


def test_calls_that_are_given_up_leave_no_job_behind_that_never_runs(
    client: TrainingClient,
    stub: training_pb2_grpc.TrainingServiceStub,
    request_for: RequestFor,
    endless_job: training_pb2.TrainingJob,
) -> None:
    requests = [request_for(epochs=1) for _ in range(24)]
    for i, request in enumerate(requests):
        request.request_id = uuid.uuid4().hex
        call = stub.SubmitTraining.future(request, timeout=0.001 + 0.0005 * i)
        call.exception()
    jobs = [stub.SubmitTraining(request) for request in requests]
    assert len({job.name for job in jobs}) == len(jobs)
    assert sorted(client.get(job).queue_position for job in jobs) == list(range(1, len(jobs) + 1))
    for job in jobs:
        client.cancel(job)
        assert kinds(stored(client.watch(job)))[-1] == "cancelled"


# ------------------------------------------------------------------------ lists


def test_jobs_are_listed_page_by_page_most_recently_updated_first(
    client: TrainingClient, request_for: RequestFor
) -> None:
    names = [client.wait(client.submit(request_for(epochs=1))).name for _ in range(3)]
    listed = list(client.list(page_size=2))
    assert [job.name for job in listed[:3]] == names[::-1]
    assert len({job.name for job in listed}) == len(listed)
    assert listed == list(client.list(page_size=1000))
    assert listed[0] == client.get(names[-1])
    times = [job.update_time.ToNanoseconds() for job in listed]
    assert times == sorted(times, reverse=True)


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "\u0661", "9" * 201])
def test_a_page_token_of_another_make_is_invalid(
    token: str, stub: training_pb2_grpc.TrainingServiceStub, refusal: Refusal
) -> None:
    request = training_pb2.ListTrainingsRequest(page_token=token)
    refused = refusal(lambda: stub.ListTrainings(request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.fields) == {"page_token"}


@pytest.mark.parametrize("size", [0, 1001])
def test_a_page_size_out_of_range_is_invalid(
    size: int, stub: training_pb2_grpc.TrainingServiceStub, refusal: Refusal
) -> None:
    request = training_pb2.ListTrainingsRequest(page_size=size)
    refused = refusal(lambda: stub.ListTrainings(request))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "[1, 1000]" in refused.fields["page_size"]


# ------------------------------------------------------------------------ watching


def test_watchers_from_the_start_and_from_the_middle_see_the_same_events(
    client: TrainingClient, request_for: RequestFor
) -> None:
    job = client.submit(request_for(epochs=40, early_stopping_patience=0))
    with ThreadPoolExecutor(3) as threads:
        starters = [threads.submit(lambda: stored(client.watch(job))) for _ in range(2)]
        next(event for event in client.watch(job) if event.sequence == 6)
        assert client.get(job).state == training_pb2.JOB_STATE_RUNNING
        joiner = threads.submit(lambda: stored(client.watch(job, after_sequence=4)))
        first, second, joined = (future.result() for future in (*starters, joiner))
    assert [event.sequence for event in first] == list(range(1, 44))
    assert kinds(first) == ["queued", "started", *["epoch"] * 40, "succeeded"]
    assert second == first
    assert joined == first[4:]
    assert stored(client.watch(job)) == first


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_a_watch_continues_after_the_sequence_it_names(
    after: int, client: TrainingClient, finished: training_pb2.TrainingJob
) -> None:
    sequences = [event.sequence for event in client.watch(finished, after_sequence=after)]
    assert sequences == list(range(after + 1, finished.last_sequence + 1))


@pytest.fixture(scope="module")
def finished(
    client: TrainingClient, dataset: dataset_pb2.Dataset, small: RequestFor
) -> training_pb2.TrainingJob:
    return client.wait(client.submit(small(dataset.name)))


def test_a_watch_after_the_terminal_event_is_empty(
    stub: training_pb2_grpc.TrainingServiceStub, finished: training_pb2.TrainingJob
) -> None:
    request = training_pb2.WatchTrainingRequest(
        name=finished.name, after_sequence=finished.last_sequence
    )
    assert list(stub.WatchTraining(request)) == []


def test_a_watch_beyond_the_log_is_out_of_range(
    stub: training_pb2_grpc.TrainingServiceStub,
    finished: training_pb2.TrainingJob,
    refusal: Refusal,
) -> None:
    request = training_pb2.WatchTrainingRequest(name=finished.name, after_sequence=7)
    refused = refusal(lambda: stub.WatchTraining(request))
    assert refused.code is grpc.StatusCode.OUT_OF_RANGE
    assert refused.reason == "SEQUENCE_OUT_OF_RANGE"
    assert refused.fields == {"after_sequence": "allowed: [0, 6]"}


# ------------------------------------------------------------------------ again


def test_a_second_training_from_the_bundles_request_is_the_same_to_the_bit(
    client: TrainingClient, finished: training_pb2.TrainingJob, tmp_path: Path
) -> None:
    first = client.download(finished.model, tmp_path / "first")
    request = training_pb2.TrainingRequest()
    json_format.Parse((first / "request.json").read_text(encoding="utf-8"), request)
    request.ClearField("request_id")
    again = client.wait(client.submit(request))
    second = client.download(again.model, tmp_path / "second")
    assert again.name != finished.name
    assert again.request_digest == finished.request_digest
    for name in ("model.safetensors", "request.json", "preprocessing.json"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
