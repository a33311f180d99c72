"""Processes that stop, hang and wake up again: a job has one at a time, and loses nothing."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.conftest import IS_FULL, Work
from tests.faults.failing_server import Failure, overlaps
from tests.faults.recorder import History, Recorder, problems

from trainwire.v1 import training_pb2

StartServer = Callable[..., Any]

LEASE = 3.0
FLAGS = ("--lease", str(LEASE), "--max-attempts", "20")
NAPS = 12 if IS_FULL else 2
SERVER_NAP = 60.0 if IS_FULL else 4 * LEASE
IDLE_SECONDS = 1.0
IDLE_NANOSECONDS = 10_000_000
"""A thread that waits for something wakes up now and then, for far less than this per second."""

pytestmark = pytest.mark.timeout(240)


def endless(work: Work) -> training_pb2.TrainingRequest:
    """A request that does not end by itself."""
    request = work.named(9)[0]
    request.trainer.epochs = 100_000
    return request


def resumed(history: History, job: training_pb2.TrainingJob) -> list[tuple[int, int]]:
    """Attempt and epoch of each time that the job went on."""
    log = history.watched[job.name]["late"]
    return [(e.attempt, e.resumed.epoch) for e in log if e.HasField("resumed")]


def send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def has_ended(process: int) -> bool:
    """Whether a process, by its pidfd, ends within seconds. One that nobody waits for counts."""
    with os.fdopen(process, "rb"):
        return bool(select.select([process], [], [], 5)[0])


def wait_until_blocked(process: int) -> None:
    """Wait until a process's main thread has neither run nor waited for a processor for a while."""
    before, now = -1, processor_time(process)
    while now - before > IDLE_NANOSECONDS:
        time.sleep(IDLE_SECONDS)
        before, now = now, processor_time(process)


def processor_time(process: int) -> int:
    """Nanoseconds that a process's main thread has had a processor, or has waited for one."""
    ran, waited, _ = Path(f"/proc/{process}/schedstat").read_text().split()
    return int(ran) + int(waited)


def test_a_training_process_that_stops_is_replaced_and_never_heard_of_again(
    start_failing: StartServer, work: Work, tmp_path: Path
) -> None:
    server = start_failing(*FLAGS)
    with Recorder(server.address) as recorder:
        job = recorder.submit(work.named(1)[0])
        assert recorder.wait_for_epochs(4)
        (worker,) = server.children()
        stopped = os.pidfd_open(worker)
        os.kill(worker, signal.SIGSTOP)
        server.wait_for_log("job.process_silent")
        send_signal(worker, signal.SIGCONT)
        history = recorder.finish()
        assert problems(history) == []
        ((attempt, epoch),) = resumed(history, job)
        # From a checkpoint: at most the two newest epochs are run again.
        assert (attempt, epoch >= 2) == (2, True)
        assert history.found[job.name].attempt == 2
        assert work.differences(recorder.client, history.found[job.name], tmp_path) == []
        assert has_ended(stopped)
    assert overlaps(tmp_path / "alone") == []


def test_a_training_process_that_naps_as_long_as_its_lease_costs_no_result(
    start_failing: StartServer, work: Work, chance: random.Random, tmp_path: Path
) -> None:
    server = start_failing(*FLAGS)
    with Recorder(server.address) as recorder:
        recorder.submit_all(work.named(1, times=2))
        total = sum(len(epochs) for epochs in work.epochs) * 2
        for moment in sorted(chance.sample(range(1, total - 5), NAPS)):
            assert recorder.wait_for_epochs(moment)
            for worker in server.children():
                send_signal(worker, signal.SIGSTOP)
                time.sleep(LEASE * chance.uniform(0.8, 1.2))
                send_signal(worker, signal.SIGCONT)
        history = recorder.finish()
        assert problems(history) == []
        for job in history.found.values():
            assert work.differences(recorder.client, job, tmp_path) == []
    assert overlaps(tmp_path / "alone") == []


def test_a_server_that_stops_and_goes_on_blames_no_job(
    start_failing: StartServer, work: Work, tmp_path: Path
) -> None:
    server = start_failing(*FLAGS, "--max-concurrent-jobs", "2")
    with Recorder(server.address) as recorder:
        jobs = [recorder.submit(endless(work)), recorder.submit(work.named(1)[0])]
        assert recorder.wait_for_epochs(4)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(SERVER_NAP)
        server.process.send_signal(signal.SIGCONT)
        assert recorder.wait_for_epochs(recorder.epochs + 50)
        recorder.client.cancel(jobs[0])
        history = recorder.finish()
        assert problems(history) == []
        found = [history.found[job.name] for job in jobs]
        assert [(job.state, job.attempt) for job in found] == [
            (training_pb2.JOB_STATE_CANCELLED, 1),
            (training_pb2.JOB_STATE_SUCCEEDED, 1),
        ]
        assert work.differences(recorder.client, found[1], tmp_path) == []
        assert not [record for record in server.records if record["event"] == "job.process_silent"]


@pytest.mark.parametrize("what", ["hang", "seize"])
def test_a_training_that_hangs_is_replaced(
    what: str, start_failing: StartServer, work: Work, tmp_path: Path
) -> None:
    hang = Failure(
        "trainwire_server.training.steps:focal_loss",
        what=what,
        when="before",
        count=60,
        process="worker",
        mark=str(tmp_path / "hung"),
    )
    # Its other threads go on, so its lease alone would not tell: no batch may take that long.
    patience = {"trainwire_server.execution.worker:_STALL_SECONDS": LEASE}
    server = start_failing(*FLAGS, failures=[hang], constants=patience)
    with Recorder(server.address) as recorder:
        job = recorder.submit(work.named(1)[0])
        history = recorder.finish()
        assert problems(history) == []
        assert [attempt for attempt, _ in resumed(history, job)] == [2]
        assert (tmp_path / "hung").exists()
        assert work.differences(recorder.client, history.found[job.name], tmp_path) == []
    assert overlaps(tmp_path / "alone") == []


def test_a_process_that_a_dead_server_left_behind_does_no_harm(
    start_failing: StartServer, work: Work, tmp_path: Path
) -> None:
    server = start_failing(*FLAGS)
    with Recorder(server.address) as recorder:
        job = recorder.submit(work.named(1)[0])
        assert recorder.wait_for_epochs(4)
        (worker,) = server.children()
        left = os.pidfd_open(worker)
        # It cannot see that its server is gone.
        os.kill(worker, signal.SIGSTOP)
        server.kill()
        start_failing(*FLAGS, listen=server.address)
        assert recorder.wait_for_epochs(8)
        os.kill(worker, signal.SIGCONT)
        history = recorder.finish()
        assert problems(history) == []
        assert [attempt for attempt, _ in resumed(history, job)] == [2]
        assert work.differences(recorder.client, history.found[job.name], tmp_path) == []
        assert has_ended(left)


def test_a_training_process_is_never_more_than_an_epoch_ahead_of_the_log(
    start_failing: StartServer, work: Work
) -> None:
    server = start_failing(*FLAGS)
    with server.client() as client:
        job = client.submit(endless(work))
        next(event for event in client.watch(job) if event.epoch.epoch == 4)
        (worker,) = server.children()
        server.process.send_signal(signal.SIGSTOP)
        # Either it waits for the log, or the socket is full of epochs that nobody takes.
        wait_until_blocked(worker)
        server.kill()
    server = start_failing(*FLAGS, listen=server.address)
    with server.client() as client:
        stored = []
        for event in client.watch(job):
            if event.HasField("resumed"):
                break
            stored += [event.epoch.epoch] if event.HasField("epoch") else []
        client.cancel(job)
        # From the two checkpoints, of which one is of an epoch that the log has.
        assert stored[-1] >= 4
        assert event.resumed.epoch in stored[-2:]
