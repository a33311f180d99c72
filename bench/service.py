"""The service around the training: watchers, small calls and uploads."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
from bench import servers, task
from bench.figures import Figure

from trainwire.v1 import training_pb2
from trainwire_client import TrainingClient, tables

ROUNDS = 5
EVENTS = 4
"""Events per round, each received by every watcher."""
WATCHED_ROWS = 900
"""An epoch takes about a second."""
IN_FLIGHT, CALLS = 50, 4_000
UPLOAD_ROWS, UPLOAD_COLUMNS = 500_000, 100
GET = "/trainwire.v1.TrainingService/GetTraining"
ECHO, TAKE = "/bench.Bare/Echo", "/bench.Bare/Take"
MEGABYTE = 1e6


# ------------------------------------------------------------------------ watchers


def measure_watchers() -> Figure:
    """From an event's time, stamped before it is committed, to its receipt, with 1,000 watchers."""
    with tempfile.TemporaryDirectory() as folder:
        by_event = _watch_training(Path(folder))
    rounds = [np.concatenate(by_event[i::ROUNDS]) for i in range(ROUNDS)]
    p50 = 1000 * float(np.median(np.concatenate(rounds)))
    print(f"1,000 watchers: p50 {p50:.0f} ms over {len(by_event)} events", flush=True)
    values = [1000 * float(np.quantile(lags, 0.99)) for lags in rounds]
    how = "a job trains with 1 thread and one grpc.aio process receives, both on the same cores"
    name = "event to receipt with 1,000 watchers, p99"
    return Figure(name, values, 250, at_least=False, unit="ms", how=how)


def _watch_training(folder: Path) -> list[np.ndarray[Any, Any]]:
    """Seconds to each watcher, event by event."""
    with (
        servers.serve(folder, "--threads", "1") as (address, _),
        TrainingClient(address) as client,
    ):
        request = task.make_request(client.upload(task.make_columns(WATCHED_ROWS)).name)
        request.trainer.epochs, request.trainer.early_stopping_patience = 100_000, 0
        job = client.submit(request)
        _epochs(client, job, after=0, count=2)
        with _watchers(address, job.name) as process:
            # The epoch in which they all joined.
            first = _epochs(client, job, after=client.get(job).last_sequence, count=1)
            last = _epochs(client, job, after=first, count=ROUNDS * EVENTS)
            client.cancel(job)
            lags = json.loads(process.stdout.readline())
    return [np.array(lags[str(number)]) for number in range(first + 1, last + 1)]


def _epochs(client: TrainingClient, job: training_pb2.TrainingJob, after: int, count: int) -> int:
    """Wait for so many epochs; the sequence number of the last one."""
    for event in client.watch(job, after_sequence=after):
        count -= event.HasField("epoch")
        if not count:
            return event.sequence
    raise AssertionError("the job has ended")


@contextmanager
def _watchers(address: str, job: str) -> Iterator[Any]:
    command = [sys.executable, "-m", "bench.watchers", address, job]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        except BaseException:
            process.kill()
            raise


# ------------------------------------------------------------------------ small calls


def measure_unary() -> Figure:
    """GetTraining of a finished job beside a bare echo of as many bytes, 50 calls in flight."""
    with tempfile.TemporaryDirectory() as folder:
        values = _get_and_echo(Path(folder))
    how = "50 in flight on one connection; the echo's request and answer have the size of the job"
    return Figure("GetTraining calls/s / bare grpc.aio echo", values, 0.5, how=how)


def _get_and_echo(folder: Path) -> list[float]:
    with (
        servers.serve(folder, "--threads", "1") as (address, _),
        servers.bare() as bare,
        TrainingClient(address) as client,
    ):
        request = task.make_request(client.upload(task.make_columns(WATCHED_ROWS)).name)
        job = client.wait(client.submit(request))
        asked = training_pb2.GetTrainingRequest(name=job.name).SerializeToString()
        echoed = job.SerializeToString()
        values = []
        for _ in range(ROUNDS):
            ours = asyncio.run(_calls_per_second(address, GET, asked))
            theirs = asyncio.run(_calls_per_second(bare, ECHO, echoed))
            values.append(ours / theirs)
            print(f"calls/s: {ours:,.0f} GetTraining, {theirs:,.0f} bare echo", flush=True)
    return values


async def _calls_per_second(address: str, path: str, request: bytes) -> float:
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.unary_unary(path)

        async def call(times: int) -> None:
            for _ in range(times):
                await method(request)

        await call(10)
        began = time.perf_counter()
        await asyncio.gather(*(call(CALLS // IN_FLIGHT) for _ in range(IN_FLIGHT)))
        return CALLS / (time.perf_counter() - began)


# ------------------------------------------------------------------------ uploads


def measure_upload() -> Figure:
    """From the first bytes sent to all of them hashed and synced, beside a stream to nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        values = _upload_and_stream(Path(folder))
    how = "200 MB from a file, beside the same chunks from memory; parsing comes after and is apart"
    return Figure("upload bytes/s, hash and fsync / bare grpc.aio stream", values, 0.7, how=how)


def _upload_and_stream(folder: Path) -> list[float]:
    path = folder / "table.arrow"
    _write_table(path)
    data = path.read_bytes()
    with (
        servers.start(folder / "server") as server,
        servers.bare() as bare,
        TrainingClient(server.address) as client,
    ):
        # Until the fork server has loaded torch, it takes a core.
        client.upload(task.make_columns(100))
        server.wait_for("dataset.received")
        values = []
        for _ in range(ROUNDS):
            ours = _upload(server, client, path)
            theirs = asyncio.run(_stream(bare, data)) / MEGABYTE
            values.append(ours / theirs)
            print(f"... {theirs:,.0f} MB/s bare stream", flush=True)
    return values


def _write_table(path: Path) -> None:
    random = np.random.default_rng(0)
    columns = {
        f"f{i}": random.standard_normal(UPLOAD_ROWS, np.float32) for i in range(UPLOAD_COLUMNS)
    }
    table = pa.table(columns)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def _upload(server: servers.Server, client: TrainingClient, path: Path) -> float:
    """Megabytes per second to the server's disk."""
    sent: list[tuple[float, int]] = []

    def on_progress(count: int, _: int) -> None:
        sent.append((time.perf_counter(), count))

    began = time.perf_counter()
    dataset = client.upload(path, on_progress=on_progress)
    ended = time.perf_counter()
    stored, _ = server.wait_for("dataset.received")
    client.delete(dataset)
    first, count = sent[0]
    rate = (dataset.size_bytes - count) / (stored - first) / MEGABYTE
    print(
        f"upload: {first - began:.2f} s hashed by the client, {stored - first:.2f} s to the disk "
        f"({rate:,.0f} MB/s), {ended - stored:.2f} s parsed",
        end=" ",
    )
    return rate


async def _stream(address: str, data: bytes) -> float:
    """Bytes per second to a server that drops them."""
    size = tables.CHUNK_BYTES
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    async with grpc.aio.insecure_channel(address) as channel:
        method: Any = channel.stream_unary(TAKE)
        began = time.perf_counter()
        call = method()
        for chunk in chunks:
            await call.write(chunk)
        await call.done_writing()
        assert int(await call) == len(data)
        return len(data) / (time.perf_counter() - began)
