"""Which job starts next, and where: the waiting line and the places to train in."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter

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


class Queue:
    """Waiting jobs: higher priority first, then first come, first served."""

    def __init__(self) -> None:
        # In order, each with what it is ordered by: minus its priority, then its arrival.
        self._waiting: list[tuple[tuple[int, int], training_pb2.TrainingJob]] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: training_pb2.TrainingJob, first: bool = False) -> None:
        """Let a job wait behind all of its priority, or before them: it had its turn already."""
        self._arrivals += 1
        arrival = -self._arrivals if first else self._arrivals
        place = (-job.request.resources.priority, arrival)
        bisect.insort(self._waiting, (place, job), key=itemgetter(0))

    def remove(self, name: str) -> None:
        """A job waits no longer; nothing happens if it did not."""
        self._waiting = [entry for entry in self._waiting if entry[1].name != name]

    def position(self, name: str) -> int:
        """Place of a job, counted from 1; 0 if it does not wait."""
        places = enumerate((job.name for _, job in self._waiting), start=1)
        return next((place for place, waiting in places if waiting == name), 0)

    def position_of_next(self, priority: int) -> int:
        """The place that a job of this priority would get."""
        return 1 + sum(1 for place, _ in self._waiting if place[0] <= -priority)

    def start_next(self, slots: Slots) -> tuple[str, Lease] | None:
        """Take the first job out for which there is a place.

        One that waits for a GPU holds nobody up who does not need it.
        """
        for _, job in self._waiting:
            lease = slots.take(job)
            if lease is not None:
                self.remove(job.name)
                return job.name, lease
        return None
