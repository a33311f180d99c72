"""Full disks, damaged databases, limits of the data directory: with real servers."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainwire.v1 import training_pb2
from trainwire_client import ResourceExhaustedError
from trainwire_server.jobs.store import Store

RequestFor = Callable[..., training_pb2.TrainingRequest]
Columns = Callable[..., dict[str, Any]]
Refusal = Callable[[Callable[[], Any]], Any]
StartServer = Callable[..., Any]

DISK_BYTES = 8 * 2**20
SUCCEEDED = training_pb2.JOB_STATE_SUCCEEDED


class Disk:
    """A file system of a few MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no byte of room."""
        with self._filler.open("ab", buffering=0) as file:
            for size in (2**16, 2**10, 1):
                self._write(file.fileno(), b"x" * size)

    def _write(self, file: int, data: bytes) -> None:
        try:
            while os.write(file, data):
                pass
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise

    def make_room(self) -> None:
        """Take the filler away."""
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small file system needs the right to mount one: {mounted.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_server(disk: Disk, start_server: StartServer) -> Any:
    """A server whose data directory is on the small disk."""
    return start_server("--grace", "2", data_dir=disk.folder)


def assert_full(refused: Any, what: str = "") -> None:
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "STORAGE_FULL"
    assert "disk is full" in refused.message
    assert what in refused.message


# ------------------------------------------------------------------------ full disks


def test_a_full_disk_refuses_writes_and_answers_reads(
    disk: Disk, small_server: Any, columns: Columns, small: RequestFor, tmp_path: Path
) -> None:
    with small_server.client() as client:
        dataset = client.upload(columns())
        request = small(dataset.name)
        finished = client.wait(client.submit(request))
        endless = client.submit(small(dataset.name, epochs=100_000, early_stopping_patience=0))
        waiting = client.submit(request)
        client.cancel(endless)
        finished_too = client.wait(waiting)
        events = list(client.watch(finished))
        disk.fill()
        jobs_before = list(client.list())
        calls: list[Callable[[], Any]] = [
            lambda: client.submit(request),
            lambda: client.upload(columns(seed=1)),
            lambda: client.set_alias("production", finished.model),
        ]
        for call in calls:
            with pytest.raises(ResourceExhaustedError, match="disk is full") as caught:
                call()
            assert caught.value.reason == "STORAGE_FULL"
        assert client.get(finished) == finished
        assert list(client.list()) == jobs_before
        assert list(client.watch(finished)) == events
        assert [model.name for model in client.models()] == [finished_too.model, finished.model]
        assert (client.download(finished.model, tmp_path / "model") / "request.json").exists()
        assert not list((disk.folder / "uploads").iterdir())
        assert [dataset.name] == [stored.name for stored in client.datasets()]
        disk.make_room()
        assert client.wait(client.submit(request)).state == SUCCEEDED
        assert client.upload(columns(seed=1)).row_count == 400
        assert list(client.set_alias("production", finished.model).aliases) == ["production"]
    assert not [record for record in small_server.records if record["event"] == "rpc.error"]


def test_a_job_that_waits_or_trains_while_the_disk_is_full_succeeds(
    disk: Disk, small_server: Any, columns: Columns, small: RequestFor
) -> None:
    with small_server.client() as client:
        dataset = client.upload(columns())
        running = client.submit(small(dataset.name, epochs=60, early_stopping_patience=0))
        waiting = client.submit(small(dataset.name))
        next(event for event in client.watch(running) if event.HasField("epoch"))
        disk.fill()
        small_server.wait_for_log("storage.full")
        assert client.get(running).state == training_pb2.JOB_STATE_RUNNING
        assert client.get(waiting).state == training_pb2.JOB_STATE_QUEUED
        disk.make_room()
        ended = [client.wait(job) for job in (running, waiting)]
        assert [job.state for job in ended] == [SUCCEEDED, SUCCEEDED]
        epochs = [e.epoch.epoch for e in client.watch(running) if e.HasField("epoch")]
        assert epochs == list(range(1, 61))


def test_an_upload_that_does_not_fit_leaves_nothing(
    disk: Disk, small_server: Any, tmp_path: Path
) -> None:
    """Twice: its bytes do not fit, or they do and the table made from them does not."""
    text = tmp_path / "text.csv"
    # Five bytes a line become eight in the table.
    text.write_text("a\n" + "1.50\n" * (DISK_BYTES // 5 * 45 // 100))
    with small_server.client() as client:
        for data in ({"a": np.arange(2 * DISK_BYTES // 8)}, text):
            with pytest.raises(ResourceExhaustedError, match="disk is full and the dataset"):
                client.upload(data)
            assert list(client.datasets()) == []
            assert list((disk.folder / "datasets").iterdir()) == []
            assert list((disk.folder / "uploads").iterdir()) == []
        assert client.upload({"a": np.arange(1000.0)}).row_count == 1000
    faults = ("rpc.error", "dataset.worker_error")
    assert not [record for record in small_server.records if record["event"] in faults]


def test_a_server_that_starts_on_a_full_disk_reads_and_goes_on_when_there_is_room(
    disk: Disk, start_server: StartServer, columns: Columns, small: RequestFor
) -> None:
    first = start_server(data_dir=disk.folder)
    with first.client() as client:
        dataset = client.upload(columns()).name
        job = client.submit(small(dataset, epochs=100_000, early_stopping_patience=0))
        next(event for event in client.watch(job) if event.HasField("epoch"))
    first.kill()
    disk.fill()
    second = start_server("--grace", "2", data_dir=disk.folder)
    with second.client() as client:
        assert client.get(job).state == training_pb2.JOB_STATE_RUNNING
        with pytest.raises(ResourceExhaustedError):
            client.submit(small(dataset))
        disk.make_room()
        events = client.watch(job)
        resumed = next(event for event in events if event.HasField("resumed"))
        assert resumed.attempt == 2
        client.cancel(job)
        assert [event for event in events if event.sequence][-1].HasField("cancelled")


# ------------------------------------------------------------------------ damaged databases


def refused_start(data_dir: Path, log: Path) -> str:
    """What a server says that refuses to start."""
    command = [sys.executable, "-m", "trainwire_server", "--data-dir", str(data_dir)]
    # To a file: its fork server, which still imports torch, would keep a pipe open for seconds.
    with log.open("w") as stderr:
        ended = subprocess.run(
            [*command, "--listen", "127.0.0.1:0"], stderr=stderr, timeout=60, check=False
        )
    assert ended.returncode == 1
    said = log.read_text()
    assert "Traceback" not in said
    return said


def test_a_damaged_database_keeps_a_server_from_starting_and_stays_as_it_is(
    start_server: StartServer, columns: Columns, small: RequestFor, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    server = start_server(data_dir=data_dir)
    with server.client() as client:
        job = client.wait(client.submit(small(client.upload(columns()).name)))
    server.kill()
    database = data_dir / "trainwire.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        # The log moves into the database: it would hide what is changed there.
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = database.read_bytes()
    data = bytearray(whole)
    data[data.index(job.request_digest.encode()) + 3] ^= 1
    database.write_bytes(data)
    said = refused_start(data_dir, tmp_path / "log")
    assert f"cannot use database {database}: it is damaged: a row of jobs" in said
    assert "docs/operations.md" in said
    assert database.read_bytes() == data
    database.write_bytes(data[: len(data) // 2])
    assert "it is damaged" in refused_start(data_dir, tmp_path / "log")
    database.unlink()
    assert "trainwire.db is missing or empty" in refused_start(data_dir, tmp_path / "log")
    database.write_bytes(whole)
    assert asyncio.run(stored_job(database, job.name)) == job


async def stored_job(database: Path, name: str) -> training_pb2.TrainingJob | None:
    """A job as the next server finds it."""
    store = Store(database)
    try:
        return await store.job(name)
    finally:
        await store.close()


# ------------------------------------------------------------------------ limits


def test_a_server_keeps_to_its_limits(
    start_server: StartServer, columns: Columns, small: RequestFor, tmp_path: Path
) -> None:
    limit = 3 * 2**20
    server = start_server("--max-data-bytes", str(limit))
    with server.client() as client:
        dataset = client.upload(columns())
        first = client.wait(client.submit(small(dataset.name)))
        client.set_alias("production", first.model)
        second = client.wait(client.submit(small(dataset.name)))
        with pytest.raises(ResourceExhaustedError, match=f"--max-data-bytes {limit}"):
            client.upload({"a": np.arange(limit / 8)})
        # With the table that is made of it each is too much: at once, and beside what has to stay.
        with pytest.raises(ResourceExhaustedError, match="which is all that may be stored"):
            client.upload({"a": np.arange(0.6 * limit / 8)})
        with pytest.raises(ResourceExhaustedError, match=f"--max-data-bytes {limit}"):
            client.upload(zeros_in_parquet(tmp_path / "zeros.parquet", int(0.98 * limit)))
        # Nothing was deleted for what does not fit anyway.
        assert client.get(second) == second
        # Stored twice: as it came, and as a table.
        size = limit - used_bytes(server.data_dir) + 1000
        client.upload({"a": np.arange(size // 16)})
        deleted = server.wait_for_log("retention.deleted")
        assert (deleted["name"], deleted["why"]) == (second.name, "more than --max-data-bytes")
        assert deleted["bytes"] > 0
        assert [job.name for job in client.list()] == [first.name]
        assert [model.name for model in client.models()] == [first.model]
        assert dataset.name in [stored.name for stored in client.datasets()]
        assert used_bytes(server.data_dir) <= limit


def zeros_in_parquet(path: Path, size: int) -> Path:
    """A small file that becomes a table of so many bytes."""
    pq.write_table(pa.table({"a": np.zeros(size // 8)}), path)
    return path


def used_bytes(data_dir: Path) -> int:
    """What counts against --max-data-bytes: files of resources, and rows."""
    kinds = ("datasets", "jobs", "models")
    files = sum(
        path.stat().st_size
        for kind in kinds
        for path in (data_dir / kind).rglob("*")
        if path.is_file()
    )
    database = f"{(data_dir / 'trainwire.db').as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(database, uri=True)) as connection:
        ((pages,),) = connection.execute("SELECT page_count FROM pragma_page_count")
        ((page_bytes,),) = connection.execute("SELECT page_size FROM pragma_page_size")
    return files + int(pages) * int(page_bytes)


def test_a_server_deletes_what_is_too_old(
    start_server: StartServer, columns: Columns, small: RequestFor
) -> None:
    first = start_server()
    data_dir = first.data_dir
    with first.client() as client:
        dataset = client.upload(columns())
        job = client.wait(client.submit(small(dataset.name)))
    assert first.stop() == 0
    os.utime(data_dir / dataset.name, (0, 0))
    # All of it is older than no days at all, but for a moment.
    server = start_server("--retain-days", "0.000001")
    server.wait_for_log("retention.deleted", lambda record: record["name"] == dataset.name)
    with server.client() as client:
        assert [list(found) for found in (client.list(), client.models(), client.datasets())] == [
            [],
            [],
            [],
        ]
        deleted = [r["name"] for r in server.records if r["event"] == "retention.deleted"]
        assert deleted == [job.name, dataset.name]
    for kind in ("jobs", "models", "datasets"):
        assert list((data_dir / kind).iterdir()) == []
