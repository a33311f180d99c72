"""The life of jobs: submit, run, watch, cancel, recover."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import structlog
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import dataset_pb2, model_pb2, training_pb2
from trainwire_server.data import suitability
from trainwire_server.data.catalog import Catalog
from trainwire_server.errors import (
    AlreadyExists,
    DatasetUnsuitable,
    DeviceUnavailable,
    JobNotFinished,
    NotFound,
    SequenceOutOfRange,
    ServerStopping,
)
from trainwire_server.execution.executor import Execution, Executor, Train
from trainwire_server.jobs import dry_run
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.devices import Devices, visible_devices
from trainwire_server.jobs.feed import Feed
from trainwire_server.jobs.log_lines import ending, log_event, parameters
from trainwire_server.jobs.queue import Lease, Queue, Slots
from trainwire_server.jobs.store import Store

_BATCH = 256
"""Events read from the log at once by a watcher: what bounds its memory."""


@dataclass
class _Active:
    """A job that has not ended."""

    job: training_pb2.TrainingJob
    feed: Feed = field(default_factory=Feed)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    execution: Execution | None = None
    # Processes lost since the last finished epoch.
    losses: int = 0
    # Whether the log has a `started` event.
    has_started: bool = False


@dataclass
class _Outcome:
    """What a training process said before it ended."""

    last: training_pb2.TrainingEvent | None = None
    model: model_pb2.Model | None = None


class Manager:
    """Runs the jobs of one server.

    Args:
        slots: the places to train in.
        threads: threads a training process computes with.
        grace: seconds a cancelled training gets to end by itself.
        max_attempts: training processes a job may lose in a row without finishing an epoch.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        datasets: Datasets,
        executor: Executor,
        devices: Devices,
        slots: Slots,
        threads: int,
        grace: float,
        max_attempts: int,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._datasets = datasets
        self._executor = executor
        self._devices = devices
        self._slots = slots
        self._threads = threads
        self._grace = grace
        self._max_attempts = max_attempts
        self._active: dict[str, _Active] = {}
        self._queue = Queue()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._planning = asyncio.Lock()
        self._stopping = False
        self._log: structlog.stdlib.BoundLogger = structlog.get_logger()

    @property
    def queued_jobs(self) -> int:
        """Number of jobs waiting."""
        return len(self._queue)

    @property
    def running_jobs(self) -> int:
        """Number of jobs training."""
        return len(self._running)

    # -------------------------------------------------------------------- start and stop

    async def recover(self) -> None:
        """Take up the jobs of the server before this one, in their order.

        What was training then waits again; its process goes on from the last checkpoint.
        """
        for job in await self._store.jobs_in_states(training_pb2.JOB_STATE_CANCELLING):
            await self._end(self._activate(job), jobs.cancelled(job))
        states = (training_pb2.JOB_STATE_RUNNING, training_pb2.JOB_STATE_QUEUED)
        for job in await self._store.jobs_in_states(*states):
            await self._take_up(job)
        self._learning = asyncio.create_task(self._learn_devices())
        self._pump()

    async def _take_up(self, job: training_pb2.TrainingJob) -> None:
        """Let a job wait again, unless a newer server stored what this one would ignore."""
        unknown = contract.violations(job.request)
        if not unknown:
            active = self._activate(await self._let_wait(job))
            active.has_started = await self._log_has_started(job.name)
            self._queue.add(active.job)
            return
        reason = training_pb2.FAILURE_REASON_INVALID_REQUEST
        await self._end(self._activate(job), jobs.failed(reason, contract.listing(unknown)))

    async def _let_wait(self, job: training_pb2.TrainingJob) -> training_pb2.TrainingJob:
        """The job, waiting if it was training."""
        if job.state == training_pb2.JOB_STATE_QUEUED:
            return job
        waiting = jobs.with_state(job, training_pb2.JOB_STATE_QUEUED, jobs.now())
        await self._store.save(waiting)
        return waiting

    async def _log_has_started(self, name: str) -> bool:
        """Whether the log has a `started` event, which stands before every epoch."""
        async for event in self._read_log(name, after=0):
            if event.HasField("started") or event.HasField("epoch"):
                return True
        return False

    async def _learn_devices(self) -> None:
        self._slots.learn_devices(await self._devices.names())
        self._pump()

    async def close(self) -> None:
        """End watches and training processes. What was training is found by the next `recover`."""
        self._stopping = True
        for active in self._active.values():
            active.feed.end()
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # -------------------------------------------------------------------- submit

    async def submit(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """Queue a job for a request that keeps the contract; the same request_id, the same job.

        Raises:
            AlreadyExists: the request_id came before with another request.
            NotFound: no such dataset.
            DatasetUnsuitable: the dataset's profile shows that training is impossible.
            DeviceUnavailable: a GPU was asked for and there is none.
        """
        if self._stopping:
            raise ServerStopping("the server is stopping; try again")
        # Shielded: a caller that leaves half way must not leave a stored job that nobody runs.
        return await asyncio.shield(self._submit(request))

    async def _submit(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        if request.resources.device == training_pb2.DEVICE_CUDA:
            # Outside the lock: the probe may take a while, and other submits need not wait for it.
            await self._devices.names()
        # One at a time, so that two calls with one request_id cannot both find it new, and that no
        # dataset goes between its check and the job that refers to it.
        async with self._datasets.lock:
            before = await self._submitted_before(request)
            if before is not None:
                return before
            return await self._create(request, await self._check(request))

    async def _check(self, request: training_pb2.TrainingRequest) -> dataset_pb2.Dataset:
        """The dataset of a request, if it and the devices are what the request needs."""
        dataset = await self._dataset(request.dataset)
        _check_suitability(request, dataset)
        wanted = request.resources.device
        if wanted == training_pb2.DEVICE_CUDA and len(await self._devices.names()) < 2:
            raise DeviceUnavailable(
                "this server has no CUDA device",
                (contract.Violation("resources.device", "allowed: DEVICE_AUTO, DEVICE_CPU"),),
            )
        return dataset

    async def _submitted_before(
        self, request: training_pb2.TrainingRequest
    ) -> training_pb2.TrainingJob | None:
        if not request.HasField("request_id"):
            return None
        found = await self._store.job_by_request_id(request.request_id)
        if found is None:
            return None
        earlier, job = found
        differing = contract.differences(earlier, request)
        if differing:
            raise AlreadyExists(
                f"request_id {request.request_id} was used for {job.name} with another request; "
                f"different: {', '.join(differing)}",
                tuple(contract.Violation(path, "differs") for path in differing),
            )
        return await self.get(job.name)

    async def _dataset(self, name: str) -> dataset_pb2.Dataset:
        dataset = await self._store.dataset(name)
        if dataset is None:
            raise NotFound(
                f"{name} does not exist; upload it first",
                (contract.Violation("dataset", "no such dataset"),),
            )
        return dataset

    async def _create(
        self, request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset
    ) -> training_pb2.TrainingJob:
        time = jobs.now()
        job, events = jobs.new_job(request, dataset, time), []
        place = self._queue.position_of_next(job.request.resources.priority)
        for event in jobs.first_events(request, place):
            job, stamped = jobs.apply(job, event, time)
            events.append(stamped)
        await self._store.create_job(job, request, events)
        self._enqueue(job)
        self._log.info("job.queued", job=job.name, set_fields=list(job.set_fields))
        self._pump()
        return self._current(job)

    async def validate(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """What a request comes to, found out in a child process; nothing is stored.

        Returns:
            A job without name and state, with the effective request, warnings and `plan`.

        Raises:
            What `submit` raises, but AlreadyExists; Untrainable: the job would fail.
        """
        dataset = await self._check(request)
        time = jobs.now()
        job = jobs.new_job(request, dataset, time)
        for event in jobs.first_events(request, queue_position=0):
            job, _ = jobs.apply(job, event, time)
        for name in ("name", "state", "create_time", "update_time", "last_sequence"):
            cast("Message", job).ClearField(name)
        # One at a time: a dry run takes memory beside the jobs that have a place.
        async with self._planning:
            table = self._catalog.table(job.request.dataset)
            await dry_run.plan(self._executor, job, table, self._threads)
        return job

    # -------------------------------------------------------------------- delete

    async def delete(self, name: str) -> None:
        """Delete a finished job with its events and its folder; the model it made stays.

        Raises:
            NotFound: no such job.
            JobNotFinished: it has not ended.
        """
        # Shielded: a caller that leaves half way must not leave files that nobody knows.
        await asyncio.shield(self._delete(name))

    async def _delete(self, name: str) -> None:
        job = await self.get(name)
        if job.state not in jobs.TERMINAL:
            state = training_pb2.JobState.Name(job.state)
            raise JobNotFinished(f"{name} is {state}; cancel it first")
        await self._store.delete_job(name)
        await asyncio.to_thread(self._catalog.remove, name)

    # -------------------------------------------------------------------- read

    async def get(self, name: str) -> training_pb2.TrainingJob:
        """The job of this name.

        Raises:
            NotFound: there is none.
        """
        active = self._active.get(name)
        job = active.job if active else await self._store.job(name)
        if job is None:
            raise NotFound(f"{name} does not exist")
        return self._current(job)

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
        current.queue_position = self._queue.position(job.name)
        return current

    async def watch(self, name: str, after: int) -> AsyncIterator[training_pb2.TrainingEvent]:
        """The job's events after a sequence number, as they come, to the terminal one.

        Progress is passed on when there is nothing else to say.

        Raises:
            NotFound: no such job.
            SequenceOutOfRange: the log is not that long.
            ServerStopping: the job goes on, this server does not.
        """
        job = await self.get(name)
        if after > job.last_sequence:
            raise SequenceOutOfRange(
                f"{name} has {job.last_sequence} events",
                (contract.Violation("after_sequence", f"allowed: [0, {job.last_sequence}]"),),
            )
        # Taken before the log is read: what is stored after that read moves its version on.
        feed = active.feed if (active := self._active.get(name)) else None
        while True:
            version = feed.version if feed else 0
            async for event in self._read_log(name, after):
                yield event
                after = event.sequence
                if jobs.is_terminal(event):
                    return
            if feed is None:
                return
            if feed.version == version and self._stopping:
                raise ServerStopping(f"the server is stopping; watch {name} again later")
            await feed.wait(version)
            if feed.progress is not None:
                yield feed.progress

    async def _read_log(self, name: str, after: int) -> AsyncIterator[training_pb2.TrainingEvent]:
        """All stored events after a sequence number, read a page at a time."""
        while page := await self._store.events(name, after, _BATCH):
            for event in page:
                yield event
            after = page[-1].sequence

    # -------------------------------------------------------------------- cancel

    async def cancel(self, name: str) -> training_pb2.TrainingJob:
        """Cancel a job; one that has ended is returned as it is.

        Raises:
            NotFound: no such job.
        """
        # Shielded: a caller that leaves half way must not leave a job half cancelled.
        return await asyncio.shield(self._cancel(name))

    async def _cancel(self, name: str) -> training_pb2.TrainingJob:
        active = self._active.get(name)
        if active is None:
            return await self.get(name)
        async with active.lock:
            if active.job.state == training_pb2.JOB_STATE_QUEUED:
                # One that has just got its slot is out of the queue and sees that it has ended.
                self._queue.remove(name)
                await self._record(active, jobs.cancelled(active.job))
            elif active.job.state == training_pb2.JOB_STATE_RUNNING:
                await self._begin_cancel(active)
        return await self.get(name)

    async def _begin_cancel(self, active: _Active) -> None:
        cancelling = training_pb2.JOB_STATE_CANCELLING
        job = jobs.with_state(active.job, cancelling, jobs.now())
        await self._store.save(job)
        active.job = job
        if active.execution is not None:
            self._stop(active.execution)

    def _stop(self, execution: Execution) -> None:
        """Ask a training process to stop, and end it when it does not."""
        execution.cancel()
        loop = asyncio.get_running_loop()
        loop.call_later(self._grace, execution.kill)

    # -------------------------------------------------------------------- run

    def _enqueue(self, job: training_pb2.TrainingJob) -> None:
        self._activate(job)
        self._queue.add(job)

    def _activate(self, job: training_pb2.TrainingJob) -> _Active:
        return self._active.setdefault(job.name, _Active(job))

    def _pump(self) -> None:
        """Start waiting jobs while there are places for them."""
        while not self._stopping and (started := self._queue.start_next(self._slots)):
            name, lease = started
            self._running[name] = asyncio.create_task(self._run(self._active[name], lease))

    async def _run(self, active: _Active, lease: Lease) -> None:
        name = active.job.name
        log = self._log.bind(job=name)
        again = False
        try:
            await self._run_process(active, lease, log)
            again = await self._try_again(active, log)
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("job.error")
            await self._end_by_error(active, log)
        finally:
            del self._running[name]
            self._slots.give_back(lease)
            if again and active.job.state == training_pb2.JOB_STATE_QUEUED:
                self._queue.add(active.job, first=True)
            self._pump()

    async def _end_by_error(self, active: _Active, log: structlog.stdlib.BoundLogger) -> None:
        """End a job for a fault of the server, however often it takes.

        A full disk may be the fault, and a job without a process must not be left as if it had one.
        """
        reason = training_pb2.FAILURE_REASON_INTERNAL
        event = jobs.failed(reason, "the server's log has the details")
        for pause in itertools.chain((0.1, 1.0), itertools.repeat(10.0)):
            try:
                await self._end(active, event)
                break
            except Exception:
                log.exception("job.end_not_stored", again_in=pause)
            await asyncio.sleep(pause)

    async def _try_again(self, active: _Active, log: structlog.stdlib.BoundLogger) -> bool:
        """Let a job that has lost its process wait for another one; whether it was such a job."""
        async with active.lock:
            if active.job.state != training_pb2.JOB_STATE_RUNNING:
                return False
            active.execution = None
            active.job = await self._let_wait(active.job)
        log.warning("job.requeued", losses=active.losses, epoch=active.job.progress.epoch)
        return True

    async def _run_process(
        self, active: _Active, lease: Lease, log: structlog.stdlib.BoundLogger
    ) -> None:
        async with active.lock:
            if active.job.state in jobs.TERMINAL:
                return
            job = jobs.begin(active.job, jobs.now())
            await self._store.save(job)
            active.job = job
        log.info("job.started", lease=lease.device, **parameters(active.job))
        execution = await self._executor.start(self._task(active.job, lease))
        try:
            await self._attach(active, execution)
            outcome = await self._listen(active, execution, log)
            status = await execution.wait()
        finally:
            # The place is free when the process is gone, not before.
            execution.kill()
            await execution.wait()
        await self._conclude(active, outcome, status)

    def _task(self, job: training_pb2.TrainingJob, lease: Lease) -> Train:
        return Train(
            request=job.request.SerializeToString(),
            table=self._catalog.table(job.request.dataset),
            folder=self._catalog.job_folder(job.name),
            threads=self._threads,
            visible_devices=visible_devices(lease.device),
            last_epoch=job.progress.epoch,
        )

    async def _attach(self, active: _Active, execution: Execution) -> None:
        async with active.lock:
            active.execution = execution
            if active.job.state == training_pb2.JOB_STATE_CANCELLING:
                self._stop(execution)

    async def _listen(
        self, active: _Active, execution: Execution, log: structlog.stdlib.BoundLogger
    ) -> _Outcome:
        """Record what the process sends. Its last event waits until the process is gone."""
        outcome = _Outcome()
        async for message in execution.messages():
            if isinstance(message, training_pb2.TrainingEvent) and not jobs.is_terminal(message):
                async with active.lock:
                    await self._record(active, message)
                log_event(log, message)
            else:
                _note(outcome, message, log)
        return outcome

    async def _record(
        self,
        active: _Active,
        event: training_pb2.TrainingEvent,
        model: model_pb2.Model | None = None,
    ) -> None:
        """Store an event, then tell the watchers; progress is only told.

        A job ends once, and what an attempt before this one has told is not told again.
        """
        if active.job.state in jobs.TERMINAL:
            return
        if event.HasField("started") and active.has_started:
            event = training_pb2.TrainingEvent(resumed=training_pb2.JobResumed(epoch=0))
        if jobs.is_known(active.job, event):
            return
        if event.HasField("progress"):
            active.feed.publish(jobs.stamp_progress(active.job, event, jobs.now()))
            return
        job, stamped = jobs.apply(active.job, event, jobs.now())
        await self._store.save(job, stamped, model)
        active.job = job
        active.has_started |= stamped.HasField("started")
        active.losses = 0 if stamped.HasField("epoch") else active.losses
        if jobs.is_terminal(stamped):
            del self._active[job.name]
            self._log.info("job.ended", job=job.name, **ending(job))
        active.feed.publish()

    async def _end(
        self,
        active: _Active,
        event: training_pb2.TrainingEvent,
        model: model_pb2.Model | None = None,
    ) -> None:
        async with active.lock:
            await self._record(active, event, model)

    async def _conclude(self, active: _Active, outcome: _Outcome, status: int) -> None:
        """Record the terminal event, now that the process is gone and its memory free."""
        last, model = outcome.last, outcome.model
        if last is not None and last.HasField("succeeded") and model is not None:
            await self._end(active, last, await self._keep_model(active.job, last, model))
        elif last is not None:
            await self._end(active, last)
        elif active.job.state == training_pb2.JOB_STATE_CANCELLING:
            await self._end(active, jobs.cancelled(active.job))
        else:
            active.losses += 1
            if active.losses >= self._max_attempts:
                await self._end(active, _lost(status, active.losses))

    async def _keep_model(
        self,
        job: training_pb2.TrainingJob,
        event: training_pb2.TrainingEvent,
        model: model_pb2.Model,
    ) -> model_pb2.Model:
        """Move the bundle to its place and complete its description; names it in the event."""
        model.name = f"models/{job.name.partition('/')[2]}"
        model.job = job.name
        model.dataset_digest = job.dataset_digest
        model.create_time.CopyFrom(jobs.now())
        event.succeeded.model = model.name
        await asyncio.to_thread(self._catalog.keep_bundle, job.name, model.name)
        return model


def _check_suitability(request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset) -> None:
    found = suitability.check(contract.resolve(request), dataset)
    if found:
        message = f"{dataset.name} cannot be trained on: {contract.listing(found)}"
        raise DatasetUnsuitable(message, tuple(found))


def _lost(status: int, losses: int) -> training_pb2.TrainingEvent:
    how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
    advice = "submit the job again"
    if status == -9:
        advice += "; if memory ran out, which ends in signal 9, lower trainer.batch_size first"
    message = (
        f"{losses} training processes in a row were lost without finishing an epoch; the last one "
        f"{how}; {advice}"
    )
    return jobs.failed(training_pb2.FAILURE_REASON_WORKER_LOST, message)


def _note(outcome: _Outcome, message: Message, log: structlog.stdlib.BoundLogger) -> None:
    if isinstance(message, training_pb2.TrainingEvent):
        outcome.last = message
    elif isinstance(message, model_pb2.Model):
        outcome.model = message
    elif isinstance(message, wrappers_pb2.StringValue):
        log.error("job.worker_error", details=message.value)
