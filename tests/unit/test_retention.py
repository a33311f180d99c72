"""What retention deletes, and what it never does."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from trainwire.v1 import dataset_pb2, model_pb2, training_pb2
from trainwire_server.data.catalog import Catalog
from trainwire_server.errors import QuotaExceeded, StorageFull
from trainwire_server.identity import DEFAULT_TENANT
from trainwire_server.jobs import houses
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.removal import remove_job_and_model
from trainwire_server.jobs.retention import (
    AGE,
    ROOM,
    EndedJob,
    Retention,
    StoredDataset,
    TableRoom,
    choose,
)
from trainwire_server.jobs.store import Store

NOW = 1_700_000_000.0
HOUR, DAY = 3_600.0, 86_400.0
KB = 1024

# ------------------------------------------------------------------------ the choice

times = st.floats(NOW - 30 * DAY, NOW + HOUR)
sizes = st.integers(0, 10_000)
names = st.sampled_from(["datasets/a", "datasets/b", "datasets/c"])


@st.composite
def facts(draw: st.DrawFn) -> tuple[list[EndedJob], list[StoredDataset]]:
    """Ended jobs and datasets; each dataset may have users beside the ended jobs."""
    ended = [
        EndedJob(f"jobs/{i}", draw(times), draw(sizes), draw(names), draw(st.booleans()))
        for i in range(draw(st.integers(0, 6)))
    ]
    users = Counter(job.dataset for job in ended)
    stored = [
        StoredDataset(name, draw(times), draw(sizes), users[name] + draw(st.integers(0, 1)))
        for name in ("datasets/a", "datasets/b", "datasets/c")
    ]
    return ended, stored


@given(facts(), st.one_of(st.just(float("-inf")), times), st.integers(-1000, 60_000))
def test_only_what_may_go_goes(
    given_facts: tuple[list[EndedJob], list[StoredDataset]], oldest: float, excess: int
) -> None:
    ended, stored = given_facts
    chosen = choose(ended, stored, oldest, excess, NOW)
    names = [deletion.name for deletion in chosen]
    assert len(set(names)) == len(names)
    left = Counter(job.dataset for job in ended if job.name not in names)
    ended_users = Counter(job.dataset for job in ended)
    for job in ended:
        assert not (job.is_kept and job.name in names)
    for dataset in stored:
        if dataset.name in names:
            assert left[dataset.name] == 0
            assert dataset.users == ended_users[dataset.name]
            ends = [job.end for job in ended if job.dataset == dataset.name]
            last_used = max([dataset.last_used, *ends])
            assert last_used < oldest or last_used <= NOW - HOUR
    # Beyond the limit of age nothing goes without need, and nothing fresh of the datasets.
    freed = 0
    for deletion in chosen:
        if deletion.why == ROOM:
            assert freed < excess
            assert deletion.last_used >= oldest
            assert deletion.name.startswith("jobs/") or deletion.last_used <= NOW - HOUR
        else:
            assert deletion.last_used < oldest
        freed += deletion.size


@given(facts(), st.one_of(st.just(float("-inf")), times), st.integers(-1000, 60_000))
def test_enough_goes_or_nothing_more_may(
    given_facts: tuple[list[EndedJob], list[StoredDataset]], oldest: float, excess: int
) -> None:
    ended, stored = given_facts
    chosen = {d.name: d for d in choose(ended, stored, oldest, excess, NOW)}
    is_enough = sum(deletion.size for deletion in chosen.values()) >= excess
    for job in ended:
        if job.name not in chosen:
            assert job.is_kept or (is_enough and job.end >= oldest)
    released = Counter(job.dataset for job in ended if job.name in chosen)
    for dataset in stored:
        is_free = dataset.users == released[dataset.name]
        if is_free and dataset.name not in chosen:
            ends = [job.end for job in ended if job.dataset == dataset.name]
            last_used = max([dataset.last_used, *ends])
            assert last_used >= oldest
            assert is_enough or last_used > NOW - HOUR


@given(facts(), st.integers(0, 60_000))
def test_the_oldest_jobs_go_first_and_datasets_last(
    given_facts: tuple[list[EndedJob], list[StoredDataset]], excess: int
) -> None:
    ended, stored = given_facts
    chosen = choose(ended, stored, float("-inf"), excess, NOW)
    kinds = [deletion.name.partition("/")[0] for deletion in chosen]
    assert kinds == sorted(kinds, reverse=True)
    for kind in ("jobs", "datasets"):
        ages = [d.last_used for d in chosen if d.name.startswith(kind)]
        assert ages == sorted(ages)


def test_a_job_that_is_kept_keeps_its_dataset() -> None:
    ended = [EndedJob("jobs/1", NOW - 9 * DAY, 10, "datasets/a", is_kept=True)]
    stored = [StoredDataset("datasets/a", NOW - 9 * DAY, 10, users=1)]
    assert choose(ended, stored, oldest=NOW, excess=100, now=NOW) == []


def test_reasons_are_told() -> None:
    ended = [EndedJob(f"jobs/{i}", NOW - i * DAY, 10, "datasets/a", False) for i in (1, 2, 3)]
    chosen = choose(ended, [], oldest=NOW - 2.5 * DAY, excess=20, now=NOW)
    assert [(d.name, d.why) for d in chosen] == [("jobs/3", AGE), ("jobs/2", ROOM)]


# ------------------------------------------------------------------------ the deed


class House:
    """A data directory with its store."""

    def __init__(self, folder: Path) -> None:
        self.catalog = Catalog(folder)
        self.store = Store(self.catalog.database)
        self.opened = houses.House(DEFAULT_TENANT, self.catalog, self.store)
        self.datasets = Datasets(self.store, self.catalog)

    def retention(
        self, days: float = 0, max_bytes: int = 0, quotas: Quotas | None = None
    ) -> Retention:
        return Retention(self.opened, self.datasets, days, max_bytes, quotas or Quotas())

    async def add_dataset(self, name: str, used: float = NOW, size: int = 100 * KB) -> str:
        upload = self.catalog.begin_upload(size, "")
        upload.write(b"x" * size)
        name = f"datasets/{name}"
        await self.datasets.keep(upload, dataset_pb2.Dataset(name=name))
        upload.discard()
        os.utime(self.catalog.model_folder(name), (used, used))
        return name

    async def add_job(
        self, name: str, dataset: str, end: float | None, size: int = 100 * KB, model: bool = True
    ) -> training_pb2.TrainingJob:
        """A job that has ended at a time, or has not."""
        request = training_pb2.TrainingRequest(dataset=dataset)
        job = jobs.new_job(request, dataset_pb2.Dataset(), jobs.now())
        job.name = f"jobs/{name}"
        job, queued = jobs.apply(job, jobs.first_events(request, 1)[0], jobs.now())
        await self.store.create_job(job, request, [queued])
        (self.catalog.job_folder(job.name) / "checkpoint").write_bytes(b"x" * size)
        if end is None:
            return job
        time = Timestamp()
        time.FromNanoseconds(int(end * 1e9))
        ended, stored = jobs.cancelled(job), None
        if model:
            stored = model_pb2.Model(name=f"models/{name}", job=job.name)
            ended = training_pb2.TrainingEvent(
                succeeded=training_pb2.JobSucceeded(model=stored.name)
            )
            self.catalog.model_folder(stored.name).mkdir()
            (self.catalog.model_folder(stored.name) / "weights").write_bytes(b"x" * size)
        job, event = jobs.apply(job, ended, time)
        await self.store.save(job, event, stored)
        return job

    async def job(self, name: str) -> training_pb2.TrainingJob:
        found = await self.store.job(f"jobs/{name}")
        assert found is not None
        return found

    async def used_bytes(self) -> int:
        """What counts against --max-data-bytes."""
        self.catalog.measure()
        return self.catalog.stored_bytes() + await self.store.used_bytes()

    async def names(self) -> set[str]:
        """Everything that has a row; each has its folder and no other has one."""
        known = await self.store.names()
        assert set(self.catalog.folders_before(float("inf"))) == known
        return known


def run(folder: Path, work: Callable[[House], Awaitable[None]]) -> None:
    async def session() -> None:
        house = House(folder)
        try:
            await work(house)
        finally:
            await house.store.close()
            house.catalog.close()

    asyncio.run(session())


def test_by_age_ended_jobs_go_with_their_models_and_unused_datasets(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        old, fresh = NOW - 8 * DAY, NOW - 6 * DAY
        used = await house.add_dataset("used", old)
        await house.add_dataset("unused", old)
        await house.add_dataset("fresh", fresh)
        released = await house.add_dataset("released", old)
        aliased = await house.add_dataset("aliased", old)
        await house.add_job("running", used, None)
        await house.add_job("old", released, old)
        await house.add_job("old-cancelled", used, old, model=False)
        await house.add_job("fresh", used, fresh)
        await house.add_job("aliased", aliased, old)
        await house.store.set_alias("production", "models/aliased")
        await house.retention(days=7).sweep(NOW)
        assert await house.names() == {
            *("jobs/running", "jobs/fresh", "jobs/aliased", "models/fresh", "models/aliased"),
            *("datasets/used", "datasets/fresh", "datasets/aliased"),
        }
        assert await house.store.events("jobs/old", 0, 9) == []
        assert len(await house.store.events("jobs/aliased", 0, 9)) == 2

    run(tmp_path, work)


def test_a_dataset_was_used_until_the_last_of_its_jobs_ended(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        name = await house.add_dataset("d", NOW - 9 * DAY)
        await house.add_job("first", name, NOW - 8 * DAY)
        await house.retention(days=8.5).sweep(NOW)
        await house.retention(days=7.5).sweep(NOW - DAY)
        assert name in await house.names()
        await house.retention(days=7.5).sweep(NOW)
        assert await house.names() == set()

    run(tmp_path, work)


def test_for_room_the_oldest_go_until_there_is_enough(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        used = await house.add_dataset("used", NOW - 9 * DAY)
        for i in (1, 2, 3, 4):
            await house.add_job(f"{i}", used, NOW - 60 * i)
        await house.add_job("aliased", used, NOW - DAY)
        await house.store.set_alias("production", "models/aliased")
        before = await house.used_bytes()
        await house.retention(max_bytes=before).sweep(NOW)
        assert "jobs/4" in await house.names()
        await house.retention(max_bytes=before - 300 * KB).sweep(NOW)
        names = {name for name in await house.names() if name.startswith("jobs/")}
        assert names == {"jobs/1", "jobs/2", "jobs/aliased"}
        # The events took part of it.
        assert before - 420 * KB < await house.used_bytes() <= before - 300 * KB

    run(tmp_path, work)


def test_for_room_datasets_follow_unless_somebody_may_be_about_to_submit(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        await house.add_dataset("older", NOW - 3 * HOUR)
        await house.add_dataset("old", NOW - 2 * HOUR)
        await house.add_dataset("fresh", NOW - HOUR / 2)
        waiting = await house.add_dataset("waiting", NOW - 3 * HOUR)
        await house.add_job("waiting", waiting, None)
        before = await house.used_bytes()
        await house.retention(max_bytes=before - 50 * KB).sweep(NOW)
        assert "datasets/older" not in await house.names()
        assert "datasets/old" in await house.names()
        await house.retention(max_bytes=1).sweep(NOW)
        assert await house.names() == {"datasets/fresh", "datasets/waiting", "jobs/waiting"}

    run(tmp_path, work)


def test_an_upload_that_finds_its_bytes_is_a_use(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        name = await house.add_dataset("d", NOW - 9 * DAY)
        assert await house.datasets.find(name) is not None
        used = house.catalog.last_used(name)
        assert used > NOW - 9 * DAY
        await house.retention(days=7).sweep(used + 6.9 * DAY)
        assert name in await house.names()
        await house.retention(days=7).sweep(used + 7.1 * DAY)
        assert await house.names() == set()

    run(tmp_path, work)


def test_without_limits_nothing_goes(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        name = await house.add_dataset("d", NOW - 999 * DAY)
        await house.add_job("j", name, NOW - 999 * DAY)
        await house.retention().sweep(NOW)
        assert await house.names() == {"datasets/d", "jobs/j", "models/j"}

    run(tmp_path, work)


def test_folders_without_a_row_go_after_an_hour(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        dataset = await house.add_dataset("d", NOW - 2 * HOUR)
        await house.add_job("saving", dataset, None)
        left = ["jobs/left", "datasets/left", "models/left", "models/saving"]
        for name in left:
            house.catalog.model_folder(name).mkdir()
            (house.catalog.model_folder(name) / "file").write_bytes(b"x")
            os.utime(house.catalog.model_folder(name), (NOW - 0.9 * HOUR,) * 2)
        await house.retention().sweep(NOW)
        assert set(left) <= set(house.catalog.folders_before(float("inf")))
        await house.retention().sweep(NOW + 0.2 * HOUR)
        # The model of a job that has not ended waits for its row.
        folders = set(house.catalog.folders_before(float("inf")))
        assert folders == {"datasets/d", "jobs/saving", "models/saving"}

    run(tmp_path, work)


def test_what_is_announced_counts_and_deletes_nothing(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        dataset = await house.add_dataset("d")
        for name in ("1", "2"):
            await house.add_job(name, dataset, NOW - 9)
        limit = await house.used_bytes() + 10 * KB
        retention = house.retention(max_bytes=limit)
        everything = await house.names()
        async with retention.room("datasets/n", 300 * KB):
            # All that may go is enough for one of them, and not for both.
            with pytest.raises(StorageFull, match=f"--max-data-bytes {limit} allows"):
                await retention.room("datasets/n", 300 * KB).__aenter__()
            # A sweep that comes meanwhile believes no announcement either.
            await retention.sweep(NOW)
            assert await house.names() == everything
        async with retention.room("datasets/n", 300 * KB):
            pass
        with pytest.raises(StorageFull, match=f"--max-data-bytes {limit} allows"):
            await retention.room("datasets/n", limit).__aenter__()
        assert await house.names() == everything

    run(tmp_path, work)


def test_room_is_made_for_what_has_come_or_it_is_refused(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        dataset = await house.add_dataset("d")
        await house.add_job("1", dataset, NOW - 2)
        await house.add_job("2", dataset, NOW - 1)
        limit = await house.used_bytes() + 10 * KB
        retention = house.retention(max_bytes=limit)
        everything = await house.names()
        # For what others have announced nothing goes yet.
        async with retention.room("datasets/n", 150 * KB), retention.room("datasets/n", 6 * KB):
            await retention.make_room(6 * KB)
            assert await house.names() == everything
            await retention.make_room(150 * KB)
            assert await house.names() == everything - {"jobs/1", "models/1"}
        # What cannot be made room for costs nothing.
        with pytest.raises(StorageFull, match=f"--max-data-bytes {limit} allows"):
            await retention.make_room(limit)
        assert "jobs/2" in await house.names()

    run(tmp_path, work)


def test_a_table_gets_what_the_tightest_limit_leaves_beside_its_upload(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        await house.add_dataset("d")
        used = await house.used_bytes()
        free = house.retention()
        assert await free.largest_table("datasets/n", 10 * KB) == TableRoom(0)
        limit = house.retention(max_bytes=used + 300 * KB)
        expected = TableRoom(used + 290 * KB)
        assert await limit.largest_table("datasets/n", 10 * KB) == expected
        quota = house.retention(
            max_bytes=used + 200 * KB, quotas=Quotas(stored_bytes=used + 90 * KB)
        )
        # The same bytes are stored once, however often they are announced.
        same, other = ("datasets/n", 10 * KB), ("datasets/o", 30 * KB)
        async with quota.room(*same), quota.room(*same), quota.room(*other), quota.room(*other):
            room = await quota.largest_table(*same)
        assert room == TableRoom(50 * KB, is_quota=True)
        with pytest.raises(QuotaExceeded, match="--tenant-stored-bytes"):
            quota.explain_full(room)
        # Not if it was the other limit.
        quota.explain_full(TableRoom(50 * KB))

    run(tmp_path, work)


def test_what_counts_for_the_quota_is_looked_up_by_the_sweep(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        dataset = await house.add_dataset("d")
        limit = await house.used_bytes() + 100 * KB
        retention = house.retention(quotas=Quotas(stored_bytes=limit))
        # Nobody has told the server of these files, and a check does not look for them.
        await house.add_job("j", dataset, NOW, size=200 * KB)
        await retention.check_quota()
        await retention.sweep(NOW)
        with pytest.raises(QuotaExceeded, match="--tenant-stored-bytes"):
            await retention.check_quota()
        await remove_job_and_model(house.store, house.catalog, await house.job("j"))
        await retention.check_quota()

    run(tmp_path, work)


def test_a_dataset_that_is_used_meanwhile_stays(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        name = await house.add_dataset("d", NOW - 9 * DAY)
        assert await house.datasets.find(name) is not None
        assert not await house.datasets.delete_unused(name, NOW - 9 * DAY)
        await house.add_job("j", name, None)
        assert not await house.datasets.delete_unused(name, NOW * 2)
        assert name in await house.names()

    run(tmp_path, work)


def test_room_in_the_database_is_room(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        dataset = await house.add_dataset("d")
        job = await house.add_job("1", dataset, NOW - 2)
        limit = await house.used_bytes() + 10 * KB
        large = training_pb2.TrainingJob(name="jobs/large", display_name="x" * 500 * KB)
        await house.store.create_job(large, training_pb2.TrainingRequest(dataset=dataset), [])
        await house.store.delete_job(large.name)
        await house.retention(max_bytes=limit).sweep(NOW)
        assert job.name in await house.names()
        await house.retention(max_bytes=limit - 20 * KB).sweep(NOW)
        assert job.name not in await house.names()

    run(tmp_path, work)


def test_a_model_that_gets_an_alias_meanwhile_stays_with_its_job(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        job = await house.add_job("j", await house.add_dataset("d"), NOW - DAY)
        await house.store.set_alias("production", job.model)
        assert not await remove_job_and_model(house.store, house.catalog, job)
        assert await house.names() == {"datasets/d", "jobs/j", "models/j"}
        await house.store.set_alias("production", None)
        assert await remove_job_and_model(house.store, house.catalog, job)
        assert await house.names() == {"datasets/d"}

    run(tmp_path, work)


class Watched(Retention):
    """A retention that counts its sweeps."""

    swept = asyncio.Semaphore(0)

    async def sweep(self, now: float) -> None:
        await super().sweep(now)
        self.swept.release()


def test_sweeps_come_at_once_and_when_poked(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        dataset = await house.add_dataset("d")
        await house.add_job("1", dataset, NOW - 2)
        retention = Watched(house.opened, house.datasets, 0, 1, Quotas())
        running = asyncio.create_task(retention.run())
        async with asyncio.timeout(30):
            await retention.swept.acquire()
            assert "jobs/1" not in await house.names()
            await house.add_job("2", dataset, NOW - 1)
            retention.poke()
            await retention.swept.acquire()
            assert "jobs/2" not in await house.names()
        running.cancel()

    run(tmp_path, work)
