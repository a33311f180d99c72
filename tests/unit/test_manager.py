"""The life of jobs when the database, the probe or a caller fails: faults no real server gives."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message

from trainwire.v1 import dataset_pb2, system_pb2, training_pb2
from trainwire_server.data.catalog import Catalog
from trainwire_server.data.checkpoints import FOLDER
from trainwire_server.errors import JobNotResumable, NotFound, ServerStopping, StorageFull
from trainwire_server.execution.executor import NotStarted, Probe, Task, Train
from trainwire_server.identity import CALLER, DEFAULT_TENANT, Identity, Role
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.houses import House, Houses
from trainwire_server.jobs.ledger import Ledger
from trainwire_server.jobs.manager import Workshop
from trainwire_server.jobs.queue import Slots
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.run import Limits
from trainwire_server.jobs.scheduler import Scheduler
from trainwire_server.jobs.store import Store
from trainwire_server.jobs.tenants import Rules, Tenants
from trainwire_server.jobs.watch import Watches
from trainwire_server.meters import Meters

SHA256 = "0" * 64
DATASET = dataset_pb2.Dataset(
    name=f"datasets/sha256-{SHA256}",
    sha256=SHA256,
    row_count=500,
    columns=[
        dataset_pb2.DatasetColumn(name="x", type=dataset_pb2.COLUMN_TYPE_FLOAT),
        dataset_pb2.DatasetColumn(name="y", type=dataset_pb2.COLUMN_TYPE_INTEGER),
    ],
)


def request_of(dataset: dataset_pb2.Dataset) -> training_pb2.TrainingRequest:
    request = training_pb2.TrainingRequest(dataset=dataset.name)
    request.data.column.name = "y"
    return request


class FaultyStore(Store):
    """A database that can be told to refuse so many writes."""

    refusals = 0
    refuses_events_alone = False
    error: Exception = sqlite3.OperationalError("disk I/O error")

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.refused = asyncio.Event()

    async def save(self, *args: Any, **kwargs: Any) -> None:
        if self.refusals and not (self.refuses_events_alone and len(args) == 1):
            self.refusals -= 1
            self.refused.set()
            raise self.error
        await super().save(*args, **kwargs)


class Child:
    """A process that says nothing until it is gone."""

    pid = 0

    def __init__(self, said: list[Message]) -> None:
        self.cancels = self.drains = self.confirmed = 0
        self.gone = asyncio.Event()
        self._said = said

    async def messages(self) -> AsyncIterator[Message]:
        for message in self._said:
            yield message
        if not self._said:
            await self.gone.wait()

    def cancel(self) -> None:
        self.cancels += 1

    def confirm(self) -> None:
        self.confirmed += 1

    def drain(self) -> None:
        self.drains += 1

    def kill(self) -> None:
        self.gone.set()

    async def wait(self) -> int:
        if not self._said:
            await self.gone.wait()
        return -9


class Children:
    """An executor whose probe can be told to fail.

    Attributes:
        tasks: what each process was started for.
        says: what the next process says before it is lost; with nothing to say it stays.
    """

    name = "test"

    def __init__(self, probe_fails: bool = False) -> None:
        self.started: list[Child] = []
        self.tasks: list[Task] = []
        self.says: list[Message] = []
        self.refusals = 0
        self.began, self.refused = asyncio.Event(), asyncio.Event()
        self.may_probe = asyncio.Event()
        self.may_probe.set()
        self._probe_fails = probe_fails

    async def start(self, task: Task) -> Child:
        if isinstance(task, Probe):
            await self.may_probe.wait()
            if self._probe_fails:
                raise BlockingIOError("no more processes")
            cpu = system_pb2.DeviceInfo(name="cpu")
            return Child([system_pb2.SystemInfo(devices=[cpu])])
        if self.refusals:
            self.refusals -= 1
            self.refused.set()
            raise NotStarted("the fork server ended")
        said, self.says = self.says, []
        self.tasks.append(task)
        self.started.append(Child(said))
        self.began.set()
        return self.started[-1]


class AskedDevices(Devices):
    """Devices that say when somebody wants to know them."""

    def __init__(self, executor: Children) -> None:
        super().__init__(executor)
        self.asked = asyncio.Event()

    async def found(self) -> system_pb2.SystemInfo:
        self.asked.set()
        return await super().found()


class SlowHouses(Houses):
    """Opening a house takes until it is allowed to."""

    def __init__(self, data_dir: Path, meters: Meters) -> None:
        super().__init__(data_dir, meters)
        self.opening, self.may_open = threading.Event(), threading.Event()

    def open(self, tenant: str) -> House:
        self.opening.set()
        assert self.may_open.wait(30)
        return super().open(tenant)


class Bench:
    """A manager on a real database and a real data directory."""

    def __init__(self, folder: Path, probe_fails: bool = False, threads: int = 1) -> None:
        self.catalog = Catalog(folder)
        self.store = FaultyStore(self.catalog.database)
        self.children = Children(probe_fails)
        self.devices = AskedDevices(self.children)
        self.scheduler = Scheduler(Slots(1, 1), 10, Quotas())
        workshop = Workshop(
            self.children,
            self.devices,
            self.scheduler,
            Limits(threads=threads, memory_bytes=0, lease=30.0, grace=60.0, attempts=3),
            heartbeat=15.0,
        )
        house = House(DEFAULT_TENANT, self.catalog, self.store)
        rules = Rules(retain_days=0, max_data_bytes=0, quotas=Quotas())
        meters = Meters()
        self.houses = SlowHouses(folder, meters)
        self.tenants = Tenants([house], self.houses, workshop, rules, meters)
        self.manager = next(iter(self.tenants)).manager

    async def submit(self) -> training_pb2.TrainingJob:
        """The only job there is."""
        await self.store.add_dataset(DATASET)
        await self.tenants.recover()
        return await self.manager.submit(request_of(DATASET))

    async def start_job(self) -> training_pb2.TrainingJob:
        """The same, whose process has been started."""
        job = await self.submit()
        await self.children.began.wait()
        return await self.manager.get(job.name)

    async def close(self) -> None:
        await self.tenants.drain(grace=0.0)
        await self.store.close()
        self.catalog.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        await asyncio.wait_for(work(), 30)

    asyncio.run(limited())


def test_a_cancel_that_could_not_be_stored_can_be_asked_for_again(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        job = await bench.start_job()
        bench.store.refusals = 1
        with pytest.raises(sqlite3.OperationalError):
            await bench.manager.cancel(job.name)
        assert (await bench.manager.get(job.name)).state == training_pb2.JOB_STATE_RUNNING
        cancelled = await bench.manager.cancel(job.name)
        assert cancelled.state == training_pb2.JOB_STATE_CANCELLING
        assert [child.cancels for child in bench.children.started] == [1]
        bench.children.started[0].kill()
        events = [event async for event in bench.manager.watch(job.name, 0)]
        assert events[-1].HasField("cancelled")
        await bench.close()

    run(work)


def test_a_job_ends_even_if_its_end_could_not_be_stored_at_first(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        job = await bench.start_job()
        # Neither that the job waits for another process nor that it has failed can be stored.
        bench.store.refusals = 2
        bench.children.started[0].kill()
        events = [event async for event in bench.manager.watch(job.name, 0)]
        assert events[-1].failed.failure.reason == training_pb2.FAILURE_REASON_INTERNAL
        assert bench.store.refusals == 0
        await bench.close()

    run(work)


def test_what_a_job_leaves_that_ends_by_an_error_counts_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        epoch = training_pb2.EpochCompleted(epoch=1)
        bench.children.says = [training_pb2.TrainingEvent(epoch=epoch)]
        # The event, and once that the job has failed.
        bench.store.refuses_events_alone, bench.store.refusals = True, 2
        job = await bench.submit()
        await bench.store.refused.wait()
        (bench.catalog.job_folder(job.name) / "checkpoint").write_bytes(bytes(1_000))
        events = [event async for event in bench.manager.watch(job.name, 0)]
        assert events[-1].failed.failure.reason == training_pb2.FAILURE_REASON_INTERNAL
        await bench.scheduler.drain(grace=10.0)
        assert bench.catalog.stored_bytes() == 1_000
        await bench.close()

    run(work)


def test_a_cancel_that_meets_the_loss_of_the_process_cancels(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        job = await bench.start_job()
        # The process is gone, and that the job waits for another one cannot be stored yet.
        bench.store.error, bench.store.refusals = StorageFull("full"), 1
        bench.children.started[0].kill()
        await bench.store.refused.wait()
        await bench.manager.cancel(job.name)
        events = [event async for event in bench.manager.watch(job.name, 0)]
        assert events[-1].HasField("cancelled")
        assert bench.manager.running_jobs == 0
        await bench.close()

    run(work)


def test_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        # More often than it may lose a process: it has lost none.
        bench.children.refusals = 4
        job = await bench.start_job()
        assert (job.state, job.attempt) == (training_pb2.JOB_STATE_RUNNING, 1)
        await bench.close()

    run(work)


def test_a_job_that_waits_for_a_process_can_be_cancelled(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        bench.children.refusals = 1_000_000
        job = await bench.submit()
        async for event in bench.manager.watch(job.name, 0):
            if event.HasField("queued"):
                await bench.children.refused.wait()
                cancelling = await bench.manager.cancel(job.name)
                assert cancelling.state == training_pb2.JOB_STATE_CANCELLING
        assert event.HasField("cancelled")
        assert bench.manager.running_jobs == 0
        await bench.close()

    run(work)


def test_every_attempt_computes_with_the_threads_of_the_first(tmp_path: Path) -> None:
    def threads(bench: Bench) -> list[int]:
        return [task.threads for task in bench.children.tasks if isinstance(task, Train)]

    async def work() -> None:
        first = Bench(tmp_path, threads=2)
        # Lost before it has left a checkpoint, which would tell the threads as well.
        started = training_pb2.JobStarted(threads=2)
        first.children.says = [training_pb2.TrainingEvent(started=started)]
        job = await first.start_job()
        events = first.manager.watch(job.name, 0)
        assert await anext(event async for event in events if event.HasField("started"))
        await first.close()
        second = Bench(tmp_path, threads=1)
        await second.tenants.recover()
        await second.children.began.wait()
        assert (threads(first)[0], threads(second)) == (2, [2])
        await second.close()

    run(work)


def test_a_watcher_far_behind_hears_that_the_job_was_deleted(tmp_path: Path) -> None:
    async def work() -> None:
        store = Store(tmp_path / "trainwire.db")
        ledger = Ledger(store)
        succeeded = training_pb2.JOB_STATE_SUCCEEDED
        # Held by the watcher alone: its log is gone.
        ledger.activate(training_pb2.TrainingJob(name="jobs/a", state=succeeded, last_sequence=9))
        with pytest.raises(NotFound):
            [event async for event in Watches(ledger, heartbeat=0.1).watch("jobs/a", 3)]
        await store.close()

    run(work)


def test_without_an_answer_of_the_probe_jobs_train_on_the_cpu(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path, probe_fails=True)
        job = await bench.start_job()
        assert job.state == training_pb2.JOB_STATE_RUNNING
        await bench.close()

    run(work)


async def waiting_job(
    store: Store, request: training_pb2.TrainingRequest
) -> training_pb2.TrainingJob:
    """A job that a server before this one has left."""
    job = jobs.new_job(request, DATASET, jobs.now())
    job, queued = jobs.apply(job, jobs.first_events(request, 1)[0], jobs.now())
    await store.create_job(job, request, [queued])
    return job


async def ended_job(store: Store, request: training_pb2.TrainingRequest) -> str:
    """A job that was cancelled before it had a checkpoint."""
    job = await waiting_job(store, request)
    job, cancelled = jobs.apply(job, jobs.cancelled(job), jobs.now())
    await store.save(job, cancelled)
    return job.name


def test_what_a_job_goes_on_from_counts_before_it_trains(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        await bench.start_job()
        job = await waiting_job(bench.store, request_of(DATASET))
        epoch = training_pb2.TrainingEvent(epoch=training_pb2.EpochCompleted(epoch=1))
        for event in (epoch, jobs.cancelled(job)):
            job, stored = jobs.apply(job, event, jobs.now())
            await bench.store.save(job, stored)
        folder = bench.catalog.job_folder(job.name) / FOLDER
        folder.mkdir()
        data = bytes(1_000)
        (folder / f"000001-{hashlib.sha256(data).hexdigest()}.safetensors").write_bytes(data)
        changes = training_pb2.TrainingRequest(request_id="again")
        resumed = await bench.manager.resume(job.name, changes)
        assert resumed.state == training_pb2.JOB_STATE_QUEUED
        # A half of what both have for each.
        assert bench.catalog.stored_bytes() == len(data)
        await bench.close()

    run(work)


@pytest.mark.parametrize("call", ["submit", "resume"])
def test_who_waits_for_the_probe_holds_nobody_up(call: str, tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        bench.children.may_probe.clear()
        await bench.store.add_dataset(DATASET)
        large = request_of(DATASET)
        large.model.hybrid_cnn_lstm.lstm_hidden_size = 2000
        changes = training_pb2.TrainingRequest(request_id="again")
        name = await ended_job(bench.store, large)
        waiting = asyncio.create_task(
            bench.manager.submit(large) if call == "submit" else bench.manager.resume(name, changes)
        )
        await bench.devices.asked.wait()
        small = await bench.manager.submit(request_of(DATASET))
        assert (small.state, waiting.done()) == (training_pb2.JOB_STATE_QUEUED, False)
        bench.children.may_probe.set()
        if call == "submit":
            assert (await waiting).queue_position == 2
        else:
            with pytest.raises(JobNotResumable, match="has no checkpoint"):
                await waiting
        await bench.close()

    run(work)


def test_a_dry_run_whose_dataset_is_deleted_meanwhile_does_not_find_it(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        (tenant,) = bench.tenants
        await bench.store.add_dataset(DATASET)
        runs = [asyncio.create_task(bench.manager.validate(request_of(DATASET))) for _ in "ab"]
        await bench.children.began.wait()
        await tenant.datasets.delete(DATASET.name)
        # One has its process, which has nothing to read any more; the other one gets none.
        bench.children.started[0].kill()
        for run in runs:
            with pytest.raises(NotFound, match=f"{DATASET.name} does not exist"):
                await run
        assert len(bench.children.started) == 1
        await bench.close()

    run(work)


# ------------------------------------------------------------------------ tenants at a stop


async def call_as(tenant: str, tenants: Tenants, job: str) -> None:
    """A watch that is the first call of a tenant."""
    CALLER.set(Identity("late-ci", Role.READ, tenant))
    async for _ in (await tenants.of_caller()).manager.watch(job, 0):
        pass


async def leave_job(folder: Path, tenant: str) -> str:
    """A job in the folder of a tenant that nobody has open."""
    houses = Houses(folder, Meters())
    job = await waiting_job(houses.open(tenant).store, request_of(DATASET))
    await houses.close()
    return job.name


def test_a_tenant_that_is_being_opened_at_the_stop_is_drained_like_others(tmp_path: Path) -> None:
    async def work() -> None:
        bench, others = Bench(tmp_path), asyncio.all_tasks()
        job = await leave_job(tmp_path, "late")
        watching = asyncio.create_task(call_as("late", bench.tenants, job))
        await asyncio.to_thread(bench.houses.opening.wait, 30)
        stopping = asyncio.create_task(bench.tenants.drain(grace=0.0))
        await asyncio.sleep(0)
        assert bench.scheduler.is_stopping
        # Its disk may be slow: no longer than the grace is that waited for.
        await stopping
        bench.houses.may_open.set()
        with pytest.raises(ServerStopping):
            await watching
        # Nothing of it goes on, and another server may have its folder.
        await bench.devices.names()
        assert asyncio.all_tasks() <= others
        await bench.houses.close()
        assert await leave_job(tmp_path, "late") != job
        await bench.close()

    run(work)


def test_a_tenant_that_calls_first_after_the_stop_is_refused(tmp_path: Path) -> None:
    async def work() -> None:
        bench = Bench(tmp_path)
        bench.houses.may_open.set()
        await bench.tenants.drain(grace=0.0)
        with pytest.raises(ServerStopping):
            await call_as("late", bench.tenants, "jobs/any")
        assert not (tmp_path / "tenants").exists()
        await bench.close()

    run(work)


# ------------------------------------------------------------------------ datasets


class SlowCatalog(Catalog):
    """Removing a folder takes until it is allowed to."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.removing, self.may_remove = threading.Event(), threading.Event()

    def remove(self, name: str) -> None:
        self.removing.set()
        assert self.may_remove.wait(30)
        super().remove(name)


async def upload(catalog: Catalog, datasets: Datasets) -> None:
    taken = catalog.begin_upload(0, SHA256)
    taken.table.write_bytes(b"table")
    await datasets.keep(taken, DATASET)
    taken.discard()


async def begin_removal(catalog: SlowCatalog, datasets: Datasets) -> asyncio.Task[None]:
    """A stored dataset whose deletion is half done."""
    catalog.may_remove.set()
    await upload(catalog, datasets)
    catalog.may_remove.clear()
    catalog.removing.clear()
    deletion = asyncio.create_task(datasets.delete(DATASET.name))
    await asyncio.to_thread(catalog.removing.wait, 30)
    return deletion


def test_an_upload_during_a_deletion_is_whole_afterwards(tmp_path: Path) -> None:
    async def work() -> None:
        catalog = SlowCatalog(tmp_path)
        store = Store(catalog.database)
        datasets = Datasets(store, catalog)
        deletion = await begin_removal(catalog, datasets)
        again = asyncio.create_task(upload(catalog, datasets))
        catalog.may_remove.set()
        await asyncio.gather(deletion, again)
        assert await store.dataset(DATASET.name) == DATASET
        assert catalog.table(DATASET.name).read_bytes() == b"table"
        await store.close()
        catalog.close()

    run(work)


def test_a_caller_that_leaves_a_deletion_leaves_no_files_behind(tmp_path: Path) -> None:
    async def work() -> None:
        catalog = SlowCatalog(tmp_path)
        store = Store(catalog.database)
        datasets = Datasets(store, catalog)
        deletion = await begin_removal(catalog, datasets)
        deletion.cancel()
        await asyncio.wait([deletion])
        catalog.may_remove.set()
        async with datasets.lock:
            assert await store.dataset(DATASET.name) is None
            assert not catalog.table(DATASET.name).exists()
        await store.close()
        catalog.close()

    run(work)
