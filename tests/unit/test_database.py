"""The database file: damage is found before anything is written, old versions are brought up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainwire.v1 import dataset_pb2, model_pb2, training_pb2
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.store import Store

FLIPS = 200
LOG_FLIPS = 90
HEADER = 32
TRUNCATIONS = 40
MANY = 1000
STATES = tuple(
    state for state in training_pb2.JobState.values() if state != training_pb2.JOB_STATE_UNSPECIFIED
)


async def fill(store: Store, number: int = 12) -> None:
    """Jobs of several sizes with labels, events, datasets, models and aliases; some deleted."""
    for i in range(number):
        dataset = dataset_pb2.Dataset(name=f"datasets/sha256-{i:064}", sha256=f"{i:064}")
        await store.add_dataset(dataset)
        job = await fill_job(store, dataset, i)
        if i % 4 == 3:
            await store.delete_job(job.name)
    await store.set_alias("production", "models/1")
    await store.set_alias("newest", f"models/{number - 2}")


async def fill_job(
    store: Store, dataset: dataset_pb2.Dataset, number: int
) -> training_pb2.TrainingJob:
    request = training_pb2.TrainingRequest(dataset=dataset.name, display_name="x" * 900 * number)
    request.data.column.name = "y"
    request.labels["team"] = f"team {number % 3}"
    if number % 2:
        request.request_id = f"request {number}"
    job = jobs.new_job(request, dataset, jobs.now())
    job.name = f"jobs/{number}"
    job, event = jobs.apply(job, jobs.first_events(request, 1)[0], jobs.now())
    await store.create_job(job, request, [event])
    for epoch in range(1, 15):
        done = training_pb2.EpochCompleted(epoch=epoch, learning_rate=1 / epoch)
        job, event = jobs.apply(job, training_pb2.TrainingEvent(epoch=done), jobs.now())
        await store.save(job, event)
    name = f"models/{number}"
    ended = training_pb2.TrainingEvent(succeeded=training_pb2.JobSucceeded(model=name))
    job, event = jobs.apply(job, ended, jobs.now())
    await store.save(job, event, model_pb2.Model(name=name, job=job.name, class_names=["a", "b"]))
    return job


async def read_all(store: Store) -> dict[str, Any]:
    """Everything that the store answers with."""
    found, _ = await store.jobs(None, MANY)
    by_label = [await store.jobs(None, MANY, labels={"team": f"team {i}"}) for i in range(3)]
    logs = [[e async for e in _log(store, job.name)] for job in found]
    requests = [await store.job_by_request_id(f"request {i}") for i in range(12)]
    return {
        "jobs": found,
        "by state": await store.jobs_in_states(*STATES),
        "by name": [await store.submitted(job.name) for job in found],
        "by label": by_label,
        "by request_id": requests,
        "logs": logs,
        "datasets": await store.datasets(None, MANY),
        "users": [await store.jobs_of_dataset(f"datasets/sha256-{i:064}", 9) for i in range(12)],
        "models": await store.models(None, MANY),
        "aliases": [await store.model(f"models/{alias}") for alias in ("production", "newest")],
    }


async def _log(store: Store, name: str) -> Any:
    for event in await store.events(name, 0, MANY):
        yield event


def use(path: Path, work: Callable[[Store], Any]) -> Any:
    """Open the database, do the work, close it."""

    async def session() -> Any:
        store = Store(path)
        try:
            return await work(store)
        finally:
            await store.close()

    return asyncio.run(session())


def files(folder: Path) -> dict[str, bytes]:
    """The database's files, but for -shm, which SQLite makes anew at each start."""
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name in ("a.db", "a.db-wal")
    }


FILL_AND_DIE = """
import asyncio, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_database import fill
from trainwire_server.jobs.store import Store

async def main():
    await fill(Store(Path(sys.argv[1])), 6)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a database that was closed."""
    folder = tmp_path_factory.mktemp("closed")
    use(folder / "a.db", fill)
    assert list(files(folder)) == ["a.db"]
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a database whose server was killed: all of it is in the -wal, and nothing else,
    because it is too little for SQLite to have moved any of it."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-c", FILL_AND_DIE, str(folder / "a.db"), str(Path(__file__).parent)]
    assert subprocess.run(command, check=False).returncode == -9
    assert len(files(folder)["a.db-wal"]) > 100_000
    return folder


def opened(folder: Path) -> dict[str, Any] | None:
    """What a database holds; None if it was refused, as it must be: clearly, and left alone."""
    before = files(folder)
    try:
        return dict(use(folder / "a.db", read_all))
    except sqlite3.DatabaseError as error:
        said = str(error)
    assert re.search("damaged: .*restore|another version", said), said
    assert files(folder) == before
    return None


def damaged_copies(source: Path, folder: Path, name: str, count: int, seed: int) -> Any:
    """Copies with one byte changed each, at places spread by chance over one file."""
    generator = random.Random(seed)
    data = (source / name).read_bytes()
    # The header by all means: every byte of it means something.
    places = [*range(HEADER), *generator.sample(range(HEADER, len(data)), count - HEADER)]
    for place in places:
        trial = folder / f"{place}"
        trial.mkdir()
        for file, content in files(source).items():
            (trial / file).write_bytes(content)
        changed = bytearray(data)
        changed[place] ^= generator.randrange(1, 256)
        (trial / name).write_bytes(changed)
        yield place, trial
        shutil.rmtree(trial)


def test_a_changed_byte_is_refused_or_without_effect(closed: Path, tmp_path: Path) -> None:
    expected = use(closed / "a.db", read_all)
    refused = 0
    for place, trial in damaged_copies(closed, tmp_path, "a.db", FLIPS, seed=1):
        found = opened(trial)
        refused += found is None
        assert found in (None, expected), f"byte {place}"
    assert refused > FLIPS / 2


def test_what_a_killed_server_left_is_read_back(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path / "copy")
    found = opened(tmp_path / "copy")
    assert found is not None
    assert [job.name for job in found["jobs"]] == [f"jobs/{i}" for i in (5, 4, 2, 1, 0)]
    assert [model.name for model in found["aliases"]] == ["models/1", "models/4"]


def test_a_changed_byte_in_the_log_costs_no_more_than_the_last_commits(
    killed: Path, tmp_path: Path
) -> None:
    """What is in the -wal alone: a server that was killed has acknowledged all of it."""
    shutil.copytree(killed, tmp_path / "copy")
    expected = use(tmp_path / "copy" / "a.db", read_all)
    outcomes = []
    for _, trial in damaged_copies(killed, tmp_path, "a.db-wal", LOG_FLIPS, seed=2):
        found = opened(trial)
        outcomes.append(found)
        # The last two commits of `fill` are the aliases.
        assert found is None or {**found, "models": 0, "aliases": 0} == {
            **expected,
            "models": 0,
            "aliases": 0,
        }
    assert outcomes.count(None) > LOG_FLIPS * 0.8


def test_a_truncated_file_is_refused(closed: Path, tmp_path: Path) -> None:
    data = (closed / "a.db").read_bytes()
    expected = use(closed / "a.db", read_all)
    for size in random.Random(3).sample(range(1, len(data)), TRUNCATIONS):
        (tmp_path / "a.db").write_bytes(data[:size])
        # The last page may be one that holds nothing.
        allowed = (None, expected) if size > len(data) - 4096 else (None,)
        assert opened(tmp_path) in allowed, size


@pytest.mark.parametrize("content", [b"garbage" * 1000, b"\0" * 8192, b"SQLite format 3\0"])
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.db").write_bytes(content)
    assert opened(tmp_path) is None


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    (tmp_path / "a.db").touch()
    found = opened(tmp_path)
    assert found is not None
    assert found["jobs"] == []


def test_an_empty_file_beside_a_full_log_is_refused(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "a.db").write_bytes(b"")
    assert opened(tmp_path) is None
    (tmp_path / "a.db").unlink()
    assert opened(tmp_path) is None


def test_an_empty_log_is_no_damage(closed: Path, tmp_path: Path) -> None:
    shutil.copytree(closed, tmp_path, dirs_exist_ok=True)
    (tmp_path / "a.db-wal").touch()
    assert opened(tmp_path) == use(closed / "a.db", read_all)


@pytest.mark.parametrize("table", ["jobs", "labels", "events", "datasets", "models", "aliases"])
def test_a_row_changed_by_another_hand_is_named(closed: Path, tmp_path: Path, table: str) -> None:
    shutil.copy(closed / "a.db", tmp_path)
    column = {"labels": "value", "aliases": "model"}.get(table, "body")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection, connection:
        connection.execute(f"UPDATE {table} SET {column} = substr({column}, 2)")
    with pytest.raises(sqlite3.DatabaseError, match=f"a row of {table} .* is not what was written"):
        Store(tmp_path / "a.db")


# ------------------------------------------------------------------------ versions

VERSION_2 = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,        -- grows with every change: the order of lists
    submitted INTEGER NOT NULL UNIQUE,   -- grows with every job: the order of the queue
    state INTEGER NOT NULL,
    request_id TEXT UNIQUE,
    dataset TEXT NOT NULL,
    request BLOB NOT NULL,               -- the TrainingRequest as it came
    body BLOB NOT NULL                   -- the TrainingJob
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, submitted);
CREATE INDEX IF NOT EXISTS jobs_by_dataset ON jobs (dataset);
CREATE TABLE IF NOT EXISTS labels (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (job, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    sequence INTEGER NOT NULL,
    epoch INTEGER,
    body BLOB NOT NULL,                  -- the TrainingEvent
    PRIMARY KEY (job, sequence)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS events_by_epoch ON events (job, epoch) WHERE epoch IS NOT NULL;
CREATE TABLE IF NOT EXISTS datasets (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,
    body BLOB NOT NULL                   -- the Dataset
) STRICT;
CREATE TABLE IF NOT EXISTS models (
    id TEXT PRIMARY KEY,
    rank INTEGER NOT NULL UNIQUE,
    body BLOB NOT NULL                   -- the Model
) STRICT;
PRAGMA user_version = 2;
"""
TABLES = {
    "jobs": "id, rank, submitted, state, request_id, dataset, request, body",
    "labels": "job, key, value",
    "events": "job, sequence, epoch, body",
    "datasets": "id, rank, body",
    "models": "id, rank, body",
}


@pytest.fixture
def old(closed: Path, tmp_path: Path) -> Path:
    """A database as version 2 wrote it, with all rows of `closed`."""
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(VERSION_2)
        connection.execute("ATTACH ? AS new", (str(closed / "a.db"),))
        for table, columns in TABLES.items():
            connection.execute(f"INSERT INTO {table} SELECT {columns} FROM new.{table}")
    return path


def test_a_database_of_version_2_is_brought_up(old: Path, closed: Path) -> None:
    expected = use(closed / "a.db", read_all)
    for model in expected["models"][0]:
        del model.aliases[:]
    expected["aliases"] = [None, None]
    assert use(old, read_all) == expected
    # Once more: now it is of this version, its checksums are compared, and it takes aliases.
    assert use(old, read_all) == expected
    model = use(old, lambda store: store.set_alias("first", "models/1"))
    assert list(model.aliases) == ["first"]


def test_a_migration_that_fails_half_way_leaves_version_2(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainwire_server.jobs import database

    broken = f"{database._SQL['version_3']} SELECT nothing_of_that_name;"
    monkeypatch.setitem(database._SQL, "version_3", broken)
    with pytest.raises(sqlite3.OperationalError, match="nothing_of_that_name"):
        Store(old)
    monkeypatch.undo()
    with contextlib.closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert len(use(old, read_all)["jobs"]) == 9


@pytest.mark.parametrize("version", [0, 2])
def test_a_version_that_does_not_fit_the_tables_is_damage(
    closed: Path, tmp_path: Path, version: int
) -> None:
    shutil.copy(closed / "a.db", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    assert opened(tmp_path) is None


@pytest.mark.parametrize("version", [1, 4, 99])
def test_a_database_of_another_version_is_refused_and_left_alone(
    closed: Path, tmp_path: Path, version: int
) -> None:
    shutil.copy(closed / "a.db", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = files(tmp_path)
    with pytest.raises(sqlite3.DatabaseError, match=f"another version.*database version {version}"):
        Store(tmp_path / "a.db")
    assert files(tmp_path) == before
