"""Many watchers, watchers that never read, callers that come and go: what they cost the server."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tests.faults.conftest import IS_FULL

from trainwire.v1 import training_pb2, training_pb2_grpc
from trainwire_client import TrainingClient, channel

RequestFor = Callable[..., training_pb2.TrainingRequest]
StartServer = Callable[..., Any]

pytestmark = pytest.mark.timeout(1_800 if IS_FULL else 120)
MEBIBYTE = 2**20
WATCHERS, HOLDERS = 1_000, 50
GROWTH_BYTES = 150 * MEBIBYTE
BLOCKED = 0.05
"""Share of its time that a training may wait for anything but a core, beyond what it does alone."""
EFFORT = 1.3
"""How much more of a core's time an epoch may take: caches are shared with the watchers."""
CYCLES = 10_000 if IS_FULL else 300
WARMING = 500 if IS_FULL else 100
CLASSES = 20


# ------------------------------------------------------------------------ what a process takes


@dataclass(frozen=True)
class Usage:
    """What a process has now."""

    resident: int
    handles: int
    threads: int


def usage(pid: int) -> Usage:
    return Usage(
        resident=status(pid, "VmRSS") * 1024,
        handles=len(os.listdir(f"/proc/{pid}/fd")),
        threads=status(pid, "Threads"),
    )


def status(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def forget_peak(pid: int) -> None:
    """Let VmHWM, the most memory that a process has had, begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ------------------------------------------------------------------------ jobs and watchers


def many_classes(columns: Callable[..., Any], rows: int) -> dict[str, Any]:
    """A table whose epochs have long events: per-class metrics and a confusion matrix."""
    return {**columns(rows), "y": np.arange(rows) * 7 % CLASSES}


@contextmanager
def endless(
    client: TrainingClient, request: training_pb2.TrainingRequest
) -> Iterator[training_pb2.TrainingJob]:
    request.trainer.epochs, request.trainer.early_stopping_patience = 100_000, 0
    job = client.submit(request)
    try:
        yield job
    finally:
        client.cancel(job)
        assert list(client.watch(job))


@contextmanager
def watchers(address: str, name: str, readers: int, holders: int) -> Iterator[Any]:
    """A process with watchers of a job, all of which are connected; nicer than the server."""
    script = Path(__file__).with_name("watching_clients.py")
    arguments = [str(script), address, name, str(readers), str(holders)]
    with subprocess.Popen(
        ["nice", "-n", "10", sys.executable, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def report(process: Any) -> dict[str, Any]:
    """What the watchers were sent, once their streams have ended."""
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def sequence_of(client: TrainingClient, job: training_pb2.TrainingJob) -> tuple[int, str]:
    """Number of events in a job's log, and their digest."""
    events = [event for event in client.watch(job) if event.sequence]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    digest = hashlib.sha256()
    for event in events:
        digest.update(event.SerializeToString(deterministic=True))
    return len(events), digest.hexdigest()


@dataclass(frozen=True)
class Pace:
    """How a training process got on over some epochs.

    The process of the watchers takes cores away from it, on two of them more than it can be held
    against: so time on a core and time spent waiting for one are told apart from the rest.

    Attributes:
        speed: windows per second, the median of the epochs.
        effort: seconds on a core for an epoch.
        blocked: share of the time that it neither ran nor waited for a core.
    """

    speed: float
    effort: float
    blocked: float


def pace(server: Any, client: TrainingClient, job: training_pb2.TrainingJob, count: int) -> Pace:
    """Of the next epochs of the job that trains now."""
    found, samples = [], []
    for event in client.watch(job, after_sequence=client.get(job).last_sequence):
        if event.HasField("epoch"):
            (worker,) = server.children()
            found.append(event.epoch)
            samples.append((time.monotonic(), *scheduled(worker)))
        if len(found) > count:
            break
    wall, ran, waited = np.subtract(samples[-1], samples[0])
    return Pace(
        speed=statistics.median(epoch.windows_per_second for epoch in found[1:]),
        effort=float(ran) / count,
        blocked=1 - float(ran + waited) / float(wall),
    )


def scheduled(pid: int) -> tuple[float, float]:
    """Seconds that the main thread of a process ran, and that it waited for a core to."""
    ran, waited, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()
    return int(ran) / 1e9, int(waited) / 1e9


# ------------------------------------------------------------------------ watchers


def test_a_thousand_watchers_and_fifty_that_never_read(
    start_server: StartServer,
    columns: Callable[..., Any],
    small: RequestFor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = start_server()
    pid = server.process.pid
    with server.client() as client:
        request = small(client.upload(many_classes(columns, 15_000)).name, batch_size=64)
        with endless(client, request) as job:
            alone = pace(server, client, job, 6)
            before, began = usage(pid), cpu_seconds(pid)
            forget_peak(pid)
            with watchers(server.address, job.name, WATCHERS, HOLDERS) as process:
                joined, at = cpu_seconds(pid), time.monotonic()
                watched = pace(server, client, job, 8)
                busy = (cpu_seconds(pid) - joined) / (time.monotonic() - at)
                client.cancel(job)
                seen = report(process)
            peak = status(pid, "VmHWM") * 1024
            expected = sequence_of(client, job)
        # The server is there for others, and gives back what the holders held.
        assert client.info().running_jobs == 0
    seconds = seen["seconds"]
    with capsys.disabled():
        print(  # noqa: T201
            f"\nalone {alone}\nwatched {watched}\n"
            f"latency p50 {seconds[len(seconds) // 2]:.3f} s, "
            f"p99 {seconds[len(seconds) * 99 // 100]:.3f} s of {len(seconds)} events; "
            f"server memory {before.resident / MEBIBYTE:.0f} MiB, at most {peak / MEBIBYTE:.0f}; "
            f"its CPU {joined - began:.1f} s to join, then {busy:.0%} of a core; the watchers' "
            f"{seen['cpu_seconds']:.1f} s"
        )
    assert seen["sequences"] == [[*expected, WATCHERS]]
    assert peak - before.resident < GROWTH_BYTES
    assert watched.blocked < alone.blocked + BLOCKED
    assert watched.effort < EFFORT * alone.effort


def test_late_watchers_of_a_long_log_catch_up_and_follow(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    """Fast epochs: who joins reads pages of old events while new ones come."""
    server = start_server()
    readers = 200 if IS_FULL else 40
    with server.client() as client:
        request = small(client.upload(columns()).name)
        with endless(client, request) as job:
            next(event for event in client.watch(job) if event.sequence >= 300)
            with watchers(server.address, job.name, readers, 20) as process:
                last = client.get(job).last_sequence
                next(event for event in client.watch(job) if event.sequence >= last + 30)
                client.cancel(job)
                seen = report(process)
            expected = sequence_of(client, job)
    assert seen["sequences"] == [[*expected, readers]]


def test_callers_that_come_and_go_leave_nothing(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    """Connections made, watches opened, then given up in one of several ways."""
    server = start_server()
    pid = server.process.pid
    with server.client() as client:
        dataset = client.upload(many_classes(columns, 15_000)).name
        with endless(client, small(dataset, batch_size=64)) as job:
            for number in range(WARMING):
                come_and_go(server.address, job.name, number)
            before = settled(pid)
            for number in range(CYCLES):
                come_and_go(server.address, job.name, number)
            after = settled(pid, before.handles)
    assert after.handles <= before.handles
    assert after.threads <= before.threads + 2
    assert after.resident - before.resident < (40 if IS_FULL else 15) * MEBIBYTE


def come_and_go(address: str, name: str, number: int) -> None:
    with grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),)) as opened:
        service: Any = training_pb2_grpc.TrainingServiceStub(opened)
        call = service.WatchTraining(training_pb2.WatchTrainingRequest(name=name), timeout=30)
        if number % 4:
            next(call)
        if number % 4 == 2:
            next(call)
        if number % 2:
            call.cancel()


def settled(pid: int, handles: int = 0) -> Usage:
    """What the process has once connections that are closed are gone from it, too."""
    deadline, last = time.monotonic() + 10, usage(pid)
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = usage(pid)
        if now.handles <= handles or (not handles and now.handles == last.handles):
            return now
        last = now
    return last


# ------------------------------------------------------------------------ signs of life


def test_a_watch_with_nothing_to_say_shows_signs_of_life(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    server = start_server("--heartbeat", "1")
    with server.client() as client, server.channel() as opened:
        request = small(client.upload(columns()).name)
        with endless(client, request) as running:
            waiting = client.submit(small(request.dataset, epochs=1))
            service: Any = training_pb2_grpc.TrainingServiceStub(opened)
            call = service.WatchTraining(training_pb2.WatchTrainingRequest(name=waiting.name))
            assert next(call).HasField("queued")
            times = []
            for _ in range(4):
                event = next(call)
                times.append(time.monotonic())
                assert event.HasField("progress")
                assert (event.sequence, event.job) == (0, waiting.name)
            pauses = np.diff(times)
            assert (pauses > 0.7).all(), pauses
            assert (pauses < 3).all(), pauses
            assert client.get(waiting).last_sequence == 1
            client.cancel(running)
            assert [e.WhichOneof("event") for e in call][-1] == "succeeded"
        log = [event.WhichOneof("event") for event in client.watch(waiting)]
        assert log == ["queued", "started", "epoch", "succeeded"]


# ------------------------------------------------------------------------ pings

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7
ENHANCE_YOUR_CALM = 0xB


def frame(kind: int, payload: bytes) -> bytes:
    """An HTTP/2 frame of stream 0 (RFC 9113, section 4.1)."""
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, 0, 0) + payload


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data:
        length = int.from_bytes(data[:3], "big")
        yield data[3], data[9 : 9 + length]
        data = data[9 + length :]


def test_a_caller_that_pings_without_end_is_cut_off(server: Any, client: TrainingClient) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        # All at once: the server may close the connection before the last ones are sent.
        pings = [frame(PING, struct.pack("!Q", number)) for number in range(10)]
        connection.sendall(b"".join([PREFACE, frame(SETTINGS, b""), *pings]))
        said = b""
        while more := connection.recv(65536):
            said += more
    ends = [payload for kind, payload in frames(said) if kind == GOAWAY]
    reasons = [struct.unpack("!I", payload[4:8])[0] for payload in ends]
    assert reasons[-1] == ENHANCE_YOUR_CALM
    assert ends[-1][8:] == b"too_many_pings"
    assert client.info().executor == "local"


@pytest.mark.skipif(not IS_FULL, reason="takes two minutes of waiting; FULL=1 runs it")
@pytest.mark.timeout(300)
def test_a_caller_that_pings_as_ours_do_is_not_cut_off(
    start_server: StartServer, columns: Callable[..., Any], small: RequestFor
) -> None:
    """Four pings on a silent stream: gRPC's server cuts a caller off after the third too early."""
    server = start_server("--heartbeat", "3600")
    with server.client() as client:
        request = small(client.upload(columns()).name)
        with (
            endless(client, request),
            grpc.insecure_channel(server.address, channel.OPTIONS) as opened,
        ):
            waiting = client.submit(small(request.dataset, epochs=1))
            service: Any = training_pb2_grpc.TrainingServiceStub(opened)
            call = service.WatchTraining(training_pb2.WatchTrainingRequest(name=waiting.name))
            assert next(call).HasField("queued")
            ended = threading.Event()
            call.add_callback(ended.set)
            assert not ended.wait(130)
            client.cancel(waiting)
            assert [e.WhichOneof("event") for e in call] == ["cancelled"]
