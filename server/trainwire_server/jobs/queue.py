"""Which job starts next, and where: the waiting line and the places to train in."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from trainwire.v1 import training_pb2

CPU = "cpu"


@dataclass(frozen=True)
class Lease:
    """A place that a job has taken: "cpu", or a GPU by torch's name."""

    device: str


class Slots:
    """The places to train in: so many jobs at once, and so many on each GPU.

    Args:
        jobs: jobs at once.
        jobs_per_device: jobs at once on one GPU.
    """

    def __init__(self, jobs: int, jobs_per_device: int) -> None:
        self._jobs = jobs
        self._per_device = jobs_per_device
        self._gpus: list[str] | None = None
        self._taken: Counter[str] = Counter()

    def learn_devices(self, names: Sequence[str]) -> None:
        """Hear which devices there are; until then only jobs that ask for the CPU get a place."""
        self._gpus = [name for name in names if name != CPU]

    def take(self, job: training_pb2.TrainingJob) -> Lease | None:
        """A place for the job, or None while there is none."""
        if self._taken.total() >= self._jobs:
            return None
        device = self._free_device(job.request.resources.device)
        if device is None:
            return None
        self._taken[device] += 1
        return Lease(device)

    def give_back(self, lease: Lease) -> None:
        """The job that had this place has ended and its process is gone."""
        self._taken[lease.device] -= 1

    def _free_device(self, wanted: training_pb2.Device.ValueType) -> str | None:
        if wanted == training_pb2.DEVICE_CPU:
            return CPU
        if self._gpus is None:
            return None
        if not self._gpus:
            return CPU
        gpu = min(self._gpus, key=lambda name: self._taken[name])
        return gpu if self._taken[gpu] < self._per_device else None


class JobKey(NamedTuple):
    """Which job: two tenants may have one of the same name, where one was copied to the other."""

    tenant: str
    name: str


@dataclass(frozen=True)
class _Waiting:
    place: tuple[int, int]
    key: JobKey
    job: training_pb2.TrainingJob


class Queue:
    """Waiting jobs: higher priority first, then first come, first served, whosever they are."""

    def __init__(self) -> None:
        # In order of their places: minus the priority, then the arrival.
        self._waiting: list[_Waiting] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def count(self, tenant: str) -> int:
        """How many jobs of a tenant wait."""
        return sum(1 for waiting in self._waiting if waiting.key.tenant == tenant)

    def add(self, tenant: str, job: training_pb2.TrainingJob, first: bool = False) -> None:
        """Let a job wait behind all of its priority, or before them: it had its turn already."""
        self._arrivals += 1
        arrival = -self._arrivals if first else self._arrivals
        place = (-job.request.resources.priority, arrival)
        waiting = _Waiting(place, JobKey(tenant, job.name), job)
        bisect.insort(self._waiting, waiting, key=attrgetter("place"))

    def remove(self, key: JobKey) -> None:
        """A job waits no longer; nothing happens if it did not."""
        self._waiting = [waiting for waiting in self._waiting if waiting.key != key]

    def position(self, key: JobKey) -> int:
        """Place of a job, counted from 1; 0 if it does not wait."""
        places = enumerate((waiting.key for waiting in self._waiting), start=1)
        return next((place for place, waiting in places if waiting == key), 0)

    def position_of_next(self, priority: int) -> int:
        """The place that a job of this priority would get."""
        return 1 + sum(1 for waiting in self._waiting if waiting.place[0] <= -priority)

    def start_next(
        self, slots: Slots, may_start: Callable[[str], bool]
    ) -> tuple[JobKey, Lease] | None:
        """Take the first job out for which there is a place, and whose tenant may start one.

        One that waits for a GPU, or for its tenant's other jobs, holds nobody else up.
        """
        for waiting in self._waiting:
            lease = slots.take(waiting.job) if may_start(waiting.key.tenant) else None
            if lease is not None:
                self.remove(waiting.key)
                return waiting.key, lease
        return None
