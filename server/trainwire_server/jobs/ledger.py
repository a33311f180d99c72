"""The jobs that have not ended, and the one place where what happens to a job is recorded."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from trainwire.v1 import model_pb2, training_pb2
from trainwire_server.errors import NotFound, StorageFull
from trainwire_server.execution.executor import Execution
from trainwire_server.identity import DEFAULT_TENANT
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.feed import Feed
from trainwire_server.jobs.log_lines import ending
from trainwire_server.jobs.store import Store
from trainwire_server.meters import Meters

_T = TypeVar("_T")
_BATCH = 256
"""Events read from the log at once: what bounds the memory of a reader."""


@dataclass
class Active:
    """A job that has not ended.

    Attributes:
        lock: held while the job changes.
        execution: its training process, while it has one.
        losses: processes lost since the last finished epoch.
        started: what its log's `started` event says, if it has one.
        epoch: the last one since the server's start.
    """

    job: training_pb2.TrainingJob
    feed: Feed = field(default_factory=Feed)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    execution: Execution | None = None
    losses: int = 0
    started: training_pb2.JobStarted | None = None
    epoch: training_pb2.EpochCompleted | None = None


class Ledger:
    """Jobs and their events: what has ended from the store, the others from memory too.

    Args:
        on_end: called when a job has ended.
        meters: told what happens to jobs.
        tenant: whose they are.

    Attributes:
        log: for lines about jobs, with the tenant in them.
    """

    def __init__(
        self,
        store: Store,
        on_end: Callable[[], None] = lambda: None,
        meters: Meters | None = None,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        self.log: structlog.stdlib.BoundLogger = structlog.get_logger().bind(tenant=tenant)
        self.meters = meters or Meters()
        self._store = store
        self._on_end = on_end
        self._active: dict[str, Active] = {}

    def all_active(self) -> Iterable[Active]:
        """All jobs that have not ended."""
        return list(self._active.values())

    def active(self, name: str) -> Active:
        """The job of this name, which has not ended."""
        return self._active[name]

    def find(self, name: str) -> Active | None:
        """The job of this name, unless it has ended."""
        return self._active.get(name)

    def activate(self, job: training_pb2.TrainingJob) -> Active:
        """Take up a job that is stored and has not ended."""
        return self._active.setdefault(job.name, Active(job))

    async def get(self, name: str) -> training_pb2.TrainingJob:
        """The job of this name.

        Raises:
            NotFound: there is none.
        """
        active = self._active.get(name)
        job = active.job if active else await self._store.job(name)
        if job is None:
            raise NotFound(f"{name} does not exist")
        return job

    async def read(self, name: str, after: int) -> AsyncIterator[training_pb2.TrainingEvent]:
        """All stored events after a sequence number, read a page at a time."""
        while page := await self.page(name, after):
            for event in page:
                yield event
            after = page[-1].sequence

    async def page(self, name: str, after: int) -> Sequence[training_pb2.TrainingEvent]:
        """The first stored events after a sequence number; none if there are no more."""
        return await self._store.events(name, after, _BATCH)

    async def change(self, active: Active, job: training_pb2.TrainingJob) -> None:
        """Store a job that has changed without an event; to be called with its lock held."""
        await self._store.save(job)
        if job.state == training_pb2.JOB_STATE_RUNNING:
            self.meters.job_began(jobs.waited_seconds(active.job, job))
        active.job = job

    async def record(
        self,
        active: Active,
        event: training_pb2.TrainingEvent,
        model: model_pb2.Model | None = None,
    ) -> None:
        """Store an event, then tell the watchers; progress is only told.

        To be called with the job's lock held. A job ends once, and what an attempt before this one
        has told is not told again.
        """
        if active.job.state in jobs.TERMINAL or jobs.is_known(active.job, event):
            return
        if event.HasField("progress"):
            active.feed.show(jobs.stamp_progress(active.job, event, jobs.now()))
            return
        job, stamped = jobs.apply(active.job, event, jobs.now())
        await self._store.save(job, stamped, model)
        active.job = job
        if stamped.HasField("started"):
            active.started = stamped.started
        if stamped.HasField("epoch"):
            active.losses, active.epoch = 0, stamped.epoch
            self.meters.epoch_ended(stamped.epoch.seconds)
        if jobs.is_terminal(stamped):
            del self._active[job.name]
            self.log.info("job.ended", job=job.name, **ending(job))
            self.meters.job_ended(jobs.state_text(job))
            self._on_end()
        active.feed.publish(stamped)

    async def end(
        self,
        active: Active,
        event: training_pb2.TrainingEvent,
        model: model_pb2.Model | None = None,
    ) -> None:
        """Record the terminal event, however long the disk is full."""
        await self.insist(lambda: self._end(active, event, model))

    async def _end(
        self, active: Active, event: training_pb2.TrainingEvent, model: model_pb2.Model | None
    ) -> None:
        async with active.lock:
            await self.record(active, event, model)

    async def insist(
        self, action: Callable[[], Awaitable[_T]], against: type[Exception] = StorageFull
    ) -> _T:
        """Do what no caller can be asked to try again: while it cannot be stored, it waits.

        Args:
            against: the errors after which it is tried again.
        """
        for pause in itertools.chain((0.1, 1.0), itertools.repeat(5.0)):
            try:
                return await action()
            except StorageFull as error:
                self.log.error("storage.full", problem=error.message, again_in=pause)
            except against as error:
                self.log.error("job.end_not_stored", again_in=pause, exc_info=error)
            await asyncio.sleep(pause)
        raise AssertionError("the pauses have no end")
