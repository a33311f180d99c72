"""Deletes what is old or more than there is room for: `--retain-days`, `--max-data-bytes`.

Each tenant's folder is held against them by itself. What a tenant's quota does not allow is refused
here as well, and deletes nothing.

Jobs that have ended go with their events, their folder and their model; a model with an alias keeps
its job. Datasets go when no job refers to them. What is running, waiting or referred to stays.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import structlog

from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.errors import StorageFull
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.houses import House
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.removal import remove_job_and_model

_PERIOD_SECONDS = 300.0
_PAUSE_SECONDS = 1.0
"""Between two sweeps at least: each looks at every folder."""
_DAY_SECONDS = 86_400.0
_HOUR_SECONDS = 3_600.0
_PAGE = 500
_T = TypeVar("_T")
AGE, ROOM = "older than --retain-days", "more than --max-data-bytes"


# ------------------------------------------------------------------------ what to delete


@dataclass(frozen=True)
class EndedJob:
    """A job that has ended.

    Attributes:
        end: when, in seconds since 1970.
        size: bytes that go with it.
        dataset: name of its dataset.
        is_kept: whether its model has an alias.
    """

    name: str
    end: float
    size: int
    dataset: str
    is_kept: bool


@dataclass(frozen=True)
class StoredDataset:
    """A dataset.

    Attributes:
        last_used: when it was uploaded or found on an upload last, in seconds since 1970.
        size: bytes that go with it.
        users: number of jobs that refer to it, ended or not.
    """

    name: str
    last_used: float
    size: int
    users: int


@dataclass(frozen=True)
class Deletion:
    """A job or dataset to delete.

    Attributes:
        why: AGE or ROOM.
        last_used: when it was in use last, in seconds since 1970; one used later stays.
    """

    name: str
    why: str
    size: int
    last_used: float


def choose(
    ended: Sequence[EndedJob],
    datasets: Sequence[StoredDataset],
    oldest: float,
    excess: int,
    now: float,
) -> list[Deletion]:
    """What to delete, jobs before datasets and the oldest of each first.

    Args:
        oldest: what was in use last before this time goes, in seconds since 1970.
        excess: bytes that must go beside; 0 or less for none.
        now: the time, in seconds since 1970.
    """
    chosen: list[Deletion] = []
    used: dict[str, float] = {}
    for job in sorted(ended, key=lambda job: job.end):
        why = _reason(job.end, oldest, excess)
        if why and not job.is_kept:
            chosen.append(Deletion(job.name, why, job.size, job.end))
            used[job.dataset] = job.end
            excess -= job.size
    gone = {deletion.name for deletion in chosen}
    released = Counter(job.dataset for job in ended if job.name in gone)
    free = [
        (max(dataset.last_used, used.get(dataset.name, 0.0)), dataset)
        for dataset in datasets
        if dataset.users <= released[dataset.name]
    ]
    for last_used, dataset in sorted(free, key=lambda pair: pair[0]):
        # Whoever uploads submits next, and must find there what the upload was answered with.
        is_fresh = last_used > now - _HOUR_SECONDS
        why = _reason(last_used, oldest, 0 if is_fresh else excess)
        if why:
            chosen.append(Deletion(dataset.name, why, dataset.size, last_used))
            excess -= dataset.size
    return chosen


def _reason(last_used: float, oldest: float, excess: int) -> str:
    if last_used < oldest:
        return AGE
    return ROOM if excess > 0 else ""


# ------------------------------------------------------------------------ deleting it


@dataclass(frozen=True)
class TableRoom:
    """What the table may take that is made of an upload.

    Attributes:
        size_bytes: 0 for as much as there is.
        is_quota: whether it is the tenant's quota that allows no more, and not --max-data-bytes.
    """

    size_bytes: int
    is_quota: bool = False


class Retention:
    """Keeps the folder of one tenant within its limits.

    Args:
        retain_days: days that ended jobs and unused datasets stay; 0 for ever.
        max_data_bytes: bytes the folder may take; 0 for as many as there are.
        quotas: what the tenant may store.
    """

    def __init__(
        self,
        house: House,
        datasets: Datasets,
        retain_days: float,
        max_data_bytes: int,
        quotas: Quotas,
    ) -> None:
        self._store = house.store
        self._catalog = house.catalog
        self._datasets = datasets
        self._retain_seconds = retain_days * _DAY_SECONDS
        self._max_data_bytes = max_data_bytes
        self._quotas = quotas
        self._announced: Counter[tuple[str, int]] = Counter()
        self._sweeping = asyncio.Lock()
        self._poked = asyncio.Event()
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger().bind(tenant=house.tenant)

    async def run(self) -> None:
        """Sweep at once, then every few minutes and when poked, until cancelled."""
        while True:
            self._poked.clear()
            try:
                await self.sweep(time.time())
            except Exception:
                # The next sweep may find the disk in a better state.
                self._log.exception("retention.error")
            await asyncio.sleep(_PAUSE_SECONDS)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._poked.wait(), _PERIOD_SECONDS)

    def poke(self) -> None:
        """Say that something has been stored; age alone needs no poke."""
        if self._max_data_bytes:
            self._poked.set()

    async def sweep(self, now: float) -> None:
        """Delete what may no longer stay.

        Args:
            now: the time, in seconds since 1970.
        """
        async with self._sweeping:
            await asyncio.to_thread(self._catalog.measure)
            await self._remove_leftovers(now)
            if self._retain_seconds or self._max_data_bytes:
                excess = await self._excess(0)
                await self._delete(await self._choose(now, excess))

    @asynccontextmanager
    async def room(self, name: str, size_bytes: int) -> AsyncIterator[None]:
        """Room for so many bytes more, counted until they are stored; nothing is deleted for it.

        Args:
            name: the dataset they are to be.

        Raises:
            StorageFull: they would be more than --max-data-bytes, whatever may be deleted.
            QuotaExceeded: they would be more than the tenant may store.
        """
        async with self._sweeping:
            await self.check_quota(size_bytes)
            await self._choose_for(size_bytes, self._announced_bytes)
            self._announced[name, size_bytes] += 1
        try:
            yield
        finally:
            self._announced[name, size_bytes] -= 1
            self._announced = +self._announced
            self.poke()

    @property
    def _announced_bytes(self) -> int:
        return sum(size * count for (_, size), count in self._announced.items())

    async def make_room(self, size_bytes: int) -> None:
        """Delete what is older than so many bytes that are here, and about to be kept.

        Not when they are announced: an announcement costs its sender nothing, and may be a lie.

        Raises:
            StorageFull: they are more than --max-data-bytes, whatever may be deleted.
        """
        async with self._sweeping:
            await self._delete(await self._choose_for(size_bytes, 0))

    async def check_quota(self, more: int = 1) -> None:
        """Raise QuotaExceeded if the tenant may not store so many bytes more.

        Nobody knows what a job will store: it may begin while there is room for anything at all.
        """
        if self._quotas.stored_bytes:
            self._quotas.check_stored(await self._used_bytes() + self._announced_bytes, more)

    async def largest_table(self, name: str, size_bytes: int) -> TableRoom:
        """What the table may take that is made of so many bytes, which are announced and here.

        A few kilobytes can unpack to any size. For --max-data-bytes what is older makes room, but
        no more than there is of it; for a quota nothing does.

        Args:
            name: the dataset they are to be.
        """
        rooms = []
        if self._max_data_bytes:
            rooms.append(TableRoom(max(self._max_data_bytes - size_bytes, 1)))
        if self._quotas.stored_bytes:
            used = await self._used_bytes() + size_bytes + self._announced_beside(name)
            rooms.append(TableRoom(max(self._quotas.stored_bytes - used, 1), is_quota=True))
        return min(rooms, key=lambda room: room.size_bytes, default=TableRoom(0))

    def _announced_beside(self, name: str) -> int:
        """Bytes of the other datasets that are announced: each is stored once, however often."""
        return sum(size for other, size in self._announced if other != name)

    def explain_full(self, room: TableRoom) -> None:
        """Raise QuotaExceeded if it is the quota that a table was too large for.

        A disk on which there is room for as much was not what it was too large for.
        """
        most = room.size_bytes
        if room.is_quota and shutil.disk_usage(self._catalog.root).free > most:
            self._quotas.check_stored(self._quotas.stored_bytes - most, most + 1)

    async def _choose_for(self, size_bytes: int, others: int) -> Sequence[Deletion]:
        """What would go for so many bytes more.

        Args:
            others: bytes of uploads under way, for which something has to go as well.

        Raises:
            StorageFull: all that may go is not enough.
        """
        excess = await self._excess(size_bytes + others)
        chosen = await self._choose(time.time(), excess) if excess > 0 else []
        lacking = excess - sum(deletion.size for deletion in chosen)
        if lacking > 0:
            raise StorageFull(
                f"{size_bytes} bytes more would be {lacking} more than --max-data-bytes "
                f"{self._max_data_bytes} allows, and nothing else that is stored may be "
                "deleted; delete jobs, models or datasets that are no longer needed (where there "
                "are tokens, with one of role admin)"
            )
        return chosen

    async def _excess(self, more: int) -> int:
        """Bytes by which the folder would be too large with so many more."""
        if not self._max_data_bytes:
            return 0
        return await self._used_bytes() + more - self._max_data_bytes

    async def _used_bytes(self) -> int:
        return self._catalog.stored_bytes() + await self._store.used_bytes()

    async def _choose(self, now: float, excess: int) -> list[Deletion]:
        oldest = now - self._retain_seconds if self._retain_seconds else float("-inf")
        aliased = await self._store.aliased_models()
        ended = [
            EndedJob(
                job.name,
                job.end_time.ToNanoseconds() / 1e9,
                await self._job_bytes(job, excess),
                job.request.dataset,
                job.model in aliased,
            )
            async for job in self._ended_jobs()
        ]
        users = await self._store.jobs_of_datasets()
        stored = [
            StoredDataset(
                dataset.name,
                self._catalog.last_used(dataset.name),
                await asyncio.to_thread(self._catalog.removable_bytes, dataset.name),
                users.get(dataset.name, 0),
            )
            async for dataset in self._stored_datasets()
        ]
        return choose(ended, stored, oldest, excess, now)

    async def _job_bytes(self, job: training_pb2.TrainingJob, excess: int) -> int:
        size = 0
        for name in filter(None, (job.name, job.model)):
            size += await asyncio.to_thread(self._catalog.removable_bytes, name)
        # Reading a whole log is dear, and only room is counted in bytes.
        return size + (await self._store.event_bytes(job.name) if excess > 0 else 0)

    def _ended_jobs(self) -> AsyncIterator[training_pb2.TrainingJob]:
        states = sorted(jobs.TERMINAL)
        return _entries(lambda before: self._store.jobs(before, _PAGE, states))

    def _stored_datasets(self) -> AsyncIterator[dataset_pb2.Dataset]:
        return _entries(lambda before: self._store.datasets(before, _PAGE))

    async def _delete(self, chosen: Sequence[Deletion]) -> None:
        for deletion in chosen:
            if await self._is_deleted(deletion):
                self._log.info(
                    "retention.deleted", name=deletion.name, why=deletion.why, bytes=deletion.size
                )

    async def _is_deleted(self, deletion: Deletion) -> bool:
        """Delete it, unless it has come into use since it was chosen."""
        if deletion.name.startswith("datasets/"):
            return await self._datasets.delete_unused(deletion.name, deletion.last_used)
        async with self._datasets.lock:
            job = await self._store.job(deletion.name)
            if job is None or job.state not in jobs.TERMINAL:
                return False
            return await remove_job_and_model(self._store, self._catalog, job)

    # -------------------------------------------------------------------- leftovers

    async def _remove_leftovers(self, now: float) -> None:
        """Remove folders that no row speaks of: a server ended between the two."""
        folders = await asyncio.to_thread(self._catalog.folders_before, now - _HOUR_SECONDS)
        # Under the lock no dataset lies between its folder and its row.
        async with self._datasets.lock:
            known = await self._store.names()
            for name in folders:
                if name not in known and not await self._is_awaited(name):
                    size = await asyncio.to_thread(self._catalog.removable_bytes, name)
                    await asyncio.to_thread(self._catalog.remove, name)
                    self._log.info("retention.deleted", name=name, why="left over", bytes=size)

    async def _is_awaited(self, name: str) -> bool:
        """Whether it is a model whose row is still to come, or came since the names were read."""
        kind, _, identity = name.partition("/")
        job = await self._store.job(f"jobs/{identity}") if kind == "models" else None
        if job is not None and job.state not in jobs.TERMINAL:
            return True
        return kind == "models" and await self._store.model(name) is not None


async def _entries(
    page_from: Callable[[int | None], Awaitable[tuple[list[_T], int | None]]],
) -> AsyncIterator[_T]:
    """All entries of a list, read in pages: other calls to the store come between."""
    page, following = await page_from(None)
    while page:
        for entry in page:
            yield entry
        if following is None:
            return
        page, following = await page_from(following)
