"""Takes requests in: checks them against dataset and devices, and makes jobs of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import structlog
from google.protobuf.message import Message

from trainwire import contract
from trainwire.v1 import dataset_pb2, training_pb2
from trainwire_server.data import suitability
from trainwire_server.data.catalog import Catalog
from trainwire_server.data.checkpoints import copy_checkpoints
from trainwire_server.data.durable import refusing_when_full
from trainwire_server.errors import (
    AlreadyExists,
    DatasetUnsuitable,
    DeviceUnavailable,
    InvalidRequest,
    JobNotResumable,
    NotFound,
    RequestError,
)
from trainwire_server.execution.executor import Executor
from trainwire_server.identity import call_fields
from trainwire_server.jobs import dry_run
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.datasets import Datasets
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.estimate import MemoryLimit
from trainwire_server.jobs.retention import Retention
from trainwire_server.jobs.scheduler import Line
from trainwire_server.jobs.store import Store

_RESUMABLE = frozenset({training_pb2.JOB_STATE_CANCELLED, training_pb2.JOB_STATE_FAILED})
_CHANGEABLE = frozenset({"request_id", "display_name", "labels", "trainer.epochs"})


class Submissions:
    """Makes jobs of requests that keep the contract.

    Args:
        line: where the jobs will wait.
        threads: threads a dry run computes with.
        memory: what a training may have.
        enqueue: called with a job as soon as it is stored.
        log: for lines about jobs.
    """

    def __init__(
        self,
        store: Store,
        catalog: Catalog,
        datasets: Datasets,
        retention: Retention,
        executor: Executor,
        devices: Devices,
        line: Line,
        threads: int,
        memory: MemoryLimit,
        enqueue: Callable[[training_pb2.TrainingJob], None],
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._datasets = datasets
        self._executor = executor
        self._devices = devices
        self._retention = retention
        self._line = line
        self._threads = threads
        self._memory = memory
        self._enqueue = enqueue
        self._log = log

    # -------------------------------------------------------------------- submit

    async def submit(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """A new job, stored and queued; the same request_id, the same job."""
        await self._learn_devices(request)
        # One at a time, so that two calls with one request_id cannot both find it new, and that no
        # dataset goes between its check and the job that refers to it.
        async with self._datasets.lock:
            before = await self._submitted_before(request, resumed_from="")
            if before is not None:
                return before
            dataset = await self._check(request)
            job = jobs.new_job(request, dataset, jobs.now())
            return await self._create(job, request)

    async def _learn_devices(self, request: training_pb2.TrainingRequest) -> None:
        """Wait until it is known what there is to train on, if the check of a request asks.

        Outside the lock: the probe may take a while, and other submits need not wait for it.
        """
        if self._devices.known:
            return
        wants_gpu = request.resources.device == training_pb2.DEVICE_CUDA
        if wants_gpu or not await self._is_small(request):
            await self._devices.names()

    async def _is_small(self, request: training_pb2.TrainingRequest) -> bool:
        dataset = await self._store.dataset(request.dataset)
        effective = contract.resolve(request)
        if dataset is None or suitability.check(effective, dataset):
            return True  # refused for that, whatever there is to train on
        return self._memory.is_small(effective, dataset)

    async def _submitted_before(
        self, request: training_pb2.TrainingRequest, resumed_from: str
    ) -> training_pb2.TrainingJob | None:
        if not request.HasField("request_id"):
            return None
        found = await self._store.job_by_request_id(request.request_id)
        if found is None:
            return None
        earlier, job = found
        differing = contract.differences(earlier, request)
        if job.resumed_from != resumed_from:
            differing.append("resumed_from")
        if differing:
            raise AlreadyExists(
                f"request_id {request.request_id} was used for {job.name} with another request; "
                f"different: {', '.join(differing)}",
                tuple(contract.Violation(path, "differs") for path in differing),
            )
        return job

    async def _check(self, request: training_pb2.TrainingRequest) -> dataset_pb2.Dataset:
        """The dataset of a request, if it and the devices are what the request needs."""
        dataset = await self._dataset(request.dataset)
        _check_suitability(request, dataset)
        await self._memory.check(contract.resolve(request), dataset)
        wanted = request.resources.device
        if wanted == training_pb2.DEVICE_CUDA and len(await self._devices.names()) < 2:
            raise DeviceUnavailable(
                "this server has no CUDA device",
                (contract.Violation("resources.device", "allowed: DEVICE_AUTO, DEVICE_CPU"),),
            )
        return dataset

    async def _dataset(self, name: str) -> dataset_pb2.Dataset:
        dataset = await self._store.dataset(name)
        if dataset is None:
            raise NotFound(
                f"{name} does not exist; upload it first",
                (contract.Violation("dataset", "no such dataset"),),
            )
        return dataset

    async def _create(
        self, job: training_pb2.TrainingJob, request: training_pb2.TrainingRequest
    ) -> training_pb2.TrainingJob:
        await self._retention.check_quota()
        # Kept until the job waits: other tenants submit meanwhile.
        with self._line.room():
            events = []
            place = self._line.position_of_next(job.request.resources.priority)
            for event in jobs.first_events(request, place):
                job, stamped = jobs.apply(job, event, job.create_time)
                events.append(stamped)
            await self._store.create_job(job, request, events)
            origin = {"resumed_from": job.resumed_from} if job.resumed_from else {}
            about = {"set_fields": list(job.set_fields), **origin, **call_fields()}
            self._log.info("job.queued", job=job.name, **about)
            self._enqueue(job)
        return job

    # -------------------------------------------------------------------- resume

    async def resume(
        self, name: str, changes: training_pb2.TrainingRequest
    ) -> training_pb2.TrainingJob:
        """A new job that goes on from the last checkpoint of a cancelled or failed one."""
        first = await self._store.submitted(name)
        if first is not None:
            # What may change makes it no larger.
            await self._learn_devices(first[0])
        async with self._datasets.lock:
            return await self._resume(name, changes)

    async def _resume(
        self, name: str, changes: training_pb2.TrainingRequest
    ) -> training_pb2.TrainingJob:
        old = await self._store.submitted(name)
        if old is None:
            return await self._resumed_before(name, changes)
        submitted, ended = old
        request = _continued(submitted, changes)
        before = await self._submitted_before(request, resumed_from=name)
        if before is not None:
            return before
        if ended.state not in _RESUMABLE:
            state = training_pb2.JobState.Name(ended.state)
            raise JobNotResumable(f"{name} is {state}; only cancelled and failed jobs go on")
        dataset = await self._check(request)
        job = jobs.new_job(request, dataset, jobs.now())
        return await self._create_resumed(job, request, ended)

    async def _resumed_before(
        self, name: str, changes: training_pb2.TrainingRequest
    ) -> training_pb2.TrainingJob:
        """The job that continues one that has been deleted since."""
        found = await self._store.job_by_request_id(changes.request_id)
        if found is None or found[1].resumed_from != name:
            raise NotFound(f"{name} does not exist")
        return found[1]

    async def _create_resumed(
        self,
        job: training_pb2.TrainingJob,
        request: training_pb2.TrainingRequest,
        old: training_pb2.TrainingJob,
    ) -> training_pb2.TrainingJob:
        self._line.check_room()
        source, folder = self._catalog.job_folder(old.name), self._catalog.job_folder(job.name)
        try:
            with refusing_when_full("the job"):
                last = old.progress.epoch
                epoch = await asyncio.to_thread(copy_checkpoints, source, folder, last)
            if not epoch:
                raise JobNotResumable(f"{old.name} has no checkpoint; submit its request again")
            # Now, as it may be cancelled while it waits; what both have counts half for each.
            for name in (job.name, old.name):
                await asyncio.to_thread(self._catalog.measure_folder, name)
            return await self._create(jobs.continued(job, old, epoch), request)
        except BaseException:
            await asyncio.to_thread(self._catalog.remove, job.name)
            raise

    # -------------------------------------------------------------------- validate

    async def validate(self, request: training_pb2.TrainingRequest) -> training_pb2.TrainingJob:
        """What a request comes to, found out in a child process; nothing is stored."""
        dataset = await self._check(request)
        job = jobs.new_job(request, dataset, jobs.now())
        for event in jobs.first_events(request, queue_position=0):
            job, _ = jobs.apply(job, event, job.create_time)
        for name in ("name", "state", "create_time", "update_time", "last_sequence"):
            cast("Message", job).ClearField(name)
        async with self._line.dry_runs.turn():
            await self._plan(job)
        return job

    async def _plan(self, job: training_pb2.TrainingJob) -> None:
        """Have a child process fill in the plan, if the dataset is still there.

        Others may delete it while the dry run waits, and until its process has it open.
        """
        await self._dataset(job.request.dataset)
        memory = await self._memory.of_dry_run(job.request)
        table = self._catalog.table(job.request.dataset)
        try:
            await dry_run.plan(self._executor, job, table, self._threads, memory)
        except RequestError:
            await self._dataset(job.request.dataset)
            raise


def _check_suitability(request: training_pb2.TrainingRequest, dataset: dataset_pb2.Dataset) -> None:
    found = suitability.check(contract.resolve(request), dataset)
    if found:
        message = f"{dataset.name} cannot be trained on: {contract.listing(found)}"
        raise DatasetUnsuitable(message, tuple(found))


def _continued(
    submitted: training_pb2.TrainingRequest, changes: training_pb2.TrainingRequest
) -> training_pb2.TrainingRequest:
    """The request of a resumed job.

    Raises:
        InvalidRequest: the changes are not what may change.
    """
    before = training_pb2.TrainingRequest()
    before.CopyFrom(submitted)
    before.ClearField("request_id")
    after = contract.overlay(before, changes)
    found = [*contract.violations(after), *_forbidden(contract.resolve(before), after)]
    if found:
        found = [contract.Violation(f"changes.{v.field}", v.description) for v in found]
        raise InvalidRequest(contract.listing(found), tuple(found))
    return after


def _forbidden(
    before: training_pb2.TrainingRequest, after: training_pb2.TrainingRequest
) -> list[contract.Violation]:
    """What must not be different, and is."""
    effective = contract.resolve(after)
    found = [
        contract.Violation(path, "cannot be changed in a resumed job; submit a new one")
        for path in contract.differences(before, effective)
        if path not in _CHANGEABLE
    ]
    least = before.trainer.epochs
    if effective.trainer.epochs < least:
        problem = f"{effective.trainer.epochs} is not allowed; allowed: {least} (as before) or more"
        found.append(contract.Violation("trainer.epochs", problem))
    return found
