"""The seam between jobs and the processes that do the work."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from google.protobuf.message import Message


@dataclass(frozen=True)
class Train:
    """Train a model; sends events, and before `succeeded` the Model.

    Attributes:
        request: the effective TrainingRequest, serialized.
        table: the dataset's Arrow file.
        folder: folder of the job; the bundle is left in its `bundle`.
        threads: threads to compute with.
        visible_devices: CUDA_VISIBLE_DEVICES of the child.
        last_epoch: the last epoch whose event is stored; no later checkpoint may be used.
        is_started: whether the job's log has a `started` event.
        memory_bytes: what the child may allocate; 0 for as much as there is.
        beat_seconds: seconds between two signs of life.
    """

    request: bytes
    table: Path
    folder: Path
    threads: int
    visible_devices: str
    last_epoch: int
    is_started: bool
    memory_bytes: int
    beat_seconds: float


@dataclass(frozen=True)
class Plan:
    """Find out what a request comes to; sends JobWarnings and a TrainingPlan, or a Failure.

    Attributes:
        request: the effective TrainingRequest, serialized.
        table: the dataset's Arrow file.
        threads: threads to compute with.
        memory_bytes: what the child may allocate; 0 for as much as there is.
    """

    request: bytes
    table: Path
    threads: int
    memory_bytes: int


@dataclass(frozen=True)
class Ingest:
    """Parse uploaded bytes into one contiguous Arrow file; sends a Dataset or a Failure.

    Attributes:
        source: the bytes as received.
        table: where the Arrow file goes.
        data_format: DatasetFormat of the bytes.
        memory_bytes: what the child may allocate.
        table_bytes: what the Arrow file may take; 0 for as much as there is.
    """

    source: Path
    table: Path
    data_format: int
    memory_bytes: int
    table_bytes: int


@dataclass(frozen=True)
class Probe:
    """Look at the devices; sends a SystemInfo."""


Task = Train | Plan | Ingest | Probe


class NotStarted(Exception):
    """The system has no process for a task now; the message says what it is short of."""


class Execution(Protocol):
    """A task that runs in a process of its own."""

    @property
    def pid(self) -> int:
        """Process id of the child."""

    def messages(self) -> AsyncIterator[Message]:
        """What the child sends, until it closes its end."""

    def cancel(self) -> None:
        """Ask the child to stop at the next batch."""

    def confirm(self) -> None:
        """Tell the child that one more of its epochs is stored."""

    def drain(self) -> None:
        """Ask the child to stop after the epoch it is in."""

    def kill(self) -> None:
        """End the child at once."""

    async def wait(self) -> int:
        """Wait until the child is gone; its exit status, or minus the signal that ended it."""


class Executor(Protocol):
    """Starts tasks."""

    name: str

    async def start(self, task: Task) -> Execution:
        """Start a task in a child process.

        Raises:
            NotStarted: there is none to be had now.
        """
