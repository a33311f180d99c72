"""One process waits for the next training: it is used and replaced, and goes with the server."""

from __future__ import annotations

import itertools
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient, UnavailableError

RequestFor = Callable[..., training_pb2.TrainingRequest]
StartServer = Callable[..., Any]

SECONDS = 60
LIMIT_MB = 3000
IDLE_BYTES = 40 * 2**20
"""What a process may have of its own that has done nothing yet."""


def wait_for_idle(server: Any) -> int:
    """Process id of the process that waits, once there is one."""
    deadline = time.monotonic() + SECONDS
    before: set[int] = set()
    while time.monotonic() < deadline:
        idle = {pid for pid, task in server.workers().items() if task == "idle"}
        # Every process is idle for an instant, before it hears its task.
        if waiting := idle & before:
            assert len(waiting) == 1
            return int(waiting.pop())
        before = idle
        time.sleep(0.2)
    raise AssertionError(f"no process waits: {server.workers()}")


def has_ended(process: int) -> bool:
    """Whether a process, held by its pidfd, is gone within five seconds."""
    with os.fdopen(process, "rb"):
        return bool(select.select([process], [], [], 5)[0])


def first_epoch(client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    next(event for event in client.watch(job) if event.HasField("epoch"))


def cancel(client: TrainingClient, job: training_pb2.TrainingJob) -> None:
    client.cancel(job)
    *_, last = client.watch(job)
    assert last.HasField("cancelled")


def proc(pid: int, file: str, entry: str) -> str:
    """An entry of a file in a process's folder of /proc."""
    lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(line.removeprefix(entry) for line in lines if line.startswith(entry)).strip()


def own_bytes(pid: int) -> int:
    return int(proc(pid, "smaps_rollup", "Private_Dirty:").split()[0]) * 1024


def test_a_training_begins_in_the_process_that_waits_and_another_one_takes_its_place(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    server = start_server("--job-memory-mb", str(LIMIT_MB), "--grace", "2")
    with server.client() as client:
        idle = wait_for_idle(server)
        assert proc(idle, "status", "Threads:") == "1"
        assert own_bytes(idle) < IDLE_BYTES
        # An upload is parsed in a process of its own.
        dataset = client.upload(columns()).name
        assert server.workers()[idle] == "idle"
        job = client.submit(small(dataset, epochs=100_000, early_stopping_patience=0))
        first_epoch(client, job)
        assert server.workers()[idle] == "train"
        assert server.children() == [idle]
        soft, hard, _ = proc(idle, "limits", "Max data size").split()
        assert int(soft) == int(hard) >= LIMIT_MB * 2**20
        following = wait_for_idle(server)
        assert proc(following, "limits", "Max data size").split()[0] == "unlimited"
        cancel(client, job)
        # It was for one training, and the next one has the process after it.
        assert idle not in server.workers()
        again = client.submit(small(dataset, epochs=100_000, early_stopping_patience=0))
        first_epoch(client, again)
        assert server.children() == [following]
        cancel(client, again)
    left = os.pidfd_open(wait_for_idle(server))
    server.kill()
    assert has_ended(left)


def test_a_process_that_is_killed_while_it_waits_costs_no_attempt(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    server = start_server("--max-attempts", "1")
    with server.client() as client:
        dataset = client.upload(columns()).name
        idle = wait_for_idle(server)
        waiting = os.pidfd_open(idle)
        os.kill(idle, signal.SIGKILL)
        assert has_ended(waiting)
        job = client.wait(client.submit(small(dataset)))
        assert (job.state, job.attempt) == (training_pb2.JOB_STATE_SUCCEEDED, 1)
    left = os.pidfd_open(wait_for_idle(server))
    assert server.stop() == 0
    assert has_ended(left)


def handles_of(pid: int) -> set[int]:
    """The numbers of the files that a process has open."""
    return {int(name) for name in os.listdir(f"/proc/{pid}/fd")}


def leave_free(pid: int, count: int) -> None:
    """Let a process open so many files more."""
    _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = handles_of(pid)
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, count, None))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, most))


def test_a_shortage_of_handles_is_waited_out_and_costs_no_attempt(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    server = start_server("--max-attempts", "1")
    pid = server.process.pid
    with server.client() as client:
        dataset = client.upload(columns()).name
        idle = wait_for_idle(server)
        waiting, limits = os.pidfd_open(idle), resource.prlimit(pid, resource.RLIMIT_NOFILE)
        before = handles_of(pid)
        leave_free(pid, 0)
        os.kill(idle, signal.SIGKILL)
        assert has_ended(waiting)
        job = client.submit(small(dataset))
        # At the pair of sockets, at the fork server's own, at its pipes.
        for tries, free in enumerate((2, 3, 5), start=1):
            wait_for_refusals(server, tries)
            leave_free(pid, free)
        wait_for_refusals(server, 4)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        ended = client.wait(job)
        assert (ended.state, ended.attempt) == (training_pb2.JOB_STATE_SUCCEEDED, 1)
        wait_for_idle(server)
        assert len(handles_of(pid)) <= len(before)


def wait_for_refusals(server: Any, count: int) -> None:
    """Wait until a process could not be started so often, each time for want of handles."""
    event = "job.not_started"
    server.wait_for_log(event, lambda _: sum(r["event"] == event for r in server.records) >= count)
    problems = [record["problem"] for record in server.records if record["event"] == event]
    assert all("Too many open files" in problem for problem in problems), problems


def refuse_for_shortage(call: Callable[[], Any]) -> bool:
    """Whether a call is refused for now, and its caller told when to try again."""
    with pytest.raises(UnavailableError) as caught:
        call()
    return (caught.value.reason, caught.value.retry_delay) == ("SYSTEM_SHORTAGE", 2)


def test_a_shortage_of_handles_delays_uploads_and_dry_runs(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    server = start_server()
    pid = server.process.pid
    with (
        TrainingClient(server.address, retry_for=0, **server.credentials) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        request = small(client.upload(columns()).name)
        wait_for_idle(server)
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        leave_free(pid, 0)
        assert refuse_for_shortage(lambda: client.upload(columns(seed=1)))
        # At the pair of sockets, and at the fork server's pipes, of which that dies.
        leave_free(pid, 2)
        assert refuse_for_shortage(lambda: client.validate(request))
        leave_free(pid, 5)
        tries = len(server.records)
        upload = thread.submit(client.upload, columns(seed=2))
        server.wait_for_log("task.not_started", lambda record: record in server.records[tries:])
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        assert upload.result().row_count == 400
        assert client.validate(request).HasField("plan")
    assert not [record for record in server.records if record["event"] == "rpc.error"]
