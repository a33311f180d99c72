"""Runs one job in a training process, from its start to what became of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import structlog
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from trainwire.v1 import model_pb2, training_pb2
from trainwire_server.data.catalog import Catalog
from trainwire_server.execution.executor import Execution, Executor, Train
from trainwire_server.execution.lease import BEATS, Silent, within_lease
from trainwire_server.execution.patience import start_patiently
from trainwire_server.jobs import job as jobs
from trainwire_server.jobs.devices import visible_devices
from trainwire_server.jobs.ledger import Active, Ledger
from trainwire_server.jobs.log_lines import log_event, parameters
from trainwire_server.jobs.queue import Lease


@dataclass(frozen=True)
class Limits:
    """What training processes get.

    Attributes:
        threads: threads to compute with.
        memory_bytes: what one may allocate; 0 for as much as there is.
        lease: seconds that one may be silent.
        grace: seconds that one gets to end by itself when its job is cancelled.
        attempts: processes a job may lose in a row without finishing an epoch.
    """

    threads: int
    memory_bytes: int
    lease: float
    grace: float
    attempts: int


@dataclass
class _Outcome:
    """What a training process said before it ended, and how it ended."""

    last: training_pb2.TrainingEvent | None = None
    model: model_pb2.Model | None = None
    end: str = ""
    signal: int = 0


class Runner:
    """Runs jobs, each in a process of its own."""

    def __init__(
        self, ledger: Ledger, catalog: Catalog, executor: Executor, limits: Limits
    ) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self._executor = executor
        self._limits = limits
        self._draining = False

    async def run(self, active: Active, lease: Lease) -> None:
        """Train until the job has ended, its process is lost, or the epoch of a drain is done.

        Returns when the process is gone: its place is free then, not before.
        """
        log = self._ledger.log.bind(job=active.job.name)
        if not await self._ledger.insist(lambda: self._begin(active)):
            return
        attempt = active.job.attempt
        log.info("job.started", lease=lease.device, attempt=attempt, **parameters(active.job))
        task = await self._ledger.insist(lambda: asyncio.to_thread(self._task, active, lease))
        execution = await self._start(active, task, log)
        if execution is None:
            return
        try:
            await self._attach(active, execution)
            outcome = await self._listen(active, execution, log)
        finally:
            execution.kill()
            status = await execution.wait()
            active.execution = None
        _explain(outcome, status)
        await self._conclude(active, outcome)

    def stop(self, execution: Execution) -> None:
        """Ask a training process to stop, and end it when it does not."""
        execution.cancel()
        asyncio.get_running_loop().call_later(self._limits.grace, execution.kill)

    def drain(self) -> None:
        """Let every training process stop after the epoch it is in, later ones too."""
        self._draining = True
        for active in self._ledger.all_active():
            if active.execution is not None:
                active.execution.drain()

    async def _begin(self, active: Active) -> bool:
        """Count the attempt; whether there is a job to run."""
        async with active.lock:
            if active.job.state != training_pb2.JOB_STATE_QUEUED:
                return False
            await self._ledger.change(active, jobs.begin(active.job, jobs.now()))
        return True

    def _task(self, active: Active, lease: Lease) -> Train:
        job = active.job
        return Train(
            request=job.request.SerializeToString(),
            table=self._catalog.table(job.request.dataset),
            folder=self._catalog.job_folder(job.name),
            # As before, where there was one: other threads would give other bits.
            threads=active.started.threads if active.started else self._limits.threads,
            visible_devices=visible_devices(lease.device),
            last_epoch=job.progress.epoch,
            is_started=active.started is not None,
            memory_bytes=self._limits.memory_bytes,
            beat_seconds=self._limits.lease / BEATS,
        )

    async def _start(
        self, active: Active, task: Train, log: structlog.stdlib.BoundLogger
    ) -> Execution | None:
        """Its process, however long it takes; None if the job is to stop before there is one.

        That there is no process to be had is no loss of this job's: it has its place, and waits
        there.
        """

        def is_wanted() -> bool:
            return active.job.state == training_pb2.JOB_STATE_RUNNING and not self._draining

        return await start_patiently(self._executor, task, is_wanted, log, "job.not_started")

    async def _attach(self, active: Active, execution: Execution) -> None:
        async with active.lock:
            active.execution = execution
            if active.job.state == training_pb2.JOB_STATE_CANCELLING:
                self.stop(execution)
            elif self._draining:
                execution.drain()

    async def _listen(
        self, active: Active, execution: Execution, log: structlog.stdlib.BoundLogger
    ) -> _Outcome:
        """Record what the process sends. Its last event waits until the process is gone."""
        outcome = _Outcome()
        try:
            async for message in within_lease(execution.messages(), self._limits.lease):
                if isinstance(message, training_pb2.TrainingEvent):
                    await self._take(active, message, outcome, log)
                    if message.HasField("epoch"):
                        execution.confirm()
                else:
                    _note(outcome, message, log)
        except Silent:
            outcome.end = f"said nothing for {self._limits.lease:g} s and was ended"
            log.warning("job.process_silent", seconds=self._limits.lease)
        return outcome

    async def _take(
        self,
        active: Active,
        event: training_pb2.TrainingEvent,
        outcome: _Outcome,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        if jobs.is_terminal(event):
            outcome.last = event
            return
        await self._ledger.insist(lambda: self._record(active, event))
        log_event(log, event)

    async def _record(self, active: Active, event: training_pb2.TrainingEvent) -> None:
        async with active.lock:
            await self._ledger.record(active, event)

    async def _conclude(self, active: Active, outcome: _Outcome) -> None:
        """Record the terminal event, now that the process is gone and its memory free."""
        last, model = outcome.last, outcome.model
        if last is not None and last.HasField("succeeded") and model is not None:
            await self._ledger.end(active, last, await self._keep_model(active.job, last, model))
            # Not before: until the end is stored, the job may have to go on from them.
            await asyncio.to_thread(self._catalog.drop_checkpoints, active.job.name)
            return
        await asyncio.to_thread(self._catalog.tidy, active.job.name)
        if last is not None:
            await self._ledger.end(active, last)
        elif active.job.state == training_pb2.JOB_STATE_CANCELLING:
            await self._ledger.end(active, jobs.cancelled(active.job))
        elif not self._draining:
            await self._count_loss(active, outcome)

    async def _count_loss(self, active: Active, outcome: _Outcome) -> None:
        active.losses += 1
        if active.losses >= self._limits.attempts:
            message = _lost(outcome, active.losses, self._limits.memory_bytes)
            reason = training_pb2.FAILURE_REASON_WORKER_LOST
            await self._ledger.end(active, jobs.failed(reason, message))

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
        await self._ledger.insist(
            lambda: asyncio.to_thread(self._catalog.keep_bundle, job.name, model.name)
        )
        return model


def _note(outcome: _Outcome, message: Message, log: structlog.stdlib.BoundLogger) -> None:
    if isinstance(message, model_pb2.Model):
        outcome.model = message
    elif isinstance(message, wrappers_pb2.StringValue):
        log.error("job.worker_error", details=message.value)


def _explain(outcome: _Outcome, status: int) -> None:
    """Say how the process ended, unless that is known better already."""
    if outcome.end:
        return
    outcome.signal = max(-status, 0)
    how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
    outcome.end = how


def _lost(outcome: _Outcome, losses: int, memory_bytes: int) -> str:
    advice = "resume the job, or submit it again"
    if outcome.signal == 9:
        advice += "; if memory ran out, which ends in signal 9, lower trainer.batch_size first"
    elif outcome.signal and memory_bytes:
        advice += (
            f"; a process that may allocate {memory_bytes} bytes at most can end like this when it "
            "needs more: lower trainer.batch_size first"
        )
    return (
        f"{losses} training processes in a row were lost without finishing a new epoch; the last "
        f"one {outcome.end}; {advice}"
    )
