"""Processes die, clients leave, servers stop: what was promised holds."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import safetensors.numpy

from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient

RequestFor = Callable[..., training_pb2.TrainingRequest]
StartServer = Callable[..., Any]


def stored(events: Any) -> list[training_pb2.TrainingEvent]:
    """All events but progress, which is not stored."""
    return [event for event in events if event.WhichOneof("event") != "progress"]


def kinds(events: list[training_pb2.TrainingEvent]) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def first_epoch(client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    """Wait until the job has done an epoch."""
    next(event for event in client.watch(job) if event.HasField("epoch"))


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def wait_for_exit(pids: list[int], seconds: float) -> list[int]:
    """The processes that have not ended after this time."""
    deadline, left = time.monotonic() + seconds, []
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(handle, "rb"):
            ready, _, _ = select.select([handle], [], [], max(0, deadline - time.monotonic()))
        left += [] if ready else [pid]
    return left


@pytest.fixture
def stub(channel: grpc.Channel) -> training_pb2_grpc.TrainingServiceStub:
    return training_pb2_grpc.TrainingServiceStub(channel)


# ------------------------------------------------------------------------ workers


def test_a_killed_worker_fails_its_job_alone(
    server: Any,
    client: TrainingClient,
    request_for: RequestFor,
    endless_job: training_pb2.TrainingJob,
) -> None:
    waiting = client.submit(request_for())
    (worker,) = server.children()
    os.kill(worker, signal.SIGKILL)
    *_, last = events = stored(client.watch(endless_job))
    failure, job = last.failed.failure, client.get(endless_job)
    assert failure.reason == training_pb2.FAILURE_REASON_WORKER_LOST
    assert "killed by signal 9" in failure.message
    assert "submit the job again" in failure.message
    assert "trainer.batch_size" in failure.message
    assert (job.state, job.failure) == (training_pb2.JOB_STATE_FAILED, failure)
    assert job.last_sequence == last.sequence == len(events)
    assert job.model == ""
    assert client.wait(waiting).state == training_pb2.JOB_STATE_SUCCEEDED
    assert client.info().running_jobs == 0


# ------------------------------------------------------------------------ cancel


def test_a_queued_job_that_is_cancelled_never_starts(
    server: Any,
    client: TrainingClient,
    request_for: RequestFor,
    endless_job: training_pb2.TrainingJob,
) -> None:
    job, behind = client.submit(request_for()), client.submit(request_for(epochs=1))
    assert client.cancel(job).state == training_pb2.JOB_STATE_CANCELLED
    assert client.get(behind).queue_position == 1
    events = stored(client.watch(job))
    assert kinds(events) == ["queued", "cancelled"]
    assert events[-1].cancelled == training_pb2.JobCancelled()
    client.cancel(endless_job)
    assert client.wait(behind).state == training_pb2.JOB_STATE_SUCCEEDED
    job = client.get(job)
    assert (job.state, job.attempt) == (training_pb2.JOB_STATE_CANCELLED, 0)
    assert not job.HasField("start_time")
    started = {record["job"] for record in server.records if record["event"] == "job.started"}
    assert behind.name in started
    assert job.name not in started


def test_a_running_job_is_cancelled_when_its_process_is_gone(
    server: Any, client: TrainingClient, endless_job: training_pb2.TrainingJob
) -> None:
    (worker,) = server.children()
    assert client.cancel(endless_job).state != training_pb2.JOB_STATE_RUNNING
    client.cancel(endless_job)
    *_, last = events = stored(client.watch(endless_job))
    assert is_gone(worker)
    epochs = [event.epoch for event in events if event.HasField("epoch")]
    best = max(epoch.epoch for epoch in epochs if epoch.is_best)
    assert kinds(events) == ["queued", "started", *["epoch"] * len(epochs), "cancelled"]
    assert last.cancelled.epochs_run == len(epochs)
    assert last.cancelled.best_epoch == best
    job = client.get(endless_job)
    assert job.state == training_pb2.JOB_STATE_CANCELLED
    assert client.cancel(endless_job) == job == client.get(endless_job)
    weights = server.data_dir / endless_job.name / "best.safetensors"
    assert safetensors.numpy.load_file(weights)


def test_a_worker_that_does_not_heed_a_cancel_is_killed(
    server: Any, client: TrainingClient, endless_job: training_pb2.TrainingJob
) -> None:
    (worker,) = server.children()
    os.kill(worker, signal.SIGSTOP)
    assert client.cancel(endless_job).state == training_pb2.JOB_STATE_CANCELLING
    assert client.cancel(endless_job).state == training_pb2.JOB_STATE_CANCELLING
    assert not is_gone(worker)
    *_, last = client.watch(endless_job)
    assert is_gone(worker)
    assert last.HasField("cancelled")
    assert last.cancelled.epochs_run == client.get(endless_job).progress.epoch > 0


def test_cancel_leaves_a_finished_job_as_it_is(
    client: TrainingClient, request_for: RequestFor
) -> None:
    job = client.wait(client.submit(request_for(epochs=1)))
    assert client.cancel(job) == job == client.get(job)


# ------------------------------------------------------------------------ clients

KILLED_CLIENT = """
import sys
import grpc
from trainwire.v1 import training_pb2, training_pb2_grpc

request = training_pb2.TrainingRequest.FromString(bytes.fromhex(sys.argv[2]))
stub = training_pb2_grpc.TrainingServiceStub(grpc.insecure_channel(sys.argv[1]))
for event in stub.Train(request):
    if event.HasField("epoch"):
        print(event.job, flush=True)
"""


def test_the_job_of_a_client_that_is_killed_goes_on(
    server: Any, client: TrainingClient, request_for: RequestFor
) -> None:
    request = request_for(epochs=60, early_stopping_patience=0)
    arguments = [server.address, request.SerializeToString().hex()]
    command = [sys.executable, "-c", KILLED_CLIENT, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        process.kill()
    assert client.get(name).state == training_pb2.JOB_STATE_RUNNING
    assert client.wait(name).progress.epoch == 60


def test_the_job_of_a_stream_that_is_cancelled_goes_on(
    client: TrainingClient,
    stub: training_pb2_grpc.TrainingServiceStub,
    request_for: RequestFor,
) -> None:
    call: Any = stub.Train(request_for(epochs=40, early_stopping_patience=0))
    event = next(event for event in call if event.HasField("epoch"))
    call.cancel()
    assert client.get(event.job).state == training_pb2.JOB_STATE_RUNNING
    assert client.wait(event.job).progress.epoch == 40


def test_a_passed_deadline_ends_the_call_and_not_the_job(
    client: TrainingClient,
    stub: training_pb2_grpc.TrainingServiceStub,
    request_for: RequestFor,
    endless_job: training_pb2.TrainingJob,
) -> None:
    call: Any = stub.Train(request_for(epochs=2), timeout=0.5)
    job = next(call).job
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.get(job).state == training_pb2.JOB_STATE_QUEUED
    client.cancel(endless_job)
    assert client.wait(job).progress.epoch == 2


# ------------------------------------------------------------------------ servers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_loses_nothing(
    number: signal.Signals,
    start_server: StartServer,
    columns: Callable[..., dict[str, Any]],
    small: RequestFor,
    tmp_path: Path,
) -> None:
    first = start_server()
    with first.client() as client, ThreadPoolExecutor(2) as threads:
        dataset = client.upload(columns())
        request = small(dataset.name, epochs=2)
        request.request_id = "finished"
        finished = client.wait(client.submit(request))
        events = list(client.watch(finished, after_sequence=0))
        model, bundle = client.model(finished.model), tmp_path / "before"
        client.download(model, bundle)

        running = client.submit(small(dataset.name, epochs=100_000, early_stopping_patience=0))
        queued = [client.submit(small(dataset.name, epochs=epochs)) for epochs in (2, 3)]
        watches = [
            threads.submit(lambda job=job: stored(client.watch(job)))  # type: ignore[misc]
            for job in (running, queued[0])
        ]
        first_epoch(client, running)
        (worker,) = first.children()
        helpers = first.helpers()

        first.process.send_signal(number)
        status = first.process.wait(10)
        assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert wait_for_exit([worker, *helpers], 5) == []

        second = start_server(listen=first.address)
        assert second.address == first.address
        assert client.wait(queued[1]).progress.epoch == 3
        watched_running, watched_queued = (watch.result(30) for watch in watches)

        assert client.get(finished) == finished
        assert list(client.watch(finished)) == events
        assert list(client.datasets()) == [dataset]
        assert client.model(model) == model
        assert client.submit(request) == finished
        for file in client.download(model, tmp_path / "after").iterdir():
            assert file.read_bytes() == (bundle / file.name).read_bytes()

        interrupted = client.get(running)
        assert interrupted.state == training_pb2.JOB_STATE_FAILED
        assert interrupted.failure.reason == training_pb2.FAILURE_REASON_INTERRUPTED
        assert "submit it again" in interrupted.failure.message
        assert watched_running == stored(client.watch(running))
        assert watched_running[-1].failed.failure == interrupted.failure
        terminal = ("succeeded", "failed", "cancelled")
        assert sum(kind in terminal for kind in kinds(watched_running)) == 1
        assert [event.sequence for event in watched_running] == list(
            range(1, interrupted.last_sequence + 1)
        )
        assert interrupted.progress.epoch == kinds(watched_running).count("epoch") > 0

        assert kinds(watched_queued) == ["queued", "started", "epoch", "epoch", "succeeded"]
        assert [event.sequence for event in watched_queued] == [1, 2, 3, 4, 5]
        assert watched_queued == stored(client.watch(queued[0]))
        assert client.info().queued_jobs == 0


def test_a_waiting_job_of_a_newer_server_is_not_trained_on_half_of_its_request(
    start_server: Callable[..., Any], columns: Any, small: Any
) -> None:
    server = start_server()
    with server.client() as client:
        dataset = client.upload(columns())
        first_epoch(client, client.submit(small(dataset.name, epochs=100_000)))
        waiting = client.submit(small(dataset.name))
    server.kill()
    database = server.data_dir / "trainwire.db"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        waiting.request.trainer.MergeFromString(bytes([0xF8, 0xF0, 0x04, 0x01]))
        row = (waiting.SerializeToString(), waiting.name.partition("/")[2])
        connection.execute("UPDATE jobs SET body = ? WHERE id = ?", row)
    with start_server().client() as client:
        events = stored(client.watch(waiting.name))
    assert kinds(events) == ["queued", "failed"]
    failure = events[-1].failed.failure
    assert failure.reason == training_pb2.FAILURE_REASON_INVALID_REQUEST
    assert failure.message.startswith("trainer.9999: unknown field number 9999")


def test_a_stopping_server_ends_watches_at_once(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    server = start_server("--grace", "60")
    with server.client() as client, server.channel() as channel:
        request = small(client.upload(columns()).name, epochs=100_000, early_stopping_patience=0)
        call: Any = training_pb2_grpc.TrainingServiceStub(channel).Train(request)
        next(event for event in call if event.HasField("epoch"))
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "watch" in error.details()
        assert server.process.wait(10) == 0


def refused_server(data_dir: Path, listen: str, log: Path) -> str:
    """What a server says that refuses to start."""
    flags = ["--data-dir", str(data_dir), "--listen", listen]
    command = [sys.executable, "-m", "trainwire_server", *flags]
    # To a file: its fork server, which still imports torch, would keep a pipe open for seconds.
    with log.open("w") as stderr:
        assert subprocess.run(command, stderr=stderr, timeout=30, check=False).returncode == 1
    return log.read_text()


def test_a_second_server_on_the_data_directory_is_refused(
    server: Any, client: TrainingClient, tmp_path: Path
) -> None:
    said = refused_server(server.data_dir, "127.0.0.1:0", tmp_path / "log")
    assert said == f"trainwire-server: another server uses {server.data_dir}\n"
    assert client.info().executor == "local"


def test_a_second_server_on_the_port_is_refused(
    server: Any, client: TrainingClient, tmp_path: Path
) -> None:
    said = refused_server(tmp_path / "data", server.address, tmp_path / "log")
    assert f"trainwire-server: cannot listen on {server.address}" in said
    assert "Traceback" not in said
    assert client.info().executor == "local"
