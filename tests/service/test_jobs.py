"""Several jobs at once, dry runs, deletion, filters: over the wire."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tests.conftest import Server

from trainwire import contract
from trainwire.v1 import (
    dataset_pb2,
    dataset_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)

Refusal = Callable[[Callable[[], Any]], Any]
Make = Callable[..., training_pb2.TrainingRequest]
SUCCEEDED = training_pb2.JOB_STATE_SUCCEEDED


@pytest.fixture
def service(channel: grpc.Channel) -> Any:
    return training_pb2_grpc.TrainingServiceStub(channel)


def watch(service: Any, name: str) -> list[training_pb2.TrainingEvent]:
    return list(service.WatchTraining(training_pb2.WatchTrainingRequest(name=name)))


def finish(service: Any, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
    name = service.SubmitTraining(request).name
    watch(service, name)
    job: training_pb2.TrainingJob = service.GetTraining(training_pb2.GetTrainingRequest(name=name))
    return job


# ------------------------------------------------------------------------ several at once


@pytest.fixture(scope="module")
def two_slots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("slots"), "--max-concurrent-jobs", "2")
    yield server
    assert server.stop() == 0


@pytest.fixture
def on_two_slots(two_slots: Any, columns: Any, small: Make) -> Iterator[tuple[Any, Make]]:
    with two_slots.client() as client:
        dataset = client.upload(columns())
    with two_slots.channel() as channel:
        stub = training_pb2_grpc.TrainingServiceStub(channel)
        yield stub, lambda **trainer: small(dataset.name, **trainer)


@pytest.mark.slow
def test_two_slots_run_two_jobs_and_the_rest_by_priority(on_two_slots: tuple[Any, Make]) -> None:
    service, make = on_two_slots
    long = [
        service.SubmitTraining(make(epochs=100_000, early_stopping_patience=0)) for _ in range(2)
    ]
    for job in long:
        events = service.WatchTraining(training_pb2.WatchTrainingRequest(name=job.name))
        next(event for event in events if event.HasField("started"))
        events.cancel()
    waiting = []
    for priority in (0, 7, 7, -3):
        request = make()
        request.resources.priority = priority
        waiting.append(service.SubmitTraining(request))
    assert [job.queue_position for job in waiting] == [1, 1, 2, 4]
    positions = [get(service, job.name).queue_position for job in waiting]
    assert positions == [3, 1, 2, 4]
    service.CancelTraining(training_pb2.CancelTrainingRequest(name=long[0].name))
    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(lambda job: watch(service, job.name), waiting))
    began = [next(e for e in log if e.HasField("started")).time.ToNanoseconds() for log in logs]
    order = sorted(range(4), key=lambda i: began[i])
    assert order == [1, 2, 0, 3]
    # One slot, one after the other: each begins after the one before it has ended.
    ended = [log[-1].time.ToNanoseconds() for log in logs]
    assert all(ended[before] < began[after] for before, after in itertools.pairwise(order))
    service.CancelTraining(training_pb2.CancelTrainingRequest(name=long[1].name))


def get(service: Any, name: str) -> training_pb2.TrainingJob:
    job: training_pb2.TrainingJob = service.GetTraining(training_pb2.GetTrainingRequest(name=name))
    return job


@pytest.mark.slow
def test_two_jobs_train_at_the_same_time(on_two_slots: tuple[Any, Make]) -> None:
    service, make = on_two_slots
    jobs = [service.SubmitTraining(make(epochs=40, seed=seed)) for seed in (1, 2, 3)]
    with ThreadPoolExecutor() as pool:
        logs = list(pool.map(lambda job: watch(service, job.name), jobs))
    began = [next(e for e in log if e.HasField("started")).time.ToNanoseconds() for log in logs]
    ended = [log[-1].time.ToNanoseconds() for log in logs]
    assert max(began[:2]) < min(ended[:2])
    assert began[2] > min(ended[:2])
    assert [log[-1].WhichOneof("event") for log in logs] == ["succeeded"] * 3


def test_a_hundred_submits_with_ten_ids_are_ten_jobs(
    service: Any, request_for: Make, endless_job: Any
) -> None:
    requests = []
    for i in range(100):
        requests.append(request_for())
        requests[-1].request_id = f"hundred-{i % 10}"
    with ThreadPoolExecutor(20) as pool:
        jobs = list(pool.map(service.SubmitTraining, requests))
    names = [job.name for job in jobs]
    assert len(set(names)) == 10
    assert all(names[i] == names[i % 10] for i in range(100))
    for name in set(names):
        service.CancelTraining(training_pb2.CancelTrainingRequest(name=name))


# ------------------------------------------------------------------------ dry runs


def test_a_dry_run_says_what_a_run_would_start_with(service: Any, request_for: Make) -> None:
    before = [job.name for job in service.ListTrainings(training_pb2.ListTrainingsRequest()).jobs]
    request = request_for()
    request.balancing.use_focal_loss = False
    request.balancing.focal_gamma = 1.0
    request.validate_only = True
    found = service.SubmitTraining(request)
    assert not found.name
    assert not found.state
    assert not found.HasField("create_time")
    assert found.plan.memory_estimate_bytes > 0
    assert [warning.field for warning in found.warnings] == ["balancing.focal_gamma"]
    request.validate_only = False
    events = watch(service, service.SubmitTraining(request).name)
    started = next(event.started for event in events if event.HasField("started"))
    assert contract.differences(found.plan.started, started) == ["request.validate_only"]
    after = [job.name for job in service.ListTrainings(training_pb2.ListTrainingsRequest()).jobs]
    assert set(after) - set(before) == {events[0].job}


def test_a_dry_run_says_why_a_run_would_fail(
    client: Any, service: Any, columns: Any, small: Make, refusal: Refusal
) -> None:
    one_class = columns() | {"y": columns()["y"] * 0}
    request = small(client.upload(one_class).name)
    request.validate_only = True
    seen = refusal(lambda: service.SubmitTraining(request))
    assert (seen.code, seen.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "SINGLE_CLASS")


def test_a_stream_takes_no_dry_run(service: Any, request_for: Make, refusal: Refusal) -> None:
    request = request_for()
    request.validate_only = True
    seen = refusal(lambda: service.Train(request))
    assert seen.code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(seen.fields) == ["validate_only"]


# ------------------------------------------------------------------------ deletion and filters


def test_job_model_and_dataset_go_one_by_one(
    server: Any,
    client: Any,
    channel: grpc.Channel,
    columns: Any,
    small: Make,
    service: Any,
    refusal: Refusal,
) -> None:
    dataset = client.upload(columns(seed=77))
    datasets = dataset_pb2_grpc.DatasetServiceStub(channel)
    models = model_pb2_grpc.ModelServiceStub(channel)
    job = finish(service, small(dataset.name))
    assert job.state == SUCCEEDED
    delete_dataset = dataset_pb2.DeleteDatasetRequest(name=dataset.name)
    seen = refusal(lambda: datasets.DeleteDataset(delete_dataset))
    assert (seen.code, seen.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DATASET_IN_USE")
    assert job.name in seen.message
    service.DeleteTraining(training_pb2.DeleteTrainingRequest(name=job.name))
    gone = refusal(lambda: get(service, job.name))
    assert gone.code == grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: watch(service, job.name)).code == grpc.StatusCode.NOT_FOUND
    assert models.GetModel(model_pb2.GetModelRequest(name=job.model)).job == job.name
    models.DeleteModel(model_pb2.DeleteModelRequest(name=job.model))
    no_model = refusal(lambda: models.GetModel(model_pb2.GetModelRequest(name=job.model)))
    assert no_model.code == grpc.StatusCode.NOT_FOUND
    datasets.DeleteDataset(delete_dataset)
    for name in (job.name, job.model, dataset.name):
        assert not (server.data_dir / name).exists()
    # It can be uploaded and trained on again.
    assert client.upload(columns(seed=77)).name == dataset.name
    assert finish(service, small(dataset.name)).state == SUCCEEDED


def test_a_job_that_has_not_ended_is_not_deleted(
    service: Any, endless_job: Any, refusal: Refusal
) -> None:
    name = getattr(endless_job, "name", endless_job)
    seen = refusal(lambda: service.DeleteTraining(training_pb2.DeleteTrainingRequest(name=name)))
    assert (seen.code, seen.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JOB_NOT_FINISHED")


def test_jobs_are_filtered_by_state_and_labels(service: Any, request_for: Make) -> None:
    made = {}
    for team, epochs in (("red", 1), ("blue", 1), ("red", 2)):
        request = request_for(epochs=epochs)
        request.labels.update({"team": team, "test": "filters"})
        made[finish(service, request).name] = team

    def listed(**filters: Any) -> set[str]:
        page = service.ListTrainings(training_pb2.ListTrainingsRequest(**filters))
        return {job.name for job in page.jobs}

    ours = {"test": "filters"}
    reds = {name for name, team in made.items() if team == "red"}
    assert listed(labels=ours) == set(made)
    assert listed(labels=ours | {"team": "red"}) == reds
    assert listed(labels=ours | {"team": "green"}) == set()
    assert listed(labels=ours, states=[SUCCEEDED]) == set(made)
    other = [training_pb2.JOB_STATE_FAILED, training_pb2.JOB_STATE_QUEUED]
    assert listed(labels=ours, states=other) == set()
    first = service.ListTrainings(training_pb2.ListTrainingsRequest(labels=ours, page_size=2))
    assert len(first.jobs) == 2
    assert listed(labels=ours, page_token=first.next_page_token) == set(made) - {
        job.name for job in first.jobs
    }
