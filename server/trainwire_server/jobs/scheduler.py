"""Starts jobs: one waiting line and one set of places to train in, for all tenants."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from trainwire.v1 import training_pb2
from trainwire_server.errors import QueueFull, ServerStopping
from trainwire_server.jobs.devices import Devices
from trainwire_server.jobs.queue import JobKey, Lease, Queue, Slots
from trainwire_server.jobs.quotas import Quotas
from trainwire_server.jobs.turns import Turns

Start = Callable[[str, Lease], Coroutine[Any, Any, None]]
"""Called with the name of a job that has got a place; what it returns ends when that is free."""


class Scheduler:
    """Gives the places to train in to the jobs of all tenants.

    Args:
        slots: the places.
        max_queued_jobs: jobs that may wait.
        quotas: what each tenant may have of both.
    """

    def __init__(self, slots: Slots, max_queued_jobs: int, quotas: Quotas) -> None:
        self.is_stopping = False
        self._slots = slots
        self._most_queued = max_queued_jobs
        self._quotas = quotas
        self._queue = Queue()
        self._starts: dict[str, Start] = {}
        self._coming: Counter[str] = Counter()
        self._running: dict[JobKey, asyncio.Task[None]] = {}
        self._dry_run = asyncio.Lock()

    def line(self, tenant: str, start: Start) -> Line:
        """What a tenant has to do with it.

        Args:
            start: starts a job of this tenant in its place.
        """
        self._starts[tenant] = start
        return Line(self, self._queue, tenant, Turns(self._dry_run, self._quotas))

    async def learn_devices(self, devices: Devices) -> None:
        """Wait until it is known what there is to train on, and give it away."""
        self._slots.learn_devices(await devices.names())
        self.pump()

    def running(self, tenant: str) -> list[str]:
        """Names of the jobs of a tenant that have a place."""
        return [key.name for key in self._running if key.tenant == tenant]

    @contextmanager
    def room(self, tenant: str) -> Iterator[None]:
        """Room for one more waiting job of a tenant, kept while that is being stored.

        Raises:
            QuotaExceeded, QueueFull: there is none.
        """
        self.check_room(tenant)
        self._coming[tenant] += 1
        try:
            yield
        finally:
            self._coming[tenant] -= 1

    def check_room(self, tenant: str) -> None:
        """Raise QuotaExceeded or QueueFull unless one more job of a tenant may wait."""
        self._quotas.check_queued(self._queue.count(tenant) + self._coming[tenant])
        waiting = len(self._queue) + self._coming.total()
        if waiting >= self._most_queued:
            raise QueueFull(
                f"{waiting} jobs wait, and --max-queued-jobs is {self._most_queued}; "
                "submit again when some have started"
            )

    def pump(self) -> None:
        """Start waiting jobs while there are places for them."""
        running = Counter(key.tenant for key in self._running)

        def may_start(tenant: str) -> bool:
            return self._quotas.may_run(running[tenant])

        while not self.is_stopping:
            started = self._queue.start_next(self._slots, may_start)
            if started is None:
                return
            key, lease = started
            # Called here, not in the task: by then the job may have ended, and be nobody's.
            work = self._starts[key.tenant](key.name, lease)
            self._running[key] = asyncio.create_task(self._run(key, work, lease))
            running[key.tenant] += 1

    async def _run(self, key: JobKey, work: Coroutine[Any, Any, None], lease: Lease) -> None:
        try:
            await work
        finally:
            del self._running[key]
            self._slots.give_back(lease)
            self.pump()

    def stop(self) -> None:
        """Start no more jobs."""
        self.is_stopping = True

    def refuse_when_stopping(self) -> None:
        """Raise ServerStopping once no more jobs are started."""
        if self.is_stopping:
            raise ServerStopping("the server is stopping; try again")

    async def drain(self, grace: float) -> None:
        """Wait until no job has a place; what is not done after so many seconds is ended."""
        tasks = list(self._running.values())
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Line:
    """The jobs of one tenant in the line of all. Places in it are counted over all tenants.

    Attributes:
        dry_runs: the tenant's dry runs, which have a line of their own.
    """

    def __init__(self, scheduler: Scheduler, queue: Queue, tenant: str, dry_runs: Turns) -> None:
        self.dry_runs = dry_runs
        self._scheduler = scheduler
        self._queue = queue
        self._tenant = tenant

    def __len__(self) -> int:
        return self._queue.count(self._tenant)

    @property
    def running(self) -> list[str]:
        """Names of the jobs that have a place."""
        return self._scheduler.running(self._tenant)

    def add(self, job: training_pb2.TrainingJob, first: bool = False) -> None:
        """Let a job wait; see `Queue.add`. It is the next `pump` that may start it."""
        self._queue.add(self._tenant, job, first)

    def remove(self, name: str) -> None:
        """A job waits no longer; nothing happens if it did not."""
        self._queue.remove(JobKey(self._tenant, name))

    def position(self, name: str) -> int:
        """Place of a job, counted from 1; 0 if it does not wait."""
        return self._queue.position(JobKey(self._tenant, name))

    def position_of_next(self, priority: int) -> int:
        """The place that a job of this priority would get."""
        return self._queue.position_of_next(priority)

    def check_room(self) -> None:
        """Raise QuotaExceeded or QueueFull unless one more job may wait."""
        self._scheduler.check_room(self._tenant)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Room for one more; see `Scheduler.room`."""
        with self._scheduler.room(self._tenant):
            yield
