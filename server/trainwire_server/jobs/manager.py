"""The life of jobs: submit, run, watch, cancel, recover."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from trainwire import contract
from trainwire.v1 import training_pb2
from trainwire_server.errors import JobNotFinished
from trainwire_server.execution.executor import Executor
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.estimate import MemoryLimit
from trainwire_server.jobs.finish import finish
from trainwire_server.jobs.houses import House
from trainwire_server.jobs.ledger import Active, Ledger
from trainwire_server.jobs.queue import Lease
from trainwire_server.jobs.removal import remove_job
from trainwire_server.jobs.retention import Retention
from trainwire_server.jobs.run import Limits, Runner
from trainwire_server.jobs.scheduler import Scheduler
from trainwire_server.jobs.submission import Submissions
from trainwire_server.jobs.watch import Watches


@dataclass(frozen=True)
class Workshop:
    """What jobs are run with, by all tenants of a server.

    Attributes:
        scheduler: gives them their places.
        limits: what training processes get.
        heartbeat: seconds that a watch may be silent.
    """

    executor: Executor
    devices: Devices
    scheduler: Scheduler
    limits: Limits
    heartbeat: float


class Manager:
    """Runs the jobs of one tenant.

    Args:
        house: where they lie.
        ledger: of the same house, as are `datasets` and `retention`.
    """

    def __init__(
        self,
        house: House,
        datasets: Datasets,
        retention: Retention,
        ledger: Ledger,
        workshop: Workshop,
    ) -> None:
        self._store = house.store
        self._ledger = ledger
        self._catalog = house.catalog
        self._datasets = datasets
        self._scheduler = workshop.scheduler
        self._line = workshop.scheduler.line(house.tenant, self._start)
        self._runner = Runner(ledger, house.catalog, workshop.executor, workshop.limits)
        self._watches = Watches(ledger, workshop.heartbeat)
        self._submissions = Submissions(
            house.store,
            house.catalog,
            datasets,
            retention,
            workshop.executor,
            workshop.devices,
            self._line,
            workshop.limits.threads,
            MemoryLimit(workshop.devices, workshop.limits.memory_bytes),
            self._enqueue,
            ledger.log,
        )
        self._log = ledger.log

    @property
    def queued_jobs(self) -> int:
        """Number of jobs waiting."""
        return len(self._line)

    @property
    def running_jobs(self) -> int:
        """Number of jobs training."""
        # What a job that has ended leaves behind may still be being tidied up.
        return sum(self._ledger.find(name) is not None for name in self._line.running)

    # -------------------------------------------------------------------- start and stop

    async def activate(self) -> list[Active]:
        """The jobs that have not ended, in the order they were submitted; each is to be taken up.

        From now on they are known to everything else here.
        """
        states = (training_pb2.JOB_STATE_CANCELLING, training_pb2.JOB_STATE_RUNNING)
        found = await self._store.jobs_in_states(*states, training_pb2.JOB_STATE_QUEUED)
        return [self._ledger.activate(job) for job in found]

    async def take_up(self, active: Active) -> None:
        """Let a job wait that the server before this one has left, or end it.

        Whatever is wrong with it, it does not stay without a process as if it had one. On a full
        disk this takes until there is room.
        """
        try:
            await self._take_up(active)
        except Exception:
            self._log.exception("job.error", job=active.job.name)
            await self._end_by_error(active)

    async def _take_up(self, active: Active) -> None:
        """Let a job wait again, unless a newer server stored what this one would ignore."""
        await self._ledger.insist(lambda: self._let_wait(active))
        unknown = contract.violations(active.job.request)
        if unknown:
            # One that was to be cancelled has ended by now, and ends once.
            reason = training_pb2.FAILURE_REASON_INVALID_REQUEST
            await self._ledger.end(active, jobs.failed(reason, contract.listing(unknown)))
            return
        active.started = await self._logged_start(active.job.name)
        if active.job.state == training_pb2.JOB_STATE_QUEUED:
            self._line.add(active.job)

    async def _let_wait(self, active: Active) -> None:
        """Let a job wait that has no process any more, or end it if it was to be cancelled."""
        async with active.lock:
            if active.job.state == training_pb2.JOB_STATE_RUNNING:
                queued = training_pb2.JOB_STATE_QUEUED
                await self._ledger.change(active, jobs.with_state(active.job, queued, jobs.now()))
            elif active.job.state == training_pb2.JOB_STATE_CANCELLING:
                await self._ledger.record(active, jobs.cancelled(active.job))

    async def _logged_start(self, name: str) -> training_pb2.JobStarted | None:
        """What the log's `started` event says, which stands before every epoch."""
        async for event in self._ledger.read(name, after=0):
            if event.HasField("started"):
                return event.started
            if event.HasField("epoch"):
                break
        return None

    def stop(self) -> None:
        """End watches, and let every training process finish the epoch it is in.

        To be called when the scheduler starts no more jobs; what is not done by the end of its
        drain is found by the next server.
        """
        for active in self._ledger.all_active():
            active.feed.end()
        self._runner.drain()

    # -------------------------------------------------------------------- submit

    async def submit(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """Queue a job for a request that keeps the contract; the same request_id, the same job.

        Raises:
            AlreadyExists: the request_id came before with another request.
            NotFound: no such dataset.
            DatasetUnsuitable: the dataset's profile shows that training is impossible.
            DeviceUnavailable: a GPU was asked for and there is none.
            QueueFull: too many jobs wait.
            QuotaExceeded: too many of this tenant do, or it stores too much.
            StorageFull: the disk is full.
        """
        self._scheduler.refuse_when_stopping()
        # A caller that leaves half way must not leave a stored job that nobody runs.
        job = await finish(self._submissions.submit(request))
        return await self.get(job.name)

    async def resume(
        self, name: str, changes: training_pb2.TrainingRequest
    ) -> training_pb2.TrainingJob:
        """Queue a job that goes on from the last checkpoint of a cancelled or failed one.

        Raises:
            What `submit` raises; JobNotResumable: it is neither, or has no checkpoint.
            InvalidRequest: the changes are more than may change.
        """
        self._scheduler.refuse_when_stopping()
        job = await finish(self._submissions.resume(name, changes))
        return await self.get(job.name)

    async def validate(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """What a request comes to, found out in a child process; nothing is stored.

        Returns:
            A job without name and state, with the effective request, warnings and `plan`.

        Raises:
            What `submit` raises, but AlreadyExists; Untrainable: the job would fail.
            QuotaExceeded: too many dry runs of this tenant wait.
        """
        self._scheduler.refuse_when_stopping()
        return await self._submissions.validate(request)

    # -------------------------------------------------------------------- delete

    async def delete(self, name: str) -> None:
        """Delete a finished job with its events and its folder; the model it made stays.

        Raises:
            NotFound: no such job.
            JobNotFinished: it has not ended.
        """
        # A caller that leaves half way must not leave files that nobody knows.
        await finish(self._delete(name))

    async def _delete(self, name: str) -> None:
        # Not while another job takes over its checkpoints.
        async with self._datasets.lock:
            job = await self._ledger.get(name)
            if job.state not in jobs.TERMINAL:
                state = training_pb2.JobState.Name(job.state)
                raise JobNotFinished(f"{name} is {state}; cancel it first")
            await remove_job(self._store, self._catalog, job)

    # -------------------------------------------------------------------- read

    async def get(self, name: str) -> training_pb2.TrainingJob:
        """The job of this name.

        Raises:
            NotFound: there is none.
        """
        return self._current(await self._ledger.get(name))

    async def list(
        self,
        before: int | None,
        limit: int,
        states: Sequence[training_pb2.JobState.ValueType],
        labels: Mapping[str, str],
    ) -> tuple[list[training_pb2.TrainingJob], int | None]:
        """A page of jobs, most recently updated first, and where the next page begins."""
        page, following = await self._store.jobs(before, limit, states, labels)
        return [self._current(job) for job in page], following

    def _current(self, job: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
        """The job with its place in the queue, which is not stored."""
        current = training_pb2.TrainingJob()
        current.CopyFrom(job)
        current.queue_position = self._line.position(job.name)
        return current

    def watch(self, name: str, after: int) -> AsyncIterator[training_pb2.TrainingEvent]:
        """The job's events after a sequence number, as they come; see `Watches.watch`."""
        return self._watches.watch(name, after)

    # -------------------------------------------------------------------- cancel

    async def cancel(self, name: str) -> training_pb2.TrainingJob:
        """Cancel a job; one that has ended is returned as it is.

        Raises:
            NotFound: no such job.
        """
        # A caller that leaves half way must not leave a job half cancelled.
        return await finish(self._cancel(name))

    async def _cancel(self, name: str) -> training_pb2.TrainingJob:
        active = self._ledger.find(name)
        if active is None:
            return await self.get(name)
        async with active.lock:
            if active.job.state == training_pb2.JOB_STATE_QUEUED:
                await self._ledger.record(active, jobs.cancelled(active.job))
                # One that has just got its place is out of the queue and sees that it has ended.
                self._line.remove(name)
            elif active.job.state == training_pb2.JOB_STATE_RUNNING:
                await self._begin_cancel(active)
        return await self.get(name)

    async def _begin_cancel(self, active: Active) -> None:
        cancelling = training_pb2.JOB_STATE_CANCELLING
        await self._ledger.change(active, jobs.with_state(active.job, cancelling, jobs.now()))
        if active.execution is not None:
            self._runner.stop(active.execution)

    # -------------------------------------------------------------------- run

    def _enqueue(self, job: training_pb2.TrainingJob) -> None:
        active = self._ledger.activate(job)
        if self._scheduler.is_stopping:
            # Submitted just before: who watches must hear of the stop like all others.
            active.feed.end()
        self._line.add(job)
        self._scheduler.pump()

    def _start(self, name: str, lease: Lease) -> Coroutine[Any, Any, None]:
        return self._run(self._ledger.active(name), lease)

    async def _run(self, active: Active, lease: Lease) -> None:
        """Run a job in its place, and let it wait for another one if it has lost its process."""
        try:
            await self._runner.run(active, lease)
            if not self._scheduler.is_stopping:
                await self._ledger.insist(lambda: self._let_wait(active))
        except asyncio.CancelledError:
            raise
        except Exception:
            self._log.exception("job.error", job=active.job.name)
            await self._end_by_error(active)
        finally:
            self._requeue(active)

    def _requeue(self, active: Active) -> None:
        if active.job.state == training_pb2.JOB_STATE_QUEUED:
            epoch, losses = active.job.progress.epoch, active.losses
            self._log.warning("job.requeued", job=active.job.name, losses=losses, epoch=epoch)
            self._line.add(active.job, first=True)

    async def _end_by_error(self, active: Active) -> None:
        """End a job for a fault of the server, however often it takes.

        A job without a process must not be left as if it had one.
        """
        reason = training_pb2.FAILURE_REASON_INTERNAL
        event = jobs.failed(reason, "the server's log has the details")
        await self._ledger.insist(lambda: self._ledger.end(active, event), against=Exception)
        # What its process has left counts from now on; else the next sweep would see it first.
        with suppress(OSError):
            await asyncio.to_thread(self._catalog.measure_folder, active.job.name)
