"""The server dies just before or after a commit: whoever asks again gets what was done, once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import Work
from tests.faults.failing_server import Failure

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient

StartServer = Callable[..., Any]
STORE = "trainwire_server.jobs.store:Store"


def call_through_death(
    start: StartServer, server: Any, call: Callable[[TrainingClient], Any]
) -> Any:
    """The answer to a call that kills the server, and is tried again by the client that made it."""
    with TrainingClient(server.address, retry_for=60) as client, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(call, client)
        assert server.process.wait(60) == -signal.SIGKILL
        assert not answer.done()
        start(listen=server.address)
        return answer.result(60)


def endless(work: Work, request_id: str) -> training_pb2.TrainingRequest:
    """A request that does not end by itself."""
    request = training_pb2.TrainingRequest()
    request.CopyFrom(work.requests[0])
    request.request_id = request_id
    request.trainer.epochs = 100_000
    return request


def cancel(client: TrainingClient, job: training_pb2.TrainingJob) -> list[str | None]:
    """Cancel a job; the kinds of its events."""
    client.cancel(job)
    return [event.WhichOneof("event") for event in client.watch(job) if event.sequence]


@pytest.mark.parametrize("names_it", [True, False], ids=["own request_id", "filled in"])
def test_a_submit_that_is_repeated_gives_the_same_job(
    names_it: bool, start_failing: StartServer, work: Work
) -> None:
    server = start_failing(failures=[Failure(f"{STORE}.create_job")])
    request = endless(work, "again")
    if not names_it:
        request.ClearField("request_id")
    job = call_through_death(start_failing, server, lambda client: client.submit(request))
    with server.client() as client:
        assert [found.name for found in client.list()] == [job.name]
        if names_it:
            assert client.submit(request).name == job.name
        kinds = cancel(client, job)
        assert (kinds.count("queued"), kinds[-1]) == (1, "cancelled")


@pytest.mark.parametrize("is_running", [True, False], ids=["running", "queued"])
def test_a_cancel_that_is_repeated_cancels_once(
    is_running: bool, start_failing: StartServer, work: Work
) -> None:
    # The call that stores the cancel: of a running job the state, of a queued one the event.
    failure = Failure(f"{STORE}.save", event="cancelled")
    if is_running:
        failure = Failure("trainwire_server.jobs.manager:Manager._begin_cancel")
    server = start_failing(failures=[failure])
    with server.client() as client:
        first = client.submit(endless(work, "first"))
        next(event for event in client.watch(first) if event.HasField("epoch"))
        job = first if is_running else client.submit(endless(work, "second"))
    answer = call_through_death(start_failing, server, lambda client: client.cancel(job))
    assert answer.state == training_pb2.JOB_STATE_CANCELLED
    with server.client() as client:
        events = [event for event in client.watch(job) if event.sequence]
        kinds = [event.WhichOneof("event") for event in events]
        assert (kinds.count("cancelled"), kinds[-1]) == (1, "cancelled")
        assert client.cancel(job) == client.get(job) == answer
        if not is_running:
            assert client.get(first).state != training_pb2.JOB_STATE_CANCELLED
            cancel(client, first)


def test_a_deletion_that_is_repeated_is_no_error(start_failing: StartServer, work: Work) -> None:
    server = start_failing(failures=[Failure(f"{STORE}.delete_job")])
    with server.client() as client:
        job, kept = (client.submit(endless(work, name)) for name in ("gone", "kept"))
        next(event for event in client.watch(job) if event.HasField("epoch"))
        cancel(client, job)
        cancel(client, kept)
    call_through_death(start_failing, server, lambda client: client.delete(job))
    with server.client() as client:
        assert [found.name for found in client.list()] == [kept.name]
        # The request_id is free again, and means a new job.
        again = client.submit(endless(work, "gone"))
        assert again.name != job.name
        cancel(client, again)


def test_an_upload_that_is_repeated_gives_one_dataset(
    start_failing: StartServer, columns: Callable[..., Any], work: Work
) -> None:
    server = start_failing(failures=[Failure(f"{STORE}.add_dataset")])
    other = columns(seed=1)
    dataset = call_through_death(start_failing, server, lambda client: client.upload(other))
    with server.client() as client:
        assert sorted(found.name for found in client.datasets()) == sorted(
            [dataset.name, work.requests[0].dataset]
        )
        assert client.upload(other) == dataset
        request = endless(work, "of-the-new-dataset")
        request.dataset, request.trainer.epochs = dataset.name, 1
        assert client.wait(client.submit(request)).state == training_pb2.JOB_STATE_SUCCEEDED


def test_a_resume_that_is_repeated_gives_the_same_job(
    start_failing: StartServer, work: Work
) -> None:
    # The second job that is made: the first is the one that is resumed.
    server = start_failing(failures=[Failure(f"{STORE}.create_job", count=2)])
    with server.client() as client:
        old = client.submit(endless(work, "old"))
        epochs = (event for event in client.watch(old) if event.HasField("epoch"))
        assert [next(epochs).epoch.epoch for _ in range(3)] == [1, 2, 3]
        cancel(client, old)
        log = list(client.watch(old))
    changes = training_pb2.TrainingRequest(request_id="new")
    job = call_through_death(
        start_failing, server, lambda client: client.resume(old, changes=changes)
    )
    assert job.resumed_from == old.name
    with server.client() as client:
        assert sorted(found.name for found in client.list()) == sorted([old.name, job.name])
        assert client.resume(old, changes=changes).name == job.name
        assert list(client.watch(old)) == log
        next(event for event in client.watch(job) if event.HasField("epoch"))
        kinds = cancel(client, job)
        assert (kinds.count("queued"), kinds[-1]) == (1, "cancelled")


def test_a_job_whose_end_was_not_stored_goes_on_from_its_last_epoch(
    start_failing: StartServer, work: Work, tmp_path: Path
) -> None:
    server = start_failing(failures=[Failure(f"{STORE}.save", event="succeeded", when="before")])
    with server.client() as client:
        job = client.submit(work.named(1)[0])
    ended = call_through_death(start_failing, server, lambda client: client.wait(job))
    assert (ended.state, ended.attempt) == (training_pb2.JOB_STATE_SUCCEEDED, 2)
    with server.client() as client:
        resumed = [event.resumed for event in client.watch(job) if event.HasField("resumed")]
        assert [event.epoch for event in resumed] == [len(work.epochs[0])]
        assert work.differences(client, ended, tmp_path) == []
