"""The store: jobs, numbered events, datasets and models in a real SQLite file."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from trainwire.v1 import dataset_pb2, model_pb2, training_pb2
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.store import Store


def run(path: Path, work: Callable[[Store], Awaitable[None]]) -> None:
    """Open the store, do the work, close it."""

    async def session() -> None:
        store = Store(path / "test.db")
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(session())


def new_job(request_id: str = "") -> tuple[training_pb2.TrainingRequest, training_pb2.TrainingJob]:
    request = training_pb2.TrainingRequest(dataset="datasets/d")
    request.data.column.name = "y"
    if request_id:
        request.request_id = request_id
    return request, jobs.new_job(request, dataset_pb2.Dataset(sha256="d"), jobs.now())


async def create(store: Store, request_id: str = "") -> training_pb2.TrainingJob:
    request, job = new_job(request_id)
    queued = training_pb2.TrainingEvent(queued=training_pb2.JobQueued(queue_position=1))
    job, event = jobs.apply(job, queued, jobs.now())
    await store.create_job(job, request, [event])
    return job


def epoch(number: int) -> training_pb2.TrainingEvent:
    return training_pb2.TrainingEvent(epoch=training_pb2.EpochCompleted(epoch=number))


def test_a_job_and_its_events_come_back_after_a_restart(tmp_path: Path) -> None:
    kept: list[training_pb2.TrainingJob] = []

    async def write(store: Store) -> None:
        job = await create(store)
        for number in (1, 2, 3):
            job, event = jobs.apply(job, epoch(number), jobs.now())
            await store.save(job, event)
        kept.append(job)

    async def read(store: Store) -> None:
        (job,) = kept
        assert await store.job(job.name) == job
        events = await store.events(job.name, after=0, limit=100)
        assert [event.sequence for event in events] == [1, 2, 3, 4]
        assert [e.sequence for e in await store.events(job.name, after=2, limit=1)] == [3]

    run(tmp_path, write)
    run(tmp_path, read)


def test_an_epoch_is_stored_once(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        job = await create(store)
        job, event = jobs.apply(job, epoch(1), jobs.now())
        await store.save(job, event)
        again, second = jobs.apply(job, epoch(1), jobs.now())
        with pytest.raises(sqlite3.IntegrityError):
            await store.save(again, second)
        # Nothing of the refused transaction is left, the job's new row included.
        assert await store.job(job.name) == job
        assert len(await store.events(job.name, after=0, limit=100)) == 2

    run(tmp_path, work)


def test_jobs_are_listed_by_their_last_change_in_pages(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        made = [await create(store) for _ in range(5)]
        changed, event = jobs.apply(made[1], epoch(1), jobs.now())
        await store.save(changed, event)
        order = [made[1], made[4], made[3], made[2], made[0]]
        names: list[str] = []
        following: int | None = None
        for size in (2, 2, 1):
            page, following = await store.jobs(following, 2)
            assert len(page) == size
            names += [job.name for job in page]
        assert following is None
        assert names == [job.name for job in order]

    run(tmp_path, work)


def test_a_page_ends_before_it_is_too_large_for_a_message(tmp_path: Path) -> None:
    sizes = [1_000, 960_000, 1_000, 1_200_000, 1_000, 460_000, 460_000, 460_000]

    async def work(store: Store) -> None:
        for number, size in enumerate(sizes):
            model = model_pb2.Model(name=f"models/{number}", class_names=["c" * size])
            _, job = new_job()
            await store.save(job, model=model)
        pages: list[list[str]] = []
        following: int | None = None
        while following is not None or not pages:
            page, following = await store.models(following, 1000)
            pages.append([model.name.removeprefix("models/") for model in page])
        assert pages == [["7", "6"], ["5", "4"], ["3"], ["2", "1", "0"]]

    run(tmp_path, work)


def test_the_queue_keeps_the_order_of_submission(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        made = [await create(store) for _ in range(3)]
        await store.save(jobs.begin(made[0], jobs.now()))
        await store.save(made[1])
        queued = await store.jobs_in_states(training_pb2.JOB_STATE_QUEUED)
        assert [job.name for job in queued] == [made[1].name, made[2].name]

    run(tmp_path, work)


def test_a_request_id_finds_its_request_and_job(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        job = await create(store, "first")
        found = await store.job_by_request_id("first")
        assert found is not None
        assert found[0].request_id == "first"
        assert found[1] == job
        assert await store.job_by_request_id("second") is None
        with pytest.raises(sqlite3.IntegrityError):
            await create(store, "first")

    run(tmp_path, work)


def test_a_model_is_stored_with_the_event_that_made_it_or_not_at_all(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        job = await create(store)
        model = model_pb2.Model(name="models/m", job=job.name)
        done = training_pb2.TrainingEvent(succeeded=training_pb2.JobSucceeded(model=model.name))
        ended, event = jobs.apply(job, done, jobs.now())
        event.sequence = 1
        with pytest.raises(sqlite3.IntegrityError):
            await store.save(ended, event, model)
        assert await store.model(model.name) is None
        event.sequence = 2
        await store.save(ended, event, model)
        assert await store.model(model.name) == model

    run(tmp_path, work)


def test_a_dataset_stays_as_it_was_stored_first(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        first = dataset_pb2.Dataset(name="datasets/d", row_count=1)
        await store.add_dataset(first)
        await store.add_dataset(dataset_pb2.Dataset(name="datasets/d", row_count=2))
        assert await store.dataset("datasets/d") == first
        assert (await store.datasets(None, 10)) == ([first], None)

    run(tmp_path, work)


def test_a_database_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    with pytest.raises(sqlite3.DatabaseError, match="another version"):
        Store(path)
    assert path.read_bytes() == before


def test_what_a_caller_that_left_asked_wrongly_is_forgotten(tmp_path: Path) -> None:
    told: list[object] = []

    async def work(store: Store) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, fault: told.append(fault))
        asking = asyncio.create_task(store.set_alias("none", None))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        # The thread works in order: what was asked before has been answered.
        await store.names()

    run(tmp_path, work)
    gc.collect()
    assert told == []
