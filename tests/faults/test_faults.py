"""Processes die, clients leave, servers stop: what was promised holds."""

from __future__ import annotations

import asyncio
import os
import select
import signal
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
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from trainwire.v1 import dataset_pb2, training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.store import Store

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


def epochs_of(events: list[training_pb2.TrainingEvent]) -> list[int]:
    return [event.epoch.epoch for event in events if event.HasField("epoch")]


def weights_of(client: TrainingClient, model: str, folder: Path) -> bytes:
    return (client.download(model, folder) / "model.safetensors").read_bytes()


def test_a_job_whose_worker_is_killed_ends_as_if_nothing_had_happened(
    server: Any, client: TrainingClient, request_for: RequestFor, tmp_path: Path
) -> None:
    request = request_for(epochs=60, early_stopping_patience=0)
    undisturbed = client.wait(client.submit(request))
    job = client.submit(request)
    waiting = client.submit(request_for())
    kills = 0
    events = []
    for event in client.watch(job):
        events += [event] if event.sequence else []
        # Twice, some epochs after the start and after the first recovery.
        if event.HasField("epoch") and event.epoch.epoch in (5, 25) and kills < 2:
            os.kill(server.children()[0], signal.SIGKILL)
            kills += 1
    assert kinds(events).count("resumed") == 2
    assert [event.attempt for event in events if event.HasField("resumed")] == [2, 3]
    # From checkpoints, not from the start: at most the two newest epochs are run again.
    first, second = (event.resumed.epoch for event in events if event.HasField("resumed"))
    assert (first >= 3, second >= 23) == (True, True)
    assert epochs_of(events) == list(range(1, 61))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert kinds(events)[-1] == "succeeded"
    assert events[-1].succeeded.test == client.model(undisturbed.model).test
    finished = client.get(job)
    assert finished.attempt == 3
    disturbed = weights_of(client, finished.model, tmp_path / "disturbed")
    assert disturbed == weights_of(client, undisturbed.model, tmp_path / "undisturbed")
    assert client.wait(waiting).state == training_pb2.JOB_STATE_SUCCEEDED
    assert client.info().running_jobs == 0


def test_a_job_that_loses_process_after_process_fails_alone(
    start_server: StartServer, columns: Callable[..., dict[str, Any]], small: RequestFor
) -> None:
    server = start_server()
    with server.client() as client:
        # An epoch of seconds: every process is lost in its first one.
        long = small(client.upload(columns(60_000)).name, batch_size=4)
        job = client.submit(long)
        waiting = client.submit(small(client.upload(columns()).name))
        events = []
        for event in client.watch(job):
            events += [event] if event.sequence else []
            if event.HasField("started") or event.HasField("resumed"):
                os.kill(server.children()[0], signal.SIGKILL)
        assert kinds(events) == ["queued", "started", "resumed", "resumed", "failed"]
        assert [event.resumed.epoch for event in events[2:4]] == [0, 0]
        failure = events[-1].failed.failure
        assert failure.reason == training_pb2.FAILURE_REASON_WORKER_LOST
        assert failure.message.startswith("3 training processes in a row were lost")
        assert "killed by signal 9" in failure.message
        assert "trainer.batch_size" in failure.message
        assert client.get(job).failure == failure
        assert client.wait(waiting).state == training_pb2.JOB_STATE_SUCCEEDED


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
        seen = epochs_of(stored_so_far(client, running))[-1]
        next(e for e in client.watch(running) if e.HasField("epoch") and e.epoch.epoch > seen)
        client.cancel(running)
        assert client.wait(queued[1]).progress.epoch == 3
        watched_running, watched_queued = (watch.result(30) for watch in watches)

        assert client.get(finished) == finished
        assert list(client.watch(finished)) == events
        assert list(client.datasets()) == [dataset]
        assert client.model(model) == model
        assert client.submit(request) == finished
        for file in client.download(model, tmp_path / "after").iterdir():
            assert file.read_bytes() == (bundle / file.name).read_bytes()

        resumed = client.get(running)
        assert resumed.state == training_pb2.JOB_STATE_CANCELLED
        assert resumed.attempt == 2
        assert watched_running == stored(client.watch(running))
        assert kinds(watched_running).count("started") == 1
        assert kinds(watched_running).count("resumed") == 1
        assert kinds(watched_running)[-1] == "cancelled"
        assert [event.sequence for event in watched_running] == list(
            range(1, resumed.last_sequence + 1)
        )
        assert epochs_of(watched_running) == list(range(1, resumed.progress.epoch + 1))

        assert kinds(watched_queued) == ["queued", "started", "epoch", "epoch", "succeeded"]
        assert [event.sequence for event in watched_queued] == [1, 2, 3, 4, 5]
        assert watched_queued == stored(client.watch(queued[0]))
        assert client.info().queued_jobs == 0


def stored_so_far(
    client: TrainingClient, job: training_pb2.TrainingJob
) -> list[training_pb2.TrainingEvent]:
    """The log as it is now; the job goes on."""
    last = client.get(job).last_sequence
    events = []
    for event in client.watch(job):
        events += [event] if event.sequence else []
        if event.sequence == last:
            break
    return events


def test_a_waiting_job_of_a_newer_server_is_not_trained_on_half_of_its_request(
    start_server: Callable[..., Any], columns: Any, small: Any
) -> None:
    server = start_server()
    with server.client() as client:
        dataset = client.upload(columns())
        endless = small(dataset.name, epochs=100_000, early_stopping_patience=0)
        first_epoch(client, client.submit(endless))
        waiting = client.submit(small(dataset.name))
    server.kill()
    asyncio.run(add_unknown_field(server.data_dir / "trainwire.db", waiting.name))
    with start_server().client() as client:
        events = stored(client.watch(waiting.name))
    assert kinds(events) == ["queued", "failed"]
    failure = events[-1].failed.failure
    assert failure.reason == training_pb2.FAILURE_REASON_INVALID_REQUEST
    assert failure.message.startswith("trainer.9999: unknown field number 9999")


async def add_unknown_field(database: Path, name: str) -> None:
    """Make of a job's request what a newer server could have stored."""
    store = Store(database)
    job = await store.job(name)
    assert job is not None
    job.request.trainer.MergeFromString(bytes([0xF8, 0xF0, 0x04, 0x01]))
    await store.save(job)
    await store.close()


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


# ------------------------------------------------------------------------ drain


@pytest.fixture
def slow_job(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> Callable[[str], tuple[Any, training_pb2.TrainingJob]]:
    """Starts a server and a job on it, a second into an epoch that takes two or more."""

    def begin(grace: str, rows: int = 6000, epoch: int = 2) -> tuple[Any, training_pb2.TrainingJob]:
        server = start_server("--grace", grace)
        with server.client() as client:
            dataset = client.upload(columns(rows)).name
            job = client.submit(small(dataset, epochs=50, batch_size=4, early_stopping_patience=0))
            next(event for event in client.watch(job) if event.progress.epoch == epoch)
        return server, job

    return begin


def resumed_from(server: Any, job: training_pb2.TrainingJob) -> int:
    """The epoch from which a job goes on under the next server."""
    with server.client() as client:
        events = (event for event in client.watch(job) if event.HasField("resumed"))
        epoch = next(events).resumed.epoch
        client.cancel(job)
        seen = stored(client.watch(job))
    assert epochs_of(seen) == list(range(1, len(epochs_of(seen)) + 1))
    assert kinds(seen).count("resumed") == 1
    return int(epoch)


def test_a_stopping_server_finishes_the_epoch_it_is_in(
    slow_job: Callable[..., Any], start_server: StartServer
) -> None:
    server, job = slow_job("60")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    # The one that was running is done and kept, and no other was begun.
    assert resumed_from(start_server(), job) == 2


def test_a_stopping_server_drops_an_epoch_that_takes_longer_than_its_grace(
    slow_job: Callable[..., Any], start_server: StartServer
) -> None:
    server, job = slow_job("0.2")
    server.process.send_signal(signal.SIGTERM)
    # Not the grace alone: processes are ended and files closed.
    assert server.process.wait(10) == 0
    assert resumed_from(start_server(), job) == 1


def test_a_second_signal_ends_a_stopping_server_at_once(
    slow_job: Callable[..., Any], start_server: StartServer
) -> None:
    server, job = slow_job("600", rows=20_000, epoch=1)
    (worker,) = server.children()
    server.process.send_signal(signal.SIGTERM)
    server.wait_for_log("server.stopping")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(2) == 128 + signal.SIGTERM
    assert wait_for_exit([worker], 5) == []
    assert resumed_from(start_server(), job) == 0


def test_a_stopping_server_says_so_and_takes_no_more(slow_job: Callable[..., Any]) -> None:
    server, job = slow_job("600", rows=20_000, epoch=1)
    with server.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        trainings = training_pb2_grpc.TrainingServiceStub(channel)
        statuses = health.Watch(health_pb2.HealthCheckRequest())
        assert next(statuses).status == health_pb2.HealthCheckResponse.SERVING
        watching: Any = trainings.WatchTraining(training_pb2.WatchTrainingRequest(name=job.name))
        next(watching)
        server.process.send_signal(signal.SIGTERM)
        assert next(statuses).status == health_pb2.HealthCheckResponse.NOT_SERVING
        calls = {
            "watch": lambda: list(watching),
            "submit": lambda: trainings.SubmitTraining(job.request),
            "train": lambda: list(trainings.Train(job.request)),
            "resume": lambda: trainings.ResumeTraining(
                training_pb2.ResumeTrainingRequest(name=job.name)
            ),
        }
        found = {name: refused_for_now(call) for name, call in calls.items()}
        assert {name: delay > 0 for name, delay in found.items()} == dict.fromkeys(calls, True)
        # What is only read is still answered.
        asked = training_pb2.GetTrainingRequest(name=job.name)
        assert trainings.GetTraining(asked).state == training_pb2.JOB_STATE_RUNNING
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10)


def refused_for_now(call: Callable[[], Any]) -> float:
    """Seconds after which a call that is UNAVAILABLE is to be tried again; 0 if it does not say."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    retry, status = error_details_pb2.RetryInfo(), rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(retry) for detail in status.details)
    return float(retry.retry_delay.ToTimedelta().total_seconds())


def test_a_watch_of_the_health_does_not_hold_a_stopping_server_up(
    start_server: StartServer,
) -> None:
    server = start_server("--grace", "600")
    with server.channel() as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        statuses = health.Watch(health_pb2.HealthCheckRequest())
        next(statuses)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert [status.status for status in statuses] == [
            health_pb2.HealthCheckResponse.NOT_SERVING
        ]


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


def test_a_job_can_be_cancelled_after_the_fork_server_has_died(
    start_server: StartServer, columns: Callable[..., dict[str, Any]], small: RequestFor
) -> None:
    server = start_server("--grace", "2")
    with server.client() as client:
        dataset = client.upload(columns())
        job = client.submit(small(dataset.name, epochs=100_000, early_stopping_patience=0))
        first_epoch(client, job)
        (worker,) = server.children()
        for helper in server.helpers():
            os.kill(helper, signal.SIGKILL)
        client.cancel(job)
        assert kinds(stored(client.watch(job)))[-1] == "cancelled"
        assert wait_for_exit([worker], 0) == []
        # A new fork server is started for the next one.
        request = small(dataset.name)
        assert client.wait(client.submit(request)).state == training_pb2.JOB_STATE_SUCCEEDED


def test_a_long_log_is_sent_to_its_end(start_server: StartServer, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    job = asyncio.run(write_long_log(data_dir / "trainwire.db", epochs=700))
    with start_server(data_dir=data_dir).channel() as channel:
        service = training_pb2_grpc.TrainingServiceStub(channel)
        for after in (0, 188, 700):
            request = training_pb2.WatchTrainingRequest(name=job.name, after_sequence=after)
            events = list(service.WatchTraining(request))
            assert [event.sequence for event in events] == list(range(after + 1, 703))
            assert kinds(events)[-1] == "cancelled"


async def write_long_log(database: Path, epochs: int) -> training_pb2.TrainingJob:
    """A finished job with so many epochs, as a server would have stored it."""
    request = training_pb2.TrainingRequest(dataset="datasets/d")
    request.data.column.name = "y"
    store = Store(database)
    job = jobs.new_job(request, dataset_pb2.Dataset(sha256="d"), jobs.now())
    job, queued = jobs.apply(job, jobs.first_events(request, 1)[0], jobs.now())
    await store.create_job(job, request, [queued])
    for number in range(1, epochs + 1):
        done = training_pb2.EpochCompleted(epoch=number, epochs=epochs)
        job, event = jobs.apply(job, training_pb2.TrainingEvent(epoch=done), jobs.now())
        await store.save(job, event)
    job, event = jobs.apply(job, jobs.cancelled(job), jobs.now())
    await store.save(job, event)
    await store.close()
    return job
